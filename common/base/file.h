/*
 * Whole files: read into memory with a limit, or mapped read-only. Stateless; any thread. Errors
 * name the path and the reason. Only nosa_file_read_input takes what is not a regular file.
 */
#ifndef NOSA_BASE_FILE_H
#define NOSA_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A read-only mapping of a file; {NULL, 0} for an empty file and after close. */
struct nosa_file_map {
    const uint8_t *data; /* owned by the mapping, until nosa_file_map_close */
    size_t size;         /* bytes */
};

/*
 * Reads the file at `path` into a new allocation that the caller frees. A NUL follows the last
 * byte, so text can be handed to string functions once it is known to hold no NUL of its own.
 * Blocks on the disk. NOSA_NOT_FOUND: no such file; NOSA_INVALID_ARGUMENT: a directory, a device,
 * or larger than `size_max` bytes; NOSA_IO_ERROR; NOSA_OUT_OF_MEMORY. On error *data is NULL.
 */
enum nosa_status nosa_file_read(const char *path, size_t size_max, char **data, size_t *size,
                                struct nosa_error *error);

/*
 * The same for what a person names as input: pipes are read to their end, and "-" is standard
 * input. Blocks until the other side closes, whatever signals are handled meanwhile.
 */
enum nosa_status nosa_file_read_input(const char *path, size_t size_max, char **data, size_t *size,
                                      struct nosa_error *error);

/*
 * Maps the file at `path`. Pages are read when touched; a file that is truncated afterwards raises
 * SIGBUS there, so a mapping suits files that nobody rewrites in place. Errors as nosa_file_read.
 */
enum nosa_status nosa_file_map_open(struct nosa_file_map *map, const char *path,
                                    struct nosa_error *error);

/* Unmaps and clears; an empty or cleared mapping is allowed. */
void nosa_file_map_close(struct nosa_file_map *map);

#endif
