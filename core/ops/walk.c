/* Strided walks over several tensors. */
#include "walk.h"

enum { BLOCK = 16384 };

/* Merges dimension d+1 into d where every operand continues. Dimensions of one index are dropped. */
static int merged(int64_t *shape, int64_t step[][ESP_MAX_DIMS], int operands, const esp_tensor *const *t)
{
    int n = 0;
    for (int d = 0; d < t[0]->ndim; d++) {
        if (t[0]->shape[d] == 1) continue;
        int joins = n > 0;
        for (int i = 0; joins && i < operands; i++) joins = step[i][n - 1] == t[i]->stride[d] * t[0]->shape[d];
        if (!joins) shape[n++] = 1;
        shape[n - 1] *= t[0]->shape[d];
        for (int i = 0; i < operands; i++) step[i][n - 1] = t[i]->stride[d];
    }
    return n;
}

static int walk_block(void *context, int64_t block)
{
    const esp_walk *w = context;
    int64_t from = block / w->chunks * w->rows_per_block, at = block % w->chunks * w->chunk;
    int64_t end = esp_min(from + w->rows_per_block, w->rows), n = esp_min(w->chunk, w->inner - at);
    for (int64_t row = from; row < end; row++) {
        char *pointer[ESP_WALK_MOST];
        for (int i = 0; i < w->operands; i++) {
            int64_t offset = at * w->inner_step[i], rest = row;
            for (int d = w->ndim - 1; d >= 0; d--) {
                offset += rest % w->shape[d] * w->step[i][d];
                rest /= w->shape[d];
            }
            pointer[i] = w->base[i] + offset * w->size[i];
        }
        w->stretch(w, pointer, w->inner_step, n);
    }
    return ESP_OK;
}

int esp_walk_run(esp_walk *w, int operands, const esp_tensor *const *t, esp_stretch *stretch)
{
    w->operands = operands;
    w->stretch = stretch;
    int n = merged(w->shape, w->step, operands, t);
    w->ndim = n > 0 ? n - 1 : 0;
    w->inner = n > 0 ? w->shape[n - 1] : 1;
    w->rows = 1;
    for (int d = 0; d < w->ndim; d++) w->rows *= w->shape[d];
    for (int i = 0; i < operands; i++) {
        w->base[i] = esp_tensor_at(t[i]);
        w->size[i] = esp_dtype_size(t[i]->dtype);
        w->inner_step[i] = n > 0 ? w->step[i][n - 1] : 0;
    }
    if (t[0]->count == 0) return ESP_OK;
    w->chunk = esp_min(w->inner, BLOCK);
    w->chunks = esp_ceil_div(w->inner, w->chunk);
    w->rows_per_block = w->chunks > 1 ? 1 : esp_max_of(1, BLOCK / w->inner);
    return esp_parallel(esp_ceil_div(w->rows, w->rows_per_block) * w->chunks, walk_block, w);
}
