/* llama2.c's tokenizer .bin. Nothing in a file is trusted: each length is checked against what is left. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tokenizer.h"

enum { LONGEST_PIECE = 4096 };

/* i32 longest; then for each piece f32 score, i32 bytes, the bytes. Spaces are written plainly; <s> and </s> between newlines. */
int esp_load_llama2c(esp_tokenizer *t, const char *data, int64_t bytes, int64_t vocab, const char *path)
{
    int64_t at = 4;
    t->kind = "llama2c";
    t->model = MODEL_SCORES;
    t->sentencepiece = 1;
    t->dummy_prefix = t->escape_spaces = 1;
    t->unk = 0, t->bos = 1, t->eos = 2;
    enum { LEAST = 8 };
    TRY(esp_tokenizer_reserve(t, esp_min(vocab > 0 ? vocab : ESP_MOST_PIECES, bytes / LEAST), 0));
    for (int64_t id = 0; at < bytes && (vocab <= 0 || id < vocab); id++) {
        float score;
        int32_t n;
        if (at + 8 > bytes) return esp_fail(ESP_EFORMAT, "%s: ends inside piece %lld", path, (long long)id);
        memcpy(&score, data + at, 4);
        memcpy(&n, data + at + 4, 4);
        at += 8;
        if (n < 0 || n > bytes - at || n > LONGEST_PIECE) return esp_fail(ESP_EFORMAT, "%s: piece %lld has %d bytes, %lld are left", path, (long long)id, n, (long long)(bytes - at));
        if (!isfinite(score)) return esp_fail(ESP_EFORMAT, "%s: the score of piece %lld is not a finite number", path, (long long)id);
        char text[3 * LONGEST_PIECE];
        int64_t length = 0;
        for (int32_t i = 0; i < n; i++) {
            if (data[at + i] == ' ') length += sprintf(text + length, "\xe2\x96\x81");
            else text[length++] = data[at + i];
        }
        int b = esp_piece_byte(text, length);
        int type = id < 3 ? (id == 0 ? ESP_PIECE_UNKNOWN : ESP_PIECE_CONTROL) : b >= 0 ? ESP_PIECE_BYTE : ESP_PIECE_NORMAL;
        if (type == ESP_PIECE_BYTE) t->byte_id[b] = (int32_t)id;
        TRY(esp_tokenizer_add(t, text, length, score, type));
        at += n;
    }
    if (t->count < 3 || (vocab > 0 && t->count != vocab)) {
        return esp_fail(ESP_EFORMAT, "%s: holds %lld pieces, want %lld", path, (long long)t->count, (long long)vocab);
    }
    return esp_tokenizer_index(t);
}
