/* Tokenizers: loading by kind, text to ids and back. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <xxhash.h>

#include "tokenizer.h"

static const char block[] = "\xe2\x96\x81";        /* sentencepiece's sign for a space, U+2581 */
enum { BLOCK = 3 };

/* ---- vocabulary ---- */

int esp_tokenizer_add(esp_tokenizer *t, const char *text, int64_t bytes, float score, int type)
{
    if (t->count == t->room) {
        int64_t room = t->room ? 2 * t->room : 1024;
        piece *more = esp_realloc(t->pieces, room * (int64_t)sizeof *more);
        if (!more) return ESP_EMEM;
        t->pieces = more;
        t->room = room;
    }
    if (t->text_used + bytes + 1 > t->text_room) {
        int64_t room = 2 * t->text_room + bytes + 4096;
        char *more = esp_realloc(t->text, room);
        if (!more) return ESP_EMEM;
        t->text = more;
        t->text_room = room;
    }
    memcpy(t->text + t->text_used, text, (size_t)bytes);
    t->text[t->text_used + bytes] = 0;
    t->pieces[t->count++] = (piece){t->text_used, bytes, score, type};
    t->text_used += bytes + 1;
    return ESP_OK;
}

static int32_t *slot_of(const esp_tokenizer *t, const char *text, int64_t bytes)
{
    uint64_t h = XXH3_64bits(text, (size_t)bytes);
    for (uint64_t i = h;; i++) {
        int32_t *slot = &t->map.slots[i & (uint64_t)(t->map.room - 1)];
        if (*slot < 0) return slot;
        const piece *p = &t->pieces[*slot];
        if (p->bytes == bytes && memcmp(t->text + p->at, text, (size_t)bytes) == 0) return slot;
    }
}

int esp_tokenizer_index(esp_tokenizer *t)
{
    esp_free(t->map.slots);
    for (t->map.room = 16; t->map.room < 2 * t->count; t->map.room *= 2) {}
    if (!(t->map.slots = esp_malloc(t->map.room * 4))) return ESP_EMEM;
    memset(t->map.slots, 0xff, (size_t)t->map.room * 4);
    for (int64_t i = 0; i < t->count; i++) {
        int32_t *slot = slot_of(t, piece_text(t, (int32_t)i), t->pieces[i].bytes);
        if (*slot < 0) *slot = (int32_t)i;
    }
    return ESP_OK;
}

int32_t esp_tokenizer_find(const esp_tokenizer *t, const char *text, int64_t bytes)
{
    return *slot_of(t, text, bytes);
}

int esp_ids_push(esp_ids *ids, int32_t id)
{
    if (ids->count == ids->room) {
        int64_t room = ids->room ? 2 * ids->room : 64;
        int32_t *more = esp_realloc(ids->id, room * 4);
        if (!more) return ESP_EMEM;
        ids->id = more;
        ids->room = room;
    }
    ids->id[ids->count++] = id;
    return ESP_OK;
}

/* ---- loading ---- */

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

int esp_tokenizer_parse(esp_tokenizer **out, const char *data, int64_t bytes, const char *name, int64_t vocab)
{
    esp_tokenizer *t = esp_calloc(sizeof *t);
    if (!t) return ESP_EMEM;
    t->pre = "";
    t->unk = t->bos = t->eos = t->pad = -1;
    for (int b = 0; b < 256; b++) t->byte_id[b] = -1;
    int code = ends_with(name, ".json") ? esp_load_tokenizer_json(t, data, bytes, name)
               : ends_with(name, ".bin") ? esp_load_llama2c(t, data, bytes, vocab, name)
               : ends_with(name, ".model") ? esp_load_sentencepiece(t, data, bytes, name)
               : esp_fail(ESP_EFORMAT, "%s: no tokenizer by its name; want tokenizer.json, a sentencepiece .model or a llama2.c .bin", name);
    if (code == ESP_OK) code = esp_tokenizer_index(t);
    if (code != ESP_OK) esp_tokenizer_free(t);
    else *out = t;
    return code;
}

int esp_tokenizer_load(esp_tokenizer **out, const char *path, int64_t vocab)
{
    char *data;
    int64_t bytes;
    TRY(esp_file_read(&data, &bytes, path, (int64_t)1 << 28));
    int code = esp_tokenizer_parse(out, data, bytes, path, vocab);
    esp_free(data);
    return code;
}

void esp_tokenizer_free(esp_tokenizer *t)
{
    if (!t) return;
    for (int i = 0; i < t->split_count; i++) esp_split_free(t->splits[i]);
    esp_free(t->text);
    esp_free(t->pieces);
    esp_free(t->map.slots);
    esp_free(t->merges);
    esp_free(t->pairs);
    esp_free(t->added);
    esp_free(t);
}

int64_t esp_tokenizer_vocab(const esp_tokenizer *t) { return t->count; }
const char *esp_tokenizer_kind(const esp_tokenizer *t) { return t->kind; }

int esp_tokenizer_special(const esp_tokenizer *t, const char *name)
{
    return strcmp(name, "bos") == 0 ? t->bos : strcmp(name, "eos") == 0 ? t->eos : strcmp(name, "unk") == 0 ? t->unk : strcmp(name, "pad") == 0 ? t->pad : -1;
}

const char *esp_tokenizer_piece(const esp_tokenizer *t, int32_t id, int64_t *bytes, float *score, int *type)
{
    if (id < 0 || id >= t->count) return NULL;
    *bytes = t->pieces[id].bytes;
    if (score) *score = t->pieces[id].score;
    if (type) *type = t->pieces[id].type;
    return piece_text(t, id);
}

int64_t esp_tokenizer_merges(const esp_tokenizer *t) { return t->merge_count; }

void esp_tokenizer_merge(const esp_tokenizer *t, int64_t rank, int32_t *left, int32_t *right)
{
    *left = rank >= 0 && rank < t->merge_count ? t->merges[rank].left : -1;
    *right = rank >= 0 && rank < t->merge_count ? t->merges[rank].right : -1;
}

const char *esp_tokenizer_pre(const esp_tokenizer *t) { return t->pre; }

int32_t esp_tokenizer_id(const esp_tokenizer *t, const char *text, int64_t bytes)
{
    return esp_tokenizer_find(t, text, bytes);
}

/* ---- text to ids ---- */

typedef struct encoder {
    const esp_tokenizer *t;
    esp_ids *out;
    int level;                             /* how many splits were applied */
} encoder;

static int add_word(void *context, const char *text, int64_t bytes)
{
    encoder *e = context;
    const esp_tokenizer *t = e->t;
    if (e->level < t->split_count) {
        encoder deeper = {t, e->out, e->level + 1};
        return esp_split_run(t->splits[e->level], text, bytes, add_word, &deeper);
    }
    if (!t->byte_level) return esp_merge_word(e->out, t, text, bytes);
    char *letters = esp_malloc(2 * bytes + 1);
    if (!letters) return ESP_EMEM;
    int64_t n = 0;
    for (int64_t i = 0; i < bytes; i++) n += esp_byte_letter(letters + n, (unsigned char)text[i]);
    int code = esp_merge_word(e->out, t, letters, n);
    esp_free(letters);
    return code;
}

/* Spaces become U+2581, with one more in front where the tokenizer wants a dummy prefix. */
static int encode_escaped(esp_ids *out, const esp_tokenizer *t, const char *text, int64_t bytes)
{
    char *word = esp_malloc(BLOCK * bytes + BLOCK + 1);
    if (!word) return ESP_EMEM;
    int64_t n = 0, from = 0, end = bytes;
    if (t->squeeze_spaces) {
        while (from < end && text[from] == ' ') from++;
        while (end > from && text[end - 1] == ' ') end--;
    }
    if (t->dummy_prefix && end > from) {
        memcpy(word, block, BLOCK);
        n = BLOCK;
    }
    for (int64_t i = from; i < end; i++) {
        if (text[i] != ' ') {
            word[n++] = text[i];
        } else if (!t->squeeze_spaces || text[i - 1] != ' ') {
            memcpy(word + n, block, BLOCK);
            n += BLOCK;
        }
    }
    encoder e = {t, out, 0};
    int code = add_word(&e, word, n);
    esp_free(word);
    return code;
}

static int encode_plain(esp_ids *out, const esp_tokenizer *t, const char *text, int64_t bytes)
{
    if (bytes == 0) return ESP_OK;
    if (t->escape_spaces) return encode_escaped(out, t, text, bytes);
    char *normal = NULL;
    if (t->nfc) {
        utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, (utf8proc_uint8_t **)&normal, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (n < 0) return esp_fail(ESP_EARG, "tokenizer: the text cannot be brought to NFC: %s", utf8proc_errmsg(n));
        text = normal;
        bytes = n;
    }
    char *spaced = NULL;
    if (t->prefix_space && bytes && *text != ' ' && (spaced = esp_malloc(bytes + 1))) {
        spaced[0] = ' ';
        memcpy(spaced + 1, text, (size_t)bytes);
        text = spaced;
        bytes++;
    }
    encoder e = {t, out, 0};
    int code = add_word(&e, text, bytes);
    free(normal);
    esp_free(spaced);
    return code;
}

static int is_word(char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_' || (unsigned char)c >= 128; }
static int is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* The longest added token that begins at `at`, or NULL. */
static const added_token *added_at(const esp_tokenizer *t, const char *text, int64_t bytes, int64_t at, int special)
{
    const added_token *best = NULL;
    for (int64_t i = 0; i < t->added_count; i++) {
        const added_token *a = &t->added[i];
        const piece *p = &t->pieces[a->id];
        if ((a->special && !special) || p->bytes == 0 || p->bytes > bytes - at || memcmp(text + at, t->text + p->at, (size_t)p->bytes) != 0) continue;
        if (a->single_word && ((at > 0 && is_word(text[at - 1])) || (at + p->bytes < bytes && is_word(text[at + p->bytes])))) continue;
        if (!best || p->bytes > t->pieces[best->id].bytes) best = a;
    }
    return best;
}

int esp_tokenizer_encode(int32_t **ids, int64_t *count, const esp_tokenizer *t, const char *text, int64_t bytes, int special)
{
    for (int64_t i = 0; i < bytes;) {
        int n = esp_utf8_length(text + i, bytes - i);
        if (n == 1 && (unsigned char)text[i] >= 128) return esp_fail(ESP_EARG, "tokenizer: byte %lld of the text is no UTF-8", (long long)i);
        i += n;
    }
    esp_ids out = {0};
    int code = ESP_OK;
    int64_t from = 0;
    unsigned char begins[256] = {0};
    for (int64_t i = 0; i < t->added_count; i++) begins[(unsigned char)*piece_text(t, t->added[i].id)] = 1;
    for (int64_t at = 0; code == ESP_OK && at < bytes;) {
        const added_token *a = begins[(unsigned char)text[at]] ? added_at(t, text, bytes, at, special) : NULL;
        if (!a) {
            at++;
            continue;
        }
        int64_t end = at;
        if (a->lstrip) while (end > from && is_space(text[end - 1])) end--;
        code = encode_plain(&out, t, text + from, end - from);
        if (code == ESP_OK) code = esp_ids_push(&out, a->id);
        at += t->pieces[a->id].bytes;
        if (a->rstrip) while (at < bytes && is_space(text[at])) at++;
        from = at;
    }
    if (code == ESP_OK) code = encode_plain(&out, t, text + from, bytes - from);
    if (code == ESP_OK && !out.id && !(out.id = esp_malloc(4))) code = ESP_EMEM;
    if (code != ESP_OK) {
        esp_free(out.id);
        return code;
    }
    *ids = out.id;
    *count = out.count;
    return ESP_OK;
}

int esp_tokenizer_encode_into(int32_t *ids, int64_t room, int64_t *count, const esp_tokenizer *t, const char *text, int64_t bytes, int special)
{
    int32_t *all;
    TRY(esp_tokenizer_encode(&all, count, t, text, bytes, special));
    if (*count <= room) memcpy(ids, all, (size_t)*count * 4);
    esp_free(all);
    return *count <= room ? ESP_OK : esp_fail(ESP_ESHAPE, "tokenizer: the text has %lld ids, there is room for %lld", (long long)*count, (long long)room);
}

/* ---- ids to text ---- */

static int is_added(const esp_tokenizer *t, int32_t id)
{
    for (int64_t i = 0; i < t->added_count; i++) if (t->added[i].id == id) return 1;
    return 0;
}

/* Text of one piece; returns its bytes. */
static int64_t spell(char *to, const esp_tokenizer *t, int32_t id)
{
    const char *text = piece_text(t, id);
    int64_t n = t->pieces[id].bytes, used = 0;
    if (t->pieces[id].type == ESP_PIECE_BYTE) {
        char hex[3] = {text[3], text[4], 0};
        *to = (char)strtol(hex, NULL, 16);
        return 1;
    }
    if (is_added(t, id) || !(t->byte_level || t->escape_spaces)) {
        memcpy(to, text, (size_t)n);
        return n;
    }
    for (int64_t i = 0; i < n;) {
        unsigned char byte;
        int length = t->byte_level ? esp_letter_byte(text + i, n - i, &byte) : 0;
        if (length) {
            to[used++] = (char)byte;
            i += length;
        } else if (t->escape_spaces && n - i >= BLOCK && memcmp(text + i, block, BLOCK) == 0) {
            to[used++] = ' ';
            i += BLOCK;
        } else {
            to[used++] = text[i++];
        }
    }
    return used;
}

int esp_tokenizer_decode(char **text, int64_t *bytes, const esp_tokenizer *t, const int32_t *ids, int64_t count, int special, int first)
{
    int64_t room = 1, used = 0;
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= t->count) return esp_fail(ESP_EARG, "tokenizer: id %d, want 0 to %lld", ids[i], (long long)t->count - 1);
        room += t->pieces[ids[i]].bytes + 1;
    }
    char *out = esp_malloc(room);
    if (!out) return ESP_EMEM;
    for (int64_t i = 0; i < count; i++) {
        if (!special && t->pieces[ids[i]].type == ESP_PIECE_CONTROL) continue;
        int64_t n = spell(out + used, t, ids[i]);
        /* The dummy prefix is not part of the text. */
        if (first && used == 0 && t->dummy_prefix && n > 0 && out[0] == ' ' && t->pieces[ids[i]].type != ESP_PIECE_BYTE) memmove(out, out + 1, (size_t)--n);
        if (n > 0 || t->pieces[ids[i]].bytes > 0) first = first && t->pieces[ids[i]].type == ESP_PIECE_CONTROL;
        used += n;
    }
    out[used] = 0;
    *text = out;
    *bytes = used;
    return ESP_OK;
}
