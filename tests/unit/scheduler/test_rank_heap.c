#include "scheduler/rank_heap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define CAPACITY 64

static void test_first_empty(void **state)
{
    (void)state;
    struct nosa_rank_heap heap;
    assert_int_equal(nosa_rank_heap_create(&heap, 1, NULL), NOSA_OK);
    assert_null(nosa_rank_heap_first(&heap));
    assert_false(nosa_rank_heap_remove(&heap, 0));
    nosa_rank_heap_destroy(&heap);
}

static void test_first_orders_by_key_then_order(void **state)
{
    (void)state;
    static const int32_t sorted[] = {2, 3, 1, 0};
    struct nosa_rank_heap heap;
    assert_int_equal(nosa_rank_heap_create(&heap, 4, NULL), NOSA_OK);
    nosa_rank_heap_push(&heap, 0, INT64_MAX, 0);
    nosa_rank_heap_push(&heap, 1, 5, 9);
    nosa_rank_heap_push(&heap, 2, INT64_MIN, 7);
    nosa_rank_heap_push(&heap, 3, 5, 8);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(nosa_rank_heap_first(&heap)->slot, sorted[i]);
        assert_true(nosa_rank_heap_remove(&heap, sorted[i]));
    }
    assert_int_equal(heap.count, 0);
    nosa_rank_heap_destroy(&heap);
}

/* Random pushes and removals from the middle, against a search through all. */
static void test_remove_any_keeps_the_order(void **state)
{
    (void)state;
    struct nosa_rank_heap heap;
    int64_t keys[CAPACITY];
    bool inside[CAPACITY] = {false};
    uint32_t random = 1;

    assert_int_equal(nosa_rank_heap_create(&heap, CAPACITY, NULL), NOSA_OK);
    for (int turn = 0; turn < 20000; turn++) {
        random = random * 1664525u + 1013904223u;
        int32_t slot = (int32_t)(random >> 16) % CAPACITY;
        if (inside[slot]) {
            assert_true(nosa_rank_heap_remove(&heap, slot));
        } else {
            keys[slot] = (int64_t)(random >> 8) % 50 - 25;
            nosa_rank_heap_push(&heap, slot, keys[slot], (uint64_t)turn);
        }
        inside[slot] = !inside[slot];
        int64_t smallest = INT64_MAX;
        int32_t count = 0;
        for (int32_t i = 0; i < CAPACITY; i++) {
            count += inside[i];
            if (inside[i] && keys[i] < smallest)
                smallest = keys[i];
        }
        assert_int_equal(heap.count, count);
        assert_true(count == 0 || nosa_rank_heap_first(&heap)->key == smallest);
    }
    nosa_rank_heap_destroy(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_empty),
        cmocka_unit_test(test_first_orders_by_key_then_order),
        cmocka_unit_test(test_remove_any_keeps_the_order),
    };
    return cmocka_run_group_tests_name("rank_heap", tests, NULL, NULL);
}
