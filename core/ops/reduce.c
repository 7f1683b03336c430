/* Sums, maxima and norms along an axis, and totals. Sums are in double and in an order that depends on the shape alone. */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), F64 = ESP_BIT(ESP_F64), I32 = ESP_BIT(ESP_I32), ROWS = 64, BLOCK = 65536, LANES = 16 };

/* x seen as outer elements, each with n numbers `step` apart. */
typedef struct reduce_args {
    const esp_tensor *x, *y, *dx, *dy;
    int32_t *index;
    int axis;
    int64_t n, step, outer;
} reduce_args;

static int axis_shape(const char *op, const esp_tensor *x, int axis, int64_t *shape)
{
    char text[ESP_TEXT];
    if (axis < 0 || axis >= x->ndim) {
        return esp_fail(ESP_EARG, "%s: axis %d of %s, want 0 to %d", op, axis, esp_shape_text(text, x->ndim, x->shape), x->ndim - 1);
    }
    for (int d = 0, k = 0; d < x->ndim; d++) if (d != axis) shape[k++] = x->shape[d];
    return ESP_OK;
}

static int check(reduce_args *a, const char *op, const esp_tensor *y, const esp_tensor *x, unsigned dtypes, int axis, int access)
{
    int64_t shape[ESP_MAX_DIMS];
    TRY(esp_check(op, "x", x, dtypes, ESP_READ));
    TRY(axis_shape(op, x, axis, shape));
    TRY(esp_check(op, "y", y, ESP_BIT(x->dtype), access));
    TRY(esp_check_shape(op, "y", y, x->ndim - 1, shape, "shape of x without the axis"));
    *a = (reduce_args){.x = x, .y = y, .axis = axis, .n = x->shape[axis], .step = x->stride[axis], .outer = y->count};
    return ESP_OK;
}

/* Offset in t of outer element i, whose indices run over x's dimensions without the axis. with_axis: t has the axis too. */
static int64_t offset_of(const reduce_args *a, const esp_tensor *t, int64_t i, int with_axis)
{
    int64_t offset = 0;
    for (int d = a->x->ndim - 1; d >= 0; d--) {
        if (d == a->axis) continue;
        int own = with_axis || d < a->axis ? d : d - 1;
        offset += i % a->x->shape[d] * t->stride[own];
        i /= a->x->shape[d];
    }
    return offset;
}

static double load(const esp_tensor *t, int64_t offset)
{
    return t->dtype == ESP_F64 ? ((const double *)esp_tensor_at(t))[offset] : (double)((const float *)esp_tensor_at(t))[offset];
}

static void store(const esp_tensor *t, int64_t offset, double v)
{
    if (t->dtype == ESP_F64) ((double *)esp_tensor_at(t))[offset] = v;
    else ((float *)esp_tensor_at(t))[offset] = (float)v;
}

static ESP_SIMD double dense_sum(const float *x, int64_t n)
{
    double acc[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) acc[l] += (double)x[i + l];
    }
    for (int l = 0; i < n; i++, l++) acc[l] += (double)x[i];
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += acc[l];
    return sum;
}

static ESP_SIMD double dense_sumsq(const float *x, int64_t n)
{
    double acc[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) acc[l] += (double)x[i + l] * x[i + l];
    }
    for (int l = 0; i < n; i++, l++) acc[l] += (double)x[i] * x[i];
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += acc[l];
    return sum;
}

/* Sum (or sum of squares) of one outer element. */
static double line(const reduce_args *a, int64_t i, int squared)
{
    int64_t from = offset_of(a, a->x, i, 1);
    if (a->x->dtype == ESP_F32 && a->step == 1) {
        const float *x = (const float *)esp_tensor_at(a->x) + from;
        return squared ? dense_sumsq(x, a->n) : dense_sum(x, a->n);
    }
    double sum = 0;
    for (int64_t j = 0; j < a->n; j++) {
        double v = load(a->x, from + j * a->step);
        sum += squared ? v * v : v;
    }
    return sum;
}

static int64_t end_of(const reduce_args *a, int64_t block) { return esp_min((block + 1) * ROWS, a->outer); }
static int64_t blocks_of(const reduce_args *a) { return esp_ceil_div(a->outer, ROWS); }

/* ---- sum ---- */

int esp_sum(esp_tensor *y, const esp_tensor *x, int axis)
{
    reduce_args a;
    TRY(check(&a, "sum", y, x, F32 | F64, axis, ESP_WRITE));
    return esp_backend_of(y)->sum(y, x, axis);
}

static int sum_block(void *context, int64_t block)
{
    const reduce_args *a = context;
    for (int64_t i = block * ROWS; i < end_of(a, block); i++) store(a->y, offset_of(a, a->y, i, 0), line(a, i, 0));
    return ESP_OK;
}

int esp_cpu_sum(esp_tensor *y, const esp_tensor *x, int axis)
{
    reduce_args a;
    TRY(check(&a, "sum", y, x, F32 | F64, axis, ESP_WRITE));
    return esp_parallel(blocks_of(&a), sum_block, &a);
}

/* ---- max ---- */

int esp_max(esp_tensor *y, esp_tensor *index, const esp_tensor *x, int axis)
{
    reduce_args a;
    TRY(check(&a, "max", y, x, F32, axis, ESP_WRITE));
    if (a.n == 0) return esp_fail(ESP_ESHAPE, "max: axis %d of 'x' is empty", axis);
    if (index) {
        TRY(esp_check("max", "index", index, I32, ESP_WRITE));
        TRY(esp_check_shape("max", "index", index, y->ndim, y->shape, "shape of y"));
        TRY(esp_check_dense("max", "index", index));
    }
    return esp_backend_of(y)->max(y, index, x, axis);
}

static int max_block(void *context, int64_t block)
{
    const reduce_args *a = context;
    for (int64_t i = block * ROWS; i < end_of(a, block); i++) {
        const float *x = (const float *)esp_tensor_at(a->x) + offset_of(a, a->x, i, 1);
        float most = x[0];
        int64_t at = 0;
        for (int64_t j = 1; j < a->n && most == most; j++) {
            float v = x[j * a->step];
            if (v > most || v != v) most = v, at = j;
        }
        store(a->y, offset_of(a, a->y, i, 0), (double)most);
        if (a->index) a->index[i] = (int32_t)at;
    }
    return ESP_OK;
}

int esp_cpu_max(esp_tensor *y, esp_tensor *index, const esp_tensor *x, int axis)
{
    reduce_args a;
    TRY(check(&a, "max", y, x, F32, axis, ESP_WRITE));
    if (index) a.index = esp_tensor_at(index);
    return esp_parallel(blocks_of(&a), max_block, &a);
}

/* ---- norm ---- */

int esp_norm(esp_tensor *y, const esp_tensor *x, int axis)
{
    reduce_args a;
    TRY(check(&a, "norm", y, x, F32, axis, ESP_WRITE));
    return esp_backend_of(y)->norm(y, x, axis);
}

static int norm_block(void *context, int64_t block)
{
    const reduce_args *a = context;
    for (int64_t i = block * ROWS; i < end_of(a, block); i++) store(a->y, offset_of(a, a->y, i, 0), sqrt(line(a, i, 1)));
    return ESP_OK;
}

int esp_cpu_norm(esp_tensor *y, const esp_tensor *x, int axis)
{
    reduce_args a;
    TRY(check(&a, "norm", y, x, F32, axis, ESP_WRITE));
    return esp_parallel(blocks_of(&a), norm_block, &a);
}

int esp_norm_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *y, int axis)
{
    reduce_args a;
    const char *op = "norm_backward";
    TRY(check(&a, op, y, x, F32, axis, ESP_READ));
    TRY(esp_check(op, "dx", dx, F32, ESP_WRITE));
    TRY(esp_check_shape(op, "dx", dx, x->ndim, x->shape, "shape of x"));
    TRY(esp_check(op, "dy", dy, F32, ESP_READ));
    TRY(esp_check_shape(op, "dy", dy, y->ndim, y->shape, "shape of y"));
    return esp_backend_of(dx)->norm_backward(dx, dy, x, y, axis);
}

static int norm_backward_block(void *context, int64_t block)
{
    const reduce_args *a = context;
    for (int64_t i = block * ROWS; i < end_of(a, block); i++) {
        double y = load(a->y, offset_of(a, a->y, i, 0)), dy = load(a->dy, offset_of(a, a->dy, i, 0));
        int64_t from = offset_of(a, a->x, i, 1), to = offset_of(a, a->dx, i, 1);
        for (int64_t j = 0; j < a->n; j++) {
            store(a->dx, to + j * a->dx->stride[a->axis], y == 0 ? 0 : dy * load(a->x, from + j * a->step) / y);
        }
    }
    return ESP_OK;
}

int esp_cpu_norm_backward(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *x, const esp_tensor *y, int axis)
{
    reduce_args a;
    TRY(check(&a, "norm_backward", y, x, F32, axis, ESP_READ));
    a.dx = dx, a.dy = dy;
    return esp_parallel(blocks_of(&a), norm_backward_block, &a);
}

/* ---- totals ---- */

static int check_total(const char *op, const esp_tensor *total, const esp_tensor *x)
{
    TRY(esp_check(op, "total", total, F64, ESP_WRITE));
    TRY(esp_check_shape(op, "total", total, 0, NULL, "a scalar"));
    return esp_check(op, "x", x, F32, ESP_READ);
}

int esp_total_acc(esp_tensor *total, const esp_tensor *x)
{
    TRY(check_total("total_acc", total, x));
    return esp_backend_of(total)->total_acc(total, x);
}

int esp_sumsq_acc(esp_tensor *total, const esp_tensor *x)
{
    TRY(check_total("sumsq_acc", total, x));
    return esp_backend_of(total)->sumsq_acc(total, x);
}

typedef struct total_args {
    const esp_tensor *x;
    double *partial;
    int squared;
} total_args;

static int total_block(void *context, int64_t block)
{
    const total_args *a = context;
    int64_t from = block * BLOCK, end = esp_min(from + BLOCK, a->x->count);
    const float *x = esp_tensor_at(a->x);
    if (esp_is_dense(a->x)) {
        a->partial[block] = a->squared ? dense_sumsq(x + from, end - from) : dense_sum(x + from, end - from);
        return ESP_OK;
    }
    double sum = 0;
    for (int64_t i = from; i < end; i++) {
        int64_t offset = 0, rest = i;
        for (int d = a->x->ndim - 1; d >= 0; d--) {
            offset += rest % a->x->shape[d] * a->x->stride[d];
            rest /= a->x->shape[d];
        }
        sum += a->squared ? (double)x[offset] * x[offset] : (double)x[offset];
    }
    a->partial[block] = sum;
    return ESP_OK;
}

static int add_total(esp_tensor *total, const esp_tensor *x, int squared)
{
    int64_t blocks = esp_ceil_div(x->count, BLOCK);
    total_args a = {x, esp_malloc(blocks * 8), squared};
    if (!a.partial) return ESP_EMEM;
    int code = esp_parallel(blocks, total_block, &a);
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++) sum += a.partial[b];
    esp_free(a.partial);
    if (code == ESP_OK) *(double *)esp_tensor_at(total) += sum;
    return code;
}

int esp_cpu_total_acc(esp_tensor *total, const esp_tensor *x) { return add_total(total, x, 0); }
int esp_cpu_sumsq_acc(esp_tensor *total, const esp_tensor *x) { return add_total(total, x, 1); }
