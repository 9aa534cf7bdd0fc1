/* Percentiles against sorted values, and what counts as a good request. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench_plan.h"
#include "bench_statistics.h"

#define MS UINT64_C(1000000)

static int setup(void **state)
{
    *state = calloc(1, sizeof(struct nosa_bench_statistics));
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static int by_value(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* `count` values of up to 2^bits, against the values that nearest rank picks from them. */
static void check_percentiles(struct nosa_bench_histogram *histogram, size_t count, int bits)
{
    static const double percents[] = {0, 1, 50, 90, 95, 99, 99.9, 100};
    uint64_t *values = calloc(count, sizeof *values);
    double sum = 0;
    struct nosa_bench_random random = nosa_bench_random_start((uint64_t)bits, 1, count);
    assert_non_null(values);
    memset(histogram, 0, sizeof *histogram);
    for (size_t i = 0; i < count; i++) {
        values[i] = nosa_bench_random_next(&random) >>
                    (64 - 1 - nosa_bench_random_below(&random, (uint64_t)bits));
        nosa_bench_histogram_add(histogram, values[i]);
        sum += (double)values[i];
    }
    qsort(values, count, sizeof *values, by_value);
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
        size_t rank = (size_t)ceil(percents[i] / 100 * (double)count);
        double exact = (double)values[rank > 0 ? rank - 1 : 0];
        double found = nosa_bench_histogram_percentile_ns(histogram, percents[i]);
        assert_true(fabs(found - exact) <= 0.004 * exact);
    }
    struct nosa_bench_summary summary = nosa_bench_histogram_summary(histogram);
    assert_int_equal(summary.count, count);
    assert_true(fabs(summary.mean_ms * 1e6 - sum / (double)count) <= 1e-9 * sum);
    assert_true(fabs(summary.min_ms * 1e6 - (double)values[0]) <= 1e-9 * sum);
    assert_true(fabs(summary.max_ms * 1e6 - (double)values[count - 1]) <= 1e-9 * sum);
    free(values);
}

static void test_percentile_is_that_of_sorted_values(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    static const size_t counts[] = {1, 2, 3, 10, 1000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int bits = 1; bits <= 44; bits++)
            check_percentiles(&statistics->e2e, counts[i], bits);
}

static void test_percentile_of_nothing_is_zero(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    assert_true(nosa_bench_histogram_percentile_ns(&statistics->e2e, 50) == 0);
    assert_int_equal(nosa_bench_histogram_summary(&statistics->e2e).count, 0);
}

static void test_histogram_add_takes_values_beyond_its_end(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    nosa_bench_histogram_add(&statistics->e2e, 5);
    nosa_bench_histogram_add(&statistics->e2e, UINT64_MAX);
    assert_true(nosa_bench_histogram_percentile_ns(&statistics->e2e, 1) == 5);
    assert_true(nosa_bench_histogram_percentile_ns(&statistics->e2e, 100) > 0x1.fep43);
    assert_true(nosa_bench_histogram_summary(&statistics->e2e).max_ms == (double)UINT64_MAX / 1e6);
}

/* Planned at 1 s, sent 2 ms late, first token after 10 ms, then `tokens` - 1 of 5 ms each. */
static struct nosa_bench_outcome outcome_of(uint32_t tokens)
{
    return (struct nosa_bench_outcome){
        .code = NOSA_RPC_OK,
        .planned_ns = 1000 * MS,
        .sent_ns = 1002 * MS,
        .first_ns = 1010 * MS,
        .last_ns = (1010 + 5 * (uint64_t)(tokens - 1)) * MS,
        .end_ns = (1011 + 5 * (uint64_t)(tokens - 1)) * MS,
        .prompt_tokens = 100,
        .cached_tokens = 64,
        .output_tokens = tokens,
    };
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 0.004 * b;
}

static void test_statistics_add_counts_from_the_planned_arrival(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    struct nosa_bench_outcome outcome = outcome_of(21);
    nosa_bench_statistics_add(statistics, &outcome);
    assert_true(near(nosa_bench_histogram_summary(&statistics->ttft).p50_ms, 10));
    assert_true(near(nosa_bench_histogram_summary(&statistics->tpot).p50_ms, 5));
    assert_true(near(nosa_bench_histogram_summary(&statistics->e2e).p50_ms, 111));
    assert_true(near(nosa_bench_histogram_summary(&statistics->late).p50_ms, 2));
    assert_int_equal(statistics->completed, 1);
    assert_int_equal(statistics->good, 1);
    assert_int_equal(statistics->prompt_tokens, 100);
    assert_int_equal(statistics->cached_tokens, 64);
    assert_int_equal(statistics->output_tokens, 21);
    assert_true(near(nosa_bench_statistics_seconds(statistics), 0.111));
}

static void test_statistics_add_one_token_has_no_tpot(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    struct nosa_bench_outcome outcome = outcome_of(1);
    statistics->limits.tpot_ms = 0.001;
    nosa_bench_statistics_add(statistics, &outcome);
    assert_int_equal(statistics->tpot.count, 0);
    assert_int_equal(statistics->good, 1);
}

static void test_statistics_add_goodput_needs_every_limit(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    static const struct {
        struct nosa_bench_limits limits;
        bool good;
    } cases[] = {{{0, 0, 0}, true},      {{10, 5, 111}, true},   {{9.9, 0, 0}, false},
                 {{0, 4.9, 0}, false},   {{0, 0, 110.9}, false}, {{10, 4.9, 111}, false},
                 {{9.9, 5, 111}, false}, {{10, 5, 110.9}, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nosa_bench_outcome outcome = outcome_of(21);
        memset(statistics, 0, sizeof *statistics);
        statistics->limits = cases[i].limits;
        nosa_bench_statistics_add(statistics, &outcome);
        assert_int_equal(statistics->good, cases[i].good);
        assert_int_equal(statistics->completed, 1);
    }
}

static void test_statistics_add_failures_count_by_code_alone(void **state)
{
    struct nosa_bench_statistics *statistics = *state;
    struct nosa_bench_outcome outcome = outcome_of(21);
    outcome.code = NOSA_RPC_RESOURCE_EXHAUSTED;
    nosa_bench_statistics_add(statistics, &outcome);
    outcome.code = NOSA_RPC_UNAVAILABLE;
    nosa_bench_statistics_add(statistics, &outcome);
    nosa_bench_statistics_add(statistics, &outcome);
    assert_int_equal(statistics->failed[NOSA_RPC_RESOURCE_EXHAUSTED], 1);
    assert_int_equal(statistics->failed[NOSA_RPC_UNAVAILABLE], 2);
    assert_int_equal(nosa_bench_statistics_failed(statistics), 3);
    assert_int_equal(statistics->completed, 0);
    assert_int_equal(statistics->output_tokens, 0);
    assert_int_equal(statistics->ttft.count, 0);
    assert_int_equal(statistics->e2e.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_percentile_is_that_of_sorted_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_percentile_of_nothing_is_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(test_histogram_add_takes_values_beyond_its_end, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_statistics_add_counts_from_the_planned_arrival, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_statistics_add_one_token_has_no_tpot, setup, teardown),
        cmocka_unit_test_setup_teardown(test_statistics_add_goodput_needs_every_limit, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_statistics_add_failures_count_by_code_alone, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
