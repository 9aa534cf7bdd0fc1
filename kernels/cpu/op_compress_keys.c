/*
 * Compressed keys and window biases of the windows that end in this batch's rows.
 *
 *   ck_j = mean of the kernel_size stored keys of window j;  C_j = mean of their biases c
 *
 * An item is (tile, KV head). Window j ends in the row at position stride * j + kernel_size - 1 and
 * belongs to that row's block; since kernel_size is twice the stride and the stride divides 64, it
 * starts in the same block or in the one before. Each sum is one chain over tokens ascending.
 */
#include "cpu/cpu_internal.h"

/* Below this many windows times dimensions a region is not worth waking threads for. */
#define SERIAL_VALUES 4096

/* A window's tokens: `count[0]` at the end of the block before, then `count[1]` in its own. */
struct span {
    const char *keys[2];
    const float *bias[2];
    int32_t first[2];
    int32_t count[2];
};

static void sum_f32(const struct span *span, int32_t head_dim, float factor, float *out,
                    int32_t out_stride)
{
    for (int32_t dim = 0; dim < head_dim; dim++) {
        float sum = 0;
        for (int32_t part = 0; part < 2; part++) {
            if (span->count[part] == 0)
                continue;
            const float *keys =
                (const float *)span->keys[part] + dim * NOSA_BLOCK_TOKENS + span->first[part];
            for (int32_t i = 0; i < span->count[part]; i++)
                sum += keys[i];
        }
        out[dim * out_stride] = sum * factor;
    }
}

static void sum_bf16(const struct span *span, int32_t head_dim, float factor, uint16_t *out,
                     int32_t out_stride)
{
    for (int32_t pair = 0; pair < head_dim / 2; pair++) {
        float low = 0, high = 0;
        for (int32_t part = 0; part < 2; part++) {
            if (span->count[part] == 0)
                continue;
            const uint16_t *keys = (const uint16_t *)span->keys[part] +
                                   2 * (pair * NOSA_BLOCK_TOKENS + span->first[part]);
            for (int32_t i = 0; i < span->count[part]; i++) {
                low += nosa_bf16_to_f32(keys[2 * i]);
                high += nosa_bf16_to_f32(keys[2 * i + 1]);
            }
        }
        out[pair * out_stride] = nosa_f32_to_bf16(low * factor);
        out[pair * out_stride + 1] = nosa_f32_to_bf16(high * factor);
    }
}

static float sum_bias(const struct span *span, float factor)
{
    float sum = 0;
    for (int32_t part = 0; part < 2; part++)
        for (int32_t i = 0; i < span->count[part]; i++)
            sum += span->bias[part][span->first[part] + i];
    return sum * factor;
}

/* Forms the window whose last token is the row's. */
static void compress_window(const struct nosa_compress_keys_params *params, int32_t row,
                            int32_t kv_head, int32_t window)
{
    const struct nosa_kv_view *kv = params->kv;
    const struct nosa_kv_geometry *geometry = &kv->geometry;
    const struct nosa_batch_view *batch = params->batch;
    const int32_t *table = batch->block_table + (int64_t)batch->row_seq[row] * batch->table_stride;
    int32_t first = window * geometry->kernel_stride;
    int32_t own = batch->row_pos[row] / NOSA_BLOCK_TOKENS;
    int32_t r = nosa_kv_windows_per_block(geometry), place = (window + 1) % r;
    float factor = 1.0f / (float)geometry->kernel_size;

    struct span span = {{NULL, NULL}, {NULL, NULL}, {0, 0}, {0, geometry->kernel_size}};
    if (first / NOSA_BLOCK_TOKENS == own) {
        span.first[1] = first % NOSA_BLOCK_TOKENS;
    } else {
        span.first[0] = first % NOSA_BLOCK_TOKENS;
        span.count[0] = NOSA_BLOCK_TOKENS - span.first[0];
        span.count[1] -= span.count[0];
    }
    for (int32_t part = 0; part < 2; part++) {
        if (span.count[part] == 0)
            continue;
        int32_t block = table[own - 1 + part];
        span.keys[part] = nosa_kv_record(kv, params->layer, kv_head, block);
        span.bias[part] = kv->token_bias + nosa_kv_record_index(kv, params->layer, kv_head, block) *
                                               NOSA_BLOCK_TOKENS;
    }
    int64_t owner = nosa_kv_record_index(kv, params->layer, kv_head, table[own]);
    char *out = kv->compressed_keys + (size_t)owner * nosa_kv_compressed_key_bytes(geometry);
    if (geometry->type == NOSA_DTYPE_F32)
        sum_f32(&span, geometry->head_dim, factor, (float *)out + place, r);
    else
        sum_bf16(&span, geometry->head_dim, factor, (uint16_t *)out + 2 * place, 2 * r);
    if (params->has_bias)
        kv->window_bias[owner * r + place] = sum_bias(&span, factor);
}

static void compress_tile(void *context, int32_t item, int32_t thread)
{
    (void)thread;
    const struct nosa_compress_keys_params *params = context;
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    int32_t tile = item / geometry->n_kv_heads, kv_head = item % geometry->n_kv_heads;
    int32_t row_first = params->batch->tile_row[tile];
    for (int32_t i = 0; i < params->batch->tile_rows[tile]; i++) {
        int32_t first = params->batch->row_pos[row_first + i] + 1 - geometry->kernel_size;
        if (first >= 0 && first % geometry->kernel_stride == 0)
            compress_window(params, row_first + i, kv_head, first / geometry->kernel_stride);
    }
}

enum nosa_status
NOSA_CPU_NAME(nosa_cpu_compress_keys)(struct nosa_stream *stream,
                                      const struct nosa_compress_keys_params *params)
{
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    NOSA_ASSERT(geometry->kernel_size == 2 * geometry->kernel_stride);
    int32_t n_items = params->batch->n_tiles * geometry->n_kv_heads;
    int64_t values = (int64_t)params->batch->n_rows * geometry->n_kv_heads * geometry->head_dim;
    if (values / geometry->kernel_stride > SERIAL_VALUES) {
        nosa_cpu_pool_run(stream->device->pool, n_items, compress_tile, (void *)params);
        return NOSA_OK;
    }
    for (int32_t item = 0; item < n_items; item++)
        compress_tile((void *)params, item, 0);
    return NOSA_OK;
}
