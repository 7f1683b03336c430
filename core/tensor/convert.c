/* Conversion between dtypes: one element, or a dense run of them. */
#include "tensor.h"

/* Sign, four bits of exponent (bias 7), three of mantissa; no infinity, all ones is NaN (2209.05433). */
static inline float e4m3_to_f32(uint8_t b)
{
    uint32_t exponent = b >> 3 & 15, mantissa = b & 7, bits = (exponent + 120) << 23 | mantissa << 20;
    float f = (float)mantissa * 0x1p-9f;
    if (exponent) memcpy(&f, &bits, 4);
    if ((b & 127) == 127) f = __builtin_nanf("");
    return b & 128 ? -f : f;
}

/* The upper byte of an f16. */
static inline float e5m2_to_f32(uint8_t b) { return esp_f16_to_f32((uint16_t)(b << 8)); }

double esp_load(const void *p, int dtype)
{
    float f;
    double d;
    int32_t i;
    uint16_t h;
    switch (dtype) {
    case ESP_F32: memcpy(&f, p, 4); return (double)f;
    case ESP_F64: memcpy(&d, p, 8); return d;
    case ESP_I32: memcpy(&i, p, 4); return i;
    case ESP_BF16: memcpy(&h, p, 2); return (double)esp_bf16_to_f32(h);
    case ESP_F16: memcpy(&h, p, 2); return (double)esp_f16_to_f32(h);
    case ESP_F8_E4M3: return (double)e4m3_to_f32(*(const uint8_t *)p);
    case ESP_F8_E5M2: return (double)e5m2_to_f32(*(const uint8_t *)p);
    default: return *(const uint8_t *)p;
    }
}

static double clamped(double v, double low, double high)
{
    return v != v ? 0 : v < low ? low : v > high ? high : v;
}

void esp_store(void *p, int dtype, double v)
{
    float f = (float)v;
    int32_t i;
    uint16_t h;
    switch (dtype) {
    case ESP_F32: memcpy(p, &f, 4); break;
    case ESP_F64: memcpy(p, &v, 8); break;
    case ESP_I32: i = (int32_t)clamped(v, -2147483648.0, 2147483647.0); memcpy(p, &i, 4); break;
    case ESP_BF16: h = esp_f32_to_bf16(f); memcpy(p, &h, 2); break;
    case ESP_F16: h = esp_f32_to_f16(f); memcpy(p, &h, 2); break;
    default: *(uint8_t *)p = (uint8_t)clamped(v, 0, 255);
    }
}

/* ---- runs: the pairs that weights are made of have loops of their own ---- */

#define RUN(name, to_type, from_type, expression) \
    static ESP_SIMD void name(to_type *restrict y, const from_type *restrict x, int64_t n) \
    { \
        for (int64_t i = 0; i < n; i++) y[i] = expression; \
    }
RUN(bf16_to_f32_run, float, uint16_t, esp_bf16_to_f32(x[i]))
RUN(f32_to_bf16_run, uint16_t, float, esp_f32_to_bf16(x[i]))
RUN(f16_to_f32_run, float, uint16_t, esp_f16_to_f32(x[i]))
RUN(f32_to_f16_run, uint16_t, float, esp_f32_to_f16(x[i]))
#undef RUN

void esp_convert(void *to, int to_dtype, const void *from, int from_dtype, int64_t n)
{
    int64_t to_size = esp_dtype_size(to_dtype), from_size = esp_dtype_size(from_dtype);
    if (to_dtype == from_dtype) {
        memcpy(to, from, (size_t)(n * to_size));
    } else if (to_dtype == ESP_F32 && from_dtype == ESP_BF16) {
        bf16_to_f32_run(to, from, n);
    } else if (to_dtype == ESP_BF16 && from_dtype == ESP_F32) {
        f32_to_bf16_run(to, from, n);
    } else if (to_dtype == ESP_F32 && from_dtype == ESP_F16) {
        f16_to_f32_run(to, from, n);
    } else if (to_dtype == ESP_F16 && from_dtype == ESP_F32) {
        f32_to_f16_run(to, from, n);
    } else {
        for (int64_t i = 0; i < n; i++) esp_store((char *)to + i * to_size, to_dtype, esp_load((const char *)from + i * from_size, from_dtype));
    }
}
