/* Attention forward: tiles of queries against tiles of keys with online softmax (2205.14135).
 *
 * s^T[keys, queries] = k q^T; p = 2^(c s - shift), the shift being the running maximum; o^T[D, queries] += v^T p. */
#include "attention.h"

typedef struct forward {
    const esp_attention_args *a;
    const esp_attention_math *math;
    const esp_kernel *kernel;
    int64_t tiles, cut;                   /* tiles of queries of a head; units to a (batch, head of k) */
    float c;                              /* exponents are scores times c */
} forward;

/* One thread's operands and results. Padded: D filled up to whole panels. */
typedef struct room {
    uint32_t *k, *vt, *dense, *q, *p;     /* k [keys, width]; v^T [padded, stride]; 32 dense rows; panels of q^T; probabilities */
    float *o, *s, *turned;                /* panels of o^T [padded, 32]; scores [ESP_KEYS, 32]; o */
    int64_t base;                         /* the first key that is packed */
    int64_t size, words, width, stride, padded; /* of D in products; words of that, of a dense row, of a row of v^T */
} room;

/* A panel's softmax so far. */
typedef struct softmax {
    float max[ESP_PANEL], sum[ESP_PANEL];
} softmax;

static int make_room(room *r, const forward *f, int64_t keys)
{
    int64_t D = f->a->D, size = esp_product_size(f->kernel, D), per = f->math->per, padded = esp_pad(D, ESP_PANEL), width = padded / per;
    enum { K, VT, DENSE, Q, P, O, S, TURNED, PARTS };
    const int64_t words[PARTS] = {
        [K] = keys * width, [VT] = padded * (keys / per), [DENSE] = ESP_PANEL * width, [Q] = ESP_PANELS * width * ESP_PANEL,
        [P] = ESP_KEYS * ESP_PANEL, [O] = ESP_PANELS * padded * ESP_PANEL, [S] = ESP_KEYS * ESP_PANEL, [TURNED] = ESP_PANEL * padded};
    uint32_t *part[PARTS];
    TRY(esp_scratch_parts(part, words, PARTS));
    *r = (room){.k = part[K], .vt = part[VT], .dense = part[DENSE], .q = part[Q], .p = part[P], .o = (float *)(void *)part[O],
                .s = (float *)(void *)part[S], .turned = (float *)(void *)part[TURNED], .size = size, .words = esp_ceil_div(size, per), .width = width,
                .stride = keys / per, .padded = padded};
    return ESP_OK;
}

/* Keys and values base .. hi-1 of one head of k. */
static void pack_keys(room *r, const forward *f, int64_t b, int64_t g, int64_t hi)
{
    const esp_attention_args *a = f->a;
    int64_t per = f->math->per;
    for (int64_t i = r->base; i < hi; i += ESP_PANEL) {
        int64_t n = esp_min(ESP_PANEL, hi - i), at = i - r->base;
        esp_pack_dense(r->k + at * r->width, r->width, esp_head_rows(a->k, b, i, g), n, ESP_PANEL, a->D);
        esp_pack_dense(r->dense, r->width, esp_head_rows(a->v, b, i, g), n, ESP_PANEL, a->D);
        esp_pack_transposed(r->vt + at / per, r->stride, r->dense, r->width, ESP_PANEL, r->padded, per);
    }
}

/* Keys from .. to-1, of one tile, meet panel p: a step of its softmax. */
static void step(const forward *f, const room *r, const esp_queries *x, int64_t p, int64_t from, int64_t to, softmax *soft)
{
    const esp_attention_args *a = f->a;
    int64_t per = f->math->per, rows = to - from, at = from - r->base;
    float *s = r->s, *o = r->o + p * r->padded * ESP_PANEL, shift[ESP_PANEL], shrink[ESP_PANEL];
    esp_panel_product(f->kernel, r->words, r->k + at * r->width, r->width, r->q + p * r->width * ESP_PANEL, s, ESP_PANEL, rows, ESP_PANEL, 0);
    if (a->cap > 0) esp_score_cap(s, a->scale, a->cap, rows);
    if (x->panel[p].most_lo > from || x->panel[p].least_hi < to) esp_score_mask(s, from, rows, x->from + p * ESP_PANEL, x->to + p * ESP_PANEL);
    if (esp_score_shift(soft->max, shift, shrink, s, f->c, rows)) {
        esp_score_scale(o, shrink, a->D);
        esp_score_scale(soft->sum, shrink, 1);
    }
    f->math->exponentials(r->p, soft->sum, s, f->c, shift, rows);
    esp_panel_product(f->kernel, esp_ceil_div(rows, per), r->vt + at / per, r->stride, r->p, o, ESP_PANEL, r->size, ESP_PANEL, 1);
}

static void finish_panel(const forward *f, const room *r, const esp_queries *x, int64_t p, const softmax *soft)
{
    const esp_attention_args *a = f->a;
    int64_t t0 = x->t0 + p * ESP_PANEL, n = esp_min(ESP_PANEL, a->T - t0);
    float *o = r->o + p * r->padded * ESP_PANEL, inverse[ESP_PANEL];
    for (int j = 0; j < ESP_PANEL; j++) inverse[j] = 1 / soft->sum[j];
    esp_unpack_columns(r->turned, o, a->D);
    f->math->store(esp_head_rows(a->o, x->b, t0, x->h), r->turned, r->padded, inverse, n, a->D);
    if (!a->lse) return;
    float *lse = a->lse + (x->b * a->H + x->h) * a->T + t0;
    for (int64_t j = 0; j < n; j++) lse[j] = (soft->max[j] == -INFINITY ? 0 : soft->max[j]) * (float)M_LN2 + logf(soft->sum[j]);
}

static void tile_of_queries(const forward *f, const room *r, const esp_queries *x)
{
    const esp_attention_args *a = f->a;
    softmax soft[ESP_PANELS];
    for (int64_t p = 0; p < x->panels; p++) {
        int64_t t0 = x->t0 + p * ESP_PANEL;
        esp_pack_dense(r->dense, r->width, esp_head_rows(a->q, x->b, t0, x->h), esp_min(ESP_PANEL, a->T - t0), ESP_PANEL, a->D);
        esp_pack_columns(r->q + p * r->width * ESP_PANEL, r->dense, r->width, r->width);
        for (int j = 0; j < ESP_PANEL; j++) soft[p].max[j] = -INFINITY, soft[p].sum[j] = 0;
    }
    memset(r->o, 0, (size_t)(x->panels * r->padded * ESP_PANEL * 4));
    for (int64_t s0 = x->lo / ESP_KEYS * ESP_KEYS; s0 < x->hi; s0 += ESP_KEYS) {
        for (int64_t p = 0; p < x->panels; p++) {
            /* A word of v^T holds an even key and the odd one behind it. */
            int64_t from = esp_max_of(s0, x->panel[p].lo / 2 * 2), to = esp_min(s0 + ESP_KEYS, x->panel[p].hi);
            if (from < to) step(f, r, x, p, from, to, &soft[p]);
        }
    }
    for (int64_t p = 0; p < x->panels; p++) finish_panel(f, r, x, p, &soft[p]);
}

/* One unit: of the tiles of queries that read one head of k, every cut-th. */
static int unit(void *context, int64_t block)
{
    const forward *f = context;
    const esp_attention_args *a = f->a;
    int64_t part = block % f->cut, g = block / f->cut % a->G, b = block / f->cut / a->G, lo = a->S, hi = 0;
    esp_queries x;
    for (int64_t i = part; i < f->tiles * a->each; i += f->cut) {
        esp_queries_of(&x, a, b, g * a->each + i % a->each, i / a->each * ESP_QUERIES);
        lo = esp_min(lo, x.lo), hi = esp_max_of(hi, x.hi);
    }
    room r;
    lo = lo / ESP_KEYS * ESP_KEYS;
    TRY(make_room(&r, f, esp_pad(hi - lo, ESP_PANEL)));
    r.base = lo;
    pack_keys(&r, f, b, g, hi);
    f->kernel->enter();
    for (int64_t i = part; i < f->tiles * a->each; i += f->cut) {
        esp_queries_of(&x, a, b, g * a->each + i % a->each, i / a->each * ESP_QUERIES);
        tile_of_queries(f, &r, &x);
    }
    f->kernel->leave();
    return ESP_OK;
}

int esp_attention_forward(const esp_attention_args *a)
{
    if (a->o->count == 0) return ESP_OK;
    forward f = {.a = a, .tiles = esp_ceil_div(a->T, ESP_QUERIES), .c = (float)M_LOG2E * (a->cap > 0 ? 1 : a->scale)};
    TRY(esp_attention_math_of(&f.math, &f.kernel, a->q->dtype));
    f.cut = esp_attention_cut(a, f.tiles * a->each);
    return esp_parallel(a->B * a->G * f.cut, unit, &f);
}
