/*
 * How the memory given to the KV tiers is divided: block ids, slots and images.
 */
#ifndef NOSA_ENGINE_KV_SIZES_H
#define NOSA_ENGINE_KV_SIZES_H

#include "base/status.h"
#include "kv_layout.h"

/* A size that the engine chooses. */
#define NOSA_KV_BYTES_AUTO UINT64_MAX

struct nosa_kv_demand {
    struct nosa_kv_geometry geometry; /* of one rank */
    int32_t kv_heads;                 /* of the model */
    int32_t context_max;              /* tokens of one session */
    int32_t sessions_max;
    int32_t rows_max;       /* tokens of one step */
    int32_t working_slots;  /* blocks that a step selects for a row */
    uint64_t first_bytes;   /* of each rank; or NOSA_KV_BYTES_AUTO: every session, whole */
    uint64_t host_bytes;    /* 0: no host tier */
    uint64_t host_auto_max; /* what NOSA_KV_BYTES_AUTO takes at most */
    bool nvme;              /* there is a third tier, which works through images */
};

struct nosa_kv_sizes {
    int32_t n_blocks;
    int32_t n_slots;  /* of a pool; 0: one for every id */
    int32_t n_images; /* 0: no host tier */
};

/* INVALID_ARGUMENT names the flag and the least that would do. */
enum nosa_status nosa_kv_sizes_choose(const struct nosa_kv_demand *demand,
                                      struct nosa_kv_sizes *out, struct nosa_error *error);

#endif
