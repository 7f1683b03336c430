/* The innermost tile of a bf16 product: 12 x 32 sums in registers. One variant for each instruction set (AMX in amx16.c), and a plain one that
 * every machine runs and the others are tested against. */
#include "gemm16.h"

enum { ROWS = 12 };

static void nothing(void) {}

int esp_kernel16_of_machine(const esp_kernel16 **out)
{
    static const esp_kernel16 *const kernels[] = {
        [ESP_ISA_GENERIC ... ESP_ISA_AVX512] = &esp_kernel16_generic, [ESP_ISA_AVX512_BF16] = &esp_kernel16_avx512_bf16, [ESP_ISA_AMX] = &esp_kernel16_amx};
    int isa;
    TRY(esp_isa(&isa));
    *out = kernels[isa];
    return ESP_OK;
}

static inline float low(uint32_t pair)
{
    return esp_bf16_to_f32((uint16_t)pair);
}

static inline float high(uint32_t pair)
{
    return esp_bf16_to_f32((uint16_t)(pair >> 16));
}

/* Sixteen columns as the compiler's vectors, which become what the machine has. Six rows of them fill the registers of AVX2. */
enum { SPAN = 16, BAND = 6 };
typedef float floats __attribute__((vector_size(SPAN * 4)));
typedef uint32_t words __attribute__((vector_size(SPAN * 4)));

/* rows is a constant wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) void band(const int rows, int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, float *c,
                                                       int64_t ldc, int n, int add)
{
    floats s[BAND] = {{0}};
    for (int64_t p = 0; p < pairs; p++) {
        words both;
        memcpy(&both, b + p * ESP_TILE_COLS, sizeof both);
        floats first = (floats)(both << 16), second = (floats)(both & 0xffff0000u);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) s[i] += low(a[i * lda + p]) * first;
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) s[i] += high(a[i * lda + p]) * second;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float sum[SPAN];
        memcpy(sum, &s[i], sizeof sum);
        for (int j = 0; j < n; j++) c[i * ldc + j] = add ? c[i * ldc + j] + sum[j] : sum[j];
    }
}

static ESP_SIMD void tile_generic(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, float *c, int64_t ldc, int m, int n, int add)
{
    for (int i = 0; i < m; i += BAND) {
        for (int j = 0; j < n; j += SPAN) {
            const uint32_t *x = a + i * lda;
            float *y = c + i * ldc + j;
            int cols = n - j < SPAN ? n - j : SPAN;
            switch (m - i) {
            case 1: band(1, pairs, x, lda, b + j, y, ldc, cols, add); break;
            case 2: band(2, pairs, x, lda, b + j, y, ldc, cols, add); break;
            case 3: band(3, pairs, x, lda, b + j, y, ldc, cols, add); break;
            case 4: band(4, pairs, x, lda, b + j, y, ldc, cols, add); break;
            case 5: band(5, pairs, x, lda, b + j, y, ldc, cols, add); break;
            default: band(BAND, pairs, x, lda, b + j, y, ldc, cols, add);
            }
        }
    }
}
const esp_kernel16 esp_kernel16_generic = {ROWS, tile_generic, nothing, nothing};

static ESP_SIMD void transpose_generic(uint32_t *restrict to, int64_t ldt, const uint32_t *restrict from, int64_t ldf)
{
    for (int c = 0; c < 16; c++) for (int r = 0; r < 16; r++) to[c * ldt + r] = from[r * ldf + c];
}

#if ESP_HAVE_AVX512_BF16
#include <immintrin.h>

/* rows is a constant wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) ESP_AVX512_BF16 void tile(const int rows, const int both, int64_t pairs, const uint32_t *a, int64_t lda,
                                                                       const uint32_t *b, float *c, int64_t ldc, int n, int add)
{
    __m512 s0[ROWS], s1[ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) s0[i] = s1[i] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++, a++, b += ESP_TILE_COLS) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * lda]);
            s0[i] = _mm512_dpbf16_ps(s0[i], x, b0);
            if (both) s1[i] = _mm512_dpbf16_ps(s1[i], x, b1);
        }
    }
    __mmask16 k0 = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), k1 = n >= 32 ? 0xffff : n <= 16 ? 0 : (__mmask16)((1u << (n - 16)) - 1);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        float *to = c + i * ldc;
        if (add) {
            s0[i] = _mm512_add_ps(s0[i], _mm512_maskz_loadu_ps(k0, to));
            if (both) s1[i] = _mm512_add_ps(s1[i], _mm512_maskz_loadu_ps(k1, to + 16));
        }
        _mm512_mask_storeu_ps(to, k0, s0[i]);
        if (both) _mm512_mask_storeu_ps(to + 16, k1, s1[i]);
    }
}

static ESP_AVX512_BF16 void tile_avx512_bf16(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, float *c, int64_t ldc, int m, int n,
                                             int add)
{
/* Half of the columns is half of the work. */
#define CASE(r)                                                                                                                          \
    case r:                                                                                                                              \
        if (n > 16) tile(r, 1, pairs, a, lda, b, c, ldc, n, add);                                                                        \
        else tile(r, 0, pairs, a, lda, b, c, ldc, n, add);                                                                               \
        break;
    switch (m) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
#undef CASE
}
const esp_kernel16 esp_kernel16_avx512_bf16 = {ROWS, tile_avx512_bf16, nothing, nothing};

/* Neighbouring rows are woven into pairs, pairs into fours, and quarters of registers are then put in place. */
static ESP_AVX512_BF16 void transpose_avx512(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf)
{
    __m512i x[16], y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(from + i * ldf);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(to + i * ldt, _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * ldt, _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd));
    }
}

void esp_transpose16(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf)
{
    int isa;
    if (esp_isa(&isa) == ESP_OK && isa >= ESP_ISA_AVX512_BF16) transpose_avx512(to, ldt, from, ldf);
    else transpose_generic(to, ldt, from, ldf);
}
#else
const esp_kernel16 esp_kernel16_avx512_bf16 = {ROWS, tile_generic, nothing, nothing};

void esp_transpose16(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf)
{
    transpose_generic(to, ldt, from, ldf);
}
#endif
