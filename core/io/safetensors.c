/* Safetensors: 8 bytes length, JSON header, tensor bytes. The file is mapped; nothing in it is trusted before the whole header is checked:
 * every tensor's bytes fit dtype and shape, they follow each other from 0 without gap or overlap, and end where the file ends. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "../tensor/tensor.h"
#include "io.h"

/* Files of use have a dozen pairs of metadata. */
enum { MOST_DIMS = 32, MOST_HEADER = 100000000, MOST_METADATA = 1 << 16 };

typedef struct entry {
    int64_t name, dims;                    /* where they begin in the texts and the dimensions of the file */
    int64_t begin, end;
    int dtype, ndim;                       /* dtype: place in the list of dtypes */
} entry;

typedef struct pair {
    int64_t key, value;
} pair;

/* A list that grows. */
typedef struct list {
    void *data;
    int64_t used;
} list;

struct esp_safetensors {
    char *path;
    esp_mapping *map;
    int64_t data_from;
    list texts, dims, entries, metadata;   /* of char, int64_t, entry, pair */
};

/* dtype: what views the bytes as they are; WIDE: whole numbers that become i32, exactly or not at all. */
enum { WIDE = -1 };
static const struct { const char *name; int64_t bytes; int dtype; } dtypes[] = {
    {"F64", 8, ESP_F64}, {"F32", 4, ESP_F32}, {"F16", 2, ESP_F16}, {"BF16", 2, ESP_BF16}, {"F8_E4M3", 1, ESP_F8_E4M3}, {"F8_E5M2", 1, ESP_F8_E5M2},
    {"I32", 4, ESP_I32}, {"U8", 1, ESP_U8}, {"BOOL", 1, ESP_U8}, {"I64", 8, WIDE}, {"U64", 8, WIDE}, {"U32", 4, WIDE}, {"I16", 2, WIDE},
    {"U16", 2, WIDE}, {"I8", 1, WIDE}};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

static entry *entries_of(const esp_safetensors *s) { return s->entries.data; }
static const char *text_of(const esp_safetensors *s, int64_t at) { return (const char *)s->texts.data + at; }
/* Where every tensor is a scalar there are no dimensions at all, and nothing to point into. */
static const int64_t *dims_of(const esp_safetensors *s, const entry *t) { return s->dims.data ? (const int64_t *)s->dims.data + t->dims : NULL; }

/* ---- reading the header: a tensor's description is checked as soon as it ends, and nothing else of the text is kept ---- */

#define BAD(...) esp_fail(ESP_EFORMAT, __VA_ARGS__)

static int append(list *l, const void *from, int64_t n, int64_t size)
{
    /* esp_realloc does nothing where the block has room, and gives half as much again where it has none. */
    void *more = esp_realloc(l->data, (l->used + n) * size);
    if (!more) return ESP_EMEM;
    l->data = more;
    memcpy((char *)l->data + l->used * size, from, (size_t)(n * size));
    l->used += n;
    return ESP_OK;
}

enum place { BEGIN, TENSORS, TENSOR, FIELDS, DTYPE, SHAPE, DIMENSIONS, OFFSETS, NUMBERS, METADATA, KEYS, VALUE, END };
enum { SEEN_DTYPE = 1, SEEN_SHAPE = 2, SEEN_OFFSETS = 4, SEEN_ALL = 7 };

typedef struct reader {
    esp_safetensors *s;
    enum place place;
    entry t;                               /* the tensor that is being described */
    int64_t key, offsets[2];
    int seen, offset_count, metadata_seen;
} reader;

static const char *name_of(const reader *r) { return text_of(r->s, r->t.name); }

static int keep_text(int64_t *at, reader *r, const esp_json_event *e)
{
    *at = r->s->texts.used;
    TRY(append(&r->s->texts, e->text, e->bytes, 1));
    return append(&r->s->texts, "", 1, 1);
}

/* A whole number from 0 below 2^53, where doubles are exact. */
static int whole(int64_t *out, const reader *r, const esp_json_event *e, const char *what)
{
    if (e->kind != ESP_JSON_INT || !(e->number >= 0) || e->number > 9007199254740991.0) {
        return BAD("tensor '%.100s': %s '%.*s' is no whole number from 0", name_of(r), what, (int)esp_min(e->bytes, 100), e->text);
    }
    *out = (int64_t)e->number;
    return ESP_OK;
}

static int end_tensor(reader *r)
{
    entry *t = &r->t;
    if (r->seen != SEEN_ALL) return BAD("tensor '%.100s' wants dtype, shape and data_offsets", name_of(r));
    int64_t n = 1, bytes;
    for (int i = 0; i < t->ndim; i++) {
        if (__builtin_mul_overflow(n, dims_of(r->s, t)[i], &n)) return BAD("tensor '%.100s' has more elements than can be counted", name_of(r));
    }
    t->begin = r->offsets[0], t->end = r->offsets[1];
    if (__builtin_mul_overflow(n, dtypes[t->dtype].bytes, &bytes) || t->end < t->begin || t->end - t->begin != bytes) {
        return BAD("tensor '%.100s' has %lld bytes at its offsets, want %lld (dtype times shape)", name_of(r), (long long)(t->end - t->begin),
                   (long long)bytes);
    }
    r->place = TENSORS;
    return append(&r->s->entries, t, 1, sizeof *t);
}

static int begin_tensor(reader *r, const esp_json_event *e)
{
    if (e->kind == ESP_JSON_OBJECT_END) {
        r->place = END;
        return ESP_OK;
    }
    if ((int64_t)strnlen(e->text, (size_t)e->bytes) != e->bytes) return BAD("a tensor's name has a zero byte in it");
    if (e->bytes == 12 && memcmp(e->text, "__metadata__", 12) == 0) {
        if (r->metadata_seen++) return BAD("__metadata__ stands twice");
        r->place = METADATA;
        return ESP_OK;
    }
    r->t = (entry){.dims = r->s->dims.used};
    r->seen = r->offset_count = 0;
    r->place = TENSOR;
    return keep_text(&r->t.name, r, e);
}

static int begin_field(reader *r, const esp_json_event *e)
{
    static const struct { const char *name; int seen; enum place next; } fields[] = {
        {"dtype", SEEN_DTYPE, DTYPE}, {"shape", SEEN_SHAPE, SHAPE}, {"data_offsets", SEEN_OFFSETS, OFFSETS}};
    if (e->kind == ESP_JSON_OBJECT_END) return end_tensor(r);
    for (int i = 0; i < 3; i++) {
        if (e->bytes != (int64_t)strlen(fields[i].name) || memcmp(e->text, fields[i].name, (size_t)e->bytes) != 0) continue;
        if (r->seen & fields[i].seen) return BAD("tensor '%.100s': %s stands twice", name_of(r), fields[i].name);
        r->seen |= fields[i].seen;
        r->place = fields[i].next;
        return ESP_OK;
    }
    return BAD("tensor '%.100s' has a field '%.*s', want dtype, shape and data_offsets", name_of(r), (int)esp_min(e->bytes, 100), e->text);
}

static int read_dtype(reader *r, const esp_json_event *e)
{
    if (e->kind != ESP_JSON_STRING) return BAD("tensor '%.100s': dtype is no text", name_of(r));
    r->place = FIELDS;
    for (r->t.dtype = 0; r->t.dtype < DTYPES; r->t.dtype++) {
        const char *name = dtypes[r->t.dtype].name;
        if (e->bytes == (int64_t)strlen(name) && memcmp(e->text, name, (size_t)e->bytes) == 0) return ESP_OK;
    }
    return BAD("tensor '%.100s' has the dtype '%.*s', which is not known", name_of(r), (int)esp_min(e->bytes, 100), e->text);
}

static int read_number(reader *r, const esp_json_event *e)
{
    int64_t n = 0;
    if (e->kind == ESP_JSON_ARRAY_END) {
        if (r->place == NUMBERS && r->offset_count != 2) return BAD("tensor '%.100s': data_offsets wants two numbers", name_of(r));
        r->place = FIELDS;
        return ESP_OK;
    }
    if (r->place == NUMBERS) {
        if (r->offset_count == 2) return BAD("tensor '%.100s': data_offsets wants two numbers", name_of(r));
        return whole(&r->offsets[r->offset_count++], r, e, "offset");
    }
    if (r->t.ndim++ == MOST_DIMS) return BAD("tensor '%.100s' has more than %d dimensions", name_of(r), (int)MOST_DIMS);
    TRY(whole(&n, r, e, "dimension"));
    return append(&r->s->dims, &n, 1, sizeof n);
}

static int read_metadata(reader *r, const esp_json_event *e)
{
    pair p = {.key = r->key};
    if (r->place == KEYS) {
        r->place = e->kind == ESP_JSON_KEY ? VALUE : TENSORS;
        return e->kind == ESP_JSON_KEY ? keep_text(&r->key, r, e) : ESP_OK;
    }
    if (e->kind != ESP_JSON_STRING) return BAD("__metadata__ '%.100s' is no text", text_of(r->s, r->key));
    if (r->s->metadata.used == MOST_METADATA) return BAD("__metadata__ has more than %d pairs", (int)MOST_METADATA);
    r->place = KEYS;
    TRY(keep_text(&p.value, r, e));
    return append(&r->s->metadata, &p, 1, sizeof p);
}

static int enter(reader *r, const esp_json_event *e, int kind, enum place next, const char *complaint)
{
    int named = r->place == TENSOR || r->place == SHAPE || r->place == OFFSETS;
    if (e->kind != kind) return named ? BAD("tensor '%.100s': %s", name_of(r), complaint) : BAD("%s", complaint);
    r->place = next;
    return ESP_OK;
}

static int on_event(void *context, const esp_json_event *e)
{
    reader *r = context;
    switch (r->place) {
    case BEGIN: return enter(r, e, ESP_JSON_OBJECT, TENSORS, "the header is no JSON object");
    case TENSORS: return begin_tensor(r, e);
    case TENSOR: return enter(r, e, ESP_JSON_OBJECT, FIELDS, "described by no object");
    case FIELDS: return begin_field(r, e);
    case DTYPE: return read_dtype(r, e);
    case SHAPE: return enter(r, e, ESP_JSON_ARRAY, DIMENSIONS, "shape is no list");
    case OFFSETS: return enter(r, e, ESP_JSON_ARRAY, NUMBERS, "data_offsets is no list");
    case DIMENSIONS: case NUMBERS: return read_number(r, e);
    case METADATA: return enter(r, e, ESP_JSON_OBJECT, KEYS, "__metadata__ is no object");
    default: return read_metadata(r, e);
    }
}

/* ---- what only the whole tells: names are unique, bytes follow each other and end with the file ---- */

static int by_name(const void *a, const void *b, void *texts)
{
    return strcmp((const char *)texts + ((const entry *)a)->name, (const char *)texts + ((const entry *)b)->name);
}

static int by_key(const void *a, const void *b, void *texts)
{
    return strcmp((const char *)texts + ((const pair *)a)->key, (const char *)texts + ((const pair *)b)->key);
}

static int by_begin(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int check_whole(esp_safetensors *s)
{
    entry *t = entries_of(s);
    pair *m = s->metadata.data;
    int64_t count = s->entries.used, at = 0, have = s->map->bytes - s->data_from;
    void *texts = s->texts.data;
    if (m) qsort_r(m, (size_t)s->metadata.used, sizeof *m, by_key, texts);
    for (int64_t i = 1; i < s->metadata.used; i++) {
        if (by_key(&m[i - 1], &m[i], texts) == 0) return BAD("%s: __metadata__ has '%.100s' twice", s->path, text_of(s, m[i].key));
    }
    if (t) qsort_r(t, (size_t)count, sizeof *t, by_name, texts);
    for (int64_t i = 1; i < count; i++) {
        if (by_name(&t[i - 1], &t[i], texts) == 0) return BAD("%s: tensor '%.100s' stands twice", s->path, text_of(s, t[i].name));
    }
    if (t) qsort(t, (size_t)count, sizeof *t, by_begin);
    for (int64_t i = 0; i < count; at = t[i++].end) {
        if (t[i].begin == at) continue;
        return BAD("%s: tensor '%.100s' begins at byte %lld of the data, want %lld (no gap, no overlap)", s->path, text_of(s, t[i].name),
                   (long long)t[i].begin, (long long)at);
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
        code = esp_json_walk((const char *)s->map->data + 8, (int64_t)n, path, on_event, &(reader){.s = s});
    }
    if (code == ESP_OK) code = check_whole(s);
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
    esp_free(s->texts.data);
    esp_free(s->dims.data);
    esp_free(s->entries.data);
    esp_free(s->metadata.data);
    esp_free(s->path);
    esp_free(s);
}

int64_t esp_safetensors_count(const esp_safetensors *s) { return s->entries.used; }
int64_t esp_safetensors_bytes(const esp_safetensors *s) { return s->map->bytes - s->data_from; }
const char *esp_safetensors_name(const esp_safetensors *s, int64_t i) { return text_of(s, entries_of(s)[i].name); }
const char *esp_safetensors_dtype(const esp_safetensors *s, int64_t i) { return dtypes[entries_of(s)[i].dtype].name; }
int esp_safetensors_ndim(const esp_safetensors *s, int64_t i) { return entries_of(s)[i].ndim; }
const int64_t *esp_safetensors_shape(const esp_safetensors *s, int64_t i) { return dims_of(s, &entries_of(s)[i]); }
int64_t esp_safetensors_metadata_count(const esp_safetensors *s) { return s->metadata.used; }

int esp_safetensors_metadata(const esp_safetensors *s, int64_t i, const char **key, const char **value)
{
    if (i < 0 || i >= s->metadata.used) return esp_fail(ESP_EARG, "safetensors: metadata %lld of %lld", (long long)i, (long long)s->metadata.used);
    const pair *p = (const pair *)s->metadata.data + i;
    *key = text_of(s, p->key);
    *value = text_of(s, p->value);
    return ESP_OK;
}

/* ---- tensors ---- */

/* A whole number of any of these dtypes; one that only fits in 64 bits without sign comes out negative for `wrapped`. */
static int64_t whole_at(const char *p, int dtype, int *wrapped)
{
    int64_t v = 0, bytes = dtypes[dtype].bytes;
    memcpy(&v, p, (size_t)bytes);
    int unused = (int)(64 - 8 * bytes), is_signed = dtypes[dtype].name[0] == 'I';
    /* Signed ones carry their sign up; the shift of a negative number is arithmetic in gcc. */
    if (is_signed) v = (int64_t)((uint64_t)v << unused) >> unused;
    *wrapped = !is_signed && v < 0;
    return v;
}

static int narrow(esp_tensor *t, const char *from, const esp_safetensors *s, const entry *e)
{
    int32_t *to = esp_tensor_at(t);
    for (int64_t i = 0; i < t->count; i++) {
        int wrapped;
        int64_t v = whole_at(from + dtypes[e->dtype].bytes * i, e->dtype, &wrapped);
        const char *name = text_of(s, e->name);
        if (wrapped) return BAD("%s: tensor '%.100s' holds %llu, which does not fit in 32 bits", s->path, name, (unsigned long long)v);
        if (v < INT32_MIN || v > INT32_MAX) return BAD("%s: tensor '%.100s' holds %lld, which does not fit in 32 bits", s->path, name, (long long)v);
        to[i] = (int32_t)v;
    }
    return ESP_OK;
}

int esp_safetensors_tensor(esp_tensor **out, const esp_safetensors *s, int64_t i)
{
    if (i < 0 || i >= s->entries.used) return esp_fail(ESP_EARG, "safetensors: tensor %lld of %lld", (long long)i, (long long)s->entries.used);
    const entry *e = &entries_of(s)[i];
    int dtype = dtypes[e->dtype].dtype;
    if (e->ndim > ESP_MAX_DIMS) {
        return BAD("%s: tensor '%.100s' has %d dimensions, at most %d are read here", s->path, text_of(s, e->name), e->ndim, (int)ESP_MAX_DIMS);
    }
    char *from = (char *)s->map->data + s->data_from + e->begin;
    if (dtype != WIDE) {
        return esp_tensor_over(out, dtype, e->ndim, dims_of(s, e), from, e->end - e->begin, 1, esp_mapping_release, esp_mapping_share(s->map));
    }
    esp_tensor *t;
    TRY(esp_tensor_new(&t, ESP_I32, e->ndim, dims_of(s, e)));
    int code = narrow(t, from, s, e);
    if (code != ESP_OK) esp_tensor_free(t);
    else *out = t;
    return code;
}
