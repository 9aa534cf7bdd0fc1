/*
 * Writes a NumPy .npy file (format 1.0, little-endian float32, C order, two dimensions) row by row.
 * The number of rows is put into the header by close, so that rows can be streamed. The file is
 * written in place: one that is cut off before close says zero rows. One thread.
 */
#ifndef NOSA_BASE_NPY_H
#define NOSA_BASE_NPY_H

#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

struct nosa_npy_writer {
    FILE *file;       /* owned while open */
    const char *path; /* borrowed until close, for errors */
    uint64_t rows;    /* written so far */
    uint64_t columns;
};

/* Whether nosa_npy_open could open `path`: NOSA_INVALID_ARGUMENT as there. Leaves no new file and
 * changes none. */
enum nosa_status nosa_npy_check(const char *path, struct nosa_error *error);

/* Creates or truncates `path`. NOSA_INVALID_ARGUMENT when it cannot be created. */
enum nosa_status nosa_npy_open(struct nosa_npy_writer *writer, const char *path, uint64_t columns,
                               struct nosa_error *error);

/* Appends `rows` rows of [columns] float32, contiguous. NOSA_IO_ERROR, e.g. a full disk. */
enum nosa_status nosa_npy_append(struct nosa_npy_writer *writer, const float *values, uint64_t rows,
                                 struct nosa_error *error);

/* Completes the header and closes; the writer is closed whatever comes back. A writer that is all
 * zero or closed is allowed. */
enum nosa_status nosa_npy_close(struct nosa_npy_writer *writer, struct nosa_error *error);

#endif
