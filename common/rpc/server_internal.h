/*
 * The inside of a server and its calls, and what services of this folder (health, reflection) need
 * beyond server.h.
 *
 * A call object is allocated when its method is armed on a loop, and becomes a call when one
 * arrives. Three batches then run on it: RECV_CLOSE_ON_SERVER from the beginning, one write at a
 * time, one read at a time. It is done when its status was written (or given up), its close has
 * come, no read is under way, and the handler has finished it.
 */
#ifndef NOSA_RPC_SERVER_INTERNAL_H
#define NOSA_RPC_SERVER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <grpc/grpc.h>
#include <protobuf-c/protobuf-c.h>

#include "rpc/runtime_internal.h"
#include "rpc/server.h"

#define NOSA_RPC_HOOKS_MAX 4
#define NOSA_RPC_PORTS_MAX 8

/* A method of an added service. Fixed after start. */
struct nosa_rpc_route {
    struct nosa_rpc_server *server;
    const struct nosa_rpc_method *method; /* borrowed */
    const ProtobufCMethodDescriptor *descriptor;
    void *context;    /* of the service */
    char *path;       /* owned */
    void *registered; /* gRPC's handle, lives with the server */
};

/* An added service. Fixed after start. */
struct nosa_rpc_service {
    struct nosa_rpc_service *next;
    const ProtobufCServiceDescriptor *descriptor;
    size_t route_count;
    struct nosa_rpc_route routes[];
};

/* What a service of this folder does at the server's turns. */
struct nosa_rpc_hook {
    void (*shutdown)(void *context); /* begins; may finish calls; NULL: nothing */
    void (*free)(void *context);     /* every call is done */
    void *context;
};

struct nosa_rpc_server {
    /* fixed after start */
    struct nosa_rpc_runtime *runtime; /* borrowed */
    struct nosa_rpc_server_options options;
    grpc_server *grpc;
    grpc_resource_quota *quota;
    struct nosa_rpc_service *services; /* owned, last added first */
    struct nosa_rpc_hook hooks[NOSA_RPC_HOOKS_MAX];
    size_t hook_count;
    void *health; /* health.c's, if it was added; owned through its hook */
    struct nosa_rpc_tag shutdown_tag;
    uint16_t ports[NOSA_RPC_PORTS_MAX]; /* [port_count], those that it listens on */
    size_t port_count;
    bool started;
    /* any thread */
    atomic_bool closing; /* new calls are refused */
    /* owned by the thread that shuts down */
    bool shut_down;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* on CLOCK_MONOTONIC: one of the three below */
    /* under mutex */
    uint32_t armed; /* call objects that wait for a call */
    uint32_t live;  /* calls not done */
    bool notified;  /* gRPC's shutdown is complete */
};

struct nosa_rpc_call {
    atomic_uint references; /* one is the library's, until done */
    /* fixed after arrival */
    struct nosa_rpc_route *route;
    struct nosa_rpc_loop *loop;
    gpr_timespec deadline;
    uint64_t arrived_ns;
    grpc_metadata_array headers;
    atomic_bool cancelled; /* the caller is gone */
    /* owned by the loop */
    ProtobufCMessage *request;
    const struct nosa_rpc_call_events *events; /* set inside start */
    void *events_context;
    struct nosa_rpc_tag arrival_tag;
    struct nosa_rpc_tag close_tag;
    struct nosa_rpc_tag write_tag;
    struct nosa_rpc_tag read_tag;
    grpc_byte_buffer *payload; /* the first message, as it arrived */
    int close_cancelled;       /* gRPC's answer at the close */
    pthread_mutex_t mutex;
    /* under mutex */
    grpc_call *grpc;      /* NULL once done */
    bool writing;         /* a write batch is under way ... */
    bool writing_message; /* ... and has the oldest message ... */
    bool writing_status;  /* ... and the status */
    bool headers_sent;
    bool finishing;     /* a status is to be sent after the queue */
    bool handler_done;  /* the handler has finished the call */
    bool status_done;   /* the status was written or given up */
    bool closed;        /* the close has come */
    bool want_writable; /* a send was refused */
    bool reading;       /* a read batch is under way */
    bool read_paused;   /* `message` said false, or not begun */
    bool read_over;     /* nothing more will be read */
    bool sent_any;      /* unary: its one message */
    bool done;          /* decided, once */
    enum nosa_rpc_code code;
    char *text;                 /* owned; NULL: none */
    grpc_byte_buffer *incoming; /* of the read batch */
    uint32_t capacity;          /* messages that sends may fill */
    uint32_t slots;             /* and one more, for a reply */
    uint32_t first;             /* index of the oldest message */
    uint32_t count;             /* messages waiting, one being written included */
    grpc_byte_buffer *queue[];  /* [slots], a ring */
};

/* ---- server_call.c, for server.c ---- */

/* Arms a route on a loop: one more call can arrive there. False: no memory. */
bool nosa_rpc_call_arm(struct nosa_rpc_route *route, struct nosa_rpc_loop *loop);

/* ---- server.c, for server_call.c ---- */

/* Counts a call in; false when it is beyond the bound and should be refused. */
bool nosa_rpc_server_enter(struct nosa_rpc_server *server, bool open);
/* Counts it out; the last thing that is done with the server. */
void nosa_rpc_server_leave(struct nosa_rpc_server *server);
/* Counts what is armed: +1 or -1. */
void nosa_rpc_server_count_armed(struct nosa_rpc_server *server, int change);

/* ---- hang_up.c ---- */

/*
 * Ends every connection of the server; what was written still arrives. gRPC's own shutdown ends
 * calls that cross it with CANCELLED, as if their callers had; so they find the connection closed,
 * which callers know as UNAVAILABLE.
 */
void nosa_rpc_server_hang_up(struct nosa_rpc_server *server);

/* ---- server_unknown.c ---- */

/* Arms the answer to methods that do not exist on a loop. False: no memory. */
bool nosa_rpc_unknown_arm(struct nosa_rpc_server *server, struct nosa_rpc_loop *loop);

/* ---- server.c, for services of this folder ---- */

/* Registers a hook before start. */
void nosa_rpc_server_add_hook(struct nosa_rpc_server *server, const struct nosa_rpc_hook *hook);

#endif
