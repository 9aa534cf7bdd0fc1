#include "base/buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_MIN 64

enum nosa_status nosa_buffer_reserve(struct nosa_buffer *buffer, size_t additional)
{
    size_t needed;
    if (__builtin_add_overflow(buffer->size, additional, &needed) ||
        __builtin_add_overflow(needed, 1, &needed))
        goto failed;
    if (needed <= buffer->capacity)
        return NOSA_OK;
    size_t capacity = buffer->capacity < CAPACITY_MIN ? CAPACITY_MIN : buffer->capacity;
    while (capacity < needed)
        capacity = capacity > SIZE_MAX / 2 ? needed : capacity * 2;
    char *data = realloc(buffer->data, capacity);
    if (!data)
        goto failed;
    data[buffer->size] = '\0';
    buffer->data = data;
    buffer->capacity = capacity;
    return NOSA_OK;
failed:
    buffer->failed = true;
    return NOSA_OUT_OF_MEMORY;
}

enum nosa_status nosa_buffer_append(struct nosa_buffer *buffer, const void *bytes, size_t size)
{
    NOSA_TRY(nosa_buffer_reserve(buffer, size));
    if (size > 0)
        memcpy(buffer->data + buffer->size, bytes, size);
    buffer->size += size;
    buffer->data[buffer->size] = '\0';
    return NOSA_OK;
}

enum nosa_status nosa_buffer_append_text(struct nosa_buffer *buffer, const char *text)
{
    return nosa_buffer_append(buffer, text, strlen(text));
}

enum nosa_status nosa_buffer_printf(struct nosa_buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    NOSA_ASSERT(length >= 0);
    NOSA_TRY(nosa_buffer_reserve(buffer, (size_t)length));
    va_start(arguments, format);
    vsnprintf(buffer->data + buffer->size, (size_t)length + 1, format, arguments);
    va_end(arguments);
    buffer->size += (size_t)length;
    return NOSA_OK;
}

bool nosa_buffer_failed(const struct nosa_buffer *buffer)
{
    return buffer->failed;
}

void nosa_buffer_reset(struct nosa_buffer *buffer)
{
    buffer->size = 0;
    buffer->failed = false;
    if (buffer->data)
        buffer->data[0] = '\0';
}

char *nosa_buffer_take(struct nosa_buffer *buffer)
{
    char *data = NULL;
    if (!buffer->failed && nosa_buffer_reserve(buffer, 0) == NOSA_OK) {
        data = buffer->data;
        buffer->data = NULL;
    }
    nosa_buffer_free(buffer);
    return data;
}

void nosa_buffer_free(struct nosa_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct nosa_buffer){0};
}
