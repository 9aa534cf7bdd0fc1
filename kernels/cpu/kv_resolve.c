/*
 * What the rows of a step selected, of one layer, gets slots.
 *
 * An item is a pool, that is a KV head: the walk over the rows' lists touches what has a slot and
 * marks what has none; only if something is missing are victims looked for and dealt out in a
 * second walk. Then the records of all heads are copied, each an item, so that a few heads keep any
 * number of threads busy. A decode step is a few dozen entries per head: it stays in the calling
 * thread.
 *
 * Without lists every visible block is wanted: a sequence's blocks are walked once, and the rows
 * that see each are counted, not visited.
 *
 * Bound: three dependent loads per (row, block) pair, and two copies' worth of memory traffic per
 * missing record.
 */
#include "cpu/kv_slots.h"
#include "kv_policy.h"

#define SERIAL_PAIRS 4096                /* fewer pairs are not worth waking threads for */
#define SERIAL_BYTES ((size_t)64 * 1024) /* nor are so few copied bytes */

/* What became of one pool. */
struct outcome {
    int32_t n_victims;
    int32_t n_absent; /* the first victims are those of records that nobody has */
};

struct resolve_job {
    const struct nosa_kv_resolve_params *params;
    struct nosa_cpu_device *device;
    int32_t *victims;        /* [n_kv_heads][kv_slots_max] */
    struct outcome *outcome; /* [n_kv_heads] */
};

/* One walk over a pool's part of the step. */
struct walk {
    const struct nosa_kv_resolve_params *params;
    struct nosa_kv_pool pool;
    struct nosa_kv_hits hits; /* of sequence `seq` so far */
    int32_t seq;
    int32_t n_image; /* records missing */
    int32_t n_absent;
    const int32_t *image_victim; /* next, and where they end */
    const int32_t *image_victim_end;
    const int32_t *absent_victim;
    struct nosa_kv_absent *absent; /* next of the pool's part of the list */
};

typedef void (*visit)(struct walk *walk, int32_t block, int32_t n_rows);

static void add(uint64_t *total, uint64_t count)
{
    if (count > 0)
        __atomic_fetch_add(total, count, __ATOMIC_RELAXED);
}

/* Pools run side by side and share the sequences' counters. */
static void flush_hits(struct walk *walk)
{
    struct nosa_kv_hits *to = walk->params->hits + walk->seq;
    add(&to->first, walk->hits.first);
    add(&to->host, walk->hits.host);
    add(&to->in_place, walk->hits.in_place);
    add(&to->absent, walk->hits.absent);
    add(&to->prefetched_used, walk->hits.prefetched_used);
    add(&to->fresh, walk->hits.fresh);
    walk->hits = (struct nosa_kv_hits){0};
}

/* End of the entries that the call is about, in a list of `length`. */
static inline int32_t entry_end(const struct nosa_kv_resolve_params *params, int32_t length)
{
    int32_t end = params->entry_first + params->entry_count;
    return params->entry_count > 0 && end < length ? end : length;
}

/* Visits every block of the sequence's rows first .. end - 1, once. */
static inline __attribute__((always_inline)) void
walk_visible(struct walk *walk, visit each, int32_t first, int32_t end, const int32_t *table)
{
    const int32_t *row_pos = walk->params->batch->row_pos;
    int32_t pos_first = row_pos[first], pos_last = row_pos[end - 1];
    int32_t block_end = entry_end(walk->params, pos_last / NOSA_BLOCK_TOKENS + 1);
    for (int32_t b = walk->params->entry_first; b < block_end; b++) {
        int32_t sees = b * NOSA_BLOCK_TOKENS > pos_first ? b * NOSA_BLOCK_TOKENS : pos_first;
        each(walk, table[b], pos_last - sees + 1);
    }
}

/* Visits every entry of the rows' lists. */
static inline __attribute__((always_inline)) void
walk_selected(struct walk *walk, visit each, int32_t first, int32_t end, const int32_t *table)
{
    const struct nosa_kv_resolve_params *params = walk->params;
    int32_t n_kv_heads = params->kv->geometry.n_kv_heads;
    for (int32_t row = first; row < end; row++) {
        int64_t cell = (int64_t)row * n_kv_heads + walk->pool.kv_head;
        const int32_t *selected = params->selected + cell * params->topk;
        int32_t list_end = entry_end(params, params->selected_count[cell]);
        for (int32_t i = params->entry_first; i < list_end; i++)
            each(walk, table[selected[i]], 1);
    }
}

/* Walks the rows of the step, sequence by sequence. */
static inline __attribute__((always_inline)) void walk_rows(struct walk *walk, visit each)
{
    const struct nosa_kv_resolve_params *params = walk->params;
    const struct nosa_batch_view *batch = params->batch;
    int32_t row = params->row_first, row_end = params->row_first + params->n_rows;
    while (row < row_end) {
        int32_t end = row + 1;
        walk->seq = batch->row_seq[row];
        while (end < row_end && batch->row_seq[end] == walk->seq)
            end++;
        const int32_t *table = batch->block_table + (int64_t)walk->seq * batch->table_stride;
        if (params->selected == NULL)
            walk_visible(walk, each, row, end, table);
        else
            walk_selected(walk, each, row, end, table);
        flush_hits(walk);
        row = end;
    }
}

/* First walk: touches the record or marks it as wanted. */
static inline void visit_ask(struct walk *walk, int32_t block, int32_t n_rows)
{
    const struct nosa_kv_view *kv = walk->pool.kv;
    int32_t slot = walk->pool.record_slot[block];
    uint32_t use = walk->pool.record_use[block];
    if (use != walk->pool.step) {
        float *weight = &walk->pool.record_weight[block];
        walk->hits.fresh += use < walk->params->fresh_since;
        *weight = nosa_kv_policy_weight(*weight, use, walk->pool.step);
        walk->pool.record_use[block] = walk->pool.step;
    }
    if (slot >= 0) {
        walk->hits.first += (uint64_t)n_rows;
        kv->slot_touch[slot] = walk->pool.step;
        if (kv->slot_fetched[slot]) {
            kv->slot_fetched[slot] = 0;
            walk->hits.prefetched_used++;
        }
    } else if (slot == NOSA_KV_SLOT_NONE) {
        bool absent = kv->block_image[block] == NOSA_KV_IMAGE_NONE;
        walk->pool.record_slot[block] = absent ? NOSA_KV_WANTED_NOTHING : NOSA_KV_WANTED_IMAGE;
        walk->n_absent += absent;
        walk->n_image += !absent;
    }
}

/* Second walk: deals out the victims to the marked records. */
static inline void visit_assign(struct walk *walk, int32_t block, int32_t n_rows)
{
    (void)n_rows;
    int32_t mark = walk->pool.record_slot[block];
    if (mark == NOSA_KV_WANTED_NOTHING) {
        int32_t slot = *walk->absent_victim++;
        nosa_kv_slot_assign(&walk->pool, slot, block, false);
        *walk->absent++ = (struct nosa_kv_absent){
            .block = block, .layer = walk->pool.layer, .kv_head = walk->pool.kv_head, .slot = slot};
        walk->hits.absent++;
    } else if (mark == NOSA_KV_WANTED_IMAGE) {
        if (walk->image_victim == walk->image_victim_end) {
            walk->pool.record_slot[block] = NOSA_KV_SLOT_NONE;
            walk->hits.in_place++;
            return;
        }
        nosa_kv_slot_assign(&walk->pool, *walk->image_victim++, block, false);
        walk->hits.host++;
    }
}

static void resolve_pool(void *context, int32_t item, int32_t thread)
{
    const struct resolve_job *job = context;
    const struct nosa_kv_resolve_params *params = job->params;
    const struct nosa_kv_view *kv = params->kv;
    int32_t pool = params->layer * kv->geometry.n_kv_heads + item;
    struct walk walk = {.params = params,
                        .pool = nosa_kv_pool_open(kv, pool, params->policy, params->step)};
    walk_rows(&walk, visit_ask);
    job->outcome[item] = (struct outcome){0};
    int32_t wanted = walk.n_image + walk.n_absent;
    if (wanted == 0)
        return;
    int32_t *victims = job->victims + (int64_t)item * job->device->scratch.limits.kv_slots_max;
    int32_t n_victims = nosa_kv_choose_victims(&walk.pool, wanted,
                                               nosa_kv_candidates(job->device, thread), victims);
    NOSA_ASSERT(n_victims >= walk.n_absent);
    if (walk.n_absent > 0) {
        NOSA_ASSERT(params->absent != NULL);
        int32_t place = __atomic_fetch_add(params->n_absent, walk.n_absent, __ATOMIC_RELAXED);
        NOSA_ASSERT(place + walk.n_absent <= params->absent_max);
        walk.absent = params->absent + place;
    }
    walk.absent_victim = victims;
    walk.image_victim = victims + walk.n_absent;
    walk.image_victim_end = victims + n_victims;
    walk_rows(&walk, visit_assign);
    job->outcome[item] = (struct outcome){.n_victims = n_victims, .n_absent = walk.n_absent};
}

/* Item `item` of the copies, which are counted over all heads. */
static void fill_slot(void *context, int32_t item, int32_t thread)
{
    const struct resolve_job *job = context;
    const struct nosa_kv_view *kv = job->params->kv;
    int32_t head = 0;
    (void)thread;
    while (item >= job->outcome[head].n_victims - job->outcome[head].n_absent) {
        item -= job->outcome[head].n_victims - job->outcome[head].n_absent;
        head++;
    }
    struct nosa_kv_pool pool =
        nosa_kv_pool_open(kv, job->params->layer * kv->geometry.n_kv_heads + head,
                          job->params->policy, job->params->step);
    nosa_kv_slot_fill(&pool, job->victims[(int64_t)head * job->device->scratch.limits.kv_slots_max +
                                          job->outcome[head].n_absent + item]);
}

enum nosa_status nosa_cpu_kv_resolve(struct nosa_stream *stream,
                                     const struct nosa_kv_resolve_params *params)
{
    const struct nosa_kv_view *kv = params->kv;
    struct nosa_cpu_device *device = stream->device;
    int32_t n_kv_heads = kv->geometry.n_kv_heads;
    NOSA_ASSERT(kv->slot_block != NULL && kv->n_slots <= device->scratch.limits.kv_slots_max);
    NOSA_ASSERT(n_kv_heads <= device->scratch.limits.n_kv_heads);
    int32_t *shared = device->scratch.kv_words;
    struct resolve_job job = {.params = params, .device = device};
    job.outcome = (struct outcome *)(void *)shared;
    job.victims = shared + 2 * n_kv_heads;
    if (params->n_absent != NULL)
        *params->n_absent = 0;

    int64_t pairs = 0; /* of one head, about */
    for (int32_t row = params->row_first;
         row < params->row_first + params->n_rows && pairs < SERIAL_PAIRS; row++)
        pairs += params->selected == NULL ? params->batch->row_pos[row] / NOSA_BLOCK_TOKENS + 1
                                          : params->selected_count[(int64_t)row * n_kv_heads];
    if (pairs < SERIAL_PAIRS)
        for (int32_t head = 0; head < n_kv_heads; head++)
            resolve_pool(&job, head, 0);
    else
        nosa_cpu_pool_run(device->pool, n_kv_heads, resolve_pool, &job);

    int32_t copies = 0;
    for (int32_t head = 0; head < n_kv_heads; head++)
        copies += job.outcome[head].n_victims - job.outcome[head].n_absent;
    if ((size_t)copies * nosa_kv_record_bytes(&kv->geometry) > SERIAL_BYTES) {
        nosa_cpu_pool_run(device->pool, copies, fill_slot, &job);
        return NOSA_OK;
    }
    for (int32_t item = 0; item < copies; item++)
        fill_slot(&job, item, 0);
    return NOSA_OK;
}
