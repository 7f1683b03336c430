/* Writing safetensors: the header first, then the bytes of one tensor after another, gathered and converted in bounded pieces. */
#include <stdio.h>
#include <string.h>

#include "../tensor/tensor.h"
#include "io.h"

enum { STAGE = 16 << 20 };

typedef struct slot {
    char *name;
    int dtype;
    int64_t count, written;                /* in elements */
} slot;

struct esp_safetensors_writer {
    esp_writer *out;
    char *path;
    slot *slots;
    int64_t count, current;                /* the slot that is being filled */
};

static const char *dtype_text(int dtype)
{
    switch (dtype) {
    case ESP_F32: return "F32";
    case ESP_BF16: return "BF16";
    case ESP_F16: return "F16";
    case ESP_I32: return "I32";
    case ESP_U8: return "U8";
    case ESP_F64: return "F64";
    default: return NULL;
    }
}

/* ---- the header ---- */

typedef struct text {
    char *data;
    int64_t bytes;
    int failed;
} text;

static void put(text *t, const char *from, int64_t n)
{
    char *more = t->failed ? NULL : esp_realloc(t->data, t->bytes + n);
    if (!more) {
        t->failed = 1;
        return;
    }
    memcpy(more + t->bytes, from, (size_t)n);
    t->data = more;
    t->bytes += n;
}

static void put_plain(text *t, const char *from) { put(t, from, (int64_t)strlen(from)); }

static void put_number(text *t, int64_t n)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)n);
    put_plain(t, digits);
}

static void put_quoted(text *t, const char *from)
{
    char escape[8];
    put_plain(t, "\"");
    for (const char *p = from; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\') snprintf(escape, sizeof escape, "\\%c", c);
        else if (c < 32) snprintf(escape, sizeof escape, "\\u%04x", c);
        else snprintf(escape, sizeof escape, "%c", c);
        put_plain(t, escape);
    }
    put_plain(t, "\"");
}

/* Padded with spaces so that the data begins at a multiple of 8. */
static void put_header(text *t, const esp_safetensors_writer *w, const int *ndims, const int64_t *shapes, int64_t metadata_count,
                       const char *const *metadata)
{
    int64_t offset = 0;
    put_plain(t, "{");
    if (metadata_count) {
        put_plain(t, "\"__metadata__\":{");
        for (int64_t i = 0; i < metadata_count; i++) {
            if (i) put_plain(t, ",");
            put_quoted(t, metadata[2 * i]);
            put_plain(t, ":");
            put_quoted(t, metadata[2 * i + 1]);
        }
        put_plain(t, w->count ? "}," : "}");
    }
    for (int64_t i = 0; i < w->count; i++) {
        const slot *s = &w->slots[i];
        if (i) put_plain(t, ",");
        put_quoted(t, s->name);
        put_plain(t, ":{\"dtype\":\"");
        put_plain(t, dtype_text(s->dtype));
        put_plain(t, "\",\"shape\":[");
        for (int d = 0; d < ndims[i]; d++) {
            if (d) put_plain(t, ",");
            put_number(t, *shapes++);
        }
        put_plain(t, "],\"data_offsets\":[");
        put_number(t, offset);
        put_plain(t, ",");
        put_number(t, offset += s->count * esp_dtype_size(s->dtype));
        put_plain(t, "]}");
    }
    put_plain(t, "}");
    while (!t->failed && t->bytes % 8) put_plain(t, " ");
}

/* ---- opening and closing ---- */

void esp_safetensors_abandon(esp_safetensors_writer *w)
{
    if (!w) return;
    esp_writer_abandon(w->out);
    for (int64_t i = 0; w->slots && i < w->count; i++) esp_free(w->slots[i].name);
    esp_free(w->slots);
    esp_free(w->path);
    esp_free(w);
}

static int fill_slots(esp_safetensors_writer *w, const char *const *names, const int *dtypes, const int *ndims, const int64_t *shapes)
{
    for (int64_t i = 0; i < w->count; i++) {
        slot *s = &w->slots[i];
        if (strcmp(names[i], "__metadata__") == 0) {
            return esp_fail(ESP_EARG, "%s: a tensor cannot be called __metadata__, the format keeps that name", w->path);
        }
        if (!dtype_text(dtypes[i])) return esp_fail(ESP_EDTYPE, "%s: '%s' is %s, which is not written", w->path, names[i], esp_dtype_name(dtypes[i]));
        *s = (slot){.name = esp_copy_text(names[i]), .dtype = dtypes[i], .count = 1};
        if (!s->name) return ESP_EMEM;
        int64_t bytes = 0;
        int over = 0;
        for (int d = 0; d < ndims[i]; d++, shapes++) over |= *shapes < 0 || __builtin_mul_overflow(s->count, *shapes, &s->count);
        if (over || __builtin_mul_overflow(s->count, esp_dtype_size(s->dtype), &bytes)) {
            return esp_fail(ESP_EARG, "%s: '%s' has more bytes than can be counted", w->path, names[i]);
        }
    }
    return ESP_OK;
}

int esp_safetensors_create(esp_safetensors_writer **out, const char *path, int64_t count, const char *const *names, const int *dtypes,
                           const int *ndims, const int64_t *shapes, int64_t metadata_count, const char *const *metadata)
{
    esp_safetensors_writer *w = esp_calloc(sizeof *w);
    if (!w) return ESP_EMEM;
    w->count = count;
    w->path = esp_copy_text(path);
    w->slots = w->path ? esp_calloc(esp_max_of(count, 1) * (int64_t)sizeof *w->slots) : NULL;
    int code = w->slots ? fill_slots(w, names, dtypes, ndims, shapes) : ESP_EMEM;
    text header = {0};
    if (code == ESP_OK) {
        put_header(&header, w, ndims, shapes, metadata_count, metadata);
        code = header.failed ? ESP_EMEM : esp_writer_open(&w->out, path);
    }
    uint64_t n = (uint64_t)header.bytes;
    if (code == ESP_OK) code = esp_writer_write(w->out, &n, 8);
    if (code == ESP_OK) code = esp_writer_write(w->out, header.data, header.bytes);
    esp_free(header.data);
    if (code != ESP_OK) esp_safetensors_abandon(w);
    else *out = w;
    return code;
}

int esp_safetensors_publish(esp_safetensors_writer *w)
{
    int code = ESP_OK;
    for (int64_t i = 0; code == ESP_OK && i < w->count; i++) {
        const slot *s = &w->slots[i];
        if (s->written != s->count) {
            code = esp_fail(ESP_EARG, "%s: '%s' got %lld of its %lld elements", w->path, s->name, (long long)s->written, (long long)s->count);
        }
    }
    if (code == ESP_OK) {
        code = esp_writer_publish(w->out);
        w->out = NULL;
    }
    esp_safetensors_abandon(w);
    return code;
}

/* ---- the bytes ---- */

/* Rows from .. from+n of x, or of its row index: a view. */
static int view_rows(esp_tensor **out, const esp_tensor *x, int64_t from, int64_t n)
{
    int64_t shape[2] = {n, x->ndim > 1 ? x->shape[1] : 0};
    return esp_tensor_view(out, x, x->ndim, shape, x->stride, from * x->stride[0]);
}

/* n rows from the row `from` on go through `stage`, a flat tensor of the slot's dtype with room for them. */
static int append_rows(esp_safetensors_writer *w, slot *s, const esp_tensor *stage, const esp_tensor *x, const esp_tensor *rows,
                       const esp_tensor *columns, int64_t from, int64_t n, int finite)
{
    int64_t m = columns ? columns->count : x->shape[1], shape[2] = {n, m}, stride[2] = {m, 1};
    esp_tensor *piece = NULL, *part = NULL;
    int code = esp_tensor_view(&piece, stage, 2, shape, stride, 0), good = 1;
    if (code == ESP_OK) code = view_rows(&part, rows ? rows : x, from, n);
    if (code == ESP_OK) code = rows ? esp_take(piece, x, part, columns) : esp_take(piece, part, NULL, columns);
    if (code == ESP_OK && finite && s->dtype != ESP_I32 && s->dtype != ESP_U8) code = esp_tensor_finite(&good, piece);
    if (code == ESP_OK && !good) {
        code = esp_fail(ESP_EFORMAT, "%s: '%s' holds NaN or infinity as %s", w->path, s->name, esp_dtype_name(s->dtype));
    }
    if (code == ESP_OK) code = esp_writer_write(w->out, esp_tensor_at(piece), n * m * esp_dtype_size(s->dtype));
    if (code == ESP_OK) s->written += n * m;
    esp_tensor_free(piece);
    esp_tensor_free(part);
    return code;
}

static int append_matrix(esp_safetensors_writer *w, slot *s, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns, int finite)
{
    int64_t n = rows ? rows->count : x->shape[0], m = columns ? columns->count : x->shape[1];
    if (n * m > s->count - s->written) {
        return esp_fail(ESP_ESHAPE, "%s: '%s' gets %lld elements, %lld are still missing", w->path, s->name, (long long)(n * m),
                        (long long)(s->count - s->written));
    }
    if (n * m == 0) return ESP_OK;
    int64_t at_once = esp_min(n, esp_max_of(1, STAGE / (m * esp_dtype_size(s->dtype)))), room = at_once * m;
    esp_tensor *stage;
    TRY(esp_tensor_new(&stage, s->dtype, 1, &room));
    int code = ESP_OK;
    for (int64_t from = 0; code == ESP_OK && from < n; from += at_once) {
        code = append_rows(w, s, stage, x, rows, columns, from, esp_min(at_once, n - from), finite);
    }
    esp_tensor_free(stage);
    return code;
}

/* x seen as a matrix: dense tensors and those of at most two dimensions are viewed, others copied. A vector is a column where nothing is taken of
 * it, so that a long one goes in pieces too, else a row. */
static int as_matrix(esp_tensor **out, const esp_tensor *x, int taken)
{
    int64_t shape[2] = {1, 1}, stride[2] = {0, 1};
    if (x->ndim == 2) return esp_tensor_view(out, x, 2, x->shape, x->stride, 0);
    if (x->ndim == 1 && taken) {
        shape[1] = x->shape[0], stride[1] = x->stride[0];
        return esp_tensor_view(out, x, 2, shape, stride, 0);
    }
    if (x->ndim <= 1 || esp_is_dense(x)) {
        int64_t wide = x->ndim > 1 && x->shape[x->ndim - 1] > 0 ? x->shape[x->ndim - 1] : 1;
        shape[0] = x->count / wide, shape[1] = wide;
        stride[0] = x->ndim == 1 ? x->stride[0] : wide;
        return esp_tensor_view(out, x, 2, shape, stride, 0);
    }
    esp_tensor *dense;
    TRY(esp_tensor_new(&dense, x->dtype, x->ndim, x->shape));
    int code = esp_copy(dense, x);
    if (code == ESP_OK) code = as_matrix(out, dense, taken);
    esp_tensor_free(dense);
    return code;
}

int esp_safetensors_append(esp_safetensors_writer *w, int64_t i, const esp_tensor *x, const esp_tensor *rows, const esp_tensor *columns, int finite)
{
    if (i < 0 || i >= w->count) return esp_fail(ESP_EARG, "%s: tensor %lld of %lld", w->path, (long long)i, (long long)w->count);
    if (!x || !x->storage) return esp_fail(ESP_EARG, "%s: '%s' was freed", w->path, w->slots[i].name);
    while (w->current < i && w->slots[w->current].written == w->slots[w->current].count) w->current++;
    if (w->current != i) return esp_fail(ESP_EARG, "%s: '%s' comes out of turn, want '%s'", w->path, w->slots[i].name, w->slots[w->current].name);
    if (x->ndim > 2 && (rows || columns)) return esp_fail(ESP_ESHAPE, "%s: '%s': rows and columns are taken of matrices", w->path, w->slots[i].name);
    esp_tensor *matrix;
    TRY(as_matrix(&matrix, x, columns != NULL));
    int code = append_matrix(w, &w->slots[i], matrix, rows, columns, finite);
    esp_tensor_free(matrix);
    return code;
}
