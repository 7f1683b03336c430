/* Where the allocator door gets its memory (pages.c). Internal to memory.c, whose lock is held for each call. */
#ifndef ESP_PAGES_H
#define ESP_PAGES_H

#include <stdint.h>

/* bytes at a multiple of align (a power of two up to a page); NULL where there are none. */
void *esp_pages_take(int64_t bytes, int64_t align);

enum { ESP_PAGES_HEAD = 64 };
/* Gives back what take(bytes) gave: 1; or 0 where the block stays as it is and only its contents past the first ESP_PAGES_HEAD bytes are given back. */
int esp_pages_give(void *block, int64_t bytes);

#endif
