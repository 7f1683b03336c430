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
    double number = esp_json_number(d->j, at == NONE ? 0 : at);
    if (kind_of(d, at) != ESP_JSON_INT || !(number >= 0 && number < 1 << 24)) return REFUSE("%s: the id of '%.100s' is no whole number from 0 to 2^24", d->path, what);
    *id = (int32_t)number;
    return ESP_OK;
}

/* Where each id stands in the file: as a piece of the model (its text), and as an added token (its object); 0: nowhere. */
typedef struct numbering {
    uint32_t *model, *added;
    int64_t room, count, text;             /* ids there can be, ids there are, bytes of their texts */
} numbering;

static const char *text_of(const numbering *n, const json_tree *d, int32_t id, int64_t *bytes)
{
    *bytes = 0;
    if (n->model[id]) return esp_json_text(d->j, n->model[id], bytes);
    return n->added[id] ? esp_json_text(d->j, esp_tree_get(d, n->added[id], "content"), bytes) : "";
}

/* One text to an id, which the model and the added tokens may both name. */
static int number(uint32_t *of, int64_t at, numbering *n, const json_tree *d, int64_t text, int32_t id)
{
    int64_t bytes, other_bytes;
    const char *t = esp_json_text(d->j, text, &bytes);
    if (id >= n->room) return REFUSE("%s: the id %d of '%.100s' is far beyond the number of its pieces", d->path, id, t);
    const char *other = text_of(n, d, id, &other_bytes);
    if ((n->model[id] || n->added[id]) && (bytes != other_bytes || memcmp(t, other, (size_t)bytes) != 0)) {
        return REFUSE("%s: '%.100s' and '%.100s' have the same id %d", d->path, other, t, id);
    }
    of[id] = (uint32_t)at;
    n->text += bytes + 1;
    n->count = esp_max_of(n->count, id + 1);
    return ESP_OK;
}

/* {"piece": id, ...} */
static int number_bpe(numbering *n, const json_tree *d, int64_t vocab)
{
    int32_t id = 0;
    if (kind_of(d, vocab) != ESP_JSON_OBJECT) return REFUSE("%s: model.vocab is missing or no object", d->path);
    for (int64_t i = vocab + 1, end = esp_json_after(d->j, vocab); i < end; i = esp_json_after(d->j, i + 1)) {
        TRY(id_at(&id, d, i + 1, esp_json_text(d->j, i, NULL)));
        TRY(number(n->model, i, n, d, i, id));
    }
    return ESP_OK;
}

/* [["piece", score], ...] by id. */
static int number_unigram(numbering *n, const json_tree *d, int64_t vocab)
{
    int32_t id = 0;
    if (kind_of(d, vocab) != ESP_JSON_ARRAY) return REFUSE("%s: model.vocab is missing or no list", d->path);
    for EACH_ITEM(i, d, vocab) {
        int score = items_of(d, i) == 2 && kind_of(d, i + 1) == ESP_JSON_STRING ? kind_of(d, i + 2) : ESP_JSON_NULL;
        if ((score != ESP_JSON_INT && score != ESP_JSON_FLOAT) || !isfinite(esp_json_number(d->j, i + 2))) {
            return REFUSE("%s: entry %d of model.vocab is no piece with a score", d->path, id);
        }
        TRY(number(n->model, i + 1, n, d, i + 1, id++));
    }
    return ESP_OK;
}

static int number_added(numbering *n, const json_tree *d, int64_t added)
{
    int32_t id = 0;
    for EACH_ITEM(i, d, added) {
        int64_t content = esp_tree_get(d, i, "content"), bytes = 0;
        const char *text = kind_of(d, content) == ESP_JSON_STRING ? esp_json_text(d->j, content, &bytes) : "";
        if (bytes == 0) return REFUSE("%s: an added token has no content", d->path);
        TRY(id_at(&id, d, esp_tree_get(d, i, "id"), text));
        TRY(number(n->added, i, n, d, content, id));
    }
    return ESP_OK;
}

static int type_of(const numbering *n, const json_tree *d, int32_t id)
{
    if (n->added[id]) return esp_tree_flag(d, n->added[id], "special", 0) ? ESP_PIECE_CONTROL : ESP_PIECE_USER;
    return n->model[id] ? ESP_PIECE_NORMAL : ESP_PIECE_UNUSED;
}

/* Ids in order become pieces; an added token that the model has too is one piece of the added token's type. */
static int add_pieces(esp_tokenizer *t, const json_tree *d, const numbering *n)
{
    TRY(esp_tokenizer_reserve(t, n->count, n->text + n->count));
    for (int32_t id = 0; id < n->count; id++) {
        int64_t bytes;
        const char *text = text_of(n, d, id, &bytes);
        double score = t->model == MODEL_UNIGRAM && n->model[id] ? esp_json_number(d->j, n->model[id] + 1) : 0;
        TRY(esp_tokenizer_add(t, text, bytes, score, type_of(n, d, id)));
        t->pieces[id].in_model = n->model[id] != 0;
    }
    return ESP_OK;
}

static int read_vocabulary(esp_tokenizer *t, const json_tree *d, int64_t vocab, int64_t added)
{
    numbering n = {.room = (vocab == NONE ? 0 : esp_json_items(d->j, vocab)) + items_of(d, added) + MOST_HOLES};
    if (n.room > ESP_MOST_PIECES) return REFUSE("%s: %lld pieces, at most %d can be", d->path, (long long)(n.room - MOST_HOLES), ESP_MOST_PIECES - MOST_HOLES);
    int code = (n.model = esp_calloc(n.room * 4)) && (n.added = esp_calloc(n.room * 4)) ? ESP_OK : ESP_EMEM;
    if (code == ESP_OK) code = t->model == MODEL_UNIGRAM ? number_unigram(&n, d, vocab) : number_bpe(&n, d, vocab);
    if (code == ESP_OK) code = number_added(&n, d, added);
    if (code == ESP_OK) code = add_pieces(t, d, &n);
    esp_free(n.model);
    esp_free(n.added);
    return code == ESP_OK ? esp_tokenizer_index(t) : code;
}

static int make_rule(esp_tokenizer *t, const json_tree *d, esp_text *both, const char *left, int64_t ln, const char *right, int64_t rn)
{
    both->bytes = 0;
    TRY(esp_text_add(both, left, ln));
    TRY(esp_text_add(both, right, rn));
    merge_rule r = {esp_tokenizer_find(t, left, ln), esp_tokenizer_find(t, right, rn), esp_tokenizer_find(t, both->at, ln + rn)};
    if (r.left < 0 || r.right < 0 || r.whole < 0) {
        return REFUSE("%s: merge %lld ('%.*s' and '%.*s') names a piece that is not in the vocabulary", d->path, (long long)t->merge_count,
                      (int)esp_min(ln, 100), left, (int)esp_min(rn, 100), right);
    }
    t->merges[t->merge_count++] = r;
    return ESP_OK;
}

/* Merges are texts "a b" or pairs ["a", "b"]. */
static int read_merge(esp_tokenizer *t, const json_tree *d, esp_text *both, int64_t at)
{
    int64_t ln, rn;
    if (items_of(d, at) == 2 && kind_of(d, at + 1) == ESP_JSON_STRING && kind_of(d, at + 2) == ESP_JSON_STRING) {
        const char *left = esp_json_text(d->j, at + 1, &ln), *right = esp_json_text(d->j, at + 2, &rn);
        return make_rule(t, d, both, left, ln, right, rn);
    }
    if (kind_of(d, at) != ESP_JSON_STRING) return REFUSE("%s: merge %lld is neither a text nor a pair", d->path, (long long)t->merge_count);
    const char *text = esp_json_text(d->j, at, &ln), *space = strchr(text, ' ');
    if (!space || strchr(space + 1, ' ')) return REFUSE("%s: merge '%.100s' is not two pieces", d->path, text);
    return make_rule(t, d, both, text, space - text, space + 1, ln - (space - text) - 1);
}

static int read_merges(esp_tokenizer *t, const json_tree *d, int64_t merges)
{
    int64_t n = items_of(d, merges);
    if (kind_of(d, merges) != ESP_JSON_ARRAY) return REFUSE("%s: model.merges is missing", d->path);
    if (n > 2 * ESP_MOST_PIECES) return REFUSE("%s: %lld merges, at most %d can be", d->path, (long long)n, 2 * ESP_MOST_PIECES);
    if (!(t->merges = esp_malloc(n * (int64_t)sizeof *t->merges))) return ESP_EMEM;
    esp_text both = {0};
    int code = ESP_OK;
    for (int64_t i = merges + 1, end = items_end(d, merges); code == ESP_OK && i < end; i = esp_json_after(d->j, i)) code = read_merge(t, d, &both, i);
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
    if (kind_of(d, dropout) != ESP_JSON_NULL && esp_json_number(d->j, dropout) != 0) return REFUSE("%s: model.dropout makes ids random; want null", d->path);
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
    int single_word = 0;
    if (!(t->added = esp_malloc(items_of(d, added) * (int64_t)sizeof *t->added))) return ESP_EMEM;
    for EACH_ITEM(i, d, added) {
        added_token *a = &t->added[t->added_count++];
        *a = (added_token){.special = esp_tree_flag(d, i, "special", 0), .lstrip = esp_tree_flag(d, i, "lstrip", 0), .rstrip = esp_tree_flag(d, i, "rstrip", 0),
                           .single_word = esp_tree_flag(d, i, "single_word", 0)};
        a->normalized = esp_tree_flag(d, i, "normalized", !a->special);
        single_word |= a->single_word;
        int64_t bytes;
        const char *content = esp_json_text(d->j, esp_tree_get(d, i, "content"), &bytes);
        TRY(id_at(&a->id, d, esp_tree_get(d, i, "id"), content));
        int32_t known = esp_tokenizer_find(t, content, bytes);
        if (known != a->id) return REFUSE("%s: the added token '%.100s' has the id %d, the vocabulary gives it %d", d->path, content, a->id, known);
        t->pieces[a->id].added = (int32_t)t->added_count - 1;
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
    if (kind_of(d, 0) != ESP_JSON_OBJECT) return REFUSE("%s is no JSON object", d->path);
    t->json = 1;
    int64_t added = esp_tree_get(d, 0, "added_tokens");
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
    int code = read_all(t, &(json_tree){j, path});
    esp_json_free(j);
    /* A tokenizer stays; what was taken to read it is given back. */
    esp_memory_trim();
    return code;
}
