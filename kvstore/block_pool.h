/*
 * Lifecycle of block ids: state, references, the free list and the list of cached blocks by last
 * use. It knows nothing of tokens or keys. Owned by the prefix cache; one thread; only create
 * allocates; every other call is O(1).
 *
 *   FREE      on the free list
 *   FILLING   in use by one sequence, which writes it
 *   COMPLETE  in use, immutable, findable by its key
 *   COPY      in use by one sequence, immutable, not findable: its key names another block
 *   CACHED    in use by none, immutable, findable; on the list by last use
 *
 *   FREE -> FILLING      taken for a sequence
 *   FILLING -> COMPLETE  all its tokens are computed and its key becomes known with it
 *   FILLING -> COPY      all its tokens are computed and its key is known already
 *   FILLING -> FREE      its sequence closed before it was complete
 *   COPY -> COMPLETE     the findable block of its key left, and it takes over the key
 *   COPY -> FREE         its sequence closed
 *   COMPLETE -> CACHED   its last user closed
 *   COMPLETE -> FREE     its last user closed and a copy took over the key
 *   CACHED -> COMPLETE   found by a sequence
 *   CACHED -> FREE       evicted, or a block in use took over the key
 */
#ifndef NOSA_KVSTORE_BLOCK_POOL_H
#define NOSA_KVSTORE_BLOCK_POOL_H

#include <stdint.h>

#include "base/status.h"

#define NOSA_BLOCK_NONE (-1)

enum nosa_block_state {
    NOSA_BLOCK_FREE = 0,
    NOSA_BLOCK_FILLING = 1,
    NOSA_BLOCK_COMPLETE = 2,
    NOSA_BLOCK_COPY = 3,
    NOSA_BLOCK_CACHED = 4,
};

#define NOSA_BLOCK_STATES 5

/* Told of every move, after it; may not move blocks itself. */
typedef void (*nosa_block_observer)(void *context, int32_t block, enum nosa_block_state from,
                                    enum nosa_block_state to);

struct nosa_block_pool {
    /* fixed after create */
    int32_t n_blocks;
    nosa_block_observer observer; /* or NULL; set by the owner before the first move */
    void *observer_context;
    /* owned arrays, [n_blocks] */
    uint8_t *state;      /* enum nosa_block_state */
    int32_t *references; /* sequences that hold the block */
    int32_t *newer;      /* FREE: next free block; CACHED: the one used next after it */
    int32_t *older;      /* CACHED: the one used last before it */

    int32_t free_first;
    int32_t cached_oldest;
    int32_t cached_newest;
    int32_t in_state[NOSA_BLOCK_STATES]; /* blocks in each state */
};

/* All blocks FREE; they are taken in ascending order at first. n_blocks at least 1. */
enum nosa_status nosa_block_pool_create(struct nosa_block_pool *pool, int32_t n_blocks,
                                        struct nosa_error *error);
/* A pool of zero bytes is allowed. */
void nosa_block_pool_destroy(struct nosa_block_pool *pool);

/* The one place where a block changes state; asserts that the move is one of those above and keeps
 * the lists and counts. A block that becomes CACHED counts as used just now. */
void nosa_block_pool_move(struct nosa_block_pool *pool, int32_t block, enum nosa_block_state to);

/* The block that the next take gives, or NOSA_BLOCK_NONE. */
int32_t nosa_block_pool_free(const struct nosa_block_pool *pool);
/* The CACHED block used longest ago, or NOSA_BLOCK_NONE. */
int32_t nosa_block_pool_oldest(const struct nosa_block_pool *pool);
enum nosa_block_state nosa_block_pool_state(const struct nosa_block_pool *pool, int32_t block);

/* Counts one user more or less; returns how many are left. States are the caller's business. */
int32_t nosa_block_pool_retain(struct nosa_block_pool *pool, int32_t block);
int32_t nosa_block_pool_release(struct nosa_block_pool *pool, int32_t block);

#endif
