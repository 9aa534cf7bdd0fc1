#include "base/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/*
 * offset 0: "\x93NUMPY", version 1, 0; offset 8: uint16 length of the rest (118); offset 10: the
 * description, padded with blanks and ended by a newline; 128: values. The size is fixed, so that
 * the row count can be written afterwards.
 */
#define HEADER_SIZE 128
#define PREFIX_SIZE 10

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rows are written as they lie in memory");
_Static_assert(sizeof(float) == 4, "float32");

static enum nosa_status set_io_error(struct nosa_error *error, const char *path, const char *what)
{
    return nosa_error_set(error, NOSA_IO_ERROR, "%s: %s: %s", path, what, strerror(errno));
}

static enum nosa_status write_header(struct nosa_npy_writer *writer, struct nosa_error *error)
{
    char header[HEADER_SIZE + 1];
    char description[HEADER_SIZE - PREFIX_SIZE];
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = HEADER_SIZE - PREFIX_SIZE;
    header[9] = 0;
    snprintf(description, sizeof description,
             "{'descr': '<f4', 'fortran_order': False, 'shape': (%" PRIu64 ", %" PRIu64 "), }",
             writer->rows, writer->columns);
    snprintf(header + PREFIX_SIZE, sizeof header - PREFIX_SIZE, "%-*s\n",
             HEADER_SIZE - PREFIX_SIZE - 1, description);
    if (fseek(writer->file, 0, SEEK_SET) != 0 ||
        fwrite(header, 1, HEADER_SIZE, writer->file) != HEADER_SIZE)
        return set_io_error(error, writer->path, "cannot write");
    return NOSA_OK;
}

static enum nosa_status set_create_error(struct nosa_error *error, const char *path)
{
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: cannot create: %s", path,
                          strerror(errno));
}

enum nosa_status nosa_npy_check(const char *path, struct nosa_error *error)
{
    int descriptor = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    bool made = false;
    if (descriptor < 0 && errno == ENOENT) {
        descriptor = open(path, O_WRONLY | O_CLOEXEC | O_CREAT | O_EXCL, 0666);
        made = descriptor >= 0;
    }
    if (descriptor < 0)
        return set_create_error(error, path);
    close(descriptor);
    if (made)
        unlink(path);
    return NOSA_OK;
}

enum nosa_status nosa_npy_open(struct nosa_npy_writer *writer, const char *path, uint64_t columns,
                               struct nosa_error *error)
{
    *writer = (struct nosa_npy_writer){.path = path, .columns = columns};
    writer->file = fopen(path, "wbe");
    if (!writer->file)
        return set_create_error(error, path);
    enum nosa_status status = write_header(writer, error);
    if (status != NOSA_OK) {
        fclose(writer->file);
        writer->file = NULL;
    }
    return status;
}

enum nosa_status nosa_npy_append(struct nosa_npy_writer *writer, const float *values, uint64_t rows,
                                 struct nosa_error *error)
{
    NOSA_ASSERT(writer->file);
    for (uint64_t row = 0; row < rows; row++) {
        const float *start = values + row * writer->columns;
        if (fwrite(start, sizeof *start, writer->columns, writer->file) != writer->columns)
            return set_io_error(error, writer->path, "cannot write");
        writer->rows++;
    }
    return NOSA_OK;
}

enum nosa_status nosa_npy_close(struct nosa_npy_writer *writer, struct nosa_error *error)
{
    if (!writer->file)
        return NOSA_OK;
    enum nosa_status status = write_header(writer, error);
    if (fclose(writer->file) != 0 && status == NOSA_OK)
        status = set_io_error(error, writer->path, "cannot write");
    writer->file = NULL;
    return status;
}
