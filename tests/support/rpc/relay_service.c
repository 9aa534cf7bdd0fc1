#include "support/rpc/relay_service.h"

#include <pthread.h>
#include <stdlib.h>

#include "support/rpc/echo.pb-c.h"

/*
 * One relayed call. Its two ends, the server's call and the client's stream, may be on different
 * threads; it is freed when both are over. The call is finished by the stream's end alone, so
 * exactly once.
 */
struct relay {
    struct nosa_rpc_call *call; /* retained */
    struct nosa_rpc_stream *stream;
    pthread_mutex_t mutex;
    int ends; /* under mutex: of two */
};

static void end_one(struct relay *relay)
{
    pthread_mutex_lock(&relay->mutex);
    int ends = ++relay->ends;
    pthread_mutex_unlock(&relay->mutex);
    if (ends < 2)
        return;
    nosa_rpc_call_release(relay->call);
    if (relay->stream)
        nosa_rpc_stream_release(relay->stream);
    pthread_mutex_destroy(&relay->mutex);
    free(relay);
}

static bool on_message(void *context, struct nosa_rpc_stream *stream,
                       const ProtobufCMessage *message)
{
    struct relay *relay = context;
    (void)stream;
    (void)nosa_rpc_call_send(relay->call, message);
    return nosa_rpc_call_has_room(relay->call);
}

static void on_end(void *context, struct nosa_rpc_stream *stream,
                   const struct nosa_rpc_outcome *outcome)
{
    struct relay *relay = context;
    (void)stream;
    nosa_rpc_call_finish(relay->call, outcome->code, outcome->text);
    end_one(relay);
}

static const struct nosa_rpc_stream_events stream_events = {on_message, on_end};

static void on_cancelled(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    nosa_rpc_stream_cancel(((struct relay *)context)->stream);
}

static void on_writable(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    nosa_rpc_stream_resume(((struct relay *)context)->stream);
}

static void on_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    end_one(context);
}

static const struct nosa_rpc_call_events call_events = {
    .cancelled = on_cancelled, .writable = on_writable, .done = on_done};

static void count(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    relay->call = call;
    pthread_mutex_init(&relay->mutex, NULL);
    nosa_rpc_call_retain(call);
    nosa_rpc_call_set_events(call, &call_events, relay);
    const struct nosa_rpc_request request = {.path = nosa_rpc_call_path(call),
                                             .message = message,
                                             .response =
                                                 &nosa__test__v1__count_response__descriptor};
    /* On this very thread, whose events come one after the other: relay->stream is set before any
     * of them is. */
    if (nosa_rpc_stream_start(context, &request, &stream_events, relay, &relay->stream, NULL) !=
        NOSA_OK) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
        end_one(relay);
    }
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Count", .kind = NOSA_RPC_SERVER_STREAMING, .start = count},
};

enum nosa_status relay_service_add(struct nosa_rpc_server *server, struct nosa_rpc_channel *channel,
                                   struct nosa_error *error)
{
    return nosa_rpc_server_add_service(server, &nosa__test__v1__echo__descriptor, methods, 1,
                                       channel, error);
}
