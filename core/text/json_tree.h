/* A parsed JSON text as a tree: values by the number of their first event. For readers of tokenizer.json. Internal. */
#ifndef ESP_JSON_TREE_H
#define ESP_JSON_TREE_H

#include "tokenizer.h"

typedef struct json_tree {
    const esp_json_event *e;
    int64_t *after;                        /* for each event where the next value after the one it begins, begins */
    const char *path;
} json_tree;

enum { NONE = -1 };

#define REFUSE(...) esp_fail(ESP_EFORMAT, __VA_ARGS__)

int esp_tree_index(json_tree *d, const esp_json *j);
int64_t esp_tree_get(const json_tree *d, int64_t at, const char *key);    /* value of a key of the object at `at`; NONE where it is absent */
const char *esp_tree_text(const json_tree *d, int64_t at);                /* of a string; "" of anything else */
int esp_tree_flag(const json_tree *d, int64_t at, const char *key, int otherwise);

static inline int kind_of(const json_tree *d, int64_t at) { return at == NONE ? ESP_JSON_NULL : d->e[at].kind; }
static inline const char *text_at(const json_tree *d, int64_t at, const char *key) { return esp_tree_text(d, esp_tree_get(d, at, key)); }
static inline int64_t first_item(const json_tree *d, int64_t list) { return kind_of(d, list) == ESP_JSON_ARRAY ? list + 1 : NONE; }
/* Is there an item at i of a list? The next one begins at d->after[i]. */
static inline int is_item(const json_tree *d, int64_t i) { return i != NONE && d->e[i].kind != ESP_JSON_ARRAY_END; }

/* tokenizer_parts.c: what stands around the model; t has its vocabulary. */
int esp_read_parts(esp_tokenizer *t, const json_tree *d);

#endif
