/* Reading of tests/vectors/tokenizer, for the tests of this folder. Every function fails the test
 * that calls it when a file is not as expected. */
#ifndef NOSA_TESTS_TOKENIZER_VECTORS_H
#define NOSA_TESTS_TOKENIZER_VECTORS_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <setjmp.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "tokenizer/tokenizer.h"

/* Lines of a file, split at its newlines; freed with vectors_lines_free. */
struct vectors_lines {
    char *data;
    char **items;
    size_t count;
};

/* `name` is below tests/vectors/tokenizer. */
void vectors_lines_read(struct vectors_lines *lines, const char *name);
void vectors_lines_free(struct vectors_lines *lines);

/* Decodes base64 ("-" is empty) of `length` characters; replaces what `out` holds. */
void vectors_bytes(const char *text, size_t length, struct nosa_buffer *out);

/* Decodes base64 of LEB128 numbers; replaces what `ids` holds. */
void vectors_ids(const char *text, size_t length, struct nosa_tokens *ids);

/* Reads a whole file; the caller frees it. */
char *vectors_read(const char *name, size_t *size);

/* Opens NAME.json, with an optional tokenizer_config.json text. */
struct nosa_tokenizer *vectors_open(const char *name, const char *config);

#endif
