/* Tokenizers: loading by kind, and what can be asked of one. */
#include <ctype.h>
#include <string.h>

#include "tokenizer.h"

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

int esp_piece_byte(const char *text, int64_t bytes)
{
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* A rank file has lines of base64, a space and a number; a sentencepiece model begins with a newline byte. */
static int looks_like_ranks(const char *data, int64_t bytes)
{
    int64_t i = 0;
    while (i < bytes && (isalnum((unsigned char)data[i]) || strchr("+/=", data[i]) != NULL) && data[i]) i++;
    return i > 0 && i + 1 < bytes && data[i] == ' ' && isdigit((unsigned char)data[i + 1]);
}

static int load(esp_tokenizer *t, const char *data, int64_t bytes, int64_t vocab, const char *path)
{
    if (ends_with(path, ".json")) return esp_load_tokenizer_json(t, data, bytes, path);
    if (looks_like_ranks(data, bytes)) return esp_load_tiktoken(t, data, bytes, path);
    if (ends_with(path, ".bin")) return esp_load_llama2c(t, data, bytes, vocab, path);
    /* Mistral's carry a version behind the name. */
    if (strstr(path, ".model")) return esp_load_sentencepiece(t, data, bytes, path);
    return esp_fail(ESP_EFORMAT, "%s: no tokenizer by its name; want tokenizer.json, a sentencepiece .model, tiktoken's ranks or a llama2.c .bin", path);
}

int esp_tokenizer_parse(esp_tokenizer **out, const char *data, int64_t bytes, const char *name, int64_t vocab)
{
    esp_tokenizer *t = esp_calloc(sizeof *t);
    if (!t) return ESP_EMEM;
    t->pre = "";
    t->unk = t->bos = t->eos = t->pad = -1;
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    pthread_mutex_init(&t->lock, NULL);
    int code = load(t, data, bytes, vocab, name);
    if (code == ESP_OK) code = esp_model_prepare(t);
    if (code != ESP_OK) esp_tokenizer_free(t);
    else *out = t;
    return code;
}

int esp_tokenizer_load(esp_tokenizer **out, const char *path, int64_t vocab)
{
    char *data;
    int64_t bytes;
    TRY(esp_file_read(&data, &bytes, path, (int64_t)1 << 28));
    int code = esp_tokenizer_parse(out, data, bytes, path, vocab);
    esp_free(data);
    return code;
}

void esp_tokenizer_free(esp_tokenizer *t)
{
    if (!t) return;
    while (t->idle) {
        esp_worker *w = t->idle;
        t->idle = w->next;
        esp_worker_free(w);
    }
    esp_steps_free(&t->normalizer);
    esp_steps_free(&t->pre_tokenizer);
    esp_steps_free(&t->decoder);
    esp_pattern_free(t->word_character);
    esp_prefixes *sets[] = {&t->user, &t->lattice, &t->raw_added, &t->normal_added};
    for (int i = 0; i < 4; i++) esp_free(sets[i]->strings);
    void *blocks[] = {t->text, t->pieces, t->map.slots, t->merges, t->pairs, t->added, t->normal_text.at, t->before.id, t->after.id, t->charsmap, t->unk_text};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) esp_free(blocks[i]);
    pthread_mutex_destroy(&t->lock);
    esp_free(t);
}

int64_t esp_tokenizer_vocab(const esp_tokenizer *t) { return t->count; }
const char *esp_tokenizer_kind(const esp_tokenizer *t) { return t->kind; }
const char *esp_tokenizer_pre(const esp_tokenizer *t) { return t->pre; }
int esp_tokenizer_unigram(const esp_tokenizer *t) { return t->model == MODEL_UNIGRAM; }
int64_t esp_tokenizer_merges(const esp_tokenizer *t) { return t->merge_count; }

int esp_tokenizer_special(const esp_tokenizer *t, const char *name)
{
    return strcmp(name, "bos") == 0 ? t->bos : strcmp(name, "eos") == 0 ? t->eos : strcmp(name, "unk") == 0 ? t->unk : strcmp(name, "pad") == 0 ? t->pad : -1;
}

const char *esp_tokenizer_piece(const esp_tokenizer *t, int32_t id, int64_t *bytes, float *score, int *type)
{
    if (id < 0 || id >= t->count) return NULL;
    *bytes = t->pieces[id].bytes;
    if (score) *score = (float)t->pieces[id].score;
    if (type) *type = t->pieces[id].type;
    return piece_text(t, id);
}

int32_t esp_tokenizer_id(const esp_tokenizer *t, const char *text, int64_t bytes) { return esp_tokenizer_find(t, text, bytes); }

void esp_tokenizer_merge(const esp_tokenizer *t, int64_t rank, int32_t *left, int32_t *right)
{
    *left = rank >= 0 && rank < t->merge_count ? t->merges[rank].left : -1;
    *right = rank >= 0 && rank < t->merge_count ? t->merges[rank].right : -1;
}

const int32_t *esp_tokenizer_frame(const esp_tokenizer *t, int after, int64_t *count)
{
    const esp_ids *ids = after ? &t->after : &t->before;
    *count = ids->count;
    return ids->id;
}
