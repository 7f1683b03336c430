/* The inside of a tokenizer. Internal.
 *
 * A text goes through these steps (encode.c), as in Hugging Face's tokenizers: added tokens are cut out of it; what lies between is normalized
 * (normalize.c); added tokens that were normalized too are cut out of that; the rest is cut into words (pretokenize.c), and a model turns each word
 * into ids (merge.c, unigram.c). Decoding runs steps of the same kind over the pieces of the ids (decode.c). */
#ifndef ESP_TOKENIZER_H
#define ESP_TOKENIZER_H

#include <pthread.h>

#include "../base/base.h"

/* ---- growing buffers ---- */

typedef struct esp_text {
    char *at;
    int64_t bytes, room;
    int64_t most;                          /* bytes that it may come to; 0: any number */
} esp_text;

typedef struct esp_ids {
    int32_t *id;
    int64_t count, room;
} esp_ids;

typedef struct esp_span {
    int64_t from, to;
} esp_span;

/* A text cut into pieces. `text` is the caller's or own.at. */
typedef struct esp_pieces {
    const char *text;
    esp_text own;
    esp_span *spans;
    int64_t count, room;
    int first;                             /* piece 0 begins where the whole text begins */
} esp_pieces;

int esp_text_add(esp_text *to, const char *text, int64_t bytes);
int esp_text_room(esp_text *to, int64_t more);                       /* room for so many bytes more */
int esp_ids_push(esp_ids *ids, int32_t id);
int esp_ids_append(esp_ids *ids, const int32_t *id, int64_t count);
int esp_pieces_push(esp_pieces *p, int64_t from, int64_t to);

/* ---- characters (utf8.c) ---- */

int esp_utf8_length(const char *text);                               /* bytes of the character at text, which is valid UTF-8 */
int esp_utf8_before(const char *text, int64_t at);                   /* bytes of the character that ends at `at` > 0 */
int esp_piece_byte(const char *text, int64_t bytes);                 /* the byte of a piece written <0xNN>, or -1 */
int64_t esp_utf8_invalid(const char *text, int64_t bytes);           /* where it stops being UTF-8, or -1 */
int32_t esp_utf8_point(const char *text);                            /* code point of the character at text */
int esp_is_space(int32_t point);                                     /* Unicode's White_Space */
/* Letters of byte-level BPE: bytes that print stand for themselves, the others for the letters from U+0100 on. */
int esp_byte_letter(char *to, unsigned char byte);                   /* UTF-8 bytes written: 1 or 2 */
int esp_letter_byte(const char *text, unsigned char *byte);          /* UTF-8 bytes read, 0 where it is no such letter */

extern const char esp_block[];                                       /* sentencepiece's sign for a space, U+2581 */
enum { BLOCK = 3 };                                                  /* its bytes */

/* ---- patterns (pattern.c) ---- */

typedef struct esp_pattern esp_pattern;
/* What matching needs of memory; one for each worker. */
typedef struct esp_matcher esp_matcher;
int esp_pattern_new(esp_pattern **out, const char *pattern, int64_t bytes, const char *where);       /* a regular expression as PCRE2 has it */
int esp_pattern_oniguruma(esp_pattern **out, const char *pattern, int64_t bytes, const char *where); /* as tokenizer.json has it */
int esp_pattern_literal(esp_pattern **out, const char *text, int64_t bytes);
void esp_pattern_free(esp_pattern *p);
int esp_matcher_new(esp_matcher **out);
void esp_matcher_free(esp_matcher *m);
/* The next match of a scan. begin and end hold the last match (-1, 0 at first), from where to look. found: 0 at the end. */
typedef struct esp_scan {
    int64_t begin, end, from;
    int found;
} esp_scan;
int esp_pattern_next(esp_scan *scan, const esp_pattern *p, esp_matcher *m, const char *text, int64_t bytes);

/* ---- sets of strings: all that are prefixes of a text (prefixes.c) ---- */

typedef struct esp_string {
    const char *text;
    int32_t bytes, id;
} esp_string;

typedef struct esp_prefixes {
    esp_string *strings;                   /* sorted, each once */
    int32_t count, first[257];
} esp_prefixes;

/* Where a walk down the set stands: strings lo..hi-1 agree with the text so far; id of the one that ends here, or -1. */
typedef struct esp_walk {
    int32_t lo, hi, id;
    int64_t depth;
} esp_walk;

int esp_prefixes_build(esp_prefixes *p);   /* sorts strings[0..count-1]; of equal ones the last stays */
void esp_prefixes_begin(const esp_prefixes *p, esp_walk *w);
int esp_prefixes_step(const esp_prefixes *p, esp_walk *w, char c);   /* 0 where no string goes on */
/* Bytes of the longest string that text begins with, 0 where there is none. */
int64_t esp_prefixes_longest(const esp_prefixes *p, const char *text, int64_t bytes, int32_t *id);

/* ---- steps: what becomes of pieces of text ---- */

typedef struct esp_worker esp_worker;
typedef struct esp_step esp_step;
/* Appends to `out` what becomes of piece i of n. */
typedef int esp_step_map(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i);
enum esp_behavior { CUT_NONE, CUT_REMOVED, CUT_ISOLATED, CUT_PREVIOUS, CUT_NEXT, CUT_CONTIGUOUS };

struct esp_step {
    esp_step_map *map;                     /* NULL: pieces stay as they are */
    esp_pattern *pattern;                  /* what is replaced, or where pieces are cut after map */
    char *content;
    int64_t content_bytes;
    int option, left, right;
    enum esp_behavior behavior;            /* how to cut; CUT_NONE: not */
    int invert, fuse;                      /* fuse: all pieces become one */
};

typedef struct esp_steps {
    esp_step *step;
    int64_t count, room;
} esp_steps;

int esp_steps_add(esp_steps *steps, esp_step s);                     /* takes over pattern and content, also on error */
void esp_steps_free(esp_steps *steps);
/* Runs the steps over w->now. */
int esp_steps_run(const esp_steps *steps, esp_worker *w);

/* normalize.c */
esp_step_map esp_map_form, esp_map_lower, esp_map_strip, esp_map_accents, esp_map_nmt, esp_map_prepend, esp_map_replace, esp_map_letters;
/* pretokenize.c */
esp_step_map esp_map_space, esp_map_metaspace;
/* charsmap.c: content is sentencepiece's precompiled map; the first as sentencepiece applies it, the second as tokenizers does */
esp_step_map esp_map_graphemes;
int esp_charsmap_check(const char *map, int64_t bytes, const char *where);
/* Bytes of the longest entry that text begins with, 0 where there is none; what it becomes in *to. shortest = 1: the shortest entry. */
int64_t esp_charsmap_find(const char *map, int64_t map_bytes, const char *text, int64_t bytes, int shortest, const char **to);
/* decode.c */
esp_step_map esp_map_unletter, esp_map_unbyte, esp_map_unmetaspace, esp_map_trim;

/* ---- the tokenizer ---- */

/* More than any vocabulary of use; what a file may cost follows from it. */
enum { ESP_MOST_PIECES = 1 << 20 };

typedef struct piece {
    double score;
    uint32_t at, bytes;                    /* in the text store */
    int32_t added;                         /* its place among the added tokens, -1 where it is none */
    uint8_t type, in_model;                /* in_model: a piece of the model; it may be an added token too */
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
    int32_t normal_at, normal_bytes;       /* normalized: what the normalizer makes of it, in normal_text */
    int special, lstrip, rstrip, single_word, normalized;
} added_token;

enum esp_model {
    MODEL_RULES,                           /* pairs of pieces merge by the list of rules */
    MODEL_SCORES,                          /* the pair whose joined piece has the best score merges */
    MODEL_RANKS,                           /* the pair whose joined piece has the lowest id merges: tiktoken */
    MODEL_UNIGRAM                          /* the likeliest pieces */
};

struct esp_tokenizer {
    const char *kind;
    const char *pre;                       /* GGUF's name of the pre-tokenizer, or "" */
    enum esp_model model;
    char *text;                            /* all pieces, one after another */
    int64_t text_used, text_room;
    piece *pieces;
    int64_t count, room;
    esp_map map;
    merge_rule *merges;                    /* in the order of their ranks */
    int64_t merge_count;
    int32_t *pairs;                        /* (left, right) -> rank, by open addressing; -1 is empty */
    int64_t pair_room;
    int32_t byte_id[256];                  /* piece of each byte where a character is not known, or -1 */
    int32_t letter_id[256];                /* raw: piece of each byte, or -1 */
    int32_t unk, bos, eos, pad;
    int byte_level;                        /* pieces are written in the letters of bytes */
    int raw;                               /* words come as bytes, not as their letters */
    int ignore_merges, fuse_unk, cut_blocks, has_unused;
    int single;                            /* unigram scores add up in f32, as sentencepiece does */
    double unk_score, best_score;          /* unigram */
    esp_prefixes lattice;                  /* unigram: its pieces */
    esp_prefixes user;                     /* sentencepiece: pieces of the user's, never cut nor normalized */
    /* sentencepiece's normalizer, in one pass (sentencepiece.c) */
    int sentencepiece, dummy_prefix, escape_spaces, squeeze_spaces, space_behind;
    char *charsmap, *unk_text;
    int64_t charsmap_bytes;
    esp_steps normalizer, pre_tokenizer, decoder;
    int json, has_decoder;
    added_token *added;
    int64_t added_count;
    esp_prefixes raw_added, normal_added;  /* id: place in `added` */
    esp_text normal_text;                  /* of the added tokens that are normalized */
    esp_pattern *word_character;           /* for single_word; NULL where no token wants it */
    esp_ids before, after;                 /* what the post-processor puts around a text */
    pthread_mutex_t lock;
    esp_worker *idle;                      /* workers that wait for a call */
};

/* vocabulary.c */
int esp_tokenizer_reserve(esp_tokenizer *t, int64_t pieces, int64_t text);                           /* room for so many, in one block each */
int esp_tokenizer_add(esp_tokenizer *t, const char *text, int64_t bytes, double score, int type);    /* a piece with the next id */
int esp_tokenizer_index(esp_tokenizer *t);                           /* the map from text to id; the first of two equal pieces counts */
int32_t esp_tokenizer_find(const esp_tokenizer *t, const char *text, int64_t bytes);
void esp_tokenizer_find_bytes(esp_tokenizer *t);                     /* fills byte_id from pieces <0xNN> */
void esp_tokenizer_find_letters(esp_tokenizer *t);                   /* fills letter_id */
int esp_merge_index(esp_tokenizer *t);                               /* of two equal pairs the later one counts */
int esp_model_prepare(esp_tokenizer *t);                             /* what the model derives from pieces and merges, once they are there */
static inline const char *piece_text(const esp_tokenizer *t, int32_t id) { return t->text + t->pieces[id].at; }
static inline int32_t *esp_pair_slot(const esp_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    for (uint64_t i = h >> 32;; i++) {
        int32_t *slot = &t->pairs[i & (uint64_t)(t->pair_room - 1)];
        if (*slot < 0 || (t->merges[*slot].left == left && t->merges[*slot].right == right)) return slot;
    }
}

/* added.c */
int esp_added_prepare(esp_tokenizer *t);
typedef int esp_gap_fn(esp_worker *w, const char *text, int64_t bytes, int first);
/* Pushes the added tokens of the set that stand in the text and calls fn for what lies between. */
int esp_added_scan(esp_worker *w, const esp_prefixes *set, const char *text, int64_t bytes, int first, esp_gap_fn *fn);

/* A text into sentencepiece's normal form, appended to out. */
int esp_sentencepiece_normalize(const esp_tokenizer *t, esp_text *out, const char *text, int64_t bytes);

/* ---- one call's memory, kept for the next call (worker.c) ---- */

typedef struct symbol {
    int32_t at, bytes;                     /* bytes 0: merged into its left neighbour */
    int32_t before, after;
    int32_t id;                            /* -1: no piece */
    int32_t frozen;
} symbol;

typedef struct candidate {
    uint64_t key;                          /* cost, and below it the left symbol */
    int32_t bytes;                         /* of both when it was made: tells stale ones */
    int32_t whole;
} candidate;

/* Viterbi: the best way to the end of a character. */
typedef struct best_path {
    double score;
    int32_t from, id;
} best_path;

typedef struct esp_cache esp_cache;

struct esp_worker {
    const esp_tokenizer *t;
    esp_worker *next;
    int special;                           /* are special tokens found in the text? */
    esp_ids out;
    esp_pieces now, then;
    esp_text normal, scratch;
    int32_t *points;
    int64_t point_room;
    esp_matcher *matcher;
    esp_cache *cache;
    symbol *symbols;
    int64_t symbol_room;
    candidate *heap;
    int64_t heap_count, heap_room;
    int32_t *unused_left;                  /* for pieces that are not used: bytes of the left one of the two that last joined */
    best_path *paths;
    int64_t path_room;
};

int esp_worker_take(esp_worker **out, const esp_tokenizer *t);
/* Steps that each replace a character by many would fill any memory: of a text of `bytes` those that follow may make so many times it. */
void esp_worker_bound(esp_worker *w, int64_t bytes);
void esp_worker_give(esp_worker *w);
void esp_worker_free(esp_worker *w);
/* Grows *block to hold `count` elements; its old content need not stay. */
int esp_worker_grow(void **block, int64_t *room, int64_t count, int64_t element);

/* Ids of a word that was seen before; NULL where it was not. */
const int32_t *esp_cache_find(const esp_worker *w, const char *text, int64_t bytes, uint64_t hash, int64_t *count);
void esp_cache_keep(esp_worker *w, const char *text, int64_t bytes, uint64_t hash, const int32_t *ids, int64_t count);

/* Pushes the bytes of a character that is no piece; done = 0 where not every one of them is a piece. */
int esp_put_bytes(esp_worker *w, const char *text, int64_t bytes, int *done);
/* The models: ids of a word, pushed to w->out. */
int esp_merge_word(esp_worker *w, const char *text, int64_t bytes);
int esp_unigram_word(esp_worker *w, const char *text, int64_t bytes);

/* ---- files ---- */

int64_t esp_base64(char *to, const char *text, int64_t bytes);      /* bytes written (to may be text), -1 where it is no base64 */

int esp_load_sentencepiece(esp_tokenizer *t, const char *data, int64_t bytes, const char *path);
int esp_load_llama2c(esp_tokenizer *t, const char *data, int64_t bytes, int64_t vocab, const char *path);
int esp_load_tiktoken(esp_tokenizer *t, const char *data, int64_t bytes, const char *path);
int esp_load_tokenizer_json(esp_tokenizer *t, const char *data, int64_t bytes, const char *path);

/* Members of a class: Unicode's letters, marks, numbers that are letters, and what joins words. */
#define ESP_WORDS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"

/* GPT-2's words: contractions, letters, digits and signs with a space before them, and runs of spaces. */
extern const char esp_gpt2_pattern[], esp_llama3_pattern[], esp_qwen2_pattern[];

#endif
