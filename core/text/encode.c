/* Text to ids. */
#include <string.h>
#include <xxhash.h>

#include "tokenizer.h"

static int model_word(esp_worker *w, const char *text, int64_t bytes)
{
    if (bytes > 64) return w->t->model == MODEL_UNIGRAM ? esp_unigram_word(w, text, bytes) : esp_merge_word(w, text, bytes);
    uint64_t hash = XXH3_64bits(text, (size_t)bytes);
    int64_t n;
    const int32_t *known = esp_cache_find(w, text, bytes, hash, &n);
    if (known) return esp_ids_append(&w->out, known, n);
    int64_t from = w->out.count;
    TRY(w->t->model == MODEL_UNIGRAM ? esp_unigram_word(w, text, bytes) : esp_merge_word(w, text, bytes));
    esp_cache_keep(w, text, bytes, hash, w->out.id + from, w->out.count - from);
    return ESP_OK;
}

/* A piece of the pre-tokenizer's: one word, or where space signs may part words, as many as begin with one. */
static int model_piece(esp_worker *w, const char *text, int64_t bytes)
{
    if (!w->t->cut_blocks) return model_word(w, text, bytes);
    for (int64_t from = 0, to; from < bytes; from = to) {
        to = from;
        while (bytes - to >= BLOCK && memcmp(text + to, esp_block, BLOCK) == 0) to += BLOCK;
        do {
            const char *next = memchr(text + to, esp_block[0], (size_t)(bytes - to));
            to = next ? next - text : bytes;
        } while (to < bytes && (bytes - to < BLOCK || memcmp(text + to, esp_block, BLOCK) != 0) && ++to);
        TRY(model_word(w, text + from, to - from));
    }
    return ESP_OK;
}

static int one_piece(esp_worker *w, const char *text, int64_t bytes, int first)
{
    esp_worker_bound(w, bytes);
    w->now.count = 0;
    w->now.text = text;
    w->now.first = first;
    return esp_pieces_push(&w->now, 0, bytes);
}

/* Normalized text between added tokens. */
static int encode_normal(esp_worker *w, const char *text, int64_t bytes, int first)
{
    if (w->t->pre_tokenizer.count == 0) return model_piece(w, text, bytes);
    TRY(one_piece(w, text, bytes, first));
    TRY(esp_steps_run(&w->t->pre_tokenizer, w));
    const char *base = w->now.text;
    for (int64_t i = 0; i < w->now.count; i++) {
        esp_span p = w->now.spans[i];
        if (p.from < p.to) TRY(model_piece(w, base + p.from, p.to - p.from));
    }
    return ESP_OK;
}

/* Text between added tokens. */
static int encode_raw(esp_worker *w, const char *text, int64_t bytes, int first)
{
    const esp_tokenizer *t = w->t;
    if (t->sentencepiece) {
        w->normal.bytes = 0;
        TRY(esp_sentencepiece_normalize(t, &w->normal, text, bytes));
        text = w->normal.at, bytes = w->normal.bytes;
    } else if (t->normalizer.count) {
        TRY(one_piece(w, text, bytes, first));
        TRY(esp_steps_run(&t->normalizer, w));
        /* The text moves to where the steps that follow do not write. */
        bytes = w->now.spans[0].to;
        esp_text swap = w->normal;
        w->normal = w->now.own, w->now.own = swap;
        text = w->normal.at;
    }
    return bytes ? esp_added_scan(w, &t->normal_added, text, bytes, first, encode_normal) : ESP_OK;
}

/* Leaves the ids in w->out. */
static int encode(esp_worker *w, const char *text, int64_t bytes, int special)
{
    if (bytes > INT32_MAX - 1) return esp_fail(ESP_EARG, "tokenizer: a text of %lld bytes; at most 2 GiB can be encoded at once", (long long)bytes);
    int64_t broken = esp_utf8_invalid(text, bytes);
    if (broken >= 0) return esp_fail(ESP_EARG, "tokenizer: byte %lld of the text is no UTF-8", (long long)broken);
    w->special = special;
    return bytes ? esp_added_scan(w, &w->t->raw_added, text, bytes, 1, encode_raw) : ESP_OK;
}

int esp_tokenizer_encode(int32_t **ids, int64_t *count, const esp_tokenizer *t, const char *text, int64_t bytes, int special)
{
    esp_worker *w;
    TRY(esp_worker_take(&w, t));
    int code = encode(w, text, bytes, special);
    int32_t *all = code == ESP_OK ? esp_malloc(w->out.count * 4) : NULL;
    if (code == ESP_OK && !all) code = ESP_EMEM;
    if (code == ESP_OK) {
        if (w->out.count) memcpy(all, w->out.id, (size_t)w->out.count * 4);
        *ids = all;
        *count = w->out.count;
    }
    esp_worker_give(w);
    return code;
}

int esp_tokenizer_encode_into(int32_t *ids, int64_t room, int64_t *count, const esp_tokenizer *t, const char *text, int64_t bytes, int special)
{
    esp_worker *w;
    *count = 0;
    TRY(esp_worker_take(&w, t));
    int code = encode(w, text, bytes, special);
    if (code == ESP_OK) {
        *count = w->out.count;
        if (*count > room) code = esp_fail(ESP_ESHAPE, "tokenizer: the text has %lld ids, there is room for %lld", (long long)*count, (long long)room);
        else if (*count) memcpy(ids, w->out.id, (size_t)*count * 4);
    }
    esp_worker_give(w);
    return code;
}
