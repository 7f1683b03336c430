/* Forward KL divergence between teacher and student logits (1503.02531; Minitron 2407.14679 section 3), loss and gradient together. */
#include "backend.h"
#include "lanes.h"

enum { F32 = ESP_BIT(ESP_F32) };

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
    TRY(esp_check_rows(&a->ds, op, "ds", ds, F32, ESP_WRITE));
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

/* What one sweep over both rows gives: sums of e^zs, e^zt and e^zt (zt - zs), where z = (x - max) / tau.
 *
 * A term whose teacher probability is 0 counts nothing, also where a logit is -infinity. */
typedef struct kl_sums {
    double s, t, cross;
} kl_sums;

static inline __attribute__((always_inline)) void term(float s, float t, float ms, float mt, float r, float *es, float *et, float *cross)
{
    float zs = (s - ms) * r, zt = (t - mt) * r;
    float p = esp_shifted_exp(t, mt, r);
    float d = p * (zt - zs);
    *es += esp_shifted_exp(s, ms, r);
    *et += p;
    *cross += p == 0.0f ? 0.0f : d;
}

static ESP_SIMD void sweep(kl_sums *out, const float *s, const float *t, float ms, float mt, float r, int64_t n)
{
    kl_sums sum = {0};
    for (int64_t from = 0; from < n; from += ESP_STRETCH) {
        int64_t end = esp_min(from + ESP_STRETCH, n), i = from;
        float a[ESP_LANES] = {0}, b[ESP_LANES] = {0}, c[ESP_LANES] = {0};
        for (; i + ESP_LANES <= end; i += ESP_LANES) {
            for (int l = 0; l < ESP_LANES; l++) term(s[i + l], t[i + l], ms, mt, r, &a[l], &b[l], &c[l]);
        }
        for (int l = 0; i < end; i++, l++) term(s[i], t[i], ms, mt, r, &a[l], &b[l], &c[l]);
        for (int l = 0; l < ESP_LANES; l++) sum.s += (double)a[l], sum.t += (double)b[l], sum.cross += (double)c[l];
    }
    *out = sum;
}

/* ds (+)= w / tau (q - p); a and b already hold w / (tau sum). */
static ESP_SIMD void gradient(float *ds, const float *s, const float *t, float ms, float mt, float r, float a, float b, int accumulate, int64_t n)
{
    if (accumulate) for (int64_t i = 0; i < n; i++) ds[i] += esp_shifted_exp(s[i], ms, r) * a - esp_shifted_exp(t[i], mt, r) * b;
    else for (int64_t i = 0; i < n; i++) ds[i] = esp_shifted_exp(s[i], ms, r) * a - esp_shifted_exp(t[i], mt, r) * b;
}

static ESP_SIMD float most_of(const float *x, int64_t n)
{
    return esp_lane_max(x, n);
}

static int kl_block(void *context, int64_t n)
{
    const kl_args *a = context;
    int64_t V = a->s.cols;
    const float *s = (const float *)a->s.data + n * a->s.stride, *t = (const float *)a->t.data + n * a->t.stride;
    float *ds = a->has_ds ? (float *)a->ds.data + n * a->ds.stride : NULL;
    float w = a->weight[n], r = a->inverse_tau;
    a->loss[n] = 0;
    if (w == 0) {
        if (ds && !a->accumulate) memset(ds, 0, (size_t)V * 4);
        return ESP_OK;
    }
    float ms = most_of(s, V), mt = most_of(t, V);
    kl_sums sum;
    sweep(&sum, s, t, ms, mt, r, V);
    /* sum p (log p - log q) with log p = zt - log sum_t, log q = zs - log sum_s */
    a->loss[n] = (float)(w * (sum.cross / sum.t - log(sum.t) + log(sum.s)));
    if (ds) gradient(ds, s, t, ms, mt, r, (float)(w * r / sum.s), (float)(w * r / sum.t), a->accumulate, V);
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
    a.accumulate = 1;
    return esp_parallel(a.s.rows, kl_block, &a);
}
