/* Angles between places of the residual stream, token by token. In double: near 1 a cosine hides the angle. */
#include <math.h>

#include "backend.h"
#include "rowsums.h"

enum { ANGLES = 3, TOKENS = 32, LANES = 4, ROWS = 2, COLS = 4 };

/* Tokens are cut into blocks of a row's positions; the sums of a block go to partial[block] and are added up in order. */
typedef struct angle_args {
    double *stats, *partial;
    const esp_tensor *x, *y;
    const int32_t *lengths;
    int64_t rows, positions, first, pairs, half;   /* pairs of a block; half: from one half of stats to the other */
} angle_args;

static int64_t length_of(const angle_args *a, int64_t row) { return a->lengths ? a->lengths[row] : a->positions; }
static int64_t blocks_a_row(const angle_args *a) { return esp_ceil_div(a->positions, TOKENS); }

/* Adds the angle of two vectors, of their product and squared lengths, to a pair's sums. A vector of zeros has cosine 0. */
static void add_angle(double *sum, double product, double aa, double bb, int last)
{
    double lengths = sqrt(aa) * sqrt(bb), c = lengths == 0 ? 0 : product / lengths;
    /* Rounding may leave more than 1; NaN stays NaN. */
    double angle = acos(c > 1 ? 1 : c < -1 ? -1 : c) / 3.14159265358979323846;
    sum[0] += c;
    sum[1] += angle;
    if (last) sum[2] += angle;
}

static int run(angle_args *a, esp_task *task, int64_t (*place)(const angle_args *, int64_t pair))
{
    int64_t blocks = a->rows * blocks_a_row(a), each = a->pairs * ANGLES;
    if (!(a->partial = esp_calloc(blocks * each * (int64_t)sizeof(double)))) return ESP_EMEM;
    int code = esp_parallel(blocks, task, a);
    for (int64_t pair = 0; code == ESP_OK && pair < a->pairs; pair++) {
        int64_t at = place(a, pair);
        for (int64_t block = 0; block < blocks; block++) {
            double *stats = a->stats + ((a->first + block / blocks_a_row(a)) & 1) * a->half + at;
            for (int k = 0; k < ANGLES; k++) stats[k] += a->partial[block * each + pair * ANGLES + k];
        }
    }
    esp_free(a->partial);
    return code;
}

/* ---- of two tensors ---- */

int esp_angle_stats_acc(esp_tensor *stats, const esp_tensor *a, const esp_tensor *b, const esp_tensor *lengths, int64_t first)
{
    const char *op = "angle_stats_acc";
    int64_t want[] = {2, ANGLES};
    TRY(esp_check_sites(op, "a", a));
    TRY(esp_check_sites(op, "b", b));
    TRY(esp_check_shape(op, "b", b, 3, a->shape, "shape of a"));
    TRY(esp_check(op, "stats", stats, ESP_BIT(ESP_F64), ESP_WRITE));
    TRY(esp_check_shape(op, "stats", stats, 2, want, "two halves of three sums"));
    TRY(esp_check_last_dense(op, "stats", stats));
    TRY(esp_check_lengths(op, lengths, a->shape[0], a->shape[1]));
    return esp_backend_of(stats)->angle_stats_acc(stats, a, b, lengths, first);
}

/* dot[0..2] = a b, a a, b b */
static ESP_SIMD void products(double *restrict dot, const float *restrict a, const float *restrict b, int64_t n)
{
    enum { WIDE = 16 };
    double ab[WIDE] = {0}, aa[WIDE] = {0}, bb[WIDE] = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        for (int l = 0; l < WIDE; l++) {
            double u = (double)a[i + l], v = (double)b[i + l];
            ab[l] += u * v, aa[l] += u * u, bb[l] += v * v;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        double u = (double)a[i], v = (double)b[i];
        ab[l] += u * v, aa[l] += u * u, bb[l] += v * v;
    }
    for (int l = 1; l < WIDE; l++) ab[0] += ab[l], aa[0] += aa[l], bb[0] += bb[l];
    dot[0] = ab[0], dot[1] = aa[0], dot[2] = bb[0];
}

static int two_block(void *context, int64_t block)
{
    const angle_args *a = context;
    int64_t row = block / blocks_a_row(a), from = block % blocks_a_row(a) * TOKENS, T = length_of(a, row), C = a->x->shape[2], step;
    float *room = esp_scratch(2 * C * 4);
    if (!room) return ESP_EMEM;
    for (int64_t t = from; t < esp_min(from + TOKENS, T); t++) {
        double dot[3];
        products(dot, esp_row_tile(a->x, row, t, 1, 0, C, room, &step), esp_row_tile(a->y, row, t, 1, 0, C, room + C, &step), C);
        add_angle(a->partial + block * ANGLES, dot[0], dot[1], dot[2], t == T - 1);
    }
    return ESP_OK;
}

static int64_t only_place(const angle_args *a, int64_t pair)
{
    (void)a;
    return pair;
}

int esp_cpu_angle_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *y, const esp_tensor *lengths, int64_t first)
{
    angle_args a = {.stats = esp_tensor_at(stats), .x = x, .y = y, .lengths = lengths ? esp_tensor_at(lengths) : NULL, .rows = x->shape[0],
                    .positions = x->shape[1], .first = first, .pairs = 1, .half = stats->stride[0]};
    return run(&a, two_block, only_place);
}

/* ---- of all pairs of streams ---- */

int esp_stream_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)
{
    const char *op = "stream_stats_acc";
    char text[ESP_TEXT];
    TRY(esp_check(op, "x", x, ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), ESP_READ));
    if (x->ndim != 4 || x->shape[0] < 2) {
        return esp_fail(ESP_ESHAPE, "%s: 'x' is %s, want [two or more streams, batch, positions, channels]", op, esp_shape_text(text, x->ndim, x->shape));
    }
    TRY(esp_check_last_dense(op, "x", x));
    int64_t L = x->shape[0] - 1, want[] = {2, L, L, ANGLES};
    TRY(esp_check_stats(op, stats, 4, want, "two halves of three sums for each pair of streams of x"));
    TRY(esp_check_lengths(op, lengths, x->shape[1], x->shape[2]));
    return esp_backend_of(stats)->stream_stats_acc(stats, x, lengths, first);
}

static ESP_SIMD void widen(double *restrict to, const float *restrict from, int64_t n) { for (int64_t i = 0; i < n; i++) to[i] = (double)from[i]; }

/* Four numbers at once: as arrays of plain numbers the sums of a tile would not stay in registers. */
typedef double four __attribute__((vector_size(32), may_alias));

static inline __attribute__((always_inline)) double total(const four *x) { return ((*x)[0] + (*x)[1]) + ((*x)[2] + (*x)[3]); }

/* gram[i][j] = a[i] . b[j] for 2 x 4 vectors `n` long, a multiple of LANES. */
static inline __attribute__((always_inline)) void gram_tile(double *gram, int64_t S, const double *a, const double *b, int64_t n)
{
    four s00 = {0}, s01 = {0}, s02 = {0}, s03 = {0}, s10 = {0}, s11 = {0}, s12 = {0}, s13 = {0};
    for (int64_t c = 0; c < n; c += LANES) {
        four x = *(const four *)(a + c), y = *(const four *)(a + n + c);
        four u = *(const four *)(b + c), v = *(const four *)(b + n + c), w = *(const four *)(b + 2 * n + c), z = *(const four *)(b + 3 * n + c);
        s00 += x * u, s01 += x * v, s02 += x * w, s03 += x * z;
        s10 += y * u, s11 += y * v, s12 += y * w, s13 += y * z;
    }
    gram[0] = total(&s00), gram[1] = total(&s01), gram[2] = total(&s02), gram[3] = total(&s03);
    gram[S] = total(&s10), gram[S + 1] = total(&s11), gram[S + 2] = total(&s12), gram[S + 3] = total(&s13);
}

/* The products of S vectors, S a multiple of COLS, each pair at least once with the first before the second. */
static ESP_SIMD void gram_of(double *gram, const double *x, int64_t S, int64_t n)
{
    for (int64_t i = 0; i < S; i += ROWS) for (int64_t j = i / COLS * COLS; j < S; j += COLS) gram_tile(gram + i * S + j, S, x + i * n, x + j * n, n);
}

static int stream_block(void *context, int64_t block)
{
    const angle_args *a = context;
    const esp_tensor *x = a->x;
    int64_t S = x->shape[0], C = x->shape[3], rows = esp_ceil_div(S, COLS) * COLS, n = esp_ceil_div(C, LANES) * LANES;
    int64_t row = block / blocks_a_row(a), from = block % blocks_a_row(a) * TOKENS, T = length_of(a, row), step;
    esp_tensor stream = *x;
    stream.ndim = 3;
    for (int d = 0; d < 3; d++) stream.shape[d] = x->shape[d + 1], stream.stride[d] = x->stride[d + 1];
    double *wide = esp_scratch((rows * n + rows * rows) * (int64_t)sizeof *wide + C * 4);
    if (!wide) return ESP_EMEM;
    double *gram = wide + rows * n;
    float *room = (float *)(void *)(gram + rows * rows);
    memset(wide, 0, (size_t)(rows * n) * sizeof *wide);
    for (int64_t t = from; t < esp_min(from + TOKENS, T); t++) {
        for (int64_t i = 0; i < S; i++) {
            stream.offset = x->offset + i * x->stride[0];
            widen(wide + i * n, esp_row_tile(&stream, row, t, 1, 0, C, room, &step), C);
        }
        gram_of(gram, wide, rows, n);
        double *sum = a->partial + block * a->pairs * ANGLES;
        for (int64_t i = 0; i < S - 1; i++) {
            for (int64_t j = i + 1; j < S; j++, sum += ANGLES) {
                add_angle(sum, gram[i * rows + j], gram[i * rows + i], gram[j * rows + j], t == T - 1);
            }
        }
    }
    return ESP_OK;
}

/* Pairs come as (0,1), (0,2) .. (1,2) ..; pair (i,j) has its sums at stats[i][j-1]. */
static int64_t stream_place(const angle_args *a, int64_t pair)
{
    int64_t L = a->x->shape[0] - 1, i = 0;
    while (pair >= L - i) pair -= L - i, i++;
    return (i * L + i + pair) * ANGLES;
}

int esp_cpu_stream_stats_acc(esp_tensor *stats, const esp_tensor *x, const esp_tensor *lengths, int64_t first)
{
    int64_t L = x->shape[0] - 1;
    angle_args a = {.stats = esp_tensor_at(stats), .x = x, .lengths = lengths ? esp_tensor_at(lengths) : NULL, .rows = x->shape[1],
                    .positions = x->shape[2], .first = first, .pairs = L * (L + 1) / 2, .half = L * L * ANGLES};
    return run(&a, stream_block, stream_place);
}
