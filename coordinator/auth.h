/*
 * Bearer tokens from a file: a token and its name per line, blank lines and lines that begin with
 * '#' apart. A third word "inference" keeps a token from the operators' calls. Read once; fixed
 * afterwards; any thread.
 */
#ifndef NOSA_COORDINATOR_AUTH_H
#define NOSA_COORDINATOR_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

#define NOSA_AUTH_TOKENS_MAX     65536
#define NOSA_AUTH_FILE_BYTES_MAX (16u << 20)

struct nosa_auth; /* opaque */

/* NOSA_INVALID_ARGUMENT: a line that is none of these, named by its number (never by its text), a
 * token twice, or no token at all; and the errors of nosa_file_read. */
enum nosa_status nosa_auth_open(struct nosa_auth **auth, const char *path,
                                struct nosa_error *error);

/* The token's name, or NULL. *operator says whether it may make operators' calls. The time it takes
 * does not tell how much of a token was right. */
const char *nosa_auth_find(const struct nosa_auth *auth, const char *token, size_t size,
                           bool *operator_allowed);

void nosa_auth_free(struct nosa_auth *auth);

#endif
