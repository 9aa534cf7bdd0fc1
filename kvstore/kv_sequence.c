/*
 * Sequences: tokens, block tables, and what of them is computed.
 */
#include <string.h>

#include "kv_store_internal.h"

/* Makes the keys of blocks first .. last - 1, whose tokens are all known. */
static enum nosa_status make_keys(struct nosa_kv_sequence *sequence, int32_t first, int32_t last,
                                  struct nosa_error *error)
{
    for (int32_t block = first; block < last; block++)
        NOSA_TRY(nosa_chain_key_next(&sequence->store->hash, &sequence->keys[block],
                                     sequence->tokens + (size_t)block * NOSA_BLOCK_TOKENS,
                                     &sequence->keys[block + 1], error));
    return NOSA_OK;
}

/* Starts the hash anew after a failure in the middle of one; its own failure changes nothing,
 * since the next use then fails too. */
static void restart_hash(struct nosa_kv_store *store)
{
    uint8_t digest[NOSA_SHA256_SIZE];
    (void)nosa_sha256_final(&store->hash, digest, NULL);
}

/* The block of the key of the sequence's block `index`, which the sequence then holds, from the
 * first tier or from an image. */
static int32_t acquire_block(struct nosa_kv_sequence *sequence, int32_t index)
{
    struct nosa_kv_store *store = sequence->store;
    int32_t block =
        nosa_prefix_cache_acquire(&store->cache, &sequence->keys[index + 1], &sequence->keys[index],
                                  sequence->tokens + (size_t)index * NOSA_BLOCK_TOKENS);
    if (block == NOSA_BLOCK_NONE)
        block = nosa_kv_tiers_adopt(sequence, index);
    if (block == NOSA_BLOCK_NONE)
        return nosa_kv_nvme_adopt(sequence, index);
    if (store->tiers.tight) { /* its records may have lost their slots */
        sequence->prefetch = true;
        if (store->tiers.kv_class[block] == NOSA_KV_CLASS_SPARE)
            nosa_kv_tiers_set_class(store, block, NOSA_KV_CLASS_IN_USE);
    }
    return block;
}

/* Gives the sequence the blocks of its longest known prefix that leaves a token to compute. The
 * first n_pinned entries of its table name images that it pins: they are let go. */
static void acquire_prefix(struct nosa_kv_sequence *sequence, int32_t n_pinned)
{
    int32_t n_max = (sequence->length - 1) / NOSA_BLOCK_TOKENS;
    struct nosa_image_pool *pool = &sequence->store->tiers.pool;

    sequence->n_blocks = 0;
    sequence->n_ready = 0;
    sequence->nvme_choice = NVME_UNDECIDED;
    while (sequence->n_blocks < n_max) {
        int32_t i = sequence->n_blocks;
        int32_t block = acquire_block(sequence, i);
        if (block == NOSA_BLOCK_NONE)
            break;
        if (i < n_pinned && sequence->blocks[i] != NOSA_KV_IMAGE_NONE)
            nosa_image_pool_unpin(pool, sequence->blocks[i]);
        sequence->blocks[i] = block;
        sequence->n_blocks = i + 1;
    }
    for (int32_t i = n_pinned - 1; i >= sequence->n_blocks; i--)
        if (sequence->blocks[i] != NOSA_KV_IMAGE_NONE)
            nosa_image_pool_unpin(pool, sequence->blocks[i]);
    sequence->computed = sequence->n_blocks * NOSA_BLOCK_TOKENS;
    nosa_kv_nvme_drop_cold_tail(sequence);
}

static enum nosa_status check_open(const struct nosa_kv_store *store, int32_t n_tokens,
                                   struct nosa_error *error)
{
    if (n_tokens < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "the sequence has no tokens");
    if (n_tokens > store->options.context_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%d tokens; the context holds at most %d", (int)n_tokens,
                              (int)store->options.context_max);
    if (store->closed_first == SEQUENCE_NONE)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "all %d sequences of the KV store are open",
                              (int)store->options.sequences_max);
    return NOSA_OK;
}

/* Takes a closed sequence and makes its keys; it stays on the list until nothing can fail. */
static enum nosa_status prepare_sequence(struct nosa_kv_store *store, const uint32_t *tokens,
                                         int32_t n_tokens, const void *salt, size_t salt_bytes,
                                         struct nosa_kv_sequence **out, struct nosa_error *error)
{
    NOSA_TRY(check_open(store, n_tokens, error));
    struct nosa_kv_sequence *sequence = &store->sequences[store->closed_first];
    NOSA_ASSERT(!sequence->open);
    memcpy(sequence->tokens, tokens, (size_t)n_tokens * sizeof *tokens);
    sequence->private = false;
    sequence->suspended = false;
    sequence->prefetch = false;
    sequence->remembers = false;
    sequence->idle_steps = 0;
    sequence->length = n_tokens;
    sequence->computed = 0;
    sequence->n_blocks = 0;
    enum nosa_status status = nosa_chain_key_root(&store->hash, store->options.identity, salt,
                                                  salt_bytes, &sequence->keys[0], error);
    if (status == NOSA_OK)
        status = make_keys(sequence, 0, n_tokens / NOSA_BLOCK_TOKENS, error);
    if (status != NOSA_OK) {
        restart_hash(store);
        return status;
    }
    *out = sequence;
    return NOSA_OK;
}

static void finish_open(struct nosa_kv_sequence *sequence)
{
    struct nosa_kv_store *store = sequence->store;
    store->closed_first = sequence->next_closed;
    store->sequences_open++;
    sequence->open = true;
}

enum nosa_status nosa_kv_sequence_open(struct nosa_kv_store *store, const uint32_t *tokens,
                                       int32_t n_tokens, const void *salt, size_t salt_bytes,
                                       struct nosa_kv_sequence **out, int32_t *cached_tokens,
                                       struct nosa_error *error)
{
    struct nosa_kv_sequence *sequence;

    *out = NULL;
    *cached_tokens = 0;
    NOSA_ASSERT(salt || salt_bytes == 0);
    NOSA_TRY(prepare_sequence(store, tokens, n_tokens, salt, salt_bytes, &sequence, error));
    acquire_prefix(sequence, 0);
    finish_open(sequence);
    store->prefix_lookup_tokens += (uint64_t)n_tokens;
    store->prefix_hit_tokens += (uint64_t)sequence->computed;
    *out = sequence;
    *cached_tokens = sequence->computed;
    return NOSA_OK;
}

enum nosa_status nosa_kv_sequence_open_private(struct nosa_kv_store *store, const uint32_t *tokens,
                                               int32_t n_tokens, struct nosa_kv_sequence **out,
                                               struct nosa_error *error)
{
    struct nosa_kv_sequence *sequence;

    *out = NULL;
    NOSA_TRY(prepare_sequence(store, tokens, n_tokens, NULL, 0, &sequence, error));
    sequence->private = true;
    finish_open(sequence);
    *out = sequence;
    return NOSA_OK;
}

/* A block that NVMe alone holds whole is not worth an id when nobody uses it. */
void nosa_kv_sequence_release_block(struct nosa_kv_store *store, int32_t block)
{
    nosa_prefix_cache_release(&store->cache, block);
    if (store->tiers.nvme.n_cold > 0 && store->tiers.nvme.cold[block] &&
        nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_CACHED)
        nosa_prefix_cache_evict(&store->cache, block);
}

/* Last to first: a block is then used later than those that continue it (prefix_cache.h). */
static void release_blocks(struct nosa_kv_sequence *sequence)
{
    while (sequence->n_blocks > 0)
        nosa_kv_sequence_release_block(sequence->store, sequence->blocks[--sequence->n_blocks]);
}

/* Of a suspended sequence; likewise. */
static void unpin_images(struct nosa_kv_sequence *sequence)
{
    while (sequence->n_blocks > 0) {
        int32_t image = sequence->blocks[--sequence->n_blocks];
        if (image != NOSA_KV_IMAGE_NONE)
            nosa_image_pool_unpin(&sequence->store->tiers.pool, image);
    }
}

void nosa_kv_sequence_close(struct nosa_kv_sequence *sequence)
{
    if (!sequence)
        return;
    NOSA_ASSERT(sequence->open);
    struct nosa_kv_store *store = sequence->store;
    nosa_kv_nvme_touch(sequence);
    if (sequence->suspended)
        unpin_images(sequence);
    else
        release_blocks(sequence);
    sequence->open = false;
    sequence->next_closed = store->closed_first;
    store->closed_first = (int32_t)(sequence - store->sequences);
    store->sequences_open--;
}

enum nosa_status nosa_kv_sequence_append(struct nosa_kv_sequence *sequence, uint32_t token,
                                         struct nosa_error *error)
{
    struct nosa_kv_store *store = sequence->store;

    NOSA_ASSERT(sequence->open);
    if (sequence->length == store->options.context_max)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED, "the context of %d tokens is full",
                              (int)store->options.context_max);
    sequence->tokens[sequence->length] = token;
    int32_t length = sequence->length + 1;
    if (length % NOSA_BLOCK_TOKENS == 0) {
        int32_t block = length / NOSA_BLOCK_TOKENS - 1;
        enum nosa_status status = make_keys(sequence, block, block + 1, error);
        if (status != NOSA_OK) {
            restart_hash(store);
            return status;
        }
    }
    sequence->length = length;
    return NOSA_OK;
}

int32_t nosa_kv_sequence_blocks_needed(const struct nosa_kv_sequence *sequence, int32_t n_tokens)
{
    int32_t needed = nosa_blocks_for(n_tokens) - sequence->n_blocks;
    return needed > 0 ? needed : 0;
}

int32_t nosa_kv_store_blocks_available(const struct nosa_kv_store *store)
{
    int32_t ids = nosa_prefix_cache_available(&store->cache), room = nosa_kv_tiers_room(store);
    return ids < room ? ids : room;
}

enum nosa_status nosa_kv_sequence_reserve(struct nosa_kv_sequence *sequence, int32_t n_tokens,
                                          struct nosa_error *error)
{
    struct nosa_kv_store *store = sequence->store;

    NOSA_ASSERT(sequence->open && !sequence->suspended);
    if (n_tokens < 0 || n_tokens > sequence->store->options.context_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV blocks for %d tokens asked for; the context holds at most %d",
                              (int)n_tokens, (int)sequence->store->options.context_max);
    int32_t needed = nosa_kv_sequence_blocks_needed(sequence, n_tokens);
    int32_t available = nosa_kv_store_blocks_available(store);
    if (needed > available)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "KV store: %d blocks needed, %d of %d free", (int)needed,
                              (int)available, (int)store->options.n_blocks);
    for (int32_t i = 0; i < needed; i++)
        sequence->blocks[sequence->n_blocks++] = nosa_kv_tiers_take(store);
    return NOSA_OK;
}

void nosa_kv_sequence_commit(struct nosa_kv_sequence *sequence, int32_t n_tokens)
{
    struct nosa_prefix_cache *cache = &sequence->store->cache;

    NOSA_ASSERT(sequence->open && !sequence->suspended && !sequence->store->tiers.in_step);
    NOSA_ASSERT(n_tokens >= sequence->computed && n_tokens <= sequence->length);
    NOSA_ASSERT(nosa_blocks_for(n_tokens) <= sequence->n_blocks);
    int32_t last = n_tokens / NOSA_BLOCK_TOKENS;
    for (int32_t i = sequence->computed / NOSA_BLOCK_TOKENS; i < last; i++) {
        const uint32_t *tokens = sequence->tokens + (size_t)i * NOSA_BLOCK_TOKENS;
        if (sequence->private)
            nosa_prefix_cache_keep_private(cache, sequence->blocks[i]);
        else if (!nosa_prefix_cache_publish(cache, sequence->blocks[i], &sequence->keys[i + 1],
                                            &sequence->keys[i], tokens))
            sequence->private = true;
        nosa_kv_tiers_completed(sequence, i);
    }
    sequence->computed = n_tokens;
}

int32_t nosa_kv_sequence_length(const struct nosa_kv_sequence *sequence)
{
    return sequence->length;
}

int32_t nosa_kv_sequence_computed(const struct nosa_kv_sequence *sequence)
{
    return sequence->computed;
}

const uint32_t *nosa_kv_sequence_tokens(const struct nosa_kv_sequence *sequence)
{
    return sequence->tokens;
}

const int32_t *nosa_kv_sequence_blocks(const struct nosa_kv_sequence *sequence, int32_t *n_blocks)
{
    *n_blocks = sequence->n_blocks;
    return sequence->blocks;
}

/* ---- suspending ----------------------------------------------------------------------------- */

void nosa_kv_sequence_save(struct nosa_kv_sequence *sequence)
{
    NOSA_ASSERT(sequence->open && !sequence->suspended);
    for (int32_t i = 0; i < sequence->computed / NOSA_BLOCK_TOKENS; i++)
        nosa_kv_tiers_want_saved(sequence->store, sequence->blocks[i]);
}

/* Gives one complete block up; returns the image that keeps it, pinned, if it is all that does. */
static int32_t suspend_block(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    int32_t image = tiers->options.host ? tiers->image[block] : NOSA_KV_IMAGE_NONE;

    nosa_kv_sequence_release_block(store, block);
    if (nosa_block_pool_state(&store->cache.pool, block) != NOSA_BLOCK_CACHED ||
        image == NOSA_KV_IMAGE_NONE || tiers->pool.images[image].state != NOSA_IMAGE_HELD)
        return NOSA_KV_IMAGE_NONE;
    nosa_image_pool_pin(&tiers->pool, image);
    nosa_prefix_cache_evict(&store->cache, block);
    return image;
}

void nosa_kv_sequence_suspend(struct nosa_kv_sequence *sequence)
{
    struct nosa_kv_store *store = sequence->store;

    NOSA_ASSERT(sequence->open && !sequence->suspended && !store->tiers.in_step);
    int32_t complete = sequence->computed / NOSA_BLOCK_TOKENS;
    for (int32_t i = sequence->n_blocks - 1; i >= 0; i--) {
        if (i < complete)
            sequence->blocks[i] = suspend_block(store, sequence->blocks[i]);
        else
            nosa_prefix_cache_release(&store->cache, sequence->blocks[i]);
    }
    sequence->n_blocks = complete;
    sequence->computed = 0;
    sequence->suspended = true;
    sequence->prefetch = false;
}

bool nosa_kv_sequence_suspended(const struct nosa_kv_sequence *sequence)
{
    return sequence->suspended;
}

enum nosa_status nosa_kv_sequence_resume(struct nosa_kv_sequence *sequence,
                                         struct nosa_error *error)
{
    struct nosa_kv_store *store = sequence->store;
    int32_t available = nosa_prefix_cache_available(&store->cache);

    NOSA_ASSERT(sequence->open && sequence->suspended);
    if (sequence->n_blocks > available)
        return nosa_error_set(
            error, NOSA_RESOURCE_EXHAUSTED, "KV store: %d blocks to resume, %d of %d free",
            (int)sequence->n_blocks, (int)available, (int)store->options.n_blocks);
    acquire_prefix(sequence, sequence->n_blocks);
    sequence->suspended = false;
    sequence->idle_steps = 0;
    return NOSA_OK;
}
