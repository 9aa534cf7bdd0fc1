/*
 * The I/O method of the kernel's ring: one ring per file, the file registered, and the pool
 * registered as fixed buffers where the memlock limit allows, so that the kernel neither looks the
 * file up nor pins pages for each operation. One system call submits a batch.
 *
 * The submission side of the ring is used by submit and cancel only (the caller's one thread), the
 * completion side by reap only, which waits with IORING_ENTER_EXT_ARG and therefore without an
 * entry of its own; so the two may run side by side.
 */
#include "io_internal.h"

#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"

#define FIXED_BUFFER_BYTES ((size_t)1 << 30) /* the kernel's limit for one registered buffer */
#define CANCEL_TAG         UINT64_MAX        /* completions of cancellations, dropped */
#define REAP_BATCH         64

struct uring_io {
    struct nosa_io io;
    /* fixed after open */
    int fd;
    bool fixed_file;
    uint8_t *pool; /* borrowed; registered in pieces of FIXED_BUFFER_BYTES when io.registered */
    size_t pool_bytes;
    struct io_uring ring;        /* submission side: the caller's thread; completion side: reap's */
    _Atomic(uint32_t) in_flight; /* taken and not reaped */
};

/* The registered buffer that holds all of `vector`, or -1. */
static int fixed_buffer(const struct uring_io *self, const struct iovec *vector)
{
    uintptr_t start = (uintptr_t)vector->iov_base, pool = (uintptr_t)self->pool;
    if (!self->io.registered || start < pool || start - pool + vector->iov_len > self->pool_bytes)
        return -1;
    size_t first = (start - pool) / FIXED_BUFFER_BYTES;
    size_t last = (start - pool + vector->iov_len - 1) / FIXED_BUFFER_BYTES;
    return first == last ? (int)first : -1;
}

static void prepare_transfer(const struct uring_io *self, struct io_uring_sqe *sqe, int fd,
                             const struct nosa_io_op *op)
{
    const struct iovec *vector = op->vectors;
    bool reads = op->kind == NOSA_IO_READ;
    int buffer = op->n_vectors == 1 ? fixed_buffer(self, vector) : -1;

    if (op->n_vectors > 1 && reads)
        io_uring_prep_readv(sqe, fd, vector, op->n_vectors, op->offset);
    else if (op->n_vectors > 1)
        io_uring_prep_writev(sqe, fd, vector, op->n_vectors, op->offset);
    else if (buffer >= 0 && reads)
        io_uring_prep_read_fixed(sqe, fd, vector->iov_base, (unsigned)vector->iov_len, op->offset,
                                 buffer);
    else if (buffer >= 0)
        io_uring_prep_write_fixed(sqe, fd, vector->iov_base, (unsigned)vector->iov_len, op->offset,
                                  buffer);
    else if (reads)
        io_uring_prep_read(sqe, fd, vector->iov_base, (unsigned)vector->iov_len, op->offset);
    else
        io_uring_prep_write(sqe, fd, vector->iov_base, (unsigned)vector->iov_len, op->offset);
}

static void send_on(struct uring_io *self)
{
    if (io_uring_sq_ready(&self->ring) > 0)
        io_uring_submit(&self->ring);
    self->io.held_back = io_uring_sq_ready(&self->ring) > 0;
}

static enum nosa_status uring_resize(struct nosa_io *io, const struct nosa_io_options *options,
                                     struct nosa_error *error)
{
    struct uring_io *self = (struct uring_io *)io;
    return nosa_io_file_resize(options, self->fd, &self->io.bytes, error);
}

static uint32_t uring_submit(struct nosa_io *io, const struct nosa_io_op *ops, uint32_t n)
{
    struct uring_io *self = (struct uring_io *)io;
    int fd = self->fixed_file ? 0 : self->fd;
    uint32_t taken = 0;

    for (; taken < n; taken++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&self->ring);
        if (!sqe)
            break;
        NOSA_ASSERT(ops[taken].tag != CANCEL_TAG);
        if (ops[taken].kind == NOSA_IO_FLUSH)
            io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        else
            prepare_transfer(self, sqe, fd, &ops[taken]);
        if (self->fixed_file)
            io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data64(sqe, ops[taken].tag);
        atomic_fetch_add(&self->in_flight, 1);
    }
    send_on(self);
    return taken;
}

static uint32_t uring_reap(struct nosa_io *io, struct nosa_io_completion *out, uint32_t max,
                           uint64_t wait_ns)
{
    struct uring_io *self = (struct uring_io *)io;
    struct io_uring_cqe *cqes[REAP_BATCH];
    unsigned limit = max < REAP_BATCH ? max : REAP_BATCH;

    unsigned count = io_uring_peek_batch_cqe(&self->ring, cqes, limit);
    if (count == 0 && wait_ns > 0) {
        struct __kernel_timespec wait = {.tv_sec = (int64_t)(wait_ns / NOSA_NS_PER_S),
                                         .tv_nsec = (long long)(wait_ns % NOSA_NS_PER_S)};
        io_uring_wait_cqe_timeout(&self->ring, &cqes[0], &wait);
        count = io_uring_peek_batch_cqe(&self->ring, cqes, limit);
    }
    uint32_t n = 0;
    for (unsigned i = 0; i < count; i++) {
        if (cqes[i]->user_data == CANCEL_TAG)
            continue;
        out[n++] = (struct nosa_io_completion){.tag = cqes[i]->user_data, .result = cqes[i]->res};
        atomic_fetch_sub(&self->in_flight, 1);
    }
    io_uring_cq_advance(&self->ring, count);
    return n;
}

static void uring_cancel(struct nosa_io *io, uint64_t tag)
{
    struct uring_io *self = (struct uring_io *)io;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&self->ring);
    if (!sqe)
        return;
    io_uring_prep_cancel64(sqe, tag, 0);
    io_uring_sqe_set_data64(sqe, CANCEL_TAG);
    send_on(self);
}

/* The kernel takes the ring apart later, and the registered file, with its lock, lives on until
 * then. That is right while operations are in flight (they may still write), else the lock ends
 * here. */
static bool uring_close(struct nosa_io *io)
{
    struct uring_io *self = (struct uring_io *)io;
    bool ended = atomic_load(&self->in_flight) == 0;

    if (ended)
        flock(self->fd, LOCK_UN);
    io_uring_queue_exit(&self->ring);
    close(self->fd);
    free(self);
    return ended;
}

static enum nosa_status refuse_ring(int code, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_UNSUPPORTED, "io_uring is refused here (%s)", strerror(code));
}

static enum nosa_status start_ring(struct uring_io *self, uint32_t depth, struct nosa_error *error)
{
    struct io_uring_params parameters = {
        .flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = 4 * depth,
    };
    int code = io_uring_queue_init_params(2 * depth, &self->ring, &parameters);
    if (code < 0)
        return refuse_ring(-code, error);
    if (!(parameters.features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(&self->ring);
        return refuse_ring(ENOSYS, error);
    }
    return NOSA_OK;
}

static int register_pool(struct uring_io *self)
{
    size_t n = (self->pool_bytes + FIXED_BUFFER_BYTES - 1) / FIXED_BUFFER_BYTES;
    struct iovec *pieces = calloc(n, sizeof *pieces);
    if (!pieces)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        size_t left = self->pool_bytes - i * FIXED_BUFFER_BYTES;
        pieces[i].iov_base = self->pool + i * FIXED_BUFFER_BYTES;
        pieces[i].iov_len = left < FIXED_BUFFER_BYTES ? left : FIXED_BUFFER_BYTES;
    }
    int code = io_uring_register_buffers(&self->ring, pieces, (unsigned)n);
    free(pieces);
    return code;
}

/* Both registrations save time only; the ring works without. */
static void register_all(struct uring_io *self)
{
    self->fixed_file = io_uring_register_files(&self->ring, &self->fd, 1) == 0;
    if (self->pool_bytes == 0)
        return;
    int code = register_pool(self);
    self->io.registered = code == 0;
    if (code != 0) {
        char pool[NOSA_SIZE_TEXT_MAX], limit[NOSA_SIZE_TEXT_MAX];
        struct rlimit memlock = {0};
        getrlimit(RLIMIT_MEMLOCK, &memlock);
        nosa_log(
            NOSA_LOG_WARN, "kvstore",
            "the host KV pool of %s cannot be registered with io_uring (%s; memlock limit %s): "
            "every transfer pins its pages anew",
            nosa_size_format(self->pool_bytes, pool), strerror(-code),
            memlock.rlim_cur == RLIM_INFINITY ? "none" : nosa_size_format(memlock.rlim_cur, limit));
    }
}

static enum nosa_status uring_open(const struct nosa_io_method *method,
                                   const struct nosa_io_options *options, struct nosa_io **out,
                                   struct nosa_error *error)
{
    *out = NULL;
    struct uring_io *self = calloc(1, sizeof *self);
    if (!self)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV file: no memory for a ring");
    enum nosa_status status = start_ring(self, options->depth, error);
    if (status != NOSA_OK)
        goto failed;
    bool direct;
    uint64_t bytes;
    status = nosa_io_file_open(options, &self->fd, &direct, &bytes, error);
    if (status != NOSA_OK) {
        io_uring_queue_exit(&self->ring);
        goto failed;
    }
    self->io = (struct nosa_io){.method = method, .direct = direct, .bytes = bytes};
    self->pool = options->pool;
    self->pool_bytes = options->pool ? options->pool_bytes : 0;
    register_all(self);
    *out = &self->io;
    return NOSA_OK;

failed:
    free(self);
    return status;
}

const struct nosa_io_method nosa_io_uring = {
    .name = "io_uring",
    .open = uring_open,
    .resize = uring_resize,
    .submit = uring_submit,
    .reap = uring_reap,
    .cancel = uring_cancel,
    .close = uring_close,
};
