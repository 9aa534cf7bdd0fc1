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
        .n_blocks = engine->sizes.n_blocks,
        .n_slots = engine->sizes.n_slots,
        .kv_cold = options->nvme_directory != NULL,
        .kv_fetch_max = engine->sizes.n_slots ? nosa_kv_fetch_max(&engine->tier_options) : 0,
        .trace_rows_max = options->trace_rows_max,
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

static enum nosa_status take_score_logits(struct nosa_engine *engine, int32_t rows,
                                          struct nosa_error *error)
{
    if (rows == 0)
        return NOSA_OK;
    struct nosa_device *device = nosa_rank_group_rank(engine->group, 0)->device;
    void *memory;
    NOSA_TRY(device->table->memory_alloc(
        device, NOSA_MEMORY_HOST_PINNED,
        sizeof(float) * (size_t)rows * (size_t)engine->info.config->vocab, &memory, error));
    engine->score_logits = memory;
    engine->score_rows_kept = rows;
    return NOSA_OK;
}

static void free_score_logits(struct nosa_engine *engine)
{
    if (!engine->score_logits)
        return;
    struct nosa_device *device = nosa_rank_group_rank(engine->group, 0)->device;
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, engine->score_logits,
                               sizeof(float) * (size_t)engine->score_rows_kept *
                                   (size_t)engine->info.config->vocab);
}

static enum nosa_status open_engine(struct nosa_engine *engine,
                                    const struct nosa_engine_options *options,
                                    struct nosa_error *error)
{
    NOSA_TRY(nosa_checkpoint_open(options->model_directory, &engine->checkpoint, error));
    const struct nosa_model_config *config = nosa_checkpoint_config(engine->checkpoint);
    if (options->ignore_head)
        nosa_checkpoint_ignore_head(engine->checkpoint);
    NOSA_TRY(nosa_checkpoint_set_sparse(engine->checkpoint, &options->sparse, error));
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
    NOSA_TRY(nosa_engine_kv_choose(engine, options, error));
    struct nosa_plan_limits limits = {
        .rows_max = info->rows_max,
        .seqs_max = info->sessions_max,
        .blocks_max = (info->context_max + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS,
        .vocab = (int32_t)config->vocab,
    };
    NOSA_TRY(create_group(engine, options, &limits, error));
    NOSA_TRY(nosa_step_plan_create(&limits, nosa_rank_group_rank(engine->group, 0)->device,
                                   &engine->plan, error));
    NOSA_TRY(nosa_step_trace_create(&engine->trace, engine->group, options->trace_rows_max, error));
    NOSA_TRY(take_score_logits(engine, options->score_rows_kept, error));
    return nosa_engine_kv_create(engine, options, error);
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
    nosa_engine_kv_destroy(engine);
    nosa_step_plan_destroy(&engine->plan); /* of a rank's device */
    nosa_step_trace_destroy(&engine->trace);
    free_score_logits(engine);
    nosa_rank_group_destroy(engine->group);
    nosa_checkpoint_close(engine->checkpoint);
    free(engine);
}

const struct nosa_engine_info *nosa_engine_info(const struct nosa_engine *engine)
{
    return &engine->info;
}
