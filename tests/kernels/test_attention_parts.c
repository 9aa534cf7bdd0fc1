/*
 * Attention in parts: any cut of the lists gives the bits of one call, on every CPU device, and the
 * reference in parts is near the reference in one.
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
#include "reference/reference.h"

#define OUT_TOLERANCE 1e-5

struct lists {
    int32_t *selected; /* NULL: every visible block */
    int32_t *count;
    int32_t topk;
};

/* Random lists of every length up to the visible blocks, the row's own block always among them. */
static struct lists lists_random(const struct kv_step *step)
{
    int32_t n_kv_heads = step->op_case->n_kv_heads, stride = step->fixture->table_stride;
    size_t cells = (size_t)step->batch->view.n_rows * (size_t)n_kv_heads;
    struct lists lists = {op_alloc(cells * (size_t)stride * sizeof(int32_t)),
                          op_alloc(cells * sizeof(int32_t)), stride};
    for (size_t cell = 0; cell < cells; cell++) {
        int32_t own = step->batch->row_pos[(int32_t)cell / n_kv_heads] / NOSA_BLOCK_TOKENS;
        float share = op_uniform(6, cell, 1);
        for (int32_t b = 0; b <= own; b++)
            if (b == own || op_uniform(6, cell, (uint64_t)b + 2) < share)
                lists.selected[(int32_t)cell * stride + lists.count[cell]++] = b;
    }
    return lists;
}

static struct nosa_attention_params params_of(const struct kv_step *step, const struct lists *lists,
                                              float *out)
{
    struct nosa_attention_params params =
        op_attention_params(step->fixture, step->batch, &step->fixture->kv, step->qkv);
    params.head_count = step->op_case->n_heads / step->op_case->n_kv_heads;
    params.selected = lists->selected;
    params.selected_count = lists->count;
    params.topk = lists->topk;
    params.out = out;
    params.out_stride = step->op_case->n_heads * step->op_case->head_dim;
    return params;
}

static size_t out_floats(const struct kv_step *step)
{
    return (size_t)(step->batch->view.n_rows * step->op_case->n_heads * step->op_case->head_dim);
}

/* Calls with parts of runs[0], runs[1], .. runs[n - 1], runs[0], .. runs until all lists end. What
 * no part has written is NaN. */
static void attend_in_parts(const struct kv_step *step, const struct nosa_op_table *ops,
                            struct nosa_stream *stream, const struct lists *lists,
                            const int32_t *runs, int32_t n, float *out)
{
    size_t heads = (size_t)(step->batch->view.n_rows * step->op_case->n_heads);
    size_t state_bytes = heads * (size_t)(step->op_case->head_dim + 2) * sizeof(float);
    float *state = memset(op_alloc(state_bytes), 0xff, state_bytes);
    struct nosa_attention_params params = params_of(step, lists, out);
    memset(out, 0xff, out_floats(step) * sizeof(float));
    params.state = state;
    for (int32_t i = 0; params.entry_first < step->fixture->table_stride; i++) {
        params.entry_count = runs[i % n] * NOSA_ATTENTION_RUN_BLOCKS;
        assert_int_equal(ops->attention(stream, &params), NOSA_OK);
        params.entry_first += params.entry_count;
    }
    free(state);
}

/* Every device takes some; each is taken by one. */
static const struct {
    int32_t n;
    int32_t runs[3];
} cuts[] = {{1, {1}}, {2, {1, 3}}, {1, {2}}, {3, {3, 1, 2}}, {1, {100}}, {2, {5, 1}}};
#define N_CUTS (sizeof cuts / sizeof cuts[0])

static void check_parts(const struct kv_step *step, const struct lists *lists)
{
    size_t count = out_floats(step);
    float *whole = op_alloc(count * sizeof(float)), *parts = op_alloc(count * sizeof(float));
    struct nosa_attention_params params = params_of(step, lists, whole);
    for (int32_t i = 0; i < step->n_devices; i++) {
        const struct op_device *device = &step->devices[i];
        if (i == 0)
            assert_int_equal(device->ops->attention(device->stream, &params), NOSA_OK);
        for (size_t k = (size_t)i; k < N_CUTS; k += (size_t)step->n_devices) {
            attend_in_parts(step, device->ops, device->stream, lists, cuts[k].runs, cuts[k].n,
                            parts);
            kv_step_assert_same(step, device, "out in parts", parts, whole, count * sizeof(float));
        }
    }
    free(parts);
    free(whole);
}

static void check_reference(const struct kv_step *step, const struct lists *lists)
{
    size_t count = out_floats(step);
    float *whole = op_alloc(count * sizeof(float)), *parts = op_alloc(count * sizeof(float));
    struct nosa_attention_params params = params_of(step, lists, whole);
    assert_int_equal(nosa_reference_ops.attention(NULL, &params), NOSA_OK);
    attend_in_parts(step, &nosa_reference_ops, NULL, lists, cuts[1].runs, cuts[1].n, parts);
    for (size_t k = 0; k < count; k++)
        if (!(fabsf(parts[k] - whole[k]) <= (float)OUT_TOLERANCE))
            fail_msg("%s, reference: out[%zu] is %g in parts, not %g", step->op_case->name, k,
                     (double)parts[k], (double)whole[k]);
    free(parts);
    free(whole);
}

static void test_attention_full_in_parts_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i += 2) {
        struct kv_step *step = kv_step_create(&op_cases[i], 51);
        check_parts(step, &(struct lists){NULL, NULL, 0});
        kv_step_destroy(step);
    }
}

static void test_attention_lists_in_parts_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 52);
        struct lists lists = lists_random(step);
        check_parts(step, &lists);
        if (i % 2)
            check_reference(step, &lists);
        free(lists.count);
        free(lists.selected);
        kv_step_destroy(step);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_full_in_parts_same_bits),
        cmocka_unit_test(test_attention_lists_in_parts_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
