/* A file cut into pieces at a separator, in memory that holds one batch: documents of a text, lines of JSON. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"

/* Pieces of a batch: the shortest ones would take many times their bytes together, were there no end to them. */
enum { LONGEST = 1 << 30, MOST_PIECES = 1 << 14 };

struct esp_reader {
    int fd, ended;
    char *path, *separator, *buffer;
    int64_t separator_bytes;
    int64_t from, have, room;              /* of the buffer: what is not yet given out begins, what was read ends */
    int64_t given;                         /* bytes of the file before `from` */
    int64_t number;                        /* pieces so far, empty ones too */
    int64_t *ranges, *numbers, count, piece_room;
};

int esp_reader_open(esp_reader **out, const char *path, const char *separator, int64_t separator_bytes)
{
    esp_reader *r = esp_calloc(sizeof *r);
    if (!r) return ESP_EMEM;
    struct stat s;
    r->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int code = r->fd < 0 || fstat(r->fd, &s) != 0 ? esp_io_fail("cannot read", path)
               : !S_ISREG(s.st_mode) ? esp_fail(ESP_EIO, "cannot read %s: not a regular file", path) : ESP_OK;
    r->separator_bytes = separator_bytes;
    if (code == ESP_OK && !((r->path = esp_copy_text(path)) && (r->separator = esp_malloc(separator_bytes + 1)))) code = ESP_EMEM;
    if (code != ESP_OK) {
        esp_reader_close(r);
        return code;
    }
    memcpy(r->separator, separator, (size_t)separator_bytes);
    *out = r;
    return ESP_OK;
}

void esp_reader_close(esp_reader *r)
{
    if (!r) return;
    if (r->fd >= 0) close(r->fd);
    esp_free(r->path);
    esp_free(r->separator);
    esp_free(r->buffer);
    esp_free(r->ranges);
    esp_free(r->numbers);
    esp_free(r);
}

int64_t esp_reader_at(const esp_reader *r) { return r->given; }

/* Reads until `bytes` are there that were not given out, or the file ends. */
static int fill(esp_reader *r, int64_t bytes)
{
    if (r->from > 0) memmove(r->buffer, r->buffer + r->from, (size_t)(r->have - r->from));
    r->have -= r->from;
    r->from = 0;
    if (bytes > r->room) {
        char *more = esp_realloc(r->buffer, bytes);
        if (!more) return ESP_EMEM;
        r->buffer = more;
        r->room = bytes;
    }
    while (!r->ended && r->have < bytes) {
        ssize_t n = read(r->fd, r->buffer + r->have, (size_t)(bytes - r->have));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return esp_io_fail("cannot read", r->path);
        if (r->given == 0 && r->have < 3 && r->have + n >= 3 && memcmp(r->buffer, "\xef\xbb\xbf", 3) == 0) {
            memmove(r->buffer, r->buffer + 3, (size_t)(r->have + n - 3));
            r->have -= 3;
            r->given = 3;
        }
        r->have += n;
        r->ended = n == 0;
    }
    return ESP_OK;
}

static int is_white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Takes the piece from..to of the buffer, trimmed, unless nothing is left of it. */
static int take(esp_reader *r, int64_t from, int64_t to)
{
    r->number++;
    while (from < to && is_white(r->buffer[from])) from++;
    while (to > from && is_white(r->buffer[to - 1])) to--;
    if (from == to) return ESP_OK;
    if (r->count == r->piece_room) {
        int64_t room = r->piece_room ? 2 * r->piece_room : 256;
        int64_t *ranges = esp_realloc(r->ranges, 2 * room * (int64_t)sizeof *ranges);
        if (ranges) r->ranges = ranges;
        int64_t *numbers = ranges ? esp_realloc(r->numbers, room * (int64_t)sizeof *numbers) : NULL;
        if (!numbers) return ESP_EMEM;
        r->numbers = numbers;
        r->piece_room = room;
    }
    r->ranges[2 * r->count] = from;
    r->ranges[2 * r->count + 1] = to;
    r->numbers[r->count++] = r->number;
    return ESP_OK;
}

/* Cuts what is in the buffer, as far as a batch goes; what may go on behind it stays there unless the file ended. */
static int cut(esp_reader *r)
{
    while (r->count < MOST_PIECES) {
        const char *at = r->buffer + r->from;
        const char *end = r->separator_bytes ? memmem(at, (size_t)(r->have - r->from), r->separator, (size_t)r->separator_bytes) : NULL;
        if (!end && !r->ended) return ESP_OK;
        int64_t to = end ? end - r->buffer : r->have, next = end ? to + r->separator_bytes : to;
        if (to > r->from) TRY(take(r, r->from, to));
        else r->number++;
        r->given += next - r->from;
        r->from = next;
        if (!end) return ESP_OK;
    }
    return ESP_OK;
}

int esp_reader_next(esp_reader *r, int64_t bytes, const char **text, const int64_t **ranges, const int64_t **numbers, int64_t *count)
{
    r->count = 0;
    for (int64_t want = esp_max_of(bytes, 16);; want *= 2) {
        if (want > LONGEST) {
            if (r->have - r->from >= LONGEST) return esp_fail(ESP_EFORMAT, "%s: piece %lld is longer than 1 GiB; is the separator right?", r->path, (long long)r->number + 1);
            want = LONGEST;
        }
        TRY(fill(r, want));
        TRY(cut(r));
        if (r->count || (r->ended && r->from == r->have)) break;
        /* White space alone was cut off: the buffer need not grow. */
        if (r->have - r->from < want / 2) want /= 2;
    }
    *text = r->buffer;
    *ranges = r->ranges;
    *numbers = r->numbers;
    *count = r->count;
    return ESP_OK;
}
