/*
 * Outgoing server-streaming calls. Three batches: the request goes out, messages are read one at a
 * time, and the status is waited for from the beginning. `end` comes when all three are over.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/channel_internal.h"
#include "rpc/message.h"
#include "rpc/payload_internal.h"
#include "rpc/stream_internal.h"

struct nosa_rpc_stream {
    atomic_uint references; /* one is the library's, until the end */
    /* fixed after start */
    struct nosa_rpc_channel *channel; /* one reference */
    struct nosa_rpc_loop *loop;
    const ProtobufCMessageDescriptor *response;
    const struct nosa_rpc_stream_events *events; /* borrowed until the end */
    void *context;
    /* owned by the loop */
    struct nosa_rpc_attempt attempt;
    struct nosa_rpc_tag send_tag;
    struct nosa_rpc_tag read_tag;
    struct nosa_rpc_tag status_tag;
    ProtobufCMessage *message; /* inside the event */
    bool received_any;
    bool dropped; /* a message came after the cancel */
    char *broken; /* owned: why a message could not be read, which ended the call */
    pthread_mutex_t mutex;
    /* under mutex */
    bool ended; /* the attempt is empty */
    bool sending;
    bool reading;
    bool paused;    /* `message` said false */
    bool discard;   /* cancelled: what still comes is not delivered */
    bool read_over; /* nothing more will be read */
    bool status_known;
    grpc_byte_buffer *incoming; /* of the read batch */
};

void nosa_rpc_stream_retain(struct nosa_rpc_stream *stream)
{
    atomic_fetch_add_explicit(&stream->references, 1, memory_order_relaxed);
}

void nosa_rpc_stream_release(struct nosa_rpc_stream *stream)
{
    if (atomic_fetch_sub_explicit(&stream->references, 1, memory_order_acq_rel) != 1)
        return;
    pthread_mutex_destroy(&stream->mutex);
    free(stream->broken);
    free(stream);
}

static void start_batch(struct nosa_rpc_stream *stream, const grpc_op *ops, size_t count,
                        struct nosa_rpc_tag *tag)
{
    grpc_call_error code =
        grpc_call_start_batch(stream->attempt.call, ops, count, nosa_rpc_tag_hand_over(tag), NULL);
    NOSA_ASSERT(code == GRPC_CALL_OK);
}

/* Under the mutex. */
static void start_read(struct nosa_rpc_stream *stream)
{
    if (stream->reading || stream->read_over || stream->ended)
        return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message = {&stream->incoming}};
    stream->reading = true;
    stream->paused = false;
    start_batch(stream, &op, 1, &stream->read_tag);
}

/* Tells the end if every batch is over; the last thing that an event does with the stream. */
static void end_if_over(struct nosa_rpc_stream *stream)
{
    pthread_mutex_lock(&stream->mutex);
    /* Without a status of OK what was not read is not waited for. */
    bool over = stream->status_known && !stream->sending && !stream->reading && !stream->ended &&
                (stream->read_over || stream->attempt.code != GRPC_STATUS_OK);
    stream->ended = stream->ended || over;
    pthread_mutex_unlock(&stream->mutex);
    if (!over)
        return;
    struct nosa_rpc_channel *channel = stream->channel;
    char text[NOSA_RPC_OUTCOME_TEXT_MAX];
    struct nosa_rpc_outcome outcome = {
        .code = nosa_rpc_attempt_outcome(&stream->attempt, text),
        .text = text,
        .address = channel->targets[stream->attempt.target].address,
    };
    if (outcome.code == NOSA_RPC_UNAVAILABLE && !stream->received_any)
        nosa_rpc_channel_move_on(channel, stream->attempt.target);
    if (stream->dropped && outcome.code == NOSA_RPC_OK) {
        outcome.code = NOSA_RPC_CANCELLED;
        snprintf(text, sizeof text, "cancelled");
    }
    if (stream->broken) {
        outcome.code = NOSA_RPC_INTERNAL;
        outcome.unreadable = true;
        snprintf(text, sizeof text, "a message cannot be read: %.400s", stream->broken);
    }
    stream->events->end(stream->context, stream, &outcome);
    nosa_rpc_attempt_end(&stream->attempt);
    nosa_rpc_channel_release(channel);
    nosa_rpc_stream_release(stream);
}

static void send_complete(struct nosa_rpc_tag *tag, bool ok)
{
    (void)ok; /* the status tells */
    struct nosa_rpc_stream *stream = NOSA_RPC_OWNER(tag, struct nosa_rpc_stream, send_tag);
    pthread_mutex_lock(&stream->mutex);
    stream->sending = false;
    pthread_mutex_unlock(&stream->mutex);
    end_if_over(stream);
}

static void status_complete(struct nosa_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct nosa_rpc_stream *stream = NOSA_RPC_OWNER(tag, struct nosa_rpc_stream, status_tag);
    pthread_mutex_lock(&stream->mutex);
    stream->status_known = true;
    pthread_mutex_unlock(&stream->mutex);
    end_if_over(stream);
}

/* Hands a message to its event; whether another is wanted. */
static bool deliver(struct nosa_rpc_stream *stream, grpc_byte_buffer *incoming)
{
    struct nosa_error error = {0};
    stream->received_any = true;
    if (nosa_rpc_payload_unpack(incoming, stream->response, stream->channel->unpacked_bytes_max,
                                &stream->message, &error) != NOSA_OK) {
        if (!stream->broken)
            stream->broken = strdup(error.text);
        nosa_rpc_stream_cancel(stream);
        return true;
    }
    bool more = stream->events->message(stream->context, stream, stream->message);
    nosa_message_free(stream->message);
    stream->message = NULL;
    return more;
}

ProtobufCMessage *nosa_rpc_stream_take(struct nosa_rpc_stream *stream)
{
    ProtobufCMessage *message = stream->message;
    stream->message = NULL;
    return message;
}

static void read_complete(struct nosa_rpc_tag *tag, bool ok)
{
    struct nosa_rpc_stream *stream = NOSA_RPC_OWNER(tag, struct nosa_rpc_stream, read_tag);
    pthread_mutex_lock(&stream->mutex);
    grpc_byte_buffer *incoming = stream->incoming;
    stream->incoming = NULL;
    stream->read_over = !ok || !incoming;
    stream->paused = true; /* unless the event wants more, below, or resumes by then */
    bool skip = stream->discard;
    pthread_mutex_unlock(&stream->mutex);
    bool more = ok && incoming && (skip || deliver(stream, incoming));
    stream->dropped = stream->dropped || (skip && incoming);
    if (incoming)
        grpc_byte_buffer_destroy(incoming);
    pthread_mutex_lock(&stream->mutex);
    stream->reading = false;
    if (more || !stream->paused || stream->discard)
        start_read(stream);
    pthread_mutex_unlock(&stream->mutex);
    end_if_over(stream);
}

/* Starts the three batches; the mutex keeps the end away until all of them are. */
static void start(struct nosa_rpc_stream *stream, const struct nosa_rpc_template *template)
{
    grpc_op ops[3];
    pthread_mutex_lock(&stream->mutex);
    stream->sending = true;
    stream->reading = true;
    grpc_op status = nosa_rpc_attempt_status_op(&stream->attempt);
    start_batch(stream, &status, 1, &stream->status_tag);
    size_t count = nosa_rpc_attempt_send_ops(&stream->attempt, template, ops);
    start_batch(stream, ops, count, &stream->send_tag);
    ops[0] = (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                       .data.recv_initial_metadata = {&stream->attempt.initial}};
    ops[1] = (grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message = {&stream->incoming}};
    start_batch(stream, ops, 2, &stream->read_tag);
    pthread_mutex_unlock(&stream->mutex);
}

enum nosa_status nosa_rpc_stream_start(struct nosa_rpc_channel *channel,
                                       const struct nosa_rpc_request *request,
                                       const struct nosa_rpc_stream_events *events, void *context,
                                       struct nosa_rpc_stream **out, struct nosa_error *error)
{
    struct nosa_rpc_template template;
    struct nosa_rpc_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a call of %s",
                              request->path);
    enum nosa_status status = nosa_rpc_template_init(&template, request, error);
    if (status != NOSA_OK) {
        free(stream);
        return status;
    }
    atomic_init(&stream->references, 2); /* the library's and the caller's */
    pthread_mutex_init(&stream->mutex, NULL);
    stream->channel = channel;
    nosa_rpc_channel_retain(channel);
    stream->loop = nosa_rpc_runtime_pick(channel->runtime);
    stream->response = request->response;
    stream->events = events;
    stream->context = context;
    stream->send_tag.complete = send_complete;
    stream->read_tag.complete = read_complete;
    stream->status_tag.complete = status_complete;
    nosa_rpc_attempt_begin(&stream->attempt, channel, atomic_load(&channel->current), &template,
                           stream->loop);
    if (out)
        *out = stream;
    start(stream, &template);
    nosa_rpc_template_free(&template);
    if (!out)
        nosa_rpc_stream_release(stream);
    return NOSA_OK;
}

void nosa_rpc_stream_resume(struct nosa_rpc_stream *stream)
{
    pthread_mutex_lock(&stream->mutex);
    if (stream->reading)
        stream->paused = false;
    else
        start_read(stream);
    pthread_mutex_unlock(&stream->mutex);
}

void nosa_rpc_stream_cancel(struct nosa_rpc_stream *stream)
{
    pthread_mutex_lock(&stream->mutex);
    if (!stream->ended) {
        grpc_call_cancel(stream->attempt.call, NULL);
        /* A call that had ended with OK comes to its end by being read. */
        stream->discard = true;
        start_read(stream);
    }
    pthread_mutex_unlock(&stream->mutex);
}
