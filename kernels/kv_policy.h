/*
 * Which record of a pool gives up its slot first: the keys of the policies (ops_kv.h).
 *
 * A key is a number; the smallest goes first, and of equal keys the lower slot (or, where there are
 * no slots, the lower block). Pure functions of two flat values, shared by the ops that choose
 * victims, by the store's demotion and by the replay of recorded selections, so that all three mean
 * the same by a policy's name. They allocate nothing and read no state.
 *
 *   eddma      weight and last touch, then E: used least often lately; of equals the lowest E
 *   lru        last touch: used longest ago
 *   lowest-e   E, then last touch: what the eviction head thinks least of
 *
 * The weight of a record counts the steps that used it, each half as much as one that is
 * NOSA_KV_POLICY_HALF_LIFE steps later: w' = 1 + w 2^(-gap / half-life) (a combined recency and
 * frequency value, after Lee et al., "LRFU", 2001). What a query wants comes and goes, and what has
 * come back before comes back again; with a weight of 1 it is the order of last use. Records that
 * no query has read since they were made or loaded share touch and weight, so that E orders them.
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

#define NOSA_KV_POLICY_HALF_LIFE 8

/* What a policy knows of a record. */
struct nosa_kv_policy_input {
    uint32_t last_touch; /* step of the last use */
    float weight;        /* as of then; less than 1 counts as 1 */
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

/* The weight of a record that is used in `step`, after `weight` at its last use. At most 13. */
NOSA_POLICY_FUNCTION float nosa_kv_policy_weight(float weight, uint32_t last_use, uint32_t step)
{
    /* 2^(-i / 8) */
    static const float fade[NOSA_KV_POLICY_HALF_LIFE] = {1.0f,         0.917004043f, 0.840896415f,
                                                         0.771105413f, 0.707106781f, 0.648419777f,
                                                         0.594603558f, 0.545253866f};
    uint32_t gap = step - last_use, halvings = gap / NOSA_KV_POLICY_HALF_LIFE;
    if (!(weight >= 1.0f) || halvings > 23)
        return 1.0f;
    float left = weight * fade[gap % NOSA_KV_POLICY_HALF_LIFE];
    return 1.0f + left / (float)(1u << halvings);
}

/* Orders as weight 2^(last touch / half-life) does, to 12 bits of the weight. Below 2^42. */
NOSA_POLICY_FUNCTION uint64_t nosa_kv_policy_worth(float weight, uint32_t last_touch)
{
    /* 2^(i / 8) */
    static const float growth[NOSA_KV_POLICY_HALF_LIFE] = {1.0f,         1.090507733f, 1.189207115f,
                                                           1.296839555f, 1.414213562f, 1.542210825f,
                                                           1.681792831f, 1.834008086f};
    float scaled = (weight >= 1.0f ? weight : 1.0f) * growth[last_touch % NOSA_KV_POLICY_HALF_LIFE];
    uint32_t bits;
    memcpy(&bits, &scaled, sizeof bits);
    /* a power of two more is one more in the exponent, which lies above 23 bits */
    return ((uint64_t)(last_touch / NOSA_KV_POLICY_HALF_LIFE) << 12) + (bits >> 11);
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
    return nosa_kv_policy_worth(input.weight, input.last_touch) << 22 |
           nosa_kv_policy_order(input.e) >> 10;
}

#endif
