/*
 * Attention on every CPU device beside the reference, with lists fed in.
 *
 * Tolerance: a score is off by about head_dim / 2 units in 2^24 of its terms, and so is a weight;
 * the output is a weighted mean of values below 8: 3e-5 covers it for all cases.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv_steps.h"
#include "op_random.h"
#include "reference/reference.h"

#define OUT_TOLERANCE 3e-5

/* Lists of blocks for the rows of a step's batch; selected is NULL for every visible block. */
struct lists {
    int32_t *selected;
    int32_t *count;
    int32_t topk;
};

/* The reference's own selection. */
static struct lists lists_selected(const struct kv_step *step, enum nosa_attention_mode mode)
{
    size_t cells = (size_t)step->batch->view.n_rows * (size_t)step->op_case->n_kv_heads;
    struct lists lists = {NULL, NULL, step->op_case->topk};
    lists.selected = op_alloc(cells * (size_t)lists.topk * sizeof(int32_t));
    lists.count = op_alloc(cells * sizeof(int32_t));
    struct nosa_select_blocks_params params =
        op_select_blocks_params(step->fixture, step->batch, &step->fixture->kv, mode, step->qkv);
    params.selected = lists.selected;
    params.selected_count = lists.count;
    assert_int_equal(nosa_reference_ops.select_blocks(NULL, &params), NOSA_OK);
    return lists;
}

/* Random lists of every length up to the visible blocks, the row's own block always among them. */
static struct lists lists_random(const struct kv_step *step)
{
    int32_t n_kv_heads = step->op_case->n_kv_heads, stride = step->fixture->table_stride;
    size_t cells = (size_t)step->batch->view.n_rows * (size_t)n_kv_heads;
    struct lists lists = {NULL, NULL, stride};
    lists.selected = op_alloc(cells * (size_t)stride * sizeof(int32_t));
    lists.count = op_alloc(cells * sizeof(int32_t));
    for (size_t cell = 0; cell < cells; cell++) {
        int32_t own = step->batch->row_pos[(int32_t)cell / n_kv_heads] / NOSA_BLOCK_TOKENS;
        float share = op_uniform(5, cell, 1);
        for (int32_t b = 0; b <= own; b++)
            if (b == own || op_uniform(5, cell, (uint64_t)b + 2) < share)
                lists.selected[(int32_t)cell * stride + lists.count[cell]++] = b;
    }
    return lists;
}

static void lists_close(struct lists *lists)
{
    free(lists->count);
    free(lists->selected);
}

static size_t out_width(const struct kv_step *step, int32_t head_count)
{
    return (size_t)(step->op_case->n_kv_heads * head_count * step->op_case->head_dim);
}

static struct nosa_attention_params params_of(const struct kv_step *step,
                                              const struct op_batch *batch, const float *q,
                                              const struct lists *lists, float *out)
{
    struct nosa_attention_params params =
        op_attention_params(step->fixture, batch, &step->fixture->kv, q);
    params.head_first = 0;
    params.head_count = step->op_case->n_heads / step->op_case->n_kv_heads;
    params.selected = lists->selected;
    params.selected_count = lists->count;
    params.topk = lists->topk;
    params.out = out;
    params.out_stride = (int64_t)out_width(step, params.head_count);
    return params;
}

static void assert_near(const struct kv_step *step, const struct op_device *device,
                        const float *got, const float *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(got[i] - expected[i]) <= (float)OUT_TOLERANCE))
            fail_msg("%s, %s: out[%zu] is %g, not %g", step->op_case->name, device->name, i,
                     (double)got[i], (double)expected[i]);
}

/* Every row alone gets the bits that it got in the batch. */
static void check_rows(const struct kv_step *step, const struct op_device *device,
                       const struct lists *lists, const float *whole)
{
    int32_t n_kv_heads = step->op_case->n_kv_heads;
    size_t width = out_width(step, step->op_case->n_heads / n_kv_heads);
    float *out = op_alloc(width * sizeof(float));
    for (int32_t row = 0; row < step->batch->view.n_rows; row++) {
        struct op_batch *batch = kv_step_row(step, row);
        struct lists alone = *lists;
        if (lists->selected != NULL) {
            alone.selected += (int64_t)row * n_kv_heads * lists->topk;
            alone.count += (int64_t)row * n_kv_heads;
        }
        struct nosa_attention_params params =
            params_of(step, batch, step->qkv + row * op_qkv_stride(step->op_case), &alone, out);
        assert_int_equal(device->ops->attention(device->stream, &params), NOSA_OK);
        kv_step_assert_same(step, device, "out of one row", out, whole + (size_t)row * width,
                            width * sizeof(float));
        op_batch_destroy(batch);
    }
    free(out);
}

/* Some heads of each group: the bits of the same heads among all. */
static void check_heads(const struct kv_step *step, const struct op_device *device,
                        const struct lists *lists, const float *whole)
{
    int32_t n_kv_heads = step->op_case->n_kv_heads, n_rows = step->batch->view.n_rows;
    int32_t group = step->op_case->n_heads / n_kv_heads, head_dim = step->op_case->head_dim;
    int32_t count = (group + 1) / 2, first = group - count;
    size_t width = out_width(step, count), all = out_width(step, group);
    float *out = op_alloc((size_t)n_rows * width * sizeof(float));
    struct nosa_attention_params params = params_of(step, step->batch, step->qkv, lists, out);
    params.head_first = first;
    params.head_count = count;
    params.out_stride = (int64_t)width;
    assert_int_equal(device->ops->attention(device->stream, &params), NOSA_OK);
    size_t bytes = (size_t)(count * head_dim) * sizeof(float);
    for (int32_t row = 0; row < n_rows; row++)
        for (int32_t h = 0; h < n_kv_heads; h++)
            kv_step_assert_same(step, device, "out of some heads",
                                out + (size_t)row * width + h * count * head_dim,
                                whole + (size_t)row * all + (h * group + first) * head_dim, bytes);
    free(out);
}

static void check_lists(const struct kv_step *step, const struct lists *lists)
{
    size_t count = (size_t)step->batch->view.n_rows *
                   out_width(step, step->op_case->n_heads / step->op_case->n_kv_heads);
    float *expected = op_alloc(count * sizeof(float)), *got = op_alloc(count * sizeof(float));
    float *first = op_alloc(count * sizeof(float));
    struct nosa_attention_params params = params_of(step, step->batch, step->qkv, lists, expected);
    assert_int_equal(nosa_reference_ops.attention(NULL, &params), NOSA_OK);
    for (int32_t i = 0; i < step->n_devices; i++) {
        const struct op_device *device = &step->devices[i];
        params.out = i == 0 ? first : got;
        assert_int_equal(device->ops->attention(device->stream, &params), NOSA_OK);
        assert_near(step, device, params.out, expected, count);
        kv_step_assert_same(step, device, "out", params.out, first, count * sizeof(float));
    }
    check_rows(step, &step->devices[step->n_devices - 1], lists, first);
    check_heads(step, &step->devices[step->n_devices - 1], lists, first);
    free(first);
    free(got);
    free(expected);
}

static void test_attention_full_matches_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 31);
        check_lists(step, &(struct lists){NULL, NULL, 0});
        kv_step_destroy(step);
    }
}

static void test_attention_selected_matches_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 32);
        for (int mode = NOSA_ATTENTION_INFLLMV2; mode <= NOSA_ATTENTION_NOSA; mode++) {
            struct lists lists = lists_selected(step, (enum nosa_attention_mode)mode);
            check_lists(step, &lists);
            lists_close(&lists);
        }
        kv_step_destroy(step);
    }
}

static void test_attention_random_lists_match_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 33);
        struct lists lists = lists_random(step);
        check_lists(step, &lists);
        lists_close(&lists);
        kv_step_destroy(step);
    }
}

/* Scores of thousands: weights are differences only, so nothing overflows and one token wins. */
static void test_attention_large_scores_stay_finite(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i += 3) {
        struct kv_step *step = kv_step_create(&op_cases[i], 34);
        int64_t stride = op_qkv_stride(step->op_case);
        int32_t n_rows = step->batch->view.n_rows;
        size_t width = out_width(step, step->op_case->n_heads / step->op_case->n_kv_heads);
        float *q = op_alloc((size_t)(n_rows * stride) * sizeof(float));
        float *out = op_alloc((size_t)n_rows * width * sizeof(float));
        for (int64_t k = 0; k < n_rows * stride; k++)
            q[k] = step->qkv[k] * 1e4f;
        struct nosa_attention_params params =
            params_of(step, step->batch, q, &(struct lists){NULL, NULL, 0}, out);
        for (int32_t d = 0; d < step->n_devices; d++) {
            const struct op_device *device = &step->devices[d];
            assert_int_equal(device->ops->attention(device->stream, &params), NOSA_OK);
            for (size_t k = 0; k < (size_t)n_rows * width; k++)
                if (!(fabsf(out[k]) < 16.0f))
                    fail_msg("%s, %s: out[%zu] is %g", step->op_case->name, device->name, k,
                             (double)out[k]);
        }
        free(out);
        free(q);
        kv_step_destroy(step);
    }
}

/* Few seeds here; --seeds gives others, and then this case runs alone. */
static struct op_seeds random_seeds = {1, 3};

static void test_attention_random_shapes_match_reference(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < random_seeds.count; i++) {
        struct op_random_case drawn;
        op_random_case(random_seeds.first + i, &drawn);
        struct kv_step *step = kv_step_create(&drawn.op_case, random_seeds.first + i);
        struct lists selected = lists_selected(step, NOSA_ATTENTION_NOSA);
        struct lists random = lists_random(step);
        check_lists(step, &(struct lists){NULL, NULL, 0});
        check_lists(step, &selected);
        check_lists(step, &random);
        lists_close(&random);
        lists_close(&selected);
        kv_step_destroy(step);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_full_matches_reference),
        cmocka_unit_test(test_attention_selected_matches_reference),
        cmocka_unit_test(test_attention_random_lists_match_reference),
        cmocka_unit_test(test_attention_large_scores_stay_finite),
        cmocka_unit_test(test_attention_random_shapes_match_reference),
    };
    const struct CMUnitTest wide[] = {
        cmocka_unit_test(test_attention_random_shapes_match_reference),
    };
    if (!op_seeds_parse(argc, argv, &random_seeds))
        return 2;
    if (argc > 1)
        return cmocka_run_group_tests(wide, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
