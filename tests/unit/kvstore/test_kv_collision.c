/* With chain keys that collide all the time, blocks are shared by equal prefixes only. */
#include "kv_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CONTEXT_MAX   320
#define BLOCKS_MAX    5
#define N_BLOCKS      14
#define SEQUENCES_MAX 5
#define SEEDS         2000

static uint32_t next_random(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*random >> 33);
}

/* What a block was last completed with. */
struct content {
    int32_t n_tokens; /* of the whole prefix; 0: nothing */
    uint32_t salt;
    uint32_t tokens[CONTEXT_MAX];
};

struct world {
    struct nosa_kv_store *store;
    struct content contents[N_BLOCKS];
    struct nosa_kv_sequence *sequences[SEQUENCES_MAX];
    uint32_t salts[SEQUENCES_MAX];
    uint64_t random;
    uint64_t shared_blocks;
};

static void open_sequence(struct world *world, int32_t slot)
{
    uint32_t tokens[CONTEXT_MAX];
    int32_t n_tokens = 1 + (int32_t)(next_random(&world->random) % CONTEXT_MAX);
    uint32_t salt = next_random(&world->random) % 2;
    uint32_t kind = 0;
    for (int32_t i = 0; i < n_tokens; i++) {
        if (i % 64 == 0)
            kind = next_random(&world->random) % 3;
        tokens[i] = i % 64 == 0 ? kind : 7;
        /* Kinds 0 and 2 have sums that are equal in the three bits that keys see. */
        if (i % 64 == 1 && kind == 2)
            tokens[i] = 7 + 6;
    }
    int32_t cached, n_blocks;
    assert_int_equal(nosa_kv_sequence_open(world->store, tokens, n_tokens, &salt, sizeof salt,
                                           &world->sequences[slot], &cached, NULL),
                     NOSA_OK);
    world->salts[slot] = salt;
    const int32_t *blocks = nosa_kv_sequence_blocks(world->sequences[slot], &n_blocks);
    assert_int_equal(cached, n_blocks * 64);
    for (int32_t i = 0; i < n_blocks; i++) {
        const struct content *content = &world->contents[blocks[i]];
        assert_int_equal(content->n_tokens, (i + 1) * 64);
        assert_int_equal(content->salt, salt);
        assert_memory_equal(content->tokens, tokens, (size_t)content->n_tokens * sizeof *tokens);
        world->shared_blocks++;
    }
}

static void advance_sequence(struct world *world, int32_t slot)
{
    struct nosa_kv_sequence *sequence = world->sequences[slot];
    int32_t computed = nosa_kv_sequence_computed(sequence);
    int32_t left = nosa_kv_sequence_length(sequence) - computed;
    int32_t n_blocks;
    if (left == 0)
        return;
    int32_t to = computed + 1 + (int32_t)(next_random(&world->random) % (uint32_t)left);
    if (nosa_kv_sequence_reserve(sequence, to, NULL) != NOSA_OK)
        return;
    nosa_kv_sequence_commit(sequence, to);
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence, &n_blocks);
    for (int32_t i = computed / 64; i < to / 64; i++) {
        struct content *content = &world->contents[blocks[i]];
        content->n_tokens = (i + 1) * 64;
        content->salt = world->salts[slot];
        memcpy(content->tokens, nosa_kv_sequence_tokens(sequence),
               (size_t)content->n_tokens * sizeof(uint32_t));
    }
}

static void run_world(struct world *world)
{
    for (int32_t step = 0; step < 150; step++) {
        int32_t slot = (int32_t)(next_random(&world->random) % SEQUENCES_MAX);
        if (!world->sequences[slot]) {
            open_sequence(world, slot);
        } else if (next_random(&world->random) % 4 == 0) {
            nosa_kv_sequence_close(world->sequences[slot]);
            world->sequences[slot] = NULL;
        } else {
            advance_sequence(world, slot);
        }
    }
    for (int32_t slot = 0; slot < SEQUENCES_MAX; slot++)
        nosa_kv_sequence_close(world->sequences[slot]);
}

static void test_colliding_keys_never_share_unequal_prefixes(void **state)
{
    (void)state;
    static struct world world;
    uint64_t shared_blocks = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct nosa_kv_store_counters counters;
        struct nosa_kv_store_options options = {
            .n_blocks = N_BLOCKS, .sequences_max = SEQUENCES_MAX, .context_max = CONTEXT_MAX};
        memset(&world, 0, sizeof world);
        world.random = seed;
        assert_int_equal(nosa_kv_store_create(&options, &world.store, NULL), NOSA_OK);
        run_world(&world);
        nosa_kv_store_counters(world.store, &counters);
        assert_int_equal(counters.blocks_used, 0);
        assert_int_equal(counters.sequences, 0);
        nosa_kv_store_destroy(world.store);
        shared_blocks += world.shared_blocks;
    }
    assert_true(shared_blocks > SEEDS); /* sharing went on all the while */
}

/* Computes 64 tokens that begin with `first` and `second`, and returns how many were known. */
static int32_t compute_block(struct nosa_kv_store *store, uint32_t first, uint32_t second)
{
    struct nosa_kv_sequence *sequence;
    uint32_t tokens[65] = {first, second};
    int32_t cached;
    assert_int_equal(nosa_kv_sequence_open(store, tokens, 65, NULL, 0, &sequence, &cached, NULL),
                     NOSA_OK);
    assert_int_equal(nosa_kv_sequence_reserve(sequence, 65, NULL), NOSA_OK);
    nosa_kv_sequence_commit(sequence, 65);
    nosa_kv_sequence_close(sequence);
    return cached;
}

static void test_sequence_after_a_private_one_publishes_again(void **state)
{
    (void)state;
    struct nosa_kv_store_options options = {
        .n_blocks = N_BLOCKS, .sequences_max = 1, .context_max = CONTEXT_MAX};
    struct nosa_kv_store *store;
    assert_int_equal(nosa_kv_store_create(&options, &store, NULL), NOSA_OK);
    assert_int_equal(compute_block(store, 1, 0), 0);
    assert_int_equal(compute_block(store, 0, 1), 0); /* the same key, other tokens */
    assert_int_equal(compute_block(store, 0, 1), 0); /* was kept private */
    assert_int_equal(compute_block(store, 2, 0), 0);
    assert_int_equal(compute_block(store, 2, 0), 64);
    assert_int_equal(compute_block(store, 1, 0), 64);
    nosa_kv_store_destroy(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sequence_after_a_private_one_publishes_again),
        cmocka_unit_test(test_colliding_keys_never_share_unequal_prefixes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
