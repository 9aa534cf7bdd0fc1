/* What the registry's files share: registry.c (life of workers), registry_check.c (what they may
 * say), registry_report.c (what they say), registry_pick.c (choice and looking). Everything here is
 * under the registry's mutex unless it says otherwise. */
#ifndef NOSA_COORDINATOR_REGISTRY_INTERNAL_H
#define NOSA_COORDINATOR_REGISTRY_INTERNAL_H

#include <pthread.h>

#include "prefix_set.h"
#include "registry.h"

#define NOSA_RECENT_NS (10 * NOSA_NS_PER_S) /* what a router calls lately */

struct nosa_tier_state {
    Nosa__Cluster__V1__Tier tier;
    uint64_t total_bytes;
    uint64_t used_bytes;
    uint64_t pinned_bytes;
};

/* What changes about a worker. */
struct nosa_worker_state {
    Nosa__V1__WorkerState reported;
    char reason[NOSA_WORKER_REASON_MAX]; /* as reported */
    uint64_t heard_ns;
    uint64_t joined_ns;
    uint64_t joined_uptime_ms;
    uint64_t sequence;
    bool lost;                 /* silent for too long */
    bool superseded;           /* another incarnation has its id */
    bool suspect;              /* a connection broke since it was heard */
    uint32_t suspects;         /* times in a row, with no stream started in between */
    uint64_t suspect_until_ns; /* being heard is not enough before */
    bool left;                 /* said goodbye */
    bool lost_told;
    bool drain; /* an operator's wish */
    bool drain_told;
    bool drain_heard;           /* it said so since it was told */
    uint64_t drain_answered_ns; /* when it answered to being told; 0: it has not */
    bool wish;                  /* what membership said last about its id */
    uint64_t resume_due_ns; /* to be told to work again then, unless it does by itself; 0: never */
    bool drain_over_told;
    uint64_t drain_deadline_ns;
    uint64_t drain_timeout_ms;
    uint32_t running, waiting, suspended;
    uint64_t prefill_tokens_pending;
    double prefill_tokens_per_s, decode_tokens_per_s, host_tokens_per_s, nvme_tokens_per_s;
    uint32_t batch_max, queue_max;
    uint32_t fetches;         /* of its model's files, begun */
    struct nosa_kv_totals kv; /* as last told */
    struct nosa_tier_state tiers[NOSA_REGISTRY_TIERS_MAX];
    size_t tier_count;
    bool prefixes_known;
    struct nosa_prefix_set prefixes;
    struct nosa_prefix_set expected;        /* sent since the last heartbeat but one */
    struct nosa_prefix_set expected_old;    /* and since the one before */
    uint32_t streams;                       /* of this coordinator, there now */
    uint32_t sent_streams;                  /* since the last heartbeat */
    uint64_t window_ns;                     /* when the present window of NOSA_RECENT_NS began */
    uint32_t window_streams, window_before; /* sent in it, and in the one before */
    uint64_t sent_tokens;
    uint64_t heartbeats;
};

struct nosa_registry {
    /* fixed after create */
    struct nosa_registry_options options;
    const struct nosa_clock *clock;
    pthread_mutex_t mutex;
    /* under mutex */
    struct nosa_worker **workers; /* owned, [count]; one reference each */
    size_t count;
    size_t capacity;
    struct nosa_kv_totals kv; /* of all workers that were ever here */
};

/* A worker and its state in one allocation. */
struct nosa_worker_memory {
    struct nosa_worker worker;
    struct nosa_worker_state state;
    void (*link_close)(void *link);
};

uint64_t nosa_registry_now_ns(const struct nosa_registry *registry);

/* The current life of the worker of this id; NULL: none. */
struct nosa_worker *nosa_registry_find(struct nosa_registry *registry, const char *id);

/* Whether it can be talked to, as far as is known. */
bool nosa_registry_is_alive(const struct nosa_worker_state *state);

/* ---- registry_drain.c ---- */

/* After a report: whether it heard that it is drained, or was resumed by others. */
void nosa_registry_hear_drain(struct nosa_worker *worker);
/* A new life of a worker: drained from the start, if its id is. */
void nosa_registry_join_drain(struct nosa_registry *registry, struct nosa_worker *worker);
bool nosa_registry_resume_is_due(const struct nosa_worker_state *state, uint64_t now_ns);

/* Whether a worker may report this state of itself. */
bool nosa_registry_is_report(Nosa__V1__WorkerState state);

/* ---- registry_check.c; without the mutex ---- */

/* FAILED_PRECONDITION: another protocol; INVALID_ARGUMENT names the field. */
enum nosa_rpc_code nosa_registry_check_join(const Nosa__Cluster__V1__JoinRequest *request,
                                            struct nosa_error *error);
/* INVALID_ARGUMENT names the field; `hashes_max`: of the prefixes. */
enum nosa_rpc_code nosa_registry_check_heartbeat(const Nosa__Cluster__V1__HeartbeatRequest *request,
                                                 size_t hashes_max, struct nosa_error *error);

/* ---- registry.c ---- */

/* The state that others see; `reason` (may be NULL) says why it is not READY. */
Nosa__V1__WorkerState nosa_registry_state_of(const struct nosa_worker *worker,
                                             char reason[NOSA_WORKER_REASON_MAX]);

#endif
