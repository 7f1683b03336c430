/* Matrix products on row-major matrices, of operands in f32 or rounded to bf16, with sums in f32.
 *
 * op(B) is read as panels of 32 columns, each [words of k][32] so that one load feeds one instruction; op(A) as rows of words, where it stands if
 * it has them already. Blocks of C are spread over the pool: however it is cut, each of its sums is made in the same order. */
#include "backend.h"
#include "gemm.h"

/* WORDS of k at a time; fewer make sums wait in memory more often, which costs more than a better place. A block of C reads BLOCK_WORDS of A then,
 * which lie in a second cache of 1 MiB with a panel of B; it has at most BLOCK_COLS columns and, where that makes more blocks, at least
 * LEAST_ROWS x LEAST_COLS sums. */
enum { WORDS = 1024, BLOCK_WORDS = 144 * WORDS, BLOCK_COLS = 640, LEAST_ROWS = 96, LEAST_COLS = 128, PACKED_COLS = 128, COPIED_ROWS = 16,
       WIDTH = 64 };
/* Of rows that a block turns itself, as those of the next one come into the second cache meanwhile. */
enum { OWN_WORDS = 24 * WORDS };

/* Words in a cache line, and in what the places of a first cache repeat after. */
enum { LINE = 16, REPEAT = 1024 };

/* ---- panels of B ---- */

typedef struct packing {
    uint32_t *to;
    esp_operand from;
    int64_t n, ld;                        /* ld: from row to row of A's words */
} packing;

static int pack_panels(void *context, int64_t block)
{
    const packing *g = context;
    int64_t from = block * PACKED_COLS, end = esp_min(from + PACKED_COLS, g->n), words = g->from.words;
    for (int64_t q = 0; q < words; q += WIDTH) {
        for (int64_t j = from; j < end; j += ESP_TILE_COLS) {
            esp_panel(g->to + j * words + q * ESP_TILE_COLS, &g->from, j, esp_min(ESP_TILE_COLS, end - j), q, esp_min(WIDTH, words - q));
        }
    }
    return ESP_OK;
}

int64_t esp_gemm_packed_bytes(int dtype, int64_t k, int64_t n)
{
    return esp_ceil_div(n, ESP_TILE_COLS) * ESP_TILE_COLS * esp_ceil_div(k, dtype == ESP_BF16 ? 2 : 1) * 4;
}

static int pack(uint32_t *to, esp_operand b, int64_t n)
{
    packing g = {.to = to, .from = b, .n = n};
    return esp_parallel(esp_ceil_div(n, PACKED_COLS), pack_panels, &g);
}

int esp_gemm_pack(uint32_t *packed, int dtype, int tb, int64_t n, int64_t k, esp_matrix b)
{
    return pack(packed, esp_operand_of(b, !tb, dtype, k), n);
}

/* ---- rows of A ---- */

static int copy_rows(void *context, int64_t block)
{
    const packing *g = context;
    int64_t end = esp_min((block + 1) * COPIED_ROWS, g->n);
    for (int64_t i = block * COPIED_ROWS; i < end; i++) esp_words_along(g->to + i * g->ld, &g->from, i, 0, g->from.words);
    return ESP_OK;
}

static int turn_columns(void *context, int64_t block)
{
    const packing *g = context;
    int64_t col = block * WIDTH;
    esp_turn(g->to + col * g->ld, g->ld, &g->from, col, esp_min(WIDTH, g->n - col));
    return ESP_OK;
}

/* ---- the product ---- */

typedef struct product {
    const esp_gemm_args *g;
    const esp_kernel *kernel;
    esp_operand of_a, of_b;
    const uint32_t *a, *b;                /* a: rows of words, b: panels; NULL where a block makes its own */
    int64_t lda, words, down, across;     /* down x across blocks of C */
} product;

/* Where part i of n numbers begins if they are cut as evenly as units allow. */
static int64_t bound(int64_t n, int64_t unit, int64_t parts, int64_t i)
{
    return esp_min(esp_ceil_div(n, unit) * i / parts * unit, n);
}

/* A block of C: m rows from i0 on, n columns from j0 on. */
typedef struct block {
    int64_t i0, m, j0, n;
    const uint32_t *a;                    /* its rows */
    uint32_t *own;                        /* room for a panel, where it makes its own */
} block;

/* What the tiles of panel j of a block ask memory for: while the first is at work the rows of A, then what the next panel is, or is made of. Where
 * the block turned its rows itself, those that the next block will turn. */
static esp_ahead ahead_of(const product *p, const block *b, int64_t j, int64_t q, int64_t words)
{
    int64_t rows = p->kernel->rows, tiles = esp_ceil_div(b->m, rows), next = b->j0 + j + ESP_TILE_COLS, below = b->i0 + b->m;
    esp_ahead nothing = {esp_near_only(b->a), 0, 0};
    if (!p->a) {
        if (j == 0 || below == p->g->m) return nothing;
        return esp_turn_ahead(&p->of_a, below, esp_min(b->m, p->g->m - below), j / ESP_TILE_COLS - 1, tiles);
    }
    if (j == 0) return (esp_ahead){{(const char *)(b->a + rows * p->lda + q), p->lda * 4, 4}, rows * p->lda * 4, tiles};
    if (next >= p->g->n) return nothing;
    if (!p->b) return esp_panel_ahead(&p->of_b, next, q, words, tiles);
    /* Two lines a word: half of the panel for each of two tiles. */
    return (esp_ahead){{(const char *)(p->b + next * p->words + q * ESP_TILE_COLS), 0, ESP_TILE_COLS * 2}, words * ESP_TILE_COLS * 2, 2};
}

/* The sums of a block over all k; where it is rounded they are gathered in c before. */
static void block_sums(const product *p, const block *at, esp_sums to)
{
    int rows = p->kernel->rows;
    int64_t m = at->m, n = at->n;
    p->kernel->enter();
    for (int64_t q = 0; q < p->words; q += WORDS) {
        int64_t words = esp_min(WORDS, p->words - q);
        int last = q + words == p->words;
        for (int64_t j = 0; j < n; j += ESP_TILE_COLS) {
            const uint32_t *b = p->b ? p->b + ((at->j0 + j) * p->words + q * ESP_TILE_COLS) : at->own;
            if (!p->b) esp_panel(at->own, &p->of_b, at->j0 + j, esp_min(ESP_TILE_COLS, n - j), q, words);
            esp_ahead ahead = ahead_of(p, at, j, q, words);
            for (int64_t i = 0; i < m; i += rows, ahead.tiles--, ahead.near.at += ahead.each) {
                const uint32_t *a = at->a + i * p->lda + q;
                esp_near near = ahead.tiles > 0 ? ahead.near : esp_near_only(a);
                esp_sums part = {.c = to.c ? to.c + i * to.ldc + j : NULL, .ldc = to.ldc, .add = to.add || q > 0,
                                 .rounded = to.rounded && last ? to.rounded + i * to.ld + j : NULL, .ld = to.ld};
                p->kernel->tile(words, a, p->lda, b, part, (int)esp_min(rows, m - i), (int)esp_min(ESP_TILE_COLS, n - j), near);
            }
        }
    }
    p->kernel->leave();
}

static int product_block(void *context, int64_t index)
{
    const product *p = context;
    const esp_gemm_args *g = p->g;
    int64_t row = index / p->across, col = index % p->across, rows = p->kernel->rows;
    int64_t i0 = bound(g->m, rows, p->down, row), m = bound(g->m, rows, p->down, row + 1) - i0;
    int64_t j0 = bound(g->n, ESP_TILE_COLS, p->across, col), n = bound(g->n, ESP_TILE_COLS, p->across, col + 1) - j0;
    int64_t own_a = p->a ? 0 : m * p->lda, own_b = p->b ? 0 : esp_min(WORDS, p->words) * ESP_TILE_COLS, ldc = n + LINE;
    int exact = g->c.dtype == ESP_F32, gathered = !exact && (g->beta || p->words > WORDS);
    int64_t bytes = (own_a + own_b + gathered * m * ldc) * 4;
    uint32_t *room = bytes ? esp_scratch(bytes) : NULL;
    if (bytes && !room) return ESP_EMEM;
    if (!p->a) esp_turn(room, p->lda, &p->of_a, i0, m);
    block b = {i0, m, j0, n, p->a ? p->a + i0 * p->lda : room, room + own_a};
    if (exact) {
        block_sums(p, &b, (esp_sums){.c = (float *)g->c.data + i0 * g->c.stride + j0, .ldc = g->c.stride, .add = g->beta});
        return ESP_OK;
    }
    /* A result in bf16 is rounded once, from f32 sums. */
    esp_sums to = {.ldc = ldc, .add = g->beta, .rounded = (uint16_t *)g->c.data + i0 * g->c.stride + j0, .ld = g->c.stride};
    if (gathered) to.c = (float *)(void *)(room + own_a + own_b);
    if (g->beta) for (int64_t i = 0; i < m; i++) esp_convert(to.c + i * ldc, ESP_F32, to.rounded + i * to.ld, ESP_BF16, n);
    block_sums(p, &b, to);
    return ESP_OK;
}

/* Blocks made smaller until there are sixteen, and four for each thread, or they get so small that reading their operands costs more than the
 * product. */
static void cut(product *p)
{
    int64_t m = p->g->m, n = p->g->n;
    p->across = esp_ceil_div(n, BLOCK_COLS);
    p->down = esp_ceil_div(m * esp_min(p->words, WORDS), BLOCK_WORDS);
    if (p->g->ta && p->across == 1) while (m / p->down * p->words > OWN_WORDS && m / p->down >= 2 * LEAST_ROWS) p->down *= 2;
    int64_t wanted = esp_max_of(16, 4 * esp_threads());
    while (p->down * p->across < wanted) {
        int64_t mb = m / p->down, nb = n / p->across;
        if (nb >= 2 * LEAST_COLS && nb >= mb) p->across *= 2;
        else if (mb >= 2 * LEAST_ROWS) p->down *= 2;
        else if (nb >= 2 * LEAST_COLS) p->across *= 2;
        else return;
    }
}

/* Rows of A: where they stand, in `copy` (to be freed), or made by each block for itself where no other block reads the same rows. */
static int rows_of_a(product *p, uint32_t **copy)
{
    const esp_gemm_args *g = p->g;
    /* Rows that are REPEAT apart meet in the same places of the first cache; copied ones are an odd number of cache lines apart. */
    p->lda = esp_ceil_div(p->words, LINE) * LINE | LINE;
    if (!g->ta && esp_stands(&p->of_a) && g->a.stride / p->of_a.per % REPEAT != 0) {
        p->a = g->a.data, p->lda = g->a.stride / p->of_a.per;
        return ESP_OK;
    }
    if (g->ta && p->across == 1) return ESP_OK;
    if (!(*copy = esp_malloc(g->m * p->lda * 4))) return ESP_EMEM;
    packing c = {.to = *copy, .from = p->of_a, .n = g->m, .ld = p->lda};
    p->a = *copy;
    return esp_parallel(esp_ceil_div(g->m, g->ta ? WIDTH : COPIED_ROWS), g->ta ? turn_columns : copy_rows, &c);
}

/* Panels of B: as they were packed, in `copy` (to be freed), or made by each block for itself where one or two read the same. */
static int panels_of_b(product *p, uint32_t **copy)
{
    const esp_gemm_args *g = p->g;
    if ((p->b = g->packed) || p->down <= 2) return ESP_OK;
    if (!(*copy = esp_malloc(esp_gemm_packed_bytes(g->dtype, g->k, g->n)))) return ESP_EMEM;
    p->b = *copy;
    return pack(*copy, p->of_b, g->n);
}

static int clear_result(const esp_gemm_args *g)
{
    int64_t size = g->c.dtype == ESP_F32 ? 4 : 2;
    for (int64_t i = 0; !g->beta && i < g->m; i++) memset((char *)g->c.data + i * g->c.stride * size, 0, (size_t)(g->n * size));
    return ESP_OK;
}

int esp_gemm(const esp_gemm_args *g)
{
    if (g->m == 0 || g->n == 0) return ESP_OK;
    if (g->k == 0) return clear_result(g);
    product p = {.g = g, .of_a = esp_operand_of(g->a, g->ta, g->dtype, g->k), .of_b = esp_operand_of(g->b, !g->tb, g->dtype, g->k)};
    p.words = p.of_a.words;
    TRY(esp_kernel_of(&p.kernel, g->dtype));
    cut(&p);
    uint32_t *copy_a = NULL, *copy_b = NULL;
    int code = rows_of_a(&p, &copy_a);
    if (code == ESP_OK) code = panels_of_b(&p, &copy_b);
    if (code == ESP_OK) code = esp_parallel(p.down * p.across, product_block, &p);
    esp_free(copy_a);
    esp_free(copy_b);
    return code;
}
