/* Lifecycle of images: who can have one, which goes, what is found, what pins keep. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "image_pool.h"

#define IMAGES 4

static int setup(void **state)
{
    static struct nosa_image_pool pool;
    assert_int_equal(nosa_image_pool_create(&pool, IMAGES, NULL), NOSA_OK);
    *state = &pool;
    return 0;
}

static int teardown(void **state)
{
    nosa_image_pool_destroy(*state);
    return 0;
}

static struct nosa_chain_key key_of(uint8_t name)
{
    struct nosa_chain_key key;
    memset(&key, name, sizeof key);
    return key;
}

static struct nosa_block_content content_of(uint8_t name)
{
    struct nosa_block_content content = {.parent = key_of((uint8_t)(name + 100))};
    for (uint32_t i = 0; i < NOSA_BLOCK_TOKENS; i++)
        content.tokens[i] = name * 1000u + i;
    return content;
}

/* An image of block `block`, saved and named. */
static int32_t hold(struct nosa_image_pool *pool, int32_t block, uint8_t name)
{
    int32_t image = nosa_image_pool_take(pool, block, NOSA_IMAGE_SAVING);
    assert_int_not_equal(image, NOSA_KV_IMAGE_NONE);
    struct nosa_chain_key key = key_of(name);
    struct nosa_block_content content = content_of(name);
    nosa_image_pool_name(pool, image, &key, &content);
    nosa_image_pool_move(pool, image, NOSA_IMAGE_HELD);
    return image;
}

static int32_t cache(struct nosa_image_pool *pool, int32_t block, uint8_t name)
{
    int32_t image = hold(pool, block, name);
    nosa_image_pool_drop(pool, image, true);
    assert_int_equal(pool->images[image].state, NOSA_IMAGE_CACHED);
    return image;
}

static int32_t find(const struct nosa_image_pool *pool, uint8_t name)
{
    struct nosa_chain_key key = key_of(name);
    struct nosa_block_content content = content_of(name);
    return nosa_image_pool_find(pool, &key, &content.parent, content.tokens);
}

static void test_image_pool_create_of_none_gives_none(void **state)
{
    struct nosa_image_pool pool;
    (void)state;
    assert_int_equal(nosa_image_pool_create(&pool, 0, NULL), NOSA_OK);
    assert_int_equal(nosa_image_pool_available(&pool), 0);
    assert_int_equal(nosa_image_pool_take(&pool, 0, NOSA_IMAGE_SAVING), NOSA_KV_IMAGE_NONE);
    nosa_image_pool_destroy(&pool);
    nosa_image_pool_destroy(&pool); /* a pool of zero bytes */
}

static void test_image_pool_take_gives_each_once(void **state)
{
    struct nosa_image_pool *pool = *state;
    bool seen[IMAGES] = {false};
    for (int32_t i = 0; i < IMAGES; i++) {
        assert_int_equal(nosa_image_pool_available(pool), IMAGES - i);
        int32_t image = nosa_image_pool_take(pool, 10 + i, NOSA_IMAGE_LOADING);
        assert_in_range(image, 0, IMAGES - 1);
        assert_false(seen[image]);
        seen[image] = true;
        assert_int_equal(pool->images[image].block, 10 + i);
    }
    assert_int_equal(nosa_image_pool_available(pool), 0);
    assert_int_equal(nosa_image_pool_take(pool, 9, NOSA_IMAGE_SAVING), NOSA_KV_IMAGE_NONE);
    assert_int_equal(pool->in_state[NOSA_IMAGE_LOADING], IMAGES);
}

static void test_image_pool_take_evicts_the_one_used_longest_ago(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t a = cache(pool, 0, 1), b = cache(pool, 1, 2), c = cache(pool, 2, 3);
    cache(pool, 3, 4);
    pool->images[a].on_nvme = true;
    assert_int_equal(nosa_image_pool_take(pool, 5, NOSA_IMAGE_SAVING), a);
    assert_int_equal(find(pool, 1), NOSA_KV_IMAGE_NONE);
    assert_int_equal(find(pool, 2), b);
    assert_int_equal(pool->lost, 0); /* NVMe has it */
    assert_false(pool->images[a].on_nvme);
    /* b is found, and let go again: it was used last now */
    nosa_image_pool_move(pool, b, NOSA_IMAGE_HELD);
    nosa_image_pool_drop(pool, b, true);
    assert_int_equal(nosa_image_pool_take(pool, 6, NOSA_IMAGE_SAVING), c);
    assert_int_equal(pool->evicted, 2);
    assert_int_equal(pool->lost, 1);
}

static void test_image_pool_pin_keeps_from_eviction(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t a = cache(pool, 0, 1), b = cache(pool, 1, 2);
    nosa_image_pool_pin(pool, a);
    nosa_image_pool_pin(pool, a);
    assert_int_equal(nosa_image_pool_available(pool), IMAGES - 1);
    cache(pool, 2, 3);
    cache(pool, 3, 4);
    assert_int_equal(nosa_image_pool_take(pool, 5, NOSA_IMAGE_SAVING), b);
    nosa_image_pool_unpin(pool, a);
    assert_int_equal(nosa_image_pool_available(pool), 2);
    nosa_image_pool_unpin(pool, a);
    assert_int_equal(nosa_image_pool_available(pool), 3);
    assert_int_equal(find(pool, 1), a);
}

static void test_image_pool_drop_keeps_what_a_write_reads(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t a = hold(pool, 0, 1);
    nosa_image_pool_pin(pool, a); /* the write */
    nosa_image_pool_drop(pool, a, false);
    assert_int_equal(pool->images[a].state, NOSA_IMAGE_CACHED);
    for (int32_t i = 1; i < IMAGES; i++)
        assert_int_not_equal(nosa_image_pool_take(pool, i, NOSA_IMAGE_SAVING), a);
    assert_int_equal(nosa_image_pool_take(pool, 9, NOSA_IMAGE_SAVING), NOSA_KV_IMAGE_NONE);
    nosa_image_pool_unpin(pool, a);
    assert_int_equal(nosa_image_pool_take(pool, 9, NOSA_IMAGE_SAVING), a);
}

static void test_image_pool_drop_of_unnamed_is_free(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t image = nosa_image_pool_take(pool, 0, NOSA_IMAGE_SAVING);
    nosa_image_pool_move(pool, image, NOSA_IMAGE_HELD);
    nosa_image_pool_drop(pool, image, true);
    assert_int_equal(pool->images[image].state, NOSA_IMAGE_FREE);
    assert_int_equal(nosa_image_pool_available(pool), IMAGES);
}

static void test_image_pool_drop_of_a_known_key_replaces_it(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t a = cache(pool, 0, 1), b = hold(pool, 1, 1);
    nosa_image_pool_drop(pool, b, true);
    assert_int_equal(find(pool, 1), b);
    assert_int_equal(pool->images[a].state, NOSA_IMAGE_FREE);
    /* a pinned one stays the findable one, and the other is not needed */
    nosa_image_pool_pin(pool, b);
    int32_t c = hold(pool, 2, 1);
    nosa_image_pool_drop(pool, c, true);
    assert_int_equal(find(pool, 1), b);
    assert_int_equal(pool->images[c].state, NOSA_IMAGE_FREE);
    /* unless a write reads it: it is hidden, and goes with its last pin */
    int32_t d = hold(pool, 3, 1);
    nosa_image_pool_pin(pool, d);
    nosa_image_pool_drop(pool, d, true);
    assert_int_equal(find(pool, 1), b);
    assert_int_equal(pool->images[d].state, NOSA_IMAGE_CACHED);
    nosa_image_pool_unpin(pool, d);
    assert_int_equal(pool->images[d].state, NOSA_IMAGE_FREE);
    assert_int_equal(find(pool, 1), b);
    nosa_image_pool_unpin(pool, b);
    assert_int_equal(nosa_image_pool_available(pool), IMAGES);
}

static void test_image_pool_find_compares_parent_and_tokens(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t image = cache(pool, 0, 1);
    struct nosa_chain_key key = key_of(1);
    struct nosa_block_content content = content_of(1), other = content_of(2);
    assert_int_equal(nosa_image_pool_find(pool, &key, &content.parent, content.tokens), image);
    assert_int_equal(nosa_image_pool_find(pool, &key, &other.parent, content.tokens),
                     NOSA_KV_IMAGE_NONE);
    content.tokens[63]++;
    assert_int_equal(nosa_image_pool_find(pool, &key, &content.parent, content.tokens),
                     NOSA_KV_IMAGE_NONE);
    nosa_image_pool_move(pool, image, NOSA_IMAGE_HELD); /* found by one, no more by others */
    assert_int_equal(find(pool, 1), NOSA_KV_IMAGE_NONE);
}

static void test_image_pool_move_of_a_failed_read_is_free(void **state)
{
    struct nosa_image_pool *pool = *state;
    int32_t image = nosa_image_pool_take(pool, 7, NOSA_IMAGE_LOADING);
    nosa_image_pool_move(pool, image, NOSA_IMAGE_FREE);
    assert_int_equal(pool->images[image].block, NOSA_KV_BLOCK_NONE);
    assert_int_equal(pool->in_state[NOSA_IMAGE_FREE], IMAGES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_pool_create_of_none_gives_none),
        cmocka_unit_test_setup_teardown(test_image_pool_take_gives_each_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_take_evicts_the_one_used_longest_ago, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_pin_keeps_from_eviction, setup, teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_drop_keeps_what_a_write_reads, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_drop_of_unnamed_is_free, setup, teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_drop_of_a_known_key_replaces_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_find_compares_parent_and_tokens, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_image_pool_move_of_a_failed_read_is_free, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
