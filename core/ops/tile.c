/* The innermost tile of a product: 12 x 32 sums. Of bf16 one variant for each instruction set (AMX in amx16.c), and a plain one that every machine runs
 * and the others are tested against; of f32, for attention, a plain one that is as fast as any. */
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

/* ---- plain: of pairs of bf16, and of f32 ---- */

static inline float low(uint32_t pair)
{
    return esp_bf16_to_f32((uint16_t)pair);
}

static inline float high(uint32_t pair)
{
    return esp_bf16_to_f32((uint16_t)(pair >> 16));
}

static inline float whole(uint32_t word)
{
    float f;
    memcpy(&f, &word, 4);
    return f;
}

/* Sixteen columns as the compiler's vectors, which become what the machine has. Six rows of them fill the registers of AVX2, and hide the latency of a
 * sum with AVX-512. */
enum { SPAN = 16, BAND = 6 };
typedef float floats __attribute__((vector_size(SPAN * 4), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(SPAN * 4), aligned(4), may_alias));

/* The sums of a tile from row i and column j on. */
static inline esp_sums part_of(esp_sums to, int64_t i, int64_t j)
{
    if (to.c) to.c += i * to.ldc + j;
    if (to.rounded) to.rounded += i * to.ld + j;
    return to;
}

/* rows and bf16 are constants wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) void band(const int rows, const int bf16, int64_t count, const uint32_t *a, int64_t lda, const uint32_t *b,
                                                       esp_sums out, int n)
{
    floats s[BAND] = {{0}};
    for (int64_t p = 0; p < count; p++) {
        words w = *(const words *)(b + p * ESP_TILE_COLS);
        floats first = bf16 ? (floats)(w << 16) : (floats)w, second = (floats)(w & 0xffff0000u);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) s[i] += (bf16 ? low(a[i * lda + p]) : whole(a[i * lda + p])) * first;
#pragma GCC unroll 6
        for (int i = 0; bf16 && i < rows; i++) s[i] += high(a[i * lda + p]) * second;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float *to = out.c + i * out.ldc;
        if (out.rounded) for (int j = 0; j < n; j++) out.rounded[i * out.ld + j] = esp_f32_to_bf16(out.add ? to[j] + s[i][j] : s[i][j]);
        else if (n == SPAN && out.add) *(floats *)to += s[i];
        else if (n == SPAN) *(floats *)to = s[i];
        else for (int j = 0; j < n; j++) to[j] = out.add ? to[j] + s[i][j] : s[i][j];
    }
}

static inline __attribute__((always_inline)) void plain(const int bf16, int64_t count, const uint32_t *a, int64_t lda, const uint32_t *b,
                                                        esp_sums to, int m, int n)
{
    for (int j = 0; j < n; j += SPAN) {
        int cols = n - j < SPAN ? n - j : SPAN;
        for (int i = 0; i < m; i += BAND) {
            esp_sums part = part_of(to, i, j);
#define CASE(r) case r: band(r, bf16, count, a + i * lda, lda, b + j, part, cols); break;
            switch (m - i < BAND ? m - i : BAND) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
            }
#undef CASE
        }
    }
}

static ESP_SIMD void tile_generic(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n)
{
    plain(1, pairs, a, lda, b, to, m, n);
}
const esp_kernel16 esp_kernel16_generic = {ROWS, tile_generic, nothing, nothing};

static ESP_SIMD void tile_f32(int64_t numbers, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n)
{
    plain(0, numbers, a, lda, b, to, m, n);
}
const esp_kernel16 esp_kernel32 = {ROWS, tile_f32, nothing, nothing};

/* ---- and their transposition ---- */

static ESP_SIMD void transpose_generic(uint32_t *restrict to, int64_t ldt, const uint32_t *restrict from, int64_t ldf)
{
    for (int c = 0; c < 16; c++) for (int r = 0; r < 16; r++) to[c * ldt + r] = from[r * ldf + c];
}

#if ESP_HAVE_X86
#include <immintrin.h>

/* rows is a constant wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) ESP_AVX512_BF16 void tile(const int rows, const int both, int64_t pairs, const uint32_t *a, int64_t lda,
                                                                       const uint32_t *b, esp_sums to, int n)
{
    __m512 s0[ROWS], s1[ROWS];
    /* What the sums are added to is on its way while they are made. */
    for (int i = 0; to.add && i < rows; i++) __builtin_prefetch(to.c + i * to.ldc, 1), __builtin_prefetch(to.c + i * to.ldc + n - 1, 1);
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
        float *c = to.c + i * to.ldc;
        if (to.add) {
            s0[i] = _mm512_add_ps(s0[i], _mm512_maskz_loadu_ps(k0, c));
            if (both) s1[i] = _mm512_add_ps(s1[i], _mm512_maskz_loadu_ps(k1, c + 16));
        }
        if (to.rounded) {
            uint16_t *r = to.rounded + i * to.ld;
            _mm256_mask_storeu_epi16(r, k0, (__m256i)_mm512_cvtneps_pbh(s0[i]));
            if (both) _mm256_mask_storeu_epi16(r + 16, k1, (__m256i)_mm512_cvtneps_pbh(s1[i]));
        } else {
            _mm512_mask_storeu_ps(c, k0, s0[i]);
            if (both) _mm512_mask_storeu_ps(c + 16, k1, s1[i]);
        }
    }
}

static ESP_AVX512_BF16 void tile_avx512_bf16(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n)
{
/* Half of the columns is half of the work. */
#define CASE(r)                                                                                                                          \
    case r:                                                                                                                              \
        if (n > 16) tile(r, 1, pairs, a, lda, b, to, n);                                                                                 \
        else tile(r, 0, pairs, a, lda, b, to, n);                                                                                        \
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
