/*
 * Generations on workers: choosing one, and going on elsewhere when it is gone.
 *
 * A generation has at most one attempt. When its worker dies, drains or falls silent the attempt is
 * abandoned: its call is cancelled, and whatever it still sends finds that it is no longer the
 * generation's attempt and is dropped. The next attempt begins from the prompt and the ids that the
 * output holds, all of which are in the client's queue or with the client.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "generation_internal.h"

/* ---- losing a worker ---- */

static bool contains(const uint64_t *incarnations, size_t count, uint64_t incarnation)
{
    for (size_t i = 0; i < count; i++)
        if (incarnations[i] == incarnation)
            return true;
    return false;
}

/* Leaves a worker out of the next pick. */
static void exclude(struct nosa_generation *g, uint64_t incarnation)
{
    if (g->excluded_count == NOSA_REGISTRY_EXCLUDED_MAX)
        g->excluded_count = 0;
    g->excluded[g->excluded_count++] = incarnation;
}

void nosa_relay_lose_worker(struct nosa_generation *g, enum nosa_relay_loss loss)
{
    uint64_t incarnation = g->last_worker->incarnation;
    NOSA_ASSERT(!g->attempt);
    g->state = NOSA_GENERATION_WAITING;
    g->started = false;
    exclude(g, incarnation);
    if (loss == NOSA_RELAY_DIED) {
        g->replay_pending = true;
        g->move_pending = false;
        if (!contains(g->dead, g->dead_count, incarnation) &&
            g->dead_count < NOSA_REGISTRY_EXCLUDED_MAX) {
            g->dead[g->dead_count++] = incarnation;
            g->wait_until_ns = 0;
        }
    } else if (loss == NOSA_RELAY_DRAINED) {
        g->move_pending = !g->replay_pending;
    } else if (loss == NOSA_RELAY_FULL) {
        g->full_seen = true;
        g->wait_until_ns = 0;
    }
    if (!g->gone_ns && loss <= NOSA_RELAY_DRAINED)
        g->gone_ns = nosa_monotonic_ns();
    if (g->output.end != NOSA_OUTPUT_OPEN) {
        nosa_generation_finish(g); /* all tokens had come, only the worker's last word had not */
        return;
    }
    if (g->dead_count >= g->coordinator->options.replay_limit) {
        char text[96];
        snprintf(text, sizeof text, "%zu workers died under this request (--replay-limit)",
                 g->dead_count);
        nosa_generation_end(g, NOSA_RPC_INTERNAL, text, true);
        return;
    }
    nosa_relay_dispatch(g);
}

/* ---- an attempt ---- */

void nosa_attempt_uncount(struct nosa_attempt *attempt)
{
    nosa_registry_stream_ended(attempt->generation->coordinator->registry, attempt->worker,
                               &attempt->load);
}

void nosa_attempt_free(struct nosa_attempt *attempt)
{
    if (attempt->stream)
        nosa_rpc_stream_release(attempt->stream);
    nosa_worker_release(attempt->worker);
    nosa_generation_release(attempt->generation);
    free(attempt);
}

void nosa_relay_abandon(struct nosa_generation *g)
{
    struct nosa_attempt *attempt = g->attempt;
    g->attempt = NULL;
    nosa_attempt_uncount(attempt);
    nosa_rpc_stream_cancel(attempt->stream);
}

static enum nosa_status start_run(struct nosa_generation *g, struct nosa_attempt *attempt,
                                  struct nosa_error *error)
{
    Nosa__Cluster__V1__RunRequest run = NOSA__CLUSTER__V1__RUN_REQUEST__INIT;
    const Nosa__V1__GenerateRequest *request = g->request;
    run.request_id = g->request_id;
    run.incarnation = attempt->worker->incarnation;
    run.attempt = g->attempts;
    run.model_hash = (ProtobufCBinaryData){NOSA_SHA256_SIZE, g->model->hash};
    run.n_prompt_token_ids = g->prompt_count;
    run.prompt_token_ids = g->prompt;
    run.n_output_token_ids = g->output.count;
    run.output_token_ids = g->output.ids;
    run.sampling = &g->sampling;
    run.max_tokens = g->output.options.max_tokens;
    run.n_stop_token_ids = request->n_stop_token_ids;
    run.stop_token_ids = request->stop_token_ids;
    run.ignore_eos = request->ignore_eos;
    run.logprobs = request->logprobs;
    run.priority = request->priority;
    run.cache_salt = request->cache_salt;
    run.waited_ms = (nosa_monotonic_ns() - g->arrival_ns) / NOSA_NS_PER_MS;
    const struct nosa_rpc_request call = {
        .path = "/nosa.cluster.v1.Worker/Run",
        .message = &run.base,
        .response = &nosa__cluster__v1__run_event__descriptor,
    };
    /* Events wait for the generation's mutex, which is held. */
    return nosa_rpc_stream_start(attempt->worker->link, &call, &nosa_relay_run_events, attempt,
                                 &attempt->stream, error);
}

/* Whether the tokens that are still to come are those that would have come. */
static bool goes_on_exactly(const struct nosa_generation *g, const char *fingerprint)
{
    if (g->output.count == g->resumed_count)
        return true; /* none came yet */
    return g->ran_on && strcmp(g->ran_on->fingerprint, fingerprint) == 0 &&
           !strstr(fingerprint, "inexact");
}

void nosa_relay_count_start(struct nosa_generation *g)
{
    struct nosa_telemetry *telemetry = g->coordinator->telemetry;
    struct nosa_worker *worker = g->attempt->worker;
    if (g->gone_ns) {
        uint64_t now = nosa_monotonic_ns();
        nosa_histogram_observe(telemetry->redispatch, nosa_seconds_between(g->gone_ns, now));
        g->without_worker_ns += g->started_ns ? now - g->gone_ns : 0;
    }
    if (g->replay_pending) {
        bool exact = goes_on_exactly(g, worker->fingerprint);
        g->replays++;
        nosa_counter_add(exact ? telemetry->replays_exact : telemetry->replays_inexact, 1);
        nosa_log_about(NOSA_LOG_INFO, "relay",
                       &(struct nosa_log_subject){g->request_id, worker->id},
                       "request %s: replayed on worker %s after %zu tokens%s", g->request_id,
                       worker->id, g->output.count, exact ? "" : ", not exactly");
    } else if (g->move_pending) {
        nosa_counter_add(telemetry->moves, 1);
    }
    g->gone_ns = 0;
    if (!g->ran_on || g->ran_on->incarnation != worker->incarnation)
        g->wait_until_ns = 0;
    g->replay_pending = g->move_pending = g->full_seen = false;
    nosa_worker_retain(worker);
    nosa_worker_release(g->ran_on);
    g->ran_on = worker;
    nosa_registry_proven(g->coordinator->registry, worker);
}

/* ---- dispatch ---- */

/* No worker can be had now: new requests end at once, those that ran wait for a while. */
static void wait_for_worker(struct nosa_generation *g, const struct nosa_error *error)
{
    uint64_t now = nosa_monotonic_ns();
    bool ran = g->accepted || g->replay_pending || g->dead_count > 0;
    if (g->full_seen && !ran) {
        nosa_generation_end(g, NOSA_RPC_RESOURCE_EXHAUSTED, "the queue of every worker is full",
                            false);
    } else if (!ran && g->attempts == 0) {
        nosa_generation_end(g, NOSA_RPC_UNAVAILABLE, error->text, false);
    } else {
        if (!g->wait_until_ns)
            g->wait_until_ns = now + g->coordinator->options.worker_timeout_ms * NOSA_NS_PER_MS;
        g->excluded_count = 0;
    }
}

static enum nosa_status start_attempt(struct nosa_generation *g, const struct nosa_pick *pick,
                                      struct nosa_error *error)
{
    struct nosa_worker *worker = pick->worker;
    struct nosa_attempt *attempt = calloc(1, sizeof *attempt);
    if (!attempt) {
        nosa_registry_stream_ended(g->coordinator->registry, worker, &pick->load);
        nosa_worker_release(worker);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a call");
    }
    attempt->generation = g;
    attempt->worker = worker;
    attempt->load = pick->load;
    nosa_generation_retain(g);
    atomic_fetch_add(&g->coordinator->links, 1);
    enum nosa_status status = start_run(g, attempt, error);
    if (status != NOSA_OK) {
        atomic_fetch_sub(&g->coordinator->links, 1);
        nosa_attempt_uncount(attempt);
        nosa_attempt_free(attempt);
        return status;
    }
    nosa_worker_release(g->last_worker);
    g->last_worker = worker;
    nosa_worker_retain(worker);
    g->attempt = attempt;
    g->attempts++;
    g->state = NOSA_GENERATION_RUNNING;
    g->started = false;
    return NOSA_OK;
}

void nosa_relay_dispatch(struct nosa_generation *g)
{
    struct nosa_error error = {0};
    NOSA_ASSERT(g->state == NOSA_GENERATION_WAITING && !g->attempt);
    if (!nosa_rpc_call_has_room(g->call)) {
        nosa_relay_pause(g); /* `writable` comes */
        return;
    }
    struct nosa_pick pick = {
        .model = g->model,
        .hashes = g->hashes,
        .hash_count = g->hash_count,
        .tokens = (uint32_t)(g->prompt_count + g->output.count),
        .fingerprint = g->ran_on ? g->ran_on->fingerprint : NULL,
        .excluded = g->excluded,
        .excluded_count = g->excluded_count,
        .tie = (uint64_t)(uintptr_t)g ^ g->arrival_ns,
    };
    enum nosa_status status = nosa_registry_pick(g->coordinator->registry, &pick, &error);
    if (status == NOSA_UNAVAILABLE) {
        wait_for_worker(g, &error);
        return;
    }
    if (status == NOSA_OK)
        status = start_attempt(g, &pick, &error);
    if (status != NOSA_OK)
        nosa_generation_end(g, nosa_rpc_code_from_status(status), error.text, false);
}

/* ---- a client that does not read ---- */

void nosa_relay_pause(struct nosa_generation *g)
{
    if (!g->paused_at_ns)
        g->paused_at_ns = nosa_monotonic_ns();
    g->paused = true;
}

void nosa_relay_writable(struct nosa_generation *g)
{
    if (!g->paused)
        return;
    g->paused = false;
    g->paused_ns += nosa_monotonic_ns() - g->paused_at_ns;
    g->paused_at_ns = 0;
    if (g->attempt)
        nosa_rpc_stream_resume(g->attempt->stream);
    else if (g->state == NOSA_GENERATION_WAITING)
        nosa_relay_dispatch(g);
}
