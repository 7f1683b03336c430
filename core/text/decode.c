/* Ids to text. Bytes come out as the pieces hold them: ids that were cut inside a character give half of it. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* ---- steps of tokenizer.json's decoders ---- */

/* Letters of bytes become bytes; a piece with another character in it stays as it is. */
int esp_map_unletter(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    TRY(esp_text_room(out, bytes));
    int64_t used = out->bytes;
    for (int64_t at = 0; at < bytes;) {
        unsigned char byte;
        int n = esp_letter_byte(text + at, &byte);
        if (n == 0) {
            out->bytes = used;
            return esp_text_add(out, text, bytes);
        }
        out->at[out->bytes++] = (char)byte;
        at += n;
    }
    return ESP_OK;
}

/* A piece <0xNN> becomes its byte. */
int esp_map_unbyte(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    int b = esp_piece_byte(text, bytes);
    char byte = (char)b;
    return b >= 0 ? esp_text_add(out, &byte, 1) : esp_text_add(out, text, bytes);
}

/* Space signs (content) become spaces; of the first piece they go away where the tokenizer puts one in front (option). */
int esp_map_unmetaspace(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    for (int64_t at = 0; at < bytes;) {
        if (bytes - at >= s->content_bytes && memcmp(text + at, s->content, (size_t)s->content_bytes) == 0) {
            if (!(s->option && i == 0 && w->now.first)) TRY(esp_text_add(out, " ", 1));
            at += s->content_bytes;
        } else {
            TRY(esp_text_add(out, text + at++, 1));
        }
    }
    return ESP_OK;
}

/* Up to left and right times `content` off the ends. */
int esp_map_trim(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)i;
    int64_t from = 0, to = bytes, n = s->content_bytes;
    for (int k = 0; w->now.first && k < s->left && to - from >= n && memcmp(text + from, s->content, (size_t)n) == 0; k++) from += n;
    for (int k = 0; k < s->right && to - from >= n && memcmp(text + to - n, s->content, (size_t)n) == 0; k++) to -= n;
    return esp_text_add(out, text + from, to - from);
}

/* Appends the piece of an id as it would stand in a normalized text, so that the decoder undoes what the normalizer does. */
static int add_piece(esp_text *to, const esp_tokenizer *t, int32_t id)
{
    const piece *p = &t->pieces[id];
    const added_token *a = p->added >= 0 ? &t->added[p->added] : NULL;
    return a && a->normalized ? esp_text_add(to, t->normal_text.at + a->normal_at, a->normal_bytes) : esp_text_add(to, t->text + p->at, p->bytes);
}

static int decode_steps(esp_worker *w, esp_text *out, const int32_t *ids, int64_t count, int special, int first)
{
    const esp_tokenizer *t = w->t;
    esp_pieces *now = &w->now;
    now->count = now->own.bytes = now->own.most = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!special && t->pieces[ids[i]].type == ESP_PIECE_CONTROL) continue;
        int64_t from = now->own.bytes;
        TRY(add_piece(&now->own, t, ids[i]));
        TRY(esp_pieces_push(now, from, now->own.bytes));
    }
    now->text = now->own.at;
    now->first = first;
    esp_worker_bound(w, now->own.bytes);
    TRY(esp_steps_run(&t->decoder, w));
    for (int64_t i = 0; i < w->now.count; i++) {
        /* Without a decoder pieces are words. */
        if (i && !t->has_decoder) TRY(esp_text_add(out, " ", 1));
        TRY(esp_text_add(out, w->now.text + w->now.spans[i].from, w->now.spans[i].to - w->now.spans[i].from));
    }
    return ESP_OK;
}

/* ---- pieces of sentencepiece, llama2.c and tiktoken ---- */

/* Appends the text of one piece. */
static int spell(esp_text *out, const esp_tokenizer *t, int32_t id)
{
    const piece *p = &t->pieces[id];
    const char *text = piece_text(t, id);
    if (p->type == ESP_PIECE_BYTE) {
        char hex[3] = {text[3], text[4], 0}, byte = (char)strtol(hex, NULL, 16);
        return esp_text_add(out, &byte, 1);
    }
    if (p->type == ESP_PIECE_UNKNOWN && t->unk_text) return esp_text_add(out, t->unk_text, (int64_t)strlen(t->unk_text));
    for (int64_t i = 0; i < p->bytes;) {
        int space = t->escape_spaces && p->bytes - i >= BLOCK && memcmp(text + i, esp_block, BLOCK) == 0;
        TRY(esp_text_add(out, space ? " " : text + i, 1));
        i += space ? BLOCK : 1;
    }
    return ESP_OK;
}

static int decode_pieces(const esp_tokenizer *t, esp_text *out, const int32_t *ids, int64_t count, int special, int first)
{
    for (int64_t i = 0; i < count; i++) {
        const piece *p = &t->pieces[ids[i]];
        if (!special && p->type == ESP_PIECE_CONTROL) continue;
        int64_t from = out->bytes;
        TRY(spell(out, t, ids[i]));
        if (!first || p->type == ESP_PIECE_CONTROL) continue;
        /* The dummy prefix is not part of the text; where spaces are squeezed no text begins with one. */
        int space = out->bytes > from && out->at[from] == ' ' && p->type != ESP_PIECE_BYTE && p->type != ESP_PIECE_UNKNOWN;
        if (space && (t->dummy_prefix || t->squeeze_spaces)) memmove(out->at + from, out->at + from + 1, (size_t)(--out->bytes - from));
        first = out->bytes == 0 && !(space && !t->squeeze_spaces);
    }
    return ESP_OK;
}

int esp_tokenizer_decode(char **text, int64_t *bytes, const esp_tokenizer *t, const int32_t *ids, int64_t count, int special, int first)
{
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= t->count) return esp_fail(ESP_EARG, "tokenizer: id %d, want 0 to %lld", ids[i], (long long)t->count - 1);
    }
    esp_worker *w;
    esp_text out = {0};
    TRY(esp_worker_take(&w, t));
    int code = t->json ? decode_steps(w, &out, ids, count, special, first) : decode_pieces(t, &out, ids, count, special, first);
    esp_worker_give(w);
    if (code == ESP_OK) code = esp_text_add(&out, "", 1);
    if (code != ESP_OK) {
        esp_free(out.at);
        return code;
    }
    *text = out.at;
    *bytes = out.bytes - 1;
    return ESP_OK;
}
