/* Unary calls: one batch sends and receives everything. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/channel_internal.h"
#include "rpc/message.h"
#include "rpc/payload_internal.h"

struct unary {
    struct nosa_rpc_tag tag;
    struct nosa_rpc_channel *channel; /* one reference */
    struct nosa_rpc_loop *loop;
    struct nosa_rpc_template template;
    struct nosa_rpc_attempt attempt;
    grpc_byte_buffer *received;
    uint32_t attempts;       /* made so far */
    nosa_rpc_reply reply;    /* or, of a call that is waited for: */
    struct waiting *waiting; /* borrowed */
    void *context;
};

/* A thread that waits for its call. */
struct waiting {
    pthread_mutex_t mutex;
    pthread_cond_t ended;
    /* under mutex */
    bool over;
    enum nosa_rpc_code code;
    ProtobufCMessage *response; /* owned */
    struct nosa_error error;
};

static void try_target(struct unary *unary, uint32_t target)
{
    grpc_op ops[6];
    nosa_rpc_attempt_begin(&unary->attempt, unary->channel, target, &unary->template, unary->loop);
    unary->attempts++;
    size_t count = nosa_rpc_attempt_send_ops(&unary->attempt, &unary->template, ops);
    ops[count++] = (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                             .data.recv_initial_metadata = {&unary->attempt.initial}};
    ops[count++] = (grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message = {&unary->received}};
    ops[count++] = nosa_rpc_attempt_status_op(&unary->attempt);
    /* Nothing of the call is touched once its tag is handed over. */
    grpc_call *call = unary->attempt.call;
    void *tag = nosa_rpc_tag_hand_over(&unary->tag);
    grpc_call_error code = grpc_call_start_batch(call, ops, count, tag, NULL);
    NOSA_ASSERT(code == GRPC_CALL_OK);
}

/* Unpacks what came with OK; a peer that answers nonsense is INTERNAL. */
static enum nosa_rpc_code unpack(struct unary *unary, ProtobufCMessage **response,
                                 char text[NOSA_RPC_OUTCOME_TEXT_MAX])
{
    struct nosa_error error = {0};
    if (nosa_rpc_payload_unpack(unary->received, unary->template.response,
                                unary->channel->unpacked_bytes_max, response, &error) == NOSA_OK)
        return NOSA_RPC_OK;
    snprintf(text, NOSA_RPC_OUTCOME_TEXT_MAX, "the answer cannot be read: %.400s", error.text);
    return NOSA_RPC_INTERNAL;
}

/* Hands the end of a call, and the message, to the thread that waits. */
static void wake(struct waiting *waiting, const struct nosa_rpc_outcome *outcome,
                 ProtobufCMessage *response)
{
    pthread_mutex_lock(&waiting->mutex);
    waiting->over = true;
    waiting->code = outcome->code;
    waiting->response = response;
    if (outcome->code != NOSA_RPC_OK)
        nosa_error_set(&waiting->error, nosa_rpc_code_to_status(outcome->code), "%s: %s: %s",
                       outcome->address, nosa_rpc_code_name(outcome->code), outcome->text);
    pthread_cond_signal(&waiting->ended);
    pthread_mutex_unlock(&waiting->mutex);
}

static void complete(struct nosa_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct unary *unary = NOSA_RPC_OWNER(tag, struct unary, tag);
    struct nosa_rpc_channel *channel = unary->channel;
    uint32_t target = unary->attempt.target;
    char text[NOSA_RPC_OUTCOME_TEXT_MAX];
    ProtobufCMessage *response = NULL;
    enum nosa_rpc_code code = nosa_rpc_attempt_outcome(&unary->attempt, text);
    bool away = code == NOSA_RPC_UNAVAILABLE && !unary->received;
    if (code == NOSA_RPC_OK)
        code = unpack(unary, &response, text);
    if (unary->received)
        grpc_byte_buffer_destroy(unary->received);
    unary->received = NULL;
    nosa_rpc_attempt_end(&unary->attempt);
    if (away) {
        nosa_rpc_channel_move_on(channel, target);
        if (unary->attempts < channel->target_count) {
            try_target(unary, (target + 1) % channel->target_count);
            return;
        }
    }
    const struct nosa_rpc_outcome outcome = {
        .code = code, .text = text, .address = channel->targets[target].address};
    if (unary->waiting) {
        wake(unary->waiting, &outcome, response);
    } else {
        unary->reply(unary->context, &outcome, response);
        nosa_message_free(response);
    }
    nosa_rpc_template_free(&unary->template);
    nosa_rpc_channel_release(channel);
    free(unary);
}

static enum nosa_status start(struct nosa_rpc_channel *channel,
                              const struct nosa_rpc_request *request, nosa_rpc_reply reply,
                              void *context, struct waiting *waiting, struct nosa_error *error)
{
    struct unary *unary = calloc(1, sizeof *unary);
    if (!unary)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a call of %s",
                              request->path);
    enum nosa_status status = nosa_rpc_template_init(&unary->template, request, error);
    if (status != NOSA_OK) {
        free(unary);
        return status;
    }
    unary->tag.complete = complete;
    unary->channel = channel;
    nosa_rpc_channel_retain(channel);
    unary->loop = nosa_rpc_runtime_pick(channel->runtime);
    unary->reply = reply;
    unary->context = context;
    unary->waiting = waiting;
    try_target(unary, atomic_load(&channel->current));
    return NOSA_OK;
}

enum nosa_status nosa_rpc_unary_start(struct nosa_rpc_channel *channel,
                                      const struct nosa_rpc_request *request, nosa_rpc_reply reply,
                                      void *context, struct nosa_error *error)
{
    return start(channel, request, reply, context, NULL, error);
}

enum nosa_rpc_code nosa_rpc_unary(struct nosa_rpc_channel *channel,
                                  const struct nosa_rpc_request *request,
                                  ProtobufCMessage **response, struct nosa_error *error)
{
    NOSA_ASSERT(!nosa_rpc_runtime_is_own_thread());
    struct waiting waiting = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                              .ended = PTHREAD_COND_INITIALIZER};
    *response = NULL;
    enum nosa_status status = start(channel, request, NULL, NULL, &waiting, error);
    if (status != NOSA_OK)
        return nosa_rpc_code_from_status(status);
    pthread_mutex_lock(&waiting.mutex);
    while (!waiting.over)
        pthread_cond_wait(&waiting.ended, &waiting.mutex);
    pthread_mutex_unlock(&waiting.mutex);
    *response = waiting.response;
    if (waiting.code != NOSA_RPC_OK)
        nosa_error_set(error, waiting.error.status, "%s", waiting.error.text);
    return waiting.code;
}
