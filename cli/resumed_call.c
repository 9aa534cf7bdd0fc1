#include "resumed_call.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "interrupt.h"
#include "rpc/message.h"

#define LOOK_MS      100 /* between two looks for a signal while nothing comes */
#define PAUSE_MIN_MS 50  /* before another attempt to go on, doubled each time */
#define PAUSE_MAX_MS 1000

/* A call in flight. */
struct run {
    struct nosa_connection *connection;
    Nosa__V1__GenerateRequest *request;
    const struct nosa_resumed_options *options;
    const struct nosa_resumed_events *events;
    void *context;
    struct nosa_resumed_result *result;
    uint32_t *resume_ids;      /* owned: the request's own and those that came, for an attempt */
    const uint32_t *given_ids; /* [given_count]: the request's own; borrowed */
    size_t given_count;
    bool accepted;      /* by any server */
    bool heard;         /* a message came in this attempt */
    uint64_t broken_ns; /* when the last stream that brought something broke; 0: none did */
};

void nosa_resumed_result_free(struct nosa_resumed_result *result)
{
    free(result->request_id);
    free(result->worker_id);
    free(result->tokens);
    nosa_message_free((ProtobufCMessage *)result->finished);
    memset(result, 0, sizeof *result);
}

static bool is_interrupted(const struct run *run)
{
    return run->options->interrupted && *run->options->interrupted;
}

static enum nosa_status no_memory(struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a generation");
}

/* ---- events ---- */

static enum nosa_status keep_tokens(struct nosa_resumed_result *result, const uint32_t *ids,
                                    size_t count, struct nosa_error *error)
{
    if (result->token_capacity - result->token_count < count) {
        size_t capacity = 2 * (result->token_count + count) + 64;
        uint32_t *grown = realloc(result->tokens, capacity * sizeof *grown);
        if (!grown)
            return no_memory(error);
        result->tokens = grown;
        result->token_capacity = capacity;
    }
    if (count > 0)
        memcpy(result->tokens + result->token_count, ids, count * sizeof *ids);
    result->token_count += count;
    return NOSA_OK;
}

static enum nosa_status on_accepted(struct run *run, const Nosa__V1__Accepted *accepted,
                                    struct nosa_error *error)
{
    struct nosa_resumed_result *result = run->result;
    if (run->accepted)
        return NOSA_OK;
    run->accepted = true;
    result->request_id = strdup(accepted->request_id);
    result->worker_id = strdup(accepted->worker_id);
    result->seed = accepted->seed;
    result->prompt_tokens = accepted->prompt_tokens;
    if (!result->request_id || !result->worker_id)
        return no_memory(error);
    return run->events->accepted(run->context, accepted, error);
}

static enum nosa_status on_delta(struct run *run, const Nosa__V1__Delta *delta,
                                 struct nosa_error *error)
{
    struct nosa_resumed_result *result = run->result;
    NOSA_TRY(keep_tokens(result, delta->token_ids, delta->n_token_ids, error));
    if (delta->n_token_ids > 0 && result->first_ns == 0)
        result->first_ns = nosa_monotonic_ns();
    return run->events->delta(run->context, delta, error);
}

/* Takes one message of the stream. Finished is kept, and no longer the message's. */
static enum nosa_status on_message(struct run *run, Nosa__V1__GenerateResponse *message,
                                   struct nosa_error *error)
{
    run->heard = true;
    switch (message->event_case) {
    case NOSA__V1__GENERATE_RESPONSE__EVENT_ACCEPTED:
        return on_accepted(run, message->accepted, error);
    case NOSA__V1__GENERATE_RESPONSE__EVENT_DELTA: return on_delta(run, message->delta, error);
    case NOSA__V1__GENERATE_RESPONSE__EVENT_FINISHED:
        if (!run->result->finished) {
            run->result->finished = message->finished;
            message->event_case = NOSA__V1__GENERATE_RESPONSE__EVENT__NOT_SET;
            message->finished = NULL;
        }
        return NOSA_OK;
    default: return NOSA_OK; /* an event of a later version */
    }
}

/* ---- one attempt ---- */

/* Fills what the request carries of earlier attempts. */
static enum nosa_status prepare(struct run *run, struct nosa_error *error)
{
    const struct nosa_resumed_result *result = run->result;
    size_t count = run->given_count + result->token_count;
    if (!run->accepted)
        return NOSA_OK;
    uint32_t *ids = realloc(run->resume_ids, (count + 1) * sizeof *ids);
    if (!ids)
        return no_memory(error);
    if (run->given_count > 0)
        memcpy(ids, run->given_ids, run->given_count * sizeof *ids);
    if (result->token_count > 0)
        memcpy(ids + run->given_count, result->tokens, result->token_count * sizeof *ids);
    run->resume_ids = ids;
    run->request->resume_token_ids = ids;
    run->request->n_resume_token_ids = count;
    run->request->request_id = result->request_id;
    run->request->seed = result->seed;
    return NOSA_OK;
}

/* Reads until the stream's end. Sets result->local_failure when the fault is not the server's. */
static enum nosa_rpc_code read_stream(struct run *run, struct nosa_rpc_reader *reader,
                                      struct nosa_error *error)
{
    for (;;) {
        ProtobufCMessage *message;
        struct nosa_error cause = {0};
        bool ended;
        enum nosa_rpc_code code = NOSA_RPC_OK;
        enum nosa_status status =
            nosa_rpc_reader_next(reader, LOOK_MS, &message, &ended, &code, &cause);
        if (message) {
            status = on_message(run, (Nosa__V1__GenerateResponse *)message, error);
            nosa_message_free(message);
            if (status != NOSA_OK) {
                run->result->local_failure = true;
                return nosa_rpc_code_from_status(status);
            }
        } else if (ended) {
            if (code != NOSA_RPC_OK)
                nosa_error_set(error, cause.status, "%s", cause.text);
            return code;
        }
        if (is_interrupted(run)) {
            run->result->interrupted = true;
            nosa_error_set(error, NOSA_CANCELLED, "interrupted");
            return NOSA_RPC_CANCELLED;
        }
    }
}

/* The time that is left of the call's; *left_ms is 0 when it has no bound. */
static bool time_left(const struct run *run, uint32_t *left_ms)
{
    uint64_t end_ns = run->result->start_ns + run->options->timeout_ms * NOSA_NS_PER_MS;
    uint64_t now_ns = nosa_monotonic_ns();
    *left_ms = 0;
    if (run->options->timeout_ms == 0)
        return true;
    if (now_ns >= end_ns)
        return false;
    *left_ms = (uint32_t)((end_ns - now_ns) / NOSA_NS_PER_MS) + 1;
    return true;
}

static enum nosa_rpc_code attempt(struct run *run, struct nosa_error *error)
{
    struct nosa_rpc_request call = {
        .path = "/nosa.v1.Inference/Generate",
        .message = &run->request->base,
        .response = &nosa__v1__generate_response__descriptor,
        .headers = run->connection->headers,
        .header_count = run->connection->header_count,
    };
    struct nosa_rpc_reader *reader;
    run->heard = false;
    if (!time_left(run, &call.timeout_ms)) {
        nosa_error_set(error, NOSA_DEADLINE_EXCEEDED, "--timeout is over");
        return NOSA_RPC_DEADLINE_EXCEEDED;
    }
    enum nosa_status status = prepare(run, error);
    if (status == NOSA_OK)
        status = nosa_rpc_reader_start(&reader, run->connection->channel, &call, error);
    if (status != NOSA_OK) {
        run->result->local_failure = true;
        return nosa_rpc_code_from_status(status);
    }
    enum nosa_rpc_code code = read_stream(run, reader, error);
    nosa_rpc_reader_free(reader);
    return code;
}

/* ---- going on ---- */

/*
 * Whether another attempt may end better. Before anything was accepted that is the next server's
 * chance, once for each. Afterwards a coordinator that has just started may know no model yet, one
 * that is overloaded may have room soon, and the one that lost the connection may still hold the
 * request under its id.
 */
static bool may_go_on(const struct run *run, enum nosa_rpc_code code, uint32_t attempts,
                      const struct nosa_error *error)
{
    if (run->result->local_failure || run->result->interrupted)
        return false;
    if (!run->accepted)
        return code == NOSA_RPC_UNAVAILABLE && attempts < run->connection->address_count;
    uint64_t waited_ns = nosa_monotonic_ns() - run->broken_ns;
    if (waited_ns >= run->options->resume_ms * NOSA_NS_PER_MS)
        return false;
    bool held = code == NOSA_RPC_INVALID_ARGUMENT && !run->heard &&
                strstr(error->text, "is already running") != NULL;
    return code == NOSA_RPC_UNAVAILABLE || held ||
           (!run->heard && (code == NOSA_RPC_NOT_FOUND || code == NOSA_RPC_RESOURCE_EXHAUSTED));
}

/* Makes attempts until one ends the call. */
static enum nosa_rpc_code run_attempts(struct run *run, struct nosa_error *error)
{
    uint32_t pause_ms = PAUSE_MIN_MS;
    for (uint32_t attempts = 1;; attempts++) {
        struct nosa_error cause = {0};
        enum nosa_rpc_code code = attempt(run, &cause);
        if (run->result->finished && !run->result->local_failure)
            return NOSA_RPC_OK; /* all of it came, whatever became of the connection */
        if (code == NOSA_RPC_OK) {
            nosa_error_set(error, NOSA_INTERNAL, "the stream ended without Finished");
            return NOSA_RPC_INTERNAL;
        }
        if (run->heard) {
            run->broken_ns = nosa_monotonic_ns();
            pause_ms = PAUSE_MIN_MS;
        }
        if (!may_go_on(run, code, attempts, &cause)) {
            nosa_error_set(error, cause.status, "%s", cause.text);
            return code;
        }
        if (!run->accepted)
            continue;
        if (run->heard) {
            run->events->broken(run->context, &cause);
            run->result->breaks++;
            /* A server that froze would hold up the next attempt as well. */
            if (run->connection->address_count > 1 &&
                nosa_connection_go_on(run->connection, error) != NOSA_OK) {
                run->result->local_failure = true;
                return NOSA_RPC_RESOURCE_EXHAUSTED;
            }
        }
        nosa_interrupt_wait(-1, pause_ms);
        if (is_interrupted(run)) {
            run->result->interrupted = true;
            nosa_error_set(error, NOSA_CANCELLED, "interrupted");
            return NOSA_RPC_CANCELLED;
        }
        pause_ms = 2 * pause_ms < PAUSE_MAX_MS ? 2 * pause_ms : PAUSE_MAX_MS;
        nosa_rpc_channel_reset_backoff(run->connection->channel);
    }
}

enum nosa_rpc_code nosa_resumed_call(struct nosa_connection *connection,
                                     Nosa__V1__GenerateRequest *request,
                                     const struct nosa_resumed_options *options,
                                     const struct nosa_resumed_events *events, void *context,
                                     struct nosa_resumed_result *result, struct nosa_error *error)
{
    const Nosa__V1__GenerateRequest before = *request;
    struct run run = {
        .connection = connection,
        .request = request,
        .options = options,
        .events = events,
        .context = context,
        .result = result,
        .given_ids = request->resume_token_ids,
        .given_count = request->n_resume_token_ids,
    };
    memset(result, 0, sizeof *result);
    result->start_ns = nosa_monotonic_ns();
    result->code = run_attempts(&run, error);
    result->end_ns = nosa_monotonic_ns();
    free(run.resume_ids);
    *request = before;
    return result->code;
}
