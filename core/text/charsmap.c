/* sentencepiece's precompiled map of characters: u32 bytes of a double-array trie, the trie's u32 units, then texts that end in NUL. Nothing in it is
 * trusted: each step of the walk is checked against the trie's size. */
#include <string.h>
#include <utf8proc.h>

#include "tokenizer.h"

static uint32_t unit_at(const char *map, int64_t i)
{
    uint32_t u;
    memcpy(&u, map + 4 + 4 * i, 4);
    return u;
}

static int64_t trie_bytes(const char *map)
{
    uint32_t n;
    memcpy(&n, map, 4);
    return n;
}

int esp_charsmap_check(const char *map, int64_t bytes, const char *where)
{
    if (bytes < 8 || trie_bytes(map) < 4 || trie_bytes(map) % 4 || trie_bytes(map) > bytes - 5 || map[bytes - 1] != 0) {
        return esp_fail(ESP_EFORMAT, "%s: the precompiled character map is no whole map", where);
    }
    int64_t texts = 4 + trie_bytes(map);
    if (esp_utf8_invalid(map + texts, bytes - texts) >= 0) return esp_fail(ESP_EFORMAT, "%s: the precompiled character map holds texts that are no UTF-8", where);
    return ESP_OK;
}

static int inside_character(const char *text) { return ((unsigned char)*text & 0xc0) == 0x80; }

/* Units as darts-clone packs them: label in the low byte, offset above bit 10 (bit 9: times 256), bit 8: a value is stored at the offset. */
static uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 512) >> 6); }

int64_t esp_charsmap_find(const char *map, int64_t map_bytes, const char *text, int64_t bytes, int shortest, const char **to)
{
    int64_t units = trie_bytes(map) / 4, longest = 0;
    const char *texts = map + 4 + 4 * units, *end = map + map_bytes;
    uint32_t node = offset_of(unit_at(map, 0));
    for (int64_t i = 0; i < bytes; i++) {
        uint32_t label = (unsigned char)text[i];
        node ^= label;
        if (node >= units) break;
        uint32_t unit = unit_at(map, node);
        if ((unit & (1u << 31 | 255)) != label) break;
        node ^= offset_of(unit);
        if (node >= units) break;
        if (unit >> 8 & 1) {
            uint32_t value = unit_at(map, node) & 0x7fffffff;
            /* What is read and what is written are whole characters. */
            if (value >= (uint64_t)(end - texts) || inside_character(texts + value)) break;
            if (i + 1 < bytes && inside_character(text + i + 1)) continue;
            *to = texts + value;
            longest = i + 1;
            if (shortest) break;
        }
    }
    return longest;
}

static int put(esp_text *out, const esp_step *s, const char *text, int64_t bytes, int *hit)
{
    const char *to;
    *hit = esp_charsmap_find(s->content, s->content_bytes, text, bytes, 1, &to) > 0;
    return *hit ? esp_text_add(out, to, (int64_t)strlen(to)) : ESP_OK;
}

/* As tokenizers applies the map: to whole graphemes of fewer than six bytes, else to each character; the shortest entry counts and stands for all. */
int esp_map_graphemes(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)w, (void)i;
    for (int64_t at = 0; at < bytes;) {
        int64_t end = at + esp_utf8_length(text + at);
        utf8proc_int32_t state = 0;
        int hit = 0;
        while (end < bytes && !utf8proc_grapheme_break_stateful(esp_utf8_point(text + end - esp_utf8_before(text, end)), esp_utf8_point(text + end), &state)) {
            end += esp_utf8_length(text + end);
        }
        if (end - at < 6) TRY(put(out, s, text + at, end - at, &hit));
        for (int64_t n; !hit && at < end; at += n) {
            n = esp_utf8_length(text + at);
            int known;
            TRY(put(out, s, text + at, n, &known));
            if (!known) TRY(esp_text_add(out, text + at, n));
        }
        at = end;
    }
    return ESP_OK;
}
