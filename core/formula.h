/* Scalar maths shared by kernels on every device. Branch-free, so that loops over them vectorise. */
#ifndef ESP_FORMULA_H
#define ESP_FORMULA_H

#include <stdint.h>
#include <string.h>

/* exp(x) within 2 units in the last place. x is clamped to [-87.3, 88.7]: below comes 1.2e-38 and not 0, above comes 3.3e38 and not
 * infinity; NaN stays NaN. Range reduction by log 2 in two parts, then a polynomial of degree 6 (Cephes expf). */
static inline float esp_expf(float x)
{
    float y = x < -87.3f ? -87.3f : x;
    y = y > 88.7f ? 88.7f : y;
    /* Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. */
    const float magic = 12582912.0f;
    float r = y * 1.44269504088896341f + magic;
    float n = r - magic;
    float f = y - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t bits;
    memcpy(&bits, &r, 4);
    /* 2^128 is out of range, so the power of two goes in in two halves. */
    int32_t e = bits - 0x4b400000;
    int32_t half = e >> 1, rest = e - half;
    uint32_t a = (uint32_t)(half + 127) << 23, b = (uint32_t)(rest + 127) << 23;
    float fa, fb;
    memcpy(&fa, &a, 4);
    memcpy(&fb, &b, 4);
    return p * fa * fb;
}

/* 2^x within 1 unit in the last place for x up to 127, 0 below -126; NaN stays NaN. A polynomial of degree 6 that is 1 at 0 (Cephes exp2f), so that a
 * softmax over one score is 1; degree 5, within 2 units, was seen in the 16th step of training. */
static inline float esp_exp2f(float x)
{
    /* Adding 1.5 * 2^23 + 127 rounds to the nearest integer and leaves it with the exponent's bias in the low bits. */
    const float magic = 12583039.0f;
    float r = x + magic;
    float f = x - (r - magic);
    float p = 1.535336188e-4f;
    p = p * f + 1.339887440e-3f;
    p = p * f + 9.618437358e-3f;
    p = p * f + 5.550332471e-2f;
    p = p * f + 2.402264791e-1f;
    p = p * f + 6.931472029e-1f;
    p = p * f + 1.0f;
    uint32_t bits;
    memcpy(&bits, &r, 4);
    bits <<= 23;
    float power;
    memcpy(&power, &bits, 4);
    p = p * power;
    return x < -126.0f ? 0.0f : p;
}

/* 1 / (1 + exp(-x)) */
static inline float esp_sigmoid(float x)
{
    return 1.0f / (1.0f + esp_expf(-x));
}

/* silu(x) = x / (1 + exp(-x)) (1606.08415), and its derivative */
static inline float esp_silu(float x)
{
    return x * esp_sigmoid(x);
}
static inline float esp_silu_slope(float x)
{
    float s = esp_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

/* tanh(x) within 3 units in the last place (Cephes tanhf): a polynomial near 0, where 1 - 2/(exp(2x) + 1) would cancel; NaN stays NaN. */
static inline float esp_tanhf(float x)
{
    float z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float near = p * z * x + x;
    float far = 1.0f - 2.0f / (esp_expf(2.0f * x) + 1.0f);
    return z < 0.390625f ? near : far;
}

/* gelu(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3) (1606.08415), which is x sigmoid(2u); and its derivative */
static inline float esp_gelu_tanh(float x)
{
    return x * esp_sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
}
static inline float esp_gelu_tanh_slope(float x)
{
    float s = esp_sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
    return s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x);
}

/* relu(x)^2 (2109.08668), and its derivative */
static inline float esp_relu2(float x)
{
    return x < 0.0f ? 0.0f : x * x;
}
static inline float esp_relu2_slope(float x)
{
    return x < 0.0f ? 0.0f : 2.0f * x;
}

#endif
