/*
 * Which record of a pool gives up its slot first: the keys of the policies (ops_kv.h).
 *
 * A key is a number; the smallest goes first, and of equal keys the lower slot (or, where there are
 * no slots, the lower block). Pure functions of two flat values, shared by the ops that choose
 * victims, by the store's demotion and by the replay of recorded selections, so that all three mean
 * the same by a policy's name. They allocate nothing and read no state.
 *
 *   eddma      last touch, then E   used longest ago; among those used at the same time, lowest E.
 *                                   Records that no query has read since they were made or loaded
 *                                   share a touch, so E orders them.
 *   lru        last touch           used longest ago
 *   lowest-e   E, then last touch   what the eviction head thinks least of
 *
 * `last_touch` counts steps: it must not wrap while records touched before still hold slots.
 */
#ifndef NOSA_KERNELS_KV_POLICY_H
#define NOSA_KERNELS_KV_POLICY_H

#include <stdint.h>
#include <string.h>

#include "ops_kv.h"

#ifdef __CUDACC__
#define NOSA_POLICY_FUNCTION static __host__ __device__ inline
#else
#define NOSA_POLICY_FUNCTION static inline
#endif

/* What a policy knows of a record. */
struct nosa_kv_policy_input {
    uint32_t last_touch; /* step of the last use */
    float e;             /* NaN counts as minus infinity */
};

/* A number that orders as the float does; minus infinity and NaN are lowest, -0 equals 0. */
NOSA_POLICY_FUNCTION uint32_t nosa_kv_policy_order(float value)
{
    if (value != value)
        value = -__builtin_inff();
    value += 0.0f; /* -0 becomes 0 */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The smallest key of a pool goes first. */
NOSA_POLICY_FUNCTION uint64_t nosa_kv_policy_key(enum nosa_kv_policy policy,
                                                 struct nosa_kv_policy_input input)
{
    uint64_t touch = input.last_touch;
    switch (policy) {
    case NOSA_KV_POLICY_LRU: return touch << 32;
    case NOSA_KV_POLICY_LOWEST_E: return (uint64_t)nosa_kv_policy_order(input.e) << 32 | touch;
    case NOSA_KV_POLICY_EDDMA: break;
    }
    return touch << 32 | nosa_kv_policy_order(input.e);
}

#endif
