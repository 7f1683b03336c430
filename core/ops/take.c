/* Rows and columns of a matrix, taken and converted in one pass: what a pruned weight is, whether it goes to memory or to a file. */
#include "backend.h"

enum { FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16) | ESP_BIT(ESP_F16) | ESP_BIT(ESP_F64), INTEGERS = ESP_BIT(ESP_I32) | ESP_BIT(ESP_U8),
       READ = FLOATS | INTEGERS | ESP_BIT(ESP_F8_E4M3) | ESP_BIT(ESP_F8_E5M2), PIECE = 2048, BLOCK = 65536 };

typedef struct take_args {
    esp_tensor *y;
    const esp_tensor *x;
    const int32_t *rows, *columns;         /* NULL: all */
    int64_t row_step, column_step, n, m, rows_per_block;
} take_args;

static int check_index(const char *arg, const esp_tensor *index, int64_t most, int64_t *count)
{
    *count = most;
    if (!index) return ESP_OK;
    TRY(esp_check("take", arg, index, ESP_BIT(ESP_I32), ESP_READ));
    TRY(esp_check_dense("take", arg, index));
    const int32_t *at = esp_tensor_at(index);
    for (int64_t i = 0; i < index->count; i++) {
        if (at[i] < 0 || at[i] >= most) {
            return esp_fail(ESP_EARG, "take: index %d at place %lld of '%s', want 0 to %lld", at[i], (long long)i, arg, (long long)most - 1);
        }
    }
    *count = index->count;
    return ESP_OK;
}

static int check(esp_tensor *y, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns)
{
    char text[ESP_TEXT];
    TRY(esp_check("take", "x", x, READ, ESP_READ_BYTES));
    TRY(esp_check("take", "y", y, FLOATS | INTEGERS, ESP_WRITE));
    TRY(esp_check_dense("take", "y", y));
    if (x->ndim < 1 || x->ndim > 2 || (x->ndim == 1 && rows)) {
        return esp_fail(ESP_ESHAPE, "take: 'x' is %s, want two dimensions, or one without 'rows'", esp_shape_text(text, x->ndim, x->shape));
    }
    int64_t want[2];
    if (x->ndim == 2) TRY(check_index("rows", rows, x->shape[0], &want[0]));
    TRY(check_index("columns", columns, x->shape[x->ndim - 1], &want[x->ndim - 1]));
    return esp_check_shape("take", "y", y, x->ndim, want, "the indices, or the shape of x");
}

int esp_take(esp_tensor *y, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns)
{
    TRY(check(y, x, rows, columns));
    return esp_backend_of(y)->take(y, x, rows, columns);
}

/* n elements of one row, from element `at` of the output on, dense in `to` and in the dtype of x. Bytes are copied, so x may be unaligned. */
static void collect(const take_args *a, char *to, const char *row, int64_t at, int64_t n)
{
    int64_t size = esp_dtype_size(a->x->dtype), step = a->column_step * size;
    if (!a->columns && a->column_step == 1) {
        memcpy(to, row + at * size, (size_t)(n * size));
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const char *from = row + (a->columns ? a->columns[at + i] : at + i) * step;
        if (size == 2) memcpy(to + 2 * i, from, 2);
        else if (size == 4) memcpy(to + 4 * i, from, 4);
        else memcpy(to + size * i, from, (size_t)size);
    }
}

static int take_block(void *context, int64_t block)
{
    const take_args *a = context;
    int from = a->x->dtype, to = a->y->dtype;
    int64_t in = esp_dtype_size(from), out = esp_dtype_size(to), end = esp_min((block + 1) * a->rows_per_block, a->n);
    _Alignas(64) char piece[PIECE * 8];
    for (int64_t r = block * a->rows_per_block; r < end; r++) {
        const char *row = (const char *)esp_tensor_at(a->x) + (a->rows ? a->rows[r] : r) * a->row_step * in;
        char *y = (char *)esp_tensor_at(a->y) + r * a->m * out;
        if (from == to) {
            collect(a, y, row, 0, a->m);
            continue;
        }
        for (int64_t at = 0; at < a->m; at += PIECE) {
            int64_t n = esp_min(PIECE, a->m - at);
            collect(a, piece, row, at, n);
            esp_convert(y + at * out, to, piece, from, n);
        }
    }
    return ESP_OK;
}

int esp_cpu_take(esp_tensor *y, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns)
{
    int last = x->ndim - 1;
    take_args a = {.y = y, .x = x, .rows = rows ? esp_tensor_at(rows) : NULL, .columns = columns ? esp_tensor_at(columns) : NULL,
                   .row_step = last ? x->stride[0] : 0, .column_step = x->stride[last], .n = last ? y->shape[0] : 1, .m = y->shape[last]};
    if (y->count == 0) return ESP_OK;
    a.rows_per_block = esp_max_of(1, BLOCK / a.m);
    return esp_parallel(esp_ceil_div(a.n, a.rows_per_block), take_block, &a);
}
