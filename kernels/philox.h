/*
 * Philox4x32-10: a counter-based generator. The output is a function of counter and key alone, so
 * that any backend, worker or replay draws the same number without any state.
 * (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.)
 */
#ifndef NOSA_KERNELS_PHILOX_H
#define NOSA_KERNELS_PHILOX_H

#include <stdint.h>

#define NOSA_PHILOX_ROUNDS      10
#define NOSA_PHILOX_MULTIPLIER0 0xD2511F53u
#define NOSA_PHILOX_MULTIPLIER1 0xCD9E8D57u
#define NOSA_PHILOX_WEYL0       0x9E3779B9u
#define NOSA_PHILOX_WEYL1       0xBB67AE85u

/* out[4] = the generator's block for counter[4] under key[2]. `out` may be `counter`. */
static inline void nosa_philox4x32(const uint32_t counter[4], const uint32_t key[2],
                                   uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < NOSA_PHILOX_ROUNDS; round++) {
        uint64_t product0 = (uint64_t)NOSA_PHILOX_MULTIPLIER0 * c0;
        uint64_t product1 = (uint64_t)NOSA_PHILOX_MULTIPLIER1 * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += NOSA_PHILOX_WEYL0;
        k1 += NOSA_PHILOX_WEYL1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The block that belongs to drawing `token` at `position` under `seed`: key is the seed, counter
 * (position, token, 0), low words first. */
static inline void nosa_philox_sampling(uint64_t seed, int64_t position, uint32_t token,
                                        uint32_t out[4])
{
    uint64_t place = (uint64_t)position;
    const uint32_t counter[4] = {(uint32_t)place, (uint32_t)(place >> 32), token, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    nosa_philox4x32(counter, key, out);
}

/* A number of (0, 1) from the first two words of a block: 52 bits and one half, so that it is exact
 * in double, never 0 and never 1. */
static inline double nosa_philox_unit(const uint32_t block[4])
{
    uint64_t bits = (uint64_t)block[0] << 20 | block[1] >> 12;
    return ((double)bits + 0.5) * 0x1p-52;
}

#endif
