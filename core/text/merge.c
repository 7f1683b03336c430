/* Byte-pair merging of one word: the best pair of neighbours becomes one symbol, again and again.
 *
 * Best is the lowest rank of a merge rule, the highest score of the joined piece (sentencepiece) or its lowest id (tiktoken); ties go to the left. Short words
 * scan for the best pair; long ones hold candidates in a heap, so n characters cost n log n. */
#include <string.h>

#include "tokenizer.h"

enum { SHORT = 24 };

static int32_t rank_of(const esp_tokenizer *t, int32_t left, int32_t right)
{
    int32_t rank = *esp_pair_slot(t, left, right);
    return rank < 0 ? INT32_MAX : rank;
}

/* Merges n <= SHORT ids in place by the rules; returns how many are left. */
static int64_t merge_short(const esp_tokenizer *t, int32_t *id, int64_t n)
{
    int32_t rank[SHORT];
    for (int64_t i = 0; i + 1 < n; i++) rank[i] = rank_of(t, id[i], id[i + 1]);
    while (n > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++) if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        id[best] = t->merges[rank[best]].whole;
        n--;
        for (int64_t i = best + 1; i < n; i++) id[i] = id[i + 1], rank[i - 1] = rank[i];
        if (best > 0) rank[best - 1] = rank_of(t, id[best - 1], id[best]);
        if (best + 1 < n) rank[best] = rank_of(t, id[best], id[best + 1]);
    }
    return n;
}

/* ---- the heap: four children to a node, whose keys lie in one cache line; best first, then left first ---- */

static int push(esp_worker *w, candidate c)
{
    if (w->heap_count == w->heap_room) {
        int64_t room = 2 * w->heap_room + 64;
        candidate *more = esp_realloc(w->heap, room * (int64_t)sizeof *more);
        if (!more) return ESP_EMEM;
        w->heap = more;
        w->heap_room = room;
    }
    int64_t i = w->heap_count++;
    while (i > 0 && c.key < w->heap[(i - 1) / 4].key) {
        w->heap[i] = w->heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    w->heap[i] = c;
    return ESP_OK;
}

static candidate pop(esp_worker *w)
{
    candidate top = w->heap[0], last = w->heap[--w->heap_count];
    int64_t i = 0, n = w->heap_count;
    for (int64_t c = 1; c < n; c = 4 * i + 1) {
        int64_t best = c;
        for (int64_t k = c + 1; k < c + 4 && k < n; k++) if (w->heap[k].key < w->heap[best].key) best = k;
        if (w->heap[best].key >= last.key) break;
        w->heap[i] = w->heap[best];
        i = best;
    }
    w->heap[i] = last;
    return top;
}

/* A score as a number that is the smaller the higher the score: the bits of a float, turned so that they order as whole numbers do. */
static uint32_t cost_of(double score)
{
    float f = (float)-score + 0.0f;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

static uint32_t left_of(candidate c) { return (uint32_t)c.key; }

static candidate candidate_of(uint32_t cost, int32_t left, int32_t bytes, int32_t whole)
{
    return (candidate){(uint64_t)cost << 32 | (uint32_t)left, bytes, whole};
}

/* Puts the symbol and its right neighbour on the heap if they can merge. */
static int offer(esp_worker *w, const char *text, int32_t left)
{
    const esp_tokenizer *t = w->t;
    if (left < 0 || w->symbols[left].after < 0) return ESP_OK;
    const symbol *l = &w->symbols[left], *r = &w->symbols[l->after];
    int32_t bytes = l->bytes + r->bytes;
    if (t->model == MODEL_RULES) {
        int32_t rank = *esp_pair_slot(t, l->id, r->id);
        return rank < 0 ? ESP_OK : push(w, candidate_of((uint32_t)rank, left, bytes, t->merges[rank].whole));
    }
    if (l->frozen || r->frozen) return ESP_OK;
    int32_t whole = esp_tokenizer_find(t, text + l->at, bytes);
    if (whole < 0) return ESP_OK;
    int type = t->pieces[whole].type;
    if (type != ESP_PIECE_NORMAL && type != ESP_PIECE_USER && type != ESP_PIECE_UNUSED) return ESP_OK;
    if (type == ESP_PIECE_UNUSED) w->unused_left[whole] = l->bytes;
    return push(w, candidate_of(t->model == MODEL_RANKS ? (uint32_t)whole : cost_of(t->pieces[whole].score), left, bytes, whole));
}

static int merge_long(esp_worker *w, const char *text, int64_t n)
{
    w->heap_count = 0;
    for (int64_t i = 0; i < n; i++) {
        w->symbols[i].before = (int32_t)i - 1;
        w->symbols[i].after = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (int64_t i = 0; i + 1 < n; i++) TRY(offer(w, text, (int32_t)i));
    while (w->heap_count > 0) {
        candidate c = pop(w);
        symbol *l = &w->symbols[left_of(c)];
        if (l->bytes == 0 || l->after < 0 || l->bytes + w->symbols[l->after].bytes != c.bytes) continue;
        symbol *r = &w->symbols[l->after];
        l->bytes += r->bytes;
        l->id = c.whole;
        l->after = r->after;
        if (r->after >= 0) w->symbols[r->after].before = (int32_t)left_of(c);
        r->bytes = 0;
        TRY(offer(w, text, l->before));
        TRY(offer(w, text, (int32_t)left_of(c)));
    }
    return ESP_OK;
}

int esp_put_bytes(esp_worker *w, const char *text, int64_t bytes, int *done)
{
    const esp_tokenizer *t = w->t;
    *done = 1;
    for (int64_t i = 0; i < bytes; i++) *done = *done && t->byte_id[(unsigned char)text[i]] >= 0;
    for (int64_t i = 0; *done && i < bytes; i++) TRY(esp_ids_push(&w->out, t->byte_id[(unsigned char)text[i]]));
    return ESP_OK;
}

/* ---- by rules ---- */

/* A character that is no piece: its bytes, where all of them are pieces, else one unknown piece for a run of them. Where there is no unknown piece
 * either, it is left out, as tokenizers does. An unknown piece is written when the run ends, behind the bytes of characters inside it. */
static int put_unknown(esp_worker *w, const char *text, int n, int *waits)
{
    const esp_tokenizer *t = w->t;
    int done = 0;
    if (!t->raw) TRY(esp_put_bytes(w, text, n, &done));
    if (done || t->unk < 0) return ESP_OK;
    if (*waits && !t->fuse_unk) TRY(esp_ids_push(&w->out, t->unk));
    *waits = 1;
    return ESP_OK;
}

/* Ids of the characters (raw: of the bytes) of the word. */
static int put_characters(esp_worker *w, const char *text, int64_t bytes)
{
    const esp_tokenizer *t = w->t;
    int waits = 0;
    for (int64_t at = 0; at < bytes;) {
        int n = t->raw ? 1 : esp_utf8_length(text + at);
        int32_t id = t->raw ? t->letter_id[(unsigned char)text[at]] : esp_tokenizer_find(t, text + at, n);
        if (id >= 0) {
            if (waits) TRY(esp_ids_push(&w->out, t->unk));
            waits = 0;
            TRY(esp_ids_push(&w->out, id));
        } else {
            TRY(put_unknown(w, text + at, n, &waits));
        }
        at += n;
    }
    return waits ? esp_ids_push(&w->out, t->unk) : ESP_OK;
}

static int merge_by_rules(esp_worker *w, const char *text, int64_t bytes)
{
    int64_t from = w->out.count;
    TRY(put_characters(w, text, bytes));
    int64_t n = w->out.count - from;
    int32_t *id = w->out.id + from;
    if (n <= SHORT) {
        w->out.count = from + merge_short(w->t, id, n);
        return ESP_OK;
    }
    TRY(esp_worker_grow((void **)&w->symbols, &w->symbol_room, n, sizeof *w->symbols));
    for (int64_t i = 0; i < n; i++) w->symbols[i] = (symbol){.bytes = 1, .id = id[i]};
    TRY(merge_long(w, text, n));
    w->out.count = from;
    for (int32_t i = 0; i >= 0; i = w->symbols[i].after) w->out.id[w->out.count++] = w->symbols[i].id;
    return ESP_OK;
}

/* ---- by the joined piece ---- */

/* A symbol that is no piece: its bytes, where the vocabulary has them, else one unknown piece for a run of them. */
static int put_symbol(esp_worker *w, const char *text, int64_t bytes, int32_t id, int *unknown)
{
    const esp_tokenizer *t = w->t;
    int was = *unknown;
    *unknown = 0;
    if (id >= 0 && t->pieces[id].type != ESP_PIECE_UNKNOWN && t->pieces[id].type != ESP_PIECE_UNUSED) return esp_ids_push(&w->out, id);
    int done;
    TRY(esp_put_bytes(w, text, bytes, &done));
    if (done) return ESP_OK;
    if (t->unk < 0) return esp_fail(ESP_EARG, "tokenizer: the text holds a character that is not in the vocabulary, which has no unknown piece");
    *unknown = 1;
    return was ? ESP_OK : esp_ids_push(&w->out, t->unk);
}

/* A piece that is not used falls apart into the two that joined last to make it. */
static int put_parts(esp_worker *w, const char *text, const symbol *s, int *unknown)
{
    const esp_tokenizer *t = w->t;
    w->then.count = 0;
    TRY(esp_pieces_push(&w->then, s->at, s->at + s->bytes));
    while (w->then.count) {
        esp_span p = w->then.spans[--w->then.count];
        int32_t id = esp_tokenizer_find(t, text + p.from, p.to - p.from);
        int64_t left = id >= 0 && t->pieces[id].type == ESP_PIECE_UNUSED && p.to - p.from > esp_utf8_length(text + p.from) ? w->unused_left[id] : 0;
        if (left) {
            TRY(esp_pieces_push(&w->then, p.from + left, p.to));
            TRY(esp_pieces_push(&w->then, p.from, p.from + left));
        } else {
            TRY(put_symbol(w, text + p.from, p.to - p.from, id, unknown));
        }
    }
    return ESP_OK;
}

static int merge_by_pieces(esp_worker *w, const char *text, int64_t bytes)
{
    const esp_tokenizer *t = w->t;
    int32_t n = 0, user;
    TRY(esp_worker_grow((void **)&w->symbols, &w->symbol_room, bytes, sizeof *w->symbols));
    for (int64_t at = 0; at < bytes; n++) {
        int64_t frozen = t->user.count ? esp_prefixes_longest(&t->user, text + at, bytes - at, &user) : 0;
        int64_t length = frozen ? frozen : t->model == MODEL_RANKS ? 1 : esp_utf8_length(text + at);
        w->symbols[n] = (symbol){.at = (int32_t)at, .bytes = (int32_t)length, .frozen = frozen > 0};
        w->symbols[n].id = esp_tokenizer_find(t, text + at, length);
        at += length;
    }
    TRY(merge_long(w, text, n));
    int unknown = 0;
    for (int32_t i = 0; i >= 0; i = w->symbols[i].after) {
        const symbol *s = &w->symbols[i];
        TRY(s->id >= 0 && t->pieces[s->id].type == ESP_PIECE_UNUSED ? put_parts(w, text, s, &unknown) : put_symbol(w, text + s->at, s->bytes, s->id, &unknown));
    }
    return ESP_OK;
}

static int32_t whole_word(esp_worker *w, const char *text, int64_t bytes)
{
    if (!w->t->raw) return esp_tokenizer_find(w->t, text, bytes);
    w->scratch.bytes = 0;
    if (esp_map_letters(NULL, w, &w->scratch, text, bytes, 0) != ESP_OK) return -1;
    return esp_tokenizer_find(w->t, w->scratch.at, w->scratch.bytes);
}

int esp_merge_word(esp_worker *w, const char *text, int64_t bytes)
{
    const esp_tokenizer *t = w->t;
    int32_t whole = t->ignore_merges ? whole_word(w, text, bytes) : -1;
    if (whole >= 0 && t->pieces[whole].in_model) return esp_ids_push(&w->out, whole);
    return t->model == MODEL_RULES ? merge_by_rules(w, text, bytes) : merge_by_pieces(w, text, bytes);
}
