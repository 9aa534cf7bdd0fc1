/*
 * The worker's side of nosa.cluster.v1.Registry: joins every address that the coordinators' names
 * resolve to, again and again as they change, and sends each of them heartbeats. It begins before
 * the model is loaded, when there is a name to tell and no more, and joins anew with the whole card
 * when nosa_registry_loaded brings it. Nothing that
 * coordinators do or fail to do stops what the worker computes; only ABORTED, a newer start of this
 * worker, ends it.
 *
 * Two threads: one resolves names, one makes calls, whose answers come on the runtime's threads.
 */
#ifndef NOSA_SERVICE_REGISTRY_H
#define NOSA_SERVICE_REGISTRY_H

#include "nosa/cluster/v1/cluster.pb-c.h"
#include "rpc/client.h"
#include "service/digest.h"
#include "service/gate.h"
#include "service/loop.h"

#define NOSA_CLUSTER_PROTOCOL 1

struct nosa_registry; /* opaque */

/* Borrowed until nosa_registry_free. */
struct nosa_registry_options {
    struct nosa_rpc_runtime *runtime;
    const char *coordinators; /* "HOST:PORT[,HOST:PORT...]" */
    const struct nosa_rpc_tls *tls;
    const Nosa__Cluster__V1__JoinRequest *join; /* while the model is loaded: who, where, and the
                                                   model's name */
    struct nosa_gate *gate;
};

/* What there is to tell of once the model is loaded; borrowed likewise. */
struct nosa_registry_loaded {
    const Nosa__Cluster__V1__JoinRequest *join; /* the whole card, without state, load and uptime */
    const struct nosa_engine_info *info;
    struct nosa_loop *loop;
    struct nosa_digest *digest;
};

/* Checks the list of coordinators; INVALID_ARGUMENT names the address that is none. */
enum nosa_status nosa_registry_check(const char *coordinators, struct nosa_error *error);

/* Starts the threads. */
enum nosa_status nosa_registry_create(struct nosa_registry **registry,
                                      const struct nosa_registry_options *options,
                                      struct nosa_error *error);
/* The model is loaded: every coordinator is to hear of it. Once. */
void nosa_registry_set_loaded(struct nosa_registry *registry,
                              const struct nosa_registry_loaded *loaded);
/* The gate has changed: every coordinator is to hear of it at once. Any thread. */
void nosa_registry_wake(struct nosa_registry *registry);
/* Tells every coordinator that the worker leaves. Blocks up to some seconds on coordinators that do
 * not answer. Any thread, before nosa_registry_free. */
void nosa_registry_leave(struct nosa_registry *registry);
/* Leaves, and ends the threads. NULL is allowed. */
void nosa_registry_free(struct nosa_registry *registry);

#endif
