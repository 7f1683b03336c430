/* Cutting text into words by the regular expressions of byte-level tokenizers (PCRE2 with Unicode classes), and their letters for bytes. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "tokenizer.h"

struct esp_split {
    pcre2_code *code;
};

int esp_split_new(esp_split **out, const char *pattern, int64_t bytes, const char *where)
{
    int number;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, (PCRE2_SIZE)bytes, PCRE2_UTF | PCRE2_UCP, &number, &at, NULL);
    if (!code) {
        char reason[120];
        pcre2_get_error_message(number, (PCRE2_UCHAR *)reason, sizeof reason);
        return esp_fail(ESP_EFORMAT, "%s: the pattern of the pre-tokenizer is wrong at %d: %s", where, (int)at, reason);
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    esp_split *s = esp_malloc(sizeof *s);
    if (!s) {
        pcre2_code_free(code);
        return ESP_EMEM;
    }
    s->code = code;
    *out = s;
    return ESP_OK;
}

void esp_split_free(esp_split *s)
{
    if (!s) return;
    pcre2_code_free(s->code);
    esp_free(s);
}

int esp_split_run(const esp_split *s, const char *text, int64_t bytes, esp_piece_fn *fn, void *context)
{
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(s->code, NULL);
    if (!match) return esp_fail(ESP_EMEM, "tokenizer: no memory for a match");
    int64_t at = 0, from = 0;              /* from: where the search goes on; at: end of what was given out */
    int code = ESP_OK;
    while (code == ESP_OK && from < bytes) {
        int found = pcre2_match(s->code, (PCRE2_SPTR)text, (PCRE2_SIZE)bytes, (PCRE2_SIZE)from, PCRE2_NO_UTF_CHECK, match, NULL);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) {
            code = esp_fail(ESP_EFORMAT, "tokenizer: the pre-tokenizer's pattern gave up on this text (code %d)", found);
            break;
        }
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
        int64_t begin = (int64_t)range[0], end = (int64_t)range[1];
        if (end == begin) {
            from = begin + esp_utf8_length(text + begin, bytes - begin);
            continue;
        }
        if (begin > at) code = fn(context, text + at, begin - at);
        if (code == ESP_OK) code = fn(context, text + begin, end - begin);
        at = from = end;
    }
    if (code == ESP_OK && at < bytes) code = fn(context, text + at, bytes - at);
    pcre2_match_data_free(match);
    return code;
}

int esp_utf8_length(const char *text, int64_t bytes)
{
    unsigned char c = (unsigned char)*text;
    int n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 1;
    if (n > bytes) return 1;
    for (int i = 1; i < n; i++) if (((unsigned char)text[i] & 0xc0) != 0x80) return 1;
    return n;
}

static int prints(int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; }

static int letter_of(unsigned char byte)
{
    if (prints(byte)) return byte;
    int n = 0;
    for (int b = 0; b < byte; b++) n += !prints(b);
    return 256 + n;
}

int esp_byte_letter(char *to, unsigned char byte)
{
    int c = letter_of(byte);
    if (c < 128) {
        to[0] = (char)c;
        return 1;
    }
    to[0] = (char)(0xc0 | c >> 6);
    to[1] = (char)(0x80 | (c & 63));
    return 2;
}

int esp_letter_byte(const char *text, int64_t bytes, unsigned char *byte)
{
    int n = esp_utf8_length(text, bytes);
    int c = n == 1 ? (unsigned char)text[0] : n == 2 ? ((unsigned char)text[0] & 31) << 6 | ((unsigned char)text[1] & 63) : 9999;
    if (c < 256 && prints(c)) {
        *byte = (unsigned char)c;
        return n;
    }
    for (int b = 0; c >= 256 && b < 256; b++) {
        if (!prints(b) && letter_of((unsigned char)b) == c) {
            *byte = (unsigned char)b;
            return n;
        }
    }
    return 0;
}
