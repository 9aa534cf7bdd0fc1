#include "tier_world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_device.h"

void tier_fail(const struct tier_world *world, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "seed %llu: ", (unsigned long long)world->seed);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\nreplay with: test_tier_sim %llu\n", (unsigned long long)world->seed);
    va_end(arguments);
    exit(1);
}

uint32_t tier_below(struct tier_world *world, uint32_t n)
{
    return io_sim_below(&world->random, n);
}

bool tier_chance(struct tier_world *world, uint32_t in_a_hundred)
{
    return tier_below(world, 100) < in_a_hundred;
}

uint64_t tier_hash_next(uint64_t hash, uint64_t number)
{
    uint64_t x = hash ^ (number + UINT64_C(0x9E3779B97F4A7C15));
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

uint64_t tier_token_value(uint64_t hash, int32_t layer, int32_t kv_head)
{
    return tier_hash_next(hash, (uint64_t)(layer * 64 + kv_head + 1));
}

/* ---- the machine ---------------------------------------------------------------------------- */

static const struct nosa_kv_geometry model = {
    .n_layers = 2,
    .n_kv_heads = 2,
    .head_dim = 16,
    .kernel_size = 8,
    .kernel_stride = 4,
    .type = NOSA_DTYPE_BF16,
};

void tier_machine_open(struct nosa_device **device, struct nosa_stream **stream)
{
    struct nosa_cpu_options options = {.threads = 1};
    struct nosa_step_limits limits = {
        .rows_max = TIER_SEQUENCES_MAX * TIER_ROWS_MAX,
        .seqs_max = TIER_SEQUENCES_MAX,
        .context_max = TIER_CONTEXT_MAX,
        .n_heads = 2,
        .n_kv_heads = model.n_kv_heads,
        .head_dim = model.head_dim,
        .k_max = 16,
        .n_max = 16,
        .topk_max = TIER_TOPK_MAX,
        .vocab_max = 16,
        .windows_per_block = 16,
        .kv_pools_max = model.n_layers * model.n_kv_heads,
        .kv_slots_max = 64,
        .kv_fetch_max = 4096,
    };
    size_t bytes;
    if (nosa_cpu_device_create(&options, device, NULL) != NOSA_OK ||
        (*device)->table->reserve(*device, &limits, &bytes, NULL) != NOSA_OK ||
        (*device)->table->stream_create(*device, stream, NULL) != NOSA_OK)
        abort();
}

void tier_machine_close(struct nosa_device *device, struct nosa_stream *stream)
{
    device->table->stream_destroy(stream);
    device->table->destroy(device);
}

/* ---- a process ------------------------------------------------------------------------------ */

static void boot_extents(struct tier_world *world)
{
    const struct nosa_kv_geometry *geometry = &world->geometry;
    struct nosa_extent_store_options options = {
        .directory = "/simulated",
        .geometry = {.n_records = (uint32_t)(geometry->n_layers * geometry->n_kv_heads),
                     .record_bytes = (uint32_t)nosa_kv_record_bytes(geometry),
                     .summary_bytes = (uint32_t)nosa_kv_summary_bytes(geometry)},
        .method = &world->disk.method,
        .pool = world->host.images,
        .pool_bytes = world->host.image_bytes * (size_t)world->host.n_images,
        .depth = 8,
        .requests_max = 8,
        .deadline_ms = 50,
        .clock = &world->disk.clock.clock,
    };
    struct nosa_error error = {0};
    options.bytes = nosa_extent_file_bytes(&options.geometry, (uint32_t)world->config.n_extents);
    memcpy(options.identity, &world->identity, sizeof world->identity);
    if (nosa_extent_store_open(&options, &world->extents, &error) != NOSA_OK)
        tier_fail(world, "%s", error.text);
}

void tier_world_boot(struct tier_world *world)
{
    const struct tier_config *config = &world->config;
    struct nosa_kv_arena_options arena = {
        .geometry = model, .n_blocks = config->n_blocks, .n_slots = config->n_slots};
    struct nosa_kv_store_options options = {
        .n_blocks = config->n_blocks,
        .sequences_max = config->sequences_max,
        .context_max = TIER_CONTEXT_MAX,
    };
    struct io_sim_faults faults = world->disk.faults;
    struct nosa_error error = {0};

    world->geometry = model;
    world->disk.faults = (struct io_sim_faults){0};
    if (nosa_kv_arena_create(world->device, &arena, &world->arena, &error) != NOSA_OK)
        tier_fail(world, "%s", error.text);
    if (config->n_images > 0) {
        if (nosa_kv_host_pool_create(world->device, &model, model.n_kv_heads, config->n_images,
                                     &world->host, &error) != NOSA_OK)
            tier_fail(world, "%s", error.text);
        nosa_kv_arena_attach(&world->arena, &world->host, 0);
        if (config->n_extents > 0)
            boot_extents(world);
        options.tiers = (struct nosa_kv_tier_options){
            .host = &world->host,
            .geometry = model,
            .n_slots = config->n_slots,
            .working_slots = config->topk,
            .sink_blocks = 1,
            .local_blocks = 2,
            .top_e_blocks = config->topk - 3,
            .has_bias = true,
            .extents = world->extents,
            .clock = &world->disk.clock.clock,
        };
    }
    memcpy(options.identity, &world->identity, sizeof world->identity);
    if (nosa_kv_store_create(&options, &world->store, &error) != NOSA_OK ||
        nosa_kv_moves_create(world->store, world->device, &world->moves, &error) != NOSA_OK)
        tier_fail(world, "%s", error.text);
    world->disk.faults = faults;
}

static void count_tier(struct tier_world *world)
{
    struct nosa_kv_store_counters counters;
    nosa_kv_store_counters(world->store, &counters);
    world->totals->prefix_hits += counters.prefix_hit_tokens / NOSA_BLOCK_TOKENS;
    world->totals->nvme_prefix_hits += counters.nvme_loaded_blocks;
    world->totals->prefetched += counters.prefetched_records;
    world->totals->bypassed += counters.nvme_bypassed;
    if (!world->extents)
        return;
    struct nosa_extent_store_counters extents;
    nosa_extent_store_counters(world->extents, &extents);
    world->totals->corrupt += extents.corrupt_extents;
}

void tier_world_halt(struct tier_world *world, bool crash)
{
    count_tier(world);
    if (crash && world->extents)
        io_sim_crash(&world->disk);
    nosa_kv_moves_destroy(&world->moves);
    nosa_kv_store_destroy(world->store);
    world->disk.faults = (struct io_sim_faults){0};
    io_sim_release(&world->disk);
    if (nosa_extent_store_close(world->extents) > 0)
        tier_fail(world, "the disk still has memory after everything was let go");
    nosa_kv_host_pool_destroy(&world->host);
    nosa_kv_arena_destroy(&world->arena);
    world->extents = NULL;
    world->store = NULL;
    memset(world->sequences, 0, sizeof world->sequences);
}

/* ---- sequences ------------------------------------------------------------------------------ */

/* Tokens of one of two families up to a point, then others: prefixes are shared often. */
static void draw_tokens(struct tier_world *world, uint32_t *tokens, int32_t n)
{
    uint32_t family = tier_below(world, 2), own = tier_below(world, 1000);
    int32_t shared = (int32_t)tier_below(world, 2 * (uint32_t)n);
    for (int32_t i = 0; i < n; i++)
        tokens[i] = i < shared ? family * 10000 + (uint32_t)i : 50000 + own * 1000 + (uint32_t)i;
}

static void extend_hash(struct tier_sequence *sequence, int32_t first, int32_t last)
{
    const uint32_t *tokens = nosa_kv_sequence_tokens(sequence->sequence);
    for (int32_t i = first; i < last; i++)
        sequence->hash[i + 1] = tier_hash_next(sequence->hash[i], tokens[i]);
}

void tier_open(struct tier_world *world, int32_t index, bool private)
{
    struct tier_sequence *sequence = &world->sequences[index];
    uint32_t tokens[TIER_CONTEXT_MAX];
    int32_t n = 1 + (int32_t)tier_below(world, TIER_CONTEXT_MAX - 64), cached = 0;
    uint64_t salt = tier_below(world, 6) == 0;
    enum nosa_status status;

    draw_tokens(world, tokens, n);
    if (private)
        status = nosa_kv_sequence_open_private(world->store, tokens, n, &sequence->sequence, NULL);
    else
        status = nosa_kv_sequence_open(world->store, tokens, n, &salt, sizeof salt,
                                       &sequence->sequence, &cached, NULL);
    TIER_CHECK(world, status == NOSA_OK);
    sequence->private = private;
    sequence->hash[0] = tier_hash_next(world->identity, private ? 77 + world->next_salt++ : salt);
    extend_hash(sequence, 0, n);
    if (world->loud)
        printf("open %d: %d tokens, %d cached%s\n", index, n, cached, private ? ", private" : "");
}

void tier_close(struct tier_world *world, int32_t index)
{
    if (world->loud)
        printf("close %d\n", index);
    nosa_kv_sequence_close(world->sequences[index].sequence);
    world->sequences[index].sequence = NULL;
}

void tier_suspend(struct tier_world *world, int32_t index)
{
    struct nosa_kv_sequence *sequence = world->sequences[index].sequence;
    if (world->loud)
        printf("suspend %d at %d\n", index, nosa_kv_sequence_computed(sequence));
    nosa_kv_sequence_save(sequence);
    tier_step_moves(world);
    if (world->arena.view.slot_block && tier_chance(world, 50))
        nosa_kv_sequence_remember(sequence, &world->arena.view, world->arena.view.record_use);
    nosa_kv_sequence_suspend(sequence);
    world->totals->suspended++;
}

void tier_resume(struct tier_world *world, int32_t index)
{
    struct nosa_kv_sequence *sequence = world->sequences[index].sequence;
    enum nosa_status status = nosa_kv_sequence_resume(sequence, NULL);
    TIER_CHECK(world, status == NOSA_OK || status == NOSA_RESOURCE_EXHAUSTED);
    if (world->loud)
        printf("resume %d: %d computed\n", index, nosa_kv_sequence_computed(sequence));
}

/* ---- what must hold ------------------------------------------------------------------------- */

static void check_slots(struct tier_world *world)
{
    const struct nosa_kv_view *view = &world->arena.view;
    int32_t pools = view->geometry.n_layers * view->geometry.n_kv_heads;
    for (int32_t pool = 0; pool < pools && view->slot_block; pool++) {
        for (int32_t i = 0; i < view->n_slots; i++) {
            int32_t slot = pool * view->n_slots + i, block = view->slot_block[slot];
            if (block != NOSA_KV_BLOCK_NONE)
                TIER_CHECK(world, view->record_slot[pool * view->n_blocks + block] == slot);
        }
        for (int32_t block = 0; block < view->n_blocks; block++) {
            int32_t slot = view->record_slot[pool * view->n_blocks + block];
            if (slot != NOSA_KV_SLOT_NONE)
                TIER_CHECK(world, view->slot_block[slot] == block);
        }
    }
}

void tier_check(struct tier_world *world)
{
    const struct nosa_kv_tiers *tiers = &world->store->tiers;
    int32_t in_state[NOSA_IMAGE_STATES] = {0}, cold = 0;

    check_slots(world);
    for (int32_t i = 0; i < tiers->pool.n_images; i++) {
        const struct nosa_image *image = &tiers->pool.images[i];
        in_state[image->state]++;
        if (image->state == NOSA_IMAGE_HELD)
            TIER_CHECK(world, tiers->image[image->block] == i);
    }
    for (int i = 0; i < NOSA_IMAGE_STATES; i++)
        TIER_CHECK(world, in_state[i] == tiers->pool.in_state[i]);
    for (int32_t i = 0; i < world->config.n_blocks && tiers->nvme.extents; i++)
        cold += tiers->nvme.cold[i];
    TIER_CHECK(world, cold == tiers->nvme.n_cold);
}
