/* What a channel adds to an error: the lengths of r + a w, token by token. */
#include <math.h>

#include "backend.h"
#include "rowsums.h"

enum { F32 = ESP_BIT(ESP_F32), CHANNELS = 64 };

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
    TRY(esp_check_sites(op, "a", a));
    TRY(esp_check_sites(op, "rw", rw));
    TRY(esp_check_shape(op, "rw", rw, 3, a->shape, "shape of a"));
    TRY(esp_check(op, "r", r, F32, ESP_READ));
    TRY(esp_check_shape(op, "r", r, 2, a->shape, "a number for each token of a"));
    TRY(esp_check(op, "w", w, F32, ESP_READ));
    TRY(esp_check_shape(op, "w", w, 1, a->shape + 2, "a number for each channel of a"));
    TRY(esp_check_dense(op, "r", r));
    TRY(esp_check_dense(op, "w", w));
    TRY(esp_check_stats(op, sums, 1, a->shape + 2, "a sum for each channel of a"));
    TRY(esp_check_lengths(op, lengths, a->shape[0], a->shape[1]));
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
    int64_t B = e->a->shape[0], T = e->a->shape[1], C = e->a->shape[2], from = block * CHANNELS, n = esp_min(CHANNELS, C - from), step;
    const float *r = esp_tensor_at(e->r);
    float room[2][CHANNELS];
    for (int64_t b = 0; b < B; b++) {
        int64_t length = e->lengths ? e->lengths[b] : T;
        for (int64_t t = 0; t < length; t++) {
            const float *a = esp_row_tile(e->a, b, t, 1, from, n, room[0], &step), *rw = esp_row_tile(e->rw, b, t, 1, from, n, room[1], &step);
            add_lengths(e->sums + from, a, rw, e->w + from, (double)r[b * T + t], n);
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
