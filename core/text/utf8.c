/* Characters of UTF-8, and the letters that byte-level BPE writes for bytes. */
#include <string.h>

#include "tokenizer.h"

const char esp_block[] = "\xe2\x96\x81";

int esp_utf8_length(const char *text)
{
    unsigned char c = (unsigned char)*text;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

int esp_utf8_before(const char *text, int64_t at)
{
    int n = 1;
    while (n < 4 && n < at && ((unsigned char)text[at - n] & 0xc0) == 0x80) n++;
    return n;
}

/* Bytes of the character at text, 0 where there is none: no overlong forms, no surrogates, nothing above U+10FFFF (RFC 3629). */
static int valid_length(const unsigned char *c, int64_t bytes)
{
    int n = c[0] < 0x80 ? 1 : c[0] >= 0xc2 && c[0] < 0xe0 ? 2 : c[0] >= 0xe0 && c[0] < 0xf0 ? 3 : c[0] >= 0xf0 && c[0] < 0xf5 ? 4 : 0;
    if (n > bytes) return 0;
    for (int i = 1; i < n; i++) if ((c[i] & 0xc0) != 0x80) return 0;
    if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) || (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f)) return 0;
    return n;
}

int64_t esp_utf8_invalid(const char *text, int64_t bytes)
{
    for (int64_t i = 0; i < bytes;) {
        uint64_t eight;
        if (i + 8 <= bytes && (memcpy(&eight, text + i, 8), (eight & 0x8080808080808080u) == 0)) {
            i += 8;
            continue;
        }
        int n = valid_length((const unsigned char *)text + i, bytes - i);
        if (n == 0) return i;
        i += n;
    }
    return -1;
}

int32_t esp_utf8_point(const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    if (c[0] < 0x80) return c[0];
    if (c[0] < 0xe0) return (c[0] & 31) << 6 | (c[1] & 63);
    if (c[0] < 0xf0) return (c[0] & 15) << 12 | (c[1] & 63) << 6 | (c[2] & 63);
    return (c[0] & 7) << 18 | (c[1] & 63) << 12 | (c[2] & 63) << 6 | (c[3] & 63);
}

int esp_is_space(int32_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029
        || c == 0x202f || c == 0x205f || c == 0x3000;
}

static int prints(int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; }

/* The bytes that do not print are 0-32, 127-160 and 173; in this order they take the letters from U+0100 on. */
static int letter_of(int b) { return prints(b) ? b : 256 + (b < 127 ? b : b < 173 ? b - 127 + 33 : 67); }

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

int esp_letter_byte(const char *text, unsigned char *byte)
{
    int c = esp_utf8_point(text), n = c - 256;
    int b = c < 256 ? c : n < 33 ? n : n < 67 ? n - 33 + 127 : 173;
    if (c > 256 + 67 || letter_of(b) != c) return 0;
    *byte = (unsigned char)b;
    return c < 128 ? 1 : 2;
}
