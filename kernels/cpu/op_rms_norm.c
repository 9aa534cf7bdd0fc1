/*
 * RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization"):
 *   out = x * (1 / sqrt(sum(x^2) / width + eps)) * weight
 *
 * The sum of squares is one fused multiply-add chain per lane over ascending columns, missing
 * columns being zero, then the tree of nosa_vec_sum. A row is read twice from cache.
 */
#include <math.h>

#include "cpu/cpu_internal.h"
#include "cpu/vec.h"

#define VALUES_PER_ITEM 16384 /* fewer are not worth another thread */

struct region {
    const struct nosa_rms_norm_params *params;
    int32_t rows_per_item;
};

static void norm_row(const struct nosa_rms_norm_params *params, const float *x, float *out)
{
    int32_t width = params->width, whole = width - width % NOSA_VEC_LANES;
    nosa_vec squares = nosa_vec_zero();
    for (int32_t i = 0; i < whole; i += NOSA_VEC_LANES) {
        nosa_vec value = nosa_vec_load(x + i);
        squares = nosa_vec_fma(value, value, squares);
    }
    if (whole < width) {
        nosa_vec value = nosa_vec_load_first(x + whole, width - whole);
        squares = nosa_vec_fma(value, value, squares);
    }
    float factor = 1.0f / sqrtf(nosa_vec_sum(squares) / (float)width + params->eps);

    nosa_vec factors = nosa_vec_set1(factor);
    for (int32_t i = 0; i < whole; i += NOSA_VEC_LANES) {
        nosa_vec scaled = nosa_vec_mul(nosa_vec_load(x + i), factors);
        nosa_vec_store(out + i, nosa_vec_mul(scaled, nosa_vec_load(params->weight + i)));
    }
    for (int32_t i = whole; i < width; i++)
        out[i] = x[i] * factor * params->weight[i];
}

static void norm_item(void *context, int32_t item, int32_t thread)
{
    (void)thread;
    const struct region *region = context;
    const struct nosa_rms_norm_params *params = region->params;
    int32_t first = item * region->rows_per_item;
    int32_t end = first + region->rows_per_item;
    end = end < params->n_rows ? end : params->n_rows;
    for (int32_t row = first; row < end; row++) {
        int64_t source = params->row_index == NULL ? row : params->row_index[row];
        norm_row(params, params->x + source * params->width,
                 params->out + row * params->out_stride);
    }
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_rms_norm)(struct nosa_stream *stream,
                                                  const struct nosa_rms_norm_params *params)
{
    if (params->width < 1 || params->out_stride < params->width)
        return NOSA_INVALID_ARGUMENT;
    int32_t rows = (VALUES_PER_ITEM + params->width - 1) / params->width;
    struct region region = {.params = params, .rows_per_item = rows};
    nosa_cpu_pool_run(stream->device->pool, (params->n_rows + rows - 1) / rows, norm_item, &region);
    return NOSA_OK;
}
