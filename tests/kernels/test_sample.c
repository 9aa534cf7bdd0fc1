/*
 * Sampling on every CPU device: beside the reference, which sorts everything; as a distribution,
 * counted over many seeds that are fixed; and alone beside in a batch.
 *
 * Tokens and their order must equal the reference's; log-probabilities may differ by the rounding
 * of float32 exponentials and of the result: 1e-5 in what is at most a few tens.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op_cases.h"
#include "op_devices.h"
#include "reference/reference.h"

#define ROWS_MAX    512
#define VOCAB_MAX   5003
#define HISTORY_MAX 64

static struct op_device devices[OP_DEVICES_MAX];
static int32_t n_devices;

/* Rows to be sampled, with the arrays that the parameters point to. */
struct rows {
    struct nosa_sample_params params;
    float *logits;
    struct nosa_sampling sampling[ROWS_MAX];
    int64_t position[ROWS_MAX];
    int32_t n_top[ROWS_MAX];
    int32_t history_start[ROWS_MAX + 1];
    int32_t history[ROWS_MAX * HISTORY_MAX];
    int32_t prompt_length[ROWS_MAX];
    struct nosa_sample_result result[ROWS_MAX];
};

static int open_devices(void **state)
{
    (void)state;
    struct nosa_step_limits limits = {.rows_max = 16,
                                      .seqs_max = 4,
                                      .context_max = 256,
                                      .n_heads = 2,
                                      .n_kv_heads = 1,
                                      .head_dim = 16,
                                      .k_max = 64,
                                      .n_max = 64,
                                      .topk_max = 8,
                                      .vocab_max = VOCAB_MAX,
                                      .windows_per_block = 4};
    n_devices = op_devices_open(devices, &limits);
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    op_devices_close(devices, n_devices);
    return 0;
}

static struct rows *rows_create(int32_t n_rows, int32_t vocab)
{
    struct rows *rows = op_alloc(sizeof *rows);
    rows->logits = op_alloc((size_t)n_rows * (size_t)vocab * sizeof(float));
    rows->params = (struct nosa_sample_params){
        .n_rows = n_rows,
        .vocab = vocab,
        .logits = rows->logits,
        .sampling = rows->sampling,
        .position = rows->position,
        .n_top = rows->n_top,
        .history_start = rows->history_start,
        .history_tokens = rows->history,
        .prompt_length = rows->prompt_length,
        .result = rows->result,
    };
    return rows;
}

static void rows_destroy(struct rows *rows)
{
    free(rows->logits);
    free(rows);
}

static void sample(const struct op_device *device, struct rows *rows)
{
    memset(rows->result, 0xff, sizeof rows->result);
    if (device == NULL)
        assert_int_equal(nosa_reference_ops.sample(NULL, &rows->params), NOSA_OK);
    else
        assert_int_equal(device->ops->sample(device->stream, &rows->params), NOSA_OK);
}

static bool near(float a, float b)
{
    return a == b || fabsf(a - b) <= 1e-5f || (isnan(a) && isnan(b));
}

/* All devices against the reference, and against each other to the bit. */
static void check_rows(struct rows *rows, const char *what)
{
    size_t bytes = sizeof(struct nosa_sample_result) * (size_t)rows->params.n_rows;
    struct nosa_sample_result *expected = op_alloc(bytes), *first = op_alloc(bytes);
    sample(NULL, rows);
    memcpy(expected, rows->result, bytes);
    for (int32_t d = 0; d < n_devices; d++) {
        sample(&devices[d], rows);
        if (d == 0)
            memcpy(first, rows->result, bytes);
        if (memcmp(first, rows->result, bytes) != 0)
            fail_msg("%s: %s differs from %s", what, devices[d].name, devices[0].name);
        for (int32_t row = 0; row < rows->params.n_rows; row++) {
            const struct nosa_sample_result *got = &rows->result[row], *want = &expected[row];
            if (got->token != want->token || got->n_top != want->n_top ||
                memcmp(got->top_token, want->top_token, sizeof got->top_token) != 0)
                fail_msg("%s: row %d: token %d, not %d", what, row, got->token, want->token);
            assert_true(near(got->logprob, want->logprob));
            for (int32_t i = 0; i < got->n_top; i++)
                assert_true(near(got->top_logprob[i], want->top_logprob[i]));
        }
    }
    free(first);
    free(expected);
}

/* Quantised logits, so that many are equal. */
static void fill_logits(struct rows *rows, uint64_t seed, float step)
{
    size_t count = (size_t)rows->params.n_rows * (size_t)rows->params.vocab;
    for (size_t i = 0; i < count; i++)
        rows->logits[i] = roundf(op_normal(seed, i, 0) * 4 / step) * step;
}

/* Parameters of every kind, on and off, by the row's bits. */
static void fill_sampling(struct rows *rows, uint64_t seed)
{
    static const float temperatures[] = {0, 1, 0.7f, 1.5f, 0.05f};
    static const float shares[] = {0, 0.9f, 0.5f, 0.999f, 1e-6f, 1};
    static const int32_t counts[] = {0, 1, 2, 40, 3000};
    static const float least[] = {0, 0.05f, 0.5f, 1};
    static const float penalties[] = {0, 1.3f, 0.8f};
    for (int32_t row = 0; row < rows->params.n_rows; row++) {
        uint64_t r = (uint64_t)row;
        struct nosa_sampling *s = &rows->sampling[row];
        *s = (struct nosa_sampling){.temperature = temperatures[row % 5],
                                    .top_p = shares[row / 5 % 6],
                                    .top_k = counts[row / 7 % 5],
                                    .min_p = least[row / 11 % 4],
                                    .seed = seed * 0x9e3779b97f4a7c15u + r};
        rows->position[row] = (int64_t)row * 0x123456789;
        rows->n_top[row] = row % 22;
        int32_t start = rows->history_start[row];
        int32_t length = row % 3 == 0 ? 0 : row % HISTORY_MAX;
        rows->history_start[row + 1] = start + length;
        if (row % 3 == 0)
            continue;
        s->repetition_penalty = penalties[row / 3 % 3];
        s->presence_penalty = op_normal(seed, r, 1) * (float)(row / 2 % 2);
        s->frequency_penalty = op_normal(seed, r, 2) * (float)(row / 4 % 2);
        rows->prompt_length[row] = length / 2;
        for (int32_t i = 0; i < length; i++)
            rows->history[start + i] = (int32_t)((op_uniform(seed, r, (uint64_t)i + 3) + 1) *
                                                 0.51f * (float)rows->params.vocab);
    }
}

static void test_sample_equals_reference(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {1, 2, 3, 15, 16, 17, 31, 33, 100, 1000, VOCAB_MAX};
    for (size_t i = 0; i < sizeof vocabs / sizeof vocabs[0]; i++) {
        int32_t n_rows = vocabs[i] > 500 ? 128 : ROWS_MAX;
        struct rows *rows = rows_create(n_rows, vocabs[i]);
        for (int pass = 0; pass < 2; pass++) {
            char what[64];
            snprintf(what, sizeof what, "vocabulary of %d, pass %d", vocabs[i], pass);
            fill_logits(rows, (uint64_t)(10 * i + (size_t)pass), pass == 0 ? 0.5f : 0x1p-20f);
            fill_sampling(rows, i);
            check_rows(rows, what);
        }
        rows_destroy(rows);
    }
}

static void test_sample_odd_logits(void **state)
{
    (void)state;
    struct rows *rows = rows_create(40, 37);
    for (int32_t row = 0; row < 40; row++) {
        rows->sampling[row] = (struct nosa_sampling){
            .temperature = (const float[]){0, 1, FLT_MIN / 4, INFINITY, 1e30f}[row % 5],
            .top_p = row % 2 ? 0.7f : 0,
            .min_p = row % 3 ? 0 : 2.0f,
            .top_k = row % 7,
            .seed = 77};
        rows->position[row] = row;
        rows->n_top[row] = row % 4 == 0 ? 20 : 2;
        for (int32_t i = 0; i < 37; i++) {
            float *logit = &rows->logits[row * 37 + i];
            *logit = op_normal(3, (uint64_t)row, (uint64_t)i);
            if (row < 5)
                *logit = -INFINITY;
            else if (row < 10)
                *logit = i % 3 ? *logit : NAN;
            else if (row < 15)
                *logit = i % 3 ? *logit : -INFINITY;
            else if (row < 20)
                *logit = i == 9 || i == 11 ? INFINITY : *logit;
            else if (row < 25)
                *logit = i == 36 ? 1 : NAN;
            else if (row < 30)
                *logit = NAN;
            else if (row < 35)
                *logit = i % 2 ? FLT_MAX : -FLT_MAX;
            else
                *logit = i < 9 ? -1.0f : i % 2 ? -0.0f : 0.0f;
        }
    }
    check_rows(rows, "odd logits");
    for (int32_t row = 0; row < 30; row++) {
        int32_t token = rows->result[row].token;
        if (row < 5 || row >= 25)
            assert_int_equal(token, 0);
        else if (row < 15)
            assert_true(token % 3 != 0);
        else if (row < 20)
            assert_true(token == 9 || token == 11);
        else
            assert_int_equal(token, 36);
        assert_int_equal(isnan(rows->result[row].logprob) != 0, row < 10 || row >= 15);
    }
    rows_destroy(rows);
}

static void test_sample_greedy_ties_to_lower(void **state)
{
    (void)state;
    struct rows *rows = rows_create(1, 100);
    rows->logits[41] = rows->logits[17] = rows->logits[99] = 5;
    rows->n_top[0] = 4;
    for (int32_t d = 0; d < n_devices; d++) {
        sample(&devices[d], rows);
        assert_int_equal(rows->result[0].token, 17);
        const int32_t top[4] = {17, 41, 99, 0};
        assert_memory_equal(rows->result[0].top_token, top, sizeof top);
        assert_true(near(rows->result[0].logprob, (float)(5 - log(3 * exp(5) + 97))));
    }
    rows_destroy(rows);
}

/* Pearson's statistic of the tokens drawn from logits ln p, p = share[i] (they add to 1). */
static double chi_square(const struct nosa_sampling *sampling, const float *logits, int32_t vocab,
                         const double *share, int64_t positions, int64_t seeds)
{
    int64_t counts[16] = {0}, total = positions * seeds;
    struct rows *rows = rows_create(ROWS_MAX, vocab);
    const struct op_device *device = &devices[n_devices - 1];
    NOSA_ASSERT(total % ROWS_MAX == 0 && vocab <= 16);
    for (int64_t first = 0; first < total; first += ROWS_MAX) {
        for (int32_t row = 0; row < ROWS_MAX; row++) {
            memcpy(rows->logits + row * vocab, logits, sizeof(float) * (size_t)vocab);
            rows->sampling[row] = *sampling;
            rows->sampling[row].seed = (uint64_t)((first + row) / positions);
            rows->position[row] = (first + row) % positions;
        }
        sample(device, rows);
        for (int32_t row = 0; row < ROWS_MAX; row++)
            counts[rows->result[row].token]++;
    }
    rows_destroy(rows);
    double statistic = 0;
    for (int32_t i = 0; i < vocab; i++) {
        double expected = share[i] * (double)total;
        if (share[i] == 0)
            assert_int_equal(counts[i], 0);
        else
            statistic += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
    }
    return statistic;
}

/* Shares and the logits whose softmax they are. */
static const double shares[10] = {0.3, 0.2, 0.15, 0.1, 0.08, 0.07, 0.05, 0.03, 0.0195, 0.0005};

static void share_logits(float logits[10])
{
    for (int i = 0; i < 10; i++)
        logits[i] = (float)log(shares[i]);
}

/* 33.7 is the 0.9999 quantile with 9 degrees of freedom. */
static void test_sample_distribution(void **state)
{
    (void)state;
    float logits[10];
    share_logits(logits);
    const struct nosa_sampling plain = {.temperature = 1};
    assert_true(chi_square(&plain, logits, 10, shares, 1, 512 * 400) < 33.7);
    assert_true(chi_square(&plain, logits, 10, shares, 512 * 400, 1) < 33.7);
    assert_true(chi_square(&plain, logits, 10, shares, 512, 400) < 33.7);
    /* The counting sees a wrong distribution: one percent of one share moved. */
    double moved[10];
    memcpy(moved, shares, sizeof moved);
    moved[0] -= 0.01, moved[1] += 0.01;
    assert_true(chi_square(&plain, logits, 10, moved, 512, 400) > 33.7);
}

static void test_sample_distribution_temperature(void **state)
{
    (void)state;
    float logits[10];
    double squared[10], sum = 0;
    share_logits(logits);
    for (int i = 0; i < 10; i++)
        sum += shares[i] * shares[i];
    for (int i = 0; i < 10; i++)
        squared[i] = shares[i] * shares[i] / sum;
    /* The rarest is expected less than once in 200000 draws; it is left to the others' count. */
    logits[9] = -INFINITY;
    double rest = 1 - squared[9];
    for (int i = 0; i < 10; i++)
        squared[i] = i == 9 ? 0 : squared[i] / rest;
    const struct nosa_sampling half = {.temperature = 0.5f};
    assert_true(chi_square(&half, logits, 10, squared, 64, 3200) < 33.7);
}

/* The kept shares, scaled to add to 1, and nothing else. */
static void check_filter(const struct nosa_sampling *sampling, int32_t kept)
{
    float logits[10];
    double expected[10] = {0}, sum = 0;
    share_logits(logits);
    for (int i = 0; i < kept; i++)
        sum += shares[i];
    for (int i = 0; i < kept; i++)
        expected[i] = shares[i] / sum;
    assert_true(chi_square(sampling, logits, 10, expected, 64, 1600) < 33.7);
}

static void test_sample_filters_keep_shares(void **state)
{
    (void)state;
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_k = 3}, 3);
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_k = 30}, 10);
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_p = 0.49f}, 2);
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_p = 0.51f}, 3);
    check_filter(&(struct nosa_sampling){.temperature = 1, .min_p = 0.2f}, 6);
    check_filter(&(struct nosa_sampling){.temperature = 1, .min_p = 0.99f}, 1);
    /* top-p counts the mass that top-k left: 0.3 / 0.75 is less than half, 0.5 / 0.75 is not. */
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_k = 4, .top_p = 0.5f}, 2);
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_k = 4, .top_p = 0.3f}, 1);
    check_filter(&(struct nosa_sampling){.temperature = 1, .top_p = 0.95f, .min_p = 0.3f}, 4);
}

/* Equal logits at the cut: the lower ids stay. */
static void test_sample_filters_ties_to_lower(void **state)
{
    (void)state;
    const float logits[6] = {0, 1, 0, 1, 0, 1};
    const double by_k[6] = {0, 0.5, 0, 0.5, 0, 0};
    const struct nosa_sampling top_k = {.temperature = 1, .top_k = 2};
    assert_true(chi_square(&top_k, logits, 6, by_k, 64, 320) < 33.7);
    const float equal[6] = {0};
    const double by_p[6] = {1.0 / 3, 1.0 / 3, 1.0 / 3, 0, 0, 0};
    const struct nosa_sampling top_p = {.temperature = 1, .top_p = 0.5f};
    assert_true(chi_square(&top_p, equal, 6, by_p, 64, 320) < 33.7);
}

static void test_sample_depends_on_seed_and_position(void **state)
{
    (void)state;
    int32_t vocab = 1000;
    struct rows *rows = rows_create(256, vocab);
    for (int32_t row = 0; row < 256; row++) {
        rows->sampling[row] = (struct nosa_sampling){.temperature = 1, .seed = 5};
        rows->position[row] = row < 64 ? row : 3;
        if (row >= 64 && row < 128) /* low word of the seed */
            rows->sampling[row].seed = (uint64_t)row;
        else if (row >= 128 && row < 192) /* high word */
            rows->sampling[row].seed = (uint64_t)row << 32;
        else if (row >= 192)
            rows->position[row] = (int64_t)row << 32;
    }
    sample(&devices[0], rows);
    for (int32_t part = 0; part < 4; part++) {
        int32_t equal = 0;
        for (int32_t a = 64 * part; a < 64 * (part + 1); a++)
            for (int32_t b = a + 1; b < 64 * (part + 1); b++)
                equal += rows->result[a].token == rows->result[b].token;
        /* 2016 pairs, each equal with 1/1000. */
        assert_true(equal < 12);
    }
    rows_destroy(rows);
}

/* A row alone, in a batch and again later gives the same bytes. */
static void test_sample_rows_alone_and_again(void **state)
{
    (void)state;
    struct rows *rows = rows_create(96, 1000);
    fill_logits(rows, 8, 0.25f);
    fill_sampling(rows, 9);
    struct nosa_sample_result together[96];
    for (int32_t d = 0; d < n_devices; d++) {
        sample(&devices[d], rows);
        memcpy(together, rows->result, sizeof together);
        sample(&devices[d], rows);
        assert_memory_equal(together, rows->result, sizeof together);
        for (int32_t row = 95; row >= 0; row--) {
            struct nosa_sample_result alone;
            struct nosa_sample_params params = {.n_rows = 1,
                                                .vocab = 1000,
                                                .logits = rows->logits + row * 1000,
                                                .sampling = &rows->sampling[row],
                                                .position = &rows->position[row],
                                                .n_top = &rows->n_top[row],
                                                .history_start = &rows->history_start[row],
                                                .history_tokens = rows->history,
                                                .prompt_length = &rows->prompt_length[row],
                                                .result = &alone};
            memset(&alone, 0xff, sizeof alone);
            assert_int_equal(devices[d].ops->sample(devices[d].stream, &params), NOSA_OK);
            assert_memory_equal(&alone, &together[row], sizeof alone);
        }
    }
    rows_destroy(rows);
}

static void test_sample_beyond_limits(void **state)
{
    (void)state;
    struct rows *rows = rows_create(1, VOCAB_MAX + 1);
    assert_int_equal(devices[0].ops->sample(devices[0].stream, &rows->params),
                     NOSA_INVALID_ARGUMENT);
    rows->params.vocab = 0;
    assert_int_equal(devices[0].ops->sample(devices[0].stream, &rows->params),
                     NOSA_INVALID_ARGUMENT);
    rows_destroy(rows);
}

static void test_log_prob_equals_reference(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {1, 15, 16, 17, 1000, 1024, 1040, VOCAB_MAX};
    for (size_t i = 0; i < sizeof vocabs / sizeof vocabs[0]; i++) {
        int32_t vocab = vocabs[i], target[5];
        float *logits = op_alloc(5 * (size_t)vocab * sizeof *logits);
        float expected[5], first[5], got[5];
        for (int32_t n = 0; n < 5 * vocab; n++)
            logits[n] = 8 * op_normal(i, (uint64_t)n, 0);
        for (int32_t row = 0; row < 5; row++)
            target[row] = (row * 7919) % vocab;
        struct nosa_log_prob_params params = {5, vocab, logits, target, expected};
        assert_int_equal(nosa_reference_ops.log_prob(NULL, &params), NOSA_OK);
        params.logprob = got;
        for (int32_t d = 0; d < n_devices; d++) {
            assert_int_equal(devices[d].ops->log_prob(devices[d].stream, &params), NOSA_OK);
            if (d == 0)
                memcpy(first, got, sizeof first);
            assert_memory_equal(first, got, sizeof first);
            for (int32_t row = 0; row < 5; row++)
                assert_true(near(got[row], expected[row]));
        }
        free(logits);
    }
}

/* Rows that are no distribution say so; -inf beside finite logits is one. */
static void test_log_prob_broken_rows_are_nan(void **state)
{
    (void)state;
    float logits[5 * 37];
    const int32_t target[5] = {3, 3, 3, 3, 36};
    for (int32_t n = 0; n < 5 * 37; n++)
        logits[n] = n / 37 == 2 ? -INFINITY : op_normal(5, (uint64_t)n, 0);
    logits[0 * 37 + 36] = NAN;
    logits[1 * 37 + 5] = INFINITY;
    logits[3 * 37 + 7] = -INFINITY;
    logits[4 * 37 + 36] = -INFINITY;
    float expected[5], got[5];
    struct nosa_log_prob_params params = {5, 37, logits, target, expected};
    assert_int_equal(nosa_reference_ops.log_prob(NULL, &params), NOSA_OK);
    params.logprob = got;
    for (int32_t d = 0; d < n_devices; d++) {
        assert_int_equal(devices[d].ops->log_prob(devices[d].stream, &params), NOSA_OK);
        for (int32_t row = 0; row < 5; row++) {
            assert_true(near(got[row], expected[row]));
            assert_int_equal(isnan(got[row]) != 0, row < 3);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_equals_reference),
        cmocka_unit_test(test_sample_odd_logits),
        cmocka_unit_test(test_sample_greedy_ties_to_lower),
        cmocka_unit_test(test_sample_distribution),
        cmocka_unit_test(test_sample_distribution_temperature),
        cmocka_unit_test(test_sample_filters_keep_shares),
        cmocka_unit_test(test_sample_filters_ties_to_lower),
        cmocka_unit_test(test_sample_depends_on_seed_and_position),
        cmocka_unit_test(test_sample_rows_alone_and_again),
        cmocka_unit_test(test_sample_beyond_limits),
        cmocka_unit_test(test_log_prob_equals_reference),
        cmocka_unit_test(test_log_prob_broken_rows_are_nan),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
