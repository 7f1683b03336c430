/* The one allocator door: blocks by size class, kept for reuse when freed, so that a training step in its steady state never reaches
 * malloc. Classes are sixteen to an octave: at most a sixteenth of a fresh block is unused. A free block of up to LARGER classes more is taken
 * before the system is asked, as those of one phase of a step serve the next.
 *
 * Each block is preceded by a header of 64 bytes that keeps the data aligned to cache lines and vector registers. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "pages.h"

enum { ALIGN = 64, STEPS = 16, CLASSES = 48 * STEPS, LARGER = 8 };

typedef struct block {
    struct block *next;       /* in its free list */
    int64_t bytes;            /* of the data */
    int class;
    int paged;                /* from pages.c, else from malloc */
} block;

_Static_assert(sizeof(block) <= ALIGN && (int)ALIGN <= (int)ESP_PAGES_HEAD, "the header of a block must fit before the aligned data");

static struct {
    pthread_mutex_t lock;
    block *free[CLASSES];
    int64_t live, peak, mallocs, budget, fail_at;
} door = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The class of a size and the size that the class gives: (8 + s) / 8 * 2^o * ALIGN. */
static int class_of(int64_t bytes, int64_t *size)
{
    int64_t units = bytes <= ALIGN ? 1 : esp_ceil_div(bytes, ALIGN);
    int octave = 63 - __builtin_clzll((unsigned long long)units);
    int64_t step = (int64_t)1 << (octave > 4 ? octave - 4 : 0);
    int64_t base = (int64_t)1 << octave;
    int64_t steps = esp_ceil_div(units - base, step);
    if (base + steps * step >= 2 * base) {
        octave++;
        *size = 2 * base * ALIGN;
        return octave * STEPS;
    }
    *size = (base + steps * step) * ALIGN;
    return octave * STEPS + (int)steps;
}

static void *data_of(block *b) { return (char *)b + ALIGN; }
static block *block_of(void *data) { return (block *)(void *)((char *)data - ALIGN); }

static void trim_locked(void)
{
    for (int c = 0; c < CLASSES; c++) {
        block *kept = NULL;
        while (door.free[c]) {
            block *b = door.free[c];
            door.free[c] = b->next;
            if (!b->paged) {
                free(b);
            } else if (!esp_pages_give(b, b->bytes + ALIGN)) {
                b->next = kept;
                kept = b;
            }
        }
        door.free[c] = kept;
    }
}

static block *from_system(int64_t bytes, int paged)
{
    void *raw = NULL;
    if (paged) raw = esp_pages_take(bytes, ALIGN);
    else if (posix_memalign(&raw, ALIGN, (size_t)bytes) != 0) raw = NULL;
    return raw;
}

/* A block of the class, from its list or that of one a little larger, or from the system; NULL where there is none. */
static block *take_locked(int class, int64_t size, int paged)
{
    for (int c = class; c < CLASSES && c <= class + LARGER; c++) {
        block *b = door.free[c];
        if (!b || (door.budget > 0 && door.live + b->bytes > door.budget)) continue;
        door.free[c] = b->next;
        return b;
    }
    block *b = from_system(size + ALIGN, paged);
    if (!b) {
        trim_locked();
        b = from_system(size + ALIGN, paged);
        if (!b) return NULL;
    }
    door.mallocs++;
    b->paged = paged;
    b->bytes = size;
    b->class = class;
    return b;
}

static void *take(int64_t bytes, int paged)
{
    /* Half of the address space is no block, and the sums above must not overflow. */
    if (bytes < 0 || bytes > ((int64_t)1 << 46)) {
        esp_fail(ESP_EMEM, "memory: a block of %lld bytes cannot be had", (long long)bytes);
        return NULL;
    }
    int64_t size;
    int class = class_of(bytes, &size);
    pthread_mutex_lock(&door.lock);
    block *b = NULL;
    if (door.fail_at > 0 && --door.fail_at == 0) {
        esp_fail(ESP_EMEM, "memory: the allocation of %lld bytes failed as a test asked", (long long)bytes);
    } else if (door.budget > 0 && door.live + size > door.budget) {
        esp_fail(ESP_EMEM, "memory: %lld bytes wanted, %lld of the budget of %lld are in use", (long long)bytes,
                 (long long)door.live, (long long)door.budget);
    } else if (!(b = take_locked(class, size, paged))) {
        esp_fail(ESP_EMEM, "memory: the system has no %lld bytes (%lld in use)", (long long)bytes, (long long)door.live);
    } else {
        door.live += b->bytes;
        if (door.live > door.peak) door.peak = door.live;
    }
    pthread_mutex_unlock(&door.lock);
    return b ? data_of(b) : NULL;
}

void *esp_malloc(int64_t bytes)
{
    return take(bytes, 1);
}

void *esp_calloc(int64_t bytes)
{
    void *data = esp_malloc(bytes);
    if (data) memset(data, 0, (size_t)bytes);
    return data;
}

void *esp_realloc(void *data, int64_t bytes)
{
    if (!data) return esp_malloc(bytes);
    block *b = block_of(data);
    if (bytes <= b->bytes) return data;
    /* Half as much again, so that a buffer grown bit by bit is copied a logarithmic number of times; not in huge pages, where its unused end would
     * be resident. */
    int64_t roomy = b->bytes + b->bytes / 2;
    void *fresh = take(bytes > roomy ? bytes : roomy, 0);
    if (!fresh) return NULL;
    memcpy(fresh, data, (size_t)b->bytes);
    esp_free(data);
    return fresh;
}

void esp_free(void *data)
{
    if (!data) return;
    block *b = block_of(data);
    pthread_mutex_lock(&door.lock);
    door.live -= b->bytes;
    b->next = door.free[b->class];
    door.free[b->class] = b;
    pthread_mutex_unlock(&door.lock);
}

/* One read or change of the counters under the lock. */
#define LOCKED(statement) do { pthread_mutex_lock(&door.lock); statement; pthread_mutex_unlock(&door.lock); } while (0)

int64_t esp_memory_live(void)
{
    int64_t n;
    LOCKED(n = door.live);
    return n;
}

int64_t esp_memory_peak(void)
{
    int64_t n;
    LOCKED(n = door.peak);
    return n;
}

int64_t esp_memory_mallocs(void)
{
    int64_t n;
    LOCKED(n = door.mallocs);
    return n;
}

void esp_memory_budget(int64_t bytes)
{
    LOCKED(door.budget = bytes);
}

void esp_memory_fail_at(int64_t n)
{
    LOCKED(door.fail_at = n);
}

void esp_memory_trim(void)
{
    LOCKED(trim_locked());
}
