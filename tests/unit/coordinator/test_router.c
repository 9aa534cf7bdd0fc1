/* The router alone, and in a simulation of four workers over shared prefixes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "prefix_set.h"
#include "router.h"

static void test_choose_none(void **state)
{
    (void)state;
    assert_true(nosa_router_choose(NULL, 0, 100) == NOSA_ROUTER_NONE);
}

static void test_choose_order(void **state)
{
    (void)state;
    struct nosa_route_candidate two[2] = {{.batch_max = 8, .queue_max = 8, .tie = 1},
                                          {.batch_max = 8, .queue_max = 8, .tie = 2}};
    assert_int_equal(nosa_router_choose(two, 2, 1000), 0);
    two[1].nvme_tokens = 640; /* held in the lowest tier is still better than not */
    assert_int_equal(nosa_router_choose(two, 2, 1000), 1);
    two[0].gpu_tokens = 640;
    assert_int_equal(nosa_router_choose(two, 2, 1000), 0);
    two[0].prefill_tokens_pending = 100000; /* but not at any price */
    assert_int_equal(nosa_router_choose(two, 2, 1000), 1);
    two[0].prefill_tokens_pending = 0;
    two[0].waiting = 8; /* a full queue */
    assert_int_equal(nosa_router_choose(two, 2, 1000), 1);
}

/* Of prompts that nobody holds, how many each of four workers gets. */
static void place_new(const double rates[4], uint32_t requests, uint32_t placed[4])
{
    struct nosa_route_candidate four[4];
    memset(placed, 0, 4 * sizeof *placed);
    srand(5);
    for (uint32_t i = 0; i < requests; i++) {
        for (size_t k = 0; k < 4; k++)
            four[k] = (struct nosa_route_candidate){.batch_max = 8,
                                                    .queue_max = 8,
                                                    .recent = placed[k],
                                                    .prefill_tokens_per_s = rates[k],
                                                    .tie = (uint64_t)rand()};
        placed[nosa_router_choose(four, 4, 600)]++;
    }
}

static void test_choose_spreads_what_nobody_holds(void **state)
{
    (void)state;
    /* Measured rates are never quite the same; one is not known yet. */
    static const double rates[4] = {1000, 1250, 850, 0};
    uint32_t placed[4];
    place_new(rates, 40, placed);
    for (size_t k = 0; k < 4; k++)
        assert_true(placed[k] >= 8 && placed[k] <= 12);
}

static void test_choose_gives_a_faster_worker_more(void **state)
{
    (void)state;
    static const double rates[4] = {8000, 1000, 1000, 1000};
    uint32_t placed[4];
    place_new(rates, 200, placed);
    assert_true(placed[0] > 75);
}

static void test_choose_keeps_a_conversation_where_its_prefix_is(void **state)
{
    (void)state;
    struct nosa_route_candidate two[2] = {
        {.batch_max = 8, .queue_max = 8, .recent = 100, .gpu_tokens = 512},
        {.batch_max = 8, .queue_max = 8}};
    assert_int_equal(nosa_router_choose(two, 2, 640), 0);
    two[0].gpu_tokens = 64; /* a prefix that is worth little */
    assert_int_equal(nosa_router_choose(two, 2, 640), 1);
}

static void test_prefix_set_add_remove(void **state)
{
    (void)state;
    struct nosa_prefix_set set = {.count_max = 500};
    srand(3);
    uint8_t truth[600] = {0};
    for (int round = 0; round < 20000; round++) {
        uint64_t hash = (uint64_t)rand() % 600;
        uint8_t tier = (uint8_t)(1 << rand() % 3);
        if (rand() % 2) {
            if (nosa_prefix_set_add(&set, hash * 4096, tier) == NOSA_OK)
                truth[hash] |= tier;
            else
                assert_int_equal(set.count, 500);
        } else {
            nosa_prefix_set_remove(&set, hash * 4096, tier);
            truth[hash] &= (uint8_t)~tier;
        }
    }
    for (uint64_t hash = 0; hash < 600; hash++)
        assert_int_equal(nosa_prefix_set_find(&set, hash * 4096), truth[hash]);
    nosa_prefix_set_free(&set);
}

#define WORKERS       4
#define GROUPS        64
#define PREFIX_TOKENS 2048
#define KEPT_GROUPS   24 /* prefixes that a worker has place for */
#define REQUESTS      4000
#define STREAM_TICKS  12

struct sim_worker {
    uint64_t used[GROUPS]; /* tick of the last use; 0: not held */
    uint32_t streams;
    uint32_t ending[STREAM_TICKS + 1];
    uint32_t served;
};

static void serve(struct sim_worker *worker, size_t group, uint64_t tick)
{
    size_t held = 0, oldest = GROUPS;
    for (size_t i = 0; i < GROUPS; i++) {
        held += worker->used[i] > 0;
        if (worker->used[i] && (oldest == GROUPS || worker->used[i] < worker->used[oldest]))
            oldest = i;
    }
    if (!worker->used[group] && held == KEPT_GROUPS)
        worker->used[oldest] = 0;
    worker->used[group] = tick;
    worker->streams++;
    worker->served++;
    worker->ending[tick % (STREAM_TICKS + 1)]++;
}

/* Of requests whose prefix some worker holds, how many go to one that does; a restart of worker 0
 * halfway loses what it held. Load is counted over the whole run. */
static void test_simulation_shared_prefixes(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 20; seed++) {
        struct sim_worker workers[WORKERS] = {0};
        uint32_t right = 0, possible = 0;
        srand(seed);
        for (uint64_t tick = 1; tick <= REQUESTS; tick++) {
            struct nosa_route_candidate candidates[WORKERS];
            size_t group = (size_t)rand() % GROUPS;
            bool held = false;
            if (tick == REQUESTS / 2)
                memset(workers[0].used, 0, sizeof workers[0].used);
            for (size_t i = 0; i < WORKERS; i++) {
                uint32_t *ended = &workers[i].ending[(tick + 1) % (STREAM_TICKS + 1)];
                workers[i].streams -= *ended;
                *ended = 0;
                candidates[i] = (struct nosa_route_candidate){
                    .gpu_tokens = workers[i].used[group] ? PREFIX_TOKENS : 0,
                    .streams = workers[i].streams,
                    .batch_max = 32,
                    .queue_max = 64,
                    .tie = (uint64_t)rand(),
                };
                held = held || workers[i].used[group];
            }
            size_t choice = nosa_router_choose(candidates, WORKERS, PREFIX_TOKENS + 100);
            assert_true(choice < WORKERS);
            possible += held;
            right += held && workers[choice].used[group] > 0;
            serve(&workers[choice], group, tick);
        }
        for (size_t i = 0; i < WORKERS; i++)
            assert_true(workers[i].served < 1.5 * REQUESTS / WORKERS);
        if (right < 0.95 * possible)
            fail_msg("seed %u: %u of %u went to a worker that holds the prefix", seed, right,
                     possible);
        assert_true(possible > REQUESTS / 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choose_none),
        cmocka_unit_test(test_choose_order),
        cmocka_unit_test(test_choose_spreads_what_nobody_holds),
        cmocka_unit_test(test_choose_gives_a_faster_worker_more),
        cmocka_unit_test(test_choose_keeps_a_conversation_where_its_prefix_is),
        cmocka_unit_test(test_prefix_set_add_remove),
        cmocka_unit_test(test_simulation_shared_prefixes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
