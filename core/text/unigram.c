/* The unigram model (Kudo, 2018): of all ways to cut a word into pieces the likeliest, by Viterbi over the ends of characters. */
#include <string.h>

#include "tokenizer.h"

/* sentencepiece keeps sums in f32 and tokenizers in f64; which of two equal ways wins depends on it. */
static void reach(const esp_tokenizer *t, best_path *p, double score, int64_t from, int32_t id)
{
    if (p->from < 0 || score > p->score) *p = (best_path){t->single ? (float)score : score, (int32_t)from, id};
}

static int walk(esp_worker *w, const char *text, int64_t bytes)
{
    const esp_tokenizer *t = w->t;
    best_path *paths = w->paths;
    for (int64_t i = 0; i <= bytes; i++) paths[i].from = -1;
    paths[0] = (best_path){0, 0, -1};
    for (int64_t at = 0, n; at < bytes; at += n) {
        n = esp_utf8_length(text + at);
        int alone = 0, characters = 0;
        esp_walk k;
        esp_prefixes_begin(&t->lattice, &k);
        while (at + k.depth < bytes && esp_prefixes_step(&t->lattice, &k, text[at + k.depth])) {
            characters += ((unsigned char)text[at + k.depth - 1] & 0xc0) != 0x80;
            if (k.id < 0) continue;
            const piece *p = &t->pieces[k.id];
            /* A piece of the user's is better than any other way through the same characters (sentencepiece gives it this score). */
            double score = t->single && p->type == ESP_PIECE_USER ? (double)((float)characters * (float)t->best_score) - 0.1 : p->score;
            reach(t, &paths[at + k.depth], score + paths[at].score, at, k.id);
            alone |= k.depth == n;
        }
        if (alone) continue;
        if (t->unk < 0) return esp_fail(ESP_EARG, "tokenizer: the text holds a character that is not in the vocabulary, which has no unknown piece");
        double unknown = t->unk_score + paths[at].score;
        reach(t, &paths[at + n], t->single ? (float)unknown : unknown, at, t->unk);
    }
    return ESP_OK;
}

/* Characters that are in no piece: tokenizers looks the run of them up once more; else their bytes, or one unknown piece. */
static int put_unknown(esp_worker *w, const char *text, int64_t bytes)
{
    const esp_tokenizer *t = w->t;
    int32_t id = t->single ? -1 : esp_tokenizer_find(t, text, bytes);
    if (id >= 0 && t->pieces[id].in_model) return esp_ids_push(&w->out, id);
    int done;
    TRY(esp_put_bytes(w, text, bytes, &done));
    return done ? ESP_OK : esp_ids_push(&w->out, t->unk);
}

int esp_unigram_word(esp_worker *w, const char *text, int64_t bytes)
{
    const esp_tokenizer *t = w->t;
    TRY(esp_worker_grow((void **)&w->paths, &w->path_room, bytes + 1, sizeof *w->paths));
    TRY(walk(w, text, bytes));
    w->then.count = 0;
    for (int64_t end = bytes; end > 0; end = w->paths[end].from) TRY(esp_pieces_push(&w->then, w->paths[end].from, end));
    for (int64_t i = w->then.count - 1; i >= 0; i--) {
        esp_span p = w->then.spans[i];
        int32_t id = w->paths[p.to].id;
        for (; id == t->unk && i > 0 && w->paths[w->then.spans[i - 1].to].id == t->unk; i--) p.to = w->then.spans[i - 1].to;
        TRY(id == t->unk ? put_unknown(w, text + p.from, p.to - p.from) : esp_ids_push(&w->out, id));
    }
    return ESP_OK;
}
