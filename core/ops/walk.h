/* Walks several tensors of one shape together, whatever their strides: dimensions that continue each other are merged, the rest is cut
 * into blocks of rows whose bounds depend on shapes and strides alone. */
#ifndef ESP_WALK_H
#define ESP_WALK_H

#include "../tensor/tensor.h"

enum { ESP_WALK_MOST = 4 };

typedef struct esp_walk esp_walk;
/* One stretch: n elements, operand i starting at pointer[i] with a step of stride[i] elements. */
typedef void esp_stretch(const esp_walk *w, char *const *pointer, const int64_t *stride, int64_t n);

struct esp_walk {
    int operands, ndim;                   /* ndim without the innermost dimension */
    int64_t rows, inner, chunk, rows_per_block, chunks;
    int64_t shape[ESP_MAX_DIMS], step[ESP_WALK_MOST][ESP_MAX_DIMS], inner_step[ESP_WALK_MOST];
    char *base[ESP_WALK_MOST];
    int64_t size[ESP_WALK_MOST];          /* bytes of an element */
    esp_stretch *stretch;
    double alpha, beta;                   /* for the stretch */
};

/* Runs stretch over all elements of the tensors t[0 .. operands-1], which have the shape of t[0]. */
int esp_walk_run(esp_walk *w, int operands, const esp_tensor *const *t, esp_stretch *stretch);

#endif
