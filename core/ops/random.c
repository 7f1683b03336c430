/* Random tensors: element i is a function of (seed, stream, i) by Philox4x32-10, whatever the shape's strides, threads or device.
 *
 * Element i takes word i % 4 of block i / 4 for uniform numbers: (word >> 8) / 2^24. Normal numbers come in pairs from words 0, 1 and 2, 3 by
 * Box-Muller in double: r = sqrt(-2 log((word + 1/2) / 2^32)), then r cos and r sin of 2 pi (word' / 2^32). */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), BLOCK = 4096 };

typedef struct random_args {
    esp_tensor *y;
    double a, b;
    uint64_t seed, stream;
    int normal;
} random_args;

int esp_uniform(esp_tensor *y, double lo, double hi, uint64_t seed, uint64_t stream)
{
    TRY(esp_check("uniform", "y", y, F32, ESP_WRITE));
    if (!(lo <= hi)) return esp_fail(ESP_EARG, "uniform: from %g to %g, want the lower bound first", lo, hi);
    return esp_backend_of(y)->uniform(y, lo, hi, seed, stream);
}

int esp_normal(esp_tensor *y, double mean, double std, uint64_t seed, uint64_t stream)
{
    TRY(esp_check("normal", "y", y, F32, ESP_WRITE));
    if (!(std >= 0)) return esp_fail(ESP_EARG, "normal: standard deviation %g, want 0 or more", std);
    return esp_backend_of(y)->normal(y, mean, std, seed, stream);
}

static float *element(const esp_tensor *t, int64_t i)
{
    int64_t offset = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
        offset += i % t->shape[d] * t->stride[d];
        i /= t->shape[d];
    }
    return (float *)esp_tensor_at(t) + offset;
}

static void four(double out[4], const random_args *a, int64_t block)
{
    uint32_t w[4];
    esp_philox(w, a->seed, a->stream, (uint64_t)block);
    for (int i = 0; i < 4; i += 2) {
        if (a->normal) {
            double r = sqrt(-2 * log((w[i] + 0.5) / 4294967296.0)), angle = 6.283185307179586 * (w[i + 1] / 4294967296.0);
            out[i] = a->a + a->b * r * cos(angle);
            out[i + 1] = a->a + a->b * r * sin(angle);
        } else {
            for (int j = i; j < i + 2; j++) out[j] = a->a + (a->b - a->a) * ((w[j] >> 8) / 16777216.0);
        }
    }
}

static int random_block(void *context, int64_t block)
{
    const random_args *a = context;
    int64_t end = esp_min((block + 1) * BLOCK, a->y->count);
    int dense = esp_is_dense(a->y);
    float *data = esp_tensor_at(a->y);
    for (int64_t i = block * BLOCK; i < end; i += 4) {
        double values[4];
        four(values, a, i / 4);
        for (int64_t j = i; j < esp_min(i + 4, end); j++) *(dense ? data + j : element(a->y, j)) = (float)values[j - i];
    }
    return ESP_OK;
}

int esp_cpu_uniform(esp_tensor *y, double lo, double hi, uint64_t seed, uint64_t stream)
{
    random_args a = {y, lo, hi, seed, stream, 0};
    return esp_parallel(esp_ceil_div(y->count, BLOCK), random_block, &a);
}

int esp_cpu_normal(esp_tensor *y, double mean, double std, uint64_t seed, uint64_t stream)
{
    random_args a = {y, mean, std, seed, stream, 1};
    return esp_parallel(esp_ceil_div(y->count, BLOCK), random_block, &a);
}
