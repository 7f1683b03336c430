/* tokenizer.json: vocabulary, merges and model of BPE and unigram. A part that is not known is refused by name. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_tree.h"

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

/* Ids that nobody has become unused pieces, so many at most. */
enum { MOST_HOLES = 65536 };

static int id_at(int32_t *id, const json_tree *d, int64_t at, const char *what)
{
    if (kind_of(d, at) != ESP_JSON_INT || !(d->e[at].number >= 0 && d->e[at].number < 1 << 24)) return REFUSE("%s: the id of '%.100s' is no whole number from 0 to 2^24", d->path, what);
    *id = (int32_t)d->e[at].number;
    return ESP_OK;
}

typedef struct numbered {
    const esp_json_event *text;
    double score;
    int32_t id, type;
    int added;
} numbered;

static int by_id(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return y->added - x->added;
}

/* {"piece": id, ...} */
static int list_bpe(numbered *all, int64_t *n, const json_tree *d, int64_t vocab)
{
    if (kind_of(d, vocab) != ESP_JSON_OBJECT) return REFUSE("%s: model.vocab is missing or no object", d->path);
    for (int64_t i = vocab + 1; d->e[i].kind != ESP_JSON_OBJECT_END; i = d->after[i + 1]) {
        numbered *e = &all[(*n)++];
        *e = (numbered){.text = &d->e[i], .type = ESP_PIECE_NORMAL};
        TRY(id_at(&e->id, d, i + 1, d->e[i].text));
    }
    return ESP_OK;
}

/* [["piece", score], ...] by id. */
static int list_unigram(numbered *all, int64_t *n, const json_tree *d, int64_t vocab)
{
    if (kind_of(d, vocab) != ESP_JSON_ARRAY) return REFUSE("%s: model.vocab is missing or no list", d->path);
    for (int64_t i = first_item(d, vocab); is_item(d, i); i = d->after[i]) {
        const esp_json_event *e = &d->e[i];
        if (e->kind != ESP_JSON_ARRAY || e[1].kind != ESP_JSON_STRING || (e[2].kind != ESP_JSON_INT && e[2].kind != ESP_JSON_FLOAT)
            || e[3].kind != ESP_JSON_ARRAY_END || !isfinite(e[2].number)) {
            return REFUSE("%s: entry %lld of model.vocab is no piece with a score", d->path, (long long)*n);
        }
        all[*n] = (numbered){.text = e + 1, .score = e[2].number, .id = (int32_t)*n, .type = ESP_PIECE_NORMAL};
        ++*n;
    }
    return ESP_OK;
}

static int list_added(numbered *all, int64_t *n, const json_tree *d, int64_t added)
{
    for (int64_t i = first_item(d, added); is_item(d, i); i = d->after[i]) {
        int64_t content = esp_tree_get(d, i, "content");
        if (kind_of(d, content) != ESP_JSON_STRING || d->e[content].bytes == 0) return REFUSE("%s: an added token has no content", d->path);
        numbered *e = &all[(*n)++];
        *e = (numbered){.text = &d->e[content], .type = esp_tree_flag(d, i, "special", 0) ? ESP_PIECE_CONTROL : ESP_PIECE_USER, .added = 1};
        TRY(id_at(&e->id, d, esp_tree_get(d, i, "id"), d->e[content].text));
    }
    return ESP_OK;
}

/* Sorted entries become pieces; an added token that the model has too is one piece of the added token's type. */
static int add_pieces(esp_tokenizer *t, const json_tree *d, const numbered *all, int64_t n)
{
    int64_t holes = 0;
    for (int64_t i = 0; i < n; i++) {
        const numbered *e = &all[i];
        if (i > 0 && e->id == all[i - 1].id) {
            if (e->text->bytes != all[i - 1].text->bytes || memcmp(e->text->text, all[i - 1].text->text, (size_t)e->text->bytes) != 0) {
                return REFUSE("%s: '%.100s' and '%.100s' have the same id %d", d->path, all[i - 1].text->text, e->text->text, e->id);
            }
            t->pieces[e->id].in_model |= !e->added;
            t->pieces[e->id].score = e->added ? t->pieces[e->id].score : e->score;
            continue;
        }
        if ((holes += e->id - t->count) > MOST_HOLES) return REFUSE("%s: ids jump from %lld to %d", d->path, (long long)t->count, e->id);
        while (t->count < e->id) TRY(esp_tokenizer_add(t, "", 0, 0, ESP_PIECE_UNUSED));
        TRY(esp_tokenizer_add(t, e->text->text, e->text->bytes, e->score, e->type));
        t->pieces[e->id].added = e->added;
        t->pieces[e->id].in_model = !e->added;
    }
    return ESP_OK;
}

static int read_vocabulary(esp_tokenizer *t, const json_tree *d, int64_t vocab, int64_t added)
{
    int64_t n = 0, room = (vocab == NONE ? 0 : d->after[vocab] - vocab) / 2 + (added == NONE ? 0 : d->after[added] - added) / 2 + 2;
    numbered *all = esp_malloc(room * (int64_t)sizeof *all);
    if (!all) return ESP_EMEM;
    int code = t->model == MODEL_UNIGRAM ? list_unigram(all, &n, d, vocab) : list_bpe(all, &n, d, vocab);
    if (code == ESP_OK) code = list_added(all, &n, d, added);
    if (code == ESP_OK) qsort(all, (size_t)n, sizeof *all, by_id);
    if (code == ESP_OK) code = add_pieces(t, d, all, n);
    esp_free(all);
    return code == ESP_OK ? esp_tokenizer_index(t) : code;
}

static int make_rule(esp_tokenizer *t, const json_tree *d, esp_text *both, const esp_json_event *left, const char *right, int64_t ln, int64_t rn)
{
    both->bytes = 0;
    TRY(esp_text_add(both, left->text, ln));
    TRY(esp_text_add(both, right, rn));
    merge_rule r = {esp_tokenizer_find(t, left->text, ln), esp_tokenizer_find(t, right, rn), esp_tokenizer_find(t, both->at, ln + rn)};
    if (r.left < 0 || r.right < 0 || r.whole < 0) {
        return REFUSE("%s: merge %lld ('%.*s' and '%.*s') names a piece that is not in the vocabulary", d->path, (long long)t->merge_count,
                      (int)esp_min(ln, 100), left->text, (int)esp_min(rn, 100), right);
    }
    t->merges[t->merge_count++] = r;
    return ESP_OK;
}

/* Merges are texts "a b" or pairs ["a", "b"]. */
static int read_merge(esp_tokenizer *t, const json_tree *d, esp_text *both, const esp_json_event *e)
{
    if (e->kind == ESP_JSON_ARRAY && e[1].kind == ESP_JSON_STRING && e[2].kind == ESP_JSON_STRING && e[3].kind == ESP_JSON_ARRAY_END) {
        return make_rule(t, d, both, e + 1, e[2].text, e[1].bytes, e[2].bytes);
    }
    if (e->kind != ESP_JSON_STRING) return REFUSE("%s: merge %lld is neither a text nor a pair", d->path, (long long)t->merge_count);
    const char *space = strchr(e->text, ' ');
    if (!space || strchr(space + 1, ' ')) return REFUSE("%s: merge '%.100s' is not two pieces", d->path, e->text);
    return make_rule(t, d, both, e, space + 1, space - e->text, e->bytes - (space - e->text) - 1);
}

static int read_merges(esp_tokenizer *t, const json_tree *d, int64_t merges)
{
    if (kind_of(d, merges) != ESP_JSON_ARRAY) return REFUSE("%s: model.merges is missing", d->path);
    if (!(t->merges = esp_malloc((d->after[merges] - merges) * (int64_t)sizeof *t->merges))) return ESP_EMEM;
    esp_text both = {0};
    int code = ESP_OK;
    for (int64_t i = first_item(d, merges); code == ESP_OK && is_item(d, i); i = d->after[i]) code = read_merge(t, d, &both, &d->e[i]);
    esp_free(both.at);
    return code == ESP_OK ? esp_merge_index(t) : code;
}

static int read_bpe(esp_tokenizer *t, const json_tree *d, int64_t model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        if (*text_at(d, model, affixes[i])) return REFUSE("%s: model.%s '%.100s' is not known", d->path, affixes[i], text_at(d, model, affixes[i]));
    }
    int64_t dropout = esp_tree_get(d, model, "dropout");
    if (kind_of(d, dropout) != ESP_JSON_NULL && d->e[dropout].number != 0) return REFUSE("%s: model.dropout makes ids random; want null", d->path);
    TRY(read_merges(t, d, esp_tree_get(d, model, "merges")));
    t->ignore_merges = esp_tree_flag(d, model, "ignore_merges", 0);
    t->fuse_unk = esp_tree_flag(d, model, "fuse_unk", 0);
    const char *unk = text_at(d, model, "unk_token");
    t->unk = *unk ? esp_tokenizer_find(t, unk, (int64_t)strlen(unk)) : -1;
    if (*unk && t->unk < 0) return REFUSE("%s: model.unk_token '%.100s' is not in the vocabulary", d->path, unk);
    return ESP_OK;
}

static int read_unigram(esp_tokenizer *t, const json_tree *d, int64_t model)
{
    int64_t unk = esp_tree_get(d, model, "unk_id");
    if (kind_of(d, unk) != ESP_JSON_NULL) TRY(id_at(&t->unk, d, unk, "unk_id"));
    if (t->unk >= t->count) return REFUSE("%s: model.unk_id is %d, there are %lld pieces", d->path, t->unk, (long long)t->count);
    return ESP_OK;
}

static int read_model(esp_tokenizer *t, const json_tree *d, int64_t model, int64_t added)
{
    const char *type = text_at(d, model, "type");
    /* Files of older versions leave the type out. */
    int bpe = is(type, "BPE") || (is(type, "") && esp_tree_get(d, model, "merges") != NONE);
    if (!bpe && !is(type, "Unigram")) return REFUSE("%s: the model type is '%.100s', want BPE or Unigram", d->path, type);
    t->model = bpe ? MODEL_RULES : MODEL_UNIGRAM;
    TRY(read_vocabulary(t, d, esp_tree_get(d, model, "vocab"), added));
    TRY(bpe ? read_bpe(t, d, model) : read_unigram(t, d, model));
    if (esp_tree_flag(d, model, "byte_fallback", 0)) esp_tokenizer_find_bytes(t);
    return ESP_OK;
}

static int read_added(esp_tokenizer *t, const json_tree *d, int64_t added)
{
    if (added == NONE) return ESP_OK;
    int single_word = 0;
    if (!(t->added = esp_malloc((d->after[added] - added) / 2 * (int64_t)sizeof *t->added + 1))) return ESP_EMEM;
    for (int64_t i = first_item(d, added); is_item(d, i); i = d->after[i]) {
        added_token *a = &t->added[t->added_count++];
        *a = (added_token){.special = esp_tree_flag(d, i, "special", 0), .lstrip = esp_tree_flag(d, i, "lstrip", 0), .rstrip = esp_tree_flag(d, i, "rstrip", 0),
                           .single_word = esp_tree_flag(d, i, "single_word", 0)};
        a->normalized = esp_tree_flag(d, i, "normalized", !a->special);
        single_word |= a->single_word;
        const esp_json_event *content = &d->e[esp_tree_get(d, i, "content")];
        TRY(id_at(&a->id, d, esp_tree_get(d, i, "id"), content->text));
        int32_t known = esp_tokenizer_find(t, content->text, content->bytes);
        if (known != a->id) return REFUSE("%s: the added token '%.100s' has the id %d, the vocabulary gives it %d", d->path, content->text, a->id, known);
    }
    static const char word[] = "[" ESP_WORDS "\\x{200c}\\x{200d}]";
    if (single_word) TRY(esp_pattern_new(&t->word_character, word, sizeof word - 1, d->path));
    return ESP_OK;
}

static int32_t first_of(const esp_tokenizer *t, const char *const *names)
{
    for (; *names; names++) {
        int32_t id = esp_tokenizer_find(t, *names, (int64_t)strlen(*names));
        if (id >= 0) return id;
    }
    return -1;
}

static int read_all(esp_tokenizer *t, const json_tree *d)
{
    if (d->e[0].kind != ESP_JSON_OBJECT) return REFUSE("%s is no JSON object", d->path);
    t->json = 1;
    int64_t added = esp_tree_get(d, 0, "added_tokens");
    if (kind_of(d, added) != ESP_JSON_ARRAY) added = NONE;
    TRY(read_model(t, d, esp_tree_get(d, 0, "model"), added));
    TRY(read_added(t, d, added));
    TRY(esp_read_parts(t, d));
    t->kind = t->model == MODEL_UNIGRAM ? "unigram" : t->byte_level ? "byte-level BPE" : "byte-fallback BPE";
    /* tokenizer_config.json has the last word (read in Lua); these are the usual names. */
    static const char *const bos[] = {"<s>", "<|begin_of_text|>", "<bos>", "<|im_start|>", "<|endoftext|>", NULL};
    static const char *const eos[] = {"</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|endoftext|>", NULL};
    t->bos = t->before.count ? t->before.id[0] : first_of(t, bos);
    t->eos = first_of(t, eos);
    return esp_added_prepare(t);
}

int esp_load_tokenizer_json(esp_tokenizer *t, const char *data, int64_t bytes, const char *path)
{
    esp_json *j;
    TRY(esp_json_parse(&j, data, bytes, path));
    json_tree d = {.path = path};
    int code = esp_tree_index(&d, j);
    if (code == ESP_OK) code = read_all(t, &d);
    esp_free(d.after);
    esp_json_free(j);
    return code;
}
