/*
 * Bytes that grow: the builder behind JSON, metrics and text output. A failed append leaves the
 * buffer as it was and is remembered, so a run of appends is checked once, at its end, with
 * nosa_buffer_failed. Not shared between threads.
 */
#ifndef NOSA_BASE_BUFFER_H
#define NOSA_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

/* All zero is a valid empty buffer. */
struct nosa_buffer {
    char *data;      /* owned; NULL while nothing was appended; else a NUL follows the last byte */
    size_t size;     /* bytes in use */
    size_t capacity; /* bytes allocated */
    bool failed;     /* an append found no memory */
};

/* Each returns NOSA_OK or NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_buffer_reserve(struct nosa_buffer *buffer, size_t additional);
enum nosa_status nosa_buffer_append(struct nosa_buffer *buffer, const void *bytes, size_t size);
enum nosa_status nosa_buffer_append_text(struct nosa_buffer *buffer, const char *text);
enum nosa_status nosa_buffer_printf(struct nosa_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Whether any append since the last reset found no memory. */
bool nosa_buffer_failed(const struct nosa_buffer *buffer);

/* Empties the buffer and keeps its memory; forgets a failure. */
void nosa_buffer_reset(struct nosa_buffer *buffer);

/* Hands the bytes (NUL-terminated, never NULL) to the caller, who frees them; the buffer is empty
 * afterwards. NULL when an append failed or there is no memory, and then the buffer is freed. */
char *nosa_buffer_take(struct nosa_buffer *buffer);

/* Frees the memory and zeroes the buffer. */
void nosa_buffer_free(struct nosa_buffer *buffer);

#endif
