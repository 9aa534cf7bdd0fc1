#include <string.h>

#include "kv_store_internal.h"

/* A list of the moves: where its pointer lives and how large it is. */
struct move_list {
    void **pointer;
    size_t bytes;
};

#define MOVE_LISTS 6

static void list_lists(struct nosa_kv_moves *moves, size_t n_blocks,
                       struct move_list lists[MOVE_LISTS])
{
    const struct move_list list[MOVE_LISTS] = {
        {(void **)&moves->states, n_blocks * sizeof *moves->states},
        {(void **)&moves->loads, n_blocks * sizeof *moves->loads},
        {(void **)&moves->saves, n_blocks * sizeof *moves->saves},
        {(void **)&moves->fetch, (size_t)moves->fetch_max * sizeof *moves->fetch},
        {(void **)&moves->forget, n_blocks * sizeof *moves->forget},
        {(void **)&moves->place, n_blocks * sizeof *moves->place},
    };
    memcpy(lists, list, sizeof list);
}

int32_t nosa_kv_fetch_max(const struct nosa_kv_tier_options *tiers)
{
    return 2 * tiers->geometry.n_layers * tiers->geometry.n_kv_heads *
           (tiers->sink_blocks + tiers->local_blocks + tiers->top_e_blocks);
}

enum nosa_status nosa_kv_moves_create(const struct nosa_kv_store *store, struct nosa_device *device,
                                      struct nosa_kv_moves *out, struct nosa_error *error)
{
    const struct nosa_kv_tier_options *tiers = &store->options.tiers;
    struct move_list lists[MOVE_LISTS];

    memset(out, 0, sizeof *out);
    if (!tiers->host)
        return NOSA_OK;
    if (store->tiers.tight)
        out->fetch_max = nosa_kv_fetch_max(tiers);
    list_lists(out, (size_t)store->options.n_blocks, lists);
    for (int i = 0; i < MOVE_LISTS; i++)
        out->bytes += lists[i].bytes;
    enum nosa_status status = device->table->memory_alloc(device, NOSA_MEMORY_HOST_PINNED,
                                                          out->bytes, &out->memory, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "KV moves");
        memset(out, 0, sizeof *out);
        return status;
    }
    out->device = device;
    char *at = out->memory;
    for (int i = 0; i < MOVE_LISTS; i++) {
        *lists[i].pointer = at;
        at += lists[i].bytes;
    }
    return NOSA_OK;
}

void nosa_kv_moves_destroy(struct nosa_kv_moves *moves)
{
    if (moves->device)
        moves->device->table->memory_free(moves->device, NOSA_MEMORY_HOST_PINNED, moves->memory,
                                          moves->bytes);
    memset(moves, 0, sizeof *moves);
}

bool nosa_kv_moves_any(const struct nosa_kv_moves *moves)
{
    return moves->n_forget + moves->n_states + moves->n_loads + moves->n_place + moves->n_fetch +
               moves->n_saves >
           0;
}
