/* The gate of a feed-forward layer: silu(gate) * up (2002.05202), forward and backward. */
#include "backend.h"

#include "../formula.h"

enum { F32 = ESP_BIT(ESP_F32), BLOCK = 32768 };

typedef struct gate_args {
    esp_rows y, gate, up, dgate, dup, dy;
    int64_t rows_per_block;
} gate_args;

static int check_one(esp_rows *out, const char *op, const char *arg, const esp_tensor *t, const esp_tensor *gate, int access)
{
    TRY(esp_check_rows(out, op, arg, t, F32, access));
    return esp_check_shape(op, arg, t, gate->ndim, gate->shape, "shape of gate");
}

int esp_silu_gate(esp_tensor *y, const esp_tensor *gate, const esp_tensor *up)
{
    gate_args a;
    TRY(esp_check_rows(&a.gate, "silu_gate", "gate", gate, F32, ESP_READ));
    TRY(check_one(&a.up, "silu_gate", "up", up, gate, ESP_READ));
    TRY(check_one(&a.y, "silu_gate", "y", y, gate, ESP_WRITE));
    return esp_backend_of(y)->silu_gate(y, gate, up);
}

int esp_silu_gate_backward(esp_tensor *dgate, esp_tensor *dup, const esp_tensor *dy, const esp_tensor *gate, const esp_tensor *up)
{
    gate_args a;
    const char *op = "silu_gate_backward";
    TRY(esp_check_rows(&a.gate, op, "gate", gate, F32, ESP_READ));
    TRY(check_one(&a.up, op, "up", up, gate, ESP_READ));
    TRY(check_one(&a.dy, op, "dy", dy, gate, ESP_READ));
    TRY(check_one(&a.dgate, op, "dgate", dgate, gate, ESP_WRITE));
    TRY(check_one(&a.dup, op, "dup", dup, gate, ESP_WRITE));
    return esp_backend_of(dgate)->silu_gate_backward(dgate, dup, dy, gate, up);
}

static ESP_SIMD void gate_row(float *y, const float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = esp_silu(gate[i]) * up[i];
}

static ESP_SIMD void gate_row_backward(float *restrict dgate, float *restrict dup, const float *restrict dy, const float *restrict gate,
                                       const float *restrict up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float s = esp_sigmoid(gate[i]), silu = gate[i] * s;
        dup[i] = dy[i] * silu;
        dgate[i] = dy[i] * up[i] * (s + silu * (1.0f - s));
    }
}

static int64_t rows_per_block(const esp_rows *r)
{
    return esp_max_of(1, BLOCK / esp_max_of(1, r->cols));
}

static float *row(const esp_rows *r, int64_t n) { return (float *)r->data + n * r->stride; }

static int forward_block(void *context, int64_t block)
{
    const gate_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->gate.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) gate_row(row(&a->y, n), row(&a->gate, n), row(&a->up, n), a->gate.cols);
    return ESP_OK;
}

int esp_cpu_silu_gate(esp_tensor *y, const esp_tensor *gate, const esp_tensor *up)
{
    gate_args a;
    TRY(esp_check_rows(&a.y, "silu_gate", "y", y, F32, ESP_WRITE));
    TRY(esp_check_rows(&a.gate, "silu_gate", "gate", gate, F32, ESP_READ));
    TRY(esp_check_rows(&a.up, "silu_gate", "up", up, F32, ESP_READ));
    a.rows_per_block = rows_per_block(&a.gate);
    return esp_parallel(esp_ceil_div(a.gate.rows, a.rows_per_block), forward_block, &a);
}

static int backward_block(void *context, int64_t block)
{
    const gate_args *a = context;
    int64_t end = esp_min((block + 1) * a->rows_per_block, a->gate.rows);
    for (int64_t n = block * a->rows_per_block; n < end; n++) {
        gate_row_backward(row(&a->dgate, n), row(&a->dup, n), row(&a->dy, n), row(&a->gate, n), row(&a->up, n), a->gate.cols);
    }
    return ESP_OK;
}

int esp_cpu_silu_gate_backward(esp_tensor *dgate, esp_tensor *dup, const esp_tensor *dy, const esp_tensor *gate, const esp_tensor *up)
{
    const char *op = "silu_gate_backward";
    gate_args a;
    TRY(esp_check_rows(&a.dgate, op, "dgate", dgate, F32, ESP_WRITE));
    TRY(esp_check_rows(&a.dup, op, "dup", dup, F32, ESP_WRITE));
    TRY(esp_check_rows(&a.dy, op, "dy", dy, F32, ESP_READ));
    TRY(esp_check_rows(&a.gate, op, "gate", gate, F32, ESP_READ));
    TRY(esp_check_rows(&a.up, op, "up", up, F32, ESP_READ));
    a.rows_per_block = rows_per_block(&a.gate);
    return esp_parallel(esp_ceil_div(a.gate.rows, a.rows_per_block), backward_block, &a);
}
