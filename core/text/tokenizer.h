/* The inside of a tokenizer: a vocabulary, a way to cut text, a way to merge pieces. Internal. */
#ifndef ESP_TOKENIZER_H
#define ESP_TOKENIZER_H

#include "../base/base.h"

typedef struct piece {
    int64_t at, bytes;                     /* in the text store */
    float score;
    int type;
} piece;

/* Text -> id by open addressing. */
typedef struct esp_map {
    int32_t *slots;                        /* id, or -1 */
    int64_t room;
} esp_map;

/* Pieces left and right become the piece whole; its place in the list is its rank. */
typedef struct merge_rule {
    int32_t left, right, whole;
} merge_rule;

typedef struct added_token {
    int32_t id;
    int special, lstrip, rstrip, single_word;
} added_token;

typedef struct esp_split esp_split;        /* a regular expression that cuts words (split.c) */
enum { MOST_SPLITS = 8 };

struct esp_tokenizer {
    const char *kind;
    const char *pre;                       /* GGUF's name of the pre-tokenizer, or "" */
    char *text;                            /* all pieces, one after another */
    int64_t text_used, text_room;
    piece *pieces;
    int64_t count, room;
    esp_map map;
    merge_rule *merges;                    /* in the order of their ranks; NULL: pieces merge by score */
    int64_t merge_count;
    int32_t *pairs;                        /* (left, right) -> rank, by open addressing; -1 is empty */
    int64_t pair_room;
    added_token *added;
    int64_t added_count;
    int32_t byte_id[256];                  /* piece of each byte, or -1 */
    int32_t unk, bos, eos, pad;
    int byte_level;                        /* bytes are written as the letters of byte-level BPE */
    int dummy_prefix, prefix_space, escape_spaces, squeeze_spaces, ignore_merges, nfc;
    esp_split *splits[MOST_SPLITS];
    int split_count;
};

/* Adds a piece with the next id. */
int esp_tokenizer_add(esp_tokenizer *t, const char *text, int64_t bytes, float score, int type);
/* Builds the map from text to id; the first of two equal pieces keeps the text. */
int esp_tokenizer_index(esp_tokenizer *t);
int32_t esp_tokenizer_find(const esp_tokenizer *t, const char *text, int64_t bytes);
static inline const char *piece_text(const esp_tokenizer *t, int32_t id) { return t->text + t->pieces[id].at; }

/* A growing list of ids. */
typedef struct esp_ids {
    int32_t *id;
    int64_t count, room;
} esp_ids;
int esp_ids_push(esp_ids *ids, int32_t id);

/* Builds the map from pairs to ranks; of two equal pairs the later one counts. */
int esp_merge_index(esp_tokenizer *t);
/* Merges the symbols of a word and adds the ids of what is left (merge.c). */
int esp_merge_word(esp_ids *out, const esp_tokenizer *t, const char *text, int64_t bytes);

/* split.c */
int esp_split_new(esp_split **out, const char *pattern, int64_t bytes, const char *where);
void esp_split_free(esp_split *s);
/* Calls fn for each piece of text: matches and what lies between them. */
typedef int esp_piece_fn(void *context, const char *text, int64_t bytes);
int esp_split_run(const esp_split *s, const char *text, int64_t bytes, esp_piece_fn *fn, void *context);

/* Letters of byte-level BPE: bytes that print stand for themselves, the others for the letters from U+0100 on. */
int esp_byte_letter(char *to, unsigned char byte);                  /* UTF-8 bytes written: 1 or 2 */
int esp_letter_byte(const char *text, int64_t bytes, unsigned char *byte);  /* UTF-8 bytes read, 0 where it is no such letter */
int esp_utf8_length(const char *text, int64_t bytes);               /* bytes of the character at text; 1 where it is no UTF-8 */

int esp_load_sentencepiece(esp_tokenizer *t, const char *data, int64_t bytes, const char *path);
int esp_load_llama2c(esp_tokenizer *t, const char *data, int64_t bytes, int64_t vocab, const char *path);
int esp_load_tokenizer_json(esp_tokenizer *t, const char *data, int64_t bytes, const char *path);

#endif
