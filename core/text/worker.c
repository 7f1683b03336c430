/* Workers: the memory of one call and what is worth keeping for the next, so that calls from any number of threads share nothing but a list of idle
 * workers. */
#include <string.h>

#include "tokenizer.h"

/* Words seen before: one slot for each value of a hash, the newer word takes it. Keys and ids lie one after another in an arena that is
 * emptied with the slots when it is full. */
enum { SLOTS = 1 << 15, ARENA = 1 << 18, LONGEST_KEY = 64 };

typedef struct slot {
    uint64_t hash;
    int32_t at;                            /* in the arena */
    int16_t bytes, count;                  /* bytes 0: empty */
} slot;

struct esp_cache {
    slot slots[SLOTS];
    int32_t used;
    int32_t arena[ARENA];
};

static int32_t words_of(int64_t bytes) { return (int32_t)((bytes + 3) / 4); }

const int32_t *esp_cache_find(const esp_worker *w, const char *text, int64_t bytes, uint64_t hash, int64_t *count)
{
    const slot *s = &w->cache->slots[hash & (SLOTS - 1)];
    if (s->hash != hash || s->bytes != bytes || bytes > LONGEST_KEY || memcmp(w->cache->arena + s->at, text, (size_t)bytes) != 0) return NULL;
    *count = s->count;
    return w->cache->arena + s->at + words_of(bytes);
}

void esp_cache_keep(esp_worker *w, const char *text, int64_t bytes, uint64_t hash, const int32_t *ids, int64_t count)
{
    esp_cache *c = w->cache;
    if (bytes > LONGEST_KEY || count > LONGEST_KEY) return;
    if (c->used + words_of(bytes) + count > ARENA) {
        memset(c->slots, 0, sizeof c->slots);
        c->used = 0;
    }
    c->slots[hash & (SLOTS - 1)] = (slot){hash, c->used, (int16_t)bytes, (int16_t)count};
    memcpy(c->arena + c->used, text, (size_t)bytes);
    c->used += words_of(bytes);
    memcpy(c->arena + c->used, ids, (size_t)count * 4);
    c->used += (int32_t)count;
}

int esp_worker_grow(void **block, int64_t *room, int64_t count, int64_t element)
{
    if (count <= *room) return ESP_OK;
    int64_t wanted = count + count / 2 + 64;
    void *more = esp_malloc(wanted * element);
    if (!more) return ESP_EMEM;
    esp_free(*block);
    *block = more;
    *room = wanted;
    return ESP_OK;
}

void esp_worker_free(esp_worker *w)
{
    if (!w) return;
    esp_free(w->out.id);
    esp_free(w->now.own.at);
    esp_free(w->now.spans);
    esp_free(w->then.own.at);
    esp_free(w->then.spans);
    esp_free(w->normal.at);
    esp_free(w->scratch.at);
    esp_free(w->points);
    esp_matcher_free(w->matcher);
    esp_free(w->cache);
    esp_free(w->symbols);
    esp_free(w->heap);
    esp_free(w->paths);
    esp_free(w->unused_left);
    esp_free(w);
}

enum { FIRST_ROOM = 64 };

static int worker_new(esp_worker **out, const esp_tokenizer *t)
{
    esp_worker *w = esp_calloc(sizeof *w);
    if (!w) return ESP_EMEM;
    w->t = t;
    int code = esp_matcher_new(&w->matcher);
    if (code == ESP_OK && !(w->cache = esp_calloc(sizeof *w->cache))) code = ESP_EMEM;
    /* Some room from the start: words point into the list before anything is in it. */
    if (code == ESP_OK && !(w->out.id = esp_malloc(FIRST_ROOM * 4))) code = ESP_EMEM;
    w->out.room = FIRST_ROOM;
    if (code == ESP_OK && t->has_unused && !(w->unused_left = esp_malloc(t->count * 4))) code = ESP_EMEM;
    if (code != ESP_OK) {
        esp_worker_free(w);
        return code;
    }
    *out = w;
    return ESP_OK;
}

/* The list of idle workers is the one thing of a loaded tokenizer that changes, under its lock. */
static esp_tokenizer *owner(const esp_tokenizer *t) { return (esp_tokenizer *)(uintptr_t)t; }

int esp_worker_take(esp_worker **out, const esp_tokenizer *t)
{
    esp_tokenizer *o = owner(t);
    pthread_mutex_lock(&o->lock);
    esp_worker *w = o->idle;
    if (w) o->idle = w->next;
    pthread_mutex_unlock(&o->lock);
    if (!w) TRY(worker_new(&w, t));
    w->out.count = 0;
    *out = w;
    return ESP_OK;
}

/* The longest that a normal form or a sign for a space asks for is 18 times. */
enum { GROWTH = 64, SPARE = 1 << 16 };

void esp_worker_bound(esp_worker *w, int64_t bytes)
{
    w->now.own.most = w->then.own.most = GROWTH * bytes + SPARE;
}

/* Buffers that one huge text made are not kept. */
enum { KEEP = 32 << 20 };

void esp_worker_give(esp_worker *w)
{
    int64_t held = w->out.room * 4 + w->now.own.room + w->then.own.room + (w->now.room + w->then.room) * (int64_t)sizeof(esp_span) + w->normal.room
                 + w->scratch.room + w->point_room * 4 + w->symbol_room * (int64_t)sizeof(symbol) + w->heap_room * (int64_t)sizeof(candidate)
                 + w->path_room * (int64_t)sizeof(best_path);
    if (held > KEEP) {
        esp_worker_free(w);
        return;
    }
    esp_tokenizer *o = owner(w->t);
    pthread_mutex_lock(&o->lock);
    w->next = o->idle;
    o->idle = w;
    pthread_mutex_unlock(&o->lock);
}
