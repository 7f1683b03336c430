/* The AMX tile with plain C in the place of its instructions, so that its addressing is tested on any machine; beside the generic tile. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Eight registers of up to 16 rows of 16 words, and what Intel's manual says that the instructions do to them. */
static uint32_t registers[8][16][16];
static int configured, rows_of[8], bytes_of[8], failures;

#define WANT(fact) ((fact) ? (void)0 : (void)(failures++, printf("%s:%d: %s\n", __FILE__, __LINE__, #fact)))

static void configure_registers(const void *config)
{
    const unsigned char *c = config;
    configured = c[0] == 1;
    for (int i = 1; i < 16; i++) WANT(c[i] == 0);
    for (int i = 0; i < 8; i++) {
        bytes_of[i] = c[16 + 2 * i] | c[17 + 2 * i] << 8;
        rows_of[i] = c[48 + i];
        WANT(bytes_of[i] > 0 && bytes_of[i] <= 64 && bytes_of[i] % 4 == 0 && rows_of[i] > 0 && rows_of[i] <= 16);
    }
    memset(registers, 0, sizeof registers);
}

static void load(int t, const void *from, int64_t stride)
{
    memset(registers[t], 0, sizeof registers[t]);
    for (int r = 0; r < rows_of[t]; r++) memcpy(registers[t][r], (const char *)from + r * stride, (size_t)bytes_of[t]);
}

static void store(int t, void *to, int64_t stride)
{
    for (int r = 0; r < rows_of[t]; r++) memcpy((char *)to + r * stride, registers[t][r], (size_t)bytes_of[t]);
}

static float f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static void dot(int c, int a, int b)
{
    WANT(configured && rows_of[c] == rows_of[a] && bytes_of[c] == bytes_of[b] && bytes_of[a] == 4 * rows_of[b]);
    for (int m = 0; m < rows_of[c]; m++) {
        for (int n = 0; n < bytes_of[c] / 4; n++) {
            float sum = f32(registers[c][m][n]);
            for (int k = 0; k < rows_of[b]; k++) {
                uint32_t x = registers[a][m][k], y = registers[b][k][n];
                sum += f32(x << 16) * f32(y << 16);
                sum += f32(x & 0xffff0000u) * f32(y & 0xffff0000u);
            }
            memcpy(&registers[c][m][n], &sum, 4);
        }
    }
}

#define esp_kernel16_amx tile_in_plain_c
#define AMX
#define TILE_CONFIGURE(config) configure_registers(config)
#define TILE_RELEASE() (configured = 0)
#define TILE_ZERO(t) memset(registers[t], 0, sizeof registers[t])
#define TILE_LOAD(t, from, stride) load(t, from, stride)
#define TILE_STORE(t, to, stride) store(t, to, stride)
#define TILE_DOT(c, a, b) dot(c, a, b)
#include "../../core/ops/amx16.c"

enum { LDC = 40 };

static uint32_t state = 1;

/* A pair of small whole numbers, whose products and sums are exact in any order. */
static uint32_t pair(void)
{
    uint32_t bits[2];
    for (int i = 0; i < 2; i++) {
        state = state * 1664525u + 1013904223u;
        float f = (float)((int)(state >> 24) % 17 - 8);
        memcpy(&bits[i], &f, 4);
    }
    return bits[0] >> 16 | (bits[1] & 0xffff0000u);
}

/* The plain sum; lda has room behind the pairs, whose numbers must not matter. */
static void agrees(int m, int n, int pairs, int add)
{
    int lda = pairs + 3;
    /* Exact sizes, so that a read past the end is seen by the sanitizer. */
    uint32_t *a = malloc((size_t)((m - 1) * lda + pairs) * 4), *b = malloc((size_t)pairs * ESP_TILE_COLS * 4);
    float c[32 * LDC], want[32 * LDC];
    for (int i = 0; i < (m - 1) * lda + pairs; i++) a[i] = pair();
    for (int i = 0; i < pairs * ESP_TILE_COLS; i++) b[i] = pair();
    for (int i = 0; i < 32 * LDC; i++) c[i] = want[i] = (float)(i % 11);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            float sum = add ? want[i * LDC + j] : 0;
            for (int p = 0; p < pairs; p++) {
                uint32_t x = a[i * lda + p], y = b[p * ESP_TILE_COLS + j];
                sum += f32(x << 16) * f32(y << 16) + f32(x & 0xffff0000u) * f32(y & 0xffff0000u);
            }
            want[i * LDC + j] = sum;
        }
    }
    tile_in_plain_c.enter();
    tile_in_plain_c.tile(pairs, a, lda, b, (esp_sums){.c = c, .ldc = LDC, .add = add}, m, n, esp_near_only(a));
    for (int t = 0; t < 8; t++) WANT(rows_of[t] == 16 && bytes_of[t] == 64);
    for (int i = 0; i < 32 * LDC; i++) {
        if (c[i] == want[i]) continue;
        printf("%s:%d: %d x %d, %d pairs, add %d: entry %d is %g, want %g\n", __FILE__, __LINE__, m, n, pairs, add, i, (double)c[i], (double)want[i]);
        failures++;
        break;
    }
    /* Rounded, what they are added to stays as it is. */
    uint16_t rounded[32 * LDC] = {0};
    if (!add) memset(c, 0, sizeof c);
    else for (int i = 0; i < 32 * LDC; i++) c[i] = (float)(i % 11);
    float before[32 * LDC];
    memcpy(before, c, sizeof c);
    tile_in_plain_c.tile(pairs, a, lda, b, (esp_sums){.c = c, .ldc = LDC, .add = add, .rounded = rounded, .ld = LDC}, m, n, esp_near_only(a));
    tile_in_plain_c.leave();
    WANT(!configured);
    WANT(memcmp(before, c, sizeof c) == 0);
    int wrong = 0;
    for (int i = 0; i < 32 * LDC; i++) wrong += rounded[i] != (i / LDC < m && i % LDC < n ? esp_f32_to_bf16(want[i]) : 0);
    WANT(wrong == 0);
    free(a);
    free(b);
}

int main(void)
{
    int rows[] = {32, 31, 17, 16, 15, 1}, cols[] = {32, 31, 16, 3}, pairs[] = {16, 48, 1, 15, 17, 33};
    for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 4; j++) {
            for (int k = 0; k < 6; k++) agrees(rows[i], cols[j], pairs[k], 0), agrees(rows[i], cols[j], pairs[k], 1);
        }
    }
    if (failures == 0) puts("amx: all passed");
    return failures != 0;
}
