/* Element by element, any strides. A stretch of one stride each runs vectorised; all others one by one. */
#include <math.h>

#include "../formula.h"
#include "backend.h"
#include "walk.h"

enum { F32 = ESP_BIT(ESP_F32) };

/* Inputs a, b (and c) of the shape of y. */
static int check(const char *op, const esp_tensor *y, int inputs, const esp_tensor *const *t, const char *const *names)
{
    TRY(esp_check(op, "y", y, F32, ESP_WRITE));
    for (int i = 0; i < inputs; i++) {
        TRY(esp_check(op, names[i], t[i], F32, ESP_READ));
        TRY(esp_check_shape(op, names[i], t[i], y->ndim, y->shape, "shape of y"));
    }
    return ESP_OK;
}

/* exp that is 0 and infinity where the fast one stops at the ends of the range. */
static inline float whole_exp(float x)
{
    float y = esp_expf(x);
    y = x < -87.3f ? 0.0f : y;
    return x > 88.7f ? expf(x) : y;
}

#define AT(i) ((float *)(void *)p[i])

/* One operation: its stretch, its checks, its kernel. */
#define BINARY(name, expression) \
    static ESP_SIMD void name##_dense(float *y, const float *u, const float *v, int64_t n) \
    { \
        for (int64_t i = 0; i < n; i++) { float a = u[i], b = v[i]; y[i] = (expression); } \
    } \
    static void name##_stretch(const esp_walk *w, char *const *p, const int64_t *s, int64_t n) \
    { \
        (void)w; \
        if (s[0] == 1 && s[1] == 1 && s[2] == 1) { name##_dense(AT(0), AT(1), AT(2), n); return; } \
        for (int64_t i = 0; i < n; i++) { float a = AT(1)[i * s[1]], b = AT(2)[i * s[2]]; AT(0)[i * s[0]] = (expression); } \
    } \
    int esp_##name(esp_tensor *y, const esp_tensor *a, const esp_tensor *b) \
    { \
        const esp_tensor *t[] = {a, b}; \
        const char *names[] = {"a", "b"}; \
        TRY(check(#name, y, 2, t, names)); \
        return esp_backend_of(y)->name(y, a, b); \
    } \
    int esp_cpu_##name(esp_tensor *y, const esp_tensor *a, const esp_tensor *b) \
    { \
        esp_walk w = {0}; \
        const esp_tensor *t[] = {y, a, b}; \
        return esp_walk_run(&w, 3, t, name##_stretch); \
    }

#define UNARY(name, expression) \
    static ESP_SIMD void name##_dense(float *y, const float *u, int64_t n) \
    { \
        for (int64_t i = 0; i < n; i++) { float x = u[i]; y[i] = (expression); } \
    } \
    static void name##_stretch(const esp_walk *w, char *const *p, const int64_t *s, int64_t n) \
    { \
        (void)w; \
        if (s[0] == 1 && s[1] == 1) { name##_dense(AT(0), AT(1), n); return; } \
        for (int64_t i = 0; i < n; i++) { float x = AT(1)[i * s[1]]; AT(0)[i * s[0]] = (expression); } \
    } \
    int esp_##name(esp_tensor *y, const esp_tensor *x) \
    { \
        const char *names[] = {"x"}; \
        TRY(check(#name, y, 1, &x, names)); \
        return esp_backend_of(y)->name(y, x); \
    } \
    int esp_cpu_##name(esp_tensor *y, const esp_tensor *x) \
    { \
        esp_walk w = {0}; \
        const esp_tensor *t[] = {y, x}; \
        return esp_walk_run(&w, 2, t, name##_stretch); \
    }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(pow, powf(a, b))
/* NaN wins. */
BINARY(maximum, a != a ? a : a < b || b != b ? b : a)
BINARY(less, a < b ? 1.0f : 0.0f)
UNARY(exp, whole_exp(x))
UNARY(log, logf(x))
UNARY(sqrt, sqrtf(x))
UNARY(abs, fabsf(x))

/* ---- where ---- */

int esp_where(esp_tensor *y, const esp_tensor *cond, const esp_tensor *a, const esp_tensor *b)
{
    const esp_tensor *t[] = {cond, a, b};
    const char *names[] = {"cond", "a", "b"};
    TRY(check("where", y, 3, t, names));
    return esp_backend_of(y)->where(y, cond, a, b);
}

static void where_stretch(const esp_walk *w, char *const *p, const int64_t *s, int64_t n)
{
    (void)w;
    for (int64_t i = 0; i < n; i++) AT(0)[i * s[0]] = AT(1)[i * s[1]] != 0 ? AT(2)[i * s[2]] : AT(3)[i * s[3]];
}

int esp_cpu_where(esp_tensor *y, const esp_tensor *cond, const esp_tensor *a, const esp_tensor *b)
{
    esp_walk w = {0};
    const esp_tensor *t[] = {y, cond, a, b};
    return esp_walk_run(&w, 4, t, where_stretch);
}

/* ---- affine, scaled_acc ---- */

int esp_affine(esp_tensor *y, const esp_tensor *x, double alpha, double beta)
{
    const char *names[] = {"x"};
    TRY(check("affine", y, 1, &x, names));
    return esp_backend_of(y)->affine(y, x, alpha, beta);
}

static ESP_SIMD void affine_dense(float *y, const float *x, float alpha, float beta, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = alpha * x[i] + beta;
}

static void affine_stretch(const esp_walk *w, char *const *p, const int64_t *s, int64_t n)
{
    float alpha = (float)w->alpha, beta = (float)w->beta;
    if (s[0] == 1 && s[1] == 1) affine_dense(AT(0), AT(1), alpha, beta, n);
    else for (int64_t i = 0; i < n; i++) AT(0)[i * s[0]] = alpha * AT(1)[i * s[1]] + beta;
}

int esp_cpu_affine(esp_tensor *y, const esp_tensor *x, double alpha, double beta)
{
    esp_walk w = {.alpha = alpha, .beta = beta};
    const esp_tensor *t[] = {y, x};
    return esp_walk_run(&w, 2, t, affine_stretch);
}

int esp_scaled_acc(esp_tensor *y, const esp_tensor *x, double alpha)
{
    const char *names[] = {"x"};
    TRY(check("scaled_acc", y, 1, &x, names));
    return esp_backend_of(y)->scaled_acc(y, x, alpha);
}

static ESP_SIMD void scaled_acc_dense(float *restrict y, const float *restrict x, float alpha, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

static void scaled_acc_stretch(const esp_walk *w, char *const *p, const int64_t *s, int64_t n)
{
    float alpha = (float)w->alpha;
    if (s[0] == 1 && s[1] == 1) scaled_acc_dense(AT(0), AT(1), alpha, n);
    else for (int64_t i = 0; i < n; i++) AT(0)[i * s[0]] += alpha * AT(1)[i * s[1]];
}

int esp_cpu_scaled_acc(esp_tensor *y, const esp_tensor *x, double alpha)
{
    esp_walk w = {.alpha = alpha};
    const esp_tensor *t[] = {y, x};
    return esp_walk_run(&w, 2, t, scaled_acc_stretch);
}
