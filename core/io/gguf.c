/* GGUF, versions 2 and 3: "GGUF", counts, metadata, a directory of tensors, padding, tensor bytes; little endian. The file is mapped and its
 * whole directory is checked before anything is handed out: every length fits the file, names are unique, and tensors follow each other from
 * 0, each at a multiple of the alignment, to the end of the file. Memory stays below six times the file's size. */
#include <stdlib.h>
#include <string.h>

#include "../tensor/tensor.h"
#include "io.h"
#include "q8.h"

enum { MOST_DIMS = 4, MOST_NAME = 63, MOST_KEY = 65535, MOST_ALIGNMENT = 1 << 16, MOST_PAIRS = 1 << 16, LEAST_PAIR = 14, LEAST_ENTRY = 33 };

typedef struct pair {
    const char *key;                       /* in the file until the names are copied, then ended by NUL */
    int64_t key_bytes, count;
    const char *data;
    int type;                              /* of the elements, where it is an array */
    int is_array;
} pair;

typedef struct entry {
    const char *name;
    int64_t name_bytes, shape[MOST_DIMS], begin, bytes;
    int ndim, type;                        /* index into types */
} entry;

struct esp_gguf {
    char *path, *names;                    /* names: all keys and tensor names, each ended by NUL */
    esp_mapping *map;
    pair *pairs;
    entry *entries;
    int64_t pair_count, count, data_from, alignment;
    int version;
};

/* Elements and bytes of a block; dtype of the tensor it is read as, or -1. */
static const struct { int id; const char *name; int64_t elements, bytes; int dtype; } types[] = {
    {0, "F32", 1, 4, ESP_F32}, {1, "F16", 1, 2, ESP_F16}, {30, "BF16", 1, 2, ESP_BF16}, {8, "Q8_0", Q8_BLOCK, Q8_BYTES, ESP_F32}, {28, "F64", 1, 8, ESP_F64},
    {26, "I32", 1, 4, ESP_I32}, {24, "I8", 1, 1, -1}, {25, "I16", 1, 2, -1}, {27, "I64", 1, 8, -1}, {2, "Q4_0", 32, 18, -1}, {3, "Q4_1", 32, 20, -1},
    {6, "Q5_0", 32, 22, -1}, {7, "Q5_1", 32, 24, -1}, {10, "Q2_K", 256, 84, -1}, {11, "Q3_K", 256, 110, -1}, {12, "Q4_K", 256, 144, -1},
    {13, "Q5_K", 256, 176, -1}, {14, "Q6_K", 256, 210, -1}, {16, "IQ2_XXS", 256, 66, -1}, {17, "IQ2_XS", 256, 74, -1}, {18, "IQ3_XXS", 256, 98, -1},
    {19, "IQ1_S", 256, 50, -1}, {20, "IQ4_NL", 32, 18, -1}, {21, "IQ3_S", 256, 110, -1}, {22, "IQ2_S", 256, 82, -1}, {23, "IQ4_XS", 256, 136, -1},
    {29, "IQ1_M", 256, 56, -1}, {34, "TQ1_0", 256, 54, -1}, {35, "TQ2_0", 256, 66, -1}, {39, "MXFP4", 32, 17, -1}};
enum { TYPES = sizeof types / sizeof *types };

#define BAD(...) esp_fail(ESP_EFORMAT, __VA_ARGS__)

/* ---- reading numbers and texts ---- */

typedef struct cursor {
    const char *at, *end, *path;
} cursor;

static int64_t left(const cursor *c) { return c->end - c->at; }

static int take(cursor *c, void *out, int64_t bytes, const char *what)
{
    if (left(c) < bytes) return BAD("%s: the file ends in %s", c->path, what);
    memcpy(out, c->at, (size_t)bytes);
    c->at += bytes;
    return ESP_OK;
}

/* A u64 length of bytes that must be there. */
static int take_text(cursor *c, const char **text, int64_t *bytes, int64_t most, const char *what)
{
    uint64_t n = 0;
    TRY(take(c, &n, 8, what));
    if (n > (uint64_t)left(c)) return BAD("%s: %s says it has %llu bytes, the file has %lld more", c->path, what, (unsigned long long)n, (long long)left(c));
    if (n > (uint64_t)most) return BAD("%s: %s has %llu bytes, want at most %lld", c->path, what, (unsigned long long)n, (long long)most);
    *text = c->at;
    *bytes = (int64_t)n;
    c->at += n;
    return ESP_OK;
}

/* A name: not empty, no control characters, so that it can stand in a message and end with NUL. */
static int take_name(cursor *c, const char **text, int64_t *bytes, int64_t most, const char *what)
{
    TRY(take_text(c, text, bytes, most, what));
    if (*bytes == 0) return BAD("%s: %s is empty", c->path, what);
    for (int64_t i = 0; i < *bytes; i++) {
        if ((unsigned char)(*text)[i] < 32) return BAD("%s: %s has a control character in it", c->path, what);
    }
    return ESP_OK;
}

/* ---- metadata ---- */

/* Bytes of an element; 0: a text; -1: unknown. */
static int64_t value_bytes(int type)
{
    static const int64_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, -1, 8, 8, 8};
    return type >= 0 && type < (int)(sizeof bytes / sizeof *bytes) ? bytes[type] : -1;
}

static int skip_texts(cursor *c, int64_t count)
{
    const char *text;
    int64_t bytes;
    for (int64_t i = 0; i < count; i++) TRY(take_text(c, &text, &bytes, INT64_MAX, "a text of the metadata"));
    return ESP_OK;
}

static int read_value(cursor *c, pair *p)
{
    const char *key = p->key;
    int shown = (int)p->key_bytes;
    uint64_t n = 1;
    TRY(take(c, &p->type, 4, "the type of a value"));
    if (p->type == ESP_GGUF_ARRAY) {
        p->is_array = 1;
        TRY(take(c, &p->type, 4, "the type of an array"));
        TRY(take(c, &n, 8, "the length of an array"));
    }
    int64_t size = value_bytes(p->type);
    if (size < 0) return BAD("%s: the value of '%.*s' has the type %d, want 0 to 12%s", c->path, shown, key, p->type, p->is_array ? " and no array in an array" : "");
    /* A text is eight bytes at least. */
    if (n > (uint64_t)(left(c) / (size ? size : 8))) {
        return BAD("%s: '%.*s' says it has %llu values, which the file cannot hold", c->path, shown, key, (unsigned long long)n);
    }
    p->count = (int64_t)n;
    p->data = c->at;
    if (size == 0) return skip_texts(c, p->count);
    for (int64_t i = 0; p->type == ESP_GGUF_BOOL && i < p->count; i++) {
        if (c->at[i] != 0 && c->at[i] != 1) return BAD("%s: '%.*s' holds the truth value %d, want 0 or 1", c->path, shown, key, c->at[i]);
    }
    c->at += size * p->count;
    return ESP_OK;
}

/* ---- the directory of tensors ---- */

static int read_shape(cursor *c, entry *t)
{
    uint32_t ndim = 0;
    int64_t size = 0;
    int shown = (int)t->name_bytes;
    TRY(take(c, &ndim, 4, "the number of dimensions of a tensor"));
    if (ndim < 1 || ndim > MOST_DIMS) return BAD("%s: tensor '%.*s' has %u dimensions, want 1 to %d", c->path, shown, t->name, ndim, (int)MOST_DIMS);
    t->ndim = (int)ndim;
    /* The file names the dimension whose elements stand side by side first; shapes here name it last. */
    for (int d = t->ndim - 1; d >= 0; d--) {
        TRY(take(c, &size, 8, "the shape of a tensor"));
        if (size < 1) return BAD("%s: tensor '%.*s' has a dimension of %lld, want at least 1", c->path, shown, t->name, (long long)size);
        t->shape[d] = size;
    }
    return ESP_OK;
}

static int read_size(cursor *c, entry *t)
{
    int id = -1, shown = (int)t->name_bytes;
    int64_t n = 1, rows;
    TRY(take(c, &id, 4, "the type of a tensor"));
    for (t->type = 0; t->type < TYPES && types[t->type].id != id;) t->type++;
    if (t->type == TYPES) return BAD("%s: tensor '%.*s' has the type %d, which is not known", c->path, shown, t->name, id);
    int64_t block = types[t->type].elements, last = t->shape[t->ndim - 1];
    if (last % block != 0) {
        return BAD("%s: tensor '%.*s' has rows of %lld, want a multiple of %lld for %s", c->path, shown, t->name, (long long)last, (long long)block,
                   types[t->type].name);
    }
    for (int d = 0; d < t->ndim; d++) {
        if (__builtin_mul_overflow(n, t->shape[d], &n)) return BAD("%s: tensor '%.*s' has more elements than can be counted", c->path, shown, t->name);
    }
    rows = n / block;
    if (__builtin_mul_overflow(rows, types[t->type].bytes, &t->bytes)) return BAD("%s: tensor '%.*s' has more bytes than can be counted", c->path, shown, t->name);
    return ESP_OK;
}

static int64_t padded(int64_t bytes, int64_t alignment) { return (bytes + alignment - 1) & -alignment; }

/* Each tensor begins where the one before it ended, padded; the last may leave its padding out. */
static int check_places(const esp_gguf *g)
{
    int64_t at = 0, have = g->map->bytes - g->data_from;
    for (int64_t i = 0; i < g->count; i++) {
        const entry *t = &g->entries[i];
        if (t->begin != at) return BAD("%s: tensor '%s' begins at byte %lld of the data, want %lld", g->path, t->name, (long long)t->begin, (long long)at);
        if (t->bytes > have - at) {
            return BAD("%s: tensor '%s' has %lld bytes, the file has %lld more", g->path, t->name, (long long)t->bytes, (long long)esp_max_of(have - at, 0));
        }
        at = padded(at + t->bytes, g->alignment);
    }
    if (have > at) return BAD("%s: %lld bytes stand behind the last tensor", g->path, (long long)(have - at));
    return ESP_OK;
}

/* ---- names ---- */

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static int check_unique(const esp_gguf *g, int64_t count, const char **sorted, const char *what)
{
    qsort(sorted, (size_t)count, sizeof *sorted, by_text);
    for (int64_t i = 1; i < count; i++) {
        if (strcmp(sorted[i], sorted[i - 1]) == 0) return BAD("%s: the %s '%s' stands there twice", g->path, what, sorted[i]);
    }
    return ESP_OK;
}

static const char *copy_name(char **to, const char *from, int64_t bytes)
{
    char *name = *to;
    memcpy(name, from, (size_t)bytes);
    name[bytes] = 0;
    *to += bytes + 1;
    return name;
}

/* Copies keys and tensor names out of the file, ends them, and refuses one that stands there twice. */
static int settle_names(esp_gguf *g)
{
    int64_t bytes = 1, most = esp_max_of(g->pair_count, g->count);
    for (int64_t i = 0; i < g->pair_count; i++) bytes += g->pairs[i].key_bytes + 1;
    for (int64_t i = 0; i < g->count; i++) bytes += g->entries[i].name_bytes + 1;
    char *to = g->names = esp_malloc(bytes);
    if (!to) return ESP_EMEM;
    for (int64_t i = 0; i < g->pair_count; i++) g->pairs[i].key = copy_name(&to, g->pairs[i].key, g->pairs[i].key_bytes);
    for (int64_t i = 0; i < g->count; i++) g->entries[i].name = copy_name(&to, g->entries[i].name, g->entries[i].name_bytes);
    const char **sorted = esp_malloc(most * (int64_t)sizeof *sorted);
    if (!sorted) return ESP_EMEM;
    for (int64_t i = 0; i < g->pair_count; i++) sorted[i] = g->pairs[i].key;
    int code = check_unique(g, g->pair_count, sorted, "key");
    for (int64_t i = 0; i < g->count; i++) sorted[i] = g->entries[i].name;
    if (code == ESP_OK) code = check_unique(g, g->count, sorted, "tensor");
    esp_free(sorted);
    return code;
}

/* ---- the whole file ---- */

static int read_counts(cursor *c, esp_gguf *g)
{
    char magic[4];
    uint64_t tensors = 0, pairs = 0;
    TRY(take(c, magic, 4, "its first four bytes"));
    if (memcmp(magic, "GGUF", 4) != 0) return BAD("%s: begins with other bytes than GGUF; this is no GGUF file", c->path);
    TRY(take(c, &g->version, 4, "the version"));
    if ((g->version & 0xffff) == 0 && g->version != 0) return BAD("%s: is big endian, want a little-endian file", c->path);
    if (g->version != 2 && g->version != 3) return BAD("%s: is of GGUF version %d, want 2 or 3", c->path, g->version);
    TRY(take(c, &tensors, 8, "the number of tensors"));
    TRY(take(c, &pairs, 8, "the number of metadata pairs"));
    if (tensors > (uint64_t)left(c) / LEAST_ENTRY || pairs > (uint64_t)left(c) / LEAST_PAIR) {
        return BAD("%s: says it has %llu tensors and %llu metadata pairs, which %lld bytes cannot hold", c->path, (unsigned long long)tensors,
                   (unsigned long long)pairs, (long long)left(c));
    }
    /* Files of use have fifty; each costs several times its bytes. */
    if (pairs > MOST_PAIRS) return BAD("%s: %llu metadata pairs, at most %d can be", c->path, (unsigned long long)pairs, (int)MOST_PAIRS);
    g->pair_count = (int64_t)pairs;
    g->count = (int64_t)tensors;
    return ESP_OK;
}

static int read_alignment(esp_gguf *g)
{
    g->alignment = 32;
    for (int64_t i = 0; i < g->pair_count; i++) {
        const pair *p = &g->pairs[i];
        uint32_t value;
        if (strcmp(p->key, "general.alignment") != 0) continue;
        if (p->type != ESP_GGUF_U32 || p->is_array) return BAD("%s: general.alignment is no u32", g->path);
        memcpy(&value, p->data, 4);
        if (value == 0 || (value & (value - 1)) != 0 || value > MOST_ALIGNMENT) {
            return BAD("%s: general.alignment is %u, want a power of two up to %d", g->path, value, (int)MOST_ALIGNMENT);
        }
        g->alignment = value;
    }
    return ESP_OK;
}

static int read_file(esp_gguf *g)
{
    const char *start = g->map->data;
    cursor c = {start, start + g->map->bytes, g->path};
    TRY(read_counts(&c, g));
    if (!(g->pairs = esp_calloc(g->pair_count * (int64_t)sizeof *g->pairs))) return ESP_EMEM;
    if (!(g->entries = esp_calloc(g->count * (int64_t)sizeof *g->entries))) return ESP_EMEM;
    for (int64_t i = 0; i < g->pair_count; i++) {
        TRY(take_name(&c, &g->pairs[i].key, &g->pairs[i].key_bytes, MOST_KEY, "a key"));
        TRY(read_value(&c, &g->pairs[i]));
    }
    for (int64_t i = 0; i < g->count; i++) {
        entry *t = &g->entries[i];
        TRY(take_name(&c, &t->name, &t->name_bytes, MOST_NAME, "a tensor's name"));
        TRY(read_shape(&c, t));
        TRY(read_size(&c, t));
        TRY(take(&c, &t->begin, 8, "the place of a tensor"));
    }
    TRY(settle_names(g));
    TRY(read_alignment(g));
    /* Without tensors nothing needs to be padded. */
    g->data_from = g->count ? padded(c.at - start, g->alignment) : esp_min(padded(c.at - start, g->alignment), g->map->bytes);
    return check_places(g);
}

int esp_gguf_open(esp_gguf **out, const char *path)
{
    esp_gguf *g = esp_calloc(sizeof *g);
    if (!g) return ESP_EMEM;
    int code = (g->path = esp_copy_text(path)) ? esp_mapping_open(&g->map, path, 24, "GGUF file (want a header of 24)") : ESP_EMEM;
    if (code == ESP_OK) code = read_file(g);
    if (code == ESP_OK) *out = g;
    else esp_gguf_close(g);
    return code;
}

void esp_gguf_close(esp_gguf *g)
{
    if (!g) return;
    if (g->map) esp_mapping_release(g->map);
    esp_free(g->pairs);
    esp_free(g->entries);
    esp_free(g->names);
    esp_free(g->path);
    esp_free(g);
}

int esp_gguf_version(const esp_gguf *g) { return g->version; }
int64_t esp_gguf_key_count(const esp_gguf *g) { return g->pair_count; }
const char *esp_gguf_key(const esp_gguf *g, int64_t i) { return g->pairs[i].key; }

const void *esp_gguf_value(const esp_gguf *g, int64_t i, int *type, int *is_array, int64_t *count)
{
    const pair *p = &g->pairs[i];
    *type = p->type;
    *is_array = p->is_array;
    *count = p->count;
    return p->data;
}

int64_t esp_gguf_count(const esp_gguf *g) { return g->count; }
const char *esp_gguf_name(const esp_gguf *g, int64_t i) { return g->entries[i].name; }
const char *esp_gguf_type(const esp_gguf *g, int64_t i) { return types[g->entries[i].type].name; }
int esp_gguf_ndim(const esp_gguf *g, int64_t i) { return g->entries[i].ndim; }
const int64_t *esp_gguf_shape(const esp_gguf *g, int64_t i) { return g->entries[i].shape; }

int esp_gguf_tensor(esp_tensor **out, const esp_gguf *g, int64_t i)
{
    if (i < 0 || i >= g->count) return esp_fail(ESP_EARG, "gguf: tensor %lld of %lld", (long long)i, (long long)g->count);
    const entry *e = &g->entries[i];
    int dtype = types[e->type].dtype;
    char *from = (char *)g->map->data + g->data_from + e->begin;
    if (dtype < 0) return BAD("%s: tensor '%s' is %s; F32, F16, BF16, Q8_0, F64 and I32 are read here", g->path, e->name, types[e->type].name);
    if (types[e->type].elements == 1 && (intptr_t)from % esp_dtype_size(dtype) == 0) {
        return esp_tensor_over(out, dtype, e->ndim, e->shape, from, e->bytes, 1, esp_mapping_release, esp_mapping_share(g->map));
    }
    esp_tensor *t;
    TRY(esp_tensor_new(&t, dtype, e->ndim, e->shape));
    int code = ESP_OK;
    if (types[e->type].elements == 1) memcpy(esp_tensor_at(t), from, (size_t)e->bytes);
    else code = esp_q8_numbers(esp_tensor_at(t), from, t->count);
    if (code != ESP_OK) esp_tensor_free(t);
    else *out = t;
    return code;
}
