#include "block_pool.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define BIT(state) (1u << (state))

/* Allowed targets of each state; block_pool.h says when each happens. */
static const uint8_t allowed_moves[NOSA_BLOCK_STATES] = {
    [NOSA_BLOCK_FREE] = BIT(NOSA_BLOCK_FILLING),
    [NOSA_BLOCK_FILLING] = BIT(NOSA_BLOCK_COMPLETE) | BIT(NOSA_BLOCK_COPY) | BIT(NOSA_BLOCK_FREE),
    [NOSA_BLOCK_COMPLETE] = BIT(NOSA_BLOCK_CACHED) | BIT(NOSA_BLOCK_FREE),
    [NOSA_BLOCK_COPY] = BIT(NOSA_BLOCK_COMPLETE) | BIT(NOSA_BLOCK_FREE),
    [NOSA_BLOCK_CACHED] = BIT(NOSA_BLOCK_COMPLETE) | BIT(NOSA_BLOCK_FREE),
};

enum nosa_status nosa_block_pool_create(struct nosa_block_pool *pool, int32_t n_blocks,
                                        struct nosa_error *error)
{
    size_t n = (size_t)n_blocks;

    memset(pool, 0, sizeof *pool);
    pool->n_blocks = n_blocks;
    pool->state = calloc(n, sizeof *pool->state);
    pool->references = calloc(n, sizeof *pool->references);
    pool->newer = calloc(n, sizeof *pool->newer);
    pool->older = calloc(n, sizeof *pool->older);
    if (!pool->state || !pool->references || !pool->newer || !pool->older) {
        nosa_block_pool_destroy(pool);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV store: no memory for %d blocks",
                              (int)n_blocks);
    }
    for (int32_t block = 0; block < n_blocks; block++)
        pool->newer[block] = block + 1 < n_blocks ? block + 1 : NOSA_BLOCK_NONE;
    pool->free_first = 0;
    pool->cached_oldest = NOSA_BLOCK_NONE;
    pool->cached_newest = NOSA_BLOCK_NONE;
    pool->in_state[NOSA_BLOCK_FREE] = n_blocks;
    return NOSA_OK;
}

void nosa_block_pool_destroy(struct nosa_block_pool *pool)
{
    free(pool->older);
    free(pool->newer);
    free(pool->references);
    free(pool->state);
    memset(pool, 0, sizeof *pool);
}

static void append_cached(struct nosa_block_pool *pool, int32_t block)
{
    pool->older[block] = pool->cached_newest;
    pool->newer[block] = NOSA_BLOCK_NONE;
    if (pool->cached_newest == NOSA_BLOCK_NONE)
        pool->cached_oldest = block;
    else
        pool->newer[pool->cached_newest] = block;
    pool->cached_newest = block;
}

static void unlink_cached(struct nosa_block_pool *pool, int32_t block)
{
    int32_t older = pool->older[block];
    int32_t newer = pool->newer[block];

    if (older == NOSA_BLOCK_NONE)
        pool->cached_oldest = newer;
    else
        pool->newer[older] = newer;
    if (newer == NOSA_BLOCK_NONE)
        pool->cached_newest = older;
    else
        pool->older[newer] = older;
}

void nosa_block_pool_move(struct nosa_block_pool *pool, int32_t block, enum nosa_block_state to)
{
    enum nosa_block_state from = nosa_block_pool_state(pool, block);
    bool in_use = to != NOSA_BLOCK_FREE && to != NOSA_BLOCK_CACHED;

    NOSA_ASSERT(allowed_moves[from] & BIT(to));
    NOSA_ASSERT(in_use == (pool->references[block] > 0));
    if (from == NOSA_BLOCK_FREE) {
        NOSA_ASSERT(pool->free_first == block);
        pool->free_first = pool->newer[block];
    } else if (from == NOSA_BLOCK_CACHED) {
        unlink_cached(pool, block);
    }
    pool->state[block] = (uint8_t)to;
    pool->in_state[from]--;
    pool->in_state[to]++;
    if (to == NOSA_BLOCK_FREE) {
        pool->newer[block] = pool->free_first;
        pool->free_first = block;
    } else if (to == NOSA_BLOCK_CACHED) {
        append_cached(pool, block);
    }
    if (pool->observer)
        pool->observer(pool->observer_context, block, from, to);
}

int32_t nosa_block_pool_free(const struct nosa_block_pool *pool)
{
    return pool->free_first;
}

int32_t nosa_block_pool_oldest(const struct nosa_block_pool *pool)
{
    return pool->cached_oldest;
}

enum nosa_block_state nosa_block_pool_state(const struct nosa_block_pool *pool, int32_t block)
{
    NOSA_ASSERT(block >= 0 && block < pool->n_blocks);
    return (enum nosa_block_state)pool->state[block];
}

int32_t nosa_block_pool_retain(struct nosa_block_pool *pool, int32_t block)
{
    NOSA_ASSERT(block >= 0 && block < pool->n_blocks);
    return ++pool->references[block];
}

int32_t nosa_block_pool_release(struct nosa_block_pool *pool, int32_t block)
{
    NOSA_ASSERT(block >= 0 && block < pool->n_blocks);
    NOSA_ASSERT(pool->references[block] > 0);
    return --pool->references[block];
}
