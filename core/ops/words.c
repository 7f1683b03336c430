/* The words that products read: from numbers in f32 or bf16, along rows or down columns, and turned from one to the other. */
#include "words.h"

/* ---- 16 x 16 words ---- */

static ESP_SIMD void transpose_generic(uint32_t *restrict to, int64_t ldt, const uint32_t *restrict from, int64_t ldf)
{
    for (int c = 0; c < 16; c++) for (int r = 0; r < 16; r++) to[c * ldt + r] = from[r * ldf + c];
}

#if ESP_HAVE_X86
#include <immintrin.h>

/* Neighbouring rows are woven into pairs, pairs into fours, and quarters of registers are then put in place. */
static ESP_AVX512 void transpose_avx512(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf)
{
    __m512i x[16], y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(from + i * ldf);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(to + i * ldt, _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * ldt, _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd));
    }
}

void esp_transpose16(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf)
{
    int isa;
    if (esp_isa(&isa) == ESP_OK && isa >= ESP_ISA_AVX512) transpose_avx512(to, ldt, from, ldf);
    else transpose_generic(to, ldt, from, ldf);
}
#else
void esp_transpose16(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf)
{
    transpose_generic(to, ldt, from, ldf);
}
#endif

/* ---- words of an operand ---- */

enum { WIDTH = 64 };

esp_operand esp_operand_of(esp_matrix x, int down, int dtype, int64_t k)
{
    int per = dtype == ESP_BF16 ? 2 : 1;
    return (esp_operand){x, down, per, k, esp_ceil_div(k, per)};
}

static const void *at(const esp_matrix *x, int64_t row, int64_t col)
{
    return (const char *)x->data + (row * x->stride + col) * (x->dtype == ESP_F32 ? 4 : 2);
}

int esp_stands(const esp_operand *o)
{
    if (o->per == 1) return o->x.dtype == ESP_F32;
    return !o->down && o->x.dtype == ESP_BF16 && o->k % 2 == 0 && o->x.stride % 2 == 0 && (uintptr_t)o->x.data % 4 == 0;
}

void esp_words_along(uint32_t *to, const esp_operand *o, int64_t row, int64_t q, int64_t count)
{
    int64_t from = q * o->per, n = esp_min(count * o->per, o->k - from);
    esp_convert(to, o->per == 2 ? ESP_BF16 : ESP_F32, at(&o->x, row, from), o->x.dtype, n);
    if (n < count * o->per) to[count - 1] &= 0xffffu;
}

static ESP_SIMD void zip_f32(uint32_t *restrict to, const float *restrict x, const float *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)esp_f32_to_bf16(x[i]) | (uint32_t)esp_f32_to_bf16(y[i]) << 16;
}

static ESP_SIMD void zip_bf16(uint32_t *restrict to, const uint16_t *restrict x, const uint16_t *restrict y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)x[i] | (uint32_t)y[i] << 16;
}

/* Word p of columns col .. col+n-1, where words run down. */
static void across(uint32_t *to, const esp_operand *o, int64_t p, int64_t col, int64_t n)
{
    if (o->per == 1) {
        esp_convert(to, ESP_F32, at(&o->x, p, col), o->x.dtype, n);
        return;
    }
    int last = 2 * p + 1 == o->k;
    const void *a = at(&o->x, 2 * p, col), *b = last ? a : at(&o->x, 2 * p + 1, col);
    if (o->x.dtype == ESP_F32) zip_f32(to, a, b, n);
    else zip_bf16(to, a, b, n);
    if (last) for (int64_t i = 0; i < n; i++) to[i] &= 0xffffu;
}

/* to[c * ldt + r] = from[r * ldf + c], rows x cols words. */
static void transpose(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += 16) {
        int64_t n = esp_min(16, rows - r), c = 0;
        for (; n == 16 && c + 16 <= cols; c += 16) esp_transpose16(to + c * ldt + r, ldt, from + r * ldf + c, ldf);
        for (; c < cols; c++) for (int64_t i = r; i < r + n; i++) to[c * ldt + i] = from[i * ldf + c];
    }
}

void esp_panel(uint32_t *to, const esp_operand *o, int64_t j, int64_t n, int64_t q, int64_t count)
{
    /* Columns that are not there are multiplied like others, and must be numbers that hurt nobody. */
    if (n < ESP_TILE_COLS) memset(to, 0, (size_t)(count * ESP_TILE_COLS) * 4);
    if (o->down && n == ESP_TILE_COLS && esp_stands(o)) {
        const uint32_t *from = at(&o->x, q, j);
        for (int64_t p = 0; p < count; p++) memcpy(to + p * ESP_TILE_COLS, from + p * o->x.stride, ESP_TILE_COLS * 4);
    } else if (o->down) {
        for (int64_t p = 0; p < count; p++) across(to + p * ESP_TILE_COLS, o, q + p, j, n);
    } else if (esp_stands(o)) {
        transpose(to, ESP_TILE_COLS, at(&o->x, j, q * o->per), o->x.stride / o->per, n, count);
    } else {
        uint32_t rows[ESP_TILE_COLS * WIDTH];
        for (int64_t p = 0; p < count; p += WIDTH) {
            int64_t width = esp_min(WIDTH, count - p);
            for (int64_t i = 0; i < n; i++) esp_words_along(rows + i * WIDTH, o, j + i, q + p, width);
            transpose(to + p * ESP_TILE_COLS, ESP_TILE_COLS, rows, WIDTH, n, width);
        }
    }
}

void esp_turn(uint32_t *to, int64_t ld, const esp_operand *o, int64_t col, int64_t n)
{
    if (esp_stands(o)) {
        transpose(to, ld, at(&o->x, 0, col), o->x.stride, o->words, n);
        return;
    }
    uint32_t words[16 * WIDTH];
    for (int64_t p = 0; p < o->words; p += 16) {
        int64_t rows = esp_min(16, o->words - p);
        for (int64_t c = 0; c < n; c += WIDTH) {
            int64_t width = esp_min(WIDTH, n - c);
            for (int64_t q = 0; q < rows; q++) across(words + q * WIDTH, o, p + q, col + c, width);
            transpose(to + c * ld + p, ld, words, WIDTH, rows, width);
        }
    }
}

/* ---- what they will read ---- */

enum { CACHE_LINE = 64 };

esp_ahead esp_panel_ahead(const esp_operand *o, int64_t j, int64_t q, int64_t words, int64_t tiles)
{
    int64_t size = esp_dtype_size(o->x.dtype), ld = o->x.stride * size;
    if (o->down) {
        esp_near rows = {at(&o->x, q * o->per, j), 0, ld};
        return o->per == 1 ? (esp_ahead){rows, CACHE_LINE, ESP_TILE_COLS * size / CACHE_LINE} : (esp_ahead){rows, words * ld, o->per};
    }
    /* A tile is back at a row 16 words on, which are one line or two. The rows of neighbouring tiles overlap. */
    esp_near rows = {at(&o->x, j, q * o->per), ld, o->per * size};
    int64_t wide = o->per * size * ESP_NEAR_ROWS > CACHE_LINE;
    return (esp_ahead){rows, esp_max_of(1, ESP_TILE_COLS / tiles) * ld + wide * CACHE_LINE, esp_min(tiles, ESP_TILE_COLS)};
}

esp_ahead esp_turn_ahead(const esp_operand *o, int64_t col, int64_t n, int64_t part, int64_t tiles)
{
    int64_t size = esp_dtype_size(o->x.dtype), lines = esp_ceil_div(n * size, CACHE_LINE), line = part / o->per * tiles;
    esp_near rows = {(const char *)at(&o->x, part % o->per * o->words, col) + line * CACHE_LINE, 0, o->x.stride * size};
    return (esp_ahead){rows, CACHE_LINE, lines - line};
}
