/* Regular expressions of tokenizers, run by PCRE2 with Unicode classes.
 *
 * tokenizer.json writes them for Oniguruma. What the two read alike passes as it is; classes that differ are written out, and what has another
 * meaning in PCRE2 or none is refused by name. */
#define _GNU_SOURCE
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "tokenizer.h"

struct esp_pattern {
    pcre2_code *code;                      /* NULL: a literal */
    char *literal;
    int64_t bytes;
};

struct esp_matcher {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    int64_t limit;                         /* steps of backtracking that one match may take */
};

/* Steps of backtracking that one match may take: patterns of tokenizers need a few hundred in prose, and one a byte in a long run of spaces (Llama 3's
 * looks for a line's end behind each). */
enum { MATCH_LIMIT = 1000000, STEPS_A_BYTE = 4, JIT_STACK = 1 << 20, LONGEST_PATTERN = 1 << 16 };

const char esp_gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char esp_llama3_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char esp_qwen2_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

int esp_pattern_new(esp_pattern **out, const char *pattern, int64_t bytes, const char *where)
{
    int number;
    PCRE2_SIZE at;
    if (bytes > LONGEST_PATTERN) return esp_fail(ESP_EFORMAT, "%s: a pattern of %lld bytes, at most %d can be", where, (long long)bytes, (int)LONGEST_PATTERN);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, (PCRE2_SIZE)bytes, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &number, &at, NULL);
    if (!code) {
        char reason[120];
        pcre2_get_error_message(number, (PCRE2_UCHAR *)reason, sizeof reason);
        return esp_fail(ESP_EFORMAT, "%s: the pattern '%.200s' is wrong at %d: %s", where, pattern, (int)at, reason);
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    esp_pattern *p = esp_calloc(sizeof *p);
    if (!p) {
        pcre2_code_free(code);
        return ESP_EMEM;
    }
    p->code = code;
    *out = p;
    return ESP_OK;
}

int esp_pattern_literal(esp_pattern **out, const char *text, int64_t bytes)
{
    esp_pattern *p = esp_calloc(sizeof *p);
    if (!p || !(p->literal = esp_malloc(bytes + 1))) {
        esp_free(p);
        return ESP_EMEM;
    }
    memcpy(p->literal, text, (size_t)bytes);
    p->bytes = bytes;
    *out = p;
    return ESP_OK;
}

void esp_pattern_free(esp_pattern *p)
{
    if (!p) return;
    pcre2_code_free(p->code);
    esp_free(p->literal);
    esp_free(p);
}

/* ---- Oniguruma's patterns ---- */

typedef struct translation {
    const char *pattern, *where;
    int64_t bytes, at;
    int in_class;
    esp_text out;
} translation;

static int refuse(const translation *t, const char *what)
{
    return esp_fail(ESP_EFORMAT, "%s: the pattern '%.200s' has %s at %lld, which is not known", t->where, t->pattern, what, (long long)t->at);
}

/* White_Space, without U+180E, which PCRE2 counts among \s; and Oniguruma's word characters. */
#define SPACES "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define WORDS ESP_WORDS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

/* Between a word character and another one, or none. */
static const char boundary[] = "(?:(?<=[" WORDS "])(?![" WORDS "])|(?<![" WORDS "])(?=[" WORDS "]))";

/* A class by its letter, in brackets where it stands alone. */
static int put_class(translation *t, const char *members, int negated)
{
    char text[300];
    if (negated && t->in_class) return refuse(t, "a negated class inside a class");
    int n = snprintf(text, sizeof text, t->in_class ? "%s%s" : negated ? "[^%s%s]" : "[%s%s]", "", members);
    return esp_text_add(&t->out, text, n);
}

static int is_hex(char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f'); }

/* \uHHHH, which PCRE2 writes \x{HHHH}. */
static int put_code_point(translation *t)
{
    char text[12];
    for (int i = 2; i < 6; i++) if (t->at + i >= t->bytes || !is_hex(t->pattern[t->at + i])) return refuse(t, "\\u without four hex digits");
    int n = snprintf(text, sizeof text, "\\x{%.4s}", t->pattern + t->at + 2);
    t->at += 6;
    return esp_text_add(&t->out, text, n);
}

/* \p{...} or \x{...} or without braces, as it stands. */
static int put_braces(translation *t)
{
    const char *from = t->pattern + t->at, *end = t->at + 2 < t->bytes && from[2] == '{' ? memchr(from, '}', (size_t)(t->bytes - t->at)) : from + 1;
    if (!end) return refuse(t, "a brace that does not close");
    t->at += end + 1 - from;
    return esp_text_add(&t->out, from, end + 1 - from);
}

static int put_escape(translation *t)
{
    if (t->at + 1 >= t->bytes) return refuse(t, "a backslash at its end");
    char c = t->pattern[t->at + 1];
    if (c == 'u') return put_code_point(t);
    if (c == 's' || c == 'S') TRY(put_class(t, SPACES, c == 'S'));
    else if (c == 'w' || c == 'W') TRY(put_class(t, WORDS, c == 'W'));
    else if (c == 'b' && !t->in_class) TRY(esp_text_add(&t->out, boundary, sizeof boundary - 1));
    else if (c == 'v') TRY(esp_text_add(&t->out, "\\x0b", 4));
    else if ((c >= '1' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z' && !strchr("pPdDnrtfaexAzZ", c))) {
        char what[] = "the escape \\?";
        what[sizeof what - 2] = c;
        return refuse(t, what);
    } else if ((c | 32) == 'p' || c == 'x') {
        return put_braces(t);
    } else {
        /* A sign above ASCII after a backslash means itself: its first byte is copied here, the others follow as they are. */
        TRY((unsigned char)c < 128 ? esp_text_add(&t->out, t->pattern + t->at, 2) : esp_text_add(&t->out, &c, 1));
    }
    t->at += 2;
    return ESP_OK;
}

static int put_in_class(translation *t)
{
    char c = t->pattern[t->at];
    if (c == '[') return refuse(t, "a class inside a class");
    if (c == '&' && t->at + 1 < t->bytes && t->pattern[t->at + 1] == '&') return refuse(t, "an intersection of classes");
    if (c == '\\') return put_escape(t);
    if (c == ']') t->in_class = 0;
    t->at++;
    return esp_text_add(&t->out, &c, 1);
}

static int put_outside(translation *t)
{
    const char *at = t->pattern + t->at;
    char c = *at;
    if (c == '\\') return put_escape(t);
    if (c == '[') {
        t->in_class = 1;
        int n = t->at + 1 < t->bytes && at[1] == '^' ? 2 : 1;
        t->at += n;
        return esp_text_add(&t->out, at, n);
    }
    /* (?m is "the dot matches newlines" there and "lines" here. */
    if (c == '(' && t->at + 2 < t->bytes && at[1] == '?' && !strchr(":=!<>i-", at[2])) return refuse(t, "a group of an unknown kind");
    /* {n}+ is a repeated repetition there and possessive here. */
    if (c == '}' && t->at + 1 < t->bytes && at[1] == '+') return refuse(t, "'}+'");
    t->at++;
    return esp_text_add(&t->out, &c, 1);
}

int esp_pattern_oniguruma(esp_pattern **out, const char *pattern, int64_t bytes, const char *where)
{
    translation t = {.pattern = pattern, .where = where, .bytes = bytes};
    int code = bytes > LONGEST_PATTERN ? refuse(&t, "too many bytes") : ESP_OK;
    while (code == ESP_OK && t.at < bytes) code = t.in_class ? put_in_class(&t) : put_outside(&t);
    if (code == ESP_OK) code = esp_text_add(&t.out, "", 1);
    if (code == ESP_OK) code = esp_pattern_new(out, t.out.at, t.out.bytes - 1, where);
    esp_free(t.out.at);
    return code;
}

/* ---- matching ---- */

int esp_matcher_new(esp_matcher **out)
{
    esp_matcher *m = esp_calloc(sizeof *m);
    if (!m) return ESP_EMEM;
    m->match = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    m->stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK, NULL);
    if (!m->match || !m->context) {
        esp_matcher_free(m);
        return esp_fail(ESP_EMEM, "tokenizer: no memory for a match");
    }
    /* Without a stack of its own JIT code runs on the thread's. */
    if (m->stack) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    *out = m;
    return ESP_OK;
}

void esp_matcher_free(esp_matcher *m)
{
    if (!m) return;
    pcre2_match_data_free(m->match);
    pcre2_match_context_free(m->context);
    pcre2_jit_stack_free(m->stack);
    esp_free(m);
}

static void allow(esp_matcher *m, int64_t bytes)
{
    int64_t limit = esp_min(MATCH_LIMIT + STEPS_A_BYTE * bytes, UINT32_MAX);
    if (limit <= m->limit) return;
    pcre2_set_match_limit(m->context, (uint32_t)limit);
    m->limit = limit;
}

/* The next match from scan->from on, whatever its length. */
static int search(esp_scan *scan, const esp_pattern *p, esp_matcher *m, const char *text, int64_t bytes)
{
    if (!p->code) {
        const char *hit = p->bytes ? memmem(text + scan->from, (size_t)(bytes - scan->from), p->literal, (size_t)p->bytes) : NULL;
        scan->found = hit != NULL;
        if (hit) scan->begin = hit - text, scan->end = scan->begin + p->bytes;
        return ESP_OK;
    }
    allow(m, bytes);
    int rc = pcre2_match(p->code, (PCRE2_SPTR)text, (PCRE2_SIZE)bytes, (PCRE2_SIZE)scan->from, PCRE2_NO_UTF_CHECK, m->match, m->context);
    scan->found = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) return esp_fail(ESP_EFORMAT, "tokenizer: the pattern gave up on this text at byte %lld (PCRE2's code %d)", (long long)scan->from, rc);
    if (rc >= 0) {
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(m->match);
        scan->begin = (int64_t)range[0], scan->end = (int64_t)range[1];
    }
    return ESP_OK;
}

int esp_pattern_next(esp_scan *scan, const esp_pattern *p, esp_matcher *m, const char *text, int64_t bytes)
{
    int64_t last = scan->begin < 0 ? -1 : scan->end;
    for (;;) {
        scan->found = 0;
        if (scan->from > bytes) return ESP_OK;
        TRY(search(scan, p, m, text, bytes));
        /* An empty match right behind the last one would be found for ever. */
        if (!scan->found || scan->end > scan->begin || scan->begin != last) break;
        scan->from += scan->from < bytes ? esp_utf8_length(text + scan->from) : 1;
    }
    scan->from = scan->end;
    return ESP_OK;
}
