/* Finding one's way in a list of JSON events. */
#include <string.h>

#include "json_tree.h"

int esp_tree_index(json_tree *d, const esp_json *j)
{
    int64_t n = esp_json_count(j), open[256];
    int depth = 0;
    d->e = esp_json_events(j);
    if (!(d->after = esp_malloc(n * 8))) return ESP_EMEM;
    for (int64_t i = 0; i < n; i++) {
        int kind = d->e[i].kind;
        d->after[i] = i + 1;
        if (kind == ESP_JSON_OBJECT || kind == ESP_JSON_ARRAY) open[depth++] = i;
        else if (kind == ESP_JSON_OBJECT_END || kind == ESP_JSON_ARRAY_END) d->after[open[--depth]] = i + 1;
    }
    return ESP_OK;
}

int64_t esp_tree_get(const json_tree *d, int64_t at, const char *key)
{
    if (kind_of(d, at) != ESP_JSON_OBJECT) return NONE;
    for (int64_t i = at + 1; d->e[i].kind != ESP_JSON_OBJECT_END; i = d->after[i + 1]) {
        if (strcmp(d->e[i].text, key) == 0) return i + 1;
    }
    return NONE;
}

const char *esp_tree_text(const json_tree *d, int64_t at) { return kind_of(d, at) == ESP_JSON_STRING ? d->e[at].text : ""; }

int esp_tree_flag(const json_tree *d, int64_t at, const char *key, int otherwise)
{
    int64_t v = esp_tree_get(d, at, key);
    return kind_of(d, v) == ESP_JSON_BOOL ? d->e[v].flag : otherwise;
}
