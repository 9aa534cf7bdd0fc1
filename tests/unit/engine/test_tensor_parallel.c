/*
 * Tensor parallelism: within rounding of one rank, the same bits on every rank, with KV heads split
 * and with replicas; heads that do not divide are refused.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine_internal.h"
#include "engine/shard.h"
#include "engine_support.h"

#define VOCAB  130 /* no multiple of the rank counts: parts of unequal size */
#define LENGTH 520

static void fill_shape(struct nosa_tiny_checkpoint *tiny, uint32_t n_heads, uint32_t n_kv_heads)
{
    tiny_sparse_defaults(tiny);
    tiny->n_heads = n_heads;
    tiny->n_kv_heads = n_kv_heads;
    tiny->intermediate = 150; /* likewise */
    tiny->vocab = VOCAB;
}

/* Largest difference to one rank in standard deviations of the logits. */
static double difference(const float *a, const float *b)
{
    double mean = 0, square = 0, worst = 0;
    for (int i = 0; i < VOCAB; i++) {
        mean += (double)a[i] / VOCAB;
        square += (double)a[i] * (double)a[i] / VOCAB;
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    }
    return worst / sqrt(square - mean * mean);
}

/* What the last step left in the residual stream: the same bits in the memory of every rank. */
static void check_ranks_hold_the_same(const struct nosa_engine *engine, int32_t rows)
{
    int32_t n_ranks = nosa_rank_group_count(engine->group);
    const struct nosa_rank *first = nosa_rank_group_rank(engine->group, 0);
    size_t count = (size_t)rows * first->config->hidden;
    for (size_t i = 0; i < count; i++)
        if (!isfinite(first->residual[i]) || first->residual[i] == 0)
            fail_msg("%d ranks: value %zu of the residual is %g", n_ranks, i,
                     (double)first->residual[i]);
    for (int32_t r = 1; r < n_ranks; r++) {
        const struct nosa_rank *rank = nosa_rank_group_rank(engine->group, r);
        assert_ptr_not_equal(rank->residual, first->residual);
        assert_memory_equal(rank->residual, first->residual, count * sizeof(float));
    }
}

/* Rows of the last step of LENGTH tokens. */
static int32_t last_rows(int32_t chunk)
{
    return (LENGTH - 1) % chunk + 1;
}

/* The cases: heads, KV heads, rank counts (0 ends). */
static const struct {
    uint32_t heads, kv_heads;
    int32_t tp[4];
} shapes[] = {
    {4, 1, {2, 4, 0}},    /* replicas only */
    {8, 2, {2, 4, 8, 0}}, /* split, then 2 and 4 replicas of each */
    {9, 3, {3, 9, 0}},
    {8, 4, {2, 4, 8, 0}},
};

static void check_shape(size_t shape, bool attention_bias, bool tie)
{
    struct nosa_tiny_checkpoint tiny;
    fill_shape(&tiny, shapes[shape].heads, shapes[shape].kv_heads);
    tiny.attention_bias = attention_bias;
    tiny.tie_word_embeddings = tie;
    char path[TINY_PATH_MAX];
    tiny_write(&tiny, path);
    uint32_t tokens[LENGTH];
    random_tokens(11, VOCAB, tokens, LENGTH);
    float one[VOCAB], many[VOCAB], again[VOCAB];
    struct nosa_engine *engine = tiny_engine(path, NOSA_ATTENTION_NOSA, 1, 1, 128, 1, LENGTH);
    logits_after(engine, tokens, LENGTH, 128, 0, one);
    nosa_engine_close(engine);
    for (int i = 0; shapes[shape].tp[i]; i++) {
        engine = tiny_engine(path, NOSA_ATTENTION_NOSA, shapes[shape].tp[i], 2, 128, 1, LENGTH);
        logits_after(engine, tokens, LENGTH, 128, 0, many);
        check_ranks_hold_the_same(engine, last_rows(128));
        logits_after(engine, tokens, LENGTH, 37, 1, again);
        check_ranks_hold_the_same(engine, last_rows(37));
        assert_memory_equal(many, again, sizeof many);
        double worst = difference(one, many);
        if (!(worst < 1e-3))
            fail_msg("%u heads, %u KV heads, %d ranks: logits differ by %g", shapes[shape].heads,
                     shapes[shape].kv_heads, shapes[shape].tp[i], worst);
        nosa_engine_close(engine);
    }
    nosa_tiny_checkpoint_remove(path);
}

static void test_engine_step_ranks_agree_with_one_rank(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(i, i % 2 == 1, i % 2 == 0);
}

static void test_shard_make_covers_the_model_once(void **state)
{
    (void)state;
    static const uint32_t counts[][3] = {{4, 1, 4}, {8, 2, 4}, {9, 3, 3}, {9, 3, 9}, {32, 2, 8}};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        struct nosa_model_config config = {.n_heads = counts[c][0],
                                           .n_kv_heads = counts[c][1],
                                           .intermediate = 150,
                                           .vocab = 131,
                                           .head_dim = 16};
        int32_t heads = 0, vocab = 0, columns = 0;
        for (int32_t rank = 0; rank < (int32_t)counts[c][2]; rank++) {
            struct nosa_shard shard;
            assert_int_equal(nosa_shard_make(&config, (int32_t)counts[c][2], rank, &shard, NULL),
                             NOSA_OK);
            assert_int_equal(shard.output_head_first, heads);
            heads += shard.output_head_count;
            assert_int_equal(shard.vocab_first, vocab);
            vocab += shard.vocab_count;
            assert_int_equal(shard.intermediate_first, columns);
            columns += shard.intermediate_count;
            int32_t group = (int32_t)(config.n_heads / config.n_kv_heads);
            assert_int_equal(shard.head_count, shard.kv_head_count * group);
            assert_int_equal(shard.head_first, shard.kv_head_first * group);
        }
        assert_int_equal(heads, config.n_heads);
        assert_int_equal(vocab, config.vocab);
        assert_int_equal(columns, config.intermediate);
    }
}

static void test_shard_make_uneven_counts_are_refused(void **state)
{
    (void)state;
    struct nosa_shard shard;
    const struct {
        uint32_t heads, kv_heads, intermediate;
        int32_t tp;
        const char *text;
    } cases[] = {
        {9, 3, 144, 2, "9 query heads"},
        {12, 3, 144, 2, "3 KV heads"},
        {8, 4, 3, 4, "feed-forward width 3"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nosa_model_config config = {.n_heads = cases[i].heads,
                                           .n_kv_heads = cases[i].kv_heads,
                                           .intermediate = cases[i].intermediate,
                                           .vocab = 100,
                                           .head_dim = 16};
        struct nosa_error error = {0};
        assert_int_equal(nosa_shard_make(&config, cases[i].tp, 0, &shard, &error),
                         NOSA_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, cases[i].text));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_step_ranks_agree_with_one_rank),
        cmocka_unit_test(test_shard_make_covers_the_model_once),
        cmocka_unit_test(test_shard_make_uneven_counts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
