/*
 * A binary heap of request slots by a 64-bit key, the smallest first, of equal keys the smaller
 * `order`. Each slot is in it at most once and can be taken out from the middle. Part of the
 * scheduler; only create allocates; O(log n) a call.
 */
#ifndef NOSA_SCHEDULER_RANK_HEAP_H
#define NOSA_SCHEDULER_RANK_HEAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_RANK_HEAP_NONE (-1)

struct nosa_rank_heap_node {
    int64_t key;
    uint64_t order;
    int32_t slot;
};

struct nosa_rank_heap {
    int32_t capacity;                  /* fixed after create: slots are 0 .. capacity - 1 */
    struct nosa_rank_heap_node *nodes; /* owned: [capacity] */
    int32_t *place; /* owned: [capacity] index into nodes, or NOSA_RANK_HEAP_NONE */
    int32_t count;
};

enum nosa_status nosa_rank_heap_create(struct nosa_rank_heap *heap, int32_t capacity,
                                       struct nosa_error *error);
/* A heap of zero bytes is allowed. */
void nosa_rank_heap_destroy(struct nosa_rank_heap *heap);

/* The slot must not be in it. */
void nosa_rank_heap_push(struct nosa_rank_heap *heap, int32_t slot, int64_t key, uint64_t order);
/* Takes the slot out if it is in; tells whether it was. */
bool nosa_rank_heap_remove(struct nosa_rank_heap *heap, int32_t slot);
/* The first node, or NULL when empty; valid until the next change. */
const struct nosa_rank_heap_node *nosa_rank_heap_first(const struct nosa_rank_heap *heap);

#endif
