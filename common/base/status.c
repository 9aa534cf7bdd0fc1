#include "base/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef nosa_error_set /* a macro while clang's analyzer reads */

const char *nosa_status_name(enum nosa_status status)
{
    switch (status) {
    case NOSA_OK: return "OK";
    case NOSA_INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case NOSA_NOT_FOUND: return "NOT_FOUND";
    case NOSA_UNSUPPORTED: return "UNSUPPORTED";
    case NOSA_CORRUPT: return "CORRUPT";
    case NOSA_IO_ERROR: return "IO_ERROR";
    case NOSA_OUT_OF_MEMORY: return "OUT_OF_MEMORY";
    case NOSA_RESOURCE_EXHAUSTED: return "RESOURCE_EXHAUSTED";
    case NOSA_UNAVAILABLE: return "UNAVAILABLE";
    case NOSA_CANCELLED: return "CANCELLED";
    case NOSA_DEADLINE_EXCEEDED: return "DEADLINE_EXCEEDED";
    case NOSA_INTERNAL: return "INTERNAL";
    }
    return "UNKNOWN";
}

int nosa_status_exit_code(enum nosa_status status)
{
    switch (status) {
    case NOSA_OK: return 0;
    case NOSA_INVALID_ARGUMENT:
    case NOSA_NOT_FOUND:
    case NOSA_UNSUPPORTED:
    case NOSA_CORRUPT:
    case NOSA_IO_ERROR: return 2;
    default: return 1;
    }
}

void nosa_error_clear(struct nosa_error *error)
{
    if (error) {
        error->status = NOSA_OK;
        error->text[0] = '\0';
    }
}

static void replace_control_characters(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

enum nosa_status nosa_error_set(struct nosa_error *error, enum nosa_status status,
                                const char *format, ...)
{
    NOSA_ASSERT(status != NOSA_OK);
    if (!error || error->status != NOSA_OK)
        return status;
    error->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    replace_control_characters(error->text);
    return status;
}

enum nosa_status nosa_error_prefix(struct nosa_error *error, const char *format, ...)
{
    if (!error || error->status == NOSA_OK)
        return error ? error->status : NOSA_INTERNAL;
    char prefixed[NOSA_ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(prefixed, sizeof prefixed, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof prefixed)
        return error->status;
    snprintf(prefixed + length, sizeof prefixed - (size_t)length, ": %.*s",
             (int)(sizeof prefixed - (size_t)length - 3), error->text);
    replace_control_characters(prefixed);
    memcpy(error->text, prefixed, sizeof error->text);
    return error->status;
}

void nosa_assert_failed(const char *file, int line, const char *expression)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expression);
    abort();
}
