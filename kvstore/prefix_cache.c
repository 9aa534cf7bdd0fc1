#include "prefix_cache.h"

#include <stdlib.h>
#include <string.h>

enum nosa_status nosa_prefix_cache_create(struct nosa_prefix_cache *cache, int32_t n_blocks,
                                          struct nosa_error *error)
{
    size_t n = (size_t)n_blocks;

    memset(cache, 0, sizeof *cache);
    NOSA_TRY(nosa_block_pool_create(&cache->pool, n_blocks, error));
    cache->keys = calloc(n, sizeof *cache->keys);
    cache->contents = calloc(n, sizeof *cache->contents);
    cache->ring_next = calloc(n, sizeof *cache->ring_next);
    cache->ring_previous = calloc(n, sizeof *cache->ring_previous);
    if (!cache->keys || !cache->contents || !cache->ring_next || !cache->ring_previous) {
        nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV store: no memory for the tokens of %d blocks",
                       (int)n_blocks);
        nosa_prefix_cache_destroy(cache);
        return NOSA_OUT_OF_MEMORY;
    }
    enum nosa_status status = nosa_prefix_index_create(&cache->index, n_blocks, cache->keys, error);
    if (status != NOSA_OK)
        nosa_prefix_cache_destroy(cache);
    return status;
}

void nosa_prefix_cache_destroy(struct nosa_prefix_cache *cache)
{
    nosa_prefix_index_destroy(&cache->index);
    free(cache->ring_previous);
    free(cache->ring_next);
    free(cache->contents);
    free(cache->keys);
    nosa_block_pool_destroy(&cache->pool);
    memset(cache, 0, sizeof *cache);
}

int32_t nosa_prefix_cache_available(const struct nosa_prefix_cache *cache)
{
    return cache->pool.in_state[NOSA_BLOCK_FREE] + cache->pool.in_state[NOSA_BLOCK_CACHED];
}

void nosa_prefix_cache_evict(struct nosa_prefix_cache *cache, int32_t block)
{
    NOSA_ASSERT(nosa_block_pool_state(&cache->pool, block) == NOSA_BLOCK_CACHED);
    NOSA_ASSERT(cache->ring_next[block] == block);
    nosa_prefix_index_remove(&cache->index, block);
    nosa_block_pool_move(&cache->pool, block, NOSA_BLOCK_FREE);
    cache->evicted_blocks++;
}

int32_t nosa_prefix_cache_take(struct nosa_prefix_cache *cache)
{
    struct nosa_block_pool *pool = &cache->pool;

    if (nosa_block_pool_free(pool) == NOSA_BLOCK_NONE) {
        NOSA_ASSERT(nosa_block_pool_oldest(pool) != NOSA_BLOCK_NONE);
        nosa_prefix_cache_evict(cache, nosa_block_pool_oldest(pool));
    }
    int32_t block = nosa_block_pool_free(pool);
    nosa_block_pool_retain(pool, block);
    nosa_block_pool_move(pool, block, NOSA_BLOCK_FILLING);
    return block;
}

static bool holds(const struct nosa_prefix_cache *cache, int32_t block,
                  const struct nosa_chain_key *parent, const uint32_t *tokens)
{
    const struct nosa_block_content *content = &cache->contents[block];
    return memcmp(&content->parent, parent, sizeof *parent) == 0 &&
           memcmp(content->tokens, tokens, sizeof content->tokens) == 0;
}

int32_t nosa_prefix_cache_acquire(struct nosa_prefix_cache *cache, const struct nosa_chain_key *key,
                                  const struct nosa_chain_key *parent, const uint32_t *tokens)
{
    int32_t block = nosa_prefix_index_find(&cache->index, key);

    if (block == NOSA_BLOCK_NONE || !holds(cache, block, parent, tokens))
        return NOSA_BLOCK_NONE;
    nosa_block_pool_retain(&cache->pool, block);
    if (nosa_block_pool_state(&cache->pool, block) == NOSA_BLOCK_CACHED)
        nosa_block_pool_move(&cache->pool, block, NOSA_BLOCK_COMPLETE);
    return block;
}

static void make_ring(struct nosa_prefix_cache *cache, int32_t block)
{
    cache->ring_next[block] = block;
    cache->ring_previous[block] = block;
}

static void join_ring(struct nosa_prefix_cache *cache, int32_t block, int32_t member)
{
    int32_t next = cache->ring_next[member];
    cache->ring_next[block] = next;
    cache->ring_previous[block] = member;
    cache->ring_previous[next] = block;
    cache->ring_next[member] = block;
}

static void leave_ring(struct nosa_prefix_cache *cache, int32_t block)
{
    int32_t next = cache->ring_next[block];
    int32_t previous = cache->ring_previous[block];
    cache->ring_next[previous] = next;
    cache->ring_previous[next] = previous;
    make_ring(cache, block);
}

bool nosa_prefix_cache_publish(struct nosa_prefix_cache *cache, int32_t block,
                               const struct nosa_chain_key *key,
                               const struct nosa_chain_key *parent, const uint32_t *tokens)
{
    struct nosa_block_pool *pool = &cache->pool;
    int32_t known = nosa_prefix_index_find(&cache->index, key);

    if (known != NOSA_BLOCK_NONE && !holds(cache, known, parent, tokens)) {
        nosa_prefix_cache_keep_private(cache, block);
        return false;
    }
    make_ring(cache, block);
    cache->keys[block] = *key;
    cache->contents[block].parent = *parent;
    memcpy(cache->contents[block].tokens, tokens, sizeof cache->contents[block].tokens);
    if (known == NOSA_BLOCK_NONE) {
        nosa_prefix_index_insert(&cache->index, block);
        nosa_block_pool_move(pool, block, NOSA_BLOCK_COMPLETE);
    } else if (nosa_block_pool_state(pool, known) == NOSA_BLOCK_CACHED) {
        nosa_prefix_index_replace(&cache->index, known, block);
        nosa_block_pool_move(pool, known, NOSA_BLOCK_FREE);
        nosa_block_pool_move(pool, block, NOSA_BLOCK_COMPLETE);
    } else {
        join_ring(cache, block, known);
        nosa_block_pool_move(pool, block, NOSA_BLOCK_COPY);
    }
    return true;
}

void nosa_prefix_cache_keep_private(struct nosa_prefix_cache *cache, int32_t block)
{
    make_ring(cache, block);
    nosa_block_pool_move(&cache->pool, block, NOSA_BLOCK_COPY);
}

/* The last user of a findable block is gone: a copy in use takes over the key, or it is cached. */
static void retire_complete(struct nosa_prefix_cache *cache, int32_t block)
{
    int32_t copy = cache->ring_next[block];

    if (copy == block) {
        nosa_block_pool_move(&cache->pool, block, NOSA_BLOCK_CACHED);
        return;
    }
    leave_ring(cache, block);
    nosa_prefix_index_replace(&cache->index, block, copy);
    nosa_block_pool_move(&cache->pool, copy, NOSA_BLOCK_COMPLETE);
    nosa_block_pool_move(&cache->pool, block, NOSA_BLOCK_FREE);
}

void nosa_prefix_cache_release(struct nosa_prefix_cache *cache, int32_t block)
{
    enum nosa_block_state state = nosa_block_pool_state(&cache->pool, block);

    if (nosa_block_pool_release(&cache->pool, block) > 0)
        return;
    if (state == NOSA_BLOCK_COMPLETE) {
        retire_complete(cache, block);
        return;
    }
    if (state == NOSA_BLOCK_COPY)
        leave_ring(cache, block);
    nosa_block_pool_move(&cache->pool, block, NOSA_BLOCK_FREE);
}
