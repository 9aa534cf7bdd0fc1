/*
 * The engine's KV tiers: how large they are, what they are made of, and how they come and go.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "engine/engine_internal.h"
#include "extent_store.h"
#include "io.h"

/* What a first step finds brought up: the blocks that selection forces, and by E the others. */
static void choose_prefetch(struct nosa_engine *engine, const struct nosa_engine_options *options,
                            const struct nosa_kv_demand *demand)
{
    const struct nosa_sparse_config *sparse = &engine->info.config->sparse;
    int32_t local = (int32_t)sparse->window_size / NOSA_BLOCK_TOKENS + 1;
    int32_t sink = (int32_t)sparse->init_blocks;
    int32_t others = (int32_t)sparse->topk - local - sink;
    engine->tier_options = (struct nosa_kv_tier_options){
        .geometry = demand->geometry,
        .n_slots = engine->sizes.n_slots,
        .working_slots = demand->working_slots,
        .sink_blocks = sink,
        .local_blocks = local,
        .top_e_blocks = others > 0 ? others : 0,
        .has_bias = engine->info.config->has_eviction_head,
        .selects_all = engine->info.attention == NOSA_ATTENTION_FULL,
    };
    engine->tier_options.geometry.n_kv_heads = demand->kv_heads;
    if (options->kv_no_prefetch) {
        engine->tier_options.sink_blocks = 0;
        engine->tier_options.local_blocks = 0;
        engine->tier_options.top_e_blocks = 0;
    }
}

enum nosa_status nosa_engine_kv_choose(struct nosa_engine *engine,
                                       const struct nosa_engine_options *options,
                                       struct nosa_error *error)
{
    struct nosa_engine_info *info = &engine->info;
    struct nosa_shard shard;
    NOSA_TRY(nosa_shard_make(info->config, options->tp, 0, &shard, error));
    int32_t blocks = (info->context_max + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
    int32_t topk = (int32_t)info->config->sparse.topk;
    int32_t working = info->attention == NOSA_ATTENTION_FULL ? NOSA_ATTENTION_RUN_BLOCKS : topk;
    struct nosa_kv_demand demand = {
        .geometry = nosa_rank_kv_geometry(engine->checkpoint, &shard),
        .kv_heads = (int32_t)info->config->n_kv_heads,
        .context_max = info->context_max,
        .sessions_max = info->sessions_max,
        .rows_max = info->rows_max,
        .working_slots = working < blocks ? working : blocks,
        .first_bytes = options->kv_bytes ? options->kv_bytes : NOSA_KV_BYTES_AUTO,
        .host_bytes = options->host_kv_bytes,
        .host_auto_max = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2,
        .nvme = options->nvme_directory != NULL,
    };
    NOSA_TRY(nosa_kv_sizes_choose(&demand, &engine->sizes, error));
    info->kv_blocks = engine->sizes.n_blocks;
    info->kv_slots = engine->sizes.n_slots ? engine->sizes.n_slots : engine->sizes.n_blocks;
    info->kv_images = engine->sizes.n_images;
    info->kv_record_bytes = nosa_kv_record_bytes(&demand.geometry);
    if (engine->sizes.n_images > 0)
        choose_prefetch(engine, options, &demand);
    return NOSA_OK;
}

/* What decides KV bits beside salt and tokens. A cache that lives as long as the engine, whose
 * weights never change, need not read them. */
static enum nosa_status make_identity(struct nosa_engine *engine, uint8_t identity[32],
                                      struct nosa_error *error)
{
    uint8_t checkpoint[32] = {0};
    struct nosa_sha256 hash;
    const char *fingerprint = engine->info.fingerprint;

    if (engine->info.nvme_directory)
        NOSA_TRY(nosa_checkpoint_identity(engine->checkpoint, checkpoint, error));
    NOSA_TRY(nosa_sha256_init(&hash, error));
    enum nosa_status status = nosa_sha256_update(&hash, fingerprint, strlen(fingerprint), error);
    if (status == NOSA_OK)
        status = nosa_sha256_update(&hash, checkpoint, sizeof checkpoint, error);
    if (status == NOSA_OK)
        status = nosa_sha256_final(&hash, identity, error);
    nosa_sha256_free(&hash);
    return status;
}

static enum nosa_status create_store(struct nosa_engine *engine, struct nosa_error *error)
{
    const struct nosa_engine_info *info = &engine->info;
    struct nosa_kv_store_options options = {
        .n_blocks = info->kv_blocks,
        .sequences_max = info->sessions_max,
        .context_max = info->context_max,
    };
    if (engine->host.images) {
        options.tiers = engine->tier_options;
        options.tiers.host = &engine->host;
        options.tiers.extents = engine->extents;
    }
    memcpy(options.identity, engine->identity, sizeof options.identity);
    return nosa_kv_store_create(&options, &engine->store, error);
}

/* The host tier's images, reachable by every rank. */
static enum nosa_status create_host_pool(struct nosa_engine *engine, struct nosa_error *error)
{
    if (engine->sizes.n_images == 0)
        return NOSA_OK;
    struct nosa_rank *first = nosa_rank_group_member(engine->group, 0);
    NOSA_TRY(nosa_kv_host_pool_create(first->device, &first->arena.view.geometry,
                                      (int32_t)engine->info.config->n_kv_heads,
                                      engine->sizes.n_images, &engine->host, error));
    for (int32_t i = 0; i < nosa_rank_group_count(engine->group); i++)
        nosa_rank_attach_host(nosa_rank_group_member(engine->group, i), &engine->host);
    engine->info.host_kv_bytes = engine->host.image_bytes * (size_t)engine->host.n_images;
    return NOSA_OK;
}

static enum nosa_status create_tiers(struct nosa_engine *engine,
                                     const struct nosa_engine_options *options,
                                     struct nosa_error *error)
{
    if (!engine->host.images)
        return NOSA_OK;
    struct nosa_device *device = nosa_rank_group_rank(engine->group, 0)->device;
    engine->kv_items = calloc((size_t)engine->info.sessions_max, sizeof *engine->kv_items);
    if (!engine->kv_items)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the steps of %d sessions",
                              engine->info.sessions_max);
    const struct nosa_kv_view *view = &nosa_rank_group_rank(engine->group, 0)->arena.view;
    int32_t kv_heads = view->geometry.n_kv_heads;
    int32_t absent_max = engine->extents ? engine->sizes.n_slots * kv_heads : 0;
    size_t records = (size_t)view->geometry.n_layers * (size_t)kv_heads * (size_t)view->n_blocks;
    return nosa_step_tiers_create(
        engine->store, options->kv_policy, options->tp, engine->info.sessions_max, absent_max,
        engine->sizes.n_slots ? records : 0, device, &engine->tiers, error);
}

/* ---- the NVMe tier -------------------------------------------------------------------------- */

/* Contexts that an automatic size holds, as far as a quarter of the free space goes. */
#define NVME_AUTO_CONTEXTS 64

static void fill_extent_geometry(const struct nosa_engine *engine,
                                 struct nosa_extent_geometry *geometry)
{
    const struct nosa_kv_geometry *kv = &engine->tier_options.geometry;
    *geometry = (struct nosa_extent_geometry){
        .n_records = (uint32_t)(kv->n_layers * kv->n_kv_heads),
        .record_bytes = (uint32_t)nosa_kv_record_bytes(kv),
        .summary_bytes = (uint32_t)nosa_kv_summary_bytes(kv),
    };
}

/* A file that is there keeps its size. */
static enum nosa_status choose_nvme_bytes(const struct nosa_engine *engine, const char *directory,
                                          const struct nosa_extent_geometry *geometry,
                                          uint64_t *bytes, struct nosa_error *error)
{
    char path[4096];
    struct stat status;
    uint64_t available;

    snprintf(path, sizeof path, "%s/%s", directory, NOSA_EXTENT_FILE_NAME);
    if (stat(path, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
        *bytes = (uint64_t)status.st_size;
        return NOSA_OK;
    }
    NOSA_TRY(nosa_io_free_bytes(directory, NOSA_EXTENT_FILE_NAME, &available, error));
    int32_t blocks = (engine->info.context_max + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
    *bytes = nosa_extent_file_bytes(geometry, (uint32_t)blocks * NVME_AUTO_CONTEXTS);
    *bytes = *bytes < available / 4 ? *bytes : available / 4;
    if (nosa_extent_count_in(geometry, *bytes) < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV directory '%s': %llu bytes are free, too few for a KV file",
                              directory, (unsigned long long)available);
    return NOSA_OK;
}

static enum nosa_status open_extents(struct nosa_engine *engine,
                                     const struct nosa_engine_options *options,
                                     struct nosa_error *error)
{
    struct nosa_extent_store_options extents = {
        .directory = options->nvme_directory,
        .bytes = options->nvme_kv_bytes,
        .pool = engine->host.images,
        .pool_bytes = engine->host.image_bytes * (size_t)engine->host.n_images,
        .write_bytes_per_day = options->nvme_write_bytes_per_day,
    };

    if (!options->nvme_directory)
        return NOSA_OK;
    fill_extent_geometry(engine, &extents.geometry);
    NOSA_ASSERT(nosa_extent_image_bytes(&extents.geometry) == engine->host.image_bytes);
    memcpy(extents.identity, engine->identity, sizeof extents.identity);
    if (extents.bytes == NOSA_KV_BYTES_AUTO)
        NOSA_TRY(
            choose_nvme_bytes(engine, extents.directory, &extents.geometry, &extents.bytes, error));
    enum nosa_status status = nosa_extent_store_open(&extents, &engine->extents, error);
    if (status == NOSA_UNAVAILABLE && error) /* in use: another directory has to be named */
        error->status = NOSA_INVALID_ARGUMENT;
    if (status != NOSA_OK)
        return status == NOSA_UNAVAILABLE ? NOSA_INVALID_ARGUMENT : status;
    struct nosa_extent_store_info info;
    nosa_extent_store_info(engine->extents, &info);
    engine->info.nvme_kv_bytes = extents.bytes;
    engine->info.nvme_method = info.io_method;
    engine->info.nvme_blocks = (int32_t)info.n_extents;
    return NOSA_OK;
}

/* ---- as a whole ----------------------------------------------------------------------------- */

enum nosa_status nosa_engine_kv_create(struct nosa_engine *engine,
                                       const struct nosa_engine_options *options,
                                       struct nosa_error *error)
{
    engine->info.nvme_directory = options->nvme_directory;
    NOSA_TRY(create_host_pool(engine, error));
    NOSA_TRY(make_identity(engine, engine->identity, error));
    NOSA_TRY(open_extents(engine, options, error));
    NOSA_TRY(create_store(engine, error));
    return create_tiers(engine, options, error);
}

void nosa_engine_kv_destroy(struct nosa_engine *engine)
{
    nosa_step_tiers_destroy(&engine->tiers);
    nosa_kv_store_destroy(engine->store);
    /* A device that has stopped answering may write to the images whenever it wakes up. */
    if (nosa_extent_store_close(engine->extents) > 0)
        nosa_log(NOSA_LOG_WARN, "engine",
                 "the NVMe tier does not answer: its host memory is not given back");
    else
        nosa_kv_host_pool_destroy(&engine->host);
    free(engine->kv_items);
}

void nosa_engine_kv_counters(const struct nosa_engine *engine, struct nosa_kv_store_counters *out)
{
    nosa_kv_store_counters(engine->store, out);
}

void nosa_engine_kv_traffic(const struct nosa_engine *engine, struct nosa_engine_kv_traffic *out)
{
    struct nosa_kv_store_counters store;
    struct nosa_extent_store_counters extents;

    *out = engine->traffic;
    out->nvme_budget_left_bytes = UINT64_MAX;
    if (!engine->extents)
        return;
    nosa_kv_store_counters(engine->store, &store);
    nosa_extent_store_counters(engine->extents, &extents);
    out->nvme_read_bytes = extents.read_bytes;
    out->nvme_written_bytes = extents.written_bytes;
    out->recomputed_blocks = store.nvme_recomputed_blocks;
    out->corrupt_blocks = extents.corrupt_extents;
    out->nvme_stall_ns = store.nvme_stall_ns;
    out->nvme_blocks_held = extents.extents_valid;
    out->nvme_refused_full = extents.refused_full;
    out->nvme_refused_budget = extents.refused_budget;
    out->nvme_failed_writes = extents.failed_writes;
    out->nvme_budget_left_bytes = extents.budget_left_bytes;
}

enum nosa_status nosa_engine_poll(struct nosa_engine *engine, uint32_t wait_ms,
                                  struct nosa_error *error)
{
    if (engine->items || !engine->host.images)
        return NOSA_OK;
    nosa_kv_store_poll(engine->store, wait_ms);
    return nosa_kv_store_has_moves(engine->store) ? nosa_engine_step_moves(engine, error) : NOSA_OK;
}

enum nosa_status nosa_engine_flush(struct nosa_engine *engine, uint32_t timeout_ms,
                                   struct nosa_error *error)
{
    uint64_t end = nosa_monotonic_ns() + timeout_ms * NOSA_NS_PER_MS;
    if (!engine->extents)
        return NOSA_OK;
    while (nosa_kv_store_unsaved(engine->store) > 0) {
        if (nosa_monotonic_ns() >= end)
            return nosa_error_set(
                error, NOSA_DEADLINE_EXCEEDED, "%d blocks were not written to %s within %u ms",
                nosa_kv_store_unsaved(engine->store), engine->info.nvme_directory, timeout_ms);
        NOSA_TRY(nosa_engine_poll(engine, 10, error));
    }
    return NOSA_OK;
}
