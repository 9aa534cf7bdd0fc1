#include "extent_store_internal.h"

#define BIT(state) (1u << (state))

static const uint32_t moves[EXTENT_STATES] = {
    [EXTENT_FREE] = BIT(EXTENT_FILLING) | BIT(EXTENT_VALID),
    [EXTENT_FILLING] = BIT(EXTENT_FILLED) | BIT(EXTENT_FREE),
    [EXTENT_FILLED] = BIT(EXTENT_SEALED) | BIT(EXTENT_FREE),
    [EXTENT_SEALED] = BIT(EXTENT_PUBLISHING),
    [EXTENT_PUBLISHING] = BIT(EXTENT_PUBLISHED) | BIT(EXTENT_DIRTY),
    [EXTENT_PUBLISHED] = BIT(EXTENT_VALID) | BIT(EXTENT_DIRTY),
    [EXTENT_VALID] = BIT(EXTENT_DIRTY) | BIT(EXTENT_DOOMED),
    [EXTENT_DOOMED] = BIT(EXTENT_DIRTY),
    [EXTENT_DIRTY] = BIT(EXTENT_CLEARING),
    [EXTENT_CLEARING] = BIT(EXTENT_CLEARED) | BIT(EXTENT_DIRTY),
    [EXTENT_CLEARED] = BIT(EXTENT_FREE) | BIT(EXTENT_DIRTY),
};

static bool is_held(const struct extent *extent)
{
    return extent->pins + extent->readers > 0;
}

void nosa_extent_move(struct nosa_extent_store *store, int32_t extent, enum extent_state to)
{
    struct extent *self = &store->extents[extent];
    enum extent_state from = self->state;

    NOSA_ASSERT(moves[from] & BIT(to));
    NOSA_ASSERT(from != EXTENT_DOOMED || !is_held(self));
    nosa_index_list_remove(&store->in_state[from], store->extent_links, extent);
    nosa_index_list_append(&store->in_state[to], store->extent_links, extent);
    self->state = to;
    if (to == EXTENT_FILLED || to == EXTENT_PUBLISHED || to == EXTENT_CLEARED)
        self->flush_epoch = store->flushes_issued;
    if (to == EXTENT_VALID && !is_held(self))
        nosa_extent_order_put(&store->order, extent);
    if (from == EXTENT_VALID && nosa_extent_order_holds(&store->order, extent))
        nosa_extent_order_remove(&store->order, extent);
    if (self->foreign && (to == EXTENT_VALID || from == EXTENT_VALID))
        store->foreign += to == EXTENT_VALID ? 1 : -1u;
}

void nosa_extent_hold(struct nosa_extent_store *store, int32_t extent, uint32_t *count)
{
    struct extent *self = &store->extents[extent];
    NOSA_ASSERT(self->state == EXTENT_VALID);
    if (!is_held(self)) {
        nosa_extent_order_remove(&store->order, extent);
        store->pinned++;
    }
    ++*count;
}

void nosa_extent_unhold(struct nosa_extent_store *store, int32_t extent, uint32_t *count)
{
    struct extent *self = &store->extents[extent];
    NOSA_ASSERT(*count > 0);
    --*count;
    if (is_held(self))
        return;
    store->pinned--;
    if (self->state == EXTENT_VALID)
        nosa_extent_order_put(&store->order, extent);
    else
        nosa_extent_move(store, extent, EXTENT_DIRTY);
}

void nosa_extent_name(struct nosa_extent_store *store, int32_t extent)
{
    nosa_prefix_index_insert(&store->index, extent);
    store->extents[extent].named = true;
}

void nosa_extent_unname(struct nosa_extent_store *store, int32_t extent)
{
    if (!store->extents[extent].named)
        return;
    nosa_prefix_index_remove(&store->index, extent);
    store->extents[extent].named = false;
}

void nosa_extent_give_up(struct nosa_extent_store *store, int32_t extent)
{
    nosa_extent_unname(store, extent);
    nosa_extent_move(store, extent,
                     is_held(&store->extents[extent]) ? EXTENT_DOOMED : EXTENT_DIRTY);
}

static int32_t first_unclaimed(const struct nosa_extent_store *store, enum extent_state state)
{
    int32_t extent = store->in_state[state].first;
    while (extent != NOSA_INDEX_NONE && store->extents[extent].request != NOSA_INDEX_NONE)
        extent = store->extent_links[extent].next;
    return extent;
}

static int32_t evict(struct nosa_extent_store *store)
{
    int32_t victim = nosa_extent_order_first(&store->order);
    if (victim < 0)
        return NOSA_INDEX_NONE;
    store->counters.evicted_extents++;
    nosa_extent_give_up(store, victim);
    return victim;
}

int32_t nosa_extent_take_place(struct nosa_extent_store *store)
{
    static const enum extent_state nearest[] = {EXTENT_FREE, EXTENT_CLEARED, EXTENT_CLEARING,
                                                EXTENT_DIRTY};
    for (size_t i = 0; i < sizeof nearest / sizeof *nearest; i++) {
        int32_t extent = first_unclaimed(store, nearest[i]);
        if (extent != NOSA_INDEX_NONE)
            return extent;
    }
    return evict(store);
}

static uint32_t unclaimed(const struct nosa_extent_store *store, enum extent_state state)
{
    uint32_t count = 0;
    for (int32_t extent = store->in_state[state].first; extent != NOSA_INDEX_NONE;
         extent = store->extent_links[extent].next)
        count += store->extents[extent].request == NOSA_INDEX_NONE;
    return count;
}

void nosa_extent_keep_reserve(struct nosa_extent_store *store)
{
    uint32_t have = (uint32_t)store->in_state[EXTENT_FREE].count;
    if (have >= store->reserve)
        return;
    have += unclaimed(store, EXTENT_DIRTY) + unclaimed(store, EXTENT_CLEARING) +
            unclaimed(store, EXTENT_CLEARED);
    while (have < store->reserve && evict(store) != NOSA_INDEX_NONE)
        have++;
}
