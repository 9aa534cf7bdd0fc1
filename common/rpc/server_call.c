/* The life of one incoming call; server_internal.h tells how its batches fit together. */
#include "rpc/server_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "rpc/message.h"
#include "rpc/payload_internal.h"

static void start_batch(struct nosa_rpc_call *call, const grpc_op *ops, size_t count,
                        struct nosa_rpc_tag *tag)
{
    grpc_call_error code =
        grpc_call_start_batch(call->grpc, ops, count, nosa_rpc_tag_hand_over(tag), NULL);
    NOSA_ASSERT(code == GRPC_CALL_OK);
}

/* ---- memory ---- */

void nosa_rpc_call_retain(struct nosa_rpc_call *call)
{
    atomic_fetch_add_explicit(&call->references, 1, memory_order_relaxed);
}

void nosa_rpc_call_release(struct nosa_rpc_call *call)
{
    if (atomic_fetch_sub_explicit(&call->references, 1, memory_order_acq_rel) != 1)
        return;
    pthread_mutex_destroy(&call->mutex);
    free(call->text);
    free(call);
}

static struct nosa_rpc_call *call_create(struct nosa_rpc_route *route, struct nosa_rpc_loop *loop)
{
    uint32_t capacity =
        route->method->kind == NOSA_RPC_UNARY ? 1 : route->server->options.send_queue_max;
    struct nosa_rpc_call *call = calloc(1, sizeof *call + (capacity + 1) * sizeof call->queue[0]);
    if (!call)
        return NULL;
    atomic_init(&call->references, 1);
    call->route = route;
    call->loop = loop;
    call->capacity = capacity;
    call->slots = capacity + 1;
    call->read_paused = true;
    pthread_mutex_init(&call->mutex, NULL);
    grpc_metadata_array_init(&call->headers);
    return call;
}

/* ---- writing; all under the call's mutex ---- */

static void drop_queue(struct nosa_rpc_call *call)
{
    uint32_t kept = call->writing_message ? 1 : 0;
    while (call->count > kept) {
        uint32_t last = (call->first + call->count - 1) % call->slots;
        grpc_byte_buffer_destroy(call->queue[last]);
        call->count--;
    }
}

/* Starts the next write, if one is due and none is under way: the oldest message, the status once
 * no other message is before it, and the headers with the first of them. */
static void pump(struct nosa_rpc_call *call)
{
    grpc_op ops[3];
    size_t count = 0;
    grpc_slice details = grpc_empty_slice();
    if (call->writing || call->status_done || call->done)
        return;
    bool message = call->count > 0;
    bool status = call->finishing && call->count <= 1;
    if (!message && !status)
        return;
    memset(ops, 0, sizeof ops);
    if (!call->headers_sent)
        ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (message) {
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = call->queue[call->first];
    }
    if (status) {
        if (call->text)
            details = grpc_slice_from_copied_string(call->text);
        ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[count].data.send_status_from_server.status = (grpc_status_code)call->code;
        ops[count++].data.send_status_from_server.status_details = &details;
    }
    call->headers_sent = true;
    call->writing = true;
    call->writing_message = message;
    call->writing_status = status;
    start_batch(call, ops, count, &call->write_tag);
    grpc_slice_unref(details);
}

/* A copy of the text, cut at the end of a character. */
static char *copy_text(const char *text)
{
    size_t size = strlen(text);
    if (size >= NOSA_RPC_TEXT_MAX)
        size = NOSA_RPC_TEXT_MAX - 1 - nosa_utf8_incomplete_tail(text, NOSA_RPC_TEXT_MAX - 1);
    return strndup(text, size);
}

static void set_status(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text)
{
    call->finishing = true;
    call->code = code;
    call->text = text && text[0] ? copy_text(text) : NULL;
    if (call->cancelled)
        drop_queue(call);
}

/* ---- the end ---- */

/* Ends the call if nothing is under way any more; the last thing that an event of it does. */
static void end_if_over(struct nosa_rpc_call *call)
{
    pthread_mutex_lock(&call->mutex);
    bool over = call->status_done && call->closed && call->handler_done && !call->reading &&
                !call->writing && !call->done;
    call->done = call->done || over;
    pthread_mutex_unlock(&call->mutex);
    if (!over)
        return;
    if (call->events && call->events->done)
        call->events->done(call->events_context, call);
    pthread_mutex_lock(&call->mutex);
    grpc_call *grpc = call->grpc;
    call->grpc = NULL;
    drop_queue(call);
    pthread_mutex_unlock(&call->mutex);
    if (call->payload)
        grpc_byte_buffer_destroy(call->payload);
    call->payload = NULL;
    grpc_metadata_array_destroy(&call->headers);
    grpc_call_unref(grpc);
    nosa_message_free(call->request);
    call->request = NULL;
    struct nosa_rpc_server *server = call->route->server;
    nosa_rpc_call_release(call);
    nosa_rpc_server_leave(server);
}

static void tell_cancelled(struct nosa_rpc_call *call)
{
    if (call->events && call->events->cancelled)
        call->events->cancelled(call->events_context, call);
}

/* The library ends the call itself; the handler hears that it is cancelled and still finishes. */
static void end_early(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text)
{
    pthread_mutex_lock(&call->mutex);
    bool first = !call->finishing;
    if (first) {
        atomic_store(&call->cancelled, true);
        set_status(call, code, text);
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
    if (first)
        tell_cancelled(call);
}

static void write_complete(struct nosa_rpc_tag *tag, bool ok)
{
    struct nosa_rpc_call *call = NOSA_RPC_OWNER(tag, struct nosa_rpc_call, write_tag);
    pthread_mutex_lock(&call->mutex);
    call->writing = false;
    if (call->writing_message) {
        grpc_byte_buffer_destroy(call->queue[call->first]);
        call->first = (call->first + 1) % call->slots;
        call->count--;
        call->writing_message = false;
    }
    if (call->writing_status)
        call->status_done = true;
    call->writing_status = false;
    if (!ok)
        drop_queue(call);
    pump(call);
    bool writable = call->want_writable && call->count <= call->capacity / 2 && !call->finishing &&
                    !call->cancelled;
    if (writable)
        call->want_writable = false;
    pthread_mutex_unlock(&call->mutex);
    if (writable && call->events && call->events->writable)
        call->events->writable(call->events_context, call);
    end_if_over(call);
}

static void close_complete(struct nosa_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct nosa_rpc_call *call = NOSA_RPC_OWNER(tag, struct nosa_rpc_call, close_tag);
    pthread_mutex_lock(&call->mutex);
    call->closed = true;
    bool gone = call->close_cancelled && !call->status_done;
    bool tell = gone && !call->handler_done && !call->cancelled;
    if (gone) {
        atomic_store(&call->cancelled, true);
        drop_queue(call);
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
    if (tell)
        tell_cancelled(call);
    end_if_over(call);
}

/* ---- reading ---- */

/* Under the mutex. */
static void start_read(struct nosa_rpc_call *call)
{
    if (call->reading || call->read_over || call->done || call->finishing)
        return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message = {&call->incoming}};
    call->reading = true;
    call->read_paused = false;
    start_batch(call, &op, 1, &call->read_tag);
}

/* Hands a message, or the end of them, to the handler; whether it wants another. */
static bool deliver(struct nosa_rpc_call *call, grpc_byte_buffer *incoming)
{
    struct nosa_error error = {0};
    ProtobufCMessage *message = NULL;
    bool more = false;
    bool listening = call->events && call->events->message;
    enum nosa_status status = NOSA_OK;
    if (incoming)
        status = nosa_rpc_payload_unpack(incoming, call->route->descriptor->input,
                                         call->route->server->options.unpacked_bytes_max, &message,
                                         &error);
    if (status != NOSA_OK)
        end_early(call,
                  status == NOSA_UNSUPPORTED ? NOSA_RPC_UNIMPLEMENTED
                                             : nosa_rpc_code_from_status(status),
                  error.text);
    else if (listening)
        more = call->events->message(call->events_context, call, message);
    nosa_message_free(message);
    return more;
}

static void read_complete(struct nosa_rpc_tag *tag, bool ok)
{
    struct nosa_rpc_call *call = NOSA_RPC_OWNER(tag, struct nosa_rpc_call, read_tag);
    pthread_mutex_lock(&call->mutex);
    grpc_byte_buffer *incoming = ok ? call->incoming : NULL;
    if (!ok && call->incoming)
        grpc_byte_buffer_destroy(call->incoming);
    call->incoming = NULL;
    bool wanted = ok && !call->handler_done && !call->cancelled;
    call->read_over = !incoming;
    call->read_paused = true; /* unless the handler wants more, below, or resumes by then */
    pthread_mutex_unlock(&call->mutex);
    bool more = wanted && deliver(call, incoming);
    if (incoming)
        grpc_byte_buffer_destroy(incoming);
    pthread_mutex_lock(&call->mutex);
    call->reading = false;
    if (more || !call->read_paused)
        start_read(call);
    pthread_mutex_unlock(&call->mutex);
    end_if_over(call);
}

void nosa_rpc_call_resume(struct nosa_rpc_call *call)
{
    NOSA_ASSERT(call->route->method->kind == NOSA_RPC_BIDIRECTIONAL);
    pthread_mutex_lock(&call->mutex);
    if (call->reading)
        call->read_paused = false;
    else
        start_read(call);
    pthread_mutex_unlock(&call->mutex);
}

/* ---- the beginning ---- */

static bool admitted(struct nosa_rpc_call *call, enum nosa_rpc_code *code,
                     char text[NOSA_RPC_TEXT_MAX])
{
    const struct nosa_rpc_server_options *options = &call->route->server->options;
    *code = NOSA_RPC_UNAUTHENTICATED;
    text[0] = '\0';
    return call->route->method->open || !options->admit ||
           options->admit(options->admit_context, call, code, text);
}

/* Unpacks the first message, which is let go. */
static enum nosa_status unpack_request(struct nosa_rpc_call *call, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    if (call->route->method->kind != NOSA_RPC_BIDIRECTIONAL)
        status = nosa_rpc_payload_unpack(call->payload, call->route->descriptor->input,
                                         call->route->server->options.unpacked_bytes_max,
                                         &call->request, error);
    if (call->payload)
        grpc_byte_buffer_destroy(call->payload);
    call->payload = NULL;
    return status;
}

/* Ends a call that its handler does not hear of. */
static void refuse(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text)
{
    const struct nosa_rpc_server_options *options = &call->route->server->options;
    if (options->refused)
        options->refused(options->admit_context, call, code);
    nosa_rpc_call_finish(call, code, text);
}

/* On the loop's thread; the handler may finish the call, on any thread, before this returns. */
static void begin(struct nosa_rpc_call *call, bool within_bound)
{
    struct nosa_error error = {0};
    enum nosa_rpc_code code;
    char text[NOSA_RPC_TEXT_MAX];
    call->arrived_ns = nosa_monotonic_ns();
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                  .data.recv_close_on_server = {&call->close_cancelled}};
    start_batch(call, &op, 1, &call->close_tag);
    if (atomic_load(&call->route->server->closing)) {
        nosa_rpc_call_finish(call, NOSA_RPC_UNAVAILABLE, "the server is shutting down");
        return;
    }
    if (!within_bound) {
        snprintf(text, sizeof text, "the server has %u calls already",
                 call->route->server->options.calls_max);
        refuse(call, NOSA_RPC_RESOURCE_EXHAUSTED, text);
        return;
    }
    if (!admitted(call, &code, text)) {
        refuse(call, code, text);
        return;
    }
    enum nosa_status status = unpack_request(call, &error);
    if (status != NOSA_OK) {
        code =
            status == NOSA_UNSUPPORTED ? NOSA_RPC_UNIMPLEMENTED : nosa_rpc_code_from_status(status);
        refuse(call, code, error.text);
        return;
    }
    /* No event of the call comes before this returns to the loop, so it cannot vanish. */
    call->route->method->start(call->route->context, call, call->request);
    if (call->route->method->kind == NOSA_RPC_BIDIRECTIONAL) {
        pthread_mutex_lock(&call->mutex);
        start_read(call);
        pthread_mutex_unlock(&call->mutex);
    }
}

static void request_call(struct nosa_rpc_call *call)
{
    struct nosa_rpc_route *route = call->route;
    bool bidirectional = route->method->kind == NOSA_RPC_BIDIRECTIONAL;
    grpc_call_error code = grpc_server_request_registered_call(
        route->server->grpc, route->registered, &call->grpc, &call->deadline, &call->headers,
        bidirectional ? NULL : &call->payload, call->loop->queue, call->loop->queue,
        nosa_rpc_tag_hand_over(&call->arrival_tag));
    NOSA_ASSERT(code == GRPC_CALL_OK);
}

static void drop_payload(struct nosa_rpc_call *call)
{
    if (call->payload)
        grpc_byte_buffer_destroy(call->payload);
    call->payload = NULL;
    grpc_metadata_array_destroy(&call->headers);
    grpc_metadata_array_init(&call->headers);
}

static void arrived(struct nosa_rpc_tag *tag, bool ok)
{
    struct nosa_rpc_call *call = NOSA_RPC_OWNER(tag, struct nosa_rpc_call, arrival_tag);
    struct nosa_rpc_server *server = call->route->server;
    if (!ok) {
        drop_payload(call);
        nosa_rpc_call_release(call);
        nosa_rpc_server_count_armed(server, -1);
        return;
    }
    if (nosa_rpc_call_arm(call->route, call->loop)) {
        bool within = nosa_rpc_server_enter(server, call->route->method->open);
        nosa_rpc_server_count_armed(server, -1);
        begin(call, within);
        return;
    }
    /* No memory for the next one: this one goes without an answer, its object waits again. */
    grpc_call_cancel(call->grpc, NULL);
    grpc_call_unref(call->grpc);
    call->grpc = NULL;
    drop_payload(call);
    request_call(call);
}

bool nosa_rpc_call_arm(struct nosa_rpc_route *route, struct nosa_rpc_loop *loop)
{
    struct nosa_rpc_call *call = call_create(route, loop);
    if (!call)
        return false;
    call->arrival_tag.complete = arrived;
    call->close_tag.complete = close_complete;
    call->write_tag.complete = write_complete;
    call->read_tag.complete = read_complete;
    nosa_rpc_server_count_armed(route->server, +1);
    request_call(call);
    return true;
}

/* ---- what handlers do ---- */

void nosa_rpc_call_set_events(struct nosa_rpc_call *call, const struct nosa_rpc_call_events *events,
                              void *context)
{
    call->events = events;
    call->events_context = context;
}

/* Under the mutex: puts a packed message in the queue, which has a slot. */
static void enqueue(struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    NOSA_ASSERT(message->descriptor == call->route->descriptor->output);
    NOSA_ASSERT(call->route->method->kind != NOSA_RPC_UNARY || !call->sent_any);
    call->sent_any = true;
    call->queue[(call->first + call->count) % call->slots] = nosa_rpc_payload_pack(message);
    call->count++;
}

enum nosa_status nosa_rpc_call_send(struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    enum nosa_status status = NOSA_OK;
    pthread_mutex_lock(&call->mutex);
    if (call->finishing || call->done || call->cancelled) {
        status = NOSA_CANCELLED;
    } else if (call->count == call->capacity) {
        call->want_writable = true;
        status = NOSA_RESOURCE_EXHAUSTED;
    } else {
        enqueue(call, message);
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
    return status;
}

bool nosa_rpc_call_has_room(struct nosa_rpc_call *call)
{
    pthread_mutex_lock(&call->mutex);
    /* A call that is over takes nothing, but there is nothing to wait for either. */
    bool over = call->finishing || call->done || call->cancelled;
    bool room = over || call->count < call->capacity;
    if (!room)
        call->want_writable = true;
    pthread_mutex_unlock(&call->mutex);
    return room;
}

/* Finishes, with a last message if there is one; `now`: without waiting for the reader. */
static void finish(struct nosa_rpc_call *call, const ProtobufCMessage *message,
                   enum nosa_rpc_code code, const char *text, bool now)
{
    pthread_mutex_lock(&call->mutex);
    NOSA_ASSERT(!call->handler_done);
    bool ended_early = call->finishing;
    if (!ended_early) {
        if (message && !call->cancelled)
            enqueue(call, message);
        NOSA_ASSERT(call->route->method->kind != NOSA_RPC_UNARY || code != NOSA_RPC_OK ||
                    call->sent_any || call->cancelled);
        set_status(call, code, text);
    }
    call->handler_done = true;
    if (now) {
        drop_queue(call);
        if (call->writing_message)
            grpc_call_cancel_with_status(call->grpc, (grpc_status_code)code, text ? text : "",
                                         NULL);
    }
    pump(call);
    if (!call->writing) {
        /* Everything is over already: an empty batch lets the loop notice. */
        call->writing = true;
        start_batch(call, NULL, 0, &call->write_tag);
    }
    pthread_mutex_unlock(&call->mutex);
}

void nosa_rpc_call_finish(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text)
{
    finish(call, NULL, code, text, false);
}

void nosa_rpc_call_abort(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text)
{
    NOSA_ASSERT(code != NOSA_RPC_OK);
    finish(call, NULL, code, text, true);
}

void nosa_rpc_call_reply(struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    finish(call, message, NOSA_RPC_OK, NULL, false);
}

void nosa_rpc_call_fail(struct nosa_rpc_call *call, const struct nosa_error *error)
{
    NOSA_ASSERT(error->status != NOSA_OK);
    finish(call, NULL, nosa_rpc_code_from_status(error->status), error->text, false);
}
