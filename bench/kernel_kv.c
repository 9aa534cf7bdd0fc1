/* Ops over the KV arena: writing, compressing, selecting, attending. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/step_plan.h"
#include "kernel_bench_internal.h"
#include "kv_store.h"

#define LAYERS_MAX 6

/* Arrays of the largest case, and the plan of the running one. */
struct kv_bench {
    struct kernel_bench *bench;
    struct nosa_kv_arena arena;
    struct nosa_step_plan plan;
    struct nosa_batch_view batch;
    int32_t *blocks;  /* owned [arena blocks] */
    uint32_t *tokens; /* owned [KERNEL_CONTEXT_MAX] */
    float *qkv;       /* [KERNEL_ROWS_MAX][qkv_stride] */
    float *rope;      /* [KERNEL_ROWS_MAX][head_dim] */
    float *scale;     /* [n_kv_heads] A of the eviction head */
    float *out;       /* [KERNEL_ROWS_MAX][heads * head_dim] */
    int32_t qkv_stride;
    int32_t *selected;       /* owned [KERNEL_ROWS_MAX][n_kv_heads][topk] */
    int32_t *selected_count; /* owned [KERNEL_ROWS_MAX][n_kv_heads] */
    int32_t n_layers;
    bool sparse;
};

static size_t heads_width(const struct kernel_shape *shape)
{
    return (size_t)shape->n_heads * (size_t)shape->head_dim;
}

static enum nosa_status open_arena(struct kv_bench *kv, struct nosa_error *error)
{
    const struct kernel_shape *shape = kv->bench->shape;
    struct nosa_kv_geometry geometry = {
        .n_layers = 1,
        .n_kv_heads = shape->n_kv_heads,
        .head_dim = shape->head_dim,
        .kernel_size = (int32_t)shape->sparse.kernel_size,
        .kernel_stride = (int32_t)shape->sparse.kernel_stride,
        .type = NOSA_DTYPE_BF16,
    };
    int32_t n_blocks = KERNEL_CONTEXT_MAX / NOSA_BLOCK_TOKENS;
    size_t layer_bytes = nosa_kv_block_bytes(&geometry) * (size_t)n_blocks;
    size_t wanted = (KERNEL_COLD_BYTES + layer_bytes - 1) / layer_bytes;
    kv->n_layers = wanted < LAYERS_MAX ? (int32_t)wanted : LAYERS_MAX;
    geometry.n_layers = kv->n_layers;
    NOSA_TRY(nosa_kv_arena_create(
        kv->bench->device,
        &(struct nosa_kv_arena_options){.geometry = geometry, .n_blocks = n_blocks}, &kv->arena,
        error));
    bench_fill_kv(&kv->arena.view);
    return NOSA_OK;
}

static enum nosa_status open_kv(struct kv_bench *kv, struct nosa_error *error)
{
    struct kernel_bench *bench = kv->bench;
    const struct kernel_shape *shape = bench->shape;
    size_t rows = KERNEL_ROWS_MAX, kv_heads = (size_t)shape->n_kv_heads;
    struct nosa_plan_limits limits = {.rows_max = KERNEL_ROWS_MAX,
                                      .seqs_max = 1,
                                      .blocks_max = KERNEL_CONTEXT_MAX / NOSA_BLOCK_TOKENS};
    NOSA_TRY(open_arena(kv, error));
    kv->qkv_stride = (shape->n_heads + 2 * shape->n_kv_heads) * shape->head_dim +
                     2 * shape->n_kv_heads; /* with the eviction head's columns */
    NOSA_TRY(kernel_floats(bench, rows * (size_t)kv->qkv_stride, &kv->qkv, error));
    NOSA_TRY(kernel_floats(bench, rows * (size_t)shape->head_dim, &kv->rope, error));
    NOSA_TRY(kernel_floats(bench, kv_heads, &kv->scale, error));
    NOSA_TRY(kernel_floats(bench, rows * heads_width(shape), &kv->out, error));
    kv->blocks = calloc((size_t)limits.blocks_max, sizeof *kv->blocks);
    kv->tokens = calloc(KERNEL_CONTEXT_MAX, sizeof *kv->tokens);
    kv->selected = calloc(rows * kv_heads * shape->sparse.topk, sizeof *kv->selected);
    kv->selected_count = calloc(rows * kv_heads, sizeof *kv->selected_count);
    if (!kv->blocks || !kv->tokens || !kv->selected || !kv->selected_count)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a step");
    NOSA_TRY(nosa_step_plan_create(&limits, bench->device, &kv->plan, error));
    bench_scatter_blocks(kv->blocks, limits.blocks_max);
    for (size_t i = 0; i < rows * (size_t)shape->head_dim; i += 2) { /* rotations keep lengths */
        kv->rope[i] = cosf((float)i);
        kv->rope[i + 1] = sinf((float)i);
    }
    return NOSA_OK;
}

static void close_kv(struct kv_bench *kv)
{
    const struct kernel_shape *shape = kv->bench->shape;
    size_t rows = KERNEL_ROWS_MAX;
    nosa_step_plan_destroy(&kv->plan);
    free(kv->selected_count);
    free(kv->selected);
    free(kv->tokens);
    free(kv->blocks);
    kernel_floats_free(kv->bench, kv->out, rows * heads_width(shape));
    kernel_floats_free(kv->bench, kv->scale, (size_t)shape->n_kv_heads);
    kernel_floats_free(kv->bench, kv->rope, rows * (size_t)shape->head_dim);
    kernel_floats_free(kv->bench, kv->qkv, rows * (size_t)kv->qkv_stride);
    nosa_kv_arena_destroy(&kv->arena);
}

/* Plans `rows` rows from position `first` of one sequence. The CPU backend reads host memory. */
static void plan_rows(struct kv_bench *kv, int32_t first, int32_t rows)
{
    struct nosa_step_plan *plan = &kv->plan;
    int32_t n_blocks = (first + rows - 1) / NOSA_BLOCK_TOKENS + 1;
    nosa_step_plan_begin(plan, rows, 1, n_blocks);
    nosa_step_plan_add(plan, kv->tokens, first, rows, kv->blocks, n_blocks);
    kv->batch = (struct nosa_batch_view){.n_rows = rows,
                                         .n_seqs = 1,
                                         .n_tiles = plan->n_tiles,
                                         .row_pos = plan->row_pos,
                                         .row_seq = plan->row_seq,
                                         .tile_row = plan->tile_row,
                                         .tile_rows = plan->tile_rows,
                                         .block_table = plan->block_table,
                                         .table_stride = plan->table_stride};
}

/* ---- the calls ------------------------------------------------------------------------------ */

/* Repetitions of short contexts take other blocks and layers, so that KV comes from memory. */
static struct nosa_batch_view batch_of(const struct kv_bench *kv, int32_t repetition)
{
    struct nosa_batch_view batch = kv->batch;
    int32_t used = batch.table_stride, all = kv->arena.view.n_blocks;
    int32_t places = all / used;
    batch.block_table = kv->blocks + repetition % places * used;
    return batch;
}

static int32_t layer_of(const struct kv_bench *kv, int32_t repetition)
{
    return repetition % kv->n_layers;
}

static enum nosa_status call_qkv_write(void *context, int32_t repetition)
{
    struct kv_bench *kv = context;
    struct nosa_batch_view batch = batch_of(kv, repetition);
    return kv->bench->device->table->ops->qkv_write(
        kv->bench->stream, &(struct nosa_qkv_write_params){.batch = &batch,
                                                           .kv = &kv->arena.view,
                                                           .layer = layer_of(kv, repetition),
                                                           .n_heads = kv->bench->shape->n_heads,
                                                           .qkv = kv->qkv,
                                                           .qkv_stride = kv->qkv_stride,
                                                           .rope_table = kv->rope,
                                                           .eviction_scale = kv->scale});
}

static enum nosa_status call_compress_keys(void *context, int32_t repetition)
{
    struct kv_bench *kv = context;
    struct nosa_batch_view batch = batch_of(kv, repetition);
    return kv->bench->device->table->ops->compress_keys(
        kv->bench->stream, &(struct nosa_compress_keys_params){.batch = &batch,
                                                               .kv = &kv->arena.view,
                                                               .layer = layer_of(kv, repetition),
                                                               .has_bias = true});
}

static enum nosa_status call_select_blocks(void *context, int32_t repetition)
{
    struct kv_bench *kv = context;
    const struct kernel_shape *shape = kv->bench->shape;
    const struct nosa_sparse_config *sparse = &shape->sparse;
    struct nosa_batch_view batch = batch_of(kv, repetition);
    int32_t window_blocks = (int32_t)sparse->window_size / NOSA_BLOCK_TOKENS;
    return kv->bench->device->table->ops->select_blocks(
        kv->bench->stream, &(struct nosa_select_blocks_params){
                               .batch = &batch,
                               .kv = &kv->arena.view,
                               .layer = layer_of(kv, repetition),
                               .mode = NOSA_ATTENTION_NOSA,
                               .has_bias = true,
                               .n_heads = shape->n_heads,
                               .q = kv->qkv,
                               .q_stride = kv->qkv_stride,
                               .scale = 1.0f / sqrtf((float)shape->head_dim),
                               .init_blocks = (int32_t)sparse->init_blocks,
                               .window_blocks = window_blocks,
                               .first_cut = (int32_t)sparse->init_blocks + window_blocks +
                                            (int32_t)sparse->select_blocks,
                               .topk = (int32_t)sparse->topk,
                               .selected = kv->selected,
                               .selected_count = kv->selected_count});
}

static enum nosa_status call_attention(void *context, int32_t repetition)
{
    struct kv_bench *kv = context;
    const struct kernel_shape *shape = kv->bench->shape;
    struct nosa_batch_view batch = batch_of(kv, repetition);
    return kv->bench->device->table->ops->attention(
        kv->bench->stream,
        &(struct nosa_attention_params){.batch = &batch,
                                        .kv = &kv->arena.view,
                                        .layer = layer_of(kv, repetition),
                                        .has_bias = kv->sparse,
                                        .n_heads = shape->n_heads,
                                        .head_first = 0,
                                        .head_count = shape->n_heads / shape->n_kv_heads,
                                        .q = kv->qkv,
                                        .q_stride = kv->qkv_stride,
                                        .scale = 1.0f / sqrtf((float)shape->head_dim),
                                        .selected = kv->sparse ? kv->selected : NULL,
                                        .selected_count = kv->sparse ? kv->selected_count : NULL,
                                        .topk = (int32_t)shape->sparse.topk,
                                        .out = kv->out,
                                        .out_stride = (int64_t)heads_width(shape)});
}

/* ---- cases ---------------------------------------------------------------------------------- */

/* Keys that the rows of the plan attend to, summed over rows and KV heads. */
static double attended_keys(const struct kv_bench *kv)
{
    double keys = 0;
    int32_t kv_heads = kv->bench->shape->n_kv_heads;
    for (int32_t row = 0; row < kv->batch.n_rows; row++) {
        int32_t position = kv->batch.row_pos[row];
        int32_t missing = NOSA_BLOCK_TOKENS - 1 - position % NOSA_BLOCK_TOKENS; /* of its block */
        for (int32_t head = 0; head < kv_heads; head++)
            keys += kv->sparse
                        ? kv->selected_count[row * kv_heads + head] * NOSA_BLOCK_TOKENS - missing
                        : position + 1;
    }
    return keys;
}

static enum nosa_status time_attention(struct kv_bench *kv, bool sparse, int32_t first,
                                       int32_t rows, struct nosa_error *error)
{
    const struct kernel_shape *shape = kv->bench->shape;
    struct kernel_result result = {.op = "attention"};
    plan_rows(kv, first, rows);
    kv->sparse = sparse;
    if (sparse && call_select_blocks(kv, 0) != NOSA_OK)
        return nosa_error_set(error, NOSA_INTERNAL, "select_blocks refused a case");
    NOSA_TRY(kernel_time(kv->bench, call_attention, kv, &result.seconds, error));
    double keys = attended_keys(kv);
    double per_key = 2.0 * shape->head_dim * 2 + (sparse ? sizeof(float) : 0);
    double read = rows == 1 ? keys : (double)(first + rows) * shape->n_kv_heads; /* by the union */
    result.operations = 4.0 * keys * shape->head_dim * (shape->n_heads / shape->n_kv_heads);
    result.bytes = read * per_key + 2.0 * sizeof(float) * rows * (double)heads_width(shape);
    snprintf(result.detail, sizeof result.detail, "%s, %d row%s at %d", sparse ? "nosa" : "full",
             rows, rows == 1 ? "" : "s", first);
    kernel_report(kv->bench, &result);
    return NOSA_OK;
}

static enum nosa_status time_select(struct kv_bench *kv, int32_t context, int32_t rows,
                                    struct nosa_error *error)
{
    const struct kernel_shape *shape = kv->bench->shape;
    const struct nosa_kv_geometry *geometry = &kv->arena.view.geometry;
    struct kernel_result result = {.op = "select_blocks"};
    int32_t first = context - rows;
    plan_rows(kv, first, rows);
    NOSA_TRY(kernel_time(kv->bench, call_select_blocks, kv, &result.seconds, error));
    double windows = (double)context / geometry->kernel_stride;
    double per_block = (double)nosa_kv_compressed_key_bytes(geometry) +
                       sizeof(float) * nosa_kv_windows_per_block(geometry);
    result.operations = 2.0 * rows * windows * (double)heads_width(shape);
    result.bytes = (double)context / NOSA_BLOCK_TOKENS * shape->n_kv_heads * per_block;
    snprintf(result.detail, sizeof result.detail, "%d row%s at %d", rows, rows == 1 ? "" : "s",
             first);
    kernel_report(kv->bench, &result);
    return NOSA_OK;
}

static enum nosa_status time_write(struct kv_bench *kv, int32_t rows, struct nosa_error *error)
{
    const struct kernel_shape *shape = kv->bench->shape;
    int32_t first = 8192 - rows;
    double stored = 2.0 * shape->n_kv_heads * shape->head_dim * 2;
    struct kernel_result write = {.op = "qkv_write", .cached = true};
    struct kernel_result compress = {.op = "compress_keys", .cached = true};
    plan_rows(kv, first, rows);
    NOSA_TRY(kernel_time(kv->bench, call_qkv_write, kv, &write.seconds, error));
    NOSA_TRY(kernel_time(kv->bench, call_compress_keys, kv, &compress.seconds, error));
    write.bytes =
        rows * (sizeof(float) * ((double)kv->qkv_stride + (double)heads_width(shape)) + stored);
    compress.bytes = rows * stored / 2; /* every key once; what is written is less */
    snprintf(write.detail, sizeof write.detail, "%d row%s", rows, rows == 1 ? "" : "s");
    snprintf(compress.detail, sizeof compress.detail, "%s", write.detail);
    kernel_report(kv->bench, &write);
    kernel_report(kv->bench, &compress);
    return NOSA_OK;
}

static enum nosa_status time_cases(struct kv_bench *kv, struct nosa_error *error)
{
    static const int32_t contexts[] = {8192, KERNEL_CONTEXT_MAX};
    NOSA_TRY(time_write(kv, 1, error));
    NOSA_TRY(time_write(kv, KERNEL_ROWS_MAX, error));
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        NOSA_TRY(time_select(kv, contexts[i], 1, error));
        NOSA_TRY(time_select(kv, contexts[i], KERNEL_ROWS_MAX, error));
    }
    NOSA_TRY(time_attention(kv, false, 4095, 1, error));
    NOSA_TRY(time_attention(kv, false, 65535, 1, error));
    NOSA_TRY(time_attention(kv, true, 65535, 1, error));
    NOSA_TRY(time_attention(kv, false, 0, KERNEL_ROWS_MAX, error));
    NOSA_TRY(time_attention(kv, false, 3584, KERNEL_ROWS_MAX, error));
    return time_attention(kv, true, 65024, KERNEL_ROWS_MAX, error);
}

enum nosa_status kernel_bench_kv(struct kernel_bench *bench, struct nosa_error *error)
{
    struct kv_bench kv = {.bench = bench};
    enum nosa_status status = open_kv(&kv, error);
    if (status == NOSA_OK)
        status = time_cases(&kv, error);
    close_kv(&kv);
    return status;
}
