/*
 * Creation and counters.
 */
#include <stdlib.h>
#include <string.h>

#include "kv_store_internal.h"

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
    const struct nosa_kv_tier_options *tiers = &store->options.tiers;
    if (store->tiers.tight)
        store->recent_max = nosa_kv_prefetch_max(tiers);
    size_t recent = (size_t)store->recent_max * (size_t)tiers->geometry.n_layers *
                    (size_t)tiers->geometry.n_kv_heads;
    if (recent > 0)
        store->recent = calloc(n, recent * sizeof *store->recent);
    if (!store->sequences || !store->tokens || !store->blocks || !store->keys ||
        (recent > 0 && !store->recent))
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                              "KV store: no memory for %d sequences of %d tokens",
                              (int)store->options.sequences_max, (int)store->options.context_max);
    for (size_t i = 0; i < n; i++) {
        struct nosa_kv_sequence *sequence = &store->sequences[i];
        sequence->store = store;
        sequence->tokens = store->tokens + i * context_max;
        sequence->blocks = store->blocks + i * blocks_max;
        sequence->keys = store->keys + i * (blocks_max + 1);
        sequence->recent = recent > 0 ? store->recent + i * recent : NULL;
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
    store->blocks_max = nosa_blocks_for(options->context_max);
    status = nosa_prefix_cache_create(&store->cache, options->n_blocks, error);
    if (status != NOSA_OK)
        goto cleanup;
    status = nosa_kv_tiers_create(store, error);
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
    free(store->recent);
    free(store->keys);
    free(store->blocks);
    free(store->tokens);
    free(store->sequences);
    nosa_kv_tiers_destroy(&store->tiers);
    nosa_prefix_cache_destroy(&store->cache);
    free(store);
}

void nosa_kv_store_counters(const struct nosa_kv_store *store, struct nosa_kv_store_counters *out)
{
    const struct nosa_block_pool *pool = &store->cache.pool;
    const struct nosa_kv_tiers *tiers = &store->tiers;

    *out = (struct nosa_kv_store_counters){
        .blocks_total = pool->n_blocks,
        .blocks_used = pool->n_blocks - nosa_prefix_cache_available(&store->cache),
        .blocks_cached = pool->in_state[NOSA_BLOCK_CACHED],
        .sequences = store->sequences_open,
        .prefix_hit_tokens = store->prefix_hit_tokens,
        .prefix_lookup_tokens = store->prefix_lookup_tokens,
        .evicted_blocks = store->cache.evicted_blocks,
        .blocks_locked = tiers->tight ? tiers->locked : 0,
        .images_total = tiers->pool.n_images,
        .images_held = tiers->pool.in_state[NOSA_IMAGE_HELD],
        .images_cached = tiers->pool.in_state[NOSA_IMAGE_CACHED],
        .saved_blocks = tiers->saved_blocks,
        .loaded_blocks = tiers->loaded_blocks,
        .prefetched_records = tiers->prefetched_records,
        .lost_images = tiers->pool.lost,
        .nvme_loaded_blocks = tiers->nvme.read_blocks,
        .nvme_written_blocks = tiers->nvme.written_blocks,
        .nvme_bypassed_blocks = tiers->nvme.bypassed_blocks,
        .nvme_recomputed_blocks = tiers->nvme.recomputed_blocks,
        .blocks_cold = tiers->nvme.n_cold,
        .nvme_stall_ns = __atomic_load_n(&tiers->nvme.stall_ns, __ATOMIC_RELAXED),
        .nvme_bypassed = tiers->nvme.bypassed,
    };
}
