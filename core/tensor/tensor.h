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
    int protect;                          /* nothing may write through this header, nor through views made of it */
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
/* ESP_READ_BYTES: read as bytes, so it may be unaligned. */
enum esp_access { ESP_READ = 0, ESP_WRITE = 1, ESP_READ_BYTES = 2 };

/* Not NULL, not dropped, dtype among the bits, aligned, writable where access is ESP_WRITE. */
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

/* The first channel of a head of [batch, positions, heads, channels]. */
static inline void *esp_tensor_head(const esp_tensor *t, int64_t b, int64_t position, int64_t head)
{
    return (char *)esp_tensor_at(t) + (b * t->stride[0] + position * t->stride[1] + head * t->stride[2]) * esp_dtype_size(t->dtype);
}

/* ---- storage formats (convert.c) ---- */

/* One element; rounding as in copy(). f8 is only loaded. p may be unaligned. */
double esp_load(const void *p, int dtype);
void esp_store(void *p, int dtype, double v);
/* n elements, both sides dense and aligned for their dtype. */
void esp_convert(void *to, int to_dtype, const void *from, int from_dtype, int64_t n);

/* Kernels are written over rows of f32. Row n of bf16 is widened into `room` (cols numbers) on its way in; what is written to `room` is rounded on
 * its way out. Rows of f32 are read and written where they stand. */
static inline const float *esp_row_in(const esp_rows *r, int64_t n, float *room)
{
    const char *row = (const char *)r->data + n * r->stride * esp_dtype_size(r->dtype);
    if (r->dtype == ESP_F32) return (const float *)(const void *)row;
    esp_convert(room, ESP_F32, row, r->dtype, r->cols);
    return room;
}
static inline float *esp_row_at(const esp_rows *r, int64_t n, float *room)
{
    return r->dtype == ESP_F32 ? (float *)r->data + n * r->stride : room;
}
static inline void esp_row_out(const esp_rows *r, int64_t n, const float *room)
{
    if (r->dtype != ESP_F32) esp_convert((char *)r->data + n * r->stride * esp_dtype_size(r->dtype), r->dtype, room, ESP_F32, r->cols);
}

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
/* f16 by its bits: no compiler support is taken for granted. Multiplying by 2^112 moves the exponent and makes subnormals normal, exactly. */
static inline float esp_f16_to_f32(uint16_t h)
{
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float f;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    memcpy(&bits, &f, 4);
    bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest even. Below 2^-14 adding 0.5 lets the hardware round to a multiple of 2^-24. */
static inline uint16_t esp_f32_to_f16(float f)
{
    uint32_t u, low;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffffu;
    float a;
    memcpy(&a, &u, 4);
    a = u < 0x38800000u ? a + 0.5f : 0.5f;
    memcpy(&low, &a, 4);
    uint32_t normal = (u + 0xfff + (u >> 13 & 1) - 0x38000000u) >> 13;
    uint32_t h = u < 0x38800000u ? low - 0x3f000000u : u < 0x477ff000u ? normal : u <= 0x7f800000u ? 0x7c00 : 0x7e00;
    return (uint16_t)(sign | h);
}

#endif
