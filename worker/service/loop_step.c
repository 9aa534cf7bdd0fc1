/* One step of the engine: rows in, tokens out. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "service/loop_internal.h"

/* A step that the engine has no blocks for is chosen anew; after so many in a row, one of the
 * requests in it ends. */
#define REFUSED_MAX 100

/* Reads of one request's KV that may fail within one step. */
#define RECOMPUTES_MAX 4

/* Weight of the last step in the rates. */
#define RATE_WEIGHT 0.2

static void fold_rate(double *rate, double tokens, double seconds)
{
    if (tokens <= 0 || seconds <= 0)
        return;
    double now = tokens / seconds;
    *rate = *rate > 0 ? *rate + RATE_WEIGHT * (now - *rate) : now;
}

/* A step's time is shared out by its tokens. */
static void note_rates(struct nosa_loop *loop, const struct nosa_scheduler_rows *rows,
                       double seconds)
{
    int32_t decode = 0;
    for (int32_t i = 0; i < rows->n_rows; i++)
        decode += rows->rows[i].n_tokens == 1;
    int32_t prefill = rows->n_tokens - decode;
    double share = (double)prefill / rows->n_tokens;
    fold_rate(&loop->now.prefill_tokens_per_s, prefill, seconds * share);
    fold_rate(&loop->now.decode_tokens_per_s, decode, seconds * (1 - share));
    nosa_histogram_observe(loop->options.metrics->step_s, seconds);
}

static void note_token_time(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_run_engine *engine = &run->engine;
    uint64_t now_ns = nosa_monotonic_ns();
    if (engine->first_token_ns) {
        nosa_histogram_observe(loop->options.metrics->inter_token_s,
                               nosa_seconds_between(engine->last_token_ns, now_ns));
    } else {
        engine->first_token_ns = now_ns;
        nosa_histogram_observe(loop->options.metrics->first_token_s,
                               nosa_seconds_between(run->received_ns, now_ns));
        nosa_digest_touch(loop->options.digest, run->hashes, run->n_hashes);
    }
    engine->last_token_ns = now_ns;
    nosa_counter_add(loop->options.metrics->generation_tokens, 1);
}

/* Slots, in blocks, that a sequence's steps look at: as measured while it decodes, where a record
 * that several select counts once; for a prompt, what one of its rows selects. */
static int32_t working_set(const struct nosa_loop *loop, const struct nosa_session *session,
                           bool decodes)
{
    int32_t measured = nosa_session_working_set(session);
    int32_t blocks = (nosa_session_length(session) + 63) / 64;
    int32_t most = loop->info->attention == NOSA_ATTENTION_FULL
                       ? blocks
                       : (int32_t)loop->info->config->sparse.topk + 1;
    if (decodes && measured > 0)
        return measured < blocks ? measured : blocks;
    return blocks < most ? blocks : most;
}

static void fail(struct nosa_run *run, struct nosa_scheduler_result *result,
                 enum nosa_status status, const char *text)
{
    nosa_error_set(&run->engine.failure, status, "%s", text);
    result->end = NOSA_SCHEDULER_END_FAILED;
}

/* What became of one row. */
static void deliver(struct nosa_loop *loop, const struct nosa_step_item *item, struct nosa_run *run,
                    struct nosa_scheduler_result *result)
{
    bool decodes = item->n_tokens == 1;
    *result = (struct nosa_scheduler_result){
        .appended = item->appended, .working_set = working_set(loop, item->session, decodes)};
    if (!item->sampled)
        return;
    if (!isfinite(item->result.logprob)) {
        fail(run, result, NOSA_INTERNAL, "the model's logits are not finite numbers");
        return;
    }
    run->engine.n_output++;
    note_token_time(loop, run);
    nosa_run_push(run, &item->result);
    if (nosa_loop_ends_at(loop, run, (uint32_t)item->result.token))
        result->end = NOSA_SCHEDULER_END_STOP;
}

/* Part of a session's KV was lost to a failed read, and the step did nothing for it: computes it
 * alone as far as the step was to come, so that the scheduler's books stay true. */
static enum nosa_status catch_up(struct nosa_loop *loop, struct nosa_step_item *item, int32_t end,
                                 struct nosa_error *error)
{
    int32_t recomputes = 0;
    while (nosa_session_computed(item->session) < end) {
        int32_t left = end - nosa_session_computed(item->session);
        item->n_tokens = left < loop->options.prefill_chunk ? left : loop->options.prefill_chunk;
        NOSA_TRY(nosa_engine_step(loop->options.engine, item, 1, error));
        if (item->recompute && ++recomputes > RECOMPUTES_MAX)
            return nosa_error_set(error, NOSA_UNAVAILABLE,
                                  "KV on NVMe could not be read, again and again");
    }
    return NOSA_OK;
}

/* The engine found fewer blocks than it said. Nothing has changed: the step is chosen anew, and in
 * the end the last of its requests gives way. */
static void refused(struct nosa_loop *loop, const struct nosa_scheduler_rows *rows,
                    const struct nosa_error *error)
{
    struct nosa_error ignored = {0};
    struct nosa_run *last = nosa_loop_run_of(rows->rows[rows->n_rows - 1].tag);
    nosa_scheduler_step_failed(loop->scheduler);
    if (++loop->steps_refused > REFUSED_MAX) {
        loop->steps_refused = 0;
        nosa_log(NOSA_LOG_WARN, "worker", "request %s gives way: %s", last->id, error->text);
        nosa_loop_fail(loop, last, error);
    }
    if (nosa_engine_poll(loop->options.engine, 10, &ignored) != NOSA_OK)
        nosa_loop_break(loop, &ignored);
}

/* Ends the rows of a step that a broken engine did not compute; they go on elsewhere. */
static void give_up(struct nosa_loop *loop, const struct nosa_error *error)
{
    nosa_scheduler_step_failed(loop->scheduler);
    nosa_loop_break(loop, error);
}

static enum nosa_status compute(struct nosa_loop *loop, const struct nosa_scheduler_rows *rows,
                                struct nosa_error *error)
{
    for (int32_t i = 0; i < rows->n_rows; i++)
        loop->items[i] =
            (struct nosa_step_item){.session = nosa_loop_run_of(rows->rows[i].tag)->engine.session,
                                    .n_tokens = rows->rows[i].n_tokens};
    return nosa_engine_step(loop->options.engine, loop->items, rows->n_rows, error);
}

static void finish(struct nosa_loop *loop, const struct nosa_scheduler_rows *rows)
{
    for (int32_t i = 0; i < rows->n_rows; i++) {
        struct nosa_run *run = nosa_loop_run_of(rows->rows[i].tag);
        struct nosa_step_item *item = &loop->items[i];
        struct nosa_scheduler_result *result = &loop->results[i];
        struct nosa_error error = {0};
        struct nosa_scheduler_info info;
        nosa_scheduler_info(loop->scheduler, run->engine.scheduler_id, &info);
        int32_t end = info.computed_tokens + rows->rows[i].n_tokens;
        if (item->recompute)
            nosa_loop_note_lost(run, info.computed_tokens, nosa_session_computed(item->session));
        if (item->recompute && catch_up(loop, item, end, &error) != NOSA_OK) {
            *result = (struct nosa_scheduler_result){0};
            fail(run, result, error.status, error.text);
            continue;
        }
        deliver(loop, item, run, result);
    }
    nosa_scheduler_step_done(loop->scheduler, loop->results, rows->n_rows);
    /* The scheduler counted every token as waiting; those that were sent on do not. */
    for (int32_t i = 0; i < rows->n_rows; i++) {
        struct nosa_run *run = nosa_loop_run_of(rows->rows[i].tag);
        if (loop->items[i].sampled)
            nosa_loop_note_reader(loop, run);
    }
}

bool nosa_loop_step(struct nosa_loop *loop)
{
    struct nosa_scheduler_store store;
    struct nosa_error error = {0};
    if (loop->broken)
        return false;
    nosa_loop_store(loop, true, &store);
    struct nosa_scheduler_rows rows = nosa_scheduler_step(loop->scheduler, &store);
    if (rows.n_rows == 0)
        return false;
    uint64_t start_ns = nosa_monotonic_ns();
    enum nosa_status status = compute(loop, &rows, &error);
    if (status == NOSA_RESOURCE_EXHAUSTED) {
        refused(loop, &rows, &error);
        return true;
    }
    if (status != NOSA_OK) {
        give_up(loop, &error);
        return true;
    }
    loop->steps_refused = 0;
    note_rates(loop, &rows, nosa_seconds_between(start_ns, nosa_monotonic_ns()));
    finish(loop, &rows);
    return true;
}
