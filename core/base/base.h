/* What every file of the core may use: status text, the allocator door, the thread pool, random bits. Internal. */
#ifndef ESP_BASE_H
#define ESP_BASE_H

#include "../espalier.h"

/* ---- status ---- */

/* Sets this thread's error text and returns code. */
int esp_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Returns from the calling function when `call` failed. */
#define TRY(call) do { int try_status_ = (call); if (try_status_ != ESP_OK) return try_status_; } while (0)

/* ---- memory: the one allocator door. Blocks are 64-byte aligned; freed ones are cached by size class ---- */

/* NULL with the error text set (ESP_EMEM) where there is no memory, the budget is spent or fail_at struck. bytes = 0 gives a valid block. */
void *esp_malloc(int64_t bytes);
void *esp_calloc(int64_t bytes);
void *esp_realloc(void *block, int64_t bytes);   /* NULL block: esp_malloc. On failure the old block stays valid */
void esp_free(void *block);                      /* NULL is allowed */

/* ---- threads ---- */

/* One block of work; returns 0 or an error whose text is carried to the caller of esp_parallel. */
typedef int esp_task(void *context, int64_t block);

/* Runs task(context, 0 .. blocks-1), each once, spread over the pool, and waits. The first failure ends the rest. ESP_ESTOP when
 * interrupted between blocks. Called inside a task it runs the blocks in order in that thread. The bounds of blocks are the caller's and
 * must depend on shapes alone, so that results do not depend on the number of threads. */
int esp_parallel(int64_t blocks, esp_task *task, void *context);

/* Scratch of the calling thread, 64-byte aligned, kept for the life of the thread and grown as needed: valid until the next esp_scratch
 * of the same thread. NULL with the error text set where there is no memory. */
void *esp_scratch(int64_t bytes);

/* ---- mapped files that become shorter while they are read (bus.c) ---- */

typedef struct esp_bus_region esp_bus_region;
/* A mapping of the file `path`, from now on readable to its end whatever happens to the file; NULL with the error text set. */
esp_bus_region *esp_bus_watch(void *data, int64_t bytes, const char *path);
void esp_bus_forget(esp_bus_region *r);          /* before it is unmapped */
int64_t esp_bus_losses(void);                    /* how often a mapping lost its file so far: esp_parallel fails where this grew meanwhile */
int esp_bus_check(const void *data);             /* ESP_EIO naming the file where `data` lies in a mapping that lost it */
int esp_bus_fail(void);                          /* ESP_EIO naming a file that was lost */

/* ---- random bits: Philox4x32-10 (Salmon et al., 2011), a function of (key, counter) ---- */

void esp_philox(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index);

/* Clones for the x86-64 levels, picked when the library is loaded; the plain loop elsewhere and under sanitizers (their runtime is not up
 * yet when the picking runs). */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define ESP_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ESP_SIMD
#endif

/* Variants written by hand for one instruction set: used is the best that this machine has, or the lesser one that ESPALIER_ISA names.
 * ESP_EARG where it names none. */
enum esp_isa_level { ESP_ISA_GENERIC, ESP_ISA_AVX2, ESP_ISA_AVX512, ESP_ISA_AVX512_BF16, ESP_ISA_AMX };
int esp_isa(int *used);
#if defined(__x86_64__) && defined(__GNUC__)
#define ESP_HAVE_X86 1
#define ESP_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define ESP_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#else
#define ESP_HAVE_X86 0
#endif

static inline int64_t esp_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t esp_max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t esp_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
