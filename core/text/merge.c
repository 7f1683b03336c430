/* Byte-pair merging of one word: the best pair of neighbours becomes one symbol, again and again. A heap holds the candidates, so a word of n
 * characters costs n log n.
 *
 * Best is the lowest rank (merge lists) or the highest score of the merged piece (sentencepiece); ties go to the left. */
#include <string.h>

#include "tokenizer.h"

typedef struct symbol {
    int64_t at, bytes;                     /* bytes 0: merged into its left neighbour */
    int64_t before, after;
    int32_t id;                            /* -1: no piece */
} symbol;

typedef struct candidate {
    double cost;
    int64_t left, right, bytes;            /* bytes of both when it was made: tells stale ones */
    int32_t whole;
} candidate;

typedef struct merger {
    const esp_tokenizer *t;
    const char *text;
    symbol *symbols;
    candidate *heap;
    int64_t count;
} merger;

static int less(const candidate *a, const candidate *b)
{
    return a->cost < b->cost || (a->cost == b->cost && a->left < b->left);
}

static void push(merger *m, candidate c)
{
    int64_t i = m->count++;
    while (i > 0 && less(&c, &m->heap[(i - 1) / 2])) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
}

static candidate pop(merger *m)
{
    candidate top = m->heap[0], last = m->heap[--m->count];
    int64_t i = 0;
    for (;;) {
        int64_t c = 2 * i + 1;
        if (c >= m->count) break;
        if (c + 1 < m->count && less(&m->heap[c + 1], &m->heap[c])) c++;
        if (!less(&m->heap[c], &last)) break;
        m->heap[i] = m->heap[c];
        i = c;
    }
    m->heap[i] = last;
    return top;
}

static int32_t *pair_slot(const esp_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    for (uint64_t i = h >> 32;; i++) {
        int32_t *slot = &t->pairs[i & (uint64_t)(t->pair_room - 1)];
        if (*slot < 0 || (t->merges[*slot].left == left && t->merges[*slot].right == right)) return slot;
    }
}

int esp_merge_index(esp_tokenizer *t)
{
    for (t->pair_room = 16; t->pair_room < 2 * t->merge_count; t->pair_room *= 2) {}
    if (!(t->pairs = esp_malloc(t->pair_room * 4))) return ESP_EMEM;
    memset(t->pairs, 0xff, (size_t)t->pair_room * 4);
    for (int64_t i = 0; i < t->merge_count; i++) *pair_slot(t, t->merges[i].left, t->merges[i].right) = (int32_t)i;
    return ESP_OK;
}

/* Puts the pair on the heap if it can merge. */
static void offer(merger *m, int64_t left, int64_t right)
{
    if (left < 0 || right < 0) return;
    const symbol *l = &m->symbols[left], *r = &m->symbols[right];
    candidate c = {.left = left, .right = right, .bytes = l->bytes + r->bytes};
    if (m->t->merges) {
        int32_t rank = l->id >= 0 && r->id >= 0 ? *pair_slot(m->t, l->id, r->id) : -1;
        if (rank < 0) return;
        c.cost = rank;
        c.whole = m->t->merges[rank].whole;
    } else {
        c.whole = esp_tokenizer_find(m->t, m->text + l->at, c.bytes);
        if (c.whole < 0 || m->t->pieces[c.whole].type != ESP_PIECE_NORMAL) return;
        c.cost = -(double)m->t->pieces[c.whole].score;
    }
    push(m, c);
}

/* Cuts the word into characters (user-defined pieces stay whole); returns how many. */
static int64_t cut(merger *m, int64_t bytes)
{
    int64_t n = 0;
    for (int64_t at = 0; at < bytes; n++) {
        int64_t length = esp_utf8_length(m->text + at, bytes - at);
        m->symbols[n] = (symbol){.at = at, .bytes = length, .before = n - 1, .after = n + 1};
        m->symbols[n].id = esp_tokenizer_find(m->t, m->text + at, length);
        at += length;
    }
    if (n) m->symbols[n - 1].after = -1;
    return n;
}

/* A symbol that is no piece: its bytes, where the vocabulary has them, else the unknown piece. */
static int put(esp_ids *out, const merger *m, const symbol *s)
{
    const esp_tokenizer *t = m->t;
    if (s->id >= 0 && t->pieces[s->id].type != ESP_PIECE_UNUSED) return esp_ids_push(out, s->id);
    for (int64_t i = 0; i < s->bytes; i++) {
        int32_t id = t->byte_id[(unsigned char)m->text[s->at + i]];
        if (id < 0) {
            if (t->unk < 0) return esp_fail(ESP_EARG, "tokenizer: the text holds a character that is not in the vocabulary, which has no unknown piece");
            /* A run of unknown characters is one unknown piece. */
            return out->count && out->id[out->count - 1] == t->unk ? ESP_OK : esp_ids_push(out, t->unk);
        }
        TRY(esp_ids_push(out, id));
    }
    return ESP_OK;
}

int esp_merge_word(esp_ids *out, const esp_tokenizer *t, const char *text, int64_t bytes)
{
    if (bytes == 0) return ESP_OK;
    if (t->ignore_merges) {
        int32_t whole = esp_tokenizer_find(t, text, bytes);
        if (whole >= 0) return esp_ids_push(out, whole);
    }
    merger m = {.t = t, .text = text, .symbols = esp_malloc(bytes * (int64_t)sizeof(symbol))};
    /* Each merge offers two pairs and there are fewer merges than characters. */
    m.heap = esp_malloc(3 * bytes * (int64_t)sizeof(candidate));
    int code = m.symbols && m.heap ? ESP_OK : ESP_EMEM;
    if (code == ESP_OK) {
        int64_t n = cut(&m, bytes);
        for (int64_t i = 0; i + 1 < n; i++) offer(&m, i, i + 1);
        while (m.count > 0) {
            candidate c = pop(&m);
            symbol *l = &m.symbols[c.left], *r = &m.symbols[c.right];
            if (l->after != c.right || l->bytes == 0 || r->bytes == 0 || l->bytes + r->bytes != c.bytes) continue;
            l->bytes += r->bytes;
            l->id = c.whole;
            l->after = r->after;
            if (r->after >= 0) m.symbols[r->after].before = c.left;
            r->bytes = 0;
            offer(&m, l->before, c.left);
            offer(&m, c.left, l->after);
        }
        for (int64_t i = 0; code == ESP_OK && i >= 0; i = m.symbols[i].after) code = put(out, &m, &m.symbols[i]);
    }
    esp_free(m.symbols);
    esp_free(m.heap);
    return code;
}
