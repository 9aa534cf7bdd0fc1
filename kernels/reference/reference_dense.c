/* References of the ops that know nothing of the KV cache. */
#include <math.h>

#include "reference_internal.h"

float nosa_reference_weight_at(const struct nosa_weight *weight, int32_t column, int32_t k)
{
    int64_t panel = column / NOSA_PANEL_COLUMNS;
    int64_t lane = column % NOSA_PANEL_COLUMNS;
    if (weight->format == NOSA_WEIGHT_BF16) {
        int64_t pairs = (weight->k + 1) / 2;
        int64_t index = ((panel * pairs + k / 2) * NOSA_PANEL_COLUMNS + lane) * 2 + k % 2;
        return nosa_dtype_load(NOSA_DTYPE_BF16, weight->data, index);
    }
    int64_t index = (panel * weight->k + k) * NOSA_PANEL_COLUMNS + lane;
    return nosa_dtype_load(weight->format == NOSA_WEIGHT_F32 ? NOSA_DTYPE_F32 : NOSA_DTYPE_F16,
                           weight->data, index);
}

enum nosa_status nosa_reference_embed(struct nosa_stream *stream,
                                      const struct nosa_embed_params *params)
{
    (void)stream;
    int32_t width = params->weight->k;
    for (int32_t row = 0; row < params->n_rows; row++) {
        int32_t column = params->token[row] - params->vocab_first;
        bool held = column >= 0 && column < params->weight->n;
        for (int32_t i = 0; i < width; i++)
            params->out[(int64_t)row * width + i] =
                held ? nosa_reference_weight_at(params->weight, column, i) : 0.0f;
    }
    return NOSA_OK;
}

enum nosa_status nosa_reference_rms_norm(struct nosa_stream *stream,
                                         const struct nosa_rms_norm_params *params)
{
    (void)stream;
    for (int32_t row = 0; row < params->n_rows; row++) {
        int64_t source = params->row_index == NULL ? row : params->row_index[row];
        const float *x = params->x + source * params->width;
        float *out = params->out + row * params->out_stride;
        double sum = 0;
        for (int32_t i = 0; i < params->width; i++)
            sum += (double)x[i] * x[i];
        double norm = sqrt(sum / params->width + params->eps);
        for (int32_t i = 0; i < params->width; i++)
            out[i] = (float)(x[i] / norm * params->weight[i]);
    }
    return NOSA_OK;
}

static double product(const struct nosa_matmul_params *params, int32_t row, int32_t column)
{
    const float *x = params->x + row * params->x_stride;
    double sum = 0;
    for (int32_t k = 0; k < params->weight->k; k++)
        sum += (double)x[k] * nosa_reference_weight_at(params->weight, column, k);
    return params->bias == NULL ? sum : sum + params->bias[column];
}

enum nosa_status nosa_reference_matmul(struct nosa_stream *stream,
                                       const struct nosa_matmul_params *params)
{
    (void)stream;
    for (int32_t row = 0; row < params->n_rows; row++) {
        float *out = params->out + row * params->out_stride;
        for (int32_t column = 0; column < params->n_out; column++) {
            if (params->epilogue == NOSA_MATMUL_SWIGLU) {
                int32_t gate_column = column / 16 * 32 + column % 16;
                double gate = product(params, row, gate_column);
                double up = product(params, row, gate_column + 16);
                out[column] = (float)(gate / (1.0 + exp(-gate)) * up);
            } else if (params->epilogue == NOSA_MATMUL_ADD) {
                out[column] = (float)(out[column] + product(params, row, column));
            } else {
                out[column] = (float)product(params, row, column);
            }
        }
    }
    return NOSA_OK;
}

enum nosa_status nosa_reference_rope_table(struct nosa_stream *stream,
                                           const struct nosa_rope_table_params *params)
{
    (void)stream;
    int32_t half = params->head_dim / 2;
    for (int32_t row = 0; row < params->n_rows; row++) {
        for (int32_t i = 0; i < half; i++) {
            double angle = params->row_pos[row] * params->inv_freq[i];
            float *pair = params->table + ((int64_t)row * half + i) * 2;
            pair[0] = (float)(cos(angle) * params->scale);
            pair[1] = (float)(sin(angle) * params->scale);
        }
    }
    return NOSA_OK;
}

enum nosa_status nosa_reference_add(struct nosa_stream *stream,
                                    const struct nosa_add_params *params)
{
    (void)stream;
    for (int64_t i = 0; i < params->n; i++)
        params->x[i] += params->y[i];
    return NOSA_OK;
}

enum nosa_status nosa_reference_log_prob(struct nosa_stream *stream,
                                         const struct nosa_log_prob_params *params)
{
    (void)stream;
    for (int32_t row = 0; row < params->n_rows; row++) {
        const float *logits = params->logits + (int64_t)row * params->vocab;
        double top = -INFINITY, sum = 0;
        for (int32_t i = 0; i < params->vocab; i++)
            top = fmax(top, logits[i]);
        for (int32_t i = 0; i < params->vocab; i++)
            sum += exp(logits[i] - top);
        params->logprob[row] = (float)(logits[params->target[row]] - top - log(sum));
    }
    return NOSA_OK;
}
