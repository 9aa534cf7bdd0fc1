/*
 * A gRPC server: registered services over the threads of a runtime. What every server of the
 * project needs is settled here: unknown methods are UNIMPLEMENTED, requests are checked and
 * unpacked within bounds before a handler sees them (a bad one is INVALID_ARGUMENT naming the
 * field), compressed requests are refused, two servers never share a port, keepalive finds dead
 * peers, memory of the transport has a quota, and beyond `calls_max` a call is RESOURCE_EXHAUSTED
 * at once.
 *
 * A call, from its handler's side:
 *
 *     start ─> [message ...] [writable ...] [cancelled] ─> finish (by the handler) ─> done
 *
 * `start`, and the events of one call, come from one thread of the runtime, never two at a time.
 * Sending, finishing and the readings may be done by any thread at any time until finish. Every
 * call is finished exactly once by its handler, also after `cancelled`. The call stays valid until
 * `done` has returned; who needs it longer retains it.
 */
#ifndef NOSA_RPC_SERVER_H
#define NOSA_RPC_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/status.h"
#include "rpc/code.h"
#include "rpc/runtime.h"
#include "rpc/tls.h"

struct nosa_rpc_server; /* opaque */
struct nosa_rpc_call;   /* one incoming call; opaque, counted */

#define NOSA_RPC_TEXT_MAX 512 /* bytes of a status text with NUL; longer ones are cut */
#define NOSA_RPC_PEER_MAX 256 /* bytes of a peer's address or name with NUL */

/*
 * Asked before the handler of every method that is not `open`: whether the call may go on (bearer
 * token, drain). On false the call ends with *code and `text` (initially UNAUTHENTICATED, "").
 * Runs on the call's thread, for several calls at the same time.
 */
typedef bool (*nosa_rpc_admit)(void *context, struct nosa_rpc_call *call, enum nosa_rpc_code *code,
                               char text[NOSA_RPC_TEXT_MAX]);

/* 0 stands for the default in brackets. Copied. */
struct nosa_rpc_server_options {
    uint32_t message_bytes_max;  /* of one received message [16 MiB]; beyond: RESOURCE_EXHAUSTED */
    uint64_t unpacked_bytes_max; /* that one message may take in memory [64 MiB] */
    uint32_t metadata_bytes_max; /* of a call's headers [16 KiB] */
    uint64_t quota_bytes;        /* that gRPC may hold for all connections [64 MiB] */
    uint32_t calls_max;          /* at a time [16384]; `open` methods may exceed it by 256 */
    uint32_t send_queue_max;     /* messages of one call waiting to be written [64] */
    uint32_t keepalive_ms;       /* ping a silent client after [10,000] */
    uint32_t keepalive_timeout_ms; /* and give it up when it does not answer within [5,000] */
    uint32_t ping_interval_min_ms; /* clients may ping this often [500]; more is a protocol error */
    nosa_rpc_admit admit;          /* NULL: everyone */
    /* Told of each call that ends before its handler hears of it (not admitted, beyond calls_max,
     * a request that does not parse), on the call's thread; NULL. */
    void (*refused)(void *context, struct nosa_rpc_call *call, enum nosa_rpc_code code);
    void *admit_context; /* of both; borrowed until the server is freed */
};

enum nosa_rpc_kind {
    NOSA_RPC_UNARY,            /* one request, one reply */
    NOSA_RPC_SERVER_STREAMING, /* one request, any number of replies */
    NOSA_RPC_BIDIRECTIONAL,    /* any number of requests and replies */
};

/* One method of a service; a service's table lives as long as the server. */
struct nosa_rpc_method {
    const char *name; /* as in the .proto: "Generate" */
    enum nosa_rpc_kind kind;
    bool open; /* not asked of `admit`, and served beyond calls_max (health) */
    /*
     * A call begins. `request` is valid until the call is done (NULL for BIDIRECTIONAL, whose
     * requests come by the event `message`). May finish the call before it returns.
     */
    void (*start)(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request);
};

/* What a handler wants to hear of one call; each may be NULL. None comes after `done`. */
struct nosa_rpc_call_events {
    /* The caller is gone: it cancelled, its deadline passed, or its connection died. At most once,
     * as soon as the transport knows. The handler still finishes the call (any status). */
    void (*cancelled)(void *context, struct nosa_rpc_call *call);
    /* A send was refused as full (or has_room was false), and now half of the queue is free. */
    void (*writable)(void *context, struct nosa_rpc_call *call);
    /* BIDIRECTIONAL: the next request, valid until the callback returns; NULL once after the last.
     * The NULL may also mean that the caller is gone, which the transport tells a moment later by
     * `cancelled`: a handler that must know waits for an explicit last request. Returning false
     * stops reading until nosa_rpc_call_resume. */
    bool (*message)(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request);
    /* Finished and written, or given up; always the last. `context` may be freed. */
    void (*done)(void *context, struct nosa_rpc_call *call);
};

/* ---- the server: made, filled, started, shut down and freed by one thread ---- */

/* Makes a server on `runtime` (borrowed until the server is freed). */
enum nosa_status nosa_rpc_server_create(struct nosa_rpc_server **server,
                                        struct nosa_rpc_runtime *runtime,
                                        const struct nosa_rpc_server_options *options,
                                        struct nosa_error *error);

/*
 * Adds a service before start. `methods` [count] names methods of `service`, each once (else an
 * assertion); what it leaves out is UNIMPLEMENTED. `context` is passed to every `start`.
 */
enum nosa_status nosa_rpc_server_add_service(struct nosa_rpc_server *server,
                                             const ProtobufCServiceDescriptor *service,
                                             const struct nosa_rpc_method *methods, size_t count,
                                             void *context, struct nosa_error *error);

/*
 * Opens a port before start; several may be opened, each with or without TLS. Port 0 takes a free
 * one. Stores the port in *port (may be NULL). Blocks on the resolver. NOSA_INVALID_ARGUMENT: bad
 * address or TLS file; NOSA_NOT_FOUND: no such host; NOSA_IO_ERROR: in use, or not ours to open;
 * the text names the address or the file and says why.
 */
enum nosa_status nosa_rpc_server_listen(struct nosa_rpc_server *server, const char *address,
                                        const struct nosa_rpc_tls *tls, uint16_t *port,
                                        struct nosa_error *error);

/* Begins to serve. */
enum nosa_status nosa_rpc_server_start(struct nosa_rpc_server *server, struct nosa_error *error);

/*
 * Ends service: health turns NOT_SERVING, new calls end with UNAVAILABLE, as health watchers and
 * reflection do; other calls may run for `grace_ms`, then they are cancelled; at last listeners and
 * connections close. Returns when every call is done, so handlers must finish
 * theirs when they are cancelled. Blocks; not from a thread of the runtime. Returns whether none
 * had to be cancelled. A server that was not started only closes its ports. Once.
 */
bool nosa_rpc_server_shutdown(struct nosa_rpc_server *server, uint32_t grace_ms);

/* Frees a server, shutting it down without grace if that was not done. NULL is allowed. */
void nosa_rpc_server_free(struct nosa_rpc_server *server);

/* Calls begun and not done, for metrics and drains. Any thread. */
uint32_t nosa_rpc_server_call_count(struct nosa_rpc_server *server);

/* ---- a call ---- */

/* Registers for events; only inside `start`. `events` lives until done; `context` is the caller's.
 */
void nosa_rpc_call_set_events(struct nosa_rpc_call *call, const struct nosa_rpc_call_events *events,
                              void *context);

/*
 * Packs the message and hands it to the transport, or queues it behind those that are not written
 * yet. Never blocks, any thread. NOSA_RESOURCE_EXHAUSTED: send_queue_max messages wait; the message
 * was not taken, and `writable` will come. NOSA_CANCELLED: finished, or the caller is gone. A
 * unary call sends one message at most (assertion).
 */
enum nosa_status nosa_rpc_call_send(struct nosa_rpc_call *call, const ProtobufCMessage *message);

/*
 * Ends the call with a status, after what is queued. `text` (copied; NULL: none) is for people and
 * should name the field, flag or bound. Any thread, exactly once; the call may be gone when this
 * returns, unless `done` has yet to come or it was retained. OK of a unary call without a message
 * is an assertion.
 */
void nosa_rpc_call_finish(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text);

/*
 * As finish, but does not wait for a reader that does not read: what is queued is dropped, and if a
 * write is held up the call is reset, so that the caller may see another code (CANCELLED). For ends
 * that cannot wait: an operator's cancel, a drain's deadline.
 */
void nosa_rpc_call_abort(struct nosa_rpc_call *call, enum nosa_rpc_code code, const char *text);

/* Sends a last message, also when the queue is full, and finishes with OK; in one write if nothing
 * waits. */
void nosa_rpc_call_reply(struct nosa_rpc_call *call, const ProtobufCMessage *message);

/* Finishes with the code and text of an error that is set. */
void nosa_rpc_call_fail(struct nosa_rpc_call *call, const struct nosa_error *error);

/* Reads on after `message` returned false. Any thread. */
void nosa_rpc_call_resume(struct nosa_rpc_call *call);

/* Whether a send would be taken now. If not, `writable` will come, as after a refused send: a relay
 * asks after each message, and reads no further from its source until then. */
bool nosa_rpc_call_has_room(struct nosa_rpc_call *call);

/* Messages taken by send and not yet handed to the transport. */
uint32_t nosa_rpc_call_waiting(struct nosa_rpc_call *call);

/* Whether the caller is gone. */
bool nosa_rpc_call_is_cancelled(struct nosa_rpc_call *call);

/* DEADLINE_EXCEEDED when the caller's deadline has passed, or is so near that it was what ended the
 * call, else CANCELLED: what to count a call under that was cancelled. */
enum nosa_rpc_code nosa_rpc_call_cancel_code(struct nosa_rpc_call *call);

/* When the caller's deadline passes, by nosa_monotonic_ns; UINT64_MAX: never. */
uint64_t nosa_rpc_call_deadline_ns(struct nosa_rpc_call *call);

/* Value of the first header with this lower-case name ("authorization"), not ended by NUL; valid
 * until the call is done. NULL when there is none. */
const char *nosa_rpc_call_metadata(struct nosa_rpc_call *call, const char *name, size_t *size);

/* The token of an "authorization: Bearer <token>" header, or NULL. As nosa_rpc_call_metadata. */
const char *nosa_rpc_call_bearer(struct nosa_rpc_call *call, size_t *size);

/* The caller's address as gRPC writes it ("ipv4:127.0.0.1:41234"); returns `peer`. */
const char *nosa_rpc_call_peer(struct nosa_rpc_call *call, char peer[NOSA_RPC_PEER_MAX]);

/* The common name in the caller's verified certificate, "" without one; returns `name`. */
const char *nosa_rpc_call_peer_name(struct nosa_rpc_call *call, char name[NOSA_RPC_PEER_MAX]);

/* The method's path, "/nosa.v1.Inference/Generate"; valid as long as the server. */
const char *nosa_rpc_call_path(const struct nosa_rpc_call *call);

/* Keeps the call's memory (not the call) until the matching release. Any thread. */
void nosa_rpc_call_retain(struct nosa_rpc_call *call);
void nosa_rpc_call_release(struct nosa_rpc_call *call);

#endif
