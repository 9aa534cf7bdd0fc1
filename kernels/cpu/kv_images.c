/*
 * Whole blocks between the first tier and images in host memory: summaries in (records
 * too where each has its own slot), records and summaries out. An item is one block's part of one
 * layer.
 *
 * Bound: memory; a block of the 8B shape is 2 MiB of records and 4-5 % of that of summaries.
 */
#include <string.h>

#include "cpu/kv_slots.h"

#define SERIAL_BYTES ((size_t)64 * 1024) /* fewer bytes are not worth waking threads for */

/* Where the three parts of a summary lie in the first tier, and their sizes. */
struct summary {
    void *part[3];
    size_t bytes[3];
};

static struct summary summary_of(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                                 int32_t block)
{
    int64_t record = nosa_kv_record_index(kv, layer, kv_head, block);
    size_t r = (size_t)nosa_kv_windows_per_block(&kv->geometry);
    size_t key_bytes = nosa_kv_compressed_key_bytes(&kv->geometry);
    return (struct summary){
        .part = {kv->compressed_keys + (size_t)record * key_bytes,
                 kv->window_bias + (size_t)record * r, kv->token_bias + record * NOSA_BLOCK_TOKENS},
        .bytes = {key_bytes, sizeof(float) * r, sizeof(float) * NOSA_BLOCK_TOKENS}};
}

static void run_moves(struct nosa_stream *stream, const struct nosa_kv_view *kv, int32_t n,
                      size_t head_bytes, nosa_cpu_task task, const void *params)
{
    int32_t n_items = n * kv->geometry.n_layers;
    size_t bytes = head_bytes * (size_t)kv->geometry.n_kv_heads * (size_t)n_items;
    NOSA_ASSERT(kv->images != NULL || n == 0);
    if (bytes > SERIAL_BYTES) {
        nosa_cpu_pool_run(stream->device->pool, n_items, task, (void *)params);
        return;
    }
    for (int32_t item = 0; item < n_items; item++)
        task((void *)params, item, 0);
}

/* Where every record has its slot for ever, bringing a block means bringing its records too. */
static void load_record(const struct nosa_kv_view *kv, const struct nosa_kv_block_image *move,
                        int32_t layer, int32_t kv_head)
{
    if (kv->slot_block == NULL)
        memcpy(nosa_kv_record(kv, layer, kv_head, move->block),
               nosa_kv_image_record(kv, move->image, layer, kv_head),
               nosa_kv_record_bytes(&kv->geometry));
}

static void load_layer(void *context, int32_t item, int32_t thread)
{
    const struct nosa_kv_load_params *params = context;
    const struct nosa_kv_view *kv = params->kv;
    struct nosa_kv_block_image move = params->moves[item / kv->geometry.n_layers];
    int32_t layer = item % kv->geometry.n_layers;
    (void)thread;
    for (int32_t kv_head = 0; kv_head < kv->geometry.n_kv_heads; kv_head++) {
        struct summary summary = summary_of(kv, layer, kv_head, move.block);
        const char *from = nosa_kv_image_summary(kv, move.image, layer, kv_head);
        load_record(kv, &move, layer, kv_head);
        for (int32_t i = 0; i < 3; i++) {
            memcpy(summary.part[i], from, summary.bytes[i]);
            from += summary.bytes[i];
        }
    }
}

enum nosa_status nosa_cpu_kv_load(struct nosa_stream *stream,
                                  const struct nosa_kv_load_params *params)
{
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    size_t records = params->kv->slot_block == NULL ? nosa_kv_record_bytes(geometry) : 0;
    run_moves(stream, params->kv, params->n, records + nosa_kv_summary_bytes(geometry), load_layer,
              params);
    return NOSA_OK;
}

/* The record, unless the image holds it already and no slot does. */
static void save_record(const struct nosa_kv_view *kv, const struct nosa_kv_block_image *move,
                        int32_t layer, int32_t kv_head)
{
    int32_t slot = kv->record_slot[nosa_kv_record_index(kv, layer, kv_head, move->block)];
    if (slot == NOSA_KV_SLOT_NONE) {
        NOSA_ASSERT(kv->block_image[move->block] != NOSA_KV_IMAGE_NONE);
        if (kv->block_image[move->block] == move->image)
            return;
    }
    memcpy(nosa_kv_image_record(kv, move->image, layer, kv_head),
           nosa_kv_record(kv, layer, kv_head, move->block), nosa_kv_record_bytes(&kv->geometry));
}

static void save_layer(void *context, int32_t item, int32_t thread)
{
    const struct nosa_kv_save_params *params = context;
    const struct nosa_kv_view *kv = params->kv;
    struct nosa_kv_block_image move = params->moves[item / kv->geometry.n_layers];
    int32_t layer = item % kv->geometry.n_layers;
    (void)thread;
    for (int32_t kv_head = 0; kv_head < kv->geometry.n_kv_heads; kv_head++) {
        struct summary summary = summary_of(kv, layer, kv_head, move.block);
        char *to = nosa_kv_image_summary(kv, move.image, layer, kv_head);
        save_record(kv, &move, layer, kv_head);
        for (int32_t i = 0; i < 3; i++) {
            memcpy(to, summary.part[i], summary.bytes[i]);
            to += summary.bytes[i];
        }
    }
}

enum nosa_status nosa_cpu_kv_save(struct nosa_stream *stream,
                                  const struct nosa_kv_save_params *params)
{
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    run_moves(stream, params->kv, params->n,
              nosa_kv_record_bytes(geometry) + nosa_kv_summary_bytes(geometry), save_layer, params);
    return NOSA_OK;
}
