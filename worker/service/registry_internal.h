/* What the files of the registry share: registry_names.c finds coordinators, registry.c talks to
 * them. */
#ifndef NOSA_SERVICE_REGISTRY_INTERNAL_H
#define NOSA_SERVICE_REGISTRY_INTERNAL_H

#include <pthread.h>

#include "rpc/address.h"
#include "service/load_message.h"
#include "service/registry.h"

#define NAMES_MAX   16
#define LEARNED_MAX 16
#define MEMBERS_MAX 64

#define RESOLVE_MS     5000
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 2000

enum call { CALL_NONE, CALL_JOIN, CALL_HEARTBEAT, CALL_LEAVE };

/* One coordinator: an address that a name resolved to. Under the registry's mutex. */
struct member {
    struct nosa_registry *registry;
    char address[NOSA_RPC_ADDRESS_MAX];
    struct nosa_rpc_channel *channel; /* owned */
    enum call call;                   /* under way */
    bool joined;
    bool resolved; /* a name leads to it now */
    bool failing;  /* its last call failed */
    bool twin;     /* another address leads to the same coordinator, and is joined */
    bool urgent;   /* a heartbeat is due as soon as the call under way has ended */
    bool stale;    /* the call under way knows nothing of the model: to be joined anew after it */
    uint64_t due_ns;
    uint64_t epoch;
    uint64_t sequence;
    uint32_t heartbeat_ms;
    uint32_t prefixes_max;
    uint32_t backoff_ms;
    struct nosa_digest_cursor cursor;
    char said[256]; /* the last trouble that was logged */
};

struct name {
    char text[NOSA_RPC_ADDRESS_MAX];
    char host[NOSA_RPC_HOST_MAX];
    bool said;        /* that it does not resolve */
    uint64_t told_ns; /* of a learned one: when a coordinator last named it; 0: the place is free */
};

struct nosa_registry {
    /* fixed after create */
    struct nosa_registry_options options;
    struct name names[NAMES_MAX]; /* `said`: under mutex */
    size_t name_count;
    uint64_t start_ns;
    pthread_t resolver, caller;
    int threads; /* started */
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* on CLOCK_MONOTONIC */
    /* under mutex */
    struct nosa_registry_loaded loaded; /* join NULL: the model is not loaded yet */
    bool leaving;
    bool left; /* everyone has been told */
    bool resolve_now;
    struct name learned[LEARNED_MAX];    /* coordinators that coordinators speak of */
    struct member *members[MEMBERS_MAX]; /* owned */
    size_t member_count;
    /* owned by the caller's thread */
    struct nosa_prefix_message prefix;
    struct nosa_digest_change changes[NOSA_PREFIX_CHANGES_MAX];
};

/* ---- registry_names.c ---- */

/* Fills `names` (NULL: only checks). INVALID_ARGUMENT names the address that is none. */
enum nosa_status nosa_registry_read_names(const char *text, struct name *names, size_t *count,
                                          struct nosa_error *error);
/* The thread that resolves; its argument is the registry. */
void *nosa_registry_resolve_thread(void *context);

/* The rest under the mutex. Coordinators that a coordinator speaks of: known from now on. */
void nosa_registry_learn(struct nosa_registry *registry, char *const *addresses, size_t count);
/* Gives up addresses that no name leads to any more, once they stop answering. */
void nosa_registry_drop_members(struct nosa_registry *registry);
void nosa_registry_free_member(struct member *member);
/* Waits for `changed` until then. */
void nosa_registry_wait_until(struct nosa_registry *registry, uint64_t due_ns);

#endif
