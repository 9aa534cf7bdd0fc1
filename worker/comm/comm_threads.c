/*
 * Collectives between threads of one process, in shared memory.
 *
 * A call publishes what this rank brings (operation, size, address) and meets the others at a
 * barrier; then every rank reads the others' memory, and a second barrier lets them go on. An
 * all-reduce sums one slice per rank, in rank order, into a buffer of the group, from which
 * everyone copies after the second barrier: each element is summed once, so all hold the same
 * bits. What is published is compared after the first barrier, by all ranks alike.
 *
 * `phase` is the barriers' generation, with ABORTED as its top bit: a barrier is either passed by
 * all ranks or, after an abort, by none. A rank that leaves a call early waits until no other rank
 * reads memory (`readers`), for its caller may free what it brought.
 */
#include "comm/comm.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ABORTED     UINT32_C(0x80000000)
#define CACHE_LINE  64
/* Pauses at a barrier before sleeping: up to some tens of microseconds, the ranks' skew inside a
 * layer. Each rank halves its own number when spinning did not help (the cores are shared), and
 * grows it while it does. */
#define SPINS_MAX   2000
#define SPINS_MIN   20
#define SLICE_ALIGN 16   /* floats: ranks do not write to the same cache line */
#define SUM_CHUNK   2048 /* floats: the sum stays in the first cache while ranks are added */

enum operation {
    OPERATION_ALL_REDUCE,
    OPERATION_ALL_GATHER,
    OPERATION_BROADCAST,
};

/* What a rank brings to the current call. */
struct offer {
    enum operation operation;
    int32_t root;
    size_t bytes;
    const void *data;
};

struct member {
    struct nosa_comm comm; /* first: the handle given out */
    struct group *group;   /* shared: ends with its last member */
    int32_t spins;         /* owned by the rank's thread; 0: never spins */
    /* Owned by the rank's thread until it arrives at a call's first barrier, then read by all until
     * the second. */
    _Alignas(CACHE_LINE) struct offer offer;
};

struct group {
    /* fixed after create */
    int32_t n_ranks;
    size_t bytes_max;
    float *sum;             /* owned: [bytes_max / 4]; written between a call's barriers */
    struct member *members; /* owned: [n_ranks] */

    /* shared by all threads */
    _Alignas(CACHE_LINE) _Atomic uint32_t phase;
    _Alignas(CACHE_LINE) _Atomic uint32_t arrived;
    _Alignas(CACHE_LINE) _Atomic uint32_t sleepers; /* in or on their way into a wait for phase */
    _Alignas(CACHE_LINE) _Atomic uint32_t readers;  /* ranks that read others' memory */
    _Alignas(CACHE_LINE) _Atomic int32_t members_left;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static bool is_aborted(struct group *group)
{
    return atomic_load(&group->phase) & ABORTED;
}

/* ---- barrier ------------------------------------------------------------------------------- */

/* The last rank at the barrier: everyone may go on, unless the group was aborted. */
static enum nosa_status open_barrier(struct group *group, uint32_t phase)
{
    atomic_store(&group->arrived, 0);
    uint32_t next = (phase + 1) & ~ABORTED;
    if (!atomic_compare_exchange_strong(&group->phase, &phase, next))
        return NOSA_CANCELLED;
    if (atomic_load(&group->sleepers) > 0)
        futex_wake_all(&group->phase);
    return NOSA_OK;
}

/* Spins while `phase` stands and this rank's patience lasts; returns the phase seen last. */
static uint32_t spin(struct member *member, uint32_t phase)
{
    uint32_t now = phase;

    if (member->spins == 0)
        return now;
    for (int32_t i = 0; i < member->spins && now == phase; i++) {
        pause_briefly();
        now = atomic_load(&member->group->phase);
    }
    if (now == phase)
        member->spins = member->spins / 2 > SPINS_MIN ? member->spins / 2 : SPINS_MIN;
    else
        member->spins = member->spins < SPINS_MAX / 2 ? member->spins * 2 : SPINS_MAX;
    return now;
}

/* Waits until all ranks are here: spins for the usual skew, then sleeps. */
static enum nosa_status barrier(struct member *member)
{
    struct group *group = member->group;
    uint32_t phase = atomic_load(&group->phase);

    if (phase & ABORTED)
        return NOSA_CANCELLED;
    if (atomic_fetch_add(&group->arrived, 1) + 1 == (uint32_t)group->n_ranks)
        return open_barrier(group, phase);
    uint32_t now = spin(member, phase);
    if (now == phase) {
        atomic_fetch_add(&group->sleepers, 1);
        while ((now = atomic_load(&group->phase)) == phase)
            futex_wait(&group->phase, phase);
        atomic_fetch_sub(&group->sleepers, 1);
    }
    /* An abort after the barrier opened leaves it passed; the next one is not. */
    return (now & ~ABORTED) == phase ? NOSA_CANCELLED : NOSA_OK;
}

/* ---- abort --------------------------------------------------------------------------------- */

static void abort_group(struct group *group)
{
    atomic_fetch_or(&group->phase, ABORTED);
    futex_wake_all(&group->phase);
}

/* From here to end_reading other ranks' memory may be read: they do not leave meanwhile. */
static enum nosa_status begin_reading(struct group *group)
{
    atomic_fetch_add(&group->readers, 1);
    return is_aborted(group) ? NOSA_CANCELLED : NOSA_OK;
}

static void end_reading(struct group *group)
{
    atomic_fetch_sub(&group->readers, 1);
    if (is_aborted(group))
        futex_wake_all(&group->readers);
}

/* The way out of a call of an aborted group. */
static enum nosa_status leave_aborted(struct group *group, enum nosa_status status)
{
    uint32_t readers;
    while ((readers = atomic_load(&group->readers)) > 0)
        futex_wait(&group->readers, readers);
    return status;
}

/* ---- collectives --------------------------------------------------------------------------- */

static struct member *member_of(struct nosa_comm *comm)
{
    return (struct member *)comm;
}

static bool offers_agree(const struct group *group)
{
    const struct offer *first = &group->members[0].offer;
    for (int32_t rank = 1; rank < group->n_ranks; rank++) {
        const struct offer *offer = &group->members[rank].offer;
        if (offer->operation != first->operation || offer->bytes != first->bytes ||
            offer->root != first->root)
            return false;
    }
    return true;
}

static enum nosa_status check_offer(const struct group *group, const struct offer *offer)
{
    if (offer->bytes > group->bytes_max || offer->root < 0 || offer->root >= group->n_ranks)
        return NOSA_INVALID_ARGUMENT;
    return NOSA_OK;
}

/* Elements [first, first + n) of `sum` become the sum over ranks, in rank order. */
static void sum_slice(const struct group *group, size_t first, size_t n)
{
    float *restrict sum = group->sum;

    for (size_t chunk = first; chunk < first + n; chunk += SUM_CHUNK) {
        size_t end = chunk + SUM_CHUNK < first + n ? chunk + SUM_CHUNK : first + n;
        const float *restrict x = group->members[0].offer.data;
        memcpy(sum + chunk, x + chunk, (end - chunk) * sizeof *sum);
        for (int32_t rank = 1; rank < group->n_ranks; rank++) {
            x = group->members[rank].offer.data;
            for (size_t i = chunk; i < end; i++)
                sum[i] += x[i];
        }
    }
}

/* This rank's share of an all-reduce. */
static void reduce_share(const struct member *member)
{
    const struct group *group = member->group;
    size_t n = member->offer.bytes / sizeof(float);
    size_t share = (n + (size_t)group->n_ranks - 1) / (size_t)group->n_ranks;
    share = (share + SLICE_ALIGN - 1) / SLICE_ALIGN * SLICE_ALIGN;
    size_t first = share * (size_t)member->comm.rank;
    if (first < n)
        sum_slice(group, first, n - first < share ? n - first : share);
}

static void copy_bytes(void *to, const void *from, size_t bytes)
{
    if (bytes > 0 && to != from)
        memmove(to, from, bytes);
}

/* Reads the others' memory, as the operation wants it. */
static void read_others(const struct member *member, void *out)
{
    const struct group *group = member->group;
    const struct offer *offer = &member->offer;

    switch (offer->operation) {
    case OPERATION_ALL_REDUCE: reduce_share(member); break;
    case OPERATION_ALL_GATHER:
        for (int32_t rank = 0; rank < group->n_ranks; rank++)
            copy_bytes((char *)out + (size_t)rank * offer->bytes, group->members[rank].offer.data,
                       offer->bytes);
        break;
    case OPERATION_BROADCAST:
        copy_bytes(out, group->members[offer->root].offer.data, offer->bytes);
        break;
    }
}

/* One call of any kind; `out` is where this rank's result goes. */
static enum nosa_status run_collective(struct nosa_comm *comm, struct offer offer, void *out)
{
    struct member *member = member_of(comm);
    struct group *group = member->group;

    if (is_aborted(group))
        return leave_aborted(group, NOSA_CANCELLED);
    member->offer = offer;
    enum nosa_status status = barrier(member);
    if (status != NOSA_OK)
        return leave_aborted(group, status);
    if (!offers_agree(group)) {
        abort_group(group);
        return leave_aborted(group, NOSA_INTERNAL);
    }
    /* The same on every rank; all go on to the second barrier, so that offers stay while read. */
    enum nosa_status checked = check_offer(group, &offer);
    if (checked == NOSA_OK) {
        status = begin_reading(group);
        if (status == NOSA_OK)
            read_others(member, out);
        end_reading(group);
        if (status != NOSA_OK)
            return leave_aborted(group, status);
    }
    status = barrier(member);
    if (status != NOSA_OK)
        return leave_aborted(group, status);
    if (checked == NOSA_OK && offer.operation == OPERATION_ALL_REDUCE)
        copy_bytes(out, group->sum, offer.bytes);
    return checked;
}

/* A group of one: nothing to exchange. */
static enum nosa_status run_alone(struct nosa_comm *comm, struct offer offer, void *out)
{
    struct group *group = member_of(comm)->group;

    if (is_aborted(group))
        return NOSA_CANCELLED;
    NOSA_TRY(check_offer(group, &offer));
    copy_bytes(out, offer.data, offer.bytes);
    return NOSA_OK;
}

static enum nosa_status collective(struct nosa_comm *comm, enum operation operation,
                                   const void *data, size_t bytes, int32_t root, void *out)
{
    struct offer offer = {.operation = operation, .root = root, .bytes = bytes, .data = data};
    return comm->n_ranks == 1 ? run_alone(comm, offer, out) : run_collective(comm, offer, out);
}

/* Bytes of n floats; more than any bytes_max when that overflows. */
static size_t float_bytes(size_t n)
{
    return n > SIZE_MAX / sizeof(float) ? SIZE_MAX : n * sizeof(float);
}

static enum nosa_status threads_all_reduce(struct nosa_comm *comm, struct nosa_stream *stream,
                                           float *x, size_t n)
{
    (void)stream;
    return collective(comm, OPERATION_ALL_REDUCE, x, float_bytes(n), 0, x);
}

static enum nosa_status threads_all_gather(struct nosa_comm *comm, struct nosa_stream *stream,
                                           const float *part, size_t n, float *all)
{
    (void)stream;
    return collective(comm, OPERATION_ALL_GATHER, part, float_bytes(n), 0, all);
}

static enum nosa_status threads_broadcast(struct nosa_comm *comm, struct nosa_stream *stream,
                                          void *data, size_t bytes, int32_t root)
{
    (void)stream;
    return collective(comm, OPERATION_BROADCAST, data, bytes, root, data);
}

static void threads_abort(struct nosa_comm *comm)
{
    abort_group(member_of(comm)->group);
}

static void free_group(struct group *group)
{
    if (!group)
        return;
    free(group->members);
    free(group->sum);
    free(group);
}

static void threads_destroy(struct nosa_comm *comm)
{
    if (!comm)
        return;
    struct group *group = member_of(comm)->group;
    abort_group(group);
    if (atomic_fetch_sub(&group->members_left, 1) == 1)
        free_group(group);
}

static const struct nosa_comm_table threads_table = {
    .name = "threads",
    .all_reduce = threads_all_reduce,
    .all_gather = threads_all_gather,
    .broadcast = threads_broadcast,
    .abort = threads_abort,
    .destroy = threads_destroy,
};

/* ---- group --------------------------------------------------------------------------------- */

/* Spinning helps only when every rank has a core of its own. */
static int32_t spins_for(int32_t n_ranks)
{
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) != 0)
        return 0;
    return n_ranks <= CPU_COUNT(&cpus) ? SPINS_MAX : 0;
}

static void *aligned_zeroed(size_t bytes)
{
    size_t rounded = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void *memory = rounded < bytes ? NULL : aligned_alloc(CACHE_LINE, rounded);
    if (memory)
        memset(memory, 0, rounded);
    return memory;
}

enum nosa_status nosa_comm_threads_create(int32_t n_ranks, size_t bytes_max, struct nosa_comm **out,
                                          struct nosa_error *error)
{
    if (n_ranks < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "communicator: %d ranks; must be at least 1", (int)n_ranks);
    struct group *group = aligned_zeroed(sizeof *group);
    if (!group)
        goto out_of_memory;
    group->n_ranks = n_ranks;
    int32_t spins = spins_for(n_ranks);
    group->bytes_max = bytes_max;
    group->members = aligned_zeroed((size_t)n_ranks * sizeof *group->members);
    if (!group->members)
        goto out_of_memory;
    if (n_ranks > 1 && bytes_max > 0) {
        group->sum = aligned_zeroed(bytes_max);
        if (!group->sum)
            goto out_of_memory;
    }
    atomic_store(&group->members_left, n_ranks);
    for (int32_t rank = 0; rank < n_ranks; rank++) {
        struct member *member = &group->members[rank];
        member->comm = (struct nosa_comm){&threads_table, rank, n_ranks};
        member->group = group;
        member->spins = spins;
        out[rank] = &member->comm;
    }
    return NOSA_OK;
out_of_memory:
    free_group(group);
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                          "communicator: no memory for %d ranks and collectives of %zu bytes",
                          (int)n_ranks, bytes_max);
}
