/* The append-only journal of a run. A record is { int64 bytes, uint64 XXH3 of the data, data }; a torn or damaged tail is cut off when the
 * journal is opened again. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "io.h"

enum { HEAD = 16 };

struct esp_journal {
    int fd;
    char *path;
};

/* Bytes of whole records at the front of data. Where `out` is given, the records go there as { int64 bytes, data }. */
static int64_t whole_records(const char *data, int64_t bytes, char *out, int64_t *out_bytes)
{
    int64_t at = 0, to = 0;
    while (at + HEAD <= bytes) {
        int64_t n;
        uint64_t sum;
        memcpy(&n, data + at, 8);
        memcpy(&sum, data + at + 8, 8);
        if (n < 0 || n > bytes - at - HEAD || XXH3_64bits(data + at + HEAD, (size_t)n) != sum) break;
        if (out) {
            memcpy(out + to, &n, 8);
            memcpy(out + to + 8, data + at + HEAD, (size_t)n);
            to += 8 + n;
        }
        at += HEAD + n;
    }
    if (out_bytes) *out_bytes = to;
    return at;
}

int esp_journal_read(char **data, int64_t *bytes, int64_t *torn, const char *path)
{
    char *raw;
    int64_t n;
    TRY(esp_file_read(&raw, &n, path, (int64_t)1 << 34));
    char *out = esp_malloc(n + 1);
    if (!out) {
        esp_free(raw);
        return ESP_EMEM;
    }
    *torn = n - whole_records(raw, n, out, bytes);
    *data = out;
    esp_free(raw);
    return ESP_OK;
}

int esp_journal_open(esp_journal **out, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) return esp_io_fail("cannot write", path);
    char *raw = NULL;
    int64_t n = 0;
    int code = flock(fd, LOCK_EX | LOCK_NB) != 0 ? esp_fail(ESP_EIO, "%s is locked: another process writes it", path) : ESP_OK;
    if (code == ESP_OK) code = esp_file_read(&raw, &n, path, (int64_t)1 << 34);
    if (code == ESP_OK) {
        int64_t good = whole_records(raw, n, NULL, NULL);
        if (good < n && ftruncate(fd, good) != 0) code = esp_io_fail("cannot cut the torn end of", path);
    }
    esp_free(raw);
    esp_journal *j = code == ESP_OK ? esp_malloc(sizeof *j) : NULL;
    if (j && !(j->path = esp_copy_text(path))) {
        esp_free(j);
        j = NULL;
    }
    if (!j) {
        close(fd);
        return code != ESP_OK ? code : ESP_EMEM;
    }
    j->fd = fd;
    *out = j;
    return ESP_OK;
}

int esp_journal_append(esp_journal *j, const void *data, int64_t bytes, int sync)
{
    char *record = esp_malloc(HEAD + bytes);
    if (!record) return ESP_EMEM;
    uint64_t sum = XXH3_64bits(data, (size_t)bytes);
    memcpy(record, &bytes, 8);
    memcpy(record + 8, &sum, 8);
    memcpy(record + HEAD, data, (size_t)bytes);
    /* One write, so that a reader beside us sees whole records or a torn last one. */
    ssize_t n = write(j->fd, record, (size_t)(HEAD + bytes));
    esp_free(record);
    if (n >= 0 && n < HEAD + bytes) errno = ENOSPC;
    if (n < HEAD + bytes) return esp_io_fail("cannot write", j->path);
    if (sync && fdatasync(j->fd) != 0) return esp_io_fail("cannot sync", j->path);
    return ESP_OK;
}

int esp_journal_close(esp_journal *j)
{
    if (!j) return ESP_OK;
    int code = close(j->fd) != 0 ? esp_io_fail("cannot close", j->path) : ESP_OK;
    esp_free(j->path);
    esp_free(j);
    return code;
}
