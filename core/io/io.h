/* What the files of io share. Internal. */
#ifndef ESP_IO_H
#define ESP_IO_H

#include "../base/base.h"

/* ESP_EIO with "what path: reason of errno". */
int esp_io_fail(const char *what, const char *path);
/* Syncs the folder that holds path, so that a rename in it survives a crash. */
int esp_sync_folder_of(const char *path);
/* path with a suffix of this process, beside it; esp_free it. NULL with the error set. */
char *esp_beside(const char *path);
char *esp_copy_text(const char *text);

/* A value, key or end of a JSON text. */
typedef struct esp_json_event {
    int kind;
    double number;       /* INT and FLOAT; BOOL: 0 or 1 */
    const char *text;    /* STRING, KEY: UTF-8, `bytes` long; INT, FLOAT: the digits as they stood */
    int64_t bytes;
} esp_json_event;
enum { ESP_JSON_OBJECT_END = ESP_JSON_ARRAY + 1, ESP_JSON_ARRAY_END, ESP_JSON_DEEPEST = 256 };

/* e is valid during the call. ESP_EFORMAT ends the walk, and the error then tells line and column too. */
typedef int esp_json_visit(void *context, const esp_json_event *e);
/* Walks a text without holding it; the same key twice is the visitor's business. */
int esp_json_walk(const char *text, int64_t bytes, const char *name, esp_json_visit *visit, void *context);

/* A regular file mapped read-only, shared by those who view it. */
typedef struct esp_mapping {
    int64_t references;
    void *data;
    int64_t bytes;
    esp_bus_region *watched;
} esp_mapping;
/* Maps a file of at least `least` bytes; a shorter one is "N bytes are no `what`". */
int esp_mapping_open(esp_mapping **out, const char *path, int64_t least, const char *what);
esp_mapping *esp_mapping_share(esp_mapping *m);
void esp_mapping_release(void *mapping);             /* the last release unmaps */

#endif
