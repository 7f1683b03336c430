/* The functions of one table of lanes.h, over the vectors of the file that includes this. That defines before:
 *
 *   INLINE               static inline always, and the target; TARGET: the target alone
 *   vec, mask, LANES     LANES f32, and what a comparison of them gives
 *   v_set, v_load, v_store, v_add, v_sub, v_mul, v_fma (a b + c), v_max (b where a is NaN)
 *   v_live (not below -87), v_keep (0 elsewhere), v_exp (of -87 and more, within 2 units in the last place; NaN stays; below, anything)
 *   v_sum                of the lanes
 *   v_store16            rounded to bf16, to nearest even; NaN stays
 *   v_even, v_odd        every other one of 2 LANES bf16
 */
#include <math.h>
#include <string.h>

#include "../tensor/tensor.h"
#include "lanes.h"

/* n < LANES numbers, and `fill` in the other lanes. */
INLINE vec v_part(const float *x, int64_t n, float fill)
{
    float all[LANES];
    for (int l = 0; l < LANES; l++) all[l] = l < n ? x[l] : fill;
    return v_load(all);
}

INLINE void v_store_part(float *to, vec x, int64_t n)
{
    float all[LANES];
    v_store(all, x);
    memcpy(to, all, (size_t)n * 4);
}

INLINE double v_total(vec x)
{
    float all[LANES];
    v_store(all, x);
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += (double)all[l];
    return sum;
}

/* The largest of n numbers, 0 where all are -infinity; NaN is passed over. */
INLINE float v_most(const float *x, int64_t n)
{
    vec a = v_set(-INFINITY), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        a = v_max(v_load(x + i), a);
        b = v_max(v_load(x + i + LANES), b);
        c = v_max(v_load(x + i + 2 * LANES), c);
        d = v_max(v_load(x + i + 3 * LANES), d);
    }
    for (; i + LANES <= n; i += LANES) a = v_max(v_load(x + i), a);
    if (i < n) a = v_max(v_part(x + i, n - i, -INFINITY), a);
    float all[LANES], most = -INFINITY;
    v_store(all, v_max(v_max(a, b), v_max(c, d)));
    for (int l = 0; l < LANES; l++) most = all[l] > most ? all[l] : most;
    return most == -INFINITY ? 0 : most;
}

INLINE vec v_kept_exp(vec z)
{
    return v_keep(v_live(z), v_exp(z));
}

static TARGET void sums(esp_span *out, float *e, const float *x, float r, int64_t n)
{
    out->most = v_most(x, n);
    vec most = v_set(out->most), by = v_set(r), a = v_set(0), b = a;
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vec p = v_kept_exp(v_mul(v_sub(v_load(x + i), most), by)), q = v_kept_exp(v_mul(v_sub(v_load(x + i + LANES), most), by));
        a = v_add(a, p);
        b = v_add(b, q);
        if (!e) continue;
        v_store(e + i, p);
        v_store(e + i + LANES, q);
    }
    for (; i < n; i += LANES) {
        int64_t left = n - i < LANES ? n - i : LANES;
        vec p = v_kept_exp(v_mul(v_sub(v_part(x + i, left, -INFINITY), most), by));
        a = v_add(a, p);
        if (e) v_store_part(e + i, p, left);
    }
    out->sum = v_total(a) + v_total(b);
}

/* What pair adds up. */
typedef struct pair_sums {
    vec s, t, cross;
} pair_sums;

INLINE void v_pair(pair_sums *sum, vec *es, vec *et, vec s, vec t, vec ms, vec mt, vec by)
{
    vec zs = v_mul(v_sub(s, ms), by), zt = v_mul(v_sub(t, mt), by);
    mask live = v_live(zt);
    *es = v_kept_exp(zs);
    *et = v_keep(live, v_exp(zt));
    sum->s = v_add(sum->s, *es);
    sum->t = v_add(sum->t, *et);
    sum->cross = v_fma(*et, v_keep(live, v_sub(zt, zs)), sum->cross);
}

static TARGET double pair(esp_span *s_out, esp_span *t_out, float *es, float *et, const float *s, const float *t, float r, int64_t n)
{
    s_out->most = v_most(s, n);
    t_out->most = v_most(t, n);
    vec ms = v_set(s_out->most), mt = v_set(t_out->most), by = v_set(r), x, y;
    pair_sums sum = {v_set(0), v_set(0), v_set(0)};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        v_pair(&sum, &x, &y, v_load(s + i), v_load(t + i), ms, mt, by);
        v_store(es + i, x);
        v_store(et + i, y);
    }
    if (i < n) {
        v_pair(&sum, &x, &y, v_part(s + i, n - i, -INFINITY), v_part(t + i, n - i, -INFINITY), ms, mt, by);
        v_store_part(es + i, x, n - i);
        v_store_part(et + i, y, n - i);
    }
    s_out->sum = v_total(sum.s);
    t_out->sum = v_total(sum.t);
    return v_total(sum.cross);
}

static TARGET void scale(float *y, const float *x, const float *z, float a, float b, int64_t n)
{
    vec va = v_set(a), vb = v_set(-b);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(y + i, v_fma(v_load(x + i), va, v_mul(v_load(z + i), vb)));
    if (i < n) v_store_part(y + i, v_fma(v_part(x + i, n - i, 0), va, v_mul(v_part(z + i, n - i, 0), vb)), n - i);
}

static TARGET void scale_acc(float *y, const float *x, const float *z, float a, float b, int64_t n)
{
    vec va = v_set(a), vb = v_set(-b);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(y + i, v_add(v_load(y + i), v_fma(v_load(x + i), va, v_mul(v_load(z + i), vb))));
    if (i == n) return;
    vec d = v_fma(v_part(x + i, n - i, 0), va, v_mul(v_part(z + i, n - i, 0), vb));
    v_store_part(y + i, v_add(v_part(y + i, n - i, 0), d), n - i);
}

static TARGET void scale16(uint16_t *y, const float *x, const float *z, float a, float b, int64_t n)
{
    vec va = v_set(a), vb = v_set(-b);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store16(y + i, v_fma(v_load(x + i), va, v_mul(v_load(z + i), vb)));
    if (i == n) return;
    uint16_t all[LANES];
    v_store16(all, v_fma(v_part(x + i, n - i, 0), va, v_mul(v_part(z + i, n - i, 0), vb)));
    memcpy(y + i, all, (size_t)(n - i) * 2);
}

static TARGET void less(float *y, const float *x, float most, float shift, int64_t n)
{
    vec a = v_set(most), b = v_set(shift);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(y + i, v_sub(v_sub(v_load(x + i), a), b));
    if (i < n) v_store_part(y + i, v_sub(v_sub(v_part(x + i, n - i, 0), a), b), n - i);
}

static TARGET void less_exp(float *y, const float *x, const float *z, float shift, int64_t n)
{
    vec by = v_set(-shift);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(y + i, v_fma(v_kept_exp(v_load(z + i)), by, v_load(x + i)));
    if (i < n) v_store_part(y + i, v_fma(v_kept_exp(v_part(z + i, n - i, 0)), by, v_part(x + i, n - i, 0)), n - i);
}

static TARGET void dots(float *y, const float *x, const float *w, int64_t stride, int64_t outputs, int64_t n)
{
    for (int64_t o = 0; o < outputs; o++, w += stride) {
        vec a = v_set(0), b = a, c = a, d = a;
        int64_t i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES) {
            a = v_fma(v_load(x + i), v_load(w + i), a);
            b = v_fma(v_load(x + i + LANES), v_load(w + i + LANES), b);
            c = v_fma(v_load(x + i + 2 * LANES), v_load(w + i + 2 * LANES), c);
            d = v_fma(v_load(x + i + 3 * LANES), v_load(w + i + 3 * LANES), d);
        }
        for (; i + LANES <= n; i += LANES) a = v_fma(v_load(x + i), v_load(w + i), a);
        if (i < n) b = v_fma(v_part(x + i, n - i, 0), v_part(w + i, n - i, 0), b);
        y[o] = v_sum(v_add(v_add(a, b), v_add(c, d)));
    }
}

static TARGET void dots16(float *y, const float *x, const float *half, const uint16_t *w, int64_t stride, int64_t outputs, int64_t n)
{
    const float *even = half, *odd = half + n / 2;
    for (int64_t o = 0; o < outputs; o++, w += stride) {
        vec a = v_set(0), b = a, c = a, d = a;
        int64_t i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES) {
            a = v_fma(v_load(even + i / 2), v_even(w + i), a);
            b = v_fma(v_load(odd + i / 2), v_odd(w + i), b);
            c = v_fma(v_load(even + i / 2 + LANES), v_even(w + i + 2 * LANES), c);
            d = v_fma(v_load(odd + i / 2 + LANES), v_odd(w + i + 2 * LANES), d);
        }
        float rest = 0;
        for (; i < n; i++) rest += x[i] * esp_bf16_to_f32(w[i]);
        y[o] = v_sum(v_add(v_add(a, b), v_add(c, d))) + rest;
    }
}
