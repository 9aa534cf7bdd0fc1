/*
 * What the next step computes: rows of the running requests, and what became of them.
 *
 * Decode rows come first and always; prefill takes what is left, in rank order, bounded by
 * prefill_chunk_max while anyone decodes. So between two tokens of a running request lies at most
 * one chunk of others' prefill, or one step of an outsize request.
 */
#include "scheduler/scheduler_internal.h"

struct choice {
    struct nosa_scheduler *scheduler;
    int64_t blocks_free;
    int64_t lower_free;
    int32_t n_tokens;
    bool lapsed; /* a request that was to run its steps undisturbed has lost that */
};

static bool runs(const struct request *request)
{
    return request->place == PLACE_RUNNING && !request->paused;
}

static int32_t tokens_left(const struct request *request)
{
    return request->known - request->computed;
}

/* Block ids that the next n_tokens take. */
static int32_t blocks_needed(const struct nosa_scheduler *scheduler, const struct request *request,
                             int32_t n_tokens)
{
    return resident_blocks(scheduler, request->outsize, request->computed + n_tokens) -
           resident_blocks(scheduler, request->outsize, request->computed);
}

static void add_row(struct choice *choice, int32_t slot, int32_t n_tokens)
{
    struct nosa_scheduler *scheduler = choice->scheduler;
    struct request *request = &scheduler->requests[slot];

    NOSA_ASSERT(scheduler->n_rows < scheduler->options.batch_max);
    choice->blocks_free -= blocks_needed(scheduler, request, n_tokens);
    choice->n_tokens += n_tokens;
    request->got_row = true;
    request->steps_run += request->steps_run < INT32_MAX;
    scheduler->rows[scheduler->n_rows++] = (struct nosa_scheduler_row){
        .id = id_of(slot, request->generation),
        .tag = request->tag,
        .n_tokens = n_tokens,
        .outsize = request->outsize,
    };
}

/* It could not go on: what is short may be taken from it. */
static void miss_row(struct choice *choice, struct request *request)
{
    choice->lapsed |= request->got_row;
    request->got_row = false;
}

/* The most tokens of the request that `n_tokens` and the free blocks allow, up to the end of a
 * block when it does not end there itself. */
static int32_t chunk_of(const struct choice *choice, const struct request *request,
                        int32_t n_tokens)
{
    const struct nosa_scheduler *scheduler = choice->scheduler;
    int32_t left = tokens_left(request);
    int32_t n = left < n_tokens ? left : n_tokens;

    while (n > 0 && blocks_needed(scheduler, request, n) > choice->blocks_free) {
        int32_t over = (request->computed + n - 1) % NOSA_SCHEDULER_BLOCK_TOKENS + 1;
        n = n > over ? n - over : 0;
    }
    int32_t end = request->computed + n;
    int32_t aligned = end - end % NOSA_SCHEDULER_BLOCK_TOKENS;
    if (n < left && aligned > request->computed)
        n = aligned - request->computed;
    return n;
}

static void add_decode_rows(struct choice *choice, int32_t *n_decoding)
{
    struct nosa_scheduler *scheduler = choice->scheduler;

    for (int32_t i = 0; i < scheduler->n_open; i++) {
        struct request *request = &scheduler->requests[scheduler->open[i]];
        if (!runs(request) || request->outsize || tokens_left(request) != 1)
            continue;
        (*n_decoding)++;
        if (blocks_needed(scheduler, request, 1) <= choice->blocks_free) {
            add_row(choice, scheduler->open[i], 1);
            continue;
        }
        miss_row(choice, request);
        scheduler->decode_stalls++;
    }
}

static void add_prefill_rows(struct choice *choice, int32_t n_tokens)
{
    struct nosa_scheduler *scheduler = choice->scheduler;

    for (int32_t i = 0; i < scheduler->n_open; i++) {
        struct request *request = &scheduler->requests[scheduler->open[i]];
        if (!runs(request) || request->outsize || tokens_left(request) <= 1)
            continue;
        int32_t n = chunk_of(choice, request, n_tokens);
        if (n_tokens == 0) { /* its turn has not come: the step counts all the same */
            request->steps_run++;
            continue;
        }
        if (n == 0) {
            miss_row(choice, request);
            continue;
        }
        add_row(choice, scheduler->open[i], n);
        n_tokens -= n;
    }
}

static void add_normal_rows(struct choice *choice)
{
    const struct nosa_scheduler_options *options = &choice->scheduler->options;
    int32_t n_decoding = 0;

    add_decode_rows(choice, &n_decoding);
    int32_t n_tokens = options->step_tokens_max - choice->n_tokens;
    if (n_decoding > 0 && n_tokens > options->prefill_chunk_max)
        n_tokens = options->prefill_chunk_max;
    add_prefill_rows(choice, n_tokens);
}

static bool anyone_runs(const struct nosa_scheduler *scheduler)
{
    for (int32_t i = 0; i < scheduler->n_open; i++) {
        const struct request *request = &scheduler->requests[scheduler->open[i]];
        if (runs(request) && !request->outsize)
            return true;
    }
    return false;
}

/* The step of an outsize request, if one runs and can go on. */
static void add_outsize_row(struct choice *choice, bool others_run)
{
    struct nosa_scheduler *scheduler = choice->scheduler;
    const struct nosa_scheduler_options *options = &scheduler->options;

    for (int32_t i = 0; i < scheduler->n_open && scheduler->n_rows == 0; i++) {
        struct request *request = &scheduler->requests[scheduler->open[i]];
        if (!runs(request) || !request->outsize)
            continue;
        int32_t n = options->step_tokens_max;
        if (others_run && n > options->prefill_chunk_max)
            n = options->prefill_chunk_max;
        n = chunk_of(choice, request, n);
        int64_t tail = tail_blocks(scheduler, request->computed);
        while (n > 0 && tail_blocks(scheduler, request->computed + n) - tail > choice->lower_free) {
            int32_t over = (request->computed + n - 1) % NOSA_SCHEDULER_BLOCK_TOKENS + 1;
            n = n > over ? n - over : 0;
        }
        if (n > 0)
            add_row(choice, scheduler->open[i], n);
        else
            miss_row(choice, request);
    }
}

struct nosa_scheduler_rows nosa_scheduler_step(struct nosa_scheduler *scheduler,
                                               const struct nosa_scheduler_store *store)
{
    struct choice choice = {.scheduler = scheduler,
                            .blocks_free = store->blocks_available,
                            .lower_free = store->lower_blocks_available};
    bool others_run = anyone_runs(scheduler);

    NOSA_ASSERT(!scheduler->rows_outstanding);
    scheduler->n_rows = 0;
    if (!others_run || !scheduler->last_step_outsize)
        add_outsize_row(&choice, others_run);
    if (scheduler->n_rows == 0)
        add_normal_rows(&choice);
    if (scheduler->n_rows == 0 && others_run)
        add_outsize_row(&choice, others_run);
    scheduler->last_step_outsize = scheduler->n_rows > 0 && scheduler->rows[0].outsize;
    scheduler->rows_outstanding = scheduler->n_rows > 0;
    scheduler->lapsed = choice.lapsed && scheduler->n_rows == 0;
    return (struct nosa_scheduler_rows){scheduler->rows, scheduler->n_rows, choice.n_tokens};
}

static void take_result(struct nosa_scheduler *scheduler, const struct nosa_scheduler_row *row,
                        const struct nosa_scheduler_result *result)
{
    int32_t slot = (int32_t)(uint32_t)row->id;
    struct request *request = &scheduler->requests[slot];
    int32_t computed = request->computed + row->n_tokens;
    int32_t known = request->known + result->appended;

    NOSA_ASSERT(request->generation == (uint32_t)(row->id >> 32));
    NOSA_ASSERT(!result->appended || computed == request->known);
    if (result->working_set > 0)
        request->working_set = result->working_set;
    nosa_scheduler_set_progress(scheduler, slot, known, computed);
    request->new_tokens += result->appended;
    enum nosa_scheduler_end end = result->end;
    if (end == NOSA_SCHEDULER_END_NONE && (known == request->length_max || known == computed))
        end = NOSA_SCHEDULER_END_LENGTH;
    if (end != NOSA_SCHEDULER_END_NONE)
        nosa_scheduler_finish(scheduler, slot, end);
    else if (result->appended)
        nosa_scheduler_set_waiting(scheduler, slot, request->waiting + 1);
}

void nosa_scheduler_step_done(struct nosa_scheduler *scheduler,
                              const struct nosa_scheduler_result *results, int32_t n_results)
{
    NOSA_ASSERT(n_results == scheduler->n_rows);
    for (int32_t i = 0; i < n_results; i++)
        take_result(scheduler, &scheduler->rows[i], &results[i]);
    scheduler->n_rows = 0;
    scheduler->rows_outstanding = false;
}

void nosa_scheduler_step_failed(struct nosa_scheduler *scheduler)
{
    for (int32_t i = 0; i < scheduler->n_rows; i++)
        scheduler->requests[(uint32_t)scheduler->rows[i].id].got_row = false;
    scheduler->n_rows = 0;
    scheduler->rows_outstanding = false;
}
