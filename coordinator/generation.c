/*
 * A generation from its call to its end: checks, encoding, and the answer. What happens between, on
 * workers, is relay.c's.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "generation_internal.h"
#include "prefix_set.h"

/* ---- memory ---- */

void nosa_generation_retain(struct nosa_generation *generation)
{
    atomic_fetch_add_explicit(&generation->references, 1, memory_order_relaxed);
}

void nosa_generation_release(struct nosa_generation *generation)
{
    if (atomic_fetch_sub_explicit(&generation->references, 1, memory_order_acq_rel) != 1)
        return;
    NOSA_ASSERT(!generation->listed && !generation->attempt);
    nosa_output_free(&generation->output);
    free(generation->prompt);
    free(generation->hashes);
    nosa_worker_release(generation->last_worker);
    nosa_worker_release(generation->ran_on);
    nosa_model_release(generation->model);
    nosa_rpc_call_release(generation->call);
    free(generation->request_id);
    free(generation->model_name);
    pthread_mutex_destroy(&generation->mutex);
    free(generation);
}

static uint64_t draw(void)
{
    uint64_t number = 0;
    while (number == 0)
        if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
            number = nosa_monotonic_ns() | 1;
    return number;
}

/* ---- the end ---- */

/* One line for each generation: with where its time went when it was slow or failed. */
static void log_end(const struct nosa_generation *g, enum nosa_rpc_code code, const char *text)
{
    uint64_t now = nosa_monotonic_ns();
    uint32_t slow_ms = g->coordinator->options.slow_request_ms;
    const char *worker = g->last_worker ? g->last_worker->id : NULL;
    double total_s = nosa_seconds_between(g->arrival_ns, now);
    uint64_t started_ns = g->started_ns ? g->started_ns : now;
    uint64_t first_ns = g->first_token_ns ? g->first_token_ns : now;
    uint64_t without_ns = g->without_worker_ns;
    uint64_t paused_ns = g->paused_ns + (g->paused_at_ns ? now - g->paused_at_ns : 0);
    bool slow = slow_ms > 0 && total_s * 1000 > slow_ms;
    if (g->gone_ns && g->started_ns)
        without_ns += now - g->gone_ns;
    nosa_log_about(
        code == NOSA_RPC_INTERNAL ? NOSA_LOG_ERROR
        : slow                    ? NOSA_LOG_WARN
                                  : NOSA_LOG_DEBUG,
        "request", &(struct nosa_log_subject){g->request_id, worker},
        "%srequest %s on worker %s: %s%s%s; %zu prompt tokens, %u of them cached, %zu "
        "output tokens, %u replays; %.3f s in all: %.3f queued, %.3f prefill, %.3f "
        "decode; of these %.3f without a worker, %.3f waiting for its reader, %.3f for KV",
        slow ? "slow: " : "", g->request_id, worker ? worker : "-", nosa_rpc_code_name(code),
        text && text[0] ? ": " : "", text ? text : "", g->prompt_count,
        g->usage.cached_prompt_tokens, g->output.count, g->replays, total_s,
        nosa_seconds_between(g->arrival_ns, started_ns),
        nosa_seconds_between(started_ns, first_ns > started_ns ? first_ns : started_ns),
        nosa_seconds_between(first_ns, now), nosa_seconds_between(0, without_ns),
        nosa_seconds_between(0, paused_ns), g->usage.kv_stall_ms / 1000);
}

/* Everything of an end but the answer to the client. */
static void settle(struct nosa_generation *generation, enum nosa_rpc_code code, const char *text)
{
    struct nosa_telemetry *telemetry = generation->coordinator->telemetry;
    if (generation->attempt)
        nosa_relay_abandon(generation);
    generation->state = NOSA_GENERATION_ENDED;
    generation->request = NULL;
    nosa_counter_add(telemetry->requests[code], 1);
    if (code == NOSA_RPC_OK)
        nosa_histogram_observe(telemetry->e2e,
                               nosa_seconds_between(generation->arrival_ns, nosa_monotonic_ns()));
    log_end(generation, code, text);
    nosa_generation_unlist(generation);
}

void nosa_generation_end(struct nosa_generation *generation, enum nosa_rpc_code code,
                         const char *text, bool abort)
{
    NOSA_ASSERT(generation->state != NOSA_GENERATION_ENDED);
    if (generation->state == NOSA_GENERATION_ENCODING) {
        if (!generation->ending) {
            generation->ending = true;
            generation->ending_code = code;
            snprintf(generation->ending_text, sizeof generation->ending_text, "%s", text);
        }
        return;
    }
    settle(generation, code, text);
    if (abort)
        nosa_rpc_call_abort(generation->call, code, text);
    else
        nosa_rpc_call_finish(generation->call, code, text);
}

static Nosa__V1__Usage usage_of(const struct nosa_generation *g)
{
    uint64_t now = nosa_monotonic_ns();
    Nosa__V1__Usage usage = g->usage;
    usage.prompt_tokens = (uint32_t)g->prompt_count;
    usage.completion_tokens = (uint32_t)g->output.count;
    if (g->started_ns)
        usage.queue_ms = 1000 * nosa_seconds_between(g->arrival_ns, g->started_ns);
    if (g->first_token_ns) {
        usage.ttft_ms = 1000 * nosa_seconds_between(g->arrival_ns, g->first_token_ns);
        usage.decode_ms = 1000 * nosa_seconds_between(g->first_token_ns, now);
    }
    return usage;
}

void nosa_generation_finish(struct nosa_generation *generation)
{
    Nosa__V1__GenerateResponse response = NOSA__V1__GENERATE_RESPONSE__INIT;
    Nosa__V1__Finished finished = NOSA__V1__FINISHED__INIT;
    Nosa__V1__Usage usage = usage_of(generation);
    const char *stop = nosa_stop_matcher_found(&generation->output.matcher);
    char stop_copy[NOSA_STOP_BYTES_MAX + 1] = "";
    NOSA_ASSERT(generation->output.end != NOSA_OUTPUT_OPEN);
    if (stop)
        snprintf(stop_copy, sizeof stop_copy, "%s", stop);
    finished.reason = generation->output.end == NOSA_OUTPUT_STOP
                          ? NOSA__V1__FINISHED__REASON__REASON_STOP
                          : NOSA__V1__FINISHED__REASON__REASON_LENGTH;
    finished.stop_sequence = stop_copy;
    finished.usage = &usage;
    response.event_case = NOSA__V1__GENERATE_RESPONSE__EVENT_FINISHED;
    response.finished = &finished;
    settle(generation, NOSA_RPC_OK, NULL);
    nosa_rpc_call_reply(generation->call, &response.base);
}

void nosa_generation_accept(struct nosa_generation *generation, const char *worker_id)
{
    Nosa__V1__GenerateResponse response = NOSA__V1__GENERATE_RESPONSE__INIT;
    Nosa__V1__Accepted accepted = NOSA__V1__ACCEPTED__INIT;
    accepted.request_id = generation->request_id;
    accepted.prompt_tokens = (uint32_t)generation->prompt_count;
    accepted.worker_id = (char *)(uintptr_t)worker_id;
    accepted.seed = generation->sampling.seed;
    if (generation->request->return_prompt_token_ids) {
        accepted.n_prompt_token_ids = generation->prompt_count;
        accepted.prompt_token_ids = generation->prompt;
    }
    response.event_case = NOSA__V1__GENERATE_RESPONSE__EVENT_ACCEPTED;
    response.accepted = &accepted;
    generation->accepted = true;
    /* The first message of a call always has room; a client that is gone is told by its event. */
    (void)nosa_rpc_call_send(generation->call, &response.base);
}

/* ---- encoding ---- */

/* The field that the prompt came in. */
static const char *field_of(const Nosa__V1__GenerateRequest *request)
{
    return request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TEXT        ? "text"
           : request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS ? "token_ids.ids"
                                                                                : "chat";
}

static enum nosa_status encode(struct nosa_generation *g, struct nosa_error *error)
{
    const Nosa__V1__GenerateRequest *request = g->request;
    /* What is longer is refused in any case: no need to encode it to its end. */
    struct nosa_tokens tokens = {.count_max = g->model->max_context_tokens};
    if (request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS) {
        size_t bytes = request->token_ids->n_ids * sizeof(uint32_t);
        g->prompt = malloc(bytes);
        if (!g->prompt)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the prompt");
        memcpy(g->prompt, request->token_ids->ids, bytes);
        g->prompt_count = request->token_ids->n_ids;
        return NOSA_OK;
    }
    enum nosa_status status =
        request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TEXT
            ? nosa_prompt_encode_text(g->model, request->text, &tokens, error)
            : nosa_prompt_encode_chat(g->model, request->chat, &tokens, error);
    if (tokens.full) {
        nosa_error_clear(error);
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "%s: %u tokens or more leave no place in the model's context",
                                field_of(request), g->model->max_context_tokens);
    }
    if (status != NOSA_OK) {
        nosa_tokens_free(&tokens);
        return status;
    }
    g->prompt = (uint32_t *)tokens.ids; /* ids are not negative, so the bits are the same */
    g->prompt_count = tokens.count;
    return NOSA_OK;
}

static enum nosa_status check_prompt(const struct nosa_generation *g, struct nosa_error *error)
{
    const char *field = field_of(g->request);
    if (g->prompt_count == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: has no tokens", field);
    if (g->prompt_count >= g->model->max_context_tokens)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s: %zu tokens leave no place in the model's context of %u", field,
                              g->prompt_count, g->model->max_context_tokens);
    return nosa_validate_ids(field, g->prompt, g->prompt_count, g->model->vocab_size, error);
}

static enum nosa_status begin_output(struct nosa_generation *g, struct nosa_error *error)
{
    const Nosa__V1__GenerateRequest *request = g->request;
    uint32_t room = g->model->max_context_tokens - (uint32_t)g->prompt_count;
    const struct nosa_output_options options = {
        .tokenizer = g->model->tokenizer,
        .prompt = g->prompt,
        .prompt_count = g->prompt_count,
        .resume = request->resume_token_ids,
        .resume_count = request->n_resume_token_ids,
        .stops = request->stop,
        .stop_count = request->n_stop,
        .stop_ids = request->stop_token_ids,
        .stop_id_count = request->n_stop_token_ids,
        .eos_ids = request->ignore_eos ? NULL : g->model->eos_ids,
        .eos_id_count = request->ignore_eos ? 0 : g->model->eos_id_count,
        .max_tokens = request->max_tokens < room ? request->max_tokens : room,
    };
    g->resumed_count = (uint32_t)request->n_resume_token_ids;
    return nosa_output_init(&g->output, &options, error);
}

static enum nosa_status hash_prompt(struct nosa_generation *g, struct nosa_error *error)
{
    g->hash_count = g->prompt_count / g->model->block_tokens;
    g->hashes = calloc(g->hash_count + 1, sizeof *g->hashes);
    if (!g->hashes)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the prompt");
    nosa_prefix_hash(g->prompt, g->prompt_count, g->model->block_tokens, g->request->cache_salt,
                     g->hashes);
    return NOSA_OK;
}

/* Encodes, then dispatches; on a thread of gRPC or of the pool. */
static void prepare(struct nosa_generation *g)
{
    struct nosa_error error = {0};
    enum nosa_status status = encode(g, &error);
    if (status == NOSA_OK)
        status = check_prompt(g, &error);
    if (status == NOSA_OK)
        status = hash_prompt(g, &error);
    pthread_mutex_lock(&g->mutex);
    if (status == NOSA_OK)
        status = begin_output(g, &error);
    g->state = NOSA_GENERATION_WAITING;
    if (g->ending) {
        nosa_generation_end(g, g->ending_code, g->ending_text, false);
    } else if (status != NOSA_OK) {
        nosa_generation_end(g, nosa_rpc_code_from_status(status), error.text, false);
    } else if (g->output.end != NOSA_OUTPUT_OPEN) {
        nosa_generation_accept(g, "");
        nosa_generation_finish(g);
    } else {
        nosa_relay_dispatch(g);
    }
    pthread_mutex_unlock(&g->mutex);
}

static void prepare_later(void *argument)
{
    struct nosa_generation *generation = argument;
    prepare(generation);
    nosa_generation_release(generation);
}

/* ---- events of the call ---- */

static void on_cancelled(void *context, struct nosa_rpc_call *call)
{
    struct nosa_generation *generation = context;
    enum nosa_rpc_code code = nosa_rpc_call_cancel_code(call);
    pthread_mutex_lock(&generation->mutex);
    if (generation->state != NOSA_GENERATION_ENDED)
        nosa_generation_end(generation, code,
                            code == NOSA_RPC_DEADLINE_EXCEEDED ? "the deadline has passed"
                                                               : "the client is gone",
                            false);
    pthread_mutex_unlock(&generation->mutex);
}

static void on_writable(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct nosa_generation *generation = context;
    pthread_mutex_lock(&generation->mutex);
    if (generation->state != NOSA_GENERATION_ENDED)
        nosa_relay_writable(generation);
    pthread_mutex_unlock(&generation->mutex);
}

static void on_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    nosa_generation_release(context);
}

static const struct nosa_rpc_call_events events = {
    .cancelled = on_cancelled, .writable = on_writable, .done = on_done};

/* ---- the beginning ---- */

static uint64_t prompt_bytes(const Nosa__V1__GenerateRequest *request)
{
    uint64_t bytes = sizeof(struct nosa_generation) + 4 * (uint64_t)request->n_resume_token_ids;
    if (request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TEXT)
        return bytes + strlen(request->text);
    if (request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS)
        return bytes + 4 * (uint64_t)request->token_ids->n_ids;
    for (size_t i = 0; i < request->chat->n_messages; i++)
        bytes += strlen(request->chat->messages[i]->content);
    return bytes;
}

/* Sampling as the worker needs it: the request's or the model's, with a seed. */
static Nosa__V1__Sampling resolve_sampling(const Nosa__V1__GenerateRequest *request,
                                           const struct nosa_model *model)
{
    Nosa__V1__Sampling sampling = NOSA__V1__SAMPLING__INIT;
    const Nosa__V1__Sampling *from = request->sampling     ? request->sampling
                                     : model->has_sampling ? &model->sampling
                                                           : &sampling;
    sampling.temperature = from->temperature;
    sampling.top_p = from->top_p;
    sampling.top_k = from->top_k;
    sampling.min_p = from->min_p;
    sampling.seed = request->sampling && from->seed ? from->seed
                    : request->seed                 ? request->seed
                    : from->seed                    ? from->seed
                                                    : draw();
    sampling.repetition_penalty = from->repetition_penalty;
    sampling.presence_penalty = from->presence_penalty;
    sampling.frequency_penalty = from->frequency_penalty;
    return sampling;
}

static enum nosa_status check(struct nosa_coordinator *coordinator,
                              const Nosa__V1__GenerateRequest *request, struct nosa_model **model,
                              struct nosa_error *error)
{
    if (atomic_load(&coordinator->draining))
        return nosa_error_set(error, NOSA_UNAVAILABLE, "this coordinator is going away");
    NOSA_TRY(nosa_validate_generate(request, &coordinator->limits, error));
    NOSA_TRY(nosa_registry_find_model(coordinator->registry, request->model, model, error));
    const struct nosa_model_limits limits = {(*model)->vocab_size, (*model)->max_context_tokens};
    NOSA_TRY(nosa_validate_generate_ids(request, &limits, error));
    if (!(*model)->tokenizer && request->n_stop > 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "stop: model '%.128s' has no tokenizer, so there is no text",
                              (*model)->id);
    return NOSA_OK;
}

static struct nosa_generation *create(struct nosa_coordinator *coordinator,
                                      struct nosa_rpc_call *call,
                                      const Nosa__V1__GenerateRequest *request,
                                      struct nosa_model *model)
{
    struct nosa_generation *g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    atomic_init(&g->references, 1);
    pthread_mutex_init(&g->mutex, NULL);
    g->output.matcher.found = -1;
    nosa__v1__usage__init(&g->usage);
    g->coordinator = coordinator;
    g->call = call;
    nosa_rpc_call_retain(call);
    g->request = request;
    g->model = model;
    nosa_model_retain(model);
    if (request->request_id[0])
        g->request_id = strdup(request->request_id);
    else if (asprintf(&g->request_id, "%016" PRIx64, draw()) < 0)
        g->request_id = NULL;
    g->model_name = strdup(model->id);
    nosa_rpc_call_peer(call, g->client);
    nosa_coordinator_client_name(coordinator, call, g->client_name);
    g->arrival_ns = nosa_monotonic_ns();
    g->prompt_bytes = prompt_bytes(request);
    g->sampling = resolve_sampling(request, model);
    g->asked_max_tokens = request->max_tokens;
    g->priority = request->priority;
    if (g->request_id && g->model_name)
        return g;
    nosa_generation_release(g);
    return NULL;
}

/* Encodes here when that is short, else in the pool. */
static void start_encoding(struct nosa_generation *g)
{
    if (g->request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS ||
        g->prompt_bytes < NOSA_INLINE_BYTES + sizeof *g) {
        prepare(g);
        return;
    }
    nosa_generation_retain(g);
    if (nosa_work_pool_submit(g->coordinator->pool, prepare_later, g) == NOSA_OK)
        return;
    pthread_mutex_lock(&g->mutex);
    g->state = NOSA_GENERATION_WAITING;
    nosa_generation_end(g, NOSA_RPC_RESOURCE_EXHAUSTED, "too many prompts wait to be encoded",
                        false);
    pthread_mutex_unlock(&g->mutex);
    nosa_generation_release(g);
}

void nosa_generation_start(struct nosa_coordinator *coordinator, struct nosa_rpc_call *call,
                           const Nosa__V1__GenerateRequest *request)
{
    struct nosa_error error = {0};
    struct nosa_model *model = NULL;
    struct nosa_generation *generation = NULL;
    enum nosa_status status = check(coordinator, request, &model, &error);
    if (status == NOSA_OK) {
        generation = create(coordinator, call, request, model);
        status = generation ? nosa_generation_list(generation, &error)
                            : nosa_error_set(&error, NOSA_OUT_OF_MEMORY, "no memory");
    }
    nosa_model_release(model);
    if (status != NOSA_OK) {
        nosa_counter_add(coordinator->telemetry->requests[nosa_rpc_code_from_status(status)], 1);
        nosa_rpc_call_fail(call, &error);
        if (generation)
            nosa_generation_release(generation);
        return;
    }
    nosa_rpc_call_set_events(call, &events, generation); /* has the first reference */
    start_encoding(generation);
}
