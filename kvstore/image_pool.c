#include "image_pool.h"

#include <stdlib.h>
#include <string.h>

enum nosa_status nosa_image_pool_create(struct nosa_image_pool *pool, int32_t n_images,
                                        struct nosa_error *error)
{
    size_t n = n_images > 0 ? (size_t)n_images : 1;

    memset(pool, 0, sizeof *pool);
    pool->n_images = n_images;
    pool->free_first = NOSA_KV_IMAGE_NONE;
    pool->oldest = NOSA_KV_IMAGE_NONE;
    pool->newest = NOSA_KV_IMAGE_NONE;
    pool->images = calloc(n, sizeof *pool->images);
    pool->keys = calloc(n, sizeof *pool->keys);
    pool->contents = calloc(n, sizeof *pool->contents);
    if (!pool->images || !pool->keys || !pool->contents) {
        nosa_image_pool_destroy(pool);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV store: no memory for %d images",
                              (int)n_images);
    }
    enum nosa_status status = nosa_prefix_index_create(&pool->index, (int32_t)n, pool->keys, error);
    if (status != NOSA_OK) {
        nosa_image_pool_destroy(pool);
        return status;
    }
    for (int32_t i = n_images - 1; i >= 0; i--) {
        pool->images[i].block = NOSA_KV_BLOCK_NONE;
        pool->images[i].newer = pool->free_first;
        pool->free_first = i;
    }
    pool->in_state[NOSA_IMAGE_FREE] = n_images;
    return NOSA_OK;
}

void nosa_image_pool_destroy(struct nosa_image_pool *pool)
{
    nosa_prefix_index_destroy(&pool->index);
    free(pool->contents);
    free(pool->keys);
    free(pool->images);
    memset(pool, 0, sizeof *pool);
}

int32_t nosa_image_pool_available(const struct nosa_image_pool *pool)
{
    return pool->in_state[NOSA_IMAGE_FREE] + pool->on_list;
}

/* ---- the list of CACHED images that may go, by last use ------------------------------------ */

static void list_add(struct nosa_image_pool *pool, int32_t image)
{
    struct nosa_image *entry = &pool->images[image];
    NOSA_ASSERT(!entry->on_list);
    entry->newer = NOSA_KV_IMAGE_NONE;
    entry->older = pool->newest;
    if (pool->newest != NOSA_KV_IMAGE_NONE)
        pool->images[pool->newest].newer = image;
    else
        pool->oldest = image;
    pool->newest = image;
    entry->on_list = true;
    pool->on_list++;
}

static void list_remove(struct nosa_image_pool *pool, int32_t image)
{
    struct nosa_image *entry = &pool->images[image];
    if (!entry->on_list)
        return;
    if (entry->newer != NOSA_KV_IMAGE_NONE)
        pool->images[entry->newer].older = entry->older;
    else
        pool->newest = entry->older;
    if (entry->older != NOSA_KV_IMAGE_NONE)
        pool->images[entry->older].newer = entry->newer;
    else
        pool->oldest = entry->newer;
    entry->on_list = false;
    pool->on_list--;
}

/* ---- moves ---------------------------------------------------------------------------------- */

static bool may_move(enum nosa_image_state from, enum nosa_image_state to)
{
    switch (from) {
    case NOSA_IMAGE_FREE: return to == NOSA_IMAGE_SAVING || to == NOSA_IMAGE_LOADING;
    case NOSA_IMAGE_SAVING: return to == NOSA_IMAGE_HELD;
    case NOSA_IMAGE_LOADING: return to == NOSA_IMAGE_HELD || to == NOSA_IMAGE_FREE;
    case NOSA_IMAGE_HELD: return to == NOSA_IMAGE_CACHED || to == NOSA_IMAGE_FREE;
    case NOSA_IMAGE_CACHED: return to == NOSA_IMAGE_HELD || to == NOSA_IMAGE_FREE;
    }
    return false;
}

void nosa_image_pool_move(struct nosa_image_pool *pool, int32_t image, enum nosa_image_state to)
{
    struct nosa_image *entry = &pool->images[image];
    enum nosa_image_state from = (enum nosa_image_state)entry->state;

    NOSA_ASSERT(may_move(from, to));
    if (from == NOSA_IMAGE_FREE) {
        NOSA_ASSERT(pool->free_first == image);
        pool->free_first = entry->newer;
    }
    if (from == NOSA_IMAGE_CACHED) {
        if (!entry->hidden)
            nosa_prefix_index_remove(&pool->index, image);
        entry->hidden = false;
        list_remove(pool, image);
    }
    entry->state = (uint8_t)to;
    pool->in_state[from]--;
    pool->in_state[to]++;
    if (to == NOSA_IMAGE_CACHED) {
        NOSA_ASSERT(entry->named);
        entry->block = NOSA_KV_BLOCK_NONE;
        if (!entry->hidden)
            nosa_prefix_index_insert(&pool->index, image);
        if (entry->pins == 0)
            list_add(pool, image);
    }
    if (to == NOSA_IMAGE_FREE) {
        NOSA_ASSERT(entry->pins == 0);
        entry->block = NOSA_KV_BLOCK_NONE;
        entry->on_nvme = false;
        entry->named = false;
        entry->newer = pool->free_first;
        pool->free_first = image;
    }
}

int32_t nosa_image_pool_take(struct nosa_image_pool *pool, int32_t block, enum nosa_image_state to)
{
    if (pool->free_first == NOSA_KV_IMAGE_NONE) {
        int32_t victim = pool->oldest;
        if (victim == NOSA_KV_IMAGE_NONE)
            return NOSA_KV_IMAGE_NONE;
        pool->evicted++;
        pool->lost += !pool->images[victim].on_nvme;
        nosa_image_pool_move(pool, victim, NOSA_IMAGE_FREE);
    }
    int32_t image = pool->free_first;
    nosa_image_pool_move(pool, image, to);
    pool->images[image].block = block;
    pool->images[image].use = NOSA_IMAGE_USE_UNKNOWN;
    return image;
}

void nosa_image_pool_name(struct nosa_image_pool *pool, int32_t image,
                          const struct nosa_chain_key *key,
                          const struct nosa_block_content *content)
{
    pool->keys[image] = *key;
    pool->contents[image] = *content;
    pool->images[image].named = true;
}

void nosa_image_pool_drop(struct nosa_image_pool *pool, int32_t image, bool keep)
{
    struct nosa_image *entry = &pool->images[image];

    if ((!keep || !entry->named) && entry->pins == 0) {
        nosa_image_pool_move(pool, image, NOSA_IMAGE_FREE);
        return;
    }
    int32_t known = nosa_prefix_index_find(&pool->index, &pool->keys[image]);
    if (known != NOSA_KV_IMAGE_NONE && pool->images[known].pins == 0)
        nosa_image_pool_move(pool, known, NOSA_IMAGE_FREE);
    else if (known != NOSA_KV_IMAGE_NONE && entry->pins == 0) {
        nosa_image_pool_move(pool, image, NOSA_IMAGE_FREE);
        return;
    } else if (known != NOSA_KV_IMAGE_NONE)
        entry->hidden = true;
    nosa_image_pool_move(pool, image, NOSA_IMAGE_CACHED);
}

int32_t nosa_image_pool_find(const struct nosa_image_pool *pool, const struct nosa_chain_key *key,
                             const struct nosa_chain_key *parent, const uint32_t *tokens)
{
    int32_t image = nosa_prefix_index_find(&pool->index, key);

    if (image == NOSA_KV_IMAGE_NONE)
        return NOSA_KV_IMAGE_NONE;
    const struct nosa_block_content *content = &pool->contents[image];
    if (memcmp(&content->parent, parent, sizeof *parent) != 0 ||
        memcmp(content->tokens, tokens, sizeof content->tokens) != 0)
        return NOSA_KV_IMAGE_NONE;
    return image;
}

void nosa_image_pool_pin(struct nosa_image_pool *pool, int32_t image)
{
    pool->images[image].pins++;
    list_remove(pool, image);
}

void nosa_image_pool_unpin(struct nosa_image_pool *pool, int32_t image)
{
    struct nosa_image *entry = &pool->images[image];

    NOSA_ASSERT(entry->pins > 0);
    if (--entry->pins > 0 || entry->state != NOSA_IMAGE_CACHED)
        return;
    if (entry->hidden)
        nosa_image_pool_move(pool, image, NOSA_IMAGE_FREE);
    else
        list_add(pool, image);
}
