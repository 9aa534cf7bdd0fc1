/*
 * What enters the KV cache: qkv_write and compress_keys on every CPU device beside the references.
 *
 * Tolerances: a rotated value is two products and a sum in float32, the reference's in double: 4
 * units in 2^24 of the larger operand (values are below 8). In bfloat16 that may fall on the other
 * side of a rounding border: one unit of 2^-7 relative. V is rounded once from the same number, and
 * compressed keys are summed in the same order as the reference: equal bits.
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

#define ROTATION_TOLERANCE 2e-6

/* A cache before the case's batch and what a run of the ops made of it. */
struct outcome {
    struct op_kv kv;
    float *qkv;
    size_t qkv_bytes;
};

static void outcome_open(struct outcome *outcome, const struct op_fixture *fixture,
                         const struct op_batch *batch)
{
    op_kv_copy(&fixture->kv, &outcome->kv);
    outcome->qkv = op_batch_qkv(fixture, batch);
    outcome->qkv_bytes =
        (size_t)batch->view.n_rows * (size_t)op_qkv_stride(fixture->op_case) * sizeof(float);
}

static void outcome_close(struct outcome *outcome)
{
    free(outcome->qkv);
    op_kv_destroy(&outcome->kv);
}

static size_t records_bytes(const struct op_kv *kv)
{
    return kv->n_slots * nosa_kv_record_bytes(&kv->view.geometry);
}

/* Values a and b of the KV type: same bits, or within the tolerance of rotation. */
static bool near_enough(enum nosa_dtype type, const void *a, const void *b, size_t index)
{
    if (type == NOSA_DTYPE_F32) {
        uint32_t x = ((const uint32_t *)a)[index], y = ((const uint32_t *)b)[index];
        double difference = ((const float *)a)[index] - ((const float *)b)[index];
        return x == y || fabs(difference) <= ROTATION_TOLERANCE;
    }
    uint16_t x = ((const uint16_t *)a)[index], y = ((const uint16_t *)b)[index];
    double expected = nosa_bf16_to_f32(y), difference = nosa_bf16_to_f32(x) - expected;
    return x == y || fabs(difference) <= fabs(expected) * 0x1p-7 + ROTATION_TOLERANCE;
}

static void assert_near(const struct kv_step *step, const struct op_device *device,
                        const char *what, enum nosa_dtype type, const void *got,
                        const void *expected, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!near_enough(type, got, expected, i))
            fail_msg("%s, %s: %s differs at element %zu", step->op_case->name, device->name, what,
                     i);
}

static void assert_same_cache(const struct kv_step *step, const struct op_device *device,
                              const struct op_kv *got, const struct op_kv *expected)
{
    const struct nosa_kv_geometry *geometry = &expected->view.geometry;
    size_t r = (size_t)nosa_kv_windows_per_block(geometry), n = expected->n_records;
    kv_step_assert_same(step, device, "records", got->view.records, expected->view.records,
                        records_bytes(expected));
    kv_step_assert_same(step, device, "compressed keys", got->view.compressed_keys,
                        expected->view.compressed_keys, n * nosa_kv_compressed_key_bytes(geometry));
    kv_step_assert_same(step, device, "window biases", got->view.window_bias,
                        expected->view.window_bias, n * r * sizeof(float));
    kv_step_assert_same(step, device, "token biases", got->view.token_bias,
                        expected->view.token_bias, n * NOSA_BLOCK_TOKENS * sizeof(float));
}

static void run_write(const struct op_fixture *fixture, const struct op_batch *batch,
                      const struct nosa_op_table *ops, struct nosa_stream *stream,
                      const struct op_kv *kv, float *qkv, const float *rope)
{
    struct nosa_qkv_write_params write = op_qkv_write_params(fixture, batch, kv, qkv, rope);
    assert_int_equal(ops->qkv_write(stream, &write), NOSA_OK);
}

static void run_compress(const struct op_fixture *fixture, const struct op_batch *batch,
                         const struct nosa_op_table *ops, struct nosa_stream *stream,
                         const struct op_kv *kv)
{
    struct nosa_compress_keys_params compress = op_compress_keys_params(fixture, batch, kv);
    assert_int_equal(ops->compress_keys(stream, &compress), NOSA_OK);
}

/* V and the biases do not depend on rotation: they must be the reference's bits. */
static void assert_same_values(const struct kv_step *step, const struct op_device *device,
                               const struct op_kv *got, const struct op_kv *expected)
{
    size_t half = nosa_kv_half_bytes(&expected->view.geometry);
    for (size_t slot = 0; slot < expected->n_slots; slot++)
        kv_step_assert_same(step, device, "V", got->view.records + (2 * slot + 1) * half,
                            expected->view.records + (2 * slot + 1) * half, half);
    kv_step_assert_same(step, device, "c", got->view.token_bias, expected->view.token_bias,
                        expected->n_records * NOSA_BLOCK_TOKENS * sizeof(float));
}

static void check_write(const struct op_case *op_case)
{
    struct op_fixture *fixture = op_fixture_create(op_case, 11);
    struct kv_step *step = kv_step_create(op_case, 11);
    struct outcome expected, first = {0}, got;
    outcome_open(&expected, fixture, step->batch);
    run_write(fixture, step->batch, &nosa_reference_ops, NULL, &expected.kv, expected.qkv,
              step->rope);
    for (int32_t i = 0; i < step->n_devices; i++) {
        const struct op_device *device = &step->devices[i];
        outcome_open(&got, fixture, step->batch);
        run_write(fixture, step->batch, device->ops, device->stream, &got.kv, got.qkv, step->rope);
        assert_near(step, device, "q", NOSA_DTYPE_F32, got.qkv, expected.qkv,
                    got.qkv_bytes / sizeof(float));
        assert_near(step, device, "K", op_case->type, got.kv.view.records, expected.kv.view.records,
                    records_bytes(&got.kv) / (size_t)nosa_dtype_bytes(op_case->type));
        assert_same_values(step, device, &got.kv, &expected.kv);
        if (i == 0) {
            first = got;
            continue;
        }
        kv_step_assert_same(step, device, "qkv", got.qkv, first.qkv, got.qkv_bytes);
        assert_same_cache(step, device, &got.kv, &first.kv);
        outcome_close(&got);
    }
    outcome_close(&first);
    outcome_close(&expected);
    kv_step_destroy(step);
    op_fixture_destroy(fixture);
}

static void test_qkv_write_matches_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++)
        check_write(&op_cases[i]);
}

/* Compresses what the reference wrote: the same order of sums, so the same bits. */
static void check_compress(const struct op_case *op_case)
{
    struct op_fixture *fixture = op_fixture_create(op_case, 12);
    struct kv_step *step = kv_step_create(op_case, 12);
    struct outcome got;
    for (int32_t i = 0; i < step->n_devices; i++) {
        const struct op_device *device = &step->devices[i];
        outcome_open(&got, fixture, step->batch);
        run_write(fixture, step->batch, &nosa_reference_ops, NULL, &got.kv, got.qkv, step->rope);
        run_compress(fixture, step->batch, device->ops, device->stream, &got.kv);
        assert_same_cache(step, device, &got.kv, &step->fixture->kv);
        outcome_close(&got);
    }
    kv_step_destroy(step);
    op_fixture_destroy(fixture);
}

static void test_compress_keys_matches_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++)
        check_compress(&op_cases[i]);
}

/* Rows one at a time leave the cache that the whole batch leaves. */
static void check_chunks(const struct op_case *op_case)
{
    struct op_fixture *fixture = op_fixture_create(op_case, 13);
    struct kv_step *step = kv_step_create(op_case, 13);
    const struct op_device *device = &step->devices[step->n_devices - 1];
    struct outcome whole, chunked;
    outcome_open(&whole, fixture, step->batch);
    outcome_open(&chunked, fixture, step->batch);
    run_write(fixture, step->batch, device->ops, device->stream, &whole.kv, whole.qkv, step->rope);
    run_compress(fixture, step->batch, device->ops, device->stream, &whole.kv);
    for (int32_t row = 0; row < step->batch->view.n_rows; row++) {
        struct op_batch *alone = kv_step_row(step, row);
        float *qkv = op_batch_qkv(fixture, alone), *rope = op_batch_rope(fixture, alone);
        run_write(fixture, alone, device->ops, device->stream, &chunked.kv, qkv, rope);
        run_compress(fixture, alone, device->ops, device->stream, &chunked.kv);
        size_t bytes = (size_t)op_qkv_stride(op_case) * sizeof(float);
        kv_step_assert_same(step, device, "qkv of one row", qkv,
                            whole.qkv + row * op_qkv_stride(op_case), bytes);
        free(rope);
        free(qkv);
        op_batch_destroy(alone);
    }
    assert_same_cache(step, device, &chunked.kv, &whole.kv);
    outcome_close(&chunked);
    outcome_close(&whole);
    kv_step_destroy(step);
    op_fixture_destroy(fixture);
}

static void test_qkv_write_row_by_row_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++)
        check_chunks(&op_cases[i]);
}

/* Softplus at its ends: no overflow, no loss of small results. */
static void test_qkv_write_bias_of_extreme_arguments(void **state)
{
    (void)state;
    static const float arguments[] = {-1000, -90, -20, 0, 20, 90, 1000, 1e30f};
    const struct op_case *op_case = &op_cases[0];
    struct kv_step *step = kv_step_create(op_case, 14);
    int32_t columns = op_qkv_columns(op_case), n_kv_heads = op_case->n_kv_heads;
    for (int32_t i = 0; i < step->n_devices; i++) {
        const struct op_device *device = &step->devices[i];
        for (size_t k = 0; k < sizeof arguments / sizeof arguments[0]; k++) {
            float *qkv = op_batch_qkv(step->fixture, step->batch);
            for (int32_t head = 0; head < n_kv_heads; head++) {
                qkv[columns - 2 * n_kv_heads + head] = arguments[k];
                qkv[columns - n_kv_heads + head] = 0;
            }
            run_write(step->fixture, step->batch, device->ops, device->stream, &step->fixture->kv,
                      qkv, step->rope);
            const struct nosa_kv_view *view = &step->fixture->kv.view;
            float c = view->token_bias[NOSA_BLOCK_TOKENS *
                                       nosa_kv_record_index(view, OP_CASE_LAYER, 0,
                                                            step->batch->block_table[0])];
            double x = arguments[k];
            double expected = step->fixture->eviction_scale[0] * (x > 30    ? x
                                                                  : x < -30 ? exp(x)
                                                                            : log(1 + exp(x)));
            assert_true(fabs(c - expected) <= 1e-6 * fabs(expected));
            free(qkv);
        }
    }
    kv_step_destroy(step);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qkv_write_matches_reference),
        cmocka_unit_test(test_compress_keys_matches_reference),
        cmocka_unit_test(test_qkv_write_row_by_row_same_bits),
        cmocka_unit_test(test_qkv_write_bias_of_extreme_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
