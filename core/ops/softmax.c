/* Softmax, log-softmax and cross-entropy over the last dimension. */
#include <math.h>

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
    const esp_lanes *lanes;
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
    return esp_lanes_of(&a->lanes);
}

/* Sums of a row, its spans' in part[]; exponentials go to e (NULL: nowhere; may be x). */
static esp_span sums_of(const softmax_args *a, esp_span *part, float *e, const float *x)
{
    int64_t parts = 0;
    for (int64_t from = 0; from < a->x.cols; from += ESP_SPAN, parts++) {
        a->lanes->sums(&part[parts], e ? e + from : NULL, x + from, 1, esp_min(ESP_SPAN, a->x.cols - from));
    }
    return esp_row_of(part, parts, 1);
}

/* Exponentials e of a row become y = e by / what they add up to, relative to the row's maximum; y may be e. accumulate: y += that. */
static void share_out(const softmax_args *a, float *y, const float *e, const esp_span *part, const esp_span *row, double by, int accumulate)
{
    for (int64_t from = 0, k = 0; from < a->x.cols; from += ESP_SPAN, k++) {
        float factor = (float)(by / row->sum * part[k].worth);
        (accumulate ? a->lanes->scale_acc : a->lanes->scale)(y + from, e + from, e + from, factor, 0, esp_min(ESP_SPAN, a->x.cols - from));
    }
}

/* Room for the spans of a row and, where wanted, for its exponentials. */
static esp_span *room_of(const softmax_args *a, float **e)
{
    int64_t parts = esp_ceil_div(a->x.cols, ESP_SPAN);
    char *room = esp_scratch(parts * (int64_t)sizeof(esp_span) + (e ? a->x.cols * 4 : 0));
    if (room && e) *e = (float *)(void *)(room + parts * (int64_t)sizeof(esp_span));
    return (esp_span *)(void *)room;
}

static int softmax_block(void *context, int64_t block)
{
    const softmax_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    esp_span *part = room_of(a, NULL);
    if (!part) return ESP_EMEM;
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        float *y = row(&a->y, n), *x = row(&a->x, n);
        esp_span all = sums_of(a, part, a->logs ? NULL : y, x);
        if (a->logs) a->lanes->less(y, x, all.most, (float)log(all.sum), a->x.cols);
        else share_out(a, y, y, part, &all, 1, 0);
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
    TRY(esp_lanes_of(&a->lanes));
    return esp_check_shape(op, "dx", dx, y->ndim, y->shape, "shape of y");
}

int esp_log_softmax_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *y)
{
    softmax_args a;
    TRY(check_backward(&a, dx, dy, y));
    return esp_backend_of(dx)->log_softmax_backward(dx, dy, y);
}

static ESP_SIMD float sum_row(const float *x, int64_t n)
{
    double acc[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; l++) acc[l] += (double)x[i + l];
    }
    for (int l = 0; i < n; i++, l++) acc[l] += (double)x[i];
    for (int l = 0; l < 16; l++) sum += acc[l];
    return (float)sum;
}

static int backward_block(void *context, int64_t block)
{
    const softmax_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        const float *dy = row(&a->dy, n);
        a->lanes->less_exp(row(&a->x, n), dy, row(&a->y, n), sum_row(dy, a->x.cols), a->x.cols);
    }
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
    TRY(esp_lanes_of(&a->lanes));
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
static void entropy_row(const softmax_args *a, int64_t n, esp_span *part, float *e)
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
    double at = s[target];
    if (ds && !a->accumulate) e = ds;
    esp_span all = sums_of(a, part, e, s);
    a->loss[n] = (float)(w * (log(all.sum) + ((double)all.most - at)));
    if (!ds) return;
    share_out(a, ds, e, part, &all, w, a->accumulate);
    ds[target] -= w;
}

static int entropy_block(void *context, int64_t block)
{
    const softmax_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows);
    float *e = NULL;
    esp_span *part = room_of(a, a->accumulate ? &e : NULL);
    if (!part) return ESP_EMEM;
    for (int64_t n = block * a->rows_per_block; n < end; n++) entropy_row(a, n, part, e);
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
