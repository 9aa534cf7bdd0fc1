/* Creation with the Nth allocation failing, for every N: OUT_OF_MEMORY, nothing left behind. */
#include "kv_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "support/alloc_fail.h"

static enum nosa_status create_store(void *context, struct nosa_error *error)
{
    struct nosa_kv_store_options options = {.n_blocks = 8, .sequences_max = 2, .context_max = 300};
    struct nosa_kv_store *store;
    (void)context;
    enum nosa_status status = nosa_kv_store_create(&options, &store, error);
    nosa_kv_store_destroy(store);
    return status;
}

static void test_store_create_with_each_allocation_failing(void **state)
{
    (void)state;
    /* The store, 8 arrays of blocks, the index, 4 arrays of sequences. */
    assert_int_equal(nosa_alloc_fail_sweep(create_store, NULL), 14);
}

/* Opens, fills, shares, evicts and closes; none of it may allocate. */
static void test_sequences_do_not_allocate(void **state)
{
    (void)state;
    struct nosa_kv_store_options options = {.n_blocks = 8, .sequences_max = 2, .context_max = 300};
    struct nosa_kv_store *store;
    uint32_t tokens[300] = {0};
    assert_int_equal(nosa_kv_store_create(&options, &store, NULL), NOSA_OK);
    nosa_alloc_fail_arm(0);
    for (int32_t i = 0; i < 20; i++) {
        struct nosa_kv_sequence *sequence;
        int32_t cached;
        tokens[150] = (uint32_t)(i / 2);
        NOSA_ASSERT(nosa_kv_sequence_open(store, tokens, 290, "salt", 4, &sequence, &cached,
                                          NULL) == NOSA_OK);
        NOSA_ASSERT(nosa_kv_sequence_append(sequence, 1, NULL) == NOSA_OK);
        NOSA_ASSERT(nosa_kv_sequence_reserve(sequence, 291, NULL) == NOSA_OK);
        nosa_kv_sequence_commit(sequence, 291);
        nosa_kv_sequence_close(sequence);
    }
    uint64_t allocations = nosa_alloc_fail_count();
    nosa_alloc_fail_disarm();
    assert_int_equal(allocations, 0);
    struct nosa_kv_store_counters counters;
    nosa_kv_store_counters(store, &counters);
    assert_true(counters.evicted_blocks > 0 && counters.prefix_hit_tokens > 0);
    nosa_kv_store_destroy(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store_create_with_each_allocation_failing),
        cmocka_unit_test(test_sequences_do_not_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
