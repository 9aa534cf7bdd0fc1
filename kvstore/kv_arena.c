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

static enum nosa_status check_options(const struct nosa_kv_arena_options *options,
                                      struct nosa_error *error)
{
    const struct nosa_kv_geometry *g = &options->geometry;
    int32_t n_blocks = options->n_blocks;

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
    if (options->n_slots < 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "KV arena: %d slots",
                              (int)options->n_slots);
    return NOSA_OK;
}

size_t nosa_kv_id_bytes(const struct nosa_kv_geometry *geometry)
{
    size_t tables = sizeof(int32_t) + sizeof(uint32_t) + sizeof(float); /* slot, use, weight */
    return records_per_block(geometry) * (nosa_kv_summary_bytes(geometry) + tables);
}

size_t nosa_kv_slot_bytes(const struct nosa_kv_geometry *geometry)
{
    return records_per_block(geometry) * nosa_kv_record_bytes(geometry);
}

size_t nosa_kv_block_bytes(const struct nosa_kv_geometry *geometry)
{
    return records_per_block(geometry) * (nosa_kv_summary_bytes(geometry) + sizeof(int32_t)) +
           nosa_kv_slot_bytes(geometry);
}

/* An array of the view: where its pointer lives and how large it is; 0 bytes: there is none. */
struct view_array {
    void **pointer;
    size_t bytes;
};

#define VIEW_ARRAYS 12

static void list_arrays(struct nosa_kv_view *view, struct view_array arrays[VIEW_ARRAYS])
{
    const struct nosa_kv_geometry *geometry = &view->geometry;
    size_t pools = records_per_block(geometry);
    size_t n_blocks = (size_t)view->n_blocks;
    size_t n_records = pools * n_blocks, n_slots = pools * (size_t)view->n_slots;
    size_t tiered = view->n_slots < view->n_blocks;
    size_t r = (size_t)nosa_kv_windows_per_block(geometry);
    const struct view_array list[VIEW_ARRAYS] = {
        {(void **)&view->record_slot, n_records * sizeof(int32_t)},
        {(void **)&view->records, n_slots * nosa_kv_record_bytes(geometry)},
        {(void **)&view->compressed_keys, n_records * nosa_kv_compressed_key_bytes(geometry)},
        {(void **)&view->window_bias, n_records * r * sizeof(float)},
        {(void **)&view->token_bias, n_records * NOSA_BLOCK_TOKENS * sizeof(float)},
        {(void **)&view->slot_block, tiered * n_slots * sizeof(int32_t)},
        {(void **)&view->slot_touch, tiered * n_slots * sizeof(uint32_t)},
        {(void **)&view->slot_fetched, tiered * n_slots},
        {(void **)&view->record_use, tiered * n_records * sizeof(uint32_t)},
        {(void **)&view->record_weight, tiered * n_records * sizeof(float)},
        {(void **)&view->block_class, tiered * n_blocks},
        {(void **)&view->block_image, tiered * n_blocks * sizeof(int32_t)},
    };
    memcpy(arrays, list, sizeof list);
}

/* Fills an array of numbers from the host: `first`, then `step` more each. */
static enum nosa_status write_numbers(struct nosa_device *device, int32_t *to, size_t n,
                                      int32_t first, int32_t step, struct nosa_error *error)
{
    const struct nosa_device_table *table = device->table;
    struct nosa_stream *stream = NULL;
    void *memory = NULL;
    enum nosa_status status;

    status = table->memory_alloc(device, NOSA_MEMORY_HOST_PINNED, n * sizeof *to, &memory, error);
    if (status != NOSA_OK)
        goto cleanup;
    status = table->stream_create(device, &stream, error);
    if (status != NOSA_OK)
        goto cleanup;
    int32_t *numbers = memory;
    for (size_t i = 0; i < n; i++)
        numbers[i] = first + step * (int32_t)i;
    table->copy(stream, to, numbers, n * sizeof *to);
    status = table->stream_synchronize(stream, error);
cleanup:
    if (stream)
        table->stream_destroy(stream);
    if (memory)
        table->memory_free(device, NOSA_MEMORY_HOST_PINNED, memory, n * sizeof *to);
    return status;
}

static enum nosa_status write_initial(struct nosa_kv_arena *arena, struct nosa_error *error)
{
    struct nosa_kv_view *view = &arena->view;
    size_t pools = records_per_block(&view->geometry), n_blocks = (size_t)view->n_blocks;

    if (!view->slot_block)
        return write_numbers(arena->device, view->record_slot, pools * n_blocks, 0, 1, error);
    NOSA_TRY(write_numbers(arena->device, view->record_slot, pools * n_blocks, NOSA_KV_SLOT_NONE, 0,
                           error));
    NOSA_TRY(write_numbers(arena->device, view->slot_block, pools * (size_t)view->n_slots,
                           NOSA_KV_BLOCK_NONE, 0, error));
    return write_numbers(arena->device, view->block_image, n_blocks, NOSA_KV_IMAGE_NONE, 0, error);
}

enum nosa_status nosa_kv_arena_create(struct nosa_device *device,
                                      const struct nosa_kv_arena_options *options,
                                      struct nosa_kv_arena *out, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    struct view_array arrays[VIEW_ARRAYS];

    memset(out, 0, sizeof *out);
    NOSA_TRY(check_options(options, error));
    out->device = device;
    struct nosa_kv_view *view = &out->view;
    view->geometry = options->geometry;
    view->n_blocks = options->n_blocks;
    bool all = options->n_slots == 0 || options->n_slots >= options->n_blocks;
    view->n_slots = all ? options->n_blocks : options->n_slots;
    list_arrays(view, arrays);
    for (int i = 0; i < VIEW_ARRAYS && status == NOSA_OK; i++) {
        if (arrays[i].bytes == 0)
            continue;
        void *memory = NULL;
        status = device->table->memory_alloc(device, NOSA_MEMORY_DEVICE, arrays[i].bytes, &memory,
                                             error);
        *arrays[i].pointer = memory;
        out->bytes += arrays[i].bytes;
    }
    if (status == NOSA_OK)
        status = write_initial(out, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "KV arena of %d blocks and %d slots", (int)view->n_blocks,
                          (int)view->n_slots);
        nosa_kv_arena_destroy(out);
    }
    return status;
}

void nosa_kv_arena_attach(struct nosa_kv_arena *arena, const struct nosa_kv_host_pool *host,
                          int32_t kv_head_first)
{
    arena->view.images = host->images;
    arena->view.image_bytes = host->image_bytes;
    arena->view.image_kv_heads = host->kv_heads;
    arena->view.image_kv_head_first = kv_head_first;
}

void nosa_kv_arena_destroy(struct nosa_kv_arena *arena)
{
    struct nosa_device *device = arena->device;
    struct view_array arrays[VIEW_ARRAYS];

    if (!device)
        return;
    list_arrays(&arena->view, arrays);
    for (int i = VIEW_ARRAYS - 1; i >= 0; i--)
        if (arrays[i].bytes > 0)
            device->table->memory_free(device, NOSA_MEMORY_DEVICE, *arrays[i].pointer,
                                       arrays[i].bytes);
    memset(arena, 0, sizeof *arena);
}
