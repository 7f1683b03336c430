/* Softmax, log-softmax and cross-entropy over the last dimension. */
#include "backend.h"
#include "lanes.h"

enum { F32 = ESP_BIT(ESP_F32), I32 = ESP_BIT(ESP_I32) };

typedef struct softmax_args {
    esp_rows x, y, dy, ds;
    const int32_t *target;
    const float *weight;
    float *loss;
    int has_ds, accumulate, logs;
    int64_t rows_per_block;
} softmax_args;

static float *row(const esp_rows *r, int64_t n) { return (float *)r->data + n * r->stride; }

static int64_t blocks_of(softmax_args *a)
{
    a->rows_per_block = esp_max_of(1, 16384 / esp_max_of(1, a->x.cols));
    return esp_ceil_div(a->x.rows, a->rows_per_block);
}

/* ---- softmax and its logarithm ---- */

static int check_pair(softmax_args *a, const char *op, esp_tensor *y, const esp_tensor *x)
{
    TRY(esp_check_rows(&a->x, op, "x", x, F32, ESP_READ));
    TRY(esp_check_rows(&a->y, op, "y", y, F32, ESP_WRITE));
    TRY(esp_check_shape(op, "y", y, x->ndim, x->shape, "shape of x"));
    return ESP_OK;
}

static ESP_SIMD void softmax_row(float *y, const float *x, int64_t n)
{
    float most = esp_lane_max(x, n);
    float inverse = (float)(1 / esp_lane_sum_exp(x, most, 1, n));
    for (int64_t i = 0; i < n; i++) y[i] = esp_shifted_exp(x[i], most, 1) * inverse;
}

static ESP_SIMD void log_softmax_row(float *y, const float *x, int64_t n)
{
    float most = esp_lane_max(x, n);
    float log_sum = (float)log(esp_lane_sum_exp(x, most, 1, n));
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - most - log_sum;
}

static int softmax_block(void *context, int64_t block)
{
    const softmax_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        if (a->logs) log_softmax_row(row(&a->y, n), row(&a->x, n), a->x.cols);
        else softmax_row(row(&a->y, n), row(&a->x, n), a->x.cols);
    }
    return ESP_OK;
}

int esp_softmax(esp_tensor *y, const esp_tensor *x)
{
    softmax_args a;
    TRY(check_pair(&a, "softmax", y, x));
    return esp_backend_of(y)->softmax(y, x);
}

int esp_cpu_softmax(esp_tensor *y, const esp_tensor *x)
{
    softmax_args a = {0};
    TRY(check_pair(&a, "softmax", y, x));
    return esp_parallel(blocks_of(&a), softmax_block, &a);
}

int esp_log_softmax(esp_tensor *y, const esp_tensor *x)
{
    softmax_args a;
    TRY(check_pair(&a, "log_softmax", y, x));
    return esp_backend_of(y)->log_softmax(y, x);
}

int esp_cpu_log_softmax(esp_tensor *y, const esp_tensor *x)
{
    softmax_args a = {.logs = 1};
    TRY(check_pair(&a, "log_softmax", y, x));
    return esp_parallel(blocks_of(&a), softmax_block, &a);
}

static int check_backward(softmax_args *a, esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y)
{
    const char *op = "log_softmax_backward";
    TRY(esp_check_rows(&a->y, op, "y", y, F32, ESP_READ));
    TRY(esp_check_rows(&a->dy, op, "dy", dy, F32, ESP_READ));
    TRY(esp_check_rows(&a->x, op, "dx", dx, F32, ESP_WRITE));
    TRY(esp_check_shape(op, "dy", dy, y->ndim, y->shape, "shape of y"));
    return esp_check_shape(op, "dx", dx, y->ndim, y->shape, "shape of y");
}

int esp_log_softmax_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y)
{
    softmax_args a;
    TRY(check_backward(&a, dx, dy, y));
    return esp_backend_of(dx)->log_softmax_backward(dx, dy, y);
}

static ESP_SIMD void backward_row(float *restrict dx, const float *restrict dy, const float *restrict y, int64_t n)
{
    double acc[ESP_LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + ESP_LANES <= n; i += ESP_LANES) {
        for (int l = 0; l < ESP_LANES; l++) acc[l] += (double)dy[i + l];
    }
    for (int l = 0; i < n; i++, l++) acc[l] += (double)dy[i];
    for (int l = 0; l < ESP_LANES; l++) sum += acc[l];
    float s = (float)sum;
    for (i = 0; i < n; i++) dx[i] = dy[i] - esp_shifted_exp(y[i], 0, 1) * s;
}

static int backward_block(void *context, int64_t block)
{
    const softmax_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) backward_row(row(&a->x, n), row(&a->dy, n), row(&a->y, n), a->x.cols);
    return ESP_OK;
}

int esp_cpu_log_softmax_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y)
{
    softmax_args a = {0};
    TRY(check_backward(&a, dx, dy, y));
    return esp_parallel(blocks_of(&a), backward_block, &a);
}

/* ---- cross-entropy ---- */

/* A dense vector of one entry for each row of s. */
static int check_vector(const char *op, const char *arg, const esp_tensor *t, unsigned dtype, int access, int64_t rows)
{
    TRY(esp_check(op, arg, t, dtype, access));
    TRY(esp_check_dense(op, arg, t));
    if (t->count == rows) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: '%s' has %lld entries, want %lld (rows of s)", op, arg, (long long)t->count, (long long)rows);
}

static int check_entropy(softmax_args *a, const char *op, esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target,
                         const esp_tensor *weight)
{
    *a = (softmax_args){0};
    TRY(esp_check_rows(&a->x, op, "s", s, F32, ESP_READ));
    TRY(check_vector(op, "loss", loss, F32, ESP_WRITE, a->x.rows));
    TRY(check_vector(op, "target", target, I32, ESP_READ, a->x.rows));
    TRY(check_vector(op, "weight", weight, F32, ESP_READ, a->x.rows));
    a->loss = esp_tensor_at(loss), a->target = esp_tensor_at(target), a->weight = esp_tensor_at(weight);
    for (int64_t n = 0; n < a->x.rows; n++) {
        if (a->target[n] < -1 || a->target[n] >= a->x.cols) {
            return esp_fail(ESP_EARG, "%s: target %d in row %lld, want 0 to %lld, or -1 to leave the row out", op, a->target[n], (long long)n,
                            (long long)a->x.cols - 1);
        }
    }
    if (!ds) return ESP_OK;
    a->has_ds = 1;
    TRY(esp_check_rows(&a->ds, op, "ds", ds, F32, ESP_WRITE));
    return esp_check_shape(op, "ds", ds, s->ndim, s->shape, "shape of s");
}

int esp_cross_entropy(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target, const esp_tensor *weight)
{
    softmax_args a;
    TRY(check_entropy(&a, "cross_entropy", loss, ds, s, target, weight));
    return esp_backend_of(loss)->cross_entropy(loss, ds, s, target, weight);
}

int esp_cross_entropy_acc(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target, const esp_tensor *weight)
{
    softmax_args a;
    TRY(check_entropy(&a, "cross_entropy_acc", loss, ds, s, target, weight));
    return esp_backend_of(loss)->cross_entropy_acc(loss, ds, s, target, weight);
}

/* ds (+)= softmax * w, and -w more at the target. */
static ESP_SIMD void entropy_gradient(float *ds, const float *s, float most, float scale, int accumulate, int64_t n)
{
    if (accumulate) for (int64_t i = 0; i < n; i++) ds[i] += esp_shifted_exp(s[i], most, 1) * scale;
    else for (int64_t i = 0; i < n; i++) ds[i] = esp_shifted_exp(s[i], most, 1) * scale;
}

static ESP_SIMD double sum_exp_row(const float *s, float most, int64_t n)
{
    return esp_lane_sum_exp(s, most, 1, n);
}

static ESP_SIMD float max_row(const float *s, int64_t n)
{
    return esp_lane_max(s, n);
}

static void entropy_row(const softmax_args *a, int64_t n)
{
    const float *s = row(&a->x, n);
    float *ds = a->has_ds ? row(&a->ds, n) : NULL;
    int64_t V = a->x.cols;
    int32_t target = a->target[n];
    float w = a->weight[n];
    a->loss[n] = 0;
    if (target < 0 || w == 0) {
        if (ds && !a->accumulate) memset(ds, 0, (size_t)V * 4);
        return;
    }
    float most = max_row(s, V);
    double sum = sum_exp_row(s, most, V);
    a->loss[n] = (float)(w * (log(sum) + ((double)most - (double)s[target])));
    if (!ds) return;
    entropy_gradient(ds, s, most, (float)(w / sum), a->accumulate, V);
    ds[target] -= w;
}

static int entropy_block(void *context, int64_t block)
{
    const softmax_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) entropy_row(a, n);
    return ESP_OK;
}

int esp_cpu_cross_entropy(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target, const esp_tensor *weight)
{
    softmax_args a;
    TRY(check_entropy(&a, "cross_entropy", loss, ds, s, target, weight));
    return esp_parallel(blocks_of(&a), entropy_block, &a);
}

int esp_cpu_cross_entropy_acc(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *target, const esp_tensor *weight)
{
    softmax_args a;
    TRY(check_entropy(&a, "cross_entropy_acc", loss, ds, s, target, weight));
    a.accumulate = 1;
    return esp_parallel(blocks_of(&a), entropy_block, &a);
}
