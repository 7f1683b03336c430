/* Mapped files that become shorter while they are in use. The system then sends SIGBUS to whoever reads behind the new end; the handler here puts
 * empty pages under the rest of the mapping and marks it as lost, so that the reader goes on, and the operation it works for fails with a sentence. */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base.h"

/* Never freed, since the handler may walk the list at any time; one that is not in use has no bytes. */
struct esp_bus_region {
    esp_bus_region *next;
    char *data;
    int64_t bytes;
    int lost;
    char path[512];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static esp_bus_region *regions;
static int64_t losses;
static struct sigaction before;

static esp_bus_region *region_of(const void *address)
{
    for (esp_bus_region *r = __atomic_load_n(&regions, __ATOMIC_ACQUIRE); r; r = r->next) {
        int64_t bytes = __atomic_load_n(&r->bytes, __ATOMIC_ACQUIRE);
        if (bytes && (const char *)address >= r->data && (const char *)address < r->data + bytes) return r;
    }
    return NULL;
}

static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)context;
    esp_bus_region *r = region_of(info->si_addr);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)info->si_addr / page * page;
    if (r && mmap((void *)from, (uintptr_t)(r->data + r->bytes) - from, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
        __atomic_store_n(&r->lost, 1, __ATOMIC_RELEASE);
        __atomic_add_fetch(&losses, 1, __ATOMIC_RELEASE);
        return;
    }
    /* Not ours: the faulting instruction runs again under whoever was asked before. */
    sigaction(number, &before, NULL);
}

static void install(void)
{
    struct sigaction ours = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &before);
}

esp_bus_region *esp_bus_watch(void *data, int64_t bytes, const char *path)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    pthread_mutex_lock(&lock);
    esp_bus_region *r = regions;
    while (r && r->bytes) r = r->next;
    if (!r && (r = esp_calloc(sizeof *r))) {
        r->next = regions;
        __atomic_store_n(&regions, r, __ATOMIC_RELEASE);
    }
    if (r) {
        r->data = data;
        r->lost = 0;
        r->path[0] = 0;
        strncat(r->path, path, sizeof r->path - 1);
        __atomic_store_n(&r->bytes, bytes, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return r;
}

void esp_bus_forget(esp_bus_region *r)
{
    pthread_mutex_lock(&lock);
    __atomic_store_n(&r->bytes, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
}

int64_t esp_bus_losses(void) { return __atomic_load_n(&losses, __ATOMIC_ACQUIRE); }

int esp_bus_check(const void *data)
{
    if (!esp_bus_losses()) return ESP_OK;
    const esp_bus_region *r = region_of(data);
    if (!r || !__atomic_load_n(&r->lost, __ATOMIC_ACQUIRE)) return ESP_OK;
    return esp_fail(ESP_EIO, "%s became shorter while it was in use (or its disk failed); what was read of it is void", r->path);
}

int esp_bus_fail(void)
{
    int code = ESP_OK;
    for (const esp_bus_region *r = regions; r && code == ESP_OK; r = r->next) if (r->bytes && r->lost) code = esp_bus_check(r->data);
    return code != ESP_OK ? code : esp_fail(ESP_EIO, "a mapped file became shorter while it was in use");
}
