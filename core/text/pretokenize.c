/* Steps over pieces of text: each is rewritten, then cut where a pattern matches. Pre-tokenizers are such steps. */
#include <string.h>

#include "tokenizer.h"

int esp_steps_add(esp_steps *steps, esp_step s)
{
    if (steps->count == steps->room) {
        int64_t room = 2 * steps->room + 4;
        esp_step *more = esp_realloc(steps->step, room * (int64_t)sizeof *more);
        if (!more) {
            esp_pattern_free(s.pattern);
            esp_free(s.content);
            return ESP_EMEM;
        }
        steps->step = more;
        steps->room = room;
    }
    steps->step[steps->count++] = s;
    return ESP_OK;
}

void esp_steps_free(esp_steps *steps)
{
    for (int64_t i = 0; i < steps->count; i++) {
        esp_pattern_free(steps->step[i].pattern);
        esp_free(steps->step[i].content);
    }
    esp_free(steps->step);
}

/* ---- cutting ---- */

/* The pieces of one piece: matches and what lies between them come one after another, the behavior says which join. */
typedef struct cutter {
    esp_pieces *to;
    int64_t base;                          /* of the piece in the text */
    int64_t begins;                        /* spans of `to` before this piece */
    const esp_step *s;
    int was_match;
    esp_span waiting;                      /* CUT_NEXT: a match that waits for what follows; from -1: none */
} cutter;

static int emit(const cutter *c, int64_t from, int64_t to)
{
    return from < to ? esp_pieces_push(c->to, c->base + from, c->base + to) : ESP_OK;
}

static int extend_or_emit(const cutter *c, int64_t from, int64_t to)
{
    if (c->to->count == c->begins) return emit(c, from, to);
    c->to->spans[c->to->count - 1].to = c->base + to;
    return ESP_OK;
}

static int give(cutter *c, int64_t from, int64_t to, int match)
{
    int was = c->was_match, code = ESP_OK;
    match ^= c->s->invert;
    c->was_match = match;
    switch (c->s->behavior) {
    case CUT_REMOVED: return match ? ESP_OK : emit(c, from, to);
    case CUT_PREVIOUS: return match && !was ? extend_or_emit(c, from, to) : emit(c, from, to);
    case CUT_CONTIGUOUS: return match == was ? extend_or_emit(c, from, to) : emit(c, from, to);
    case CUT_NEXT:
        if (c->waiting.from >= 0 && !match) from = c->waiting.from;
        else if (c->waiting.from >= 0) code = emit(c, c->waiting.from, c->waiting.to);
        c->waiting = match ? (esp_span){from, to} : (esp_span){-1, -1};
        return code != ESP_OK || match ? code : emit(c, from, to);
    default: return emit(c, from, to);
    }
}

static int cut_piece(cutter *c, esp_worker *w, const char *text, int64_t bytes)
{
    esp_scan scan = {-1, 0, 0, 0};
    int64_t at = 0;
    for (;;) {
        TRY(esp_pattern_next(&scan, c->s->pattern, w->matcher, text, bytes));
        if (!scan.found) break;
        if (at < scan.begin) TRY(give(c, at, scan.begin, 0));
        TRY(give(c, scan.begin, scan.end, 1));
        at = scan.end;
    }
    if (at < bytes) TRY(give(c, at, bytes, 0));
    return c->waiting.from >= 0 ? emit(c, c->waiting.from, c->waiting.to) : ESP_OK;
}

static int cut_all(const esp_step *s, esp_worker *w)
{
    esp_pieces *now = &w->now, *then = &w->then;
    then->count = 0;
    for (int64_t i = 0; i < now->count; i++) {
        esp_span p = now->spans[i];
        cutter c = {then, p.from, then->count, s, 0, {-1, -1}};
        TRY(cut_piece(&c, w, now->text + p.from, p.to - p.from));
    }
    now->first = now->first && then->count && now->count && then->spans[0].from == now->spans[0].from;
    esp_span *spans = now->spans;
    int64_t room = now->room;
    now->spans = then->spans, now->room = then->room, now->count = then->count;
    then->spans = spans, then->room = room;
    return ESP_OK;
}

/* ---- rewriting ---- */

static int map_all(const esp_step *s, esp_worker *w)
{
    esp_pieces *now = &w->now, *then = &w->then;
    then->count = then->own.bytes = 0;
    then->first = now->first;
    for (int64_t i = 0; i < now->count; i++) {
        int64_t from = then->own.bytes;
        TRY(s->map(s, w, &then->own, now->text + now->spans[i].from, now->spans[i].to - now->spans[i].from, i));
        TRY(esp_pieces_push(then, from, then->own.bytes));
    }
    then->text = then->own.at;
    esp_pieces swap = *now;
    *now = *then;
    *then = swap;
    return ESP_OK;
}

int esp_steps_run(const esp_steps *steps, esp_worker *w)
{
    for (int64_t i = 0; i < steps->count; i++) {
        const esp_step *s = &steps->step[i];
        if (s->map) TRY(map_all(s, w));
        if (s->behavior != CUT_NONE) TRY(cut_all(s, w));
        if (s->fuse && w->now.count) {
            w->now.spans[0].to = w->now.spans[w->now.count - 1].to;
            w->now.count = 1;
        }
    }
    return ESP_OK;
}

/* ---- pre-tokenizers that rewrite ---- */

/* A space in front, unless there is one. */
int esp_map_space(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    if (bytes && *text != ' ') TRY(esp_text_add(out, " ", 1));
    return esp_text_add(out, text, bytes);
}

/* Spaces become `content`; one more goes in front where option says so: 0 never, 1 at the beginning of the text, 2 always. */
int esp_map_metaspace(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    int there = (bytes && *text == ' ') || (bytes >= s->content_bytes && memcmp(text, s->content, (size_t)s->content_bytes) == 0);
    int wanted = s->option == 2 || (s->option == 1 && i == 0 && w->now.first);
    if (wanted && !there) TRY(esp_text_add(out, s->content, s->content_bytes));
    for (int64_t at = 0; at < bytes;) {
        const char *space = memchr(text + at, ' ', (size_t)(bytes - at));
        int64_t end = space ? space - text : bytes;
        TRY(esp_text_add(out, text + at, end - at));
        if (space) TRY(esp_text_add(out, s->content, s->content_bytes));
        at = end + 1;
    }
    return ESP_OK;
}
