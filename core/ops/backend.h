/* The seam between an operation and the device it runs on.
 *
 * core/ops/FAMILY.c holds esp_NAME, which checks every argument and then calls the table of the device, and esp_cpu_NAME, the CPU kernel,
 * which may rely on those checks. A missing CPU kernel is a link error. */
#ifndef ESP_BACKEND_H
#define ESP_BACKEND_H

#include "../tensor/tensor.h"

typedef struct esp_backend {
    const char *name;
#define ESP_FIELD(name, params) int (*name) params;
    ESP_OPS(ESP_FIELD)
#undef ESP_FIELD
} esp_backend;

#define ESP_CPU_PROTOTYPE(name, params) int esp_cpu_##name params;
ESP_OPS(ESP_CPU_PROTOTYPE)
#undef ESP_CPU_PROTOTYPE

/* The table that serves a tensor's device. */
const esp_backend *esp_backend_of(const esp_tensor *t);

/* Up to so many rows a linear layer reads its weight, and attention its cache, once and as it is stored, and computes in f32: reading is all that
 * counts then. */
enum { ESP_FEW_ROWS = 4 };
/* y = f(gate) up for n numbers, f(gate) where up is NULL; kind: of esp_activation. y may be gate (activation.c). */
void esp_activation_row(int kind, float *y, const float *gate, const float *up, int64_t n);

#endif
