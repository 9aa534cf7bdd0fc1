/*
 * Which copies of a block exist, and the moves of a step. Every change of a block's lifecycle comes
 * here through the pool's observer; nothing else keeps track of ids that come and go.
 *
 * In a tight first tier (fewer slots than ids) a block is LOCKED until it has an image. Blocks that
 * a step will complete get their images, while there are any, before the step runs, so that they
 * are copied at its end; what found no image waits in a ring.
 */
#include <stdlib.h>
#include <string.h>

#include "kv_store_internal.h"

/* ---- what the ops must learn ---------------------------------------------------------------- */

void nosa_kv_tiers_state_changed(struct nosa_kv_tiers *tiers, int32_t block)
{
    if (!tiers->tight || tiers->state_changed[block])
        return;
    tiers->state_changed[block] = true;
    tiers->states[tiers->n_states++] = block;
}

static bool is_cached(const struct nosa_kv_store *store, int32_t block)
{
    return nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_CACHED;
}

void nosa_kv_tiers_set_class(struct nosa_kv_store *store, int32_t block,
                             enum nosa_kv_class kv_class)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    tiers->locked +=
        (kv_class == NOSA_KV_CLASS_LOCKED) - (tiers->kv_class[block] == NOSA_KV_CLASS_LOCKED);
    tiers->kv_class[block] = (uint8_t)kv_class;
    nosa_kv_tiers_state_changed(tiers, block);
}

void nosa_kv_tiers_unlock(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    bool cached = is_cached(store, block);
    if (tiers->kv_class[block] == NOSA_KV_CLASS_LOCKED)
        tiers->locked_cached -= cached;
    nosa_kv_tiers_set_class(store, block, cached ? NOSA_KV_CLASS_SPARE : NOSA_KV_CLASS_IN_USE);
}

void nosa_kv_tiers_detach(struct nosa_kv_store *store, int32_t image)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    const struct nosa_image *entry = &tiers->pool.images[image];
    if (entry->state != NOSA_IMAGE_HELD || entry->pins > 0 || tiers->tight ||
        tiers->loading[entry->block])
        return;
    tiers->image[entry->block] = NOSA_KV_IMAGE_NONE;
    nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_FREE);
}

/* ---- the observer --------------------------------------------------------------------------- */

/* The block's id is given up; `findable`: its key still names its bytes. */
static void release_image(struct nosa_kv_tiers *tiers, int32_t block, bool findable)
{
    int32_t image = tiers->image[block];
    if (image == NOSA_KV_IMAGE_NONE)
        return;
    tiers->image[block] = NOSA_KV_IMAGE_NONE;
    if (tiers->pool.images[image].state == NOSA_IMAGE_HELD)
        nosa_image_pool_drop(&tiers->pool, image, findable);
    else /* being filled: whoever fills it sees that its block is gone */
        tiers->pool.images[image].block = NOSA_KV_BLOCK_NONE;
}

static void remove_load(struct nosa_kv_tiers *tiers, int32_t block)
{
    if (!tiers->loading[block])
        return;
    tiers->loading[block] = false;
    for (int32_t i = 0; i < tiers->n_loads; i++)
        if (tiers->loads[i] == block) {
            tiers->loads[i] = tiers->loads[--tiers->n_loads];
            return;
        }
}

static void remove_place(struct nosa_kv_tiers *tiers, int32_t block)
{
    for (int32_t i = 0; i < tiers->n_place; i++)
        if (tiers->place[i] == block) {
            tiers->place[i] = tiers->place[--tiers->n_place];
            return;
        }
}

static void became_free(struct nosa_kv_store *store, int32_t block, enum nosa_block_state from)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    if (tiers->kv_class[block] == NOSA_KV_CLASS_LOCKED)
        tiers->locked_cached -= from == NOSA_BLOCK_CACHED;
    nosa_kv_tiers_set_class(store, block, NOSA_KV_CLASS_SPARE);
    release_image(tiers, block, from == NOSA_BLOCK_CACHED);
    remove_load(tiers, block);
    if (from == NOSA_BLOCK_FILLING)
        remove_place(tiers, block);
    if (tiers->nvme.extents)
        nosa_kv_nvme_block_free(store, block);
    if (tiers->tight && !tiers->forgotten[block]) {
        tiers->forgotten[block] = true;
        tiers->forget[tiers->n_forget++] = block;
    }
}

static void block_moved(void *context, int32_t block, enum nosa_block_state from,
                        enum nosa_block_state to)
{
    struct nosa_kv_store *store = context;
    struct nosa_kv_tiers *tiers = &store->tiers;
    bool locked = tiers->kv_class[block] == NOSA_KV_CLASS_LOCKED;

    if (to == NOSA_BLOCK_FREE) {
        became_free(store, block, from);
    } else if (from == NOSA_BLOCK_FREE) {
        nosa_kv_tiers_set_class(store, block, NOSA_KV_CLASS_LOCKED);
    } else if (to == NOSA_BLOCK_CACHED) {
        tiers->locked_cached += locked;
        if (!locked)
            nosa_kv_tiers_set_class(store, block, NOSA_KV_CLASS_SPARE);
    } else if (from == NOSA_BLOCK_CACHED) {
        tiers->locked_cached -= locked;
        if (!locked)
            nosa_kv_tiers_set_class(store, block, NOSA_KV_CLASS_IN_USE);
    } else if (from == NOSA_BLOCK_COPY && tiers->image[block] != NOSA_KV_IMAGE_NONE) {
        nosa_kv_tiers_name_image(store, block); /* it is the findable one now */
    }
}

/* ---- creation ------------------------------------------------------------------------------- */

static enum nosa_status check_options(const struct nosa_kv_store_options *options,
                                      struct nosa_error *error)
{
    const struct nosa_kv_tier_options *tiers = &options->tiers;
    if (tiers->n_slots == 0 || tiers->n_slots >= options->n_blocks)
        return NOSA_OK;
    if (!tiers->host)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV store: %d slots for %d blocks without a host tier",
                              (int)tiers->n_slots, (int)options->n_blocks);
    if (tiers->n_slots <= tiers->working_slots)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "KV store: %d slots; a step works on %d and writes at least one more",
                              (int)tiers->n_slots, (int)tiers->working_slots);
    return NOSA_OK;
}

static enum nosa_status take_arrays(struct nosa_kv_tiers *tiers, size_t n_blocks, size_t n_images,
                                    struct nosa_error *error)
{
    struct {
        void **pointer;
        size_t count, bytes;
    } arrays[] = {
        {(void **)&tiers->image, n_blocks, sizeof *tiers->image},
        {(void **)&tiers->kv_class, n_blocks, sizeof *tiers->kv_class},
        {(void **)&tiers->state_changed, n_blocks, sizeof *tiers->state_changed},
        {(void **)&tiers->forgotten, n_blocks, sizeof *tiers->forgotten},
        {(void **)&tiers->loading, n_blocks, sizeof *tiers->loading},
        {(void **)&tiers->states, n_blocks, sizeof *tiers->states},
        {(void **)&tiers->forget, n_blocks, sizeof *tiers->forget},
        {(void **)&tiers->loads, n_blocks, sizeof *tiers->loads},
        {(void **)&tiers->place, n_blocks, sizeof *tiers->place},
        {(void **)&tiers->saving, n_images, sizeof *tiers->saving},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *arrays[i].pointer = calloc(arrays[i].count, arrays[i].bytes);
        if (!*arrays[i].pointer)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                                  "KV store: no memory for the tiers of %zu blocks", n_blocks);
    }
    return NOSA_OK;
}

enum nosa_status nosa_kv_tiers_create(struct nosa_kv_store *store, struct nosa_error *error)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    const struct nosa_kv_host_pool *host = store->options.tiers.host;

    NOSA_TRY(check_options(&store->options, error));
    tiers->options = store->options.tiers;
    if (!host)
        return NOSA_OK;
    int32_t n_blocks = store->options.n_blocks;
    tiers->tight = tiers->options.n_slots > 0 && tiers->options.n_slots < n_blocks;
    tiers->images_view = (struct nosa_kv_view){
        .geometry = tiers->options.geometry,
        .images = host->images,
        .image_bytes = host->image_bytes,
        .image_kv_heads = host->kv_heads,
    };
    NOSA_TRY(nosa_image_pool_create(&tiers->pool, host->n_images, error));
    NOSA_TRY(take_arrays(tiers, (size_t)n_blocks, (size_t)host->n_images, error));
    if (nosa_number_ring_create(&tiers->unsaved, n_blocks) != NOSA_OK)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV store: no memory for %d blocks",
                              (int)n_blocks);
    if (tiers->options.extents)
        NOSA_TRY(nosa_kv_nvme_create(store, error));
    for (int32_t i = 0; i < n_blocks; i++)
        tiers->image[i] = NOSA_KV_IMAGE_NONE;
    store->cache.pool.observer = block_moved;
    store->cache.pool.observer_context = store;
    return NOSA_OK;
}

void nosa_kv_tiers_destroy(struct nosa_kv_tiers *tiers)
{
    free(tiers->saving);
    free(tiers->place);
    free(tiers->loads);
    free(tiers->forget);
    free(tiers->states);
    free(tiers->loading);
    free(tiers->forgotten);
    free(tiers->state_changed);
    free(tiers->kv_class);
    free(tiers->image);
    nosa_number_ring_destroy(&tiers->unsaved);
    nosa_kv_nvme_destroy(&tiers->nvme);
    nosa_image_pool_destroy(&tiers->pool);
    memset(tiers, 0, sizeof *tiers);
}

/* ---- taking ids ----------------------------------------------------------------------------- */

static int32_t lock_limit(const struct nosa_kv_tiers *tiers)
{
    return tiers->options.n_slots - tiers->options.working_slots;
}

int32_t nosa_kv_tiers_room(const struct nosa_kv_store *store)
{
    const struct nosa_kv_tiers *tiers = &store->tiers;
    if (!tiers->tight)
        return INT32_MAX;
    int32_t room = lock_limit(tiers) - (tiers->locked - tiers->locked_cached);
    return room > 0 ? room : 0;
}

/* Gives up cached blocks that have no image, until one more block can be locked. */
static void make_room(struct nosa_kv_store *store)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    struct nosa_block_pool *pool = &store->cache.pool;

    for (int32_t block = nosa_block_pool_oldest(pool);
         tiers->locked >= lock_limit(tiers) && block != NOSA_BLOCK_NONE;) {
        int32_t next = pool->newer[block];
        if (tiers->kv_class[block] == NOSA_KV_CLASS_LOCKED) {
            tiers->pool.lost++;
            nosa_prefix_cache_evict(&store->cache, block);
        }
        block = next;
    }
    NOSA_ASSERT(tiers->locked < lock_limit(tiers));
}

int32_t nosa_kv_tiers_take(struct nosa_kv_store *store)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    if (tiers->tight)
        make_room(store);
    int32_t block = nosa_prefix_cache_take(&store->cache);
    if (tiers->tight)
        tiers->place[tiers->n_place++] = block;
    return block;
}

int32_t nosa_kv_tiers_adopt(struct nosa_kv_sequence *sequence, int32_t index)
{
    struct nosa_kv_store *store = sequence->store;
    struct nosa_kv_tiers *tiers = &store->tiers;
    const struct nosa_chain_key *parent = &sequence->keys[index], *key = &sequence->keys[index + 1];
    const uint32_t *tokens = sequence->tokens + (size_t)index * NOSA_BLOCK_TOKENS;

    if (!tiers->options.host || nosa_prefix_cache_available(&store->cache) == 0 ||
        nosa_prefix_index_find(&store->cache.index, key) != NOSA_BLOCK_NONE) /* of other tokens */
        return NOSA_BLOCK_NONE;
    int32_t image = nosa_image_pool_find(&tiers->pool, key, parent, tokens);
    if (image == NOSA_KV_IMAGE_NONE)
        return NOSA_BLOCK_NONE;
    /* Taking an id may evict a block whose image then counts as used last: ours is safe. */
    nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_HELD);
    int32_t block = nosa_prefix_cache_take(&store->cache);
    tiers->pool.images[image].block = block;
    tiers->image[block] = image;
    bool published = nosa_prefix_cache_publish(&store->cache, block, key, parent, tokens);
    NOSA_ASSERT(published &&
                nosa_block_pool_state(&store->cache.pool, block) == NOSA_BLOCK_COMPLETE);
    nosa_kv_tiers_unlock(store, block);
    nosa_kv_tiers_want_loaded(store, block);
    tiers->loaded_blocks++;
    sequence->prefetch = true;
    return block;
}

void nosa_kv_tiers_want_loaded(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    tiers->loading[block] = true;
    tiers->loads[tiers->n_loads++] = block;
}

/* ---- saving --------------------------------------------------------------------------------- */

void nosa_kv_tiers_name_image(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    nosa_image_pool_name(&tiers->pool, tiers->image[block], &store->cache.keys[block],
                         &store->cache.contents[block]);
}

void nosa_kv_tiers_want_saved(struct nosa_kv_store *store, int32_t block)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    bool on_nvme = !tiers->tight && tiers->nvme.extents && tiers->nvme.written[block];
    if (tiers->options.host && tiers->image[block] == NOSA_KV_IMAGE_NONE && !on_nvme)
        nosa_number_ring_push(&tiers->unsaved, block);
}

void nosa_kv_tiers_completed(struct nosa_kv_sequence *sequence, int32_t index)
{
    struct nosa_kv_store *store = sequence->store;
    struct nosa_kv_tiers *tiers = &store->tiers;
    int32_t block = sequence->blocks[index];

    if (!tiers->options.host)
        return;
    if (tiers->image[block] == NOSA_KV_IMAGE_NONE) {
        if (tiers->tight || (tiers->nvme.extents && !sequence->private))
            nosa_kv_tiers_want_saved(store, block);
    } else if (!sequence->private) {
        nosa_kv_tiers_name_image(store, block);
        nosa_kv_nvme_want_written(store, tiers->image[block]);
    }
}

int32_t nosa_kv_tiers_spare(const struct nosa_kv_store *store)
{
    const struct nosa_kv_tiers *tiers = &store->tiers;
    const struct nosa_block_pool *pool = &store->cache.pool;
    int32_t block = tiers->tight ? nosa_block_pool_oldest(pool) : NOSA_BLOCK_NONE;
    for (; block != NOSA_BLOCK_NONE; block = pool->newer[block]) {
        int32_t image = tiers->image[block];
        if (image != NOSA_KV_IMAGE_NONE && !tiers->loading[block] &&
            tiers->pool.images[image].state == NOSA_IMAGE_HELD &&
            tiers->pool.images[image].pins == 0)
            return block;
    }
    return NOSA_BLOCK_NONE;
}

/* Blocks that are only cached hold images too: without another place for what runs, the one used
 * longest ago gives its id up, and so its image. */
static bool give_up_cached(struct nosa_kv_store *store)
{
    int32_t block = nosa_kv_tiers_spare(store);
    if (block == NOSA_BLOCK_NONE)
        return false;
    nosa_prefix_cache_evict(&store->cache, block);
    return true;
}

/* Has the step save the block, if there is an image for it. */
static bool save(struct nosa_kv_store *store, int32_t block, struct nosa_kv_moves *moves)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    if (nosa_image_pool_available(&tiers->pool) == 0 && !nosa_kv_nvme_demote(store) &&
        !give_up_cached(store))
        return false;
    int32_t image = nosa_image_pool_take(&tiers->pool, block, NOSA_IMAGE_SAVING);
    tiers->image[block] = image;
    tiers->saving[tiers->n_saving++] = image;
    moves->saves[moves->n_saves++] = (struct nosa_kv_block_image){block, image};
    return true;
}

/* Blocks that wait, oldest first. */
static void save_waiting(struct nosa_kv_store *store, struct nosa_kv_moves *moves)
{
    struct nosa_kv_tiers *tiers = &store->tiers;
    while (tiers->unsaved.count > 0) {
        int32_t block = nosa_number_ring_front(&tiers->unsaved);
        enum nosa_block_state state = nosa_block_pool_state(&store->cache.pool, block);
        bool wanted =
            state != NOSA_BLOCK_FREE && state != NOSA_BLOCK_FILLING &&
            tiers->image[block] == NOSA_KV_IMAGE_NONE &&
            !(tiers->nvme.extents && (tiers->nvme.absent[block] || tiers->nvme.cold[block]));
        if (wanted && !save(store, block, moves))
            return;
        if (wanted && state != NOSA_BLOCK_COPY)
            nosa_kv_tiers_name_image(store, block);
        nosa_number_ring_pop(&tiers->unsaved);
    }
}

static void save_completing(struct nosa_kv_store *store, const struct nosa_kv_step_item *item,
                            struct nosa_kv_moves *moves)
{
    struct nosa_kv_sequence *sequence = item->sequence;
    for (int32_t i = sequence->computed / NOSA_BLOCK_TOKENS; i < item->end / NOSA_BLOCK_TOKENS; i++)
        if (store->tiers.image[sequence->blocks[i]] == NOSA_KV_IMAGE_NONE &&
            !save(store, sequence->blocks[i], moves))
            return;
}

/* A first tier that holds everything is demoted ahead of need: the blocks whose ids are given up
 * next, while a step's worth of ids is free. */
static void save_oldest(struct nosa_kv_store *store)
{
    struct nosa_block_pool *pool = &store->cache.pool;
    int32_t ahead = store->options.n_blocks / 16 + 1;
    if (pool->in_state[NOSA_BLOCK_FREE] >= ahead)
        return;
    int32_t block = nosa_block_pool_oldest(pool);
    for (int32_t i = 0; i < ahead && block != NOSA_BLOCK_NONE; i++, block = pool->newer[block])
        nosa_kv_tiers_want_saved(store, block);
}

/* ---- the step ------------------------------------------------------------------------------- */

static void list_states(struct nosa_kv_tiers *tiers, struct nosa_kv_moves *moves)
{
    for (int32_t i = 0; i < tiers->n_states; i++) {
        int32_t block = tiers->states[i], image = tiers->image[block];
        bool held =
            image != NOSA_KV_IMAGE_NONE && tiers->pool.images[image].state == NOSA_IMAGE_HELD;
        tiers->state_changed[block] = false;
        moves->states[moves->n_states++] = (struct nosa_kv_block_state){
            .block = block,
            .image = held ? image : NOSA_KV_IMAGE_NONE,
            .kv_class = tiers->kv_class[block],
        };
    }
    tiers->n_states = 0;
}

static void list_moves(struct nosa_kv_tiers *tiers, struct nosa_kv_moves *moves)
{
    for (int32_t i = 0; i < tiers->n_forget; i++) {
        tiers->forgotten[tiers->forget[i]] = false;
        moves->forget[moves->n_forget++] = tiers->forget[i];
    }
    for (int32_t i = 0; i < tiers->n_loads; i++) {
        int32_t block = tiers->loads[i];
        tiers->loading[block] = false;
        int32_t image = tiers->image[block];
        moves->loads[moves->n_loads++] = (struct nosa_kv_block_image){block, image};
        if (!tiers->tight && tiers->pool.images[image].on_nvme)
            tiers->nvme.freed[tiers->nvme.n_freed++] = image;
    }
    for (int32_t i = 0; i < tiers->n_place; i++)
        moves->place[moves->n_place++] = tiers->place[i];
    tiers->n_forget = 0;
    tiers->n_loads = 0;
    tiers->n_place = 0;
}

/* Steps without a sequence after which its records give way to those of sequences that run. */
#define IDLE_STEPS 8

/* Blocks that others use too stay as they are. */
static void set_sequence_class(struct nosa_kv_sequence *sequence, enum nosa_kv_class kv_class)
{
    struct nosa_kv_store *store = sequence->store;
    for (int32_t i = 0; i < sequence->computed / NOSA_BLOCK_TOKENS; i++) {
        int32_t block = sequence->blocks[i];
        if (store->tiers.kv_class[block] != NOSA_KV_CLASS_LOCKED &&
            store->cache.pool.references[block] == 1)
            nosa_kv_tiers_set_class(store, block, kv_class);
    }
}

/* The slots belong to the sequences that run: one that takes no part in steps for a while keeps
 * only what the others leave it. */
static void set_quotas(struct nosa_kv_store *store, const struct nosa_kv_step_item *items,
                       int32_t n_items)
{
    for (int32_t i = 0; i < store->options.sequences_max && n_items > 0; i++) {
        struct nosa_kv_sequence *sequence = &store->sequences[i];
        if (sequence->open && !sequence->suspended && ++sequence->idle_steps == IDLE_STEPS)
            set_sequence_class(sequence, NOSA_KV_CLASS_SPARE);
    }
    for (int32_t i = 0; i < n_items; i++) {
        if (items[i].sequence->idle_steps >= IDLE_STEPS)
            set_sequence_class(items[i].sequence, NOSA_KV_CLASS_IN_USE);
        items[i].sequence->idle_steps = 0;
    }
}

static bool has_cold(const struct nosa_kv_step_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        const struct nosa_kv_sequence *sequence = items[i].sequence;
        const struct nosa_kv_nvme *nvme = &sequence->store->tiers.nvme;
        for (int32_t b = 0; b < sequence->n_blocks && nvme->n_cold > 0; b++)
            if (nvme->cold[sequence->blocks[b]])
                return true;
    }
    return false;
}

void nosa_kv_store_begin_step(struct nosa_kv_store *store, const struct nosa_kv_step_item *items,
                              int32_t n_items, struct nosa_kv_moves *moves)
{
    struct nosa_kv_tiers *tiers = &store->tiers;

    NOSA_ASSERT(!tiers->in_step);
    tiers->in_step = true;
    moves->n_forget = moves->n_states = moves->n_loads = 0;
    moves->n_place = moves->n_fetch = moves->n_saves = 0;
    moves->cold = false;
    moves->step = ++tiers->step;
    if (!tiers->options.host)
        return;
    if (tiers->nvme.extents)
        nosa_kv_nvme_pump(store, 0);
    if (!tiers->tight)
        save_oldest(store);
    save_waiting(store, moves);
    for (int32_t i = 0; i < n_items && tiers->tight; i++)
        save_completing(store, &items[i], moves);
    moves->cold = has_cold(items, n_items);
    for (int32_t i = 0; i < n_items && moves->cold; i++) /* every pass is a step of its own */
        tiers->step += (uint32_t)(items[i].end - items[i].sequence->computed +
                                  (tiers->options.selects_all ? items[i].sequence->n_blocks : 0));
    moves->slots_per_pass = tiers->options.n_slots - tiers->locked;
    moves->rows_per_pass = moves->slots_per_pass / tiers->options.working_slots;
    if (tiers->tight)
        set_quotas(store, items, n_items);
    list_states(tiers, moves);
    list_moves(tiers, moves);
    for (int32_t i = 0; i < store->options.sequences_max && tiers->tight; i++) {
        struct nosa_kv_sequence *sequence = &store->sequences[i];
        if (sequence->open && sequence->prefetch && nosa_kv_prefetch(sequence, moves))
            sequence->prefetch = false;
    }
    tiers->prefetched_records += (uint64_t)moves->n_fetch;
}

void nosa_kv_store_end_step(struct nosa_kv_store *store)
{
    struct nosa_kv_tiers *tiers = &store->tiers;

    NOSA_ASSERT(tiers->in_step);
    tiers->in_step = false;
    for (int32_t i = 0; i < tiers->n_saving; i++) {
        int32_t image = tiers->saving[i], block = tiers->pool.images[image].block;
        nosa_image_pool_move(&tiers->pool, image, NOSA_IMAGE_HELD);
        if (block == NOSA_KV_BLOCK_NONE) /* a cached block, given up meanwhile */
            nosa_image_pool_drop(&tiers->pool, image, true);
        else
            nosa_kv_tiers_unlock(store, block);
        nosa_kv_nvme_want_written(store, image);
    }
    tiers->saved_blocks += (uint64_t)tiers->n_saving;
    tiers->n_saving = 0;
    /* What was read from NVMe lies in its slots now, and can be read again. */
    for (int32_t i = 0; i < tiers->nvme.n_freed; i++)
        nosa_kv_tiers_detach(store, tiers->nvme.freed[i]);
    tiers->nvme.n_freed = 0;
}
