/* Three sums by unit over the positions of each row of [rows, positions, channels], in double: what statistics are made of.
 *
 * A unit is `width` neighbouring channels. The work is cut into blocks of positions and units by the shape alone; a row's sums do not depend on
 * the rows beside it, so neither threads nor the size of a batch change a bit. */
#ifndef ESP_ROWSUMS_H
#define ESP_ROWSUMS_H

#include "../tensor/tensor.h"

enum { ESP_ROW_SUMS = 3 };

typedef struct esp_row_sums esp_row_sums;

/* A stretch of one row: `positions` from t on, `units` from u on. */
typedef struct esp_stretch_of_row {
    int64_t row, t, positions, u, units;
} esp_stretch_of_row;

struct esp_row_sums {
    int64_t rows, positions, units, width;
    const int32_t *lengths;               /* positions of each row that count, NULL: all */
    /* Adds to sum[k * units + i], k < 3, i < units of the stretch. */
    int (*fill)(const esp_row_sums *r, const esp_stretch_of_row *s, double *sum);
    /* Adds what the sums [3][n] of a whole row, for n units from u on, make to the statistics; count: its positions, not 0. */
    void (*fold)(const esp_row_sums *r, int64_t row, double count, int64_t u, int64_t n, const double *sum);
    void *context;
    double *partial;                      /* own */
};

int esp_row_sums_run(esp_row_sums *r);

/* Part of a tensor [B,T,C] as f32: where it stands, or widened into room (bf16), `n` channels from c on. *step: from one position to the next. */
const float *esp_row_tile(const esp_tensor *x, int64_t row, int64_t t, int64_t positions, int64_t c, int64_t n, float *room, int64_t *step);
/* Positions of which `channels` numbers each are looked at together, so that they stay in the first caches. */
int64_t esp_row_tile_positions(int64_t channels);

/* sum[i], sum[stride + i], sum[2 * stride + i] += sums over positions of |x|, x and x^2 for n channels. */
void esp_sums_across(double *sum, int64_t stride, const float *x, int64_t step, int64_t positions, int64_t n);
void esp_sums_across_bf16(double *sum, int64_t stride, const uint16_t *x, int64_t step, int64_t positions, int64_t n);
/* The same for one channel whose positions lie side by side: sum[0], sum[stride], sum[2 * stride]. */
void esp_sums_along(double *sum, int64_t stride, const float *x, int64_t positions);

/* A dense or row-strided activation [B,T,C], f32 or bf16, with positions. */
int esp_check_sites(const char *op, const char *arg, const esp_tensor *x);
/* f64 dense statistics of a shape. */
int esp_check_stats(const char *op, const esp_tensor *stats, int ndim, const int64_t *shape, const char *why);
/* lengths i32 [rows] or NULL: each within 0 and positions. */
int esp_check_lengths(const char *op, const esp_tensor *lengths, int64_t rows, int64_t positions);

#endif
