/*
 * What the coordinators of a cluster know together: which coordinators there are, which workers
 * each of them has, and which worker ids operators have drained. Alone (memory) a coordinator knows
 * this by itself; with etcd it shares it.
 *
 * Every question is answered from memory, at once, whether or not etcd can be reached: nothing here
 * stands in the way of a request. Changes are remembered and written when etcd is there. A thread
 * of its own talks to etcd (membership_etcd.c). Any thread may call.
 *
 * A drain belongs to an id, not to a process: it outlives the worker and every coordinator, until
 * somebody resumes the id. So it hangs on no lease; a coordinator's own keys do.
 */
#ifndef NOSA_COORDINATOR_MEMBERSHIP_H
#define NOSA_COORDINATOR_MEMBERSHIP_H

#include "base/metrics.h"
#include "etcd_client.h"

#define NOSA_MEMBERSHIP_LIST_MAX 16 /* other coordinators that are told of */

struct nosa_membership; /* opaque */

/* Copied, but for what etcd's options borrow. */
struct nosa_membership_options {
    const char *id;                       /* of this coordinator's life */
    const char *address;                  /* under which workers reach it */
    struct nosa_rpc_runtime *runtime;     /* only with etcd */
    struct nosa_metrics *metrics;         /* likewise */
    const struct nosa_etcd_options *etcd; /* NULL: memory */
    uint32_t start_wait_ms;               /* for etcd's first answer */
    /* Drains have changed; on a thread of membership. NULL: nobody wants to know. */
    void (*changed)(void *context);
    void *context;
};

/*
 * Begins. With etcd it waits for a first list, so that drains are known before the first worker
 * joins; without an answer in time it says so and goes on alone. NOSA_INVALID_ARGUMENT (a flag of
 * etcd's), NOSA_NOT_FOUND (a file), NOSA_OUT_OF_MEMORY, NOSA_IO_ERROR (no thread).
 */
enum nosa_status nosa_membership_create(struct nosa_membership **membership,
                                        const struct nosa_membership_options *options,
                                        struct nosa_error *error);
/* Gives the lease back, so that others see at once that this coordinator is gone. Blocks up to a
 * few seconds on an etcd that does not answer. NULL is allowed. */
void nosa_membership_free(struct nosa_membership *membership);

/* ---- drains ---- */

/* An operator drains a worker id, or resumes it. NOSA_RESOURCE_EXHAUSTED: 4096 ids are drained;
 * NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_membership_drain(struct nosa_membership *membership, const char *id,
                                       bool drained, struct nosa_error *error);
bool nosa_membership_is_drained(struct nosa_membership *membership, const char *id);
/* Changes when drains do. */
uint64_t nosa_membership_version(struct nosa_membership *membership);

/* ---- workers and coordinators ---- */

/* The workers that this coordinator has now. NOSA_OUT_OF_MEMORY: partly. */
enum nosa_status nosa_membership_have_workers(struct nosa_membership *membership,
                                              const char *const *ids, const char *const *addresses,
                                              size_t count);
/* Whether another coordinator has a worker of this id. */
bool nosa_membership_others_have(struct nosa_membership *membership, const char *id);

/* The other coordinators, at most NOSA_MEMBERSHIP_LIST_MAX. */
struct nosa_membership_peers {
    size_t count;
    char *addresses[NOSA_MEMBERSHIP_LIST_MAX]; /* into `texts` */
    char texts[NOSA_MEMBERSHIP_LIST_MAX][NOSA_MEMBERSHIP_TEXT_MAX];
};
void nosa_membership_peers(struct nosa_membership *membership, struct nosa_membership_peers *peers);

/* "memory", "etcd", or "etcd: unreachable". */
const char *nosa_membership_name(struct nosa_membership *membership);

#endif
