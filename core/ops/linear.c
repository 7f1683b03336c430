/* Linear layers in f32: y = x w^T, its gradient by x and by w; and what those in bf16 (linear16.c) share with them. */
#include "backend.h"
#include "gemm.h"
#include "lanes.h"
#include "linear.h"

/* ---- argument checks ---- */

int esp_linear_check(esp_linear_args *a, const char *op, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn, const esp_tensor *y,
                     const char *yn, char written, unsigned dtypes)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    a->packed = NULL;
    TRY(esp_check_rows(&a->x, op, xn, x, dtypes, written == 'x'));
    TRY(esp_check_rows(&a->w, op, wn, w, written == 'w' ? ESP_BIT(ESP_F32) : dtypes | ESP_BIT(ESP_BF16), written == 'w'));
    TRY(esp_check_rows(&a->y, op, yn, y, dtypes, written == 'y'));
    if (w->ndim != 2) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want two dimensions [outputs, inputs]", op, wn, esp_shape_text(text, w->ndim, w->shape));
    if (a->w.cols != a->x.cols) {
        return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [*, %lld] (last dimension of '%s' %s)", op, wn, esp_shape_text(text, w->ndim, w->shape),
                        (long long)a->x.cols, xn, esp_shape_text(other, x->ndim, x->shape));
    }
    if (a->y.rows == a->x.rows && a->y.cols == a->w.rows) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want %lld rows of %lld ('%s' has %lld rows, '%s' %lld)", op, yn,
                    esp_shape_text(text, y->ndim, y->shape), (long long)a->x.rows, (long long)a->w.rows, xn, (long long)a->x.rows, wn,
                    (long long)a->w.rows);
}

static int check(esp_linear_args *a, const char *op, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn, const esp_tensor *y,
                 const char *yn, char written)
{
    return esp_linear_check(a, op, x, xn, w, wn, y, yn, written, ESP_BIT(ESP_F32));
}

int esp_linear(esp_tensor *y, const esp_tensor *x, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear", x, "x", w, "w", y, "y", 'y'));
    return esp_backend_of(y)->linear(y, x, w);
}

int esp_linear_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dx", dx, "dx", w, "w", dy, "dy", 'x'));
    return esp_backend_of(dx)->linear_dx(dx, dy, w);
}

int esp_linear_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dx_acc", dx, "dx", w, "w", dy, "dy", 'x'));
    return esp_backend_of(dx)->linear_dx_acc(dx, dy, w);
}

int esp_linear_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dw", x, "x", dw, "dw", dy, "dy", 'w'));
    return esp_backend_of(dw)->linear_dw(dw, dy, x);
}

int esp_linear_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dw_acc", x, "x", dw, "dw", dy, "dy", 'w'));
    return esp_backend_of(dw)->linear_dw_acc(dw, dy, x);
}

/* ---- a few rows (decoding): each weight is read once, in order, which is all that counts ---- */

enum { OUTPUTS = 64 };

typedef struct few_rows {
    esp_linear_args a;
    const esp_lanes *lanes;
    float *half;                          /* of a bf16 weight: of each row of x the even entries, then the odd ones, [rows, cols] */
} few_rows;

static int few_rows_block(void *context, int64_t block)
{
    const few_rows *f = context;
    const esp_linear_args *a = &f->a;
    int64_t from = block * OUTPUTS, outputs = esp_min(OUTPUTS, a->w.rows - from), n = a->x.cols;
    for (int64_t r = 0; r < a->x.rows; r++) {
        const float *x = (const float *)a->x.data + r * a->x.stride;
        float *y = (float *)a->y.data + r * a->y.stride + from;
        if (a->w.dtype == ESP_F32) f->lanes->dots(y, x, (const float *)a->w.data + from * a->w.stride, a->w.stride, outputs, n);
        else f->lanes->dots16(y, x, f->half + r * n, (const uint16_t *)a->w.data + from * a->w.stride, a->w.stride, outputs, n);
    }
    return ESP_OK;
}

int esp_linear_few(const esp_rows *x_rows, const esp_rows *w, const esp_rows *y)
{
    few_rows f = {.a = {*x_rows, *w, *y}};
    int64_t n = x_rows->cols;
    TRY(esp_lanes_of(&f.lanes));
    if (w->dtype != ESP_F32) {
        if (!(f.half = esp_scratch(x_rows->rows * n * 4))) return ESP_EMEM;
        for (int64_t r = 0; r < x_rows->rows; r++) {
            const float *x = (const float *)x_rows->data + r * x_rows->stride;
            for (int64_t i = 0; i < n / 2; i++) f.half[r * n + i] = x[2 * i], f.half[r * n + n / 2 + i] = x[2 * i + 1];
        }
    }
    return esp_parallel(esp_ceil_div(w->rows, OUTPUTS), few_rows_block, &f);
}

/* ---- kernels ---- */

esp_matrix esp_matrix_of(const esp_rows *r)
{
    return (esp_matrix){r->data, r->dtype, r->stride};
}

int esp_linear_forward(const esp_linear_args *a, int dtype)
{
    return esp_gemm(&(esp_gemm_args){.dtype = dtype, .tb = 1, .m = a->x.rows, .n = a->w.rows, .k = a->x.cols, .a = esp_matrix_of(&a->x),
                                     .b = esp_matrix_of(&a->w), .c = esp_matrix_of(&a->y), .packed = a->packed});
}

int esp_linear_to_x(const esp_linear_args *a, int dtype, int beta)
{
    return esp_gemm(&(esp_gemm_args){.dtype = dtype, .m = a->x.rows, .n = a->w.cols, .k = a->w.rows, .a = esp_matrix_of(&a->y),
                                     .b = esp_matrix_of(&a->w), .c = esp_matrix_of(&a->x), .beta = beta, .packed = a->packed});
}

int esp_linear_to_w(const esp_linear_args *a, int dtype, int beta)
{
    return esp_gemm(&(esp_gemm_args){.dtype = dtype, .ta = 1, .m = a->w.rows, .n = a->w.cols, .k = a->x.rows, .a = esp_matrix_of(&a->y),
                                     .b = esp_matrix_of(&a->x), .c = esp_matrix_of(&a->w), .beta = beta});
}

int esp_cpu_linear(esp_tensor *y, const esp_tensor *x, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear", x, "x", w, "w", y, "y", 'y'));
    return a.x.rows <= ESP_FEW_ROWS ? esp_linear_few(&a.x, &a.w, &a.y) : esp_linear_forward(&a, ESP_F32);
}

static int dx_product(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, int beta)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dx", dx, "dx", w, "w", dy, "dy", 'x'));
    return esp_linear_to_x(&a, ESP_F32, beta);
}

int esp_cpu_linear_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w) { return dx_product(dx, dy, w, 0); }
int esp_cpu_linear_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w) { return dx_product(dx, dy, w, 1); }

static int dw_product(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int beta)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dw", x, "x", dw, "dw", dy, "dy", 'w'));
    return esp_linear_to_w(&a, ESP_F32, beta);
}

int esp_cpu_linear_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x) { return dw_product(dw, dy, x, 0); }
int esp_cpu_linear_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x) { return dw_product(dw, dy, x, 1); }
