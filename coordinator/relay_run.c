/*
 * What a worker says in one Run call, and what its client hears of it. Events of an attempt that is
 * no longer its generation's are dropped, so a worker that was given up can say what it likes.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "generation_internal.h"

/* Words of a worker's own, by cluster.proto: a transport ends calls with the same codes. */
#define OPERATOR_TEXT "ended by an operator" /* of a Run that CancelRun ended */
#define FAILED_TEXT   "generation failed: "  /* how the text of one that failed begins */

/* ---- tokens to the client ---- */

static void note_tokens(struct nosa_generation *g, size_t taken)
{
    struct nosa_telemetry *telemetry = g->coordinator->telemetry;
    uint64_t now = nosa_monotonic_ns();
    if (taken == 0)
        return;
    nosa_counter_add(telemetry->generation_tokens, taken);
    if (!g->first_token_ns) {
        g->first_token_ns = now;
        nosa_telemetry_ttft(telemetry, nosa_seconds_between(g->arrival_ns, now));
        taken--;
    }
    if (taken > 0 && g->last_token_ns)
        nosa_telemetry_inter_token(telemetry, nosa_seconds_between(g->last_token_ns, now),
                                   (uint32_t)taken);
    g->last_token_ns = now;
}

/* Sends ids, their log probabilities and the output's new text. The caller saw to room. */
static enum nosa_status send_delta(struct nosa_generation *g, const uint32_t *ids, size_t count,
                                   Nosa__V1__TokenLogprob **logprobs)
{
    Nosa__V1__GenerateResponse response = NOSA__V1__GENERATE_RESPONSE__INIT;
    Nosa__V1__Delta delta = NOSA__V1__DELTA__INIT;
    const char *text = nosa_text_string(&g->output.text);
    if (!text)
        return NOSA_OUT_OF_MEMORY;
    if (count == 0 && !text[0])
        return NOSA_OK;
    delta.n_token_ids = count;
    delta.token_ids = (uint32_t *)(uintptr_t)ids;
    delta.text = (char *)(uintptr_t)text;
    delta.n_logprobs = logprobs ? count : 0;
    delta.logprobs = logprobs;
    response.event_case = NOSA__V1__GENERATE_RESPONSE__EVENT_DELTA;
    response.delta = &delta;
    enum nosa_status status = nosa_rpc_call_send(g->call, &response.base);
    return status == NOSA_CANCELLED ? NOSA_OK : status; /* the event `cancelled` ends it */
}

static void on_started(struct nosa_generation *g, const struct nosa_attempt *attempt,
                       const Nosa__Cluster__V1__RunStarted *started)
{
    if (g->started)
        return;
    g->started = true;
    nosa_relay_count_start(g);
    if (!g->started_ns) {
        uint32_t prompt_count = (uint32_t)g->prompt_count;
        uint32_t cached = started->cached_prompt_tokens;
        g->started_ns = nosa_monotonic_ns();
        g->usage.cached_prompt_tokens = cached < prompt_count ? cached : prompt_count;
        nosa_counter_add(g->coordinator->telemetry->prompt_tokens, prompt_count);
    }
    nosa_generation_count_started(g);
    if (!g->accepted)
        nosa_generation_accept(g, attempt->worker->id);
}

/* A worker that contradicts itself is treated as one that died. */
static void refuse_worker(struct nosa_generation *g, const char *reason)
{
    const char *worker = g->attempt->worker->id;
    nosa_log_about(NOSA_LOG_WARN, "relay", &(struct nosa_log_subject){g->request_id, worker},
                   "request %s: worker %s: %s", g->request_id, worker, reason);
    nosa_relay_abandon(g);
    nosa_relay_lose_worker(g, NOSA_RELAY_DIED);
}

/* Whether each token has its own. */
static bool has_logprobs(const Nosa__Cluster__V1__RunTokens *tokens)
{
    if (tokens->n_logprobs != tokens->n_token_ids)
        return false;
    for (size_t i = 0; i < tokens->n_logprobs; i++)
        if (tokens->logprobs[i]->token_id != tokens->token_ids[i] ||
            tokens->logprobs[i]->n_top > NOSA_LOGPROBS_MAX)
            return false;
    return true;
}

static void on_tokens(struct nosa_generation *g, const Nosa__Cluster__V1__RunTokens *tokens)
{
    struct nosa_error error = {0};
    size_t skipped, taken;
    if (!g->started) {
        refuse_worker(g, "tokens came before the start");
        return;
    }
    if (g->request->logprobs > 0 && !has_logprobs(tokens)) {
        refuse_worker(g, "tokens came without log probabilities, or with those of others");
        return;
    }
    if (nosa_validate_ids("tokens", tokens->token_ids, tokens->n_token_ids, g->model->vocab_size,
                          &error) != NOSA_OK) {
        refuse_worker(g, error.text);
        return;
    }
    enum nosa_status status = nosa_output_take(&g->output, tokens->first_index, tokens->token_ids,
                                               tokens->n_token_ids, &skipped, &taken, &error);
    if (status == NOSA_CORRUPT) {
        refuse_worker(g, error.text);
        return;
    }
    note_tokens(g, taken);
    if (taken > 0)
        g->wait_until_ns = 0;
    if (status == NOSA_OK)
        status = send_delta(g, tokens->token_ids + skipped, taken,
                            g->request->logprobs > 0 ? tokens->logprobs + skipped : NULL);
    if (status != NOSA_OK)
        nosa_generation_end(g, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for the output", true);
    else if (g->output.end == NOSA_OUTPUT_STOP && nosa_stop_matcher_found(&g->output.matcher))
        nosa_generation_finish(g); /* the worker does not know of stop strings */
}

static void read_usage(struct nosa_generation *g, const Nosa__V1__Usage *usage)
{
    if (!usage)
        return;
    g->usage.kv_gpu_hits += usage->kv_gpu_hits;
    g->usage.kv_host_hits += usage->kv_host_hits;
    g->usage.kv_nvme_hits += usage->kv_nvme_hits;
    g->usage.kv_recomputed_blocks += usage->kv_recomputed_blocks;
    if (isfinite(usage->kv_stall_ms) && usage->kv_stall_ms > 0)
        g->usage.kv_stall_ms += usage->kv_stall_ms;
}

static void on_done(struct nosa_generation *g, const Nosa__Cluster__V1__RunDone *done)
{
    struct nosa_error error = {0};
    enum nosa_output_end end = NOSA_OUTPUT_OPEN;
    if (done->reason == NOSA__V1__FINISHED__REASON__REASON_STOP)
        end = NOSA_OUTPUT_STOP;
    else if (done->reason == NOSA__V1__FINISHED__REASON__REASON_LENGTH)
        end = NOSA_OUTPUT_LENGTH;
    if (!g->started || end == NOSA_OUTPUT_OPEN) {
        refuse_worker(g, "its end has no beginning or no reason");
        return;
    }
    read_usage(g, done->usage);
    enum nosa_status status = nosa_output_finish(&g->output, end, &error);
    if (status == NOSA_OK)
        status = send_delta(g, NULL, 0, NULL);
    if (status != NOSA_OK)
        nosa_generation_end(g, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for the output", true);
    else
        nosa_generation_finish(g);
}

/* ---- events of a Run call ---- */

static bool on_message(void *context, struct nosa_rpc_stream *stream,
                       const ProtobufCMessage *message)
{
    struct nosa_attempt *attempt = context;
    struct nosa_generation *g = attempt->generation;
    const Nosa__Cluster__V1__RunEvent *event = (const Nosa__Cluster__V1__RunEvent *)message;
    bool more = true;
    (void)stream;
    pthread_mutex_lock(&g->mutex);
    if (g->attempt == attempt) {
        switch (event->event_case) {
        case NOSA__CLUSTER__V1__RUN_EVENT__EVENT_STARTED:
            on_started(g, attempt, event->started);
            break;
        case NOSA__CLUSTER__V1__RUN_EVENT__EVENT_TOKENS: on_tokens(g, event->tokens); break;
        case NOSA__CLUSTER__V1__RUN_EVENT__EVENT_DONE: on_done(g, event->done); break;
        default: break; /* of a later version */
        }
    }
    if (g->attempt == attempt && !nosa_rpc_call_has_room(g->call)) {
        nosa_relay_pause(g);
        more = false;
    }
    pthread_mutex_unlock(&g->mutex);
    return more;
}

/* ---- the end of a Run call ---- */

/* The code, UNKNOWN for one that is not the worker's: a message that could not be read, a transport
 * that failed. */
static enum nosa_rpc_code code_of(const struct nosa_rpc_outcome *outcome)
{
    bool failed = strncmp(outcome->text, FAILED_TEXT, sizeof FAILED_TEXT - 1) == 0;
    if (outcome->unreadable || (outcome->code == NOSA_RPC_INTERNAL && !failed))
        return NOSA_RPC_UNKNOWN;
    return outcome->code;
}

static void on_status(struct nosa_generation *g, const struct nosa_rpc_outcome *outcome)
{
    char text[NOSA_RPC_TEXT_MAX];
    switch (code_of(outcome)) {
    case NOSA_RPC_ABORTED: nosa_relay_lose_worker(g, NOSA_RELAY_DRAINED); break;
    case NOSA_RPC_FAILED_PRECONDITION: nosa_relay_lose_worker(g, NOSA_RELAY_REFUSED); break;
    case NOSA_RPC_RESOURCE_EXHAUSTED: nosa_relay_lose_worker(g, NOSA_RELAY_FULL); break;
    case NOSA_RPC_CANCELLED:
        /* A stream that was reset has this code too: only the worker's own words tell. */
        if (strcmp(outcome->text, OPERATOR_TEXT) == 0)
            nosa_generation_end(g, NOSA_RPC_CANCELLED, "cancelled by an operator", true);
        else
            nosa_relay_lose_worker(g, NOSA_RELAY_DIED);
        break;
    case NOSA_RPC_INTERNAL:
    case NOSA_RPC_INVALID_ARGUMENT:
        snprintf(text, sizeof text, "worker %.64s: %.400s", g->last_worker->id, outcome->text);
        nosa_generation_end(g, outcome->code, text, false);
        break;
    default:
        if (outcome->code == NOSA_RPC_UNAVAILABLE)
            nosa_registry_suspect(g->coordinator->registry, g->last_worker);
        nosa_log_about(NOSA_LOG_WARN, "relay",
                       &(struct nosa_log_subject){g->request_id, g->last_worker->id},
                       "request %s: worker %s: %s: %s", g->request_id, g->last_worker->id,
                       nosa_rpc_code_name(outcome->code), outcome->text);
        nosa_relay_lose_worker(g, NOSA_RELAY_DIED);
        break;
    }
}

static void on_end(void *context, struct nosa_rpc_stream *stream,
                   const struct nosa_rpc_outcome *outcome)
{
    struct nosa_attempt *attempt = context;
    struct nosa_generation *g = attempt->generation;
    struct nosa_coordinator *coordinator = g->coordinator;
    (void)stream;
    pthread_mutex_lock(&g->mutex);
    if (g->attempt == attempt) {
        g->attempt = NULL;
        nosa_attempt_uncount(attempt);
        on_status(g, outcome);
    }
    pthread_mutex_unlock(&g->mutex);
    nosa_attempt_free(attempt);
    atomic_fetch_sub(&coordinator->links, 1);
}

const struct nosa_rpc_stream_events nosa_relay_run_events = {.message = on_message, .end = on_end};
