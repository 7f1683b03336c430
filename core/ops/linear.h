/* The operands of linear layers, for the products in f32 (linear.c) and in bf16 (linear16.c). Internal to core/ops. */
#ifndef ESP_LINEAR_H
#define ESP_LINEAR_H

#include "gemm.h"

typedef struct esp_linear_args {
    esp_rows x, w, y;                     /* [N,I], [O,I], [N,O] */
    const uint32_t *packed;               /* what pack16 made of w, or NULL */
} esp_linear_args;

/* Checks the three operands of `op` by the names that its caller uses. dtypes: of x, y and a weight that is read (that may be bf16 in any case);
 * written: 'x', 'w' or 'y', the output; a weight that is written is f32. */
int esp_linear_check(esp_linear_args *a, const char *op, const esp_tensor *x, const char *xn, const esp_tensor *w, const char *wn, const esp_tensor *y,
                     const char *yn, char written, unsigned dtypes);

/* The three products of operands that were checked, in a dtype: y = x w^T, dx = dy w + beta dx, dw = dy^T x + beta dw (linear.c). */
int esp_linear_forward(const esp_linear_args *a, int dtype);
int esp_linear_to_x(const esp_linear_args *a, int dtype, int beta);
int esp_linear_to_w(const esp_linear_args *a, int dtype, int beta);
esp_matrix esp_matrix_of(const esp_rows *r);

#endif
