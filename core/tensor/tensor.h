/* The inside of a tensor, and the argument checks that operations share. Internal. */
#ifndef ESP_TENSOR_H
#define ESP_TENSOR_H

#include <string.h>

#include "../base/base.h"

/* Reference-counted bytes. release (or NULL: esp_free) is called with `owner` when the last view is dropped. */
typedef struct esp_storage {
    int64_t references;
    void *data;
    int64_t bytes;
    int readonly;
    void (*release)(void *owner);
    void *owner;
} esp_storage;

struct esp_tensor {
    esp_storage *storage;                 /* NULL once dropped */
    int dtype, ndim;
    int64_t offset, count;                /* in elements */
    int64_t shape[ESP_MAX_DIMS], stride[ESP_MAX_DIMS];
};

/* A dense tensor over bytes that somebody else owns (a mapped file): release(owner) when the last view is dropped, also on error. */
int esp_tensor_over(esp_tensor **out, int dtype, int ndim, const int64_t *shape, void *data, int64_t bytes, int readonly,
                    void (*release)(void *owner), void *owner);

enum { ESP_TEXT = 160 };
/* "[3, 5]" in text[ESP_TEXT]; returns text. */
const char *esp_shape_text(char *text, int ndim, const int64_t *shape);
const char *esp_dtype_name(int dtype);

/* ---- checks: op and arg name the operation and the argument in the sentence ---- */

#define ESP_BIT(dtype) (1u << (dtype))
enum esp_access { ESP_READ = 0, ESP_WRITE = 1 };

/* Not NULL, not dropped, dtype among the bits, writable where access is ESP_WRITE. */
int esp_check(const char *op, const char *arg, const esp_tensor *t, unsigned dtypes, int access);
/* Shape exactly as given; `why` says where the wanted shape comes from ("shape of x"). */
int esp_check_shape(const char *op, const char *arg, const esp_tensor *t, int ndim, const int64_t *shape, const char *why);
/* The last dimension is dense (stride 1, or at most one element). */
int esp_check_last_dense(const char *op, const char *arg, const esp_tensor *t);
int esp_check_dense(const char *op, const char *arg, const esp_tensor *t);
static inline int esp_is_dense(const esp_tensor *t)
{
    int64_t want = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        if (t->shape[d] != 1 && t->stride[d] != want) return 0;
        want *= t->shape[d];
    }
    return 1;
}

/* A tensor seen as rows: last dimension dense, the others collapsed to one row stride. A 0-d tensor is one row of one. */
typedef struct esp_rows {
    void *data;
    int64_t rows, cols, stride;           /* stride in elements */
    int dtype;
} esp_rows;
int esp_check_rows(esp_rows *out, const char *op, const char *arg, const esp_tensor *t, unsigned dtypes, int access);

static inline void *esp_tensor_at(const esp_tensor *t)
{
    return (char *)t->storage->data + t->offset * esp_dtype_size(t->dtype);
}

/* ---- storage formats ---- */

static inline float esp_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* Round to nearest even; NaN stays NaN. */
static inline uint16_t esp_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
/* f16 <-> f32 by the bits: no compiler support is taken for granted. */
static inline float esp_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    float f;
    if (exponent == 31) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        f = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t esp_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);
    if (u < 0x38800000u) {
        /* Subnormal: adding 0.5 lets the hardware round to a multiple of 2^-24. */
        float a, half = 0.5f;
        memcpy(&a, &u, 4);
        a += half;
        memcpy(&u, &a, 4);
        return (uint16_t)(sign | (u - 0x3f000000u));
    }
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

#endif
