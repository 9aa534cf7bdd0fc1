/* What the files of the scheduler share: a request, its places, and the sizes derived from it. */
#ifndef NOSA_SCHEDULER_SCHEDULER_INTERNAL_H
#define NOSA_SCHEDULER_SCHEDULER_INTERNAL_H

#include "scheduler/rank_heap.h"
#include "scheduler/scheduler.h"

#define SLOT_NONE (-1)

/*
 * Where a request is. A session is open from LOADING to SUSPENDED.
 *
 *   FREE       the slot is of no request
 *   QUEUED     waits in `queue`; holds no KV
 *   PARKED     waits in `parked` for a prefix that its leader computes; holds no KV
 *   WITHHELD   was dropped or queued, and its reader does not read; holds no KV
 *   LOADING    KV on its way up; has a place in the batch
 *   RUNNING    resident, in the batch
 *   READY      resident, not in the batch
 *   SUSPENDING KV on its way down; its blocks are still taken
 *   SUSPENDED  KV below
 *   ENDED      waits in `ended` for its CLOSE
 *
 *   FREE -> QUEUED             submitted
 *   QUEUED -> PARKED           another request computes its prefix
 *   PARKED -> QUEUED           that prefix is there, or nobody computes it, or it took too long
 *   QUEUED, PARKED -> WITHHELD its reader does not read
 *   WITHHELD -> QUEUED         the reader reads
 *   QUEUED -> LOADING          OPEN
 *   LOADING -> RUNNING         loaded
 *   READY -> RUNNING           a place in the batch is free
 *   RUNNING -> READY           paused, or its place goes to another
 *   READY, RUNNING -> SUSPENDING  SUSPEND
 *   SUSPENDING -> SUSPENDED    the KV is below
 *   SUSPENDING -> READY        the KV could not be moved
 *   SUSPENDED -> LOADING       RESUME
 *   READY, RUNNING, SUSPENDED -> QUEUED, WITHHELD  DROP
 *   all but FREE -> ENDED      finished, cancelled, past its deadline
 *   ENDED -> FREE              CLOSE
 */
enum place {
    PLACE_FREE = 0,
    PLACE_QUEUED = 1,
    PLACE_PARKED = 2,
    PLACE_WITHHELD = 3,
    PLACE_LOADING = 4,
    PLACE_RUNNING = 5,
    PLACE_READY = 6,
    PLACE_SUSPENDING = 7,
    PLACE_SUSPENDED = 8,
    PLACE_ENDED = 9,
};

#define PLACES 10

struct request {
    uint32_t generation; /* of the slot; part of the id */
    enum place place;
    enum nosa_scheduler_end end;
    enum place ended_in; /* ENDED: where it was */
    bool has_session;
    bool paused;
    bool outsize;
    bool immovable;   /* a SUSPEND of it failed: it is dropped instead */
    bool got_row;     /* in the last step that it could be part of; true when let in */
    uint64_t touched; /* number of the last arrange when it was moved last */
    uint64_t dropped; /* number of the arrange that dropped it last */
    uint64_t tag;
    int64_t rank;   /* smaller is first */
    uint64_t order; /* of submission; breaks ties */
    uint64_t deadline_ns;
    int32_t known;      /* tokens: prompt and output */
    int32_t computed;   /* of them with KV, wherever it is; 0 while it has none */
    int32_t length_max; /* known tokens at which it ends */
    int32_t new_tokens;
    int32_t loading;     /* LOADING: tokens whose blocks are taken */
    int32_t working_set; /* slots in blocks; 0: not reported yet */
    int32_t steps_run;   /* rows since it was let in */
    int32_t waiting;     /* tokens that its reader has not read */
    uint64_t prefix_key; /* 0: none */
    int32_t prefix_tokens;
    uint64_t park_end_ns; /* 0: was never parked */
    int32_t leader;       /* PARKED: whose prefix it waits for */
    int32_t first_follower;
    int32_t next_follower;
    int32_t previous_follower;
};

struct nosa_scheduler {
    /* fixed after create */
    struct nosa_scheduler_options options;
    int32_t n_slots;

    struct request *requests; /* owned: [n_slots] */
    int32_t *free_slots;      /* owned: [n_slots] a stack */
    int32_t n_free;
    struct nosa_rank_heap queue;     /* QUEUED by rank */
    struct nosa_rank_heap parked;    /* PARKED by the end of their wait */
    struct nosa_rank_heap deadlines; /* all that have one and have not ended */
    int32_t *open;                   /* owned: [sequences_max] LOADING to SUSPENDED, by rank */
    int32_t n_open;
    int32_t *ended; /* owned: [n_slots] */
    int32_t n_ended;
    int32_t *candidates;                   /* owned: [sequences_max] scratch of arrange */
    struct nosa_scheduler_action *actions; /* owned: [actions_max] */
    int32_t actions_max;
    int32_t n_actions;
    struct nosa_scheduler_row *rows; /* owned: [batch_max] */
    int32_t n_rows;
    bool rows_outstanding;
    bool last_step_outsize;
    bool lapsed; /* the last step had no rows, and the next arrange can do more than the last */
    uint64_t arrange_number;
    uint64_t submitted;
    int32_t in_place[PLACES];
    int32_t n_paused;
    int64_t prefill_pending;
    uint64_t suspends;
    uint64_t resumes;
    uint64_t drops;
    uint64_t decode_stalls;
};

static inline uint64_t id_of(int32_t slot, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint32_t)slot;
}

/* ---- sizes -------------------------------------------------------------------------------- */

static inline int32_t blocks_for(int32_t n_tokens)
{
    return n_tokens / NOSA_SCHEDULER_BLOCK_TOKENS + (n_tokens % NOSA_SCHEDULER_BLOCK_TOKENS != 0);
}

/* Resident blocks of a sequence with KV of n_tokens. */
static inline int32_t resident_blocks(const struct nosa_scheduler *scheduler, bool outsize,
                                      int32_t n_tokens)
{
    int32_t blocks = blocks_for(n_tokens);
    if (outsize && blocks > scheduler->options.outsize_blocks)
        return scheduler->options.outsize_blocks;
    return blocks;
}

/* Tokens that it will have computed after its known ones and, in a step more, the next one. */
static inline int32_t tokens_ahead(const struct request *request)
{
    return request->known < request->length_max - 1 ? request->known + 1 : request->length_max - 1;
}

/* Block ids that it holds; those it shares count as well. */
static inline int32_t blocks_held(const struct nosa_scheduler *scheduler,
                                  const struct request *request)
{
    bool loading = request->place == PLACE_LOADING;
    return resident_blocks(scheduler, request->outsize,
                           loading ? request->loading : request->computed);
}

/* Block ids that it takes beyond those until all its known tokens and one more are computed. */
static inline int32_t blocks_promised(const struct nosa_scheduler *scheduler,
                                      const struct request *request)
{
    int32_t needed = resident_blocks(scheduler, request->outsize, tokens_ahead(request));
    int32_t held = blocks_held(scheduler, request);
    return needed > held ? needed - held : 0;
}

/* Blocks that an outsize sequence with KV of n_tokens has below. */
static inline int32_t tail_blocks(const struct nosa_scheduler *scheduler, int32_t n_tokens)
{
    return blocks_for(n_tokens) - resident_blocks(scheduler, true, n_tokens);
}

static inline bool in_batch(const struct request *request)
{
    return request->place == PLACE_RUNNING || request->place == PLACE_LOADING;
}

static inline bool ranks_before(const struct request *a, const struct request *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->order < b->order;
}

/* Slots that its steps need of the first tier. Outsize ones have steps of their own. */
static inline int32_t working_set(const struct nosa_scheduler *scheduler,
                                  const struct request *request)
{
    if (request->outsize)
        return 0;
    if (request->working_set > 0)
        return request->working_set;
    int32_t blocks = blocks_for(tokens_ahead(request));
    return blocks < scheduler->options.working_set_guess ? blocks
                                                         : scheduler->options.working_set_guess;
}

/* ---- moves (scheduler.c) ------------------------------------------------------------------ */

/* The one function that changes a place. */
void nosa_scheduler_move(struct nosa_scheduler *scheduler, int32_t slot, enum place to);
/* Sets known and computed tokens. */
void nosa_scheduler_set_progress(struct nosa_scheduler *scheduler, int32_t slot, int32_t known,
                                 int32_t computed);
/* Ends it unless it has ended. */
void nosa_scheduler_finish(struct nosa_scheduler *scheduler, int32_t slot,
                           enum nosa_scheduler_end reason);
/* Pauses it when its reader has too many tokens waiting, lets it go on when few. */
void nosa_scheduler_set_waiting(struct nosa_scheduler *scheduler, int32_t slot, int32_t waiting);
/* Its followers need not wait any longer. */
void nosa_scheduler_release_followers(struct nosa_scheduler *scheduler, int32_t slot);

#endif
