/* References of the ops that write the KV cache: records, biases, compressed keys. */
#include <math.h>
#include <string.h>

#include "reference_internal.h"

void nosa_reference_store(enum nosa_dtype type, void *array, int64_t index, float value)
{
    if (type == NOSA_DTYPE_F32)
        ((float *)array)[index] = value;
    else
        ((uint16_t *)array)[index] = nosa_f32_to_bf16(value);
}

float nosa_reference_k_at(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                          int32_t block, int32_t token, int32_t dim)
{
    return nosa_dtype_load(kv->geometry.type, nosa_kv_record(kv, layer, kv_head, block),
                           nosa_kv_k_offset(&kv->geometry, token, dim));
}

float nosa_reference_v_at(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                          int32_t block, int32_t token, int32_t dim)
{
    const char *values =
        nosa_kv_record(kv, layer, kv_head, block) + nosa_kv_half_bytes(&kv->geometry);
    return nosa_dtype_load(kv->geometry.type, values, nosa_kv_v_offset(&kv->geometry, token, dim));
}

static void *compressed_keys(const struct nosa_kv_view *kv, int64_t record)
{
    return kv->compressed_keys + (size_t)record * nosa_kv_compressed_key_bytes(&kv->geometry);
}

float nosa_reference_ck_at(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                           int32_t block, int32_t place, int32_t dim)
{
    int64_t record = nosa_kv_record_index(kv, layer, kv_head, block);
    return nosa_dtype_load(kv->geometry.type, compressed_keys(kv, record),
                           nosa_kv_compressed_offset(&kv->geometry, place, dim));
}

/* Rotates one head of head_dim values in place: pairs (i, i + head_dim / 2). */
static void rotate(float *head, int32_t head_dim, const float *table)
{
    int32_t half = head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        double cosine = table[2 * i], sine = table[2 * i + 1];
        double first = head[i], second = head[i + half];
        head[i] = (float)(first * cosine - second * sine);
        head[i + half] = (float)(second * cosine + first * sine);
    }
}

static double softplus(double x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

/* Writes the row's K, V and bias of one KV head. `k` is rotated already. */
static void write_head(const struct nosa_qkv_write_params *params, int32_t row, int32_t kv_head,
                       const float *k, const float *v, const float *bias_high)
{
    const struct nosa_kv_view *kv = params->kv;
    const struct nosa_kv_geometry *geometry = &kv->geometry;
    int32_t pos = params->batch->row_pos[row];
    int32_t token = pos % NOSA_BLOCK_TOKENS;
    int32_t block = nosa_reference_block(params->batch, row, pos / NOSA_BLOCK_TOKENS);
    char *record = nosa_kv_record(kv, params->layer, kv_head, block);
    if (token == 0)
        memset(record, 0, nosa_kv_record_bytes(geometry));
    for (int32_t dim = 0; dim < geometry->head_dim; dim++) {
        nosa_reference_store(geometry->type, record, nosa_kv_k_offset(geometry, token, dim),
                             k[dim]);
        nosa_reference_store(geometry->type, record + nosa_kv_half_bytes(geometry),
                             nosa_kv_v_offset(geometry, token, dim), v[dim]);
    }
    if (params->eviction_scale == NULL)
        return;
    double argument = (double)bias_high[kv_head] + bias_high[geometry->n_kv_heads + kv_head];
    int64_t index = nosa_kv_record_index(kv, params->layer, kv_head, block);
    kv->token_bias[index * NOSA_BLOCK_TOKENS + token] =
        (float)((double)params->eviction_scale[kv_head] * softplus(argument));
}

enum nosa_status nosa_reference_qkv_write(struct nosa_stream *stream,
                                          const struct nosa_qkv_write_params *params)
{
    (void)stream;
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    int32_t head_dim = geometry->head_dim;
    for (int32_t row = 0; row < params->batch->n_rows; row++) {
        float *q = params->qkv + row * params->qkv_stride;
        const float *table = params->rope_table + (int64_t)row * head_dim;
        for (int32_t head = 0; head < params->n_heads; head++)
            rotate(q + (int64_t)head * head_dim, head_dim, table);
        const float *k = q + (int64_t)params->n_heads * head_dim;
        const float *v = k + (int64_t)geometry->n_kv_heads * head_dim;
        const float *bias_high = v + (int64_t)geometry->n_kv_heads * head_dim;
        for (int32_t kv_head = 0; kv_head < geometry->n_kv_heads; kv_head++) {
            float rotated[256];
            NOSA_ASSERT(head_dim <= 256);
            memcpy(rotated, k + (int64_t)kv_head * head_dim, sizeof(float) * (size_t)head_dim);
            rotate(rotated, head_dim, table);
            write_head(params, row, kv_head, rotated, v + (int64_t)kv_head * head_dim, bias_high);
        }
    }
    return NOSA_OK;
}

/* Forms compressed key and bias of the window whose last token is at the row's position. */
static void compress_window(const struct nosa_compress_keys_params *params, int32_t row,
                            int32_t kv_head, int32_t window)
{
    const struct nosa_kv_view *kv = params->kv;
    const struct nosa_kv_geometry *geometry = &kv->geometry;
    int32_t first = window * geometry->kernel_stride;
    int32_t r = nosa_kv_windows_per_block(geometry);
    int32_t place = (window + 1) % r;
    float factor = 1.0f / (float)geometry->kernel_size;
    int32_t owner = nosa_reference_block(params->batch, row, (window + 1) / r);
    int64_t owner_index = nosa_kv_record_index(kv, params->layer, kv_head, owner);

    for (int32_t dim = 0; dim < geometry->head_dim; dim++) {
        float sum = 0;
        for (int32_t pos = first; pos < first + geometry->kernel_size; pos++) {
            int32_t block = nosa_reference_block(params->batch, row, pos / NOSA_BLOCK_TOKENS);
            sum += nosa_reference_k_at(kv, params->layer, kv_head, block, pos % NOSA_BLOCK_TOKENS,
                                       dim);
        }
        nosa_reference_store(geometry->type, compressed_keys(kv, owner_index),
                             nosa_kv_compressed_offset(geometry, place, dim), sum * factor);
    }
    if (!params->has_bias)
        return;
    float sum = 0;
    for (int32_t pos = first; pos < first + geometry->kernel_size; pos++) {
        int32_t block = nosa_reference_block(params->batch, row, pos / NOSA_BLOCK_TOKENS);
        int64_t index = nosa_kv_record_index(kv, params->layer, kv_head, block);
        sum += kv->token_bias[index * NOSA_BLOCK_TOKENS + pos % NOSA_BLOCK_TOKENS];
    }
    kv->window_bias[owner_index * r + place] = sum * factor;
}

enum nosa_status nosa_reference_compress_keys(struct nosa_stream *stream,
                                              const struct nosa_compress_keys_params *params)
{
    (void)stream;
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    for (int32_t row = 0; row < params->batch->n_rows; row++) {
        int32_t first = params->batch->row_pos[row] + 1 - geometry->kernel_size;
        if (first < 0 || first % geometry->kernel_stride != 0)
            continue;
        for (int32_t kv_head = 0; kv_head < geometry->n_kv_heads; kv_head++)
            compress_window(params, row, kv_head, first / geometry->kernel_stride);
    }
    return NOSA_OK;
}
