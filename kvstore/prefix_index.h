/*
 * From a chain key to the block that is findable by it: open addressing with linear probing over
 * one array of block ids; the keys lie in the owner's array, [block]. At most half of the places
 * are ever taken, and a removal closes the gap, so probes stay short. Owned by the prefix cache;
 * one thread; only create allocates.
 */
#ifndef NOSA_KVSTORE_PREFIX_INDEX_H
#define NOSA_KVSTORE_PREFIX_INDEX_H

#include <stdint.h>

#include "base/status.h"
#include "chain_key.h"

struct nosa_prefix_index {
    int32_t *places;                   /* owned: a block id or NOSA_BLOCK_NONE */
    uint32_t mask;                     /* places - 1; a power of two of them */
    const struct nosa_chain_key *keys; /* borrowed for the index's life: [n_blocks] */
};

/* Room for n_blocks keys, at most NOSA_PREFIX_INDEX_BLOCKS_MAX. */
enum nosa_status nosa_prefix_index_create(struct nosa_prefix_index *index, int32_t n_blocks,
                                          const struct nosa_chain_key *keys,
                                          struct nosa_error *error);
/* An index of zero bytes is allowed. */
void nosa_prefix_index_destroy(struct nosa_prefix_index *index);

#define NOSA_PREFIX_INDEX_BLOCKS_MAX (1 << 29)

/* The block that was put in under `key`, or NOSA_BLOCK_NONE. */
int32_t nosa_prefix_index_find(const struct nosa_prefix_index *index,
                               const struct nosa_chain_key *key);
/* Puts `block` in under keys[block], which must not be known yet. */
void nosa_prefix_index_insert(struct nosa_prefix_index *index, int32_t block);
/* Lets the key of `block` name `by`, which has the same key. */
void nosa_prefix_index_replace(struct nosa_prefix_index *index, int32_t block, int32_t by);
/* Forgets keys[block], which must name `block`. */
void nosa_prefix_index_remove(struct nosa_prefix_index *index, int32_t block);

#endif
