/*
 * The KV tiers from seeds (tier_world.h): random sequences open, share prefixes, grow, are
 * suspended, resumed and closed over random tiny tiers and a disk that fails in every way it can,
 * loses power and is opened again, by the same engine or one of another identity.
 *
 *   test_tier_sim                      some thousand seeds
 *   test_tier_sim --seeds FIRST COUNT  others
 *   test_tier_sim SEED                 one seed with a line per event
 */
#include "tier_world.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"

#define SEEDS   2000
#define ACTIONS 70

static uint64_t seed_first = 1, seed_count = SEEDS;

static void draw_config(struct tier_world *world)
{
    struct tier_config *config = &world->config;
    config->topk = 4 + (int32_t)tier_below(world, 3);
    config->sequences_max = 1 + (int32_t)tier_below(world, TIER_SEQUENCES_MAX);
    config->n_blocks = TIER_BLOCKS_MAX + (int32_t)tier_below(world, 30);
    config->policy = (enum nosa_kv_policy)tier_below(world, 3);
    switch (tier_below(world, 8)) {
    case 0: return; /* one tier */
    case 1: config->n_images = 1 + (int32_t)tier_below(world, 20); break;
    case 2:
        config->n_images = 4 + (int32_t)tier_below(world, 20);
        config->n_extents = 3 + (int32_t)tier_below(world, 40);
        break;
    case 3:
        config->n_slots = config->topk + 1 + (int32_t)tier_below(world, 12);
        config->n_images = 1 + (int32_t)tier_below(world, 40);
        break;
    default:
        config->n_slots = config->topk + 4 + (int32_t)tier_below(world, 12);
        config->n_images = 4 + (int32_t)tier_below(world, 20);
        config->n_extents = 3 + (int32_t)tier_below(world, 60);
    }
}

static void draw_faults(struct tier_world *world)
{
    struct io_sim_faults *faults = &world->disk.faults;
    *faults = (struct io_sim_faults){0};
    world->disk.cancel_works = tier_chance(world, 70);
    if (tier_chance(world, 40))
        return;
    uint32_t *chances[] = {&faults->read_error,  &faults->write_error,    &faults->no_space,
                           &faults->flush_error, &faults->short_transfer, &faults->again,
                           &faults->refuse,      &faults->hang,           &faults->flip_read,
                           &faults->torn_write};
    for (size_t i = 0; i < sizeof chances / sizeof chances[0]; i++)
        if (tier_chance(world, 30))
            *chances[i] = tier_below(world, 150);
}

static void reboot(struct tier_world *world)
{
    bool crash = tier_chance(world, 50);
    if (world->loud)
        printf("%s\n", crash ? "crash" : "restart");
    if (!crash)
        for (int32_t i = 0; i < TIER_SEQUENCES_MAX; i++)
            if (world->sequences[i].sequence)
                tier_close(world, i);
    tier_world_halt(world, crash);
    world->totals->crashes += crash;
    world->totals->reopened++;
    if (tier_chance(world, 10))
        world->identity++;
    tier_world_boot(world);
    draw_faults(world);
}

static void act(struct tier_world *world)
{
    int32_t index = (int32_t)tier_below(world, (uint32_t)world->config.sequences_max);
    struct nosa_kv_sequence *sequence = world->sequences[index].sequence;
    uint32_t dice = tier_below(world, 100);

    if (!sequence && dice < 60) {
        tier_open(world, index, tier_chance(world, 8));
    } else if (sequence && dice < 8) {
        tier_close(world, index);
    } else if (sequence && nosa_kv_sequence_suspended(sequence) && dice < 40) {
        tier_resume(world, index);
    } else if (sequence && dice < 14 && nosa_kv_sequence_ready(sequence) &&
               !nosa_kv_sequence_suspended(sequence)) {
        tier_suspend(world, index);
    } else if (dice < 20) {
        nosa_kv_store_poll(world->store, tier_below(world, 30));
    } else if (dice < 22 && world->extents) {
        io_sim_flip(&world->disk, tier_below(world, (uint32_t)world->disk.bytes),
                    tier_below(world, 8));
    } else if (dice < 24) {
        reboot(world);
    } else if (dice < 26) {
        draw_faults(world);
    } else {
        tier_step(world);
    }
    tier_check(world);
}

/* Everything is given back: nothing is used, locked, pinned, cold or waited for. */
static void check_empty(struct tier_world *world)
{
    const struct nosa_kv_tiers *tiers = &world->store->tiers;
    struct nosa_kv_store_counters counters;

    for (int32_t i = 0; i < TIER_SEQUENCES_MAX; i++)
        if (world->sequences[i].sequence)
            tier_close(world, i);
    world->disk.faults = (struct io_sim_faults){0};
    io_sim_release(&world->disk);
    for (int i = 0; i < 200; i++) {
        nosa_kv_store_poll(world->store, 20);
        if (nosa_kv_store_has_moves(world->store))
            tier_step_moves(world);
    }
    nosa_kv_store_counters(world->store, &counters);
    TIER_CHECK(world, counters.blocks_used == 0 && counters.sequences == 0);
    TIER_CHECK(world, counters.blocks_cold == 0);
    TIER_CHECK(world, tiers->nvme.reading == 0 && tiers->nvme.writing == 0);
    TIER_CHECK(world, tiers->pool.in_state[NOSA_IMAGE_LOADING] == 0);
    for (int32_t i = 0; i < tiers->pool.n_images; i++)
        TIER_CHECK(world, tiers->pool.images[i].pins == 0);
    if (world->extents) {
        struct nosa_extent_store_counters extents;
        nosa_extent_store_counters(world->extents, &extents);
        TIER_CHECK(world, extents.extents_pinned == 0);
    }
}

static uint64_t running; /* seed */

static void say_seed(int signal_number)
{
    (void)signal_number;
    fprintf(stderr, "seed %llu\nreplay with: test_tier_sim %llu\n", (unsigned long long)running,
            (unsigned long long)running);
    _Exit(1);
}

static void run_seed(uint64_t seed, struct nosa_device *device, struct nosa_stream *stream,
                     struct tier_totals *totals)
{
    struct tier_world *world = calloc(1, sizeof *world);
    assert_non_null(world);
    world->seed = running = seed;
    world->random = seed * 2 + 1;
    world->loud = seed_count == 1;
    world->device = device;
    world->stream = stream;
    world->totals = totals;
    world->identity = 1;
    io_sim_init(&world->disk, seed);
    draw_config(world);
    if (world->loud)
        printf("topk %d, %d sequences, %d blocks, %d slots, %d images, %d extents\n",
               world->config.topk, world->config.sequences_max, world->config.n_blocks,
               world->config.n_slots, world->config.n_images, world->config.n_extents);
    tier_world_boot(world);
    draw_faults(world);
    for (int i = 0; i < ACTIONS; i++)
        act(world);
    check_empty(world);
    tier_world_halt(world, false);
    io_sim_destroy(&world->disk);
    free(world);
}

static void test_tiers_serve_right_bytes_in_every_world(void **state)
{
    (void)state;
    struct nosa_device *device;
    struct nosa_stream *stream;
    struct tier_totals t = {0};

    const struct nosa_log_options quiet = {.level = NOSA_LOG_ERROR, .descriptor = 2};
    nosa_log_configure(&quiet);
    signal(SIGABRT, say_seed); /* an assertion */
    signal(SIGSEGV, say_seed);
    tier_machine_open(&device, &stream);
    for (uint64_t seed = seed_first; seed < seed_first + seed_count; seed++)
        run_seed(seed, device, stream, &t);
    tier_machine_close(device, stream);
#define N(x) (unsigned long long)t.x
    print_message("%llu steps, %llu rows; hits: first %llu, host %llu, in place %llu, NVMe %llu; "
                  "prefix blocks %llu, of NVMe %llu; prefetched %llu\n",
                  N(steps), N(rows), N(hits), N(host_hits), N(in_place), N(absent), N(prefix_hits),
                  N(nvme_prefix_hits), N(prefetched));
    print_message("%llu lost, %llu corrupt, %llu bypassed, %llu full, %llu suspended, %llu "
                  "crashes, %llu reopened\n",
                  N(losses), N(corrupt), N(bypassed), N(full), N(suspended), N(crashes),
                  N(reopened));
    if (seed_count < 1000)
        return;
    /* Everything that is to be tested has happened. */
    assert_true(t.hits && t.host_hits && t.in_place && t.absent && t.prefix_hits &&
                t.nvme_prefix_hits && t.prefetched && t.losses && t.corrupt && t.bypassed &&
                t.full && t.suspended && t.crashes && t.reopened);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiers_serve_right_bytes_in_every_world),
    };
    if (argc == 4 && strcmp(argv[1], "--seeds") == 0) {
        seed_first = strtoull(argv[2], NULL, 10);
        seed_count = strtoull(argv[3], NULL, 10);
    } else if (argc == 2) {
        seed_first = strtoull(argv[1], NULL, 10);
        seed_count = 1;
    } else if (argc != 1) {
        fprintf(stderr, "usage: test_tier_sim [--seeds FIRST COUNT | SEED]\n");
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
