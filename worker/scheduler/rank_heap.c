#include "scheduler/rank_heap.h"

#include <stdlib.h>
#include <string.h>

enum nosa_status nosa_rank_heap_create(struct nosa_rank_heap *heap, int32_t capacity,
                                       struct nosa_error *error)
{
    memset(heap, 0, sizeof *heap);
    heap->nodes = calloc((size_t)capacity, sizeof *heap->nodes);
    heap->place = calloc((size_t)capacity, sizeof *heap->place);
    if (!heap->nodes || !heap->place) {
        nosa_rank_heap_destroy(heap);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "scheduler: no memory for %d requests",
                              (int)capacity);
    }
    heap->capacity = capacity;
    for (int32_t slot = 0; slot < capacity; slot++)
        heap->place[slot] = NOSA_RANK_HEAP_NONE;
    return NOSA_OK;
}

void nosa_rank_heap_destroy(struct nosa_rank_heap *heap)
{
    free(heap->place);
    free(heap->nodes);
    memset(heap, 0, sizeof *heap);
}

static bool before(const struct nosa_rank_heap_node *a, const struct nosa_rank_heap_node *b)
{
    return a->key != b->key ? a->key < b->key : a->order < b->order;
}

static void put(struct nosa_rank_heap *heap, int32_t at, struct nosa_rank_heap_node node)
{
    heap->nodes[at] = node;
    heap->place[node.slot] = at;
}

/* Puts the node where it belongs on the way from `at` to the root. */
static void rise(struct nosa_rank_heap *heap, int32_t at, struct nosa_rank_heap_node node)
{
    while (at > 0) {
        int32_t parent = (at - 1) / 2;
        if (!before(&node, &heap->nodes[parent]))
            break;
        put(heap, at, heap->nodes[parent]);
        at = parent;
    }
    put(heap, at, node);
}

/* Puts the node where it belongs below `at`, which is vacant. */
static void sink(struct nosa_rank_heap *heap, int32_t at, struct nosa_rank_heap_node node)
{
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= heap->count)
            break;
        if (child + 1 < heap->count && before(&heap->nodes[child + 1], &heap->nodes[child]))
            child++;
        if (!before(&heap->nodes[child], &node))
            break;
        put(heap, at, heap->nodes[child]);
        at = child;
    }
    put(heap, at, node);
}

void nosa_rank_heap_push(struct nosa_rank_heap *heap, int32_t slot, int64_t key, uint64_t order)
{
    NOSA_ASSERT(slot >= 0 && slot < heap->capacity);
    NOSA_ASSERT(heap->place[slot] == NOSA_RANK_HEAP_NONE);
    rise(heap, heap->count++, (struct nosa_rank_heap_node){key, order, slot});
}

bool nosa_rank_heap_remove(struct nosa_rank_heap *heap, int32_t slot)
{
    NOSA_ASSERT(slot >= 0 && slot < heap->capacity);
    int32_t at = heap->place[slot];
    if (at == NOSA_RANK_HEAP_NONE)
        return false;
    struct nosa_rank_heap_node last = heap->nodes[--heap->count];
    heap->place[slot] = NOSA_RANK_HEAP_NONE;
    if (at == heap->count)
        return true;
    if (at > 0 && before(&last, &heap->nodes[(at - 1) / 2]))
        rise(heap, at, last);
    else
        sink(heap, at, last);
    return true;
}

const struct nosa_rank_heap_node *nosa_rank_heap_first(const struct nosa_rank_heap *heap)
{
    return heap->count > 0 ? &heap->nodes[0] : NULL;
}
