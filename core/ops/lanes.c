/* The rows of lanes.h on any machine (SSE2, NEON, or what the compiler makes of vectors of four), the choice of a table, and what joins spans. */
#include <math.h>
#include <stddef.h>

#include "../tensor/tensor.h"
#include "lanes.h"

#define TARGET
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 4 };
typedef float vec __attribute__((vector_size(16)));
typedef int32_t mask __attribute__((vector_size(16)));

INLINE vec v_set(float x) { return (vec){x, x, x, x}; }
INLINE vec v_load(const float *x)
{
    vec v;
    memcpy(&v, x, 16);
    return v;
}
INLINE void v_store(float *to, vec x) { memcpy(to, &x, 16); }
INLINE vec v_add(vec a, vec b) { return a + b; }
INLINE vec v_sub(vec a, vec b) { return a - b; }
INLINE vec v_mul(vec a, vec b) { return a * b; }
INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec v_keep(mask m, vec x) { return (vec)(m & (mask)x); }
INLINE vec v_max(vec a, vec b)
{
    mask m = a > b;
    return (vec)((m & (mask)a) | (~m & (mask)b));
}
INLINE float v_sum(vec x) { return (x[0] + x[1]) + (x[2] + x[3]); }
INLINE vec v_even(const uint16_t *x)
{
    vec v = {0};
    for (int l = 0; l < LANES; l++) v[l] = esp_bf16_to_f32(x[2 * l]);
    return v;
}
INLINE vec v_odd(const uint16_t *x) { return v_even(x + 1); }
INLINE mask v_live(vec z) { return ~(z < -87.0f); }

/* esp_expf (formula.h) on four: the loop that would call it is not always turned into vectors. */
INLINE vec v_exp(vec z)
{
    vec y = v_max(v_set(-87.3f), z);
    y = -v_max(v_set(-88.7f), -y);
    vec t = y * 1.44269504088896341f + 12582912.0f, n = t - 12582912.0f;
    vec f = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    mask e = (mask)t - 0x4b400000, half = e >> 1;
    return p * (vec)((half + 127) << 23) * (vec)((e - half + 127) << 23);
}

INLINE void v_store16(uint16_t *to, vec x)
{
    for (int l = 0; l < LANES; l++) to[l] = esp_f32_to_bf16(x[l]);
}

#include "lanes_rows.h"

const esp_lanes esp_lanes_generic = {sums, pair, scale, scale_acc, scale16, less, less_exp, dots, dots16};

int esp_lanes_of(const esp_lanes **out)
{
    int isa;
    TRY(esp_isa(&isa));
    *out = isa >= ESP_ISA_AVX512_BF16 ? &esp_lanes_avx512_bf16 : isa >= ESP_ISA_AVX512 ? &esp_lanes_avx512 :
           isa >= ESP_ISA_AVX2 ? &esp_lanes_avx2 : &esp_lanes_generic;
    return ESP_OK;
}

esp_span esp_row_of(esp_span *part, int64_t parts, float r)
{
    esp_span row = {.most = -INFINITY, .worth = 1};
    for (int64_t k = 0; k < parts; k++) {
        if (part[k].sum != 0 && !(part[k].most <= row.most)) row.most = part[k].most;
    }
    for (int64_t k = 0; k < parts; k++) {
        part[k].worth = part[k].sum == 0 ? 0 : exp(((double)part[k].most - (double)row.most) * r);
        row.sum += part[k].sum * part[k].worth;
    }
    return row;
}
