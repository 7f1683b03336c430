/* Filling, copying with conversion, and taking indices of an axis. */
#include <math.h>

#include "backend.h"
#include "walk.h"

/* f8 is read, never written. */
enum { WRITTEN = 63u, READ = WRITTEN | ESP_BIT(ESP_F8_E4M3) | ESP_BIT(ESP_F8_E5M2), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16) };

/* ---- fill ---- */

int esp_fill(esp_tensor *y, double value)
{
    TRY(esp_check("fill", "y", y, WRITTEN, ESP_WRITE));
    return esp_backend_of(y)->fill(y, value);
}

static void fill_stretch(const esp_walk *w, char *const *p, const int64_t *stride, int64_t n)
{
    char element[8];
    int dtype = (int)w->beta;
    esp_store(element, dtype, w->alpha);
    int64_t size = w->size[0], step = stride[0] * size;
    if (stride[0] == 1 && w->alpha == 0 && !signbit(w->alpha)) {
        memset(p[0], 0, (size_t)(n * size));
    } else if (stride[0] == 1 && size == 4) {
        uint32_t bits, *to = (uint32_t *)(void *)p[0];
        memcpy(&bits, element, 4);
        for (int64_t i = 0; i < n; i++) to[i] = bits;
    } else {
        for (int64_t i = 0; i < n; i++) memcpy(p[0] + i * step, element, (size_t)size);
    }
}

int esp_cpu_fill(esp_tensor *y, double value)
{
    esp_walk w = {.alpha = value, .beta = y->dtype};
    const esp_tensor *t[] = {y};
    return esp_walk_run(&w, 1, t, fill_stretch);
}

/* ---- copy ---- */

int esp_copy(esp_tensor *y, const esp_tensor *x)
{
    TRY(esp_check("copy", "x", x, READ, ESP_READ));
    TRY(esp_check("copy", "y", y, WRITTEN, ESP_WRITE));
    TRY(esp_check_shape("copy", "y", y, x->ndim, x->shape, "shape of x"));
    return esp_backend_of(y)->copy(y, x);
}

static void copy_stretch(const esp_walk *w, char *const *p, const int64_t *stride, int64_t n)
{
    int to = (int)w->alpha, from = (int)w->beta;
    if (stride[0] == 1 && stride[1] == 1) {
        esp_convert(p[0], to, p[1], from, n);
    } else if (to == from && w->size[0] == 4) {
        uint32_t *y = (uint32_t *)(void *)p[0];
        const uint32_t *x = (const uint32_t *)(const void *)p[1];
        for (int64_t i = 0; i < n; i++) y[i * stride[0]] = x[i * stride[1]];
    } else {
        int64_t ys = stride[0] * w->size[0], xs = stride[1] * w->size[1];
        for (int64_t i = 0; i < n; i++) esp_store(p[0] + i * ys, to, esp_load(p[1] + i * xs, from));
    }
}

int esp_cpu_copy(esp_tensor *y, const esp_tensor *x)
{
    esp_walk w = {.alpha = y->dtype, .beta = x->dtype};
    const esp_tensor *t[] = {y, x};
    return esp_walk_run(&w, 2, t, copy_stretch);
}

/* ---- index_select ---- */

int esp_index_select(esp_tensor *y, const esp_tensor *x, const esp_tensor *index, int axis)
{
    char text[ESP_TEXT];
    TRY(esp_check("index_select", "x", x, FLOATS, ESP_READ));
    TRY(esp_check("index_select", "y", y, ESP_BIT(x->dtype), ESP_WRITE));
    TRY(esp_check("index_select", "index", index, ESP_BIT(ESP_I32), ESP_READ));
    TRY(esp_check_dense("index_select", "index", index));
    if (axis < 0 || axis >= x->ndim) {
        return esp_fail(ESP_EARG, "index_select: axis %d of %s, want 0 to %d", axis, esp_shape_text(text, x->ndim, x->shape), x->ndim - 1);
    }
    int64_t want[ESP_MAX_DIMS];
    memcpy(want, x->shape, sizeof want);
    want[axis] = index->count;
    TRY(esp_check_shape("index_select", "y", y, x->ndim, want, "shape of x with the number of indices on the axis"));
    const int32_t *at = esp_tensor_at(index);
    for (int64_t i = 0; i < index->count; i++) {
        if (at[i] < 0 || at[i] >= x->shape[axis]) {
            return esp_fail(ESP_EARG, "index_select: index %d at place %lld, want 0 to %lld (axis %d of %s)", at[i], (long long)i,
                            (long long)x->shape[axis] - 1, axis, esp_shape_text(text, x->ndim, x->shape));
        }
    }
    return esp_backend_of(y)->index_select(y, x, index, axis);
}

/* Each index is a copy of what lies at it: both sides as tensors without the axis. */
int esp_cpu_index_select(esp_tensor *y, const esp_tensor *x, const esp_tensor *index, int axis)
{
    const int32_t *at = esp_tensor_at(index);
    esp_tensor from = *x, to = *y;
    if (axis == x->ndim - 1) {
        /* Along the last dimension the row is the unit, and the indices are walked inside it. */
        int64_t n = index->count, size = esp_dtype_size(x->dtype), rows = n ? y->count / n : 0;
        for (int64_t r = 0; r < rows; r++) {
            int64_t xo = 0, yo = 0, rest = r;
            for (int d = axis - 1; d >= 0; d--) {
                xo += rest % x->shape[d] * x->stride[d];
                yo += rest % x->shape[d] * y->stride[d];
                rest /= x->shape[d];
            }
            const char *xr = (const char *)esp_tensor_at(x) + xo * size;
            char *yr = (char *)esp_tensor_at(y) + yo * size;
            for (int64_t i = 0; i < n; i++) memcpy(yr + i * y->stride[axis] * size, xr + at[i] * x->stride[axis] * size, (size_t)size);
        }
        return ESP_OK;
    }
    from.shape[axis] = to.shape[axis] = 1;
    from.count = to.count = index->count ? y->count / index->count : 0;
    for (int64_t i = 0; i < index->count; i++) {
        from.offset = x->offset + at[i] * x->stride[axis];
        to.offset = y->offset + i * y->stride[axis];
        TRY(esp_cpu_copy(&to, &from));
    }
    return ESP_OK;
}
