/* Words of 32 bits that products read along k: a number in f32, or a pair of neighbours in bf16, the lower half first. Internal to core/ops. */
#ifndef ESP_WORDS_H
#define ESP_WORDS_H

#include "../tensor/tensor.h"

enum { ESP_TILE_COLS = 32 };

/* A row-major matrix in f32 or bf16. */
typedef struct esp_matrix {
    void *data;
    int dtype;
    int64_t stride;                       /* elements from row to row */
} esp_matrix;

/* A matrix whose words run along its rows or, where `down`, along its columns; k numbers in that direction, `per` of them a word. */
typedef struct esp_operand {
    esp_matrix x;
    int down, per;
    int64_t k, words;
} esp_operand;

/* dtype: f32 or bf16, in which its words are. */
esp_operand esp_operand_of(esp_matrix x, int down, int dtype, int64_t k);
/* Are its words there as they stand? Pairs down columns never are. */
int esp_stands(const esp_operand *o);
/* Words q .. q+count-1 along a row, with a zero behind an odd end. */
void esp_words_along(uint32_t *to, const esp_operand *o, int64_t row, int64_t q, int64_t count);
/* to[count][32]: words q .. q+count-1 of the n <= 32 numbers across from j on (rows where words run along them), zeros behind those. */
void esp_panel(uint32_t *to, const esp_operand *o, int64_t j, int64_t n, int64_t q, int64_t count);
/* Columns col .. col+n-1, down which words run, as rows of them, ld apart. */
void esp_turn(uint32_t *to, int64_t ld, const esp_operand *o, int64_t col, int64_t n);
/* to[c * ldt + r] = from[r * ldf + c] for 16 x 16 words. */
void esp_transpose16(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf);

/* Memory that will be read soon: a tile asks at its word p for the line at `at` + p % ESP_NEAR_ROWS * step + p * on, in bytes. */
enum { ESP_NEAR_ROWS = 16 };
typedef struct esp_near {
    const char *at;
    int64_t step, on;
} esp_near;

/* Nothing is needed: the tile asks for what it is reading. */
static inline esp_near esp_near_only(const void *a)
{
    return (esp_near){a, 0, 0};
}

/* The same for the tiles of a panel: the first `tiles` of them ask, each `each` bytes behind the one before. */
typedef struct esp_ahead {
    esp_near near;
    int64_t each, tiles;
} esp_ahead;

/* For a panel of `tiles` tiles of `words` words: what esp_panel will read for columns j .. j+31 from word q on; and the part-th part of what esp_turn
 * will read for columns col .. col+n-1. */
esp_ahead esp_panel_ahead(const esp_operand *o, int64_t j, int64_t q, int64_t words, int64_t tiles);
esp_ahead esp_turn_ahead(const esp_operand *o, int64_t col, int64_t n, int64_t part, int64_t tiles);

#endif
