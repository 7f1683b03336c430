/* The innermost tile of a product: 12 x 32 sums, of pairs of bf16 and of numbers in f32. A plain variant that every machine runs and the others are
 * tested against, which becomes good code for AVX2 and NEON, and one for AVX-512; AMX in amx16.c. */
#include "gemm.h"

enum { ROWS = 12 };

static void nothing(void) {}

int esp_kernel_of(const esp_kernel **out, int dtype)
{
    static const esp_kernel *const kernels[2][ESP_ISA_AMX + 1] = {
        {[ESP_ISA_GENERIC ... ESP_ISA_AVX2] = &esp_kernel32_generic, [ESP_ISA_AVX512 ... ESP_ISA_AMX] = &esp_kernel32_avx512},
        {[ESP_ISA_GENERIC ... ESP_ISA_AVX512] = &esp_kernel16_generic, [ESP_ISA_AVX512_BF16] = &esp_kernel16_avx512_bf16,
         [ESP_ISA_AMX] = &esp_kernel16_amx}};
    int isa;
    TRY(esp_isa(&isa));
    *out = kernels[dtype == ESP_BF16][isa];
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

/* Sixteen columns in the compiler's vectors of what the machine has, AVX2 or NEON: with six rows their sums fill its registers. */
#if ESP_HAVE_X86
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { SPAN = 16, VECTORS = SPAN / LANES, BAND = 6 };
typedef float floats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* The sums of a tile from row i and column j on. */
static inline esp_sums part_of(esp_sums to, int64_t i, int64_t j)
{
    if (to.c) to.c += i * to.ldc + j;
    if (to.rounded) to.rounded += i * to.ld + j;
    return to;
}

/* rows and bf16 are constants wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) void band(const int rows, const int bf16, int64_t words, const uint32_t *a, int64_t lda,
                                                       const uint32_t *b, esp_sums out, int n)
{
    floats s[BAND][VECTORS] = {{{0}}};
    for (int i = 0; out.c && i < rows; i++) __builtin_prefetch(out.c + i * out.ldc, 1), __builtin_prefetch(out.c + i * out.ldc + n - 1, 1);
    for (int64_t p = 0; p < words; p++) {
        floats first[VECTORS], second[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            bits w = *(const bits *)(b + p * ESP_TILE_COLS + v * LANES);
            first[v] = bf16 ? (floats)(w << 16) : (floats)w, second[v] = (floats)(w & 0xffff0000u);
        }
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            float x = bf16 ? low(a[i * lda + p]) : whole(a[i * lda + p]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) s[i][v] += x * first[v];
        }
#pragma GCC unroll 6
        for (int i = 0; bf16 && i < rows; i++) {
            float x = high(a[i * lda + p]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) s[i][v] += x * second[v];
        }
    }
    if (n == SPAN && !out.rounded) {
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            floats *to = (floats *)(out.c + i * out.ldc);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                if (out.add) to[v] += s[i][v];
                else to[v] = s[i][v];
            }
        }
        return;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        float sums[SPAN], *to = out.c + i * out.ldc;
        memcpy(sums, s[i], sizeof sums);
        for (int j = 0; out.add && j < n; j++) sums[j] += to[j];
        if (out.rounded) for (int j = 0; j < n; j++) out.rounded[i * out.ld + j] = esp_f32_to_bf16(sums[j]);
        else for (int j = 0; j < n; j++) to[j] = sums[j];
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

static ESP_SIMD void tile16_generic(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n,
                                    esp_near near)
{
    (void)near;
    plain(1, pairs, a, lda, b, to, m, n);
}
const esp_kernel esp_kernel16_generic = {ROWS, tile16_generic, nothing, nothing};

static ESP_SIMD void tile32_generic(int64_t numbers, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n,
                                    esp_near near)
{
    (void)near;
    plain(0, numbers, a, lda, b, to, m, n);
}
const esp_kernel esp_kernel32_generic = {ROWS, tile32_generic, nothing, nothing};

#if ESP_HAVE_X86
#include <immintrin.h>

/* Sums of `rows` rows, a constant wherever these are inlined so that they stay in registers: a and b are the halves of the columns, the second only
 * where `both`, as half of the columns is half of the work. */
typedef struct halves {
    __m512 a[ROWS], b[ROWS];
} halves;

/* Of the n columns of a tile, a bit each. */
static inline __attribute__((always_inline)) uint32_t columns(int n)
{
    return n < ESP_TILE_COLS ? (1u << n) - 1 : ~0u;
}

/* Zeros, and the place where they will go on its way while they are made. */
static inline __attribute__((always_inline)) ESP_AVX512 void begin(const int rows, halves *s, const esp_sums *to, int n)
{
    for (int i = 0; to->c && i < rows; i++) {
        __builtin_prefetch(to->c + i * to->ldc, 1), __builtin_prefetch(to->c + i * to->ldc + n - 1, 1);
    }
    for (int i = 0; to->rounded && i < rows; i++) {
        __builtin_prefetch(to->rounded + i * to->ld, 1), __builtin_prefetch(to->rounded + i * to->ld + n - 1, 1);
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) s->a[i] = s->b[i] = _mm512_setzero_ps();
}

/* For the second cache: what is near may be larger than the first. */
static inline __attribute__((always_inline)) void ask(esp_near near, int64_t p)
{
    __builtin_prefetch(near.at + p % ESP_NEAR_ROWS * near.step + p * near.on, 0, 2);
}

static inline __attribute__((always_inline)) ESP_AVX512 void add(const int rows, const int both, halves *s, const esp_sums *to, int n)
{
    __mmask16 first = (__mmask16)columns(n), second = (__mmask16)(columns(n) >> 16);
    if (!to->add) return;
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        s->a[i] = _mm512_add_ps(s->a[i], _mm512_maskz_loadu_ps(first, to->c + i * to->ldc));
        if (both) s->b[i] = _mm512_add_ps(s->b[i], _mm512_maskz_loadu_ps(second, to->c + i * to->ldc + 16));
    }
}

static inline __attribute__((always_inline)) ESP_AVX512 void store(const int rows, const int both, const halves *s, const esp_sums *to, int n)
{
    __mmask16 first = (__mmask16)columns(n), second = (__mmask16)(columns(n) >> 16);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        _mm512_mask_storeu_ps(to->c + i * to->ldc, first, s->a[i]);
        if (both) _mm512_mask_storeu_ps(to->c + i * to->ldc + 16, second, s->b[i]);
    }
}

static inline __attribute__((always_inline)) ESP_AVX512_BF16 void round_to(const int rows, const int both, const halves *s, const esp_sums *to, int n)
{
    __mmask16 first = (__mmask16)columns(n), second = (__mmask16)(columns(n) >> 16);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        _mm256_mask_storeu_epi16(to->rounded + i * to->ld, first, (__m256i)_mm512_cvtneps_pbh(s->a[i]));
        if (both) _mm256_mask_storeu_epi16(to->rounded + i * to->ld + 16, second, (__m256i)_mm512_cvtneps_pbh(s->b[i]));
    }
}

static inline __attribute__((always_inline)) ESP_AVX512 void rows32(const int rows, const int both, int64_t words, const uint32_t *a, int64_t lda,
                                                                    const uint32_t *b, esp_sums to, int n, esp_near near)
{
    halves s;
    begin(rows, &s, &to, n);
    for (int64_t p = 0; p < words; p++, a++, b += ESP_TILE_COLS) {
        ask(near, p);
        __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_castsi512_ps(_mm512_set1_epi32((int)a[i * lda]));
            s.a[i] = _mm512_fmadd_ps(x, b0, s.a[i]);
            if (both) s.b[i] = _mm512_fmadd_ps(x, b1, s.b[i]);
        }
    }
    add(rows, both, &s, &to, n);
    store(rows, both, &s, &to, n);
}

static inline __attribute__((always_inline)) ESP_AVX512_BF16 void rows16(const int rows, const int both, int64_t words, const uint32_t *a,
                                                                         int64_t lda, const uint32_t *b, esp_sums to, int n,
                                                                         esp_near near)
{
    halves s;
    begin(rows, &s, &to, n);
    for (int64_t p = 0; p < words; p++, a++, b += ESP_TILE_COLS) {
        ask(near, p);
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * lda]);
            s.a[i] = _mm512_dpbf16_ps(s.a[i], x, b0);
            if (both) s.b[i] = _mm512_dpbf16_ps(s.b[i], x, b1);
        }
    }
    add(rows, both, &s, &to, n);
    if (to.rounded) round_to(rows, both, &s, &to, n);
    else store(rows, both, &s, &to, n);
}

#define TILE(name, isa, of_rows)                                                                                                         \
    static isa void name(int64_t words, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n,                    \
                         esp_near near)                                                                                                  \
    {                                                                                                                                    \
        switch (m) {                                                                                                                     \
        CASE(1, of_rows) CASE(2, of_rows) CASE(3, of_rows) CASE(4, of_rows) CASE(5, of_rows) CASE(6, of_rows)                            \
        CASE(7, of_rows) CASE(8, of_rows) CASE(9, of_rows) CASE(10, of_rows) CASE(11, of_rows) CASE(12, of_rows)                         \
        }                                                                                                                                \
    }
#define CASE(r, of_rows)                                                                                                                 \
    case r:                                                                                                                              \
        if (n > 16) of_rows(r, 1, words, a, lda, b, to, n, near);                                                                        \
        else of_rows(r, 0, words, a, lda, b, to, n, near);                                                                               \
        break;
TILE(tile32_avx512, ESP_AVX512, rows32)
TILE(tile16_avx512_bf16, ESP_AVX512_BF16, rows16)
#undef CASE
#undef TILE
const esp_kernel esp_kernel32_avx512 = {ROWS, tile32_avx512, nothing, nothing};
const esp_kernel esp_kernel16_avx512_bf16 = {ROWS, tile16_avx512_bf16, nothing, nothing};
#else
const esp_kernel esp_kernel16_avx512_bf16 = {ROWS, tile16_generic, nothing, nothing};
const esp_kernel esp_kernel32_avx512 = {ROWS, tile32_generic, nothing, nothing};
#endif
