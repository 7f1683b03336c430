/* The error text of each thread. */
#include <stdarg.h>
#include <stdio.h>

#include "base.h"

static _Thread_local char text[1024];

const char *esp_error(void)
{
    return text;
}

int esp_fail(int code, const char *format, ...)
{
    /* An argument may be the old text itself ("in file x: <old text>"), so the new one is made aside. */
    char fresh[sizeof text];
    va_list args;
    va_start(args, format);
    vsnprintf(fresh, sizeof fresh, format, args);
    va_end(args);
    snprintf(text, sizeof text, "%s", fresh);
    return code;
}
