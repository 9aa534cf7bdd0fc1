/*
 * Inside the KV ops of the CPU backend: one pool of slots, and the choice of its victims.
 *
 * A pool is worked on by one thread at a time, so plain loads and stores do. While an op decides
 * about a pool, a record that is asked for and has no slot is marked in record_slot with a value
 * below NOSA_KV_SLOT_NONE, so that it is counted once however many rows want it; no mark outlives
 * the op.
 *
 * An op walks its list twice at most: first it touches what has a slot and marks what has none,
 * then, if anything is missing, victims are chosen, all at once, and the second walk deals them
 * out. So what the list wants and already has is never a victim of what it lacks.
 */
#ifndef NOSA_KERNELS_CPU_KV_SLOTS_H
#define NOSA_KERNELS_CPU_KV_SLOTS_H

#include <string.h>

#include "cpu/cpu_internal.h"

/* Marks of records that are wanted in a slot. */
#define NOSA_KV_WANTED_IMAGE   (-2) /* their bytes are in the block's image */
#define NOSA_KV_WANTED_NOTHING (-3) /* nobody has their bytes, or nobody needs them */

/* One slot among those that may be given up; what is least goes first. */
struct nosa_kv_candidate {
    uint64_t key;
    int32_t rank; /* 0: free, 1: of a SPARE block, 2: IN_USE */
    int32_t slot;
};

struct nosa_kv_pool {
    const struct nosa_kv_view *kv;
    enum nosa_kv_policy policy;
    uint32_t step;
    int32_t *record_slot; /* [n_blocks] of this pool's records; slots are counted over all pools */
    uint32_t *record_use; /* [n_blocks] */
    float *record_weight; /* [n_blocks] */
    int32_t slot_first;   /* of this pool */
    int32_t layer;
    int32_t kv_head;
};

/* Pool `pool` = layer * n_kv_heads + kv_head. */
static inline struct nosa_kv_pool nosa_kv_pool_open(const struct nosa_kv_view *kv, int32_t pool,
                                                    enum nosa_kv_policy policy, uint32_t step)
{
    int32_t n_kv_heads = kv->geometry.n_kv_heads;
    return (struct nosa_kv_pool){.kv = kv,
                                 .policy = policy,
                                 .step = step,
                                 .record_slot = kv->record_slot + (int64_t)pool * kv->n_blocks,
                                 .record_use = kv->record_use + (int64_t)pool * kv->n_blocks,
                                 .record_weight = kv->record_weight + (int64_t)pool * kv->n_blocks,
                                 .slot_first = pool * kv->n_slots,
                                 .layer = pool / n_kv_heads,
                                 .kv_head = pool % n_kv_heads};
}

static inline int32_t nosa_kv_n_pools(const struct nosa_kv_view *kv)
{
    return kv->geometry.n_layers * kv->geometry.n_kv_heads;
}

/* Empties a slot, whose record has none from now on. */
static inline void nosa_kv_slot_clear(const struct nosa_kv_pool *pool, int32_t slot)
{
    int32_t block = pool->kv->slot_block[slot];
    if (block != NOSA_KV_BLOCK_NONE)
        pool->record_slot[block] = NOSA_KV_SLOT_NONE;
    pool->kv->slot_block[slot] = NOSA_KV_BLOCK_NONE;
    pool->kv->slot_touch[slot] = 0;
    pool->kv->slot_fetched[slot] = 0;
}

/* Gives the slot to the block's record, and takes it from the one that had it. */
static inline void nosa_kv_slot_assign(const struct nosa_kv_pool *pool, int32_t slot, int32_t block,
                                       bool fetched)
{
    nosa_kv_slot_clear(pool, slot);
    pool->record_slot[block] = slot;
    pool->kv->slot_block[slot] = block;
    pool->kv->slot_touch[slot] = pool->step;
    pool->kv->slot_fetched[slot] = fetched;
}

/* Copies the record that was assigned to the slot from the image of its block. */
static inline void nosa_kv_slot_fill(const struct nosa_kv_pool *pool, int32_t slot)
{
    const struct nosa_kv_view *kv = pool->kv;
    size_t bytes = nosa_kv_record_bytes(&kv->geometry);
    int32_t image = kv->block_image[kv->slot_block[slot]];
    NOSA_ASSERT(image != NOSA_KV_IMAGE_NONE);
    memcpy(kv->records + (size_t)slot * bytes,
           nosa_kv_image_record(kv, image, pool->layer, pool->kv_head), bytes);
}

/* Chooses `wanted` slots, or as many as may be given up, and writes them ascending to `victims`;
 * returns their number. `scratch` has a place for each slot of a pool. The slots keep their records
 * until they are assigned. */
int32_t nosa_kv_choose_victims(const struct nosa_kv_pool *pool, int32_t wanted,
                               struct nosa_kv_candidate *scratch, int32_t *victims);

/* A thread's scratch: candidates, then victims. */
static inline struct nosa_kv_candidate *nosa_kv_candidates(struct nosa_cpu_device *device,
                                                           int32_t thread)
{
    return nosa_cpu_thread_scratch(device, thread);
}

static inline int32_t *nosa_kv_victims(struct nosa_cpu_device *device, int32_t thread)
{
    return (int32_t *)(void *)(nosa_kv_candidates(device, thread) +
                               device->scratch.limits.kv_slots_max);
}

#endif
