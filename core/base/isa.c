/* Which instruction set kernels with variants of their own use: the best that the machine has, or a lesser one that ESPALIER_ISA names, so that
 * tests can run them all. Loops that the compiler vectorises are cloned by ESP_SIMD instead. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

static const char *const names[] = {"generic", "avx512_bf16"};
enum { COUNT = sizeof names / sizeof *names };

static struct {
    pthread_once_t once;
    int best, used;
    const char *unknown;
} isa = {.once = PTHREAD_ONCE_INIT};

static int best_of_machine(void)
{
#if ESP_HAVE_AVX512_BF16
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bf16")) {
        return ESP_ISA_AVX512_BF16;
    }
#endif
    return ESP_ISA_GENERIC;
}

static void settle(void)
{
    const char *asked = getenv("ESPALIER_ISA");
    isa.best = isa.used = best_of_machine();
    if (!asked || !*asked) return;
    int i = 0;
    while (i < COUNT && strcmp(asked, names[i]) != 0) i++;
    if (i == COUNT) isa.unknown = asked;
    else if (i < isa.best) isa.used = i;
}

int esp_isa(int *used)
{
    pthread_once(&isa.once, settle);
    if (isa.unknown) return esp_fail(ESP_EARG, "ESPALIER_ISA is '%s', want generic or avx512_bf16", isa.unknown);
    *used = isa.used;
    return ESP_OK;
}

const char *esp_isa_name(void)
{
    pthread_once(&isa.once, settle);
    return names[isa.used];
}
