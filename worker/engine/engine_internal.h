/*
 * What the files of the engine share: the engine and its sessions. engine.c opens and closes,
 * session.c keeps sessions, step.c computes.
 */
#ifndef NOSA_ENGINE_ENGINE_INTERNAL_H
#define NOSA_ENGINE_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/rank_group.h"
#include "engine/tiers.h"

struct nosa_engine {
    struct nosa_engine_info info;
    struct nosa_checkpoint *checkpoint; /* owned */
    struct nosa_rank_group *group;      /* owned */
    struct nosa_kv_sizes sizes;
    struct nosa_kv_tier_options tier_options; /* zero without a host tier */
    uint8_t identity[NOSA_IDENTITY_BYTES];    /* what decides KV bits beside salt and tokens */
    struct nosa_kv_host_pool host;            /* owned; empty without a host tier */
    struct nosa_extent_store *extents;        /* owned; NULL without an NVMe tier */
    struct nosa_kv_store *store;              /* owned */
    struct nosa_step_tiers tiers;             /* owned; likewise */
    struct nosa_kv_step_item *kv_items;       /* [sessions_max] owned */
    struct nosa_engine_kv_traffic traffic;
    uint32_t window; /* number of the window over which working sets are counted */
    uint32_t window_steps;
    struct nosa_step_plan plan; /* owned */
    int32_t sessions_open;
    struct nosa_step_item *items; /* of the step in flight, borrowed; NULL: there is none */
    int32_t n_items;
    uint64_t step_start_ns;
    struct nosa_step_trace trace; /* owned */
    float *score_logits;          /* [score_rows_kept][vocab] pinned, owned; or NULL */
    int32_t score_rows_kept;
    bool broken; /* a step failed half-way */
};

struct nosa_session {
    struct nosa_engine *engine;        /* borrowed */
    struct nosa_kv_sequence *sequence; /* owned */
    struct nosa_sampling sampling;
    int32_t n_top;
    int32_t prompt_length;
    int32_t cached;
    struct nosa_session_kv kv;
    uint32_t window;         /* in which it had its last step */
    uint64_t window_records; /* of this one so far, and of the whole one that it was in before */
    uint64_t working_records;
    struct nosa_trace_sink trace; /* row NULL: none */
    float *logits;                /* [vocab] owned, with keep_logits */
    float *scores;                /* [tokens at open] owned, with score */
    int32_t score_count;
    int32_t step_mark; /* index in the step being checked or in flight, else -1 */
};

/* How many block ids, slots and images there are; before the ranks are made. */
enum nosa_status nosa_engine_kv_choose(struct nosa_engine *engine,
                                       const struct nosa_engine_options *options,
                                       struct nosa_error *error);
/* Host pool, NVMe tier, store and what steps need of them; after the ranks are made. */
enum nosa_status nosa_engine_kv_create(struct nosa_engine *engine,
                                       const struct nosa_engine_options *options,
                                       struct nosa_error *error);
void nosa_engine_kv_destroy(struct nosa_engine *engine);

/* Runs a step that only moves blocks between tiers; nothing without a host tier. */
enum nosa_status nosa_engine_step_moves(struct nosa_engine *engine, struct nosa_error *error);

#endif
