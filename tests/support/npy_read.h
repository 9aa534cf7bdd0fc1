/* Reads the small NumPy files of tests/vectors: format 1.0, little-endian int32 or float32, C
 * order, one or two dimensions. Anything else fails the assertion of the caller through NULL. */
#ifndef NOSA_TESTS_SUPPORT_NPY_READ_H
#define NOSA_TESTS_SUPPORT_NPY_READ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

struct npy_array {
    char *file;       /* owned: free it to free the array */
    const void *data; /* [rows][columns], 4 bytes each */
    int64_t rows;     /* of a one-dimensional array: its length */
    int64_t columns;  /* of a one-dimensional array: 1 */
};

/* `type` is "<f4" or "<i4". False when the file is not such an array. */
static inline bool npy_read(const char *path, const char *type, struct npy_array *out)
{
    size_t size;
    *out = (struct npy_array){0};
    if (nosa_file_read(path, (size_t)1 << 28, &out->file, &size, NULL) != NOSA_OK)
        return false;
    if (size < 10 || memcmp(out->file, "\x93NUMPY\x01", 7) != 0)
        return false;
    size_t header = 10 + (unsigned char)out->file[8] + 256u * (unsigned char)out->file[9];
    const char *shape = strstr(out->file + 10, "'shape': (");
    char descr[32];
    snprintf(descr, sizeof descr, "'descr': '%s'", type);
    if (header > size || !shape || !strstr(out->file + 10, descr))
        return false;
    char *rest;
    out->rows = strtoll(shape + strlen("'shape': ("), &rest, 10);
    out->columns = 1;
    if (rest[0] == ',' && rest[1] == ' ')
        out->columns = strtoll(rest + 2, NULL, 10);
    out->data = out->file + header;
    return header + 4 * (size_t)(out->rows * out->columns) == size;
}

#endif
