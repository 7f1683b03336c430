/* OpenBLAS, opened when the first matrix product comes and not before its core type is settled.
 *
 * Releases before 0.3.26 take recent AMD cores for Haswell and lose half of their speed, so the type is chosen here from CPUID and put
 * where OpenBLAS looks (OPENBLAS_CORETYPE); ESPALIER_BLAS_CORE overrides it. One thread: the work is spread by our pool. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

#include "backend.h"

typedef void sgemm_function(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                            float beta, float *c, int ldc);

static struct {
    pthread_once_t once;
    sgemm_function *sgemm;
    const char *core;
    char problem[512];
} blas = {.once = PTHREAD_ONCE_INIT, .core = "not opened"};

static const char *core_type(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl");
    if (avx512) return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return __builtin_cpu_is("amd") ? "Zen" : "Haswell";
#endif
    return NULL;
}

static void open_once(void)
{
    const char *asked = getenv("ESPALIER_BLAS_CORE");
    const char *core = asked && *asked ? asked : core_type();
    if (core) setenv("OPENBLAS_CORETYPE", core, 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    /* A cache size set for another core type makes it choose bad blocks. */
    unsetenv("OPENBLAS_L2_SIZE");
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library) library = dlopen("libopenblas.so", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        esp_fail(ESP_EIO, "linear: OpenBLAS cannot be opened (%s); install libopenblas0", dlerror());
        strncpy(blas.problem, esp_error(), sizeof blas.problem - 1);
        return;
    }
    void (*set_threads)(int) = (void (*)(int))dlsym(library, "openblas_set_num_threads");
    char *(*corename)(void) = (char *(*)(void))dlsym(library, "openblas_get_corename");
    if (set_threads) set_threads(1);
    blas.core = corename ? corename() : "unknown";
    blas.sgemm = (sgemm_function *)dlsym(library, "cblas_sgemm");
    if (!blas.sgemm) strncpy(blas.problem, "linear: the OpenBLAS found has no cblas_sgemm", sizeof blas.problem - 1);
}

int esp_gemm_open(void)
{
    pthread_once(&blas.once, open_once);
    return blas.sgemm ? ESP_OK : esp_fail(ESP_EIO, "%s", blas.problem);
}

const char *esp_blas_core(void)
{
    pthread_once(&blas.once, open_once);
    return blas.core;
}

void esp_gemm_block(int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b, int64_t ldb,
                    float beta, float *c, int64_t ldc)
{
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    if (m <= 0 || n <= 0) return;
    blas.sgemm(ROW_MAJOR, ta ? TRANSPOSED : PLAIN, tb ? TRANSPOSED : PLAIN, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c,
               (int)ldc);
}
