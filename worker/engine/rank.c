#include "engine/rank.h"
#include "engine/tiers.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static_assert(NOSA_MODEL_GROUP_MAX <= NOSA_GROUP_MAX, "a model that attention does not take");

/* Rows whose logits are formed at a time when every row of a chunk is scored. */
#define SCORE_ROWS 32

int32_t nosa_rank_logit_rows(const struct nosa_plan_limits *limits)
{
    return limits->seqs_max > SCORE_ROWS ? limits->seqs_max : SCORE_ROWS;
}

/* ---- creation ------------------------------------------------------------------------------- */

struct nosa_kv_geometry nosa_rank_kv_geometry(const struct nosa_checkpoint *checkpoint,
                                              const struct nosa_shard *shard)
{
    const struct nosa_model_config *config = nosa_checkpoint_config(checkpoint);
    bool wide = nosa_checkpoint_matrix_dtype(checkpoint) == NOSA_TENSOR_F32;
    return (struct nosa_kv_geometry){
        .n_layers = (int32_t)config->n_layers,
        .n_kv_heads = shard->kv_head_count,
        .head_dim = (int32_t)config->head_dim,
        .kernel_size = (int32_t)config->sparse.kernel_size,
        .kernel_stride = (int32_t)config->sparse.kernel_stride,
        .type = wide ? NOSA_DTYPE_F32 : NOSA_DTYPE_BF16,
    };
}

/* Elements between rows of activations that products read: whole cache lines, an odd number of
 * them, so that neighbouring rows do not share cache sets. */
static int64_t row_stride(int32_t columns)
{
    return ((int64_t)(columns + 15) / 16 | 1) * 16;
}

/* An array that rank.c owns: where its pointer lives and how large it is. */
struct rank_array {
    void **pointer;
    size_t bytes;
};

#define RANK_ARRAYS 18

static void list_arrays(struct nosa_rank *rank, struct rank_array arrays[RANK_ARRAYS])
{
    const struct nosa_rank_options *options = &rank->options;
    const struct nosa_shard *shard = &options->shard;
    size_t rows = (size_t)options->limits.rows_max;
    size_t hidden = rank->config->hidden;
    int32_t head_dim = (int32_t)rank->config->head_dim;
    size_t logit_rows = (size_t)rank->logit_rows_max;
    size_t vocab_stride = (size_t)shard->vocab_stride;
    size_t kv_heads = (size_t)shard->kv_head_count;
    int32_t qkv = (shard->head_count + 2 * shard->kv_head_count) * head_dim;
    qkv += 2 * shard->kv_head_count;         /* the folded eviction head */
    size_t row_bytes = sizeof(float) * rows; /* of one column */
    size_t split = shard->n_ranks > 1;
    size_t sparse = options->mode != NOSA_ATTENTION_FULL;
    size_t first = shard->rank == 0;
    size_t seqs = (size_t)options->limits.seqs_max;
    size_t cold_full = options->kv_cold && options->mode == NOSA_ATTENTION_FULL;
    size_t tight = options->n_slots > 0 && options->n_slots < options->n_blocks;
    const struct rank_array list[RANK_ARRAYS] = {
        {(void **)&rank->inputs, nosa_step_plan_bytes(&options->limits)},
        {(void **)&rank->rope_table, sizeof(float) * rows * (size_t)head_dim},
        {(void **)&rank->residual, sizeof(float) * rows * hidden},
        {(void **)&rank->normed, row_bytes * (size_t)row_stride((int32_t)hidden)},
        {(void **)&rank->qkv, row_bytes * (size_t)row_stride(qkv)},
        {(void **)&rank->attended,
         row_bytes * (size_t)row_stride(shard->output_head_count * head_dim)},
        {(void **)&rank->activated, row_bytes * (size_t)row_stride(shard->intermediate_count)},
        {(void **)&rank->partial, split * sizeof(float) * rows * hidden},
        {(void **)&rank->selected, sparse * sizeof(int32_t) * rows * kv_heads * (size_t)rank->topk},
        {(void **)&rank->selected_count, sparse * sizeof(int32_t) * rows * kv_heads},
        {(void **)&rank->logits_part, split * sizeof(float) * logit_rows * vocab_stride},
        {(void **)&rank->logits_all,
         split * sizeof(float) * (size_t)shard->n_ranks * logit_rows * vocab_stride},
        {(void **)&rank->logits, first * sizeof(float) * logit_rows * rank->config->vocab},
        {(void **)&rank->score_out, first * sizeof(float) * logit_rows},
        {(void **)&rank->result, first * sizeof *rank->result * seqs},
        {(void **)&rank->attention_state, cold_full * sizeof(float) * rows *
                                              (size_t)shard->output_head_count *
                                              (size_t)(head_dim + 2)},
        {(void **)&rank->kv_hits, tight * sizeof *rank->kv_hits * seqs},
        {(void **)&rank->kv_fetched, tight * sizeof *rank->kv_fetched},
    };
    memcpy(arrays, list, sizeof list);
}

static enum nosa_status take_arrays(struct nosa_rank *rank, struct nosa_error *error)
{
    struct rank_array arrays[RANK_ARRAYS];
    list_arrays(rank, arrays);
    for (int i = 0; i < RANK_ARRAYS; i++) {
        if (arrays[i].bytes == 0)
            continue;
        void *memory;
        NOSA_TRY(rank->device->table->memory_alloc(rank->device, NOSA_MEMORY_DEVICE,
                                                   arrays[i].bytes, &memory, error));
        *arrays[i].pointer = memory;
        rank->bytes += arrays[i].bytes;
    }
    return NOSA_OK;
}

static enum nosa_status reserve_scratch(struct nosa_rank *rank, struct nosa_error *error)
{
    const struct nosa_rank_options *options = &rank->options;
    struct nosa_step_limits limits = {
        .rows_max = options->limits.rows_max,
        .seqs_max = options->limits.seqs_max,
        .context_max = options->context_max,
        .n_heads = options->shard.head_count,
        .n_kv_heads = options->shard.kv_head_count,
        .head_dim = (int32_t)rank->config->head_dim,
        .k_max = rank->weights.k_max,
        .n_max = rank->weights.n_max,
        .topk_max = rank->topk,
        .vocab_max = (int32_t)rank->config->vocab,
        .windows_per_block = nosa_kv_windows_per_block(&rank->arena.view.geometry),
        .kv_fetch_max = options->kv_fetch_max,
    };
    if (rank->arena.view.slot_block) {
        limits.kv_pools_max = limits.n_kv_heads * (int32_t)rank->config->n_layers;
        limits.kv_slots_max = options->n_slots;
    }
    size_t bytes = 0;
    NOSA_TRY(rank->device->table->reserve(rank->device, &limits, &bytes, error));
    rank->bytes += bytes;
    return NOSA_OK;
}

static enum nosa_status create(struct nosa_rank *rank, struct nosa_error *error)
{
    const struct nosa_rank_options *options = &rank->options;
    struct nosa_kv_geometry geometry = nosa_rank_kv_geometry(options->checkpoint, &options->shard);
    NOSA_TRY(rank->device->table->stream_create(rank->device, &rank->stream, error));
    enum nosa_status status = nosa_kv_arena_create(rank->device,
                                                   &(struct nosa_kv_arena_options){
                                                       .geometry = geometry,
                                                       .n_blocks = options->n_blocks,
                                                       .n_slots = options->n_slots,
                                                   },
                                                   &rank->arena, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "KV cache (--gpu-kv-bytes, --max-context)");
        return status;
    }
    NOSA_TRY(take_arrays(rank, error));
    NOSA_TRY(nosa_rank_trace_create(rank, error));
    NOSA_TRY(nosa_model_weights_load(options->checkpoint, &options->shard, rank->device,
                                     options->progress, options->progress_context, &rank->weights,
                                     error));
    return reserve_scratch(rank, error);
}

enum nosa_status nosa_rank_create(const struct nosa_rank_options *options, struct nosa_rank *rank,
                                  struct nosa_error *error)
{
    *rank = (struct nosa_rank){.options = *options, .device = options->device};
    rank->config = nosa_checkpoint_config(options->checkpoint);
    rank->logit_rows_max = nosa_rank_logit_rows(&options->limits);
    int32_t topk = (int32_t)rank->config->sparse.topk;
    rank->topk = topk < options->limits.blocks_max ? topk : options->limits.blocks_max;
    enum nosa_status status = create(rank, error);
    if (status != NOSA_OK)
        nosa_rank_destroy(rank);
    return status;
}

void nosa_rank_destroy(struct nosa_rank *rank)
{
    if (!rank->device)
        return;
    struct rank_array arrays[RANK_ARRAYS];
    list_arrays(rank, arrays);
    for (int i = 0; i < RANK_ARRAYS; i++)
        rank->device->table->memory_free(rank->device, NOSA_MEMORY_DEVICE, *arrays[i].pointer,
                                         arrays[i].bytes);
    nosa_rank_trace_destroy(rank);
    nosa_model_weights_free(&rank->weights);
    if (rank->arena.device)
        nosa_kv_arena_destroy(&rank->arena);
    if (rank->stream)
        rank->device->table->stream_destroy(rank->stream);
    *rank = (struct nosa_rank){0};
}

void nosa_rank_attach_host(struct nosa_rank *rank, const struct nosa_kv_host_pool *host)
{
    nosa_kv_arena_attach(&rank->arena, host, rank->options.shard.kv_head_first);
}

/* ---- the step ------------------------------------------------------------------------------- */

struct step {
    struct nosa_rank *rank;
    struct nosa_step_plan *plan;
    const struct nosa_op_table *ops;
    struct nosa_stream *stream;
    struct nosa_batch_view batch;
    /* device addresses of the plan's arrays */
    const int32_t *token, *sample_row, *score_row, *score_token;
};

/* The device address of an array of the plan's image. */
static const void *on_device(const struct nosa_rank *rank, const struct nosa_step_plan *plan,
                             const void *in_image)
{
    return rank->inputs + ((const char *)in_image - plan->image);
}

static void step_begin(struct step *step, struct nosa_rank *rank, struct nosa_step_plan *plan)
{
    const struct nosa_device_table *table = rank->device->table;
    size_t bytes = rank->options.shard.rank == 0 ? plan->used_bytes : plan->shared_bytes;
    table->copy(rank->stream, rank->inputs, plan->image, bytes);
    *step = (struct step){.rank = rank,
                          .plan = plan,
                          .ops = table->ops,
                          .stream = rank->stream,
                          .token = on_device(rank, plan, plan->token),
                          .sample_row = on_device(rank, plan, plan->sample_row),
                          .score_row = on_device(rank, plan, plan->score_row),
                          .score_token = on_device(rank, plan, plan->score_token),
                          .batch = {
                              .n_rows = plan->n_rows,
                              .n_seqs = plan->n_seqs,
                              .n_tiles = plan->n_tiles,
                              .row_pos = on_device(rank, plan, plan->row_pos),
                              .row_seq = on_device(rank, plan, plan->row_seq),
                              .tile_row = on_device(rank, plan, plan->tile_row),
                              .tile_rows = on_device(rank, plan, plan->tile_rows),
                              .block_table = on_device(rank, plan, plan->block_table),
                              .table_stride = plan->table_stride,
                          }};
}

/* The sum over ranks of `x` [n], in place; nothing with one rank. */
static enum nosa_status reduce(const struct step *step, float *x, size_t n)
{
    struct nosa_comm *comm = step->rank->options.comm;
    return comm ? comm->table->all_reduce(comm, step->stream, x, n) : NOSA_OK;
}

static enum nosa_status embed(const struct step *step)
{
    struct nosa_rank *rank = step->rank;
    NOSA_TRY(step->ops->embed(step->stream, &(struct nosa_embed_params){
                                                .n_rows = step->batch.n_rows,
                                                .token = step->token,
                                                .weight = &rank->weights.embedding,
                                                .vocab_first = rank->options.shard.vocab_first,
                                                .out = rank->residual,
                                            }));
    NOSA_TRY(
        reduce(step, rank->residual, (size_t)step->batch.n_rows * (size_t)rank->config->hidden));
    return step->ops->rope_table(step->stream, &(struct nosa_rope_table_params){
                                                   .n_rows = step->batch.n_rows,
                                                   .head_dim = (int32_t)rank->config->head_dim,
                                                   .row_pos = step->batch.row_pos,
                                                   .inv_freq = rank->weights.inv_freq,
                                                   .scale = rank->weights.rope_scale,
                                                   .table = rank->rope_table,
                                               });
}

static enum nosa_status norm(const struct step *step, const float *weight)
{
    struct nosa_rank *rank = step->rank;
    return step->ops->rms_norm(step->stream,
                               &(struct nosa_rms_norm_params){
                                   .n_rows = step->batch.n_rows,
                                   .width = (int32_t)rank->config->hidden,
                                   .eps = (float)rank->config->rms_eps,
                                   .x = rank->residual,
                                   .weight = weight,
                                   .out = rank->normed,
                                   .out_stride = row_stride((int32_t)rank->config->hidden),
                               });
}

/* residual += x W^T + bias, summed over the ranks; the product with `next` comes after it. */
static enum nosa_status project_back(const struct step *step, const struct nosa_weight *weight,
                                     const float *bias, const float *x,
                                     const struct nosa_weight *next)
{
    struct nosa_rank *rank = step->rank;
    int32_t hidden = (int32_t)rank->config->hidden;
    bool split = rank->options.comm != NULL;
    struct nosa_matmul_params params = {
        .n_rows = step->batch.n_rows,
        .weight = weight,
        .x = x,
        .x_stride = row_stride(weight->k),
        .bias = bias,
        .epilogue = split ? NOSA_MATMUL_STORE : NOSA_MATMUL_ADD,
        .n_out = hidden,
        .out = split ? rank->partial : rank->residual,
        .out_stride = hidden,
        .next_weight = next,
    };
    NOSA_TRY(step->ops->matmul(step->stream, &params));
    if (!split)
        return NOSA_OK;
    int64_t n = (int64_t)step->batch.n_rows * hidden;
    NOSA_TRY(reduce(step, rank->partial, (size_t)n));
    return step->ops->add(
        step->stream, &(struct nosa_add_params){.n = n, .x = rank->residual, .y = rank->partial});
}

/* q, k, v and the bias c of every row; K, V, c and finished summaries go into the KV arena. */
static enum nosa_status project_qkv(const struct step *step, int32_t index)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_layer_weights *layer = &rank->weights.layers[index];
    NOSA_TRY(step->ops->matmul(step->stream, &(struct nosa_matmul_params){
                                                 .n_rows = step->batch.n_rows,
                                                 .weight = &layer->qkv,
                                                 .x = rank->normed,
                                                 .x_stride = row_stride(layer->qkv.k),
                                                 .bias = layer->qkv_bias,
                                                 .epilogue = NOSA_MATMUL_STORE,
                                                 .n_out = layer->qkv.n,
                                                 .out = rank->qkv,
                                                 .out_stride = row_stride(layer->qkv.n),
                                                 .next_weight = &layer->o,
                                             }));
    NOSA_TRY(step->ops->qkv_write(step->stream, &(struct nosa_qkv_write_params){
                                                    .batch = &step->batch,
                                                    .kv = &rank->arena.view,
                                                    .layer = index,
                                                    .n_heads = rank->options.shard.head_count,
                                                    .qkv = rank->qkv,
                                                    .qkv_stride = row_stride(layer->qkv.n),
                                                    .rope_table = rank->rope_table,
                                                    .eviction_scale = layer->eviction_scale,
                                                }));
    if (rank->options.mode == NOSA_ATTENTION_FULL) /* nothing reads summaries but the biases c */
        return NOSA_OK;
    return step->ops->compress_keys(step->stream, &(struct nosa_compress_keys_params){
                                                      .batch = &step->batch,
                                                      .kv = &rank->arena.view,
                                                      .layer = index,
                                                      .has_bias = layer->eviction_scale != NULL,
                                                  });
}

static enum nosa_status select_blocks(const struct step *step, int32_t index, float scale)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_sparse_config *sparse = &rank->config->sparse;
    const struct nosa_layer_weights *layer = &rank->weights.layers[index];
    int32_t window_blocks = (int32_t)sparse->window_size / NOSA_BLOCK_TOKENS;
    int32_t first_cut =
        (int32_t)sparse->init_blocks + window_blocks + (int32_t)sparse->select_blocks;
    first_cut = first_cut < rank->topk ? first_cut : rank->topk;
    return step->ops->select_blocks(step->stream,
                                    &(struct nosa_select_blocks_params){
                                        .batch = &step->batch,
                                        .kv = &rank->arena.view,
                                        .layer = index,
                                        .mode = rank->options.mode,
                                        .has_bias = layer->eviction_scale != NULL,
                                        .n_heads = rank->options.shard.head_count,
                                        .q = rank->qkv,
                                        .q_stride = row_stride(layer->qkv.n),
                                        .scale = scale,
                                        .init_blocks = (int32_t)sparse->init_blocks,
                                        .window_blocks = window_blocks,
                                        .first_cut = first_cut,
                                        .topk = rank->topk,
                                        .selected = rank->selected,
                                        .selected_count = rank->selected_count,
                                        .block_bias = nosa_rank_trace_bias(rank, step->plan),
                                        .score_stride = rank->trace.blocks_max,
                                    });
}

/* A part of the rows' lists (ops.h); zero: all of it. */
struct part {
    int32_t first;
    int32_t count;
};

static enum nosa_status attend_batch(const struct step *step, int32_t index,
                                     const struct nosa_batch_view *batch, float scale,
                                     struct part part)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_shard *shard = &rank->options.shard;
    const struct nosa_layer_weights *layer = &rank->weights.layers[index];
    bool sparse = rank->options.mode != NOSA_ATTENTION_FULL;
    return step->ops->attention(step->stream,
                                &(struct nosa_attention_params){
                                    .batch = batch,
                                    .kv = &rank->arena.view,
                                    .layer = index,
                                    .has_bias = layer->eviction_scale != NULL,
                                    .n_heads = shard->head_count,
                                    .head_first = shard->attend_first,
                                    .head_count = shard->attend_count,
                                    .q = rank->qkv,
                                    .q_stride = row_stride(layer->qkv.n),
                                    .scale = scale,
                                    .selected = sparse ? rank->selected : NULL,
                                    .selected_count = sparse ? rank->selected_count : NULL,
                                    .topk = rank->topk,
                                    .out = rank->attended,
                                    .out_stride = row_stride(layer->o.k),
                                    .entry_first = part.first,
                                    .entry_count = part.count,
                                    .state = part.count > 0 ? rank->attention_state : NULL,
                                });
}

/* One pass of a cold step: what the tiles [tile, tile + n_tiles) ask for finds slots, and what lies
 * on NVMe alone is read into them. */
static enum nosa_status attend_pass(const struct step *step, int32_t index, float scale,
                                    struct nosa_tier_pass pass, int32_t tile, int32_t n_tiles)
{
    struct nosa_batch_view batch = step->batch;
    batch.tile_row += tile;
    batch.tile_rows += tile;
    batch.n_tiles = n_tiles;
    NOSA_TRY(nosa_rank_tiers_resolve(step->rank, step->plan, &step->batch, index, &pass));
    NOSA_TRY(nosa_rank_tiers_read_absent(step->rank, step->plan, NULL));
    return attend_batch(step, index, &batch, scale,
                        (struct part){pass.entry_first, pass.entry_count});
}

/* Tile by tile: a tile has no more rows than can find slots. */
static enum nosa_status attend_cold_selected(const struct step *step, int32_t index, float scale)
{
    const struct nosa_step_plan *plan = step->plan;
    for (int32_t tile = 0; tile < plan->n_tiles; tile++) {
        struct nosa_tier_pass pass = {
            .number = 1 + tile, .row_first = plan->tile_row[tile], .n_rows = plan->tile_rows[tile]};
        NOSA_TRY(attend_pass(step, index, scale, pass, tile, 1));
    }
    return NOSA_OK;
}

/* Sequence by sequence, its blocks a few runs at a time. */
static enum nosa_status attend_cold_full(const struct step *step, int32_t index, float scale)
{
    const struct nosa_step_plan *plan = step->plan;
    int32_t slots = plan->tiers->moves.slots_per_pass;
    int32_t count = slots - slots % NOSA_ATTENTION_RUN_BLOCKS;
    struct nosa_tier_pass pass = {.entry_count = count};
    for (int32_t tile = 0, end; tile < plan->n_tiles; tile = end) {
        int32_t sequence = plan->row_seq[plan->tile_row[tile]];
        for (end = tile + 1; end < plan->n_tiles && plan->row_seq[plan->tile_row[end]] == sequence;)
            end++;
        int32_t last_row = plan->tile_row[end - 1] + plan->tile_rows[end - 1] - 1;
        int32_t n_blocks = plan->row_pos[last_row] / NOSA_BLOCK_TOKENS + 1;
        pass.row_first = plan->tile_row[tile];
        pass.n_rows = last_row + 1 - pass.row_first;
        for (pass.entry_first = 0; pass.entry_first < n_blocks; pass.entry_first += count) {
            pass.number++;
            NOSA_TRY(attend_pass(step, index, scale, pass, tile, end - tile));
        }
    }
    return NOSA_OK;
}

static enum nosa_status attend(const struct step *step, int32_t index)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_layer_weights *layer = &rank->weights.layers[index];
    float scale = 1.0f / sqrtf((float)rank->config->head_dim);
    if (rank->options.mode != NOSA_ATTENTION_FULL) {
        NOSA_TRY(select_blocks(step, index, scale));
        nosa_rank_trace_copy(rank, step->plan, index);
    }
    if (step->plan->tiers && step->plan->tiers->moves.cold) {
        NOSA_TRY(rank->options.mode == NOSA_ATTENTION_FULL
                     ? attend_cold_full(step, index, scale)
                     : attend_cold_selected(step, index, scale));
    } else {
        struct nosa_tier_pass pass = {.n_rows = step->batch.n_rows};
        if (rank->arena.view.slot_block)
            NOSA_TRY(nosa_rank_tiers_resolve(rank, step->plan, &step->batch, index, &pass));
        NOSA_TRY(attend_batch(step, index, &step->batch, scale, (struct part){0, 0}));
    }
    return project_back(step, &layer->o, layer->o_bias, rank->attended, &layer->gate_up);
}

static enum nosa_status feed_forward(const struct step *step, int32_t index)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_layer_weights *layer = &rank->weights.layers[index];
    NOSA_TRY(norm(step, layer->feed_forward_norm));
    NOSA_TRY(step->ops->matmul(step->stream, &(struct nosa_matmul_params){
                                                 .n_rows = step->batch.n_rows,
                                                 .weight = &layer->gate_up,
                                                 .x = rank->normed,
                                                 .x_stride = row_stride(layer->gate_up.k),
                                                 .epilogue = NOSA_MATMUL_SWIGLU,
                                                 .n_out = layer->down.k,
                                                 .out = rank->activated,
                                                 .out_stride = row_stride(layer->down.k),
                                                 .next_weight = &layer->down,
                                             }));
    bool last = index + 1 == (int32_t)rank->config->n_layers;
    return project_back(step, &layer->down, NULL, rank->activated,
                        last ? &rank->weights.output : &layer[1].qkv);
}

/* Brings the ranks' parts of the logits together as rows of the whole vocabulary. */
static enum nosa_status gather_logits(const struct step *step, int32_t n_rows)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_shard *shard = &rank->options.shard;
    struct nosa_comm *comm = rank->options.comm;
    size_t stride = (size_t)shard->vocab_stride;
    NOSA_TRY(comm->table->all_gather(comm, step->stream, rank->logits_part, (size_t)n_rows * stride,
                                     rank->logits_all));
    if (shard->rank != 0)
        return NOSA_OK;
    size_t vocab = rank->config->vocab;
    for (int32_t part = 0; part < shard->n_ranks; part++) {
        size_t first = (size_t)part * stride;
        size_t columns = first >= vocab ? 0 : vocab - first < stride ? vocab - first : stride;
        if (columns > 0)
            rank->device->table->copy_rows(
                step->stream, rank->logits + first, sizeof(float) * vocab,
                rank->logits_all + (size_t)part * (size_t)n_rows * stride, sizeof(float) * stride,
                sizeof(float) * columns, n_rows);
    }
    return NOSA_OK;
}

/* Final norm and output head of the rows that row_index (device memory) names. */
static enum nosa_status form_logits(const struct step *step, const int32_t *row_index,
                                    int32_t n_rows)
{
    struct nosa_rank *rank = step->rank;
    const struct nosa_shard *shard = &rank->options.shard;
    int32_t hidden = (int32_t)rank->config->hidden;
    bool split = rank->options.comm != NULL;
    NOSA_TRY(step->ops->rms_norm(step->stream,
                                 &(struct nosa_rms_norm_params){
                                     .n_rows = n_rows,
                                     .width = hidden,
                                     .eps = (float)rank->config->rms_eps,
                                     .x = rank->residual,
                                     .row_index = row_index,
                                     .weight = rank->weights.final_norm,
                                     .out = rank->normed,
                                     .out_stride = row_stride((int32_t)rank->config->hidden),
                                 }));
    if (shard->vocab_count > 0)
        NOSA_TRY(step->ops->matmul(
            step->stream,
            &(struct nosa_matmul_params){
                .n_rows = n_rows,
                .weight = &rank->weights.output,
                .x = rank->normed,
                .x_stride = row_stride(hidden),
                .epilogue = NOSA_MATMUL_STORE,
                .n_out = shard->vocab_count,
                .out = split ? rank->logits_part : rank->logits,
                .out_stride = split ? shard->vocab_stride : (int64_t)rank->config->vocab,
                .next_weight = &rank->weights.layers[0].qkv,
            }));
    return split ? gather_logits(step, n_rows) : NOSA_OK;
}

/* Log probabilities of known next tokens, a few rows at a time. */
static enum nosa_status score_rows(const struct step *step)
{
    struct nosa_rank *rank = step->rank;
    for (int32_t first = 0; first < step->plan->n_score; first += SCORE_ROWS) {
        int32_t left = step->plan->n_score - first;
        int32_t n_rows = left < SCORE_ROWS ? left : SCORE_ROWS;
        NOSA_TRY(form_logits(step, step->score_row + first, n_rows));
        if (rank->options.shard.rank != 0)
            continue;
        NOSA_TRY(step->ops->log_prob(step->stream, &(struct nosa_log_prob_params){
                                                       .n_rows = n_rows,
                                                       .vocab = (int32_t)rank->config->vocab,
                                                       .logits = rank->logits,
                                                       .target = step->score_token + first,
                                                       .logprob = rank->score_out,
                                                   }));
        rank->device->table->copy(step->stream, step->plan->score + first, rank->score_out,
                                  sizeof(float) * (size_t)n_rows);
        size_t vocab = rank->config->vocab;
        if (step->plan->score_logits)
            rank->device->table->copy(step->stream,
                                      step->plan->score_logits + (size_t)first * vocab,
                                      rank->logits, sizeof(float) * vocab * (size_t)n_rows);
    }
    return NOSA_OK;
}

/* Copies the logits that the plan wants to it; neighbours in one go. */
static void keep_logits(const struct step *step)
{
    struct nosa_step_plan *plan = step->plan;
    size_t vocab = step->rank->config->vocab;
    for (int32_t first = 0, end; first < plan->n_sample; first = end + 1) {
        for (end = first; end < plan->n_sample && plan->keep[end];)
            end++;
        if (end > first)
            step->rank->device->table->copy(step->stream, plan->logits + (size_t)first * vocab,
                                            step->rank->logits + (size_t)first * vocab,
                                            sizeof(float) * vocab * (size_t)(end - first));
    }
}

static enum nosa_status sample_rows(const struct step *step)
{
    struct nosa_rank *rank = step->rank;
    struct nosa_step_plan *plan = step->plan;
    if (plan->n_sample == 0)
        return NOSA_OK;
    NOSA_TRY(form_logits(step, step->sample_row, plan->n_sample));
    if (rank->options.shard.rank != 0)
        return NOSA_OK;
    NOSA_TRY(step->ops->sample(step->stream,
                               &(struct nosa_sample_params){
                                   .n_rows = plan->n_sample,
                                   .vocab = (int32_t)rank->config->vocab,
                                   .logits = rank->logits,
                                   .sampling = on_device(rank, plan, plan->sampling),
                                   .position = on_device(rank, plan, plan->position),
                                   .n_top = on_device(rank, plan, plan->n_top),
                                   .history_start = on_device(rank, plan, plan->history_start),
                                   .history_tokens = on_device(rank, plan, plan->history_tokens),
                                   .prompt_length = on_device(rank, plan, plan->prompt_length),
                                   .result = rank->result,
                               }));
    rank->device->table->copy(step->stream, plan->result, rank->result,
                              sizeof *plan->result * (size_t)plan->n_sample);
    keep_logits(step);
    return NOSA_OK;
}

static enum nosa_status enqueue_step(const struct step *step)
{
    NOSA_TRY(nosa_rank_tiers_begin(step->rank, step->plan));
    if (step->batch.n_rows == 0)
        return nosa_rank_tiers_end(step->rank, step->plan);
    NOSA_TRY(embed(step));
    for (int32_t i = 0; i < (int32_t)step->rank->config->n_layers; i++) {
        NOSA_TRY(norm(step, step->rank->weights.layers[i].attention_norm));
        NOSA_TRY(project_qkv(step, i));
        NOSA_TRY(attend(step, i));
        NOSA_TRY(feed_forward(step, i));
    }
    NOSA_TRY(score_rows(step));
    NOSA_TRY(sample_rows(step));
    return nosa_rank_tiers_end(step->rank, step->plan);
}

enum nosa_status nosa_rank_enqueue(struct nosa_rank *rank, struct nosa_step_plan *plan,
                                   struct nosa_error *error)
{
    struct step step;
    step_begin(&step, rank, plan);
    enum nosa_status status = enqueue_step(&step);
    if (status != NOSA_OK)
        nosa_error_set(error, status, "rank %d could not run a step of %d tokens",
                       rank->options.shard.rank, plan->n_rows);
    return status;
}

enum nosa_status nosa_rank_wait(struct nosa_rank *rank, struct nosa_error *error)
{
    return rank->device->table->stream_synchronize(rank->stream, error);
}
