/*
 * References of the ops that move KV between tiers. Victims are found one at a time by comparing
 * every slot with every other rule in words; lists are kept, nothing is marked in place.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kv_policy.h"
#include "reference_internal.h"

/* One pool: (layer, KV head of the rank). */
struct pool {
    const struct nosa_kv_view *kv;
    int32_t layer;
    int32_t kv_head;
};

/* Records of one pool that an op wants in slots, each once. */
struct wanted {
    int32_t count;
    int32_t *block;   /* [n_blocks] */
    int32_t *seq;     /* [n_blocks] that asked first */
    int32_t *victims; /* [n_slots] ascending */
    int32_t n_victims;
};

static int32_t slot_at(const struct pool *pool, int32_t index)
{
    int32_t pools_before = pool->layer * pool->kv->geometry.n_kv_heads + pool->kv_head;
    return pools_before * pool->kv->n_slots + index;
}

static int32_t *record_slot(const struct pool *pool, int32_t block)
{
    return &pool->kv
                ->record_slot[nosa_kv_record_index(pool->kv, pool->layer, pool->kv_head, block)];
}

static bool in_image(const struct pool *pool, int32_t block)
{
    return pool->kv->block_image[block] != NOSA_KV_IMAGE_NONE;
}

static void *allocate(size_t count, size_t bytes)
{
    void *memory = calloc(count + 1, bytes);
    NOSA_ASSERT(memory != NULL);
    return memory;
}

static void wanted_open(struct wanted *wanted, const struct nosa_kv_view *kv)
{
    wanted->count = 0;
    wanted->block = allocate((size_t)kv->n_blocks, sizeof(int32_t));
    wanted->seq = allocate((size_t)kv->n_blocks, sizeof(int32_t));
    wanted->victims = allocate((size_t)kv->n_slots, sizeof(int32_t));
}

static void wanted_close(struct wanted *wanted)
{
    free(wanted->victims);
    free(wanted->seq);
    free(wanted->block);
}

static void want(struct wanted *wanted, int32_t block, int32_t seq)
{
    for (int32_t i = 0; i < wanted->count; i++)
        if (wanted->block[i] == block)
            return;
    wanted->block[wanted->count] = block;
    wanted->seq[wanted->count++] = seq;
}

/* ---- victims ---- */

/* The largest C of the windows that end in the block; -1e30 if all are NaN or there is none. */
static float bias_of(const struct pool *pool, int32_t block)
{
    int32_t r = nosa_kv_windows_per_block(&pool->kv->geometry);
    int64_t record = nosa_kv_record_index(pool->kv, pool->layer, pool->kv_head, block);
    float most = -1e30f;
    for (int32_t place = 0; place < r; place++) {
        float bias = pool->kv->window_bias[record * r + place];
        if (bias > most)
            most = bias;
    }
    return most;
}

/* The key of `eddma`, which is arithmetic: the same function. */
static uint64_t key_of(const struct pool *pool, int32_t slot)
{
    const struct nosa_kv_view *kv = pool->kv;
    int32_t block = kv->slot_block[slot];
    float bias = bias_of(pool, block);
    int64_t record = nosa_kv_record_index(kv, pool->layer, pool->kv_head, block);
    struct nosa_kv_policy_input input = {.last_touch = kv->slot_touch[slot],
                                         .weight = kv->record_weight[record],
                                         .e = bias > -1e30f ? bias : -INFINITY};
    return nosa_kv_policy_key(NOSA_KV_POLICY_EDDMA, input);
}

/* Whether slot a gives up its record before slot b; both may. */
static bool goes_before(const struct pool *pool, enum nosa_kv_policy policy, int32_t a, int32_t b)
{
    const struct nosa_kv_view *kv = pool->kv;
    int32_t block_a = kv->slot_block[a], block_b = kv->slot_block[b];
    if ((block_a == NOSA_KV_BLOCK_NONE) != (block_b == NOSA_KV_BLOCK_NONE))
        return block_a == NOSA_KV_BLOCK_NONE;
    if (block_a == NOSA_KV_BLOCK_NONE)
        return a < b;
    if (kv->block_class[block_a] != kv->block_class[block_b])
        return kv->block_class[block_a] == NOSA_KV_CLASS_SPARE;
    uint32_t touch_a = kv->slot_touch[a], touch_b = kv->slot_touch[b];
    if (policy == NOSA_KV_POLICY_EDDMA) {
        uint64_t key_a = key_of(pool, a), key_b = key_of(pool, b);
        return key_a != key_b ? key_a < key_b : a < b;
    }
    float bias_a = bias_of(pool, block_a), bias_b = bias_of(pool, block_b);
    if (policy == NOSA_KV_POLICY_LOWEST_E && bias_a != bias_b)
        return bias_a < bias_b;
    if (touch_a != touch_b)
        return touch_a < touch_b;
    return a < b;
}

static bool may_go(const struct pool *pool, uint32_t step, int32_t slot)
{
    int32_t block = pool->kv->slot_block[slot];
    if (block == NOSA_KV_BLOCK_NONE)
        return true;
    return pool->kv->block_class[block] != NOSA_KV_CLASS_LOCKED &&
           pool->kv->slot_touch[slot] != step;
}

static void choose_victims(const struct pool *pool, enum nosa_kv_policy policy, uint32_t step,
                           struct wanted *wanted)
{
    int32_t n_slots = pool->kv->n_slots;
    bool *chosen = allocate((size_t)n_slots, sizeof *chosen);
    wanted->n_victims = 0;
    for (int32_t round = 0; round < wanted->count; round++) {
        int32_t best = -1;
        for (int32_t i = 0; i < n_slots; i++)
            if (!chosen[i] && may_go(pool, step, slot_at(pool, i)) &&
                (best < 0 || goes_before(pool, policy, slot_at(pool, i), slot_at(pool, best))))
                best = i;
        if (best < 0)
            break;
        chosen[best] = true;
    }
    for (int32_t i = 0; i < n_slots; i++)
        if (chosen[i])
            wanted->victims[wanted->n_victims++] = slot_at(pool, i);
    free(chosen);
}

static void give(const struct pool *pool, int32_t slot, int32_t block, uint32_t step, bool fetched)
{
    const struct nosa_kv_view *kv = pool->kv;
    if (kv->slot_block[slot] != NOSA_KV_BLOCK_NONE)
        *record_slot(pool, kv->slot_block[slot]) = NOSA_KV_SLOT_NONE;
    *record_slot(pool, block) = slot;
    kv->slot_block[slot] = block;
    kv->slot_touch[slot] = step;
    kv->slot_fetched[slot] = fetched ? 1 : 0;
}

static void bring(const struct pool *pool, int32_t slot, int32_t block)
{
    size_t bytes = nosa_kv_record_bytes(&pool->kv->geometry);
    memcpy(pool->kv->records + (size_t)slot * bytes,
           nosa_kv_image_record(pool->kv, pool->kv->block_image[block], pool->layer, pool->kv_head),
           bytes);
}

/* ---- the host's lists ---- */

enum nosa_status nosa_reference_kv_update(struct nosa_stream *stream,
                                          const struct nosa_kv_update_params *params)
{
    (void)stream;
    const struct nosa_kv_view *kv = params->kv;
    int32_t n_pools = kv->geometry.n_layers * kv->geometry.n_kv_heads;
    for (int32_t i = 0; i < params->n_forget; i++) {
        for (int32_t slot = 0; slot < n_pools * kv->n_slots; slot++) {
            if (kv->slot_block[slot] != params->forget[i])
                continue;
            kv->slot_block[slot] = NOSA_KV_BLOCK_NONE;
            kv->slot_touch[slot] = 0;
            kv->slot_fetched[slot] = 0;
        }
        for (int32_t pool = 0; pool < n_pools; pool++) {
            int64_t record = (int64_t)pool * kv->n_blocks + params->forget[i];
            kv->record_slot[record] = NOSA_KV_SLOT_NONE;
            kv->record_use[record] = 0;
            kv->record_weight[record] = 0;
        }
    }
    for (int32_t i = 0; i < params->n_states; i++) {
        kv->block_class[params->states[i].block] = (uint8_t)params->states[i].kv_class;
        kv->block_image[params->states[i].block] = params->states[i].image;
    }
    return NOSA_OK;
}

static void place_in_pool(const struct pool *pool, const struct nosa_kv_place_params *params)
{
    struct wanted wanted;
    wanted_open(&wanted, pool->kv);
    for (int32_t i = 0; i < params->n; i++) {
        int32_t slot = *record_slot(pool, params->blocks[i]);
        if (slot == NOSA_KV_SLOT_NONE)
            want(&wanted, params->blocks[i], 0);
        else
            pool->kv->slot_touch[slot] = params->step;
    }
    choose_victims(pool, params->policy, params->step, &wanted);
    NOSA_ASSERT(wanted.n_victims == wanted.count);
    for (int32_t i = 0; i < wanted.count; i++)
        give(pool, wanted.victims[i], wanted.block[i], params->step, false);
    wanted_close(&wanted);
}

enum nosa_status nosa_reference_kv_place(struct nosa_stream *stream,
                                         const struct nosa_kv_place_params *params)
{
    (void)stream;
    struct pool pool = {.kv = params->kv};
    for (pool.layer = 0; pool.layer < params->kv->geometry.n_layers; pool.layer++)
        for (pool.kv_head = 0; pool.kv_head < params->kv->geometry.n_kv_heads; pool.kv_head++)
            place_in_pool(&pool, params);
    return NOSA_OK;
}

static void fetch_in_pool(const struct pool *pool, const struct nosa_kv_fetch_params *params)
{
    struct wanted wanted;
    wanted_open(&wanted, pool->kv);
    for (int32_t i = 0; i < params->n; i++) {
        const struct nosa_kv_record_name *name = &params->records[i];
        if (name->layer != pool->layer ||
            name->kv_head != pool->kv->image_kv_head_first + pool->kv_head)
            continue;
        int32_t slot = *record_slot(pool, name->block);
        if (slot != NOSA_KV_SLOT_NONE)
            pool->kv->slot_touch[slot] = params->step;
        else if (in_image(pool, name->block))
            want(&wanted, name->block, 0);
    }
    choose_victims(pool, params->policy, params->step, &wanted);
    for (int32_t i = 0; i < wanted.n_victims; i++) {
        give(pool, wanted.victims[i], wanted.block[i], params->step, true);
        bring(pool, wanted.victims[i], wanted.block[i]);
        ++*params->fetched;
    }
    wanted_close(&wanted);
}

enum nosa_status nosa_reference_kv_fetch(struct nosa_stream *stream,
                                         const struct nosa_kv_fetch_params *params)
{
    (void)stream;
    struct pool pool = {.kv = params->kv};
    for (pool.layer = 0; pool.layer < params->kv->geometry.n_layers; pool.layer++)
        for (pool.kv_head = 0; pool.kv_head < params->kv->geometry.n_kv_heads; pool.kv_head++)
            fetch_in_pool(&pool, params);
    return NOSA_OK;
}

/* ---- the step ---- */

/* One row asks for one block. */
static void ask(const struct pool *pool, const struct nosa_kv_resolve_params *params, int32_t row,
                int32_t logical, struct wanted *images, struct wanted *nowhere)
{
    int32_t block = nosa_reference_block(params->batch, row, logical);
    int32_t seq = params->batch->row_seq[row], slot = *record_slot(pool, block);
    int64_t record = nosa_kv_record_index(pool->kv, pool->layer, pool->kv_head, block);
    uint32_t *use = &pool->kv->record_use[record];
    float *weight = &pool->kv->record_weight[record];
    if (*use != params->step) {
        params->hits[seq].fresh += *use < params->fresh_since;
        *weight = nosa_kv_policy_weight(*weight, *use, params->step);
        *use = params->step;
    }
    if (slot == NOSA_KV_SLOT_NONE) {
        want(in_image(pool, block) ? images : nowhere, block, seq);
        return;
    }
    params->hits[seq].first++;
    pool->kv->slot_touch[slot] = params->step;
    if (pool->kv->slot_fetched[slot] == 1)
        params->hits[seq].prefetched_used++;
    pool->kv->slot_fetched[slot] = 0;
}

static void ask_all(const struct pool *pool, const struct nosa_kv_resolve_params *params,
                    struct wanted *images, struct wanted *nowhere)
{
    int32_t n_kv_heads = pool->kv->geometry.n_kv_heads;
    for (int32_t row = params->row_first; row < params->row_first + params->n_rows; row++) {
        int64_t cell = (int64_t)row * n_kv_heads + pool->kv_head;
        int32_t count = params->batch->row_pos[row] / NOSA_BLOCK_TOKENS + 1;
        if (params->selected != NULL)
            count = params->selected_count[cell];
        for (int32_t i = 0; i < count; i++) {
            bool in_part =
                i >= params->entry_first && i < params->entry_first + params->entry_count;
            if (params->entry_count > 0 && !in_part)
                continue;
            ask(pool, params, row,
                params->selected == NULL ? i : params->selected[cell * params->topk + i], images,
                nowhere);
        }
    }
}

static void resolve_pool(const struct pool *pool, const struct nosa_kv_resolve_params *params)
{
    struct wanted images, nowhere, both;
    wanted_open(&images, pool->kv);
    wanted_open(&nowhere, pool->kv);
    wanted_open(&both, pool->kv);
    ask_all(pool, params, &images, &nowhere);
    both.count = images.count + nowhere.count;
    choose_victims(pool, params->policy, params->step, &both);
    NOSA_ASSERT(nowhere.count <= both.n_victims);
    for (int32_t i = 0; i < nowhere.count; i++) {
        NOSA_ASSERT(*params->n_absent < params->absent_max);
        give(pool, both.victims[i], nowhere.block[i], params->step, false);
        params->absent[(*params->n_absent)++] =
            (struct nosa_kv_absent){nowhere.block[i], pool->layer, pool->kv_head, both.victims[i]};
        params->hits[nowhere.seq[i]].absent++;
    }
    for (int32_t i = 0; i < images.count; i++) {
        if (nowhere.count + i >= both.n_victims) {
            params->hits[images.seq[i]].in_place++;
            continue;
        }
        int32_t slot = both.victims[nowhere.count + i];
        give(pool, slot, images.block[i], params->step, false);
        bring(pool, slot, images.block[i]);
        params->hits[images.seq[i]].host++;
    }
    wanted_close(&both);
    wanted_close(&nowhere);
    wanted_close(&images);
}

enum nosa_status nosa_reference_kv_resolve(struct nosa_stream *stream,
                                           const struct nosa_kv_resolve_params *params)
{
    (void)stream;
    struct pool pool = {.kv = params->kv, .layer = params->layer};
    if (params->n_absent != NULL)
        *params->n_absent = 0;
    for (pool.kv_head = 0; pool.kv_head < params->kv->geometry.n_kv_heads; pool.kv_head++)
        resolve_pool(&pool, params);
    return NOSA_OK;
}

/* ---- images ---- */

/* Copies a summary, field by field, into an image or out of it. */
static void copy_summary(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                         const struct nosa_kv_block_image *move, bool into_image)
{
    int64_t record = nosa_kv_record_index(kv, layer, kv_head, move->block);
    int32_t r = nosa_kv_windows_per_block(&kv->geometry);
    size_t key_bytes = nosa_kv_compressed_key_bytes(&kv->geometry);
    char *keys = nosa_kv_image_summary(kv, move->image, layer, kv_head);
    char *own_keys = kv->compressed_keys + (size_t)record * key_bytes;
    float *biases = (float *)(void *)(keys + key_bytes);
    memcpy(into_image ? keys : own_keys, into_image ? own_keys : keys, key_bytes);
    for (int32_t i = 0; i < r + NOSA_BLOCK_TOKENS; i++) {
        float *own = i < r ? &kv->window_bias[record * r + i]
                           : &kv->token_bias[record * NOSA_BLOCK_TOKENS + i - r];
        memcpy(into_image ? &biases[i] : own, into_image ? own : &biases[i], sizeof(float));
    }
}

enum nosa_status nosa_reference_kv_load(struct nosa_stream *stream,
                                        const struct nosa_kv_load_params *params)
{
    (void)stream;
    const struct nosa_kv_view *kv = params->kv;
    for (int32_t i = 0; i < params->n; i++)
        for (int32_t layer = 0; layer < kv->geometry.n_layers; layer++)
            for (int32_t head = 0; head < kv->geometry.n_kv_heads; head++) {
                copy_summary(kv, layer, head, &params->moves[i], false);
                if (kv->slot_block == NULL)
                    memcpy(nosa_kv_record(kv, layer, head, params->moves[i].block),
                           nosa_kv_image_record(kv, params->moves[i].image, layer, head),
                           nosa_kv_record_bytes(&kv->geometry));
            }
    return NOSA_OK;
}

enum nosa_status nosa_reference_kv_save(struct nosa_stream *stream,
                                        const struct nosa_kv_save_params *params)
{
    (void)stream;
    const struct nosa_kv_view *kv = params->kv;
    for (int32_t i = 0; i < params->n; i++)
        for (int32_t layer = 0; layer < kv->geometry.n_layers; layer++)
            for (int32_t head = 0; head < kv->geometry.n_kv_heads; head++) {
                const struct nosa_kv_block_image *move = &params->moves[i];
                memmove(nosa_kv_image_record(kv, move->image, layer, head),
                        nosa_kv_record(kv, layer, head, move->block),
                        nosa_kv_record_bytes(&kv->geometry));
                copy_summary(kv, layer, head, move, true);
            }
    return NOSA_OK;
}
