/* Hashes of documents: 64 bits each, and whether two sets of them meet. */
#include <string.h>
#include <xxhash.h>

#include "io.h"

uint64_t esp_hash64(const void *data, int64_t bytes) { return XXH3_128bits(data, (size_t)bytes).high64; }

/* b goes into a table of open addressing, so that a may be as long as it likes. Entries are indices into b, from 1. */
int esp_hashes_meet(int64_t *at, const uint64_t *a, int64_t na, const uint64_t *b, int64_t nb)
{
    int64_t room = 16;
    while (room < 2 * nb) room *= 2;
    int64_t *slots = esp_calloc(room * (int64_t)sizeof *slots), best = nb;
    if (!slots) return ESP_EMEM;
    uint64_t mask = (uint64_t)room - 1;
    for (int64_t i = 0; i < nb; i++) {
        uint64_t h = b[i] & mask;
        while (slots[h] && b[slots[h] - 1] != b[i]) h = (h + 1) & mask;
        if (!slots[h]) slots[h] = i + 1;
    }
    for (int64_t i = 0; i < na; i++) {
        uint64_t h = a[i] & mask;
        while (slots[h] && b[slots[h] - 1] != a[i]) h = (h + 1) & mask;
        if (slots[h]) best = esp_min(best, slots[h] - 1);
    }
    esp_free(slots);
    *at = best < nb ? best : -1;
    return ESP_OK;
}
