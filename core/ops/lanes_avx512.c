/* The rows of lanes.h in AVX-512. */
#include "lanes.h"

#if ESP_HAVE_X86
#include <immintrin.h>

#define TARGET ESP_AVX512
#define INLINE static inline __attribute__((always_inline)) ESP_AVX512

enum { LANES = 16 };
typedef __m512 vec;
typedef __mmask16 mask;

INLINE vec v_set(float x) { return _mm512_set1_ps(x); }
INLINE vec v_load(const float *x) { return _mm512_loadu_ps(x); }
INLINE void v_store(float *to, vec x) { _mm512_storeu_ps(to, x); }
INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE float v_sum(vec x) { return _mm512_reduce_add_ps(x); }
INLINE vec v_even(const uint16_t *x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(x), 16)); }
INLINE vec v_odd(const uint16_t *x)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32((int)0xffff0000)));
}
INLINE mask v_live(vec z) { return _mm512_cmp_ps_mask(z, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ); }
INLINE vec v_keep(mask m, vec x) { return _mm512_maskz_mov_ps(m, x); }

/* exp(z) = 2^n e^f, n the multiple of 1/16 next to z / log 2: adding 1.5 * 2^19 rounds to it and leaves its sixteenths in the low bits, which pick
 * 2^(n mod 1) from a table; the scaling instruction takes the whole part of n. |f| <= log 2 / 32, so three terms of the series leave 1e-8. */
INLINE vec v_exp(vec z)
{
    const vec powers = _mm512_setr_ps(0x1p0f, 0x1.0b5586p0f, 0x1.172b84p0f, 0x1.2387a6p0f, 0x1.306fep0f, 0x1.3dea64p0f, 0x1.4bfdaep0f, 0x1.5ab07ep0f,
                                      0x1.6a09e6p0f, 0x1.7a1148p0f, 0x1.8ace54p0f, 0x1.9c4918p0f, 0x1.ae89fap0f, 0x1.c199bep0f, 0x1.d5818ep0f,
                                      0x1.ea4afap0f);
    const vec magic = _mm512_set1_ps(0x1.8p19f);
    vec t = _mm512_fmadd_ps(z, _mm512_set1_ps(1.44269504f), magic), n = _mm512_sub_ps(t, magic);
    vec f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147182f), z);
    f = _mm512_fmadd_ps(n, _mm512_set1_ps(1.90465430e-9f), f);
    vec p = _mm512_fmadd_ps(f, _mm512_set1_ps(1 / 6.0f), _mm512_set1_ps(0.5f));
    p = _mm512_mul_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(1)), f);
    vec power = _mm512_permutexvar_ps(_mm512_castps_si512(t), powers);
    return _mm512_scalef_ps(_mm512_fmadd_ps(power, p, power), n);
}

INLINE void v_store16(uint16_t *to, vec x)
{
    __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff)), 16);
    __m512i nan = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan);
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(rounded));
}

#include "lanes_rows.h"

/* scale16 where one instruction rounds; it takes what is below 2^-126 for 0. */
static ESP_AVX512_BF16 void scale16_rounded(uint16_t *y, const float *x, const float *z, float a, float b, int64_t n)
{
    vec va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b);
    for (int64_t i = 0; i < n; i += LANES) {
        mask m = n - i < LANES ? (mask)((1u << (n - i)) - 1) : 0xffff;
        vec d = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(m, x + i), va, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, z + i), vb));
        _mm256_mask_storeu_epi16(y + i, m, (__m256i)_mm512_cvtneps_pbh(d));
    }
}

const esp_lanes esp_lanes_avx512 = {sums, pair, scale, scale_acc, scale16, less, less_exp, dots, dots16};
const esp_lanes esp_lanes_avx512_bf16 = {sums, pair, scale, scale_acc, scale16_rounded, less, less_exp, dots, dots16};
#else
/* Never picked on this machine. */
const esp_lanes esp_lanes_avx512 = {0}, esp_lanes_avx512_bf16 = {0};
#endif
