/* Who a worker says it is: the message with which it joins, from its options and its engine. */
#ifndef NOSA_SERVICE_CARD_H
#define NOSA_SERVICE_CARD_H

#include "nosa/cluster/v1/cluster.pb-c.h"
#include "rpc/address.h"
#include "service/model_files.h"
#include "service/options.h"

/* The message with all that it points to; filled in place, not to be moved. */
struct nosa_worker_card {
    Nosa__Cluster__V1__JoinRequest starting; /* while the model is loaded: its name, and no more */
    Nosa__Cluster__V1__JoinRequest join;
    Nosa__Cluster__V1__ModelCard starting_model;
    Nosa__Cluster__V1__ModelCard model;
    Nosa__Cluster__V1__Capacity capacity;
    Nosa__Cluster__V1__TierCapacity tiers[3];
    Nosa__Cluster__V1__TierCapacity *tier_pointers[3];
    Nosa__V1__Sampling sampling;
    uint32_t eos[NOSA_MODEL_EOS_MAX];
    uint8_t model_hash[32];
    uint8_t files_hash[32];
    char id[129];
    char model_id[129];
    char address[NOSA_RPC_ADDRESS_MAX];
};

/* Names and address, known once the port is open, and a new incarnation: all of `starting`. */
void nosa_worker_card_name(struct nosa_worker_card *card, const struct nosa_worker_options *options,
                           uint16_t port);

/* `join`, from that and the open engine. Borrows texts of `info`. */
void nosa_worker_card_fill(struct nosa_worker_card *card, const struct nosa_worker_options *options,
                           const struct nosa_engine_info *info,
                           const struct nosa_model_files *files, const uint8_t model_hash[32]);

/* Where a probe of one's own dials what was listened on as `address`: a wildcard becomes the
 * loopback address. */
void nosa_worker_own_address(const char *address, uint16_t port, char own[NOSA_RPC_ADDRESS_MAX]);

#endif
