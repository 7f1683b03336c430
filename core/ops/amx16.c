/* The tile of a bf16 product in AMX: 32 x 32 sums in four tile registers, fed by two of A and two of B, sixteen pairs of k at a time.
 *
 * Registers take the size of a smaller tile; only the last pairs of k go through padded copies. The instructions are named by macros, so that a test
 * can put plain C in their place and run this file on any machine. */
#include "gemm.h"

enum { SIDE = 16, ROWS = 2 * SIDE };

/* The memory that a tile register is configured by (Intel SDM, LDTILECFG). */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#if ESP_HAVE_X86 && !defined TILE_ZERO
/* Not the intrinsics of immintrin.h: GCC 12's _tile_loadconfig says that it reads 8 of the 64 bytes, and its _tile_loadd that it reads none, so that
 * the stores before them are dropped or moved. */
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
/* Sums of m rows and n columns: registers 0 and 1 above 2 and 3, A's rows in 4 and 5, B's columns in 6 and 7. What a register does not hold is
 * neither read nor written. */
static AMX void configure(int m, int n)
{
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 4 * SIDE, config.rows[i] = SIDE;
    for (int half = 0; half < 2; half++) {
        int rows = m - half * SIDE, cols = n - half * SIDE;
        if (rows > 0 && rows < SIDE) config.rows[2 * half] = config.rows[2 * half + 1] = config.rows[4 + half] = (uint8_t)rows;
        if (cols > 0 && cols < SIDE) config.row_bytes[half] = config.row_bytes[2 + half] = config.row_bytes[6 + half] = (uint16_t)(4 * cols);
    }
    TILE_CONFIGURE(&config);
}

static AMX void enter(void) { configure(ROWS, ESP_TILE_COLS); }
static AMX void leave(void) { TILE_RELEASE(); }

static AMX void sums(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, int m, int n)
{
    uint32_t rows[ROWS * SIDE], panel[SIDE * ESP_TILE_COLS];
    for (int64_t p = 0; p < pairs; p += SIDE, a += SIDE, b += SIDE * ESP_TILE_COLS) {
        int64_t have = pairs - p, step = lda;
        const uint32_t *x = a, *y = b;
        if (have < SIDE) {
            /* The last pairs, and zeros behind them. */
            for (int i = 0; i < m; i++) for (int j = 0; j < SIDE; j++) rows[i * SIDE + j] = j < have ? a[i * lda + j] : 0;
            for (int i = 0; i < SIDE * ESP_TILE_COLS; i++) panel[i] = i < have * ESP_TILE_COLS ? b[i] : 0;
            x = rows, y = panel, step = SIDE;
        }
        TILE_LOAD(4, x, step * 4);
        TILE_LOAD(6, y, ESP_TILE_COLS * 4);
        TILE_DOT(0, 4, 6);
        if (n > SIDE) {
            TILE_LOAD(7, y + SIDE, ESP_TILE_COLS * 4);
            TILE_DOT(1, 4, 7);
        }
        if (m > SIDE) {
            TILE_LOAD(5, x + SIDE * step, step * 4);
            TILE_DOT(2, 5, 6);
            if (n > SIDE) TILE_DOT(3, 5, 7);
        }
    }
}

static AMX void tile_amx(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n, esp_near near)
{
    (void)near;
    int tall = m > SIDE, wide = n > SIDE, whole = m == ROWS && n == ESP_TILE_COLS;
    float exact[ROWS * ESP_TILE_COLS];
    if (!whole) configure(m, n);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    if (to.add) {
        const float *below = to.c + SIDE * to.ldc;
        TILE_LOAD(0, to.c, to.ldc * 4);
        if (wide) TILE_LOAD(1, to.c + SIDE, to.ldc * 4);
        if (tall) TILE_LOAD(2, below, to.ldc * 4);
        if (tall && wide) TILE_LOAD(3, below + SIDE, to.ldc * 4);
    }
    sums(pairs, a, lda, b, m, n);
    float *c = to.rounded ? exact : to.c;
    int64_t ldc = to.rounded ? ESP_TILE_COLS : to.ldc;
    TILE_STORE(0, c, ldc * 4);
    if (wide) TILE_STORE(1, c + SIDE, ldc * 4);
    if (tall) TILE_STORE(2, c + SIDE * ldc, ldc * 4);
    if (tall && wide) TILE_STORE(3, c + SIDE * ldc + SIDE, ldc * 4);
    for (int i = 0; to.rounded && i < m; i++) esp_convert(to.rounded + i * to.ld, ESP_BF16, exact + i * ESP_TILE_COLS, ESP_F32, n);
    if (!whole) configure(ROWS, ESP_TILE_COLS);
}

const esp_kernel esp_kernel16_amx = {ROWS, tile_amx, enter, leave};
#else
/* No machine that this was built for has AMX; esp_isa never names it. */
const esp_kernel esp_kernel16_amx = {0};
#endif
