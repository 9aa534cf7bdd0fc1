/*
 * Which block holds which tokens: the block pool and the prefix index together, with the key and
 * the 64 token ids of every complete block. Owned by the KV store; one thread; only create
 * allocates; every other call is O(1).
 *
 * A key names at most one block, the findable one. Sequences that compute the same tokens side by
 * side make copies; all complete blocks of one key form a ring, and the rule is: while any of them
 * is in use, the findable one is. So when the last user of the findable block goes and a copy is
 * in use, the copy takes over the key and the place becomes free at once; and a block that
 * completes while the findable one lies CACHED takes over from it.
 *
 * Why least recently used is enough to evict a block never before the blocks that continue it.
 * A sequence that holds a complete block holds complete blocks of all keys before it in the chain.
 * With the rule above: if a findable block is in use, so is the findable block of its parent key.
 * Hence all findable children of a CACHED block are CACHED; and while it is CACHED no child can be
 * published or found, for that takes a sequence that uses the parent's key. A closing sequence
 * gives its blocks back from last to first. So every findable child was put on the list before its
 * parent, and the oldest of the list has no children.
 */
#ifndef NOSA_KVSTORE_PREFIX_CACHE_H
#define NOSA_KVSTORE_PREFIX_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "block_pool.h"
#include "chain_key.h"
#include "kv_layout.h"
#include "prefix_index.h"

/* What a key is the digest of: compared too, so that equal digests of unequal prefixes never
 * share. The parent's key is enough for all blocks before: while a block is findable, its parent's
 * key names the parent it was published after. */
struct nosa_block_content {
    struct nosa_chain_key parent;
    uint32_t tokens[NOSA_BLOCK_TOKENS];
};

struct nosa_prefix_cache {
    struct nosa_block_pool pool;
    struct nosa_prefix_index index;
    /* owned arrays, [n_blocks]; meaningful for COMPLETE, COPY and CACHED blocks */
    struct nosa_chain_key *keys;
    struct nosa_block_content *contents;
    int32_t *ring_next; /* complete blocks of the same key; itself when it is the only one */
    int32_t *ring_previous;
    uint64_t evicted_blocks;
};

enum nosa_status nosa_prefix_cache_create(struct nosa_prefix_cache *cache, int32_t n_blocks,
                                          struct nosa_error *error);
/* A cache of zero bytes is allowed. */
void nosa_prefix_cache_destroy(struct nosa_prefix_cache *cache);

/* Blocks that take can give: free and cached ones. */
int32_t nosa_prefix_cache_available(const struct nosa_prefix_cache *cache);

/* Gives one FILLING block to one user, evicting the least recently used cached one when none is
 * free. At least one must be available. */
int32_t nosa_prefix_cache_take(struct nosa_prefix_cache *cache);

/* Gives the id of a CACHED block up. */
void nosa_prefix_cache_evict(struct nosa_prefix_cache *cache, int32_t block);

/* The findable block of `key`, which a user then holds, or NOSA_BLOCK_NONE. `key` is that of
 * `tokens` (64 ids) after `parent`; the user holds the blocks before. */
int32_t nosa_prefix_cache_acquire(struct nosa_prefix_cache *cache, const struct nosa_chain_key *key,
                                  const struct nosa_chain_key *parent, const uint32_t *tokens);

/* A FILLING block is complete and holds `tokens` after `parent`, whose block its user has published
 * or acquired. It becomes findable, or a copy when the key's findable block is in use. False when
 * the key names another content: the block is then private, and no continuation of it may be
 * published. */
bool nosa_prefix_cache_publish(struct nosa_prefix_cache *cache, int32_t block,
                               const struct nosa_chain_key *key,
                               const struct nosa_chain_key *parent, const uint32_t *tokens);
/* A FILLING block is complete and must never be found. */
void nosa_prefix_cache_keep_private(struct nosa_prefix_cache *cache, int32_t block);

/* One user gives `block` back. */
void nosa_prefix_cache_release(struct nosa_prefix_cache *cache, int32_t block);

#endif
