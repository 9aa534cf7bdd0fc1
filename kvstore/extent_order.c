#include "extent_order.h"

#include <stdlib.h>
#include <string.h>

enum nosa_status nosa_extent_order_create(struct nosa_extent_order *order, int32_t n_extents,
                                          const struct nosa_extent_rank *rank,
                                          struct nosa_error *error)
{
    NOSA_ASSERT(n_extents > 0);
    memset(order, 0, sizeof *order);
    order->heap = malloc((size_t)n_extents * sizeof *order->heap);
    order->place = malloc((size_t)n_extents * sizeof *order->place);
    if (!order->heap || !order->place) {
        nosa_extent_order_destroy(order);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                              "KV file: no memory for the order of %d extents", (int)n_extents);
    }
    for (int32_t i = 0; i < n_extents; i++)
        order->place[i] = -1;
    order->rank = rank;
    return NOSA_OK;
}

void nosa_extent_order_destroy(struct nosa_extent_order *order)
{
    free(order->place);
    free(order->heap);
    memset(order, 0, sizeof *order);
}

static bool goes_before(const struct nosa_extent_order *order, int32_t a, int32_t b)
{
    const struct nosa_extent_rank *x = &order->rank[a], *y = &order->rank[b];
    if (x->use != y->use)
        return x->use < y->use;
    if (x->value != y->value)
        return x->value < y->value;
    return x->generation < y->generation;
}

static void set(struct nosa_extent_order *order, int32_t place, int32_t extent)
{
    order->heap[place] = extent;
    order->place[extent] = place;
}

static void sift_up(struct nosa_extent_order *order, int32_t place)
{
    int32_t extent = order->heap[place];
    while (place > 0 && goes_before(order, extent, order->heap[(place - 1) / 2])) {
        set(order, place, order->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    set(order, place, extent);
}

static void sift_down(struct nosa_extent_order *order, int32_t place)
{
    int32_t extent = order->heap[place];
    for (;;) {
        int32_t child = 2 * place + 1;
        if (child + 1 < order->count &&
            goes_before(order, order->heap[child + 1], order->heap[child]))
            child++;
        if (child >= order->count || !goes_before(order, order->heap[child], extent))
            break;
        set(order, place, order->heap[child]);
        place = child;
    }
    set(order, place, extent);
}

bool nosa_extent_order_holds(const struct nosa_extent_order *order, int32_t extent)
{
    return order->place[extent] >= 0;
}

void nosa_extent_order_put(struct nosa_extent_order *order, int32_t extent)
{
    NOSA_ASSERT(order->place[extent] < 0);
    set(order, order->count++, extent);
    sift_up(order, order->count - 1);
}

void nosa_extent_order_update(struct nosa_extent_order *order, int32_t extent)
{
    NOSA_ASSERT(order->place[extent] >= 0);
    sift_up(order, order->place[extent]);
    sift_down(order, order->place[extent]);
}

void nosa_extent_order_remove(struct nosa_extent_order *order, int32_t extent)
{
    int32_t place = order->place[extent];
    NOSA_ASSERT(place >= 0);
    int32_t last = order->heap[--order->count];
    order->place[extent] = -1;
    if (last != extent) {
        set(order, place, last);
        nosa_extent_order_update(order, last);
    }
}

int32_t nosa_extent_order_first(const struct nosa_extent_order *order)
{
    return order->count > 0 ? order->heap[0] : -1;
}
