#include "io_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/size.h"

#define LOCK_TRIES    50
#define LOCK_PAUSE_MS 20

static enum nosa_status refuse_directory(const char *directory, const char *what, int code,
                                         struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "KV directory '%s' %s: %s", directory, what,
                          strerror(code));
}

static enum nosa_status refuse_file(const struct nosa_io_options *options, const char *what,
                                    int code, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_IO_ERROR, "KV file '%s/%s': %s: %s", options->directory,
                          options->name, what, strerror(code));
}

static enum nosa_status open_directory(const char *directory, int *fd, struct nosa_error *error)
{
    struct stat status;
    if (stat(directory, &status) != 0) {
        if (errno != ENOENT)
            return refuse_directory(directory, "cannot be used", errno, error);
        if (mkdir(directory, 0700) != 0 && errno != EEXIST)
            return refuse_directory(directory, "cannot be made", errno, error);
    } else if (!S_ISDIR(status.st_mode)) {
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "KV directory '%s' is not a directory",
                              directory);
    }
    *fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0)
        return refuse_directory(directory, "cannot be used", errno, error);
    return NOSA_OK;
}

/* Opens the file past the page cache where that is possible. */
static enum nosa_status open_file(const struct nosa_io_options *options, int directory_fd, int *fd,
                                  bool *direct, uint64_t *bytes, struct nosa_error *error)
{
    const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    struct stat status;

    *direct = true;
    *fd = openat(directory_fd, options->name, flags | O_CREAT | O_DIRECT, 0600);
    if (*fd < 0 && errno == EINVAL) {
        *direct = false;
        *fd = openat(directory_fd, options->name, flags | O_CREAT, 0600);
    }
    if (*fd < 0)
        return refuse_directory(options->directory,
                                errno == EACCES || errno == EROFS ? "is not writable"
                                                                  : "cannot hold the KV file",
                                errno, error);
    if (fstat(*fd, &status) != 0)
        return refuse_file(options, "cannot be examined", errno, error);
    if (!S_ISREG(status.st_mode))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "KV file '%s/%s' is not a regular file",
                              options->directory, options->name);
    *bytes = (uint64_t)status.st_size;
    if (!*direct)
        nosa_log(
            NOSA_LOG_WARN, "kvstore",
            "the file system of '%s' has no direct I/O: the KV file goes through the page cache",
            options->directory);
    return NOSA_OK;
}

/* After a process was killed the kernel keeps its lock until the last operations of its ring have
 * come back, which takes a moment. */
static enum nosa_status lock_file(const struct nosa_io_options *options, int fd,
                                  struct nosa_error *error)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000000L};
    int code = 0;

    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return NOSA_OK;
        code = errno;
        if (code != EWOULDBLOCK && code != EINTR)
            return refuse_file(options, "cannot be locked", code, error);
        nanosleep(&pause, NULL);
    }
    return nosa_error_set(error, NOSA_UNAVAILABLE, "KV file '%s/%s' is in use by another process",
                          options->directory, options->name);
}

static enum nosa_status refuse_size(const struct nosa_io_options *options, uint64_t available,
                                    struct nosa_error *error)
{
    char wanted[NOSA_SIZE_TEXT_MAX], free_text[NOSA_SIZE_TEXT_MAX];
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "a KV file of %s does not fit into '%s': %s are free",
                          nosa_size_format(options->bytes, wanted), options->directory,
                          nosa_size_format(available, free_text));
}

static uint64_t free_bytes(int fd)
{
    struct statvfs volume;
    return fstatvfs(fd, &volume) == 0 ? (uint64_t)volume.f_bavail * volume.f_frsize : 0;
}

/* All blocks of the file exist afterwards, so that a write cannot find the disk full. */
static enum nosa_status size_file(const struct nosa_io_options *options, int fd,
                                  struct nosa_error *error)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return refuse_file(options, "cannot be examined", errno, error);
    uint64_t available = free_bytes(fd) + (uint64_t)status.st_blocks * 512;
    if (options->bytes > available || options->bytes > INT64_MAX)
        return refuse_size(options, available, error);
    if ((uint64_t)status.st_size > options->bytes && ftruncate(fd, (off_t)options->bytes) != 0)
        return refuse_file(options, "cannot be cut", errno, error);
    if (fallocate(fd, 0, 0, (off_t)options->bytes) == 0)
        return NOSA_OK;
    if (errno == EOPNOTSUPP && ftruncate(fd, (off_t)options->bytes) == 0)
        return NOSA_OK;
    int code = errno;
    if ((uint64_t)status.st_size < options->bytes && ftruncate(fd, status.st_size) != 0)
        nosa_log(NOSA_LOG_WARN, "kvstore", "KV file '%s/%s' keeps a part of its new size: %s",
                 options->directory, options->name, strerror(errno));
    if (code == ENOSPC || code == EDQUOT)
        return refuse_size(options, available, error);
    return refuse_file(options, "cannot be given its size", code, error);
}

/* A new file's name must outlive a loss of power as its content does. */
static enum nosa_status sync_name(const struct nosa_io_options *options, int fd,
                                  struct nosa_error *error)
{
    int directory_fd = open(options->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = directory_fd < 0 || fsync(fd) != 0 || fsync(directory_fd) != 0;
    int code = errno;
    if (directory_fd >= 0)
        close(directory_fd);
    return failed ? refuse_file(options, "cannot be made to last", code, error) : NOSA_OK;
}

enum nosa_status nosa_io_file_resize(const struct nosa_io_options *options, int fd, uint64_t *bytes,
                                     struct nosa_error *error)
{
    char path[PATH_MAX];
    enum nosa_status status = size_file(options, fd, error);

    if (status == NOSA_OK && *bytes == 0)
        status = sync_name(options, fd, error);
    if (status == NOSA_OK)
        *bytes = options->bytes;
    else if (*bytes == 0 && (size_t)snprintf(path, sizeof path, "%s/%s", options->directory,
                                             options->name) < sizeof path)
        unlink(path);
    return status;
}

enum nosa_status nosa_io_file_open(const struct nosa_io_options *options, int *fd, bool *direct,
                                   uint64_t *bytes, struct nosa_error *error)
{
    int directory_fd = -1;

    *fd = -1;
    enum nosa_status status = open_directory(options->directory, &directory_fd, error);
    if (status == NOSA_OK)
        status = open_file(options, directory_fd, fd, direct, bytes, error);
    if (status == NOSA_OK)
        status = lock_file(options, *fd, error);
    if (status != NOSA_OK && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    if (directory_fd >= 0)
        close(directory_fd);
    return status;
}

enum nosa_status nosa_io_free_bytes(const char *directory, const char *name, uint64_t *bytes,
                                    struct nosa_error *error)
{
    char path[PATH_MAX];
    struct stat status;
    struct statvfs volume;

    *bytes = 0;
    if (stat(directory, &status) == 0 && !S_ISDIR(status.st_mode))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "KV directory '%s' is not a directory",
                              directory);
    if ((size_t)snprintf(path, sizeof path, "%s", directory) >= sizeof path)
        return refuse_directory(directory, "cannot be used", ENAMETOOLONG, error);
    if (statvfs(path, &volume) != 0 && (errno != ENOENT || statvfs(dirname(path), &volume) != 0))
        return refuse_directory(directory, "cannot be used", errno, error);
    *bytes = (uint64_t)volume.f_bavail * volume.f_frsize;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", directory, name) < sizeof path &&
        stat(path, &status) == 0 && S_ISREG(status.st_mode))
        *bytes += (uint64_t)status.st_blocks * 512;
    return NOSA_OK;
}

enum nosa_status nosa_io_open_auto(const struct nosa_io_options *options, struct nosa_io **out,
                                   struct nosa_error *error)
{
    struct nosa_error refusal = {0};
    enum nosa_status status = nosa_io_uring.open(&nosa_io_uring, options, out, &refusal);
    if (status == NOSA_UNSUPPORTED) {
        nosa_log(NOSA_LOG_WARN, "kvstore", "%s: the KV file is read and written by threads instead",
                 refusal.text);
        return nosa_io_threads.open(&nosa_io_threads, options, out, error);
    }
    if (status != NOSA_OK)
        return nosa_error_set(error, status, "%s", refusal.text);
    return NOSA_OK;
}
