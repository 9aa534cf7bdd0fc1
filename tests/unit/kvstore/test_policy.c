/* The policies' keys: their order by touch and by E, ties, values that are no numbers, and names.
 */
#include "policy.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static uint64_t key(enum nosa_kv_policy policy, uint32_t last_touch, float e)
{
    return nosa_kv_policy_key(
        policy, (struct nosa_kv_policy_input){.last_touch = last_touch, .weight = 1, .e = e});
}

/* Of `eddma`, with E 0. */
static uint64_t weighed(uint32_t last_touch, float weight)
{
    return nosa_kv_policy_key(NOSA_KV_POLICY_EDDMA,
                              (struct nosa_kv_policy_input){last_touch, weight, 0});
}

static void test_order_of_floats_is_kept(void **state)
{
    (void)state;
    static const float ascending[] = {-INFINITY, -FLT_MAX,    -1.5f, -1.0f, -FLT_MIN, -1e-45f, 0.0f,
                                      1e-45f,    FLT_EPSILON, 1.0f,  1.5f,  FLT_MAX,  INFINITY};
    for (size_t i = 1; i < sizeof ascending / sizeof *ascending; i++)
        assert_true(nosa_kv_policy_order(ascending[i - 1]) < nosa_kv_policy_order(ascending[i]));
    assert_int_equal(nosa_kv_policy_order(-0.0f), nosa_kv_policy_order(0.0f));
    assert_int_equal(nosa_kv_policy_order(NAN), nosa_kv_policy_order(-INFINITY));
    assert_int_equal(nosa_kv_policy_order(-NAN), nosa_kv_policy_order(-INFINITY));
}

static void test_key_eddma_is_touch_then_e(void **state)
{
    (void)state;
    const enum nosa_kv_policy eddma = NOSA_KV_POLICY_EDDMA;
    assert_true(key(eddma, 1, 100.0f) < key(eddma, 2, -100.0f));
    assert_true(key(eddma, 2, -0.5f) < key(eddma, 2, 0.25f));
    assert_true(key(eddma, 2, -INFINITY) < key(eddma, 2, -FLT_MAX));
    assert_true(key(eddma, 2, 7.0f) == key(eddma, 2, 7.0f));
    assert_true(key(eddma, 0, INFINITY) < key(eddma, UINT32_MAX, -INFINITY));
}

static void test_key_eddma_weighs_uses(void **state)
{
    (void)state;
    const uint32_t half_life = NOSA_KV_POLICY_HALF_LIFE;
    for (uint32_t touch = 0; touch < 40; touch++) {
        /* twice the weight is worth as much as one half-life later */
        assert_true(weighed(touch, 2) == weighed(touch + half_life, 1));
        assert_true(weighed(touch, 2) > weighed(touch + half_life - 1, 1));
        assert_true(weighed(touch, 2) < weighed(touch + half_life + 1, 1));
        assert_true(weighed(touch, 3.5f) < weighed(touch, 3.51f));
        assert_true(weighed(touch, 0) == weighed(touch, 1)); /* never used: as if once */
        assert_true(weighed(touch, NAN) == weighed(touch, 1));
    }
    assert_true(weighed(UINT32_MAX, 13) > weighed(UINT32_MAX, 12));
}

static void test_weight_fades_with_the_gap(void **state)
{
    (void)state;
    float weight = 0;
    assert_true(nosa_kv_policy_weight(0, 0, 7) == 1.0f);
    assert_true(nosa_kv_policy_weight(1, 10, 10 + NOSA_KV_POLICY_HALF_LIFE) == 1.5f);
    assert_true(nosa_kv_policy_weight(4, 10, 10 + 2 * NOSA_KV_POLICY_HALF_LIFE) == 2.0f);
    assert_true(nosa_kv_policy_weight(12, 1, UINT32_MAX) == 1.0f);
    for (uint32_t step = 1; step < 1000; step++) {
        float next = nosa_kv_policy_weight(weight, step - 1, step);
        assert_true(next >= weight && next <= 13.0f);
        assert_true(fabs((double)next - (1 + (double)weight * exp2(-0.125))) < 1e-5);
        weight = next;
    }
}

static void test_key_lru_ignores_e(void **state)
{
    (void)state;
    assert_true(key(NOSA_KV_POLICY_LRU, 3, 1.0f) == key(NOSA_KV_POLICY_LRU, 3, -1.0f));
    assert_true(key(NOSA_KV_POLICY_LRU, 3, NAN) < key(NOSA_KV_POLICY_LRU, 4, -INFINITY));
}

static void test_key_lowest_e_is_e_then_touch(void **state)
{
    (void)state;
    const enum nosa_kv_policy lowest = NOSA_KV_POLICY_LOWEST_E;
    assert_true(key(lowest, UINT32_MAX, -0.25f) < key(lowest, 0, 0.25f));
    assert_true(key(lowest, 5, 0.25f) < key(lowest, 6, 0.25f));
    assert_true(key(lowest, 6, NAN) == key(lowest, 6, -INFINITY));
}

static void test_parse_takes_its_own_names_only(void **state)
{
    (void)state;
    for (int i = 0; i < NOSA_KV_POLICIES; i++) {
        enum nosa_kv_policy parsed = (enum nosa_kv_policy)((i + 1) % NOSA_KV_POLICIES);
        assert_true(nosa_kv_policy_parse(nosa_kv_policy_name((enum nosa_kv_policy)i), &parsed));
        assert_int_equal(parsed, i);
    }
    enum nosa_kv_policy unchanged = NOSA_KV_POLICY_LOWEST_E;
    assert_false(nosa_kv_policy_parse("oracle", &unchanged));
    assert_false(nosa_kv_policy_parse("", &unchanged));
    assert_false(nosa_kv_policy_parse("lru ", &unchanged));
    assert_int_equal(unchanged, NOSA_KV_POLICY_LOWEST_E);
    assert_string_equal(nosa_kv_policy_name(NOSA_KV_POLICY_EDDMA), "eddma");
    assert_string_equal(nosa_kv_policy_name((enum nosa_kv_policy)NOSA_KV_POLICIES), "unknown");
    assert_null(nosa_kv_policy_names[NOSA_KV_POLICIES]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_of_floats_is_kept),
        cmocka_unit_test(test_key_eddma_is_touch_then_e),
        cmocka_unit_test(test_key_eddma_weighs_uses),
        cmocka_unit_test(test_weight_fades_with_the_gap),
        cmocka_unit_test(test_key_lru_ignores_e),
        cmocka_unit_test(test_key_lowest_e_is_e_then_touch),
        cmocka_unit_test(test_parse_takes_its_own_names_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
