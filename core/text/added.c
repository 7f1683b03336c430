/* Added tokens: texts that are one id wherever they stand, found before anything else is done to a text, the longest at the leftmost place. */
#include <string.h>

#include "tokenizer.h"

enum { LONGEST_TOKEN = 4096 };             /* what is searched at each place of a text */

/* Every token is in one of two sets: as it is written, or as the normalizer makes it. */
static int normal_form(esp_tokenizer *t, const char *text, int64_t bytes)
{
    esp_worker *w;
    TRY(esp_worker_take(&w, t));
    esp_worker_bound(w, bytes);
    w->now.count = 0;
    w->now.text = text;
    w->now.first = 1;
    int code = esp_pieces_push(&w->now, 0, bytes);
    if (code == ESP_OK) code = esp_steps_run(&t->normalizer, w);
    if (code == ESP_OK) code = esp_text_add(&t->normal_text, w->now.text + w->now.spans[0].from, w->now.spans[0].to - w->now.spans[0].from);
    esp_worker_give(w);
    return code;
}

int esp_added_prepare(esp_tokenizer *t)
{
    int64_t n = t->added_count;
    esp_string *raw = t->raw_added.strings = esp_malloc((n + 1) * (int64_t)sizeof *raw), *normal = t->normal_added.strings = esp_malloc((n + 1) * (int64_t)sizeof *normal);
    int code = raw && normal ? ESP_OK : ESP_EMEM;
    for (int64_t i = 0; code == ESP_OK && i < n; i++) {
        added_token *a = &t->added[i];
        const piece *p = &t->pieces[a->id];
        a->normal_at = (int32_t)t->normal_text.bytes;
        if (p->bytes > LONGEST_TOKEN) code = esp_fail(ESP_EFORMAT, "tokenizer: an added token of %lld bytes, at most %d can be", (long long)p->bytes, (int)LONGEST_TOKEN);
        else if (a->normalized) code = normal_form(t, t->text + p->at, p->bytes);
        else raw[t->raw_added.count++] = (esp_string){t->text + p->at, (int32_t)p->bytes, (int32_t)i};
        if (t->normal_text.bytes > INT32_MAX) code = esp_fail(ESP_EFORMAT, "tokenizer: more than 2 GiB of added tokens");
        a->normal_bytes = (int32_t)t->normal_text.bytes - a->normal_at;
    }
    for (int64_t i = 0; code == ESP_OK && i < n; i++) {
        const added_token *a = &t->added[i];
        if (a->normalized) normal[t->normal_added.count++] = (esp_string){t->normal_text.at + a->normal_at, a->normal_bytes, (int32_t)i};
    }
    if (code == ESP_OK) code = esp_prefixes_build(&t->raw_added);
    return code == ESP_OK ? esp_prefixes_build(&t->normal_added) : code;
}

/* ---- finding ---- */

static int is_word(const esp_worker *w, const char *text)
{
    esp_scan scan = {-1, 0, 0, 0};
    return esp_pattern_next(&scan, w->t->word_character, w->matcher, text, esp_utf8_length(text)) == ESP_OK && scan.found;
}

static int stands_alone(const esp_worker *w, const char *text, int64_t bytes, int64_t from, int64_t to)
{
    return !(from > 0 && is_word(w, text + from - esp_utf8_before(text, from))) && !(to < bytes && is_word(w, text + to));
}

int esp_added_scan(esp_worker *w, const esp_prefixes *set, const char *text, int64_t bytes, int first, esp_gap_fn *fn)
{
    int64_t done = 0;
    for (int64_t at = 0, n; set->count && at < bytes; at += n) {
        int c = (unsigned char)text[at];
        int32_t which = 0;
        n = set->first[c] < set->first[c + 1] ? esp_prefixes_longest(set, text + at, bytes - at, &which) : 0;
        if (n == 0) {
            n = 1;
            continue;
        }
        const added_token *a = &w->t->added[which];
        if ((a->special && !w->special) || (a->single_word && !stands_alone(w, text, bytes, at, at + n))) continue;
        int64_t from = at, to = at + n;
        while (a->lstrip && from > done && esp_is_space(esp_utf8_point(text + from - esp_utf8_before(text, from)))) from -= esp_utf8_before(text, from);
        while (a->rstrip && to < bytes && esp_is_space(esp_utf8_point(text + to))) to += esp_utf8_length(text + to);
        if (done < from) TRY(fn(w, text + done, from - done, first && done == 0));
        TRY(esp_ids_push(&w->out, a->id));
        done = to;
    }
    return done < bytes ? fn(w, text + done, bytes - done, first && done == 0) : ESP_OK;
}
