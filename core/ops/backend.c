/* The table of each backend. */
#include "backend.h"

#define ESP_CPU_ENTRY(name, params) esp_cpu_##name,
static const esp_backend cpu = {"cpu", ESP_OPS(ESP_CPU_ENTRY)};
#undef ESP_CPU_ENTRY

const esp_backend *esp_backend_of(const esp_tensor *t)
{
    (void)t;
    return &cpu;
}
