/* A set of strings, sorted, in which a walk along a text narrows the range of those that agree with it. No more memory than a few words a string. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* By bytes, shorter first; equal ones by id. */
static int compare(const void *a, const void *b)
{
    const esp_string *x = a, *y = b;
    int d = memcmp(x->text, y->text, (size_t)esp_min(x->bytes, y->bytes));
    if (d) return d;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

int esp_prefixes_build(esp_prefixes *p)
{
    qsort(p->strings, (size_t)p->count, sizeof *p->strings, compare);
    int32_t n = 0;
    for (int32_t i = 0; i < p->count; i++) {
        if (p->strings[i].bytes == 0) continue;
        if (n && p->strings[n - 1].bytes == p->strings[i].bytes && memcmp(p->strings[n - 1].text, p->strings[i].text, (size_t)p->strings[i].bytes) == 0) n--;
        p->strings[n++] = p->strings[i];
    }
    p->count = n;
    int32_t at = 0;
    for (int b = 0; b <= 256; b++) {
        while (at < n && (unsigned char)*p->strings[at].text < b) at++;
        p->first[b] = at;
    }
    return ESP_OK;
}

void esp_prefixes_begin(const esp_prefixes *p, esp_walk *w)
{
    *w = (esp_walk){0, p->count, -1, 0};
}

/* The first string in lo..hi-1 whose byte at depth is at least c. */
static int32_t bound(const esp_prefixes *p, int32_t lo, int32_t hi, int64_t depth, int c)
{
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)p->strings[mid].text[depth] < c) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

int esp_prefixes_step(const esp_prefixes *p, esp_walk *w, char byte)
{
    int c = (unsigned char)byte;
    if (w->depth == 0) {
        w->lo = p->first[c], w->hi = p->first[c + 1];
    } else {
        /* The string that ends here has no byte at this depth; it is the first. */
        if (w->lo < w->hi && p->strings[w->lo].bytes == w->depth) w->lo++;
        w->lo = bound(p, w->lo, w->hi, w->depth, c);
        w->hi = w->lo < w->hi && (unsigned char)p->strings[w->lo].text[w->depth] == c ? bound(p, w->lo, w->hi, w->depth, c + 1) : w->lo;
    }
    w->depth++;
    w->id = w->lo < w->hi && p->strings[w->lo].bytes == w->depth ? p->strings[w->lo].id : -1;
    return w->lo < w->hi;
}

int64_t esp_prefixes_longest(const esp_prefixes *p, const char *text, int64_t bytes, int32_t *id)
{
    esp_walk w;
    int64_t longest = 0;
    esp_prefixes_begin(p, &w);
    while (w.depth < bytes && esp_prefixes_step(p, &w, text[w.depth])) {
        if (w.id >= 0) longest = w.depth, *id = w.id;
    }
    return longest;
}
