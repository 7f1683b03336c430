/* Safetensors: 8 bytes length, JSON header, tensor bytes. The file is mapped; nothing in it is trusted before the whole header is checked:
 * every tensor's bytes fit dtype and shape, they follow each other from 0 without gap or overlap, and end where the file ends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tensor/tensor.h"
#include "io.h"

enum { MOST_DIMS = 32, MOST_HEADER = 100000000 };

typedef struct entry {
    const char *name, *dtype;
    int ndim;
    int64_t shape[MOST_DIMS], begin, end;
} entry;

struct esp_safetensors {
    char *path;
    esp_mapping *map;
    esp_json *json;
    entry *entries;
    int64_t count, data_from;
    const char **metadata;                 /* keys and values by turns */
    int64_t metadata_count;
};

/* dtype: what views the bytes as they are; WIDE: whole numbers that become i32, exactly or not at all. */
enum { WIDE = -1 };
static const struct { const char *name; int64_t bytes; int dtype; } dtypes[] = {
    {"F64", 8, ESP_F64}, {"F32", 4, ESP_F32}, {"F16", 2, ESP_F16}, {"BF16", 2, ESP_BF16}, {"F8_E4M3", 1, ESP_F8_E4M3}, {"F8_E5M2", 1, ESP_F8_E5M2},
    {"I32", 4, ESP_I32}, {"U8", 1, ESP_U8}, {"BOOL", 1, ESP_U8}, {"I64", 8, WIDE}, {"U64", 8, WIDE}, {"U32", 4, WIDE}, {"I16", 2, WIDE},
    {"U16", 2, WIDE}, {"I8", 1, WIDE}};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

static int dtype_index(const char *name)
{
    for (int i = 0; i < DTYPES; i++) if (strcmp(dtypes[i].name, name) == 0) return i;
    return -1;
}

/* ---- reading the header ---- */

typedef struct cursor {
    const esp_json_event *e, *end;
    const char *path;
} cursor;

#define BAD(...) esp_fail(ESP_EFORMAT, __VA_ARGS__)

/* A whole number from 0 below 2^53, where doubles are exact. */
static int whole(int64_t *out, const cursor *c, const char *name, const char *what)
{
    if (c->e->kind != ESP_JSON_INT || !(c->e->number >= 0) || c->e->number > 9007199254740991.0) {
        return BAD("%s: tensor '%s': %s '%s' is no whole number from 0", c->path, name, what, c->e->text);
    }
    *out = (int64_t)c->e->number;
    return ESP_OK;
}

static int read_shape(cursor *c, entry *t)
{
    if (c->e->kind != ESP_JSON_ARRAY) return BAD("%s: tensor '%s': shape is no list", c->path, t->name);
    for (c->e++; c->e->kind != ESP_JSON_ARRAY_END; c->e++) {
        if (t->ndim == MOST_DIMS) return BAD("%s: tensor '%s' has more than %d dimensions", c->path, t->name, (int)MOST_DIMS);
        TRY(whole(&t->shape[t->ndim], c, t->name, "dimension"));
        t->ndim++;
    }
    return ESP_OK;
}

static int read_offsets(cursor *c, entry *t)
{
    int n = 0;
    int64_t value[2] = {0};
    if (c->e->kind != ESP_JSON_ARRAY) return BAD("%s: tensor '%s': data_offsets is no list", c->path, t->name);
    for (c->e++; c->e->kind != ESP_JSON_ARRAY_END; c->e++, n++) {
        if (n == 2) break;
        TRY(whole(&value[n], c, t->name, "offset"));
    }
    if (n != 2 || c->e->kind != ESP_JSON_ARRAY_END) return BAD("%s: tensor '%s': data_offsets wants two numbers", c->path, t->name);
    t->begin = value[0], t->end = value[1];
    return ESP_OK;
}

static int check_size(const cursor *c, const entry *t)
{
    int d = dtype_index(t->dtype);
    if (d < 0) return BAD("%s: tensor '%s' has the dtype '%s', which is not known", c->path, t->name, t->dtype);
    int64_t n = 1, bytes;
    for (int i = 0; i < t->ndim; i++) {
        if (__builtin_mul_overflow(n, t->shape[i], &n)) return BAD("%s: tensor '%s' has more elements than can be counted", c->path, t->name);
    }
    if (__builtin_mul_overflow(n, dtypes[d].bytes, &bytes) || t->end < t->begin || t->end - t->begin != bytes) {
        return BAD("%s: tensor '%s' has %lld bytes at its offsets, want %lld (dtype times shape)", c->path, t->name,
                   (long long)(t->end - t->begin), (long long)bytes);
    }
    return ESP_OK;
}

static int read_tensor(cursor *c, entry *t)
{
    int seen_shape = 0, seen_offsets = 0;
    if (c->e->kind != ESP_JSON_OBJECT) return BAD("%s: tensor '%s' is described by no object", c->path, t->name);
    for (c->e++; c->e->kind != ESP_JSON_OBJECT_END; c->e++) {
        const char *key = c->e->text;
        c->e++;
        if (strcmp(key, "dtype") == 0 && c->e->kind == ESP_JSON_STRING) {
            t->dtype = c->e->text;
        } else if (strcmp(key, "shape") == 0) {
            TRY(read_shape(c, t));
            seen_shape = 1;
        } else if (strcmp(key, "data_offsets") == 0) {
            TRY(read_offsets(c, t));
            seen_offsets = 1;
        } else {
            return BAD("%s: tensor '%s' has a field '%s', want dtype (a text), shape and data_offsets", c->path, t->name, key);
        }
    }
    if (!t->dtype || !seen_shape || !seen_offsets) return BAD("%s: tensor '%s' wants dtype, shape and data_offsets", c->path, t->name);
    return check_size(c, t);
}

static int read_metadata(cursor *c, esp_safetensors *s)
{
    if (c->e->kind != ESP_JSON_OBJECT) return BAD("%s: __metadata__ is no object", c->path);
    s->metadata = esp_malloc((c->end - c->e) * (int64_t)sizeof *s->metadata);
    if (!s->metadata) return ESP_EMEM;
    for (c->e++; c->e->kind != ESP_JSON_OBJECT_END; c->e += 2) {
        if (c->e[1].kind != ESP_JSON_STRING) return BAD("%s: __metadata__ '%s' is no text", c->path, c->e->text);
        s->metadata[2 * s->metadata_count] = c->e->text;
        s->metadata[2 * s->metadata_count++ + 1] = c->e[1].text;
    }
    return ESP_OK;
}

static int by_begin(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int read_header(esp_safetensors *s)
{
    cursor c = {esp_json_events(s->json), esp_json_events(s->json) + esp_json_count(s->json), s->path};
    if (c.e->kind != ESP_JSON_OBJECT) return BAD("%s: the header is no JSON object", s->path);
    /* A tensor's description is eight events at least; a shorter one is refused before the next is begun. */
    s->entries = esp_calloc((esp_json_count(s->json) / 8 + 1) * (int64_t)sizeof *s->entries);
    if (!s->entries) return ESP_EMEM;
    for (c.e++; c.e->kind != ESP_JSON_OBJECT_END; c.e++) {
        const esp_json_event *key = c.e++;
        if ((int64_t)strlen(key->text) != key->bytes) return BAD("%s: a tensor's name has a zero byte in it", s->path);
        if (strcmp(key->text, "__metadata__") == 0) {
            TRY(read_metadata(&c, s));
        } else {
            entry *t = &s->entries[s->count];
            *t = (entry){.name = key->text};
            TRY(read_tensor(&c, t));
            s->count++;
        }
    }
    qsort(s->entries, (size_t)s->count, sizeof *s->entries, by_begin);
    int64_t at = 0, have = s->map->bytes - s->data_from;
    for (int64_t i = 0; i < s->count; i++) {
        const entry *t = &s->entries[i];
        if (t->begin != at) return BAD("%s: tensor '%s' begins at byte %lld of the data, want %lld (no gap, no overlap)", s->path, t->name, (long long)t->begin, (long long)at);
        at = t->end;
    }
    if (at != have) return BAD("%s: the header describes %lld bytes of data, the file has %lld", s->path, (long long)at, (long long)have);
    return ESP_OK;
}

int esp_safetensors_open(esp_safetensors **out, const char *path)
{
    esp_safetensors *s = esp_calloc(sizeof *s);
    if (!s) return ESP_EMEM;
    int code = (s->path = esp_copy_text(path)) ? esp_mapping_open(&s->map, path, 8, "safetensors file (want 8 bytes of length first)") : ESP_EMEM;
    uint64_t n = 0;
    if (code == ESP_OK) {
        memcpy(&n, s->map->data, 8);
        if (n < 2 || n > MOST_HEADER || n > (uint64_t)s->map->bytes - 8) {
            code = BAD("%s: the header's length is %llu, want 2 to %lld (bytes after it in the file, at most 100 MB)", path, (unsigned long long)n,
                       (long long)esp_min(s->map->bytes - 8, MOST_HEADER));
        }
    }
    if (code == ESP_OK) {
        s->data_from = 8 + (int64_t)n;
        code = esp_json_parse(&s->json, (const char *)s->map->data + 8, (int64_t)n, path);
    }
    if (code == ESP_OK) code = read_header(s);
    if (code != ESP_OK) {
        esp_safetensors_close(s);
        return code;
    }
    *out = s;
    return ESP_OK;
}

void esp_safetensors_close(esp_safetensors *s)
{
    if (!s) return;
    if (s->map) esp_mapping_release(s->map);
    esp_json_free(s->json);
    esp_free(s->entries);
    esp_free(s->metadata);
    esp_free(s->path);
    esp_free(s);
}

int64_t esp_safetensors_count(const esp_safetensors *s) { return s->count; }
const char *esp_safetensors_name(const esp_safetensors *s, int64_t i) { return s->entries[i].name; }
const char *esp_safetensors_dtype(const esp_safetensors *s, int64_t i) { return s->entries[i].dtype; }
int esp_safetensors_ndim(const esp_safetensors *s, int64_t i) { return s->entries[i].ndim; }
const int64_t *esp_safetensors_shape(const esp_safetensors *s, int64_t i) { return s->entries[i].shape; }
int64_t esp_safetensors_metadata_count(const esp_safetensors *s) { return s->metadata_count; }

int esp_safetensors_metadata(const esp_safetensors *s, int64_t i, const char **key, const char **value)
{
    if (i < 0 || i >= s->metadata_count) return esp_fail(ESP_EARG, "safetensors: metadata %lld of %lld", (long long)i, (long long)s->metadata_count);
    *key = s->metadata[2 * i];
    *value = s->metadata[2 * i + 1];
    return ESP_OK;
}

/* ---- tensors ---- */

/* A whole number of any of these dtypes; one that only fits in 64 bits without sign comes out negative for `wrapped`. */
static int64_t whole_at(const char *p, const char *dtype, int *wrapped)
{
    int64_t v = 0;
    int64_t bytes = dtypes[dtype_index(dtype)].bytes;
    memcpy(&v, p, (size_t)bytes);
    int unused = (int)(64 - 8 * bytes);
    /* Signed ones carry their sign up; the shift of a negative number is arithmetic in gcc. */
    if (*dtype == 'I') v = (int64_t)((uint64_t)v << unused) >> unused;
    *wrapped = *dtype == 'U' && v < 0;
    return v;
}

static int narrow(esp_tensor *t, const char *from, const entry *e, const char *path)
{
    int32_t *to = esp_tensor_at(t);
    int64_t bytes = dtypes[dtype_index(e->dtype)].bytes;
    for (int64_t i = 0; i < t->count; i++) {
        int wrapped;
        int64_t v = whole_at(from + bytes * i, e->dtype, &wrapped);
        if (wrapped) return BAD("%s: tensor '%s' holds %llu, which does not fit in 32 bits", path, e->name, (unsigned long long)v);
        if (v < INT32_MIN || v > INT32_MAX) return BAD("%s: tensor '%s' holds %lld, which does not fit in 32 bits", path, e->name, (long long)v);
        to[i] = (int32_t)v;
    }
    return ESP_OK;
}

int esp_safetensors_tensor(esp_tensor **out, const esp_safetensors *s, int64_t i)
{
    if (i < 0 || i >= s->count) return esp_fail(ESP_EARG, "safetensors: tensor %lld of %lld", (long long)i, (long long)s->count);
    const entry *e = &s->entries[i];
    int dtype = dtypes[dtype_index(e->dtype)].dtype;
    if (e->ndim > ESP_MAX_DIMS) return BAD("%s: tensor '%s' has %d dimensions, at most %d are read here", s->path, e->name, e->ndim, (int)ESP_MAX_DIMS);
    char *from = (char *)s->map->data + s->data_from + e->begin;
    if (dtype != WIDE) {
        return esp_tensor_over(out, dtype, e->ndim, e->shape, from, e->end - e->begin, 1, esp_mapping_release, esp_mapping_share(s->map));
    }
    esp_tensor *t;
    TRY(esp_tensor_new(&t, ESP_I32, e->ndim, e->shape));
    int code = narrow(t, from, e, s->path);
    if (code != ESP_OK) esp_tensor_free(t);
    else *out = t;
    return code;
}
