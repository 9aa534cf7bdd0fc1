/*
 * Store and sequences. Both live in memory taken by create: sequences are an array with a list of
 * the closed ones, and each has its own stretch of three large arrays (tokens, block table, keys).
 * Which block holds which tokens is the prefix cache's business.
 *
 * A sequence's leading blocks are complete (computed / 64 of them) and known to the prefix cache;
 * those after are FILLING. Keys are made when tokens become known, so commit cannot fail.
 */
#include "kv_store.h"

#include <stdlib.h>
#include <string.h>

#include "chain_key.h"
#include "prefix_cache.h"

#define SEQUENCE_NONE (-1)

struct nosa_kv_sequence {
    /* fixed after create */
    struct nosa_kv_store *store; /* borrowed */
    uint32_t *tokens;            /* borrowed: [context_max] */
    int32_t *blocks;             /* borrowed: [blocks_max] */
    struct nosa_chain_key *keys; /* borrowed: [blocks_max + 1]: the root, then one a block */

    bool open;
    bool private;        /* opened so, or a key of ours named other tokens: publishes no more */
    int32_t length;      /* tokens known */
    int32_t computed;    /* tokens committed */
    int32_t n_blocks;    /* entries of the block table */
    int32_t next_closed; /* while closed */
};

struct nosa_kv_store {
    /* fixed after create */
    struct nosa_kv_store_options options;
    int32_t blocks_max;                 /* of one sequence */
    struct nosa_kv_sequence *sequences; /* owned: [sequences_max] */
    uint32_t *tokens;                   /* owned: [sequences_max][context_max] */
    int32_t *blocks;                    /* owned: [sequences_max][blocks_max] */
    struct nosa_chain_key *keys;        /* owned: [sequences_max][blocks_max + 1] */

    struct nosa_prefix_cache cache;
    struct nosa_sha256 hash;
    int32_t closed_first;
    int32_t sequences_open;
    uint64_t prefix_hit_tokens;
    uint64_t prefix_lookup_tokens;
};

static int32_t blocks_for(int32_t n_tokens)
{
    return n_tokens / NOSA_BLOCK_TOKENS + (n_tokens % NOSA_BLOCK_TOKENS != 0);
}

/* ---- store --------------------------------------------------------------------------------- */

static enum nosa_status check_options(const struct nosa_kv_store_options *options,
                                      struct nosa_error *error)
{
    if (options->n_blocks < 1 || options->n_blocks > NOSA_PREFIX_INDEX_BLOCKS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "KV store: %d blocks; must be 1 to %d",
                              (int)options->n_blocks, NOSA_PREFIX_INDEX_BLOCKS_MAX);
    if (options->sequences_max < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV store: %d sequences; must be at least 1",
                              (int)options->sequences_max);
    if (options->context_max < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV store: a context of %d tokens; must be at least 1",
                              (int)options->context_max);
    return NOSA_OK;
}

/* calloc leaves pages untouched until a sequence uses them. */
static enum nosa_status take_sequences(struct nosa_kv_store *store, struct nosa_error *error)
{
    size_t n = (size_t)store->options.sequences_max;
    size_t context_max = (size_t)store->options.context_max;
    size_t blocks_max = (size_t)store->blocks_max;

    store->sequences = calloc(n, sizeof *store->sequences);
    store->tokens = calloc(n, context_max * sizeof *store->tokens);
    store->blocks = calloc(n, blocks_max * sizeof *store->blocks);
    store->keys = calloc(n, (blocks_max + 1) * sizeof *store->keys);
    if (!store->sequences || !store->tokens || !store->blocks || !store->keys)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                              "KV store: no memory for %d sequences of %d tokens",
                              (int)store->options.sequences_max, (int)store->options.context_max);
    for (size_t i = 0; i < n; i++) {
        struct nosa_kv_sequence *sequence = &store->sequences[i];
        sequence->store = store;
        sequence->tokens = store->tokens + i * context_max;
        sequence->blocks = store->blocks + i * blocks_max;
        sequence->keys = store->keys + i * (blocks_max + 1);
        sequence->next_closed = i + 1 < n ? (int32_t)i + 1 : SEQUENCE_NONE;
    }
    return NOSA_OK;
}

enum nosa_status nosa_kv_store_create(const struct nosa_kv_store_options *options,
                                      struct nosa_kv_store **out, struct nosa_error *error)
{
    enum nosa_status status;

    *out = NULL;
    NOSA_TRY(check_options(options, error));
    struct nosa_kv_store *store = calloc(1, sizeof *store);
    if (!store)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV store: no memory");
    store->options = *options;
    store->blocks_max = blocks_for(options->context_max);
    status = nosa_prefix_cache_create(&store->cache, options->n_blocks, error);
    if (status != NOSA_OK)
        goto cleanup;
    status = take_sequences(store, error);
    if (status != NOSA_OK)
        goto cleanup;
    status = nosa_sha256_init(&store->hash, error);
    if (status != NOSA_OK)
        goto cleanup;
    *out = store;
    return NOSA_OK;
cleanup:
    nosa_kv_store_destroy(store);
    return status;
}

void nosa_kv_store_destroy(struct nosa_kv_store *store)
{
    if (!store)
        return;
    nosa_sha256_free(&store->hash);
    free(store->keys);
    free(store->blocks);
    free(store->tokens);
    free(store->sequences);
    nosa_prefix_cache_destroy(&store->cache);
    free(store);
}

void nosa_kv_store_counters(const struct nosa_kv_store *store, struct nosa_kv_store_counters *out)
{
    const struct nosa_block_pool *pool = &store->cache.pool;

    *out = (struct nosa_kv_store_counters){
        .blocks_total = pool->n_blocks,
        .blocks_used = pool->n_blocks - nosa_prefix_cache_available(&store->cache),
        .blocks_cached = pool->in_state[NOSA_BLOCK_CACHED],
        .sequences = store->sequences_open,
        .prefix_hit_tokens = store->prefix_hit_tokens,
        .prefix_lookup_tokens = store->prefix_lookup_tokens,
        .evicted_blocks = store->cache.evicted_blocks,
    };
}

/* ---- sequence ------------------------------------------------------------------------------ */

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

/* Gives the sequence the blocks of its longest known prefix that leaves a token to compute. */
static void acquire_prefix(struct nosa_kv_sequence *sequence)
{
    int32_t n_max = (sequence->length - 1) / NOSA_BLOCK_TOKENS;

    while (sequence->n_blocks < n_max) {
        int32_t i = sequence->n_blocks;
        int32_t block = nosa_prefix_cache_acquire(&sequence->store->cache, &sequence->keys[i + 1],
                                                  &sequence->keys[i],
                                                  sequence->tokens + (size_t)i * NOSA_BLOCK_TOKENS);
        if (block == NOSA_BLOCK_NONE)
            break;
        sequence->blocks[i] = block;
        sequence->n_blocks = i + 1;
    }
    sequence->computed = sequence->n_blocks * NOSA_BLOCK_TOKENS;
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
    acquire_prefix(sequence);
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

void nosa_kv_sequence_close(struct nosa_kv_sequence *sequence)
{
    if (!sequence)
        return;
    NOSA_ASSERT(sequence->open);
    struct nosa_kv_store *store = sequence->store;
    /* Last to first: a block is then used later than those that continue it (prefix_cache.h). */
    while (sequence->n_blocks > 0)
        nosa_prefix_cache_release(&store->cache, sequence->blocks[--sequence->n_blocks]);
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
    int32_t needed = blocks_for(n_tokens) - sequence->n_blocks;
    return needed > 0 ? needed : 0;
}

int32_t nosa_kv_store_blocks_available(const struct nosa_kv_store *store)
{
    return nosa_prefix_cache_available(&store->cache);
}

enum nosa_status nosa_kv_sequence_reserve(struct nosa_kv_sequence *sequence, int32_t n_tokens,
                                          struct nosa_error *error)
{
    struct nosa_prefix_cache *cache = &sequence->store->cache;

    NOSA_ASSERT(sequence->open);
    if (n_tokens < 0 || n_tokens > sequence->store->options.context_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV blocks for %d tokens asked for; the context holds at most %d",
                              (int)n_tokens, (int)sequence->store->options.context_max);
    int32_t needed = nosa_kv_sequence_blocks_needed(sequence, n_tokens);
    int32_t available = nosa_prefix_cache_available(cache);
    if (needed > available)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "KV store: %d blocks needed, %d of %d free", (int)needed,
                              (int)available, (int)cache->pool.n_blocks);
    for (int32_t i = 0; i < needed; i++)
        sequence->blocks[sequence->n_blocks++] = nosa_prefix_cache_take(cache);
    return NOSA_OK;
}

void nosa_kv_sequence_commit(struct nosa_kv_sequence *sequence, int32_t n_tokens)
{
    struct nosa_prefix_cache *cache = &sequence->store->cache;

    NOSA_ASSERT(sequence->open);
    NOSA_ASSERT(n_tokens >= sequence->computed && n_tokens <= sequence->length);
    NOSA_ASSERT(blocks_for(n_tokens) <= sequence->n_blocks);
    int32_t last = n_tokens / NOSA_BLOCK_TOKENS;
    for (int32_t i = sequence->computed / NOSA_BLOCK_TOKENS; i < last; i++) {
        const uint32_t *tokens = sequence->tokens + (size_t)i * NOSA_BLOCK_TOKENS;
        if (sequence->private)
            nosa_prefix_cache_keep_private(cache, sequence->blocks[i]);
        else if (!nosa_prefix_cache_publish(cache, sequence->blocks[i], &sequence->keys[i + 1],
                                            &sequence->keys[i], tokens))
            sequence->private = true;
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
