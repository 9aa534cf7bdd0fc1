/*
 * The workers and models that a coordinator knows, from what workers say of themselves (Join,
 * Heartbeat, Leave), what operators want of them (drain, resume) and what the relay sees of their
 * connections. Decides who is READY and who is LOST, and picks a worker for a request. Makes no
 * call and starts no thread: time comes from a clock, a worker's connection is an opaque link, and
 * what has to be done about workers is asked for by nosa_registry_next_event. Any thread; one
 * mutex, never held while anything outside is called but link_open, link_close and is_drained.
 *
 * A worker object is one life of a worker: a restart (another incarnation) is another object.
 */
#ifndef NOSA_COORDINATOR_REGISTRY_H
#define NOSA_COORDINATOR_REGISTRY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/status.h"
#include "nosa/cluster/v1/cluster.pb-c.h"
#include "rpc/code.h"
#include "tokenizer/tokenizer.h"

#define NOSA_CLUSTER_PROTOCOL 1 /* of cluster.proto */

#define NOSA_WORKER_ID_BYTES_MAX   256
#define NOSA_WORKER_REASON_MAX     160 /* bytes of why a worker is not READY, with NUL */
#define NOSA_REGISTRY_WORKERS_MAX  4096
#define NOSA_REGISTRY_TIERS_MAX    3
#define NOSA_REGISTRY_EXCLUDED_MAX 64 /* workers that one pick can leave out */

struct nosa_registry; /* opaque */

enum nosa_model_state {
    NOSA_MODEL_WANTED = 0,   /* its files are still to be fetched */
    NOSA_MODEL_FETCHING = 1, /* somebody does */
    NOSA_MODEL_READY = 2,
    NOSA_MODEL_UNKNOWN = 3, /* a name alone: its worker is still loading it, and joins again */
};

/* A model; counted. */
struct nosa_model {
    atomic_uint references;
    /* fixed after creation */
    char *id;
    uint8_t hash[NOSA_SHA256_SIZE];
    uint8_t files_hash[NOSA_SHA256_SIZE];
    uint32_t vocab_size; /* 0: UNKNOWN */
    uint32_t max_context_tokens;
    uint32_t block_tokens;
    char *attention;
    uint32_t *eos_ids; /* [eos_id_count] */
    size_t eos_id_count;
    bool has_sampling;
    Nosa__V1__Sampling sampling; /* generation_config's, if has_sampling */
    /* fixed once READY */
    struct nosa_tokenizer *tokenizer; /* owned; NULL: the model has none, and takes ids alone */
    /* under the registry's mutex */
    enum nosa_model_state state;
    uint64_t fetch_after_ns;
    char failure[NOSA_WORKER_REASON_MAX]; /* of the last fetch; "": none failed */
};

/* One life of a worker; counted. */
struct nosa_worker {
    atomic_uint references;
    /* fixed after join */
    char *id;
    uint64_t incarnation;
    char *address;
    char *version;
    char *fingerprint;
    char *device;
    uint32_t tensor_parallel;
    struct nosa_model *model;        /* one reference */
    void *link;                      /* its connection, by link_open */
    struct nosa_worker_state *state; /* registry.c's, under its mutex */
};

struct nosa_registry_options {
    const struct nosa_clock *clock; /* borrowed; NULL: the system's */
    uint32_t worker_timeout_ms;     /* a worker silent for longer is LOST */
    uint32_t forget_ms;             /* LOST and left workers are forgotten after */
    uint32_t prefix_hashes_max;     /* of one worker that are kept */
    uint64_t epoch;                 /* of this coordinator's life */
    /* A worker's connection; NULL: none. */
    void *(*link_open)(void *context, const char *address, struct nosa_error *error);
    void (*link_close)(void *link);
    void *link_context;
    /* Whether operators have drained a worker id; given link_context. NULL: as far as is known
     * here. */
    bool (*is_drained)(void *context, const char *id);
    uint32_t drain_timeout_ms; /* of drains that come by is_drained */
};

enum nosa_status nosa_registry_create(struct nosa_registry **registry,
                                      const struct nosa_registry_options *options,
                                      struct nosa_error *error);
/* Workers and models that others hold stay valid. NULL is allowed. */
void nosa_registry_free(struct nosa_registry *registry);

void nosa_worker_retain(struct nosa_worker *worker);
void nosa_worker_release(struct nosa_worker *worker); /* NULL is allowed */
void nosa_model_retain(struct nosa_model *model);
void nosa_model_release(struct nosa_model *model); /* NULL is allowed */

/* ---- what workers say: the answers of cluster.proto's Registry, with its codes ---- */

/* The model's files are fetched only after this, so the worker begins as STARTING. */
enum nosa_rpc_code nosa_registry_join(struct nosa_registry *registry,
                                      const Nosa__Cluster__V1__JoinRequest *request,
                                      Nosa__Cluster__V1__JoinResponse *response,
                                      struct nosa_error *error);
enum nosa_rpc_code nosa_registry_heartbeat(struct nosa_registry *registry,
                                           const Nosa__Cluster__V1__HeartbeatRequest *request,
                                           Nosa__Cluster__V1__HeartbeatResponse *response,
                                           struct nosa_error *error);
enum nosa_rpc_code nosa_registry_leave(struct nosa_registry *registry,
                                       const Nosa__Cluster__V1__LeaveRequest *request,
                                       struct nosa_error *error);

/* ---- what is seen of them ---- */

/* A connection to it broke: it gets no work until it is heard of again, and for longer each time
 * that this happens without a stream that started in between (a worker that can call but not be
 * called). */
void nosa_registry_suspect(struct nosa_registry *registry, struct nosa_worker *worker);
/* This process stood still for so long (stopped, or its machine was): the silence of workers was
 * its own. */
void nosa_registry_stood_still(struct nosa_registry *registry, uint64_t gap_ns);
/* A stream started there. */
void nosa_registry_proven(struct nosa_registry *registry, struct nosa_worker *worker);

/* The model's files are here; takes the tokenizer (NULL: there is none). */
void nosa_registry_model_ready(struct nosa_registry *registry, struct nosa_model *model,
                               struct nosa_tokenizer *tokenizer);
/* They could not be had: to be tried again after a while. */
void nosa_registry_model_failed(struct nosa_registry *registry, struct nosa_model *model,
                                const char *reason);

/* What somebody has to do about a worker now. */
enum nosa_registry_event {
    NOSA_REGISTRY_NOTHING = 0,
    NOSA_REGISTRY_LOST = 1,       /* its streams go on elsewhere; it died */
    NOSA_REGISTRY_DRAIN = 2,      /* tell it to drain, with timeout_ms */
    NOSA_REGISTRY_DRAIN_OVER = 3, /* the time is over: its streams go on elsewhere */
    NOSA_REGISTRY_FETCH = 4,      /* fetch its model's files */
    NOSA_REGISTRY_RESUME = 5,     /* tell it to work again: resumed through another coordinator */
    NOSA_REGISTRY_LEFT = 6,       /* what it computed and was not read goes on elsewhere */
};

/* Brings states up to date and returns the next event with a reference to its worker; each comes
 * once. */
enum nosa_registry_event nosa_registry_next_event(struct nosa_registry *registry,
                                                  struct nosa_worker **worker,
                                                  uint64_t *timeout_ms);

/* ---- what operators want ---- */

/* *state is the worker's state after it. NOSA_NOT_FOUND. The event DRAIN follows. */
enum nosa_status nosa_registry_drain(struct nosa_registry *registry, const char *worker_id,
                                     uint64_t timeout_ms, Nosa__V1__WorkerState *state,
                                     struct nosa_error *error);

/* It has answered to being told to drain. */
void nosa_registry_drain_answered(struct nosa_registry *registry, struct nosa_worker *worker);

/* The worker (one reference) that is to be told to work again, or NULL when that needs no telling
 * (it was not drained). NOSA_NOT_FOUND; NOSA_UNAVAILABLE: lost, or ends by itself. */
enum nosa_status nosa_registry_resume(struct nosa_registry *registry, const char *worker_id,
                                      struct nosa_worker **worker, struct nosa_error *error);

/* It said that it works again, as it will repeat by heartbeat. */
void nosa_registry_resumed(struct nosa_registry *registry, struct nosa_worker *worker,
                           Nosa__V1__WorkerState reported);

/* Whether a worker of this id is known, lost ones included. */
bool nosa_registry_has(struct nosa_registry *registry, const char *worker_id);

/* is_drained may answer otherwise than before: workers whose id is drained or resumed since then
 * follow. */
void nosa_registry_follow(struct nosa_registry *registry);

/* The workers that can be talked to, as far as is known, one reference each; the caller frees the
 * list. NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_registry_alive(struct nosa_registry *registry, struct nosa_worker ***workers,
                                     size_t *count);

/* ---- picking ---- */

/* What a pick added to its worker's load, to be taken off when the stream ends. */
struct nosa_pick_load {
    uint64_t heartbeats; /* that the worker had sent: a later one tells the load by itself */
    uint64_t tokens;
};

struct nosa_pick {
    const struct nosa_model *model;
    const uint64_t *hashes; /* [hash_count], of the complete blocks of the tokens */
    size_t hash_count;
    uint32_t tokens;          /* of prompt and output so far */
    const char *fingerprint;  /* workers with an equal one first; NULL: any */
    const uint64_t *excluded; /* [excluded_count] incarnations */
    size_t excluded_count;
    uint64_t tie; /* any number: spreads requests among equals */
    /* out */
    struct nosa_worker *worker; /* one reference */
    uint32_t held_tokens;       /* that the worker holds, as far as is known */
    struct nosa_pick_load load;
};

/*
 * Picks a READY worker and counts a stream there, until nosa_registry_stream_ended.
 * NOSA_UNAVAILABLE: no READY worker is left; NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_registry_pick(struct nosa_registry *registry, struct nosa_pick *pick,
                                    struct nosa_error *error);
void nosa_registry_stream_ended(struct nosa_registry *registry, struct nosa_worker *worker,
                                const struct nosa_pick_load *load);

/*
 * Finds a model by name; "" is the only one. The caller releases it. NOSA_NOT_FOUND: no such model;
 * NOSA_INVALID_ARGUMENT: "" among several; NOSA_UNAVAILABLE: none is known, or its files are not
 * here yet.
 */
enum nosa_status nosa_registry_find_model(struct nosa_registry *registry, const char *name,
                                          struct nosa_model **model, struct nosa_error *error);

/* ---- looking ---- */

/* A worker at one moment; one reference. */
struct nosa_worker_view {
    struct nosa_worker *worker;
    Nosa__V1__WorkerState state;
    char reason[NOSA_WORKER_REASON_MAX]; /* "" when READY */
    uint32_t running, waiting, suspended;
    uint32_t batch_max, queue_max;
    double prefill_tokens_per_s, decode_tokens_per_s;
    size_t tier_count;
    struct {
        Nosa__Cluster__V1__Tier tier;
        uint64_t used_bytes, total_bytes;
    } tiers[NOSA_REGISTRY_TIERS_MAX];
    uint64_t prefix_blocks;
    uint64_t heartbeat_age_ms;
    uint64_t uptime_ms;
};

/* Every worker, by id; the caller frees the list with nosa_worker_views_free. */
enum nosa_status nosa_registry_list(struct nosa_registry *registry, struct nosa_worker_view **views,
                                    size_t *count, struct nosa_error *error);
void nosa_worker_views_free(struct nosa_worker_view *views, size_t count);

/* What the KV stores of all workers that were ever here have done while they were, as far as they
 * told; tiers are gpu, host, nvme. */
struct nosa_kv_totals {
    uint64_t hits[NOSA_REGISTRY_TIERS_MAX];
    uint64_t gpu_to_host_bytes, host_to_gpu_bytes, host_to_nvme_bytes, nvme_to_host_bytes;
    uint64_t corrupt_blocks, recomputed_blocks;
    uint64_t prefix_lookup_tokens, prefix_hit_tokens;
    uint64_t evicted_blocks;
};

/* `usage`: of each tier, the share of the living workers' bytes that is used; 0 without one. */
void nosa_registry_kv(struct nosa_registry *registry, struct nosa_kv_totals *totals,
                      double usage[NOSA_REGISTRY_TIERS_MAX]);

/* Whether any worker is READY. */
bool nosa_registry_is_ready(struct nosa_registry *registry);

/* Whether any worker is READY and not full, as far as is known: of the requests that it may hold,
 * those in its batch and in its queue, some place is free. */
bool nosa_registry_has_room(struct nosa_registry *registry);

/* "READY", ...; never NULL. */
const char *nosa_worker_state_name(Nosa__V1__WorkerState state);

#endif
