/* Pieces and their ids; buffers that grow. */
#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "tokenizer.h"

int esp_text_room(esp_text *to, int64_t more)
{
    if (to->bytes + more <= to->room) return ESP_OK;
    char *at = esp_realloc(to->at, to->bytes + more);
    if (!at) return ESP_EMEM;
    to->at = at;
    to->room = to->bytes + more;
    return ESP_OK;
}

int esp_text_add(esp_text *to, const char *text, int64_t bytes)
{
    if (to->most && to->bytes + bytes > to->most) {
        return esp_fail(ESP_EFORMAT, "tokenizer: its steps make more than %lld bytes of a text; no tokenizer of use does", (long long)to->most);
    }
    if (to->bytes + bytes > to->room) TRY(esp_text_room(to, bytes + to->bytes / 2 + 64));
    if (bytes) memcpy(to->at + to->bytes, text, (size_t)bytes);
    to->bytes += bytes;
    return ESP_OK;
}

static int ids_room(esp_ids *ids, int64_t more)
{
    if (ids->count + more <= ids->room) return ESP_OK;
    int64_t room = ids->count + more + ids->count / 2 + 64;
    int32_t *id = esp_realloc(ids->id, room * 4);
    if (!id) return ESP_EMEM;
    ids->id = id;
    ids->room = room;
    return ESP_OK;
}

int esp_ids_push(esp_ids *ids, int32_t id)
{
    if (ids->count == ids->room) TRY(ids_room(ids, 1));
    ids->id[ids->count++] = id;
    return ESP_OK;
}

int esp_ids_append(esp_ids *ids, const int32_t *id, int64_t count)
{
    TRY(ids_room(ids, count));
    if (count) memcpy(ids->id + ids->count, id, (size_t)count * 4);
    ids->count += count;
    return ESP_OK;
}

int esp_pieces_push(esp_pieces *p, int64_t from, int64_t to)
{
    if (p->count == p->room) {
        int64_t room = p->room + p->room / 2 + 64;
        esp_span *spans = esp_realloc(p->spans, room * (int64_t)sizeof *spans);
        if (!spans) return ESP_EMEM;
        p->spans = spans;
        p->room = room;
    }
    p->spans[p->count++] = (esp_span){from, to};
    return ESP_OK;
}

/* ---- the vocabulary ---- */

int esp_tokenizer_reserve(esp_tokenizer *t, int64_t pieces, int64_t text)
{
    if (pieces > t->room) {
        piece *more = esp_realloc(t->pieces, pieces * (int64_t)sizeof *more);
        if (!more) return ESP_EMEM;
        t->pieces = more;
        t->room = pieces;
    }
    if (text > t->text_room) {
        char *more = esp_realloc(t->text, text);
        if (!more) return ESP_EMEM;
        t->text = more;
        t->text_room = text;
    }
    return ESP_OK;
}

int esp_tokenizer_add(esp_tokenizer *t, const char *text, int64_t bytes, double score, int type)
{
    if (t->count == ESP_MOST_PIECES) return esp_fail(ESP_EFORMAT, "tokenizer: more than %d pieces, which no tokenizer of use has", ESP_MOST_PIECES);
    if (t->count == t->room) TRY(esp_tokenizer_reserve(t, t->room + t->room / 2 + 256, 0));
    if (t->text_used + bytes + 1 > t->text_room) TRY(esp_tokenizer_reserve(t, 0, t->text_room + t->text_room / 2 + bytes + 4096));
    if (t->text_used + bytes > UINT32_MAX) return esp_fail(ESP_EFORMAT, "tokenizer: more than 4 GiB of pieces");
    memcpy(t->text + t->text_used, text, (size_t)bytes);
    t->text[t->text_used + bytes] = 0;
    t->pieces[t->count++] = (piece){score, (uint32_t)t->text_used, (uint32_t)bytes, -1, (uint8_t)type, 1};
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

int esp_merge_index(esp_tokenizer *t)
{
    for (t->pair_room = 16; t->pair_room < 2 * t->merge_count; t->pair_room *= 2) {}
    if (!(t->pairs = esp_malloc(t->pair_room * 4))) return ESP_EMEM;
    memset(t->pairs, 0xff, (size_t)t->pair_room * 4);
    for (int64_t i = 0; i < t->merge_count; i++) *esp_pair_slot(t, t->merges[i].left, t->merges[i].right) = (int32_t)i;
    return ESP_OK;
}

void esp_tokenizer_find_bytes(esp_tokenizer *t)
{
    static const char digits[] = "0123456789ABCDEF";
    for (int b = 0; b < 256; b++) {
        char name[] = {'<', '0', 'x', digits[b >> 4], digits[b & 15], '>'};
        t->byte_id[b] = esp_tokenizer_find(t, name, 6);
        if (t->byte_id[b] >= 0) t->pieces[t->byte_id[b]].type = ESP_PIECE_BYTE;
    }
}

void esp_tokenizer_find_letters(esp_tokenizer *t)
{
    for (int b = 0; b < 256; b++) {
        char letter[2];
        t->letter_id[b] = esp_tokenizer_find(t, letter, esp_byte_letter(letter, (unsigned char)b));
    }
}

/* ---- what models derive ---- */

static int is_text(const piece *p) { return p->type == ESP_PIECE_NORMAL || p->type == ESP_PIECE_USER || p->type == ESP_PIECE_UNUSED; }

/* Has the piece a space sign behind another character? */
static int crosses_blocks(const esp_tokenizer *t, int32_t id)
{
    const char *text = piece_text(t, id);
    int64_t bytes = t->pieces[id].bytes;
    for (int64_t i = 0, begun = 0; i < bytes; begun = 1) {
        int block = bytes - i >= BLOCK && memcmp(text + i, esp_block, BLOCK) == 0;
        if (block && begun && (i < BLOCK || memcmp(text + i - BLOCK, esp_block, BLOCK) != 0)) return 1;
        i += block ? BLOCK : esp_utf8_length(text + i);
    }
    return 0;
}

/* Where no piece has a space sign behind another character, no piece of a text does either, and the text may be cut before each run of
 * them: short words instead of one long one, with the same ids. */
static int blocks_cut(const esp_tokenizer *t)
{
    int32_t block = esp_tokenizer_find(t, esp_block, BLOCK);
    if (block < 0 || !is_text(&t->pieces[block]) || t->byte_level) return 0;
    for (int64_t i = 0; t->model == MODEL_RULES && i < t->merge_count; i++) if (crosses_blocks(t, t->merges[i].whole)) return 0;
    for (int64_t i = 0; t->model != MODEL_RULES && i < t->count; i++) if (is_text(&t->pieces[i]) && crosses_blocks(t, (int32_t)i)) return 0;
    return 1;
}

/* The set of pieces for which `wanted` holds. */
static int make_set(esp_prefixes *p, const esp_tokenizer *t, int (*wanted)(const esp_tokenizer *t, const piece *e))
{
    if (!(p->strings = esp_malloc((t->count + 1) * (int64_t)sizeof *p->strings))) return ESP_EMEM;
    for (int32_t i = 0; i < t->count; i++) if (wanted(t, &t->pieces[i])) p->strings[p->count++] = (esp_string){piece_text(t, i), (int32_t)t->pieces[i].bytes, i};
    return esp_prefixes_build(p);
}

static int by_user(const esp_tokenizer *t, const piece *e) { return t->sentencepiece && e->type == ESP_PIECE_USER; }
/* tokenizer.json finds every piece of the model in a text, special ones too. */
static int in_lattice(const esp_tokenizer *t, const piece *e)
{
    return t->json ? e->in_model : e->type == ESP_PIECE_NORMAL || e->type == ESP_PIECE_USER;
}

int esp_model_prepare(esp_tokenizer *t)
{
    /* Sums in f32 depend on where they begin. */
    t->cut_blocks = t->model != MODEL_RANKS && !t->single && !t->ignore_merges && blocks_cut(t);
    TRY(make_set(&t->user, t, by_user));
    if (t->model != MODEL_UNIGRAM) return ESP_OK;
    double least = INFINITY;
    t->best_score = -INFINITY;
    for (int64_t i = 0; i < t->count; i++) {
        const piece *e = &t->pieces[i];
        if (!(t->json ? e->in_model : e->type == ESP_PIECE_NORMAL)) continue;
        if (e->score < least) least = e->score;
        if (e->score > t->best_score) t->best_score = e->score;
    }
    t->unk_score = t->single ? (float)least - 10.0f : least - 10;
    return make_set(&t->lattice, t, in_lattice);
}
