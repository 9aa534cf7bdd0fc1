/* What commands print. Main thread. */
#ifndef NOSA_CLI_OUTPUT_H
#define NOSA_CLI_OUTPUT_H

#include <jansson.h>

#include "base/buffer.h"
#include "base/status.h"

/* Writes the buffer to standard output and flushes. NOSA_OUT_OF_MEMORY: the buffer is marked as
 * failed; NOSA_IO_ERROR. */
enum nosa_status nosa_output_text(const struct nosa_buffer *text, struct nosa_error *error);

/* Writes the value in one line and a newline; takes the reference. NULL is NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_output_json(json_t *value, struct nosa_error *error);

#endif
