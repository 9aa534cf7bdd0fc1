/*
 * Which extent goes first when place is needed: a binary heap of extent numbers by (use, value,
 * generation), lowest first. Holds the extents that may be evicted, nothing else. Owned by the
 * extent store, under its mutex; only create allocates; put, remove and update are O(log n).
 */
#ifndef NOSA_KVSTORE_EXTENT_ORDER_H
#define NOSA_KVSTORE_EXTENT_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct nosa_extent_rank {
    uint64_t use;
    uint64_t generation; /* differs between any two extents that hold a block */
    float value;         /* not NaN */
};

struct nosa_extent_order {
    int32_t *heap;  /* owned, [n_extents]: extents, children of i at 2i+1, 2i+2 */
    int32_t *place; /* owned, [n_extents]: where in the heap, or -1 */
    const struct nosa_extent_rank *rank; /* borrowed, [n_extents] */
    int32_t count;
};

/* An empty order over extents 0 .. n_extents - 1, whose ranks the owner keeps. */
enum nosa_status nosa_extent_order_create(struct nosa_extent_order *order, int32_t n_extents,
                                          const struct nosa_extent_rank *rank,
                                          struct nosa_error *error);
/* An order of zero bytes is allowed. */
void nosa_extent_order_destroy(struct nosa_extent_order *order);

bool nosa_extent_order_holds(const struct nosa_extent_order *order, int32_t extent);
void nosa_extent_order_put(struct nosa_extent_order *order, int32_t extent);
void nosa_extent_order_remove(struct nosa_extent_order *order, int32_t extent);
/* The rank of an extent in the order has changed. */
void nosa_extent_order_update(struct nosa_extent_order *order, int32_t extent);

/* The extent that goes first, which stays in the order; -1 when it is empty. */
int32_t nosa_extent_order_first(const struct nosa_extent_order *order);

#endif
