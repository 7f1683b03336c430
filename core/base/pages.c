/* Memory from the system for the allocator door, in huge pages where it is more than a little: reading weights in order is a quarter to a half faster so,
 * and their first touch much.
 *
 * A block of some size lies beside others in a region, so that a few of them share a huge page; a large one has a mapping of its own, whose end past
 * the last whole huge page is in small ones. What was asked for and never touched is not resident, but for the rest of one huge page a region. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base.h"
#include "pages.h"

#if defined(MADV_HUGEPAGE) && !defined(__SANITIZE_ADDRESS__)
enum { HUGE_PAGE = 2 << 20, REGION = 64 << 20, SOME = 64 << 10, LARGE = 16 << 20 };

/* bytes, a multiple of a page, beginning at a huge page; NULL where there are none. */
static char *map(size_t bytes)
{
    char *raw = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(raw, before);
    munmap(raw + before + bytes, HUGE_PAGE - before);
    madvise(raw + before, bytes, MADV_HUGEPAGE);
    return raw + before;
}

static size_t page(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static size_t mapped_bytes(int64_t bytes)
{
    return ((size_t)bytes + page() - 1) / page() * page();
}

/* The region that is being filled; blocks are cut off its front. */
static char *front, *end;

static void *cut_off(int64_t bytes)
{
    if (end - front < bytes) {
        char *fresh = map(REGION);
        if (!fresh) return NULL;
        front = fresh, end = fresh + REGION;
    }
    char *block = front;
    front += bytes;
    return block;
}

void *esp_pages_take(int64_t bytes, int64_t align)
{
    void *block = NULL;
    if (bytes >= LARGE) block = map(mapped_bytes(bytes));
    else if (bytes >= SOME) block = cut_off((bytes + align - 1) / align * align);
    else if (posix_memalign(&block, (size_t)align, (size_t)bytes) != 0) block = NULL;
    return block;
}

int esp_pages_give(void *block, int64_t bytes)
{
    if (bytes >= LARGE) {
        munmap(block, mapped_bytes(bytes));
    } else if (bytes >= SOME) {
        uintptr_t from = ((uintptr_t)block + ESP_PAGES_HEAD + page() - 1) / page() * page(), to = ((uintptr_t)block + (uintptr_t)bytes) / page() * page();
        if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
        return 0;
    } else {
        free(block);
    }
    return 1;
}
#else
void *esp_pages_take(int64_t bytes, int64_t align)
{
    void *block = NULL;
    return posix_memalign(&block, (size_t)align, (size_t)bytes) == 0 ? block : NULL;
}

int esp_pages_give(void *block, int64_t bytes)
{
    (void)bytes;
    free(block);
    return 1;
}
#endif
