/* JSON through yajl, value by value.
 *
 * Refused with line and column: comments, bad UTF-8, half a surrogate pair, NaN, anything after the value, more than 256 levels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#include "io.h"

enum { DEEPEST = ESP_JSON_DEEPEST };

typedef struct walk {
    esp_json_visit *visit;
    void *context;
    int depth, code;                       /* code: what the visitor failed with */
    char problem[512];
} walk;

static int pass(walk *w, int kind, double number, const void *text, int64_t bytes)
{
    w->code = w->visit(w->context, &(esp_json_event){.kind = kind, .number = number, .text = text, .bytes = bytes});
    if (w->code == ESP_EFORMAT) snprintf(w->problem, sizeof w->problem, "%s", esp_error());
    return w->code == ESP_OK;
}

static int on_null(void *w) { return pass(w, ESP_JSON_NULL, 0, "", 0); }
static int on_bool(void *w, int v) { return pass(w, ESP_JSON_BOOL, v, "", 0); }
static int on_string(void *w, const unsigned char *s, size_t n) { return pass(w, ESP_JSON_STRING, 0, s, (int64_t)n); }
static int on_key(void *w, const unsigned char *s, size_t n) { return pass(w, ESP_JSON_KEY, 0, s, (int64_t)n); }

static int on_number(void *context, const char *digits, size_t n)
{
    walk *w = context;
    char text[512];
    if (n >= sizeof text) {
        snprintf(w->problem, sizeof w->problem, "a number of %zu digits", n);
        return 0;
    }
    memcpy(text, digits, n);
    text[n] = 0;
    int integral = strspn(text, "-0123456789") == n;
    return pass(w, integral ? ESP_JSON_INT : ESP_JSON_FLOAT, strtod(text, NULL), text, (int64_t)n);
}

static int open_level(walk *w, int kind)
{
    if (w->depth == DEEPEST) {
        snprintf(w->problem, sizeof w->problem, "more than %d levels", (int)DEEPEST);
        return 0;
    }
    w->depth++;
    return pass(w, kind, 0, "", 0);
}

static int close_level(walk *w, int kind)
{
    w->depth--;
    return pass(w, kind, 0, "", 0);
}

static int on_object(void *w) { return open_level(w, ESP_JSON_OBJECT); }
static int on_array(void *w) { return open_level(w, ESP_JSON_ARRAY); }
static int on_object_end(void *w) { return close_level(w, ESP_JSON_OBJECT_END); }
static int on_array_end(void *w) { return close_level(w, ESP_JSON_ARRAY_END); }

static const yajl_callbacks callbacks = {on_null, on_bool, NULL, NULL, on_number, on_string, on_object, on_key, on_object_end, on_array, on_array_end};

static int complain(const walk *w, yajl_handle h, const char *text, int64_t bytes, const char *name)
{
    int64_t at = (int64_t)yajl_get_bytes_consumed(h), line = 1, column = 1;
    for (int64_t i = 0; i < at && i < bytes; i++) {
        column = text[i] == '\n' ? 1 : column + 1;
        line += text[i] == '\n';
    }
    char reason[512];
    if (w->problem[0]) {
        snprintf(reason, sizeof reason, "%s", w->problem);
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

int esp_json_walk(const char *text, int64_t bytes, const char *name, esp_json_visit *visit, void *context)
{
    int64_t lone = lone_surrogate(text, bytes);
    if (lone >= 0) return esp_fail(ESP_EFORMAT, "%s: half a surrogate pair at byte %lld", name, (long long)lone);
    walk w = {.visit = visit, .context = context};
    yajl_alloc_funcs door = {door_malloc, door_realloc, door_free, NULL};
    yajl_handle h = yajl_alloc(&callbacks, &door, &w);
    if (!h) return ESP_EMEM;
    yajl_status status = yajl_parse(h, (const unsigned char *)text, (size_t)bytes);
    if (status == yajl_status_ok) status = yajl_complete_parse(h);
    int code = status == yajl_status_ok ? ESP_OK : w.code != ESP_OK && w.code != ESP_EFORMAT ? w.code : complain(&w, h, text, bytes, name);
    yajl_free(h);
    return code;
}
