/* Carries out the scheduler's decisions on sessions, and ends runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "model/config.h"
#include "service/loop_internal.h"

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / (double)NOSA_NS_PER_MS : 0;
}

bool nosa_loop_ends_at(const struct nosa_loop *loop, const struct nosa_run *run, uint32_t token)
{
    if (!run->message->ignore_eos && nosa_model_config_is_eos(loop->info->config, (int32_t)token))
        return true;
    return nosa_run_stops_at(run, token);
}

/* ---- ends --------------------------------------------------------------------------------------
 */

/* How a call is to end, and why. */
static enum nosa_rpc_code code_of(const struct nosa_run *run, enum nosa_scheduler_end reason,
                                  const char **text)
{
    *text = NULL;
    switch (reason) {
    case NOSA_SCHEDULER_END_STOP:
    case NOSA_SCHEDULER_END_LENGTH: return NOSA_RPC_OK;
    case NOSA_SCHEDULER_END_DEADLINE:
        *text = "the call's deadline has passed";
        return NOSA_RPC_DEADLINE_EXCEEDED;
    case NOSA_SCHEDULER_END_MOVED:
        *text = "the worker drains; go on elsewhere";
        return NOSA_RPC_ABORTED;
    case NOSA_SCHEDULER_END_CANCELLED:
        if (nosa_rpc_call_is_cancelled(run->call))
            return nosa_rpc_call_cancel_code(run->call);
        *text = "ended by an operator";
        return NOSA_RPC_CANCELLED;
    case NOSA_SCHEDULER_END_NONE:
    case NOSA_SCHEDULER_END_FAILED: break;
    }
    *text = run->engine.failure.text;
    return nosa_rpc_code_from_status(run->engine.failure.status);
}

static void add_session_kv(struct nosa_run *run)
{
    struct nosa_session_kv kv;
    nosa_session_kv(run->engine.session, &kv);
    run->engine.kv.first_hits += kv.first_hits;
    run->engine.kv.host_hits += kv.host_hits;
    run->engine.kv.nvme_hits += kv.nvme_hits;
    run->engine.kv.prefetched_used += kv.prefetched_used;
}

void nosa_loop_note_lost(struct nosa_run *run, int32_t hoped, int32_t computed)
{
    int32_t lost = hoped - computed;
    if (lost > 0)
        run->engine.recomputed_blocks +=
            (uint32_t)(lost + NOSA_DIGEST_BLOCK_TOKENS - 1) / NOSA_DIGEST_BLOCK_TOKENS;
}

/* Begins or ends a time of which the run's engine counts the sum. */
static void clock_time(uint64_t *since_ns, uint64_t *sum_ns, bool on, uint64_t now_ns)
{
    if (*since_ns && !on) {
        *sum_ns += now_ns - *since_ns;
        *since_ns = 0;
    } else if (!*since_ns && on) {
        *since_ns = now_ns;
    }
}

void nosa_loop_note_reader(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_run_engine *engine = &run->engine;
    struct nosa_scheduler_info info;
    nosa_scheduler_reader(loop->scheduler, engine->scheduler_id, (int32_t)nosa_run_waiting(run));
    nosa_scheduler_info(loop->scheduler, engine->scheduler_id, &info);
    clock_time(&engine->paused_at_ns, &engine->paused_ns, info.state == NOSA_SCHEDULER_PAUSED,
               nosa_monotonic_ns());
}

static void stop_clocks(struct nosa_run_engine *engine)
{
    uint64_t now_ns = nosa_monotonic_ns();
    clock_time(&engine->paused_at_ns, &engine->paused_ns, false, now_ns);
    clock_time(&engine->suspended_at_ns, &engine->suspended_ns, false, now_ns);
    clock_time(&engine->loading_ns, &engine->stalled_ns, false, now_ns);
}

/* The blocks that a session leaves in the cache can be found by others from now on. */
static void note_prefix(struct nosa_loop *loop, const struct nosa_run *run)
{
    const struct nosa_session *session = run->engine.session;
    size_t n = (size_t)nosa_session_computed(session) / NOSA_DIGEST_BLOCK_TOKENS;
    size_t known = n < run->n_hashes ? n : run->n_hashes;
    uint64_t *hashes = n > known ? malloc(n * sizeof *hashes) : NULL;
    if (!hashes) {
        nosa_digest_touch(loop->options.digest, run->hashes, known);
        return;
    }
    const char *salt = run->message->cache_salt;
    memcpy(hashes, run->hashes, known * sizeof *hashes);
    nosa_digest_chain(known ? hashes[known - 1] : nosa_digest_root(salt, strlen(salt)),
                      nosa_session_tokens(session) + known * NOSA_DIGEST_BLOCK_TOKENS, n - known,
                      hashes + known);
    nosa_digest_touch(loop->options.digest, hashes, n);
    free(hashes);
}

static void close_session(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_session *session = run->engine.session;
    if (!session)
        return;
    if (!nosa_session_suspended(session) && !run->engine.loading)
        note_prefix(loop, run);
    loop->suspended_blocks -= run->engine.suspended_blocks;
    run->engine.suspended_blocks = 0;
    loop->n_loading -= run->engine.loading;
    run->engine.loading = false;
    add_session_kv(run);
    nosa_session_close(session);
    run->engine.session = NULL;
}

static void count_end(struct nosa_loop *loop, const struct nosa_run *run, enum nosa_rpc_code code,
                      const char *text, uint64_t now_ns)
{
    struct nosa_worker_metrics *metrics = loop->options.metrics;
    const struct nosa_run_engine *engine = &run->engine;
    nosa_counter_add(metrics->requests[code], 1);
    nosa_histogram_observe(metrics->request_s, nosa_seconds_between(run->received_ns, now_ns));
    nosa_counter_add(metrics->hits[0], engine->kv.first_hits);
    nosa_counter_add(metrics->hits[1], engine->kv.host_hits);
    nosa_counter_add(metrics->hits[2], engine->kv.nvme_hits);
    nosa_counter_add(metrics->prefetched_used, engine->kv.prefetched_used);
    uint64_t slow_ns = loop->options.slow_ns;
    bool slow = slow_ns > 0 && now_ns - run->received_ns >= slow_ns;
    enum nosa_log_level level = code == NOSA_RPC_INTERNAL ? NOSA_LOG_ERROR
                                : slow                    ? NOSA_LOG_WARN
                                                          : NOSA_LOG_DEBUG;
    if (!nosa_log_enabled(level))
        return;
    uint64_t opened_ns = engine->opened_ns ? engine->opened_ns : now_ns;
    uint64_t first_ns = engine->first_token_ns ? engine->first_token_ns : now_ns;
    nosa_log_about(level, "worker", &(struct nosa_log_subject){.request = run->id},
                   "request %s: %s%s%s%s, %d prompt tokens (%d cached), %d of output, "
                   "%.0f ms queued, %.0f ms to the first token after that, %.0f ms decoding; of "
                   "these %.0f ms waiting for KV on NVMe, %.0f ms suspended, %.0f ms paused by "
                   "its reader; %u blocks computed again",
                   run->id, slow ? "slow, " : "", nosa_rpc_code_name(code), text ? " " : "",
                   text ? text : "", run->n_prompt, engine->cached_tokens, engine->n_output,
                   ms_between(run->received_ns, opened_ns), ms_between(opened_ns, first_ns),
                   ms_between(first_ns, now_ns), ms_between(0, engine->stalled_ns),
                   ms_between(0, engine->suspended_ns), ms_between(0, engine->paused_ns),
                   engine->recomputed_blocks);
}

static void fill_usage(const struct nosa_run *run, struct nosa_run_usage *usage)
{
    const struct nosa_run_engine *engine = &run->engine;
    *usage = (struct nosa_run_usage){
        .prompt_tokens = (uint32_t)run->n_prompt,
        .cached_tokens = (uint32_t)engine->cached_tokens,
        .output_tokens = (uint32_t)engine->n_output,
        .stall_ms = ms_between(0, engine->stalled_ns),
        .recomputed_blocks = engine->recomputed_blocks,
        .kv = engine->kv,
    };
    if (engine->opened_ns)
        usage->queue_ms = ms_between(run->received_ns, engine->opened_ns);
    if (engine->first_token_ns) {
        usage->ttft_ms = ms_between(run->received_ns, engine->first_token_ns);
        usage->decode_ms = ms_between(engine->first_token_ns, engine->last_token_ns);
    }
}

static void leave_open(struct nosa_loop *loop, struct nosa_run *run)
{
    int32_t slot = run->engine.slot;
    if (slot < 0)
        return;
    loop->open[slot] = loop->open[--loop->n_open];
    loop->open[slot]->engine.slot = slot;
    run->engine.slot = -1;
}

void nosa_loop_end(struct nosa_loop *loop, struct nosa_run *run, enum nosa_scheduler_end reason)
{
    struct nosa_run_usage usage;
    const char *text;
    close_session(loop, run);
    stop_clocks(&run->engine);
    run->engine.submitted = false;
    leave_open(loop, run);
    nosa_loop_unlist(loop, run);
    fill_usage(run, &usage);
    enum nosa_rpc_code code = code_of(run, reason, &text);
    count_end(loop, run, code, text, nosa_monotonic_ns());
    nosa_run_end(run, code, text, reason, &usage);
    nosa_gate_leave(loop->options.gate);
    nosa_run_release(run);
}

void nosa_loop_fail(struct nosa_loop *loop, struct nosa_run *run, const struct nosa_error *error)
{
    if (run->engine.failure.status == NOSA_OK)
        run->engine.failure = *error;
    nosa_scheduler_end(loop->scheduler, run->engine.scheduler_id, NOSA_SCHEDULER_END_FAILED);
}

/* ---- coming in ---------------------------------------------------------------------------------
 */

/* Requests with a long common beginning wait for the first of them: those of about one length are
 * compared over as many blocks as the largest power of two below it. */
static void name_prefix(const struct nosa_run *run, struct nosa_scheduler_request *request)
{
    size_t blocks = 1;
    if (run->n_hashes < 2)
        return;
    while (2 * blocks < run->n_hashes)
        blocks *= 2;
    request->prefix_key = run->hashes[blocks - 1] | 1;
    request->prefix_tokens = (int32_t)(blocks * NOSA_DIGEST_BLOCK_TOKENS);
}

static bool is_complete(const struct nosa_loop *loop, const struct nosa_run *run,
                        enum nosa_scheduler_end *reason)
{
    *reason = NOSA_SCHEDULER_END_LENGTH;
    if (run->n_known > run->n_prompt &&
        nosa_loop_ends_at(loop, run, run->engine.tokens[run->n_known - 1]))
        *reason = NOSA_SCHEDULER_END_STOP;
    return run->n_new == 0 || *reason == NOSA_SCHEDULER_END_STOP;
}

void nosa_loop_take(struct nosa_loop *loop, struct nosa_run *run)
{
    enum nosa_scheduler_end reason;
    struct nosa_run_engine *engine = &run->engine;
    if (loop->broken || engine->cancel_asked) {
        nosa_loop_end(loop, run,
                      loop->broken ? NOSA_SCHEDULER_END_MOVED : NOSA_SCHEDULER_END_CANCELLED);
        return;
    }
    if (is_complete(loop, run, &reason)) {
        nosa_run_start(run, 0, 0);
        nosa_loop_end(loop, run, reason);
        return;
    }
    struct nosa_scheduler_request request = {
        .tag = nosa_loop_tag_of(run),
        .priority = run->message->priority,
        .arrival_ns = run->arrival_ns,
        .deadline_ns = nosa_rpc_call_deadline_ns(run->call),
        .known_tokens = run->n_known,
        .max_new_tokens = run->n_new,
    };
    name_prefix(run, &request);
    if (nosa_scheduler_submit(loop->scheduler, &request, &engine->scheduler_id, &engine->failure) !=
        NOSA_OK) {
        nosa_loop_end(loop, run, NOSA_SCHEDULER_END_FAILED);
        return;
    }
    NOSA_ASSERT(loop->n_open < loop->open_max);
    engine->submitted = true;
    engine->slot = loop->n_open;
    loop->open[loop->n_open++] = run;
}

/* ---- actions ------------------------------------------------------------------------------------
 */

/* The session's prefix is there: says so to the scheduler, and the first time to the stream. */
static void loaded(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_run_engine *engine = &run->engine;
    int32_t computed = nosa_session_computed(engine->session);
    nosa_loop_note_lost(run, engine->hoped_tokens, computed);
    nosa_scheduler_loaded(loop->scheduler, engine->scheduler_id, computed);
    if (engine->started)
        return;
    engine->started = true;
    engine->cached_tokens = computed < run->n_prompt ? computed : run->n_prompt;
    nosa_counter_add(loop->options.metrics->prompt_tokens, (uint64_t)run->n_prompt);
    nosa_counter_add(loop->options.metrics->cached_tokens, (uint64_t)engine->cached_tokens);
    nosa_run_start(run, (uint32_t)engine->cached_tokens,
                   ms_between(run->received_ns, engine->opened_ns));
}

/* What was taken over from the host tier is brought up now, on its own, so that the time says how
 * fast that is. */
static void bring_up(struct nosa_loop *loop)
{
    struct nosa_kv_store_counters kv;
    struct nosa_error error = {0};
    if (loop->info->kv_images == 0 || loop->broken)
        return;
    nosa_engine_kv_counters(loop->options.engine, &kv);
    uint64_t n_blocks = kv.loaded_blocks - loop->loaded_blocks, start_ns = nosa_monotonic_ns();
    loop->loaded_blocks = kv.loaded_blocks;
    if (n_blocks == 0)
        return;
    if (nosa_engine_poll(loop->options.engine, 0, &error) != NOSA_OK) {
        nosa_loop_break(loop, &error);
        return;
    }
    double seconds = nosa_seconds_between(start_ns, nosa_monotonic_ns());
    if (seconds > 0)
        loop->now.host_tokens_per_s = (double)(n_blocks * NOSA_DIGEST_BLOCK_TOKENS) / seconds;
}

static void await_prefix(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_run_engine *engine = &run->engine;
    engine->hoped_tokens = nosa_session_computed(engine->session);
    if (engine->hoped_tokens > 0)
        bring_up(loop);
    if (nosa_session_ready(engine->session)) {
        loaded(loop, run);
        return;
    }
    engine->loading = true;
    engine->loading_ns = nosa_monotonic_ns();
    loop->n_loading++;
    nosa_scheduler_loading(loop->scheduler, engine->scheduler_id,
                           nosa_session_computed(engine->session));
}

void nosa_loop_look_at_loading(struct nosa_loop *loop)
{
    for (int32_t i = 0; i < loop->n_open; i++) {
        struct nosa_run *run = loop->open[i];
        if (!run->engine.loading || !nosa_session_ready(run->engine.session))
            continue;
        double seconds = nosa_seconds_between(run->engine.loading_ns, nosa_monotonic_ns());
        int32_t tokens = nosa_session_computed(run->engine.session);
        if (tokens > 0 && seconds > 0)
            loop->now.nvme_tokens_per_s = tokens / seconds;
        nosa_histogram_observe(loop->options.metrics->stall_s, seconds);
        clock_time(&run->engine.loading_ns, &run->engine.stalled_ns, false, nosa_monotonic_ns());
        run->engine.loading = false;
        loop->n_loading--;
        loaded(loop, run);
    }
}

/* What the digest promised of the prefix and the cache did not have is not there. */
static void correct_digest(struct nosa_loop *loop, const struct nosa_run *run)
{
    size_t cached = (size_t)nosa_session_computed(run->engine.session) / NOSA_DIGEST_BLOCK_TOKENS;
    size_t most = ((size_t)nosa_session_length(run->engine.session) - 1) / NOSA_DIGEST_BLOCK_TOKENS;
    most = most < run->n_hashes ? most : run->n_hashes;
    if (cached > run->n_hashes)
        cached = run->n_hashes;
    if (cached < most)
        nosa_digest_forget(loop->options.digest, run->hashes + cached, run->n_hashes - cached);
    nosa_digest_touch(loop->options.digest, run->hashes, cached);
}

static void open_session(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_run_engine *engine = &run->engine;
    struct nosa_error error = {0};
    const struct nosa_session_options options = {
        .tokens = engine->tokens,
        .n_tokens = engine->n_tokens,
        .prompt_length = run->n_prompt,
        .salt = run->message->cache_salt,
        .salt_bytes = strlen(run->message->cache_salt),
        .sampling = run->sampling,
        .n_top = (int32_t)run->message->logprobs,
    };
    if (nosa_session_open(loop->options.engine, &options, &engine->session, &error) != NOSA_OK) {
        nosa_loop_fail(loop, run, &error);
        return;
    }
    free(engine->tokens);
    engine->tokens = NULL;
    if (!engine->opened_ns) {
        engine->opened_ns = nosa_monotonic_ns();
        nosa_histogram_observe(loop->options.metrics->queue_s,
                               nosa_seconds_between(run->received_ns, engine->opened_ns));
    }
    correct_digest(loop, run);
    await_prefix(loop, run);
}

/* Closes the session and keeps what it knows, to be opened again. False: no memory, it is ended. */
static bool drop_session(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_run_engine *engine = &run->engine;
    if (!engine->session)
        return engine->tokens != NULL;
    int32_t n_tokens = nosa_session_length(engine->session);
    engine->tokens = malloc(sizeof *engine->tokens * (size_t)n_tokens);
    if (engine->tokens) {
        memcpy(engine->tokens, nosa_session_tokens(engine->session),
               sizeof *engine->tokens * (size_t)n_tokens);
        engine->n_tokens = n_tokens;
    } else {
        struct nosa_error error = {0};
        nosa_error_set(&error, NOSA_OUT_OF_MEMORY, "no memory for %d tokens", n_tokens);
        nosa_loop_fail(loop, run, &error);
    }
    close_session(loop, run);
    return engine->tokens != NULL;
}

static void suspend(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_error error = {0};
    int32_t blocks = (nosa_session_computed(run->engine.session) + 63) / 64;
    bool moved = nosa_session_suspend(run->engine.session, &error) == NOSA_OK;
    clock_time(&run->engine.suspended_at_ns, &run->engine.suspended_ns, moved, nosa_monotonic_ns());
    run->engine.suspended_blocks = moved ? blocks : 0;
    loop->suspended_blocks += run->engine.suspended_blocks;
    nosa_scheduler_suspended(loop->scheduler, run->engine.scheduler_id, moved);
    if (!moved && error.status == NOSA_INTERNAL)
        nosa_loop_break(loop, &error);
}

static void resume(struct nosa_loop *loop, struct nosa_run *run)
{
    struct nosa_error error = {0};
    clock_time(&run->engine.suspended_at_ns, &run->engine.suspended_ns, false, nosa_monotonic_ns());
    if (nosa_session_resume(run->engine.session, &error) == NOSA_OK) {
        loop->suspended_blocks -= run->engine.suspended_blocks;
        run->engine.suspended_blocks = 0;
        await_prefix(loop, run);
    } else if (drop_session(loop, run)) {
        open_session(loop, run); /* takes over what the cache still has */
    }
}

static void act(struct nosa_loop *loop, const struct nosa_scheduler_action *action)
{
    struct nosa_run *run = nosa_loop_run_of(action->tag);
    switch (action->kind) {
    case NOSA_SCHEDULER_CLOSE: nosa_loop_end(loop, run, action->reason); break;
    case NOSA_SCHEDULER_DROP: drop_session(loop, run); break;
    case NOSA_SCHEDULER_SUSPEND: suspend(loop, run); break;
    case NOSA_SCHEDULER_SPILL: break; /* the engine keeps long sequences' tails below by itself */
    case NOSA_SCHEDULER_OPEN: open_session(loop, run); break;
    case NOSA_SCHEDULER_RESUME: resume(loop, run); break;
    }
}

/* Once more when something was closed: what it freed can be used in the same step. */
int32_t nosa_loop_arrange(struct nosa_loop *loop)
{
    int32_t n_actions = 0;
    bool freed = true;
    for (int round = 0; round < 2 && freed; round++) {
        struct nosa_scheduler_store store;
        nosa_loop_store(loop, nosa_loop_is_stalled(loop), &store);
        struct nosa_scheduler_actions actions =
            nosa_scheduler_arrange(loop->scheduler, nosa_monotonic_ns(), &store);
        freed = false;
        for (int32_t i = 0; i < actions.n_actions; i++) {
            freed = freed || actions.actions[i].kind <= NOSA_SCHEDULER_SUSPEND;
            act(loop, &actions.actions[i]);
        }
        n_actions += actions.n_actions;
    }
    return n_actions;
}
