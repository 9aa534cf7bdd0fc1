/* What the files of the engine's thread share: loop.c takes words and waits, loop_act.c carries out
 * what the scheduler decides, loop_step.c computes. */
#ifndef NOSA_SERVICE_LOOP_INTERNAL_H
#define NOSA_SERVICE_LOOP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/queue.h"
#include "service/loop.h"

enum nosa_loop_word {
    NOSA_LOOP_SUBMIT,
    NOSA_LOOP_CANCEL,
    NOSA_LOOP_READ,
    NOSA_LOOP_WAKE,
};

struct nosa_loop_input {
    enum nosa_loop_word word;
    struct nosa_run *run; /* one reference; NULL: a wake */
};

struct nosa_loop {
    /* fixed after create */
    struct nosa_loop_options options;
    const struct nosa_engine_info *info;
    int32_t capacity;                 /* blocks of KV */
    struct nosa_scheduler *scheduler; /* owned */
    struct nosa_queue *inputs;        /* owned */
    pthread_t thread;
    bool thread_started;
    atomic_bool stopping;
    atomic_bool wake_queued;
    /* owned by the thread */
    struct nosa_run **open; /* owned: [open_max], each with a reference */
    int32_t n_open, open_max;
    int32_t n_loading;        /* of them, whose prefix is being read */
    int32_t suspended_blocks; /* that suspended ones have below */
    int32_t steps_refused;    /* one after the other */
    uint64_t loaded_blocks;   /* counted by the store when it was looked at last */
    uint64_t progress_ns;     /* of the last step or action */
    bool broken;
    struct nosa_step_item *items;          /* owned: [batch_max], as the next */
    struct nosa_scheduler_result *results; /* owned */
    struct nosa_scheduler_counters seen;   /* counters that metrics have */
    uint64_t states_ns;                    /* when states were published last */
    struct nosa_loop_load now;
    pthread_mutex_t mutex;
    /* under mutex */
    struct nosa_loop_load load;
    struct nosa_run *oldest, *newest; /* borrowed: every run that is inside */
};

static inline struct nosa_run *nosa_loop_run_of(uint64_t tag)
{
    return (struct nosa_run *)(uintptr_t)tag;
}

static inline uint64_t nosa_loop_tag_of(const struct nosa_run *run)
{
    return (uint64_t)(uintptr_t)run;
}

/* ---- loop.c ---- */

/* Takes the run off the list that others see. */
void nosa_loop_unlist(struct nosa_loop *loop, struct nosa_run *run);
/* The engine cannot compute any more: every run is to end, and the worker with them. */
void nosa_loop_break(struct nosa_loop *loop, const struct nosa_error *error);
/* Blocks that can be had: by sequences, or by the next step, which has to find room in the first
 * tier for all that it computes. */
void nosa_loop_store(const struct nosa_loop *loop, bool for_step,
                     struct nosa_scheduler_store *store);
/* Whether requests run and have had no step for a while. */
bool nosa_loop_is_stalled(const struct nosa_loop *loop);

/* ---- loop_act.c ---- */

/* A run that came in: queues it, or ends it at once. */
void nosa_loop_take(struct nosa_loop *loop, struct nosa_run *run);
/* Ends a run that the scheduler does not know (any more); gives its reference back. */
void nosa_loop_end(struct nosa_loop *loop, struct nosa_run *run, enum nosa_scheduler_end reason);
/* Ends a run because of `error`, with the next arrange. */
void nosa_loop_fail(struct nosa_loop *loop, struct nosa_run *run, const struct nosa_error *error);
/* Arranges and carries out; returns how many actions there were. */
int32_t nosa_loop_arrange(struct nosa_loop *loop);
/* Looks at sessions whose prefixes are being read. */
void nosa_loop_look_at_loading(struct nosa_loop *loop);
/* So many of its tokens wait for its reader: tells the scheduler, and the clock of its pauses. */
void nosa_loop_note_reader(struct nosa_loop *loop, struct nosa_run *run);
/* KV that was counted on up to `hoped` tokens reaches to `computed`. */
void nosa_loop_note_lost(struct nosa_run *run, int32_t hoped, int32_t computed);
/* Whether the token ends the run. */
bool nosa_loop_ends_at(const struct nosa_loop *loop, const struct nosa_run *run, uint32_t token);

/* ---- loop_step.c ---- */

/* Computes a step; false when there was nothing to compute. */
bool nosa_loop_step(struct nosa_loop *loop);

#endif
