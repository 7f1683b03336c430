/* Matrix products with sums in f32, of operands in f32 or rounded to bf16. Internal to core/ops. */
#ifndef ESP_GEMM_H
#define ESP_GEMM_H

#include "words.h"

/* C[m,n] = op(A) op(B) + beta C. dtype: f32 or bf16, to which operands are converted on their way. ta: A is stored [k,m]; tb: B is stored [n,k].
 * beta is 0 or 1; C bf16 or f32, f32 where dtype is. packed: op(B) as esp_gemm_pack made it, or NULL; B is not read where it is given. The
 * number of threads changes no bit of C. */
typedef struct esp_gemm_args {
    int dtype, ta, tb;
    int64_t m, n, k;
    esp_matrix a, b, c;
    int beta;
    const uint32_t *packed;
} esp_gemm_args;

int esp_gemm(const esp_gemm_args *g);
/* Bytes of op(B) [k,n] packed for products in dtype, and the packing. */
int64_t esp_gemm_packed_bytes(int dtype, int64_t k, int64_t n);
int esp_gemm_pack(uint32_t *packed, int dtype, int tb, int64_t n, int64_t k, esp_matrix b);

/* Where the sums of a tile go: into c, added to what is there where `add`; or, where `rounded` is not NULL, there as bf16 (those below 2^-126 may
 * become 0), c being read where `add` and never written. */
typedef struct esp_sums {
    float *c;
    int64_t ldc;
    int add;
    uint16_t *rounded;
    int64_t ld;
} esp_sums;

/* One tile in one instruction set: [m,n] sums over words p of a[i * lda + p] b[p * 32 + j]. m <= rows of the kernel, n <= 32. It may ask for what is
 * near on its way. */
typedef void esp_tile(int64_t words, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n, esp_near near);

/* enter() comes before a thread's tiles and leave() after the last: some processors keep state. Tiles of f32 round no sums. */
typedef struct esp_kernel {
    int rows;
    esp_tile *tile;
    void (*enter)(void), (*leave)(void);
} esp_kernel;
extern const esp_kernel esp_kernel16_generic, esp_kernel16_avx512_bf16, esp_kernel16_amx, esp_kernel32_generic, esp_kernel32_avx512;
/* The kernel for operands of a dtype on this machine. */
int esp_kernel_of(const esp_kernel **out, int dtype);

#endif
