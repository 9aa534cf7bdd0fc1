/* The order of eviction against a search through all extents. */
#include "extent_order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "support/io_sim.h"

#define N 60

static int32_t lowest(const struct nosa_extent_order *order)
{
    int32_t best = -1;
    for (int32_t i = 0; i < N; i++) {
        if (!nosa_extent_order_holds(order, i))
            continue;
        const struct nosa_extent_rank *a = &order->rank[i];
        const struct nosa_extent_rank *b = best < 0 ? NULL : &order->rank[best];
        if (!b || a->use < b->use || (a->use == b->use && a->value < b->value) ||
            (a->use == b->use && a->value == b->value && a->generation < b->generation))
            best = i;
    }
    return best;
}

static void test_first_is_lowest_after_random_changes(void **state)
{
    (void)state;
    struct nosa_extent_rank ranks[N] = {0};
    struct nosa_extent_order order;
    uint64_t random = 7;
    assert_int_equal(nosa_extent_order_create(&order, N, ranks, NULL), NOSA_OK);
    assert_int_equal(nosa_extent_order_first(&order), -1);
    for (uint32_t step = 0; step < 20000; step++) {
        int32_t extent = (int32_t)io_sim_below(&random, N);
        bool held = nosa_extent_order_holds(&order, extent);
        if (held && io_sim_below(&random, 2)) {
            nosa_extent_order_remove(&order, extent);
        } else {
            ranks[extent].use = io_sim_below(&random, 10);
            ranks[extent].value = (float)io_sim_below(&random, 4) - 1;
            ranks[extent].generation = step;
            if (held)
                nosa_extent_order_update(&order, extent);
            else
                nosa_extent_order_put(&order, extent);
        }
        assert_int_equal(nosa_extent_order_first(&order), lowest(&order));
    }
    nosa_extent_order_destroy(&order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_is_lowest_after_random_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
