/* Forward KL divergence between teacher and student logits (1503.02531; Minitron 2407.14679 section 3), loss and gradient together. */
#include "backend.h"
#include "lanes.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16) };

typedef struct kl_args {
    esp_rows s, t, ds;
    const float *weight;
    float *loss;
    float inverse_tau;
    int has_ds, accumulate;
} kl_args;

static int check(kl_args *a, const char *op, esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight,
                 double tau)
{
    *a = (kl_args){0};
    TRY(esp_check_rows(&a->s, op, "s", s, F32, ESP_READ));
    TRY(esp_check_rows(&a->t, op, "t", t, F32, ESP_READ));
    TRY(esp_check_shape(op, "t", t, s->ndim, s->shape, "shape of s"));
    if (!(tau > 0)) return esp_fail(ESP_EARG, "%s: temperature is %g, want more than 0", op, tau);
    a->inverse_tau = (float)(1 / tau);
    const esp_tensor *vectors[] = {loss, weight};
    const char *names[] = {"loss", "weight"};
    for (int i = 0; i < 2; i++) {
        TRY(esp_check(op, names[i], vectors[i], F32, i == 0 ? ESP_WRITE : ESP_READ));
        TRY(esp_check_dense(op, names[i], vectors[i]));
        if (vectors[i]->count != a->s.rows) {
            return esp_fail(ESP_ESHAPE, "%s: '%s' has %lld entries, want %lld (rows of s)", op, names[i], (long long)vectors[i]->count,
                            (long long)a->s.rows);
        }
    }
    a->loss = esp_tensor_at(loss), a->weight = esp_tensor_at(weight);
    if (!ds) return ESP_OK;
    a->has_ds = 1;
    a->accumulate = strcmp(op, "kl_acc") == 0;
    TRY(esp_check_rows(&a->ds, op, "ds", ds, a->accumulate ? F32 : FLOATS, ESP_WRITE));
    return esp_check_shape(op, "ds", ds, s->ndim, s->shape, "shape of s");
}

int esp_kl(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl", loss, ds, s, t, weight, tau));
    return esp_backend_of(loss)->kl(loss, ds, s, t, weight, tau);
}

int esp_kl_acc(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl_acc", loss, ds, s, t, weight, tau));
    return esp_backend_of(loss)->kl_acc(loss, ds, s, t, weight, tau);
}

/* A row is taken in stretches, each with a maximum of its own, so that one sweep finds both sums and the loss and leaves the exponentials for the
 * gradient, which only scales them: z = (x - maximum of the stretch) / tau, sums of e^zs, e^zt and e^zt (zt - zs).
 *
 * A term whose teacher probability is 0 counts nothing, also where a logit is -infinity. */
typedef struct stretch {
    float ms, mt;                         /* maxima; 0 where all is -infinity */
    double s, t, cross;
} stretch;

/* to = exp((x - m) r), in a loop of its own: loops that also add up are not vectorised. */
static inline __attribute__((always_inline)) void exponentials(float *restrict to, const float *restrict x, float m, float r, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = esp_shifted_exp(x[i], m, r);
}

static ESP_SIMD void sweep(stretch *out, float *restrict es, float *restrict et, const float *restrict s, const float *restrict t, float r, int64_t n)
{
    float ms = esp_lane_max(s, n), mt = esp_lane_max(t, n);
    if (ms == -INFINITY) ms = 0;
    if (mt == -INFINITY) mt = 0;
    exponentials(es, s, ms, r, n);
    exponentials(et, t, mt, r, n);
    float a[ESP_LANES] = {0}, b[ESP_LANES] = {0}, c[ESP_LANES] = {0};
    int64_t i = 0;
    for (; i + ESP_LANES <= n; i += ESP_LANES) {
        for (int l = 0; l < ESP_LANES; l++) {
            float d = et[i + l] * ((t[i + l] - mt) * r - (s[i + l] - ms) * r);
            a[l] += es[i + l];
            b[l] += et[i + l];
            c[l] += et[i + l] == 0.0f ? 0.0f : d;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        float d = et[i] * ((t[i] - mt) * r - (s[i] - ms) * r);
        a[l] += es[i];
        b[l] += et[i];
        c[l] += et[i] == 0.0f ? 0.0f : d;
    }
    *out = (stretch){.ms = ms, .mt = mt};
    for (int l = 0; l < ESP_LANES; l++) out->s += (double)a[l], out->t += (double)b[l], out->cross += (double)c[l];
}

/* ds = es a - et b */
static ESP_SIMD void gradient_f32(float *restrict ds, const float *restrict es, const float *restrict et, float a, float b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) ds[i] = es[i] * a - et[i] * b;
}

static ESP_SIMD void gradient_acc(float *restrict ds, const float *restrict es, const float *restrict et, float a, float b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) ds[i] += es[i] * a - et[i] * b;
}

static ESP_SIMD void gradient_bf16(uint16_t *restrict ds, const float *restrict es, const float *restrict et, float a, float b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) ds[i] = esp_f32_to_bf16(es[i] * a - et[i] * b);
}

/* The row's sums, relative to its own maxima ms and mt. */
static stretch whole_row(const stretch *part, int64_t parts, float r)
{
    stretch all = {.ms = -INFINITY, .mt = -INFINITY};
    for (int64_t k = 0; k < parts; k++) {
        if (part[k].s != 0 && !(part[k].ms <= all.ms)) all.ms = part[k].ms;
        if (part[k].t != 0 && !(part[k].mt <= all.mt)) all.mt = part[k].mt;
    }
    for (int64_t k = 0; k < parts; k++) {
        double s = ((double)part[k].ms - all.ms) * r, t = ((double)part[k].mt - all.mt) * r;
        if (part[k].s != 0) all.s += part[k].s * exp(s);
        if (part[k].t == 0) continue;
        all.t += part[k].t * exp(t);
        all.cross += exp(t) * (part[k].cross + part[k].t * (t - s));
    }
    return all;
}

static void gradient(const kl_args *a, int64_t n, const stretch *part, const stretch *all, const float *es, const float *et)
{
    double scale = (double)a->weight[n] * a->inverse_tau;
    for (int64_t from = 0, k = 0; from < a->s.cols; from += ESP_STRETCH, k++) {
        int64_t count = esp_min(ESP_STRETCH, a->s.cols - from), at = n * a->ds.stride + from;
        float x = (float)(part[k].s == 0 ? 0 : scale / all->s * exp(((double)part[k].ms - all->ms) * a->inverse_tau));
        float y = (float)(part[k].t == 0 ? 0 : scale / all->t * exp(((double)part[k].mt - all->mt) * a->inverse_tau));
        if (a->ds.dtype == ESP_BF16) gradient_bf16((uint16_t *)a->ds.data + at, es + from, et + from, x, y, count);
        else if (a->accumulate) gradient_acc((float *)a->ds.data + at, es + from, et + from, x, y, count);
        else gradient_f32((float *)a->ds.data + at, es + from, et + from, x, y, count);
    }
}

static int kl_block(void *context, int64_t n)
{
    const kl_args *a = context;
    int64_t V = a->s.cols, parts = esp_ceil_div(V, ESP_STRETCH);
    const float *s = (const float *)a->s.data + n * a->s.stride, *t = (const float *)a->t.data + n * a->t.stride;
    a->loss[n] = 0;
    if (a->weight[n] == 0) {
        int64_t size = esp_dtype_size(a->ds.dtype);
        if (a->has_ds && !a->accumulate) memset((char *)a->ds.data + n * a->ds.stride * size, 0, (size_t)(V * size));
        return ESP_OK;
    }
    /* Exponentials of the whole row where a gradient is wanted; else one stretch's room is used again and again. */
    int64_t room = a->has_ds ? parts * ESP_STRETCH : ESP_STRETCH;
    float *es = esp_scratch(2 * room * 4 + parts * (int64_t)sizeof(stretch));
    if (!es) return ESP_EMEM;
    float *et = es + room;
    stretch *part = (stretch *)(void *)(et + room);
    for (int64_t from = 0, k = 0; from < V; from += ESP_STRETCH, k++) {
        int64_t to = a->has_ds ? from : 0;
        sweep(&part[k], es + to, et + to, s + from, t + from, a->inverse_tau, esp_min(ESP_STRETCH, V - from));
    }
    stretch all = whole_row(part, parts, a->inverse_tau);
    /* sum p (log p - log q) with log p = zt - log sum_t, log q = zs - log sum_s */
    a->loss[n] = (float)(a->weight[n] * (all.cross / all.t - log(all.t) + log(all.s)));
    if (a->has_ds) gradient(a, n, part, &all, es, et);
    return ESP_OK;
}

int esp_cpu_kl(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl", loss, ds, s, t, weight, tau));
    return esp_parallel(a.s.rows, kl_block, &a);
}

int esp_cpu_kl_acc(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl_acc", loss, ds, s, t, weight, tau));
    return esp_parallel(a.s.rows, kl_block, &a);
}
