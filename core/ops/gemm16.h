/* Matrix products in bf16: operands rounded to bf16, sums in f32. Internal to core/ops. */
#ifndef ESP_GEMM16_H
#define ESP_GEMM16_H

#include "../tensor/tensor.h"

enum { ESP_TILE_COLS = 32 };

/* A row-major matrix in f32 or bf16. */
typedef struct esp_matrix {
    void *data;
    int dtype;
    int64_t stride;                       /* elements from row to row */
} esp_matrix;

/* C[m,n] = op(A) op(B) + beta C. ta: A is stored [k,m]; tb: B is stored [n,k]. beta is 0 or 1; C bf16 or f32. packed: op(B) as
 * esp_gemm16_pack made it, or NULL; B is not read where it is given. Blocks depend on the shape alone. */
typedef struct esp_gemm16_args {
    int ta, tb;
    int64_t m, n, k;
    esp_matrix a, b, c;
    int beta;
    const uint32_t *packed;
} esp_gemm16_args;

int esp_gemm16(const esp_gemm16_args *g);
/* Bytes of op(B) [k,n] packed, and the packing. */
int64_t esp_gemm16_packed_bytes(int64_t k, int64_t n);
int esp_gemm16_pack(uint32_t *packed, int tb, int64_t n, int64_t k, esp_matrix b);

/* Where the sums of a tile go: into c, added to what is there where `add`; or, where `rounded` is not NULL, there as bf16 (those below 2^-126 may
 * become 0), c being read where `add` and never written. */
typedef struct esp_sums {
    float *c;
    int64_t ldc;
    int add;
    uint16_t *rounded;
    int64_t ld;
} esp_sums;

/* One tile in one instruction set: [m,n] sums over pairs p of a[i * lda + p] b[p * 32 + j]; a pair is two bf16, the lower half first. m <= rows of
 * the kernel, n <= 32. */
typedef void esp_tile(int64_t pairs, const uint32_t *a, int64_t lda, const uint32_t *b, esp_sums to, int m, int n);

/* enter() comes before a thread's tiles and leave() after the last: some processors keep state. */
typedef struct esp_kernel16 {
    int rows;
    esp_tile *tile;
    void (*enter)(void), (*leave)(void);
} esp_kernel16;
extern const esp_kernel16 esp_kernel16_generic, esp_kernel16_avx512_bf16, esp_kernel16_amx;
/* The same interface for f32: a pair is then one number, and no sum is rounded. */
extern const esp_kernel16 esp_kernel32;
int esp_kernel16_of_machine(const esp_kernel16 **out);

/* to[c * ldt + r] = from[r * ldf + c] for 16 x 16 pairs. */
void esp_transpose16(uint32_t *to, int64_t ldt, const uint32_t *from, int64_t ldf);

#endif
