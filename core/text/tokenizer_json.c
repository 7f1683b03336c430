/* tokenizer.json: byte-level BPE (GPT-2, Llama 3, SmolLM) and BPE with byte fallback (Llama 2). A part that is not known is refused by name. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* A value in the list of events: its first event, and for each event where the next value after it begins. */
typedef struct document {
    const esp_json_event *e;
    int64_t *after;
    const char *path;
} document;

enum { NONE = -1 };

static int index_document(document *d, const esp_json *j)
{
    int64_t n = esp_json_count(j), open[256];
    int depth = 0;
    d->e = esp_json_events(j);
    if (!(d->after = esp_malloc(n * 8))) return ESP_EMEM;
    for (int64_t i = 0; i < n; i++) {
        int kind = d->e[i].kind;
        d->after[i] = i + 1;
        if (kind == ESP_JSON_OBJECT || kind == ESP_JSON_ARRAY) open[depth++] = i;
        else if (kind == ESP_JSON_OBJECT_END || kind == ESP_JSON_ARRAY_END) d->after[open[--depth]] = i + 1;
    }
    return ESP_OK;
}

static int kind_of(const document *d, int64_t at) { return at == NONE ? ESP_JSON_NULL : d->e[at].kind; }

/* Value of a key of the object at `at`; NONE where it is absent. */
static int64_t get(const document *d, int64_t at, const char *key)
{
    if (kind_of(d, at) != ESP_JSON_OBJECT) return NONE;
    for (int64_t i = at + 1; d->e[i].kind != ESP_JSON_OBJECT_END; i = d->after[i + 1]) {
        if (strcmp(d->e[i].text, key) == 0) return i + 1;
    }
    return NONE;
}

static const char *text_of(const document *d, int64_t at) { return kind_of(d, at) == ESP_JSON_STRING ? d->e[at].text : ""; }
static const char *type_of(const document *d, int64_t at) { return text_of(d, get(d, at, "type")); }
static int flag_of(const document *d, int64_t at, const char *key, int otherwise)
{
    int64_t v = get(d, at, key);
    return kind_of(d, v) == ESP_JSON_BOOL ? d->e[v].flag : otherwise;
}
static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

#define REFUSE(...) esp_fail(ESP_EFORMAT, __VA_ARGS__)

/* ---- vocabulary and merges ---- */

static int id_at(int32_t *id, const document *d, int64_t at, const char *what)
{
    if (kind_of(d, at) != ESP_JSON_INT || !(d->e[at].number >= 0 && d->e[at].number < 1 << 24)) return REFUSE("%s: the id of '%s' is no whole number from 0", d->path, what);
    *id = (int32_t)d->e[at].number;
    return ESP_OK;
}

typedef struct numbered {
    const esp_json_event *text;
    int32_t id;
    int type;
    int64_t order;
} numbered;

static int by_id(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* Vocabulary and added tokens together, in the order of their ids; an id that nobody has becomes an unused piece. */
static int read_vocabulary(esp_tokenizer *t, const document *d, int64_t model, int64_t added)
{
    int64_t vocab = get(d, model, "vocab"), n = 0, room;
    if (kind_of(d, vocab) != ESP_JSON_OBJECT) return REFUSE("%s: model.vocab is missing", d->path);
    room = d->after[vocab] - vocab + (added == NONE ? 0 : d->after[added] - added);
    numbered *all = esp_malloc(room * (int64_t)sizeof *all);
    if (!all) return ESP_EMEM;
    int code = ESP_OK;
    for (int64_t i = vocab + 1; code == ESP_OK && d->e[i].kind != ESP_JSON_OBJECT_END; i = d->after[i + 1], n++) {
        all[n] = (numbered){.text = &d->e[i], .type = ESP_PIECE_NORMAL, .order = n};
        code = id_at(&all[n].id, d, i + 1, d->e[i].text);
    }
    for (int64_t i = added + 1; code == ESP_OK && added != NONE && d->e[i].kind == ESP_JSON_OBJECT; i = d->after[i], n++) {
        int64_t content = get(d, i, "content");
        if (kind_of(d, content) != ESP_JSON_STRING || d->e[content].bytes == 0) code = REFUSE("%s: an added token has no content", d->path);
        /* Added tokens come first among equals: the type of the entry in the vocabulary gives way. */
        else all[n] = (numbered){.text = &d->e[content], .type = flag_of(d, i, "special", 0) ? ESP_PIECE_CONTROL : ESP_PIECE_USER, .order = -1};
        if (code == ESP_OK) code = id_at(&all[n].id, d, get(d, i, "id"), d->e[content].text);
    }
    if (code == ESP_OK) qsort(all, (size_t)n, sizeof *all, by_id);
    for (int64_t i = 0; code == ESP_OK && i < n; i++) {
        if (i > 0 && all[i].id == all[i - 1].id) {
            if (all[i].text->bytes != all[i - 1].text->bytes || memcmp(all[i].text->text, all[i - 1].text->text, (size_t)all[i].text->bytes) != 0) {
                code = REFUSE("%s: '%s' and '%s' have the same id %d", d->path, all[i - 1].text->text, all[i].text->text, all[i].id);
            }
            continue;
        }
        if (all[i].id > t->count + 65536) code = REFUSE("%s: ids jump from %lld to %d", d->path, (long long)t->count, all[i].id);
        while (code == ESP_OK && t->count < all[i].id) code = esp_tokenizer_add(t, "", 0, 0, ESP_PIECE_UNUSED);
        if (code == ESP_OK) code = esp_tokenizer_add(t, all[i].text->text, all[i].text->bytes, 0, all[i].type);
    }
    esp_free(all);
    return code == ESP_OK ? esp_tokenizer_index(t) : code;
}

static int make_rule(esp_tokenizer *t, const document *d, const char *left, int64_t ln, const char *right, int64_t rn)
{
    char *both = esp_malloc(ln + rn + 1);
    if (!both) return ESP_EMEM;
    memcpy(both, left, (size_t)ln);
    memcpy(both + ln, right, (size_t)rn);
    int64_t rank = t->merge_count;
    merge_rule r = {esp_tokenizer_find(t, left, ln), esp_tokenizer_find(t, right, rn), esp_tokenizer_find(t, both, ln + rn)};
    esp_free(both);
    if (r.left < 0 || r.right < 0 || r.whole < 0) {
        return REFUSE("%s: merge %lld ('%.*s' and '%.*s') names a piece that is not in the vocabulary", d->path, (long long)rank, (int)ln, left, (int)rn, right);
    }
    t->merges[t->merge_count++] = r;
    return ESP_OK;
}

/* Merges are texts "a b" or pairs ["a", "b"]. */
static int read_merges(esp_tokenizer *t, const document *d, int64_t merges)
{
    if (kind_of(d, merges) != ESP_JSON_ARRAY) return REFUSE("%s: model.merges is missing", d->path);
    if (!(t->merges = esp_malloc((d->after[merges] - merges) * (int64_t)sizeof *t->merges))) return ESP_EMEM;
    for (int64_t i = merges + 1; d->e[i].kind != ESP_JSON_ARRAY_END; i = d->after[i]) {
        const esp_json_event *e = &d->e[i];
        if (e->kind == ESP_JSON_STRING) {
            const char *space = strchr(e->text, ' ');
            if (!space) return REFUSE("%s: merge '%s' is not two pieces", d->path, e->text);
            TRY(make_rule(t, d, e->text, space - e->text, space + 1, e->bytes - (space - e->text) - 1));
        } else if (e->kind == ESP_JSON_ARRAY && e[1].kind == ESP_JSON_STRING && e[2].kind == ESP_JSON_STRING && e[3].kind == ESP_JSON_ARRAY_END) {
            TRY(make_rule(t, d, e[1].text, e[1].bytes, e[2].text, e[2].bytes));
        } else {
            return REFUSE("%s: merge %lld is neither a text nor a pair", d->path, (long long)t->merge_count);
        }
    }
    return esp_merge_index(t);
}

static int read_added(esp_tokenizer *t, const document *d, int64_t added)
{
    if (added == NONE) return ESP_OK;
    if (!(t->added = esp_malloc((d->after[added] - added) * (int64_t)sizeof *t->added))) return ESP_EMEM;
    for (int64_t i = added + 1; d->e[i].kind == ESP_JSON_OBJECT; i = d->after[i]) {
        added_token *a = &t->added[t->added_count++];
        *a = (added_token){.special = flag_of(d, i, "special", 0), .lstrip = flag_of(d, i, "lstrip", 0), .rstrip = flag_of(d, i, "rstrip", 0),
                           .single_word = flag_of(d, i, "single_word", 0)};
        TRY(id_at(&a->id, d, get(d, i, "id"), "added token"));
    }
    return ESP_OK;
}

static int read_model(esp_tokenizer *t, const document *d, int64_t model, int64_t added)
{
    const char *type = type_of(d, model);
    /* Files of older versions leave the type out. */
    if (!is(type, "BPE") && !(is(type, "") && get(d, model, "merges") != NONE)) return REFUSE("%s: the model type is '%s', want BPE", d->path, type);
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? "continuing_subword_prefix" : "end_of_word_suffix";
        if (text_of(d, get(d, model, name))[0]) return REFUSE("%s: model.%s '%s' is not known", d->path, name, text_of(d, get(d, model, name)));
    }
    TRY(read_vocabulary(t, d, model, added));
    TRY(read_merges(t, d, get(d, model, "merges")));
    TRY(read_added(t, d, added));
    t->ignore_merges = flag_of(d, model, "ignore_merges", 0);
    const char *unk = text_of(d, get(d, model, "unk_token"));
    t->unk = *unk ? esp_tokenizer_find(t, unk, (int64_t)strlen(unk)) : -1;
    if (!flag_of(d, model, "byte_fallback", 0)) return ESP_OK;
    static const char digits[] = "0123456789ABCDEF";
    for (int b = 0; b < 256; b++) {
        char name[] = {'<', '0', 'x', digits[b >> 4], digits[b & 15], '>'};
        t->byte_id[b] = esp_tokenizer_find(t, name, 6);
        if (t->byte_id[b] >= 0) t->pieces[t->byte_id[b]].type = ESP_PIECE_BYTE;
    }
    return ESP_OK;
}

/* ---- normalizer and pre-tokenizer: a part, or a sequence of parts ---- */

static int add_split(esp_tokenizer *t, const document *d, const char *pattern, int64_t bytes)
{
    if (t->split_count == MOST_SPLITS) return REFUSE("%s: more than %d pre-tokenizers", d->path, (int)MOST_SPLITS);
    TRY(esp_split_new(&t->splits[t->split_count], pattern, bytes, d->path));
    t->split_count++;
    return ESP_OK;
}

static int read_normalizer(esp_tokenizer *t, const document *d, int64_t at)
{
    const char *type = type_of(d, at);
    if (kind_of(d, at) == ESP_JSON_NULL) return ESP_OK;
    if (is(type, "Sequence")) {
        int64_t list = get(d, at, "normalizers");
        for (int64_t i = list + 1; kind_of(d, list) == ESP_JSON_ARRAY && d->e[i].kind != ESP_JSON_ARRAY_END; i = d->after[i]) TRY(read_normalizer(t, d, i));
        return ESP_OK;
    }
    if (is(type, "NFC")) {
        t->nfc = 1;
        return ESP_OK;
    }
    if (is(type, "Prepend") && is(text_of(d, get(d, at, "prepend")), "\xe2\x96\x81")) {
        t->dummy_prefix = 1;
        return ESP_OK;
    }
    if (is(type, "Replace") && is(text_of(d, get(d, at, "content")), "\xe2\x96\x81") && is(text_of(d, get(d, get(d, at, "pattern"), "String")), " ")) {
        t->escape_spaces = 1;
        return ESP_OK;
    }
    return REFUSE("%s: the normalizer '%s' with these options is not known", d->path, type);
}

/* GPT-2's words: contractions, letters, digits and signs with a space before them, and runs of spaces. */
static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int read_split(esp_tokenizer *t, const document *d, int64_t at)
{
    int64_t regex = get(d, get(d, at, "pattern"), "Regex");
    if (!is(text_of(d, get(d, at, "behavior")), "Isolated") || flag_of(d, at, "invert", 0) || regex == NONE) {
        return REFUSE("%s: the pre-tokenizer Split is known with a Regex, behavior Isolated and not inverted only", d->path);
    }
    return add_split(t, d, d->e[regex].text, d->e[regex].bytes);
}

static int read_pre_tokenizer(esp_tokenizer *t, const document *d, int64_t at)
{
    const char *type = type_of(d, at);
    if (kind_of(d, at) == ESP_JSON_NULL) return ESP_OK;
    if (is(type, "Sequence")) {
        int64_t list = get(d, at, "pretokenizers");
        for (int64_t i = list + 1; kind_of(d, list) == ESP_JSON_ARRAY && d->e[i].kind != ESP_JSON_ARRAY_END; i = d->after[i]) TRY(read_pre_tokenizer(t, d, i));
        return ESP_OK;
    }
    if (is(type, "ByteLevel")) {
        t->byte_level = 1;
        t->prefix_space = flag_of(d, at, "add_prefix_space", 1);
        return flag_of(d, at, "use_regex", 1) ? add_split(t, d, gpt2, sizeof gpt2 - 1) : ESP_OK;
    }
    if (is(type, "Split")) return read_split(t, d, at);
    if (is(type, "Digits")) return flag_of(d, at, "individual_digits", 0) ? add_split(t, d, "\\p{N}", 5) : add_split(t, d, "\\p{N}+", 6);
    if (is(type, "Metaspace") && is(text_of(d, get(d, at, "replacement")), "\xe2\x96\x81") && !flag_of(d, at, "split", 1)) {
        const char *scheme = text_of(d, get(d, at, "prepend_scheme"));
        t->escape_spaces = 1;
        t->dummy_prefix = !is(scheme, "never");
        return ESP_OK;
    }
    return REFUSE("%s: the pre-tokenizer '%s' with these options is not known", d->path, type);
}

static int32_t first_of(const esp_tokenizer *t, const char *const *names)
{
    for (; *names; names++) {
        int32_t id = esp_tokenizer_find(t, *names, (int64_t)strlen(*names));
        if (id >= 0) return id;
    }
    return -1;
}

static int read_all(esp_tokenizer *t, const document *d)
{
    if (d->e[0].kind != ESP_JSON_OBJECT) return REFUSE("%s is no JSON object", d->path);
    int64_t added = get(d, 0, "added_tokens");
    if (kind_of(d, added) != ESP_JSON_ARRAY) added = NONE;
    TRY(read_model(t, d, get(d, 0, "model"), added));
    TRY(read_normalizer(t, d, get(d, 0, "normalizer")));
    TRY(read_pre_tokenizer(t, d, get(d, 0, "pre_tokenizer")));
    t->kind = t->byte_level ? "byte-level BPE" : "byte-fallback BPE";
    /* tokenizer_config.json has the last word (read in Lua); these are the usual names. */
    static const char *const bos[] = {"<s>", "<|begin_of_text|>", "<|im_start|>", "<|endoftext|>", NULL};
    static const char *const eos[] = {"</s>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", NULL};
    t->bos = first_of(t, bos);
    t->eos = first_of(t, eos);
    return ESP_OK;
}

int esp_load_tokenizer_json(esp_tokenizer *t, const char *data, int64_t bytes, const char *path)
{
    esp_json *j;
    TRY(esp_json_parse(&j, data, bytes, path));
    document d = {.path = path};
    int code = index_document(&d, j);
    if (code == ESP_OK) code = read_all(t, &d);
    esp_free(d.after);
    esp_json_free(j);
    return code;
}
