/* Documents on their way to ids: a piece of a file (a text, or a line of JSON) becomes a text, and the text becomes ids, many documents at a
 * time over the thread pool.
 *
 * Each document is made by one thread alone and they are put together in order, so the result does not depend on the number of threads. */
#include <stdio.h>
#include <string.h>

#include "../base/base.h"

/* A text in parts: part i ends at byte ends[i] and is counted or not. */
typedef struct rendered {
    char *owned;                           /* NULL where the text is the piece itself */
    const char *text;
    int64_t bytes, room;
    int64_t *ends;
    uint8_t *counts;
    int64_t parts, part_room;
} rendered;

typedef struct document {
    rendered r;
    int32_t *ids;                          /* with bos and eos */
    int64_t count;
    uint8_t *counted;
} document;

typedef struct work {
    const esp_tokenizer *t;
    const esp_document_rule *rule;
    const char *text;
    const int64_t *ranges, *numbers;
    document *documents;
} work;

/* ---- JSON ---- */

static const char *const kinds[] = {"null", "true or false", "a number", "a number", "a text", "a key", "an object", "a list"};

/* The value at a field of the object at i, -1 where there is none: a key of the whole name, else one of its beginning, "a" of "a.b". */
static int64_t find(const esp_json *j, int64_t i, const char *field)
{
    if (esp_json_kind(j, i) != ESP_JSON_OBJECT) return -1;
    for (int64_t end = esp_json_after(j, i++); i < end; i = esp_json_after(j, i + 1)) {
        int64_t bytes;
        const char *key = esp_json_text(j, i, &bytes);
        size_t n = (size_t)bytes;
        if (strncmp(field, key, n) != 0 || strlen(field) < n) continue;
        if (!field[n]) return i + 1;
        int64_t inside = field[n] == '.' ? find(j, i + 1, field + n + 1) : -1;
        if (inside >= 0) return inside;
    }
    return -1;
}

static int want_kind(int64_t *at, const esp_json *j, int64_t object, const char *field, int kind, const char *where)
{
    *at = find(j, object, field);
    const char *came = *at < 0 ? "missing" : kinds[esp_json_kind(j, *at)];
    if (*at >= 0 && esp_json_kind(j, *at) == kind) return ESP_OK;
    return esp_fail(ESP_EFORMAT, "%s: the field '%s' is %s, want %s", where, field, came, kinds[kind]);
}

/* ---- from a piece to a text ---- */

static int append(rendered *r, const char *text, int64_t bytes)
{
    if (r->bytes + bytes + 1 > r->room) {
        int64_t room = 2 * r->room + bytes + 64;
        char *more = esp_realloc(r->owned, room);
        if (!more) return ESP_EMEM;
        r->owned = more;
        r->room = room;
    }
    memcpy(r->owned + r->bytes, text, (size_t)bytes);
    r->text = r->owned;
    r->bytes += bytes;
    return ESP_OK;
}

/* A template around a message, {role} replaced. */
static int append_template(rendered *r, const char *pattern, const char *role, int64_t role_bytes)
{
    for (const char *hole; (hole = strstr(pattern, "{role}")) != NULL; pattern = hole + 6) {
        TRY(append(r, pattern, hole - pattern));
        TRY(append(r, role, role_bytes));
    }
    return append(r, pattern, (int64_t)strlen(pattern));
}

/* Ends a part here; nothing where it is empty. */
static int end_part(rendered *r, int counted)
{
    if (r->bytes == (r->parts ? r->ends[r->parts - 1] : 0)) return ESP_OK;
    if (r->parts == r->part_room) {
        int64_t room = r->part_room ? 2 * r->part_room : 8;
        int64_t *ends = esp_realloc(r->ends, room * (int64_t)sizeof *ends);
        if (ends) r->ends = ends;
        uint8_t *counts = ends ? esp_realloc(r->counts, room) : NULL;
        if (!counts) return ESP_EMEM;
        r->counts = counts;
        r->part_room = room;
    }
    r->ends[r->parts] = r->bytes;
    r->counts[r->parts++] = counted != 0;
    return ESP_OK;
}

static int append_text(rendered *r, const esp_json *j, int64_t at)
{
    int64_t bytes;
    const char *text = esp_json_text(j, at, &bytes);
    return append(r, text, bytes);
}

static int render_messages(rendered *r, const esp_document_rule *rule, const esp_json *j, const char *where)
{
    int64_t list, role, content, answers = 0;
    TRY(want_kind(&list, j, 0, rule->field, ESP_JSON_ARRAY, where));
    for (int64_t i = list + 1, end = esp_json_after(j, list); i < end; i = esp_json_after(j, i)) {
        TRY(want_kind(&role, j, i, "role", ESP_JSON_STRING, where));
        TRY(want_kind(&content, j, i, "content", ESP_JSON_STRING, where));
        int64_t bytes;
        const char *who = esp_json_text(j, role, &bytes);
        int counted = strcmp(who, rule->answer) == 0;
        TRY(append_template(r, rule->before, who, bytes));
        TRY(end_part(r, 0));
        TRY(append_text(r, j, content));
        TRY(append_template(r, rule->after, who, bytes));
        TRY(end_part(r, counted));
        answers += counted;
    }
    return answers ? ESP_OK : esp_fail(ESP_EFORMAT, "%s: no message has the role '%s', so there is nothing to learn", where, rule->answer);
}

static int render_json(rendered *r, const esp_document_rule *rule, const esp_json *j, const char *where)
{
    int64_t field, answer;
    if (esp_json_kind(j, 0) != ESP_JSON_OBJECT) return esp_fail(ESP_EFORMAT, "%s: it is %s, want an object", where, kinds[esp_json_kind(j, 0)]);
    if (rule->kind == ESP_DOCUMENT_MESSAGES) return render_messages(r, rule, j, where);
    TRY(want_kind(&field, j, 0, rule->field, ESP_JSON_STRING, where));
    TRY(append_text(r, j, field));
    if (rule->kind == ESP_DOCUMENT_FIELD) return ESP_OK;
    TRY(end_part(r, 0));
    TRY(want_kind(&answer, j, 0, rule->answer, ESP_JSON_STRING, where));
    TRY(append_text(r, j, answer));
    return end_part(r, 1);
}

static int render(rendered *r, const work *w, int64_t i)
{
    const char *text = w->text + w->ranges[2 * i];
    int64_t bytes = w->ranges[2 * i + 1] - w->ranges[2 * i];
    if (w->rule->kind == ESP_DOCUMENT_TEXT) {
        r->text = text;
        r->bytes = bytes;
        return ESP_OK;
    }
    char where[600];
    snprintf(where, sizeof where, "%s line %lld", w->rule->name, (long long)w->numbers[i]);
    esp_json *j;
    TRY(esp_json_parse(&j, text, bytes, where));
    int code = render_json(r, w->rule, j, where);
    esp_json_free(j);
    return code;
}

/* ---- from a text to ids ---- */

/* Marks the ids of the counted parts: a part ends where the ids of the text up to its end stop being those of the whole text. */
static int mark_counted(document *d, const work *w, int first, int64_t count)
{
    const rendered *r = &d->r;
    if (!(d->counted = esp_calloc(d->count + 1))) return ESP_EMEM;
    for (int64_t p = 0, from = 0; p < r->parts; p++) {
        int64_t to = count;
        if (r->ends[p] < r->bytes) {
            int32_t *ids;
            int64_t n;
            TRY(esp_tokenizer_encode(&ids, &n, w->t, r->text, r->ends[p], w->rule->special));
            for (to = 0; to < n && to < count && ids[to] == d->ids[first + to];) to++;
            esp_free(ids);
        }
        if (to > from) {
            memset(d->counted + first + from, r->counts[p], (size_t)(to - from));
            from = to;
        }
    }
    if (w->rule->eos >= 0) d->counted[d->count - 1] = 1;
    return ESP_OK;
}

static int encode(document *d, const work *w, int64_t i)
{
    int32_t *ids;
    int64_t count;
    int code = esp_tokenizer_encode(&ids, &count, w->t, d->r.text, d->r.bytes, w->rule->special);
    if (code != ESP_OK) {
        char reason[400];
        snprintf(reason, sizeof reason, "%s", esp_error());
        return esp_fail(code, "%s %s %lld: %s", w->rule->name, w->rule->kind == ESP_DOCUMENT_TEXT ? "document" : "line", (long long)w->numbers[i], reason);
    }
    int first = w->rule->bos >= 0, last = w->rule->eos >= 0;
    d->count = count + first + last;
    if (!(d->ids = esp_malloc(4 * d->count))) code = ESP_EMEM;
    if (code == ESP_OK) {
        if (first) d->ids[0] = w->rule->bos;
        memcpy(d->ids + first, ids, 4 * (size_t)count);
        if (last) d->ids[d->count - 1] = w->rule->eos;
    }
    esp_free(ids);
    if (code == ESP_OK && w->rule->kind >= ESP_DOCUMENT_ANSWER) code = mark_counted(d, w, first, count);
    return code;
}

static void clear(document *d)
{
    esp_free(d->r.owned);
    esp_free(d->r.ends);
    esp_free(d->r.counts);
    esp_free(d->ids);
    esp_free(d->counted);
    *d = (document){0};
}

static int one(void *context, int64_t i)
{
    const work *w = context;
    document *d = &w->documents[i];
    clear(d);
    TRY(render(&d->r, w, i));
    return w->t ? encode(d, w, i) : ESP_OK;
}

/* ---- all of them ---- */

static int gather(esp_encoded *out, const work *w, int64_t count)
{
    int64_t bytes = 0;
    *out = (esp_encoded){.documents = count};
    for (int64_t i = 0; i < count; i++) {
        out->tokens += w->documents[i].count;
        bytes += w->documents[i].r.bytes;
    }
    int masked = w->t && w->rule->kind >= ESP_DOCUMENT_ANSWER;
    out->lengths = esp_malloc(8 * count);
    out->hashes = esp_malloc(8 * count);
    if (w->t) out->ids = esp_malloc(4 * out->tokens);
    else out->text = esp_malloc(bytes);
    if (masked) out->counted = esp_malloc(out->tokens);
    if (!out->lengths || !out->hashes || (w->t ? !out->ids : !out->text) || (masked && !out->counted)) return ESP_EMEM;
    for (int64_t i = 0, at = 0; i < count; i++) {
        const document *d = &w->documents[i];
        out->hashes[i] = esp_hash64(d->r.text, d->r.bytes);
        out->lengths[i] = w->t ? d->count : d->r.bytes;
        if (w->t && d->count) memcpy(out->ids + at, d->ids, 4 * (size_t)d->count);
        if (masked && d->count) memcpy(out->counted + at, d->counted, (size_t)d->count);
        if (!w->t && d->r.bytes) memcpy(out->text + at, d->r.text, (size_t)d->r.bytes);
        at += out->lengths[i];
    }
    return ESP_OK;
}

int esp_documents_encode(esp_encoded *out, const esp_tokenizer *t, const char *text, const int64_t *ranges, const int64_t *numbers, int64_t count,
                         const esp_document_rule *rule)
{
    work w = {t, rule, text, ranges, numbers, esp_calloc(esp_max_of(count, 1) * (int64_t)sizeof(document))};
    *out = (esp_encoded){0};
    if (!w.documents) return ESP_EMEM;
    int code = esp_parallel(count, one, &w);
    /* Which of several bad pieces was met first depends on the threads: in order, the first one is named. */
    if (code != ESP_OK && code != ESP_ESTOP && code != ESP_EMEM) {
        for (int64_t i = 0; i < count; i++) if ((code = one(&w, i)) != ESP_OK) break;
    }
    if (code == ESP_OK) code = gather(out, &w, count);
    for (int64_t i = 0; i < count; i++) clear(&w.documents[i]);
    esp_free(w.documents);
    if (code != ESP_OK) esp_encoded_free(out);
    return code;
}

void esp_encoded_free(esp_encoded *e)
{
    esp_free(e->ids);
    esp_free(e->counted);
    esp_free(e->text);
    esp_free(e->lengths);
    esp_free(e->hashes);
    *e = (esp_encoded){0};
}
