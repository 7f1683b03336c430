/* Storage, shapes and views. */
#include <stdio.h>

#include "tensor.h"

int64_t esp_dtype_size(int dtype)
{
    switch (dtype) {
    case ESP_F32: case ESP_I32: return 4;
    case ESP_BF16: case ESP_F16: return 2;
    case ESP_U8: case ESP_F8_E4M3: case ESP_F8_E5M2: return 1;
    case ESP_F64: return 8;
    default: return -1;
    }
}

const char *esp_dtype_name(int dtype)
{
    static const char *const names[] = {"f32", "bf16", "f16", "i32", "u8", "f64", "f8_e4m3", "f8_e5m2"};
    return dtype >= 0 && dtype < 8 ? names[dtype] : "unknown dtype";
}

const char *esp_shape_text(char *text, int ndim, const int64_t *shape)
{
    int n = snprintf(text, ESP_TEXT, "[");
    for (int d = 0; d < ndim && n < ESP_TEXT - 24; d++) {
        n += snprintf(text + n, (size_t)(ESP_TEXT - n), "%s%lld", d ? ", " : "", (long long)shape[d]);
    }
    snprintf(text + n, (size_t)(ESP_TEXT - n), "]");
    return text;
}

/* Elements of a shape; an error names what is wrong with it. Zero-sized dimensions are allowed: an empty tensor has no bytes to touch. */
static int count_of(int64_t *count, int64_t *dense, int dtype, int ndim, const int64_t *shape)
{
    char text[ESP_TEXT];
    if (ndim < 0 || ndim > ESP_MAX_DIMS) return esp_fail(ESP_EARG, "tensor: %d dimensions, want 0 to %d", ndim, (int)ESP_MAX_DIMS);
    if (esp_dtype_size(dtype) < 0) return esp_fail(ESP_EDTYPE, "tensor: unknown dtype %d", dtype);
    int64_t n = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        if (shape[d] < 0) return esp_fail(ESP_EARG, "tensor: negative dimension in %s", esp_shape_text(text, ndim, shape));
        if (dense) dense[d] = n;
        if (__builtin_mul_overflow(n, shape[d], &n)) {
            return esp_fail(ESP_EARG, "tensor: %s has more elements than can be counted", esp_shape_text(text, ndim, shape));
        }
    }
    int64_t bytes;
    if (__builtin_mul_overflow(n, esp_dtype_size(dtype), &bytes)) {
        return esp_fail(ESP_EARG, "tensor: %s has more bytes than can be counted", esp_shape_text(text, ndim, shape));
    }
    *count = n;
    return ESP_OK;
}

static void release_storage(esp_storage *s)
{
    if (__atomic_sub_fetch(&s->references, 1, __ATOMIC_ACQ_REL) > 0) return;
    if (s->release) s->release(s->owner);
    else esp_free(s->data);
    esp_free(s);
}

/* A header over storage whose one reference it takes over. */
static int header(esp_tensor **out, esp_storage *storage, int dtype, int ndim, const int64_t *shape, const int64_t *stride,
                  int64_t offset, int64_t count)
{
    esp_tensor *t = esp_calloc(sizeof *t);
    if (!t) {
        release_storage(storage);
        return ESP_EMEM;
    }
    t->storage = storage;
    t->dtype = dtype;
    t->ndim = ndim;
    t->offset = offset;
    t->count = count;
    for (int d = 0; d < ndim; d++) {
        t->shape[d] = shape[d];
        t->stride[d] = stride[d];
    }
    *out = t;
    return ESP_OK;
}

int esp_tensor_over(esp_tensor **out, int dtype, int ndim, const int64_t *shape, void *data, int64_t bytes, int readonly,
                    void (*release)(void *owner), void *owner)
{
    int64_t count, stride[ESP_MAX_DIMS];
    int code = count_of(&count, stride, dtype, ndim, shape);
    if (code == ESP_OK && count * esp_dtype_size(dtype) > bytes) {
        char text[ESP_TEXT];
        code = esp_fail(ESP_ESHAPE, "tensor: %s of %s wants %lld bytes, %lld are there", esp_shape_text(text, ndim, shape),
                        esp_dtype_name(dtype), (long long)(count * esp_dtype_size(dtype)), (long long)bytes);
    }
    esp_storage *s = code == ESP_OK ? esp_calloc(sizeof *s) : NULL;
    if (!s) {
        if (release) release(owner);
        return code == ESP_OK ? ESP_EMEM : code;
    }
    *s = (esp_storage){.references = 1, .data = data, .bytes = bytes, .readonly = readonly, .release = release, .owner = owner};
    return header(out, s, dtype, ndim, shape, stride, 0, count);
}

int esp_tensor_new(esp_tensor **out, int dtype, int ndim, const int64_t *shape)
{
    int64_t count, stride[ESP_MAX_DIMS];
    TRY(count_of(&count, stride, dtype, ndim, shape));
    int64_t bytes = count * esp_dtype_size(dtype);
    void *data = esp_malloc(bytes);
    if (!data) return ESP_EMEM;
    esp_storage *s = esp_calloc(sizeof *s);
    if (!s) {
        esp_free(data);
        return ESP_EMEM;
    }
    *s = (esp_storage){.references = 1, .data = data, .bytes = bytes};
    return header(out, s, dtype, ndim, shape, stride, 0, count);
}

int esp_tensor_view(esp_tensor **out, const esp_tensor *t, int ndim, const int64_t *shape, const int64_t *stride, int64_t offset)
{
    if (!t || !t->storage) return esp_fail(ESP_EARG, "view: the tensor was freed");
    int64_t count;
    TRY(count_of(&count, NULL, t->dtype, ndim, shape));
    /* Every index must stay inside the storage: the first and last element along each stride bound all others. */
    __int128 low = (__int128)t->offset + offset, high = low;
    for (int d = 0; d < ndim; d++) {
        __int128 reach = (__int128)(shape[d] - 1) * stride[d];
        if (reach < 0) low += reach;
        else high += reach;
    }
    int64_t held = t->storage->bytes / esp_dtype_size(t->dtype);
    if (count > 0 && (low < 0 || high >= held)) {
        char text[ESP_TEXT];
        return esp_fail(ESP_EARG, "view: %s at offset %lld leaves the %lld elements of its storage", esp_shape_text(text, ndim, shape),
                        (long long)offset, (long long)held);
    }
    __atomic_add_fetch(&t->storage->references, 1, __ATOMIC_RELAXED);
    TRY(header(out, t->storage, t->dtype, ndim, shape, stride, count > 0 ? t->offset + offset : 0, count));
    (*out)->protect = t->protect;
    return ESP_OK;
}

void esp_tensor_protect(esp_tensor *t)
{
    if (t) t->protect = 1;
}

void esp_tensor_drop(esp_tensor *t)
{
    if (!t || !t->storage) return;
    release_storage(t->storage);
    t->storage = NULL;
}

void esp_tensor_free(esp_tensor *t)
{
    if (!t) return;
    esp_tensor_drop(t);
    esp_free(t);
}

int esp_tensor_dtype(const esp_tensor *t) { return t->dtype; }
int esp_tensor_ndim(const esp_tensor *t) { return t->ndim; }
const int64_t *esp_tensor_shape(const esp_tensor *t) { return t->shape; }
const int64_t *esp_tensor_stride(const esp_tensor *t) { return t->stride; }
int64_t esp_tensor_count(const esp_tensor *t) { return t->count; }

void *esp_tensor_data(const esp_tensor *t)
{
    if (!t || !t->storage) {
        esp_fail(ESP_EARG, "data: the tensor was freed");
        return NULL;
    }
    if (t->storage->readonly && esp_bus_check(t->storage->data) != ESP_OK) return NULL;
    return esp_tensor_at(t);
}

int esp_tensor_readonly(const esp_tensor *t)
{
    return t->storage ? t->storage->readonly : 0;
}

int esp_tensor_aligned(const esp_tensor *t)
{
    return !t->storage || (intptr_t)t->storage->data % esp_dtype_size(t->dtype) == 0;
}
