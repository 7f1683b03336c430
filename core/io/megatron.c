/* Megatron's pair of files: PREFIX.bin holds the ids of all sequences one after another, PREFIX.idx says where they and the documents begin.
 *
 * The .idx, little-endian: "MMIDIDX\0\0", u64 version (1), u8 dtype, u64 sequences, u64 documents + 1; then i32 lengths[sequences],
 * i64 pointers[sequences] (bytes into the .bin), i64 documents[documents + 1] (the sequence where each begins). Nothing in it is trusted:
 * counts must fill the file exactly, pointers must be the sums of the lengths, and the .bin must hold exactly as many bytes. */
#include <string.h>

#include "io.h"

enum { HEADER = 34 };

struct esp_megatron {
    char *path;
    esp_mapping *bin, *idx;
    int dtype, size;                       /* code in the file, bytes of an id */
    int64_t sequences, documents, tokens;
};

static const struct {
    const char *name;
    int size;                              /* 0: no ids */
} dtypes[] = {{"", 0}, {"uint8", 1}, {"int8", 1}, {"int16", 2}, {"int32", 4}, {"int64", 8}, {"float64", 0}, {"float32", 0}, {"uint16", 2}};

/* The i-th number of a list at byte `at` of the .idx; lists are not aligned. */
static int64_t number_at(const esp_megatron *m, int64_t at, int64_t i, int size)
{
    const char *list = m->idx->data;
    int64_t wide = 0;
    int32_t narrow;
    if (size == 8) {
        memcpy(&wide, list + at + 8 * i, 8);
        return wide;
    }
    memcpy(&narrow, list + at + 4 * i, 4);
    return narrow;
}

static int64_t length_of(const esp_megatron *m, int64_t i) { return number_at(m, HEADER, i, 4); }
static int64_t pointer_of(const esp_megatron *m, int64_t i) { return number_at(m, HEADER + 4 * m->sequences, i, 8); }
static int64_t document_of(const esp_megatron *m, int64_t i) { return number_at(m, HEADER + 12 * m->sequences, i, 8); }

static int read_header(esp_megatron *m)
{
    const char *p = m->path;
    if (memcmp(m->idx->data, "MMIDIDX\0\0", 9) != 0) return esp_fail(ESP_EFORMAT, "%s: no Megatron index: it does not begin with MMIDIDX", p);
    int64_t version = number_at(m, 9, 0, 8), sequences = number_at(m, 18, 0, 8), documents = number_at(m, 26, 0, 8);
    if (version != 1) return esp_fail(ESP_EFORMAT, "%s: version %lld of the Megatron index, want 1", p, (long long)version);
    m->dtype = ((const unsigned char *)m->idx->data)[17];
    if (m->dtype < 1 || m->dtype > 8) return esp_fail(ESP_EFORMAT, "%s: dtype code %d, want 1 to 8", p, m->dtype);
    m->size = dtypes[m->dtype].size;
    if (!m->size) return esp_fail(ESP_EFORMAT, "%s: its numbers are %s, want ids: uint8, int8, uint16, int16, int32 or int64", p, dtypes[m->dtype].name);
    int64_t room = m->idx->bytes - HEADER;
    if (sequences < 0 || sequences > room / 12 || documents < 1 || documents > (room - 12 * sequences) / 8) {
        return esp_fail(ESP_EFORMAT, "%s: it claims %lld sequences and %lld document bounds, more than its %lld bytes hold", p, (long long)sequences,
                        (long long)documents, (long long)m->idx->bytes);
    }
    int64_t want = 12 * sequences + 8 * documents;
    if (room == want + sequences && sequences) return esp_fail(ESP_EFORMAT, "%s: the index is multimodal (a mode for each sequence), which is not read", p);
    if (room != want) return esp_fail(ESP_EFORMAT, "%s: %lld bytes behind the lists that the header counts", p, (long long)(room - want));
    m->sequences = sequences;
    m->documents = documents - 1;
    return ESP_OK;
}

static int check_lists(esp_megatron *m)
{
    const char *p = m->path;
    for (int64_t i = 0; i < m->sequences; i++) {
        int64_t n = length_of(m, i);
        if (n < 0) return esp_fail(ESP_EFORMAT, "%s: sequence %lld has the length %lld", p, (long long)i, (long long)n);
        if (pointer_of(m, i) != m->tokens * m->size) {
            return esp_fail(ESP_EFORMAT, "%s: sequence %lld begins at byte %lld, the lengths before it end at %lld", p, (long long)i,
                            (long long)pointer_of(m, i), (long long)(m->tokens * m->size));
        }
        m->tokens += n;
    }
    if (m->tokens * m->size != m->bin->bytes) {
        return esp_fail(ESP_EFORMAT, "%s: it counts %lld ids of %d bytes, the .bin has %lld bytes", p, (long long)m->tokens, m->size, (long long)m->bin->bytes);
    }
    for (int64_t d = 0, before = 0; d <= m->documents; d++) {
        int64_t s = document_of(m, d);
        if (d == 0 ? s != 0 : s < before || s > m->sequences) {
            return esp_fail(ESP_EFORMAT, "%s: document %lld begins at sequence %lld, want %lld to %lld", p, (long long)d, (long long)s, (long long)before,
                            (long long)(d ? m->sequences : 0));
        }
        before = s;
    }
    int64_t last = document_of(m, m->documents);
    if (last != m->sequences) return esp_fail(ESP_EFORMAT, "%s: the documents end at sequence %lld of %lld", p, (long long)last, (long long)m->sequences);
    return ESP_OK;
}

int esp_megatron_open(esp_megatron **out, const char *bin, const char *idx)
{
    esp_megatron *m = esp_calloc(sizeof *m);
    if (!m) return ESP_EMEM;
    int code = (m->path = esp_copy_text(idx)) ? esp_mapping_open(&m->idx, idx, HEADER, "Megatron index") : ESP_EMEM;
    if (code == ESP_OK) code = esp_mapping_open(&m->bin, bin, 1, "list of ids");
    if (code == ESP_OK) code = read_header(m);
    if (code == ESP_OK) code = check_lists(m);
    if (code != ESP_OK) esp_megatron_close(m);
    else *out = m;
    return code;
}

void esp_megatron_close(esp_megatron *m)
{
    if (!m) return;
    if (m->idx) esp_mapping_release(m->idx);
    if (m->bin) esp_mapping_release(m->bin);
    esp_free(m->path);
    esp_free(m);
}

int64_t esp_megatron_documents(const esp_megatron *m) { return m->documents; }
const char *esp_megatron_dtype(const esp_megatron *m) { return dtypes[m->dtype].name; }

void esp_megatron_offsets(const esp_megatron *m, double *offsets)
{
    int64_t at = 0;
    for (int64_t s = 0, d = 0; d <= m->documents; d++) {
        for (; s < document_of(m, d); s++) at += length_of(m, s);
        offsets[d] = (double)at;
    }
}

int esp_megatron_read(int32_t *ids, const esp_megatron *m, int64_t at, int64_t n)
{
    if (at < 0 || n < 0 || at > m->tokens - n) return esp_fail(ESP_EARG, "%s: tokens %lld to %lld of %lld", m->path, (long long)at, (long long)(at + n), (long long)m->tokens);
    const char *from = (const char *)m->bin->data + at * m->size;
    for (int64_t i = 0; i < n; i++, from += m->size) {
        int64_t v = 0;
        int32_t i32;
        int16_t i16;
        uint16_t u16;
        switch (m->dtype) {
        case 1: v = (unsigned char)*from; break;
        case 2: v = (signed char)*from; break;
        case 3: memcpy(&i16, from, 2); v = i16; break;
        case 4: memcpy(&i32, from, 4); v = i32; break;
        case 5: memcpy(&v, from, 8); break;
        default: memcpy(&u16, from, 2); v = u16; break;
        }
        if (v < 0 || v > INT32_MAX) return esp_fail(ESP_EFORMAT, "%s: token %lld is %lld, want an id of 0 to 2147483647", m->path, (long long)(at + i), (long long)v);
        ids[i] = (int32_t)v;
    }
    return ESP_OK;
}
