/*
 * What a worker tells coordinators about the prefixes that it holds: a set of block hashes by tier,
 * and for each coordinator a cursor that reads the set once and then its changes.
 *
 * The set follows the KV store from outside: what was computed or read is in the first tier, most
 * recently used; what the first tier has no place for moves to the tier below, and out at the end.
 * The KV store decides alike but not equal, so the set is a good guess. It routes and never decides
 * what is reused; what turns out wrong is taken out (nosa_digest_forget).
 *
 * The engine's thread writes, the registry's threads read: one mutex.
 */
#ifndef NOSA_SERVICE_DIGEST_H
#define NOSA_SERVICE_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_DIGEST_BLOCK_TOKENS 64
#define NOSA_DIGEST_TIERS        3 /* first, host, NVMe */
#define NOSA_DIGEST_BLOCKS_MAX   (1 << 20)

/* Hashes of complete blocks, chained as nosa.cluster.v1.PrefixDelta says: XXH3-64 over the block's
 * ids (uint32, little-endian), seeded with the hash before it; block 0 with that of the salt. */
uint64_t nosa_digest_root(const void *salt, size_t salt_bytes);
/* Fills hashes [n_blocks]; `before` is the hash before the first of them. */
void nosa_digest_chain(uint64_t before, const uint32_t *tokens, size_t n_blocks, uint64_t *hashes);

struct nosa_digest; /* opaque */

/* blocks[t]: what tier t holds; 0: there is no such tier. All memory is taken here. */
enum nosa_status nosa_digest_create(struct nosa_digest **digest,
                                    const int32_t blocks[NOSA_DIGEST_TIERS],
                                    struct nosa_error *error);
/* NULL is allowed. */
void nosa_digest_free(struct nosa_digest *digest);

/* The blocks are in the first tier and were just used. */
void nosa_digest_touch(struct nosa_digest *digest, const uint64_t *hashes, size_t n);
/* They are in no tier. */
void nosa_digest_forget(struct nosa_digest *digest, const uint64_t *hashes, size_t n);
/* How many leading ones are known, in any tier. */
size_t nosa_digest_known(struct nosa_digest *digest, const uint64_t *hashes, size_t n);
/* Blocks in a tier now. */
size_t nosa_digest_count(struct nosa_digest *digest, int tier);

/* A reader. All zero begins with the whole set. */
struct nosa_digest_cursor {
    bool running; /* has read the beginning */
    bool whole;   /* has read the whole set; changes follow */
    uint32_t slot;
    uint64_t change;
};

struct nosa_digest_change {
    uint64_t hash;
    uint8_t tier;
    bool added;
};

struct nosa_digest_batch {
    bool reset;   /* forget what was read before */
    bool partial; /* more waits */
    size_t n;
};

/* Reads up to `max` changes, no (hash, tier) twice, and moves the cursor on. A reader that fell
 * behind the changes that are kept begins anew. */
void nosa_digest_read(struct nosa_digest *digest, struct nosa_digest_cursor *cursor,
                      struct nosa_digest_change *changes, size_t max,
                      struct nosa_digest_batch *batch);

#endif
