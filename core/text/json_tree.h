/* A parsed JSON text as a tree: values by the number of their entry. For readers of tokenizer.json. Internal. */
#ifndef ESP_JSON_TREE_H
#define ESP_JSON_TREE_H

#include "tokenizer.h"

typedef struct json_tree {
    const esp_json *j;
    const char *path;
} json_tree;

enum { NONE = -1 };

#define REFUSE(...) esp_fail(ESP_EFORMAT, __VA_ARGS__)

int64_t esp_tree_get(const json_tree *d, int64_t at, const char *key);    /* value of a key of the object at `at`; NONE where it is absent */
const char *esp_tree_text(const json_tree *d, int64_t at);                /* of a string; "" of anything else */
int esp_tree_flag(const json_tree *d, int64_t at, const char *key, int otherwise);

static inline int kind_of(const json_tree *d, int64_t at) { return at == NONE ? ESP_JSON_NULL : esp_json_kind(d->j, at); }
static inline const char *text_at(const json_tree *d, int64_t at, const char *key) { return esp_tree_text(d, esp_tree_get(d, at, key)); }
/* Values in a list; 0 of anything else. */
static inline int64_t items_of(const json_tree *d, int64_t list) { return kind_of(d, list) == ESP_JSON_ARRAY ? esp_json_items(d->j, list) : 0; }
static inline int64_t items_end(const json_tree *d, int64_t list) { return kind_of(d, list) == ESP_JSON_ARRAY ? esp_json_after(d->j, list) : 0; }
/* What stands behind `for` to walk the items of a list; anything else has none. */
#define EACH_ITEM(i, d, list) (int64_t i = (list) + 1, i##_end = items_end(d, list); i < i##_end; i = esp_json_after((d)->j, i))

/* tokenizer_parts.c: what stands around the model; t has its vocabulary. */
int esp_read_parts(esp_tokenizer *t, const json_tree *d);

#endif
