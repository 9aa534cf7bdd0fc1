/*
 * The prefixes that one worker holds: block hashes, each with the tiers it lies in. Kept from the
 * worker's heartbeats, asked by the router. Bounded; not shared between threads (the registry's
 * mutex guards it).
 */
#ifndef NOSA_COORDINATOR_PREFIX_SET_H
#define NOSA_COORDINATOR_PREFIX_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Tiers as bits. */
enum nosa_prefix_tier {
    NOSA_PREFIX_GPU = 1,
    NOSA_PREFIX_HOST = 2,
    NOSA_PREFIX_NVME = 4,
    NOSA_PREFIX_EXPECTED = 8, /* sent there a moment ago, not yet reported */
};

struct nosa_prefix_entry {
    uint64_t hash;
    uint8_t tiers; /* bits; 0: the slot is free */
};

/* All zero is a valid empty set. */
struct nosa_prefix_set {
    struct nosa_prefix_entry *entries; /* owned; [capacity], a power of two */
    size_t capacity;
    size_t count;
    size_t count_max; /* 0: no bound */
};

/* Adds tiers to a hash. NOSA_RESOURCE_EXHAUSTED: count_max hashes are in; NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_prefix_set_add(struct nosa_prefix_set *set, uint64_t hash, uint8_t tiers);

/* Takes tiers from a hash, which goes when none is left. */
void nosa_prefix_set_remove(struct nosa_prefix_set *set, uint64_t hash, uint8_t tiers);

/* The tiers of a hash; 0: not in. */
uint8_t nosa_prefix_set_find(const struct nosa_prefix_set *set, uint64_t hash);

/* Empties the set and keeps its memory. */
void nosa_prefix_set_clear(struct nosa_prefix_set *set);

/* Frees the memory and zeroes the set, its bound included. */
void nosa_prefix_set_free(struct nosa_prefix_set *set);

/*
 * The hashes of the complete blocks of a prompt: XXH3-64 over the block's ids (uint32, little
 * endian), seeded with the hash of the block before; the first with that of the salt. Writes
 * count / block_tokens of them.
 */
void nosa_prefix_hash(const uint32_t *tokens, size_t count, uint32_t block_tokens, const char *salt,
                      uint64_t *hashes);

#endif
