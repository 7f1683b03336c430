/* The argument checks that operations share: each failure is one sentence that names the operation, the argument, what came and what
 * was wanted. */
#include <stdio.h>

#include "tensor.h"

static const char *dtype_names(char *text, unsigned dtypes)
{
    int n = 0;
    text[0] = 0;
    for (int d = ESP_F32; d <= ESP_F8_E5M2; d++) {
        if (dtypes & ESP_BIT(d)) n += snprintf(text + n, (size_t)(ESP_TEXT - n), "%s%s", n ? " or " : "", esp_dtype_name(d));
    }
    return text;
}

int esp_check(const char *op, const char *arg, const esp_tensor *t, unsigned dtypes, int access)
{
    char text[ESP_TEXT];
    if (!t) return esp_fail(ESP_EARG, "%s: '%s' is missing", op, arg);
    if (!t->storage) return esp_fail(ESP_EARG, "%s: '%s' was freed", op, arg);
    if (!(ESP_BIT(t->dtype) & dtypes)) {
        return esp_fail(ESP_EDTYPE, "%s: '%s' is %s, want %s", op, arg, esp_dtype_name(t->dtype), dtype_names(text, dtypes));
    }
    if (t->storage->readonly) TRY(esp_bus_check(t->storage->data));
    if (access != ESP_READ_BYTES && !esp_tensor_aligned(t)) {
        return esp_fail(ESP_EARG, "%s: '%s' views unaligned bytes of a file; clone it first", op, arg);
    }
    if (access == ESP_WRITE && t->storage->readonly) {
        return esp_fail(ESP_EARG, "%s: '%s' is read-only (it views a file); clone it first", op, arg);
    }
    if (access == ESP_WRITE && t->protect) return esp_fail(ESP_EARG, "%s: '%s' is a read-only view of another model's weights; clone it first", op, arg);
    return ESP_OK;
}

int esp_check_shape(const char *op, const char *arg, const esp_tensor *t, int ndim, const int64_t *shape, const char *why)
{
    int same = t->ndim == ndim;
    for (int d = 0; same && d < ndim; d++) same = t->shape[d] == shape[d];
    if (same) return ESP_OK;
    char got[ESP_TEXT], want[ESP_TEXT];
    return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want %s (%s)", op, arg, esp_shape_text(got, t->ndim, t->shape),
                    esp_shape_text(want, ndim, shape), why);
}

int esp_check_last_dense(const char *op, const char *arg, const esp_tensor *t)
{
    int last = t->ndim - 1;
    if (last < 0 || t->shape[last] <= 1 || t->stride[last] == 1) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: the last dimension of '%s' has stride %lld, want 1; make it contiguous first", op, arg,
                    (long long)t->stride[last]);
}

int esp_check_dense(const char *op, const char *arg, const esp_tensor *t)
{
    if (esp_is_dense(t)) return ESP_OK;
    char text[ESP_TEXT];
    return esp_fail(ESP_ESHAPE, "%s: '%s' %s is a strided view, want a dense tensor; make it contiguous first", op, arg,
                    esp_shape_text(text, t->ndim, t->shape));
}

int esp_check_rows(esp_rows *out, const char *op, const char *arg, const esp_tensor *t, unsigned dtypes, int access)
{
    TRY(esp_check(op, arg, t, dtypes, access));
    TRY(esp_check_last_dense(op, arg, t));
    int last = t->ndim - 1;
    int64_t cols = last < 0 ? 1 : t->shape[last];
    int64_t rows = 1, stride = 0;
    /* From the inside out: the innermost dimension with more than one index sets the row stride, the others must continue it. */
    for (int d = last - 1; d >= 0; d--) {
        if (t->shape[d] == 1) continue;
        if (rows == 1) {
            stride = t->stride[d];
        } else if (t->stride[d] != stride * rows) {
            char text[ESP_TEXT];
            return esp_fail(ESP_ESHAPE, "%s: '%s' %s cannot be seen as rows (its leading dimensions have no common stride); make it contiguous first",
                            op, arg, esp_shape_text(text, t->ndim, t->shape));
        }
        rows *= t->shape[d];
    }
    if (rows == 1) stride = cols;
    *out = (esp_rows){.data = esp_tensor_at(t), .rows = rows, .cols = cols, .stride = stride, .dtype = t->dtype};
    return ESP_OK;
}
