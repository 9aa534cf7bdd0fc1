#include "engine/trace.h"

#include <stdlib.h>
#include <string.h>

#include "engine/rank_group.h"

/* ---- a rank's part -------------------------------------------------------------------------- */

static enum nosa_status take_memory(struct nosa_rank *rank, enum nosa_memory_kind kind,
                                    size_t bytes, void *pointer, struct nosa_error *error)
{
    void *memory;
    NOSA_TRY(rank->device->table->memory_alloc(rank->device, kind, bytes, &memory, error));
    memcpy(pointer, &memory, sizeof memory);
    rank->bytes += bytes;
    return NOSA_OK;
}

enum nosa_status nosa_rank_trace_create(struct nosa_rank *rank, struct nosa_error *error)
{
    const struct nosa_rank_options *options = &rank->options;
    struct nosa_rank_trace *trace = &rank->trace;
    if (options->trace_rows_max == 0 || options->mode == NOSA_ATTENTION_FULL)
        return NOSA_OK;
    size_t heads = (size_t)options->shard.kv_head_count;
    size_t cells = (size_t)rank->config->n_layers * (size_t)options->trace_rows_max * heads;
    trace->rows_max = options->trace_rows_max;
    trace->blocks_max = options->limits.blocks_max;
    trace->block_bias_bytes =
        sizeof(float) * (size_t)options->limits.rows_max * heads * (size_t)trace->blocks_max;
    trace->selected_bytes = sizeof(int32_t) * cells * (size_t)rank->topk;
    trace->count_bytes = sizeof(int32_t) * cells;
    trace->e_bytes = sizeof(float) * cells * (size_t)trace->blocks_max;
    NOSA_TRY(
        take_memory(rank, NOSA_MEMORY_DEVICE, trace->block_bias_bytes, &trace->block_bias, error));
    NOSA_TRY(
        take_memory(rank, NOSA_MEMORY_HOST_PINNED, trace->selected_bytes, &trace->selected, error));
    NOSA_TRY(take_memory(rank, NOSA_MEMORY_HOST_PINNED, trace->count_bytes, &trace->selected_count,
                         error));
    return take_memory(rank, NOSA_MEMORY_HOST_PINNED, trace->e_bytes, &trace->e, error);
}

void nosa_rank_trace_destroy(struct nosa_rank *rank)
{
    struct nosa_rank_trace *trace = &rank->trace;
    const struct nosa_device_table *table = rank->device->table;
    table->memory_free(rank->device, NOSA_MEMORY_DEVICE, trace->block_bias,
                       trace->block_bias_bytes);
    table->memory_free(rank->device, NOSA_MEMORY_HOST_PINNED, trace->selected,
                       trace->selected_bytes);
    table->memory_free(rank->device, NOSA_MEMORY_HOST_PINNED, trace->selected_count,
                       trace->count_bytes);
    table->memory_free(rank->device, NOSA_MEMORY_HOST_PINNED, trace->e, trace->e_bytes);
    *trace = (struct nosa_rank_trace){0};
}

static bool traces(const struct nosa_rank *rank, const struct nosa_step_plan *plan)
{
    return rank->trace.rows_max > 0 && plan->trace && plan->trace->n_rows > 0;
}

float *nosa_rank_trace_bias(const struct nosa_rank *rank, const struct nosa_step_plan *plan)
{
    return traces(rank, plan) ? rank->trace.block_bias : NULL;
}

/* Rows that follow one another in the batch go in one copy. */
void nosa_rank_trace_copy(struct nosa_rank *rank, const struct nosa_step_plan *plan, int32_t layer)
{
    const struct nosa_device_table *table = rank->device->table;
    const struct nosa_rank_trace *trace = &rank->trace;
    if (!traces(rank, plan))
        return;
    const struct nosa_step_trace *step = plan->trace;
    size_t heads = (size_t)rank->options.shard.kv_head_count;
    size_t topk = (size_t)rank->topk, stride = sizeof(float) * (size_t)trace->blocks_max;
    for (int32_t first = 0, end; first < step->n_rows; first = end) {
        for (end = first + 1; end < step->n_rows && step->row[end] == step->row[end - 1] + 1;)
            end++;
        size_t from = (size_t)step->row[first] * heads;
        size_t to = ((size_t)layer * (size_t)trace->rows_max + (size_t)first) * heads;
        size_t cells = (size_t)(end - first) * heads;
        table->copy(rank->stream, trace->selected + to * topk, rank->selected + from * topk,
                    sizeof(int32_t) * cells * topk);
        table->copy(rank->stream, trace->selected_count + to, rank->selected_count + from,
                    sizeof(int32_t) * cells);
        table->copy_rows(rank->stream, trace->e + to * (size_t)trace->blocks_max, stride,
                         trace->block_bias + from * (size_t)trace->blocks_max, stride,
                         sizeof(float) * (size_t)step->n_blocks, (int32_t)cells);
    }
}

/* ---- the engine's part ---------------------------------------------------------------------- */

enum nosa_status nosa_step_trace_create(struct nosa_step_trace *trace,
                                        const struct nosa_rank_group *group, int32_t rows_max,
                                        struct nosa_error *error)
{
    const struct nosa_rank *rank = nosa_rank_group_rank(group, 0);
    *trace = (struct nosa_step_trace){0};
    if (rank->trace.rows_max == 0)
        return NOSA_OK;
    size_t cells = (size_t)rank->config->n_layers * (size_t)rank->config->n_kv_heads;
    size_t rows = (size_t)rows_max;
    trace->row = calloc(rows, sizeof *trace->row);
    trace->position = calloc(rows, sizeof *trace->position);
    trace->sink = calloc(rows, sizeof *trace->sink);
    trace->selected = calloc(cells * (size_t)rank->topk, sizeof *trace->selected);
    trace->selected_count = calloc(cells, sizeof *trace->selected_count);
    trace->e = calloc(cells * (size_t)rank->trace.blocks_max, sizeof *trace->e);
    if (!trace->row || !trace->position || !trace->sink || !trace->selected ||
        !trace->selected_count || !trace->e) {
        nosa_step_trace_destroy(trace);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a trace of %d rows",
                              rows_max);
    }
    trace->rows_max = rows_max;
    return NOSA_OK;
}

void nosa_step_trace_destroy(struct nosa_step_trace *trace)
{
    free(trace->row);
    free(trace->position);
    free(trace->sink);
    free(trace->selected);
    free(trace->selected_count);
    free(trace->e);
    *trace = (struct nosa_step_trace){0};
}

int32_t nosa_step_trace_count(const struct nosa_trace_sink *sink, int32_t first, int32_t count)
{
    int32_t wanted = 0;
    for (int32_t i = 0; sink && i < count; i++)
        wanted += nosa_trace_wants(sink, first + i);
    return wanted;
}

void nosa_step_trace_add(struct nosa_step_trace *trace, const struct nosa_trace_sink *sink,
                         int32_t row_first, int32_t first, int32_t count)
{
    for (int32_t i = 0; sink && i < count; i++) {
        if (!nosa_trace_wants(sink, first + i))
            continue;
        NOSA_ASSERT(trace->n_rows < trace->rows_max);
        trace->row[trace->n_rows] = row_first + i;
        trace->position[trace->n_rows] = first + i;
        trace->sink[trace->n_rows++] = sink;
        int32_t n_blocks = (first + i) / NOSA_BLOCK_TOKENS + 1;
        trace->n_blocks = n_blocks > trace->n_blocks ? n_blocks : trace->n_blocks;
    }
}

/* Brings one rank's KV heads of traced row `index` to their places among the model's. */
static void gather(struct nosa_step_trace *trace, const struct nosa_rank *rank, int32_t index)
{
    const struct nosa_shard *shard = &rank->options.shard;
    size_t heads = (size_t)shard->kv_head_count, topk = (size_t)rank->topk;
    size_t stride = (size_t)rank->trace.blocks_max;
    for (size_t layer = 0; layer < rank->config->n_layers; layer++) {
        size_t from = (layer * (size_t)rank->trace.rows_max + (size_t)index) * heads;
        size_t to = layer * rank->config->n_kv_heads + (size_t)shard->kv_head_first;
        memcpy(trace->selected + to * topk, rank->trace.selected + from * topk,
               sizeof(int32_t) * heads * topk);
        memcpy(trace->selected_count + to, rank->trace.selected_count + from,
               sizeof(int32_t) * heads);
        memcpy(trace->e + to * stride, rank->trace.e + from * stride,
               sizeof(float) * heads * stride);
    }
}

void nosa_step_trace_deliver(struct nosa_step_trace *trace, const struct nosa_rank_group *group)
{
    const struct nosa_rank *first = nosa_rank_group_rank(group, 0);
    for (int32_t i = 0; i < trace->n_rows; i++) {
        for (int32_t rank = 0; rank < nosa_rank_group_count(group); rank++)
            gather(trace, nosa_rank_group_rank(group, rank), i);
        const struct nosa_trace_row row = {
            .position = trace->position[i],
            .n_blocks = trace->position[i] / NOSA_BLOCK_TOKENS + 1,
            .n_layers = (int32_t)first->config->n_layers,
            .n_kv_heads = (int32_t)first->config->n_kv_heads,
            .topk = first->topk,
            .selected = trace->selected,
            .selected_count = trace->selected_count,
            .e = trace->e,
            .e_stride = first->trace.blocks_max,
        };
        trace->sink[i]->row(trace->sink[i]->context, &row);
    }
    trace->n_rows = 0;
    trace->n_blocks = 0;
}
