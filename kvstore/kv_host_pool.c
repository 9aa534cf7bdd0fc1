#include <string.h>

#include "kv_store.h"

enum nosa_status nosa_kv_host_pool_create(struct nosa_device *device,
                                          const struct nosa_kv_geometry *geometry, int32_t kv_heads,
                                          int32_t n_images, struct nosa_kv_host_pool *out,
                                          struct nosa_error *error)
{
    void *memory;

    memset(out, 0, sizeof *out);
    NOSA_ASSERT(n_images >= 1 && kv_heads >= geometry->n_kv_heads);
    size_t image_bytes = nosa_kv_image_bytes(geometry, kv_heads);
    if ((size_t)n_images > SIZE_MAX / image_bytes)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%d images of %zu bytes", (int)n_images,
                              image_bytes);
    enum nosa_status status = device->table->memory_alloc(
        device, NOSA_MEMORY_HOST_PINNED, (size_t)n_images * image_bytes, &memory, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "KV host tier of %d blocks", (int)n_images);
        return status;
    }
    *out = (struct nosa_kv_host_pool){
        .images = memory,
        .image_bytes = image_bytes,
        .n_images = n_images,
        .kv_heads = kv_heads,
        .device = device,
    };
    return NOSA_OK;
}

void nosa_kv_host_pool_destroy(struct nosa_kv_host_pool *pool)
{
    if (pool->device)
        pool->device->table->memory_free(pool->device, NOSA_MEMORY_HOST_PINNED, pool->images,
                                         (size_t)pool->n_images * pool->image_bytes);
    memset(pool, 0, sizeof *pool);
}
