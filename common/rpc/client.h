/*
 * The calling side of gRPC: channels that reconnect by themselves, and calls on them.
 *
 * A channel has one or more addresses. Calls go to the current one; when it turns out to be away
 * (UNAVAILABLE without a message received), calls after that go to the next. Connections are made
 * on the first call (or nosa_rpc_channel_connect), with growing pauses between attempts; a call
 * while there is no connection fails with UNAVAILABLE at once, unless it waits for one
 * (`wait_for_ready`). Keepalive finds peers that are frozen: their calls end with UNAVAILABLE
 * within keepalive_ms + keepalive_timeout_ms.
 */
#ifndef NOSA_RPC_CLIENT_H
#define NOSA_RPC_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/status.h"
#include "rpc/code.h"
#include "rpc/runtime.h"
#include "rpc/tls.h"

struct nosa_rpc_channel; /* opaque */
struct nosa_rpc_stream;  /* one outgoing server-streaming call; opaque, counted */

/* 0 stands for the default in brackets. Copied. */
struct nosa_rpc_channel_options {
    const char *const *addresses; /* [address_count] of "HOST:PORT", at least one */
    size_t address_count;
    const struct nosa_rpc_tls *tls; /* NULL: none */
    uint32_t message_bytes_max;     /* of one received message [16 MiB] */
    uint64_t unpacked_bytes_max;    /* that one message may take in memory [64 MiB] */
    uint32_t stream_window_bytes;   /* that a peer may send on one stream before it is read; fixed
                                       [64 KiB], so that a paused reader pauses the writer soon */
    uint32_t backoff_min_ms;        /* pause before the second attempt to connect [100] */
    uint32_t backoff_max_ms;        /* and the longest one [2,000] */
    uint32_t connect_timeout_ms;    /* of one attempt [5,000] */
    uint32_t keepalive_ms;          /* ping a silent server after [10,000] */
    uint32_t keepalive_timeout_ms;  /* and give it up when it does not answer within [5,000] */
};

struct nosa_rpc_header {
    const char *name; /* lower case */
    const char *value;
};

/* One call. Everything is borrowed until the function that takes it returns. */
struct nosa_rpc_request {
    const char *path; /* "/nosa.cluster.v1.Worker/Run" */
    const ProtobufCMessage *message;
    const ProtobufCMessageDescriptor *response; /* static: of every message that comes back */
    uint32_t timeout_ms;                        /* the call's deadline; 0: none */
    bool wait_for_ready; /* wait for a connection (within the deadline) instead of failing */
    const struct nosa_rpc_header *headers; /* [header_count] */
    size_t header_count;
};

/* How a call ended. */
struct nosa_rpc_outcome {
    enum nosa_rpc_code code;
    const char *text;    /* the peer's or the transport's words, one line; never NULL; borrowed */
    const char *address; /* whom the call went to; borrowed */
    bool unreadable;     /* a stream's message could not be read: the code is INTERNAL, and ours */
};

/* ---- channels ---- */

/*
 * Makes a channel; connects to nobody yet. NOSA_INVALID_ARGUMENT: an address or TLS file that is
 * wrong, named by the text.
 */
enum nosa_status nosa_rpc_channel_create(struct nosa_rpc_channel **channel,
                                         struct nosa_rpc_runtime *runtime,
                                         const struct nosa_rpc_channel_options *options,
                                         struct nosa_error *error);

/* Lets the channel go; calls that still run keep what they need of it. NULL is allowed. */
void nosa_rpc_channel_free(struct nosa_rpc_channel *channel);

/* Begins to connect now instead of at the first call, so that it need not wait: for peers that will
 * be called soon. Does not block. Any thread. */
void nosa_rpc_channel_connect(struct nosa_rpc_channel *channel);

/* Tries to connect at the next call even if a pause between attempts is not over: for when a peer
 * is known to be back. Any thread. */
void nosa_rpc_channel_reset_backoff(struct nosa_rpc_channel *channel);

/* The address that calls go to now; valid as long as the channel. */
const char *nosa_rpc_channel_address(struct nosa_rpc_channel *channel);

/* ---- unary calls ---- */

/* A call has ended: with OK, `response` is set and valid until the callback returns. Runs on a
 * thread of the runtime. */
typedef void (*nosa_rpc_reply)(void *context, const struct nosa_rpc_outcome *outcome,
                               const ProtobufCMessage *response);

/*
 * Starts a unary call; `reply` comes exactly once, unless this returns an error
 * (NOSA_OUT_OF_MEMORY). With several addresses a call that found no peer (UNAVAILABLE) is tried
 * on each of the others once, within its deadline, so use this for what may be asked twice.
 */
enum nosa_status nosa_rpc_unary_start(struct nosa_rpc_channel *channel,
                                      const struct nosa_rpc_request *request, nosa_rpc_reply reply,
                                      void *context, struct nosa_error *error);

/*
 * The same, waiting for the end; not on a thread of a runtime (assertion). With OK returned the
 * caller frees *response by nosa_message_free. Else *response is NULL and `error` says
 * "ADDRESS: CODE_NAME: text", with the status that corresponds to the code.
 */
enum nosa_rpc_code nosa_rpc_unary(struct nosa_rpc_channel *channel,
                                  const struct nosa_rpc_request *request,
                                  ProtobufCMessage **response, struct nosa_error *error);

/* ---- server-streaming calls, by callback ---- */

/* Both come from one thread of the runtime, never at the same time. */
struct nosa_rpc_stream_events {
    /* The next message, valid until the callback returns. Returning false stops reading until
     * nosa_rpc_stream_resume; the peer's sends come to a halt when the stream's window is full. */
    bool (*message)(void *context, struct nosa_rpc_stream *stream, const ProtobufCMessage *message);
    /* The call has ended; the last event, exactly once, after every message that came (with a
     * status other than OK unread messages may be dropped). `context` may be freed. */
    void (*end)(void *context, struct nosa_rpc_stream *stream,
                const struct nosa_rpc_outcome *outcome);
};

/*
 * Starts a call. *stream is the caller's reference, which it releases when it no longer wants to
 * cancel or resume from outside the events; `stream` may be NULL, and then the stream is valid
 * inside the events alone. `events` lives until `end` has returned. No event comes when this fails
 * (NOSA_OUT_OF_MEMORY); they may come before it returns.
 */
enum nosa_status nosa_rpc_stream_start(struct nosa_rpc_channel *channel,
                                       const struct nosa_rpc_request *request,
                                       const struct nosa_rpc_stream_events *events, void *context,
                                       struct nosa_rpc_stream **stream, struct nosa_error *error);

/* Reads on after `message` returned false. Any thread, any number of times. */
void nosa_rpc_stream_resume(struct nosa_rpc_stream *stream);

/* Ends the call; the peer is told at once and `end` follows (CANCELLED, unless the call had ended).
 * Any thread, any number of times. */
void nosa_rpc_stream_cancel(struct nosa_rpc_stream *stream);

/* Keeps the stream's memory until the matching release. Any thread. */
void nosa_rpc_stream_retain(struct nosa_rpc_stream *stream);
void nosa_rpc_stream_release(struct nosa_rpc_stream *stream);

/* ---- server-streaming calls, waiting: for programs such as nosactl; one thread each ---- */

struct nosa_rpc_reader; /* opaque */

/* Starts a call that is read by nosa_rpc_reader_next. */
enum nosa_status nosa_rpc_reader_start(struct nosa_rpc_reader **reader,
                                       struct nosa_rpc_channel *channel,
                                       const struct nosa_rpc_request *request,
                                       struct nosa_error *error);

/*
 * Waits for the next message, up to `wait_ms` (UINT32_MAX: without end). NOSA_OK with *message set:
 * the caller frees it by nosa_message_free. NOSA_OK with *message NULL: the call ended with OK.
 * NOSA_DEADLINE_EXCEEDED with *ended false: nothing came in time, and it can be called again.
 * Otherwise *ended is true and the call's error is told as by nosa_rpc_unary; *code (may be NULL)
 * has its code.
 */
enum nosa_status nosa_rpc_reader_next(struct nosa_rpc_reader *reader, uint32_t wait_ms,
                                      ProtobufCMessage **message, bool *ended,
                                      enum nosa_rpc_code *code, struct nosa_error *error);

/* Cancels the call; a next that waits returns. Any thread. */
void nosa_rpc_reader_cancel(struct nosa_rpc_reader *reader);

/* Cancels the call unless it ended, waits for that, and frees. NULL is allowed. */
void nosa_rpc_reader_free(struct nosa_rpc_reader *reader);

#endif
