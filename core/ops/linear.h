/* The operands of linear layers, for the products in f32 (gemm.c) and in bf16 (linear16.c). Internal to core/ops. */
#ifndef ESP_LINEAR_H
#define ESP_LINEAR_H

#include "../tensor/tensor.h"

typedef struct esp_linear_args {
    esp_rows x, w, y;                     /* [N,I], [O,I], [N,O] */
    const uint32_t *packed;               /* what pack16 made of w, or NULL */
} esp_linear_args;

/* Checks the three operands of `op` by the names that its caller uses. dtypes: of x, y and a weight that is read (that may be bf16 in any case);
 * written: 'x', 'w' or 'y', the output; a weight that is written is f32. */
int esp_linear_check(esp_linear_args *a, const char *op, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn, const esp_tensor *y,
                     const char *yn, char written, unsigned dtypes);

#endif
