/* The innermost tile of an f32 product, with the interface of the bf16 ones (gemm16.h): a word is one number. Six rows of sixteen sums fill the
 * registers of AVX2, and hide the latency of a sum with AVX-512. */
#include "attention.h"

typedef float floats16 __attribute__((vector_size(64), aligned(4), may_alias));
enum { ROWS = 6, LANES = 16 };

/* rows is a constant wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) void half_tile(const int rows, int64_t words, const float *a, int64_t lda, const float *b,
                                                            float *c, int64_t ldc, int n, int add)
{
    floats16 sum[ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) sum[i] = (floats16){0};
    for (int64_t p = 0; p < words; p++, a++, b += ESP_TILE_COLS) {
        floats16 y = *(const floats16 *)b;
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) sum[i] += a[i * lda] * y;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float *to = c + i * ldc;
        if (n == LANES) {
            if (add) sum[i] += *(const floats16 *)to;
            *(floats16 *)to = sum[i];
        } else {
            for (int j = 0; j < n; j++) to[j] = add ? to[j] + sum[i][j] : sum[i][j];
        }
    }
}

static ESP_SIMD void tile_f32(int64_t words, const uint32_t *a, int64_t lda, const uint32_t *b, float *c, int64_t ldc, int m, int n, int add)
{
    for (int j = 0; j < n; j += LANES) {
        const float *y = (const float *)(const void *)(b + j);
        int cols = n - j < LANES ? n - j : LANES;
        for (int i = 0; i < m; i += ROWS) {
            const float *x = (const float *)(const void *)(a + i * lda);
            float *to = c + i * ldc + j;
#define TILE(r) case r: half_tile(r, words, x, lda, y, to, ldc, cols, add); break;
            switch (m - i < ROWS ? m - i : ROWS) {
            TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
            }
#undef TILE
        }
    }
}

static void nothing(void) {}

const esp_kernel16 esp_kernel32 = {2 * ROWS, tile_f32, nothing, nothing};
