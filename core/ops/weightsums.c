/* Sums of a weight matrix, or of its product with its gradient, by column or by row: what metrics ask of the weights around a channel. In double. */
#include "backend.h"
#include "rowsums.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), LINES = 16 };

typedef struct weight_args {
    double *stats;
    esp_tensor w, g;                      /* [1, O, I]; g only of products */
} weight_args;

/* ---- checks ---- */

static int check_matrix(const char *op, const char *arg, const esp_tensor *w)
{
    char text[ESP_TEXT];
    TRY(esp_check(op, arg, w, FLOATS, ESP_READ));
    if (w->ndim != 2) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [outputs, inputs]", op, arg, esp_shape_text(text, w->ndim, w->shape));
    return esp_check_last_dense(op, arg, w);
}

static int check_axis(const char *op, int axis)
{
    return axis == 0 || axis == 1 ? ESP_OK : esp_fail(ESP_EARG, "%s: axis %d, want 0 or 1", op, axis);
}

int esp_weight_sums_acc(esp_tensor *stats, const esp_tensor *w, int axis)
{
    const char *op = "weight_sums_acc";
    TRY(check_matrix(op, "w", w));
    TRY(check_axis(op, axis));
    int64_t want[] = {2, w->shape[1 - axis]};
    TRY(esp_check_stats(op, stats, 2, want, "two sums for each column or row of w"));
    return esp_backend_of(stats)->weight_sums_acc(stats, w, axis);
}

int esp_weight_products_acc(esp_tensor *sums, const esp_tensor *w, const esp_tensor *g, int axis)
{
    const char *op = "weight_products_acc";
    TRY(check_matrix(op, "w", w));
    TRY(check_matrix(op, "g", g));
    TRY(esp_check_shape(op, "g", g, 2, w->shape, "shape of w"));
    TRY(check_axis(op, axis));
    TRY(esp_check_stats(op, sums, 1, w->shape + 1 - axis, "a sum for each column or row of w"));
    return esp_backend_of(sums)->weight_products_acc(sums, w, g, axis);
}

/* ---- columns are channels whose positions are the rows ---- */

static ESP_SIMD void multiply(float *restrict y, const float *a, const float *b, int64_t n) { for (int64_t i = 0; i < n; i++) y[i] = a[i] * b[i]; }

/* n rows from o on, `width` columns from c on, of w or of the products; room for twice as many numbers. */
static const float *tile(const weight_args *a, int64_t o, int64_t n, int64_t c, int64_t width, float *room, int64_t *step)
{
    const float *w = esp_row_tile(&a->w, 0, o, n, c, width, room, step);
    if (!a->g.storage) return w;
    int64_t g_step;
    const float *g = esp_row_tile(&a->g, 0, o, n, c, width, room + n * width, &g_step);
    for (int64_t i = 0; i < n; i++) multiply(room + i * width, w + i * *step, g + i * g_step, width);
    *step = width;
    return room;
}

static int fill(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    int64_t most = esp_row_tile_positions(s->units), step;
    float *room = esp_scratch(2 * most * s->units * 4);
    if (!room) return ESP_EMEM;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t n = esp_min(most, s->positions - t);
        const float *x = tile(r->context, s->t + t, n, s->u, s->units, room, &step);
        esp_sums_across(sum, s->units, x, step, n, s->units);
    }
    return ESP_OK;
}

static void fold(const esp_row_sums *r, int64_t row, double count, int64_t u, int64_t n, const double *sum)
{
    (void)row, (void)count;
    const weight_args *a = r->context;
    for (int64_t i = 0; i < n; i++) a->stats[u + i] += sum[i];
    if (!a->g.storage) for (int64_t i = 0; i < n; i++) a->stats[r->units + u + i] += sum[2 * n + i];
}

/* ---- rows ---- */

static int line_block(void *context, int64_t block)
{
    const weight_args *a = context;
    int64_t O = a->w.shape[1], I = a->w.shape[2], step;
    float *room = esp_scratch(2 * esp_max_of(1, I) * 4);
    if (!room) return ESP_EMEM;
    for (int64_t o = block * LINES; o < esp_min((block + 1) * LINES, O); o++) {
        double sum[ESP_ROW_SUMS] = {0};
        esp_sums_along(sum, 1, tile(a, o, 1, 0, I, room, &step), I);
        a->stats[o] += sum[0];
        if (!a->g.storage) a->stats[O + o] += sum[2];
    }
    return ESP_OK;
}

/* ---- both ---- */

static esp_tensor as_row(const esp_tensor *w)
{
    esp_tensor x = *w;
    x.ndim = 3;
    for (int d = 2; d > 0; d--) x.shape[d] = w->shape[d - 1], x.stride[d] = w->stride[d - 1];
    x.shape[0] = 1, x.stride[0] = 0;
    return x;
}

static int run(weight_args *a, int axis)
{
    if (axis == 1) return esp_parallel(esp_ceil_div(a->w.shape[1], LINES), line_block, a);
    esp_row_sums r = {.rows = 1, .positions = a->w.shape[1], .units = a->w.shape[2], .width = 1, .fill = fill, .fold = fold, .context = a};
    return esp_row_sums_run(&r);
}

int esp_cpu_weight_sums_acc(esp_tensor *stats, const esp_tensor *w, int axis)
{
    weight_args a = {.stats = esp_tensor_at(stats), .w = as_row(w)};
    return run(&a, axis);
}

int esp_cpu_weight_products_acc(esp_tensor *sums, const esp_tensor *w, const esp_tensor *g, int axis)
{
    weight_args a = {.stats = esp_tensor_at(sums), .w = as_row(w), .g = as_row(g)};
    return run(&a, axis);
}
