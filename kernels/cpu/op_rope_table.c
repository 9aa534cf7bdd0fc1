/* The rotation table of a step's rows, formed once for all layers: cosine and sine in double, as
 * positions of a long context leave float32 too few bits of angle. */
#include <math.h>

#include "cpu/cpu_internal.h"

#define ROWS_PER_ITEM 16

static void rope_item(void *context, int32_t item, int32_t thread)
{
    (void)thread;
    const struct nosa_rope_table_params *params = context;
    int32_t half = params->head_dim / 2;
    int32_t end = (item + 1) * ROWS_PER_ITEM;
    end = end < params->n_rows ? end : params->n_rows;
    for (int32_t row = item * ROWS_PER_ITEM; row < end; row++) {
        double pos = params->row_pos[row];
        float *out = params->table + (int64_t)row * half * 2;
        for (int32_t i = 0; i < half; i++) {
            double sine, cosine;
            sincos(pos * params->inv_freq[i], &sine, &cosine);
            out[2 * i] = (float)(cosine * params->scale);
            out[2 * i + 1] = (float)(sine * params->scale);
        }
    }
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_rope_table)(struct nosa_stream *stream,
                                                    const struct nosa_rope_table_params *params)
{
    struct nosa_rope_table_params copy = *params;
    nosa_cpu_pool_run(stream->device->pool, (params->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM,
                      rope_item, &copy);
    return NOSA_OK;
}
