#include "engine/engine_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

const char *nosa_attention_mode_name(enum nosa_attention_mode mode)
{
    switch (mode) {
    case NOSA_ATTENTION_FULL: return "full";
    case NOSA_ATTENTION_INFLLMV2: return "infllmv2";
    case NOSA_ATTENTION_NOSA: return "nosa";
    }
    return "unknown";
}

static enum nosa_status check_options(const struct nosa_engine_options *options,
                                      const struct nosa_model_config *config,
                                      struct nosa_error *error)
{
    if (options->context_max < 0 || (uint32_t)options->context_max > config->max_positions)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a context of %d tokens exceeds the model's %u positions",
                              options->context_max, config->max_positions);
    if (options->rows_max < 1 || options->sessions_max < 1 || options->tp < 1 ||
        options->device.threads < 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "step tokens %d, sessions %d, ranks %d or threads %d out of range",
                              options->rows_max, options->sessions_max, options->tp,
                              options->device.threads);
    if (options->tp > (int32_t)config->n_heads)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--tp %d exceeds the model's %u query heads", options->tp,
                              config->n_heads);
    return NOSA_OK;
}

/* What block ids can name. */
#define KV_BLOCKS_MAX (1 << 29)

/* How many blocks the KV arena gets: what the sessions can fill, or what kv_bytes holds. */
static enum nosa_status choose_blocks(struct nosa_engine *engine,
                                      const struct nosa_engine_options *options,
                                      struct nosa_error *error)
{
    struct nosa_shard shard;
    NOSA_TRY(nosa_shard_make(engine->info.config, options->tp, 0, &shard, error));
    struct nosa_kv_geometry geometry = nosa_rank_kv_geometry(engine->checkpoint, &shard);
    uint64_t block_bytes = nosa_kv_block_bytes(&geometry);
    int64_t context_blocks =
        ((int64_t)engine->info.context_max + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
    int64_t blocks = context_blocks * options->sessions_max;
    if (options->kv_bytes > 0) {
        int64_t fitting = (int64_t)(options->kv_bytes / block_bytes);
        if (fitting < context_blocks)
            return nosa_error_set(
                error, NOSA_INVALID_ARGUMENT,
                "--gpu-kv-bytes %llu holds %lld blocks of 64 tokens; a context of "
                "%d tokens needs %lld, %llu bytes",
                (unsigned long long)options->kv_bytes, (long long)fitting, engine->info.context_max,
                (long long)context_blocks, (unsigned long long)context_blocks * block_bytes);
        /* more than the sessions fill at a time keeps prefixes of earlier ones */
        blocks = fitting < KV_BLOCKS_MAX ? fitting : KV_BLOCKS_MAX;
    }
    if (blocks > KV_BLOCKS_MAX)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "%d sessions of %d tokens need %lld KV blocks, more than can be named",
            options->sessions_max, engine->info.context_max, (long long)blocks);
    engine->info.kv_blocks = (int32_t)blocks;
    return NOSA_OK;
}

static enum nosa_status create_group(struct nosa_engine *engine,
                                     const struct nosa_engine_options *options,
                                     const struct nosa_plan_limits *limits,
                                     struct nosa_error *error)
{
    struct nosa_rank_options rank_options = {
        .checkpoint = engine->checkpoint,
        .mode = engine->info.attention,
        .limits = *limits,
        .context_max = engine->info.context_max,
        .n_blocks = engine->info.kv_blocks,
        .progress = options->progress,
        .progress_context = options->progress_context,
    };
    NOSA_TRY(nosa_rank_group_create(&rank_options, options->tp, &options->device, &engine->group,
                                    error));
    struct nosa_engine_info *info = &engine->info;
    for (int32_t i = 0; i < options->tp; i++) {
        const struct nosa_rank *rank = nosa_rank_group_rank(engine->group, i);
        info->weight_bytes += rank->weights.matrix_bytes + rank->weights.vector_bytes;
        info->kv_bytes += rank->arena.bytes;
        info->scratch_bytes += rank->bytes;
    }
    const struct nosa_rank *first = nosa_rank_group_rank(engine->group, 0);
    struct nosa_device *device = first->device;
    nosa_backend_describe(&options->device, options->tp, device, info->device, sizeof info->device);
    char kernels[96];
    device->table->fingerprint(device, kernels, sizeof kernels);
    snprintf(info->fingerprint, sizeof info->fingerprint, "%s weights=%s kv=%s tp=%d attention=%s",
             kernels, nosa_weight_format_name(first->weights.output.format),
             nosa_dtype_name(first->arena.view.geometry.type), options->tp,
             nosa_attention_mode_name(info->attention));
    return NOSA_OK;
}

/* The cache lives as long as the engine, whose weights never change: the identity only has to hold
 * what an engine of another kind would compute differently. */
static enum nosa_status create_store(struct nosa_engine *engine, struct nosa_error *error)
{
    struct nosa_kv_store_options options = {
        .n_blocks = engine->info.kv_blocks,
        .sequences_max = engine->info.sessions_max,
        .context_max = engine->info.context_max,
    };
    NOSA_TRY(nosa_sha256(engine->info.fingerprint, strlen(engine->info.fingerprint),
                         options.identity, error));
    return nosa_kv_store_create(&options, &engine->store, error);
}

static enum nosa_status open_engine(struct nosa_engine *engine,
                                    const struct nosa_engine_options *options,
                                    struct nosa_error *error)
{
    NOSA_TRY(nosa_checkpoint_open(options->model_directory, &engine->checkpoint, error));
    const struct nosa_model_config *config = nosa_checkpoint_config(engine->checkpoint);
    NOSA_TRY(check_options(options, config, error));
    struct nosa_engine_info *info = &engine->info;
    info->config = config;
    info->generation = nosa_checkpoint_generation_config(engine->checkpoint);
    info->attention = options->attention != NOSA_ENGINE_ATTENTION_DEFAULT
                          ? (enum nosa_attention_mode)options->attention
                      : config->has_eviction_head ? NOSA_ATTENTION_NOSA
                                                  : NOSA_ATTENTION_FULL;
    info->context_max =
        options->context_max ? options->context_max : (int32_t)config->max_positions;
    info->sessions_max = options->sessions_max;
    info->rows_max =
        options->rows_max > options->sessions_max ? options->rows_max : options->sessions_max;
    NOSA_TRY(choose_blocks(engine, options, error));
    struct nosa_plan_limits limits = {
        .rows_max = info->rows_max,
        .seqs_max = info->sessions_max,
        .blocks_max = (info->context_max + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS,
        .vocab = (int32_t)config->vocab,
    };
    NOSA_TRY(create_group(engine, options, &limits, error));
    NOSA_TRY(nosa_step_plan_create(&limits, nosa_rank_group_rank(engine->group, 0)->device,
                                   &engine->plan, error));
    return create_store(engine, error);
}

enum nosa_status nosa_engine_open(const struct nosa_engine_options *options,
                                  struct nosa_engine **out, struct nosa_error *error)
{
    *out = NULL;
    struct nosa_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for an engine");
    enum nosa_status status = open_engine(engine, options, error);
    if (status != NOSA_OK) {
        nosa_engine_close(engine);
        return status;
    }
    *out = engine;
    return NOSA_OK;
}

void nosa_engine_close(struct nosa_engine *engine)
{
    if (!engine)
        return;
    NOSA_ASSERT(engine->sessions_open == 0 && !engine->items);
    nosa_kv_store_destroy(engine->store);
    nosa_step_plan_destroy(&engine->plan); /* of a rank's device */
    nosa_rank_group_destroy(engine->group);
    nosa_checkpoint_close(engine->checkpoint);
    free(engine);
}

const struct nosa_engine_info *nosa_engine_info(const struct nosa_engine *engine)
{
    return &engine->info;
}

void nosa_engine_kv_counters(const struct nosa_engine *engine, struct nosa_kv_store_counters *out)
{
    nosa_kv_store_counters(engine->store, out);
}
