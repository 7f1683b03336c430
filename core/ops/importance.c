/* Statistics of activations by channel or unit: sums from which every aggregation is read off later, without the model.
 *
 * Rows of the data are told apart by parity, so that the two halves of a calibration set can be asked the same question. */
#include <math.h>

#include "../formula.h"
#include "backend.h"
#include "rowsums.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), STATS = 8, PRODUCT_POSITIONS = 128 };

/* One call: the sums, the activation x, and what is made of it before it is summed. */
typedef struct stats_args {
    double *stats;
    const esp_tensor *x;
    const float *root;                    /* [units, width, width] */
    int64_t first, units;
    int kind;                             /* of activation */
    int64_t turning;                      /* channels of a head that turn */
} stats_args;

/* ---- from a row's sums to statistics ---- */

/* Sums of |x|, x, x^2 over `count` positions for n channels; stats are C apart. */
static ESP_SIMD void add_row(double *restrict stats, int64_t C, const double *restrict absolute, const double *restrict plain,
                             const double *restrict square, double count, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double mean = absolute[i] / count, centre = plain[i] / count, var = square[i] / count - centre * centre;
        /* Rounding may leave a tiny negative; NaN stays NaN. */
        var = var < 0 ? 0 : var;
        stats[i] += mean;
        stats[C + i] += mean * mean;
        stats[2 * C + i] += sqrt(square[i]);
        stats[3 * C + i] += square[i];
        stats[4 * C + i] += var;
        stats[5 * C + i] += var * var;
        stats[6 * C + i] += plain[i];
        stats[7 * C + i] += absolute[i];
    }
}

static void fold(const esp_row_sums *r, int64_t row, double count, int64_t u, int64_t n, const double *sum)
{
    const stats_args *a = r->context;
    add_row(a->stats + ((a->first + row) & 1) * STATS * r->units + u, r->units, sum, sum + n, sum + 2 * n, count, n);
}

/* What every statistic of this file checks: x as sites are, and [2,8,units] sums. */
static int check_units(const char *op, const esp_tensor *stats, const esp_tensor *x, int64_t units, const esp_tensor *lengths)
{
    int64_t want[] = {2, STATS, units};
    TRY(esp_check_stats(op, stats, 3, want, "two halves of eight sums for each channel or unit of x"));
    return esp_check_lengths(op, lengths, x->shape[0], x->shape[1]);
}

static int run(stats_args *a, esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t units, int64_t width,
               int (*fill)(const esp_row_sums *, const esp_stretch_of_row *, double *))
{
    a->stats = esp_tensor_at(stats), a->x = x, a->units = units;
    esp_row_sums r = {.rows = x->shape[0], .positions = x->shape[1], .units = units, .width = width, .fill = fill, .fold = fold, .context = a,
                      .lengths = lengths ? esp_tensor_at(lengths) : NULL};
    return esp_row_sums_run(&r);
}

/* ---- channels ---- */

int esp_channel_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)
{
    const char *op = "channel_stats_acc";
    TRY(esp_check_sites(op, "x", x));
    TRY(check_units(op, stats, x, x->shape[2], lengths));
    return esp_backend_of(stats)->channel_stats_acc(stats, x, lengths, first);
}

static int fill_channels(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const stats_args *a = r->context;
    /* f32 is read where it stands. */
    int64_t most = a->x->dtype == ESP_F32 ? s->positions : esp_row_tile_positions(s->units), step;
    float *room = esp_scratch(a->x->dtype == ESP_F32 ? 64 : most * s->units * 4);
    if (!room) return ESP_EMEM;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t n = esp_min(most, s->positions - t);
        const float *x = esp_row_tile(a->x, s->row, s->t + t, n, s->u, s->units, room, &step);
        esp_sums_across(sum, s->units, x, step, n, s->units);
    }
    return ESP_OK;
}

int esp_cpu_channel_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)
{
    stats_args a = {.first = first};
    return run(&a, stats, x, lengths, x->shape[2], 1, fill_channels);
}

/* ---- channels behind an activation ---- */

int esp_activation_stats_acc(esp_tensor *stats, const esp_tensor *x, int kind, const esp_tensor *lengths, int64_t first)
{
    const char *op = "activation_stats_acc";
    TRY(esp_check_sites(op, "x", x));
    TRY(check_units(op, stats, x, x->shape[2], lengths));
    if (kind < ESP_SILU || kind > ESP_RELU2) return esp_fail(ESP_EARG, "%s: kind is %d, want one of esp_activation", op, kind);
    return esp_backend_of(stats)->activation_stats_acc(stats, x, kind, lengths, first);
}

static ESP_SIMD void silu(float *y, const float *x, int64_t n) { for (int64_t i = 0; i < n; i++) y[i] = esp_silu(x[i]); }
static ESP_SIMD void gelu_tanh(float *y, const float *x, int64_t n) { for (int64_t i = 0; i < n; i++) y[i] = esp_gelu_tanh(x[i]); }
static ESP_SIMD void relu2(float *y, const float *x, int64_t n) { for (int64_t i = 0; i < n; i++) y[i] = esp_relu2(x[i]); }

static void (*const activations[])(float *, const float *, int64_t) = {[ESP_SILU] = silu, [ESP_GELU_TANH] = gelu_tanh, [ESP_RELU2] = relu2};

static int fill_activation(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const stats_args *a = r->context;
    int64_t most = esp_row_tile_positions(s->units), n = s->units, step;
    float *room = esp_scratch(2 * most * n * 4);
    if (!room) return ESP_EMEM;
    float *y = room + most * n;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t positions = esp_min(most, s->positions - t);
        const float *x = esp_row_tile(a->x, s->row, s->t + t, positions, s->u, n, room, &step);
        for (int64_t p = 0; p < positions; p++) activations[a->kind](y + p * n, x + p * step, n);
        esp_sums_across(sum, n, y, n, positions, n);
    }
    return ESP_OK;
}

int esp_cpu_activation_stats_acc(esp_tensor *stats, const esp_tensor *x, int kind, const esp_tensor *lengths, int64_t first)
{
    stats_args a = {.first = first, .kind = kind};
    return run(&a, stats, x, lengths, x->shape[2], 1, fill_activation);
}

/* ---- lengths of units ---- */

int esp_unit_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *root, int64_t width, const esp_tensor *lengths, int64_t first)
{
    const char *op = "unit_stats_acc";
    TRY(esp_check_sites(op, "x", x));
    if (width < 1 || x->shape[2] % width != 0) {
        return esp_fail(ESP_EARG, "%s: width %lld does not divide the %lld channels of 'x'", op, (long long)width, (long long)x->shape[2]);
    }
    int64_t want[] = {x->shape[2] / width, width, width};
    if (root) {
        TRY(esp_check(op, "root", root, F32, ESP_READ));
        TRY(esp_check_shape(op, "root", root, 3, want, "a square matrix for each unit of x"));
        TRY(esp_check_dense(op, "root", root));
    }
    TRY(check_units(op, stats, x, want[0], lengths));
    return esp_backend_of(stats)->unit_stats_acc(stats, x, root, width, lengths, first);
}

/* y[p] = sqrt(sum of squares of n numbers), for positions `step` apart. */
static ESP_SIMD void part_lengths(float *restrict y, const float *restrict x, int64_t step, int64_t positions, int64_t n)
{
    enum { LANES = 16 };
    for (int64_t p = 0; p < positions; p++, x += step) {
        double acc[LANES] = {0}, sum = 0;
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) for (int l = 0; l < LANES; l++) acc[l] += (double)x[i + l] * (double)x[i + l];
        for (; i < n; i++) sum += (double)x[i] * (double)x[i];
        for (int l = 0; l < LANES; l++) sum += acc[l];
        y[p] = (float)sqrt(sum);
    }
}

static int fill_units(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const stats_args *a = r->context;
    int64_t width = r->width, channels = s->units * width, step;
    int64_t most = esp_min(s->positions, a->root ? PRODUCT_POSITIONS : esp_row_tile_positions(channels));
    float *room = esp_scratch((most * channels + most * width + most) * 4);
    if (!room) return ESP_EMEM;
    float *product = room + most * channels, *y = product + most * width;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t positions = esp_min(most, s->positions - t);
        const float *x = esp_row_tile(a->x, s->row, s->t + t, positions, s->u * width, channels, room, &step);
        for (int64_t i = 0; i < s->units; i++) {
            if (a->root) {
                esp_gemm_block(0, 1, positions, width, width, 1, x + i * width, step, a->root + (s->u + i) * width * width, width, 0, product, width);
                part_lengths(y, product, width, positions, width);
            } else {
                part_lengths(y, x + i * width, step, positions, width);
            }
            esp_sums_along(sum + i, s->units, y, positions);
        }
    }
    return ESP_OK;
}

int esp_cpu_unit_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *root, int64_t width, const esp_tensor *lengths, int64_t first)
{
    stats_args a = {.first = first, .root = root ? esp_tensor_at(root) : NULL};
    if (root) TRY(esp_gemm_open());
    return run(&a, stats, x, lengths, x->shape[2] / width, width, fill_units);
}

/* ---- pairs of channels that turn together ---- */

static int check_pairs(const char *op, const esp_tensor *x, int64_t turning)
{
    char text[ESP_TEXT];
    TRY(esp_check(op, "x", x, FLOATS, ESP_READ));
    if (x->ndim != 4) {
        return esp_fail(ESP_ESHAPE, "%s: 'x' is %s, want [batch, positions, heads, channels]", op, esp_shape_text(text, x->ndim, x->shape));
    }
    TRY(esp_check_last_dense(op, "x", x));
    if (x->shape[1] < 1) return esp_fail(ESP_ESHAPE, "%s: 'x' %s has no positions", op, esp_shape_text(text, x->ndim, x->shape));
    if (turning < 2 || turning % 2 != 0 || turning > x->shape[3]) {
        return esp_fail(ESP_EARG, "%s: turning is %lld, want an even number from 2 to the %lld channels of a head", op, (long long)turning,
                        (long long)x->shape[3]);
    }
    return ESP_OK;
}

int esp_pair_stats_acc(esp_tensor *stats, const esp_tensor *x, int64_t turning, const esp_tensor *lengths, int64_t first)
{
    const char *op = "pair_stats_acc";
    TRY(check_pairs(op, x, turning));
    TRY(check_units(op, stats, x, x->shape[2] * (turning / 2), lengths));
    return esp_backend_of(stats)->pair_stats_acc(stats, x, turning, lengths, first);
}

static ESP_SIMD void pair_lengths(float *restrict y, const float *restrict a, const float *restrict b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = sqrtf(a[i] * a[i] + b[i] * b[i]);
}

/* A unit is a head here: its `turning` channels make turning/2 lengths. */
static int fill_pairs(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const stats_args *a = r->context;
    const esp_tensor *x = a->x;
    int64_t half = a->turning / 2, most = esp_row_tile_positions(a->turning), step;
    float *room = esp_scratch((most * a->turning + most * half) * 4);
    if (!room) return ESP_EMEM;
    float *y = room + most * a->turning;
    /* Lengths u .. u+units-1 may be of several heads. */
    for (int64_t u = s->u, n; u < s->u + s->units; u += n) {
        int64_t head = u / half, from = u % half;
        n = esp_min(half - from, s->u + s->units - u);
        for (int64_t t = 0; t < s->positions; t += most) {
            int64_t positions = esp_min(most, s->positions - t);
            const float *v = esp_row_tile(x, s->row, s->t + t, positions, head * x->stride[2], a->turning, room, &step);
            for (int64_t p = 0; p < positions; p++) pair_lengths(y + p * n, v + p * step + from, v + p * step + half + from, n);
            esp_sums_across(sum + (u - s->u), s->units, y, n, positions, n);
        }
    }
    return ESP_OK;
}

int esp_cpu_pair_stats_acc(esp_tensor *stats, const esp_tensor *x, int64_t turning, const esp_tensor *lengths, int64_t first)
{
    stats_args a = {.first = first, .turning = turning};
    return run(&a, stats, x, lengths, x->shape[2] * (turning / 2), 1, fill_pairs);
}
