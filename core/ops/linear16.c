/* Linear layers whose products are made in bf16: operands rounded to nearest even on their way into the product, sums in f32. What is stored
 * keeps its dtype, so f32 master weights are trained as they are. */
#include "backend.h"
#include "gemm.h"
#include "linear.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), I32 = ESP_BIT(ESP_I32) };

/* `packed` (or NULL) has the size that pack16 asks for a weight [O,I]. */
static int check_packed(esp_linear_args *a, const char *op, const esp_tensor *packed, int64_t k, int64_t n)
{
    if (!packed) return ESP_OK;
    TRY(esp_check(op, "packed", packed, I32, ESP_READ));
    TRY(esp_check_dense(op, "packed", packed));
    int64_t want = esp_gemm_packed_bytes(ESP_BF16, k, n) / 4;
    if (packed->count != want) {
        return esp_fail(ESP_ESHAPE, "%s: 'packed' has %lld numbers, want %lld as pack16 makes them of 'w'", op, (long long)packed->count, (long long)want);
    }
    a->packed = esp_tensor_at(packed);
    return ESP_OK;
}

/* ---- packing ---- */

static int check_pack(esp_rows *rows, esp_tensor *packed, const esp_tensor *w, int inputs)
{
    TRY(esp_check_rows(rows, "pack16", "w", w, FLOATS, ESP_READ));
    TRY(esp_check("pack16", "packed", packed, I32, ESP_WRITE));
    TRY(esp_check_dense("pack16", "packed", packed));
    int64_t want = inputs ? esp_gemm_packed_bytes(ESP_BF16, rows->cols, rows->rows) / 4 : esp_gemm_packed_bytes(ESP_BF16, rows->rows, rows->cols) / 4;
    if (packed->count == want) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "pack16: 'packed' has %lld numbers, want %lld", (long long)packed->count, (long long)want);
}

int esp_pack16(esp_tensor *packed, const esp_tensor *w, int inputs)
{
    esp_rows rows;
    TRY(check_pack(&rows, packed, w, inputs));
    return esp_backend_of(packed)->pack16(packed, w, inputs);
}

int esp_cpu_pack16(esp_tensor *packed, const esp_tensor *w, int inputs)
{
    esp_rows rows;
    TRY(check_pack(&rows, packed, w, inputs));
    return esp_gemm_pack(esp_tensor_at(packed), ESP_BF16, inputs, inputs ? rows.rows : rows.cols, inputs ? rows.cols : rows.rows, esp_matrix_of(&rows));
}

/* ---- forward ---- */

static int check_forward(esp_linear_args *a, esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed)
{
    TRY(esp_linear_check(a, "linear16", x, "x", w, "w", y, "y", 'y', FLOATS));
    return check_packed(a, "linear16", packed, a->w.cols, a->w.rows);
}

int esp_linear16(esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed)
{
    esp_linear_args a;
    TRY(check_forward(&a, y, x, w, packed));
    return esp_backend_of(y)->linear16(y, x, w, packed);
}

/* A few rows, whatever they are stored in, by way of f32: the weight is read once, which is all that counts. */
static int few_rows(const esp_linear_args *a)
{
    int64_t n = a->x.rows, I = a->x.cols, O = a->w.rows;
    float *room = esp_malloc(n * (I + O) * 4);
    if (!room) return ESP_EMEM;
    esp_rows x = a->x, y = a->y;
    for (int64_t r = 0; r < n; r++) esp_row_in(&a->x, r, room + r * I);
    if (x.dtype != ESP_F32) x = (esp_rows){room, n, I, I, ESP_F32};
    if (y.dtype != ESP_F32) y = (esp_rows){room + n * I, n, O, O, ESP_F32};
    int code = esp_linear_few(&x, &a->w, &y);
    for (int64_t r = 0; r < n && code == ESP_OK; r++) esp_row_out(&a->y, r, (const float *)y.data + r * y.stride);
    esp_free(room);
    return code;
}

int esp_cpu_linear16(esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed)
{
    esp_linear_args a;
    TRY(check_forward(&a, y, x, w, packed));
    return a.x.rows <= ESP_FEW_ROWS ? few_rows(&a) : esp_linear_forward(&a, ESP_BF16);
}

/* ---- gradients ---- */

static int check_dx(esp_linear_args *a, const char *op, esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed)
{
    TRY(esp_linear_check(a, op, dx, "dx", w, "w", dy, "dy", 'x', FLOATS));
    return check_packed(a, op, packed, a->w.rows, a->w.cols);
}

static int dx_product(const char *op, esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int beta)
{
    esp_linear_args a;
    TRY(check_dx(&a, op, dx, dy, w, packed));
    return esp_linear_to_x(&a, ESP_BF16, beta);
}

int esp_linear16_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed)
{
    esp_linear_args a;
    TRY(check_dx(&a, "linear16_dx", dx, dy, w, packed));
    return esp_backend_of(dx)->linear16_dx(dx, dy, w, packed);
}

int esp_linear16_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed)
{
    esp_linear_args a;
    TRY(check_dx(&a, "linear16_dx_acc", dx, dy, w, packed));
    return esp_backend_of(dx)->linear16_dx_acc(dx, dy, w, packed);
}

int esp_cpu_linear16_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed)
{
    return dx_product("linear16_dx", dx, dy, w, packed, 0);
}

int esp_cpu_linear16_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed)
{
    return dx_product("linear16_dx_acc", dx, dy, w, packed, 1);
}

static int dw_product(const char *op, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int beta)
{
    esp_linear_args a;
    TRY(esp_linear_check(&a, op, x, "x", dw, "dw", dy, "dy", 'w', FLOATS));
    return esp_linear_to_w(&a, ESP_BF16, beta);
}

int esp_linear16_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x)
{
    esp_linear_args a;
    TRY(esp_linear_check(&a, "linear16_dw", x, "x", dw, "dw", dy, "dy", 'w', FLOATS));
    return esp_backend_of(dw)->linear16_dw(dw, dy, x);
}

int esp_linear16_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x)
{
    esp_linear_args a;
    TRY(esp_linear_check(&a, "linear16_dw_acc", x, "x", dw, "dw", dy, "dy", 'w', FLOATS));
    return esp_backend_of(dw)->linear16_dw_acc(dw, dy, x);
}

int esp_cpu_linear16_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x) { return dw_product("linear16_dw", dw, dy, x, 0); }
int esp_cpu_linear16_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x) { return dw_product("linear16_dw_acc", dw, dy, x, 1); }
