/* Small random worlds: options, clients and speeds that make everything happen soon. */
#include "scheduler_world.h"

#include <stdio.h>

static void draw_options(struct world *world)
{
    struct nosa_scheduler_options *options = &world->options;

    options->batch_max = (int32_t)world_between(world, 1, 8);
    options->sequences_max = options->batch_max + (int32_t)world_draw(world, 9);
    options->queue_max = (int32_t)world_between(world, 1, 60);
    options->step_tokens_max = options->batch_max + (int32_t)world_draw(world, 700);
    options->prefill_chunk_max = 1 + (int32_t)world_draw(world, world_chance(world, 30) ? 20 : 400);
    options->context_max = (int32_t)world_between(world, 200, 2600);
    options->blocks_total = (int32_t)world_between(world, 2, world_chance(world, 50) ? 40 : 160);
    options->lower_blocks_total =
        world_chance(world, 20) ? 0 : (int32_t)world_between(world, 1, 120);
    options->outsize_blocks = (int32_t)world_draw(world, options->blocks_total / 2 + 1);
    options->slots = world_chance(world, 30) ? 0 : (int32_t)world_between(world, 2, 60);
    options->working_set_guess = (int32_t)world_between(world, 1, 12);
    options->run_steps_min = (int32_t)world_draw(world, 12);
    options->reader_tokens_max = (int32_t)world_between(world, 1, 12);
    options->priority_max = (int32_t)world_draw(world, 6);
    options->ageing_ns = (uint64_t)world_between(world, 1, 2000) * MS;
    options->prefix_wait_ns = world_chance(world, 20) ? 0 : (uint64_t)world_draw(world, 900) * MS;
    world->speed = (struct world_speed){.step_ns = 2 * MS,
                                        .prefill_token_ns = 30 * US,
                                        .decode_row_ns = 200 * US,
                                        .miss_ns = 100 * US};
    /* One draw a statement: a seed is the same world whatever the compiler. */
    if (world_chance(world, 60))
        world->speed.block_move_ns = (uint64_t)world_between(world, 1, 900) * US;
    if (world_chance(world, 30))
        world->speed.failure_percent = (int32_t)world_draw(world, 30);
    world->speed.withholds = world_chance(world, 10);
    for (int32_t g = 1; g < GROUPS_MAX; g++)
        world->store.groups[g].prefix_blocks = (int32_t)world_between(world, 1, PREFIX_BLOCKS_MAX);
}

static void draw_client(struct world *world, struct client *client)
{
    const struct nosa_scheduler_options *options = &world->options;
    int32_t longest = options->context_max - 1;
    uint64_t after = (uint64_t)world_draw(world, 1500) * MS;

    if (world_chance(world, 15))
        client->waited_ns = (uint64_t)world_draw(world, (int64_t)client->arrival_ns + 1);
    client->prompt = (int32_t)world_between(
        world, 1, world_chance(world, 60) ? (longest < 300 ? longest : 300) : longest);
    client->max_new = (int32_t)world_between(world, 1, world_chance(world, 80) ? 40 : 300);
    client->stop_after = world_chance(world, 40) ? (int32_t)world_between(world, 1, 60) : 0;
    client->fail_after = world_chance(world, 3) ? (int32_t)world_between(world, 1, 30) : 0;
    client->priority = (int32_t)world_between(world, -8, 8);
    if (world_chance(world, 50))
        client->priority /= 9;
    client->deadline_ns = world_chance(world, 12) ? client->arrival_ns + after : NEVER;
    client->cancel_ns = world_chance(world, 12)
                            ? client->arrival_ns + (uint64_t)world_draw(world, 1500) * MS
                            : NEVER;
    client->read_ns = world_chance(world, 20) ? (uint64_t)world_between(world, 1, 400) * MS : 0;
    client->read_tokens = (int32_t)world_between(world, 1, 2 * options->reader_tokens_max);
    client->working_set_max = (int32_t)world_between(world, 1, 16);
    int32_t g = world_chance(world, 40) ? (int32_t)world_between(world, 1, GROUPS_MAX - 1) : 0;
    if (g > 0 && client->prompt > 64 * world->store.groups[g].prefix_blocks)
        client->group = g;
}

static void add_totals(const struct world *world, struct world *totals)
{
    totals->steps += world->steps;
    totals->now_ns += world->now_ns;
    totals->busy_ns += world->busy_ns;
    totals->prefill_tokens += world->prefill_tokens;
    totals->decode_tokens += world->decode_tokens;
    totals->refused += world->refused;
    totals->evicted += world->evicted;
    totals->hasty += world->hasty;
    totals->drops += world->drops;
    totals->outsize_steps += world->outsize_steps;
    totals->parked += world->parked;
    for (int32_t i = 0; i < 7; i++)
        totals->ended[i] += world->ended[i];
}

static void print_options(const struct nosa_scheduler_options *options)
{
    printf("batch %d, sessions %d, queue %d, step tokens %d, chunk %d, context %d\n",
           (int)options->batch_max, (int)options->sequences_max, (int)options->queue_max,
           (int)options->step_tokens_max, (int)options->prefill_chunk_max,
           (int)options->context_max);
    printf("blocks %d, below %d, outsize %d, slots %d, guess %d, steps %d, reader %d, wait %d ms\n",
           (int)options->blocks_total, (int)options->lower_blocks_total,
           (int)options->outsize_blocks, (int)options->slots, (int)options->working_set_guess,
           (int)options->run_steps_min, (int)options->reader_tokens_max,
           (int)(options->prefix_wait_ns / MS));
}

void world_run_seed(uint64_t seed, bool verbose, struct world *totals)
{
    struct world world = {.seed = seed, .random = seed, .checked = true, .verbose = verbose};

    draw_options(&world);
    if (verbose)
        print_options(&world.options);
    world_open(&world, (int32_t)world_between(&world, 1, world_chance(&world, 80) ? 40 : 90));
    uint64_t mean_ns = (uint64_t)world_between(&world, 1, 150) * MS;
    uint64_t now_ns = 0;
    for (int32_t i = 0; i < world.n_clients; i++) {
        now_ns += world_chance(&world, 30) ? 0 : (uint64_t)world_draw(&world, (int64_t)mean_ns);
        world.clients[i].arrival_ns = now_ns;
        draw_client(&world, &world.clients[i]);
    }
    world_run(&world);
    add_totals(&world, totals);
    world_close(&world);
}
