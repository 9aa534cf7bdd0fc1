/* Requests of a benchmark's plan: the same for the same seed, and distributed as asked for. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench_plan.h"

#define DRAWS 20000

static struct nosa_bench_lengths parse(const char *text)
{
    struct nosa_error error = {0};
    struct nosa_bench_lengths lengths;
    if (nosa_bench_lengths_parse(text, &lengths, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return lengths;
}

struct moments {
    double mean, deviation;
    uint32_t min, max;
};

static struct moments moments_of(const char *text)
{
    struct nosa_bench_lengths lengths = parse(text);
    struct moments moments = {.min = UINT32_MAX};
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        struct nosa_bench_random random = nosa_bench_random_start(1, 2, i);
        uint32_t drawn = nosa_bench_lengths_draw(&lengths, &random);
        sum += drawn;
        squares += (double)drawn * drawn;
        moments.min = drawn < moments.min ? drawn : moments.min;
        moments.max = drawn > moments.max ? drawn : moments.max;
    }
    moments.mean = sum / DRAWS;
    moments.deviation = sqrt(squares / DRAWS - moments.mean * moments.mean);
    return moments;
}

static void test_lengths_draw_fixed(void **state)
{
    (void)state;
    struct moments moments = moments_of("512");
    assert_int_equal(moments.min, 512);
    assert_int_equal(moments.max, 512);
}

static void test_lengths_draw_uniform(void **state)
{
    (void)state;
    struct moments moments = moments_of("10-19");
    assert_int_equal(moments.min, 10);
    assert_int_equal(moments.max, 19);
    assert_true(fabs(moments.mean - 14.5) < 0.1);
    assert_true(fabs(moments.deviation - sqrt(99 / 12.0)) < 0.1);
}

static void test_lengths_draw_normal(void **state)
{
    (void)state;
    struct moments moments = moments_of("normal:500,50");
    assert_true(fabs(moments.mean - 500) < 2);
    assert_true(fabs(moments.deviation - 50) < 1.5);
    moments = moments_of("normal:1,1000");
    assert_int_equal(moments.min, 1);
    moments = moments_of("normal:7,0");
    assert_int_equal(moments.min, 7);
    assert_int_equal(moments.max, 7);
}

static void test_lengths_draw_exponential(void **state)
{
    (void)state;
    struct moments moments = moments_of("exponential:300");
    assert_true(fabs(moments.mean - 300) < 8);
    assert_true(fabs(moments.deviation - 300) < 12);
    assert_int_equal(moments.min, 1);
}

static void test_lengths_max_tells_bounds(void **state)
{
    (void)state;
    struct nosa_bench_lengths lengths = parse("10-19");
    assert_int_equal(nosa_bench_lengths_max(&lengths), 19);
    lengths = parse("normal:10,1");
    assert_int_equal(nosa_bench_lengths_max(&lengths), NOSA_BENCH_TOKENS_MAX);
}

static void test_lengths_parse_refuses_what_is_no_length(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "0",
                                      "-5",
                                      "x",
                                      "1.5",
                                      "5-",
                                      "9-5",
                                      "0-5",
                                      "1-2-3",
                                      "99999999",
                                      "512 ",
                                      "normal:5",
                                      "normal:,",
                                      "normal:0,1",
                                      "normal:5,1,2",
                                      "normal:5,-1",
                                      "normal:",
                                      "exponential:",
                                      "nan",
                                      "inf",
                                      "exponential:0",
                                      "normal:5,nan",
                                      "1-99999999",
                                      "geometric:5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct nosa_error error = {0};
        struct nosa_bench_lengths lengths;
        assert_int_equal(nosa_bench_lengths_parse(bad[i], &lengths, &error), NOSA_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, bad[i]));
    }
}

static void test_arrivals_next_poisson(void **state)
{
    (void)state;
    struct nosa_bench_arrivals arrivals;
    double sum = 0, squares = 0;
    nosa_bench_arrivals_start(&arrivals, 7, 50, true);
    uint64_t last = nosa_bench_arrivals_next(&arrivals);
    assert_int_equal(last, 0);
    for (int i = 0; i < DRAWS; i++) {
        uint64_t next = nosa_bench_arrivals_next(&arrivals);
        double gap_s = (double)(next - last) / 1e9;
        assert_true(next >= last);
        sum += gap_s;
        squares += gap_s * gap_s;
        last = next;
    }
    /* An exponential gap has a standard deviation equal to its mean. */
    double mean = sum / DRAWS;
    assert_true(fabs(mean - 0.02) < 0.0006);
    assert_true(fabs(sqrt(squares / DRAWS - mean * mean) - 0.02) < 0.001);
}

static void test_arrivals_next_even(void **state)
{
    (void)state;
    struct nosa_bench_arrivals arrivals;
    nosa_bench_arrivals_start(&arrivals, 7, 4, false);
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(nosa_bench_arrivals_next(&arrivals), i * 250000000);
}

static struct nosa_bench_plan plan_of(uint64_t seed)
{
    return (struct nosa_bench_plan){.seed = seed,
                                    .prompt = parse("8-40"),
                                    .output = parse("1-9"),
                                    .prefix_groups = 4,
                                    .prefix_tokens = 16,
                                    .vocab_size = 1000};
}

static uint32_t *prompt_of(const struct nosa_bench_plan *plan,
                           const struct nosa_bench_request *request)
{
    uint32_t *ids = calloc(request->prompt_tokens, sizeof *ids);
    assert_non_null(ids);
    nosa_bench_plan_prompt(plan, request, ids);
    return ids;
}

static void test_plan_is_a_function_of_the_seed(void **state)
{
    (void)state;
    struct nosa_bench_plan plan = plan_of(3), other = plan_of(4);
    bool differs = false;
    for (uint64_t i = 0; i < 50; i++) {
        struct nosa_bench_request a = nosa_bench_plan_request(&plan, i);
        struct nosa_bench_request b = nosa_bench_plan_request(&plan, i);
        struct nosa_bench_request c = nosa_bench_plan_request(&other, i);
        assert_memory_equal(&a, &b, sizeof a);
        differs = differs || a.prompt_tokens != c.prompt_tokens;
        uint32_t *first = prompt_of(&plan, &a), *second = prompt_of(&plan, &b);
        assert_memory_equal(first, second, a.prompt_tokens * sizeof *first);
        for (uint32_t k = 0; k < a.prompt_tokens; k++)
            assert_true(first[k] < plan.vocab_size);
        free(first);
        free(second);
    }
    assert_true(differs);
}

static void test_plan_prompt_shares_the_groups_prefix_alone(void **state)
{
    (void)state;
    struct nosa_bench_plan plan = plan_of(3);
    size_t bytes = plan.prefix_tokens * sizeof(uint32_t);
    uint32_t members[4] = {0};
    for (uint64_t i = 0; i < 40; i++) {
        struct nosa_bench_request a = nosa_bench_plan_request(&plan, i);
        uint32_t *first = prompt_of(&plan, &a);
        members[a.group]++;
        for (uint64_t k = i + 1; k < 40; k++) {
            struct nosa_bench_request b = nosa_bench_plan_request(&plan, k);
            uint32_t *second = prompt_of(&plan, &b);
            assert_int_equal(memcmp(first, second, bytes) == 0, a.group == b.group);
            assert_memory_not_equal(first + plan.prefix_tokens, second + plan.prefix_tokens,
                                    8 * sizeof *first);
            free(second);
        }
        free(first);
    }
    for (int group = 0; group < 4; group++)
        assert_true(members[group] > 0);
}

static void test_plan_request_takes_groups_in_turn(void **state)
{
    (void)state;
    struct nosa_bench_plan plan = plan_of(3);
    plan.in_turn = true;
    for (uint64_t i = 0; i < 12; i++)
        assert_int_equal(nosa_bench_plan_request(&plan, i).group, i % 4);
}

static void test_plan_warm_up_shares_nothing(void **state)
{
    (void)state;
    struct nosa_bench_plan plan = plan_of(3);
    plan.prefix_groups = 1;
    struct nosa_bench_request counted = nosa_bench_plan_request(&plan, 0);
    struct nosa_bench_request warm = nosa_bench_plan_request(&plan, NOSA_BENCH_WARM_UP_INDEX);
    uint32_t *first = prompt_of(&plan, &counted), *second = prompt_of(&plan, &warm);
    assert_memory_not_equal(first, second, plan.prefix_tokens * sizeof *first);
    free(first);
    free(second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths_draw_fixed),
        cmocka_unit_test(test_lengths_draw_uniform),
        cmocka_unit_test(test_lengths_draw_normal),
        cmocka_unit_test(test_lengths_draw_exponential),
        cmocka_unit_test(test_lengths_max_tells_bounds),
        cmocka_unit_test(test_lengths_parse_refuses_what_is_no_length),
        cmocka_unit_test(test_arrivals_next_poisson),
        cmocka_unit_test(test_arrivals_next_even),
        cmocka_unit_test(test_plan_is_a_function_of_the_seed),
        cmocka_unit_test(test_plan_prompt_shares_the_groups_prefix_alone),
        cmocka_unit_test(test_plan_request_takes_groups_in_turn),
        cmocka_unit_test(test_plan_warm_up_shares_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
