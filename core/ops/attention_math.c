/* Passes over scores, [rows of keys, 32 queries]: masks, the running maximum, exponentials, gradients. Plain loops that the compiler vectorises for
 * each instruction set; where the machine rounds to bf16 itself, those that round are also written for it. */
#include "attention.h"

#include "../formula.h"

/* Columns: the inner loop of every pass. */
#define COLUMNS for (int j = 0; j < ESP_PANEL; j++)

ESP_SIMD void esp_score_mask(float *s, int64_t s0, int64_t rows, const int32_t *from, const int32_t *to)
{
    for (int32_t key = (int32_t)s0; key < (int32_t)(s0 + rows); key++, s += ESP_PANEL) {
        COLUMNS s[j] = (key >= from[j]) & (key < to[j]) ? s[j] : -INFINITY;
    }
}

ESP_SIMD void esp_score_cap(float *s, float scale, float cap, int64_t rows)
{
    float inner = scale / cap;
    for (int64_t i = 0; i < rows * ESP_PANEL; i++) s[i] = cap * esp_tanhf(s[i] * inner);
}

ESP_SIMD void esp_score_cap_backward(float *restrict s, float *restrict dp, const float *restrict delta, float scale, float cap, int64_t rows)
{
    float inner = scale / cap;
    for (int64_t r = 0; r < rows; r++, s += ESP_PANEL, dp += ESP_PANEL) {
        COLUMNS {
            float t = esp_tanhf(s[j] * inner);
            s[j] = cap * t;
            dp[j] = (dp[j] - delta[j]) * (1.0f - t * t);
        }
    }
}

ESP_SIMD void esp_score_scale(float *restrict x, const float *restrict by, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++, x += ESP_PANEL) COLUMNS x[j] *= by[j];
}

static ESP_SIMD void column_maxima(float *restrict most, const float *restrict s, int64_t rows)
{
    COLUMNS most[j] = -INFINITY;
    for (int64_t r = 0; r < rows; r++, s += ESP_PANEL) COLUMNS most[j] = s[j] > most[j] ? s[j] : most[j];
}

/* A column without any key so far keeps -infinity as its maximum, and 0 as the shift that exponentials use. */
int esp_score_shift(float *max, float *shift, float *shrink, const float *s, float c, int64_t rows)
{
    float most[ESP_PANEL];
    int grew = 0;
    column_maxima(most, s, rows);
    COLUMNS {
        float next = most[j] * c > max[j] ? most[j] * c : max[j];
        grew |= next != max[j];
        shift[j] = next == -INFINITY ? 0 : next;
        shrink[j] = esp_exp2f(max[j] - shift[j]);
        max[j] = next;
    }
    return grew;
}

static ESP_SIMD void row_dots_f32(float *to, const float *x, const float *y, int64_t width, int64_t n)
{
    for (int64_t i = 0; i < n; i++, x += width, y += width) {
        float acc[16] = {0}, sum = 0;
        for (int64_t k = 0; k < width; k += 16) for (int l = 0; l < 16; l++) acc[l] += x[k + l] * y[k + l];
        for (int l = 0; l < 16; l++) sum += acc[l];
        to[i] = sum;
    }
}

static ESP_SIMD void row_dots_bf16(float *to, const uint16_t *x, const uint16_t *y, int64_t width, int64_t n)
{
    for (int64_t i = 0; i < n; i++, x += 2 * width, y += 2 * width) {
        float acc[16] = {0}, sum = 0;
        for (int64_t k = 0; k < 2 * width; k += 16) for (int l = 0; l < 16; l++) acc[l] += esp_bf16_to_f32(x[k + l]) * esp_bf16_to_f32(y[k + l]);
        for (int l = 0; l < 16; l++) sum += acc[l];
        to[i] = sum;
    }
}

void esp_row_dots(float *to, const uint32_t *x, const uint32_t *y, int64_t width, int64_t n, int dtype)
{
    if (dtype == ESP_F32) row_dots_f32(to, (const float *)(const void *)x, (const float *)(const void *)y, width, n);
    else row_dots_bf16(to, (const uint16_t *)(const void *)x, (const uint16_t *)(const void *)y, width, n);
}

/* ---- f32 ---- */

static ESP_SIMD void exponentials_f32(uint32_t *words, float *restrict sum, const float *restrict s, float c, const float *restrict shift, int64_t rows)
{
    float *restrict p = (float *)(void *)words;
    for (int64_t r = 0; r < rows; r++, s += ESP_PANEL, p += ESP_PANEL) {
        COLUMNS {
            p[j] = esp_exp2f(s[j] * c - shift[j]);
            sum[j] += p[j];
        }
    }
}

static ESP_SIMD void gradients_f32(uint32_t *p_words, uint32_t *d_words, int64_t stride, uint32_t *words, const float *restrict s,
                                   const float *restrict dp, float c, const float *restrict shift, const float *restrict delta, int64_t rows)
{
    float *restrict p = (float *)(void *)p_words, *restrict d = (float *)(void *)d_words, *restrict panel = (float *)(void *)words;
    for (int64_t r = 0; r < rows; r++, s += ESP_PANEL, dp += ESP_PANEL, p += stride, d += stride, panel += ESP_PANEL) {
        COLUMNS {
            p[j] = esp_exp2f(s[j] * c - shift[j]);
            d[j] = panel[j] = p[j] * (dp[j] - delta[j]);
        }
    }
}

static ESP_SIMD void store_f32(esp_matrix x, const float *restrict from, int64_t stride, const float *restrict by, int64_t n, int64_t D)
{
    float *restrict to = x.data;
    for (int64_t i = 0; i < n; i++) for (int64_t c = 0; c < D; c++) to[i * x.stride + c] = from[i * stride + c] * by[i];
}

/* ---- bf16 ---- */

static ESP_SIMD void store_bf16(esp_matrix x, const float *restrict from, int64_t stride, const float *restrict by, int64_t n, int64_t D)
{
    uint16_t *restrict to = x.data;
    for (int64_t i = 0; i < n; i++) for (int64_t c = 0; c < D; c++) to[i * x.stride + c] = esp_f32_to_bf16(from[i * stride + c] * by[i]);
}

static inline uint32_t pair_of(float x, float y)
{
    return (uint32_t)esp_f32_to_bf16(x) | (uint32_t)esp_f32_to_bf16(y) << 16;
}

static ESP_SIMD void exponentials_bf16(uint32_t *restrict p, float *restrict sum, const float *restrict s, float c, const float *restrict shift,
                                       int64_t rows)
{
    for (int64_t r = 0; r + 2 <= rows; r += 2, s += 2 * ESP_PANEL, p += ESP_PANEL) {
        COLUMNS {
            float x = esp_exp2f(s[j] * c - shift[j]), y = esp_exp2f(s[ESP_PANEL + j] * c - shift[j]);
            sum[j] += x + y;
            p[j] = pair_of(x, y);
        }
    }
    if (rows % 2 == 0) return;
    COLUMNS {
        float x = esp_exp2f(s[j] * c - shift[j]);
        sum[j] += x;
        p[j] = esp_f32_to_bf16(x);
    }
}

static ESP_SIMD void gradients_bf16(uint32_t *p_words, uint32_t *d_words, int64_t stride, uint32_t *restrict words, const float *restrict s,
                                    const float *restrict dp, float c, const float *restrict shift, const float *restrict delta, int64_t rows)
{
    uint16_t *restrict p = (uint16_t *)(void *)p_words, *d = (uint16_t *)(void *)d_words;
    for (int64_t r = 0; r < rows; r++, s += ESP_PANEL, dp += ESP_PANEL, p += 2 * stride, d += 2 * stride) {
        COLUMNS {
            float x = esp_exp2f(s[j] * c - shift[j]);
            p[j] = esp_f32_to_bf16(x);
            d[j] = esp_f32_to_bf16(x * (dp[j] - delta[j]));
        }
        if (r % 2) COLUMNS words[j] = d[j - 2 * stride] | (uint32_t)d[j] << 16;
        else if (r + 1 == rows) COLUMNS words[j] = d[j];
        if (r % 2) words += ESP_PANEL;
    }
}

/* ---- bf16 with instructions of its own ---- */

#if ESP_HAVE_X86
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) ESP_AVX512_BF16

/* As esp_exp2f, by a polynomial of degree 5 with the least largest relative error: two units in the last place, which bf16 does not see. */
INLINE __m512 exp2_16(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(12583039.0f);
    __m512 r = _mm512_add_ps(x, magic), f = _mm512_sub_ps(x, _mm512_sub_ps(r, magic)), p = _mm512_set1_ps(1.326472731e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.671512991e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550733581e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402224243e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931470037e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    __m512 power = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(r), 23));
    return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, power);
}

INLINE __m512i narrow(__m512 x)
{
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
}

INLINE __m512i pair_16(__m512i x, __m512i y)
{
    return _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
}

static ESP_AVX512_BF16 void exponentials_avx512(uint32_t *p, float *sum, const float *s, float c, const float *shift, int64_t rows)
{
    for (int h = 0; h < ESP_PANEL; h += 16) {
        __m512 by = _mm512_set1_ps(c), less = _mm512_loadu_ps(shift + h), total = _mm512_loadu_ps(sum + h);
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2) {
            __m512 x = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(s + r * ESP_PANEL + h), by, less));
            __m512 y = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(s + (r + 1) * ESP_PANEL + h), by, less));
            total = _mm512_add_ps(total, _mm512_add_ps(x, y));
            _mm512_storeu_si512(p + r / 2 * ESP_PANEL + h, pair_16(narrow(x), narrow(y)));
        }
        if (r < rows) {
            __m512 x = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(s + r * ESP_PANEL + h), by, less));
            total = _mm512_add_ps(total, x);
            _mm512_storeu_si512(p + r / 2 * ESP_PANEL + h, narrow(x));
        }
        _mm512_storeu_ps(sum + h, total);
    }
}

/* Sixteen columns of one row; returns d as the lower halves of words. */
INLINE __m512i gradient_16(uint32_t *p, uint32_t *d, const float *s, const float *dp, __m512 by, __m512 less, __m512 delta)
{
    __m512 x = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(s), by, less));
    __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(x, _mm512_sub_ps(_mm512_loadu_ps(dp), delta)));
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh(x));
    _mm256_storeu_si256((__m256i *)(void *)d, rounded);
    return _mm512_cvtepu16_epi32(rounded);
}

static ESP_AVX512_BF16 void gradients_avx512(uint32_t *p, uint32_t *d, int64_t stride, uint32_t *words, const float *s, const float *dp, float c,
                                             const float *shift, const float *delta, int64_t rows)
{
    __m512 by = _mm512_set1_ps(c);
    for (int h = 0; h < ESP_PANEL; h += 16) {
        __m512 less = _mm512_loadu_ps(shift + h), base = _mm512_loadu_ps(delta + h);
        for (int64_t r = 0; r < rows; r += 2) {
            int64_t at = r * stride + h / 2, from = r * ESP_PANEL + h;
            __m512i x = gradient_16(p + at, d + at, s + from, dp + from, by, less, base), y = _mm512_setzero_si512();
            if (r + 1 < rows) y = gradient_16(p + at + stride, d + at + stride, s + from + ESP_PANEL, dp + from + ESP_PANEL, by, less, base);
            _mm512_storeu_si512(words + r / 2 * ESP_PANEL + h, pair_16(x, y));
        }
    }
}

static ESP_AVX512_BF16 void store_avx512(esp_matrix x, const float *from, int64_t stride, const float *by, int64_t n, int64_t D)
{
    uint16_t *to = x.data;
    for (int64_t i = 0; i < n; i++, to += x.stride, from += stride) {
        __m512 scale = _mm512_set1_ps(by[i]);
        for (int64_t c = 0; c < D; c += 16) {
            __mmask16 some = D - c >= 16 ? 0xffff : (__mmask16)((1u << (D - c)) - 1);
            __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, from + c), scale);
            _mm256_mask_storeu_epi16(to + c, some, (__m256i)_mm512_cvtneps_pbh(y));
        }
    }
}
#endif

int esp_attention_math_of(const esp_attention_math **math, const esp_kernel **kernel, int dtype)
{
    static const esp_attention_math f32 = {.per = 1, .exponentials = exponentials_f32, .gradients = gradients_f32, .store = store_f32};
    static const esp_attention_math bf16 = {.per = 2, .exponentials = exponentials_bf16, .gradients = gradients_bf16, .store = store_bf16};
    *math = dtype == ESP_F32 ? &f32 : &bf16;
    TRY(esp_kernel_of(kernel, dtype));
#if ESP_HAVE_X86
    static const esp_attention_math avx512 = {.per = 2, .exponentials = exponentials_avx512, .gradients = gradients_avx512,
                                              .store = store_avx512};
    int isa;
    TRY(esp_isa(&isa));
    if (dtype == ESP_BF16 && isa >= ESP_ISA_AVX512_BF16) *math = &avx512;
#endif
    return ESP_OK;
}
