/* What the registry's files share: registry.c (life of workers), registry_report.c (what they say),
 * registry_pick.c (choice and looking). Everything here is under the registry's mutex unless it
 * says otherwise. */
#ifndef NOSA_COORDINATOR_REGISTRY_INTERNAL_H
#define NOSA_COORDINATOR_REGISTRY_INTERNAL_H

#include <pthread.h>

#include "prefix_set.h"
#include "registry.h"

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
    bool lost;       /* silent for too long */
    bool superseded; /* another incarnation has its id */
    bool suspect;    /* a connection broke since it was heard */
    bool left;       /* said goodbye */
    bool lost_told;
    bool drain; /* an operator's wish */
    bool drain_told;
    bool drain_over_told;
    uint64_t drain_deadline_ns;
    uint64_t drain_timeout_ms;
    uint32_t running, waiting, suspended;
    uint64_t prefill_tokens_pending;
    double prefill_tokens_per_s, decode_tokens_per_s, host_tokens_per_s, nvme_tokens_per_s;
    uint32_t batch_max, queue_max;
    struct nosa_tier_state tiers[NOSA_REGISTRY_TIERS_MAX];
    size_t tier_count;
    bool prefixes_known;
    struct nosa_prefix_set prefixes;
    struct nosa_prefix_set expected;     /* sent since the last heartbeat but one */
    struct nosa_prefix_set expected_old; /* and since the one before */
    uint32_t streams;                    /* of this coordinator, there now */
    uint32_t sent_streams;               /* since the last heartbeat */
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

/* Whether a worker may report this state of itself. */
bool nosa_registry_is_report(Nosa__V1__WorkerState state);

/* The state that others see; `reason` (may be NULL) says why it is not READY. */
Nosa__V1__WorkerState nosa_registry_state_of(const struct nosa_worker *worker,
                                             char reason[NOSA_WORKER_REASON_MAX]);

#endif
