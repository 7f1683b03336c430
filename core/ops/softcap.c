/* Soft-capped logits (2408.00118): y = cap tanh(x / cap), forward and backward. */
#include "backend.h"

#include "../formula.h"

enum { F32 = ESP_BIT(ESP_F32), BLOCK = 32768 };

typedef struct cap_args {
    esp_rows y, x, dx, dy;
    float cap;
    int64_t rows_per_block;
} cap_args;

static int check(cap_args *a, const char *op, double cap, int64_t cols)
{
    if (!(cap > 0)) return esp_fail(ESP_EARG, "%s: cap is %g, want a number above 0", op, cap);
    a->cap = (float)cap;
    a->rows_per_block = esp_max_of(1, BLOCK / esp_max_of(1, cols));
    return ESP_OK;
}

static int check_forward(cap_args *a, const esp_tensor *y, const esp_tensor *x, double cap)
{
    TRY(esp_check_rows(&a->x, "softcap", "x", x, F32, ESP_READ));
    TRY(esp_check_rows(&a->y, "softcap", "y", y, F32, ESP_WRITE));
    TRY(esp_check_shape("softcap", "y", y, x->ndim, x->shape, "shape of x"));
    return check(a, "softcap", cap, a->x.cols);
}

static int check_backward(cap_args *a, const esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y, double cap)
{
    const char *op = "softcap_backward";
    TRY(esp_check_rows(&a->y, op, "y", y, F32, ESP_READ));
    TRY(esp_check_rows(&a->dy, op, "dy", dy, F32, ESP_READ));
    TRY(esp_check_rows(&a->dx, op, "dx", dx, F32, ESP_WRITE));
    TRY(esp_check_shape(op, "dy", dy, y->ndim, y->shape, "shape of y"));
    TRY(esp_check_shape(op, "dx", dx, y->ndim, y->shape, "shape of y"));
    return check(a, op, cap, a->y.cols);
}

int esp_softcap(esp_tensor *y, const esp_tensor *x, double cap)
{
    cap_args a;
    TRY(check_forward(&a, y, x, cap));
    return esp_backend_of(y)->softcap(y, x, cap);
}

int esp_softcap_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y, double cap)
{
    cap_args a;
    TRY(check_backward(&a, dx, dy, y, cap));
    return esp_backend_of(dx)->softcap_backward(dx, dy, y, cap);
}

static ESP_SIMD void cap_row(float *y, const float *x, float cap, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = cap * esp_tanhf(x[i] / cap);
}

static ESP_SIMD void slope_row(float *dx, const float *dy, const float *restrict y, float cap, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * (1.0f - (y[i] / cap) * (y[i] / cap));
}

static float *row(const esp_rows *r, int64_t n) { return (float *)r->data + n * r->stride; }

static int forward_block(void *context, int64_t block)
{
    const cap_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) cap_row(row(&a->y, n), row(&a->x, n), a->cap, a->x.cols);
    return ESP_OK;
}

int esp_cpu_softcap(esp_tensor *y, const esp_tensor *x, double cap)
{
    cap_args a;
    TRY(check_forward(&a, y, x, cap));
    return esp_parallel(esp_ceil_div(a.x.rows, a.rows_per_block), forward_block, &a);
}

static int backward_block(void *context, int64_t block)
{
    const cap_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->y.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) slope_row(row(&a->dx, n), row(&a->dy, n), row(&a->y, n), a->cap, a->y.cols);
    return ESP_OK;
}

int esp_cpu_softcap_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y, double cap)
{
    cap_args a;
    TRY(check_backward(&a, dx, dy, y, cap));
    return esp_parallel(esp_ceil_div(a.y.rows, a.rows_per_block), backward_block, &a);
}
