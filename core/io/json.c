/* JSON through yajl, as a flat list of events in document order.
 *
 * Refused with line and column: duplicate keys, comments, bad UTF-8, NaN, anything after the value, more than 256 levels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#include "io.h"

enum { DEEPEST = 256 };

struct esp_json {
    esp_json_event *events;
    int64_t count, room;
    char *text;                            /* strings and digits, one after another, each ended by a NUL */
    int64_t used, text_room;
    int64_t keys_from[DEEPEST];            /* first event inside each open object */
    int depth;
    char problem[256];
};

/* Texts may move while they grow, so events hold offsets until the end. */
static int add(esp_json *j, int kind, int flag, double number, const void *text, int64_t bytes)
{
    if (j->count == j->room) {
        int64_t room = j->room ? 2 * j->room : 64;
        esp_json_event *more = esp_realloc(j->events, room * (int64_t)sizeof *more);
        if (!more) return 0;
        j->events = more;
        j->room = room;
    }
    if (j->used + bytes + 1 > j->text_room) {
        int64_t room = 2 * j->text_room + bytes + 256;
        char *more = esp_realloc(j->text, room);
        if (!more) return 0;
        j->text = more;
        j->text_room = room;
    }
    if (bytes) memcpy(j->text + j->used, text, (size_t)bytes);
    j->text[j->used + bytes] = 0;
    j->events[j->count++] = (esp_json_event){.kind = kind, .flag = flag, .number = number, .text = (const char *)(intptr_t)j->used, .bytes = bytes};
    j->used += bytes + 1;
    return 1;
}

static int on_null(void *j) { return add(j, ESP_JSON_NULL, 0, 0, "", 0); }
static int on_bool(void *j, int v) { return add(j, ESP_JSON_BOOL, v, 0, "", 0); }
static int on_string(void *j, const unsigned char *s, size_t n) { return add(j, ESP_JSON_STRING, 0, 0, s, (int64_t)n); }

static int on_number(void *context, const char *digits, size_t n)
{
    esp_json *j = context;
    char text[512];
    if (n >= sizeof text) {
        snprintf(j->problem, sizeof j->problem, "a number of %zu digits", n);
        return 0;
    }
    memcpy(text, digits, n);
    text[n] = 0;
    int integral = strspn(text, "-0123456789") == n;
    return add(j, integral ? ESP_JSON_INT : ESP_JSON_FLOAT, 0, strtod(text, NULL), digits, (int64_t)n);
}

static int open_level(esp_json *j, int kind)
{
    if (j->depth == DEEPEST) {
        snprintf(j->problem, sizeof j->problem, "more than %d levels", (int)DEEPEST);
        return 0;
    }
    j->keys_from[j->depth++] = j->count + 1;
    return add(j, kind, 0, 0, "", 0);
}

static int on_object(void *j) { return open_level(j, ESP_JSON_OBJECT); }
static int on_array(void *j) { return open_level(j, ESP_JSON_ARRAY); }

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
    if (!keys) return 0;
    for (int64_t i = from; i < j->count; i++) {
        int kind = j->events[i].kind;
        if (kind == ESP_JSON_OBJECT || kind == ESP_JSON_ARRAY) depth++;
        else if (kind == ESP_JSON_OBJECT_END || kind == ESP_JSON_ARRAY_END) depth--;
        else if (kind == ESP_JSON_KEY && depth == 0) n += key_of(j, &j->events[i], &keys[n]);
    }
    qsort(keys, (size_t)n, sizeof *keys, by_text);
    int good = 1;
    for (int64_t i = 1; good && i < n; i++) {
        if (by_text(&keys[i - 1], &keys[i]) == 0) {
            snprintf(j->problem, sizeof j->problem, "the key '%.*s' stands twice in one object", (int)(keys[i].bytes < 100 ? keys[i].bytes : 100), keys[i].text);
            good = 0;
        }
    }
    esp_free(keys);
    return good;
}

static int on_key(void *j, const unsigned char *s, size_t n) { return add(j, ESP_JSON_KEY, 0, 0, s, (int64_t)n); }

static int on_object_end(void *context)
{
    esp_json *j = context;
    if (!unique_keys(j, j->keys_from[--j->depth])) return 0;
    return add(j, ESP_JSON_OBJECT_END, 0, 0, "", 0);
}

static int on_array_end(void *context)
{
    esp_json *j = context;
    j->depth--;
    return add(j, ESP_JSON_ARRAY_END, 0, 0, "", 0);
}

static const yajl_callbacks callbacks = {on_null, on_bool, NULL, NULL, on_number, on_string, on_object, on_key, on_object_end, on_array, on_array_end};

static int complain(esp_json *j, yajl_handle h, const char *text, int64_t bytes, const char *name)
{
    int64_t at = (int64_t)yajl_get_bytes_consumed(h), line = 1, column = 1;
    for (int64_t i = 0; i < at && i < bytes; i++) {
        column = text[i] == '\n' ? 1 : column + 1;
        line += text[i] == '\n';
    }
    char reason[256];
    if (j->problem[0]) {
        snprintf(reason, sizeof reason, "%s", j->problem);
    } else {
        unsigned char *said = yajl_get_error(h, 0, (const unsigned char *)text, (size_t)bytes);
        snprintf(reason, sizeof reason, "%s", (const char *)said);
        yajl_free_error(h, said);
        reason[strcspn(reason, "\n")] = 0;
    }
    return esp_fail(ESP_EFORMAT, "%s: line %lld, column %lld: %s", name, (long long)line, (long long)column, reason);
}

static void *door_malloc(void *unused, size_t n) { (void)unused; return esp_malloc((int64_t)n); }
static void *door_realloc(void *unused, void *p, size_t n) { (void)unused; return esp_realloc(p, (int64_t)n); }
static void door_free(void *unused, void *p) { (void)unused; esp_free(p); }

/* 16 bits of \\uXXXX at p, or -1. */
static int hex4(const char *p, const char *end)
{
    int v = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        int c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        v = v * 16 + digit;
    }
    return v;
}

/* yajl reads half a surrogate pair as '?'. Two names would then be one, so it is refused: the offset where one stands, or -1. */
static int64_t lone_surrogate(const char *text, int64_t bytes)
{
    const char *end = text + bytes;
    for (const char *p = text; (p = memchr(p, '\\', (size_t)(end - p))) != NULL && p + 1 < end;) {
        int v = p[1] == 'u' ? hex4(p + 2, end) : -1;
        if (v >= 0xDC00 && v <= 0xDFFF) return p - text;
        if (v >= 0xD800 && v <= 0xDBFF) {
            int low = end - p >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, end) : -1;
            if (low < 0xDC00 || low > 0xDFFF) return p - text;
            p += 12;
        } else {
            p += 2;
        }
    }
    return -1;
}

int esp_json_parse(esp_json **out, const char *text, int64_t bytes, const char *name)
{
    int64_t lone = lone_surrogate(text, bytes);
    if (lone >= 0) return esp_fail(ESP_EFORMAT, "%s: half a surrogate pair at byte %lld", name, (long long)lone);
    esp_json *j = esp_calloc(sizeof *j);
    if (!j) return ESP_EMEM;
    yajl_alloc_funcs door = {door_malloc, door_realloc, door_free, NULL};
    yajl_handle h = yajl_alloc(&callbacks, &door, j);
    if (!h) {
        esp_json_free(j);
        return ESP_EMEM;
    }
    yajl_status status = yajl_parse(h, (const unsigned char *)text, (size_t)bytes);
    if (status == yajl_status_ok) status = yajl_complete_parse(h);
    int code = status == yajl_status_ok ? ESP_OK : complain(j, h, text, bytes, name);
    yajl_free(h);
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
