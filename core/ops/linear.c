/* The check that the linear layers of both precisions share. */
#include "linear.h"

int esp_linear_check(esp_linear_args *a, const char *op, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn, const esp_tensor *y,
                     const char *yn, char written, unsigned dtypes)
{
    char text[ESP_TEXT], other[ESP_TEXT];
    a->packed = NULL;
    TRY(esp_check_rows(&a->x, op, xn, x, dtypes, written == 'x'));
    TRY(esp_check_rows(&a->w, op, wn, w, written == 'w' ? ESP_BIT(ESP_F32) : dtypes | ESP_BIT(ESP_BF16), written == 'w'));
    TRY(esp_check_rows(&a->y, op, yn, y, dtypes, written == 'y'));
    if (w->ndim != 2) return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want two dimensions [outputs, inputs]", op, wn, esp_shape_text(text, w->ndim, w->shape));
    if (a->w.cols != a->x.cols) {
        return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want [*, %lld] (last dimension of '%s' %s)", op, wn, esp_shape_text(text, w->ndim, w->shape),
                        (long long)a->x.cols, xn, esp_shape_text(other, x->ndim, x->shape));
    }
    if (a->y.rows == a->x.rows && a->y.cols == a->w.rows) return ESP_OK;
    return esp_fail(ESP_ESHAPE, "%s: '%s' is %s, want %lld rows of %lld ('%s' has %lld rows, '%s' %lld)", op, yn,
                    esp_shape_text(text, y->ndim, y->shape), (long long)a->x.rows, (long long)a->w.rows, xn, (long long)a->x.rows, wn,
                    (long long)a->w.rows);
}
