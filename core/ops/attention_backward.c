/* Attention backward: probabilities are made again from lse, tile by tile (2205.14135). With s^T = k q^T and dp^T = v dout^T, all [keys, queries]:
 *
 *   p = 2^(c s - lse log2 e)    d = p (dp - delta)    delta = sum of o dout
 *   dv += p dout                dk += d q scale       dq^T += k^T d scale                                                                        */
#include "attention.h"

typedef struct backward {
    const esp_attention_args *a;
    const esp_attention_math *math;
    const esp_kernel *kernel;
    int64_t cut;                          /* units to a (batch, head of k) */
    float c;                              /* exponents are scores times c */
    float scale[ESP_QUERIES], one[ESP_QUERIES]; /* what rows of results are multiplied by */
    float *partial;                       /* dq of each unit where there are more than one to a head of k: [B,G,cut,each,T,D] */
} backward;

/* One thread's operands and results. Padded: D filled up to whole panels. Keys are those of the unit, tile behind tile. */
typedef struct room {
    uint32_t *k, *v, *kt;                 /* [keys, width], twice; k^T [padded, stride] */
    uint32_t *q, *qt, *dout, *dout_t, *o; /* of a tile of queries: panels of rows [ESP_QUERIES / per, 32], panels of columns [width, 32]; o dense */
    uint32_t *dense, *p, *d, *d_words;    /* dense rows; p and d as rows of keys, [ESP_KEYS, ESP_QUERIES / per]; d of one panel as words */
    float *dk, *dv, *dq, *s, *dp, *turned; /* [keys, padded], twice; panels of [padded, 32]; scores and their gradient [ESP_KEYS, 32]; dq */
    int64_t size, words, width, stride, padded; /* of D in products; words of that, of a dense row, of a row of k^T */
} room;

/* A tile of queries and what its softmax needs. */
typedef struct queries {
    esp_queries x;
    float shift[ESP_QUERIES], delta[ESP_QUERIES];
} queries;

static int make_room(room *r, const backward *f, int64_t keys)
{
    int64_t D = f->a->D, size = esp_product_size(f->kernel, D), per = f->math->per, padded = esp_pad(D, ESP_PANEL), width = padded / per;
    int64_t tile = ESP_QUERIES * width;
    enum { K, V, KT, Q, QT, DOUT, DOUT_T, O, DENSE, P, D_ROWS, D_WORDS, DK, DV, DQ, S, DP, TURNED, PARTS };
    const int64_t words[PARTS] = {
        [K] = keys * width, [V] = keys * width, [KT] = padded * (keys / per), [Q] = tile, [QT] = tile, [DOUT] = tile, [DOUT_T] = tile, [O] = tile,
        [DENSE] = tile, [P] = ESP_KEYS * ESP_QUERIES / per, [D_ROWS] = ESP_KEYS * ESP_QUERIES / per, [D_WORDS] = ESP_KEYS * ESP_PANEL,
        [DK] = keys * padded, [DV] = keys * padded, [DQ] = ESP_QUERIES * padded, [S] = ESP_KEYS * ESP_PANEL, [DP] = ESP_KEYS * ESP_PANEL,
        [TURNED] = ESP_PANEL * padded};
    uint32_t *part[PARTS];
    TRY(esp_scratch_parts(part, words, PARTS));
#define FLOATS(i) ((float *)(void *)part[i])
    *r = (room){.k = part[K], .v = part[V], .kt = part[KT], .q = part[Q], .qt = part[QT], .dout = part[DOUT], .dout_t = part[DOUT_T], .o = part[O],
                .dense = part[DENSE], .p = part[P], .d = part[D_ROWS], .d_words = part[D_WORDS], .dk = FLOATS(DK), .dv = FLOATS(DV),
                .dq = FLOATS(DQ), .s = FLOATS(S), .dp = FLOATS(DP), .turned = FLOATS(TURNED), .size = size, .words = esp_ceil_div(size, per),
                .width = width, .stride = keys / per, .padded = padded};
#undef FLOATS
    memset(r->dk, 0, (size_t)(keys * padded * 4));
    memset(r->dv, 0, (size_t)(keys * padded * 4));
    return ESP_OK;
}

/* The unit's keys: tiles part, part + cut, .. of one head of k. */
static void pack_keys(room *r, const backward *f, int64_t b, int64_t g, int64_t part)
{
    const esp_attention_args *a = f->a;
    int64_t at = 0;
    for (int64_t s0 = part * ESP_KEYS; s0 < a->S; s0 += f->cut * ESP_KEYS, at += ESP_KEYS) {
        int64_t n = esp_min(ESP_KEYS, a->S - s0);
        esp_pack_dense(r->k + at * r->width, r->width, esp_head_rows(a->k, b, s0, g), n, ESP_KEYS, a->D);
        esp_pack_dense(r->v + at * r->width, r->width, esp_head_rows(a->v, b, s0, g), n, ESP_KEYS, a->D);
        esp_pack_transposed(r->kt + at / f->math->per, r->stride, r->k + at * r->width, r->width, ESP_KEYS, r->padded, f->math->per);
    }
}

/* Rows as panels of columns and as panels of rows. */
static void pack_queries(const room *r, const backward *f, const esp_queries *x, const esp_tensor *t, uint32_t *columns, uint32_t *plain)
{
    int64_t n = x->panels * ESP_PANEL;
    esp_pack_dense(r->dense, r->width, esp_head_rows(t, x->b, x->t0, x->h), x->n, n, f->a->D);
    esp_pack_plain(plain, r->dense, r->width, n, r->padded, f->math->per);
    for (int64_t p = 0; p < x->panels; p++) {
        esp_pack_columns(columns + p * r->width * ESP_PANEL, r->dense + p * ESP_PANEL * r->width, r->width, r->width);
    }
}

static void open_queries(const room *r, const backward *f, queries *w, int64_t b, int64_t h, int64_t t0)
{
    const esp_attention_args *a = f->a;
    esp_queries *x = &w->x;
    esp_queries_of(x, a, b, h, t0);
    pack_queries(r, f, x, a->q, r->qt, r->q);
    pack_queries(r, f, x, a->dout, r->dout_t, r->dout);
    esp_pack_dense(r->o, r->width, esp_head_rows(a->o, b, t0, h), x->n, x->n, a->D);
    esp_row_dots(w->delta, r->o, r->dense, r->width, x->n, a->q->dtype);
    const float *lse = a->lse + (b * a->H + h) * a->T + t0;
    for (int64_t j = 0; j < x->n; j++) w->shift[j] = lse[j] * (float)M_LOG2E;
    for (int64_t j = x->n; j < ESP_QUERIES; j++) w->shift[j] = w->delta[j] = 0;
    memset(r->dq, 0, (size_t)(x->panels * r->padded * ESP_PANEL * 4));
}

/* Keys from .. to-1 of the tile that begins at s0, packed at row `at`, meet panel i: rows of p and d, and what d adds to dq. */
static void panel_step(const backward *f, const room *r, queries *w, int64_t i, int64_t at, int64_t s0, int64_t from, int64_t to)
{
    const esp_attention_args *a = f->a;
    const esp_queries *x = &w->x;
    static const float zeros[ESP_PANEL];
    int64_t rows = to - from, key = at + from - s0, per = f->math->per, stride = ESP_QUERIES / per, panel = i * r->width * ESP_PANEL;
    int64_t cell = (from - s0) * stride + i * (ESP_PANEL / per);
    const float *delta = w->delta + i * ESP_PANEL, *shift = w->shift + i * ESP_PANEL;
    esp_panel_product(f->kernel, r->words, r->k + key * r->width, r->width, r->qt + panel, r->s, ESP_PANEL, rows, ESP_PANEL, 0);
    esp_panel_product(f->kernel, r->words, r->v + key * r->width, r->width, r->dout_t + panel, r->dp, ESP_PANEL, rows, ESP_PANEL, 0);
    if (a->cap > 0) {
        esp_score_cap_backward(r->s, r->dp, delta, a->scale, a->cap, rows);
        delta = zeros;
    }
    if (x->panel[i].most_lo > from || x->panel[i].least_hi < to) {
        esp_score_mask(r->s, from, rows, x->from + i * ESP_PANEL, x->to + i * ESP_PANEL);
    }
    f->math->gradients(r->p + cell, r->d + cell, stride, r->d_words, r->s, r->dp, f->c, shift, delta, rows);
    esp_panel_product(f->kernel, esp_ceil_div(rows, per), r->kt + key / per, r->stride, r->d_words, r->dq + i * r->padded * ESP_PANEL, ESP_PANEL,
                      r->size, ESP_PANEL, 1);
}

/* to[keys, D] += p dout, and the same of d and q: rows from .. to-1 of p. Queries before a key do not see it. */
static void add_to_keys(const backward *f, const room *r, const esp_queries *x, const uint32_t *p, const uint32_t *plain, float *sum, int64_t s0,
                        int64_t from, int64_t to)
{
    int64_t per = f->math->per, stride = ESP_QUERIES / per, words = x->panels * ESP_PANEL / per;
    int64_t tiles = esp_ceil_div(to - from, f->kernel->rows);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t row = from + (to - from) * i / tiles, end = from + (to - from) * (i + 1) / tiles;
        int64_t skip = esp_max_of(0, row - x->t0) / per;
        for (int64_t c = 0; c < r->size; c += ESP_PANEL) {
            f->kernel->tile(words - skip, p + (row - s0) * stride + skip, stride, plain + (c / ESP_PANEL * words + skip) * ESP_PANEL,
                            (esp_sums){.c = sum + (row - s0) * r->padded + c, .ldc = r->padded, .add = 1}, (int)(end - row),
                            (int)esp_min(ESP_PANEL, r->size - c), esp_near_only(p));
        }
    }
}

static void clear_rows(const backward *f, uint32_t *rows, int64_t from, int64_t to)
{
    int64_t per = f->math->per;
    for (int64_t i = from; i < to; i++) memset(rows + i * (ESP_QUERIES / per), 0, (size_t)(ESP_PANEL / per * 4));
}

/* A tile of queries meets the tile of keys that begins at s0 and is packed at row `at`. */
static void step(const backward *f, const room *r, queries *w, int64_t at, int64_t s0)
{
    const esp_queries *x = &w->x;
    /* A word of k^T holds an even key and the odd one behind it. */
    int64_t from = esp_max_of(s0, x->lo / 2 * 2), to = esp_min(s0 + ESP_KEYS, x->hi);
    if (from >= to) return;
    for (int64_t i = 0; i < x->panels; i++) {
        int64_t lo = esp_max_of(from, x->panel[i].lo / 2 * 2), hi = esp_min(to, x->panel[i].hi), column = i * (ESP_PANEL / f->math->per);
        if (lo < hi) panel_step(f, r, w, i, at, s0, lo, hi);
        else lo = hi = to;
        uint32_t *both[] = {r->p + column, r->d + column};
        for (int k = 0; k < 2; k++) {
            clear_rows(f, both[k], from - s0, lo - s0);
            clear_rows(f, both[k], hi - s0, to - s0);
        }
    }
    add_to_keys(f, r, x, r->p, r->dout, r->dv + at * r->padded, s0, from, to);
    add_to_keys(f, r, x, r->d, r->q, r->dk + at * r->padded, s0, from, to);
}

/* dq of a tile of queries, into place or beside those of the head's other units. */
static void close_queries(const backward *f, const room *r, const esp_queries *x, int64_t block)
{
    const esp_attention_args *a = f->a;
    for (int64_t p = 0; p < x->panels; p++) {
        int64_t t0 = x->t0 + p * ESP_PANEL, n = esp_min(ESP_PANEL, a->T - t0);
        esp_unpack_columns(r->turned, r->dq + p * r->padded * ESP_PANEL, a->D);
        if (f->cut == 1) {
            f->math->store(esp_head_rows(a->dq, x->b, t0, x->h), r->turned, r->padded, f->scale, n, a->D);
        } else {
            float *to = f->partial + ((block * a->each + x->h % a->each) * a->T + t0) * a->D;
            for (int64_t i = 0; i < n; i++) memcpy(to + i * a->D, r->turned + i * r->padded, (size_t)a->D * 4);
        }
    }
}

static void close_keys(const room *r, const backward *f, int64_t b, int64_t g, int64_t part)
{
    const esp_attention_args *a = f->a;
    int64_t at = 0;
    for (int64_t s0 = part * ESP_KEYS; s0 < a->S; s0 += f->cut * ESP_KEYS, at += ESP_KEYS) {
        int64_t n = esp_min(ESP_KEYS, a->S - s0);
        f->math->store(esp_head_rows(a->dk, b, s0, g), r->dk + at * r->padded, r->padded, f->scale, n, a->D);
        f->math->store(esp_head_rows(a->dv, b, s0, g), r->dv + at * r->padded, r->padded, f->one, n, a->D);
    }
}

/* One unit: every cut-th tile of keys of one head of k, and all queries that read it, head after head. */
static int unit(void *context, int64_t block)
{
    const backward *f = context;
    const esp_attention_args *a = f->a;
    int64_t part = block % f->cut, g = block / f->cut % a->G, b = block / f->cut / a->G;
    int64_t keys = esp_ceil_div(esp_ceil_div(a->S, ESP_KEYS) - part, f->cut) * ESP_KEYS;
    room r;
    TRY(make_room(&r, f, keys));
    pack_keys(&r, f, b, g, part);
    queries w;
    f->kernel->enter();
    for (int64_t h = g * a->each; h < (g + 1) * a->each; h++) {
        for (int64_t t0 = 0; t0 < a->T; t0 += ESP_QUERIES) {
            open_queries(&r, f, &w, b, h, t0);
            int64_t at = 0;
            for (int64_t s0 = part * ESP_KEYS; s0 < w.x.hi; s0 += f->cut * ESP_KEYS, at += ESP_KEYS) step(f, &r, &w, at, s0);
            close_queries(f, &r, &w.x, block);
        }
    }
    f->kernel->leave();
    close_keys(&r, f, b, g, part);
    return ESP_OK;
}

static ESP_SIMD void add_row(float *restrict sum, const float *restrict more, int64_t n)
{
    for (int64_t i = 0; i < n; i++) sum[i] += more[i];
}

/* dq of a tile of queries from the head's units, in their order. */
static int add_partial(void *context, int64_t block)
{
    const backward *f = context;
    const esp_attention_args *a = f->a;
    int64_t tiles = esp_ceil_div(a->T, ESP_QUERIES), h = block / tiles % a->H, b = block / tiles / a->H, size = a->each * a->T * a->D;
    int64_t t0 = block % tiles * ESP_QUERIES, n = esp_min(ESP_QUERIES, a->T - t0);
    float *sum = f->partial + (b * a->G + h / a->each) * f->cut * size + (h % a->each * a->T + t0) * a->D;
    for (int64_t k = 1; k < f->cut; k++) add_row(sum, sum + k * size, n * a->D);
    f->math->store(esp_head_rows(a->dq, b, t0, h), sum, a->D, f->scale, n, a->D);
    return ESP_OK;
}

int esp_attention_gradients(const esp_attention_args *a)
{
    if (a->q->count == 0) return ESP_OK;
    backward f = {.a = a, .c = (float)M_LOG2E * (a->cap > 0 ? 1 : a->scale)};
    TRY(esp_attention_math_of(&f.math, &f.kernel, a->q->dtype));
    for (int j = 0; j < ESP_QUERIES; j++) f.scale[j] = a->scale, f.one[j] = 1;
    f.cut = esp_attention_cut(a, esp_ceil_div(a->S, ESP_KEYS));
    if (f.cut > 1 && !(f.partial = esp_malloc(a->B * a->H * f.cut * a->T * a->D * 4))) return ESP_EMEM;
    int code = esp_parallel(a->B * a->G * f.cut, unit, &f);
    if (code == ESP_OK && f.cut > 1) code = esp_parallel(a->B * a->H * esp_ceil_div(a->T, ESP_QUERIES), add_partial, &f);
    esp_free(f.partial);
    return code;
}
