/*
 * A mixed load on one virtual worker, under the scheduler's policy and with parts of it taken away:
 * what a policy is worth. The figures are of a modelled engine (struct world_speed), so only their
 * relations mean something.
 */
#include "scheduler_world.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define REQUESTS 2000

/* A kind of traffic. */
struct traffic {
    const char *name;
    int32_t percent;
    int32_t priority;
    int32_t prompt_min, prompt_max; /* uniform in the logarithm */
    int32_t new_min, new_max;
};

static const struct traffic mix[] = {
    {"interactive", 30, 1, 64, 4096, 32, 256},
    {"ordinary", 50, 0, 256, 16384, 64, 512},
    {"background", 20, -1, 4096, 32768, 256, 1024},
};

#define KINDS ((int)(sizeof mix / sizeof *mix))

struct variant {
    const char *name;
    bool without_priorities;
    bool without_working_sets; /* the batch is filled whatever the first tier holds */
    bool without_chunks;       /* prefill takes the whole step while others decode */
};

static const struct variant variants[] = {
    {.name = "as it is"},
    {.name = "without priorities", .without_priorities = true},
    {.name = "without working sets", .without_working_sets = true},
    {.name = "without a chunk bound", .without_chunks = true},
};

static void set_options(struct world *world, const struct variant *variant)
{
    world->options = (struct nosa_scheduler_options){
        .queue_max = REQUESTS,
        .sequences_max = 128,
        .batch_max = 32,
        .step_tokens_max = 2048,
        .prefill_chunk_max = variant->without_chunks ? 2048 : 512,
        .context_max = 40960,
        .blocks_total = 4096,
        .lower_blocks_total = 16384,
        .outsize_blocks = 1024,
        .slots = variant->without_working_sets ? 0 : 640,
        .working_set_guess = 48,
        .run_steps_min = 16,
        .reader_tokens_max = 256,
        .priority_max = variant->without_priorities ? 0 : 8,
        .ageing_ns = 30000 * MS,
        .prefix_wait_ns = 2000 * MS,
    };
    world->speed = (struct world_speed){
        .step_ns = 12 * MS,
        .prefill_token_ns = 40 * US,
        .decode_row_ns = 150 * US,
        .slots = 640,
        .miss_ns = 200 * US,
        .block_move_ns = 50 * US,
    };
    for (int32_t g = 1; g < GROUPS_MAX; g++)
        world->store.groups[g].prefix_blocks = 8 * g;
}

static double unit(struct world *world)
{
    return (double)(world_draw(world, 1 << 30) + 1) / (1 << 30);
}

static int kind_of(const struct client *client)
{
    for (int k = 0; k < KINDS; k++)
        if (mix[k].priority == client->priority)
            return k;
    return 0;
}

static void draw_load(struct world *world, double requests_per_s)
{
    double now_s = 0;

    for (int32_t i = 0; i < world->n_clients; i++) {
        struct client *client = &world->clients[i];
        int64_t place = world_draw(world, 100);
        int k = 0;
        while (k + 1 < KINDS && place >= mix[k].percent)
            place -= mix[k++].percent;
        now_s -= log(unit(world)) / requests_per_s;
        double span = log((double)mix[k].prompt_max / mix[k].prompt_min);
        *client = (struct client){
            .arrival_ns = (uint64_t)(now_s * 1e9),
            .deadline_ns = NEVER,
            .cancel_ns = NEVER,
            .priority = mix[k].priority,
        };
        client->prompt = (int32_t)(mix[k].prompt_min * exp(span * unit(world)));
        client->max_new = (int32_t)world_between(world, mix[k].new_min, mix[k].new_max);
        client->working_set_max = (int32_t)world_between(world, 32, 64);
        int32_t g = (int32_t)world_draw(world, GROUPS_MAX);
        if (g > 0 && client->prompt > 64 * world->store.groups[g].prefix_blocks)
            client->group = g;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, int n, double q)
{
    return n == 0 ? 0 : sorted[(int)(q * (n - 1) + 0.5)];
}

static void print_kind(const struct world *world, int k)
{
    double *first = malloc(REQUESTS * sizeof *first);
    double *mean = malloc(REQUESTS * sizeof *mean);
    double *gap = malloc(REQUESTS * sizeof *gap);
    int n = 0;

    CHECK(world, first && mean && gap);
    for (int32_t i = 0; i < world->n_clients; i++) {
        const struct client *client = &world->clients[i];
        if (kind_of(client) != k || client->generated < 2)
            continue;
        first[n] = (double)(client->first_token_ns - client->arrival_ns) / 1e9;
        mean[n] = (double)(client->last_token_ns - client->first_token_ns) / 1e6 /
                  (client->generated - 1);
        gap[n++] = (double)client->gap_max_ns / 1e6;
    }
    qsort(first, (size_t)n, sizeof *first, compare);
    qsort(mean, (size_t)n, sizeof *mean, compare);
    qsort(gap, (size_t)n, sizeof *gap, compare);
    printf("| %-11s | %4d | %7.2f | %7.2f | %5.0f | %5.0f | %6.0f | %7.0f |\n", mix[k].name, n,
           quantile(first, n, 0.5), quantile(first, n, 0.99), quantile(mean, n, 0.5),
           quantile(mean, n, 0.99), quantile(gap, n, 0.5), quantile(gap, n, 0.99));
    free(gap);
    free(mean);
    free(first);
}

static void print_load(double requests_per_s, const struct variant *variant)
{
    struct world world = {.seed = 1, .random = 1};

    set_options(&world, variant);
    world_open(&world, REQUESTS);
    draw_load(&world, requests_per_s);
    world_run(&world);
    printf(
        "\n%s, %.1f requests/s: %.0f prefill and %.0f decode tokens/s, busy %.0f %%, %.1f rows a "
        "step, %lld suspended, %lld dropped\n\n",
        variant->name, requests_per_s, (double)world.prefill_tokens * 1e9 / (double)world.now_ns,
        (double)world.decode_tokens * 1e9 / (double)world.now_ns,
        100.0 * (double)world.busy_ns / (double)world.now_ns,
        (double)world.decode_tokens / (double)world.steps, (long long)world.evicted,
        (long long)world.drops);
    printf("|             |      | first token, s    | per token, ms | longest gap, ms  |\n");
    printf("| %-11s | %4s | %7s | %7s | %5s | %5s | %6s | %7s |\n", "traffic", "n", "p50", "p99",
           "p50", "p99", "p50", "p99");
    printf("|---|---|---|---|---|---|---|---|\n");
    for (int k = 0; k < KINDS; k++)
        print_kind(&world, k);
    world_close(&world);
}

void load_print_table(void)
{
    static const double loads[] = {1.5, 2.2, 2.6};

    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++)
        for (size_t i = 0; i < sizeof loads / sizeof *loads; i++)
            if (v == 0 || i == 2)
                print_load(loads[i], &variants[v]);
}
