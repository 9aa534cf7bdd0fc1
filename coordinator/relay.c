/*
 * Generations on workers: choosing one, relaying its tokens, and going on elsewhere when it is
 * gone.
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

#define OPERATOR_TEXT "ended by an operator" /* of a Run that CancelRun ended; cluster.proto */

static void lose_worker(struct nosa_generation *generation, bool died);

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
    struct nosa_telemetry *telemetry = g->coordinator->telemetry;
    if (g->started)
        return;
    g->started = true;
    if (g->gone_ns)
        nosa_histogram_observe(telemetry->redispatch,
                               nosa_seconds_between(g->gone_ns, nosa_monotonic_ns()));
    g->gone_ns = 0;
    if (!g->started_ns) {
        g->started_ns = nosa_monotonic_ns();
        g->usage.cached_prompt_tokens = started->cached_prompt_tokens;
        nosa_counter_add(telemetry->prompt_tokens, g->prompt_count);
    }
    nosa_generation_count_started(g);
    if (!g->accepted)
        nosa_generation_accept(g, attempt->worker->id);
}

/* A worker that contradicts itself is treated as one that died. */
static void refuse_worker(struct nosa_generation *g, const char *reason)
{
    nosa_log(NOSA_LOG_WARN, "relay", "request %s: worker %s: %s", g->request_id,
             g->attempt->worker->id, reason);
    nosa_relay_abandon(g);
    lose_worker(g, true);
}

static void on_tokens(struct nosa_generation *g, const Nosa__Cluster__V1__RunTokens *tokens)
{
    struct nosa_error error = {0};
    size_t skipped, taken;
    if (!g->started) {
        refuse_worker(g, "tokens came before the start");
        return;
    }
    if (g->request->logprobs > 0 && tokens->n_logprobs != tokens->n_token_ids) {
        refuse_worker(g, "tokens came without log probabilities");
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
        g->paused = true;
        more = false;
    }
    pthread_mutex_unlock(&g->mutex);
    return more;
}

static bool contains(const uint64_t *incarnations, size_t count, uint64_t incarnation)
{
    for (size_t i = 0; i < count; i++)
        if (incarnations[i] == incarnation)
            return true;
    return false;
}

static void exclude(struct nosa_generation *g, uint64_t incarnation)
{
    if (g->excluded_count == NOSA_REGISTRY_EXCLUDED_MAX)
        g->excluded_count = 0;
    g->excluded[g->excluded_count++] = incarnation;
}

/* Its worker (last_worker) is gone, and no attempt is under way: elsewhere, or the end. */
static void lose_worker(struct nosa_generation *g, bool died)
{
    uint64_t incarnation = g->last_worker->incarnation;
    NOSA_ASSERT(!g->attempt);
    g->state = NOSA_GENERATION_WAITING;
    g->started = false;
    if (!g->gone_ns)
        g->gone_ns = nosa_monotonic_ns();
    exclude(g, incarnation);
    if (!died) {
        g->move_pending = !g->replay_pending;
    } else {
        g->replay_pending = true;
        g->move_pending = false;
        if (!contains(g->dead, g->dead_count, incarnation) &&
            g->dead_count < NOSA_REGISTRY_EXCLUDED_MAX)
            g->dead[g->dead_count++] = incarnation;
    }
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

static void on_status(struct nosa_generation *g, const struct nosa_rpc_outcome *outcome)
{
    char text[NOSA_RPC_TEXT_MAX];
    switch (outcome->code) {
    case NOSA_RPC_ABORTED: lose_worker(g, false); break;
    case NOSA_RPC_FAILED_PRECONDITION:
        /* Another life of the worker answers, or it does not serve the model any more. */
        lose_worker(g, false);
        break;
    case NOSA_RPC_RESOURCE_EXHAUSTED:
        g->full_seen = true;
        lose_worker(g, false);
        break;
    case NOSA_RPC_CANCELLED:
        /* A stream that was reset has this code too: only the worker's own words tell. */
        if (strcmp(outcome->text, OPERATOR_TEXT) == 0)
            nosa_generation_end(g, NOSA_RPC_CANCELLED, "cancelled by an operator", true);
        else
            lose_worker(g, true);
        break;
    case NOSA_RPC_INTERNAL:
    case NOSA_RPC_INVALID_ARGUMENT:
        snprintf(text, sizeof text, "worker %.64s: %.400s", g->last_worker->id, outcome->text);
        nosa_generation_end(g, outcome->code, text, false);
        break;
    default:
        if (outcome->code == NOSA_RPC_UNAVAILABLE)
            nosa_registry_suspect(g->coordinator->registry, g->last_worker);
        nosa_log(NOSA_LOG_WARN, "relay", "request %s: worker %s: %s: %s", g->request_id,
                 g->last_worker->id, nosa_rpc_code_name(outcome->code), outcome->text);
        lose_worker(g, true);
        break;
    }
}

/* Once, when it is no longer the generation's: what its worker is asked to do is over then. */
static void uncount(struct nosa_attempt *attempt)
{
    nosa_registry_stream_ended(attempt->generation->coordinator->registry, attempt->worker,
                               &attempt->load);
}

static void attempt_free(struct nosa_attempt *attempt)
{
    if (attempt->stream)
        nosa_rpc_stream_release(attempt->stream);
    nosa_worker_release(attempt->worker);
    nosa_generation_release(attempt->generation);
    free(attempt);
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
        uncount(attempt);
        on_status(g, outcome);
    }
    pthread_mutex_unlock(&g->mutex);
    attempt_free(attempt);
    atomic_fetch_sub(&coordinator->links, 1);
}

static const struct nosa_rpc_stream_events run_events = {.message = on_message, .end = on_end};

void nosa_relay_abandon(struct nosa_generation *g)
{
    struct nosa_attempt *attempt = g->attempt;
    g->attempt = NULL;
    uncount(attempt);
    nosa_rpc_stream_cancel(attempt->stream);
}

/* ---- dispatch ---- */

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
    return nosa_rpc_stream_start(attempt->worker->link, &call, &run_events, attempt,
                                 &attempt->stream, error);
}

/* Counts a replay or a move, now that there is somewhere to go. */
static void count_replay(struct nosa_generation *g, const struct nosa_worker *worker)
{
    struct nosa_telemetry *telemetry = g->coordinator->telemetry;
    const char *fingerprint = worker->fingerprint;
    bool exact = g->last_worker && strcmp(g->last_worker->fingerprint, fingerprint) == 0 &&
                 !strstr(fingerprint, "inexact");
    if (g->replay_pending) {
        g->replays++;
        nosa_counter_add(exact ? telemetry->replays_exact : telemetry->replays_inexact, 1);
        nosa_log(NOSA_LOG_INFO, "relay", "request %s: replayed on worker %s after %zu tokens%s",
                 g->request_id, worker->id, g->output.count, exact ? "" : ", not exactly");
    } else if (g->move_pending && !g->full_seen) {
        nosa_counter_add(telemetry->moves, 1);
    }
    g->replay_pending = g->move_pending = g->full_seen = false;
}

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
        uncount(attempt);
        attempt_free(attempt);
        return status;
    }
    count_replay(g, worker);
    nosa_worker_release(g->last_worker);
    g->last_worker = worker;
    nosa_worker_retain(worker);
    g->attempt = attempt;
    g->attempts++;
    g->state = NOSA_GENERATION_RUNNING;
    g->started = false;
    g->paused = false;
    g->wait_until_ns = 0;
    return NOSA_OK;
}

void nosa_relay_dispatch(struct nosa_generation *g)
{
    struct nosa_error error = {0};
    NOSA_ASSERT(g->state == NOSA_GENERATION_WAITING && !g->attempt);
    if (!nosa_rpc_call_has_room(g->call)) {
        g->paused = true; /* `writable` comes */
        return;
    }
    struct nosa_pick pick = {
        .model = g->model,
        .hashes = g->hashes,
        .hash_count = g->hash_count,
        .tokens = (uint32_t)(g->prompt_count + g->output.count),
        .fingerprint = g->last_worker ? g->last_worker->fingerprint : NULL,
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

void nosa_relay_writable(struct nosa_generation *g)
{
    if (!g->paused)
        return;
    g->paused = false;
    if (g->attempt)
        nosa_rpc_stream_resume(g->attempt->stream);
    else if (g->state == NOSA_GENERATION_WAITING)
        nosa_relay_dispatch(g);
}

/* ---- over all generations ---- */

typedef void (*visit)(struct nosa_generation *generation, void *argument);

/* Calls `act` for each that has not ended, under its mutex. */
static void for_each(struct nosa_coordinator *coordinator, visit act, void *argument)
{
    size_t count;
    struct nosa_generation **list = nosa_generation_snapshot(coordinator, &count);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&list[i]->mutex);
        if (list[i]->state != NOSA_GENERATION_ENDED)
            act(list[i], argument);
        pthread_mutex_unlock(&list[i]->mutex);
        nosa_generation_release(list[i]);
    }
    free(list);
}

struct leaving {
    const struct nosa_worker *worker;
    bool died;
};

static void leave(struct nosa_generation *g, void *argument)
{
    const struct leaving *leaving = argument;
    if (!g->attempt || g->attempt->worker != leaving->worker)
        return;
    nosa_relay_abandon(g);
    lose_worker(g, leaving->died);
}

void nosa_relay_leave_worker(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                             bool died)
{
    struct leaving leaving = {worker, died};
    for_each(coordinator, leave, &leaving);
}

static void tick(struct nosa_generation *g, void *argument)
{
    uint64_t now = *(const uint64_t *)argument;
    if (g->state != NOSA_GENERATION_WAITING || g->paused)
        return;
    if (g->wait_until_ns && now >= g->wait_until_ns)
        nosa_generation_end(g, NOSA_RPC_UNAVAILABLE,
                            "no worker came within --worker-timeout to go on with this request",
                            true);
    else
        nosa_relay_dispatch(g);
}

void nosa_relay_tick(struct nosa_coordinator *coordinator)
{
    uint64_t now = nosa_monotonic_ns();
    for_each(coordinator, tick, &now);
}

struct ending {
    enum nosa_rpc_code code;
    const char *text;
};

static void end_one(struct nosa_generation *g, void *argument)
{
    const struct ending *ending = argument;
    nosa_generation_end(g, ending->code, ending->text, true);
}

void nosa_relay_end_all(struct nosa_coordinator *coordinator, enum nosa_rpc_code code,
                        const char *text)
{
    struct ending ending = {code, text};
    for_each(coordinator, end_one, &ending);
}

struct cancelling {
    const char *request_id;
    bool found;
};

static void cancel_one(struct nosa_generation *g, void *argument)
{
    struct cancelling *cancelling = argument;
    if (strcmp(g->request_id, cancelling->request_id) != 0)
        return;
    cancelling->found = true;
    nosa_generation_end(g, NOSA_RPC_CANCELLED, "cancelled by an operator", true);
}

enum nosa_status nosa_relay_cancel(struct nosa_coordinator *coordinator, const char *request_id,
                                   struct nosa_error *error)
{
    struct cancelling cancelling = {.request_id = request_id};
    for_each(coordinator, cancel_one, &cancelling);
    if (cancelling.found)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_NOT_FOUND, "request_id: no request '%.128s' runs",
                          request_id);
}

/* ---- for people ---- */

static Nosa__V1__RequestState state_of(const struct nosa_generation *g)
{
    if (g->state == NOSA_GENERATION_WAITING && (g->replay_pending || g->move_pending))
        return NOSA__V1__REQUEST_STATE__REQUEST_STATE_REPLAYING;
    if (g->paused)
        return NOSA__V1__REQUEST_STATE__REQUEST_STATE_PAUSED;
    if (!g->started)
        return NOSA__V1__REQUEST_STATE__REQUEST_STATE_QUEUED;
    return g->first_token_ns ? NOSA__V1__REQUEST_STATE__REQUEST_STATE_DECODE
                             : NOSA__V1__REQUEST_STATE__REQUEST_STATE_PREFILL;
}

struct listing {
    Nosa__V1__RequestInfo **infos;
    size_t count;
    size_t capacity;
    bool failed;
};

static void describe(struct nosa_generation *g, void *argument)
{
    struct listing *listing = argument;
    if (listing->count == listing->capacity) {
        size_t capacity = listing->capacity ? 2 * listing->capacity : 64;
        Nosa__V1__RequestInfo **infos = realloc(listing->infos, capacity * sizeof *infos);
        if (!infos) {
            listing->failed = true;
            return;
        }
        listing->infos = infos;
        listing->capacity = capacity;
    }
    Nosa__V1__RequestInfo *info = malloc(sizeof *info);
    if (!info) {
        listing->failed = true;
        return;
    }
    nosa__v1__request_info__init(info);
    listing->infos[listing->count++] = info;
    info->request_id = strdup(g->request_id);
    info->worker_id = strdup(g->attempt ? g->attempt->worker->id : "");
    info->model = strdup(g->model_name);
    info->client = strdup(g->client);
    info->client_name = strdup(g->client_name);
    info->state = state_of(g);
    info->tokens = (uint32_t)g->output.count;
    info->prompt_tokens = g->state == NOSA_GENERATION_ENCODING ? 0 : (uint32_t)g->prompt_count;
    info->max_tokens = g->asked_max_tokens;
    info->priority = g->priority;
    info->age_ms = (nosa_monotonic_ns() - g->arrival_ns) / NOSA_NS_PER_MS;
    info->replays = g->replays;
    listing->failed = listing->failed || !info->request_id || !info->worker_id || !info->model ||
                      !info->client || !info->client_name;
}

enum nosa_status nosa_relay_list(struct nosa_coordinator *coordinator,
                                 Nosa__V1__RequestInfo ***infos, size_t *count)
{
    struct listing listing = {0};
    for_each(coordinator, describe, &listing);
    *infos = listing.infos;
    *count = listing.count;
    return listing.failed ? NOSA_OUT_OF_MEMORY : NOSA_OK;
}
