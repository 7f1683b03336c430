/* Which instruction set kernels with variants of their own use: the best that the machine has, or a lesser one that ESPALIER_ISA names, so that
 * tests can run them all. Loops that the compiler vectorises are cloned by ESP_SIMD instead. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

#if ESP_HAVE_X86
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* By level: each has all that stands before it. */
static const char *const names[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
enum { COUNT = sizeof names / sizeof *names };

static struct {
    pthread_once_t once;
    int best, used;
    const char *unknown;
} isa = {.once = PTHREAD_ONCE_INIT};

#if ESP_HAVE_X86
/* The processor multiplies tiles of bf16, the system keeps their registers (XCR0 bits 17 and 18), and gives them to this process when asked. */
static __attribute__((target("xsave"))) int has_amx(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 22) || !(d & 1u << 24)) return 0;
    if ((_xgetbv(0) & 3u << 17) != 3u << 17) return 0;
    enum { ASK = 0x1023, TILE_DATA = 18 };                 /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}
#endif

static int best_of_machine(void)
{
#if ESP_HAVE_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ESP_ISA_GENERIC;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq")) {
        return ESP_ISA_AVX2;
    }
    if (!__builtin_cpu_supports("avx512bf16")) return ESP_ISA_AVX512;
    return has_amx() ? ESP_ISA_AMX : ESP_ISA_AVX512_BF16;
#else
    return ESP_ISA_GENERIC;
#endif
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
    if (isa.unknown) {
        char list[128] = "";
        for (int i = 0; i < COUNT; i++) strcat(strcat(list, i == 0 ? "" : i == COUNT - 1 ? " or " : ", "), names[i]);
        return esp_fail(ESP_EARG, "ESPALIER_ISA is '%s', want %s", isa.unknown, list);
    }
    *used = isa.used;
    return ESP_OK;
}

const char *esp_isa_name(void)
{
    pthread_once(&isa.once, settle);
    return names[isa.used];
}
