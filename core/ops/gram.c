/* A small matrix that stretches vectors as a large one does: R with R R' = W'W, so |R' x| = |W x|. */
#include <math.h>

#include "backend.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), ROWS = 64, GROUP = 4, LANES = 8 };

typedef struct root_args {
    esp_rows w;                           /* [O, units * width] */
    float *root;
    int64_t width;
} root_args;

static int check(root_args *a, const esp_tensor *root, const esp_tensor *w, int64_t width)
{
    const char *op = "gram_root";
    TRY(esp_check_rows(&a->w, op, "w", w, FLOATS, ESP_READ));
    if (width < 1 || a->w.cols % width != 0) {
        return esp_fail(ESP_EARG, "%s: width %lld does not divide the %lld columns of 'w'", op, (long long)width, (long long)a->w.cols);
    }
    int64_t want[] = {a->w.cols / width, width, width};
    TRY(esp_check(op, "root", root, ESP_BIT(ESP_F32), ESP_WRITE));
    TRY(esp_check_shape(op, "root", root, 3, want, "a square matrix for each `width` columns of w"));
    TRY(esp_check_dense(op, "root", root));
    a->root = esp_tensor_at(root);
    a->width = width;
    return ESP_OK;
}

int esp_gram_root(esp_tensor *root, const esp_tensor *w, int64_t width)
{
    root_args a;
    TRY(check(&a, root, w, width));
    return esp_backend_of(root)->gram_root(root, w, width);
}

/* columns[width][ROWS] of `rows` rows of w from row o on, columns c and on; rows that are missing are zeros. */
static void columns_of(double *columns, const esp_rows *w, int64_t o, int64_t rows, int64_t c, int64_t width)
{
    memset(columns, 0, (size_t)(width * ROWS) * sizeof *columns);
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = (o + r) * w->stride + c;
        for (int64_t i = 0; i < width; i++) {
            columns[i * ROWS + r] = w->dtype == ESP_F32 ? (double)((const float *)w->data)[at + i]
                                                        : (double)esp_bf16_to_f32(((const uint16_t *)w->data)[at + i]);
        }
    }
}

/* gram[i][j] += column i . column j, for j from the group of columns on that i is in; there are columns of zeros up to a whole group. */
static ESP_SIMD void add_products(double *restrict gram, const double *restrict columns, int64_t width)
{
    for (int64_t i = 0; i < width; i++) {
        for (int64_t j = i / GROUP * GROUP; j < width; j += GROUP) {
            const double *a = columns + i * ROWS, *b = columns + j * ROWS;
            double acc[GROUP][LANES] = {{0}};
            for (int r = 0; r < ROWS; r += LANES) {
                for (int k = 0; k < GROUP; k++) for (int l = 0; l < LANES; l++) acc[k][l] += a[r + l] * b[k * ROWS + r + l];
            }
            for (int k = 0; k < GROUP && j + k < width; k++) {
                double sum = 0;
                for (int l = 0; l < LANES; l++) sum += acc[k][l];
                gram[i * width + j + k] += sum;
            }
        }
    }
}

/* to -= factor * from, n numbers. */
static ESP_SIMD void take_off(double *restrict to, const double *restrict from, double factor, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] -= factor * from[i];
}

/* Cholesky in place: the upper half of gram becomes R'. Of columns that depend on those before nothing is left but rounding: their column of R is zero,
 * which changes lengths by less than f32 can tell. */
static void cholesky(double *gram, int64_t width)
{
    for (int64_t j = 0; j < width; j++) {
        double *row = gram + j * width, whole = row[j];
        for (int64_t k = 0; k < j; k++) take_off(row + j, gram + k * width + j, gram[k * width + j], width - j);
        double pivot = row[j];
        /* A pivot that is NaN is no small one. */
        double scale = pivot <= 1e-14 * whole ? 0 : 1 / sqrt(pivot);
        for (int64_t i = j; i < width; i++) row[i] *= scale;
    }
}

static int root_block(void *context, int64_t unit)
{
    const root_args *a = context;
    int64_t width = a->width, padded = esp_ceil_div(width, GROUP) * GROUP, at = unit * width;
    double *gram = esp_scratch((width * width + padded * ROWS) * (int64_t)sizeof *gram);
    if (!gram) return ESP_EMEM;
    double *columns = gram + width * width;
    memset(gram, 0, (size_t)(width * width) * sizeof *gram);
    memset(columns, 0, (size_t)(padded * ROWS) * sizeof *columns);
    for (int64_t o = 0; o < a->w.rows; o += ROWS) {
        columns_of(columns, &a->w, o, esp_min(ROWS, a->w.rows - o), at, width);
        add_products(gram, columns, width);
    }
    cholesky(gram, width);
    float *root = a->root + at * width;
    for (int64_t i = 0; i < width; i++) for (int64_t j = 0; j < width; j++) root[i * width + j] = j > i ? 0 : (float)gram[j * width + i];
    return ESP_OK;
}

int esp_cpu_gram_root(esp_tensor *root, const esp_tensor *w, int64_t width)
{
    root_args a;
    TRY(check(&a, root, w, width));
    return esp_parallel(a.w.cols / width, root_block, &a);
}
