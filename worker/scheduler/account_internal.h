/*
 * The books of one arrange: what is free, and who can be made to give up what. arrange.c decides
 * with them; every giving and taking goes through the functions here.
 */
#ifndef NOSA_SCHEDULER_ACCOUNT_INTERNAL_H
#define NOSA_SCHEDULER_ACCOUNT_INTERNAL_H

#include "scheduler/scheduler_internal.h"

/*
 * Blocks are free that are available and not promised to running requests (for their known tokens
 * and one more). What is given or taken is entered at once, so that no block is given away twice;
 * blocks that a suspend, drop or close will free are expected, and given to nobody before a report
 * shows them.
 */
struct account {
    struct nosa_scheduler *scheduler;
    uint64_t now_ns;
    int64_t blocks_free; /* available and promised to nobody; negative: running ones lack some */
    int64_t blocks_expected; /* of requests that are on their way down or are closed now */
    int64_t lower_free;
    int32_t n_batch; /* RUNNING and LOADING */
    int64_t working_sets;
    int32_t n_outsize; /* of the batch */
    int32_t n_parked;
    bool room_promised; /* a waiting request gets what is evicted from now on */
};

/* ---- what is asked ------------------------------------------------------------------------ */

static inline struct request *get(const struct account *account, int32_t slot)
{
    return &account->scheduler->requests[slot];
}

/* Whether it runs and has not had its run_steps_min steps yet. One that cannot go on has no claim
 * to them. */
static inline bool is_protected(const struct nosa_scheduler *scheduler,
                                const struct request *request)
{
    return request->place == PLACE_RUNNING && !request->paused && request->got_row &&
           request->steps_run < scheduler->options.run_steps_min;
}

/* Blocks below that an outsize request in the batch will take beyond those that it has there, for
 * its known tokens. What was saved of a suspended one is given back once it is loaded. */
static inline int32_t tail_promised(const struct nosa_scheduler *scheduler,
                                    const struct request *request)
{
    bool saved = request->place == PLACE_SUSPENDED || request->place == PLACE_LOADING;
    int32_t needed = tail_blocks(scheduler, tokens_ahead(request));
    int32_t there =
        saved ? blocks_for(request->computed) : tail_blocks(scheduler, request->computed);
    return needed > there ? needed - there : 0;
}

/* Whether `request` may be evicted for one of rank `before` (NULL: for any). */
bool nosa_account_is_evictable(const struct account *account, const struct request *request,
                               const struct request *before, bool with_protected);
/* Whom to evict next: paused ones, then the last by rank; never `spared`. Or SLOT_NONE. */
int32_t nosa_account_next_victim(const struct account *account, const struct request *before,
                                 int32_t spared, bool with_protected);
/* The first by rank of those that run, or SLOT_NONE. */
int32_t nosa_account_first_running(const struct account *account);
/* The last by rank of the batch that may leave it for a request of rank `before`, or SLOT_NONE. */
int32_t nosa_account_last_of_batch(const struct account *account, const struct request *before);

/* ---- what is done ------------------------------------------------------------------------- */

/* Starts the books from a report. Those that were paused leave the batch. */
void nosa_account_open(struct account *account, const struct nosa_scheduler_store *store);
/* Adds an action to the list. */
void nosa_account_act(struct account *account, enum nosa_scheduler_action_kind kind, int32_t slot);
/* Enters that a request has or gives up a place in the batch, with all that it was promised. */
void nosa_account_enter_batch(struct account *account, const struct request *request);
void nosa_account_leave_batch(struct account *account, const struct request *request);
/* Takes it out of the batch; it stays resident. */
void nosa_account_demote(struct account *account, int32_t slot);
/* Forgets its KV and puts it back into the queue. */
void nosa_account_drop(struct account *account, int32_t slot);
/* Suspends a resident request, or drops it when there is no place below. */
void nosa_account_evict(struct account *account, int32_t slot);
/* Makes place below by dropping what lies there of requests that rank behind `request` or are
 * paused, the last first: suspended ones, and outsize ones, whose tail is there. Tells whether
 * `blocks` are free then. */
bool nosa_account_make_lower_room(struct account *account, const struct request *request,
                                  int64_t blocks);

#endif
