/* Files seen from C: a writer that is abandoned leaves nothing, one that publishes replaces whole; a journal keeps whole records. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../core/espalier.h"

static int failures;

#define CHECK(condition)                                                                                                                   \
    do {                                                                                                                                   \
        if (!(condition)) {                                                                                                                \
            printf("%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, esp_error());                                           \
            failures++;                                                                                                                    \
        }                                                                                                                                  \
    } while (0)

static char folder[64];

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* The names in the folder, each ended by a newline, are these. */
static int holds(const char *names)
{
    char *got;
    int64_t bytes;
    if (esp_folder_list(&got, &bytes, folder) != 0) return 0;
    int same = strcmp(got, names) == 0;
    if (!same) printf("the folder holds: %s", got);
    esp_buffer_free(got);
    return same;
}

static int reads(const char *path, const char *want)
{
    char *got;
    int64_t bytes;
    if (esp_file_read(&got, &bytes, path, 0) != 0) return 0;
    int same = bytes == (int64_t)strlen(want) && memcmp(got, want, (size_t)bytes) == 0;
    esp_buffer_free(got);
    return same;
}

static void writer(void)
{
    esp_writer *w;
    CHECK(esp_writer_open(&w, in_folder("a")) == 0 && esp_writer_write(w, "old", 3) == 0 && esp_writer_publish(w) == 0);
    CHECK(holds("a\n"));
    CHECK(esp_writer_open(&w, in_folder("a")) == 0 && esp_writer_write(w, "half", 4) == 0);
    CHECK(reads(in_folder("a"), "old"));
    esp_writer_abandon(w);
    CHECK(holds("a\n") && reads(in_folder("a"), "old"));
    CHECK(esp_writer_open(&w, in_folder("a")) == 0 && esp_writer_write(w, "newer", 5) == 0 && esp_writer_publish(w) == 0);
    CHECK(holds("a\n") && reads(in_folder("a"), "newer"));
    CHECK(esp_writer_open(&w, in_folder("no/such/folder/a")) == ESP_EIO && strstr(esp_error(), "no/such/folder"));
    esp_writer_abandon(NULL);
    CHECK(esp_file_remove(in_folder("a")) == 0 && esp_file_remove(in_folder("a")) == 0);
}

static void replacing_a_folder(void)
{
    esp_writer *w;
    CHECK(esp_folder_make(in_folder("new")) == 0 && esp_folder_make(in_folder("old")) == 0);
    CHECK(esp_writer_open(&w, in_folder("old/x")) == 0 && esp_writer_write(w, "1", 1) == 0 && esp_writer_publish(w) == 0);
    CHECK(esp_writer_open(&w, in_folder("new/x")) == 0 && esp_writer_write(w, "2", 1) == 0 && esp_writer_publish(w) == 0);
    char from[128];
    snprintf(from, sizeof from, "%s", in_folder("new"));
    CHECK(esp_folder_replace(from, in_folder("old")) == 0);
    CHECK(holds("old\n") && reads(in_folder("old/x"), "2"));
    CHECK(esp_file_remove(in_folder("old")) == 0 && holds(""));
}

static void journal(void)
{
    esp_journal *j, *second;
    CHECK(esp_journal_open(&j, in_folder("log")) == 0);
    CHECK(esp_journal_append(j, "one", 3, 1) == 0 && esp_journal_append(j, "", 0, 0) == 0 && esp_journal_append(j, "three", 5, 1) == 0);
    CHECK(esp_journal_open(&second, in_folder("log")) < 0 && strstr(esp_error(), "log"));
    CHECK(esp_journal_close(j) == 0);
    char *data;
    int64_t bytes, torn;
    CHECK(esp_journal_read(&data, &bytes, &torn, in_folder("log")) == 0 && bytes == 3 * 8 + 8 && torn == 0);
    esp_buffer_free(data);
    int64_t size;
    int kind;
    CHECK(esp_file_stat(in_folder("log"), &kind, &size, NULL) == 0 && kind == 1);
    CHECK(truncate(in_folder("log"), size - 1) == 0);
    CHECK(esp_journal_read(&data, &bytes, &torn, in_folder("log")) == 0 && bytes == 2 * 8 + 3 && torn > 0);
    esp_buffer_free(data);
    CHECK(esp_file_remove(in_folder("log")) == 0);
}

static void lock(void)
{
    esp_lock *a, *b;
    CHECK(esp_lock_take(&a, in_folder("lock")) == 0);
    CHECK(esp_lock_take(&b, in_folder("lock")) < 0 && strstr(esp_error(), "lock"));
    esp_lock_release(a);
    CHECK(esp_lock_take(&b, in_folder("lock")) == 0);
    esp_lock_release(b);
}

int main(void)
{
    snprintf(folder, sizeof folder, "/tmp/espalier-files-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    writer();
    replacing_a_folder();
    journal();
    lock();
    CHECK(esp_file_remove(folder) == 0);
    return failures != 0;
}
