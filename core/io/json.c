/* A JSON text as a flat list of its values in document order; an object with one key twice is refused.
 *
 * A value takes nine bytes, and the texts lie in one block: what is needed is counted before anything is kept, so that hostile texts (a list
 * of millions of digits) take no more than five times their bytes. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

/* A text in the block; the number of an INT or BOOL; or the entry behind an OBJECT or ARRAY and all that is in it. */
typedef union value {
    struct { uint32_t at, bytes; } text;
    double number;
    int64_t after;
} value;

struct esp_json {
    uint8_t *kinds;
    value *values;
    char *text;                            /* strings, keys and the digits of FLOATs, each ended by a NUL */
    int64_t count, room, used, text_room;
    int64_t open[ESP_JSON_DEEPEST];        /* the objects and lists that are open */
    int depth;
};

/* ---- how many values a text holds, and how many bytes of texts: exactly where it is JSON, else at least as many as can be read of it ---- */

typedef struct tally {
    int64_t values, text;
} tally;

static const char *behind_string(const char *p, const char *end)
{
    while (++p < end && *p != '"') p += *p == '\\';
    return p < end ? p + 1 : end;
}

static const char *behind_number(const char *p, const char *end, tally *t)
{
    const char *from = p;
    int integral = 1;
    for (; p < end && ((*p >= '0' && *p <= '9') || strchr("+-.eE", *p)) && *p; p++) integral = integral && strchr(".eE", *p) == NULL;
    if (!integral) t->text += p - from + 1;
    return p;
}

static tally count(const char *p, int64_t bytes)
{
    tally t = {0};
    for (const char *end = p + bytes; p < end;) {
        switch (*p) {
        case '{': case '[': case 't': case 'f': case 'n': t.values++, p++; break;
        case '"': {
            const char *from = p;
            p = behind_string(p, end);
            t.values++, t.text += p - from + 1;
            break;
        }
        case '-': case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7': case '8': case '9':
            p = behind_number(p, end, &t);
            t.values++;
            break;
        default: p++;
        }
    }
    return t;
}

/* ---- keeping them ---- */

static int keep_text(esp_json *j, value *v, const esp_json_event *e)
{
    if (j->used + e->bytes + 1 > j->text_room) return esp_fail(ESP_EFORMAT, "its strings are not where they were counted");
    v->text.at = (uint32_t)j->used;
    v->text.bytes = (uint32_t)e->bytes;
    memcpy(j->text + j->used, e->text, (size_t)e->bytes);
    j->text[j->used + e->bytes] = 0;
    j->used += e->bytes + 1;
    return ESP_OK;
}

static int by_text(const void *a, const void *b, void *context)
{
    const esp_json *j = context;
    value x = j->values[*(const uint32_t *)a], y = j->values[*(const uint32_t *)b];
    int d = memcmp(j->text + x.text.at, j->text + y.text.at, esp_min(x.text.bytes, y.text.bytes));
    return d ? d : x.text.bytes < y.text.bytes ? -1 : x.text.bytes > y.text.bytes;
}

/* Sorts the keys of the object that ends here and looks for neighbours that are the same. */
static int unique_keys(esp_json *j, int64_t object)
{
    int64_t n = 0;
    for (int64_t i = object + 1; i < j->count; i = esp_json_after(j, i + 1)) n++;
    if (n < 2) return ESP_OK;
    uint32_t *keys = esp_malloc(n * (int64_t)sizeof *keys);
    if (!keys) return ESP_EMEM;
    n = 0;
    for (int64_t i = object + 1; i < j->count; i = esp_json_after(j, i + 1)) keys[n++] = (uint32_t)i;
    qsort_r(keys, (size_t)n, sizeof *keys, by_text, j);
    int code = ESP_OK;
    for (int64_t i = 1; code == ESP_OK && i < n; i++) {
        if (by_text(&keys[i - 1], &keys[i], j) != 0) continue;
        int64_t bytes;
        const char *key = esp_json_text(j, keys[i], &bytes);
        code = esp_fail(ESP_EFORMAT, "the key '%.*s' stands twice in one object", (int)esp_min(bytes, 100), key);
    }
    esp_free(keys);
    return code;
}

static int close_value(esp_json *j, int kind)
{
    int64_t i = j->open[--j->depth];
    j->values[i].after = j->count;
    return kind == ESP_JSON_OBJECT_END ? unique_keys(j, i) : ESP_OK;
}

static int on_event(void *context, const esp_json_event *e)
{
    esp_json *j = context;
    value v = {.number = e->number};
    if (e->kind == ESP_JSON_OBJECT_END || e->kind == ESP_JSON_ARRAY_END) return close_value(j, e->kind);
    if (j->count == j->room) return esp_fail(ESP_EFORMAT, "its values are not where they were counted");
    if (e->kind == ESP_JSON_OBJECT || e->kind == ESP_JSON_ARRAY) j->open[j->depth++] = j->count;
    if (e->kind == ESP_JSON_STRING || e->kind == ESP_JSON_KEY || e->kind == ESP_JSON_FLOAT) TRY(keep_text(j, &v, e));
    j->kinds[j->count] = (uint8_t)e->kind;
    j->values[j->count++] = v;
    return ESP_OK;
}

int esp_json_parse(esp_json **out, const char *text, int64_t bytes, const char *name)
{
    if (bytes >= UINT32_MAX) return esp_fail(ESP_EFORMAT, "%s: %lld bytes; at most 4 GiB of JSON are read at once", name, (long long)bytes);
    tally t = count(text, bytes);
    esp_json *j = esp_calloc(sizeof *j);
    int code = ESP_EMEM;
    if (j && (j->kinds = esp_malloc(t.values)) && (j->values = esp_malloc(t.values * (int64_t)sizeof *j->values)) && (j->text = esp_malloc(t.text))) {
        j->room = t.values;
        j->text_room = t.text;
        code = esp_json_walk(text, bytes, name, on_event, j);
    }
    if (code != ESP_OK) esp_json_free(j);
    else *out = j;
    return code;
}

int esp_json_read(esp_json **out, const char *path)
{
    esp_mapping *map;
    TRY(esp_mapping_open(&map, path, 1, "JSON (want a value)"));
    int64_t losses = esp_bus_losses();
    int code = esp_json_parse(out, map->data, map->bytes, path);
    esp_mapping_release(map);
    if (losses == esp_bus_losses()) return code;
    if (code == ESP_OK) esp_json_free(*out);
    return esp_bus_fail();
}

/* ---- asking ---- */

int64_t esp_json_count(const esp_json *j) { return j->count; }
int esp_json_kind(const esp_json *j, int64_t i) { return j->kinds[i]; }

const char *esp_json_text(const esp_json *j, int64_t i, int64_t *bytes)
{
    int kind = j->kinds[i];
    int has_text = kind == ESP_JSON_STRING || kind == ESP_JSON_KEY || kind == ESP_JSON_FLOAT;
    if (bytes) *bytes = has_text ? j->values[i].text.bytes : 0;
    return has_text ? j->text + j->values[i].text.at : "";
}

double esp_json_number(const esp_json *j, int64_t i)
{
    int kind = j->kinds[i];
    if (kind == ESP_JSON_FLOAT) return strtod(esp_json_text(j, i, NULL), NULL);
    return kind == ESP_JSON_INT || kind == ESP_JSON_BOOL ? j->values[i].number : NAN;
}

int64_t esp_json_after(const esp_json *j, int64_t i)
{
    return j->kinds[i] == ESP_JSON_OBJECT || j->kinds[i] == ESP_JSON_ARRAY ? j->values[i].after : i + 1;
}

int64_t esp_json_items(const esp_json *j, int64_t i)
{
    int64_t n = 0, end = esp_json_after(j, i);
    for (int64_t k = i + 1; k < end; k = esp_json_after(j, k)) n++;
    return j->kinds[i] == ESP_JSON_OBJECT ? n / 2 : n;
}

int64_t esp_json_bytes(const esp_json *j) { return j->room * (1 + (int64_t)sizeof(value)) + j->text_room; }

void esp_json_free(esp_json *j)
{
    if (!j) return;
    esp_free(j->kinds);
    esp_free(j->values);
    esp_free(j->text);
    esp_free(j);
}
