/* What the library says of itself. */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "base.h"

const char *esp_op_names(void)
{
#define NAME_LINE(name, params) #name "\n"
    return ESP_OPS(NAME_LINE);
#undef NAME_LINE
}

const char *esp_library_path(void)
{
    Dl_info info;
    return dladdr((const void *)esp_op_names, &info) && info.dli_fname ? info.dli_fname : "";
}
