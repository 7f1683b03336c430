/* Causal attention with grouped queries, tile by tile with online softmax (2205.14135): scores live in one tile at a time, no [T,T] matrix
 * is kept, and backward makes the probabilities again from lse.
 *
 * Query t of T stands at position S-T+t among S keys and sees those from first[b,t] to its own. */
#include <math.h>

#include "backend.h"

#include "../formula.h"

enum { F32 = ESP_BIT(ESP_F32), I32 = ESP_BIT(ESP_I32), QUERIES = 64, KEYS = 64 };

typedef struct attention_args {
    const esp_tensor *q, *k, *v, *o, *dout;
    esp_tensor *dq, *dk, *dv;
    float *lse;                           /* [B,H,T] or NULL */
    const int32_t *first;                 /* [B,T] or NULL */
    int64_t B, T, S, H, G, D, tiles;
    float scale, cap;                     /* cap 0: none */
} attention_args;

/* ---- argument checks ---- */

static int check_rank4(const char *op, const char *arg, const esp_tensor *t, int access)
{
    char text[ESP_TEXT];
    TRY(esp_check(op, arg, t, F32, access));
    TRY(esp_check_last_dense(op, arg, t));
    if (t->ndim != 4) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [batch, positions, heads, channels]", op, arg, esp_shape_text(text, t->ndim, t->shape));
    return ESP_OK;
}

static int check_inputs(attention_args *a, const char *op, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, const esp_tensor *first,
                        double scale, double cap)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(check_rank4(op, "q", q, ESP_READ));
    TRY(check_rank4(op, "k", k, ESP_READ));
    TRY(check_rank4(op, "v", v, ESP_READ));
    *a = (attention_args){.q = q, .k = k, .v = v, .B = q->shape[0], .T = q->shape[1], .H = q->shape[2], .D = q->shape[3], .S = k->shape[1],
                          .G = k->shape[2], .scale = (float)scale, .cap = (float)cap};
    if (!(cap >= 0)) return esp_fail(ESP_EARG, "%s: cap is %g, want 0 or more", op, cap);
    a->tiles = esp_ceil_div(a->T, QUERIES);
    if (k->shape[0] != a->B || k->shape[3] != a->D || a->S < a->T) {
        return esp_fail(ESP_ESHAPE, "%s: 'k' is %s, want [%lld, %lld or more, kv heads, %lld] (q is %s)", op, esp_shape_text(text, 4, k->shape),
                        (long long)a->B, (long long)a->T, (long long)a->D, esp_shape_text(other, 4, q->shape));
    }
    TRY(esp_check_shape(op, "v", v, 4, k->shape, "shape of k"));
    if (a->G < 1 || a->H % a->G) {
        return esp_fail(ESP_ESHAPE, "%s: %lld heads of 'q' do not divide among %lld heads of 'k'", op, (long long)a->H, (long long)a->G);
    }
    if (!first) return ESP_OK;
    TRY(esp_check(op, "first", first, I32, ESP_READ));
    TRY(esp_check_dense(op, "first", first));
    int64_t want[] = {a->B, a->T};
    TRY(esp_check_shape(op, "first", first, 2, want, "batch and positions of q"));
    a->first = esp_tensor_at(first);
    for (int64_t i = 0; i < a->B * a->T; i++) {
        int64_t position = a->S - a->T + i % a->T;
        if (a->first[i] < 0 || a->first[i] > position) {
            return esp_fail(ESP_EARG, "%s: 'first' is %d for the query at position %lld, want 0 to %lld", op, a->first[i], (long long)position,
                            (long long)position);
        }
    }
    return ESP_OK;
}

static int check_lse(attention_args *a, const char *op, const esp_tensor *lse, int access)
{
    int64_t want[] = {a->B, a->H, a->T};
    TRY(esp_check(op, "lse", lse, F32, access));
    TRY(esp_check_dense(op, "lse", lse));
    TRY(esp_check_shape(op, "lse", lse, 3, want, "batch, heads and positions of q"));
    a->lse = esp_tensor_at(lse);
    return ESP_OK;
}

static int check_forward(attention_args *a, esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v,
                         const esp_tensor *first, double scale, double cap)
{
    TRY(check_inputs(a, "attention", q, k, v, first, scale, cap));
    TRY(check_rank4("attention", "o", o, ESP_WRITE));
    TRY(esp_check_shape("attention", "o", o, 4, q->shape, "shape of q"));
    a->o = o;
    if (lse) TRY(check_lse(a, "attention", lse, ESP_WRITE));
    return esp_gemm_open();
}

static int check_backward(attention_args *a, esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q,
                          const esp_tensor *k, const esp_tensor *v, const esp_tensor *o, const esp_tensor *lse, const esp_tensor *first,
                          double scale, double cap)
{
    const char *op = "attention_backward";
    TRY(check_inputs(a, op, q, k, v, first, scale, cap));
    struct { const char *name; const esp_tensor *t; const int64_t *shape; const char *why; int access; } rest[] = {
        {"o", o, q->shape, "shape of q", ESP_READ},    {"dout", dout, q->shape, "shape of q", ESP_READ},
        {"dq", dq, q->shape, "shape of q", ESP_WRITE}, {"dk", dk, k->shape, "shape of k", ESP_WRITE},
        {"dv", dv, k->shape, "shape of k", ESP_WRITE}};
    for (int i = 0; i < 5; i++) {
        TRY(check_rank4(op, rest[i].name, rest[i].t, rest[i].access));
        TRY(esp_check_shape(op, rest[i].name, rest[i].t, 4, rest[i].shape, rest[i].why));
    }
    if (a->S != a->T) return esp_fail(ESP_ESHAPE, "%s: %lld keys for %lld queries, want as many", op, (long long)a->S, (long long)a->T);
    TRY(check_lse(a, op, lse, ESP_READ));
    a->o = o, a->dout = dout, a->dq = dq, a->dk = dk, a->dv = dv;
    return esp_gemm_open();
}

int esp_attention(esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, const esp_tensor *first, double scale,
                  double cap)
{
    attention_args a;
    TRY(check_forward(&a, o, lse, q, k, v, first, scale, cap));
    return esp_backend_of(o)->attention(o, lse, q, k, v, first, scale, cap);
}

int esp_attention_backward(esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q, const esp_tensor *k,
                           const esp_tensor *v, const esp_tensor *o, const esp_tensor *lse, const esp_tensor *first, double scale, double cap)
{
    attention_args a;
    TRY(check_backward(&a, dq, dk, dv, dout, q, k, v, o, lse, first, scale, cap));
    return esp_backend_of(dq)->attention_backward(dq, dk, dv, dout, q, k, v, o, lse, first, scale, cap);
}

/* ---- tiles ---- */

static float *at(const esp_tensor *t, int64_t b, int64_t position, int64_t head)
{
    return (float *)esp_tensor_at(t) + b * t->stride[0] + position * t->stride[1] + head * t->stride[2];
}

/* First key that query t sees. */
static int64_t first_of(const attention_args *a, int64_t b, int64_t t)
{
    return a->first ? a->first[b * a->T + t] : 0;
}

/* First key that any query of the tile sees, rounded down to a tile of keys. */
static int64_t first_tile(const attention_args *a, int64_t b, int64_t t0, int64_t queries)
{
    int64_t low = first_of(a, b, t0);
    for (int64_t t = 1; t < queries; t++) low = esp_min(low, first_of(a, b, t0 + t));
    return low / KEYS * KEYS;
}

/* Columns [*lo, *hi) of the tile of keys from s0 that query t sees. */
static void visible(const attention_args *a, int64_t b, int64_t t, int64_t s0, int64_t keys, int64_t *lo, int64_t *hi)
{
    *lo = esp_max_of(0, esp_min(keys, first_of(a, b, t) - s0));
    *hi = esp_max_of(*lo, esp_min(keys, a->S - a->T + t + 1 - s0));
}

static ESP_SIMD float row_max(const float *s, int64_t n)
{
    float most = -INFINITY;
    for (int64_t i = 0; i < n; i++) most = s[i] > most ? s[i] : most;
    return most;
}

/* s = exp(s - shift), and its sum in fixed lanes. */
static ESP_SIMD float exp_row(float *s, float shift, int64_t n)
{
    enum { LANES = 16 };
    float acc[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            s[i + l] = esp_expf(s[i + l] - shift);
            acc[l] += s[i + l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        s[i] = esp_expf(s[i] - shift);
        acc[l] += s[i];
    }
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += acc[l];
    return sum;
}

static ESP_SIMD void scale_row(float *x, float by, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] *= by;
}

/* s = cap tanh(s / cap); slope (or NULL) = its derivative */
static ESP_SIMD void cap_row(float *restrict s, float *restrict slope, float cap, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float t = esp_tanhf(s[i] / cap);
        s[i] = cap * t;
        if (slope) slope[i] = 1.0f - t * t;
    }
}

/* Takes one row of scores into the running maximum m and sum l; the row becomes probabilities up to exp(-m), 0 outside [lo, hi). */
static void online_softmax(float *s, int64_t keys, int64_t lo, int64_t hi, float *m, float *l, float *out, int64_t D)
{
    memset(s, 0, (size_t)lo * 4);
    memset(s + hi, 0, (size_t)(keys - hi) * 4);
    if (lo >= hi) return;
    float most = row_max(s + lo, hi - lo);
    if (most > *m) {
        float shrink = *m == -INFINITY ? 0 : expf(*m - most);
        *l *= shrink;
        scale_row(out, shrink, D);
        *m = most;
    }
    *l += exp_row(s + lo, *m == -INFINITY ? 0 : *m, hi - lo);
}

/* One block: a tile of queries of one head. */
static int forward_block(void *context, int64_t block)
{
    const attention_args *a = context;
    int64_t tile = block % a->tiles, h = block / a->tiles % a->H, b = block / a->tiles / a->H, g = h / (a->H / a->G), D = a->D;
    int64_t t0 = tile * QUERIES, queries = esp_min(QUERIES, a->T - t0), last = a->S - a->T + t0 + queries;
    float *s = esp_scratch((QUERIES * KEYS + QUERIES * D) * 4);
    if (!s) return ESP_EMEM;
    float *out = s + QUERIES * KEYS, m[QUERIES], l[QUERIES];
    for (int64_t t = 0; t < queries; t++) m[t] = -INFINITY, l[t] = 0;
    memset(out, 0, (size_t)(queries * D) * 4);
    for (int64_t s0 = first_tile(a, b, t0, queries); s0 < last; s0 += KEYS) {
        int64_t keys = esp_min(KEYS, last - s0);
        esp_gemm_block(0, 1, queries, keys, D, a->scale, at(a->q, b, t0, h), a->q->stride[1], at(a->k, b, s0, g), a->k->stride[1], 0, s, KEYS);
        for (int64_t t = 0; t < queries; t++) {
            int64_t lo, hi;
            visible(a, b, t0 + t, s0, keys, &lo, &hi);
            if (a->cap > 0) cap_row(s + t * KEYS + lo, NULL, a->cap, hi - lo);
            online_softmax(s + t * KEYS, keys, lo, hi, &m[t], &l[t], out + t * D, D);
        }
        esp_gemm_block(0, 0, queries, D, keys, 1, s, KEYS, at(a->v, b, s0, g), a->v->stride[1], 1, out, D);
    }
    for (int64_t t = 0; t < queries; t++) {
        float *o = at(a->o, b, t0 + t, h), inverse = 1 / l[t];
        for (int64_t i = 0; i < D; i++) o[i] = out[t * D + i] * inverse;
        if (a->lse) a->lse[(b * a->H + h) * a->T + t0 + t] = m[t] + logf(l[t]);
    }
    return ESP_OK;
}

int esp_cpu_attention(esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, const esp_tensor *first,
                      double scale, double cap)
{
    attention_args a;
    TRY(check_forward(&a, o, lse, q, k, v, first, scale, cap));
    return esp_parallel(a.B * a.H * a.tiles, forward_block, &a);
}

/* ds = p (dp - delta) scale, in place of dp */
static ESP_SIMD void score_gradient(float *restrict dp, const float *restrict p, float delta, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dp[i] = p[i] * (dp[i] - delta) * scale;
}

static ESP_SIMD void multiply_row(float *restrict x, const float *restrict by, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] *= by[i];
}

/* One tile of queries against one tile of keys: adds to dq, dk and dv. p and dp are [QUERIES, KEYS]. */
static void backward_tile(const attention_args *a, int64_t b, int64_t h, int64_t t0, int64_t queries, int64_t s0, int64_t keys, const float *delta,
                          float *p, float *dp)
{
    int64_t g = h / (a->H / a->G), D = a->D;
    const float *q = at(a->q, b, t0, h), *k = at(a->k, b, s0, g), *v = at(a->v, b, s0, g), *dout = at(a->dout, b, t0, h);
    int64_t qs = a->q->stride[1], ks = a->k->stride[1], vs = a->v->stride[1], ds = a->dout->stride[1];
    esp_gemm_block(0, 1, queries, keys, D, a->scale, q, qs, k, ks, 0, p, KEYS);
    esp_gemm_block(0, 1, queries, keys, D, 1, dout, ds, v, vs, 0, dp, KEYS);
    for (int64_t t = 0; t < queries; t++) {
        int64_t lo, hi;
        float *row = p + t * KEYS, slope[KEYS];
        visible(a, b, t0 + t, s0, keys, &lo, &hi);
        memset(row, 0, (size_t)lo * 4);
        memset(row + hi, 0, (size_t)(keys - hi) * 4);
        if (a->cap > 0) cap_row(row + lo, slope, a->cap, hi - lo);
        exp_row(row + lo, a->lse[(b * a->H + h) * a->T + t0 + t], hi - lo);
        score_gradient(dp + t * KEYS, row, delta[t], a->scale, keys);
        if (a->cap > 0) multiply_row(dp + t * KEYS + lo, slope, hi - lo);
    }
    esp_gemm_block(1, 0, keys, D, queries, 1, p, KEYS, dout, ds, 1, at(a->dv, b, s0, g), a->dv->stride[1]);
    esp_gemm_block(1, 0, keys, D, queries, 1, dp, KEYS, q, qs, 1, at(a->dk, b, s0, g), a->dk->stride[1]);
    esp_gemm_block(0, 0, queries, D, keys, 1, dp, KEYS, k, ks, 1, at(a->dq, b, t0, h), a->dq->stride[1]);
}

static void clear(const esp_tensor *t, int64_t b, int64_t head, int64_t positions, int64_t D)
{
    for (int64_t i = 0; i < positions; i++) memset(at(t, b, i, head), 0, (size_t)D * 4);
}

/* One block: all heads of one key/value head, in order, so that the sums of dk and dv have one order. */
static int backward_block(void *context, int64_t block)
{
    const attention_args *a = context;
    int64_t b = block / a->G, g = block % a->G, each = a->H / a->G;
    float *p = esp_scratch(2 * QUERIES * KEYS * 4);
    if (!p) return ESP_EMEM;
    clear(a->dk, b, g, a->S, a->D);
    clear(a->dv, b, g, a->S, a->D);
    for (int64_t h = g * each; h < (g + 1) * each; h++) {
        clear(a->dq, b, h, a->T, a->D);
        for (int64_t t0 = 0; t0 < a->T; t0 += QUERIES) {
            int64_t queries = esp_min(QUERIES, a->T - t0), last = t0 + queries;
            float delta[QUERIES];
            for (int64_t t = 0; t < queries; t++) {
                const float *o = at(a->o, b, t0 + t, h), *dout = at(a->dout, b, t0 + t, h);
                double sum = 0;
                for (int64_t i = 0; i < a->D; i++) sum += (double)o[i] * dout[i];
                delta[t] = (float)sum;
            }
            for (int64_t s0 = first_tile(a, b, t0, queries); s0 < last; s0 += KEYS) {
                backward_tile(a, b, h, t0, queries, s0, esp_min(KEYS, last - s0), delta, p, p + QUERIES * KEYS);
            }
        }
    }
    return ESP_OK;
}

int esp_cpu_attention_backward(esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q, const esp_tensor *k,
                               const esp_tensor *v, const esp_tensor *o, const esp_tensor *lse, const esp_tensor *first, double scale, double cap)
{
    attention_args a;
    TRY(check_backward(&a, dq, dk, dv, dout, q, k, v, o, lse, first, scale, cap));
    return esp_parallel(a.B * a.G, backward_block, &a);
}
