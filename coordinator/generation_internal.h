/* One generation in flight, for generation.c (beginning, end, table) and relay.c (workers). */
#ifndef NOSA_COORDINATOR_GENERATION_INTERNAL_H
#define NOSA_COORDINATOR_GENERATION_INTERNAL_H

#include "coordinator_internal.h"

/*
 * ENCODING ─> WAITING ─> RUNNING ─> ENDED; RUNNING ─> WAITING when its worker is gone. An end that
 * comes while ENCODING is carried out when that is done, since the encoder reads the request.
 */
enum nosa_generation_state {
    NOSA_GENERATION_ENCODING = 0,
    NOSA_GENERATION_WAITING = 1, /* for a worker, or for room in the client's queue */
    NOSA_GENERATION_RUNNING = 2, /* an attempt is under way */
    NOSA_GENERATION_ENDED = 3,
};

/* One Run call to a worker. Freed by the call's end; who holds the generation's mutex and finds it
 * in generation->attempt may use it. */
struct nosa_attempt {
    struct nosa_generation *generation; /* one reference */
    struct nosa_worker *worker;         /* one reference */
    struct nosa_pick_load load;
    struct nosa_rpc_stream *stream; /* one reference; under the generation's mutex */
};

struct nosa_generation {
    atomic_uint references;
    /* fixed after admission */
    struct nosa_coordinator *coordinator;
    struct nosa_rpc_call *call;               /* one reference */
    const Nosa__V1__GenerateRequest *request; /* valid until ENDED */
    struct nosa_model *model;                 /* one reference */
    char *request_id;
    char *model_name;
    char client[NOSA_RPC_PEER_MAX];
    char client_name[NOSA_CLIENT_NAME_MAX];
    uint64_t arrival_ns;
    uint64_t prompt_bytes;       /* counted in the table */
    Nosa__V1__Sampling sampling; /* resolved */
    uint32_t asked_max_tokens;
    int32_t priority;
    /* under the table's mutex */
    struct nosa_generation *previous, *next, *next_in_bucket;
    bool listed;
    bool counted_waiting;
    pthread_mutex_t mutex;
    /* under mutex */
    enum nosa_generation_state state;
    bool ending; /* asked for while ENCODING */
    enum nosa_rpc_code ending_code;
    char ending_text[96];
    uint32_t *prompt; /* owned, [prompt_count]; fixed once encoded */
    size_t prompt_count;
    uint64_t *hashes; /* owned, [hash_count] */
    size_t hash_count;
    struct nosa_output output;
    struct nosa_attempt *attempt;    /* NULL: none */
    struct nosa_worker *last_worker; /* one reference: of the attempt before; NULL */
    uint32_t attempts;
    uint32_t replays;
    uint64_t dead[NOSA_REGISTRY_EXCLUDED_MAX]; /* incarnations that died under it */
    size_t dead_count;
    uint64_t excluded[NOSA_REGISTRY_EXCLUDED_MAX]; /* left out of the next pick */
    size_t excluded_count;
    bool full_seen;      /* a worker's queue was full */
    bool replay_pending; /* its worker died: the next attempt is a replay */
    bool move_pending;   /* its worker was drained */
    bool accepted;       /* Accepted was sent */
    bool started;        /* the worker of this attempt took it from its queue */
    bool paused;         /* its client does not read */
    uint64_t gone_ns;    /* when it lost its worker */
    uint64_t wait_until_ns;
    uint64_t started_ns;     /* the first time */
    uint64_t first_token_ns; /* 0: none yet */
    uint64_t last_token_ns;
    uint32_t resumed_count;
    Nosa__V1__Usage usage; /* as its workers tell */
};

void nosa_generation_retain(struct nosa_generation *generation);
void nosa_generation_release(struct nosa_generation *generation);

/* Ends it; under its mutex, in any state but ENDED. `abort`: does not wait for its reader. */
void nosa_generation_end(struct nosa_generation *generation, enum nosa_rpc_code code,
                         const char *text, bool abort);
/* Ends it with OK and Finished. */
void nosa_generation_finish(struct nosa_generation *generation);

/* It left the queue, for the table's count. */
void nosa_generation_count_started(struct nosa_generation *generation);

/* Sends Accepted; `worker_id` is "" for a resumed one that needs no worker. */
void nosa_generation_accept(struct nosa_generation *generation, const char *worker_id);

/* The generations of this moment, a reference each; the caller frees the array. NULL: no memory. */
struct nosa_generation **nosa_generation_snapshot(struct nosa_coordinator *coordinator,
                                                  size_t *count);

/* Finds a worker and begins an attempt, or waits, or ends it; under its mutex, WAITING. */
void nosa_relay_dispatch(struct nosa_generation *generation);
/* Cancels the attempt, whose events are dropped from now on; under the generation's mutex. */
void nosa_relay_abandon(struct nosa_generation *generation);
/* The client reads again; under its mutex. */
void nosa_relay_writable(struct nosa_generation *generation);

#endif
