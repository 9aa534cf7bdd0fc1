/*
 * The arrays of one rank. Everything goes through the device table, the slots too: ops read them,
 * so they lie in device memory and are written by a copy on a stream.
 */
#include <string.h>

#include "kv_store.h"

/* Records (and summaries) of one block: one per layer and KV head. */
static size_t records_per_block(const struct nosa_kv_geometry *geometry)
{
    return (size_t)geometry->n_layers * (size_t)geometry->n_kv_heads;
}

static enum nosa_status check_geometry(const struct nosa_kv_geometry *g, int32_t n_blocks,
                                       struct nosa_error *error)
{
    if (g->n_layers < 1 || g->n_kv_heads < 1 || n_blocks < 1)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "KV arena: %d layers, %d KV heads, %d blocks; each must be at least 1",
            (int)g->n_layers, (int)g->n_kv_heads, (int)n_blocks);
    if (g->head_dim < 16 || g->head_dim > 256 || g->head_dim % 16 != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV arena: head_dim %d; must be a multiple of 16 up to 256",
                              (int)g->head_dim);
    if (g->kernel_stride < 1 || NOSA_BLOCK_TOKENS % g->kernel_stride != 0 ||
        g->kernel_size != 2 * g->kernel_stride)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV arena: kernel_size %d, kernel_stride %d; the stride must divide "
                              "%d and the size be twice the stride",
                              (int)g->kernel_size, (int)g->kernel_stride, NOSA_BLOCK_TOKENS);
    if (g->type != NOSA_DTYPE_F32 && g->type != NOSA_DTYPE_BF16)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "KV arena: KV type %s",
                              nosa_dtype_name(g->type));
    if (records_per_block(g) > (size_t)(INT32_MAX / n_blocks))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV arena: %d blocks of %d layers and %d KV heads are more records "
                              "than a slot number can name",
                              (int)n_blocks, (int)g->n_layers, (int)g->n_kv_heads);
    return NOSA_OK;
}

size_t nosa_kv_block_bytes(const struct nosa_kv_geometry *geometry)
{
    return records_per_block(geometry) *
           (nosa_kv_record_bytes(geometry) + nosa_kv_summary_bytes(geometry) + sizeof(int32_t));
}

enum { RECORD_SLOT, RECORDS, COMPRESSED_KEYS, WINDOW_BIAS, TOKEN_BIAS, N_ARRAYS };

/* Bytes of each array; all have one entry per record. */
static void array_bytes(const struct nosa_kv_view *view, size_t bytes[N_ARRAYS])
{
    const struct nosa_kv_geometry *geometry = &view->geometry;
    size_t n_records = records_per_block(geometry) * (size_t)view->n_blocks;

    bytes[RECORD_SLOT] = n_records * sizeof(int32_t);
    bytes[RECORDS] = n_records * nosa_kv_record_bytes(geometry);
    bytes[COMPRESSED_KEYS] = n_records * nosa_kv_compressed_key_bytes(geometry);
    bytes[WINDOW_BIAS] = n_records * (size_t)nosa_kv_windows_per_block(geometry) * sizeof(float);
    bytes[TOKEN_BIAS] = n_records * NOSA_BLOCK_TOKENS * sizeof(float);
}

/* Writes slot i for record i. */
static enum nosa_status write_slots(struct nosa_kv_arena *arena, size_t bytes,
                                    struct nosa_error *error)
{
    struct nosa_device *device = arena->device;
    const struct nosa_device_table *table = device->table;
    struct nosa_stream *stream = NULL;
    void *memory = NULL;
    enum nosa_status status;

    status = table->memory_alloc(device, NOSA_MEMORY_HOST_PINNED, bytes, &memory, error);
    if (status != NOSA_OK)
        goto cleanup;
    status = table->stream_create(device, &stream, error);
    if (status != NOSA_OK)
        goto cleanup;
    int32_t *slots = memory;
    for (size_t i = 0; i < bytes / sizeof *slots; i++)
        slots[i] = (int32_t)i;
    table->copy(stream, arena->record_slot, slots, bytes);
    status = table->stream_synchronize(stream, error);
cleanup:
    if (stream)
        table->stream_destroy(stream);
    if (memory)
        table->memory_free(device, NOSA_MEMORY_HOST_PINNED, memory, bytes);
    return status;
}

enum nosa_status nosa_kv_arena_create(struct nosa_device *device,
                                      const struct nosa_kv_geometry *geometry, int32_t n_blocks,
                                      struct nosa_kv_arena *out, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    void *memory[N_ARRAYS] = {NULL};
    size_t bytes[N_ARRAYS];

    memset(out, 0, sizeof *out);
    NOSA_TRY(check_geometry(geometry, n_blocks, error));
    out->device = device;
    out->view.geometry = *geometry;
    out->view.n_blocks = n_blocks;
    array_bytes(&out->view, bytes);
    for (int i = 0; i < N_ARRAYS && status == NOSA_OK; i++) {
        status =
            device->table->memory_alloc(device, NOSA_MEMORY_DEVICE, bytes[i], &memory[i], error);
        out->bytes += bytes[i];
    }
    out->record_slot = memory[RECORD_SLOT];
    out->view.record_slot = memory[RECORD_SLOT];
    out->view.records = memory[RECORDS];
    out->view.compressed_keys = memory[COMPRESSED_KEYS];
    out->view.window_bias = memory[WINDOW_BIAS];
    out->view.token_bias = memory[TOKEN_BIAS];
    if (status == NOSA_OK)
        status = write_slots(out, bytes[RECORD_SLOT], error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "KV arena of %d blocks (%zu bytes)", (int)n_blocks,
                          (size_t)n_blocks * nosa_kv_block_bytes(geometry));
        nosa_kv_arena_destroy(out);
    }
    return status;
}

void nosa_kv_arena_destroy(struct nosa_kv_arena *arena)
{
    struct nosa_device *device = arena->device;
    size_t bytes[N_ARRAYS];

    if (!device)
        return;
    void *memory[N_ARRAYS] = {arena->record_slot, arena->view.records, arena->view.compressed_keys,
                              arena->view.window_bias, arena->view.token_bias};
    array_bytes(&arena->view, bytes);
    for (int i = N_ARRAYS - 1; i >= 0; i--)
        device->table->memory_free(device, NOSA_MEMORY_DEVICE, memory[i], bytes[i]);
    memset(arena, 0, sizeof *arena);
}
