#include "service/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "service/digest.h"

/* Twice the bound: a step in flight when the reader stops adds to what waits. */
#define RING_SIZE (2 * NOSA_RUN_TOKENS_WAITING_MAX)

/* Tokens of one message; fewer with their alternatives. */
#define MESSAGE_TOKENS_MAX 64
#define MESSAGE_TOPS_MAX   320

#define STOP_TOKENS_MAX 4096

/* Before the text of INTERNAL, by cluster.proto: a transport that broke does not say so. */
#define FAILED_TEXT "generation failed: "

struct nosa_run_token {
    uint32_t token;
    float logprob;
    int32_t n_top;
};

/* ---- checks ---------------------------------------------------------------------------------- */

static enum nosa_status refuse(struct nosa_error *error, const char *field, const char *text)
{
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: %s", field, text);
}

static enum nosa_status check_ids(const char *field, const uint32_t *ids, size_t count,
                                  const struct nosa_run_limits *limits, struct nosa_error *error)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= limits->vocab)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "%s[%zu]: token %u is past the vocabulary of %u", field, i,
                                  ids[i], limits->vocab);
    return NOSA_OK;
}

static enum nosa_status check_range(const char *field, float value, float min, float max,
                                    struct nosa_error *error)
{
    if (value >= min && value <= max) /* false for NaN */
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "sampling.%s: %g is not within %g and %g",
                          field, (double)value, (double)min, (double)max);
}

static enum nosa_status read_sampling(const Nosa__V1__Sampling *sampling, struct nosa_sampling *out,
                                      struct nosa_error *error)
{
    if (!sampling)
        return refuse(error, "sampling", "is missing");
    NOSA_TRY(check_range("temperature", sampling->temperature, 0, 100, error));
    NOSA_TRY(check_range("top_p", sampling->top_p, 0, 1, error));
    NOSA_TRY(check_range("min_p", sampling->min_p, 0, 1, error));
    NOSA_TRY(check_range("repetition_penalty", sampling->repetition_penalty, 0, 100, error));
    NOSA_TRY(check_range("presence_penalty", sampling->presence_penalty, -100, 100, error));
    NOSA_TRY(check_range("frequency_penalty", sampling->frequency_penalty, -100, 100, error));
    *out = (struct nosa_sampling){
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .top_k = sampling->top_k > INT32_MAX ? INT32_MAX : (int32_t)sampling->top_k,
        .min_p = sampling->min_p,
        .repetition_penalty = sampling->repetition_penalty,
        .presence_penalty = sampling->presence_penalty,
        .frequency_penalty = sampling->frequency_penalty,
        .seed = sampling->seed,
    };
    return NOSA_OK;
}

static enum nosa_status check_worker(const Nosa__Cluster__V1__RunRequest *message,
                                     const struct nosa_run_limits *limits, enum nosa_rpc_code *code,
                                     struct nosa_error *error)
{
    *code = NOSA_RPC_FAILED_PRECONDITION;
    if (message->incarnation != limits->incarnation)
        return refuse(error, "incarnation", "another start of this worker is meant");
    if (message->model_hash.len != sizeof limits->model_hash ||
        memcmp(message->model_hash.data, limits->model_hash, sizeof limits->model_hash) != 0)
        return refuse(error, "model_hash", "another model is meant");
    *code = NOSA_RPC_INVALID_ARGUMENT;
    return NOSA_OK;
}

static enum nosa_status check_lengths(const Nosa__Cluster__V1__RunRequest *message,
                                      const struct nosa_run_limits *limits,
                                      struct nosa_error *error)
{
    size_t context = (size_t)limits->context_max;
    if (message->request_id[0] == '\0')
        return refuse(error, "request_id", "is empty");
    if (message->n_prompt_token_ids == 0)
        return refuse(error, "prompt_token_ids", "is empty");
    if (message->n_prompt_token_ids > context)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "prompt_token_ids: %zu tokens, more than the context of %zu",
                              message->n_prompt_token_ids, context);
    if (message->n_output_token_ids > context - message->n_prompt_token_ids)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "output_token_ids: with %zu of the prompt %zu tokens are more than "
                              "the context of %zu",
                              message->n_prompt_token_ids, message->n_output_token_ids, context);
    if (message->max_tokens == 0)
        return refuse(error, "max_tokens", "is 0; at least 1");
    if (message->logprobs > NOSA_TOP_LOGPROBS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "logprobs: %u; at most %d",
                              message->logprobs, NOSA_TOP_LOGPROBS_MAX);
    if (message->n_stop_token_ids > STOP_TOKENS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "stop_token_ids: %zu; at most %d",
                              message->n_stop_token_ids, STOP_TOKENS_MAX);
    return NOSA_OK;
}

static enum nosa_status check(const Nosa__Cluster__V1__RunRequest *message,
                              const struct nosa_run_limits *limits, struct nosa_sampling *sampling,
                              enum nosa_rpc_code *code, struct nosa_error *error)
{
    NOSA_TRY(check_worker(message, limits, code, error));
    NOSA_TRY(check_lengths(message, limits, error));
    NOSA_TRY(check_ids("prompt_token_ids", message->prompt_token_ids, message->n_prompt_token_ids,
                       limits, error));
    NOSA_TRY(check_ids("output_token_ids", message->output_token_ids, message->n_output_token_ids,
                       limits, error));
    NOSA_TRY(check_ids("stop_token_ids", message->stop_token_ids, message->n_stop_token_ids, limits,
                       error));
    return read_sampling(message->sampling, sampling, error);
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Tokens still to be generated, within max_tokens and the context. */
static int32_t tokens_left(const Nosa__Cluster__V1__RunRequest *message, int32_t context_max)
{
    uint32_t room = (uint32_t)context_max - (uint32_t)message->n_prompt_token_ids;
    uint32_t most = message->max_tokens < room ? message->max_tokens : room;
    uint32_t output = (uint32_t)message->n_output_token_ids;
    return (int32_t)(most > output ? most - output : 0);
}

static bool take_memory(struct nosa_run *run)
{
    size_t tops = (size_t)RING_SIZE * run->message->logprobs;
    run->id = strdup(run->message->request_id);
    run->ring = calloc(RING_SIZE, sizeof *run->ring);
    run->hashes = calloc(run->n_hashes + 1, sizeof *run->hashes);
    run->engine.tokens = malloc(sizeof *run->engine.tokens * (size_t)run->n_known);
    if (tops > 0) {
        run->top_token = calloc(tops, sizeof *run->top_token);
        run->top_logprob = calloc(tops, sizeof *run->top_logprob);
    }
    return run->id && run->ring && run->hashes && run->engine.tokens &&
           (tops == 0 || (run->top_token && run->top_logprob));
}

static void free_run(struct nosa_run *run)
{
    NOSA_ASSERT(!run->engine.session);
    pthread_mutex_destroy(&run->mutex);
    free(run->engine.tokens);
    free(run->top_logprob);
    free(run->top_token);
    free(run->hashes);
    free(run->ring);
    free(run->id);
    free(run);
}

enum nosa_status nosa_run_create(struct nosa_run **out, struct nosa_rpc_call *call,
                                 const Nosa__Cluster__V1__RunRequest *message,
                                 const struct nosa_run_limits *limits, enum nosa_rpc_code *code,
                                 struct nosa_error *error)
{
    struct nosa_sampling sampling;
    *out = NULL;
    NOSA_TRY(check(message, limits, &sampling, code, error));
    *code = NOSA_RPC_RESOURCE_EXHAUSTED;
    struct nosa_run *run = calloc(1, sizeof *run);
    if (!run)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a request");
    uint64_t now_ns = nosa_monotonic_ns();
    uint64_t waited_ns =
        message->waited_ms < now_ns / NOSA_NS_PER_MS ? message->waited_ms * NOSA_NS_PER_MS : now_ns;
    run->call = call;
    run->message = message;
    run->sampling = sampling;
    run->received_ns = now_ns;
    run->arrival_ns = now_ns - waited_ns;
    run->n_prompt = (int32_t)message->n_prompt_token_ids;
    run->n_known = run->n_prompt + (int32_t)message->n_output_token_ids;
    run->n_hashes = (size_t)run->n_known / NOSA_DIGEST_BLOCK_TOKENS;
    run->n_new = tokens_left(message, limits->context_max);
    run->next_index = (uint32_t)message->n_output_token_ids;
    run->engine.slot = -1;
    run->engine.n_output = (int32_t)message->n_output_token_ids;
    atomic_init(&run->references, 1);
    atomic_init(&run->output_tokens, run->next_index);
    pthread_mutex_init(&run->mutex, NULL);
    if (!take_memory(run)) {
        free_run(run);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a request of %d tokens",
                              run->n_known);
    }
    run->engine.n_tokens = run->n_known;
    nosa_run_known_tokens(run, run->engine.tokens);
    nosa_digest_chain(nosa_digest_root(message->cache_salt, strlen(message->cache_salt)),
                      run->engine.tokens, run->n_hashes, run->hashes);
    *out = run;
    return NOSA_OK;
}

void nosa_run_retain(struct nosa_run *run)
{
    atomic_fetch_add(&run->references, 1);
}

void nosa_run_release(struct nosa_run *run)
{
    if (atomic_fetch_sub(&run->references, 1) == 1)
        free_run(run);
}

void nosa_run_known_tokens(const struct nosa_run *run, uint32_t *tokens)
{
    size_t prompt = run->message->n_prompt_token_ids, output = run->message->n_output_token_ids;
    memcpy(tokens, run->message->prompt_token_ids, prompt * sizeof *tokens);
    if (output > 0)
        memcpy(tokens + prompt, run->message->output_token_ids, output * sizeof *tokens);
}

bool nosa_run_stops_at(const struct nosa_run *run, uint32_t token)
{
    for (size_t i = 0; i < run->message->n_stop_token_ids; i++)
        if (run->message->stop_token_ids[i] == token)
            return true;
    return false;
}

/* ---- sending, under the mutex -----------------------------------------------------------------
 */

static bool send_event(struct nosa_run *run, Nosa__Cluster__V1__RunEvent *event)
{
    return nosa_rpc_call_send(run->call, &event->base) == NOSA_OK;
}

static bool send_started(struct nosa_run *run)
{
    Nosa__Cluster__V1__RunStarted started = NOSA__CLUSTER__V1__RUN_STARTED__INIT;
    Nosa__Cluster__V1__RunEvent event = NOSA__CLUSTER__V1__RUN_EVENT__INIT;
    started.cached_prompt_tokens = run->started_cached;
    started.queue_ms = run->started_queue_ms;
    event.event_case = NOSA__CLUSTER__V1__RUN_EVENT__EVENT_STARTED;
    event.started = &started;
    if (!send_event(run, &event))
        return false;
    run->started_waiting = false;
    return true;
}

/* The log probabilities of a message's tokens, in arrays that live as long as the sending. */
struct logprobs {
    Nosa__V1__TokenLogprob tokens[MESSAGE_TOKENS_MAX];
    Nosa__V1__TokenLogprob *token_pointers[MESSAGE_TOKENS_MAX];
    Nosa__V1__TopLogprob tops[MESSAGE_TOPS_MAX];
    Nosa__V1__TopLogprob *top_pointers[MESSAGE_TOPS_MAX];
};

static void fill_logprobs(const struct nosa_run *run, uint32_t n, struct logprobs *out)
{
    uint32_t n_tops = 0, per_token = run->message->logprobs;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = (run->first + i) % RING_SIZE;
        const struct nosa_run_token *token = &run->ring[slot];
        Nosa__V1__TokenLogprob *logprob = &out->tokens[i];
        nosa__v1__token_logprob__init(logprob);
        logprob->token_id = token->token;
        logprob->logprob = token->logprob;
        logprob->n_top = (size_t)token->n_top;
        logprob->top = out->top_pointers + n_tops;
        for (int32_t k = 0; k < token->n_top; k++, n_tops++) {
            Nosa__V1__TopLogprob *top = &out->tops[n_tops];
            nosa__v1__top_logprob__init(top);
            top->token_id = (uint32_t)run->top_token[slot * per_token + (uint32_t)k];
            top->logprob = run->top_logprob[slot * per_token + (uint32_t)k];
            out->top_pointers[n_tops] = top;
        }
        out->token_pointers[i] = logprob;
    }
}

static uint32_t message_tokens(const struct nosa_run *run)
{
    uint32_t most = MESSAGE_TOKENS_MAX;
    if (run->message->logprobs > 0 && MESSAGE_TOPS_MAX / run->message->logprobs < most)
        most = MESSAGE_TOPS_MAX / run->message->logprobs;
    return run->count < most ? run->count : most;
}

static bool send_tokens(struct nosa_run *run)
{
    Nosa__Cluster__V1__RunTokens tokens = NOSA__CLUSTER__V1__RUN_TOKENS__INIT;
    Nosa__Cluster__V1__RunEvent event = NOSA__CLUSTER__V1__RUN_EVENT__INIT;
    uint32_t ids[MESSAGE_TOKENS_MAX];
    struct logprobs logprobs;
    uint32_t n = message_tokens(run);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = run->ring[(run->first + i) % RING_SIZE].token;
    tokens.first_index = run->next_index;
    tokens.n_token_ids = n;
    tokens.token_ids = ids;
    if (run->message->logprobs > 0) {
        fill_logprobs(run, n, &logprobs);
        tokens.n_logprobs = n;
        tokens.logprobs = logprobs.token_pointers;
    }
    event.event_case = NOSA__CLUSTER__V1__RUN_EVENT__EVENT_TOKENS;
    event.tokens = &tokens;
    if (!send_event(run, &event))
        return false;
    run->first = (run->first + n) % RING_SIZE;
    run->count -= n;
    run->next_index += n;
    return true;
}

static void reply_done(struct nosa_run *run)
{
    const struct nosa_run_usage *from = &run->usage;
    Nosa__V1__Usage usage = NOSA__V1__USAGE__INIT;
    Nosa__Cluster__V1__RunDone done = NOSA__CLUSTER__V1__RUN_DONE__INIT;
    Nosa__Cluster__V1__RunEvent event = NOSA__CLUSTER__V1__RUN_EVENT__INIT;
    usage.prompt_tokens = from->prompt_tokens;
    usage.cached_prompt_tokens = from->cached_tokens;
    usage.completion_tokens = from->output_tokens;
    usage.queue_ms = from->queue_ms;
    usage.ttft_ms = from->ttft_ms;
    usage.decode_ms = from->decode_ms;
    usage.kv_gpu_hits = from->kv.first_hits;
    usage.kv_host_hits = from->kv.host_hits;
    usage.kv_nvme_hits = from->kv.nvme_hits;
    usage.kv_recomputed_blocks = from->recomputed_blocks;
    usage.kv_stall_ms = from->stall_ms;
    done.reason = run->reason == NOSA_SCHEDULER_END_STOP
                      ? NOSA__V1__FINISHED__REASON__REASON_STOP
                      : NOSA__V1__FINISHED__REASON__REASON_LENGTH;
    done.usage = &usage;
    event.event_case = NOSA__CLUSTER__V1__RUN_EVENT__EVENT_DONE;
    event.done = &done;
    nosa_rpc_call_reply(run->call, &event.base);
}

static void flush(struct nosa_run *run)
{
    bool taken = true;
    while (taken && !run->finished && (run->started_waiting || run->count > 0))
        taken = run->started_waiting ? send_started(run) : send_tokens(run);
    if (!run->ended || run->finished)
        return;
    if (run->code != NOSA_RPC_OK) {
        run->finished = true;
        nosa_rpc_call_abort(run->call, run->code, run->text);
    } else if (!run->started_waiting && run->count == 0) {
        run->finished = true;
        reply_done(run);
    } else if (nosa_rpc_call_is_cancelled(run->call)) { /* and was told so before the end */
        run->finished = true;
        nosa_rpc_call_finish(run->call, nosa_rpc_call_cancel_code(run->call), NULL);
    }
}

/* ---- the interface ----------------------------------------------------------------------------
 */

void nosa_run_start(struct nosa_run *run, uint32_t cached_tokens, double queue_ms)
{
    pthread_mutex_lock(&run->mutex);
    run->started_waiting = true;
    run->started_cached = cached_tokens;
    run->started_queue_ms = queue_ms;
    flush(run);
    pthread_mutex_unlock(&run->mutex);
}

uint32_t nosa_run_push(struct nosa_run *run, const struct nosa_sample_result *result)
{
    uint32_t per_token = run->message->logprobs;
    pthread_mutex_lock(&run->mutex);
    NOSA_ASSERT(run->count < RING_SIZE && !run->ended);
    uint32_t slot = (run->first + run->count++) % RING_SIZE;
    uint32_t n_top = (uint32_t)result->n_top < per_token ? (uint32_t)result->n_top : per_token;
    run->ring[slot] =
        (struct nosa_run_token){(uint32_t)result->token, result->logprob, (int32_t)n_top};
    if (n_top > 0) {
        memcpy(run->top_token + slot * per_token, result->top_token, n_top * sizeof(int32_t));
        memcpy(run->top_logprob + slot * per_token, result->top_logprob, n_top * sizeof(float));
    }
    flush(run);
    uint32_t waiting = run->count;
    pthread_mutex_unlock(&run->mutex);
    return waiting;
}

void nosa_run_end(struct nosa_run *run, enum nosa_rpc_code code, const char *text,
                  enum nosa_scheduler_end reason, const struct nosa_run_usage *usage)
{
    pthread_mutex_lock(&run->mutex);
    NOSA_ASSERT(!run->ended);
    run->ended = true;
    run->code = code;
    run->reason = reason;
    run->usage = *usage;
    snprintf(run->text, sizeof run->text, "%s%s", code == NOSA_RPC_INTERNAL ? FAILED_TEXT : "",
             text ? text : "");
    if (code != NOSA_RPC_OK) {
        run->count = 0;
        run->started_waiting = false;
    }
    flush(run);
    pthread_mutex_unlock(&run->mutex);
}

uint32_t nosa_run_flush(struct nosa_run *run)
{
    pthread_mutex_lock(&run->mutex);
    flush(run);
    uint32_t waiting = run->count;
    pthread_mutex_unlock(&run->mutex);
    return waiting;
}

bool nosa_run_cancelled(struct nosa_run *run)
{
    pthread_mutex_lock(&run->mutex);
    bool goes_on = !run->ended;
    if (run->ended && !run->finished) {
        run->finished = true;
        nosa_rpc_call_finish(run->call, nosa_rpc_call_cancel_code(run->call), NULL);
    }
    pthread_mutex_unlock(&run->mutex);
    return goes_on;
}

uint32_t nosa_run_waiting(struct nosa_run *run)
{
    pthread_mutex_lock(&run->mutex);
    uint32_t waiting = run->count;
    pthread_mutex_unlock(&run->mutex);
    return waiting;
}
