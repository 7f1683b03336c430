/* Rotary position embedding (2104.09864) in rotate-half order: of the first R channels of a head, c turns with c + R/2; the rest stays. */
#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), TOKENS = 16 };

static int check(const esp_tensor *y, const esp_tensor *x, const esp_tensor *cos, const esp_tensor *sin)
{
    char text[ESP_TEXT];
    TRY(esp_check("rope", "x", x, FLOATS, ESP_READ));
    TRY(esp_check("rope", "y", y, FLOATS, ESP_WRITE));
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

/* One block is TOKENS places of all rows of the batch, walked as one. */
static int rope_block(void *context, int64_t block)
{
    const rope_args *a = context;
    int64_t T = a->x->shape[1], H = a->x->shape[2], D = a->x->shape[3], half = a->cos->shape[1], rest = D - 2 * half;
    int64_t end = esp_min((block + 1) * TOKENS, a->x->shape[0] * T);
    /* Heads that lie side by side are read and written as one. */
    int64_t heads = a->x->stride[2] == D && a->y->stride[2] == D ? H : 1, n = heads * D;
    float *room = esp_scratch(2 * n * 4);
    if (!room) return ESP_EMEM;
    for (int64_t place = block * TOKENS; place < end; place++) {
        int64_t b = place / T, t = place % T;
        const float *cos = (const float *)esp_tensor_at(a->cos) + t * a->cos->stride[0];
        const float *sin = (const float *)esp_tensor_at(a->sin) + t * a->sin->stride[0];
        for (int64_t h = 0; h < H; h += heads) {
            esp_rows x = {esp_tensor_head(a->x, b, t, h), 1, n, n, a->x->dtype}, y = {esp_tensor_head(a->y, b, t, h), 1, n, n, a->y->dtype};
            const float *from = esp_row_in(&x, 0, room);
            float *to = esp_row_at(&y, 0, room + n);
            for (int64_t c = 0; c < n; c += D) {
                turn(to + c, from + c, cos, sin, a->sign, half);
                if (rest > 0 && to != from) memcpy(to + c + 2 * half, from + c + 2 * half, (size_t)rest * 4);
            }
            esp_row_out(&y, 0, to);
        }
    }
    return ESP_OK;
}

int esp_cpu_rope(esp_tensor *y, const esp_tensor *x, const esp_tensor *cos, const esp_tensor *sin, int inverse)
{
    rope_args a = {y, x, cos, sin, inverse ? -1.0f : 1.0f};
    return esp_parallel(x->count ? esp_ceil_div(x->shape[0] * x->shape[1], TOKENS) : 0, rope_block, &a);
}
