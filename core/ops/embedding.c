/* Rows of a table at ids, and the gradient by the table. */
#include "backend.h"

enum { F32 = ESP_BIT(ESP_F32), WEIGHT = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16), I32 = ESP_BIT(ESP_I32), CHANNELS = 64, ROWS = 64 };

typedef struct embedding_args {
    esp_rows w, y;
    const int32_t *ids;
} embedding_args;

/* w [V,C], y [..,C] with a row for each id; every id inside the table. */
static int check(embedding_args *a, const char *op, const esp_tensor *w, const char *wn, const esp_tensor *y, const char *yn,
                 const esp_tensor *ids, int w_written)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    TRY(esp_check_rows(&a->w, op, wn, w, w_written ? F32 : WEIGHT, w_written));
    TRY(esp_check_rows(&a->y, op, yn, y, F32, !w_written));
    TRY(esp_check(op, "ids", ids, I32, ESP_READ));
    TRY(esp_check_dense(op, "ids", ids));
    if (w->ndim != 2) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [vocab, channels]", op, wn, esp_shape_text(text, w->ndim, w->shape));
    if (a->y.cols != a->w.cols || a->y.rows != ids->count) {
        return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want %lld rows of %lld (ids %s, '%s' %lld channels)", op, yn,
                        esp_shape_text(text, y->ndim, y->shape), (long long)ids->count, (long long)a->w.cols,
                        esp_shape_text(other, ids->ndim, ids->shape), wn, (long long)a->w.cols);
    }
    a->ids = esp_tensor_at(ids);
    for (int64_t i = 0; i < ids->count; i++) {
        if (a->ids[i] < 0 || a->ids[i] >= w->shape[0]) {
            return esp_fail(ESP_EARG, "%s: id %d at place %lld, want 0 to %lld (the vocabulary)", op, a->ids[i], (long long)i,
                            (long long)w->shape[0] - 1);
        }
    }
    return ESP_OK;
}

int esp_embedding(esp_tensor *y, const esp_tensor *w, const esp_tensor *ids)
{
    embedding_args a;
    TRY(check(&a, "embedding", w, "w", y, "y", ids, 0));
    return esp_backend_of(y)->embedding(y, w, ids);
}

int esp_embedding_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *ids)
{
    embedding_args a;
    TRY(check(&a, "embedding_dw_acc", dw, "dw", dy, "dy", ids, 1));
    return esp_backend_of(dw)->embedding_dw_acc(dw, dy, ids);
}

static int forward_block(void *context, int64_t block)
{
    const embedding_args *a = context;
    int64_t end = esp_min((block + 1) * ROWS, a->y.rows), C = a->y.cols;
    for (int64_t n = block * ROWS; n < end; n++) {
        float *y = (float *)a->y.data + n * a->y.stride;
        if (a->w.dtype == ESP_F32) {
            memcpy(y, (const float *)a->w.data + a->ids[n] * a->w.stride, (size_t)C * 4);
        } else {
            const uint16_t *w = (const uint16_t *)a->w.data + a->ids[n] * a->w.stride;
            for (int64_t i = 0; i < C; i++) y[i] = esp_bf16_to_f32(w[i]);
        }
    }
    return ESP_OK;
}

int esp_cpu_embedding(esp_tensor *y, const esp_tensor *w, const esp_tensor *ids)
{
    embedding_args a;
    TRY(check(&a, "embedding", w, "w", y, "y", ids, 0));
    return esp_parallel(esp_ceil_div(a.y.rows, ROWS), forward_block, &a);
}

/* One block is a range of channels and walks the ids in order: the same id may come many times, and its sum has one order. */
static int backward_block(void *context, int64_t block)
{
    const embedding_args *a = context;
    int64_t from = block * CHANNELS, end = esp_min(from + CHANNELS, a->y.cols);
    for (int64_t n = 0; n < a->y.rows; n++) {
        float *dw = (float *)a->w.data + a->ids[n] * a->w.stride;
        const float *dy = (const float *)a->y.data + n * a->y.stride;
        for (int64_t i = from; i < end; i++) dw[i] += dy[i];
    }
    return ESP_OK;
}

int esp_cpu_embedding_dw_acc(esp_tensor *dw, const esp_tensor *dy, const esp_tensor *ids)
{
    embedding_args a;
    TRY(check(&a, "embedding_dw_acc", dw, "dw", dy, "dy", ids, 1));
    return esp_parallel(esp_ceil_div(a.w.cols, CHANNELS), backward_block, &a);
}
