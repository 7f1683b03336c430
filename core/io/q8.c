/* Q8_0, the 8-bit format of llama.cpp: 32 numbers x become scale = max|x| / 127 (f16) and round(x / scale) (i8). */
#include <math.h>

#include "../tensor/tensor.h"
#include "q8.h"

/* Blocks a task of the pool takes. */
enum { BLOCKS = 4096 };

typedef struct work {
    float *numbers;                        /* written by unpack, read by pack */
    char *blocks;
    int64_t count;                         /* of blocks */
} work;

static int unpack_blocks(void *context, int64_t index)
{
    const work *w = context;
    for (int64_t b = index * BLOCKS; b < esp_min(w->count, (index + 1) * BLOCKS); b++) {
        const char *from = w->blocks + b * Q8_BYTES;
        float *to = w->numbers + b * Q8_BLOCK;
        uint16_t half;
        memcpy(&half, from, 2);
        float scale = esp_f16_to_f32(half);
        for (int i = 0; i < Q8_BLOCK; i++) to[i] = scale * (float)(signed char)from[2 + i];
    }
    return ESP_OK;
}

/* The quotient is taken in f32 with the scale before it is rounded to f16, as llama.cpp does: the same bytes come out. */
static int pack_blocks(void *context, int64_t index)
{
    const work *w = context;
    for (int64_t b = index * BLOCKS; b < esp_min(w->count, (index + 1) * BLOCKS); b++) {
        const float *from = w->numbers + b * Q8_BLOCK;
        char *to = w->blocks + b * Q8_BYTES;
        float most = 0;
        for (int i = 0; i < Q8_BLOCK; i++) most = fmaxf(most, fabsf(from[i]));
        float scale = most / 127, inverse = scale > 0 ? 1 / scale : 0;
        uint16_t half = esp_f32_to_f16(scale);
        memcpy(to, &half, 2);
        for (int i = 0; i < Q8_BLOCK; i++) to[2 + i] = (char)(signed char)roundf(from[i] * inverse);
    }
    return ESP_OK;
}

int esp_q8_numbers(float *to, const void *from, int64_t count)
{
    work w = {to, (char *)from, count / Q8_BLOCK};
    return esp_parallel(esp_ceil_div(w.count, BLOCKS), unpack_blocks, &w);
}

/* numbers f32 [.., C] and blocks u8 of 34 bytes for 32 of them, both dense. */
static int check(const esp_tensor *numbers, int numbers_access, const esp_tensor *blocks, int blocks_access)
{
    TRY(esp_check("q8_0", "numbers", numbers, ESP_BIT(ESP_F32), numbers_access));
    TRY(esp_check("q8_0", "blocks", blocks, ESP_BIT(ESP_U8), blocks_access));
    TRY(esp_check_dense("q8_0", "numbers", numbers));
    TRY(esp_check_dense("q8_0", "blocks", blocks));
    int64_t last = numbers->ndim ? numbers->shape[numbers->ndim - 1] : 1, bytes = numbers->count / Q8_BLOCK * Q8_BYTES;
    if (last % Q8_BLOCK != 0) return esp_fail(ESP_ESHAPE, "q8_0: 'numbers' has rows of %lld, want a multiple of %d", (long long)last, (int)Q8_BLOCK);
    if (blocks->count == bytes) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "q8_0: 'blocks' has %lld bytes, want %lld (34 for 32 numbers)", (long long)blocks->count, (long long)bytes);
}

int esp_q8_pack(esp_tensor *blocks, const esp_tensor *numbers)
{
    TRY(check(numbers, ESP_READ, blocks, ESP_WRITE));
    work w = {esp_tensor_at(numbers), esp_tensor_at(blocks), numbers->count / Q8_BLOCK};
    return esp_parallel(esp_ceil_div(w.count, BLOCKS), pack_blocks, &w);
}

int esp_q8_unpack(esp_tensor *numbers, const esp_tensor *blocks)
{
    TRY(check(numbers, ESP_WRITE, blocks, ESP_READ));
    return esp_q8_numbers(esp_tensor_at(numbers), esp_tensor_at(blocks), numbers->count);
}
