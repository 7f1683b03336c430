/* Normalizers: what becomes of a text before it is cut into words. Normal forms and case are utf8proc's. */
#include <string.h>
#include <utf8proc.h>

#include "tokenizer.h"

static int is_ascii(const char *text, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) if ((unsigned char)text[i] >= 128) return 0;
    return 1;
}

static int put_point(esp_text *out, int32_t point)
{
    utf8proc_uint8_t text[4];
    return esp_text_add(out, (const char *)text, utf8proc_encode_char(point, text));
}

/* Marks are put in order by an insertion sort; a run of them this long is no text, and longer ones would cost its square. */
enum { LONGEST_RUN = 4096 };

static int long_run_of_marks(const char *text, int64_t bytes)
{
    int run = 0;
    for (int64_t i = 0; i < bytes; i += esp_utf8_length(text + i)) {
        run = (unsigned char)text[i] >= 0xcc && utf8proc_get_property(esp_utf8_point(text + i))->combining_class ? run + 1 : 0;
        if (run > LONGEST_RUN) return 1;
    }
    return 0;
}

/* A Unicode normal form; option: utf8proc's. */
int esp_map_form(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)i;
    if (is_ascii(text, bytes)) return esp_text_add(out, text, bytes);
    if (long_run_of_marks(text, bytes)) return esp_fail(ESP_EARG, "tokenizer: the text has more than %d combining marks in a row", (int)LONGEST_RUN);
    const utf8proc_uint8_t *from = (const utf8proc_uint8_t *)text;
    utf8proc_ssize_t n = bytes;
    do {
        TRY(esp_worker_grow((void **)&w->points, &w->point_room, n + 1, 4));
        n = utf8proc_decompose(from, bytes, w->points, w->point_room - 1, (utf8proc_option_t)s->option);
    } while (n >= w->point_room);
    if (n >= 0) n = utf8proc_reencode(w->points, n, (utf8proc_option_t)s->option);
    if (n < 0) return esp_fail(ESP_EARG, "tokenizer: the text has no Unicode normal form: %s", utf8proc_errmsg(n));
    return esp_text_add(out, (const char *)w->points, n);
}

int esp_map_lower(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    for (int64_t at = 0; at < bytes; at += esp_utf8_length(text + at)) {
        int32_t c = esp_utf8_point(text + at);
        /* U+0130 is the one letter whose small form has two code points. */
        TRY(c == 0x130 ? esp_text_add(out, "i\xcc\x87", 3) : put_point(out, utf8proc_tolower(c)));
    }
    return ESP_OK;
}

/* White space off the ends. */
int esp_map_strip(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)w, (void)i;
    int64_t from = 0, to = bytes;
    while (s->left && from < to && esp_is_space(esp_utf8_point(text + from))) from += esp_utf8_length(text + from);
    while (s->right && to > from && esp_is_space(esp_utf8_point(text + to - esp_utf8_before(text, to)))) to -= esp_utf8_before(text, to);
    return esp_text_add(out, text + from, to - from);
}

/* Marks away: of a text in form NFD the accents. */
int esp_map_accents(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    for (int64_t at = 0, n; at < bytes; at += n) {
        n = esp_utf8_length(text + at);
        utf8proc_category_t c = utf8proc_category(esp_utf8_point(text + at));
        if (c != UTF8PROC_CATEGORY_MN && c != UTF8PROC_CATEGORY_MC && c != UTF8PROC_CATEGORY_ME) TRY(esp_text_add(out, text + at, n));
    }
    return ESP_OK;
}

/* The rules of neural machine translation: control characters away, odd white space and signs of no width become spaces. */
int esp_map_nmt(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    for (int64_t at = 0, n; at < bytes; at += n) {
        int32_t c = esp_utf8_point(text + at);
        n = esp_utf8_length(text + at);
        if ((c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f || c == 0x8f || c == 0x9f) continue;
        int space = c == 9 || c == 0xa || c == 0xc || c == 0xd || c == 0x1680 || (c >= 0x200b && c <= 0x200f) || c == 0x2028 || c == 0x2029 || c == 0x2581
            || c == 0xfeff || c == 0xfffd;
        TRY(space ? esp_text_add(out, " ", 1) : esp_text_add(out, text + at, n));
    }
    return ESP_OK;
}

int esp_map_prepend(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)w, (void)i;
    if (bytes) TRY(esp_text_add(out, s->content, s->content_bytes));
    return esp_text_add(out, text, bytes);
}

int esp_map_replace(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)i;
    esp_scan scan = {-1, 0, 0, 0};
    int64_t at = 0;
    for (;;) {
        TRY(esp_pattern_next(&scan, s->pattern, w->matcher, text, bytes));
        if (!scan.found) break;
        TRY(esp_text_add(out, text + at, scan.begin - at));
        TRY(esp_text_add(out, s->content, s->content_bytes));
        at = scan.end;
    }
    return esp_text_add(out, text + at, bytes - at);
}

/* Bytes as the letters of byte-level BPE. */
int esp_map_letters(const esp_step *s, esp_worker *w, esp_text *out, const char *text, int64_t bytes, int64_t i)
{
    (void)s, (void)w, (void)i;
    TRY(esp_text_room(out, 2 * bytes));
    for (int64_t at = 0; at < bytes; at++) out->bytes += esp_byte_letter(out->at + out->bytes, (unsigned char)text[at]);
    return ESP_OK;
}
