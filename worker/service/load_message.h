/* A worker's load and prefixes as messages of nosa.cluster.v1. */
#ifndef NOSA_SERVICE_LOAD_MESSAGE_H
#define NOSA_SERVICE_LOAD_MESSAGE_H

#include "nosa/cluster/v1/cluster.pb-c.h"
#include "service/digest.h"
#include "service/loop.h"

/* A Load with all that it points to; filled in place, not to be moved. */
struct nosa_load_message {
    Nosa__Cluster__V1__Load load;
    Nosa__Cluster__V1__TierLoad tiers[3];
    Nosa__Cluster__V1__TierLoad *pointers[3];
    Nosa__Cluster__V1__KvTotals kv;
};

void nosa_load_message_fill(struct nosa_load_message *message, const struct nosa_loop_load *load,
                            const struct nosa_engine_info *info);

#define NOSA_PREFIX_CHANGES_MAX 1024 /* of one heartbeat */

/* A PrefixDelta with all that it points to; likewise. */
struct nosa_prefix_message {
    Nosa__Cluster__V1__PrefixDelta delta;
    Nosa__Cluster__V1__TierPrefixes tiers[NOSA_DIGEST_TIERS];
    Nosa__Cluster__V1__TierPrefixes *pointers[NOSA_DIGEST_TIERS];
    uint64_t added[NOSA_DIGEST_TIERS][NOSA_PREFIX_CHANGES_MAX];
    uint64_t removed[NOSA_DIGEST_TIERS][NOSA_PREFIX_CHANGES_MAX];
};

void nosa_prefix_message_fill(struct nosa_prefix_message *message,
                              const struct nosa_digest_batch *batch,
                              const struct nosa_digest_change *changes);

#endif
