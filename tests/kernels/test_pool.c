/* The CPU backend's thread pool: every item once, in order of hand-out, under many regions. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "cpu/cpu_internal.h"

#define ITEMS_MAX 1000

struct region {
    int32_t n_items;
    int32_t threads;
    uint32_t stamp;
    _Atomic int32_t started; /* items begun */
    _Atomic int32_t bad;     /* items out of range or threads out of range */
    _Atomic int32_t runs[ITEMS_MAX];
    uint32_t written[ITEMS_MAX]; /* plain memory: the end of a region must publish it */
    _Atomic uint32_t thread_mask;
    int32_t sleep_us;
    int32_t turns; /* of computing in each item */
};

static void count_item(void *context, int32_t item, int32_t thread)
{
    struct region *region = context;
    if (item < 0 || item >= region->n_items || thread < 0 || thread >= region->threads) {
        atomic_fetch_add(&region->bad, 1);
        return;
    }
    atomic_fetch_add(&region->started, 1);
    atomic_fetch_add(&region->runs[item], 1);
    atomic_fetch_or(&region->thread_mask, 1u << thread);
    region->written[item] = region->stamp + (uint32_t)item;
    if (region->sleep_us > 0)
        nanosleep(&(struct timespec){.tv_nsec = region->sleep_us * 1000L}, NULL);
    for (volatile int32_t turn = 0; turn < region->turns; turn = turn + 1)
        continue;
}

static void run_region(struct nosa_cpu_pool *pool, struct region *region, int32_t n_items,
                       uint32_t stamp)
{
    region->n_items = n_items;
    region->stamp = stamp;
    region->threads = nosa_cpu_pool_threads(pool);
    atomic_store(&region->started, 0);
    for (int32_t i = 0; i < n_items; i++)
        atomic_store(&region->runs[i], 0);
    nosa_cpu_pool_run(pool, n_items, count_item, region);
    assert_int_equal(atomic_load(&region->started), n_items);
    assert_int_equal(atomic_load(&region->bad), 0);
    for (int32_t i = 0; i < n_items; i++) {
        assert_int_equal(atomic_load(&region->runs[i]), 1);
        assert_int_equal(region->written[i], stamp + (uint32_t)i);
    }
}

static struct region *region_create(void)
{
    struct region *region = calloc(1, sizeof *region);
    assert_non_null(region);
    return region;
}

static void test_run_gives_every_item_once(void **state)
{
    (void)state;
    struct region *region = region_create();
    for (int32_t threads = 1; threads <= 4; threads++) {
        struct nosa_cpu_pool *pool;
        assert_int_equal(nosa_cpu_pool_create(threads, &pool, NULL), NOSA_OK);
        assert_int_equal(nosa_cpu_pool_threads(pool), threads);
        const int32_t counts[] = {0, 1, 2, 3, 4, 5, 7, 63, 64, 65, ITEMS_MAX};
        for (uint32_t round = 0; round < 50; round++)
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                run_region(pool, region, counts[c], round * 10000u);
        nosa_cpu_pool_destroy(pool);
    }
    free(region);
}

/* Regions back to back, and regions after pauses in which the workers fall asleep. */
static void test_run_survives_many_regions(void **state)
{
    (void)state;
    struct region *region = region_create();
    for (int32_t threads = 2; threads <= 4; threads++) {
        struct nosa_cpu_pool *pool;
        assert_int_equal(nosa_cpu_pool_create(threads, &pool, NULL), NOSA_OK);
        for (uint32_t round = 0; round < 20000; round++)
            run_region(pool, region, 2 + (int32_t)(round % 5), round * 7u);
        for (uint32_t round = 0; round < 200; round++) {
            nanosleep(&(struct timespec){.tv_nsec = (long)(round % 4) * 50000L}, NULL);
            run_region(pool, region, 2 + (int32_t)(round % 3), round * 13u);
        }
        nosa_cpu_pool_destroy(pool);
    }
    free(region);
}

/* Items that block leave time for every thread to take one; the owner sleeps for the last. */
static void test_run_uses_all_threads(void **state)
{
    (void)state;
    struct region *region = region_create();
    for (int32_t threads = 2; threads <= 4; threads++) {
        struct nosa_cpu_pool *pool;
        assert_int_equal(nosa_cpu_pool_create(threads, &pool, NULL), NOSA_OK);
        region->sleep_us = 2000;
        atomic_store(&region->thread_mask, 0);
        for (uint32_t round = 0; round < 10; round++)
            run_region(pool, region, 4 * threads, round);
        assert_int_equal(atomic_load(&region->thread_mask), (1u << threads) - 1u);
        region->sleep_us = 0;
        nosa_cpu_pool_destroy(pool);
    }
    free(region);
}

struct order {
    _Atomic int32_t last[4];
    _Atomic int32_t bad;
};

static void note_order(void *context, int32_t item, int32_t thread)
{
    struct order *order = context;
    if (atomic_exchange(&order->last[thread], item) >= item)
        atomic_fetch_add(&order->bad, 1);
}

static void test_run_hands_items_out_in_ascending_order(void **state)
{
    (void)state;
    struct nosa_cpu_pool *pool;
    assert_int_equal(nosa_cpu_pool_create(4, &pool, NULL), NOSA_OK);
    for (int round = 0; round < 500; round++) {
        struct order order;
        for (int t = 0; t < 4; t++)
            atomic_init(&order.last[t], -1);
        atomic_init(&order.bad, 0);
        nosa_cpu_pool_run(pool, 100, note_order, &order);
        assert_int_equal(atomic_load(&order.bad), 0);
    }
    nosa_cpu_pool_destroy(pool);
}

/* A wish is only a hint: whatever it names, mapped or not, regions go on as before. */
static void test_want_is_only_a_hint(void **state)
{
    (void)state;
    struct region *region = region_create();
    const struct {
        const void *data;
        int32_t units;
        size_t unit_bytes;
    } wishes[] = {{region, 4, sizeof *region / 4},
                  {NULL, 96, 4096},
                  {region, 0, 64},
                  {region, 1, 1},
                  {(void *)64, 3, 1 << 20}};
    for (int32_t threads = 1; threads <= 4; threads++) {
        struct nosa_cpu_pool *pool;
        assert_int_equal(nosa_cpu_pool_create(threads, &pool, NULL), NOSA_OK);
        for (uint32_t round = 0; round < 3000; round++) {
            size_t i = round % (sizeof wishes / sizeof *wishes);
            nosa_cpu_pool_want(pool, wishes[i].data, wishes[i].units, wishes[i].unit_bytes);
            run_region(pool, region, 2 + (int32_t)(round % 5), round * 7u);
        }
        nosa_cpu_pool_destroy(pool);
    }
    free(region);
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* A thread of another program, as far as the pool can tell: it computes until it is told to end. */
struct neighbour {
    pthread_t thread;
    _Atomic bool stop;
    double cpu_s;
};

static void *neighbour_main(void *argument)
{
    struct neighbour *neighbour = argument;
    while (!atomic_load_explicit(&neighbour->stop, memory_order_relaxed))
        continue;
    neighbour->cpu_s = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    return NULL;
}

#define CROWD_REGIONS        300
#define CROWD_NEIGHBOURS_MAX 2
#define CROWD_MAX_S          30 /* 100 ms for a region of half a millisecond: collapse, not load */

/* Regions of the pool beside busy threads; returns the processor time that the pool took. */
static double run_crowd(struct region *region, int32_t threads, int32_t n_neighbours)
{
    struct neighbour neighbours[CROWD_NEIGHBOURS_MAX] = {0};
    struct nosa_cpu_pool *pool;
    double cpu_s = -seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    assert_int_equal(nosa_cpu_pool_create(threads, &pool, NULL), NOSA_OK);
    for (int32_t i = 0; i < n_neighbours; i++)
        assert_int_equal(
            pthread_create(&neighbours[i].thread, NULL, neighbour_main, &neighbours[i]), 0);
    double start_s = seconds_of(CLOCK_MONOTONIC);
    for (uint32_t round = 0; round < CROWD_REGIONS; round++)
        run_region(pool, region, 2 + (int32_t)(round % 20), round * 11u);
    double wall_s = seconds_of(CLOCK_MONOTONIC) - start_s;
    nosa_cpu_pool_destroy(pool);
    for (int32_t i = 0; i < n_neighbours; i++) {
        atomic_store(&neighbours[i].stop, true);
        assert_int_equal(pthread_join(neighbours[i].thread, NULL), 0);
        cpu_s -= neighbours[i].cpu_s;
    }
    if (wall_s > CROWD_MAX_S)
        fail_msg("%d threads beside %d busy ones: %d regions took %.1f s", threads, n_neighbours,
                 CROWD_REGIONS, wall_s);
    return cpu_s + seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

/* Leaves the process at most two of its cores; the mask that it had is stored. */
static void keep_two_cores(cpu_set_t *before)
{
    cpu_set_t kept;
    CPU_ZERO(&kept);
    assert_int_equal(sched_getaffinity(0, sizeof *before, before), 0);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&kept) < 2; cpu++)
        if (CPU_ISSET(cpu, before))
            CPU_SET(cpu, &kept);
    assert_int_equal(sched_setaffinity(0, sizeof kept, &kept), 0);
}

/* More threads than cores, and cores taken by neighbours: regions go on, and the pool does not burn
 * what cores it gets with waiting. Processor time, so that the machine's load does not matter. */
static void test_run_goes_on_beside_busy_neighbours(void **state)
{
    (void)state;
    cpu_set_t before;
    keep_two_cores(&before);
    struct region *region = region_create();
    region->turns = 20000;
    double alone_s = run_crowd(region, 1, 2);
    run_crowd(region, 2, 1);
    for (int32_t i = 0; i < 4; i++) {
        int32_t threads = i / 2 ? 8 : 3;
        double crowd_s = run_crowd(region, threads, 1 + i % 2);
        if (crowd_s > 3 * alone_s + 0.1)
            fail_msg("%d threads on two cores take %.3f s of processor time, one takes %.3f s",
                     threads, crowd_s, alone_s);
    }
    free(region);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void test_create_and_destroy_without_a_region(void **state)
{
    (void)state;
    for (int round = 0; round < 100; round++) {
        struct nosa_cpu_pool *pool;
        assert_int_equal(nosa_cpu_pool_create(1 + round % 4, &pool, NULL), NOSA_OK);
        nosa_cpu_pool_destroy(pool);
    }
    nosa_cpu_pool_destroy(NULL);
}

static void test_create_refuses_a_wrong_number_of_threads(void **state)
{
    (void)state;
    const int32_t wrong[] = {0, -1, 1000000};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct nosa_cpu_pool *pool;
        struct nosa_error error = {0};
        assert_int_equal(nosa_cpu_pool_create(wrong[i], &pool, &error), NOSA_INVALID_ARGUMENT);
        assert_null(pool);
        assert_non_null(strstr(error.text, "threads"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_gives_every_item_once),
        cmocka_unit_test(test_run_survives_many_regions),
        cmocka_unit_test(test_run_uses_all_threads),
        cmocka_unit_test(test_run_hands_items_out_in_ascending_order),
        cmocka_unit_test(test_want_is_only_a_hint),
        cmocka_unit_test(test_run_goes_on_beside_busy_neighbours),
        cmocka_unit_test(test_create_and_destroy_without_a_region),
        cmocka_unit_test(test_create_refuses_a_wrong_number_of_threads),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
