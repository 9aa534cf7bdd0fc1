/*
 * Replay of selections against policies: hand-made rows whose misses are counted by hand, and
 * random ones for what must hold of any (the oracle misses least, at one selected set there is
 * nothing to choose, misses fall as the tier grows).
 */
#include "policy_replay.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BLOCKS 24
#define ROWS   300
#define TOPK   6

/* A pool over arrays of the test; every row is a step and lies in the last block. */
struct example {
    struct replay_pool pool;
    int32_t own_block[ROWS];
    int32_t start[ROWS + 1];
    int32_t block[ROWS * TOPK];
    int32_t next[ROWS * TOPK];
    float e[BLOCKS];
};

static void begin(struct example *example, int32_t n_blocks)
{
    *example = (struct example){.pool = {.n_blocks = n_blocks, .init_blocks = 1}};
    example->pool.own_block = example->own_block;
    example->pool.start = example->start;
    example->pool.block = example->block;
    example->pool.next = example->next;
    example->pool.e = example->e;
}

static void add_row(struct example *example, const int32_t *blocks, int32_t n)
{
    struct replay_pool *pool = &example->pool;
    int32_t row = pool->n_rows++;
    example->own_block[row] = pool->n_blocks - 1;
    memcpy(example->block + pool->start[row], blocks, sizeof *blocks * (size_t)n);
    pool->start[row + 1] = pool->start[row] + n;
    for (int32_t i = 0; i < pool->start[row + 1]; i++) {
        pool->next[i] = pool->n_rows;
        int32_t of = 0;
        while (pool->start[of + 1] <= i)
            of++;
        for (int32_t later = pool->n_rows - 1; later > of; later--)
            for (int32_t j = pool->start[later]; j < pool->start[later + 1]; j++)
                if (pool->block[j] == pool->block[i])
                    pool->next[i] = later;
    }
}

#define ROW(example, ...)                                                                          \
    add_row((example), (const int32_t[]){__VA_ARGS__},                                             \
            (int32_t)(sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)))

static struct replay_counts decode(const struct example *example, enum replay_policy policy,
                                   int32_t capacity)
{
    struct replay_counts counts = {0};
    assert_int_equal(replay_decode(&example->pool, policy, capacity, &counts, NULL), NOSA_OK);
    return counts;
}

/* Four blocks are made, a tier of three: the policies give up different ones. Row 0 selects 0 and
 * 3, so one of 1 and 2, which nothing has used, goes: by E block 1, by index block 1 too. */
static void test_decode_counts_by_hand(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    begin(example, 4);
    example->e[0] = 0.5f;
    example->e[1] = 0.1f;
    example->e[2] = 0.3f;
    example->e[3] = 0.2f;
    ROW(example, 0, 3); /* holds 0 2 3 */
    ROW(example, 1, 3); /* misses 1; 2 is oldest, E lowest but for 3's: eddma and lru drop 2;
                           lowest-e drops 2 (0.3 < 0.5) */
    ROW(example, 2, 3); /* misses 2; eddma, lru drop 0 (row 0); lowest-e drops 1 (0.1) */
    ROW(example, 1, 3); /* eddma, lru hit; lowest-e misses 1 and drops 2 */
    ROW(example, 0, 3); /* eddma, lru miss 0; lowest-e hits */
    struct replay_counts counts = decode(example, REPLAY_LRU, 3);
    assert_int_equal(counts.steps, 5);
    assert_int_equal(counts.selected, 10);
    assert_int_equal(counts.misses, 3);
    assert_int_equal(decode(example, REPLAY_EDDMA, 3).misses, 3);
    assert_int_equal(decode(example, REPLAY_LOWEST_E, 3).misses, 3);
    /* The oracle drops 2 for row 0 (used last of all), so row 1 hits; row 2 misses 2 in place of 0;
     * row 4 misses 0. */
    assert_int_equal(decode(example, REPLAY_ORACLE, 3).misses, 2);
    assert_int_equal(decode(example, REPLAY_ORACLE, 4).misses, 0);
    free(example);
}

/* Blocks that were last used in the same row differ by E alone. */
static void test_decode_eddma_breaks_ties_by_e(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    begin(example, 5);
    example->e[1] = 0.9f;
    example->e[2] = 0.1f;
    ROW(example, 0, 1, 2, 4);
    ROW(example, 0, 3, 4); /* 3 misses; of 1 and 2 the lower E goes: 2. lru drops the lower block */
    ROW(example, 0, 1, 4);
    assert_int_equal(decode(example, REPLAY_EDDMA, 4).misses, 1);
    assert_int_equal(decode(example, REPLAY_LRU, 4).misses, 2);
    free(example);
}

/* Rows before the first step fill the tier and count for nothing; blocks made count as held. */
static void test_decode_counts_steps_only(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    begin(example, 3);
    ROW(example, 0, 1, 2);
    ROW(example, 0, 2);
    example->pool.n_blocks = 4;
    ROW(example, 0, 3);
    ROW(example, 0, 1, 3);
    example->pool.step_first = 2;
    struct replay_counts counts = decode(example, REPLAY_LRU, 3);
    assert_int_equal(counts.steps, 2);
    assert_int_equal(counts.selected, 5);
    assert_int_equal(counts.misses, 1); /* 1, which block 3 drove out */
    free(example);
}

static uint32_t next_random(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*random >> 33);
}

/* First, own and previous block, and others that come and go slowly. */
static void make_random(struct example *example, uint64_t seed)
{
    uint64_t random = seed;
    bool wanted[BLOCKS] = {false};
    begin(example, BLOCKS);
    for (int32_t i = 0; i < BLOCKS; i++)
        example->e[i] = (float)(next_random(&random) % 8); /* with ties */
    for (int32_t row = 0; row < 120; row++) {
        int32_t blocks[TOPK], n = 0, count = 0;
        wanted[next_random(&random) % BLOCKS] = true;
        memset(blocks, 0, sizeof blocks);
        for (int32_t i = 0; i < BLOCKS; i++)
            count += wanted[i];
        while (count > TOPK - 3) {
            int32_t drop = (int32_t)(next_random(&random) % BLOCKS);
            count -= wanted[drop];
            wanted[drop] = false;
        }
        for (int32_t i = 0; i < BLOCKS; i++)
            if (i == 0 || i >= BLOCKS - 2 || wanted[i])
                blocks[n++] = i;
        add_row(example, blocks, n);
    }
    example->pool.step_first = 10;
    example->pool.window_blocks = 1;
}

static void test_decode_oracle_misses_least(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    uint64_t lru = 0, oracle = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        make_random(example, seed);
        for (int32_t capacity = TOPK; capacity <= BLOCKS; capacity += 3) {
            uint64_t least = decode(example, REPLAY_ORACLE, capacity).misses;
            for (int policy = 0; policy < REPLAY_ORACLE; policy++)
                assert_true(decode(example, (enum replay_policy)policy, capacity).misses >= least);
            assert_true(decode(example, REPLAY_LRU, capacity + 1).misses <=
                        decode(example, REPLAY_LRU, capacity).misses);
            assert_true(decode(example, REPLAY_ORACLE, capacity + 1).misses <= least);
            lru += decode(example, REPLAY_LRU, capacity).misses;
            oracle += least;
        }
        assert_int_equal(decode(example, REPLAY_LRU, BLOCKS).misses, 0);
    }
    assert_true(oracle < lru);
    free(example);
}

static void test_decode_touch_shift_makes_recency_coarse(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    make_random(example, 5);
    example->pool.touch_shift = 31; /* no recency at all: E decides */
    assert_int_equal(decode(example, REPLAY_EDDMA, 8).misses,
                     decode(example, REPLAY_LOWEST_E, 8).misses);
    free(example);
}

static void resume(const struct example *example, enum replay_prefetch prefetch, int32_t capacity,
                   int32_t first, struct replay_counts counts[2])
{
    struct replay_history past;
    memset(counts, 0, 2 * sizeof *counts);
    assert_int_equal(replay_history_create(&past, &example->pool, NULL), NOSA_OK);
    replay_history_advance(&past, &example->pool, first);
    assert_int_equal(
        replay_resume(&example->pool, &past, prefetch, REPLAY_EDDMA, capacity, 32, counts, NULL),
        NOSA_OK);
    assert_int_equal(past.row, first);
    replay_history_free(&past);
}

static void test_resume_prefetches(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    struct replay_counts counts[2];
    for (uint64_t seed = 1; seed <= 10; seed++) {
        make_random(example, seed);
        const struct replay_pool *pool = &example->pool;
        for (int32_t first = 40; first < 100; first += 17) {
            uint64_t selected = (uint64_t)(pool->start[first + 1] - pool->start[first]);
            resume(example, REPLAY_PREFETCH_NOTHING, 9, first, counts);
            assert_int_equal(counts[0].misses, selected);
            assert_int_equal(counts[1].prefetched, 0);
            assert_int_equal(counts[1].steps,
                             pool->n_rows - first < 32 ? pool->n_rows - first : 32);
            for (int prefetch = REPLAY_PREFETCH_E; prefetch < REPLAY_PREFETCHES; prefetch++) {
                resume(example, (enum replay_prefetch)prefetch, 9, first, counts);
                assert_int_equal(counts[1].prefetched, 9);
                assert_true(counts[1].prefetched_used <= 9);
                assert_int_equal(counts[0].selected, selected);
                assert_true(counts[0].misses < selected); /* sink and local come with each */
                assert_true(counts[1].misses >= counts[0].misses);
            }
            assert_int_equal(counts[0].misses, 0); /* the oracle's first step */
            assert_true(counts[1].prefetched_used >= selected);
        }
    }
    free(example);
}

static void test_resume_by_e_takes_the_largest(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    struct replay_counts counts[2];
    begin(example, 6);
    example->e[2] = 1;
    example->e[3] = 2;
    example->pool.window_blocks = 0;
    ROW(example, 0, 5);
    ROW(example, 0, 3, 5); /* 0 and 5 are forced, 3 has the largest E */
    ROW(example, 0, 2, 5);
    resume(example, REPLAY_PREFETCH_E, 3, 1, counts);
    assert_int_equal(counts[0].misses, 0);
    assert_int_equal(counts[1].misses, 1);
    assert_int_equal(counts[1].prefetched_used, 3);
    resume(example, REPLAY_PREFETCH_E, 4, 1, counts);
    assert_int_equal(counts[1].misses, 0);
    assert_int_equal(counts[1].prefetched_used, 4);
    resume(example, REPLAY_PREFETCH_RECENCY, 3, 1, counts); /* 0, 5, then the latest block, 4 */
    assert_int_equal(counts[0].misses, 1);
    free(example);
}

static void test_demotion_is_between_one_tier_and_all(void **state)
{
    (void)state;
    struct example *example = malloc(sizeof *example);
    for (uint64_t seed = 1; seed <= 10; seed++) {
        make_random(example, seed);
        uint64_t least = UINT64_MAX;
        for (int policy = REPLAY_POLICIES - 1; policy >= 0; policy--) {
            struct replay_counts counts = {0};
            assert_int_equal(replay_demotion(&example->pool, (enum replay_policy)policy, TOPK, 12,
                                             &counts, NULL),
                             NOSA_OK);
            if (policy == REPLAY_ORACLE)
                least = counts.misses;
            assert_true(counts.misses >= least);
            if (policy == REPLAY_LRU) /* a host that sees every touch is just a larger tier */
                assert_int_equal(counts.misses, decode(example, REPLAY_LRU, 12).misses);
        }
        struct replay_counts all = {0};
        assert_int_equal(replay_demotion(&example->pool, REPLAY_LOWEST_E, TOPK, BLOCKS, &all, NULL),
                         NOSA_OK);
        assert_int_equal(all.misses, 0);
    }
    free(example);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_counts_by_hand),
        cmocka_unit_test(test_decode_eddma_breaks_ties_by_e),
        cmocka_unit_test(test_decode_counts_steps_only),
        cmocka_unit_test(test_decode_oracle_misses_least),
        cmocka_unit_test(test_decode_touch_shift_makes_recency_coarse),
        cmocka_unit_test(test_resume_prefetches),
        cmocka_unit_test(test_resume_by_e_takes_the_largest),
        cmocka_unit_test(test_demotion_is_between_one_tier_and_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
