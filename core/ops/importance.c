/* Sufficient statistics of activations, added up in double: from them every aggregation is read off later, without the model. */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), F64 = ESP_BIT(ESP_F64), STATS = 7, CHANNELS = 64, ROWS = 64, LANES = 16 };

int esp_channel_stats_acc(esp_tensor *stats, const esp_tensor *x)
{
    char text[ESP_TEXT];
    const char *op = "channel_stats_acc";
    TRY(esp_check(op, "x", x, F32, ESP_READ));
    TRY(esp_check_last_dense(op, "x", x));
    if (x->ndim != 3) return esp_fail(ESP_ESHAPE, "%s: 'x' is %s, want [batch, positions, channels]", op, esp_shape_text(text, x->ndim, x->shape));
    int64_t want[] = {STATS, x->shape[2]};
    TRY(esp_check(op, "stats", stats, F64, ESP_WRITE));
    TRY(esp_check_dense(op, "stats", stats));
    TRY(esp_check_shape(op, "stats", stats, 2, want, "seven sums for each channel of x"));
    if (x->shape[1] < 1) return esp_fail(ESP_ESHAPE, "%s: 'x' %s has no positions", op, esp_shape_text(text, x->ndim, x->shape));
    return esp_backend_of(stats)->channel_stats_acc(stats, x);
}

typedef struct stats_args {
    double *stats;
    const esp_tensor *x;
} stats_args;

/* Sums over positions of |x|, x, x^2 and (x - shift)^2 for the channels of one block; shift, the first position, keeps the variance from
 * cancelling. */
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

static int stats_block(void *context, int64_t block)
{
    const stats_args *a = context;
    int64_t B = a->x->shape[0], T = a->x->shape[1], C = a->x->shape[2], from = block * CHANNELS, n = esp_min(CHANNELS, C - from);
    double s[5][CHANNELS], count = (double)T;
    for (int64_t b = 0; b < B; b++) {
        const float *x = (const float *)esp_tensor_at(a->x) + b * a->x->stride[0] + from;
        position_sums(s[0], s[1], s[2], s[3], s[4], x, T, a->x->stride[1], n);
        for (int64_t i = 0; i < n; i++) {
            double mean = s[0][i] / count, norm = sqrt(s[2][i]), var = s[4][i] / count - (s[3][i] / count) * (s[3][i] / count);
            /* Rounding may leave a tiny negative; NaN stays NaN. */
            if (var < 0) var = 0;
            double add[STATS] = {mean, mean * mean, norm, norm * norm, var, var * var, s[1][i]};
            for (int k = 0; k < STATS; k++) a->stats[k * C + from + i] += add[k];
        }
    }
    return ESP_OK;
}

int esp_cpu_channel_stats_acc(esp_tensor *stats, const esp_tensor *x)
{
    stats_args a = {esp_tensor_at(stats), x};
    return esp_parallel(esp_ceil_div(x->shape[2], CHANNELS), stats_block, &a);
}

/* ---- cosine ---- */

typedef struct cosine_args {
    esp_rows a, b;
    double *partial;
} cosine_args;

static int check_cosine(cosine_args *c, const esp_tensor *total, const esp_tensor *a, const esp_tensor *b)
{
    TRY(esp_check("cosine_acc", "total", total, F64, ESP_WRITE));
    TRY(esp_check_shape("cosine_acc", "total", total, 0, NULL, "a scalar"));
    TRY(esp_check_rows(&c->a, "cosine_acc", "a", a, F32, ESP_READ));
    TRY(esp_check_rows(&c->b, "cosine_acc", "b", b, F32, ESP_READ));
    return esp_check_shape("cosine_acc", "b", b, a->ndim, a->shape, "shape of a");
}

int esp_cosine_acc(esp_tensor *total, const esp_tensor *a, const esp_tensor *b)
{
    cosine_args c;
    TRY(check_cosine(&c, total, a, b));
    return esp_backend_of(total)->cosine_acc(total, a, b);
}

static ESP_SIMD double cosine_row(const float *a, const float *b, int64_t n)
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

static int cosine_block(void *context, int64_t block)
{
    const cosine_args *c = context;
    int64_t end = esp_min((block + 1) * ROWS, c->a.rows);
    double sum = 0;
    for (int64_t n = block * ROWS; n < end; n++) {
        sum += cosine_row((const float *)c->a.data + n * c->a.stride, (const float *)c->b.data + n * c->b.stride, c->a.cols);
    }
    c->partial[block] = sum;
    return ESP_OK;
}

int esp_cpu_cosine_acc(esp_tensor *total, const esp_tensor *a, const esp_tensor *b)
{
    cosine_args c;
    TRY(check_cosine(&c, total, a, b));
    int64_t blocks = esp_ceil_div(c.a.rows, ROWS);
    if (!(c.partial = esp_malloc(blocks * 8))) return ESP_EMEM;
    int code = esp_parallel(blocks, cosine_block, &c);
    for (int64_t i = 0; code == ESP_OK && i < blocks; i++) *(double *)esp_tensor_at(total) += c.partial[i];
    esp_free(c.partial);
    return code;
}
