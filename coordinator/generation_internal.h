/*
 * One generation in flight: generation.c has its beginning and end, generation_table.c all of them
 * together, relay.c its worker, relay_run.c what that worker says.
 */
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
    struct nosa_worker *last_worker; /* one reference: of the last attempt; NULL */
    struct nosa_worker *ran_on;      /* one reference: the last one that started it; NULL */
    uint32_t attempts;
    uint32_t replays;
    uint64_t dead[NOSA_REGISTRY_EXCLUDED_MAX]; /* incarnations that died under it */
    size_t dead_count;
    uint64_t excluded[NOSA_REGISTRY_EXCLUDED_MAX]; /* left out of the next pick */
    size_t excluded_count;
    bool full_seen;         /* a worker's queue was full */
    bool replay_pending;    /* its worker died: the next start is a replay */
    bool move_pending;      /* its worker was drained */
    bool accepted;          /* Accepted was sent */
    bool started;           /* the worker of this attempt took it from its queue */
    bool paused;            /* its client does not read */
    uint64_t gone_ns;       /* when it lost its worker; 0: it has one */
    uint64_t wait_until_ns; /* 0: not waiting. Begins anew with progress and with every worker, so
                               that one that only fails does not hold a request for ever */
    uint64_t paused_at_ns;  /* since when its client has not read; 0: it reads */
    /* where its time went */
    uint64_t without_worker_ns; /* between workers */
    uint64_t paused_ns;
    uint64_t started_ns;     /* the first time */
    uint64_t first_token_ns; /* 0: none yet */
    uint64_t last_token_ns;
    uint32_t resumed_count;
    Nosa__V1__Usage usage; /* as its workers tell */
};

/* ---- generation.c ---- */

void nosa_generation_retain(struct nosa_generation *generation);
void nosa_generation_release(struct nosa_generation *generation);

/* Ends it; under its mutex, in any state but ENDED. `abort`: does not wait for its reader. */
void nosa_generation_end(struct nosa_generation *generation, enum nosa_rpc_code code,
                         const char *text, bool abort);
/* Ends it with OK and Finished. */
void nosa_generation_finish(struct nosa_generation *generation);

/* Sends Accepted; `worker_id` is "" for a resumed one that needs no worker. */
void nosa_generation_accept(struct nosa_generation *generation, const char *worker_id);

/* ---- generation_table.c ---- */

/* Lists it, or says which bound is reached: NOSA_INVALID_ARGUMENT (request_id) or
 * NOSA_RESOURCE_EXHAUSTED. */
enum nosa_status nosa_generation_list(struct nosa_generation *generation, struct nosa_error *error);
void nosa_generation_unlist(struct nosa_generation *generation);
/* It left the queue, for the table's count. */
void nosa_generation_count_started(struct nosa_generation *generation);

/* ---- relay.c; all under the generation's mutex ---- */

/* Finds a worker and begins an attempt, or waits, or ends it; WAITING. */
void nosa_relay_dispatch(struct nosa_generation *generation);
/* Cancels the attempt, whose events are dropped from now on. */
void nosa_relay_abandon(struct nosa_generation *generation);
/* Why a generation lost its worker. */
enum nosa_relay_loss {
    NOSA_RELAY_DIED,    /* counts towards the replay limit */
    NOSA_RELAY_DRAINED, /* it let go */
    NOSA_RELAY_FULL,    /* its queue is full, so it is there */
    NOSA_RELAY_REFUSED, /* another life of it answers, or it does not serve the model any more */
};
/* Its last worker is gone and no attempt is under way: elsewhere, or the end. */
void nosa_relay_lose_worker(struct nosa_generation *generation, enum nosa_relay_loss loss);
/* A worker has started it: counts a replay or a move, and the time without a worker. */
void nosa_relay_count_start(struct nosa_generation *generation);
/* Its client does not read, or reads again. */
void nosa_relay_pause(struct nosa_generation *generation);
void nosa_relay_writable(struct nosa_generation *generation);
/* Takes what the attempt's worker is asked to do off its load; once, when the attempt is no longer
 * the generation's. */
void nosa_attempt_uncount(struct nosa_attempt *attempt);
void nosa_attempt_free(struct nosa_attempt *attempt);

/* ---- relay_run.c ---- */

/* Of a Run call; the context is the attempt. */
extern const struct nosa_rpc_stream_events nosa_relay_run_events;

#endif
