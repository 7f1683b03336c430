/* Rotary position embedding (2104.09864) in rotate-half order: of the first R channels of a head, c turns with c + R/2; the rest stays. */
#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32) };

static int check(const esp_tensor *y, const esp_tensor *x, const esp_tensor *cos, const esp_tensor *sin)
{
    char text[ESP_TEXT];
    TRY(esp_check("rope", "x", x, F32, ESP_READ));
    TRY(esp_check("rope", "y", y, F32, ESP_WRITE));
    TRY(esp_check_last_dense("rope", "x", x));
    TRY(esp_check_last_dense("rope", "y", y));
    if (x->ndim != 4 || x->shape[3] % 2) {
        return esp_fail(ESP_ESHAPE, "rope: 'x' is %s, want [batch, positions, heads, an even number]", esp_shape_text(text, x->ndim, x->shape));
    }
    TRY(esp_check_shape("rope", "y", y, 4, x->shape, "shape of x"));
    const esp_tensor *tables[] = {cos, sin};
    const char *names[] = {"cos", "sin"};
    for (int i = 0; i < 2; i++) {
        const esp_tensor *t = tables[i];
        TRY(esp_check("rope", names[i], t, F32, ESP_READ));
        TRY(esp_check_last_dense("rope", names[i], t));
        if (t->ndim != 2 || t->shape[0] < x->shape[1] || t->shape[1] > x->shape[3] / 2) {
            return esp_fail(ESP_ESHAPE, "rope: '%s' is %s, want [%lld or more, at most %lld] (positions and half of the head of x)", names[i],
                            esp_shape_text(text, t->ndim, t->shape), (long long)x->shape[1], (long long)(x->shape[3] / 2));
        }
    }
    return esp_check_shape("rope", "sin", sin, 2, cos->shape, "shape of cos");
}

int esp_rope(esp_tensor *y, const esp_tensor *x, const esp_tensor *cos, const esp_tensor *sin, int inverse)
{
    TRY(check(y, x, cos, sin));
    return esp_backend_of(y)->rope(y, x, cos, sin, inverse);
}

static ESP_SIMD void turn(float *y, const float *x, const float *restrict cos, const float *restrict sin, float sign, int64_t half)
{
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], s = sign * sin[i];
        y[i] = a * cos[i] - b * s;
        y[i + half] = b * cos[i] + a * s;
    }
}

typedef struct rope_args {
    esp_tensor *y;
    const esp_tensor *x, *cos, *sin;
    float sign;
} rope_args;

/* One block is one row of the batch. */
static int rope_block(void *context, int64_t b)
{
    const rope_args *a = context;
    const esp_tensor *x = a->x, *y = a->y;
    int64_t half = a->cos->shape[1], rest = x->shape[3] - 2 * half;
    for (int64_t t = 0; t < x->shape[1]; t++) {
        const float *cos = (const float *)esp_tensor_at(a->cos) + t * a->cos->stride[0];
        const float *sin = (const float *)esp_tensor_at(a->sin) + t * a->sin->stride[0];
        for (int64_t h = 0; h < x->shape[2]; h++) {
            float *to = (float *)esp_tensor_at(y) + b * y->stride[0] + t * y->stride[1] + h * y->stride[2];
            const float *from = (const float *)esp_tensor_at(x) + b * x->stride[0] + t * x->stride[1] + h * x->stride[2];
            turn(to, from, cos, sin, a->sign, half);
            if (rest > 0 && to != from) memcpy(to + 2 * half, from + 2 * half, (size_t)rest * 4);
        }
    }
    return ESP_OK;
}

int esp_cpu_rope(esp_tensor *y, const esp_tensor *x, const esp_tensor *cos, const esp_tensor *sin, int inverse)
{
    rope_args a = {y, x, cos, sin, inverse ? -1.0f : 1.0f};
    return esp_parallel(x->count ? x->shape[0] : 0, rope_block, &a);
}
