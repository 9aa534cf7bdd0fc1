/*
 * Replay of a selection trace against residency policies: what a tier of some size would have held,
 * hit and missed. Pools (layer, KV head) are independent and of equal size, as in the store, and
 * the key functions are the store's own (kv_policy.h). Pure: no clock, no files; one thread.
 *
 * A row is a step: its selected blocks must all be in the first tier, so those that are not are
 * loaded (misses), in place of blocks that the row did not select, smallest key first. A block that
 * a row selects for the first time in the pool's life was made there: it takes a place and is no
 * miss.
 */
#ifndef NOSA_BENCH_POLICY_REPLAY_H
#define NOSA_BENCH_POLICY_REPLAY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/trace_file.h"
#include "kv_policy.h"

/* A policy of the store, or the one that knows what comes: the block that is selected again last
 * goes first (Belady, "A study of replacement algorithms for a virtual-storage computer"). */
enum replay_policy {
    REPLAY_EDDMA = NOSA_KV_POLICY_EDDMA,
    REPLAY_LRU = NOSA_KV_POLICY_LRU,
    REPLAY_LOWEST_E = NOSA_KV_POLICY_LOWEST_E,
    REPLAY_ORACLE,
    REPLAY_POLICIES,
};

/* What a first tier that starts empty is filled with before its first step. */
enum replay_prefetch {
    REPLAY_PREFETCH_NOTHING,
    REPLAY_PREFETCH_E,       /* sink and local blocks, then the largest E */
    REPLAY_PREFETCH_RECENCY, /* selected last; of equals the later block */
    REPLAY_PREFETCH_EDDMA,   /* selected last; of equals the largest E */
    REPLAY_PREFETCH_ORACLE,  /* selected next */
    REPLAY_PREFETCHES,
};

const char *replay_policy_name(enum replay_policy policy);
const char *replay_prefetch_name(enum replay_prefetch prefetch);

/* The selections of one pool, as lists. Arrays are owned. */
struct replay_pool {
    int32_t n_rows;
    int32_t n_blocks;   /* of the last row */
    int32_t step_first; /* index of the first row that is a step */
    int32_t init_blocks, window_blocks;
    int32_t *own_block;   /* [n_rows] the block that the row's token lies in */
    int32_t *start;       /* [n_rows + 1] places in the next two */
    int32_t *block;       /* selected blocks of row i: [start[i], start[i + 1]) ascending */
    int32_t *next;        /* the row that selects this block next, or n_rows */
    float *e;             /* [n_blocks] final E */
    uint32_t touch_shift; /* keys see row numbers without this many low bits */
};

/* Reads pool layer * n_kv_heads + KV head of a trace. On failure nothing is held. */
enum nosa_status replay_pool_read(const struct nosa_trace_reader *reader, int32_t pool,
                                  struct replay_pool *out, struct nosa_error *error);
void replay_pool_free(struct replay_pool *pool);

/* Sums over rows and pools. */
struct replay_counts {
    uint64_t steps;    /* rows that counted, of each pool */
    uint64_t selected; /* blocks selected by them */
    uint64_t misses;   /* of those, not in the tier */
    uint64_t prefetched;
    uint64_t prefetched_used; /* selected before they were evicted */
};

/* Every step of the trace, with a tier of `capacity` blocks (at least what a row selects) that the
 * rows before the first step have filled. Adds to *counts. */
enum nosa_status replay_decode(const struct replay_pool *pool, enum replay_policy policy,
                               int32_t capacity, struct replay_counts *counts,
                               struct nosa_error *error);

/* What is known of a pool's blocks before some row. Arrays are owned. */
struct replay_history {
    int32_t row;     /* the rows before it have happened */
    uint32_t *touch; /* [n_blocks] the last row that selected the block, plus 1; 0: none did */
    float *weight;   /* [n_blocks] and its weight (kv_policy.h) as of that row */
    int32_t *next;   /* [n_blocks] the next row that does, or n_rows */
    bool *made;      /* [n_blocks] it exists */
};

enum nosa_status replay_history_create(struct replay_history *history,
                                       const struct replay_pool *pool, struct nosa_error *error);
void replay_history_free(struct replay_history *history);
/* Lets rows up to `row` happen, none of them twice. */
void replay_history_advance(struct replay_history *history, const struct replay_pool *pool,
                            int32_t row);

/* A first tier of `capacity` that is empty before row past->row, filled by `prefetch`, then run by
 * `policy` for `horizon` rows (or to the end): adds the first row's counts to counts[0] and those
 * of all to counts[1]. */
enum nosa_status replay_resume(const struct replay_pool *pool, const struct replay_history *past,
                               enum replay_prefetch prefetch, enum replay_policy policy,
                               int32_t capacity, int32_t horizon, struct replay_counts counts[2],
                               struct nosa_error *error);

/* A first tier by eddma over a host tier of `host_capacity` (more than `capacity`), which holds
 * what the first one does and more: `misses` counts blocks that were in neither and came from
 * NVMe. */
enum nosa_status replay_demotion(const struct replay_pool *pool, enum replay_policy host_policy,
                                 int32_t capacity, int32_t host_capacity,
                                 struct replay_counts *counts, struct nosa_error *error);

#endif
