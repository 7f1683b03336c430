/* Sums of a weight matrix by column or by row: what metrics ask of the weights around a channel. In double. */
#include "backend.h"
#include "rowsums.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), LINES = 16 };

typedef struct weight_args {
    double *stats;
    esp_tensor w;                         /* [1, O, I] */
} weight_args;

int esp_weight_sums_acc(esp_tensor *stats, const esp_tensor *w, int axis)
{
    const char *op = "weight_sums_acc";
    char text[ESP_TEXT];
    TRY(esp_check(op, "w", w, FLOATS, ESP_READ));
    if (w->ndim != 2) return esp_fail(ESP_ESHAPE, "%s: 'w' is %s, want [outputs, inputs]", op, esp_shape_text(text, w->ndim, w->shape));
    TRY(esp_check_last_dense(op, "w", w));
    if (axis != 0 && axis != 1) return esp_fail(ESP_EARG, "%s: axis %d, want 0 or 1", op, axis);
    int64_t want[] = {2, w->shape[1 - axis]};
    TRY(esp_check_stats(op, stats, 2, want, "two sums for each column or row of w"));
    return esp_backend_of(stats)->weight_sums_acc(stats, w, axis);
}

/* Columns are channels whose positions are the rows. */
static int fill(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const weight_args *a = r->context;
    int64_t most = esp_row_tile_positions(s->units), step;
    float *room = esp_scratch(most * s->units * 4);
    if (!room) return ESP_EMEM;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t n = esp_min(most, s->positions - t);
        const float *x = esp_row_tile(&a->w, 0, s->t + t, n, s->u, s->units, room, &step);
        esp_sums_across(sum, s->units, x, step, n, s->units);
    }
    return ESP_OK;
}

static void fold(const esp_row_sums *r, int64_t row, double count, int64_t u, int64_t n, const double *sum)
{
    (void)row, (void)count;
    const weight_args *a = r->context;
    for (int64_t i = 0; i < n; i++) a->stats[u + i] += sum[i], a->stats[r->units + u + i] += sum[2 * n + i];
}

static int line_block(void *context, int64_t block)
{
    const weight_args *a = context;
    int64_t O = a->w.shape[1], I = a->w.shape[2], step;
    float *room = esp_scratch(esp_max_of(1, I) * 4);
    if (!room) return ESP_EMEM;
    for (int64_t o = block * LINES; o < esp_min((block + 1) * LINES, O); o++) {
        double sum[ESP_ROW_SUMS] = {0};
        esp_sums_along(sum, 1, esp_row_tile(&a->w, 0, o, 1, 0, I, room, &step), I);
        a->stats[o] += sum[0], a->stats[O + o] += sum[2];
    }
    return ESP_OK;
}

int esp_cpu_weight_sums_acc(esp_tensor *stats, const esp_tensor *w, int axis)
{
    weight_args a = {.stats = esp_tensor_at(stats), .w = *w};
    a.w.ndim = 3;
    for (int d = 2; d > 0; d--) a.w.shape[d] = w->shape[d - 1], a.w.stride[d] = w->stride[d - 1];
    a.w.shape[0] = 1, a.w.stride[0] = 0;
    if (axis == 1) return esp_parallel(esp_ceil_div(w->shape[0], LINES), line_block, &a);
    esp_row_sums r = {.rows = 1, .positions = w->shape[0], .units = w->shape[1], .width = 1, .fill = fill, .fold = fold, .context = &a};
    return esp_row_sums_run(&r);
}
