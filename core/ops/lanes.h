/* Row sums shared by the losses: vector lanes in f32, added up in double every few hundred numbers. Included by kernels, which clone them
 * for each instruction set. */
#ifndef ESP_LANES_H
#define ESP_LANES_H

#include <math.h>
#include <stdint.h>

#include "../formula.h"

enum { ESP_LANES = 16, ESP_STRETCH = 512 };

static inline __attribute__((always_inline)) float esp_lane_max(const float *x, int64_t n)
{
    float most[ESP_LANES];
    for (int l = 0; l < ESP_LANES; l++) most[l] = -INFINITY;
    int64_t i = 0;
    for (; i + ESP_LANES <= n; i += ESP_LANES) {
        for (int l = 0; l < ESP_LANES; l++) most[l] = x[i + l] > most[l] ? x[i + l] : most[l];
    }
    for (int l = 0; i < n; i++, l++) most[l] = x[i] > most[l] ? x[i] : most[l];
    for (int l = 1; l < ESP_LANES; l++) most[0] = most[l] > most[0] ? most[l] : most[0];
    return most[0];
}

/* exp((x - shift) * scale) where that is above -87, else 0: -infinity counts nothing. NaN stays. */
static inline __attribute__((always_inline)) float esp_shifted_exp(float x, float shift, float scale)
{
    float z = (x - shift) * scale;
    float e = esp_expf(z);
    return z < -87.0f ? 0.0f : e;
}

static inline __attribute__((always_inline)) double esp_lane_sum_exp(const float *x, float shift, float scale, int64_t n)
{
    double sum = 0;
    for (int64_t from = 0; from < n; from += ESP_STRETCH) {
        int64_t end = from + ESP_STRETCH < n ? from + ESP_STRETCH : n, i = from;
        float acc[ESP_LANES] = {0};
        for (; i + ESP_LANES <= end; i += ESP_LANES) {
            for (int l = 0; l < ESP_LANES; l++) acc[l] += esp_shifted_exp(x[i + l], shift, scale);
        }
        for (int l = 0; i < end; i++, l++) acc[l] += esp_shifted_exp(x[i], shift, scale);
        for (int l = 0; l < ESP_LANES; l++) sum += (double)acc[l];
    }
    return sum;
}

#endif
