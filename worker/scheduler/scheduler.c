/*
 * Requests of the scheduler: how they come in, how they change places, what the caller tells of
 * them. arrange.c decides over places, step.c over
 * rows.
 */
#include <stdlib.h>
#include <string.h>

#include "scheduler/scheduler_internal.h"

#define BIT(place) (1u << (place))

/* Allowed targets of each place; scheduler_internal.h says when each happens. */
static const uint16_t allowed_moves[PLACES] = {
    [PLACE_FREE] = BIT(PLACE_QUEUED),
    [PLACE_QUEUED] =
        BIT(PLACE_PARKED) | BIT(PLACE_WITHHELD) | BIT(PLACE_LOADING) | BIT(PLACE_ENDED),
    [PLACE_PARKED] = BIT(PLACE_QUEUED) | BIT(PLACE_WITHHELD) | BIT(PLACE_ENDED),
    [PLACE_WITHHELD] = BIT(PLACE_QUEUED) | BIT(PLACE_ENDED),
    [PLACE_LOADING] = BIT(PLACE_RUNNING) | BIT(PLACE_ENDED),
    [PLACE_RUNNING] = BIT(PLACE_READY) | BIT(PLACE_SUSPENDING) | BIT(PLACE_QUEUED) |
                      BIT(PLACE_WITHHELD) | BIT(PLACE_ENDED),
    [PLACE_READY] = BIT(PLACE_RUNNING) | BIT(PLACE_SUSPENDING) | BIT(PLACE_QUEUED) |
                    BIT(PLACE_WITHHELD) | BIT(PLACE_ENDED),
    [PLACE_SUSPENDING] = BIT(PLACE_SUSPENDED) | BIT(PLACE_READY) | BIT(PLACE_ENDED),
    [PLACE_SUSPENDED] =
        BIT(PLACE_LOADING) | BIT(PLACE_QUEUED) | BIT(PLACE_WITHHELD) | BIT(PLACE_ENDED),
    [PLACE_ENDED] = BIT(PLACE_FREE),
};

static bool has_session(enum place place)
{
    return place >= PLACE_LOADING && place <= PLACE_SUSPENDED;
}

static bool is_resident(enum place place)
{
    return place == PLACE_LOADING || place == PLACE_RUNNING || place == PLACE_READY;
}

/* ---- create ------------------------------------------------------------------------------- */

struct bound {
    const char *name;
    int64_t value, min, max;
};

static enum nosa_status check_options(const struct nosa_scheduler_options *o,
                                      struct nosa_error *error)
{
    const struct bound bounds[] = {
        {"queue_max", o->queue_max, 1, 1 << 24},
        {"batch_max", o->batch_max, 1, 1 << 20},
        {"sequences_max", o->sequences_max, o->batch_max, 1 << 20},
        {"step_tokens_max", o->step_tokens_max, o->batch_max, INT32_MAX},
        {"prefill_chunk_max", o->prefill_chunk_max, 1, INT32_MAX},
        {"context_max", o->context_max, 2, INT32_MAX - NOSA_SCHEDULER_BLOCK_TOKENS},
        {"blocks_total", o->blocks_total, 1, INT32_MAX},
        {"lower_blocks_total", o->lower_blocks_total, 0, INT32_MAX},
        {"outsize_blocks", o->outsize_blocks, 0, o->blocks_total},
        {"slots", o->slots, 0, INT32_MAX},
        {"working_set_guess", o->working_set_guess, 1, INT32_MAX},
        {"run_steps_min", o->run_steps_min, 0, INT32_MAX},
        {"reader_tokens_max", o->reader_tokens_max, 1, INT32_MAX},
        {"priority_max", o->priority_max, 0, 1 << 20},
        {"ageing_ns", (int64_t)(o->ageing_ns >> 1), 0, INT64_C(1) << 40},
        {"prefix_wait_ns", (int64_t)(o->prefix_wait_ns >> 1), 0, INT64_C(1) << 60},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++)
        if (bounds[i].value < bounds[i].min || bounds[i].value > bounds[i].max)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "scheduler: %s is out of range (%lld to %lld)", bounds[i].name,
                                  (long long)bounds[i].min, (long long)bounds[i].max);
    return NOSA_OK;
}

/* The queue's bound does not count those that find a place in the batch at once (submit), and
 * dropped ones go back to the queue whatever its bound. */
static int32_t slots_for(const struct nosa_scheduler_options *options)
{
    return options->queue_max + options->batch_max + options->sequences_max;
}

static enum nosa_status take_memory(struct nosa_scheduler *scheduler, struct nosa_error *error)
{
    size_t n = (size_t)scheduler->n_slots;
    size_t sequences = (size_t)scheduler->options.sequences_max;

    NOSA_TRY(nosa_rank_heap_create(&scheduler->queue, scheduler->n_slots, error));
    NOSA_TRY(nosa_rank_heap_create(&scheduler->parked, scheduler->n_slots, error));
    NOSA_TRY(nosa_rank_heap_create(&scheduler->deadlines, scheduler->n_slots, error));
    scheduler->requests = calloc(n, sizeof *scheduler->requests);
    scheduler->free_slots = calloc(n, sizeof *scheduler->free_slots);
    scheduler->ended = calloc(n, sizeof *scheduler->ended);
    scheduler->open = calloc(sequences, sizeof *scheduler->open);
    scheduler->candidates = calloc(sequences, sizeof *scheduler->candidates);
    scheduler->actions = calloc((size_t)scheduler->actions_max, sizeof *scheduler->actions);
    scheduler->rows = calloc((size_t)scheduler->options.batch_max, sizeof *scheduler->rows);
    if (!scheduler->requests || !scheduler->free_slots || !scheduler->ended || !scheduler->open ||
        !scheduler->candidates || !scheduler->actions || !scheduler->rows)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "scheduler: no memory for %d requests",
                              (int)scheduler->n_slots);
    return NOSA_OK;
}

enum nosa_status nosa_scheduler_create(const struct nosa_scheduler_options *options,
                                       struct nosa_scheduler **out, struct nosa_error *error)
{
    *out = NULL;
    NOSA_TRY(check_options(options, error));
    struct nosa_scheduler *scheduler = calloc(1, sizeof *scheduler);
    if (!scheduler)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "scheduler: no memory");
    scheduler->options = *options;
    scheduler->n_slots = slots_for(options);
    /* A close of each, and of each session a spill, a suspend or drop, and an open or resume. */
    scheduler->actions_max = scheduler->n_slots + 4 * options->sequences_max;
    enum nosa_status status = take_memory(scheduler, error);
    if (status != NOSA_OK) {
        nosa_scheduler_destroy(scheduler);
        return status;
    }
    for (int32_t slot = scheduler->n_slots - 1; slot >= 0; slot--)
        scheduler->free_slots[scheduler->n_free++] = slot;
    scheduler->in_place[PLACE_FREE] = scheduler->n_slots;
    *out = scheduler;
    return NOSA_OK;
}

void nosa_scheduler_destroy(struct nosa_scheduler *scheduler)
{
    if (!scheduler)
        return;
    free(scheduler->rows);
    free(scheduler->actions);
    free(scheduler->candidates);
    free(scheduler->open);
    free(scheduler->ended);
    free(scheduler->free_slots);
    free(scheduler->requests);
    nosa_rank_heap_destroy(&scheduler->deadlines);
    nosa_rank_heap_destroy(&scheduler->parked);
    nosa_rank_heap_destroy(&scheduler->queue);
    free(scheduler);
}

/* ---- moves -------------------------------------------------------------------------------- */

static void insert_open(struct nosa_scheduler *scheduler, int32_t slot)
{
    int32_t at = scheduler->n_open++;
    NOSA_ASSERT(at < scheduler->options.sequences_max);
    while (at > 0 && ranks_before(&scheduler->requests[slot],
                                  &scheduler->requests[scheduler->open[at - 1]])) {
        scheduler->open[at] = scheduler->open[at - 1];
        at--;
    }
    scheduler->open[at] = slot;
}

static void remove_open(struct nosa_scheduler *scheduler, int32_t slot)
{
    int32_t at = 0;
    while (scheduler->open[at] != slot)
        at++;
    scheduler->n_open--;
    memmove(scheduler->open + at, scheduler->open + at + 1,
            (size_t)(scheduler->n_open - at) * sizeof *scheduler->open);
}

static void link_follower(struct nosa_scheduler *scheduler, int32_t slot)
{
    struct request *request = &scheduler->requests[slot];
    struct request *leader = &scheduler->requests[request->leader];
    request->previous_follower = SLOT_NONE;
    request->next_follower = leader->first_follower;
    if (leader->first_follower != SLOT_NONE)
        scheduler->requests[leader->first_follower].previous_follower = slot;
    leader->first_follower = slot;
}

static void unlink_follower(struct nosa_scheduler *scheduler, int32_t slot)
{
    struct request *request = &scheduler->requests[slot];
    if (request->previous_follower == SLOT_NONE)
        scheduler->requests[request->leader].first_follower = request->next_follower;
    else
        scheduler->requests[request->previous_follower].next_follower = request->next_follower;
    if (request->next_follower != SLOT_NONE)
        scheduler->requests[request->next_follower].previous_follower = request->previous_follower;
    request->leader = SLOT_NONE;
}

void nosa_scheduler_release_followers(struct nosa_scheduler *scheduler, int32_t slot)
{
    while (scheduler->requests[slot].first_follower != SLOT_NONE)
        nosa_scheduler_move(scheduler, scheduler->requests[slot].first_follower, PLACE_QUEUED);
}

static void leave(struct nosa_scheduler *scheduler, int32_t slot, enum place to)
{
    enum place from = scheduler->requests[slot].place;
    if (from == PLACE_QUEUED)
        nosa_rank_heap_remove(&scheduler->queue, slot);
    if (from == PLACE_PARKED) {
        nosa_rank_heap_remove(&scheduler->parked, slot);
        unlink_follower(scheduler, slot);
    }
    if (has_session(from) && !has_session(to))
        remove_open(scheduler, slot);
    if (is_resident(from) && !is_resident(to))
        nosa_scheduler_release_followers(scheduler, slot);
}

static void enter(struct nosa_scheduler *scheduler, int32_t slot, enum place from)
{
    struct request *request = &scheduler->requests[slot];
    switch (request->place) {
    case PLACE_QUEUED:
        nosa_rank_heap_push(&scheduler->queue, slot, request->rank, request->order);
        break;
    case PLACE_PARKED:
        nosa_rank_heap_push(&scheduler->parked, slot, (int64_t)request->park_end_ns,
                            request->order);
        link_follower(scheduler, slot);
        break;
    case PLACE_ENDED:
        nosa_rank_heap_remove(&scheduler->deadlines, slot);
        scheduler->ended[scheduler->n_ended++] = slot;
        break;
    case PLACE_FREE: scheduler->free_slots[scheduler->n_free++] = slot; break;
    default: break;
    }
    if (has_session(request->place) && !has_session(from))
        insert_open(scheduler, slot);
    if (request->place != PLACE_ENDED)
        request->has_session = has_session(request->place);
}

void nosa_scheduler_move(struct nosa_scheduler *scheduler, int32_t slot, enum place to)
{
    struct request *request = &scheduler->requests[slot];
    enum place from = request->place;

    NOSA_ASSERT(allowed_moves[from] & BIT(to));
    leave(scheduler, slot, to);
    request->place = to;
    request->touched = scheduler->arrange_number;
    scheduler->in_place[from]--;
    scheduler->in_place[to]++;
    enter(scheduler, slot, from);
}

void nosa_scheduler_set_progress(struct nosa_scheduler *scheduler, int32_t slot, int32_t known,
                                 int32_t computed)
{
    struct request *request = &scheduler->requests[slot];
    NOSA_ASSERT(computed >= 0 && computed <= known && known <= request->length_max);
    if (request->place != PLACE_ENDED)
        scheduler->prefill_pending += (known - computed) - (request->known - request->computed);
    request->known = known;
    request->computed = computed;
    if (computed >= request->prefix_tokens)
        nosa_scheduler_release_followers(scheduler, slot);
}

void nosa_scheduler_finish(struct nosa_scheduler *scheduler, int32_t slot,
                           enum nosa_scheduler_end reason)
{
    struct request *request = &scheduler->requests[slot];
    NOSA_ASSERT(reason != NOSA_SCHEDULER_END_NONE);
    if (request->place == PLACE_ENDED)
        return;
    request->end = reason;
    request->ended_in = request->place;
    scheduler->prefill_pending -= request->known - request->computed;
    scheduler->n_paused -= request->paused;
    nosa_scheduler_move(scheduler, slot, PLACE_ENDED);
}

void nosa_scheduler_set_waiting(struct nosa_scheduler *scheduler, int32_t slot, int32_t waiting)
{
    struct request *request = &scheduler->requests[slot];
    int32_t bound = scheduler->options.reader_tokens_max;

    request->waiting = waiting;
    if (request->place == PLACE_ENDED)
        return;
    bool paused = request->paused ? waiting > bound / 2 : waiting >= bound;
    if (paused == request->paused)
        return;
    request->paused = paused;
    scheduler->n_paused += paused ? 1 : -1;
    if (paused && (request->place == PLACE_QUEUED || request->place == PLACE_PARKED))
        nosa_scheduler_move(scheduler, slot, PLACE_WITHHELD);
    else if (!paused && request->place == PLACE_WITHHELD)
        nosa_scheduler_move(scheduler, slot, PLACE_QUEUED);
    if (paused)
        nosa_scheduler_release_followers(scheduler, slot);
}

/* ---- inputs ------------------------------------------------------------------------------- */

/* The slot of an id, or SLOT_NONE when its request has been closed. */
static int32_t find(const struct nosa_scheduler *scheduler, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    if (slot >= (uint32_t)scheduler->n_slots)
        return SLOT_NONE;
    const struct request *request = &scheduler->requests[slot];
    if (request->place == PLACE_FREE || request->generation != (uint32_t)(id >> 32))
        return SLOT_NONE;
    return (int32_t)slot;
}

static enum nosa_status check_request(const struct nosa_scheduler *scheduler,
                                      const struct nosa_scheduler_request *request,
                                      struct nosa_error *error)
{
    const struct nosa_scheduler_options *options = &scheduler->options;

    if (request->known_tokens < 1 || request->known_tokens >= options->context_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%d tokens; must be 1 to %d, one less than the context",
                              (int)request->known_tokens, (int)options->context_max - 1);
    if (request->max_new_tokens < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%d tokens to generate; must be at least 1",
                              (int)request->max_new_tokens);
    int64_t length = (int64_t)request->known_tokens + request->max_new_tokens;
    if (length > options->context_max)
        length = options->context_max;
    int32_t needed = blocks_for((int32_t)length - 1);
    int64_t most = options->blocks_total;
    if (options->outsize_blocks > 0 &&
        (int64_t)options->outsize_blocks + options->lower_blocks_total > most)
        most = (int64_t)options->outsize_blocks + options->lower_blocks_total;
    if (needed > most)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "%d tokens and up to %d more need %d KV blocks; one sequence can "
                              "have at most %lld",
                              (int)request->known_tokens, (int)length - (int)request->known_tokens,
                              (int)needed, (long long)most);
    int32_t waiting = scheduler->in_place[PLACE_QUEUED] + scheduler->in_place[PLACE_PARKED] +
                      scheduler->in_place[PLACE_WITHHELD];
    int32_t running = scheduler->in_place[PLACE_RUNNING] + scheduler->in_place[PLACE_LOADING];
    if (waiting >= options->queue_max + options->batch_max - running || scheduler->n_free == 0)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED, "the queue is full: %d requests wait",
                              (int)waiting);
    return NOSA_OK;
}

static int64_t rank_of(const struct nosa_scheduler_options *options,
                       const struct nosa_scheduler_request *request)
{
    int32_t priority = request->priority;
    if (priority > options->priority_max)
        priority = options->priority_max;
    if (priority < -options->priority_max)
        priority = -options->priority_max;
    uint64_t arrival = request->arrival_ns < INT64_MAX / 2 ? request->arrival_ns : INT64_MAX / 2;
    return (int64_t)arrival - priority * (int64_t)options->ageing_ns;
}

enum nosa_status nosa_scheduler_submit(struct nosa_scheduler *scheduler,
                                       const struct nosa_scheduler_request *request, uint64_t *id,
                                       struct nosa_error *error)
{
    const struct nosa_scheduler_options *options = &scheduler->options;

    NOSA_TRY(check_request(scheduler, request, error));
    int32_t slot = scheduler->free_slots[--scheduler->n_free];
    struct request *made = &scheduler->requests[slot];
    NOSA_ASSERT(made->place == PLACE_FREE);
    int64_t length = (int64_t)request->known_tokens + request->max_new_tokens;
    int32_t prefix_tokens =
        request->prefix_tokens / NOSA_SCHEDULER_BLOCK_TOKENS * NOSA_SCHEDULER_BLOCK_TOKENS;
    bool has_prefix =
        request->prefix_key != 0 && prefix_tokens > 0 && prefix_tokens < request->known_tokens;
    *made = (struct request){
        .generation = made->generation + 1,
        .tag = request->tag,
        .rank = rank_of(options, request),
        .order = scheduler->submitted++,
        .deadline_ns = request->deadline_ns,
        .length_max = length < options->context_max ? (int32_t)length : options->context_max,
        .prefix_key = has_prefix ? request->prefix_key : 0,
        .prefix_tokens = has_prefix ? prefix_tokens : 0,
        .leader = SLOT_NONE,
        .first_follower = SLOT_NONE,
        .next_follower = SLOT_NONE,
        .previous_follower = SLOT_NONE,
    };
    nosa_scheduler_move(scheduler, slot, PLACE_QUEUED);
    nosa_scheduler_set_progress(scheduler, slot, request->known_tokens, 0);
    if (request->deadline_ns < INT64_MAX)
        nosa_rank_heap_push(&scheduler->deadlines, slot, (int64_t)request->deadline_ns,
                            made->order);
    *id = id_of(slot, made->generation);
    return NOSA_OK;
}

void nosa_scheduler_end(struct nosa_scheduler *scheduler, uint64_t id,
                        enum nosa_scheduler_end reason)
{
    int32_t slot = find(scheduler, id);
    if (slot != SLOT_NONE)
        nosa_scheduler_finish(scheduler, slot, reason);
}

void nosa_scheduler_reader(struct nosa_scheduler *scheduler, uint64_t id, int32_t waiting_tokens)
{
    int32_t slot = find(scheduler, id);
    if (slot != SLOT_NONE)
        nosa_scheduler_set_waiting(scheduler, slot, waiting_tokens);
}

void nosa_scheduler_loading(struct nosa_scheduler *scheduler, uint64_t id, int32_t n_tokens)
{
    int32_t slot = find(scheduler, id);
    if (slot != SLOT_NONE && scheduler->requests[slot].place == PLACE_LOADING)
        scheduler->requests[slot].loading = n_tokens;
}

void nosa_scheduler_loaded(struct nosa_scheduler *scheduler, uint64_t id, int32_t n_tokens)
{
    int32_t slot = find(scheduler, id);
    if (slot == SLOT_NONE || scheduler->requests[slot].place != PLACE_LOADING)
        return;
    struct request *request = &scheduler->requests[slot];
    NOSA_ASSERT(n_tokens >= 0 && n_tokens < request->known);
    nosa_scheduler_move(scheduler, slot, PLACE_RUNNING);
    nosa_scheduler_set_progress(scheduler, slot, request->known, n_tokens);
}

void nosa_scheduler_suspended(struct nosa_scheduler *scheduler, uint64_t id, bool moved)
{
    int32_t slot = find(scheduler, id);
    if (slot == SLOT_NONE || scheduler->requests[slot].place != PLACE_SUSPENDING)
        return;
    nosa_scheduler_move(scheduler, slot, moved ? PLACE_SUSPENDED : PLACE_READY);
    scheduler->requests[slot].immovable = !moved;
}

/* ---- for people and metrics --------------------------------------------------------------- */

static enum nosa_scheduler_state state_of(const struct request *request)
{
    if (request->place == PLACE_ENDED || request->place == PLACE_FREE)
        return NOSA_SCHEDULER_ENDED;
    if (request->paused)
        return NOSA_SCHEDULER_PAUSED;
    switch (request->place) {
    case PLACE_LOADING: return NOSA_SCHEDULER_LOADING;
    case PLACE_SUSPENDING:
    case PLACE_SUSPENDED: return NOSA_SCHEDULER_SUSPENDED;
    case PLACE_RUNNING:
    case PLACE_READY:
        return request->known - request->computed > 1 || request->new_tokens == 0
                   ? NOSA_SCHEDULER_PREFILL
                   : NOSA_SCHEDULER_DECODE;
    default: return NOSA_SCHEDULER_QUEUED;
    }
}

void nosa_scheduler_info(const struct nosa_scheduler *scheduler, uint64_t id,
                         struct nosa_scheduler_info *out)
{
    int32_t slot = find(scheduler, id);
    *out = (struct nosa_scheduler_info){.state = NOSA_SCHEDULER_ENDED};
    if (slot == SLOT_NONE)
        return;
    const struct request *request = &scheduler->requests[slot];
    *out = (struct nosa_scheduler_info){
        .state = state_of(request),
        .running = request->place == PLACE_RUNNING,
        .outsize = request->outsize,
        .known_tokens = request->known,
        .computed_tokens = request->computed,
        .new_tokens = request->new_tokens,
        .working_set = working_set(scheduler, request),
    };
}

void nosa_scheduler_counters(const struct nosa_scheduler *scheduler,
                             struct nosa_scheduler_counters *out)
{
    const int32_t *in_place = scheduler->in_place;
    *out = (struct nosa_scheduler_counters){
        .queued = in_place[PLACE_QUEUED] + in_place[PLACE_PARKED] + in_place[PLACE_WITHHELD],
        .parked = in_place[PLACE_PARKED],
        .loading = in_place[PLACE_LOADING],
        .ready = in_place[PLACE_READY],
        .running = in_place[PLACE_RUNNING],
        .suspended = in_place[PLACE_SUSPENDING] + in_place[PLACE_SUSPENDED],
        .paused = scheduler->n_paused,
        .prefill_tokens_pending = scheduler->prefill_pending,
        .suspends = scheduler->suspends,
        .resumes = scheduler->resumes,
        .drops = scheduler->drops,
        .decode_stalls = scheduler->decode_stalls,
    };
}

uint64_t nosa_scheduler_wake_ns(const struct nosa_scheduler *scheduler)
{
    if (scheduler->lapsed || scheduler->n_ended > 0)
        return 0;
    const struct nosa_rank_heap_node *deadline = nosa_rank_heap_first(&scheduler->deadlines);
    const struct nosa_rank_heap_node *parked = nosa_rank_heap_first(&scheduler->parked);
    uint64_t wake_ns = deadline ? (uint64_t)deadline->key : NOSA_SCHEDULER_NO_WAKE;
    if (parked && (uint64_t)parked->key < wake_ns)
        wake_ns = (uint64_t)parked->key;
    return wake_ns;
}

const char *nosa_scheduler_state_name(enum nosa_scheduler_state state)
{
    static const char *const names[] = {"QUEUED", "LOADING",   "PREFILL", "DECODE",
                                        "PAUSED", "SUSPENDED", "ENDED"};
    NOSA_ASSERT((size_t)state < sizeof names / sizeof *names);
    return names[state];
}

const char *nosa_scheduler_end_name(enum nosa_scheduler_end reason)
{
    static const char *const names[] = {"NONE",     "STOP",   "LENGTH", "CANCELLED",
                                        "DEADLINE", "FAILED", "MOVED"};
    NOSA_ASSERT((size_t)reason < sizeof names / sizeof *names);
    return names[reason];
}
