/*
 * Collectives between the ranks of one tensor-parallel group.
 *
 * A group is made once, one member per rank; each rank's thread calls the same collectives in the
 * same order with the same sizes. Results are the same bits on every rank: sums are formed in rank
 * order, once per element, and handed to all. Calls are enqueued on the rank's stream; the first
 * member of the table (threads of one process) works in host memory and returns when the result is
 * there.
 *
 * Ranks that call different operations, sizes or roots at the same time are found out: each gets
 * NOSA_INTERNAL and the group is aborted. A size beyond the group's bound, or a root that is no
 * rank, gives NOSA_INVALID_ARGUMENT on every rank, and the group goes on.
 */
#ifndef NOSA_WORKER_COMM_H
#define NOSA_WORKER_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nosa_stream;

struct nosa_comm; /* one rank's end of a group */

struct nosa_comm_table {
    const char *name; /* "threads", "nccl" */
    /* x[0 .. n) on every rank becomes the sum over ranks. In place. */
    enum nosa_status (*all_reduce)(struct nosa_comm *comm, struct nosa_stream *stream, float *x,
                                   size_t n);
    /* all[rank * n .. (rank + 1) * n) of every rank becomes part[0 .. n) of that rank. `part` may
     * lie in its own place in `all`, and does not overlap it otherwise. */
    enum nosa_status (*all_gather)(struct nosa_comm *comm, struct nosa_stream *stream,
                                   const float *part, size_t n, float *all);
    /* Copies `bytes` from rank `root` to all others. */
    enum nosa_status (*broadcast)(struct nosa_comm *comm, struct nosa_stream *stream, void *data,
                                  size_t bytes, int32_t root);
    /* Makes every pending and later call of the whole group return NOSA_CANCELLED; a call whose
     * exchange is over may still succeed. After any return no rank reads the caller's memory. Any
     * thread, while the member lives. */
    void (*abort)(struct nosa_comm *comm);
    /* Gives the member back; NULL is allowed. Aborts the group for those that are left. */
    void (*destroy)(struct nosa_comm *comm);
};

struct nosa_comm {
    const struct nosa_comm_table *table;
    int32_t rank;
    int32_t n_ranks;
};

/* Makes a group of n_ranks threads of this process: out[rank] is owned by that rank's thread and
 * given back by its table->destroy; the group ends with its last member. `bytes_max` is the largest
 * collective in bytes (of one rank's part). n_ranks at least 1. */
enum nosa_status nosa_comm_threads_create(int32_t n_ranks, size_t bytes_max, struct nosa_comm **out,
                                          struct nosa_error *error);

#endif
