/* What the machine says of itself: clock, resident bytes, free memory, processor. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

double esp_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The first number in a one-value file, or -1. "max" (no limit) is -1 too. */
static int64_t number_in(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    long long n = -1;
    if (fscanf(f, "%lld", &n) != 1) n = -1;
    fclose(f);
    return n;
}

/* The value of "NAME:  123 kB" in a file of /proc, in bytes, or -1. */
static int64_t kilobytes_of(const char *path, const char *name)
{
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    char line[256];
    int64_t bytes = -1;
    size_t length = strlen(name);
    while (bytes < 0 && fgets(line, sizeof line, f)) {
        if (strncmp(line, name, length) == 0 && line[length] == ':') bytes = 1024 * atoll(line + length + 1);
    }
    fclose(f);
    return bytes;
}

int64_t esp_rss(void)
{
    return kilobytes_of("/proc/self/status", "VmRSS");
}

int64_t esp_rss_peak(void)
{
    /* Not getrusage's: that begins with the memory of the process that started this one. */
    return kilobytes_of("/proc/self/status", "VmHWM");
}

int64_t esp_memory_available(void)
{
    int64_t free_bytes = kilobytes_of("/proc/meminfo", "MemAvailable");
    int64_t limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
    if (limit < 0) {
        limit = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        used = number_in("/sys/fs/cgroup/memory/memory.usage_in_bytes");
    }
    if (limit > 0 && used >= 0 && limit - used < free_bytes) return limit - used;
    return free_bytes;
}

const char *esp_cpu_name(void)
{
    static char name[128];
    if (name[0]) return name;
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[512];
    while (f && !name[0] && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        colon += strspn(colon, ": \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(name, sizeof name, "%.127s", colon);
    }
    if (f) fclose(f);
    if (!name[0]) snprintf(name, sizeof name, "unknown processor");
    return name;
}
