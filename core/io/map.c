/* Files mapped read-only: opened without waiting, regular files only, and kept while a tensor views them. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"

int esp_mapping_open(esp_mapping **out, const char *path, int64_t least, const char *what)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return esp_io_fail("cannot read", path);
    struct stat s;
    int code = fstat(fd, &s) != 0 ? esp_io_fail("cannot read", path)
               : !S_ISREG(s.st_mode) ? esp_fail(ESP_EIO, "cannot read %s: not a regular file", path)
               : s.st_size < least ? esp_fail(ESP_EFORMAT, "%s: %lld bytes are no %s", path, (long long)s.st_size, what)
               : ESP_OK;
    void *data = code == ESP_OK ? mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    if (code == ESP_OK && data == MAP_FAILED) code = esp_io_fail("cannot map", path);
    close(fd);
    if (code != ESP_OK) return code;
    esp_mapping *m = esp_malloc(sizeof *m);
    esp_bus_region *watched = m ? esp_bus_watch(data, s.st_size, path) : NULL;
    if (!watched) {
        munmap(data, (size_t)s.st_size);
        esp_free(m);
        return ESP_EMEM;
    }
    *m = (esp_mapping){1, data, s.st_size, watched};
    *out = m;
    return ESP_OK;
}

void esp_mapping_release(void *mapping)
{
    esp_mapping *m = mapping;
    if (__atomic_sub_fetch(&m->references, 1, __ATOMIC_ACQ_REL) > 0) return;
    esp_bus_forget(m->watched);
    munmap(m->data, (size_t)m->bytes);
    esp_free(m);
}

esp_mapping *esp_mapping_share(esp_mapping *m)
{
    __atomic_add_fetch(&m->references, 1, __ATOMIC_RELAXED);
    return m;
}
