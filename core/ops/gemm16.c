/* Matrix products in bf16 with sums in f32 on row-major matrices.
 *
 * op(B) is packed into panels of 32 columns, each [pairs of k][32] so that one load feeds one instruction; op(A) is read where it stands if its
 * rows are bf16 pairs already, else copied to such rows. Then blocks of C, whose bounds depend on the shape alone, are spread over the pool. */
#include "backend.h"
#include "gemm16.h"

/* A block of C is at most BLOCK_ROWS x BLOCK_COLS and, where that makes more of them, at least LEAST_ROWS x LEAST_COLS. PAIRS of k at a time keep a
 * block of A and a panel of B in a second cache of 1 MiB; fewer make sums wait in memory more often, which costs more than a better place. */
enum { BLOCK_ROWS = 144, BLOCK_COLS = 640, PAIRS = 1024, LEAST_ROWS = 96, LEAST_COLS = 64, PACK_PANELS = 4, CONVERT_ROWS = 16, WIDTH = 64 };

/* Numbers of 32 bits in a cache line, and in what the places of a first cache repeat after. */
enum { LINE = 16, REPEAT = 1024 };

/* ---- packing ---- */

/* Columns of two rows of one dtype (the second may be NULL: zeros) as pairs. */
static ESP_SIMD void zip_f32(uint32_t *restrict to, const float *restrict x, const float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)esp_f32_to_bf16(x[i]) | (uint32_t)esp_f32_to_bf16(y[i]) << 16;
}

static ESP_SIMD void zip_bf16(uint32_t *restrict to, const uint16_t *restrict x, const uint16_t *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)x[i] | (uint32_t)y[i] << 16;
}

static const void *at(const esp_matrix *x, int64_t row, int64_t col)
{
    return (const char *)x->data + (row * x->stride + col) * (x->dtype == ESP_F32 ? 4 : 2);
}

/* Pairs of rows 2p and 2p+1 of x [k, ..], columns col .. col+n-1. */
static void zip_rows(uint32_t *to, const esp_matrix *x, int64_t p, int64_t k, int64_t col, int64_t n)
{
    int last = 2 * p + 1 == k;
    const void *a = at(x, 2 * p, col), *b = last ? a : at(x, 2 * p + 1, col);
    if (x->dtype == ESP_F32) zip_f32(to, a, b, n);
    else zip_bf16(to, a, b, n);
    if (last) for (int64_t i = 0; i < n; i++) to[i] &= 0xffffu;
}

/* Row of x from col on, n numbers, as bf16 with a zero behind an odd end. */
static void row_of_pairs(uint16_t *to, const esp_matrix *x, int64_t row, int64_t n)
{
    esp_convert(to, ESP_BF16, at(x, row, 0), x->dtype, n);
    if (n % 2) to[n] = 0;
}

typedef struct packing {
    uint32_t *to;
    esp_matrix x;
    int64_t k, n, pairs, ld;              /* ld: from row to row of A's pairs */
} packing;

/* to[c * ldt + r] = from[r * ldf + c], rows x cols pairs. */
static void transpose(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += 16) {
        int64_t n = esp_min(16, rows - r), c = 0;
        for (; n == 16 && c + 16 <= cols; c += 16) esp_transpose16(to + c * ldt + r, ldt, from + r * ldf + c, ldf);
        for (; c < cols; c++) for (int64_t i = r; i < r + n; i++) to[c * ldt + i] = from[i * ldf + c];
    }
}

/* Panels of B stored [n,k]: sixteen rows at a time become sixteen columns. */
static int pack_transposed(void *context, int64_t block)
{
    const packing *g = context;
    int64_t end = esp_min((block + 1) * PACK_PANELS * ESP_TILE_COLS, g->n);
    uint16_t *rows = esp_scratch(16 * g->pairs * 4);
    if (!rows) return ESP_EMEM;
    for (int64_t j = block * PACK_PANELS * ESP_TILE_COLS; j < end; j += 16) {
        int64_t n = esp_min(16, g->n - j);
        uint32_t *to = g->to + (j / ESP_TILE_COLS * g->pairs) * ESP_TILE_COLS + j % ESP_TILE_COLS;
        for (int64_t r = 0; r < n; r++) row_of_pairs(rows + r * g->pairs * 2, &g->x, j + r, g->k);
        transpose(to, ESP_TILE_COLS, (const uint32_t *)(const void *)rows, g->pairs, n, g->pairs);
    }
    return ESP_OK;
}

/* A panel of B stored [n,k] whose rows are pairs already: `pairs` of columns j .. j+n-1 from pair q on. */
static void turn_panel(uint32_t *to, const esp_matrix *x, int64_t j, int64_t n, int64_t q, int64_t pairs)
{
    /* Columns that are not there are multiplied like others, and must be numbers that hurt nobody. */
    if (n < ESP_TILE_COLS) memset(to, 0, (size_t)(pairs * ESP_TILE_COLS) * 4);
    transpose(to, ESP_TILE_COLS, at(x, j, 2 * q), x->stride / 2, n, pairs);
}

/* Panels of B stored [k,n]. */
static int pack_plain(void *context, int64_t block)
{
    const packing *g = context;
    int64_t from = block * PACK_PANELS * ESP_TILE_COLS, end = esp_min(from + PACK_PANELS * ESP_TILE_COLS, g->n);
    for (int64_t p = 0; p < g->pairs; p++) {
        for (int64_t j = from; j < end; j += ESP_TILE_COLS) {
            zip_rows(g->to + (j / ESP_TILE_COLS * g->pairs + p) * ESP_TILE_COLS, &g->x, p, g->k, j, esp_min(ESP_TILE_COLS, g->n - j));
        }
    }
    return ESP_OK;
}

int64_t esp_gemm16_packed_bytes(int64_t k, int64_t n)
{
    return esp_ceil_div(n, ESP_TILE_COLS) * ESP_TILE_COLS * esp_ceil_div(k, 2) * 4;
}

int esp_gemm16_pack(uint32_t *packed, int tb, int64_t n, int64_t k, esp_matrix b)
{
    packing g = {.to = packed, .x = b, .k = k, .n = n, .pairs = esp_ceil_div(k, 2)};
    if (n % ESP_TILE_COLS) memset(packed + n / ESP_TILE_COLS * g.pairs * ESP_TILE_COLS, 0, (size_t)(g.pairs * ESP_TILE_COLS) * 4);
    return esp_parallel(esp_ceil_div(n, PACK_PANELS * ESP_TILE_COLS), tb ? pack_transposed : pack_plain, &g);
}

static int convert_rows(void *context, int64_t block)
{
    const packing *g = context;
    int64_t end = esp_min((block + 1) * CONVERT_ROWS, g->n);
    for (int64_t i = block * CONVERT_ROWS; i < end; i++) row_of_pairs((uint16_t *)(void *)(g->to + i * g->ld), &g->x, i, g->k);
    return ESP_OK;
}

/* Columns col .. col+n-1 of A stored [k,m] as rows of pairs, ld apart: sixteen pairs of rows at a time are zipped and turned over. */
static void rows_of_columns(uint32_t *to, int64_t ld, const esp_matrix *x, int64_t k, int64_t col, int64_t n)
{
    int64_t pairs = esp_ceil_div(k, 2);
    uint32_t zipped[16 * WIDTH];
    for (int64_t c = 0; c < n; c += WIDTH) {
        int64_t width = esp_min(WIDTH, n - c);
        for (int64_t p = 0; p < pairs; p += 16) {
            int64_t rows = esp_min(16, pairs - p);
            for (int64_t q = 0; q < rows; q++) zip_rows(zipped + q * WIDTH, x, p + q, k, col + c, width);
            transpose(to + c * ld + p, ld, zipped, WIDTH, rows, width);
        }
    }
}

static int turn_block(void *context, int64_t block)
{
    const packing *g = context;
    int64_t col = block * WIDTH;
    rows_of_columns(g->to + col * g->ld, g->ld, &g->x, g->k, col, esp_min(WIDTH, g->n - col));
    return ESP_OK;
}

/* ---- the product ---- */

typedef struct product {
    const esp_gemm16_args *g;
    const esp_kernel16 *kernel;
    const uint32_t *a, *b;                /* a: rows of pairs, b: panels; NULL where a block makes its own */
    int64_t lda, pairs, down, across;     /* down x across blocks of C */
} product;

/* Where part i of n numbers begins if they are cut as evenly as units allow. */
static int64_t bound(int64_t n, int64_t unit, int64_t parts, int64_t i)
{
    return esp_min(esp_ceil_div(n, unit) * i / parts * unit, n);
}

/* A block of C, m rows from those of a, over all k; where it is rounded the sums are gathered in c before. own: room for a panel. */
static void block_sums(const product *p, const uint32_t *a, int64_t m, int64_t j0, int64_t n, uint32_t *own, esp_sums to)
{
    int rows = p->kernel->rows;
    p->kernel->enter();
    for (int64_t q = 0; q < p->pairs; q += PAIRS) {
        int64_t pairs = esp_min(PAIRS, p->pairs - q);
        int last = q + pairs == p->pairs;
        for (int64_t j = 0; j < n; j += ESP_TILE_COLS) {
            const uint32_t *b = p->b ? p->b + ((j0 + j) / ESP_TILE_COLS * p->pairs + q) * ESP_TILE_COLS : own;
            if (!p->b) turn_panel(own, &p->g->b, j0 + j, esp_min(ESP_TILE_COLS, n - j), q, pairs);
            for (int64_t i = 0; i < m; i += rows) {
                esp_sums part = {.c = to.c ? to.c + i * to.ldc + j : NULL, .ldc = to.ldc, .add = to.add || q > 0,
                                 .rounded = to.rounded && last ? to.rounded + i * to.ld + j : NULL, .ld = to.ld};
                p->kernel->tile(pairs, a + i * p->lda + q, p->lda, b, part, (int)esp_min(rows, m - i), (int)esp_min(ESP_TILE_COLS, n - j));
            }
        }
    }
    p->kernel->leave();
}

static int product_block(void *context, int64_t block)
{
    const product *p = context;
    const esp_gemm16_args *g = p->g;
    int64_t row = block / p->across, col = block % p->across, rows = p->kernel->rows;
    int64_t i0 = bound(g->m, rows, p->down, row), m = bound(g->m, rows, p->down, row + 1) - i0;
    int64_t j0 = bound(g->n, ESP_TILE_COLS, p->across, col), n = bound(g->n, ESP_TILE_COLS, p->across, col + 1) - j0;
    int64_t own_a = p->a ? 0 : m * p->lda, own_b = p->b ? 0 : esp_min(PAIRS, p->pairs) * ESP_TILE_COLS, ldc = n + LINE;
    int exact = g->c.dtype == ESP_F32, gathered = !exact && (g->beta || p->pairs > PAIRS);
    int64_t bytes = (own_a + own_b + gathered * m * ldc) * 4;
    uint32_t *room = bytes ? esp_scratch(bytes) : NULL;
    if (bytes && !room) return ESP_EMEM;
    if (!p->a) rows_of_columns(room, p->lda, &g->a, g->k, i0, m);
    const uint32_t *a = p->a ? p->a + i0 * p->lda : room;
    uint32_t *panel = p->b ? NULL : room + own_a;
    if (exact) {
        block_sums(p, a, m, j0, n, panel, (esp_sums){.c = (float *)g->c.data + i0 * g->c.stride + j0, .ldc = g->c.stride, .add = g->beta});
        return ESP_OK;
    }
    /* A result in bf16 is rounded once, from f32 sums. */
    esp_sums to = {.ldc = ldc, .add = g->beta, .rounded = (uint16_t *)g->c.data + i0 * g->c.stride + j0, .ld = g->c.stride};
    if (gathered) to.c = (float *)(void *)(room + own_a + own_b);
    if (g->beta) for (int64_t i = 0; i < m; i++) esp_convert(to.c + i * ldc, ESP_F32, to.rounded + i * to.ld, ESP_BF16, n);
    block_sums(p, a, m, j0, n, panel, to);
    return ESP_OK;
}

/* Blocks made smaller until there are sixteen, or they get so small that reading their operands costs more than the product. */
static void cut(product *p)
{
    int64_t m = p->g->m, n = p->g->n;
    p->down = esp_ceil_div(m, BLOCK_ROWS);
    p->across = esp_ceil_div(n, BLOCK_COLS);
    while (p->down * p->across < 16) {
        int64_t mb = m / p->down, nb = n / p->across;
        if (nb >= 2 * LEAST_COLS && nb >= mb) p->across *= 2;
        else if (mb >= 2 * LEAST_ROWS) p->down *= 2;
        else if (nb >= 2 * LEAST_COLS) p->across *= 2;
        else return;
    }
}

/* Are rows of k numbers pairs as they stand? */
static int stands_in_pairs(const esp_matrix *x, int64_t k)
{
    return x->dtype == ESP_BF16 && k % 2 == 0 && x->stride % 2 == 0 && (uintptr_t)x->data % 4 == 0;
}

/* A as rows of pairs: where it stands, in `copy` (to be freed), or made by each block for itself where no other block reads the same rows. */
static int pairs_of_a(product *p, uint32_t **copy)
{
    const esp_gemm16_args *g = p->g;
    /* Rows that are REPEAT apart meet in the same places of the first cache; copied ones are an odd number of cache lines apart. */
    p->lda = esp_ceil_div(p->pairs, LINE) * LINE | LINE;
    if (!g->ta && stands_in_pairs(&g->a, g->k) && g->a.stride / 2 % REPEAT != 0) {
        p->a = g->a.data, p->lda = g->a.stride / 2;
        return ESP_OK;
    }
    if (g->ta && p->across == 1) return ESP_OK;
    if (!(*copy = esp_malloc(g->m * p->lda * 4))) return ESP_EMEM;
    packing c = {.to = *copy, .x = g->a, .k = g->k, .n = g->m, .pairs = p->pairs, .ld = p->lda};
    p->a = *copy;
    return esp_parallel(esp_ceil_div(g->m, g->ta ? WIDTH : CONVERT_ROWS), g->ta ? turn_block : convert_rows, &c);
}

static int clear_result(const esp_gemm16_args *g)
{
    int64_t size = g->c.dtype == ESP_F32 ? 4 : 2;
    for (int64_t i = 0; !g->beta && i < g->m; i++) memset((char *)g->c.data + i * g->c.stride * size, 0, (size_t)(g->n * size));
    return ESP_OK;
}

int esp_gemm16(const esp_gemm16_args *g)
{
    if (g->m == 0 || g->n == 0) return ESP_OK;
    if (g->k == 0) return clear_result(g);
    product p = {.g = g, .b = g->packed, .pairs = esp_ceil_div(g->k, 2)};
    TRY(esp_kernel16_of_machine(&p.kernel));
    cut(&p);
    uint32_t *copy = NULL, *packed = NULL;
    int code = pairs_of_a(&p, &copy);
    /* Where a panel needs but turning, and one block reads it or two, each does that on its way. */
    int turned = g->tb && p.down <= 2 && stands_in_pairs(&g->b, g->k);
    if (code == ESP_OK && !p.b && !turned) {
        packed = esp_malloc(esp_gemm16_packed_bytes(g->k, g->n));
        code = packed ? esp_gemm16_pack(packed, g->tb, g->n, g->k, g->b) : ESP_EMEM;
        p.b = packed;
    }
    if (code == ESP_OK) code = esp_parallel(p.down * p.across, product_block, &p);
    esp_free(copy);
    esp_free(packed);
    return code;
}
