/* Statistics of activations by channel or unit: sums from which every aggregation is read off later, without the model.
 *
 * Rows of the data are told apart by parity, so that the two halves of a calibration set can be asked the same question. */
#include <math.h>

#include "backend.h"
#include "rowsums.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), STATS = 8, STRETCH = 64, MOST = 16 };

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
    const esp_tensor *x = ((const stats_args *)r->context)->x;
    int64_t most = esp_row_tile_positions(s->units);
    /* So many positions at a time that what lies beside a group of channels is still there when its turn comes, whatever the stride. */
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t at = s->row * x->stride[0] + (s->t + t) * x->stride[1] + s->u, n = esp_min(most, s->positions - t);
        if (x->dtype == ESP_F32) esp_sums_across(sum, s->units, (const float *)esp_tensor_at(x) + at, x->stride[1], n, s->units);
        else esp_sums_across_bf16(sum, s->units, (const uint16_t *)esp_tensor_at(x) + at, x->stride[1], n, s->units);
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
        for (int64_t p = 0; p < positions; p++) esp_activation_row(a->kind, y + p * n, x + p * step, NULL, n);
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

/* y[p][j] += sum over k from j0 on of root[k][j] x[p][k] for `wide` j from j0 on and four positions; root is lower triangular, n x n. In f32 over short
 * stretches of k, so that long sums stay exact. */
static inline __attribute__((always_inline)) void root_columns(float *y, const float *root, const float *const *x, int64_t j, int64_t n, const int wide)
{
    for (int64_t from = j; from < n; from += STRETCH) {
        float a[MOST] = {0}, b[MOST] = {0}, c[MOST] = {0}, d[MOST] = {0};
        for (int64_t k = from; k < esp_min(from + STRETCH, n); k++) {
            const float *r = root + k * n + j;
            for (int l = 0; l < wide; l++) {
                a[l] += x[0][k] * r[l];
                b[l] += x[1][k] * r[l];
                c[l] += x[2][k] * r[l];
                d[l] += x[3][k] * r[l];
            }
        }
        for (int l = 0; l < wide; l++) y[j + l] += a[l], y[n + j + l] += b[l], y[2 * n + j + l] += c[l], y[3 * n + j + l] += d[l];
    }
}

/* y[4][n] = root' x. */
static ESP_SIMD void root_product(float *y, const float *root, const float *const *x, int64_t n)
{
    int64_t j = 0;
    for (; j + MOST <= n; j += MOST) root_columns(y, root, x, j, n, MOST);
    for (; j < n; j++) root_columns(y, root, x, j, n, 1);
}

/* Lengths of root' x for positions `step` apart; product: room for [4][n]. */
static void root_lengths(float *y, const float *root, const float *x, int64_t step, int64_t positions, int64_t n, float *product)
{
    for (int64_t p = 0; p < positions; p += 4) {
        const float *four[4];
        for (int64_t i = 0; i < 4; i++) four[i] = x + esp_min(p + i, positions - 1) * step;
        memset(product, 0, (size_t)(4 * n) * sizeof *product);
        root_product(product, root, four, n);
        part_lengths(y + p, product, n, esp_min(4, positions - p), n);
    }
}

static int fill_units(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const stats_args *a = r->context;
    int64_t width = r->width, channels = s->units * width, most = esp_row_tile_positions(channels), step;
    float *room = esp_scratch((most * channels + 4 * width + most) * 4);
    if (!room) return ESP_EMEM;
    float *product = room + most * channels, *y = product + 4 * width;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t positions = esp_min(most, s->positions - t);
        const float *x = esp_row_tile(a->x, s->row, s->t + t, positions, s->u * width, channels, room, &step);
        for (int64_t i = 0; i < s->units; i++) {
            if (a->root) root_lengths(y, a->root + (s->u + i) * width * width, x + i * width, step, positions, width, product);
            else part_lengths(y, x + i * width, step, positions, width);
            esp_sums_along(sum + i, s->units, y, positions);
        }
    }
    return ESP_OK;
}

int esp_cpu_unit_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *root, int64_t width, const esp_tensor *lengths, int64_t first)
{
    stats_args a = {.first = first, .root = root ? esp_tensor_at(root) : NULL};
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

/* The `turning` channels of a head make turning/2 lengths. Heads that lie side by side are read as one; the first and the last may be there in part. */
static int fill_pairs(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const stats_args *a = r->context;
    const esp_tensor *x = a->x;
    int64_t half = a->turning / 2, D = x->shape[3], last = s->u + s->units;
    int64_t heads = x->stride[2] == D ? esp_ceil_div(last, half) - s->u / half : 1, most = esp_row_tile_positions(heads * D), step;
    float *room = esp_scratch(most * heads * (D + half) * 4);
    if (!room) return ESP_EMEM;
    float *y = room + most * heads * D;
    for (int64_t u = s->u, n; u < last; u += n) {
        int64_t first = u / half;
        n = esp_min((first + heads) * half, last) - u;
        for (int64_t t = 0; t < s->positions; t += most) {
            int64_t positions = esp_min(most, s->positions - t);
            const float *v = esp_row_tile(x, s->row, s->t + t, positions, first * x->stride[2], heads * D, room, &step);
            for (int64_t i = u, end; i < u + n; i = end) {
                const float *c = v + (i / half - first) * D + i % half;
                end = esp_min((i / half + 1) * half, u + n);
                for (int64_t p = 0; p < positions; p++) pair_lengths(y + p * n + i - u, c + p * step, c + p * step + half, end - i);
            }
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
