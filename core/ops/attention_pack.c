/* The forms in which attention's products take their operands.
 *
 * Everything starts from a dense copy whose rows and columns are filled up with zeros to whole blocks: after it no loop has a tail, and strides of
 * views (a prefix of the heads, an odd offset) are met in one place. */
#include "attention.h"

esp_matrix esp_head_rows(const esp_tensor *t, int64_t b, int64_t position, int64_t head)
{
    return (esp_matrix){.data = esp_tensor_head(t, b, position, head), .dtype = t->dtype, .stride = t->stride[1]};
}

/* Rows stand far from each other, where the processor does not look ahead by itself. */
static ESP_SIMD void copy_rows(char *restrict to, int64_t to_stride, const char *restrict from, int64_t from_stride, int64_t n, int64_t bytes)
{
    enum { AHEAD = 12, WIDE = 64, NARROW = 16 };
    for (int64_t i = 0; i < n; i++, to += to_stride, from += from_stride) {
        int64_t c = 0;
        for (; c + WIDE <= bytes; c += WIDE) {
            __builtin_prefetch(from + AHEAD * from_stride + c);
            memcpy(to + c, from + c, WIDE);
        }
        if (c < bytes) __builtin_prefetch(from + AHEAD * from_stride + bytes - 1);
        for (; c + NARROW <= bytes; c += NARROW) memcpy(to + c, from + c, NARROW);
        for (; c < bytes; c += 2) memcpy(to + c, from + c, 2);
        for (; c < to_stride; c += 2) memset(to + c, 0, 2);
    }
}

void esp_pack_dense(uint32_t *to, int64_t width, esp_matrix x, int64_t n, int64_t room, int64_t D)
{
    int64_t size = esp_dtype_size(x.dtype);
    copy_rows((char *)to, width * 4, x.data, x.stride * size, n, D * size);
    memset(to + n * width, 0, (size_t)((room - n) * width * 4));
}

void esp_pack_columns(uint32_t *to, const uint32_t *rows, int64_t width, int64_t words)
{
    for (int64_t p = 0; p < words; p += 16) {
        for (int j = 0; j < ESP_PANEL; j += 16) esp_transpose16(to + p * ESP_PANEL + j, ESP_PANEL, rows + j * width + p, width);
    }
}

/* Pairs of numbers of two rows of bf16. */
static inline __attribute__((always_inline)) void zip(uint32_t *restrict to, const uint16_t *restrict x, const uint16_t *restrict y, int n)
{
    for (int i = 0; i < n; i++) to[i] = x[i] | (uint32_t)y[i] << 16;
}

static ESP_SIMD void zip_panel(uint32_t *to, const uint16_t *rows, int64_t stride, int64_t pairs)
{
    for (int64_t p = 0; p < pairs; p++) zip(to + p * ESP_PANEL, rows + 2 * p * stride, rows + (2 * p + 1) * stride, ESP_PANEL);
}

void esp_pack_plain(uint32_t *to, const uint32_t *rows, int64_t width, int64_t n, int64_t D, int64_t per)
{
    for (int64_t c = 0; c < D; c += ESP_PANEL, to += n / per * ESP_PANEL) {
        if (per == 2) zip_panel(to, (const uint16_t *)(const void *)rows + c, 2 * width, n / 2);
        else for (int64_t i = 0; i < n; i++) memcpy(to + i * ESP_PANEL, rows + i * width + c, ESP_PANEL * 4);
    }
}

void esp_pack_transposed(uint32_t *to, int64_t stride, const uint32_t *rows, int64_t width, int64_t n, int64_t D, int64_t per)
{
    uint32_t zipped[16 * ESP_PANEL];
    for (int64_t p = 0; p < n / per; p += 16) {
        for (int64_t c = 0; c < D; c += ESP_PANEL) {
            const uint32_t *from = rows + p * width + c;
            if (per == 2) zip_panel(zipped, (const uint16_t *)(const void *)(rows + 2 * p * width) + c, 2 * width, 16);
            for (int64_t half = 0; half < ESP_PANEL; half += 16) {
                esp_transpose16(to + (c + half) * stride + p, stride, per == 2 ? zipped + half : from + half, per == 2 ? ESP_PANEL : width);
            }
        }
    }
}

void esp_unpack_columns(float *to, const float *from, int64_t D)
{
    int64_t stride = esp_pad(D, ESP_PANEL);
    for (int64_t c = 0; c < D; c += 16) {
        for (int j = 0; j < ESP_PANEL; j += 16) {
            esp_transpose16((uint32_t *)(void *)(to + j * stride + c), stride, (const uint32_t *)(const void *)(from + c * ESP_PANEL + j), ESP_PANEL);
        }
    }
}
