/* Causal attention with grouped queries: argument checks, and the way of the CPU. Scores live in one tile at a time, no [T,T] matrix is kept, and
 * backward makes the probabilities again from lse.
 *
 * Query t of T stands at position S-T+t among S keys and sees those from first[b,t] to its own. */
#include "attention.h"

enum { F32 = ESP_BIT(ESP_F32), I32 = ESP_BIT(ESP_I32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16) };

/* ---- argument checks ---- */

/* q: whose dtype is wanted; NULL for q itself. */
static int check_rank4(const char *op, const char *arg, const esp_tensor *t, const esp_tensor *q, int access)
{
    char text[ESP_TEXT];
    TRY(esp_check(op, arg, t, FLOATS, access));
    if (q && t->dtype != q->dtype) {
        return esp_fail(ESP_EDTYPE, "%s: '%s' is %s, want %s (dtype of q)", op, arg, esp_dtype_name(t->dtype), esp_dtype_name(q->dtype));
    }
    TRY(esp_check_last_dense(op, arg, t));
    if (t->ndim != 4) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [batch, positions, heads, channels]", op, arg, esp_shape_text(text, t->ndim, t->shape));
    return ESP_OK;
}

static int check_inputs(esp_attention_args *a, const char *op, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, const esp_tensor *first,
                        double scale, double cap)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(check_rank4(op, "q", q, NULL, ESP_READ));
    TRY(check_rank4(op, "k", k, q, ESP_READ));
    TRY(check_rank4(op, "v", v, q, ESP_READ));
    *a = (esp_attention_args){.q = q, .k = k, .v = v, .B = q->shape[0], .T = q->shape[1], .H = q->shape[2], .D = q->shape[3], .S = k->shape[1],
                          .G = k->shape[2], .scale = (float)scale, .cap = (float)cap};
    if (!(cap >= 0)) return esp_fail(ESP_EARG, "%s: cap is %g, want 0 or more", op, cap);
    /* The largest score is then that of the largest product, and the exponent takes the scale for nothing. */
    if (!(a->scale > 0 && a->scale < INFINITY)) return esp_fail(ESP_EARG, "%s: scale is %g, want a number above 0", op, scale);
    if (a->S > INT32_MAX) return esp_fail(ESP_ESHAPE, "%s: 'k' has %lld positions, want fewer than 2^31", op, (long long)a->S);
    if (k->shape[0] != a->B || k->shape[3] != a->D || a->S < a->T) {
        return esp_fail(ESP_ESHAPE, "%s: 'k' is %s, want [%lld, %lld or more, kv heads, %lld] (q is %s)", op, esp_shape_text(text, 4, k->shape),
                        (long long)a->B, (long long)a->T, (long long)a->D, esp_shape_text(other, 4, q->shape));
    }
    TRY(esp_check_shape(op, "v", v, 4, k->shape, "shape of k"));
    if (a->G < 1 || a->H % a->G) {
        return esp_fail(ESP_ESHAPE, "%s: %lld heads of 'q' do not divide among %lld heads of 'k'", op, (long long)a->H, (long long)a->G);
    }
    a->each = a->H / a->G;
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

static int check_lse(esp_attention_args *a, const char *op, const esp_tensor *lse, int access)
{
    int64_t want[] = {a->B, a->H, a->T};
    TRY(esp_check(op, "lse", lse, F32, access));
    TRY(esp_check_dense(op, "lse", lse));
    TRY(esp_check_shape(op, "lse", lse, 3, want, "batch, heads and positions of q"));
    a->lse = esp_tensor_at(lse);
    return ESP_OK;
}

static int check_forward(esp_attention_args *a, esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v,
                         const esp_tensor *first, double scale, double cap)
{
    TRY(check_inputs(a, "attention", q, k, v, first, scale, cap));
    TRY(check_rank4("attention", "o", o, q, ESP_WRITE));
    TRY(esp_check_shape("attention", "o", o, 4, q->shape, "shape of q"));
    a->o = o;
    if (lse) TRY(check_lse(a, "attention", lse, ESP_WRITE));
    return ESP_OK;
}

static int check_backward(esp_attention_args *a, esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q,
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
        TRY(check_rank4(op, rest[i].name, rest[i].t, q, rest[i].access));
        TRY(esp_check_shape(op, rest[i].name, rest[i].t, 4, rest[i].shape, rest[i].why));
    }
    if (a->S != a->T) return esp_fail(ESP_ESHAPE, "%s: %lld keys for %lld queries, want as many", op, (long long)a->S, (long long)a->T);
    TRY(check_lse(a, op, lse, ESP_READ));
    a->o = o, a->dout = dout, a->dq = dq, a->dk = dk, a->dv = dv;
    return ESP_OK;
}

int esp_attention(esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, const esp_tensor *first, double scale,
                  double cap)
{
    esp_attention_args a;
    TRY(check_forward(&a, o, lse, q, k, v, first, scale, cap));
    return esp_backend_of(o)->attention(o, lse, q, k, v, first, scale, cap);
}

int esp_attention_backward(esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q, const esp_tensor *k,
                           const esp_tensor *v, const esp_tensor *o, const esp_tensor *lse, const esp_tensor *first, double scale, double cap)
{
    esp_attention_args a;
    TRY(check_backward(&a, dq, dk, dv, dout, q, k, v, o, lse, first, scale, cap));
    return esp_backend_of(dq)->attention_backward(dq, dk, dv, dout, q, k, v, o, lse, first, scale, cap);
}

/* ---- tiles of queries ---- */

void esp_queries_of(esp_queries *x, const esp_attention_args *a, int64_t b, int64_t h, int64_t t0)
{
    int64_t n = esp_min(ESP_QUERIES, a->T - t0);
    x->b = b, x->h = h, x->t0 = t0, x->n = n, x->panels = esp_ceil_div(n, ESP_PANEL);
    x->lo = a->S, x->hi = a->S - a->T + t0 + n;
    for (int64_t p = 0; p < x->panels; p++) {
        int64_t end = esp_min((p + 1) * ESP_PANEL, n), lo = a->S, most = 0;
        for (int64_t j = p * ESP_PANEL; j < end; j++) {
            int64_t from = a->first ? a->first[b * a->T + t0 + j] : 0;
            x->from[j] = (int32_t)from;
            x->to[j] = (int32_t)(a->S - a->T + t0 + j + 1);
            lo = esp_min(lo, from), most = esp_max_of(most, from);
        }
        for (int64_t j = end; j < (p + 1) * ESP_PANEL; j++) x->from[j] = x->to[j] = 0;
        x->panel[p].lo = lo, x->panel[p].most_lo = most, x->panel[p].hi = x->to[end - 1], x->panel[p].least_hi = x->to[p * ESP_PANEL];
        if (end < (p + 1) * ESP_PANEL) x->panel[p].least_hi = 0;
        x->lo = esp_min(x->lo, lo);
    }
}

int esp_scratch_parts(uint32_t **parts, const int64_t *words, int n)
{
    int64_t used = 0;
    for (int i = 0; i < n; i++) used += esp_pad(words[i], 16);
    uint32_t *block = esp_scratch(used * 4);
    if (!block) return ESP_EMEM;
    for (int i = 0; i < n; block += esp_pad(words[i++], 16)) parts[i] = block;
    return ESP_OK;
}

/* ---- CPU ---- */

int esp_cpu_attention(esp_tensor *o, esp_tensor *lse, const esp_tensor *q, const esp_tensor *k, const esp_tensor *v, const esp_tensor *first,
                      double scale, double cap)
{
    esp_attention_args a;
    TRY(check_forward(&a, o, lse, q, k, v, first, scale, cap));
    return a.T <= ESP_FEW_ROWS ? esp_attention_few(&a) : esp_attention_forward(&a);
}

int esp_cpu_attention_backward(esp_tensor *dq, esp_tensor *dk, esp_tensor *dv, const esp_tensor *dout, const esp_tensor *q, const esp_tensor *k,
                               const esp_tensor *v, const esp_tensor *o, const esp_tensor *lse, const esp_tensor *first, double scale, double cap)
{
    esp_attention_args a;
    TRY(check_backward(&a, dq, dk, dv, dout, q, k, v, o, lse, first, scale, cap));
    return esp_attention_gradients(&a);
}
