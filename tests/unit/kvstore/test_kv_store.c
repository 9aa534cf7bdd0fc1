/* The KV store case by case: prefixes, salts, copies, eviction, bounds. The property test covers
 * their combinations. */
#include "kv_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CONTEXT_MAX 640

static uint32_t prompt[CONTEXT_MAX]; /* distinct ids */

static int fill_prompt(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < CONTEXT_MAX; i++)
        prompt[i] = 1000 + i;
    return 0;
}

static struct nosa_kv_store *create_store(int32_t n_blocks, int32_t sequences_max)
{
    struct nosa_kv_store_options options = {
        .n_blocks = n_blocks, .sequences_max = sequences_max, .context_max = CONTEXT_MAX};
    struct nosa_kv_store *store;
    assert_int_equal(nosa_kv_store_create(&options, &store, NULL), NOSA_OK);
    return store;
}

static struct nosa_kv_sequence *open_salted(struct nosa_kv_store *store, const uint32_t *tokens,
                                            int32_t n_tokens, const char *salt, int32_t cached)
{
    struct nosa_kv_sequence *sequence;
    int32_t cached_tokens = -1;
    assert_int_equal(nosa_kv_sequence_open(store, tokens, n_tokens, salt, strlen(salt), &sequence,
                                           &cached_tokens, NULL),
                     NOSA_OK);
    assert_int_equal(cached_tokens, cached);
    assert_int_equal(nosa_kv_sequence_length(sequence), n_tokens);
    assert_int_equal(nosa_kv_sequence_computed(sequence), cached);
    assert_memory_equal(nosa_kv_sequence_tokens(sequence), tokens,
                        (size_t)n_tokens * sizeof *tokens);
    return sequence;
}

static struct nosa_kv_sequence *open_prompt(struct nosa_kv_store *store, int32_t n_tokens,
                                            int32_t cached)
{
    return open_salted(store, prompt, n_tokens, "", cached);
}

static void compute(struct nosa_kv_sequence *sequence, int32_t n_tokens)
{
    assert_int_equal(nosa_kv_sequence_reserve(sequence, n_tokens, NULL), NOSA_OK);
    nosa_kv_sequence_commit(sequence, n_tokens);
    assert_int_equal(nosa_kv_sequence_computed(sequence), n_tokens);
}

static int32_t block_at(const struct nosa_kv_sequence *sequence, int32_t i)
{
    int32_t n_blocks;
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence, &n_blocks);
    assert_true(i < n_blocks);
    return blocks[i];
}

static void assert_blocks(const struct nosa_kv_store *store, int32_t used, int32_t cached,
                          uint64_t evicted)
{
    struct nosa_kv_store_counters counters;
    nosa_kv_store_counters(store, &counters);
    assert_int_equal(counters.blocks_used, used);
    assert_int_equal(counters.blocks_cached, cached);
    assert_int_equal(counters.evicted_blocks, evicted);
}

static void test_open_shares_blocks_of_a_running_sequence(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(10, 3);
    struct nosa_kv_sequence *first = open_prompt(store, 200, 0);
    compute(first, 130);
    struct nosa_kv_sequence *second = open_prompt(store, 300, 128);
    assert_int_equal(block_at(second, 0), block_at(first, 0));
    assert_int_equal(block_at(second, 1), block_at(first, 1));
    assert_blocks(store, 3, 0, 0);
    compute(second, 300);
    assert_int_not_equal(block_at(second, 2), block_at(first, 2));
    nosa_kv_sequence_close(first);
    assert_blocks(store, 5, 0, 0);
    nosa_kv_sequence_close(second);
    assert_blocks(store, 0, 4, 0);
    struct nosa_kv_store_counters counters;
    nosa_kv_store_counters(store, &counters);
    assert_int_equal(counters.prefix_lookup_tokens, 500);
    assert_int_equal(counters.prefix_hit_tokens, 128);
    assert_int_equal(counters.blocks_total, 10);
    assert_int_equal(counters.sequences, 0);
    nosa_kv_store_destroy(store);
}

static void test_open_leaves_a_token_to_compute(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(10, 2);
    struct nosa_kv_sequence *sequence = open_prompt(store, 193, 0);
    compute(sequence, 193);
    nosa_kv_sequence_close(sequence);
    static const int32_t lengths[] = {1, 63, 64, 65, 127, 128, 129, 192, 193, 640};
    static const int32_t cached[] = {0, 0, 0, 64, 64, 64, 128, 128, 192, 192};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        nosa_kv_sequence_close(open_prompt(store, lengths[i], cached[i]));
    nosa_kv_store_destroy(store);
}

static void test_open_compares_every_token_and_the_salt(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(20, 2);
    uint32_t tokens[200];
    struct nosa_kv_sequence *sequence = open_salted(store, prompt, 200, "a", 0);
    compute(sequence, 200);
    nosa_kv_sequence_close(sequence);
    nosa_kv_sequence_close(open_salted(store, prompt, 200, "a", 192));
    nosa_kv_sequence_close(open_salted(store, prompt, 200, "", 0));
    nosa_kv_sequence_close(open_salted(store, prompt, 200, "b", 0));
    nosa_kv_sequence_close(open_salted(store, prompt, 200, "aa", 0));
    for (int32_t i = 0; i < 200; i++) {
        memcpy(tokens, prompt, sizeof tokens);
        tokens[i] ^= 1u << (i % 32);
        int32_t cached = i < 192 ? i / 64 * 64 : 192;
        nosa_kv_sequence_close(open_salted(store, tokens, 200, "a", cached));
    }
    nosa_kv_store_destroy(store);
}

static void test_open_private_neither_takes_nor_gives(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(12, 3);
    struct nosa_kv_sequence *shared = open_prompt(store, 130, 0);
    compute(shared, 130);
    struct nosa_kv_sequence *private;
    assert_int_equal(nosa_kv_sequence_open_private(store, prompt, 200, &private, NULL), NOSA_OK);
    assert_int_equal(nosa_kv_sequence_computed(private), 0);
    compute(private, 200);
    assert_int_not_equal(block_at(private, 0), block_at(shared, 0));
    struct nosa_kv_sequence *later = open_prompt(store, 200, 128);
    assert_int_equal(block_at(later, 1), block_at(shared, 1));
    nosa_kv_sequence_close(later);
    nosa_kv_sequence_close(private);
    assert_blocks(store, 3, 0, 0);
    nosa_kv_sequence_close(shared);
    assert_blocks(store, 0, 2, 0);
    nosa_kv_store_destroy(store);
}

static void test_append_makes_generated_blocks_findable(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(10, 2);
    struct nosa_kv_sequence *sequence = open_prompt(store, 60, 0);
    compute(sequence, 60);
    for (int32_t i = 60; i < 200; i++) {
        assert_int_equal(nosa_kv_sequence_append(sequence, prompt[i], NULL), NOSA_OK);
        compute(sequence, i + 1);
    }
    nosa_kv_sequence_close(open_prompt(store, 300, 192));
    nosa_kv_sequence_close(sequence);
    nosa_kv_store_destroy(store);
}

static void test_append_at_the_end_of_the_context(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(10, 1);
    struct nosa_kv_sequence *sequence = open_prompt(store, CONTEXT_MAX - 1, 0);
    struct nosa_error error = {0};
    assert_int_equal(nosa_kv_sequence_append(sequence, 1, &error), NOSA_OK);
    assert_int_equal(nosa_kv_sequence_append(sequence, 1, &error), NOSA_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.text, "640"));
    assert_int_equal(nosa_kv_sequence_length(sequence), CONTEXT_MAX);
    compute(sequence, CONTEXT_MAX);
    nosa_kv_sequence_close(sequence);
    assert_blocks(store, 0, 10, 0);
    nosa_kv_store_destroy(store);
}

static void test_commit_of_an_equal_block_keeps_the_own_one(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(10, 4);
    struct nosa_kv_sequence *first = open_prompt(store, 130, 0);
    struct nosa_kv_sequence *second = open_prompt(store, 200, 0);
    compute(first, 130);
    compute(second, 200);
    int32_t copy = block_at(second, 0);
    assert_int_not_equal(copy, block_at(first, 0));
    struct nosa_kv_sequence *third = open_prompt(store, 200, 192);
    assert_int_equal(block_at(third, 0), block_at(first, 0));
    assert_int_equal(block_at(third, 2), block_at(second, 2));
    nosa_kv_sequence_close(third);
    assert_blocks(store, 7, 0, 0);
    /* The known blocks' only user goes: the copies take over, nothing is kept twice. */
    nosa_kv_sequence_close(first);
    assert_blocks(store, 4, 0, 0);
    third = open_prompt(store, 200, 192);
    assert_int_equal(block_at(third, 0), copy);
    nosa_kv_sequence_close(second);
    assert_blocks(store, 3, 0, 0);
    nosa_kv_sequence_close(third);
    assert_blocks(store, 0, 3, 0);
    nosa_kv_store_destroy(store);
}

static void test_commit_of_a_block_that_lies_cached_frees_the_cached_one(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(10, 2);
    struct nosa_kv_sequence *first = open_prompt(store, 128, 0);
    compute(first, 128);
    nosa_kv_sequence_close(first);
    assert_blocks(store, 0, 2, 0);
    struct nosa_kv_sequence *second = open_prompt(store, 128, 64);
    compute(second, 128); /* the last block was known, but a token had to be left */
    assert_blocks(store, 2, 0, 0);
    nosa_kv_sequence_close(second);
    assert_blocks(store, 0, 2, 0);
    nosa_kv_store_destroy(store);
}

static void test_reserve_is_all_or_nothing(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(4, 2);
    struct nosa_kv_sequence *first = open_prompt(store, 400, 0);
    struct nosa_kv_sequence *second = open_salted(store, prompt, 400, "x", 0);
    struct nosa_error error = {0};
    int32_t n_blocks;
    compute(first, 65);
    assert_int_equal(nosa_kv_sequence_reserve(second, 129, &error), NOSA_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.text, "3 blocks needed, 2 of 4 free"));
    nosa_kv_sequence_blocks(second, &n_blocks);
    assert_int_equal(n_blocks, 0);
    assert_int_equal(nosa_kv_sequence_reserve(second, 128, NULL), NOSA_OK);
    assert_int_equal(nosa_kv_sequence_reserve(second, 1, NULL), NOSA_OK);
    nosa_kv_sequence_blocks(second, &n_blocks);
    assert_int_equal(n_blocks, 2);
    assert_int_equal(nosa_kv_sequence_reserve(second, CONTEXT_MAX + 1, NULL),
                     NOSA_INVALID_ARGUMENT);
    assert_int_equal(nosa_kv_sequence_reserve(second, -1, NULL), NOSA_INVALID_ARGUMENT);
    nosa_kv_sequence_close(second);
    nosa_kv_sequence_close(first);
    assert_blocks(store, 0, 1, 0);
    nosa_kv_store_destroy(store);
}

static void test_reserve_evicts_the_least_recently_used_from_the_end(void **state)
{
    (void)state;
    /* a is used again after b, but not its third block: order a2, b2, b1, b0, a1, a0. */
    static const int32_t cached_a[] = {128, 128, 128, 128, 64, 0};
    static const int32_t cached_b[] = {192, 128, 64, 0, 0, 0};
    for (int32_t n = 1; n <= 6; n++) {
        struct nosa_kv_store *store = create_store(6, 2);
        struct nosa_kv_sequence *sequence;
        static const char *const salts[] = {"a", "b"};
        for (int32_t i = 0; i < 2; i++) {
            sequence = open_salted(store, prompt, 192, salts[i], 0);
            compute(sequence, 192);
            nosa_kv_sequence_close(sequence);
        }
        nosa_kv_sequence_close(open_salted(store, prompt, 192, "a", 128));
        sequence = open_salted(store, prompt, 640, "c", 0);
        assert_int_equal(nosa_kv_sequence_reserve(sequence, n * 64, NULL), NOSA_OK);
        assert_blocks(store, n, 6 - n, (uint64_t)n);
        nosa_kv_sequence_close(open_salted(store, prompt, 193, "a", cached_a[n - 1]));
        nosa_kv_sequence_close(open_salted(store, prompt, 193, "b", cached_b[n - 1]));
        nosa_kv_sequence_close(sequence);
        nosa_kv_store_destroy(store);
    }
}

static void test_open_bounds(void **state)
{
    (void)state;
    struct nosa_kv_store *store = create_store(4, 1);
    struct nosa_kv_sequence *sequence, *other;
    struct nosa_error error = {0};
    int32_t cached;
    assert_int_equal(nosa_kv_sequence_open(store, prompt, 0, NULL, 0, &sequence, &cached, NULL),
                     NOSA_INVALID_ARGUMENT);
    assert_null(sequence);
    assert_int_equal(
        nosa_kv_sequence_open(store, prompt, CONTEXT_MAX + 1, NULL, 0, &sequence, &cached, &error),
        NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "641 tokens"));
    sequence = open_prompt(store, 1, 0);
    assert_int_equal(nosa_kv_sequence_open(store, prompt, 1, NULL, 0, &other, &cached, NULL),
                     NOSA_RESOURCE_EXHAUSTED);
    nosa_kv_sequence_close(sequence);
    nosa_kv_sequence_close(NULL);
    nosa_kv_sequence_close(open_prompt(store, CONTEXT_MAX, 0));
    nosa_kv_store_destroy(store);
}

static void test_create_bounds(void **state)
{
    (void)state;
    static const int32_t bad[][3] = {
        {0, 1, 1}, {-1, 1, 1}, {INT32_MAX, 1, 1}, {1, 0, 1}, {1, 1, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nosa_kv_store_options options = {
            .n_blocks = bad[i][0], .sequences_max = bad[i][1], .context_max = bad[i][2]};
        struct nosa_kv_store *store;
        assert_int_equal(nosa_kv_store_create(&options, &store, NULL), NOSA_INVALID_ARGUMENT);
        assert_null(store);
    }
    nosa_kv_store_destroy(NULL);
    struct nosa_kv_store *store = create_store(4, 2);
    compute(open_prompt(store, 100, 0), 100);
    nosa_kv_store_destroy(store); /* with an open sequence */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_shares_blocks_of_a_running_sequence),
        cmocka_unit_test(test_open_leaves_a_token_to_compute),
        cmocka_unit_test(test_open_compares_every_token_and_the_salt),
        cmocka_unit_test(test_open_private_neither_takes_nor_gives),
        cmocka_unit_test(test_append_makes_generated_blocks_findable),
        cmocka_unit_test(test_append_at_the_end_of_the_context),
        cmocka_unit_test(test_commit_of_an_equal_block_keeps_the_own_one),
        cmocka_unit_test(test_commit_of_a_block_that_lies_cached_frees_the_cached_one),
        cmocka_unit_test(test_reserve_is_all_or_nothing),
        cmocka_unit_test(test_reserve_evicts_the_least_recently_used_from_the_end),
        cmocka_unit_test(test_open_bounds),
        cmocka_unit_test(test_create_bounds),
    };
    return cmocka_run_group_tests(tests, fill_prompt, NULL);
}
