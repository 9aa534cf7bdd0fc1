/*
 * Ops that the host steers with lists between steps: blocks forgotten and their classes set, slots
 * for blocks about to be written, records brought up ahead of need.
 *
 * An item is a pool. A list that names records of all pools is first threaded into one chain per
 * pool, so that a pool looks at its own entries only.
 */
#include "cpu/kv_slots.h"

#define SERIAL_VISITS                                                                              \
    16384 /* fewer slots and entries to look at are not worth waking threads for */

/* Runs an item per pool, on threads if `visits` in all are worth it. */
static void run_pools(struct nosa_cpu_device *device, const struct nosa_kv_view *kv, int64_t visits,
                      nosa_cpu_task task, void *context)
{
    int32_t n_pools = nosa_kv_n_pools(kv);
    if (visits > SERIAL_VISITS) {
        nosa_cpu_pool_run(device->pool, n_pools, task, context);
        return;
    }
    for (int32_t pool = 0; pool < n_pools; pool++)
        task(context, pool, 0);
}

/* ---- update ---- */

static void forget_blocks(void *context, int32_t item, int32_t thread)
{
    const struct nosa_kv_update_params *params = context;
    struct nosa_kv_pool pool = nosa_kv_pool_open(params->kv, item, NOSA_KV_POLICY_LRU, 0);
    (void)thread;
    for (int32_t i = 0; i < params->n_forget; i++) {
        int32_t block = params->forget[i], slot = pool.record_slot[block];
        pool.record_use[block] = 0;
        pool.record_weight[block] = 0;
        if (slot != NOSA_KV_SLOT_NONE)
            nosa_kv_slot_clear(&pool, slot);
    }
}

enum nosa_status nosa_cpu_kv_update(struct nosa_stream *stream,
                                    const struct nosa_kv_update_params *params)
{
    const struct nosa_kv_view *kv = params->kv;
    NOSA_ASSERT(kv->slot_block != NULL);
    if (params->n_forget > 0)
        run_pools(stream->device, kv, (int64_t)params->n_forget * nosa_kv_n_pools(kv),
                  forget_blocks, (void *)params);
    for (int32_t i = 0; i < params->n_states; i++) {
        const struct nosa_kv_block_state *state = &params->states[i];
        NOSA_ASSERT(state->block >= 0 && state->block < kv->n_blocks);
        kv->block_class[state->block] = (uint8_t)state->kv_class;
        kv->block_image[state->block] = state->image;
    }
    return NOSA_OK;
}

/* ---- place ---- */

struct place_job {
    const struct nosa_kv_place_params *params;
    struct nosa_cpu_device *device;
};

static void place_blocks(void *context, int32_t item, int32_t thread)
{
    const struct place_job *job = context;
    const struct nosa_kv_place_params *params = job->params;
    struct nosa_kv_pool pool = nosa_kv_pool_open(params->kv, item, params->policy, params->step);
    int32_t missing = 0;
    for (int32_t i = 0; i < params->n; i++) {
        int32_t block = params->blocks[i], slot = pool.record_slot[block];
        if (slot >= 0) {
            params->kv->slot_touch[slot] = params->step;
        } else if (slot == NOSA_KV_SLOT_NONE) {
            pool.record_slot[block] = NOSA_KV_WANTED_NOTHING;
            missing++;
        }
    }
    if (missing == 0)
        return;
    int32_t *victims = nosa_kv_victims(job->device, thread);
    int32_t n_victims =
        nosa_kv_choose_victims(&pool, missing, nosa_kv_candidates(job->device, thread), victims);
    NOSA_ASSERT(n_victims == missing); /* the host left room */
    for (int32_t i = 0; i < params->n; i++)
        if (pool.record_slot[params->blocks[i]] == NOSA_KV_WANTED_NOTHING)
            nosa_kv_slot_assign(&pool, *victims++, params->blocks[i], false);
}

enum nosa_status nosa_cpu_kv_place(struct nosa_stream *stream,
                                   const struct nosa_kv_place_params *params)
{
    const struct nosa_kv_view *kv = params->kv;
    struct place_job job = {params, stream->device};
    NOSA_ASSERT(kv->slot_block != NULL &&
                kv->n_slots <= stream->device->scratch.limits.kv_slots_max);
    if (params->n > 0)
        run_pools(stream->device, kv, (int64_t)(params->n + kv->n_slots) * nosa_kv_n_pools(kv),
                  place_blocks, &job);
    return NOSA_OK;
}

/* ---- fetch ---- */

struct fetch_job {
    const struct nosa_kv_fetch_params *params;
    struct nosa_cpu_device *device;
    int32_t *first; /* [pools] first entry of each pool's chain, or -1 */
    int32_t *next;  /* [n] the entry after each, or -1 */
};

/* Threads the list into chains in list order; `last` [pools] is scratch. Entries of heads that are
 * not this rank's are in none. */
static void make_chains(struct fetch_job *job, int32_t *last)
{
    const struct nosa_kv_view *kv = job->params->kv;
    int32_t n_kv_heads = kv->geometry.n_kv_heads;
    for (int32_t pool = 0; pool < nosa_kv_n_pools(kv); pool++)
        job->first[pool] = -1;
    for (int32_t i = 0; i < job->params->n; i++) {
        const struct nosa_kv_record_name *name = &job->params->records[i];
        int32_t kv_head = name->kv_head - kv->image_kv_head_first;
        if (kv_head < 0 || kv_head >= n_kv_heads)
            continue;
        int32_t pool = name->layer * n_kv_heads + kv_head;
        if (job->first[pool] < 0)
            job->first[pool] = i;
        else
            job->next[last[pool]] = i;
        job->next[i] = -1;
        last[pool] = i;
    }
}

static void fetch_pool(void *context, int32_t item, int32_t thread)
{
    const struct fetch_job *job = context;
    const struct nosa_kv_fetch_params *params = job->params;
    const struct nosa_kv_view *kv = params->kv;
    struct nosa_kv_pool pool = nosa_kv_pool_open(kv, item, params->policy, params->step);
    int32_t missing = 0;
    for (int32_t i = job->first[item]; i >= 0; i = job->next[i]) {
        int32_t block = params->records[i].block, slot = pool.record_slot[block];
        if (slot >= 0) {
            kv->slot_touch[slot] = params->step;
        } else if (slot == NOSA_KV_SLOT_NONE && kv->block_image[block] != NOSA_KV_IMAGE_NONE) {
            pool.record_slot[block] = NOSA_KV_WANTED_IMAGE;
            missing++;
        }
    }
    if (missing == 0)
        return;
    int32_t *victims = nosa_kv_victims(job->device, thread);
    int32_t n_victims =
        nosa_kv_choose_victims(&pool, missing, nosa_kv_candidates(job->device, thread), victims);
    int32_t used = 0;
    for (int32_t i = job->first[item]; i >= 0; i = job->next[i]) {
        int32_t block = params->records[i].block;
        if (pool.record_slot[block] != NOSA_KV_WANTED_IMAGE)
            continue;
        if (used == n_victims) {
            pool.record_slot[block] = NOSA_KV_SLOT_NONE;
            continue;
        }
        nosa_kv_slot_assign(&pool, victims[used], block, true);
        nosa_kv_slot_fill(&pool, victims[used++]);
    }
    __atomic_fetch_add(params->fetched, (uint64_t)n_victims, __ATOMIC_RELAXED);
}

enum nosa_status nosa_cpu_kv_fetch(struct nosa_stream *stream,
                                   const struct nosa_kv_fetch_params *params)
{
    const struct nosa_kv_view *kv = params->kv;
    struct nosa_cpu_device *device = stream->device;
    const struct nosa_step_limits *limits = &device->scratch.limits;
    int32_t n_pools = nosa_kv_n_pools(kv);
    NOSA_ASSERT(kv->slot_block != NULL && kv->n_slots <= limits->kv_slots_max);
    NOSA_ASSERT(n_pools <= limits->kv_pools_max && params->n <= limits->kv_fetch_max);
    if (params->n == 0)
        return NOSA_OK;
    int32_t *words = device->scratch.kv_words;
    struct fetch_job job = {params, device, words, words + 2 * n_pools};
    make_chains(&job, words + n_pools);
    nosa_cpu_pool_run(device->pool, n_pools, fetch_pool, &job);
    return NOSA_OK;
}

size_t nosa_cpu_kv_shared_words(const struct nosa_step_limits *limits)
{
    size_t resolve = (size_t)limits->n_kv_heads * (2 + (size_t)limits->kv_slots_max);
    size_t fetch = 2 * (size_t)limits->kv_pools_max + (size_t)limits->kv_fetch_max;
    if (limits->kv_slots_max == 0)
        return 0;
    return resolve > fetch ? resolve : fetch;
}
