/*
 * Block selection on every CPU device beside the reference.
 *
 * Scores B are softmax weights in float32 over float32 sums: within 1e-4 relative of the double
 * reference (a logit of a few units is off by about 1e-6, and the sum of weights likewise). E is
 * the largest of stored numbers: equal bits. A selection is compared by margin.
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

#define SCORE_TOLERANCE 1e-4

struct selection {
    int32_t *selected;
    int32_t *count;
    float *score;
    float *bias;
    int64_t stride;
    size_t cells;
};

static void selection_open(struct selection *s, const struct kv_step *step, int32_t n_rows)
{
    s->cells = (size_t)n_rows * (size_t)step->op_case->n_kv_heads;
    s->stride = step->fixture->table_stride;
    size_t scores = s->cells * (size_t)s->stride * sizeof(float);
    s->selected = op_alloc(s->cells * (size_t)step->op_case->topk * sizeof(int32_t));
    s->count = op_alloc(s->cells * sizeof(int32_t));
    s->score = op_alloc(scores);
    s->bias = op_alloc(scores);
}

static void selection_close(struct selection *s)
{
    free(s->bias);
    free(s->score);
    free(s->count);
    free(s->selected);
}

static struct nosa_select_blocks_params
run(const struct kv_step *step, const struct op_batch *batch, const float *q,
    enum nosa_attention_mode mode, const struct nosa_op_table *ops, struct nosa_stream *stream,
    struct selection *s, bool with_scores)
{
    struct nosa_select_blocks_params params =
        op_select_blocks_params(step->fixture, batch, &step->fixture->kv, mode, q);
    params.selected = s->selected;
    params.selected_count = s->count;
    params.block_score = with_scores ? s->score : NULL;
    params.block_bias = with_scores ? s->bias : NULL;
    params.score_stride = s->stride;
    assert_int_equal(ops->select_blocks(stream, &params), NOSA_OK);
    return params;
}

/* Scores within the tolerance, E equal, and the selection right by margin. */
static void assert_matches(const struct kv_step *step, const struct op_device *device,
                           const struct nosa_select_blocks_params *params,
                           const struct selection *got, const struct selection *expected)
{
    int32_t n_kv_heads = step->op_case->n_kv_heads;
    for (size_t cell = 0; cell < got->cells; cell++) {
        int32_t pos = step->batch->row_pos[(int32_t)cell / n_kv_heads];
        const float *score = expected->score + (int64_t)cell * expected->stride;
        const float *bias = expected->bias + (int64_t)cell * expected->stride;
        for (int32_t b = 0; b <= pos / NOSA_BLOCK_TOKENS; b++) {
            float b_got = got->score[(int64_t)cell * got->stride + b];
            float e_got = got->bias[(int64_t)cell * got->stride + b];
            if (!(fabsf(b_got - score[b]) <= SCORE_TOLERANCE * score[b] + 1e-30f))
                fail_msg("%s, %s: B of cell %zu block %d is %g, not %g", step->op_case->name,
                         device->name, cell, b, (double)b_got, (double)score[b]);
            if (e_got != bias[b])
                fail_msg("%s, %s: E of cell %zu block %d is %g, not %g", step->op_case->name,
                         device->name, cell, b, (double)e_got, (double)bias[b]);
        }
        char why[200] = "";
        if (!op_selection_matches(params, pos, score, bias,
                                  got->selected + (int64_t)cell * params->topk, got->count[cell],
                                  SCORE_TOLERANCE, why, sizeof why))
            fail_msg("%s, %s: cell %zu: %s", step->op_case->name, device->name, cell, why);
    }
}

static void assert_same(const struct kv_step *step, const struct op_device *device,
                        const struct selection *got, const struct selection *expected,
                        size_t first_cell, bool with_scores)
{
    size_t topk = (size_t)step->op_case->topk;
    for (size_t cell = 0; cell < got->cells; cell++) {
        size_t other = first_cell + cell;
        assert_int_equal(got->count[cell], expected->count[other]);
        kv_step_assert_same(step, device, "selection", got->selected + cell * topk,
                            expected->selected + other * topk,
                            (size_t)got->count[cell] * sizeof(int32_t));
        if (!with_scores)
            continue;
        int32_t pos = step->batch->row_pos[(int32_t)other / step->op_case->n_kv_heads];
        size_t bytes = (size_t)(pos / NOSA_BLOCK_TOKENS + 1) * sizeof(float);
        kv_step_assert_same(step, device, "B", got->score + (int64_t)cell * got->stride,
                            expected->score + (int64_t)other * expected->stride, bytes);
        kv_step_assert_same(step, device, "E", got->bias + (int64_t)cell * got->stride,
                            expected->bias + (int64_t)other * expected->stride, bytes);
    }
}

static void check_mode(const struct kv_step *step, enum nosa_attention_mode mode)
{
    struct selection expected, first, got;
    int32_t n_rows = step->batch->view.n_rows;
    selection_open(&expected, step, n_rows);
    selection_open(&first, step, n_rows);
    selection_open(&got, step, n_rows);
    run(step, step->batch, step->qkv, mode, &nosa_reference_ops, NULL, &expected, true);
    for (int32_t i = 0; i < step->n_devices; i++) {
        const struct op_device *device = &step->devices[i];
        struct selection *to = i == 0 ? &first : &got;
        struct nosa_select_blocks_params params =
            run(step, step->batch, step->qkv, mode, device->ops, device->stream, to, true);
        assert_matches(step, device, &params, to, &expected);
        assert_same(step, device, to, &first, 0, true);
        run(step, step->batch, step->qkv, mode, device->ops, device->stream, to, false);
        assert_same(step, device, to, &first, 0, false);
    }
    selection_close(&got);
    selection_close(&first);
    selection_close(&expected);
}

static void test_select_blocks_matches_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 21);
        check_mode(step, NOSA_ATTENTION_NOSA);
        check_mode(step, NOSA_ATTENTION_INFLLMV2);
        kv_step_destroy(step);
    }
}

/* Each row on its own, on the fastest device with several threads, gets the bits that it got in the
 * batch. */
static void check_rows(const struct kv_step *step)
{
    const struct op_device *device = &step->devices[step->n_devices - 1];
    struct selection whole, alone;
    selection_open(&whole, step, step->batch->view.n_rows);
    run(step, step->batch, step->qkv, NOSA_ATTENTION_NOSA, device->ops, device->stream, &whole,
        true);
    for (int32_t row = 0; row < step->batch->view.n_rows; row++) {
        struct op_batch *batch = kv_step_row(step, row);
        selection_open(&alone, step, 1);
        run(step, batch, step->qkv + row * op_qkv_stride(step->op_case), NOSA_ATTENTION_NOSA,
            device->ops, device->stream, &alone, true);
        assert_same(step, device, &alone, &whole, (size_t)(row * step->op_case->n_kv_heads), true);
        selection_close(&alone);
        op_batch_destroy(batch);
    }
    selection_close(&whole);
}

static void test_select_blocks_row_alone_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 22);
        check_rows(step);
        kv_step_destroy(step);
    }
}

static const struct op_case *case_named(const char *name)
{
    for (size_t i = 0; i < op_case_count; i++)
        if (strcmp(op_cases[i].name, name) == 0)
            return &op_cases[i];
    fail_msg("no case %s", name);
    return NULL;
}

/* All compressed keys alike and all C alike: every score ties, so the lowest blocks win. */
static void check_ties(float key, float bias)
{
    const struct op_case *op_case = case_named("mixed_batch");
    struct kv_step *step = kv_step_create(op_case, 23);
    const struct nosa_kv_view *view = &step->fixture->kv.view;
    size_t keys = step->fixture->kv.n_records * nosa_kv_compressed_key_bytes(&view->geometry);
    size_t windows =
        step->fixture->kv.n_records * (size_t)nosa_kv_windows_per_block(&view->geometry);
    for (size_t i = 0; i < keys / 2; i++)
        ((uint16_t *)(void *)view->compressed_keys)[i] = nosa_f32_to_bf16(key);
    for (size_t i = 0; i < windows; i++)
        view->window_bias[i] = bias;
    struct selection got;
    selection_open(&got, step, step->batch->view.n_rows);
    for (int32_t d = 0; d < step->n_devices; d++) {
        run(step, step->batch, step->qkv, NOSA_ATTENTION_NOSA, step->devices[d].ops,
            step->devices[d].stream, &got, false);
        for (size_t cell = 0; cell < got.cells; cell++) {
            int32_t pos = step->batch->row_pos[(int32_t)cell / op_case->n_kv_heads];
            int32_t own = pos / NOSA_BLOCK_TOKENS, local = own - op_case->window_blocks;
            int32_t others = op_case->topk - op_case->window_blocks - 1;
            if (own + 1 <= op_case->topk)
                continue;
            assert_int_equal(got.count[cell], op_case->topk);
            for (int32_t i = 0; i < op_case->topk; i++)
                assert_int_equal(got.selected[(int32_t)cell * op_case->topk + i],
                                 i < others ? i : local + i - others);
        }
    }
    selection_close(&got);
    kv_step_destroy(step);
}

static void test_select_blocks_ties_take_lowest(void **state)
{
    (void)state;
    check_ties(0.5f, -3.0f);
}

/* A broken model must not break the selection: NaN scores leave every block a candidate. */
static void test_select_blocks_nan_counts_for_nothing(void **state)
{
    (void)state;
    check_ties(0.5f, NAN);
    check_ties(NAN, NAN);
}

/* Few seeds here; --seeds gives others, and then this case runs alone. */
static struct op_seeds random_seeds = {1, 4};

static void test_select_blocks_random_shapes_match_reference(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < random_seeds.count; i++) {
        struct op_random_case drawn;
        op_random_case(random_seeds.first + i, &drawn);
        struct kv_step *step = kv_step_create(&drawn.op_case, random_seeds.first + i);
        check_mode(step, NOSA_ATTENTION_NOSA);
        check_mode(step, NOSA_ATTENTION_INFLLMV2);
        check_rows(step);
        kv_step_destroy(step);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select_blocks_matches_reference),
        cmocka_unit_test(test_select_blocks_row_alone_same_bits),
        cmocka_unit_test(test_select_blocks_ties_take_lowest),
        cmocka_unit_test(test_select_blocks_nan_counts_for_nothing),
        cmocka_unit_test(test_select_blocks_random_shapes_match_reference),
    };
    const struct CMUnitTest wide[] = {
        cmocka_unit_test(test_select_blocks_random_shapes_match_reference),
    };
    if (!op_seeds_parse(argc, argv, &random_seeds))
        return 2;
    if (argc > 1)
        return cmocka_run_group_tests(wide, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
