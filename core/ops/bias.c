/* The bias of a linear layer: y = x + b, row by row. */
#include "backend.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), BLOCK = 32768 };

typedef struct bias_args {
    esp_rows y, x, b;
    int64_t rows_per_block;
} bias_args;

static int check(bias_args *a, const esp_tensor *y, const esp_tensor *x, const esp_tensor *b)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(esp_check_rows(&a->x, "bias", "x", x, FLOATS, ESP_READ));
    TRY(esp_check_rows(&a->y, "bias", "y", y, FLOATS, ESP_WRITE));
    TRY(esp_check_shape("bias", "y", y, x->ndim, x->shape, "shape of x"));
    TRY(esp_check_rows(&a->b, "bias", "b", b, FLOATS, ESP_READ));
    if (b->count != a->x.cols || a->b.cols != a->x.cols) {
        return esp_fail(ESP_ESHAPE, "bias: 'b' is %s, want [%lld] (last dimension of x %s)", esp_shape_text(text, b->ndim, b->shape),
                        (long long)a->x.cols, esp_shape_text(other, x->ndim, x->shape));
    }
    a->rows_per_block = esp_max_of(1, BLOCK / esp_max_of(1, a->x.cols));
    return ESP_OK;
}

int esp_bias(esp_tensor *y, const esp_tensor *x, const esp_tensor *b)
{
    bias_args a;
    TRY(check(&a, y, x, b));
    return esp_backend_of(y)->bias(y, x, b);
}

static ESP_SIMD void add_row(float *y, const float *x, const float *restrict b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = x[i] + b[i];
}

static int forward_block(void *context, int64_t block)
{
    const bias_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->x.rows), C = a->x.cols;
    float *room = esp_scratch(3 * C * 4);
    if (!room) return ESP_EMEM;
    const float *b = esp_row_in(&a->b, 0, room);
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        float *y = esp_row_at(&a->y, n, room + C);
        add_row(y, esp_row_in(&a->x, n, room + 2 * C), b, C);
        esp_row_out(&a->y, n, y);
    }
    return ESP_OK;
}

int esp_cpu_bias(esp_tensor *y, const esp_tensor *x, const esp_tensor *b)
{
    bias_args a;
    TRY(check(&a, y, x, b));
    return esp_parallel(esp_ceil_div(a.x.rows, a.rows_per_block), forward_block, &a);
}
