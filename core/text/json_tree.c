/* Finding one's way in a parsed JSON text. */
#include <string.h>

#include "json_tree.h"

int64_t esp_tree_get(const json_tree *d, int64_t at, const char *key)
{
    if (kind_of(d, at) != ESP_JSON_OBJECT) return NONE;
    for (int64_t i = at + 1, end = esp_json_after(d->j, at); i < end; i = esp_json_after(d->j, i + 1)) {
        if (strcmp(esp_json_text(d->j, i, NULL), key) == 0) return i + 1;
    }
    return NONE;
}

const char *esp_tree_text(const json_tree *d, int64_t at) { return kind_of(d, at) == ESP_JSON_STRING ? esp_json_text(d->j, at, NULL) : ""; }

int esp_tree_flag(const json_tree *d, int64_t at, const char *key, int otherwise)
{
    int64_t v = esp_tree_get(d, at, key);
    return kind_of(d, v) == ESP_JSON_BOOL ? esp_json_number(d->j, v) != 0 : otherwise;
}
