/*
 * The choice of victims among the slots of one pool.
 *
 * One pass over the slots keeps the `wanted` least candidates in a heap whose root is the greatest
 * of them, so that most slots cost two loads and a comparison. Slots come in ascending order and
 * replace the root only when they are less, so equals stay with the lower slot.
 *
 * Under `eddma` E decides only between slots that were used as often and as lately. It is a maximum
 * over r floats that lie elsewhere, so the first pass leaves it out; only if slots of the
 * threshold's rank and use were left out while others of them got in does a second pass form E, of
 * those alone.
 */
#include <math.h>

#include "cpu/kv_slots.h"
#include "kv_policy.h"

struct heap {
    struct nosa_kv_candidate *entry;
    int32_t count;
    int32_t capacity;
    struct nosa_kv_candidate least_out; /* of those that did not stay */
};

/* Whether `a` goes later than `b`. */
static inline bool after(const struct nosa_kv_candidate *a, const struct nosa_kv_candidate *b)
{
    if (a->rank != b->rank)
        return a->rank > b->rank;
    if (a->key != b->key)
        return a->key > b->key;
    return a->slot > b->slot;
}

/* Whether E, which is not formed yet, would decide between them. */
static inline bool level(const struct nosa_kv_candidate *a, const struct nosa_kv_candidate *b)
{
    return a->rank == b->rank && a->key == b->key;
}

static void sift_down(struct nosa_kv_candidate *entry, int32_t count, int32_t at)
{
    struct nosa_kv_candidate moved = entry[at];
    for (int32_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && after(&entry[child + 1], &entry[child]))
            child++;
        if (!after(&entry[child], &moved))
            break;
        entry[at] = entry[child];
        at = child;
    }
    entry[at] = moved;
}

static void sift_up(struct nosa_kv_candidate *entry, int32_t at)
{
    struct nosa_kv_candidate moved = entry[at];
    while (at > 0 && after(&moved, &entry[(at - 1) / 2])) {
        entry[at] = entry[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    entry[at] = moved;
}

static inline void heap_offer(struct heap *heap, const struct nosa_kv_candidate *candidate)
{
    if (heap->count < heap->capacity) {
        heap->entry[heap->count] = *candidate;
        sift_up(heap->entry, heap->count++);
        return;
    }
    struct nosa_kv_candidate out = *candidate;
    if (after(&heap->entry[0], candidate)) {
        out = heap->entry[0];
        heap->entry[0] = *candidate;
        sift_down(heap->entry, heap->count, 0);
    }
    if (after(&heap->least_out, &out))
        heap->least_out = out;
}

/* E of a block: the largest C of the windows that end in it. */
static float block_bias(const struct nosa_kv_pool *pool, int32_t block)
{
    const struct nosa_kv_view *kv = pool->kv;
    int32_t r = nosa_kv_windows_per_block(&kv->geometry);
    const float *bias =
        kv->window_bias + r * nosa_kv_record_index(kv, pool->layer, pool->kv_head, block);
    float most = -INFINITY;
    for (int32_t i = 0; i < r; i++)
        most = bias[i] > most ? bias[i] : most;
    return most;
}

/* The candidate that the slot is; false if it must stay. */
static inline bool candidate_of(const struct nosa_kv_pool *pool, int32_t slot, bool with_bias,
                                struct nosa_kv_candidate *out)
{
    const struct nosa_kv_view *kv = pool->kv;
    int32_t block = kv->slot_block[slot];
    *out = (struct nosa_kv_candidate){.slot = slot};
    if (block == NOSA_KV_BLOCK_NONE)
        return true;
    struct nosa_kv_policy_input input = {
        .last_touch = kv->slot_touch[slot], .weight = pool->record_weight[block], .e = -INFINITY};
    if (input.last_touch == pool->step || kv->block_class[block] == NOSA_KV_CLASS_LOCKED)
        return false;
    if (with_bias)
        input.e = block_bias(pool, block);
    out->rank = kv->block_class[block] == NOSA_KV_CLASS_SPARE ? 1 : 2;
    out->key = nosa_kv_policy_key(pool->policy, input);
    return true;
}

/* Keeps of the candidates level with the threshold those with the lowest E. */
static void decide_by_bias(const struct nosa_kv_pool *pool, struct heap *heap)
{
    struct nosa_kv_candidate threshold = heap->entry[0], candidate;
    int32_t sure = 0;
    for (int32_t i = 0; i < heap->count; i++)
        if (!level(&heap->entry[i], &threshold))
            heap->entry[sure++] = heap->entry[i];
    struct heap open = {.entry = heap->entry + sure, .capacity = heap->count - sure};
    int32_t end = pool->slot_first + pool->kv->n_slots;
    for (int32_t slot = pool->slot_first; slot < end; slot++) {
        if (!candidate_of(pool, slot, false, &candidate) || !level(&candidate, &threshold))
            continue;
        candidate_of(pool, slot, true, &candidate);
        heap_offer(&open, &candidate);
    }
    NOSA_ASSERT(open.count == open.capacity);
}

/* Heap sort by slot. */
static void write_ascending(struct heap *heap, int32_t *victims)
{
    for (int32_t i = 0; i < heap->count; i++) {
        heap->entry[i].rank = 0;
        heap->entry[i].key = 0;
    }
    for (int32_t i = heap->count / 2 - 1; i >= 0; i--)
        sift_down(heap->entry, heap->count, i);
    for (int32_t left = heap->count; left > 0; left--) {
        victims[left - 1] = heap->entry[0].slot;
        heap->entry[0] = heap->entry[left - 1];
        sift_down(heap->entry, left - 1, 0);
    }
}

int32_t nosa_kv_choose_victims(const struct nosa_kv_pool *pool, int32_t wanted,
                               struct nosa_kv_candidate *scratch, int32_t *victims)
{
    const struct nosa_kv_view *kv = pool->kv;
    struct heap heap = {.entry = scratch,
                        .capacity = wanted < kv->n_slots ? wanted : kv->n_slots,
                        .least_out = {.rank = INT32_MAX}};
    struct nosa_kv_candidate candidate;
    bool with_bias = pool->policy == NOSA_KV_POLICY_LOWEST_E;
    int32_t n_free = 0;
    if (heap.capacity == 0)
        return 0;
    for (int32_t i = 0; i < kv->n_slots && n_free < heap.capacity; i++) {
        if (!candidate_of(pool, pool->slot_first + i, with_bias, &candidate))
            continue;
        n_free += candidate.rank == 0;
        heap_offer(&heap, &candidate);
    }
    if (heap.count > 0 && heap.entry[0].rank > 0 && pool->policy == NOSA_KV_POLICY_EDDMA &&
        level(&heap.entry[0], &heap.least_out))
        decide_by_bias(pool, &heap);
    write_ascending(&heap, victims);
    return heap.count;
}

size_t nosa_cpu_kv_thread_bytes(const struct nosa_step_limits *limits)
{
    return (size_t)limits->kv_slots_max * (sizeof(struct nosa_kv_candidate) + sizeof(int32_t));
}
