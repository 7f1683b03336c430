/* The rows of lanes.h in AVX2. */
#include "lanes.h"

#if ESP_HAVE_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma")))

enum { LANES = 8 };
typedef __m256 vec;
typedef __m256 mask;

INLINE vec v_set(float x) { return _mm256_set1_ps(x); }
INLINE vec v_load(const float *x) { return _mm256_loadu_ps(x); }
INLINE void v_store(float *to, vec x) { _mm256_storeu_ps(to, x); }
INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE float v_sum(vec x)
{
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
INLINE __m256i v_words(const uint16_t *x) { return _mm256_loadu_si256((const __m256i *)(const void *)x); }
INLINE vec v_even(const uint16_t *x) { return _mm256_castsi256_ps(_mm256_slli_epi32(v_words(x), 16)); }
INLINE vec v_odd(const uint16_t *x) { return _mm256_castsi256_ps(_mm256_and_si256(v_words(x), _mm256_set1_epi32((int)0xffff0000))); }
INLINE mask v_live(vec z) { return _mm256_cmp_ps(z, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ); }
INLINE vec v_keep(mask m, vec x) { return _mm256_and_ps(m, x); }

/* As in AVX-512 (lanes_avx512.c), with eighths: |f| <= log 2 / 16, so three terms leave 1.5e-7 at its ends; fitted there, 2.5e-8. The whole part of n
 * is added to the exponent of the power, which is a number also where z is NaN. */
INLINE vec v_exp(vec z)
{
    const vec powers = _mm256_setr_ps(0x1p0f, 0x1.172b84p0f, 0x1.306fep0f, 0x1.4bfdaep0f, 0x1.6a09e6p0f, 0x1.8ace54p0f, 0x1.ae89fap0f, 0x1.d5818ep0f);
    const vec magic = _mm256_set1_ps(0x1.8p20f);
    z = _mm256_min_ps(_mm256_set1_ps(88.0f), z);
    vec t = _mm256_fmadd_ps(z, _mm256_set1_ps(1.44269504f), magic), n = _mm256_sub_ps(t, magic);
    vec f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693147182f), z);
    f = _mm256_fmadd_ps(n, _mm256_set1_ps(1.90465430e-9f), f);
    vec p = _mm256_fmadd_ps(f, _mm256_set1_ps(1 / 6.0f), _mm256_set1_ps(0.500064776f));
    p = _mm256_mul_ps(_mm256_fmadd_ps(p, f, _mm256_set1_ps(1)), f);
    __m256i bits = _mm256_castps_si256(t), whole = _mm256_slli_epi32(_mm256_srai_epi32(bits, 3), 23);
    vec power = _mm256_permutevar8x32_ps(powers, bits);
    power = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power), whole));
    return _mm256_fmadd_ps(power, p, power);
}

INLINE void v_store16(uint16_t *to, vec x)
{
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16), odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff)), 16);
    __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    rounded = _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    _mm_storeu_si128((__m128i *)(void *)to, _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}

#include "lanes_rows.h"

const esp_lanes esp_lanes_avx2 = {sums, pair, scale, scale_acc, scale16, less, less_exp, dots, dots16};
#else
/* Never picked on this machine. */
const esp_lanes esp_lanes_avx2 = {0};
#endif
