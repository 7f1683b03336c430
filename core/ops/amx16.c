/* The tile of a bf16 product in AMX: 32 x 32 sums in four tile registers, fed by two of A and two of B, sixteen pairs of k at a time.
 *
 * What does not fill a register (rows, columns, the last pairs) goes through padded copies. The instructions are named by macros, so that a test
 * can put plain C in their place and run this file on any machine. */
#include "gemm16.h"

enum { SIDE = 16, ROWS = 2 * SIDE };

/* The memory that a tile register is configured by (Intel SDM, LDTILECFG): here eight tiles of 16 rows of 64 bytes. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#if ESP_HAVE_X86 && !defined TILE_ZERO
/* Not the intrinsics of immintrin.h: up to GCC 12.3 and 13.2 _tile_loadconfig says that it reads 8 of the 64 bytes, and _tile_loadd that it reads
 * none, so that the stores before them are dropped or moved. */
#define AMX __attribute__((target("avx512f")))
#define TILE_CONFIGURE(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(config)))
#define TILE_RELEASE() __asm__ volatile("tilerelease")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define TILE_LOAD(t, from, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, to, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
#elif !defined AMX
#define AMX
#endif

#ifdef TILE_ZERO
static AMX void enter(void)
{
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 4 * SIDE, config.rows[i] = SIDE;
    TILE_CONFIGURE(&config);
}

static AMX void leave(void) { TILE_RELEASE(); }

/* rows x cols pairs of `from` in a block of `height` x `width` whose rest is zeros. */
static const uint32_t *padded(uint32_t *room, int64_t height, int64_t width, const uint32_t *from, int64_t stride, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < height; i++) {
        int64_t n = i < rows ? cols : 0;
        for (int64_t j = 0; j < n; j++) room[i * width + j] = from[i * stride + j];
        for (int64_t j = n; j < width; j++) room[i * width + j] = 0;
    }
    return room;
}

static AMX void sums(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, int m)
{
    uint32_t rows[ROWS * SIDE], panel[SIDE * ESP_TILE_COLS];
    for (int64_t p = 0; p < pairs; p += SIDE, a += SIDE, b += SIDE * ESP_TILE_COLS) {
        int64_t n = esp_min(SIDE, pairs - p), step = lda;
        const uint32_t *x = a, *y = b;
        if (m < ROWS || n < SIDE) x = padded(rows, ROWS, SIDE, a, lda, m, n), step = SIDE;
        if (n < SIDE) y = padded(panel, SIDE, ESP_TILE_COLS, b, ESP_TILE_COLS, n, ESP_TILE_COLS);
        TILE_LOAD(4, x, step * 4);
        TILE_LOAD(5, x + SIDE * step, step * 4);
        TILE_LOAD(6, y, ESP_TILE_COLS * 4);
        TILE_LOAD(7, y + SIDE, ESP_TILE_COLS * 4);
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
}

static AMX void tile_amx(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, float *c, int64_t ldc, int m, int n, int add)
{
    float room[ROWS * ESP_TILE_COLS], *to = c;
    int64_t step = ldc;
    int whole = m == ROWS && n == ESP_TILE_COLS;
    if (!whole) {
        to = room, step = ESP_TILE_COLS;
        for (int i = 0; i < ROWS * ESP_TILE_COLS; i++) room[i] = 0;
        for (int i = 0; add && i < m; i++) for (int j = 0; j < n; j++) room[i * step + j] = c[i * ldc + j];
    }
    if (add) {
        TILE_LOAD(0, to, step * 4);
        TILE_LOAD(1, to + SIDE, step * 4);
        TILE_LOAD(2, to + SIDE * step, step * 4);
        TILE_LOAD(3, to + SIDE * step + SIDE, step * 4);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    sums(pairs, a, lda, b, m);
    TILE_STORE(0, to, step * 4);
    TILE_STORE(1, to + SIDE, step * 4);
    TILE_STORE(2, to + SIDE * step, step * 4);
    TILE_STORE(3, to + SIDE * step + SIDE, step * 4);
    for (int i = 0; !whole && i < m; i++) for (int j = 0; j < n; j++) c[i * ldc + j] = room[i * step + j];
}
const esp_kernel16 esp_kernel16_amx = {ROWS, tile_amx, enter, leave};
#else
/* No machine that this was built for has AMX; esp_isa never names it. */
const esp_kernel16 esp_kernel16_amx = {0};
#endif
