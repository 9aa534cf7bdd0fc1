/*
 * The KV store with a host pool and an NVMe tier, case by case, over a disk that a test stops,
 * breaks and spoils at a chosen moment. There is no arena and there are no ops: a step's saves fill
 * images with bytes that follow from the block's tokens, and what the store says is loaded is
 * compared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_device.h"
#include "extent_store.h"
#include "kv_store_internal.h"
#include "support/io_sim.h"

#define BLOCKS   16 /* of the longest sequence */
#define CONTEXT  (BLOCKS * NOSA_BLOCK_TOKENS)
#define EXTENTS  40
#define DEADLINE 50 /* ms */

static const struct nosa_kv_geometry geometry = {
    .n_layers = 1,
    .n_kv_heads = 1,
    .head_dim = 16,
    .kernel_size = 8,
    .kernel_stride = 4,
    .type = NOSA_DTYPE_BF16,
};

struct world {
    struct nosa_device *device;
    struct nosa_kv_host_pool host;
    struct io_sim disk;
    struct nosa_extent_store *extents;
    struct nosa_kv_store *store;
    struct nosa_kv_moves moves;
    uint32_t tokens[CONTEXT];
    int32_t loaded; /* by steps so far */
    uint32_t deadline_ms;
};

static int setup(void **state)
{
    struct world *world = calloc(1, sizeof *world);
    struct nosa_cpu_options options = {.threads = 1};
    assert_non_null(world);
    assert_int_equal(nosa_cpu_device_create(&options, &world->device, NULL), NOSA_OK);
    io_sim_init(&world->disk, 1);
    world->deadline_ms = DEADLINE;
    for (uint32_t i = 0; i < CONTEXT; i++)
        world->tokens[i] = 100 + i;
    *state = world;
    return 0;
}

static void halt(struct world *world)
{
    nosa_kv_moves_destroy(&world->moves);
    nosa_kv_store_destroy(world->store);
    io_sim_release(&world->disk);
    assert_int_equal(nosa_extent_store_close(world->extents), 0);
    nosa_kv_host_pool_destroy(&world->host);
    world->store = NULL;
    world->extents = NULL;
}

static int teardown(void **state)
{
    struct world *world = *state;
    halt(world);
    io_sim_destroy(&world->disk);
    world->device->table->destroy(world->device);
    free(world);
    return 0;
}

/* A first tier of n_blocks ids; n_slots 0: one for each. */
static void boot(struct world *world, int32_t n_blocks, int32_t n_slots, int32_t n_images,
                 uint8_t identity)
{
    struct nosa_extent_store_options extents = {
        .directory = "/simulated",
        .geometry = {.n_records = 1,
                     .record_bytes = (uint32_t)nosa_kv_record_bytes(&geometry),
                     .summary_bytes = (uint32_t)nosa_kv_summary_bytes(&geometry)},
        .method = &world->disk.method,
        .deadline_ms = world->deadline_ms,
        .clock = &world->disk.clock.clock,
    };
    assert_int_equal(
        nosa_kv_host_pool_create(world->device, &geometry, 1, n_images, &world->host, NULL),
        NOSA_OK);
    extents.bytes = nosa_extent_file_bytes(&extents.geometry, EXTENTS);
    extents.pool = world->host.images;
    extents.pool_bytes = world->host.image_bytes * (size_t)n_images;
    memset(extents.identity, identity, sizeof extents.identity);
    assert_int_equal(nosa_extent_store_open(&extents, &world->extents, NULL), NOSA_OK);
    struct nosa_kv_store_options options = {
        .n_blocks = n_blocks,
        .sequences_max = 2,
        .context_max = CONTEXT,
        .tiers = {.host = &world->host,
                  .geometry = geometry,
                  .n_slots = n_slots,
                  .working_slots = 4,
                  .sink_blocks = 1,
                  .local_blocks = 1,
                  .extents = world->extents,
                  .clock = &world->disk.clock.clock},
    };
    memset(options.identity, identity, sizeof options.identity);
    assert_int_equal(nosa_kv_store_create(&options, &world->store, NULL), NOSA_OK);
    assert_int_equal(nosa_kv_moves_create(world->store, world->device, &world->moves, NULL),
                     NOSA_OK);
}

/* ---- steps ---------------------------------------------------------------------------------- */

static char *image_of(struct world *world, int32_t image)
{
    return world->host.images + (size_t)image * world->host.image_bytes;
}

/* Which block of the prompt the sequence has under this id. */
static int32_t logical_of(struct nosa_kv_sequence *sequence, int32_t block)
{
    int32_t n_blocks;
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence, &n_blocks);
    for (int32_t i = 0; i < n_blocks; i++)
        if (blocks[i] == block)
            return i;
    return -1;
}

/* A step up to `end` tokens, or one that only moves: the bytes of a block are its number. */
static void step(struct world *world, struct nosa_kv_sequence *sequence, int32_t end)
{
    struct nosa_kv_step_item item = {.sequence = sequence, .end = end};
    bool computes = end > nosa_kv_sequence_computed(sequence);
    if (computes)
        assert_int_equal(nosa_kv_sequence_reserve(sequence, end, NULL), NOSA_OK);
    nosa_kv_store_begin_step(world->store, &item, computes ? 1 : 0, &world->moves);
    for (int32_t i = 0; i < world->moves.n_loads; i++) {
        int32_t logical = logical_of(sequence, world->moves.loads[i].block);
        if (logical < 0) /* of a block behind one that could not be read: it is only cached */
            continue;
        const char *image = image_of(world, world->moves.loads[i].image);
        for (size_t at = 0; at < nosa_kv_record_bytes(&geometry); at++)
            assert_int_equal(image[at], 'A' + logical);
        world->loaded++;
    }
    for (int32_t i = 0; i < world->moves.n_saves; i++)
        memset(image_of(world, world->moves.saves[i].image),
               'A' + logical_of(sequence, world->moves.saves[i].block), world->host.image_bytes);
    nosa_kv_store_end_step(world->store);
    if (computes)
        nosa_kv_sequence_commit(sequence, end);
}

static struct nosa_kv_sequence *open_prompt(struct world *world, int32_t n_tokens, int32_t cached)
{
    struct nosa_kv_sequence *sequence;
    int32_t cached_tokens;
    assert_int_equal(nosa_kv_sequence_open(world->store, world->tokens, n_tokens, NULL, 0,
                                           &sequence, &cached_tokens, NULL),
                     NOSA_OK);
    assert_int_equal(cached_tokens, cached);
    return sequence;
}

/* Until nothing waits that can go on. */
static void settle(struct world *world, struct nosa_kv_sequence *sequence)
{
    for (int i = 0; i < 50; i++) {
        nosa_kv_store_poll(world->store, 20);
        if (nosa_kv_store_has_moves(world->store))
            step(world, sequence, 0);
    }
}

/* A file with the first eight blocks of the prompt, by a process that has ended. */
static void fill_file(struct world *world)
{
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 0);
    for (int32_t end = 128; end <= 512; end += 128)
        step(world, sequence, end);
    settle(world, sequence);
    assert_int_equal(nosa_kv_store_unsaved(world->store), 0);
    nosa_kv_sequence_close(sequence);
    halt(world);
}

/* ---- cases ---------------------------------------------------------------------------------- */

static void test_sequence_open_finds_what_another_process_wrote(void **state)
{
    struct world *world = *state;
    struct nosa_kv_store_counters counters;
    fill_file(world);
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    assert_false(nosa_kv_sequence_ready(sequence));
    settle(world, sequence);
    assert_true(nosa_kv_sequence_ready(sequence));
    assert_int_equal(world->loaded, 8);
    nosa_kv_store_counters(world->store, &counters);
    assert_int_equal(counters.nvme_loaded_blocks, 8);
    assert_int_equal(counters.nvme_recomputed_blocks, 0);
    nosa_kv_sequence_close(sequence);
}

static void test_sequence_open_of_another_identity_finds_nothing(void **state)
{
    struct world *world = *state;
    fill_file(world);
    boot(world, BLOCKS, 0, 8, 2);
    nosa_kv_sequence_close(open_prompt(world, 513, 0));
}

static void test_sequence_open_private_finds_and_leaves_nothing(void **state)
{
    struct world *world = *state;
    struct nosa_kv_sequence *sequence;
    boot(world, BLOCKS, 0, 8, 1);
    assert_int_equal(
        nosa_kv_sequence_open_private(world->store, world->tokens, 129, &sequence, NULL), NOSA_OK);
    step(world, sequence, 129);
    settle(world, sequence);
    nosa_kv_sequence_close(sequence);
    struct nosa_extent_store_counters extents;
    nosa_extent_store_counters(world->extents, &extents);
    assert_int_equal(extents.writes, 0);
}

/* The fourth read fails in one way or another: the sequence ends before its block. */
static void check_cut(struct world *world, uint64_t nth, int64_t result, bool hangs)
{
    struct nosa_kv_store_counters counters;
    fill_file(world);
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    world->disk.fail_nth = nth;
    world->disk.fail_result = result;
    world->disk.fail_hangs = hangs;
    settle(world, sequence);
    assert_true(nosa_kv_sequence_ready(sequence));
    int32_t computed = nosa_kv_sequence_computed(sequence);
    assert_true(computed < 512 && computed % NOSA_BLOCK_TOKENS == 0);
    nosa_kv_store_counters(world->store, &counters);
    assert_int_equal(counters.nvme_recomputed_blocks, 8 - computed / NOSA_BLOCK_TOKENS);
    for (int32_t end = computed + 64; end <= 512; end += 64)
        step(world, sequence, end);
    nosa_kv_sequence_close(sequence);
}

static void test_sequence_ready_after_a_read_error_is_cut(void **state)
{
    check_cut(*state, 4, -5, false);
}

static void test_sequence_ready_after_a_read_that_never_ends_is_cut(void **state)
{
    struct world *world = *state;
    world->disk.cancel_works = false;
    check_cut(world, 4, 0, true);
}

/* The device still has an image that its reader gave up: nobody else gets it until it is back. */
static void test_image_of_a_read_that_never_ends_is_not_used_again(void **state)
{
    struct world *world = *state;
    fill_file(world);
    world->disk.cancel_works = false;
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    world->disk.fail_nth = 1;
    world->disk.fail_hangs = true;
    settle(world, sequence);
    const struct nosa_image_pool *pool = &world->store->tiers.pool;
    assert_int_equal(pool->in_state[NOSA_IMAGE_LOADING], 1);
    assert_int_equal(nosa_image_pool_available(pool), 7);
    int32_t held = -1;
    for (int32_t i = 0; i < pool->n_images; i++)
        if (pool->images[i].state == NOSA_IMAGE_LOADING)
            held = i;
    for (int32_t end = nosa_kv_sequence_computed(sequence) + 64; end <= 512; end += 64) {
        step(world, sequence, end);
        nosa_kv_store_poll(world->store, 20);
        assert_int_equal(pool->images[held].state, NOSA_IMAGE_LOADING);
    }
    io_sim_release(&world->disk);
    settle(world, sequence);
    assert_int_equal(pool->in_state[NOSA_IMAGE_LOADING], 0);
    nosa_kv_sequence_close(sequence);
}

static void test_sequence_ready_after_a_flipped_bit_is_cut_and_written_again(void **state)
{
    struct world *world = *state;
    struct nosa_extent_store_counters extents;
    fill_file(world);
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    world->disk.faults.flip_read = 1000;
    settle(world, sequence);
    world->disk.faults.flip_read = 0;
    assert_true(nosa_kv_sequence_computed(sequence) < 512); /* a flip may hit what is unused */
    nosa_extent_store_counters(world->extents, &extents);
    assert_true(extents.corrupt_extents > 0);
    for (int32_t end = 128; end <= 512; end += 128)
        step(world, sequence, end);
    settle(world, sequence);
    nosa_kv_sequence_close(sequence);
    halt(world);
    boot(world, BLOCKS, 0, 8, 1);
    sequence = open_prompt(world, 513, 512);
    settle(world, sequence);
    assert_int_equal(nosa_kv_sequence_computed(sequence), 512);
    nosa_kv_sequence_close(sequence);
}

/* Another sequence that came to count on the same blocks is cut as well. */
static void test_read_error_cuts_every_sequence_that_counts_on_it(void **state)
{
    struct world *world = *state;
    fill_file(world);
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *a = open_prompt(world, 513, 512), *b = open_prompt(world, 400, 384);
    world->disk.faults.read_error = 1000;
    for (int i = 0; i < 20; i++)
        nosa_kv_store_poll(world->store, 20);
    assert_true(nosa_kv_sequence_ready(a) && nosa_kv_sequence_ready(b));
    assert_int_equal(nosa_kv_sequence_computed(a), 0);
    assert_int_equal(nosa_kv_sequence_computed(b), 0);
    struct nosa_kv_store_counters counters;
    nosa_kv_store_counters(world->store, &counters);
    assert_true(counters.nvme_bypassed);
    assert_int_equal(counters.blocks_used, 0);
    nosa_kv_sequence_close(a);
    nosa_kv_sequence_close(b);
    open_prompt(world, 513, 0); /* the tier is left alone */
}

static int32_t pins_of(const struct nosa_image_pool *pool)
{
    int32_t pins = 0;
    for (int32_t i = 0; i < pool->n_images; i++)
        pins += pool->images[i].pins;
    return pins;
}

/* Images that a write reads outlive their block, and are free when it ends. */
static void test_close_while_a_write_reads_the_image(void **state)
{
    struct world *world = *state;
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 129, 0);
    step(world, sequence, 128);
    step(world, sequence, 0); /* what the commit named is saved */
    world->disk.faults.hang = 1000;
    world->disk.cancel_works = false;
    for (int i = 0; i < 20; i++)
        nosa_kv_store_poll(world->store, 20);
    nosa_kv_sequence_close(sequence);
    const struct nosa_image_pool *pool = &world->store->tiers.pool;
    assert_int_equal(pins_of(pool), 2);
    while (nosa_block_pool_oldest(&world->store->cache.pool) != NOSA_BLOCK_NONE)
        nosa_prefix_cache_evict(&world->store->cache,
                                nosa_block_pool_oldest(&world->store->cache.pool));
    assert_int_equal(nosa_image_pool_available(pool), 6);
    world->disk.faults.hang = 0;
    io_sim_release(&world->disk);
    for (int i = 0; i < 20; i++)
        nosa_kv_store_poll(world->store, 20);
    assert_int_equal(pins_of(pool), 0);
    assert_int_equal(nosa_image_pool_available(pool), 8);
}

/* A first tier with fewer slots than ids and few images leaves blocks in use to NVMe. */
static void test_sequence_larger_than_images_becomes_cold(void **state)
{
    struct world *world = *state;
    struct nosa_kv_store_counters counters;
    boot(world, BLOCKS, 8, 4, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, CONTEXT, 0);
    for (int32_t end = 64; end <= CONTEXT - 64; end += 64) {
        while (nosa_kv_store_blocks_available(world->store) < 1)
            settle(world, sequence);
        step(world, sequence, end);
        for (int i = 0; i < 5; i++)
            nosa_kv_store_poll(world->store, 20);
    }
    nosa_kv_store_counters(world->store, &counters);
    assert_true(counters.blocks_cold > 0);
    assert_int_equal(counters.images_total, 4);
    nosa_kv_sequence_close(sequence);
    nosa_kv_store_counters(world->store, &counters);
    assert_int_equal(counters.blocks_cold, 0);
    assert_int_equal(counters.blocks_used, 0);
    for (int i = 0; i < 20; i++)
        nosa_kv_store_poll(world->store, 20);
    struct nosa_extent_store_counters extents;
    nosa_extent_store_counters(world->extents, &extents);
    assert_int_equal(extents.extents_pinned, 0);
}

/* Every block passes through an image, from which its summary is loaded; four images remain. */
static void test_prefix_larger_than_images_is_taken_over(void **state)
{
    struct world *world = *state;
    struct nosa_kv_store_counters counters;
    fill_file(world);
    boot(world, BLOCKS, 8, 4, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    settle(world, sequence);
    assert_true(nosa_kv_sequence_ready(sequence));
    assert_int_equal(nosa_kv_sequence_computed(sequence), 512);
    assert_int_equal(world->loaded, 8);
    nosa_kv_store_counters(world->store, &counters);
    assert_int_equal(counters.nvme_loaded_blocks, 8);
    assert_int_equal(counters.nvme_recomputed_blocks, 0);
    assert_int_equal(counters.blocks_cold, 4);
    nosa_kv_sequence_close(sequence);
}

/* What was left to NVMe behind a block that cannot be read is computed too, where the windows of
 * the next block reach into it. */
static void test_prefix_larger_than_images_is_cut_at_a_read_error(void **state)
{
    struct world *world = *state;
    fill_file(world);
    boot(world, BLOCKS, 8, 4, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    world->disk.fail_nth = 7;
    world->disk.fail_result = -5;
    settle(world, sequence);
    assert_true(nosa_kv_sequence_ready(sequence));
    int32_t n = nosa_kv_sequence_computed(sequence) / NOSA_BLOCK_TOKENS, n_blocks;
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence, &n_blocks);
    assert_true(n < 7 && n_blocks == n);
    assert_true(n == 0 || !world->store->tiers.nvme.cold[blocks[n - 1]]);
    nosa_kv_sequence_close(sequence);
}

static int32_t cold_block(const struct world *world, int32_t from)
{
    int32_t block = from;
    while (block < BLOCKS && !world->store->tiers.nvme.cold[block])
        block++;
    assert_true(block < BLOCKS);
    return block;
}

/* The block is lost, its slot empty, and the buffer set aside until the device lets go. */
static void test_store_fetch_that_never_ends_keeps_its_buffer(void **state)
{
    struct world *world = *state;
    size_t record_bytes = nosa_kv_record_bytes(&geometry);
    fill_file(world);
    boot(world, BLOCKS, 8, 4, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 513, 512);
    settle(world, sequence);
    struct nosa_kv_nvme *nvme = &world->store->tiers.nvme;
    struct nosa_kv_view view = {.geometry = geometry, .n_blocks = BLOCKS, .image_kv_heads = 1};
    view.records = malloc(2 * record_bytes);
    assert_non_null(view.records);
    memset(view.records, 1, 2 * record_bytes);
    struct nosa_kv_absent absent[2] = {{.block = cold_block(world, 0), .slot = 1}};
    absent[1] = (struct nosa_kv_absent){.block = cold_block(world, absent[0].block + 1)};
    world->disk.fail_nth = 1;
    world->disk.fail_hangs = true;
    nosa_kv_store_fetch(world->store, &view, absent, 2);
    assert_true(nvme->lost[absent[0].block]);
    assert_false(nvme->lost[absent[1].block]);
    for (size_t i = 0; i < record_bytes; i++) {
        assert_int_equal(view.records[record_bytes + i], 0);
        assert_int_equal(view.records[i], 'A' + logical_of(sequence, absent[1].block));
    }
    assert_int_equal(nvme->staging_state[0], NOSA_KV_STAGING_HELD);
    assert_int_equal(nvme->staging_state[1], NOSA_KV_STAGING_FREE);
    io_sim_release(&world->disk);
    for (int i = 0; i < 5; i++)
        nosa_kv_store_poll(world->store, 20);
    assert_int_equal(nvme->staging_state[0], NOSA_KV_STAGING_FREE);
    free(view.records);
    nosa_kv_sequence_close(sequence);
}

/* The last steps selected blocks 3 and 5, the others long ago: these two are brought up. */
static void test_sequence_resume_brings_up_what_was_used_last(void **state)
{
    struct world *world = *state;
    uint32_t use[BLOCKS] = {0};
    int32_t n_blocks;
    boot(world, BLOCKS, 8, 16, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, 600, 0);
    for (int32_t end = 64; end <= 512; end += 64)
        step(world, sequence, end);
    nosa_kv_sequence_save(sequence);
    step(world, sequence, 0);
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence, &n_blocks);
    for (int32_t i = 0; i < 8; i++)
        use[blocks[i]] = i == 3 ? 90 : i == 5 ? 80 : i == 0 ? 0 : 10;
    struct nosa_kv_view view = {.geometry = geometry, .n_blocks = BLOCKS};
    nosa_kv_sequence_remember(sequence, &view, use);
    nosa_kv_sequence_suspend(sequence);
    assert_int_equal(nosa_kv_sequence_resume(sequence, NULL), NOSA_OK);
    assert_int_equal(nosa_kv_sequence_computed(sequence), 512);
    step(world, sequence, 576);
    assert_int_equal(world->moves.n_fetch, 2);
    assert_int_equal(logical_of(sequence, world->moves.fetch[0].block), 3);
    assert_int_equal(logical_of(sequence, world->moves.fetch[1].block), 5);
    nosa_kv_sequence_close(sequence);
    /* nothing is known of another one's use: sink and local */
    sequence = open_prompt(world, 513, 512);
    step(world, sequence, 513);
    assert_int_equal(world->moves.n_fetch, 2);
    assert_int_equal(logical_of(sequence, world->moves.fetch[0].block), 7);
    assert_int_equal(logical_of(sequence, world->moves.fetch[1].block), 0);
    nosa_kv_sequence_close(sequence);
}

/* Of blocks in use those are left to NVMe that the first tier has too, then the one that steps used
 * least lately. */
static void test_report_use_decides_what_becomes_cold(void **state)
{
    struct world *world = *state;
    uint32_t use[BLOCKS] = {0};
    float weight[BLOCKS];
    int32_t slot[BLOCKS], n_blocks;
    boot(world, BLOCKS, 8, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, CONTEXT, 0);
    for (int32_t end = 64; end <= 512; end += 64) {
        step(world, sequence, end);
        settle(world, sequence);
    }
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence, &n_blocks);
    for (int32_t i = 0; i < BLOCKS; i++) {
        weight[i] = 1;
        slot[i] = NOSA_KV_SLOT_NONE;
    }
    for (int32_t i = 0; i < n_blocks; i++)
        use[blocks[i]] = world->store->tiers.step - (i == 4 ? 5 : i == 2 ? 1 : 4);
    slot[blocks[2]] = 0; /* the first tier has it too */
    struct nosa_kv_view view = {.geometry = geometry,
                                .n_blocks = BLOCKS,
                                .record_slot = slot,
                                .record_use = use,
                                .record_weight = weight};
    assert_true(nosa_kv_store_wants_use(world->store));
    nosa_kv_store_report_use(world->store, &view, true);
    assert_false(nosa_kv_store_wants_use(world->store));
    step(world, sequence, 576);
    assert_int_equal(world->store->tiers.nvme.n_cold, 1);
    assert_true(world->store->tiers.nvme.cold[blocks[2]]);
    settle(world, sequence);
    step(world, sequence, 640);
    assert_int_equal(world->store->tiers.nvme.n_cold, 2);
    assert_true(world->store->tiers.nvme.cold[blocks[4]]);
    nosa_kv_sequence_close(sequence);
}

/* Steps so long that every one would use up half of a deadline: the device answers at once, and
 * what takes it several turns is written all the same. */
static void test_write_between_long_steps_is_no_timeout(void **state)
{
    struct world *world = *state;
    struct nosa_kv_store_counters counters;
    world->deadline_ms = 10000;
    boot(world, BLOCKS, 0, 8, 1);
    struct nosa_kv_sequence *sequence = open_prompt(world, CONTEXT, 0);
    for (int32_t end = 128; end <= 896; end += 128) {
        nosa_manual_clock_advance(&world->disk.clock, 5 * NOSA_NS_PER_S);
        step(world, sequence, end);
    }
    nosa_kv_store_counters(world->store, &counters);
    assert_true(counters.nvme_written_blocks > 0);
    assert_false(counters.nvme_bypassed);
    nosa_kv_sequence_close(sequence);
}

static void test_store_create_refuses_too_few_slots(void **state)
{
    struct world *world = *state;
    struct nosa_kv_store *store;
    struct nosa_error error = {0};
    struct nosa_kv_store_options options = {
        .n_blocks = 8, .sequences_max = 1, .context_max = 512, .tiers = {.n_slots = 4}};
    boot(world, BLOCKS, 0, 8, 1);
    assert_int_equal(nosa_kv_store_create(&options, &store, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "without a host tier"));
    nosa_error_clear(&error);
    options.tiers = (struct nosa_kv_tier_options){
        .host = &world->host, .geometry = geometry, .n_slots = 4, .working_slots = 4};
    assert_int_equal(nosa_kv_store_create(&options, &store, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "4 slots"));
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_sequence_open_finds_what_another_process_wrote),
        CASE(test_sequence_open_of_another_identity_finds_nothing),
        CASE(test_sequence_open_private_finds_and_leaves_nothing),
        CASE(test_sequence_ready_after_a_read_error_is_cut),
        CASE(test_sequence_ready_after_a_read_that_never_ends_is_cut),
        CASE(test_image_of_a_read_that_never_ends_is_not_used_again),
        CASE(test_sequence_ready_after_a_flipped_bit_is_cut_and_written_again),
        CASE(test_read_error_cuts_every_sequence_that_counts_on_it),
        CASE(test_close_while_a_write_reads_the_image),
        CASE(test_sequence_larger_than_images_becomes_cold),
        CASE(test_prefix_larger_than_images_is_taken_over),
        CASE(test_prefix_larger_than_images_is_cut_at_a_read_error),
        CASE(test_store_fetch_that_never_ends_keeps_its_buffer),
        CASE(test_sequence_resume_brings_up_what_was_used_last),
        CASE(test_report_use_decides_what_becomes_cold),
        CASE(test_write_between_long_steps_is_no_timeout),
        CASE(test_store_create_refuses_too_few_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
