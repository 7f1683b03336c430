/* Forward KL divergence between teacher and student logits (1503.02531; Minitron 2407.14679 section 3), loss and gradient together. */
#include <math.h>

#include "backend.h"
#include "lanes.h"

enum { F32 = ESP_BIT(ESP_F32), FLOATS = ESP_BIT(ESP_F32) | ESP_BIT(ESP_BF16) };

typedef struct kl_args {
    esp_rows s, t, ds;
    const float *weight;
    float *loss;
    float inverse_tau;
    int has_ds, accumulate;
    const esp_lanes *lanes;
} kl_args;

static int check(kl_args *a, const char *op, esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight,
                 double tau)
{
    *a = (kl_args){0};
    TRY(esp_check_rows(&a->s, op, "s", s, FLOATS, ESP_READ));
    TRY(esp_check_rows(&a->t, op, "t", t, FLOATS, ESP_READ));
    TRY(esp_check_shape(op, "t", t, s->ndim, s->shape, "shape of s"));
    if (!(tau > 0)) return esp_fail(ESP_EARG, "%s: temperature is %g, want more than 0", op, tau);
    a->inverse_tau = (float)(1 / tau);
    TRY(esp_lanes_of(&a->lanes));
    const esp_tensor *vectors[] = {loss, weight};
    const char *names[] = {"loss", "weight"};
    for (int i = 0; i < 2; i++) {
        TRY(esp_check(op, names[i], vectors[i], F32, i == 0 ? ESP_WRITE : ESP_READ));
        TRY(esp_check_dense(op, names[i], vectors[i]));
        if (vectors[i]->count != a->s.rows) {
            return esp_fail(ESP_ESHAPE, "%s: '%s' has %lld entries, want %lld (rows of s)", op, names[i], (long long)vectors[i]->count,
                            (long long)a->s.rows);
        }
    }
    a->loss = esp_tensor_at(loss), a->weight = esp_tensor_at(weight);
    if (!ds) return ESP_OK;
    a->has_ds = 1;
    a->accumulate = strcmp(op, "kl_acc") == 0;
    TRY(esp_check_rows(&a->ds, op, "ds", ds, a->accumulate ? F32 : FLOATS, ESP_WRITE));
    return esp_check_shape(op, "ds", ds, s->ndim, s->shape, "shape of s");
}

int esp_kl(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl", loss, ds, s, t, weight, tau));
    return esp_backend_of(loss)->kl(loss, ds, s, t, weight, tau);
}

int esp_kl_acc(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl_acc", loss, ds, s, t, weight, tau));
    return esp_backend_of(loss)->kl_acc(loss, ds, s, t, weight, tau);
}

/* What the spans of one row gave: exponentials of student and teacher, their sums, and the sums of et (zt - zs). Where no gradient is wanted the
 * exponentials of one span overwrite those of the one before. */
typedef struct kl_row {
    float *es, *et;
    esp_span *s, *t, row_s, row_t;
    double *cross;
    int64_t parts;
} kl_row;

static int make_room(kl_row *row, int64_t V, int whole)
{
    row->parts = esp_ceil_div(V, ESP_SPAN);
    int64_t room = whole ? row->parts * ESP_SPAN : ESP_SPAN;
    row->es = esp_scratch(2 * room * 4 + row->parts * (int64_t)(2 * sizeof(esp_span) + sizeof(double)));
    if (!row->es) return ESP_EMEM;
    row->et = row->es + room;
    row->s = (esp_span *)(void *)(row->et + room);
    row->t = row->s + row->parts;
    row->cross = (double *)(void *)(row->t + row->parts);
    return ESP_OK;
}

/* sum e^zt (zt - zs) over the row, z relative to the row's maxima. */
static double row_cross(const kl_row *row, float r)
{
    double sum = 0;
    for (int64_t k = 0; k < row->parts; k++) {
        const esp_span *s = &row->s[k], *t = &row->t[k];
        if (t->sum == 0) continue;
        double apart = ((double)t->most - row->row_t.most) * r - ((double)s->most - row->row_s.most) * r;
        sum += t->worth * (row->cross[k] + t->sum * apart);
    }
    return sum;
}

/* ds = weight/tau (q - p), from the exponentials that are there. */
static void gradient(const kl_args *a, int64_t n, const kl_row *row)
{
    double by = (double)a->weight[n] * a->inverse_tau, s = by / row->row_s.sum, t = by / row->row_t.sum;
    for (int64_t from = 0, k = 0; from < a->s.cols; from += ESP_SPAN, k++) {
        int64_t count = esp_min(ESP_SPAN, a->s.cols - from), at = n * a->ds.stride + from;
        const float *es = row->es + from, *et = row->et + from;
        float x = (float)(s * row->s[k].worth), y = (float)(t * row->t[k].worth);
        if (a->ds.dtype == ESP_BF16) a->lanes->scale16((uint16_t *)a->ds.data + at, es, et, x, y, count);
        else if (a->accumulate) a->lanes->scale_acc((float *)a->ds.data + at, es, et, x, y, count);
        else a->lanes->scale((float *)a->ds.data + at, es, et, x, y, count);
    }
}

/* Logits from of row n on: where they stand, or widened into `room`. */
static const float *logits(float *room, const esp_rows *x, int64_t n, int64_t from, int64_t count)
{
    int64_t at = n * x->stride + from;
    if (x->dtype == ESP_F32) return (const float *)x->data + at;
    esp_convert(room, ESP_F32, (const uint16_t *)x->data + at, ESP_BF16, count);
    return room;
}

static int kl_block(void *context, int64_t n)
{
    const kl_args *a = context;
    int64_t V = a->s.cols;
    a->loss[n] = 0;
    if (a->weight[n] == 0) {
        int64_t size = esp_dtype_size(a->ds.dtype);
        if (a->has_ds && !a->accumulate) memset((char *)a->ds.data + n * a->ds.stride * size, 0, (size_t)(V * size));
        return ESP_OK;
    }
    kl_row row;
    TRY(make_room(&row, V, a->has_ds));
    for (int64_t from = 0, k = 0; from < V; from += ESP_SPAN, k++) {
        int64_t to = a->has_ds ? from : 0, count = esp_min(ESP_SPAN, V - from);
        float *es = row.es + to, *et = row.et + to;
        const float *s = logits(es, &a->s, n, from, count), *t = logits(et, &a->t, n, from, count);
        row.cross[k] = a->lanes->pair(&row.s[k], &row.t[k], es, et, s, t, a->inverse_tau, count);
    }
    row.row_s = esp_row_of(row.s, row.parts, a->inverse_tau);
    row.row_t = esp_row_of(row.t, row.parts, a->inverse_tau);
    /* sum p (log p - log q) with log p = zt - log sum_t, log q = zs - log sum_s */
    double cross = row_cross(&row, a->inverse_tau);
    a->loss[n] = (float)(a->weight[n] * (cross / row.row_t.sum - log(row.row_t.sum) + log(row.row_s.sum)));
    if (a->has_ds) gradient(a, n, &row);
    return ESP_OK;
}

int esp_cpu_kl(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl", loss, ds, s, t, weight, tau));
    return esp_parallel(a.s.rows, kl_block, &a);
}

int esp_cpu_kl_acc(esp_tensor *loss, esp_tensor *ds, const esp_tensor *s, const esp_tensor *t, const esp_tensor *weight, double tau)
{
    kl_args a;
    TRY(check(&a, "kl_acc", loss, ds, s, t, weight, tau));
    return esp_parallel(a.s.rows, kl_block, &a);
}
