/* RMSNorm (1910.07467), forward and backward.
 *
 * Sums of squares in double: f32 loses 1e-4 at C = 8192, and rstd is squared twice in backward. */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), ROWS = 32, LANES = 16 };

typedef struct norm_args {
    esp_rows y, x, w, rstd, dx, dw, dy;
    double eps, offset;
    double *partial;                      /* [blocks, C] sums for dw */
} norm_args;

/* w of C numbers and rstd of N, beside rows x. */
static int check_sides(norm_args *a, const char *op, const esp_tensor *x, const esp_tensor *w, const esp_tensor *rstd, int rstd_access)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(esp_check_rows(&a->w, op, "w", w, FLOATS, ESP_READ));
    if (w->count != a->x.cols || a->w.cols != a->x.cols) {
        return esp_fail(ESP_ESHAPE, "%s: 'w' is %s, want [%lld] (last dimension of x %s)", op, esp_shape_text(text, w->ndim, w->shape),
                        (long long)a->x.cols, esp_shape_text(other, x->ndim, x->shape));
    }
    if (!rstd) return ESP_OK;
    TRY(esp_check(op, "rstd", rstd, F32, rstd_access));
    TRY(esp_check_dense(op, "rstd", rstd));
    if (rstd->count != a->x.rows) {
        return esp_fail(ESP_ESHAPE, "%s: 'rstd' has %lld numbers, want %lld (rows of x)", op, (long long)rstd->count, (long long)a->x.rows);
    }
    a->rstd.data = esp_tensor_at(rstd);
    return ESP_OK;
}

static int check_forward(norm_args *a, esp_tensor *y, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, double eps, double offset)
{
    *a = (norm_args){.eps = eps, .offset = offset};
    TRY(esp_check_rows(&a->x, "rmsnorm", "x", x, FLOATS, ESP_READ));
    TRY(esp_check_rows(&a->y, "rmsnorm", "y", y, FLOATS, ESP_WRITE));
    TRY(esp_check_shape("rmsnorm", "y", y, x->ndim, x->shape, "shape of x"));
    if (!(eps >= 0)) return esp_fail(ESP_EARG, "rmsnorm: eps is %g, want 0 or more", eps);
    return check_sides(a, "rmsnorm", x, w, rstd, ESP_WRITE);
}

static int check_backward(norm_args *a, esp_tensor *dx, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w,
                          const esp_tensor *rstd, double offset)
{
    const char *op = "rmsnorm_backward";
    *a = (norm_args){.offset = offset};
    TRY(esp_check_rows(&a->x, op, "x", x, FLOATS, ESP_READ));
    TRY(esp_check_rows(&a->dx, op, "dx", dx, FLOATS, ESP_WRITE));
    TRY(esp_check_rows(&a->dy, op, "dy", dy, FLOATS, ESP_READ));
    TRY(esp_check_shape(op, "dx", dx, x->ndim, x->shape, "shape of x"));
    TRY(esp_check_shape(op, "dy", dy, x->ndim, x->shape, "shape of x"));
    if (!rstd) return esp_fail(ESP_EARG, "%s: 'rstd' is missing", op);
    TRY(check_sides(a, op, x, w, rstd, ESP_READ));
    if (!dw) return ESP_OK;
    TRY(esp_check(op, "dw", dw, F32, ESP_WRITE));
    TRY(esp_check_dense(op, "dw", dw));
    if (dw->count != a->x.cols) {
        return esp_fail(ESP_ESHAPE, "%s: 'dw' has %lld numbers, want %lld (last dimension of x)", op, (long long)dw->count, (long long)a->x.cols);
    }
    a->dw.data = esp_tensor_at(dw);
    return ESP_OK;
}

int esp_rmsnorm(esp_tensor *y, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, double eps, double offset)
{
    norm_args a;
    TRY(check_forward(&a, y, rstd, x, w, eps, offset));
    return esp_backend_of(y)->rmsnorm(y, rstd, x, w, eps, offset);
}

int esp_rmsnorm_backward(esp_tensor *dx, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w, const esp_tensor *rstd,
                         double offset)
{
    norm_args a;
    TRY(check_backward(&a, dx, dw, dy, x, w, rstd, offset));
    return esp_backend_of(dx)->rmsnorm_backward(dx, dw, dy, x, w, rstd, offset);
}

/* ---- CPU ---- */

static ESP_SIMD double sum_of_products(const float *restrict a, const float *restrict b, int64_t n)
{
    double acc[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) acc[l] += (double)a[i + l] * b[i + l];
    }
    for (int l = 0; i < n; i++, l++) acc[l] += (double)a[i] * b[i];
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += acc[l];
    return sum;
}

static ESP_SIMD void scale_row(float *restrict y, const float *restrict x, const float *restrict w, float r, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * r * w[i];
}

/* w + offset in f32: the weight itself, or made in scratch with room for `more` floats behind it. */
static const float *wide_weight(const norm_args *a, int64_t more, float **rest)
{
    int64_t n = a->x.cols;
    float *s = esp_scratch((n + more) * 4);
    if (!s) return NULL;
    *rest = s + n;
    float offset = (float)a->offset;
    if (a->w.dtype == ESP_F32) {
        if (offset == 0) return a->w.data;
        for (int64_t i = 0; i < n; i++) s[i] = ((const float *)a->w.data)[i] + offset;
    } else {
        for (int64_t i = 0; i < n; i++) s[i] = esp_bf16_to_f32(((const uint16_t *)a->w.data)[i]) + offset;
    }
    return s;
}

static int forward_block(void *context, int64_t block)
{
    const norm_args *a = context;
    int64_t C = a->x.cols, end = esp_min((block + 1) * ROWS, a->x.rows);
    float *room;
    const float *w = wide_weight(a, 2 * C, &room);
    if (!w) return ESP_EMEM;
    for (int64_t n = block * ROWS; n < end; n++) {
        const float *x = esp_row_in(&a->x, n, room);
        float *y = esp_row_at(&a->y, n, room + C), r = (float)(1 / sqrt(sum_of_products(x, x, C) / (double)C + a->eps));
        scale_row(y, x, w, r, C);
        esp_row_out(&a->y, n, y);
        if (a->rstd.data) ((float *)a->rstd.data)[n] = r;
    }
    return ESP_OK;
}

int esp_cpu_rmsnorm(esp_tensor *y, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, double eps, double offset)
{
    norm_args a;
    TRY(check_forward(&a, y, rstd, x, w, eps, offset));
    return esp_parallel(esp_ceil_div(a.x.rows, ROWS), forward_block, &a);
}

/* g = dy (w + offset); dx = r g - x r^3 mean(g x) */
static ESP_SIMD void backward_row(float *restrict dx, float *restrict g, const float *restrict dy, const float *restrict x,
                                  const float *restrict w, double *restrict dw, float r, int64_t C)
{
    for (int64_t i = 0; i < C; i++) g[i] = dy[i] * w[i];
    double mean = sum_of_products(g, x, C) / (double)C;
    float k = (float)(mean * r * r * r);
    for (int64_t i = 0; i < C; i++) dx[i] = r * g[i] - k * x[i];
    if (dw) for (int64_t i = 0; i < C; i++) dw[i] += (double)(dy[i] * x[i] * r);
}

static int backward_block(void *context, int64_t block)
{
    const norm_args *a = context;
    int64_t C = a->x.cols, end = esp_min((block + 1) * ROWS, a->x.rows);
    float *g;
    const float *w = wide_weight(a, 4 * C, &g);
    if (!w) return ESP_EMEM;
    for (int64_t n = block * ROWS; n < end; n++) {
        float *dx = esp_row_at(&a->dx, n, g + C);
        backward_row(dx, g, esp_row_in(&a->dy, n, g + 2 * C), esp_row_in(&a->x, n, g + 3 * C), w, a->partial ? a->partial + block * C : NULL,
                     ((const float *)a->rstd.data)[n], C);
        esp_row_out(&a->dx, n, dx);
    }
    return ESP_OK;
}

int esp_cpu_rmsnorm_backward(esp_tensor *dx, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w,
                             const esp_tensor *rstd, double offset)
{
    norm_args a;
    TRY(check_backward(&a, dx, dw, dy, x, w, rstd, offset));
    int64_t blocks = esp_ceil_div(a.x.rows, ROWS), C = a.x.cols;
    if (dw && !(a.partial = esp_calloc(blocks * C * 8))) return ESP_EMEM;
    int code = esp_parallel(blocks, backward_block, &a);
    if (dw && code == ESP_OK) {
        for (int64_t b = 1; b < blocks; b++) {
            for (int64_t i = 0; i < C; i++) a.partial[i] += a.partial[b * C + i];
        }
        for (int64_t i = 0; i < C; i++) ((float *)a.dw.data)[i] = blocks ? (float)a.partial[i] : 0;
    }
    esp_free(a.partial);
    return code;
}
