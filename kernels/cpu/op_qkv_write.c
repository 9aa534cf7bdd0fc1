/*
 * Rotation of q and k, and the one place where K, V and the biases c enter the cache.
 *
 * An item is (tile, KV head): it owns that head's K, V and c of the tile's rows and the rotation of
 * the head's group of queries, so items share nothing. Rows of a tile lie in one block.
 *
 * Formula: rotary position embedding, half-split (Su et al., "RoFormer"); c = A * softplus(x) with
 * x = high + low (NOSA, eviction head), formed in double and rounded once.
 */
#include <math.h>

#include "cpu/cpu_internal.h"

#define HEAD_DIM_MAX 256

/* Below this many rotated values a region is not worth waking threads for. */
#define SERIAL_VALUES 16384

/* Rotates one head of `half` pairs (i, i + half) in place. */
static void rotate(float *restrict head, int32_t half, const float *restrict cosine,
                   const float *restrict sine)
{
    float *restrict upper = head + half;
    for (int32_t i = 0; i < half; i++) {
        float first = head[i], second = upper[i];
        head[i] = first * cosine[i] - second * sine[i];
        upper[i] = second * cosine[i] + first * sine[i];
    }
}

static void round_row(uint16_t *restrict out, const float *restrict in, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = nosa_f32_to_bf16(in[i]);
}

/* Puts one token's K and V into its record. */
static void write_token(const struct nosa_kv_geometry *geometry, char *record, int32_t token,
                        const float *k, const float *v)
{
    int32_t head_dim = geometry->head_dim;
    char *values = record + nosa_kv_half_bytes(geometry);
    if (geometry->type == NOSA_DTYPE_F32) {
        float *keys = (float *)record + token;
        for (int32_t dim = 0; dim < head_dim; dim++)
            keys[dim * NOSA_BLOCK_TOKENS] = k[dim];
        memcpy((float *)values + (size_t)token * (size_t)head_dim, v,
               sizeof(float) * (size_t)head_dim);
        return;
    }
    uint16_t rounded[HEAD_DIM_MAX];
    round_row(rounded, k, head_dim);
    uint16_t *keys = (uint16_t *)record + 2 * token;
    for (int32_t pair = 0; pair < head_dim / 2; pair++)
        memcpy(keys + pair * 2 * NOSA_BLOCK_TOKENS, rounded + 2 * pair, 4);
    round_row(rounded, v, head_dim);
    uint16_t *row = (uint16_t *)values + (token / 2) * head_dim * 2 + token % 2;
    for (int32_t dim = 0; dim < head_dim; dim++)
        row[2 * dim] = rounded[dim];
}

static double softplus(double x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static void write_row(const struct nosa_qkv_write_params *params, int32_t row, int32_t kv_head)
{
    const struct nosa_kv_view *kv = params->kv;
    const struct nosa_kv_geometry *geometry = &kv->geometry;
    const struct nosa_batch_view *batch = params->batch;
    int32_t head_dim = geometry->head_dim, half = head_dim / 2;
    int32_t n_kv_heads = geometry->n_kv_heads;
    int32_t group = params->n_heads / n_kv_heads;
    const float *table = params->rope_table + (int64_t)row * head_dim;
    float cosine[HEAD_DIM_MAX / 2], sine[HEAD_DIM_MAX / 2], k[HEAD_DIM_MAX];
    for (int32_t i = 0; i < half; i++) {
        cosine[i] = table[2 * i];
        sine[i] = table[2 * i + 1];
    }
    float *q = params->qkv + row * params->qkv_stride;
    for (int32_t i = 0; i < group; i++)
        rotate(q + (int64_t)(kv_head * group + i) * head_dim, half, cosine, sine);
    const float *keys = q + (int64_t)params->n_heads * head_dim;
    const float *values = keys + (int64_t)n_kv_heads * head_dim;
    const float *bias = values + (int64_t)n_kv_heads * head_dim;
    memcpy(k, keys + (int64_t)kv_head * head_dim, sizeof(float) * (size_t)head_dim);
    rotate(k, half, cosine, sine);

    int32_t pos = batch->row_pos[row], token = pos % NOSA_BLOCK_TOKENS;
    int32_t block = batch->block_table[(int64_t)batch->row_seq[row] * batch->table_stride +
                                       pos / NOSA_BLOCK_TOKENS];
    char *record = nosa_kv_record(kv, params->layer, kv_head, block);
    if (token == 0)
        memset(record, 0, nosa_kv_record_bytes(geometry));
    write_token(geometry, record, token, k, values + (int64_t)kv_head * head_dim);
    if (params->eviction_scale != NULL) {
        int64_t index = nosa_kv_record_index(kv, params->layer, kv_head, block);
        double x = (double)bias[kv_head] + (double)bias[n_kv_heads + kv_head];
        kv->token_bias[index * NOSA_BLOCK_TOKENS + token] =
            (float)((double)params->eviction_scale[kv_head] * softplus(x));
    }
}

/* Whether the tile goes on in the block of the tile before it. */
static bool goes_on(const struct nosa_batch_view *batch, int32_t tile)
{
    if (tile == 0)
        return false;
    int32_t row = batch->tile_row[tile], before = batch->tile_row[tile - 1];
    return batch->row_seq[row] == batch->row_seq[before] &&
           batch->row_pos[row] / NOSA_BLOCK_TOKENS == batch->row_pos[before] / NOSA_BLOCK_TOKENS;
}

/* All tiles of a block are one item: its first row clears what the others write to. */
static void write_tile(void *context, int32_t item, int32_t thread)
{
    (void)thread;
    const struct nosa_qkv_write_params *params = context;
    const struct nosa_batch_view *batch = params->batch;
    int32_t n_kv_heads = params->kv->geometry.n_kv_heads;
    int32_t tile = item / n_kv_heads, kv_head = item % n_kv_heads;
    if (goes_on(batch, tile))
        return;
    do {
        for (int32_t i = 0; i < batch->tile_rows[tile]; i++)
            write_row(params, batch->tile_row[tile] + i, kv_head);
        tile++;
    } while (tile < batch->n_tiles && goes_on(batch, tile));
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_qkv_write)(struct nosa_stream *stream,
                                                   const struct nosa_qkv_write_params *params)
{
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    NOSA_ASSERT(geometry->head_dim <= HEAD_DIM_MAX && geometry->head_dim % 16 == 0);
    NOSA_ASSERT(params->n_heads % geometry->n_kv_heads == 0);
    int32_t n_items = params->batch->n_tiles * geometry->n_kv_heads;
    int64_t values = (int64_t)params->batch->n_rows * (params->n_heads + 2 * geometry->n_kv_heads) *
                     geometry->head_dim;
    if (values > SERIAL_VALUES) {
        nosa_cpu_pool_run(stream->device->pool, n_items, write_tile, (void *)params);
        return NOSA_OK;
    }
    for (int32_t item = 0; item < n_items; item++)
        write_tile((void *)params, item, 0);
    return NOSA_OK;
}
