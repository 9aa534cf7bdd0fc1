/*
 * The third tier as the store uses it. Complete blocks that others may find are written from their
 * images in the background; a prefix whose blocks lie on NVMe is adopted at once, its blocks absent
 * until they are read into images. What cannot be read is computed again: every sequence that
 * counts on it is cut short there before any step has used it.
 *
 * Order of use: within one sequence a block counts as used later than those that continue it, so
 * that a full device never gives up a block before its continuation.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kv_policy.h"
#include "kv_store_internal.h"

/* After so many failures in a row the tier is left alone for a while. */
#define FAILURES_MAX 3
#define BYPASS_NS    (30 * NOSA_NS_PER_S)

/* Positions of one epoch of use: more than a sequence has blocks. */
#define USES_PER_EPOCH (UINT64_C(1) << 32)

#define COMPLETIONS 32

/* ---- creation ------------------------------------------------------------------------------- */

enum nosa_status nosa_kv_nvme_create(struct nosa_kv_store *store, struct nosa_error *error)
{
    struct nosa_kv_nvme *nvme = &store->tiers.nvme;
    size_t n_blocks = (size_t)store->options.n_blocks;
    int32_t n_images = store->tiers.pool.n_images;
    struct nosa_extent_store_info info;

    pthread_mutex_init(&nvme->staging_mutex, NULL);
    pthread_cond_init(&nvme->staging_changed, NULL);
    nvme->absent = calloc(n_blocks, sizeof *nvme->absent);
    nvme->cold = calloc(n_blocks, sizeof *nvme->cold);
    nvme->lost = calloc(n_blocks, sizeof *nvme->lost);
    nvme->written = calloc(n_blocks, sizeof *nvme->written);
    nvme->handle = calloc(n_blocks, sizeof *nvme->handle);
    nvme->freed = calloc((size_t)n_images, sizeof *nvme->freed);
    if (!nvme->absent || !nvme->cold || !nvme->lost || !nvme->written || !nvme->handle ||
        !nvme->freed ||
        nosa_number_ring_create(&nvme->to_read, store->options.n_blocks) != NOSA_OK ||
        nosa_number_ring_create(&nvme->to_write, n_images) != NOSA_OK)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                              "KV store: no memory for the NVMe tier of %zu blocks", n_blocks);
    NOSA_TRY(nosa_kv_stagings_create(nvme, &store->tiers.options.geometry, error));
    nvme->extents = store->tiers.options.extents;
    nvme->clock = store->tiers.options.clock ? store->tiers.options.clock : nosa_clock_system();
    nosa_extent_store_info(nvme->extents, &info);
    nvme->epoch = info.use_max / USES_PER_EPOCH + 1;
    return NOSA_OK;
}

void nosa_kv_nvme_destroy(struct nosa_kv_nvme *nvme)
{
    nosa_kv_stagings_destroy(nvme);
    pthread_cond_destroy(&nvme->staging_changed);
    pthread_mutex_destroy(&nvme->staging_mutex);
    nosa_number_ring_destroy(&nvme->to_write);
    nosa_number_ring_destroy(&nvme->to_read);
    free(nvme->freed);
    free(nvme->handle);
    free(nvme->written);
    free(nvme->lost);
    free(nvme->cold);
    free(nvme->absent);
    memset(nvme, 0, sizeof *nvme);
}

/* ---- a tier that fails ---------------------------------------------------------------------- */

static bool usable(struct nosa_kv_nvme *nvme)
{
    if (!nvme->extents)
        return false;
    if (nvme->bypassed && nosa_clock_monotonic_ns(nvme->clock) >= nvme->bypass_until_ns) {
        nvme->bypassed = false;
        nvme->failures = 0;
        nosa_log(NOSA_LOG_INFO, "kvstore", "NVMe tier: trying again");
    }
    return !nvme->bypassed;
}

static void count_result(struct nosa_kv_nvme *nvme, const struct nosa_extent_completion *done)
{
    bool failed = done->result == NOSA_EXTENT_IO_ERROR || done->result == NOSA_EXTENT_TIMED_OUT;
    if (!failed) {
        nvme->failures = 0;
        return;
    }
    if (++nvme->failures < FAILURES_MAX || nvme->bypassed)
        return;
    nvme->bypassed = true;
    nvme->bypass_until_ns = nosa_clock_monotonic_ns(nvme->clock) + BYPASS_NS;
    nosa_log(NOSA_LOG_WARN, "kvstore",
             "NVMe tier: %d requests in a row failed (%s, errno %d); left alone for %d s",
             (int)nvme->failures, nosa_extent_result_name(done->result), (int)done->os_error,
             (int)(BYPASS_NS / NOSA_NS_PER_S));
}

/* ---- reading -------------------------------------------------------------------------------- */

static struct nosa_extent_handle find(const struct nosa_kv_sequence *sequence, int32_t index)
{
    return nosa_extent_store_find(sequence->store->tiers.nvme.extents, &sequence->keys[index + 1],
                                  &sequence->keys[index],
                                  sequence->tokens + (size_t)index * NOSA_BLOCK_TOKENS);
}

/* The `count`th use of an epoch; of a chain the parents come first. */
static uint64_t use_of(const struct nosa_kv_nvme *nvme, uint64_t count)
{
    return nvme->epoch * USES_PER_EPOCH + (USES_PER_EPOCH - 1 - count);
}

/* Reading is worth it while nothing says that computing is cheaper. */
static enum nvme_choice choose(struct nosa_kv_sequence *sequence, int32_t index)
{
    struct nosa_kv_nvme *nvme = &sequence->store->tiers.nvme;
    int32_t n_max = (sequence->length - 1) / NOSA_BLOCK_TOKENS, n = 0;
    struct nosa_extent_store_counters counters;

    while (index + n < n_max && find(sequence, index + n).index != NOSA_EXTENT_NONE)
        n++;
    if (n == 0)
        return NVME_UNDECIDED;
    nosa_extent_store_counters(nvme->extents, &counters);
    if (counters.read_bytes == 0 || nvme->compute_ns == 0)
        return NVME_READ;
    double bytes = (double)n * (double)sequence->store->tiers.images_view.image_bytes;
    double read_ns = bytes * (double)counters.read_busy_ns / (double)counters.read_bytes;
    double compute_ns = (double)n * NOSA_BLOCK_TOKENS * nvme->compute_ns;
    if (read_ns <= compute_ns)
        return NVME_READ;
    nvme->bypassed_blocks += (uint64_t)n;
    return NVME_COMPUTE;
}

int32_t nosa_kv_nvme_adopt(struct nosa_kv_sequence *sequence, int32_t index)
{
    struct nosa_kv_store *store = sequence->store;
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_kv_nvme *nvme = &tiers->nvme;
    const struct nosa_chain_key *key = &sequence->keys[index + 1];

    if (!usable(nvme) || nosa_prefix_cache_available(&store->cache) == 0 ||
        nosa_prefix_index_find(&store->cache.index, key) != NOSA_BLOCK_NONE)
        return NOSA_BLOCK_NONE;
    if (sequence->nvme_choice == NVME_UNDECIDED)
        sequence->nvme_choice = (uint8_t)choose(sequence, index);
    struct nosa_extent_handle handle = find(sequence, index);
    if (sequence->nvme_choice != NVME_READ || !nosa_extent_store_pin(nvme->extents, handle))
        return NOSA_BLOCK_NONE;
    int32_t block = nosa_prefix_cache_take(&store->cache);
    bool published =
        nosa_prefix_cache_publish(&store->cache, block, key, &sequence->keys[index],
                                  sequence->tokens + (size_t)index * NOSA_BLOCK_TOKENS);
    NOSA_ASSERT(published &&
                nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_COMPLETE);
    nosa_kv_tiers_set_class(store, block, NOSA_KV_CLASS_IN_USE);
    nvme->absent[block] = true;
    nvme->written[block] = true;
    nvme->handle[block] = handle;
    nosa_number_ring_push(&nvme->to_read, block);
    sequence->prefetch = true;
    return block;
}

void nosa_kv_nvme_block_free(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_nvme *nvme = &store->tiers.nvme;

    nvme->written[block] = false;
    nvme->lost[block] = false;
    if (!nvme->absent[block] && !nvme->cold[block])
        return;
    nvme->absent[block] = false;
    nvme->n_cold -= nvme->cold[block];
    nvme->cold[block] = false;
    nosa_extent_store_unpin(nvme->extents, nvme->handle[block]);
}

/* Ends the sequence's known prefix before its block `index`. */
static void truncate(struct nosa_kv_sequence *sequence, int32_t index)
{
    struct nosa_kv_store *store = sequence->store;
    store->tiers.nvme.recomputed_blocks += (uint64_t)(sequence->n_blocks - index);
    while (sequence->n_blocks > index)
        nosa_kv_sequence_release_block(store, sequence->blocks[--sequence->n_blocks]);
    sequence->computed = index * NOSA_BLOCK_TOKENS;
}

/* The block could not be read: nobody counts on it any more. */
static void fail_read(struct nosa_kv_store *store, int32_t block)
{
    for (int32_t i = 0; i < store->options.sequences_max; i++) {
        struct nosa_kv_sequence *sequence = &store->sequences[i];
        if (!sequence->open || sequence->suspended)
            continue;
        for (int32_t index = sequence->n_ready; index < sequence->n_blocks; index++)
            if (sequence->blocks[index] == block) {
                truncate(sequence, index);
                nosa_kv_nvme_drop_cold_tail(sequence);
                break;
            }
    }
    if (nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_CACHED)
        nosa_prefix_cache_evict(&store->cache, block);
}

/* Starts reading an absent block; false when it has to wait. In a tight first tier it stays in its
 * image, and there may be more blocks than images: those that came before it are then left to NVMe
 * again, now that their summaries are in the first tier. */
static bool start_read(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_kv_nvme *nvme = &tiers->nvme;

    if (!nvme->absent[block] || tiers->image[block] != NOSA_KV_IMAGE_NONE)
        return true; /* given up, or on the way already */
    if (nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_CACHED) {
        nosa_prefix_cache_evict(&store->cache, block); /* nobody waits for it */
        return true;
    }
    if (nosa_image_pool_available(&tiers->pool) == 0 && !nosa_kv_nvme_demote(store))
        return false;
    int32_t image = nosa_image_pool_take(&tiers->pool, block, NOSA_IMAGE_LOADING);
    enum nosa_status status = nosa_extent_store_read_image(
        nvme->extents, (uint64_t)image, nvme->handle[block],
        tiers->images_view.images + (size_t)image * tiers->images_view.image_bytes);
    if (status != NOSA_OK) {
        tiers->pool.images[image].block = NOSA_KV_BLOCK_NONE;
        nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_FREE);
        if (status == NOSA_UNAVAILABLE)
            return false;
        fail_read(store, block);
        return true;
    }
    tiers->image[block] = image;
    nosa_kv_tiers_name_image(store, block);
    nvme->reading++;
    return true;
}

/* The mean over layers and KV heads of the block's E. */
static float image_value(const struct nosa_kv_tiers *tiers, int32_t image)
{
    const struct nosa_kv_geometry *geometry = &tiers->options.geometry;
    double sum = 0;
    if (!tiers->options.has_bias)
        return 0;
    for (int32_t layer = 0; layer < geometry->n_layers; layer++)
        for (int32_t kv_head = 0; kv_head < geometry->n_kv_heads; kv_head++)
            sum += (double)nosa_kv_image_e(tiers, image, layer, kv_head);
    return (float)(sum / (geometry->n_layers * geometry->n_kv_heads));
}

static void end_read(struct nosa_kv_store *store, const struct nosa_extent_completion *done)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_kv_nvme *nvme = &tiers->nvme;
    int32_t image = (int32_t)done->token, block = tiers->pool.images[image].block;

    nvme->reading--;
    if (done->result == NOSA_EXTENT_OK) {
        nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_HELD);
        tiers->pool.images[image].on_nvme = true;
        tiers->pool.images[image].value = image_value(tiers, image);
        nvme->read_blocks++;
        if (block == NOSA_KV_BLOCK_NONE) {
            nosa_image_pool_drop(&tiers->pool, image, true);
            return;
        }
        nosa_extent_store_unpin(nvme->extents, nvme->handle[block]);
        nvme->absent[block] = false;
        nosa_kv_tiers_unlock(store, block);
        nosa_kv_tiers_want_loaded(store, block);
        return;
    }
    if (block != NOSA_KV_BLOCK_NONE)
        tiers->image[block] = NOSA_KV_IMAGE_NONE;
    tiers->pool.images[image].block = NOSA_KV_BLOCK_NONE;
    if (!done->buffer_held)
        nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_FREE);
    if (block != NOSA_KV_BLOCK_NONE)
        fail_read(store, block);
}

/* ---- writing -------------------------------------------------------------------------------- */

void nosa_kv_nvme_want_written(struct nosa_kv_store *store, int32_t image)
{
    const struct nosa_image *entry = &store->tiers.pool.images[image];
    if (store->tiers.nvme.extents && entry->named && !entry->on_nvme)
        nosa_number_ring_push(&store->tiers.nvme.to_write, image);
}

/* The image's bytes are on NVMe. */
static void became_written(struct nosa_kv_store *store, int32_t image)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_image *entry = &tiers->pool.images[image];
    entry->on_nvme = true;
    entry->value = image_value(tiers, image);
    if (entry->state != NOSA_IMAGE_HELD)
        return;
    tiers->nvme.written[entry->block] = true;
    nosa_kv_tiers_detach(store, image);
}

/* Starts writing an image; false when it has to wait. */
static bool start_write(struct nosa_kv_store *store, int32_t image)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_kv_nvme *nvme = &tiers->nvme;
    const struct nosa_image *entry = &tiers->pool.images[image];
    const struct nosa_block_content *content = &tiers->pool.contents[image];
    bool valid = entry->state == NOSA_IMAGE_HELD || entry->state == NOSA_IMAGE_CACHED;

    if (!valid || !entry->named || entry->on_nvme || !usable(nvme))
        return true;
    struct nosa_extent_write write = {
        .key = tiers->pool.keys[image],
        .parent = content->parent,
        .tokens = content->tokens,
        .image = tiers->images_view.images + (size_t)image * tiers->images_view.image_bytes,
        .use = use_of(nvme, nvme->writes_of_epoch++),
        .value = image_value(tiers, image),
    };
    struct nosa_extent_handle known =
        nosa_extent_store_find(nvme->extents, &write.key, &write.parent, write.tokens);
    if (known.index != NOSA_EXTENT_NONE) {
        became_written(store, image);
        return true;
    }
    enum nosa_status status = nosa_extent_store_write(nvme->extents, (uint64_t)image, &write);
    if (status == NOSA_UNAVAILABLE)
        return false;
    if (status == NOSA_OK) {
        nosa_image_pool_pin(&tiers->pool, image);
        nvme->writing++;
    }
    return true;
}

static void end_write(struct nosa_kv_store *store, const struct nosa_extent_completion *done)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    int32_t image = (int32_t)done->token;

    tiers->nvme.writing--;
    if (!done->buffer_held)
        nosa_image_pool_unpin(&tiers->pool, image);
    if (done->result == NOSA_EXTENT_OK || done->result == NOSA_EXTENT_EXISTS) {
        tiers->nvme.written_blocks += done->result == NOSA_EXTENT_OK;
        became_written(store, image);
    }
}

void nosa_kv_nvme_touch(struct nosa_kv_sequence *sequence)
{
    struct nosa_kv_nvme *nvme = &sequence->store->tiers.nvme;
    if (!nvme->extents || sequence->private)
        return;
    nvme->epoch++;
    nvme->writes_of_epoch = (uint64_t)sequence->n_blocks;
    for (int32_t i = sequence->n_blocks - 1; i >= 0; i--) {
        struct nosa_extent_handle handle = find(sequence, i);
        if (handle.index != NOSA_EXTENT_NONE)
            nosa_extent_store_touch(nvme->extents, handle, use_of(nvme, (uint64_t)i), 0);
    }
}

/* ---- blocks in use that only NVMe holds whole ------------------------------------------------ */

/* Whether windows that a sequence still completes reach into the block: those of its next block. */
static bool is_tail(const struct nosa_kv_store *store, int32_t block)
{
    for (int32_t i = 0; i < store->options.sequences_max; i++) {
        const struct nosa_kv_sequence *sequence = &store->sequences[i];
        int32_t complete = sequence->computed / NOSA_BLOCK_TOKENS;
        if (sequence->open && !sequence->suspended && complete > 0 &&
            sequence->blocks[complete - 1] == block)
            return true;
    }
    return false;
}

/* Recency first, as traces have it; E where use says nothing (docs/kv-tiers.md). */
static bool worth_less(const struct nosa_image *a, const struct nosa_image *b)
{
    return a->use != b->use ? a->use < b->use : a->value < b->value;
}

/* The HELD image worth least whose block can do without: its bytes are on NVMe too, nobody reads
 * the image, no step still has to load its summary, and no window to come reaches into it. */
static int32_t least_image(const struct nosa_kv_store *store)
{
    const struct nosa_image_pool *pool = &store->tiers.pool;
    int32_t least = NOSA_KV_IMAGE_NONE;
    for (int32_t i = 0; i < pool->n_images; i++) {
        const struct nosa_image *entry = &pool->images[i];
        if (entry->state == NOSA_IMAGE_HELD && entry->on_nvme && entry->pins == 0 &&
            (least == NOSA_KV_IMAGE_NONE || worth_less(entry, &pool->images[least])) &&
            !store->tiers.loading[entry->block] && !is_tail(store, entry->block))
            least = i;
    }
    return least;
}

bool nosa_kv_nvme_demote(struct nosa_kv_store *store)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_kv_nvme *nvme = &tiers->nvme;

    if (!tiers->tight || !usable(nvme))
        return false;
    int32_t image;
    while ((image = least_image(store)) != NOSA_KV_IMAGE_NONE) {
        const struct nosa_block_content *content = &tiers->pool.contents[image];
        int32_t block = tiers->pool.images[image].block;
        if (nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_CACHED) {
            nosa_prefix_cache_evict(&store->cache, block); /* its image may go as any other */
            return true;
        }
        struct nosa_extent_handle handle = nosa_extent_store_find(
            nvme->extents, &tiers->pool.keys[image], &content->parent, content->tokens);
        if (!nosa_extent_store_pin(nvme->extents, handle)) { /* given up since */
            tiers->pool.images[image].on_nvme = false;
            nosa_kv_nvme_want_written(store, image);
            continue;
        }
        nvme->cold[block] = true;
        nvme->n_cold++;
        nvme->handle[block] = handle;
        tiers->image[block] = NOSA_KV_IMAGE_NONE;
        nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_FREE);
        nosa_kv_tiers_state_changed(tiers, block);
        return true;
    }
    return false;
}

/* Steps between two reports of use: a quarter of what the weights forget by half. */
#define USE_STEPS 2

bool nosa_kv_store_wants_use(const struct nosa_kv_store *store)
{
    const struct nosa_kv_tiers *tiers = &store->tiers;
    return tiers->tight && tiers->nvme.extents && nosa_image_pool_available(&tiers->pool) == 0 &&
           tiers->step - tiers->nvme.use_step >= USE_STEPS;
}

/* What a record's image is worth to its pool: how often steps used it lately, and nothing while the
 * first tier has it too. */
static float record_worth(const struct nosa_kv_view *view, int64_t record, uint32_t step)
{
    if (view->record_slot[record] != NOSA_KV_SLOT_NONE)
        return 0;
    /* but the use that the function adds */
    return nosa_kv_policy_weight(view->record_weight[record], view->record_use[record], step) -
           1.0f;
}

void nosa_kv_store_report_use(struct nosa_kv_store *store, const struct nosa_kv_view *view,
                              bool first)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    int32_t pools = view->geometry.n_layers * view->geometry.n_kv_heads;
    float records = (float)(tiers->options.geometry.n_layers * tiers->options.geometry.n_kv_heads);

    tiers->nvme.use_step = tiers->step;
    for (int32_t i = 0; i < tiers->pool.n_images; i++) {
        struct nosa_image *image = &tiers->pool.images[i];
        if (image->state != NOSA_IMAGE_HELD)
            continue;
        float sum = 0;
        for (int32_t pool = 0; pool < pools; pool++)
            sum += record_worth(view, (int64_t)pool * view->n_blocks + image->block, tiers->step);
        image->use = (first ? 0 : image->use) + sum / records;
    }
}

void nosa_kv_nvme_drop_cold_tail(struct nosa_kv_sequence *sequence)
{
    const struct nosa_kv_nvme *nvme = &sequence->store->tiers.nvme;
    int32_t n_blocks = sequence->n_blocks;

    while (nvme->n_cold > 0 && n_blocks > 0 && nvme->cold[sequence->blocks[n_blocks - 1]])
        n_blocks--;
    if (n_blocks < sequence->n_blocks)
        truncate(sequence, n_blocks);
}

bool nosa_kv_sequence_take_loss(struct nosa_kv_sequence *sequence)
{
    const struct nosa_kv_nvme *nvme = &sequence->store->tiers.nvme;
    for (int32_t i = 0; i < sequence->n_blocks && nvme->n_cold > 0; i++)
        if (nvme->lost[sequence->blocks[i]]) {
            truncate(sequence, i);
            nosa_kv_nvme_drop_cold_tail(sequence);
            return true;
        }
    return false;
}

/* ---- moving on ------------------------------------------------------------------------------ */

/* Memory that a device held on to is free again. */
static void end_hold(struct nosa_kv_store *store, const struct nosa_extent_completion *done)
{
    struct nosa_image_pool *pool = &store->tiers.pool;
    int32_t image = (int32_t)done->token;
    if (done->token >= NOSA_KV_STAGING_TOKEN)
        nosa_kv_staging_move(&store->tiers.nvme, (int32_t)(done->token - NOSA_KV_STAGING_TOKEN),
                             NOSA_KV_STAGING_FREE);
    else if (done->kind == NOSA_EXTENT_WRITE)
        nosa_image_pool_unpin(pool, image);
    else
        nosa_image_pool_move(pool, image, NOSA_IMAGE_FREE);
}

static uint32_t take_completions(struct nosa_kv_store *store, uint32_t wait_ms)
{
    struct nosa_kv_nvme *nvme = &store->tiers.nvme;
    struct nosa_extent_completion done[COMPLETIONS];
    uint32_t n = nosa_extent_store_poll(nvme->extents, done, COMPLETIONS, wait_ms);

    for (uint32_t i = 0; i < n; i++) {
        if (done[i].result == NOSA_EXTENT_RELEASED) {
            end_hold(store, &done[i]);
            continue;
        }
        count_result(nvme, &done[i]);
        if (done[i].kind == NOSA_EXTENT_WRITE)
            end_write(store, &done[i]);
        else
            end_read(store, &done[i]);
    }
    return n;
}

static void start_waiting(struct nosa_kv_store *store)
{
    struct nosa_kv_nvme *nvme = &store->tiers.nvme;
    while (nvme->to_read.count > 0 && start_read(store, nosa_number_ring_front(&nvme->to_read)))
        nosa_number_ring_pop(&nvme->to_read);
    while (nvme->to_write.count > 0 && start_write(store, nosa_number_ring_front(&nvme->to_write)))
        nosa_number_ring_pop(&nvme->to_write);
    nosa_extent_store_submit(nvme->extents);
}

void nosa_kv_nvme_pump(struct nosa_kv_store *store, uint32_t wait_ms)
{
    start_waiting(store);
    while (take_completions(store, wait_ms) == COMPLETIONS)
        wait_ms = 0;
    start_waiting(store);
}

/* A block that waits for an image while nothing is under way that could give it one is computed. */
static void give_up_waiting(struct nosa_kv_store *store)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_kv_nvme *nvme = &tiers->nvme;
    while (nvme->to_read.count > 0 && nvme->reading == 0 && nvme->writing == 0 &&
           tiers->n_loads == 0) {
        int32_t block = nosa_number_ring_front(&nvme->to_read);
        if (!start_read(store, block))
            fail_read(store, block);
        nosa_number_ring_pop(&nvme->to_read);
    }
}

void nosa_kv_store_poll(struct nosa_kv_store *store, uint32_t wait_ms)
{
    NOSA_ASSERT(!store->tiers.in_step);
    if (!store->tiers.nvme.extents)
        return;
    nosa_kv_nvme_pump(store, wait_ms);
    give_up_waiting(store);
}

bool nosa_kv_sequence_ready(struct nosa_kv_sequence *sequence)
{
    const struct nosa_kv_nvme *nvme = &sequence->store->tiers.nvme;
    if (!nvme->extents || sequence->suspended)
        return true;
    while (sequence->n_ready < sequence->computed / NOSA_BLOCK_TOKENS &&
           !nvme->absent[sequence->blocks[sequence->n_ready]])
        sequence->n_ready++;
    return sequence->n_ready >= sequence->computed / NOSA_BLOCK_TOKENS;
}

int32_t nosa_kv_store_unsaved(const struct nosa_kv_store *store)
{
    const struct nosa_kv_tiers *tiers = &store->tiers;
    return tiers->unsaved.count + tiers->n_saving + tiers->nvme.to_write.count +
           tiers->nvme.writing;
}

bool nosa_kv_store_has_moves(const struct nosa_kv_store *store)
{
    const struct nosa_kv_tiers *tiers = &store->tiers;
    return tiers->n_loads > 0 ||
           (tiers->unsaved.count > 0 &&
            (nosa_image_pool_available(&tiers->pool) > 0 ||
             nosa_kv_tiers_spare(store) != NOSA_BLOCK_NONE ||
             (tiers->tight && tiers->nvme.extents && least_image(store) != NOSA_KV_IMAGE_NONE)));
}

void nosa_kv_store_report_compute(struct nosa_kv_store *store, int32_t n_tokens, uint64_t ns)
{
    struct nosa_kv_nvme *nvme = &store->tiers.nvme;
    double now = (double)ns / n_tokens;
    nvme->compute_ns = nvme->compute_ns == 0 ? now : 0.75 * nvme->compute_ns + 0.25 * now;
}
