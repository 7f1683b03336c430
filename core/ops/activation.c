/* The activation of a feed-forward layer, with a gate, f(gate) * up (2002.05202), or without, f(gate); forward and backward. */
#include "backend.h"

#include "../formula.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), BLOCK = 32768 };

typedef struct gate_args {
    esp_rows y, gate, up, dgate, dup, dy;
    int kind;
    int64_t rows_per_block;
} gate_args;

/* ---- argument checks ---- */

static int check_one(esp_rows *out, const char *op, const char *arg, const esp_tensor *t, const esp_tensor *gate, int access)
{
    TRY(esp_check_rows(out, op, arg, t, FLOATS, access));
    return esp_check_shape(op, arg, t, gate->ndim, gate->shape, "shape of gate");
}

static int check_gate(gate_args *a, const char *op, const esp_tensor *gate, const esp_tensor *up, int kind)
{
    *a = (gate_args){.kind = kind};
    TRY(esp_check_rows(&a->gate, op, "gate", gate, FLOATS, ESP_READ));
    if (up) TRY(check_one(&a->up, op, "up", up, gate, ESP_READ));
    if (kind < ESP_SILU || kind > ESP_RELU2) return esp_fail(ESP_EARG, "%s: kind is %d, want one of esp_activation", op, kind);
    a->rows_per_block = esp_max_of(1, BLOCK / esp_max_of(1, a->gate.cols));
    return ESP_OK;
}

static int check_forward(gate_args *a, const esp_tensor *y, const esp_tensor *gate, const esp_tensor *up, int kind)
{
    TRY(check_gate(a, "gate", gate, up, kind));
    return check_one(&a->y, "gate", "y", y, gate, ESP_WRITE);
}

static int check_backward(gate_args *a, const esp_tensor *dgate, const esp_tensor *dup, const esp_tensor *dy, const esp_tensor *gate,
                          const esp_tensor *up, int kind)
{
    const char *op = "gate_backward";
    TRY(check_gate(a, op, gate, up, kind));
    if (!up != !dup) return esp_fail(ESP_EARG, "%s: 'up' and 'dup' come together or not at all", op);
    TRY(check_one(&a->dy, op, "dy", dy, gate, ESP_READ));
    TRY(check_one(&a->dgate, op, "dgate", dgate, gate, ESP_WRITE));
    return dup ? check_one(&a->dup, op, "dup", dup, gate, ESP_WRITE) : ESP_OK;
}

int esp_gate(esp_tensor *y, const esp_tensor *gate, const esp_tensor *up, int kind)
{
    gate_args a;
    TRY(check_forward(&a, y, gate, up, kind));
    return esp_backend_of(y)->gate(y, gate, up, kind);
}

int esp_gate_backward(esp_tensor *dgate, esp_tensor *dup, const esp_tensor *dy, const esp_tensor *gate, const esp_tensor *up, int kind)
{
    gate_args a;
    TRY(check_backward(&a, dgate, dup, dy, gate, up, kind));
    return esp_backend_of(dgate)->gate_backward(dgate, dup, dy, gate, up, kind);
}

/* ---- CPU: rows of one activation, with and without a gate ---- */

#define ACTIVATION_ROWS(name)                                                                                                                \
    static ESP_SIMD void name##_row(float *y, const float *gate, const float *up, int64_t n)                                                 \
    {                                                                                                                                        \
        if (up) for (int64_t i = 0; i < n; i++) y[i] = esp_##name(gate[i]) * up[i];                                                          \
        else for (int64_t i = 0; i < n; i++) y[i] = esp_##name(gate[i]);                                                                     \
    }                                                                                                                                        \
    static ESP_SIMD void name##_backward(float *restrict dgate, float *restrict dup, const float *restrict dy, const float *restrict gate,   \
                                         const float *restrict up, int64_t n)                                                                \
    {                                                                                                                                        \
        if (!up) {                                                                                                                           \
            for (int64_t i = 0; i < n; i++) dgate[i] = dy[i] * esp_##name##_slope(gate[i]);                                                  \
            return;                                                                                                                          \
        }                                                                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                                                    \
            dup[i] = dy[i] * esp_##name(gate[i]);                                                                                            \
            dgate[i] = dy[i] * up[i] * esp_##name##_slope(gate[i]);                                                                          \
        }                                                                                                                                    \
    }
ACTIVATION_ROWS(silu)
ACTIVATION_ROWS(gelu_tanh)
ACTIVATION_ROWS(relu2)

static const struct {
    void (*forward)(float *, const float *, const float *, int64_t);
    void (*backward)(float *, float *, const float *, const float *, const float *, int64_t);
} rows_of[] = {
    [ESP_SILU] = {silu_row, silu_backward}, [ESP_GELU_TANH] = {gelu_tanh_row, gelu_tanh_backward}, [ESP_RELU2] = {relu2_row, relu2_backward}};

void esp_activation_row(int kind, float *y, const float *gate, const float *up, int64_t n)
{
    rows_of[kind].forward(y, gate, up, n);
}

static int forward_block(void *context, int64_t block)
{
    const gate_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->gate.rows), C = a->gate.cols;
    float *room = esp_scratch(3 * C * 4);
    if (!room) return ESP_EMEM;
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        float *y = esp_row_at(&a->y, n, room);
        esp_activation_row(a->kind, y, esp_row_in(&a->gate, n, room + C), a->up.data ? esp_row_in(&a->up, n, room + 2 * C) : NULL, C);
        esp_row_out(&a->y, n, y);
    }
    return ESP_OK;
}

int esp_cpu_gate(esp_tensor *y, const esp_tensor *gate, const esp_tensor *up, int kind)
{
    gate_args a;
    TRY(check_forward(&a, y, gate, up, kind));
    return esp_parallel(esp_ceil_div(a.gate.rows, a.rows_per_block), forward_block, &a);
}

static int backward_block(void *context, int64_t block)
{
    const gate_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->gate.rows), C = a->gate.cols;
    float *room = esp_scratch(5 * C * 4);
    if (!room) return ESP_EMEM;
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        int gated = a->up.data != NULL;
        float *dgate = esp_row_at(&a->dgate, n, room), *dup = gated ? esp_row_at(&a->dup, n, room + C) : NULL;
        const float *up = gated ? esp_row_in(&a->up, n, room + 4 * C) : NULL;
        rows_of[a->kind].backward(dgate, dup, esp_row_in(&a->dy, n, room + 2 * C), esp_row_in(&a->gate, n, room + 3 * C), up, C);
        esp_row_out(&a->dgate, n, dgate);
        if (gated) esp_row_out(&a->dup, n, dup);
    }
    return ESP_OK;
}

int esp_cpu_gate_backward(esp_tensor *dgate, esp_tensor *dup, const esp_tensor *dy, const esp_tensor *gate, const esp_tensor *up, int kind)
{
    gate_args a;
    TRY(check_backward(&a, dgate, dup, dy, gate, up, kind));
    return esp_parallel(esp_ceil_div(a.gate.rows, a.rows_per_block), backward_block, &a);
}
