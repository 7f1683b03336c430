/* Gather, its gradient, top-k and argsort, all along the last dimension. */
#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), F64 = ESP_BIT(ESP_F64), I32 = ESP_BIT(ESP_I32) };

typedef struct index_args {
    esp_rows x, y, index;
    int descending;
} index_args;

static float *row(const esp_rows *r, int64_t n) { return (float *)r->data + n * r->stride; }
static int32_t *ids(const esp_rows *r, int64_t n) { return (int32_t *)r->data + n * r->stride; }

/* y and index of one shape; x with the same leading dimensions. */
static int check(index_args *a, const char *op, const esp_tensor *y, const char *yn, int y_access, const esp_tensor *x, const char *xn, int x_access,
                 const esp_tensor *index, int index_access)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(esp_check_rows(&a->x, op, xn, x, F32, x_access));
    TRY(esp_check_rows(&a->y, op, yn, y, F32, y_access));
    TRY(esp_check_rows(&a->index, op, "index", index, I32, index_access));
    TRY(esp_check_shape(op, "index", index, y->ndim, y->shape, "shape of the values"));
    int same = x->ndim == y->ndim && x->ndim > 0;
    for (int d = 0; same && d < x->ndim - 1; d++) same = x->shape[d] == y->shape[d];
    if (same) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: '%s' is %s and '%s' %s, want the same but for the last dimension", op, yn, esp_shape_text(text, y->ndim, y->shape),
                    xn, esp_shape_text(other, x->ndim, x->shape));
}

static int check_indices(const index_args *a, const char *op)
{
    for (int64_t n = 0; n < a->index.rows; n++) {
        for (int64_t i = 0; i < a->index.cols; i++) {
            int32_t at = ids(&a->index, n)[i];
            if (at < 0 || at >= a->x.cols) {
                return esp_fail(ESP_EARG, "%s: index %d in row %lld, want 0 to %lld", op, at, (long long)n, (long long)a->x.cols - 1);
            }
        }
    }
    return ESP_OK;
}

int esp_gather(esp_tensor *y, const esp_tensor *x, const esp_tensor *index)
{
    index_args a;
    TRY(check(&a, "gather", y, "y", ESP_WRITE, x, "x", ESP_READ, index, ESP_READ));
    TRY(check_indices(&a, "gather"));
    return esp_backend_of(y)->gather(y, x, index);
}

int esp_cpu_gather(esp_tensor *y, const esp_tensor *x, const esp_tensor *index)
{
    index_args a;
    TRY(check(&a, "gather", y, "y", ESP_WRITE, x, "x", ESP_READ, index, ESP_READ));
    for (int64_t n = 0; n < a.y.rows; n++) {
        for (int64_t i = 0; i < a.y.cols; i++) row(&a.y, n)[i] = row(&a.x, n)[ids(&a.index, n)[i]];
    }
    return ESP_OK;
}

int esp_scatter_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *index)
{
    index_args a;
    TRY(check(&a, "scatter_acc", dy, "dy", ESP_READ, dx, "dx", ESP_WRITE, index, ESP_READ));
    TRY(check_indices(&a, "scatter_acc"));
    return esp_backend_of(dx)->scatter_acc(dx, dy, index);
}

int esp_cpu_scatter_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *index)
{
    index_args a;
    TRY(check(&a, "scatter_acc", dy, "dy", ESP_READ, dx, "dx", ESP_WRITE, index, ESP_READ));
    for (int64_t n = 0; n < a.y.rows; n++) {
        for (int64_t i = 0; i < a.y.cols; i++) row(&a.x, n)[ids(&a.index, n)[i]] += row(&a.y, n)[i];
    }
    return ESP_OK;
}

/* ---- topk: a heap of the K best, its worst on top ---- */

int esp_topk(esp_tensor *y, esp_tensor *index, const esp_tensor *x)
{
    index_args a;
    TRY(check(&a, "topk", y, "y", ESP_WRITE, x, "x", ESP_READ, index, ESP_WRITE));
    if (a.y.cols > a.x.cols) {
        return esp_fail(ESP_ESHAPE, "topk: %lld asked for, the last dimension of 'x' has %lld", (long long)a.y.cols, (long long)a.x.cols);
    }
    return esp_backend_of(y)->topk(y, index, x);
}

/* a stands before b in the answer: larger first (NaN is largest), ties to the lower index. */
static int before(float a, int32_t ia, float b, int32_t ib)
{
    if (a != a || b != b) return a != a && (b == b || ia < ib);
    return a > b || (a == b && ia < ib);
}

static void sift(float *v, int32_t *at, int64_t n, int64_t i)
{
    for (;;) {
        int64_t worst = i;
        for (int64_t c = 2 * i + 1; c <= 2 * i + 2 && c < n; c++) {
            if (before(v[worst], at[worst], v[c], at[c])) worst = c;
        }
        if (worst == i) return;
        float fv = v[i];
        int32_t fi = at[i];
        v[i] = v[worst], at[i] = at[worst];
        v[worst] = fv, at[worst] = fi;
        i = worst;
    }
}

static int topk_block(void *context, int64_t n)
{
    const index_args *a = context;
    int64_t K = a->y.cols;
    const float *x = row(&a->x, n);
    float *v = row(&a->y, n);
    int32_t *at = ids(&a->index, n);
    for (int64_t i = 0; i < K; i++) v[i] = x[i], at[i] = (int32_t)i;
    for (int64_t i = K / 2 - 1; i >= 0; i--) sift(v, at, K, i);
    for (int64_t i = K; K > 0 && i < a->x.cols; i++) {
        if (!before(x[i], (int32_t)i, v[0], at[0])) continue;
        v[0] = x[i], at[0] = (int32_t)i;
        sift(v, at, K, 0);
    }
    /* Taking the worst off again and again leaves them in order, best first. */
    for (int64_t end = K - 1; end > 0; end--) {
        float fv = v[0];
        int32_t fi = at[0];
        v[0] = v[end], at[0] = at[end];
        v[end] = fv, at[end] = fi;
        sift(v, at, end, 0);
    }
    return ESP_OK;
}

int esp_cpu_topk(esp_tensor *y, esp_tensor *index, const esp_tensor *x)
{
    index_args a;
    TRY(check(&a, "topk", y, "y", ESP_WRITE, x, "x", ESP_READ, index, ESP_WRITE));
    return esp_parallel(a.y.rows, topk_block, &a);
}

/* ---- argsort: merge sort, so ties stay in order ---- */

static int check_sort(index_args *a, esp_tensor *index, const esp_tensor *x)
{
    TRY(esp_check_rows(&a->x, "argsort", "x", x, F32 | F64, ESP_READ));
    TRY(esp_check_rows(&a->index, "argsort", "index", index, I32, ESP_WRITE));
    return esp_check_shape("argsort", "index", index, x->ndim, x->shape, "shape of x");
}

int esp_argsort(esp_tensor *index, const esp_tensor *x, int descending)
{
    index_args a;
    TRY(check_sort(&a, index, x));
    return esp_backend_of(index)->argsort(index, x, descending);
}

static double value(const index_args *a, int64_t n, int32_t i)
{
    return a->x.dtype == ESP_F64 ? ((const double *)a->x.data + n * a->x.stride)[i] : (double)row(&a->x, n)[i];
}

/* Does b have to stand before a? (a comes first otherwise, which keeps ties in order.) */
static int out_of_order(const index_args *a, double u, double v)
{
    if (u != u) return v == v;
    return a->descending ? v > u : v < u;
}

static int sort_block(void *context, int64_t n)
{
    const index_args *a = context;
    int64_t N = a->x.cols;
    int32_t *at = ids(&a->index, n), *other = esp_scratch(N * 4), *from = at, *to = other;
    if (!other) return ESP_EMEM;
    for (int64_t i = 0; i < N; i++) at[i] = (int32_t)i;
    for (int64_t width = 1; width < N; width *= 2) {
        for (int64_t lo = 0; lo < N; lo += 2 * width) {
            int64_t mid = esp_min(lo + width, N), hi = esp_min(lo + 2 * width, N), l = lo, r = mid;
            for (int64_t k = lo; k < hi; k++) {
                int right = l >= mid || (r < hi && out_of_order(a, value(a, n, from[l]), value(a, n, from[r])));
                to[k] = right ? from[r++] : from[l++];
            }
        }
        int32_t *swap = from;
        from = to, to = swap;
    }
    if (from != at) memcpy(at, from, (size_t)N * 4);
    return ESP_OK;
}

int esp_cpu_argsort(esp_tensor *index, const esp_tensor *x, int descending)
{
    index_args a;
    TRY(check_sort(&a, index, x));
    a.descending = descending;
    return esp_parallel(a.x.rows, sort_block, &a);
}
