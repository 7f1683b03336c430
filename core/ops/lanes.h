/* What losses do with a row of logits, and products of a few rows, in one table of functions for each instruction set: written once over its vectors
 * (lanes_rows.h).
 *
 * A row of logits is taken in spans that stay in the first cache, each with a maximum of its own, so that one sweep finds sums and leaves the
 * exponentials, which a gradient only scales. Sums are in f32 within a vector's lanes, then in double. */
#ifndef ESP_LANES_H
#define ESP_LANES_H

#include "../base/base.h"

enum { ESP_SPAN = 2048 };

/* most: the largest x, 0 where all are -infinity; sum of e = exp((x - most) r). e is 0 where its exponent is below -87: a logit of -infinity counts
 * nothing. NaN makes sum NaN. worth (esp_row_of): of such an e relative to the row's maximum, 0 where sum is 0. */
typedef struct esp_span {
    float most;
    double sum, worth;
} esp_span;

typedef struct esp_lanes {
    /* Sums of a span, n <= ESP_SPAN, and e in `e` (NULL: not kept; may be x). */
    void (*sums)(esp_span *out, float *e, const float *x, float r, int64_t n);
    /* The same of s and t at once, returning the sum of et (zt - zs), z being the exponents; where et is 0 a term counts nothing. es may be s, et t. */
    double (*pair)(esp_span *s_out, esp_span *t_out, float *es, float *et, const float *s, const float *t, float r, int64_t n);
    /* y = a x - b z, y += a x - b z, and y in bf16. y may be x. */
    void (*scale)(float *y, const float *x, const float *z, float a, float b, int64_t n);
    void (*scale_acc)(float *y, const float *x, const float *z, float a, float b, int64_t n);
    void (*scale16)(uint16_t *y, const float *x, const float *z, float a, float b, int64_t n);
    /* y = x - most - shift, and y = x - exp(z) shift; y may be x or z. */
    void (*less)(float *y, const float *x, float most, float shift, int64_t n);
    void (*less_exp)(float *y, const float *x, const float *z, float shift, int64_t n);
    /* y[o] = sum of x[i] w[o stride + i] over i < n, for o < outputs, reading w in order. */
    void (*dots)(float *y, const float *x, const float *w, int64_t stride, int64_t outputs, int64_t n);
    /* The same of w in bf16; half: the n/2 even entries of x, then the n/2 odd ones. */
    void (*dots16)(float *y, const float *x, const float *half, const uint16_t *w, int64_t stride, int64_t outputs, int64_t n);
} esp_lanes;

extern const esp_lanes esp_lanes_generic, esp_lanes_avx2, esp_lanes_avx512, esp_lanes_avx512_bf16;
/* The table that this machine runs (esp_isa). */
int esp_lanes_of(const esp_lanes **out);

/* The sums of a whole row, relative to its own maximum; finds the worth of its spans. */
esp_span esp_row_of(esp_span *part, int64_t parts, float r);

#endif
