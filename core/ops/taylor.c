/* Products of activations and their gradients, summed: what Taylor's criteria and Fisher's are read off. */
#include <math.h>

#include "backend.h"
#include "rowsums.h"

enum { TAYLOR = 4, LANES = 8 };

typedef struct taylor_args {
    double *stats;
    const esp_tensor *x, *g;
    int64_t first;
} taylor_args;

int esp_taylor_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *g, int64_t width, int64_t first)
{
    const char *op = "taylor_stats_acc";
    TRY(esp_check_sites(op, "x", x));
    TRY(esp_check_sites(op, "g", g));
    TRY(esp_check_shape(op, "g", g, 3, x->shape, "shape of x"));
    if (width < 1 || x->shape[2] % width != 0) {
        return esp_fail(ESP_EARG, "%s: width %lld does not divide the %lld channels of 'x'", op, (long long)width, (long long)x->shape[2]);
    }
    int64_t want[] = {2, TAYLOR, x->shape[2] / width};
    TRY(esp_check_stats(op, stats, 3, want, "two halves of four sums for each group of channels"));
    return esp_backend_of(stats)->taylor_stats_acc(stats, x, g, width, first);
}

/* ---- sums over positions of p, |p| and sum g^2, p = sum of a unit's x g ---- */

static inline __attribute__((always_inline)) void channels_of_group(double *sum, int64_t stride, const float *x, int64_t x_step, const float *g,
                                                                    int64_t g_step, int64_t positions, const int n)
{
    double plain[32] = {0}, absolute[32] = {0}, square[32] = {0};
    for (int64_t t = 0; t < positions; t++, x += x_step, g += g_step) {
        for (int l = 0; l < n; l++) {
            double p = (double)x[l] * (double)g[l];
            plain[l] += p;
            absolute[l] += fabs(p);
            square[l] += (double)g[l] * (double)g[l];
        }
    }
    for (int l = 0; l < n; l++) sum[l] += plain[l], sum[stride + l] += absolute[l], sum[2 * stride + l] += square[l];
}

static ESP_SIMD void sums_of_channels(double *sum, const float *x, int64_t x_step, const float *g, int64_t g_step, int64_t positions, int64_t n)
{
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) channels_of_group(sum + i, n, x + i, x_step, g + i, g_step, positions, 32);
    for (; i + 8 <= n; i += 8) channels_of_group(sum + i, n, x + i, x_step, g + i, g_step, positions, 8);
    for (; i < n; i++) channels_of_group(sum + i, n, x + i, x_step, g + i, g_step, positions, 1);
}

static ESP_SIMD void sums_of_unit(double *sum, int64_t stride, const float *x, int64_t x_step, const float *g, int64_t g_step, int64_t positions,
                                  int64_t width)
{
    for (int64_t t = 0; t < positions; t++, x += x_step, g += g_step) {
        double product[LANES] = {0}, square[LANES] = {0}, p = 0;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            for (int l = 0; l < LANES; l++) {
                product[l] += (double)x[i + l] * (double)g[i + l];
                square[l] += (double)g[i + l] * (double)g[i + l];
            }
        }
        for (int l = 0; i < width; i++, l++) product[l] += (double)x[i] * (double)g[i], square[l] += (double)g[i] * (double)g[i];
        for (int l = 0; l < LANES; l++) p += product[l], sum[2 * stride] += square[l];
        sum[0] += p;
        sum[stride] += fabs(p);
    }
}

static int fill(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum)
{
    const taylor_args *a = r->context;
    int64_t channels = s->units * r->width, most = esp_row_tile_positions(channels), x_step, g_step;
    float *room = esp_scratch(2 * most * channels * 4);
    if (!room) return ESP_EMEM;
    for (int64_t t = 0; t < s->positions; t += most) {
        int64_t positions = esp_min(most, s->positions - t);
        const float *x = esp_row_tile(a->x, s->row, s->t + t, positions, s->u * r->width, channels, room, &x_step);
        const float *g = esp_row_tile(a->g, s->row, s->t + t, positions, s->u * r->width, channels, room + most * channels, &g_step);
        if (r->width == 1) sums_of_channels(sum, x, x_step, g, g_step, positions, s->units);
        else for (int64_t i = 0; i < s->units; i++) {
            sums_of_unit(sum + i, s->units, x + i * r->width, x_step, g + i * r->width, g_step, positions, r->width);
        }
    }
    return ESP_OK;
}

static void fold(const esp_row_sums *r, int64_t row, double count, int64_t u, int64_t n, const double *sum)
{
    (void)count;
    const taylor_args *a = r->context;
    double *stats = a->stats + ((a->first + row) & 1) * TAYLOR * r->units + u;
    for (int64_t i = 0; i < n; i++) {
        stats[i] += sum[i];
        stats[r->units + i] += sum[n + i];
        stats[2 * r->units + i] += sum[i] * sum[i];
        stats[3 * r->units + i] += sum[2 * n + i];
    }
}

int esp_cpu_taylor_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *g, int64_t width, int64_t first)
{
    taylor_args a = {.stats = esp_tensor_at(stats), .x = x, .g = g, .first = first};
    esp_row_sums r = {.rows = x->shape[0], .positions = x->shape[1], .units = x->shape[2] / width, .width = width, .fill = fill, .fold = fold,
                      .context = &a};
    return esp_row_sums_run(&r);
}
