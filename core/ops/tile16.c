/* The innermost tile of a bf16 product: 12 x 32 sums in registers. One variant for each instruction set, and a plain one that every machine runs
 * and the others are tested against. */
#include "gemm16.h"

static inline float low(uint32_t pair)
{
    return esp_bf16_to_f32((uint16_t)pair);
}

static inline float high(uint32_t pair)
{
    return esp_bf16_to_f32((uint16_t)(pair >> 16));
}

ESP_SIMD void esp_tile_generic(int64_t pairs, const uint32_t *a, int64_t si, int64_t sp, const uint32_t *b, float *c, int64_t ldc, int m, int n,
                               int add)
{
    for (int i = 0; i < m; i++) {
        float sum[ESP_TILE_COLS] = {0};
        for (int64_t p = 0; p < pairs; p++) {
            uint32_t pair = a[i * si + p * sp];
            float x = low(pair), y = high(pair);
            const uint32_t *row = b + p * ESP_TILE_COLS;
            for (int j = 0; j < ESP_TILE_COLS; j++) sum[j] += x * low(row[j]) + y * high(row[j]);
        }
        for (int j = 0; j < n; j++) c[i * ldc + j] = add ? c[i * ldc + j] + sum[j] : sum[j];
    }
}

#if ESP_HAVE_AVX512_BF16
#include <immintrin.h>

/* rows is a constant wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) ESP_AVX512_BF16 void tile(const int rows, int64_t pairs, const uint32_t *a, int64_t si, int64_t sp,
                                                                       const uint32_t *b, float *c, int64_t ldc, int n, int add)
{
    __m512 s0[ESP_TILE_ROWS], s1[ESP_TILE_ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) s0[i] = s1[i] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++, a += sp, b += ESP_TILE_COLS) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * si]);
            s0[i] = _mm512_dpbf16_ps(s0[i], x, b0);
            s1[i] = _mm512_dpbf16_ps(s1[i], x, b1);
        }
    }
    __mmask16 k0 = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), k1 = n >= 32 ? 0xffff : n <= 16 ? 0 : (__mmask16)((1u << (n - 16)) - 1);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        float *to = c + i * ldc;
        if (add) {
            s0[i] = _mm512_add_ps(s0[i], _mm512_maskz_loadu_ps(k0, to));
            s1[i] = _mm512_add_ps(s1[i], _mm512_maskz_loadu_ps(k1, to + 16));
        }
        _mm512_mask_storeu_ps(to, k0, s0[i]);
        _mm512_mask_storeu_ps(to + 16, k1, s1[i]);
    }
}

ESP_AVX512_BF16 void esp_tile_avx512_bf16(int64_t pairs, const uint32_t *a, int64_t si, int64_t sp, const uint32_t *b, float *c, int64_t ldc, int m,
                                          int n, int add)
{
#define ROWS(r) case r: tile(r, pairs, a, si, sp, b, c, ldc, n, add); break;
    switch (m) {
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
#undef ROWS
}
#else
void esp_tile_avx512_bf16(int64_t pairs, const uint32_t *a, int64_t si, int64_t sp, const uint32_t *b, float *c, int64_t ldc, int m, int n, int add)
{
    esp_tile_generic(pairs, a, si, sp, b, c, ldc, m, n, add);
}
#endif
