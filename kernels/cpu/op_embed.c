/*
 * Embedding: rows of a packed weight, widened to float32.
 *
 * A row is one column of a panel, 32 elements apart, so a row touches as many cache lines as it has
 * inputs (or pairs of them): a few microseconds, once per token and step.
 */
#include <string.h>

#include "cpu/cpu_internal.h"

#define ROWS_PER_ITEM 16 /* below this the caller works alone */

static void embed_f32(const struct nosa_weight *weight, int32_t column, float *out)
{
    const float *panel = (const float *)weight->data +
                         (int64_t)(column / NOSA_PANEL_COLUMNS) * weight->k * NOSA_PANEL_COLUMNS;
    for (int32_t k = 0; k < weight->k; k++)
        out[k] = panel[(int64_t)k * NOSA_PANEL_COLUMNS + column % NOSA_PANEL_COLUMNS];
}

static void embed_f16(const struct nosa_weight *weight, int32_t column, float *out)
{
    const uint16_t *panel = (const uint16_t *)weight->data +
                            (int64_t)(column / NOSA_PANEL_COLUMNS) * weight->k * NOSA_PANEL_COLUMNS;
    for (int32_t k = 0; k < weight->k; k++)
        out[k] =
            nosa_f16_to_f32(panel[(int64_t)k * NOSA_PANEL_COLUMNS + column % NOSA_PANEL_COLUMNS]);
}

static void embed_bf16(const struct nosa_weight *weight, int32_t column, float *out)
{
    int64_t pairs = (weight->k + 1) / 2;
    const uint16_t *lane =
        (const uint16_t *)weight->data +
        ((column / NOSA_PANEL_COLUMNS) * pairs * NOSA_PANEL_COLUMNS + column % NOSA_PANEL_COLUMNS) *
            2;
    for (int32_t k = 0; k < weight->k; k++)
        out[k] = nosa_bf16_to_f32(lane[(int64_t)(k / 2) * NOSA_PANEL_COLUMNS * 2 + k % 2]);
}

static void embed_item(void *context, int32_t item, int32_t thread)
{
    (void)thread;
    const struct nosa_embed_params *params = context;
    const struct nosa_weight *weight = params->weight;
    int32_t end = (item + 1) * ROWS_PER_ITEM;
    end = end < params->n_rows ? end : params->n_rows;
    for (int32_t row = item * ROWS_PER_ITEM; row < end; row++) {
        float *out = params->out + (int64_t)row * weight->k;
        int64_t column = (int64_t)params->token[row] - params->vocab_first;
        if (column < 0 || column >= weight->n)
            memset(out, 0, sizeof(float) * (size_t)weight->k);
        else if (weight->format == NOSA_WEIGHT_F32)
            embed_f32(weight, (int32_t)column, out);
        else if (weight->format == NOSA_WEIGHT_BF16)
            embed_bf16(weight, (int32_t)column, out);
        else
            embed_f16(weight, (int32_t)column, out);
    }
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_embed)(struct nosa_stream *stream,
                                               const struct nosa_embed_params *params)
{
    struct nosa_embed_params copy = *params;
    switch (params->weight->format) {
    case NOSA_WEIGHT_F32:
    case NOSA_WEIGHT_BF16:
    case NOSA_WEIGHT_F16: break;
    default: return NOSA_UNSUPPORTED;
    }
    nosa_cpu_pool_run(stream->device->pool, (params->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM,
                      embed_item, &copy);
    return NOSA_OK;
}
