/* sentencepiece .model files: a protocol buffer, read by hand (a dozen fields of it matter), and the normal form that its texts are brought to. Nothing in a file is
 * trusted: each length is checked against what is left. */
#include <math.h>
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
    if (bytes == 0) return esp_fail(ESP_EFORMAT, "%s: piece %lld has no text", r.path, (long long)t->count);
    if (esp_utf8_invalid(text, bytes) >= 0) return esp_fail(ESP_EFORMAT, "%s: piece %lld is no UTF-8", r.path, (long long)t->count);
    if (!isfinite(score)) return esp_fail(ESP_EFORMAT, "%s: the score of piece %lld is not a finite number", r.path, (long long)t->count);
    if (type < ESP_PIECE_NORMAL || type > ESP_PIECE_BYTE) return esp_fail(ESP_EFORMAT, "%s: piece %lld has the unknown type %d", r.path, (long long)t->count, type);
    if (type == ESP_PIECE_BYTE) {
        int b = esp_piece_byte(text, bytes);
        if (b < 0) return esp_fail(ESP_EFORMAT, "%s: byte piece %lld is not written <0xNN>", r.path, (long long)t->count);
        t->byte_id[b] = (int32_t)t->count;
    }
    if (type == ESP_PIECE_UNKNOWN) t->unk = (int32_t)t->count;
    t->has_unused |= type == ESP_PIECE_UNUSED;
    return esp_tokenizer_add(t, text, bytes, score, type);
}

static int keep_text(char **to, reader r)
{
    esp_free(*to);
    int64_t n = r.end - r.at;
    if (!(*to = esp_malloc(n + 1))) return ESP_EMEM;
    memcpy(*to, r.at, (size_t)n);
    (*to)[n] = 0;
    return ESP_OK;
}

static int read_trainer(esp_tokenizer *t, reader r)
{
    field f;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 3 && f.value != 1 && f.value != 2) {
            static const char *const names[] = {"?", "?", "?", "word", "char"};
            return esp_fail(ESP_EFORMAT, "%s: the model type is %s, want BPE or unigram", r.path, names[f.value <= 4 ? f.value : 0]);
        }
        if (f.number == 3) t->model = f.value == 1 ? MODEL_UNIGRAM : MODEL_SCORES;
        int32_t id = (int32_t)(int64_t)f.value;
        if (f.number == 24) t->space_behind = f.value != 0;
        else if (f.number == 41) t->bos = id;
        else if (f.number == 42) t->eos = id;
        else if (f.number == 43) t->pad = id;
        else if (f.number == 44 && f.bytes.at) TRY(keep_text(&t->unk_text, f.bytes));
    }
    return ESP_OK;
}

static int read_normalizer(esp_tokenizer *t, reader r)
{
    field f;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 2 && f.bytes.end > f.bytes.at) {
            t->charsmap_bytes = f.bytes.end - f.bytes.at;
            TRY(keep_text(&t->charsmap, f.bytes));
            TRY(esp_charsmap_check(t->charsmap, t->charsmap_bytes, r.path));
        }
        if (f.number == 3) t->dummy_prefix = f.value != 0;
        else if (f.number == 4) t->squeeze_spaces = f.value != 0;
        else if (f.number == 5) t->escape_spaces = f.value != 0;
    }
    return ESP_OK;
}

static int read_denormalizer(reader r)
{
    field f;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number == 2 && f.bytes.end > f.bytes.at) return esp_fail(ESP_EFORMAT, "%s: its denormalizer has a character map, which is not known", r.path);
    }
    return ESP_OK;
}

/* Room for the pieces: each is counted before any is kept. */
static int reserve(esp_tokenizer *t, reader r)
{
    field f;
    int64_t pieces = 0, text = 0;
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (f.number != 1 || !f.bytes.at) continue;
        pieces++;
        text += f.bytes.end - f.bytes.at;
    }
    if (pieces > ESP_MOST_PIECES) return esp_fail(ESP_EFORMAT, "%s: %lld pieces, at most %d can be", r.path, (long long)pieces, ESP_MOST_PIECES);
    return esp_tokenizer_reserve(t, pieces, text + pieces);
}

/* Every piece is another one: sentencepiece opens no other model. */
static int check_unique(const esp_tokenizer *t, const char *path)
{
    for (int32_t id = 0; id < t->count; id++) {
        int32_t first = esp_tokenizer_find(t, piece_text(t, id), t->pieces[id].bytes);
        if (first != id) return esp_fail(ESP_EFORMAT, "%s: pieces %d and %d are both '%.100s'", path, first, id, piece_text(t, id));
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
    t->model = MODEL_UNIGRAM;
    t->sentencepiece = t->dummy_prefix = t->squeeze_spaces = t->escape_spaces = 1;
    t->bos = 1, t->eos = 2;
    TRY(reserve(t, r));
    while (r.at < r.end) {
        TRY(next_field(&r, &f));
        if (!f.bytes.at) continue;
        if (f.number == 1) TRY(read_piece(t, f.bytes));
        else if (f.number == 2) TRY(read_trainer(t, f.bytes));
        else if (f.number == 3) TRY(read_normalizer(t, f.bytes));
        else if (f.number == 5) TRY(read_denormalizer(f.bytes));
    }
    if (t->count == 0) return esp_fail(ESP_EFORMAT, "%s: no pieces in it; this is no sentencepiece model", path);
    t->single = t->model == MODEL_UNIGRAM;
    drop_outside(&t->bos, t->count);
    drop_outside(&t->eos, t->count);
    drop_outside(&t->pad, t->count);
    static const char unknown[] = " \xe2\x81\x87 ";
    if (!t->unk_text) TRY(keep_text(&t->unk_text, (reader){(const unsigned char *)unknown, (const unsigned char *)unknown + sizeof unknown - 1, path}));
    TRY(esp_tokenizer_index(t));
    return check_unique(t, path);
}

/* ---- the normal form ---- */

/* What the front of a text becomes: bytes read, and the text to write. Pieces of the user's stay as they are. */
static int64_t next_normal(const esp_tokenizer *t, const char *text, int64_t bytes, const char **to, int64_t *n)
{
    int32_t id;
    int64_t read = t->user.count ? esp_prefixes_longest(&t->user, text, bytes, &id) : 0;
    if (read == 0 && t->charsmap && (read = esp_charsmap_find(t->charsmap, t->charsmap_bytes, text, bytes, 0, to)) > 0) {
        *n = (int64_t)strlen(*to);
        return read;
    }
    *to = text;
    *n = read ? read : esp_utf8_length(text);
    return *n;
}

static int put_space(const esp_tokenizer *t, esp_text *out)
{
    return t->escape_spaces ? esp_text_add(out, esp_block, BLOCK) : esp_text_add(out, " ", 1);
}

static int ends_in_space(const esp_tokenizer *t, const esp_text *out, int64_t from)
{
    const char *space = t->escape_spaces ? esp_block : " ";
    int64_t n = t->escape_spaces ? BLOCK : 1;
    return out->bytes - from >= n && memcmp(out->at + out->bytes - n, space, (size_t)n) == 0;
}

int esp_sentencepiece_normalize(const esp_tokenizer *t, esp_text *out, const char *text, int64_t bytes)
{
    const char *to;
    int64_t n, at = 0, begin = out->bytes, read;
    while (t->squeeze_spaces && at < bytes) {
        read = next_normal(t, text + at, bytes - at, &to, &n);
        if (n != 1 || *to != ' ') break;
        at += read;
    }
    if (at == bytes) return ESP_OK;
    if (t->dummy_prefix && !t->space_behind) TRY(put_space(t, out));
    int was_space = t->squeeze_spaces;
    for (; at < bytes; at += read) {
        read = next_normal(t, text + at, bytes - at, &to, &n);
        for (; was_space && n > 0 && *to == ' '; to++) n--;
        for (int64_t i = 0; i < n; i++) TRY(to[i] == ' ' ? put_space(t, out) : esp_text_add(out, to + i, 1));
        if (n > 0) was_space = t->squeeze_spaces && to[n - 1] == ' ';
        else was_space = was_space && t->squeeze_spaces;
    }
    while (t->squeeze_spaces && ends_in_space(t, out, begin)) out->bytes -= t->escape_spaces ? BLOCK : 1;
    return t->dummy_prefix && t->space_behind ? put_space(t, out) : ESP_OK;
}
