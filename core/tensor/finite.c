/* Is every element of a tensor a number? By the exponent's bits, which are all ones in NaN and infinity alone. */
#include "tensor.h"

enum { BLOCK = 1 << 18 };

typedef struct finite_args {
    const esp_tensor *t;
    int found;                             /* 1 once an element that is none was seen */
} finite_args;

#define SCAN(name, type, mask) \
    static ESP_SIMD int name(const type *x, int64_t n) \
    { \
        int bad = 0; \
        for (int64_t i = 0; i < n; i++) bad |= (x[i] & (mask)) == (mask); \
        return bad; \
    }
SCAN(scan_f32, uint32_t, 0x7f800000u)
SCAN(scan_bf16, uint16_t, 0x7f80)
SCAN(scan_f16, uint16_t, 0x7c00)
SCAN(scan_f64, uint64_t, 0x7ff0000000000000u)
SCAN(scan_e4m3, uint8_t, 0x7f)
SCAN(scan_e5m2, uint8_t, 0x7c)
#undef SCAN

static int finite_block(void *context, int64_t block)
{
    finite_args *a = context;
    int64_t at = block * BLOCK, n = esp_min(BLOCK, a->t->count - at);
    const void *p = (const char *)esp_tensor_at(a->t) + at * esp_dtype_size(a->t->dtype);
    int bad = a->t->dtype == ESP_F32 ? scan_f32(p, n) : a->t->dtype == ESP_BF16 ? scan_bf16(p, n) : a->t->dtype == ESP_F16 ? scan_f16(p, n)
              : a->t->dtype == ESP_F64 ? scan_f64(p, n) : a->t->dtype == ESP_F8_E4M3 ? scan_e4m3(p, n) : scan_e5m2(p, n);
    if (bad) __atomic_store_n(&a->found, 1, __ATOMIC_RELAXED);
    return ESP_OK;
}

int esp_tensor_finite(int *yes, const esp_tensor *t)
{
    finite_args a = {.t = t};
    TRY(esp_check("finite", "t", t, ~(ESP_BIT(ESP_I32) | ESP_BIT(ESP_U8)), ESP_READ));
    TRY(esp_check_dense("finite", "t", t));
    TRY(esp_parallel(esp_ceil_div(t->count, BLOCK), finite_block, &a));
    *yes = !a.found;
    return ESP_OK;
}
