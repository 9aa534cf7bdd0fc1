/*
 * What the files of the engine share: the engine and its sessions. engine.c opens and closes,
 * session.c keeps sessions, step.c computes.
 */
#ifndef NOSA_ENGINE_ENGINE_INTERNAL_H
#define NOSA_ENGINE_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/rank_group.h"

struct nosa_engine {
    struct nosa_engine_info info;
    struct nosa_checkpoint *checkpoint; /* owned */
    struct nosa_rank_group *group;      /* owned */
    struct nosa_kv_store *store;        /* owned */
    struct nosa_step_plan plan;         /* owned */
    int32_t sessions_open;
    struct nosa_step_item *items; /* of the step in flight, borrowed; NULL: there is none */
    int32_t n_items;
    bool broken; /* a step failed half-way */
};

struct nosa_session {
    struct nosa_engine *engine;        /* borrowed */
    struct nosa_kv_sequence *sequence; /* owned */
    struct nosa_sampling sampling;
    int32_t n_top;
    int32_t prompt_length;
    int32_t cached;
    uint64_t gpu_hits;
    float *logits; /* [vocab] owned, with keep_logits */
    float *scores; /* [tokens at open] owned, with score */
    int32_t score_count;
    int32_t step_mark; /* index in the step being checked or in flight, else -1 */
};

#endif
