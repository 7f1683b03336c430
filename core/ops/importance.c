/* Sufficient statistics of activations, added up in double: from them every aggregation is read off later, without the model.
 *
 * Rows of the data are told apart by parity, so that the two halves of a calibration set can be asked the same question. */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), F64 = ESP_BIT(ESP_F64), I32 = ESP_BIT(ESP_I32), STATS = 8, TAYLOR = 4, ANGLES = 3, CHANNELS = 64, TOKENS = 64,
       LANES = 16 };

/* One call: x (and y) [B,T,C], the sums, and which rows count how far. */
typedef struct stats_args {
    double *stats, *partial;
    const esp_tensor *x, *y;
    const int32_t *lengths;
    int64_t first, width;
} stats_args;

static int check_activation(const char *op, const char *arg, const esp_tensor *x)
{
    char text[ESP_TEXT];
    TRY(esp_check(op, arg, x, F32, ESP_READ));
    if (x->ndim != 3) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [batch, positions, channels]", op, arg, esp_shape_text(text, x->ndim, x->shape));
    TRY(esp_check_last_dense(op, arg, x));
    if (x->shape[1] < 1) return esp_fail(ESP_ESHAPE, "%s: '%s' %s has no positions", op, arg, esp_shape_text(text, x->ndim, x->shape));
    return ESP_OK;
}

static int check_stats(const char *op, const esp_tensor *stats, int ndim, const int64_t *shape, const char *why)
{
    TRY(esp_check(op, "stats", stats, F64, ESP_WRITE));
    return esp_check_shape(op, "stats", stats, ndim, shape, why);
}

static int check_lengths(const char *op, const esp_tensor *lengths, const esp_tensor *x)
{
    if (!lengths) return ESP_OK;
    TRY(esp_check(op, "lengths", lengths, I32, ESP_READ));
    TRY(esp_check_dense(op, "lengths", lengths));
    TRY(esp_check_shape(op, "lengths", lengths, 1, x->shape, "one for each row of x"));
    const int32_t *n = esp_tensor_at(lengths);
    for (int64_t b = 0; b < x->shape[0]; b++) {
        if (n[b] < 0 || n[b] > x->shape[1]) {
            return esp_fail(ESP_EARG, "%s: 'lengths' has %d for row %lld, want 0 to %lld", op, (int)n[b], (long long)b, (long long)x->shape[1]);
        }
    }
    return ESP_OK;
}

static stats_args arguments(esp_tensor *stats, const esp_tensor *x, const esp_tensor *y, const esp_tensor *lengths, int64_t first)
{
    return (stats_args){.stats = esp_tensor_at(stats), .x = x, .y = y, .lengths = lengths ? esp_tensor_at(lengths) : NULL, .first = first, .width = 1};
}

static int64_t length_of(const stats_args *a, int64_t b) { return a->lengths ? a->lengths[b] : a->x->shape[1]; }
static int half_of(const stats_args *a, int64_t b) { return (int)((a->first + b) & 1); }
static const float *row_of(const esp_tensor *x, int64_t b) { return (const float *)esp_tensor_at(x) + b * x->stride[0]; }

/* ---- channels ---- */

int esp_channel_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)
{
    const char *op = "channel_stats_acc";
    TRY(check_activation(op, "x", x));
    int64_t want[] = {2, STATS, x->shape[2]};
    TRY(check_stats(op, stats, 3, want, "two halves of eight sums for each channel of x"));
    TRY(esp_check_dense(op, "stats", stats));
    TRY(check_lengths(op, lengths, x));
    return esp_backend_of(stats)->channel_stats_acc(stats, x, lengths, first);
}

/* Sums over positions of |x|, x, x^2, (x - shift) and its square for the channels of one block; shift, the first position, keeps the
 * variance from cancelling. */
static ESP_SIMD void position_sums(double *restrict absolute, double *restrict plain, double *restrict square, double *restrict shifted,
                                   double *restrict about, const float *x, int64_t T, int64_t step, int64_t n)
{
    for (int64_t i = 0; i < n; i++) absolute[i] = plain[i] = square[i] = shifted[i] = about[i] = 0;
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * step;
        for (int64_t i = 0; i < n; i++) {
            double v = (double)row[i], d = v - (double)x[i];
            absolute[i] += fabs(v);
            plain[i] += v;
            square[i] += v * v;
            shifted[i] += d;
            about[i] += d * d;
        }
    }
}

static int channel_block(void *context, int64_t block)
{
    const stats_args *a = context;
    int64_t B = a->x->shape[0], C = a->x->shape[2], from = block * CHANNELS, n = esp_min(CHANNELS, C - from);
    double s[5][CHANNELS];
    for (int64_t b = 0; b < B; b++) {
        int64_t T = length_of(a, b);
        if (T == 0) continue;
        double count = (double)T, *stats = a->stats + half_of(a, b) * STATS * C + from;
        position_sums(s[0], s[1], s[2], s[3], s[4], row_of(a->x, b) + from, T, a->x->stride[1], n);
        for (int64_t i = 0; i < n; i++) {
            double mean = s[0][i] / count, norm = sqrt(s[2][i]), var = s[4][i] / count - (s[3][i] / count) * (s[3][i] / count);
            /* Rounding may leave a tiny negative; NaN stays NaN. */
            if (var < 0) var = 0;
            double add[STATS] = {mean, mean * mean, norm, norm * norm, var, var * var, s[1][i], s[0][i]};
            for (int k = 0; k < STATS; k++) stats[k * C + i] += add[k];
        }
    }
    return ESP_OK;
}

int esp_cpu_channel_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)
{
    stats_args a = arguments(stats, x, NULL, lengths, first);
    return esp_parallel(esp_ceil_div(x->shape[2], CHANNELS), channel_block, &a);
}

/* ---- products with the gradient ---- */

int esp_taylor_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *g, int64_t width, int64_t first)
{
    const char *op = "taylor_stats_acc";
    TRY(check_activation(op, "x", x));
    TRY(check_activation(op, "g", g));
    TRY(esp_check_shape(op, "g", g, 3, x->shape, "shape of x"));
    if (width < 1 || x->shape[2] % width != 0) {
        return esp_fail(ESP_EARG, "%s: width %lld does not divide the %lld channels of 'x'", op, (long long)width, (long long)x->shape[2]);
    }
    int64_t want[] = {2, TAYLOR, x->shape[2] / width};
    TRY(check_stats(op, stats, 3, want, "two halves of four sums for each group of channels"));
    TRY(esp_check_dense(op, "stats", stats));
    return esp_backend_of(stats)->taylor_stats_acc(stats, x, g, width, first);
}

/* Sums over positions of p, |p| and sum g^2, p = sum of `width` neighbouring x g, for n groups. */
static ESP_SIMD void product_sums(double *restrict plain, double *restrict absolute, double *restrict square, const float *x, const float *g, int64_t T,
                                  int64_t x_step, int64_t g_step, int64_t n, int64_t width)
{
    for (int64_t i = 0; i < n; i++) plain[i] = absolute[i] = square[i] = 0;
    for (int64_t t = 0; t < T; t++) {
        const float *u = x + t * x_step, *v = g + t * g_step;
        for (int64_t i = 0; i < n; i++) {
            double p = 0, q = 0;
            for (int64_t j = i * width; j < (i + 1) * width; j++) {
                p += (double)u[j] * (double)v[j];
                q += (double)v[j] * (double)v[j];
            }
            plain[i] += p;
            absolute[i] += fabs(p);
            square[i] += q;
        }
    }
}

static int taylor_block(void *context, int64_t block)
{
    const stats_args *a = context;
    int64_t B = a->x->shape[0], T = a->x->shape[1], C = a->x->shape[2] / a->width, from = block * CHANNELS, n = esp_min(CHANNELS, C - from);
    double plain[CHANNELS], absolute[CHANNELS], square[CHANNELS];
    for (int64_t b = 0; b < B; b++) {
        double *stats = a->stats + half_of(a, b) * TAYLOR * C + from;
        product_sums(plain, absolute, square, row_of(a->x, b) + from * a->width, row_of(a->y, b) + from * a->width, T, a->x->stride[1],
                     a->y->stride[1], n, a->width);
        for (int64_t i = 0; i < n; i++) {
            stats[i] += plain[i];
            stats[C + i] += absolute[i];
            stats[2 * C + i] += plain[i] * plain[i];
            stats[3 * C + i] += square[i];
        }
    }
    return ESP_OK;
}

int esp_cpu_taylor_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *g, int64_t width, int64_t first)
{
    stats_args a = arguments(stats, x, g, NULL, first);
    a.width = width;
    return esp_parallel(esp_ceil_div(x->shape[2] / width, CHANNELS), taylor_block, &a);
}

/* ---- angles ---- */

int esp_angle_stats_acc(esp_tensor *stats, const esp_tensor *a, const esp_tensor *b, const esp_tensor *lengths, int64_t first)
{
    const char *op = "angle_stats_acc";
    int64_t want[] = {2, ANGLES};
    TRY(check_activation(op, "a", a));
    TRY(check_activation(op, "b", b));
    TRY(esp_check_shape(op, "b", b, 3, a->shape, "shape of a"));
    TRY(check_stats(op, stats, 2, want, "two halves of three sums"));
    TRY(esp_check_last_dense(op, "stats", stats));
    TRY(check_lengths(op, lengths, a));
    return esp_backend_of(stats)->angle_stats_acc(stats, a, b, lengths, first);
}

static ESP_SIMD double cosine(const float *a, const float *b, int64_t n)
{
    double ab[LANES] = {0}, aa[LANES] = {0}, bb[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            double u = (double)a[i + l], v = (double)b[i + l];
            ab[l] += u * v, aa[l] += u * u, bb[l] += v * v;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        double u = (double)a[i], v = (double)b[i];
        ab[l] += u * v, aa[l] += u * u, bb[l] += v * v;
    }
    for (int l = 1; l < LANES; l++) ab[0] += ab[l], aa[0] += aa[l], bb[0] += bb[l];
    double lengths = sqrt(aa[0]) * sqrt(bb[0]);
    return lengths == 0 ? 0 : ab[0] / lengths;
}

static int64_t blocks_a_row(const esp_tensor *x) { return esp_ceil_div(x->shape[1], TOKENS); }

/* A block is TOKENS positions of one row; its sums go to partial[block]. */
static int angle_block(void *context, int64_t block)
{
    const stats_args *a = context;
    int64_t b = block / blocks_a_row(a->x), from = block % blocks_a_row(a->x) * TOKENS, T = length_of(a, b), end = esp_min(from + TOKENS, T);
    double *sum = a->partial + block * ANGLES;
    sum[0] = sum[1] = sum[2] = 0;
    for (int64_t t = from; t < end; t++) {
        double c = cosine(row_of(a->x, b) + t * a->x->stride[1], row_of(a->y, b) + t * a->y->stride[1], a->x->shape[2]);
        /* Rounding may leave more than 1; NaN stays NaN. */
        double angle = acos(c > 1 ? 1 : c < -1 ? -1 : c) / 3.14159265358979323846;
        sum[0] += c;
        sum[1] += angle;
        if (t == T - 1) sum[2] = angle;
    }
    return ESP_OK;
}

int esp_cpu_angle_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *y, const esp_tensor *lengths, int64_t first)
{
    stats_args a = arguments(stats, x, y, lengths, first);
    int64_t blocks = x->shape[0] * blocks_a_row(x);
    if (!(a.partial = esp_malloc(blocks * ANGLES * 8))) return ESP_EMEM;
    int code = esp_parallel(blocks, angle_block, &a);
    for (int64_t i = 0; code == ESP_OK && i < blocks * ANGLES; i++) {
        a.stats[half_of(&a, i / ANGLES / blocks_a_row(x)) * stats->stride[0] + i % ANGLES] += a.partial[i];
    }
    esp_free(a.partial);
    return code;
}

/* ---- what a channel adds to an error ---- */

/* One call, by channels of one block: the lengths of r + a w add up token by token. */
typedef struct error_args {
    double *sums;
    const esp_tensor *a, *rw, *r;
    const float *w;
    const int32_t *lengths;
} error_args;

int esp_contribution_acc(esp_tensor *sums, const esp_tensor *a, const esp_tensor *rw, const esp_tensor *r, const esp_tensor *w, const esp_tensor *lengths)
{
    const char *op = "contribution_acc";
    TRY(check_activation(op, "a", a));
    TRY(check_activation(op, "rw", rw));
    TRY(esp_check_shape(op, "rw", rw, 3, a->shape, "shape of a"));
    TRY(esp_check(op, "r", r, F32, ESP_READ));
    TRY(esp_check_shape(op, "r", r, 2, a->shape, "a number for each token of a"));
    TRY(esp_check(op, "w", w, F32, ESP_READ));
    TRY(esp_check_shape(op, "w", w, 1, a->shape + 2, "a number for each channel of a"));
    TRY(check_stats(op, sums, 1, a->shape + 2, "a sum for each channel of a"));
    TRY(esp_check_dense(op, "r", r));
    TRY(esp_check_dense(op, "w", w));
    TRY(esp_check_dense(op, "sums", sums));
    TRY(check_lengths(op, lengths, a));
    return esp_backend_of(sums)->contribution_acc(sums, a, rw, r, w, lengths);
}

static ESP_SIMD void add_lengths(double *restrict sums, const float *a, const float *rw, const float *w, double r, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double aw = (double)a[i] * (double)w[i], square = r * r + 2 * (double)a[i] * (double)rw[i] + aw * aw;
        /* Rounding may leave a tiny negative; NaN stays NaN. */
        sums[i] += square < 0 ? 0 : sqrt(square);
    }
}

static int error_block(void *context, int64_t block)
{
    const error_args *e = context;
    int64_t B = e->a->shape[0], T = e->a->shape[1], C = e->a->shape[2], from = block * CHANNELS, n = esp_min(CHANNELS, C - from);
    const float *r = esp_tensor_at(e->r);
    for (int64_t b = 0; b < B; b++) {
        int64_t length = e->lengths ? e->lengths[b] : T;
        for (int64_t t = 0; t < length; t++) {
            add_lengths(e->sums + from, row_of(e->a, b) + t * e->a->stride[1] + from, row_of(e->rw, b) + t * e->rw->stride[1] + from, e->w + from,
                        (double)r[b * T + t], n);
        }
    }
    return ESP_OK;
}

int esp_cpu_contribution_acc(esp_tensor *sums, const esp_tensor *a, const esp_tensor *rw, const esp_tensor *r, const esp_tensor *w,
                             const esp_tensor *lengths)
{
    error_args e = {.sums = esp_tensor_at(sums), .a = a, .rw = rw, .r = r, .w = esp_tensor_at(w), .lengths = lengths ? esp_tensor_at(lengths) : NULL};
    return esp_parallel(esp_ceil_div(a->shape[2], CHANNELS), error_block, &e);
}
