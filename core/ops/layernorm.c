/* LayerNorm (1607.06450) with weight and bias, forward and backward.
 *
 * Mean and variance in double, the variance about the mean: a difference of squares in f32 cancels where the mean is large. */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), ROWS = 32, LANES = 16 };

typedef struct norm_args {
    esp_rows y, x, w, b, dx, dy;
    float *mean, *rstd, *dw, *db;
    double eps, offset;
    double *partial;                      /* [blocks, 2C] sums for dw and db */
} norm_args;

/* ---- argument checks ---- */

/* A vector of the last dimension of x. */
static int check_side(const norm_args *a, esp_rows *out, const char *op, const char *arg, const esp_tensor *t, const esp_tensor *x, unsigned dtypes,
                      int access)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(esp_check_rows(out, op, arg, t, dtypes, access));
    if (t->count == a->x.cols && out->cols == a->x.cols) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [%lld] (last dimension of x %s)", op, arg, esp_shape_text(text, t->ndim, t->shape),
                    (long long)a->x.cols, esp_shape_text(other, x->ndim, x->shape));
}

/* One number a row of x. */
static int check_kept(const norm_args *a, float **out, const char *op, const char *arg, const esp_tensor *t, int access)
{
    TRY(esp_check(op, arg, t, F32, access));
    TRY(esp_check_dense(op, arg, t));
    if (t->count != a->x.rows) {
        return esp_fail(ESP_ESHAPE, "%s: '%s' has %lld numbers, want %lld (rows of x)", op, arg, (long long)t->count, (long long)a->x.rows);
    }
    *out = esp_tensor_at(t);
    return ESP_OK;
}

static int check_forward(norm_args *a, esp_tensor *y, esp_tensor *mean, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w,
                         const esp_tensor *b, double eps, double offset)
{
    const char *op = "layernorm";
    *a = (norm_args){.eps = eps, .offset = offset};
    TRY(esp_check_rows(&a->x, op, "x", x, FLOATS, ESP_READ));
    TRY(esp_check_rows(&a->y, op, "y", y, FLOATS, ESP_WRITE));
    TRY(esp_check_shape(op, "y", y, x->ndim, x->shape, "shape of x"));
    if (!(eps >= 0)) return esp_fail(ESP_EARG, "%s: eps is %g, want 0 or more", op, eps);
    TRY(check_side(a, &a->w, op, "w", w, x, FLOATS, ESP_READ));
    TRY(check_side(a, &a->b, op, "b", b, x, FLOATS, ESP_READ));
    if (!mean && !rstd) return ESP_OK;
    TRY(check_kept(a, &a->mean, op, "mean", mean, ESP_WRITE));
    return check_kept(a, &a->rstd, op, "rstd", rstd, ESP_WRITE);
}

static int check_backward(norm_args *a, esp_tensor *dx, esp_tensor *dw, esp_tensor *db, const esp_tensor *dy, const esp_tensor *x,
                          const esp_tensor *w, const esp_tensor *mean, const esp_tensor *rstd, double offset)
{
    const char *op = "layernorm_backward";
    esp_rows side;
    *a = (norm_args){.offset = offset};
    TRY(esp_check_rows(&a->x, op, "x", x, FLOATS, ESP_READ));
    TRY(esp_check_rows(&a->dx, op, "dx", dx, FLOATS, ESP_WRITE));
    TRY(esp_check_rows(&a->dy, op, "dy", dy, FLOATS, ESP_READ));
    TRY(esp_check_shape(op, "dx", dx, x->ndim, x->shape, "shape of x"));
    TRY(esp_check_shape(op, "dy", dy, x->ndim, x->shape, "shape of x"));
    TRY(check_side(a, &a->w, op, "w", w, x, FLOATS, ESP_READ));
    TRY(check_kept(a, &a->mean, op, "mean", mean, ESP_READ));
    TRY(check_kept(a, &a->rstd, op, "rstd", rstd, ESP_READ));
    if (!dw && !db) return ESP_OK;
    TRY(check_side(a, &side, op, "dw", dw, x, F32, ESP_WRITE));
    TRY(check_side(a, &side, op, "db", db, x, F32, ESP_WRITE));
    a->dw = esp_tensor_at(dw);
    a->db = esp_tensor_at(db);
    return ESP_OK;
}

int esp_layernorm(esp_tensor *y, esp_tensor *mean, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, const esp_tensor *b, double eps,
                  double offset)
{
    norm_args a;
    TRY(check_forward(&a, y, mean, rstd, x, w, b, eps, offset));
    return esp_backend_of(y)->layernorm(y, mean, rstd, x, w, b, eps, offset);
}

int esp_layernorm_backward(esp_tensor *dx, esp_tensor *dw, esp_tensor *db, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w,
                           const esp_tensor *mean, const esp_tensor *rstd, double offset)
{
    norm_args a;
    TRY(check_backward(&a, dx, dw, db, dy, x, w, mean, rstd, offset));
    return esp_backend_of(dx)->layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, offset);
}

/* ---- CPU ---- */

static double lane_total(const double *acc)
{
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += acc[l];
    return sum;
}

static ESP_SIMD double row_sum(const float *x, int64_t n)
{
    double acc[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) acc[l] += x[i + l];
    }
    for (int l = 0; i < n; i++, l++) acc[l] += x[i];
    return lane_total(acc);
}

static ESP_SIMD double row_square(const float *x, double mean, int64_t n)
{
    double acc[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) acc[l] += (x[i + l] - mean) * (x[i + l] - mean);
    }
    for (int l = 0; i < n; i++, l++) acc[l] += (x[i] - mean) * (x[i] - mean);
    return lane_total(acc);
}

static ESP_SIMD void norm_row(float *restrict y, const float *restrict x, const float *restrict w, const float *restrict b, float mean, float r,
                              int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * r * w[i] + b[i];
}

/* to = from + offset in f32 */
static void widen(float *to, const esp_rows *from, float offset)
{
    for (int64_t i = 0; i < from->cols; i++) {
        to[i] = (from->dtype == ESP_F32 ? ((const float *)from->data)[i] : esp_bf16_to_f32(((const uint16_t *)from->data)[i])) + offset;
    }
}

static int forward_block(void *context, int64_t block)
{
    const norm_args *a = context;
    int64_t C = a->x.cols, end = esp_min((block + 1) * ROWS, a->x.rows);
    float *w = esp_scratch(4 * C * 4);
    if (!w) return ESP_EMEM;
    float *b = w + C;
    widen(w, &a->w, (float)a->offset);
    widen(b, &a->b, 0);
    for (int64_t n = block * ROWS; n < end; n++) {
        const float *x = esp_row_in(&a->x, n, w + 2 * C);
        float *y = esp_row_at(&a->y, n, w + 3 * C);
        double mean = row_sum(x, C) / (double)C;
        float r = (float)(1 / sqrt(row_square(x, mean, C) / (double)C + a->eps));
        norm_row(y, x, w, b, (float)mean, r, C);
        esp_row_out(&a->y, n, y);
        if (a->mean) a->mean[n] = (float)mean, a->rstd[n] = r;
    }
    return ESP_OK;
}

int esp_cpu_layernorm(esp_tensor *y, esp_tensor *mean, esp_tensor *rstd, const esp_tensor *x, const esp_tensor *w, const esp_tensor *b, double eps,
                      double offset)
{
    norm_args a;
    TRY(check_forward(&a, y, mean, rstd, x, w, b, eps, offset));
    return esp_parallel(esp_ceil_div(a.x.rows, ROWS), forward_block, &a);
}

/* g = dy (w + offset), z = (x - mean) r; dx = r (g - mean(g) - z mean(g z)). g and z are rows of scratch. */
static ESP_SIMD void backward_row(float *restrict dx, float *restrict g, float *restrict z, const float *restrict dy, const float *restrict x,
                                  const float *restrict w, double *restrict sums, float mean, float r, int64_t C)
{
    double total[LANES] = {0}, product[LANES] = {0};
    int64_t i = 0;
    for (int64_t k = 0; k < C; k++) g[k] = dy[k] * w[k], z[k] = (x[k] - mean) * r;
    for (; i + LANES <= C; i += LANES) {
        for (int l = 0; l < LANES; l++) total[l] += g[i + l], product[l] += (double)g[i + l] * z[i + l];
    }
    for (int l = 0; i < C; i++, l++) total[l] += g[i], product[l] += (double)g[i] * z[i];
    float gm = (float)(lane_total(total) / (double)C), gz = (float)(lane_total(product) / (double)C);
    for (int64_t k = 0; k < C; k++) dx[k] = r * (g[k] - gm - z[k] * gz);
    if (!sums) return;
    for (int64_t k = 0; k < C; k++) sums[k] += (double)(dy[k] * z[k]);
    for (int64_t k = 0; k < C; k++) sums[C + k] += dy[k];
}

static int backward_block(void *context, int64_t block)
{
    const norm_args *a = context;
    int64_t C = a->x.cols, end = esp_min((block + 1) * ROWS, a->x.rows);
    float *w = esp_scratch(6 * C * 4);
    if (!w) return ESP_EMEM;
    widen(w, &a->w, (float)a->offset);
    for (int64_t n = block * ROWS; n < end; n++) {
        float *dx = esp_row_at(&a->dx, n, w + 3 * C);
        backward_row(dx, w + C, w + 2 * C, esp_row_in(&a->dy, n, w + 4 * C), esp_row_in(&a->x, n, w + 5 * C), w,
                     a->partial ? a->partial + block * 2 * C : NULL, a->mean[n], a->rstd[n], C);
        esp_row_out(&a->dx, n, dx);
    }
    return ESP_OK;
}

int esp_cpu_layernorm_backward(esp_tensor *dx, esp_tensor *dw, esp_tensor *db, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *w,
                               const esp_tensor *mean, const esp_tensor *rstd, double offset)
{
    norm_args a;
    TRY(check_backward(&a, dx, dw, db, dy, x, w, mean, rstd, offset));
    int64_t blocks = esp_ceil_div(a.x.rows, ROWS), C = a.x.cols;
    if (a.dw && !(a.partial = esp_calloc(blocks * 2 * C * 8))) return ESP_EMEM;
    int code = esp_parallel(blocks, backward_block, &a);
    if (a.dw && code == ESP_OK) {
        for (int64_t i = 0; i < C; i++) {
            double sums[2] = {0, 0};
            for (int64_t b = 0; b < blocks; b++) sums[0] += a.partial[b * 2 * C + i], sums[1] += a.partial[b * 2 * C + C + i];
            a.dw[i] = (float)sums[0];
            a.db[i] = (float)sums[1];
        }
    }
    esp_free(a.partial);
    return code;
}
