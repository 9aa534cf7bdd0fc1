/* Byte sizes as text, for flags and for people. Stateless; any thread. */
#ifndef NOSA_BASE_SIZE_H
#define NOSA_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_SIZE_TEXT_MAX 24 /* bytes that nosa_size_format needs at most, NUL included */

/*
 * Parses a whole number of bytes with an optional suffix K, M, G or T (powers of 1024; lower case,
 * "KiB" and "KB" are accepted and mean the same): "512M", "4096". NOSA_INVALID_ARGUMENT for an
 * empty text, a sign, a fraction, other characters, or more than 2^64-1 bytes; the error's text
 * says what is wrong with the value and leaves naming the flag to the caller.
 */
enum nosa_status nosa_size_parse(const char *text, uint64_t *bytes, struct nosa_error *error);

/* Writes e.g. "1.5 GiB", "512 MiB", "100 B" into `text` and returns it. */
const char *nosa_size_format(uint64_t bytes, char text[NOSA_SIZE_TEXT_MAX]);

#endif
