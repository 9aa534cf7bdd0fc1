#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

static void test_system_monotonic_advances(void **state)
{
    (void)state;
    const struct nosa_clock *clock = nosa_clock_system();
    uint64_t before = nosa_monotonic_ns();
    uint64_t now = nosa_clock_monotonic_ns(clock);
    for (int i = 0; i < 1000; i++) {
        uint64_t next = nosa_clock_monotonic_ns(clock);
        assert_true(next >= now);
        now = next;
    }
    assert_true(now > before && now - before < 60 * NOSA_NS_PER_S);
    /* 2020-01-01: a wall clock in seconds or microseconds would be far below. */
    assert_true(nosa_clock_wall_ns(clock) > UINT64_C(1577836800) * NOSA_NS_PER_S);
}

static void test_manual_clock_moves_when_told(void **state)
{
    (void)state;
    struct nosa_manual_clock manual;
    nosa_manual_clock_init(&manual, 5, 1000);
    assert_int_equal(nosa_clock_monotonic_ns(&manual.clock), 5);
    assert_int_equal(nosa_clock_monotonic_ns(&manual.clock), 5);
    nosa_manual_clock_advance(&manual, 10);
    assert_int_equal(nosa_clock_monotonic_ns(&manual.clock), 15);
    assert_int_equal(nosa_clock_wall_ns(&manual.clock), 1010);
    nosa_manual_clock_destroy(&manual);
}

static void test_seconds_between_signs(void **state)
{
    (void)state;
    assert_true(nosa_seconds_between(NOSA_NS_PER_S, 3 * NOSA_NS_PER_S) == 2.0);
    assert_true(nosa_seconds_between(3 * NOSA_NS_PER_S, NOSA_NS_PER_S) == -2.0);
    assert_true(nosa_seconds_between(7, 7) == 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_system_monotonic_advances),
        cmocka_unit_test(test_manual_clock_moves_when_told),
        cmocka_unit_test(test_seconds_between_signs),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
