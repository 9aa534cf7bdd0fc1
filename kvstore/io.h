/*
 * Reading and writing one file asynchronously, behind a table of functions, so that the extent
 * store neither knows how nor where: a ring of the kernel (io_uring.c, the only file that knows
 * liburing), synchronous calls on threads (io_threads.c), or a simulated disk of the tests.
 *
 * An open file takes operations with a tag and gives each back once, as a completion. Nothing is
 * ordered but by waiting: a flush covers the writes whose completions were taken before it was
 * submitted. Whoever submits keeps operations, vectors and memory until the completion; an
 * operation that was cancelled completes too.
 *
 * Threads: submit, cancel, open and close belong to one thread at a time (the extent store's
 * mutex); reap may run beside them on another thread, one at a time. Only open allocates.
 */
#ifndef NOSA_KVSTORE_IO_H
#define NOSA_KVSTORE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/status.h"

/* Offsets, lengths and addresses of every read and write are multiples of this, as direct I/O
 * wants on every device in use. */
#define NOSA_IO_ALIGNMENT 4096

enum nosa_io_kind {
    NOSA_IO_READ = 0,
    NOSA_IO_WRITE = 1,
    NOSA_IO_FLUSH = 2, /* what was written is safe from a loss of power; no vectors */
};

struct nosa_io_op {
    enum nosa_io_kind kind;
    uint32_t n_vectors;
    const struct iovec *vectors; /* borrowed until the completion, like the memory they name */
    uint64_t offset;             /* bytes from the start of the file */
    uint64_t tag;                /* the caller's; comes back in the completion */
};

struct nosa_io_completion {
    uint64_t tag;
    int64_t result; /* bytes moved, which may be fewer than asked for, or a negative errno */
};

struct nosa_io_options {
    const char *directory; /* must exist or be creatable in its parent */
    const char *name;      /* of the file in it */
    uint64_t bytes;        /* size that resize gives the file */
    uint32_t depth;        /* operations in flight at most */
    void *pool;            /* borrowed until close: memory that most transfers use; may be NULL */
    size_t pool_bytes;
};

/* An open file. A method keeps more behind it. */
struct nosa_io {
    const struct nosa_io_method *method; /* borrowed */
    bool direct;                         /* past the page cache */
    bool registered;                     /* the pool is known to the kernel */
    uint64_t bytes;                      /* size of the file; changed by resize */
    bool held_back; /* changed by submit: operations it took are not at the device yet, and another
                     * submit (n may be 0) within a millisecond or so sends them on */
};

struct nosa_io_method {
    const char *name; /* "io_uring", "threads" */
    void *context;    /* the method's own; borrowed */

    /*
     * Opens or creates the file for this process alone, its content untouched. Blocks. Every error
     * names the directory or file:
     *   INVALID_ARGUMENT    the directory is none, cannot be made or written
     *   UNAVAILABLE         another process has the file open (it was tried for a second)
     *   UNSUPPORTED         the method itself is refused here, another one may work
     *   IO_ERROR, OUT_OF_MEMORY
     * What degrades without failing (no direct I/O, memory that cannot be registered) is logged.
     */
    enum nosa_status (*open)(const struct nosa_io_method *method,
                             const struct nosa_io_options *options, struct nosa_io **out,
                             struct nosa_error *error);

    /* Gives the file the size options->bytes, all of it allocated; space that is added reads as
     * zero. Blocks; nothing is in flight. INVALID_ARGUMENT: larger than the free space, and the
     * file is as it was (an empty one is removed); IO_ERROR. */
    enum nosa_status (*resize)(struct nosa_io *io, const struct nosa_io_options *options,
                               struct nosa_error *error);

    /* Starts ops[0 .. n) in one go; returns how many were taken, in order: fewer, or none, when it
     * cannot take more now (the caller tries again later). The ops themselves are copied. */
    uint32_t (*submit)(struct nosa_io *io, const struct nosa_io_op *ops, uint32_t n);

    /* Takes up to `max` completions; waits up to wait_ns for the first one. 0 when none came; may
     * return early with 0. */
    uint32_t (*reap)(struct nosa_io *io, struct nosa_io_completion *out, uint32_t max,
                     uint64_t wait_ns);

    /* Asks for an early end of the operation with `tag`, which completes as -ECANCELED or as if it
     * had not been asked. A hint: may do nothing. */
    void (*cancel)(struct nosa_io *io, uint64_t tag);

    /* Closes the file. Operations in flight should have completed. True when nothing touches their
     * memory from now on; false when a device has stopped answering and operations were given up.
     */
    bool (*close)(struct nosa_io *io);
};

extern const struct nosa_io_method nosa_io_uring;
extern const struct nosa_io_method nosa_io_threads;

/*
 * Opens by io_uring, or, when that is refused, by threads, with a warning in the log that says why.
 * Errors as nosa_io_method.open, never UNSUPPORTED.
 */
enum nosa_status nosa_io_open_auto(const struct nosa_io_options *options, struct nosa_io **out,
                                   struct nosa_error *error);

/* Bytes that a file `name` in `directory` could have: what is free and what it has already. For a
 * directory that is not there, its parent counts. Errors as open. */
enum nosa_status nosa_io_free_bytes(const char *directory, const char *name, uint64_t *bytes,
                                    struct nosa_error *error);

#endif
