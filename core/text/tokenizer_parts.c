/* tokenizer.json: normalizer, pre-tokenizer, decoder and post-processor. Each is a part or a sequence of parts; a part that is not known, or known with
 * other options only, is refused by name. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "json_tree.h"

typedef struct builder {
    esp_tokenizer *t;
    const json_tree *d;
    esp_steps *steps;
    esp_text shape;                        /* what the pre-tokenizer consists of, for its name */
} builder;

/* Files of use have a dozen steps and put two ids around a text at most. */
enum { MOST_STEPS = 64, MOST_FRAME = 64 };

typedef int part_fn(builder *b, int64_t at);
typedef struct part {
    const char *type;
    part_fn *read;
} part;

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static int refuse(const builder *b, int64_t at, const char *what)
{
    return REFUSE("%s: %s of '%.100s' is not known", b->d->path, what, text_at(b->d, at, "type"));
}

/* A step whose content is the text of a key. */
static int step_with(esp_step *s, const builder *b, int64_t at, const char *key)
{
    int64_t v = esp_tree_get(b->d, at, key);
    if (kind_of(b->d, v) != ESP_JSON_STRING) return REFUSE("%s: '%s' is missing in '%.100s'", b->d->path, key, text_at(b->d, at, "type"));
    const char *text = esp_json_text(b->d->j, v, &s->content_bytes);
    if (!(s->content = esp_malloc(s->content_bytes + 1))) return ESP_EMEM;
    memcpy(s->content, text, (size_t)s->content_bytes);
    return ESP_OK;
}

/* {"String": text} or {"Regex": pattern} under "pattern". */
static int read_pattern(esp_pattern **out, const builder *b, int64_t at)
{
    int64_t pattern = esp_tree_get(b->d, at, "pattern"), text = esp_tree_get(b->d, pattern, "String"), regex = esp_tree_get(b->d, pattern, "Regex");
    int64_t which = kind_of(b->d, text) == ESP_JSON_STRING ? text : regex, bytes;
    if (kind_of(b->d, which) != ESP_JSON_STRING) return refuse(b, at, "the pattern");
    const char *pattern_text = esp_json_text(b->d->j, which, &bytes);
    return which == text ? esp_pattern_literal(out, pattern_text, bytes) : esp_pattern_oniguruma(out, pattern_text, bytes, b->d->path);
}

/* Adds a step, or frees what it holds where making it failed. */
static int finish(builder *b, int code, esp_step s)
{
    if (code == ESP_OK) return esp_steps_add(b->steps, s);
    esp_pattern_free(s.pattern);
    esp_free(s.content);
    return code;
}

static int read_parts(builder *b, int64_t at, const part *known, const char *list, const char *what)
{
    if (kind_of(b->d, at) == ESP_JSON_NULL) return ESP_OK;
    const char *type = text_at(b->d, at, "type");
    if (is(type, "Sequence")) {
        int64_t items = esp_tree_get(b->d, at, list);
        if (kind_of(b->d, items) != ESP_JSON_ARRAY) return refuse(b, at, "the list");
        for EACH_ITEM(i, b->d, items) TRY(read_parts(b, i, known, list, what));
        return ESP_OK;
    }
    if (b->steps->count >= MOST_STEPS) return REFUSE("%s: more than %d steps of its %s", b->d->path, (int)MOST_STEPS, what);
    for (; known->type; known++) if (is(type, known->type)) return known->read(b, at);
    return REFUSE("%s: the %s '%.100s' is not known", b->d->path, what, type);
}

/* ---- normalizers ---- */

static int read_form(builder *b, int64_t at)
{
    const char *type = text_at(b->d, at, "type");
    int compat = type[2] == 'K', compose = type[strlen(type) - 1] == 'C';
    int option = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compat ? UTF8PROC_COMPAT : 0);
    return esp_steps_add(b->steps, (esp_step){.map = esp_map_form, .option = option});
}

static int read_lowercase(builder *b, int64_t at) { (void)at; return esp_steps_add(b->steps, (esp_step){.map = esp_map_lower}); }
static int read_accents(builder *b, int64_t at) { (void)at; return esp_steps_add(b->steps, (esp_step){.map = esp_map_accents}); }
static int read_nmt(builder *b, int64_t at) { (void)at; return esp_steps_add(b->steps, (esp_step){.map = esp_map_nmt}); }

static int read_letters(builder *b, int64_t at)
{
    (void)at;
    b->t->byte_level = 1;
    return esp_steps_add(b->steps, (esp_step){.map = esp_map_letters});
}

static int read_strip(builder *b, int64_t at)
{
    esp_step s = {.map = esp_map_strip, .left = esp_tree_flag(b->d, at, "strip_left", 1), .right = esp_tree_flag(b->d, at, "strip_right", 1)};
    return esp_steps_add(b->steps, s);
}

static int read_prepend(builder *b, int64_t at)
{
    esp_step s = {.map = esp_map_prepend};
    int code = step_with(&s, b, at, "prepend");
    return finish(b, code, s);
}

static int read_replace(builder *b, int64_t at)
{
    esp_step s = {.map = esp_map_replace};
    int code = step_with(&s, b, at, "content");
    if (code == ESP_OK) code = read_pattern(&s.pattern, b, at);
    return finish(b, code, s);
}

static int base64_digit(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : c == '/' ? 63 : -1;
}

int64_t esp_base64(char *to, const char *text, int64_t bytes)
{
    int64_t n = 0;
    uint32_t bits = 0;
    int have = 0;
    while (bytes && text[bytes - 1] == '=') bytes--;
    for (int64_t i = 0; i < bytes; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0) return -1;
        bits = bits << 6 | (uint32_t)digit;
        if ((have += 6) >= 8) to[n++] = (char)(bits >> (have -= 8));
    }
    return n;
}

static int read_precompiled(builder *b, int64_t at)
{
    esp_step s = {.map = esp_map_graphemes};
    int code = step_with(&s, b, at, "precompiled_charsmap");
    if (code == ESP_OK) {
        s.content_bytes = esp_base64(s.content, s.content, s.content_bytes);
        code = esp_charsmap_check(s.content, s.content_bytes, b->d->path);
    }
    return finish(b, code, s);
}

static const part normalizers[] = {
    {"NFC", read_form}, {"NFD", read_form}, {"NFKC", read_form}, {"NFKD", read_form}, {"Lowercase", read_lowercase}, {"StripAccents", read_accents},
    {"Nmt", read_nmt}, {"ByteLevel", read_letters}, {"Strip", read_strip}, {"Prepend", read_prepend}, {"Replace", read_replace},
    {"Precompiled", read_precompiled}, {NULL, NULL}};

/* ---- pre-tokenizers ---- */

static int behavior_of(enum esp_behavior *out, const builder *b, int64_t at, const char *otherwise)
{
    static const char *const names[] = {NULL, "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = text_at(b->d, at, "behavior");
    if (!*name) name = otherwise;
    for (int i = 1; i < 6; i++) {
        if (!is(name, names[i])) continue;
        *out = (enum esp_behavior)i;
        return ESP_OK;
    }
    return REFUSE("%s: the behavior '%.100s' of '%s' is not known", b->d->path, name, text_at(b->d, at, "type"));
}

/* What the name of the pre-tokenizer is found by. */
static int note(builder *b, const char *text)
{
    TRY(esp_text_add(&b->shape, text, (int64_t)strlen(text)));
    return esp_text_add(&b->shape, "\n", 1);
}

static int add_cut(builder *b, const char *pattern, enum esp_behavior behavior, int invert)
{
    esp_step s = {.behavior = behavior, .invert = invert};
    int code = esp_pattern_oniguruma(&s.pattern, pattern, (int64_t)strlen(pattern), b->d->path);
    return finish(b, code, s);
}

static int read_split(builder *b, int64_t at)
{
    esp_step s = {.invert = esp_tree_flag(b->d, at, "invert", 0)};
    int code = behavior_of(&s.behavior, b, at, "");
    if (code == ESP_OK) code = read_pattern(&s.pattern, b, at);
    if (code == ESP_OK) code = note(b, text_at(b->d, esp_tree_get(b->d, at, "pattern"), "Regex"));
    return finish(b, code, s);
}

static int read_byte_level(builder *b, int64_t at)
{
    b->t->byte_level = 1;
    if (esp_tree_flag(b->d, at, "add_prefix_space", 1)) {
        TRY(esp_steps_add(b->steps, (esp_step){.map = esp_map_space}));
        TRY(note(b, "space"));
    }
    if (esp_tree_flag(b->d, at, "use_regex", 1)) {
        TRY(add_cut(b, esp_gpt2_pattern, CUT_ISOLATED, 0));
        TRY(note(b, "GPT-2"));
    }
    return esp_steps_add(b->steps, (esp_step){.map = esp_map_letters});
}

static int read_digits(builder *b, int64_t at)
{
    int each = esp_tree_flag(b->d, at, "individual_digits", 0);
    TRY(note(b, each ? "digits" : "numbers"));
    return add_cut(b, "\\p{N}", each ? CUT_ISOLATED : CUT_CONTIGUOUS, 0);
}

/* ASCII's signs count as punctuation although Unicode calls some of them symbols. */
#define PUNCTUATION "[\\p{P}$+<=>\\^`|~]"

static int read_punctuation(builder *b, int64_t at)
{
    enum esp_behavior behavior = CUT_ISOLATED;
    TRY(behavior_of(&behavior, b, at, "Isolated"));
    TRY(note(b, "punctuation"));
    return add_cut(b, PUNCTUATION, behavior, 0);
}

static int read_whitespace(builder *b, int64_t at)
{
    (void)at;
    esp_step s = {.behavior = CUT_REMOVED, .invert = 1};
    static const char words[] = "[" ESP_WORDS "\\x{200c}\\x{200d}]+|[^\\s" ESP_WORDS "\\x{200c}\\x{200d}]+";
    int code = esp_pattern_oniguruma(&s.pattern, words, sizeof words - 1, b->d->path);
    return finish(b, code, s);
}

static int read_whitespace_split(builder *b, int64_t at) { (void)at; return add_cut(b, "\\s", CUT_REMOVED, 0); }

static int read_bert(builder *b, int64_t at)
{
    (void)at;
    TRY(add_cut(b, "\\s", CUT_REMOVED, 0));
    return add_cut(b, PUNCTUATION, CUT_ISOLATED, 0);
}

static int read_delimiter(builder *b, int64_t at)
{
    esp_step s = {.behavior = CUT_REMOVED};
    const char *delimiter = text_at(b->d, at, "delimiter");
    int code = esp_pattern_literal(&s.pattern, delimiter, (int64_t)strlen(delimiter));
    return finish(b, code, s);
}

/* 0 never, 1 at the beginning of the text, 2 always. Older files say add_prefix_space. */
static int scheme_of(int *out, const builder *b, int64_t at)
{
    const char *name = text_at(b->d, at, "prepend_scheme");
    int known = is(name, "never") || is(name, "first") || is(name, "always") || !*name;
    *out = is(name, "never") || !esp_tree_flag(b->d, at, "add_prefix_space", 1) ? 0 : is(name, "first") ? 1 : 2;
    return known ? ESP_OK : refuse(b, at, "the prepend_scheme");
}

static int read_metaspace(builder *b, int64_t at)
{
    esp_step s = {.map = esp_map_metaspace};
    int code = step_with(&s, b, at, "replacement");
    if (code == ESP_OK) code = scheme_of(&s.option, b, at);
    if (code == ESP_OK && esp_tree_flag(b->d, at, "split", 1)) {
        s.behavior = CUT_NEXT;
        code = esp_pattern_literal(&s.pattern, s.content, s.content_bytes);
    }
    return finish(b, code, s);
}

static const part pre_tokenizers[] = {
    {"Split", read_split}, {"ByteLevel", read_byte_level}, {"Digits", read_digits}, {"Punctuation", read_punctuation}, {"Metaspace", read_metaspace},
    {"Whitespace", read_whitespace}, {"WhitespaceSplit", read_whitespace_split}, {"BertPreTokenizer", read_bert}, {"CharDelimiterSplit", read_delimiter},
    {NULL, NULL}};

static const char tekken[] = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static int has_form_c(const esp_tokenizer *t)
{
    return t->normalizer.count == 1 && t->normalizer.step[0].map == esp_map_form && t->normalizer.step[0].option == (UTF8PROC_STABLE | UTF8PROC_COMPOSE);
}

/* GGUF's name where texts are normalized and cut in a way that it has a name for. whole: what llama.cpp takes ignore_merges for under that name; -1: files
 * of one family differ in it. */
static void name_shape(esp_tokenizer *t, const esp_text *shape)
{
    const struct { const char *parts[4], *name; int form_c, whole; } known[] = {
        {{"GPT-2"}, "gpt-2", 0, 0}, {{esp_llama3_pattern}, "llama-bpe", 0, 1}, {{esp_qwen2_pattern}, "qwen2", 1, 0}, {{tekken}, "tekken", 0, -1},
        {{"digits", "GPT-2"}, "smollm", 0, 0}, {{"punctuation", "GPT-2", "numbers", "[0-9][0-9][0-9]"}, "falcon", 0, 0}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int64_t at = 0;
        int same = (known[i].whole < 0 || t->ignore_merges == known[i].whole) && (known[i].form_c ? has_form_c(t) : t->normalizer.count == 0);
        for (int k = 0; k < 4 && known[i].parts[k]; k++) {
            int64_t n = (int64_t)strlen(known[i].parts[k]);
            same = same && shape->bytes - at > n && memcmp(shape->at + at, known[i].parts[k], (size_t)n) == 0 && shape->at[at + n] == '\n';
            at += n + 1;
        }
        if (same && at == shape->bytes) t->pre = known[i].name;
    }
}

/* ---- decoders ---- */

static int read_unletter(builder *b, int64_t at)
{
    (void)at;
    return esp_steps_add(b->steps, (esp_step){.map = esp_map_unletter, .fuse = 1});
}

static int read_unbyte(builder *b, int64_t at) { (void)at; return esp_steps_add(b->steps, (esp_step){.map = esp_map_unbyte}); }
static int read_fuse(builder *b, int64_t at) { (void)at; return esp_steps_add(b->steps, (esp_step){.fuse = 1}); }

static int count_at(const builder *b, int64_t at) { return (int)esp_min((int64_t)esp_json_number(b->d->j, at), 1 << 20); }

static int read_trim(builder *b, int64_t at)
{
    int64_t start = esp_tree_get(b->d, at, "start"), stop = esp_tree_get(b->d, at, "stop");
    if (kind_of(b->d, start) != ESP_JSON_INT || kind_of(b->d, stop) != ESP_JSON_INT) return refuse(b, at, "start or stop");
    esp_step s = {.map = esp_map_trim, .left = count_at(b, start), .right = count_at(b, stop)};
    int code = step_with(&s, b, at, "content");
    if (code == ESP_OK && s.content_bytes == 0) code = refuse(b, at, "an empty content");
    return finish(b, code, s);
}

static int read_unmetaspace(builder *b, int64_t at)
{
    esp_step s = {.map = esp_map_unmetaspace};
    int code = step_with(&s, b, at, "replacement");
    if (code == ESP_OK && s.content_bytes == 0) code = refuse(b, at, "an empty replacement");
    if (code == ESP_OK) code = scheme_of(&s.option, b, at);
    return finish(b, code, s);
}

static const part decoders[] = {{"ByteLevel", read_unletter}, {"ByteFallback", read_unbyte}, {"Fuse", read_fuse}, {"Strip", read_trim},
                                {"Metaspace", read_unmetaspace}, {"Replace", read_replace}, {NULL, NULL}};

/* ---- post-processors ---- */

static int push_special(builder *b, esp_ids *to, int64_t specials, const char *name)
{
    int64_t ids = esp_tree_get(b->d, esp_tree_get(b->d, specials, name), "ids");
    if (kind_of(b->d, ids) != ESP_JSON_ARRAY) return REFUSE("%s: the special token '%.100s' of TemplateProcessing has no ids", b->d->path, name);
    if (items_of(b->d, ids) > MOST_FRAME) return REFUSE("%s: the special token '%.100s' of TemplateProcessing has more than %d ids", b->d->path, name, (int)MOST_FRAME);
    for EACH_ITEM(i, b->d, ids) {
        double id = esp_json_number(b->d->j, i);
        if (kind_of(b->d, i) != ESP_JSON_INT || !(id >= 0 && id < (double)b->t->count)) return REFUSE("%s: an id of '%.100s' is outside the vocabulary", b->d->path, name);
        TRY(esp_ids_push(to, (int32_t)id));
    }
    return ESP_OK;
}

static int read_template(builder *b, int64_t at)
{
    int64_t single = esp_tree_get(b->d, at, "single"), specials = esp_tree_get(b->d, at, "special_tokens");
    int texts = 0;
    if (items_of(b->d, single) > MOST_FRAME) return refuse(b, at, "the length of the template");
    for EACH_ITEM(i, b->d, single) {
        int64_t special = esp_tree_get(b->d, i, "SpecialToken"), text = esp_tree_get(b->d, i, "Sequence");
        if (special == NONE && text == NONE) return refuse(b, at, "a part of the template");
        texts += text != NONE;
        if (special != NONE) TRY(push_special(b, texts ? &b->t->after : &b->t->before, specials, text_at(b->d, special, "id")));
    }
    return texts == 1 ? ESP_OK : refuse(b, at, "a template without the text, or with more than one,");
}

/* ["token", id] */
static int push_pair(builder *b, esp_ids *to, int64_t at, const char *key)
{
    int64_t pair = esp_tree_get(b->d, at, key);
    if (items_of(b->d, pair) != 2 || kind_of(b->d, pair + 1) != ESP_JSON_STRING || kind_of(b->d, pair + 2) != ESP_JSON_INT) return refuse(b, at, key);
    double id = esp_json_number(b->d->j, pair + 2);
    if (!(id >= 0 && id < (double)b->t->count)) return refuse(b, at, key);
    return esp_ids_push(to, (int32_t)id);
}

static int read_bert_frame(builder *b, int64_t at)
{
    TRY(push_pair(b, &b->t->before, at, "cls"));
    return push_pair(b, &b->t->after, at, "sep");
}

/* It changes where tokens are said to begin, not which they are. */
static int read_nothing(builder *b, int64_t at) { (void)b, (void)at; return ESP_OK; }

static const part processors[] = {{"TemplateProcessing", read_template}, {"ByteLevel", read_nothing}, {"BertProcessing", read_bert_frame},
                                  {"RobertaProcessing", read_bert_frame}, {NULL, NULL}};

int esp_read_parts(esp_tokenizer *t, const json_tree *d)
{
    builder b = {.t = t, .d = d, .steps = &t->normalizer};
    int64_t decoder = esp_tree_get(d, 0, "decoder");
    TRY(read_parts(&b, esp_tree_get(d, 0, "normalizer"), normalizers, "normalizers", "normalizer"));
    b.steps = &t->pre_tokenizer;
    int code = read_parts(&b, esp_tree_get(d, 0, "pre_tokenizer"), pre_tokenizers, "pretokenizers", "pre-tokenizer");
    if (code == ESP_OK) name_shape(t, &b.shape);
    esp_free(b.shape.at);
    TRY(code);
    /* Where the letters of bytes come last, words are looked up by their bytes. */
    esp_steps *p = &t->pre_tokenizer;
    if (t->model == MODEL_RULES && p->count && p->step[p->count - 1].map == esp_map_letters) {
        p->count--;
        t->raw = 1;
        esp_tokenizer_find_letters(t);
    }
    b.steps = &t->decoder;
    t->has_decoder = kind_of(d, decoder) != ESP_JSON_NULL;
    TRY(read_parts(&b, decoder, decoders, "decoders", "decoder"));
    return read_parts(&b, esp_tree_get(d, 0, "post_processor"), processors, "processors", "post-processor");
}
