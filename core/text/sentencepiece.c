/* sentencepiece .model files (a protocol buffer, read by hand: five fields of it matter) and llama2.c's tokenizer .bin. Nothing in a file is
 * trusted: each length is checked against what is left. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tokenizer.h"

typedef struct reader {
    const unsigned char *at, *end;
    const char *path;
} reader;

static int broken(const reader *r, const char *what)
{
    return esp_fail(ESP_EFORMAT, "%s: %s; this is no whole sentencepiece model", r->path, what);
}

static int varint(reader *r, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (r->at == r->end) return broken(r, "the file ends inside a number");
        unsigned char b = *r->at++;
        *value |= (uint64_t)(b & 127) << shift;
        if (b < 128) return ESP_OK;
    }
    return broken(r, "a number has more than ten bytes");
}

/* One field: its number and either its value or the bytes of it. */
typedef struct field {
    uint64_t number, value;
    reader bytes;
    float real;
} field;

static int next_field(reader *r, field *f)
{
    uint64_t tag, n;
    TRY(varint(r, &tag));
    *f = (field){.number = tag >> 3};
    switch (tag & 7) {
    case 0: return varint(r, &f->value);
    case 1: n = 8; break;
    case 5: n = 4; break;
    case 2: TRY(varint(r, &n)); break;
    default: return broken(r, "a field has an unknown wire type");
    }
    if (n > (uint64_t)(r->end - r->at)) return broken(r, "a field is longer than the file");
    f->bytes = (reader){r->at, r->at + n, r->path};
    if ((tag & 7) == 5) memcpy(&f->real, r->at, 4);
    r->at += n;
    return ESP_OK;
}

static int read_piece(esp_tokenizer *t, reader r)
{
    field f;
    const char *text = "";
    int64_t bytes = 0;
    float score = 0;
    int type = ESP_PIECE_NORMAL;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 1 && f.bytes.at) text = (const char *)f.bytes.at, bytes = f.bytes.end - f.bytes.at;
        else if (f.number == 2) score = f.real;
        else if (f.number == 3) type = (int)f.value;
    }
    if (!isfinite(score)) return esp_fail(ESP_EFORMAT, "%s: the score of piece %lld is not a finite number", r.path, (long long)t->count);
    if (type < ESP_PIECE_NORMAL || type > ESP_PIECE_BYTE) return esp_fail(ESP_EFORMAT, "%s: piece %lld has the unknown type %d", r.path, (long long)t->count, type);
    if (type == ESP_PIECE_BYTE) {
        unsigned b;
        char copy[8] = "";
        if (bytes == 6) memcpy(copy, text, 6);
        if (sscanf(copy, "<0x%02X>", &b) != 1) return esp_fail(ESP_EFORMAT, "%s: byte piece %lld is not written <0xNN>", r.path, (long long)t->count);
        t->byte_id[b] = (int32_t)t->count;
    }
    if (type == ESP_PIECE_UNKNOWN) t->unk = (int32_t)t->count;
    return esp_tokenizer_add(t, text, bytes, score, type);
}

static int read_trainer(esp_tokenizer *t, reader r)
{
    field f;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 3 && f.value != 2) {
            static const char *const names[] = {"?", "unigram", "BPE", "word", "char"};
            return esp_fail(ESP_EFORMAT, "%s: the model type is %s, want BPE", r.path, names[f.value <= 4 ? f.value : 0]);
        }
        int32_t id = (int32_t)(int64_t)f.value;
        if (f.number == 41) t->bos = id;
        else if (f.number == 42) t->eos = id;
        else if (f.number == 43) t->pad = id;
    }
    return ESP_OK;
}

static int read_normalizer(esp_tokenizer *t, reader r)
{
    field f;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 2 && f.bytes.end > f.bytes.at) return esp_fail(ESP_EFORMAT, "%s: its normalizer has a character map; only 'identity' is known", r.path);
        if (f.number == 3) t->dummy_prefix = f.value != 0;
        else if (f.number == 4) t->squeeze_spaces = f.value != 0;
        else if (f.number == 5) t->escape_spaces = f.value != 0;
    }
    return ESP_OK;
}

static void drop_outside(int32_t *id, int64_t count)
{
    if (*id >= count) *id = -1;
}

int esp_load_sentencepiece(esp_tokenizer *t, const char *data, int64_t bytes, const char *path)
{
    reader r = {(const unsigned char *)data, (const unsigned char *)data + bytes, path};
    field f;
    t->kind = "sentencepiece";
    t->dummy_prefix = t->squeeze_spaces = t->escape_spaces = 1;
    t->bos = 1, t->eos = 2;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 1 && f.bytes.at) TRY(read_piece(t, f.bytes));
        else if (f.number == 2 && f.bytes.at) TRY(read_trainer(t, f.bytes));
        else if (f.number == 3 && f.bytes.at) TRY(read_normalizer(t, f.bytes));
    }
    if (t->count == 0) return esp_fail(ESP_EFORMAT, "%s: no pieces in it; this is no sentencepiece model", path);
    drop_outside(&t->bos, t->count);
    drop_outside(&t->eos, t->count);
    drop_outside(&t->pad, t->count);
    return ESP_OK;
}

/* i32 longest; then for each piece f32 score, i32 bytes, the bytes. Spaces are written plainly; <s> and </s> between newlines. */
int esp_load_llama2c(esp_tokenizer *t, const char *data, int64_t bytes, int64_t vocab, const char *path)
{
    int64_t at = 4;
    t->kind = "llama2c";
    t->dummy_prefix = t->escape_spaces = 1;
    t->unk = 0, t->bos = 1, t->eos = 2;
    for (int64_t id = 0; at < bytes && (vocab <= 0 || id < vocab); id++) {
        float score;
        int32_t n;
        if (at + 8 > bytes) return esp_fail(ESP_EFORMAT, "%s: ends inside piece %lld", path, (long long)id);
        memcpy(&score, data + at, 4);
        memcpy(&n, data + at + 4, 4);
        at += 8;
        if (n < 0 || n > bytes - at || n > 4096) return esp_fail(ESP_EFORMAT, "%s: piece %lld has %d bytes, %lld are left", path, (long long)id, n, (long long)(bytes - at));
        if (!isfinite(score)) return esp_fail(ESP_EFORMAT, "%s: the score of piece %lld is not a finite number", path, (long long)id);
        char text[3 * 4096];
        int64_t length = 0;
        for (int32_t i = 0; i < n; i++) {
            if (data[at + i] == ' ') length += sprintf(text + length, "\xe2\x96\x81");
            else text[length++] = data[at + i];
        }
        unsigned b;
        char copy[8] = "";
        if (length == 6) memcpy(copy, text, 6);
        int type = id < 3 ? (id == 0 ? ESP_PIECE_UNKNOWN : ESP_PIECE_CONTROL) : sscanf(copy, "<0x%02X>", &b) == 1 ? ESP_PIECE_BYTE : ESP_PIECE_NORMAL;
        if (type == ESP_PIECE_BYTE) t->byte_id[b] = (int32_t)id;
        TRY(esp_tokenizer_add(t, text, length, score, type));
        at += n;
    }
    if (t->count < 3 || (vocab > 0 && t->count != vocab)) {
        return esp_fail(ESP_EFORMAT, "%s: holds %lld pieces, want %lld", path, (long long)t->count, (long long)vocab);
    }
    return ESP_OK;
}
