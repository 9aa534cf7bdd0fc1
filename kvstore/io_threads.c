/*
 * Synchronous reads and writes on a few threads: the I/O method for machines that refuse io_uring,
 * and its yardstick in tests. Operations wait in a ring; each thread takes one, makes the system
 * call and puts the completion into a second ring. Both hold as many entries as operations may be
 * in flight, so neither can overflow.
 */
#include "io_internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define THREADS_MAX  16
#define CLOSE_WAIT_S 1 /* for system calls that do not return, at close */

struct threads_io {
    struct nosa_io io;
    /* fixed after open */
    int fd;
    uint32_t depth;
    uint32_t n_threads;
    pthread_t threads[THREADS_MAX];

    pthread_mutex_t mutex;
    pthread_cond_t work; /* operations came, or closing */
    pthread_cond_t done; /* completions came, or a thread ended */
    /* under mutex */
    bool closing;
    uint32_t running;                        /* threads that have not ended */
    uint32_t outstanding;                    /* taken and not reaped: at most depth */
    uint32_t waiting_first, waiting_count;   /* ring of operations */
    uint32_t finished_first, finished_count; /* ring of completions */
    struct nosa_io_op *waiting;              /* owned, [depth] */
    struct nosa_io_completion *finished;     /* owned, [depth] */
};

static void finish(struct threads_io *self, uint64_t tag, int64_t result)
{
    uint32_t place = (self->finished_first + self->finished_count++) % self->depth;
    self->finished[place] = (struct nosa_io_completion){.tag = tag, .result = result};
    pthread_cond_signal(&self->done);
}

static int64_t perform(int fd, const struct nosa_io_op *op)
{
    ssize_t result;
    do {
        switch (op->kind) {
        case NOSA_IO_READ:
            result = preadv(fd, op->vectors, (int)op->n_vectors, (off_t)op->offset);
            break;
        case NOSA_IO_WRITE:
            result = pwritev(fd, op->vectors, (int)op->n_vectors, (off_t)op->offset);
            break;
        default: result = fdatasync(fd); break;
        }
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -(int64_t)errno : (int64_t)result;
}

static void *serve(void *argument)
{
    struct threads_io *self = argument;

    pthread_mutex_lock(&self->mutex);
    for (;;) {
        while (self->waiting_count == 0 && !self->closing)
            pthread_cond_wait(&self->work, &self->mutex);
        if (self->waiting_count == 0)
            break;
        struct nosa_io_op op = self->waiting[self->waiting_first];
        self->waiting_first = (self->waiting_first + 1) % self->depth;
        self->waiting_count--;
        pthread_mutex_unlock(&self->mutex);
        int64_t result = perform(self->fd, &op);
        pthread_mutex_lock(&self->mutex);
        finish(self, op.tag, result);
    }
    self->running--;
    pthread_cond_broadcast(&self->done);
    pthread_mutex_unlock(&self->mutex);
    return NULL;
}

static enum nosa_status threads_resize(struct nosa_io *io, const struct nosa_io_options *options,
                                       struct nosa_error *error)
{
    struct threads_io *self = (struct threads_io *)io;
    return nosa_io_file_resize(options, self->fd, &self->io.bytes, error);
}

static uint32_t threads_submit(struct nosa_io *io, const struct nosa_io_op *ops, uint32_t n)
{
    struct threads_io *self = (struct threads_io *)io;
    uint32_t taken = 0;

    pthread_mutex_lock(&self->mutex);
    for (; taken < n && self->outstanding < self->depth; taken++) {
        self->waiting[(self->waiting_first + self->waiting_count++) % self->depth] = ops[taken];
        self->outstanding++;
        pthread_cond_signal(&self->work);
    }
    pthread_mutex_unlock(&self->mutex);
    return taken;
}

static struct timespec monotonic_after(uint64_t ns)
{
    uint64_t at = nosa_monotonic_ns();
    at = ns < UINT64_MAX - at ? at + ns : UINT64_MAX;
    return (struct timespec){.tv_sec = (time_t)(at / NOSA_NS_PER_S),
                             .tv_nsec = (long)(at % NOSA_NS_PER_S)};
}

static uint32_t threads_reap(struct nosa_io *io, struct nosa_io_completion *out, uint32_t max,
                             uint64_t wait_ns)
{
    struct threads_io *self = (struct threads_io *)io;
    uint32_t n = 0;

    pthread_mutex_lock(&self->mutex);
    if (self->finished_count == 0 && wait_ns > 0) {
        struct timespec until = monotonic_after(wait_ns);
        int code = 0;
        while (self->finished_count == 0 && code == 0)
            code = pthread_cond_timedwait(&self->done, &self->mutex, &until);
    }
    for (; n < max && self->finished_count > 0; n++) {
        out[n] = self->finished[self->finished_first];
        self->finished_first = (self->finished_first + 1) % self->depth;
        self->finished_count--;
        self->outstanding--;
    }
    pthread_mutex_unlock(&self->mutex);
    return n;
}

/* An operation that no thread has taken yet ends at once; the others go on. */
static void threads_cancel(struct nosa_io *io, uint64_t tag)
{
    struct threads_io *self = (struct threads_io *)io;

    pthread_mutex_lock(&self->mutex);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < self->waiting_count; i++) {
        struct nosa_io_op op = self->waiting[(self->waiting_first + i) % self->depth];
        if (op.tag == tag)
            finish(self, tag, -ECANCELED);
        else
            self->waiting[(self->waiting_first + kept++) % self->depth] = op;
    }
    self->waiting_count = kept;
    pthread_mutex_unlock(&self->mutex);
}

static void release(struct threads_io *self)
{
    close(self->fd);
    pthread_cond_destroy(&self->done);
    pthread_cond_destroy(&self->work);
    pthread_mutex_destroy(&self->mutex);
    free(self->finished);
    free(self->waiting);
    free(self);
}

static bool threads_close(struct nosa_io *io)
{
    struct threads_io *self = (struct threads_io *)io;
    struct timespec until = monotonic_after(CLOSE_WAIT_S * NOSA_NS_PER_S);
    int code = 0;

    pthread_mutex_lock(&self->mutex);
    self->closing = true;
    self->waiting_count = 0;
    pthread_cond_broadcast(&self->work);
    while (self->running > 0 && code == 0)
        code = pthread_cond_timedwait(&self->done, &self->mutex, &until);
    bool ended = self->running == 0;
    pthread_mutex_unlock(&self->mutex);
    for (uint32_t i = 0; i < self->n_threads; i++) {
        if (ended)
            pthread_join(self->threads[i], NULL);
        else
            pthread_detach(self->threads[i]);
    }
    /* A thread inside a system call that does not return still uses all of it. */
    if (ended)
        release(self);
    return ended;
}

static enum nosa_status start_threads(struct threads_io *self, struct nosa_error *error)
{
    sigset_t all, before;
    int code = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (self->n_threads < THREADS_MAX && self->n_threads < self->depth && code == 0) {
        self->running++;
        code = pthread_create(&self->threads[self->n_threads], NULL, serve, self);
        if (code == 0)
            self->n_threads++;
        else
            self->running--;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (self->n_threads == 0)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV file: no thread for I/O: %s",
                              strerror(code));
    return NOSA_OK;
}

static void init_locks(struct threads_io *self)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&self->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&self->work, &attributes);
    pthread_cond_init(&self->done, &attributes);
    pthread_condattr_destroy(&attributes);
}

static enum nosa_status threads_open(const struct nosa_io_method *method,
                                     const struct nosa_io_options *options, struct nosa_io **out,
                                     struct nosa_error *error)
{
    *out = NULL;
    struct threads_io *self = calloc(1, sizeof *self);
    struct nosa_io_op *waiting = calloc(options->depth, sizeof *waiting);
    struct nosa_io_completion *finished = calloc(options->depth, sizeof *finished);
    enum nosa_status status = NOSA_OK;
    int fd = -1;
    bool direct;
    uint64_t bytes;

    if (!self || !waiting || !finished)
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV file: no memory for %u operations",
                                options->depth);
    else
        status = nosa_io_file_open(options, &fd, &direct, &bytes, error);
    if (status != NOSA_OK) {
        free(finished);
        free(waiting);
        free(self);
        return status;
    }
    self->io = (struct nosa_io){.method = method, .direct = direct, .bytes = bytes};
    self->fd = fd;
    self->depth = options->depth;
    self->waiting = waiting;
    self->finished = finished;
    init_locks(self);
    status = start_threads(self, error);
    if (status != NOSA_OK) {
        release(self);
        return status;
    }
    *out = &self->io;
    return NOSA_OK;
}

const struct nosa_io_method nosa_io_threads = {
    .name = "threads",
    .open = threads_open,
    .resize = threads_resize,
    .submit = threads_submit,
    .reap = threads_reap,
    .cancel = threads_cancel,
    .close = threads_close,
};
