/* Attention of a few queries behind a cache (decoding): keys and values are read once, in the order in which they lie, and reading them is all that
 * counts. Arithmetic is f32 whatever the dtype.
 *
 * The keys are cut into stretches. Each finds, for every query and head, the maximum, the sum and the weighted values of its own keys; then the
 * stretches are put together in their order. */
#include "attention.h"

#include "../formula.h"

enum { LANES = 16, PAIRS = 4, STRETCHES = 64, LEAST = 32 };

typedef float floats16 __attribute__((vector_size(64), aligned(2), may_alias));
typedef float floats8 __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t words16 __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint32_t words8 __attribute__((vector_size(32), aligned(2), may_alias));
#define INLINE static inline __attribute__((always_inline))

typedef struct few {
    const esp_attention_args *a;
    int64_t rows, stretch, stretches;     /* rows: queries times heads, of one element of the batch; row r is query r / H, head r % H */
    int share;                            /* so many rows, from a multiple of it on, read the same head of k: 4, 2 or 1 */
    float *q, *max, *sum, *o;             /* q [B,rows,D] times c; of each stretch: [B,stretches,rows], twice; [.., D] */
    int64_t *k_at, *v_at;                 /* bytes from the first head of k, and of v, to that of each row */
    int32_t *place;                       /* [D] */
    float c;
} few;

/* Where each channel stands in a row of q and o. A word of bf16 widens to an even channel by a shift and to an odd one by a mask, so whole blocks of
 * 32, and of what is left one of 16, hold their even channels first; f32 rows stand as they are. */
static void find_places(int32_t *place, int bf16, int64_t D)
{
    for (int64_t c = 0; c < D; c++) {
        int64_t block = c < D / 32 * 32 ? 32 : c < D / 16 * 16 ? 16 : 1, from = c < D / 32 * 32 ? c / 32 * 32 : D / 32 * 32, i = c - from;
        place[c] = (int32_t)(!bf16 || block == 1 ? c : from + i % 2 * (block / 2) + i / 2);
    }
}

/* The halves of a block of 32, and of one of 16, channels as they are stored. */
INLINE void load_32(floats16 half[2], const int bf16, const char *x, int64_t i)
{
    if (bf16) {
        words16 w = *(const words16 *)(const void *)(x + i * 2);
        half[0] = (floats16)(w << 16), half[1] = (floats16)(w & 0xffff0000u);
    } else {
        half[0] = *(const floats16 *)(const void *)(x + i * 4), half[1] = *(const floats16 *)(const void *)(x + i * 4 + 64);
    }
}

INLINE void load_16(floats8 half[2], const int bf16, const char *x, int64_t i)
{
    if (bf16) {
        words8 w = *(const words8 *)(const void *)(x + i * 2);
        half[0] = (floats8)(w << 16), half[1] = (floats8)(w & 0xffff0000u);
    } else {
        half[0] = *(const floats8 *)(const void *)(x + i * 4), half[1] = *(const floats8 *)(const void *)(x + i * 4 + 32);
    }
}

INLINE float load_one(const int bf16, const char *x, int64_t i)
{
    return bf16 ? esp_bf16_to_f32(((const uint16_t *)(const void *)x)[i]) : ((const float *)(const void *)x)[i];
}

/* The first half of t is the sum of x and of y in its first and second quarter, and so on. */
INLINE void add_halves(floats16 *t, const floats16 *x, const floats16 *y)
{
    *t = __builtin_shufflevector(*x, *y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(*x, *y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

/* to[j] = the sum of t[j], for four of them together. */
INLINE void sums_of(float *to, const floats16 t[PAIRS])
{
    floats16 x, y, z;
    add_halves(&x, &t[0], &t[1]);
    add_halves(&y, &t[2], &t[3]);
    z = __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
        __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    z += __builtin_shufflevector(z, z, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    z += __builtin_shufflevector(z, z, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    for (int j = 0; j < PAIRS; j++) to[j] = z[4 * j];
}

/* to[j] = q[j] k[j]; so many neighbours share a key. */
INLINE void dots(const int bf16, const int share, float *to, const float *const q[PAIRS], const char *const k[PAIRS], int64_t D)
{
    floats16 t[PAIRS] = {{0}}, half[2];
    int64_t i = 0;
    for (; i + 32 <= D; i += 32) {
        for (int j = 0; j < PAIRS; j++) {
            load_32(half, bf16, k[j / share * share], i);
            t[j] += half[0] * *(const floats16 *)(q[j] + i);
            t[j] += half[1] * *(const floats16 *)(q[j] + i + 16);
        }
    }
    if (i + 16 <= D) {
        for (int j = 0; j < PAIRS; j++) {
            floats8 part[2], zero = {0};
            load_16(part, bf16, k[j], i);
            part[0] = part[0] * *(const floats8 *)(q[j] + i) + part[1] * *(const floats8 *)(q[j] + i + 8);
            t[j] += __builtin_shufflevector(part[0], zero, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        }
        i += 16;
    }
    sums_of(to, t);
    for (; i < D; i++) for (int j = 0; j < PAIRS; j++) to[j] += q[j][i] * load_one(bf16, k[j], i);
}

/* Scores [rows, width] of keys s0 .. s0 + n - 1, key by key and head by head as they lie: the processor reads ahead in few streams only. */
INLINE void scores(const int bf16, const int share, const few *f, float *s, int64_t width, int64_t b, int64_t s0, int64_t n)
{
    int64_t D = f->a->D, rows = f->rows;
    for (int64_t i = 0; i < n; i++) {
        const float *from = f->q + b * rows * D;
        const char *key = esp_head_rows(f->a->k, b, s0 + i, 0).data;
        for (int64_t r = 0; r < rows; r += PAIRS, from += PAIRS * D) {
            const float *q[PAIRS];
            const char *k[PAIRS];
            float to[PAIRS];
            /* Behind the last row it is taken again. */
            for (int64_t j = 0; j < PAIRS; j++) {
                int64_t more = esp_min(j, rows - 1 - r);
                q[j] = from + more * D, k[j] = key + f->k_at[r + more];
            }
            dots(bf16, share, to, q, k, D);
            for (int64_t j = 0; j < esp_min(PAIRS, rows - r); j++) s[(r + j) * width + i] = to[j];
        }
    }
}

/* o[j] += p[j][0] v0 + p[j][1] v1 for rows that share values, p[j] being `width` from row to row. */
INLINE void add_values(const int bf16, const int share, float *o, const float *p, int64_t width, const char *v0, const char *v1, int64_t D)
{
    int64_t i = 0;
    for (; i + 32 <= D; i += 32) {
        floats16 x[2], y[2];
        load_32(x, bf16, v0, i);
        load_32(y, bf16, v1, i);
        for (int j = 0; j < share; j++) {
            for (int h = 0; h < 2; h++) {
                floats16 *to = (floats16 *)(o + j * D + i + 16 * h), sum = *to + p[j * width] * x[h];
                *to = sum + p[j * width + 1] * y[h];
            }
        }
    }
    if (i + 16 <= D) {
        floats8 x[2], y[2];
        load_16(x, bf16, v0, i);
        load_16(y, bf16, v1, i);
        for (int j = 0; j < share; j++) {
            for (int h = 0; h < 2; h++) *(floats8 *)(o + j * D + i + 8 * h) += p[j * width] * x[h] + p[j * width + 1] * y[h];
        }
        i += 16;
    }
    for (; i < D; i++) {
        float x = load_one(bf16, v0, i), y = load_one(bf16, v1, i);
        for (int j = 0; j < share; j++) o[j * D + i] += p[j * width] * x + p[j * width + 1] * y;
    }
}

/* o[rows, D] += p v, two keys at a time; p of one key more is 0 where n is odd. */
INLINE void values(const int bf16, const int share, const few *f, float *o, const float *p, int64_t width, int64_t b, int64_t s0, int64_t n)
{
    int64_t D = f->a->D;
    for (int64_t i = 0; i < n; i += 2) {
        const char *v0 = esp_head_rows(f->a->v, b, s0 + i, 0).data, *v1 = esp_head_rows(f->a->v, b, s0 + esp_min(i + 1, n - 1), 0).data;
        for (int64_t r = 0; r < f->rows; r += share) {
            add_values(bf16, share, o + r * D, p + r * width + i, width, v0 + f->v_at[r], v1 + f->v_at[r], D);
        }
    }
}

/* One function of each for a dtype, cloned for each instruction set. */
#define FOR_DTYPE(dtype, bf16) \
    static ESP_SIMD void scores_##dtype(const few *f, float *s, int64_t width, int64_t b, int64_t s0, int64_t n) \
    { \
        if (f->share == 4) scores(bf16, 4, f, s, width, b, s0, n); \
        else if (f->share == 2) scores(bf16, 2, f, s, width, b, s0, n); \
        else scores(bf16, 1, f, s, width, b, s0, n); \
    } \
    static ESP_SIMD void values_##dtype(const few *f, float *o, const float *p, int64_t width, int64_t b, int64_t s0, int64_t n) \
    { \
        if (f->share == 4) values(bf16, 4, f, o, p, width, b, s0, n); \
        else if (f->share == 2) values(bf16, 2, f, o, p, width, b, s0, n); \
        else values(bf16, 1, f, o, p, width, b, s0, n); \
    }
FOR_DTYPE(f32, 0)
FOR_DTYPE(bf16, 1)
#undef FOR_DTYPE

static ESP_SIMD float row_max(const float *s, int64_t n)
{
    float most[LANES];
    for (int l = 0; l < LANES; l++) most[l] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) for (int l = 0; l < LANES; l++) most[l] = s[i + l] > most[l] ? s[i + l] : most[l];
    for (int l = 0; i < n; i++, l++) most[l] = s[i] > most[l] ? s[i] : most[l];
    for (int l = 1; l < LANES; l++) most[0] = most[l] > most[0] ? most[l] : most[0];
    return most[0];
}

/* s = 2^(s - shift), and their sum. */
static ESP_SIMD float exponentials(float *s, float shift, int64_t n)
{
    float lanes[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (i = 0; i < n; i++) s[i] = esp_exp2f(s[i] - shift);
    for (i = 0; i + LANES <= n; i += LANES) for (int l = 0; l < LANES; l++) lanes[l] += s[i + l];
    for (; i < n; i++) sum += s[i];
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

static ESP_SIMD void cap_row(float *s, float scale, float cap, int64_t n)
{
    float inner = scale / cap;
    for (int64_t i = 0; i < n; i++) s[i] = cap * (float)M_LOG2E * esp_tanhf(s[i] * inner);
}

/* The softmax of a row over keys lo .. hi-1 of n: exponentials, 0 elsewhere. */
static void softmax(const few *f, float *s, int64_t lo, int64_t hi, int64_t n, float *max, float *sum)
{
    if (f->a->cap > 0) cap_row(s, f->a->scale, f->a->cap, n);
    float most = row_max(s + lo, hi - lo);
    memset(s, 0, (size_t)lo * 4);
    memset(s + hi, 0, (size_t)(n - hi) * 4);
    *max = most;
    *sum = exponentials(s + lo, most == -INFINITY ? 0 : most, hi - lo);
}

/* Keys *lo .. *hi-1 of those s0 .. s0 + n - 1 are seen by query t. */
static int sees(const few *f, int64_t b, int64_t t, int64_t s0, int64_t n, int64_t *lo, int64_t *hi)
{
    const esp_attention_args *a = f->a;
    *hi = esp_max_of(0, esp_min(n, a->S - a->T + t + 1 - s0));
    *lo = esp_min(*hi, esp_max_of(0, (a->first ? a->first[b * a->T + t] : 0) - s0));
    return *lo < *hi;
}

/* One stretch of keys; it is not read where no query sees any of them. */
static int stretch(void *context, int64_t block)
{
    const few *f = context;
    const esp_attention_args *a = f->a;
    int64_t b = block / f->stretches, s0 = block % f->stretches * f->stretch, n = esp_min(f->stretch, a->S - s0), width = esp_pad(n, 2), lo, hi;
    int bf16 = a->k->dtype == ESP_BF16, any = 0;
    float *s = esp_scratch(f->rows * width * 4), *o = f->o + block * f->rows * a->D, *max = f->max + block * f->rows, *sum = f->sum + block * f->rows;
    if (!s) return ESP_EMEM;
    for (int64_t t = 0; t < a->T; t++) any |= sees(f, b, t, s0, n, &lo, &hi);
    for (int64_t r = 0; r < f->rows; r++) max[r] = -INFINITY, sum[r] = 0;
    if (!any) return ESP_OK;
    (bf16 ? scores_bf16 : scores_f32)(f, s, width, b, s0, n);
    for (int64_t r = 0; r < f->rows; r++) {
        sees(f, b, r / a->H, s0, n, &lo, &hi);
        if (n % 2) s[r * width + n] = 0;
        softmax(f, s + r * width, lo, hi, n, max + r, sum + r);
    }
    memset(o, 0, (size_t)(f->rows * a->D * 4));
    (bf16 ? values_bf16 : values_f32)(f, o, s, width, b, s0, n);
    return ESP_OK;
}

static ESP_SIMD void add_scaled(float *restrict to, const float *restrict from, float by, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] += by * from[i];
}

/* One row of the result from its stretches. */
static int merge(void *context, int64_t block)
{
    const few *f = context;
    const esp_attention_args *a = f->a;
    int64_t b = block / f->rows, r = block % f->rows, t = r / a->H, h = r % a->H, first = b * f->stretches * f->rows + r;
    float most = -INFINITY, sum = 0, *o = esp_scratch(2 * a->D * 4);
    if (!o) return ESP_EMEM;
    for (int64_t i = 0; i < f->stretches; i++) most = f->max[first + i * f->rows] > most ? f->max[first + i * f->rows] : most;
    float shift = most == -INFINITY ? 0 : most;
    memset(o, 0, (size_t)a->D * 4);
    for (int64_t i = 0; i < f->stretches; i++) {
        int64_t at = first + i * f->rows;
        float weight = esp_exp2f(f->max[at] - shift);
        if (f->sum[at] == 0) continue;
        sum += weight * f->sum[at];
        add_scaled(o, f->o + at * a->D, weight, a->D);
    }
    for (int64_t c = 0; c < a->D; c++) o[a->D + c] = o[f->place[c]] / sum;
    esp_matrix to = esp_head_rows(a->o, b, t, h);
    esp_convert(to.data, to.dtype, o + a->D, ESP_F32, a->D);
    if (a->lse) a->lse[(b * a->H + h) * a->T + t] = shift * (float)M_LN2 + logf(sum);
    return ESP_OK;
}

static void read_queries(const few *f)
{
    const esp_attention_args *a = f->a;
    for (int64_t i = 0; i < a->B * f->rows; i++) {
        esp_matrix x = esp_head_rows(a->q, i / f->rows, i % f->rows / a->H, i % a->H);
        for (int64_t c = 0; c < a->D; c++) f->q[i * a->D + f->place[c]] = f->c * load_one(x.dtype == ESP_BF16, x.data, c);
    }
    for (int64_t r = 0; r < f->rows; r++) {
        int64_t g = r % a->H / a->each, size = esp_dtype_size(a->k->dtype);
        f->k_at[r] = g * a->k->stride[2] * size, f->v_at[r] = g * a->v->stride[2] * size;
    }
}

int esp_attention_few(const esp_attention_args *a)
{
    if (a->o->count == 0) return ESP_OK;
    few f = {.a = a, .rows = a->T * a->H, .c = a->cap > 0 ? 1 : a->scale * (float)M_LOG2E};
    f.share = a->each % 4 == 0 ? 4 : a->each % 2 == 0 ? 2 : 1;
    f.stretch = esp_max_of(LEAST, esp_pad(esp_ceil_div(a->S, STRETCHES), LEAST));
    f.stretches = esp_ceil_div(a->S, f.stretch);
    int64_t all = a->B * f.rows, parts = all * f.stretches;
    if (!(f.k_at = esp_malloc(f.rows * 16 + (all * a->D + parts * (2 + a->D) + a->D) * 4))) return ESP_EMEM;
    f.v_at = f.k_at + f.rows, f.q = (float *)(void *)(f.v_at + f.rows), f.max = f.q + all * a->D, f.sum = f.max + parts, f.o = f.sum + parts;
    f.place = (int32_t *)(void *)(f.o + parts * a->D);
    find_places(f.place, a->q->dtype == ESP_BF16, a->D);
    read_queries(&f);
    int code = esp_parallel(a->B * f.stretches, stretch, &f);
    if (code == ESP_OK) code = esp_parallel(all, merge, &f);
    esp_free(f.k_at);
    return code;
}
