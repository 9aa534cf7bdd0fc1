/* The prefix index against a plain list, with few first places so that probes run into each other
 * and around the end; and the chain keys it is made of against digests made by another program. */
#include "prefix_index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "block_pool.h"

#define N_BLOCKS 24

static uint32_t next_random(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*random >> 33);
}

/* First places are among three at the end of the table and one at its start. */
static void make_key(struct nosa_chain_key *key, uint32_t first, uint32_t rest)
{
    memset(key, 0, sizeof *key);
    memcpy(key->bytes, &first, sizeof first);
    memcpy(key->bytes + 28, &rest, sizeof rest);
}

static void test_find_after_inserts_and_removals_matches_a_list(void **state)
{
    (void)state;
    struct nosa_chain_key keys[N_BLOCKS];
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct nosa_prefix_index index;
        bool known[N_BLOCKS] = {false};
        uint64_t random = seed;
        assert_int_equal(nosa_prefix_index_create(&index, N_BLOCKS, keys, NULL), NOSA_OK);
        assert_int_equal(index.mask, 63);
        for (uint32_t i = 0; i < N_BLOCKS; i++)
            make_key(&keys[i], (uint32_t)(61 + next_random(&random) % 5), i);
        for (int32_t step = 0; step < 300; step++) {
            int32_t block = (int32_t)(next_random(&random) % N_BLOCKS);
            if (known[block])
                nosa_prefix_index_remove(&index, block);
            else
                nosa_prefix_index_insert(&index, block);
            known[block] = !known[block];
            for (int32_t i = 0; i < N_BLOCKS; i++)
                assert_int_equal(nosa_prefix_index_find(&index, &keys[i]),
                                 known[i] ? i : NOSA_BLOCK_NONE);
        }
        nosa_prefix_index_destroy(&index);
    }
}

static void test_replace_names_the_other_block(void **state)
{
    (void)state;
    struct nosa_chain_key keys[3];
    struct nosa_prefix_index index;
    make_key(&keys[0], 7, 1);
    make_key(&keys[1], 7, 2);
    make_key(&keys[2], 7, 1);
    assert_int_equal(nosa_prefix_index_create(&index, 3, keys, NULL), NOSA_OK);
    nosa_prefix_index_insert(&index, 0);
    nosa_prefix_index_insert(&index, 1);
    nosa_prefix_index_replace(&index, 0, 2);
    assert_int_equal(nosa_prefix_index_find(&index, &keys[0]), 2);
    assert_int_equal(nosa_prefix_index_find(&index, &keys[1]), 1);
    nosa_prefix_index_remove(&index, 2);
    assert_int_equal(nosa_prefix_index_find(&index, &keys[0]), NOSA_BLOCK_NONE);
    assert_int_equal(nosa_prefix_index_find(&index, &keys[1]), 1);
    nosa_prefix_index_destroy(&index);
}

static void assert_key(const struct nosa_chain_key *key, const char *expected)
{
    char text[NOSA_SHA256_TEXT_SIZE];
    nosa_sha256_text(key->bytes, text);
    assert_string_equal(text, expected);
}

/* Expected digests: Python's hashlib over struct.pack("<Q") and struct.pack("<64I"). */
static void test_chain_keys_are_the_documented_digests(void **state)
{
    (void)state;
    uint8_t identity[32];
    uint32_t tokens[64];
    struct nosa_sha256 hash;
    struct nosa_chain_key root, first, second;
    for (int32_t i = 0; i < 32; i++)
        identity[i] = (uint8_t)i;
    assert_int_equal(nosa_sha256_init(&hash, NULL), NOSA_OK);
    assert_int_equal(nosa_chain_key_root(&hash, identity, NULL, 0, &root, NULL), NOSA_OK);
    assert_key(&root, "a9d6e500293a88bd38cbe213d07ab71f8cb2258552072a01bdf1c40be527f4d0");
    assert_int_equal(nosa_chain_key_root(&hash, identity, "tenant-7", 8, &root, NULL), NOSA_OK);
    assert_key(&root, "71698be384674cdeb26647dbe9caddc909910dd52f881543ecf26b96d8d51157");
    for (uint32_t i = 0; i < 64; i++)
        tokens[i] = i * 1000003u;
    assert_int_equal(nosa_chain_key_next(&hash, &root, tokens, &first, NULL), NOSA_OK);
    assert_key(&first, "cbd9f08000354e9983b5ace359a2ce45340e036509ba7262b12257c8fd701dbf");
    for (uint32_t i = 0; i < 64; i++)
        tokens[i] = UINT32_MAX - i;
    assert_int_equal(nosa_chain_key_next(&hash, &first, tokens, &second, NULL), NOSA_OK);
    assert_key(&second, "be1c9df825dd18bcad80011832bfe7280f57cd99c60d67a616e5de59aa4a1ebc");
    nosa_sha256_free(&hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find_after_inserts_and_removals_matches_a_list),
        cmocka_unit_test(test_replace_names_the_other_block),
        cmocka_unit_test(test_chain_keys_are_the_documented_digests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
