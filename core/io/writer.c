/* Files that appear whole or not at all: written beside their name, synced, renamed, and the folder synced. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

struct esp_writer {
    int fd;
    char *path, *temporary;
};

int esp_io_fail(const char *what, const char *path)
{
    return esp_fail(ESP_EIO, "%s %s: %s", what, path, strerror(errno));
}

char *esp_copy_text(const char *text)
{
    int64_t n = (int64_t)strlen(text) + 1;
    char *copy = esp_malloc(n);
    if (copy) memcpy(copy, text, (size_t)n);
    return copy;
}

char *esp_beside(const char *path)
{
    int64_t n = (int64_t)strlen(path) + 32;
    char *name = esp_malloc(n);
    if (name) snprintf(name, (size_t)n, "%s.part-%d", path, (int)getpid());
    return name;
}

int esp_sync_folder_of(const char *path)
{
    char *folder = esp_copy_text(path);
    if (!folder) return ESP_EMEM;
    char *slash = strrchr(folder, '/');
    if (slash == folder) slash[1] = 0;
    else if (slash) *slash = 0;
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = ESP_OK;
    /* Some file systems refuse to sync a folder; then there is nothing to do. */
    if (fd < 0) code = esp_io_fail("cannot open folder", folder);
    else if (fsync(fd) != 0 && errno != EINVAL) code = esp_io_fail("cannot sync folder", folder);
    if (fd >= 0) close(fd);
    esp_free(folder);
    return code;
}

static void free_writer(esp_writer *w)
{
    if (w->fd >= 0) close(w->fd);
    esp_free(w->path);
    esp_free(w->temporary);
    esp_free(w);
}

int esp_writer_open(esp_writer **out, const char *path)
{
    esp_writer *w = esp_calloc(sizeof *w);
    if (!w) return ESP_EMEM;
    w->fd = -1;
    w->path = esp_copy_text(path);
    w->temporary = esp_beside(path);
    if (!w->path || !w->temporary) {
        free_writer(w);
        return ESP_EMEM;
    }
    w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        int code = esp_io_fail("cannot write", path);
        free_writer(w);
        return code;
    }
    *out = w;
    return ESP_OK;
}

int esp_writer_write(esp_writer *w, const void *data, int64_t bytes)
{
    const char *p = data;
    while (bytes > 0) {
        ssize_t n = write(w->fd, p, bytes > 1 << 30 ? 1 << 30 : (size_t)bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (n == 0) errno = ENOSPC;
            return esp_io_fail("cannot write", w->path);
        }
        p += n;
        bytes -= n;
    }
    return ESP_OK;
}

int esp_writer_publish(esp_writer *w)
{
    int code = ESP_OK;
    if (fsync(w->fd) != 0) code = esp_io_fail("cannot sync", w->path);
    if (close(w->fd) != 0 && code == ESP_OK) code = esp_io_fail("cannot close", w->path);
    w->fd = -1;
    if (code == ESP_OK && rename(w->temporary, w->path) != 0) code = esp_io_fail("cannot put in place", w->path);
    if (code != ESP_OK) unlink(w->temporary);
    else code = esp_sync_folder_of(w->path);
    free_writer(w);
    return code;
}

void esp_writer_abandon(esp_writer *w)
{
    if (!w) return;
    unlink(w->temporary);
    free_writer(w);
}
