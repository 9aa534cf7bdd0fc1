#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buffer.h"

static enum nosa_status set_errno(struct nosa_error *error, const char *path, const char *what,
                                  int number)
{
    enum nosa_status status = NOSA_IO_ERROR;
    if (number == ENOENT || number == ENOTDIR)
        status = NOSA_NOT_FOUND;
    else if (number == ENOMEM)
        status = NOSA_OUT_OF_MEMORY;
    return nosa_error_set(error, status, "%s: %s: %s", path, what, strerror(number));
}

/* Opens a regular file for reading; *descriptor is the caller's to close on success. */
static enum nosa_status open_regular(const char *path, int *descriptor, size_t *size,
                                     struct nosa_error *error)
{
    /* O_NONBLOCK: opening a FIFO that nobody writes to must fail below, not wait here. */
    int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (opened < 0)
        return set_errno(error, path, "cannot open", errno);
    struct stat info;
    enum nosa_status status = NOSA_OK;
    if (fstat(opened, &info) != 0)
        status = set_errno(error, path, "cannot stat", errno);
    else if (S_ISDIR(info.st_mode))
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: is a directory", path);
    else if (!S_ISREG(info.st_mode))
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not a regular file", path);
    if (status != NOSA_OK) {
        close(opened);
        return status;
    }
    *descriptor = opened;
    *size = (size_t)info.st_size;
    return NOSA_OK;
}

/* Reads until `capacity` bytes or the end of the file; *length is what came. */
static enum nosa_status read_up_to(int descriptor, const char *path, char *bytes, size_t capacity,
                                   size_t *length, struct nosa_error *error)
{
    *length = 0;
    while (*length < capacity) {
        ssize_t count = read(descriptor, bytes + *length, capacity - *length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return set_errno(error, path, "cannot read", errno);
        if (count == 0)
            break;
        *length += (size_t)count;
    }
    return NOSA_OK;
}

enum nosa_status nosa_file_read(const char *path, size_t size_max, char **data, size_t *size,
                                struct nosa_error *error)
{
    int descriptor = -1;
    size_t expected = 0;
    size_t length = 0;
    char *bytes = NULL;
    *data = NULL;
    *size = 0;
    NOSA_TRY(open_regular(path, &descriptor, &expected, error));
    enum nosa_status status = NOSA_OK;
    if (expected > size_max || expected == SIZE_MAX) {
        status =
            nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                           "%s: %zu bytes is more than the %zu allowed", path, expected, size_max);
        goto cleanup;
    }
    bytes = malloc(expected + 1);
    if (!bytes) {
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory for %zu bytes", path,
                                expected);
        goto cleanup;
    }
    status = read_up_to(descriptor, path, bytes, expected, &length, error);
    if (status == NOSA_OK && length < expected)
        status = nosa_error_set(error, NOSA_IO_ERROR, "%s: ended after %zu of %zu bytes", path,
                                length, expected);
    if (status != NOSA_OK)
        goto cleanup;
    bytes[length] = '\0';
    *data = bytes;
    *size = length;
    bytes = NULL;
cleanup:
    free(bytes);
    close(descriptor);
    return status;
}

/* What is no file on a disk says nothing of its size: reads to its end, at most `size_max` bytes.
 */
static enum nosa_status read_stream(int descriptor, const char *name, size_t size_max,
                                    struct nosa_buffer *bytes, struct nosa_error *error)
{
    char chunk[16384];
    for (;;) {
        ssize_t count = read(descriptor, chunk, sizeof chunk);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return set_errno(error, name, "cannot read", errno);
        if (count == 0)
            return NOSA_OK;
        if ((size_t)count > size_max - bytes->size)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "%s: more than the %zu bytes allowed", name, size_max);
        if (nosa_buffer_append(bytes, chunk, (size_t)count) != NOSA_OK)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory after %zu bytes", name,
                                  bytes->size);
    }
}

enum nosa_status nosa_file_read_input(const char *path, size_t size_max, char **data, size_t *size,
                                      struct nosa_error *error)
{
    bool standard = strcmp(path, "-") == 0;
    const char *name = standard ? "standard input" : path;
    struct nosa_buffer bytes = {0};
    struct stat info;
    if (!standard && stat(path, &info) == 0 && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)))
        return nosa_file_read(path, size_max, data, size, error);
    *data = NULL;
    *size = 0;
    int descriptor = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return set_errno(error, name, "cannot open", errno);
    enum nosa_status status = read_stream(descriptor, name, size_max, &bytes, error);
    if (status == NOSA_OK) {
        *size = bytes.size;
        *data = nosa_buffer_take(&bytes);
        if (!*data)
            status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory", name);
    }
    nosa_buffer_free(&bytes);
    if (!standard)
        close(descriptor);
    return status;
}

enum nosa_status nosa_file_map_open(struct nosa_file_map *map, const char *path,
                                    struct nosa_error *error)
{
    int descriptor = -1;
    size_t size = 0;
    map->data = NULL;
    map->size = 0;
    NOSA_TRY(open_regular(path, &descriptor, &size, error));
    enum nosa_status status = NOSA_OK;
    if (size > 0) {
        void *address = mmap(NULL, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (address == MAP_FAILED) {
            status = set_errno(error, path, "cannot map", errno);
        } else {
            map->data = address;
            map->size = size;
        }
    }
    close(descriptor);
    return status;
}

void nosa_file_map_close(struct nosa_file_map *map)
{
    if (map->data)
        munmap((void *)map->data, map->size);
    map->data = NULL;
    map->size = 0;
}
