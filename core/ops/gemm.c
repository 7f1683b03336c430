/* Linear layers: y = x w^T, its gradient by x and by w.
 *
 * The output is cut into blocks whose bounds depend on its shape alone; each is one single-threaded matrix product, so the bits of the
 * result do not depend on the number of threads. A bf16 weight is widened block by block into scratch. */
#include "backend.h"
#include "lanes.h"
#include "linear.h"

/* ---- argument checks ---- */

/* x and y are f32; the library is there. */
static int check(esp_linear_args *a, const char *op, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn, const esp_tensor *y,
                 const char *yn, char written)
{
    TRY(esp_linear_check(a, op, x, xn, w, wn, y, yn, written, ESP_BIT(ESP_F32)));
    return esp_gemm_open();
}

int esp_linear(esp_tensor *y, const esp_tensor *x, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear", x, "x", w, "w", y, "y", 'y'));
    return esp_backend_of(y)->linear(y, x, w);
}

int esp_linear_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dx", dx, "dx", w, "w", dy, "dy", 'x'));
    return esp_backend_of(dx)->linear_dx(dx, dy, w);
}

int esp_linear_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dx_acc", dx, "dx", w, "w", dy, "dy", 'x'));
    return esp_backend_of(dx)->linear_dx_acc(dx, dy, w);
}

int esp_linear_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dw", x, "x", dw, "dw", dy, "dy", 'w'));
    return esp_backend_of(dw)->linear_dw(dw, dy, x);
}

int esp_linear_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dw_acc", x, "x", dw, "dw", dy, "dy", 'w'));
    return esp_backend_of(dw)->linear_dw_acc(dw, dy, x);
}

/* ---- products in blocks ---- */

/* C[m,n] = op(A) op(B) + beta C. A is f32; B f32 or bf16. */
typedef struct product {
    int ta, tb, b_dtype;
    int64_t m, n, k, lda, ldb, ldc, mb, nb, across;
    const float *a;
    const void *b;
    float *c;
    float beta;
} product;

static int product_block(void *context, int64_t block)
{
    const product *p = context;
    int64_t i = block / p->across * p->mb, j = block % p->across * p->nb;
    int64_t m = esp_min(p->mb, p->m - i), n = esp_min(p->nb, p->n - j);
    const float *a = p->a + (p->ta ? i : i * p->lda), *b;
    int64_t ldb = p->ldb;
    if (p->b_dtype == ESP_F32) {
        b = (const float *)p->b + (p->tb ? j * ldb : j);
    } else {
        int64_t rows = p->tb ? n : p->k, cols = p->tb ? p->k : n;
        const uint16_t *from = (const uint16_t *)p->b + (p->tb ? j * ldb : j);
        float *wide = esp_scratch(rows * cols * 4);
        if (!wide) return ESP_EMEM;
        for (int64_t r = 0; r < rows; r++) esp_convert(wide + r * cols, ESP_F32, from + r * ldb, ESP_BF16, cols);
        b = wide;
        ldb = cols;
    }
    esp_gemm_block(p->ta, p->tb, m, n, p->k, 1, a, p->lda, b, ldb, p->beta, p->c + i * p->ldc + j, p->ldc);
    return ESP_OK;
}

/* Blocks of at most 512 x 1024, halved until there are sixteen or they get so small that packing costs more than the product. */
static void cut(product *p)
{
    p->mb = esp_min(p->m, 512);
    p->nb = esp_min(p->n, 1024);
    for (;;) {
        p->across = esp_ceil_div(p->n, p->nb);
        int64_t blocks = esp_ceil_div(p->m, p->mb) * p->across;
        if (blocks >= 16 || (p->mb < 256 && p->nb < 256)) return;
        int64_t *side = p->mb >= p->nb ? &p->mb : &p->nb;
        *side = esp_ceil_div(esp_ceil_div(*side, 2), 16) * 16;
    }
}

static int run(product p)
{
    if (p.m == 0 || p.n == 0) return ESP_OK;
    cut(&p);
    return esp_parallel(esp_ceil_div(p.m, p.mb) * p.across, product_block, &p);
}

/* ---- a few rows (decoding): each weight is read once, in order, which is all that counts ---- */

enum { OUTPUTS = 64 };

typedef struct few_rows {
    esp_linear_args a;
    const esp_lanes *lanes;
    float *half;                          /* of a bf16 weight: of each row of x the even entries, then the odd ones, [rows, cols] */
} few_rows;

static int few_rows_block(void *context, int64_t block)
{
    const few_rows *f = context;
    const esp_linear_args *a = &f->a;
    int64_t from = block * OUTPUTS, outputs = esp_min(OUTPUTS, a->w.rows - from), n = a->x.cols;
    for (int64_t r = 0; r < a->x.rows; r++) {
        const float *x = (const float *)a->x.data + r * a->x.stride;
        float *y = (float *)a->y.data + r * a->y.stride + from;
        if (a->w.dtype == ESP_F32) f->lanes->dots(y, x, (const float *)a->w.data + from * a->w.stride, a->w.stride, outputs, n);
        else f->lanes->dots16(y, x, f->half + r * n, (const uint16_t *)a->w.data + from * a->w.stride, a->w.stride, outputs, n);
    }
    return ESP_OK;
}

int esp_linear_few(const esp_rows *x_rows, const esp_rows *w, const esp_rows *y)
{
    few_rows f = {.a = {*x_rows, *w, *y}};
    int64_t n = x_rows->cols;
    TRY(esp_lanes_of(&f.lanes));
    if (w->dtype != ESP_F32) {
        if (!(f.half = esp_scratch(x_rows->rows * n * 4))) return ESP_EMEM;
        for (int64_t r = 0; r < x_rows->rows; r++) {
            const float *x = (const float *)x_rows->data + r * x_rows->stride;
            for (int64_t i = 0; i < n / 2; i++) f.half[r * n + i] = x[2 * i], f.half[r * n + n / 2 + i] = x[2 * i + 1];
        }
    }
    return esp_parallel(esp_ceil_div(w->rows, OUTPUTS), few_rows_block, &f);
}

/* ---- kernels ---- */

int esp_cpu_linear(esp_tensor *y, const esp_tensor *x, const esp_tensor *w)
{
    esp_linear_args a;
    TRY(check(&a, "linear", x, "x", w, "w", y, "y", 'y'));
    if (a.x.rows <= ESP_FEW_ROWS) return esp_linear_few(&a.x, &a.w, &a.y);
    return run((product){.tb = 1, .b_dtype = a.w.dtype, .m = a.x.rows, .n = a.w.rows, .k = a.x.cols, .a = a.x.data, .lda = a.x.stride,
                         .b = a.w.data, .ldb = a.w.stride, .c = a.y.data, .ldc = a.y.stride});
}

static int dx_product(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w, float beta)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dx", dx, "dx", w, "w", dy, "dy", 'x'));
    return run((product){.b_dtype = a.w.dtype, .m = a.x.rows, .n = a.w.cols, .k = a.w.rows, .a = a.y.data, .lda = a.y.stride,
                         .b = a.w.data, .ldb = a.w.stride, .c = a.x.data, .ldc = a.x.stride, .beta = beta});
}

int esp_cpu_linear_dx(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w) { return dx_product(dx, dy, w, 0); }
int esp_cpu_linear_dx_acc(esp_tensor *dx, const esp_tensor *dy, const esp_tensor *w) { return dx_product(dx, dy, w, 1); }

static int dw_product(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x, float beta)
{
    esp_linear_args a;
    TRY(check(&a, "linear_dw", x, "x", dw, "dw", dy, "dy", 'w'));
    return run((product){.ta = 1, .b_dtype = ESP_F32, .m = a.w.rows, .n = a.w.cols, .k = a.x.rows, .a = a.y.data, .lda = a.y.stride,
                         .b = a.x.data, .ldb = a.x.stride, .c = a.w.data, .ldc = a.w.stride, .beta = beta});
}

int esp_cpu_linear_dw(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x) { return dw_product(dw, dy, x, 0); }
int esp_cpu_linear_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *x) { return dw_product(dw, dy, x, 1); }
