/*
 * Who holds KV and who is in the batch: the scheduler's decisions between steps.
 *
 * Liveness. Let r be the first by rank of all unpaused requests. Nothing ever evicts it for another
 * but the want of blocks, and never while it is the first of the batch. When it waits, all that
 * holds blocks ranks behind it or is paused, so everything can be evicted for it once that has run
 * its steps (until then nobody else comes in), and it fits the tiers alone (submit refuses others).
 * So r comes in, runs and ends.
 */
#include <stddef.h>

#include "scheduler/account_internal.h"

/* Waiting requests that did not fit and were passed over in one arrange; those parked. */
#define PASSED_OVER_MAX 8
#define PARKED_MAX      256

static bool wants_outsize(const struct nosa_scheduler *scheduler, const struct request *request)
{
    return blocks_for(tokens_ahead(request)) > scheduler->options.blocks_total;
}

/* ---- endings ------------------------------------------------------------------------------ */

static void expire(struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    const struct nosa_rank_heap_node *first;

    while ((first = nosa_rank_heap_first(&scheduler->deadlines)) &&
           (uint64_t)first->key <= account->now_ns)
        nosa_scheduler_finish(scheduler, first->slot, NOSA_SCHEDULER_END_DEADLINE);
    while ((first = nosa_rank_heap_first(&scheduler->parked)) &&
           (uint64_t)first->key <= account->now_ns)
        nosa_scheduler_move(scheduler, first->slot, PLACE_QUEUED);
}

/* Block ids that the close of an ended request frees; the report does not know of them yet. */
static int32_t blocks_freed(const struct nosa_scheduler *scheduler, const struct request *request)
{
    switch (request->ended_in) {
    case PLACE_LOADING: return resident_blocks(scheduler, request->outsize, request->loading);
    case PLACE_RUNNING:
    case PLACE_READY:
    case PLACE_SUSPENDING: return resident_blocks(scheduler, request->outsize, request->computed);
    default: return 0;
    }
}

/* Blocks below that it frees. */
static int32_t lower_blocks_freed(const struct nosa_scheduler *scheduler,
                                  const struct request *request)
{
    switch (request->ended_in) {
    case PLACE_LOADING: /* what was saved of it, if it was suspended */
    case PLACE_SUSPENDING:
    case PLACE_SUSPENDED: return blocks_for(request->computed);
    default: return request->outsize ? tail_blocks(scheduler, request->computed) : 0;
    }
}

static void close_ended(struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    while (scheduler->n_ended > 0) {
        int32_t slot = scheduler->ended[--scheduler->n_ended];
        account->blocks_expected += blocks_freed(scheduler, get(account, slot));
        account->lower_free += lower_blocks_freed(scheduler, get(account, slot));
        nosa_account_act(account, NOSA_SCHEDULER_CLOSE, slot);
        nosa_scheduler_move(scheduler, slot, PLACE_FREE);
    }
}

/* ---- what runs must go on ----------------------------------------------------------------- */

/* Those that no longer fit the first tier and the host go on as outsize ones. */
static void spill_grown(struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    for (int32_t i = scheduler->n_open - 1; i >= 0; i--) {
        if (i >= scheduler->n_open)
            continue; /* room was made by dropping some */
        int32_t slot = scheduler->open[i];
        struct request *request = get(account, slot);
        if (request->outsize || !wants_outsize(scheduler, request) ||
            (request->place != PLACE_RUNNING && request->place != PLACE_READY))
            continue;
        if (!nosa_account_make_lower_room(account, request,
                                          tail_blocks(scheduler, tokens_ahead(request)))) {
            nosa_account_drop(account, slot);
            continue;
        }
        bool was_running = request->place == PLACE_RUNNING;
        if (was_running)
            nosa_account_leave_batch(account, request);
        account->lower_free -= tail_blocks(scheduler, request->computed);
        request->outsize = true;
        if (was_running)
            nosa_account_enter_batch(account, request);
        nosa_account_act(account, NOSA_SCHEDULER_SPILL, slot);
    }
}

/* Takes requests out of the batch while their working sets do not fit the first tier together, the
 * last by rank first; one stays. */
static void shrink_batch(struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    int32_t slots = scheduler->options.slots;
    int32_t first = nosa_account_first_running(account);

    for (int32_t i = scheduler->n_open - 1; i >= 0; i--) {
        const struct request *request = get(account, scheduler->open[i]);
        if (slots == 0 || account->working_sets <= slots ||
            account->n_batch - account->n_outsize <= 1)
            break;
        if (request->place == PLACE_RUNNING && !request->outsize && scheduler->open[i] != first &&
            !is_protected(scheduler, request))
            nosa_account_demote(account, scheduler->open[i]);
    }
}

/* Evicts until those that run have the blocks of their next tokens, and an outsize one the place
 * below of its tail. */
static void cover_running(struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    int32_t spared = nosa_account_first_running(account);

    for (int32_t i = 0; i < scheduler->n_open && account->lower_free < 0; i++)
        if (get(account, scheduler->open[i])->outsize && in_batch(get(account, scheduler->open[i])))
            nosa_account_make_lower_room(account, get(account, scheduler->open[i]), 0);

    while (account->blocks_free + account->blocks_expected < 0) {
        int32_t slot = nosa_account_next_victim(account, NULL, spared, false);
        if (slot == SLOT_NONE)
            slot = nosa_account_next_victim(account, NULL, spared, true);
        if (slot == SLOT_NONE)
            break;
        nosa_account_evict(account, slot);
    }
}

/* ---- letting in --------------------------------------------------------------------------- */

enum verdict {
    LET_IN,
    WAITS_FOR_BLOCKS, /* they are on their way */
    FITS_LATER,       /* when those behind it have run their steps: nobody comes in before it, or
                         there would always be one that has not */
    DOES_NOT_FIT,     /* what ranks before it leaves too little: others may come in meanwhile */
    NO_SESSION,
};

/* Blocks that a waiting request needs to come in. */
static int64_t blocks_to_enter(struct account *account, const struct request *request,
                               const struct nosa_scheduler_prefix *prefix)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    if (request->place == PLACE_READY)
        return blocks_promised(scheduler, request);
    int32_t needed = resident_blocks(scheduler, request->outsize, tokens_ahead(request));
    if (!request->outsize && prefix->shared_blocks < needed)
        needed -= prefix->shared_blocks;
    return needed;
}

/* Blocks that stay free when it comes in beside n_batch others, so that their next ones do not
 * evict it again at once. */
static int32_t blocks_spare(const struct request *request, int32_t n_batch)
{
    return request->place == PLACE_READY ? 0 : n_batch;
}

/* Whether it could come in if all behind it made place; `later`: also those that have not run their
 * steps yet or are being loaded. */
static bool fits_after_preemption(struct account *account, const struct request *request,
                                  int64_t needed, bool later)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    const struct nosa_scheduler_options *options = &scheduler->options;
    int32_t n_batch = account->n_batch, n_outsize = account->n_outsize;
    int64_t working_sets = account->working_sets + working_set(scheduler, request);
    int64_t blocks = account->blocks_free + account->blocks_expected;

    for (int32_t i = 0; i < scheduler->n_open; i++) {
        const struct request *other = get(account, scheduler->open[i]);
        bool loading = later && other->place == PLACE_LOADING && ranks_before(request, other);
        if (other == request ||
            !(loading || nosa_account_is_evictable(account, other, request, later)))
            continue;
        blocks += blocks_held(scheduler, other);
        if (!in_batch(other))
            continue;
        blocks += blocks_promised(scheduler, other);
        working_sets -= working_set(scheduler, other);
        n_batch--;
        n_outsize -= other->outsize;
    }
    return n_batch < options->batch_max && !(request->outsize && n_outsize > 0) &&
           (request->outsize || options->slots == 0 || working_sets <= options->slots ||
            n_batch - n_outsize == 0) &&
           blocks >= needed + blocks_spare(request, n_batch);
}

static bool fits_batch(struct account *account, const struct request *request)
{
    const struct nosa_scheduler_options *options = &account->scheduler->options;
    int64_t working_sets = account->working_sets + working_set(account->scheduler, request);

    return account->n_batch < options->batch_max && !(request->outsize && account->n_outsize > 0) &&
           (request->outsize || options->slots == 0 || working_sets <= options->slots ||
            account->n_batch - account->n_outsize == 0);
}

/* Whether it can come in without taking anything from anyone. */
static bool fits_now(struct account *account, const struct request *request, int64_t needed)
{
    const struct nosa_scheduler *scheduler = account->scheduler;
    bool has_session =
        request->place != PLACE_QUEUED || scheduler->n_open < scheduler->options.sequences_max;

    return has_session && fits_batch(account, request) &&
           account->blocks_free >= needed + blocks_spare(request, account->n_batch) &&
           (!request->outsize || account->lower_free >= tail_promised(scheduler, request));
}

static void let_in(struct account *account, int32_t slot, int64_t blocks)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    struct request *request = get(account, slot);

    request->steps_run = 0;
    request->got_row = true;
    if (request->place == PLACE_READY) {
        nosa_scheduler_move(scheduler, slot, PLACE_RUNNING);
        nosa_account_enter_batch(account, request);
        return;
    }
    bool resume = request->place == PLACE_SUSPENDED;
    nosa_account_act(account, resume ? NOSA_SCHEDULER_RESUME : NOSA_SCHEDULER_OPEN, slot);
    scheduler->resumes += resume;
    nosa_scheduler_move(scheduler, slot, PLACE_LOADING);
    request->loading = request->computed;
    account->n_batch++;
    account->working_sets += working_set(scheduler, request);
    account->n_outsize += request->outsize;
    account->blocks_free -= blocks;
    if (request->outsize)
        account->lower_free -= tail_promised(scheduler, request);
}

/* Whether there is a session for a queued request: a free one, that of a paused request, or of the
 * last one behind it. */
static bool make_session(struct account *account, const struct request *request)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    int32_t found = SLOT_NONE;

    if (scheduler->n_open < scheduler->options.sequences_max)
        return true;
    for (int32_t i = scheduler->n_open - 1; i >= 0; i--) {
        const struct request *other = get(account, scheduler->open[i]);
        bool gives = other->place == PLACE_SUSPENDED
                         ? other->paused || ranks_before(request, other)
                         : nosa_account_is_evictable(account, other, request, false);
        if (gives && (found == SLOT_NONE || (other->paused && !get(account, found)->paused)))
            found = scheduler->open[i];
    }
    if (found == SLOT_NONE)
        return false;
    nosa_account_drop(account, found);
    return true;
}

/* Lets it in, or begins to make place for it, at the cost of those behind it. */
static enum verdict try_to_enter(struct account *account, int32_t slot,
                                 const struct nosa_scheduler_prefix *prefix)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    struct request *request = get(account, slot);

    if (request->place != PLACE_READY && wants_outsize(scheduler, request))
        request->outsize = true;
    int64_t needed = blocks_to_enter(account, request, prefix);
    if (account->room_promised && !fits_now(account, request, needed))
        return DOES_NOT_FIT;
    if (!fits_after_preemption(account, request, needed, false))
        return fits_after_preemption(account, request, needed, true) ? FITS_LATER : DOES_NOT_FIT;
    if (request->place == PLACE_QUEUED && !make_session(account, request))
        return NO_SESSION;
    int64_t tail = request->outsize ? tail_promised(scheduler, request) : 0;
    if (tail > 0 && !nosa_account_make_lower_room(account, request, tail))
        return DOES_NOT_FIT;
    account->lower_free -= tail;
    while (account->blocks_free + account->blocks_expected <
           needed + blocks_spare(request, account->n_batch)) {
        int32_t victim = nosa_account_next_victim(account, request, slot, false);
        NOSA_ASSERT(victim != SLOT_NONE);
        nosa_account_evict(account, victim);
    }
    if (account->blocks_free < needed + blocks_spare(request, account->n_batch)) {
        account->blocks_free -= needed + blocks_spare(request, account->n_batch);
        account->room_promised = true;
        return WAITS_FOR_BLOCKS;
    }
    while (!fits_batch(account, request)) {
        int32_t victim = nosa_account_last_of_batch(account, request);
        NOSA_ASSERT(victim != SLOT_NONE);
        nosa_account_demote(account, victim);
    }
    account->lower_free += tail;
    let_in(account, slot, needed);
    return LET_IN;
}

/* The request whose prefill makes the prefix that `request` wants, or SLOT_NONE. */
static int32_t prefix_leader(struct account *account, const struct request *request)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    for (int32_t i = 0; i < scheduler->n_open; i++) {
        const struct request *other = get(account, scheduler->open[i]);
        if (in_batch(other) && !other->paused && other->prefix_key == request->prefix_key &&
            other->computed < request->prefix_tokens &&
            other->prefix_tokens >= request->prefix_tokens)
            return scheduler->open[i];
    }
    return SLOT_NONE;
}

/* Parks it when the prefix that it wants is being computed and it has not waited for it yet. */
static bool park(struct account *account, int32_t slot, const struct nosa_scheduler_prefix *prefix)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    struct request *request = get(account, slot);

    if (request->prefix_key == 0 || prefix->known_tokens >= request->prefix_tokens)
        return false;
    int32_t leader = prefix_leader(account, request);
    if (leader == SLOT_NONE)
        return false;
    if (request->park_end_ns == 0)
        request->park_end_ns = account->now_ns + scheduler->options.prefix_wait_ns;
    if (request->park_end_ns <= account->now_ns)
        return false;
    request->leader = leader;
    nosa_scheduler_move(scheduler, slot, PLACE_PARKED);
    account->n_parked++;
    return true;
}

/* Waiting requests in rank order: those with a session, those without. */
struct waiting {
    int32_t n_open; /* of scheduler->candidates */
    int32_t next_open;
    bool sessions; /* there may be one for a queued request */
};

static void list_open(struct account *account, struct waiting *waiting)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    *waiting = (struct waiting){.sessions = true};
    for (int32_t i = 0; i < scheduler->n_open; i++) {
        const struct request *request = get(account, scheduler->open[i]);
        if (!request->paused &&
            (request->place == PLACE_READY || request->place == PLACE_SUSPENDED))
            scheduler->candidates[waiting->n_open++] = scheduler->open[i];
    }
}

/* The next one, or SLOT_NONE. What this arrange has moved already is passed over. */
static int32_t next_waiting(struct account *account, struct waiting *waiting)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    int32_t open = SLOT_NONE, queued = SLOT_NONE;

    while (waiting->next_open < waiting->n_open && open == SLOT_NONE) {
        int32_t slot = scheduler->candidates[waiting->next_open];
        const struct request *request = get(account, slot);
        bool waits = request->place == PLACE_READY || request->place == PLACE_SUSPENDED;
        if (waits && request->touched != scheduler->arrange_number)
            open = slot;
        else
            waiting->next_open++;
    }
    const struct nosa_rank_heap_node *first = nosa_rank_heap_first(&scheduler->queue);
    if (first && waiting->sessions)
        queued = first->slot;
    if (queued != SLOT_NONE &&
        (open == SLOT_NONE || ranks_before(get(account, queued), get(account, open))))
        return queued;
    if (open != SLOT_NONE)
        waiting->next_open++;
    return open;
}

/* Whether neither `request` nor any behind it can come in: the batch is full, and nobody in it has
 * to leave for one of that rank. */
static bool is_closed(struct account *account, const struct request *request)
{
    return account->n_batch >= account->scheduler->options.batch_max &&
           nosa_account_last_of_batch(account, request) == SLOT_NONE;
}

static void let_waiting_in(struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    int32_t passed[PASSED_OVER_MAX]; /* queued ones, out of the heap meanwhile */
    int32_t n_passed = 0, n_passed_queued = 0, slot;
    struct waiting waiting;

    list_open(account, &waiting);
    while (n_passed < PASSED_OVER_MAX && account->n_parked < PARKED_MAX &&
           (slot = next_waiting(account, &waiting)) != SLOT_NONE) {
        struct request *request = get(account, slot);
        struct nosa_scheduler_prefix prefix = {0, 0};
        bool queued = request->place == PLACE_QUEUED;
        enum verdict verdict = DOES_NOT_FIT;
        if (is_closed(account, request))
            break;
        if (request->place != PLACE_READY && scheduler->options.probe)
            scheduler->options.probe(scheduler->options.probe_context, request->tag, &prefix);
        if (queued && park(account, slot, &prefix))
            continue;
        if (request->dropped != scheduler->arrange_number)
            verdict = try_to_enter(account, slot, &prefix);
        if (verdict == FITS_LATER)
            break;
        waiting.sessions = waiting.sessions && verdict != NO_SESSION;
        if (verdict == LET_IN || verdict == NO_SESSION)
            continue;
        n_passed++;
        if (queued) {
            nosa_rank_heap_remove(&scheduler->queue, slot);
            passed[n_passed_queued++] = slot;
        }
    }
    for (int32_t i = 0; i < n_passed_queued; i++)
        nosa_rank_heap_push(&scheduler->queue, passed[i], get(account, passed[i])->rank,
                            get(account, passed[i])->order);
}

struct nosa_scheduler_actions nosa_scheduler_arrange(struct nosa_scheduler *scheduler,
                                                     uint64_t now_ns,
                                                     const struct nosa_scheduler_store *store)
{
    struct account account = {.scheduler = scheduler, .now_ns = now_ns};

    NOSA_ASSERT(!scheduler->rows_outstanding);
    scheduler->n_actions = 0;
    scheduler->lapsed = false;
    scheduler->arrange_number++;
    expire(&account);
    close_ended(&account);
    nosa_account_open(&account, store);
    spill_grown(&account);
    shrink_batch(&account);
    cover_running(&account);
    let_waiting_in(&account);
    return (struct nosa_scheduler_actions){scheduler->actions, scheduler->n_actions};
}
