/* Inside of attention: what its files share. Internal to core/ops.
 *
 * Scores are kept transposed, [keys, 32 queries]: the softmax of a query is then a column, so that every pass over scores is a plain vector loop,
 * and probabilities come out in the form that the next product takes. A word is what a tile multiplies at once along the sum: two bf16, or one
 * f32; the same code serves both dtypes. */
#ifndef ESP_ATTENTION_H
#define ESP_ATTENTION_H

#include <math.h>

#include "backend.h"
#include "gemm.h"

/* Queries come in tiles of four panels, keys in tiles that start at multiples of ESP_KEYS, so that sums do not depend on how work is cut. */
enum { ESP_PANEL = ESP_TILE_COLS, ESP_PANELS = 4, ESP_QUERIES = ESP_PANELS * ESP_PANEL, ESP_KEYS = 128 };

/* One call: checked arguments of forward or backward. */
typedef struct esp_attention_args {
    const esp_tensor *q, *k, *v, *o, *dout;
    esp_tensor *dq, *dk, *dv;
    float *lse;                           /* [B,H,T] or NULL */
    const int32_t *first;                 /* [B,T] or NULL */
    int64_t B, T, S, H, G, D, each;       /* each: heads of q to one of k */
    float scale, cap;                     /* cap 0: none */
} esp_attention_args;

/* The arithmetic of a dtype. Scores s are [rows,32]; exponents are of 2. */
typedef struct esp_attention_math {
    int64_t per;                          /* numbers of a word */
    /* p = 2^(s c - shift) as words [ceil(rows / per), 32], sum += their columns */
    void (*exponentials)(uint32_t *p, float *sum, const float *s, float c, const float *shift, int64_t rows);
    /* p = 2^(s c - shift), d = p (dp - delta): p and d as rows of `stride` words, d also as words [ceil(rows / per), 32] */
    void (*gradients)(uint32_t *p, uint32_t *d, int64_t stride, uint32_t *words, const float *s, const float *dp, float c, const float *shift,
                      const float *delta, int64_t rows);
    /* Row i of x[n,D] = by[i] times that of from [n, stride]. */
    void (*store)(esp_matrix x, const float *from, int64_t stride, const float *by, int64_t n, int64_t D);
} esp_attention_math;

/* And the kernel of products: that of f32 has the interface of those of bf16, with words for pairs. */
int esp_attention_math_of(const esp_attention_math **math, const esp_kernel **kernel, int dtype);

/* A tile of queries of one head, and what each of them sees: keys lo..hi-1, none for those that fill up the last panel. */
typedef struct esp_queries {
    int64_t b, h, t0, n, panels;
    int64_t lo, hi;                       /* keys that any of them sees */
    struct { int64_t lo, hi, most_lo, least_hi; } panel[ESP_PANELS];
    int32_t from[ESP_QUERIES], to[ESP_QUERIES];
} esp_queries;

void esp_queries_of(esp_queries *x, const esp_attention_args *a, int64_t b, int64_t h, int64_t t0);

/* Scratch of this thread (esp_scratch) as n parts of so many words. */
int esp_scratch_parts(uint32_t **parts, const int64_t *words, int n);

/* Work on (batch, head of k) is cut further until there are this many units: a number of its own, so that results do not depend on the threads. */
enum { ESP_ATTENTION_UNITS = 16 };
static inline int64_t esp_attention_cut(const esp_attention_args *a, int64_t most)
{
    return esp_max_of(1, esp_min(most, esp_ceil_div(ESP_ATTENTION_UNITS, esp_max_of(1, a->B * a->G))));
}

/* ---- passes over scores [rows,32] (attention_math.c) ---- */

/* -infinity where row s0 + r is not one that the column's query sees */
void esp_score_mask(float *s, int64_t s0, int64_t rows, const int32_t *from, const int32_t *to);
/* s = cap tanh(s scale / cap) */
void esp_score_cap(float *s, float scale, float cap, int64_t rows);
/* the same, and dp = (dp - delta) (1 - tanh^2) */
void esp_score_cap_backward(float *s, float *dp, const float *delta, float scale, float cap, int64_t rows);
/* max = max(max, c * maxima of columns); shift = max, or 0 where it is -infinity; shrink = 2^(old max - shift). Returns whether any column grew. */
int esp_score_shift(float *max, float *shift, float *shrink, const float *s, float c, int64_t rows);
/* to[n] = sums of x y along dense rows of a dtype */
void esp_row_dots(float *to, const uint32_t *x, const uint32_t *y, int64_t width, int64_t n, int dtype);
/* x[rows,32] *= by[32] */
void esp_score_scale(float *x, const float *by, int64_t rows);

/* ---- packing (attention_pack.c): a copy in dense rows with room for whole blocks, and other forms made of it ---- */

static inline int64_t esp_pad(int64_t n, int64_t to) { return esp_ceil_div(n, to) * to; }

/* How much of D products take. Where a tile is as high as a panel is wide, parts of it cost more than the whole: zeros fill it up. */
static inline int64_t esp_product_size(const esp_kernel *kernel, int64_t D)
{
    return kernel->rows % ESP_PANEL == 0 ? esp_pad(D, ESP_PANEL) : D;
}

/* The matrix of positions from `position` on of one head. */
esp_matrix esp_head_rows(const esp_tensor *t, int64_t b, int64_t position, int64_t head);
/* to[room, width words]: n rows of x of D numbers, zeros elsewhere */
void esp_pack_dense(uint32_t *to, int64_t width, esp_matrix x, int64_t n, int64_t room, int64_t D);
/* to[words,32]: 32 dense rows as columns; words is a multiple of 16 */
void esp_pack_columns(uint32_t *to, const uint32_t *rows, int64_t width, int64_t words);
/* to[D / 32 panels][n / per][32]: rows as they stand, `per` of them in a word; n rows, a multiple of 32 */
void esp_pack_plain(uint32_t *to, const uint32_t *rows, int64_t width, int64_t n, int64_t D, int64_t per);
/* to[D, stride words]: n rows as columns, `per` of them in a word; n a multiple of 32, D of 32 */
void esp_pack_transposed(uint32_t *to, int64_t stride, const uint32_t *rows, int64_t width, int64_t n, int64_t D, int64_t per);
/* to[32, D filled up to 32] = columns of from[D filled up to 16, 32] */
void esp_unpack_columns(float *to, const float *from, int64_t D);

/* c[m,n] (+)= a[m, words] b[words, 32], n <= 32: rows of one panel, spread evenly over tiles */
static inline void esp_panel_product(const esp_kernel *kernel, int64_t words, const uint32_t *a, int64_t lda, const uint32_t *b, float *c, int64_t ldc,
                                     int64_t m, int64_t n, int add)
{
    int64_t tiles = esp_ceil_div(m, kernel->rows);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t from = m * i / tiles, to = m * (i + 1) / tiles;
        kernel->tile(words, a + from * lda, lda, b, (esp_sums){.c = c + from * ldc, .ldc = ldc, .add = add}, (int)(to - from), (int)n,
                     esp_near_only(a));
    }
}

int esp_attention_forward(const esp_attention_args *a);
int esp_attention_few(const esp_attention_args *a);
int esp_attention_gradients(const esp_attention_args *a);

#endif
