/* A JSON text as a flat list of events in document order; an object with one key twice is refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

struct esp_json {
    esp_json_event *events;
    int64_t count, room;
    char *text;                            /* strings and digits, one after another, each ended by a NUL */
    int64_t used, text_room;
    int64_t from[ESP_JSON_DEEPEST];        /* first event inside each open object or list */
    int depth;
};

/* Texts may move while they grow, so events hold offsets until the end. */
static int add(esp_json *j, const esp_json_event *e)
{
    if (j->count == j->room) {
        int64_t room = j->room ? 2 * j->room : 64;
        esp_json_event *more = esp_realloc(j->events, room * (int64_t)sizeof *more);
        if (!more) return ESP_EMEM;
        j->events = more;
        j->room = room;
    }
    if (j->used + e->bytes + 1 > j->text_room) {
        int64_t room = 2 * j->text_room + e->bytes + 256;
        char *more = esp_realloc(j->text, room);
        if (!more) return ESP_EMEM;
        j->text = more;
        j->text_room = room;
    }
    if (e->bytes) memcpy(j->text + j->used, e->text, (size_t)e->bytes);
    j->text[j->used + e->bytes] = 0;
    esp_json_event *own = &j->events[j->count++];
    *own = *e;
    own->text = (const char *)(intptr_t)j->used;
    j->used += e->bytes + 1;
    return ESP_OK;
}

typedef struct named {
    const char *text;
    int64_t bytes;
} named;

static int by_text(const void *a, const void *b)
{
    const named *x = a, *y = b;
    int64_t n = x->bytes < y->bytes ? x->bytes : y->bytes;
    int d = memcmp(x->text, y->text, (size_t)n);
    return d ? d : x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int key_of(const esp_json *j, const esp_json_event *e, named *out)
{
    *out = (named){j->text + (intptr_t)e->text, e->bytes};
    return 1;
}

/* Sorts the keys of the object that ends here and looks for neighbours that are the same. */
static int unique_keys(esp_json *j, int64_t from)
{
    int64_t n = 0;
    int depth = 0;
    named *keys = esp_malloc((j->count - from + 1) * (int64_t)sizeof *keys);
    if (!keys) return ESP_EMEM;
    for (int64_t i = from; i < j->count; i++) {
        int kind = j->events[i].kind;
        if (kind == ESP_JSON_OBJECT || kind == ESP_JSON_ARRAY) depth++;
        else if (kind == ESP_JSON_OBJECT_END || kind == ESP_JSON_ARRAY_END) depth--;
        else if (kind == ESP_JSON_KEY && depth == 0) n += key_of(j, &j->events[i], &keys[n]);
    }
    qsort(keys, (size_t)n, sizeof *keys, by_text);
    int code = ESP_OK;
    for (int64_t i = 1; code == ESP_OK && i < n; i++) {
        if (by_text(&keys[i - 1], &keys[i]) == 0) {
            code = esp_fail(ESP_EFORMAT, "the key '%.*s' stands twice in one object", (int)esp_min(keys[i].bytes, 100), keys[i].text);
        }
    }
    esp_free(keys);
    return code;
}

static int on_event(void *context, const esp_json_event *e)
{
    esp_json *j = context;
    if (e->kind == ESP_JSON_OBJECT || e->kind == ESP_JSON_ARRAY) {
        j->from[j->depth++] = j->count + 1;
    } else if (e->kind == ESP_JSON_OBJECT_END) {
        TRY(unique_keys(j, j->from[--j->depth]));
    } else if (e->kind == ESP_JSON_ARRAY_END) {
        j->depth--;
    }
    return add(j, e);
}

int esp_json_parse(esp_json **out, const char *text, int64_t bytes, const char *name)
{
    esp_json *j = esp_calloc(sizeof *j);
    if (!j) return ESP_EMEM;
    int code = esp_json_walk(text, bytes, name, on_event, j);
    if (code != ESP_OK) {
        esp_json_free(j);
        return code;
    }
    for (int64_t i = 0; i < j->count; i++) j->events[i].text = j->text + (intptr_t)j->events[i].text;
    *out = j;
    return ESP_OK;
}

int64_t esp_json_count(const esp_json *j) { return j->count; }
const esp_json_event *esp_json_events(const esp_json *j) { return j->events; }

void esp_json_free(esp_json *j)
{
    if (!j) return;
    esp_free(j->events);
    esp_free(j->text);
    esp_free(j);
}
