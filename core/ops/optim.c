/* AdamW (1711.05101) and the clip factor. What varies from step to step comes in 0-d f64 tensors, so that a step is the same calls always. */
#include <math.h>

#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), F64 = ESP_BIT(ESP_F64), BLOCK = 32768 };

static int check_scalar(const char *op, const char *arg, const esp_tensor *t, int access)
{
    TRY(esp_check(op, arg, t, F64, access));
    return esp_check_shape(op, arg, t, 0, NULL, "a scalar");
}

static double scalar(const esp_tensor *t) { return *(const double *)esp_tensor_at(t); }

int esp_clip_factor(esp_tensor *factor, const esp_tensor *sumsq, double max_norm)
{
    TRY(check_scalar("clip_factor", "factor", factor, ESP_WRITE));
    TRY(check_scalar("clip_factor", "sumsq", sumsq, ESP_READ));
    if (!(max_norm >= 0)) return esp_fail(ESP_EARG, "clip_factor: max_norm is %g, want 0 or more", max_norm);
    return esp_backend_of(factor)->clip_factor(factor, sumsq, max_norm);
}

int esp_cpu_clip_factor(esp_tensor *factor, const esp_tensor *sumsq, double max_norm)
{
    double f = max_norm > 0 ? max_norm / (sqrt(scalar(sumsq)) + 1e-6) : 1;
    *(double *)esp_tensor_at(factor) = f < 1 || f != f ? f : 1;
    return ESP_OK;
}

int esp_adamw(esp_tensor *p, esp_tensor *m, esp_tensor *v, const esp_tensor *g, const esp_tensor *lr, const esp_tensor *step,
              const esp_tensor *factor, double beta1, double beta2, double eps, double decay)
{
    struct { const char *name; const esp_tensor *t; int access; } all[] = {
        {"p", p, ESP_WRITE}, {"m", m, ESP_WRITE}, {"v", v, ESP_WRITE}, {"g", g, ESP_READ}};
    for (int i = 0; i < 4; i++) {
        TRY(esp_check("adamw", all[i].name, all[i].t, F32, all[i].access));
        TRY(esp_check_dense("adamw", all[i].name, all[i].t));
        TRY(esp_check_shape("adamw", all[i].name, all[i].t, p->ndim, p->shape, "shape of p"));
    }
    TRY(check_scalar("adamw", "lr", lr, ESP_READ));
    TRY(check_scalar("adamw", "step", step, ESP_READ));
    TRY(check_scalar("adamw", "factor", factor, ESP_READ));
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1)) {
        return esp_fail(ESP_EARG, "adamw: betas are %g and %g, want from 0 to below 1", beta1, beta2);
    }
    if (!(scalar(step) >= 1)) return esp_fail(ESP_EARG, "adamw: step is %g, want 1 or more", scalar(step));
    return esp_backend_of(p)->adamw(p, m, v, g, lr, step, factor, beta1, beta2, eps, decay);
}

typedef struct adamw_args {
    float *p, *m, *v;
    const float *g;
    int64_t count;
    float factor, beta1, beta2, keep, rate, root, eps;
} adamw_args;

static ESP_SIMD void update(float *restrict p, float *restrict m, float *restrict v, const float *restrict g, const adamw_args *a, int64_t n)
{
    float factor = a->factor, b1 = a->beta1, b2 = a->beta2, keep = a->keep, rate = a->rate, root = a->root, eps = a->eps;
    for (int64_t i = 0; i < n; i++) {
        float d = g[i] * factor;
        m[i] = b1 * m[i] + (1.0f - b1) * d;
        v[i] = b2 * v[i] + (1.0f - b2) * d * d;
        p[i] = p[i] * keep - rate * m[i] / (sqrtf(v[i]) * root + eps);
    }
}

static int adamw_block(void *context, int64_t block)
{
    const adamw_args *a = context;
    int64_t at = block * BLOCK;
    update(a->p + at, a->m + at, a->v + at, a->g + at, a, esp_min(BLOCK, a->count - at));
    return ESP_OK;
}

int esp_cpu_adamw(esp_tensor *p, esp_tensor *m, esp_tensor *v, const esp_tensor *g, const esp_tensor *lr, const esp_tensor *step,
                  const esp_tensor *factor, double beta1, double beta2, double eps, double decay)
{
    /* Bias corrections in double: 1 - 0.95^step has few bits left in f32 at step 1. */
    double t = scalar(step), rate = scalar(lr);
    adamw_args a = {.p = esp_tensor_at(p), .m = esp_tensor_at(m), .v = esp_tensor_at(v), .g = esp_tensor_at(g), .count = p->count,
                    .factor = (float)scalar(factor), .beta1 = (float)beta1, .beta2 = (float)beta2, .keep = (float)(1 - rate * decay),
                    .rate = (float)(rate / (1 - pow(beta1, t))), .root = (float)(1 / sqrt(1 - pow(beta2, t))), .eps = (float)eps};
    return esp_parallel(esp_ceil_div(p->count, BLOCK), adamw_block, &a);
}
