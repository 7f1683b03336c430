/* tiktoken's rank files: lines of a piece in base64, a space and its rank, which is its id. The file says neither how words are cut nor which special tokens
 * there are; both are known for the vocabularies below, told apart by their number of ranks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

typedef struct family {
    int64_t ranks;
    const char *name, *pattern, *pre;
    const struct special { int32_t id; const char *text; } *specials;
    const char *bos, *eos;
} family;

static const struct special gpt2_specials[] = {{50256, "<|endoftext|>"}, {0, NULL}};
static const struct special cl100k_specials[] = {{100257, "<|endoftext|>"}, {100258, "<|fim_prefix|>"}, {100259, "<|fim_middle|>"}, {100260, "<|fim_suffix|>"},
                                                 {100276, "<|endofprompt|>"}, {0, NULL}};
/* Those of Llama 3.1 on; what is between is reserved and numbered. */
static const struct special llama3_specials[] = {
    {128000, "<|begin_of_text|>"}, {128001, "<|end_of_text|>"}, {128002, "<|reserved_special_token_0|>"}, {128003, "<|reserved_special_token_1|>"},
    {128004, "<|finetune_right_pad_id|>"}, {128005, "<|reserved_special_token_2|>"}, {128006, "<|start_header_id|>"}, {128007, "<|end_header_id|>"},
    {128008, "<|eom_id|>"}, {128009, "<|eot_id|>"}, {128010, "<|python_tag|>"}, {0, NULL}};

static const char cl100k_pattern[] =
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s++\\z|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+";

static const family families[] = {
    {50256, "r50k_base", esp_gpt2_pattern, "gpt-2", gpt2_specials, NULL, "<|endoftext|>"},
    {100256, "cl100k_base", cl100k_pattern, "", cl100k_specials, NULL, "<|endoftext|>"},
    {128000, "Llama 3", esp_llama3_pattern, "llama-bpe", llama3_specials, "<|begin_of_text|>", "<|end_of_text|>"}};

/* One line at `at`: adds its piece and returns the bytes of the line, or an error. */
static int read_line(esp_tokenizer *t, const char *at, int64_t bytes, esp_text *buffer, const char *path)
{
    const char *space = memchr(at, ' ', (size_t)bytes);
    char *end = NULL, number[24] = "";
    if (space) memcpy(number, space + 1, (size_t)esp_min(at + bytes - space - 1, sizeof number - 1));
    long long rank = strtoll(number, &end, 10);
    if (!space || end == number || rank != t->count) {
        return esp_fail(ESP_EFORMAT, "%s: line %lld is not a piece in base64, a space and the rank %lld", path, (long long)t->count + 1, (long long)t->count);
    }
    buffer->bytes = 0;
    TRY(esp_text_room(buffer, space - at + 1));
    int64_t n = esp_base64(buffer->at, at, space - at);
    if (n <= 0) return esp_fail(ESP_EFORMAT, "%s: the piece of line %lld is not base64", path, (long long)t->count + 1);
    return esp_tokenizer_add(t, buffer->at, n, 0, ESP_PIECE_NORMAL);
}

static int add_special(esp_tokenizer *t, const char *text)
{
    t->added[t->added_count++] = (added_token){.id = (int32_t)t->count, .special = 1};
    TRY(esp_tokenizer_add(t, text, (int64_t)strlen(text), 0, ESP_PIECE_CONTROL));
    t->pieces[t->count - 1].added = (int32_t)t->added_count - 1;
    t->pieces[t->count - 1].in_model = 0;
    return ESP_OK;
}

static int add_specials(esp_tokenizer *t, const family *f)
{
    enum { RESERVED = 256 };
    if (!(t->added = esp_malloc(RESERVED * (int64_t)sizeof *t->added))) return ESP_EMEM;
    for (const struct special *s = f->specials; s->text; s++) {
        while (t->count < s->id) TRY(esp_tokenizer_add(t, "", 0, 0, ESP_PIECE_UNUSED));
        TRY(add_special(t, s->text));
    }
    for (int k = 3; f->specials == llama3_specials && t->count < f->ranks + RESERVED; k++) {
        char text[40];
        snprintf(text, sizeof text, "<|reserved_special_token_%d|>", k);
        TRY(add_special(t, text));
    }
    return ESP_OK;
}

static int set_up(esp_tokenizer *t, const char *path)
{
    const family *f = NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) if (families[i].ranks == t->count) f = &families[i];
    if (!f) return esp_fail(ESP_EFORMAT, "%s: %lld ranks; known are r50k_base (50256), cl100k_base (100256) and Llama 3 (128000)", path, (long long)t->count);
    TRY(add_specials(t, f));
    TRY(esp_tokenizer_index(t));
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        if (esp_tokenizer_find(t, &byte, 1) < 0) return esp_fail(ESP_EFORMAT, "%s: byte %d is no piece of it", path, b);
    }
    t->pre = f->pre;
    t->bos = f->bos ? esp_tokenizer_find(t, f->bos, (int64_t)strlen(f->bos)) : -1;
    t->eos = esp_tokenizer_find(t, f->eos, (int64_t)strlen(f->eos));
    if (t->bos >= 0) TRY(esp_ids_push(&t->before, t->bos));
    esp_step cut = {.behavior = CUT_ISOLATED};
    TRY(esp_pattern_oniguruma(&cut.pattern, f->pattern, (int64_t)strlen(f->pattern), path));
    TRY(esp_steps_add(&t->pre_tokenizer, cut));
    return esp_added_prepare(t);
}

int esp_load_tiktoken(esp_tokenizer *t, const char *data, int64_t bytes, const char *path)
{
    t->kind = "tiktoken";
    t->model = MODEL_RANKS;
    t->ignore_merges = 1;
    esp_text buffer = {0};
    int code = ESP_OK;
    for (int64_t at = 0; code == ESP_OK && at < bytes;) {
        const char *end = memchr(data + at, '\n', (size_t)(bytes - at));
        int64_t n = end ? end - data - at : bytes - at;
        if (n > 0) code = read_line(t, data + at, n, &buffer, path);
        at += n + 1;
    }
    esp_free(buffer.at);
    return code == ESP_OK ? set_up(t, path) : code;
}
