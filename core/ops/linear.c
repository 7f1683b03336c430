/* Linear layers: y = x w^T, its gradient by x and by w. */
#include "backend.h"
#include "gemm.h"
#include "lanes.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16) };

/* ---- argument checks ---- */

typedef struct linear_args {
    esp_rows x, w, y;                     /* [N,I], [O,I], [N,O] */
    const uint32_t *packed;               /* what pack made of w, or NULL */
    int dtype;                            /* of the products */
} linear_args;

static int check_dtype(const char *op, int dtype)
{
    if (dtype == ESP_F32 || dtype == ESP_BF16) return ESP_OK;
    return esp_fail(ESP_EARG, "%s: 'dtype' is %d, want f32 (%d) or bf16 (%d)", op, dtype, (int)ESP_F32, (int)ESP_BF16);
}

/* Three operands by the names that the caller uses; written: 'x', 'w' or 'y', the output. A weight that is read may be bf16 in any case, one that is
 * written is f32. */
static int check(linear_args *a, const char *op, int dtype, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn,
                 const esp_tensor *y, const char *yn, char written)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(check_dtype(op, dtype));
    unsigned dtypes = dtype == ESP_BF16 ? FLOATS : F32;
    *a = (linear_args){.dtype = dtype};
    TRY(esp_check_rows(&a->x, op, xn, x, dtypes, written == 'x'));
    TRY(esp_check_rows(&a->w, op, wn, w, written == 'w' ? F32 : FLOATS, written == 'w'));
    TRY(esp_check_rows(&a->y, op, yn, y, dtypes, written == 'y'));
    if (w->ndim != 2) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want two dimensions [outputs, inputs]", op, wn, esp_shape_text(text, w->ndim, w->shape));
    if (a->w.cols != a->x.cols) {
        return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [*, %lld] (last dimension of '%s' %s)", op, wn, esp_shape_text(text, w->ndim, w->shape),
                        (long long)a->x.cols, xn, esp_shape_text(other, x->ndim, x->shape));
    }
    if (a->y.rows == a->x.rows && a->y.cols == a->w.rows) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want %lld rows of %lld ('%s' has %lld rows, '%s' %lld)", op, yn,
                    esp_shape_text(text, y->ndim, y->shape), (long long)a->x.rows, (long long)a->w.rows, xn, (long long)a->x.rows, wn,
                    (long long)a->w.rows);
}

/* `packed` (or NULL) has the size that pack asks for op(B) [k,n]. */
static int check_packed(linear_args *a, const char *op, const esp_tensor *packed, int64_t k, int64_t n)
{
    if (!packed) return ESP_OK;
    TRY(esp_check(op, "packed", packed, ESP_BIT(ESP_I32), ESP_READ));
    TRY(esp_check_dense(op, "packed", packed));
    int64_t want = esp_gemm_packed_bytes(a->dtype, k, n) / 4;
    if (packed->count != want) {
        return esp_fail(ESP_ESHAPE, "%s: 'packed' has %lld numbers, want %lld as pack makes them of 'w'", op, (long long)packed->count, (long long)want);
    }
    a->packed = esp_tensor_at(packed);
    return ESP_OK;
}

static int check_forward(linear_args *a, esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    TRY(check(a, "linear", dtype, x, "x", w, "w", y, "y", 'y'));
    return check_packed(a, "linear", packed, a->w.cols, a->w.rows);
}

static int check_dx(linear_args *a, const char *op, esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    TRY(check(a, op, dtype, dx, "dx", w, "w", dy, "dy", 'x'));
    return check_packed(a, op, packed, a->w.rows, a->w.cols);
}

static int check_dw(linear_args *a, const char *op, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)
{
    return check(a, op, dtype, x, "x", dw, "dw", dy, "dy", 'w');
}

static int check_pack(esp_rows *rows, esp_tensor *packed, const esp_tensor *w, int inputs, int dtype)
{
    TRY(check_dtype("pack", dtype));
    TRY(esp_check_rows(rows, "pack", "w", w, FLOATS, ESP_READ));
    TRY(esp_check("pack", "packed", packed, ESP_BIT(ESP_I32), ESP_WRITE));
    TRY(esp_check_dense("pack", "packed", packed));
    int64_t k = inputs ? rows->cols : rows->rows, n = inputs ? rows->rows : rows->cols, want = esp_gemm_packed_bytes(dtype, k, n) / 4;
    if (packed->count == want) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "pack: 'packed' has %lld numbers, want %lld", (long long)packed->count, (long long)want);
}

int esp_linear(esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    linear_args a;
    TRY(check_forward(&a, y, x, w, packed, dtype));
    return esp_backend_of(y)->linear(y, x, w, packed, dtype);
}

int esp_linear_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    linear_args a;
    TRY(check_dx(&a, "linear_dx", dx, dy, w, packed, dtype));
    return esp_backend_of(dx)->linear_dx(dx, dy, w, packed, dtype);
}

int esp_linear_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    linear_args a;
    TRY(check_dx(&a, "linear_dx_acc", dx, dy, w, packed, dtype));
    return esp_backend_of(dx)->linear_dx_acc(dx, dy, w, packed, dtype);
}

int esp_linear_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)
{
    linear_args a;
    TRY(check_dw(&a, "linear_dw", dw, dy, x, dtype));
    return esp_backend_of(dw)->linear_dw(dw, dy, x, dtype);
}

int esp_linear_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)
{
    linear_args a;
    TRY(check_dw(&a, "linear_dw_acc", dw, dy, x, dtype));
    return esp_backend_of(dw)->linear_dw_acc(dw, dy, x, dtype);
}

int esp_pack(esp_tensor *packed, const esp_tensor *w, int inputs, int dtype)
{
    esp_rows rows;
    TRY(check_pack(&rows, packed, w, inputs, dtype));
    return esp_backend_of(packed)->pack(packed, w, inputs, dtype);
}

/* ---- a few rows (decoding) ---- */

enum { OUTPUTS = 64 };

typedef struct few_rows {
    esp_rows x, w, y;                     /* x and y in f32 */
    const esp_lanes *lanes;
    float *half;                          /* of a bf16 weight: of each row of x the even entries, then the odd ones, [rows, cols] */
} few_rows;

static int few_rows_block(void *context, int64_t block)
{
    const few_rows *f = context;
    int64_t from = block * OUTPUTS, outputs = esp_min(OUTPUTS, f->w.rows - from), n = f->x.cols;
    for (int64_t r = 0; r < f->x.rows; r++) {
        const float *x = (const float *)f->x.data + r * f->x.stride;
        float *y = (float *)f->y.data + r * f->y.stride + from;
        if (f->w.dtype == ESP_F32) f->lanes->dots(y, x, (const float *)f->w.data + from * f->w.stride, f->w.stride, outputs, n);
        else f->lanes->dots16(y, x, f->half + r * n, (const uint16_t *)f->w.data + from * f->w.stride, f->w.stride, outputs, n);
    }
    return ESP_OK;
}

static int read_weight(few_rows f)
{
    int64_t n = f.x.cols;
    TRY(esp_lanes_of(&f.lanes));
    if (f.w.dtype != ESP_F32) {
        if (!(f.half = esp_scratch(f.x.rows * n * 4))) return ESP_EMEM;
        for (int64_t r = 0; r < f.x.rows; r++) {
            const float *x = (const float *)f.x.data + r * f.x.stride;
            for (int64_t i = 0; i < n / 2; i++) f.half[r * n + i] = x[2 * i], f.half[r * n + n / 2 + i] = x[2 * i + 1];
        }
    }
    return esp_parallel(esp_ceil_div(f.w.rows, OUTPUTS), few_rows_block, &f);
}

/* x and y in whatever they are stored, by way of f32. */
static int few_rows_forward(const linear_args *a)
{
    int64_t n = a->x.rows, I = a->x.cols, O = a->w.rows;
    if (a->x.dtype == ESP_F32 && a->y.dtype == ESP_F32) return read_weight((few_rows){.x = a->x, .w = a->w, .y = a->y});
    float *room = esp_malloc(n * (I + O) * 4);
    if (!room) return ESP_EMEM;
    for (int64_t r = 0; r < n; r++) esp_row_in(&a->x, r, room + r * I);
    int code = read_weight((few_rows){.x = {room, n, I, I, ESP_F32}, .w = a->w, .y = {room + n * I, n, O, O, ESP_F32}});
    for (int64_t r = 0; r < n && code == ESP_OK; r++) esp_row_out(&a->y, r, room + n * I + r * O);
    esp_free(room);
    return code;
}

/* ---- kernels ---- */

static esp_matrix matrix(const esp_rows *r)
{
    return (esp_matrix){r->data, r->dtype, r->stride};
}

int esp_cpu_linear(esp_tensor *y, const esp_tensor *x, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    linear_args a;
    TRY(check_forward(&a, y, x, w, packed, dtype));
    if (a.x.rows <= ESP_FEW_ROWS) return few_rows_forward(&a);
    return esp_gemm(&(esp_gemm_args){.dtype = dtype, .tb = 1, .m = a.x.rows, .n = a.w.rows, .k = a.x.cols, .a = matrix(&a.x), .b = matrix(&a.w),
                                     .c = matrix(&a.y), .packed = a.packed});
}

static int dx_product(const char *op, esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype, int beta)
{
    linear_args a;
    TRY(check_dx(&a, op, dx, dy, w, packed, dtype));
    return esp_gemm(&(esp_gemm_args){.dtype = dtype, .m = a.x.rows, .n = a.w.cols, .k = a.w.rows, .a = matrix(&a.y), .b = matrix(&a.w),
                                     .c = matrix(&a.x), .beta = beta, .packed = a.packed});
}

int esp_cpu_linear_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    return dx_product("linear_dx", dx, dy, w, packed, dtype, 0);
}

int esp_cpu_linear_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, const esp_tensor *packed, int dtype)
{
    return dx_product("linear_dx_acc", dx, dy, w, packed, dtype, 1);
}

static int dw_product(const char *op, esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype, int beta)
{
    linear_args a;
    TRY(check_dw(&a, op, dw, dy, x, dtype));
    return esp_gemm(&(esp_gemm_args){.dtype = dtype, .ta = 1, .m = a.w.rows, .n = a.w.cols, .k = a.x.rows, .a = matrix(&a.y), .b = matrix(&a.x),
                                     .c = matrix(&a.w), .beta = beta});
}

int esp_cpu_linear_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)
{
    return dw_product("linear_dw", dw, dy, x, dtype, 0);
}

int esp_cpu_linear_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, int dtype)
{
    return dw_product("linear_dw_acc", dw, dy, x, dtype, 1);
}

int esp_cpu_pack(esp_tensor *packed, const esp_tensor *w, int inputs, int dtype)
{
    esp_rows rows;
    TRY(check_pack(&rows, packed, w, inputs, dtype));
    int64_t k = inputs ? rows.cols : rows.rows, n = inputs ? rows.rows : rows.cols;
    return esp_gemm_pack(esp_tensor_at(packed), dtype, inputs, n, k, matrix(&rows));
}
