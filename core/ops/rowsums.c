/* Sums over the positions of rows: how the work is cut, and the kernels that read it. */
#include <math.h>

#include "rowsums.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), STRETCH = 256, CHANNELS = 128, TILE = 8192, GROUP = 32, LANES = 16, RUN = 16 };

/* ---- checks ---- */

int esp_check_sites(const char *op, const char *arg, const esp_tensor *x)
{
    char text[ESP_TEXT];
    TRY(esp_check(op, arg, x, FLOATS, ESP_READ));
    if (x->ndim != 3) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [batch, positions, channels]", op, arg, esp_shape_text(text, x->ndim, x->shape));
    TRY(esp_check_last_dense(op, arg, x));
    if (x->shape[1] < 1) return esp_fail(ESP_ESHAPE, "%s: '%s' %s has no positions", op, arg, esp_shape_text(text, x->ndim, x->shape));
    return ESP_OK;
}

int esp_check_stats(const char *op, const esp_tensor *stats, int ndim, const int64_t *shape, const char *why)
{
    TRY(esp_check(op, "stats", stats, ESP_BIT(ESP_F64), ESP_WRITE));
    TRY(esp_check_shape(op, "stats", stats, ndim, shape, why));
    return esp_check_dense(op, "stats", stats);
}

int esp_check_lengths(const char *op, const esp_tensor *lengths, int64_t rows, int64_t positions)
{
    if (!lengths) return ESP_OK;
    TRY(esp_check(op, "lengths", lengths, ESP_BIT(ESP_I32), ESP_READ));
    TRY(esp_check_dense(op, "lengths", lengths));
    TRY(esp_check_shape(op, "lengths", lengths, 1, &rows, "one for each row of x"));
    const int32_t *n = esp_tensor_at(lengths);
    for (int64_t b = 0; b < rows; b++) {
        if (n[b] < 0 || n[b] > positions) {
            return esp_fail(ESP_EARG, "%s: 'lengths' has %d for row %lld, want 0 to %lld", op, (int)n[b], (long long)b, (long long)positions);
        }
    }
    return ESP_OK;
}

/* ---- the work and its blocks ---- */

static int64_t length_of(const esp_row_sums *r, int64_t row) { return r->lengths ? r->lengths[row] : r->positions; }
static int64_t stretches(const esp_row_sums *r) { return esp_ceil_div(r->positions, STRETCH); }
static int64_t units_a_block(const esp_row_sums *r) { return esp_max_of(1, CHANNELS / r->width); }
static int64_t across(const esp_row_sums *r) { return esp_ceil_div(r->units, units_a_block(r)); }

static int64_t units_from(const esp_row_sums *r, int64_t block, int64_t *n)
{
    int64_t each = units_a_block(r), from = block * each;
    *n = esp_min(each, r->units - from);
    return from;
}

/* The sums of a stretch and a block of units stand side by side in partial: [row][stretch][unit block][3][units of the block]. */
static double *place_of(const esp_row_sums *r, int64_t stretch, int64_t u) { return r->partial + (stretch * r->units + u) * ESP_ROW_SUMS; }

static int fill_block(void *context, int64_t block)
{
    const esp_row_sums *r = context;
    int64_t stretch = block / across(r);
    esp_stretch_of_row s = {.row = stretch / stretches(r), .t = stretch % stretches(r) * STRETCH};
    s.u = units_from(r, block % across(r), &s.units);
    s.positions = esp_min(STRETCH, length_of(r, s.row) - s.t);
    double *sum = place_of(r, stretch, s.u);
    memset(sum, 0, (size_t)(s.units * ESP_ROW_SUMS) * sizeof *sum);
    return s.positions > 0 ? r->fill(r, &s, sum) : ESP_OK;
}

/* Adds up the stretches of each row, in order, and hands the row's sums on. */
static int fold_block(void *context, int64_t block)
{
    const esp_row_sums *r = context;
    int64_t n, u = units_from(r, block, &n);
    for (int64_t row = 0; row < r->rows; row++) {
        int64_t T = length_of(r, row);
        if (T == 0) continue;
        double *sum = place_of(r, row * stretches(r), u);
        for (int64_t s = 1; s < esp_ceil_div(T, STRETCH); s++) {
            const double *more = place_of(r, row * stretches(r) + s, u);
            for (int64_t i = 0; i < n * ESP_ROW_SUMS; i++) sum[i] += more[i];
        }
        r->fold(r, row, (double)T, u, n, sum);
    }
    return ESP_OK;
}

int esp_row_sums_run(esp_row_sums *r)
{
    if (!(r->partial = esp_malloc(r->rows * stretches(r) * r->units * ESP_ROW_SUMS * (int64_t)sizeof(double)))) return ESP_EMEM;
    int code = esp_parallel(r->rows * stretches(r) * across(r), fill_block, r);
    if (code == ESP_OK) code = esp_parallel(across(r), fold_block, r);
    esp_free(r->partial);
    return code;
}

/* ---- tiles ---- */

int64_t esp_row_tile_positions(int64_t channels) { return esp_max_of(1, esp_min(64, TILE / channels)); }

const float *esp_row_tile(const esp_tensor *x, int64_t row, int64_t t, int64_t positions, int64_t c, int64_t n, float *room, int64_t *step)
{
    int64_t at = row * x->stride[0] + t * x->stride[1] + c;
    if (x->dtype == ESP_F32) {
        *step = x->stride[1];
        return (const float *)esp_tensor_at(x) + at;
    }
    for (int64_t p = 0; p < positions; p++) {
        esp_convert(room + p * n, ESP_F32, (const uint16_t *)esp_tensor_at(x) + at + p * x->stride[1], x->dtype, n);
    }
    *step = n;
    return room;
}

/* ---- kernels: the sums of a group of channels stay in registers while its positions pass ---- */

static inline __attribute__((always_inline)) void sums_of_group(double *sum, int64_t stride, const float *x, int64_t step, int64_t positions, const int n)
{
    double absolute[GROUP] = {0}, plain[GROUP] = {0}, square[GROUP] = {0};
    for (int64_t t = 0; t < positions; t++, x += step) {
        for (int l = 0; l < n; l++) {
            double v = (double)x[l];
            absolute[l] += fabs(v);
            plain[l] += v;
            square[l] += v * v;
        }
    }
    for (int l = 0; l < n; l++) {
        sum[l] += absolute[l];
        sum[stride + l] += plain[l];
        sum[2 * stride + l] += square[l];
    }
}

/* Squares of bf16 are exact in f32, and sums of RUN of them all but exact: double is needed from there on only. */
static inline __attribute__((always_inline)) void sums_of_group_bf16(double *sum, int64_t stride, const uint16_t *x, int64_t step, int64_t positions,
                                                                     const int n)
{
    for (int64_t t = 0; t < positions; t += RUN) {
        float absolute[GROUP] = {0}, plain[GROUP] = {0}, square[GROUP] = {0};
        for (int64_t left = esp_min(RUN, positions - t); left > 0; left--, x += step) {
            for (int l = 0; l < n; l++) {
                float v = esp_bf16_to_f32(x[l]);
                absolute[l] += fabsf(v);
                plain[l] += v;
                square[l] += v * v;
            }
        }
        for (int l = 0; l < n; l++) {
            sum[l] += (double)absolute[l];
            sum[stride + l] += (double)plain[l];
            sum[2 * stride + l] += (double)square[l];
        }
    }
}

ESP_SIMD void esp_sums_across(double *sum, int64_t stride, const float *x, int64_t step, int64_t positions, int64_t n)
{
    int64_t i = 0;
    for (; i + GROUP <= n; i += GROUP) sums_of_group(sum + i, stride, x + i, step, positions, GROUP);
    for (; i + 8 <= n; i += 8) sums_of_group(sum + i, stride, x + i, step, positions, 8);
    for (; i < n; i++) sums_of_group(sum + i, stride, x + i, step, positions, 1);
}

ESP_SIMD void esp_sums_across_bf16(double *sum, int64_t stride, const uint16_t *x, int64_t step, int64_t positions, int64_t n)
{
    int64_t i = 0;
    for (; i + GROUP <= n; i += GROUP) sums_of_group_bf16(sum + i, stride, x + i, step, positions, GROUP);
    for (; i + 8 <= n; i += 8) sums_of_group_bf16(sum + i, stride, x + i, step, positions, 8);
    for (; i < n; i++) sums_of_group_bf16(sum + i, stride, x + i, step, positions, 1);
}

ESP_SIMD void esp_sums_along(double *sum, int64_t stride, const float *x, int64_t positions)
{
    double absolute[LANES] = {0}, plain[LANES] = {0}, square[LANES] = {0};
    int64_t t = 0;
    for (; t + LANES <= positions; t += LANES) {
        for (int l = 0; l < LANES; l++) {
            absolute[l] += fabs((double)x[t + l]);
            plain[l] += (double)x[t + l];
            square[l] += (double)x[t + l] * (double)x[t + l];
        }
    }
    for (int l = 0; t < positions; t++, l++) absolute[l] += fabs((double)x[t]), plain[l] += (double)x[t], square[l] += (double)x[t] * (double)x[t];
    for (int l = 0; l < LANES; l++) sum[0] += absolute[l], sum[stride] += plain[l], sum[2 * stride] += square[l];
}
