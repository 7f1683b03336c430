/* Files and folders: reading whole, listing, removing, renaming, hashing, locking. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "io.h"

void esp_buffer_free(void *data) { esp_free(data); }

int esp_file_read(char **data, int64_t *bytes, const char *path, int64_t max_bytes)
{
    if (max_bytes <= 0) max_bytes = (int64_t)1 << 30;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return esp_io_fail("cannot read", path);
    struct stat s;
    int code = fstat(fd, &s) != 0 ? esp_io_fail("cannot read", path)
               : !S_ISREG(s.st_mode) ? esp_fail(ESP_EIO, "cannot read %s: not a regular file", path)
               : s.st_size > max_bytes ? esp_fail(ESP_EFORMAT, "cannot read %s: %lld bytes, at most %lld are taken here", path,
                                                  (long long)s.st_size, (long long)max_bytes)
               : ESP_OK;
    char *text = code == ESP_OK ? esp_malloc(s.st_size + 1) : NULL;
    int64_t have = 0;
    while (text && have < s.st_size) {
        ssize_t n = read(fd, text + have, (size_t)(s.st_size - have));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) code = esp_io_fail("cannot read", path);
        if (n <= 0) break;
        have += n;
    }
    close(fd);
    if (code != ESP_OK || !text) {
        esp_free(text);
        return code != ESP_OK ? code : ESP_EMEM;
    }
    text[have] = 0;
    *data = text;
    *bytes = have;
    return ESP_OK;
}

int esp_file_stat(const char *path, int *kind, int64_t *bytes, double *mtime)
{
    struct stat s;
    *kind = 0;
    if (stat(path, &s) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return ESP_OK;
        return esp_io_fail("cannot look at", path);
    }
    *kind = S_ISREG(s.st_mode) ? 1 : S_ISDIR(s.st_mode) ? 2 : 3;
    if (bytes) *bytes = s.st_size;
    if (mtime) *mtime = (double)s.st_mtim.tv_sec + 1e-9 * (double)s.st_mtim.tv_nsec;
    return ESP_OK;
}

int esp_folder_make(const char *path)
{
    char *part = esp_copy_text(path);
    if (!part) return ESP_EMEM;
    int code = ESP_OK;
    for (char *p = part + 1; code == ESP_OK; p++) {
        if (*p != '/' && *p != 0) continue;
        char end = *p;
        *p = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST) code = esp_io_fail("cannot make folder", part);
        *p = end;
        if (!end) break;
    }
    struct stat s;
    if (code == ESP_OK && (stat(path, &s) != 0 || !S_ISDIR(s.st_mode))) code = esp_fail(ESP_EIO, "cannot make folder %s: a file of that name is there", path);
    esp_free(part);
    return code;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int esp_folder_list(char **names, int64_t *bytes, const char *path)
{
    struct dirent **list;
    int n = scandir(path, &list, NULL, NULL);
    if (n < 0) return esp_io_fail("cannot list", path);
    int64_t size = 1;
    for (int i = 0; i < n; i++) size += (int64_t)strlen(list[i]->d_name) + 1;
    char *text = esp_malloc(size), **sorted = esp_malloc((n + 1) * (int64_t)sizeof *sorted), *to = text;
    if (text && sorted) {
        for (int i = 0; i < n; i++) sorted[i] = list[i]->d_name;
        qsort(sorted, (size_t)n, sizeof *sorted, by_name);
        for (int i = 0; i < n; i++) {
            if (strcmp(sorted[i], ".") != 0 && strcmp(sorted[i], "..") != 0) to += sprintf(to, "%s\n", sorted[i]);
        }
        *to = 0;
    }
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
    esp_free(sorted);
    if (!text || !sorted) {
        esp_free(text);
        return ESP_EMEM;
    }
    *names = text;
    *bytes = to - text;
    return ESP_OK;
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *where)
{
    (void)s, (void)kind, (void)where;
    return remove(path);
}

int esp_file_remove(const char *path)
{
    struct stat s;
    if (lstat(path, &s) != 0) return errno == ENOENT ? ESP_OK : esp_io_fail("cannot remove", path);
    int bad = S_ISDIR(s.st_mode) ? nftw(path, remove_one, 32, FTW_DEPTH | FTW_PHYS) : unlink(path);
    return bad ? esp_io_fail("cannot remove", path) : ESP_OK;
}

int esp_file_rename(const char *from, const char *to)
{
    if (rename(from, to) != 0) return esp_io_fail("cannot rename to", to);
    TRY(esp_sync_folder_of(from));
    return esp_sync_folder_of(to);
}

int esp_folder_replace(const char *from, const char *to)
{
    if (rename(from, to) != 0) {
        if (errno != ENOTEMPTY && errno != EEXIST) return esp_io_fail("cannot rename to", to);
        /* Both at once, so that a kill leaves the one or the other under the name; then the old one goes. */
        if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) != 0) return esp_io_fail("cannot put the new folder in the place of", to);
        TRY(esp_sync_folder_of(to));
        return esp_file_remove(from);
    }
    TRY(esp_sync_folder_of(from));
    return esp_sync_folder_of(to);
}

int esp_file_link_or_copy(const char *from, const char *to)
{
    if (link(from, to) == 0) return ESP_OK;
    char *data;
    int64_t bytes;
    TRY(esp_file_read(&data, &bytes, from, (int64_t)1 << 40));
    esp_writer *w;
    int code = esp_writer_open(&w, to);
    if (code == ESP_OK) {
        code = esp_writer_write(w, data, bytes);
        if (code == ESP_OK) code = esp_writer_publish(w);
        else esp_writer_abandon(w);
    }
    esp_free(data);
    return code;
}

int esp_path_real(char **path, const char *from)
{
    char *real = realpath(from, NULL);
    if (!real) return esp_io_fail("cannot find", from);
    *path = esp_copy_text(real);
    free(real);
    return *path ? ESP_OK : ESP_EMEM;
}

static void hex_of(char *hex, XXH128_hash_t h)
{
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

int esp_hash(char *hex, const void *data, int64_t bytes)
{
    int64_t losses = esp_bus_losses();
    hex_of(hex, XXH3_128bits(data, (size_t)bytes));
    return losses != esp_bus_losses() ? esp_bus_fail() : ESP_OK;
}

int esp_hash_file(char *hex, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) return esp_io_fail("cannot read", path);
    enum { PIECE = 1 << 20 };
    char *piece = esp_malloc(PIECE);
    XXH3_state_t *state = XXH3_createState();
    int code = piece && state ? ESP_OK : ESP_EMEM;
    if (code == ESP_OK) {
        XXH3_128bits_reset(state);
        for (size_t n; (n = fread(piece, 1, PIECE, f)) > 0;) XXH3_128bits_update(state, piece, n);
        if (ferror(f)) code = esp_io_fail("cannot read", path);
        hex_of(hex, XXH3_128bits_digest(state));
    }
    XXH3_freeState(state);
    esp_free(piece);
    fclose(f);
    return code;
}

/* ---- locks ---- */

struct esp_lock {
    int fd;
};

int esp_lock_take(esp_lock **out, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return esp_io_fail("cannot open lock", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        char holder[32] = "";
        ssize_t n = read(fd, holder, sizeof holder - 1);
        holder[n > 0 ? n : 0] = 0;
        close(fd);
        return esp_fail(ESP_EIO, "%s is locked: process %s works on it", path, holder[0] ? holder : "(unknown)");
    }
    char pid[32];
    int n = snprintf(pid, sizeof pid, "%d", (int)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, pid, (size_t)n, 0) != n) {
        int code = esp_io_fail("cannot write lock", path);
        close(fd);
        return code;
    }
    esp_lock *l = esp_malloc(sizeof *l);
    if (!l) {
        close(fd);
        return ESP_EMEM;
    }
    l->fd = fd;
    *out = l;
    return ESP_OK;
}

void esp_lock_release(esp_lock *l)
{
    if (!l) return;
    close(l->fd);
    esp_free(l);
}
