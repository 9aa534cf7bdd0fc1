/*
 * Embedding, RMSNorm, rotation table and addition on every CPU device beside the references.
 *
 * Tolerances: embedding, table and addition are exact (the table is one rounding of the same double
 * computation); RMSNorm may differ by the rounding of its sum, which is at most one unit in 2^24
 * for each addition of a lane and a few for the tree, the root and two products.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op_cases.h"
#include "op_devices.h"
#include "reference/reference.h"

static struct op_device devices[OP_DEVICES_MAX];
static int32_t n_devices;

static const struct nosa_step_limits limits = {.rows_max = 600,
                                               .seqs_max = 16,
                                               .context_max = 4096,
                                               .n_heads = 4,
                                               .n_kv_heads = 2,
                                               .head_dim = 64,
                                               .k_max = 4096,
                                               .n_max = 4096,
                                               .topk_max = 64,
                                               .vocab_max = 1000,
                                               .windows_per_block = 4};

static int open_devices(void **state)
{
    (void)state;
    n_devices = op_devices_open(devices, &limits);
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    op_devices_close(devices, n_devices);
    return 0;
}

static float *random_floats(size_t count, uint64_t seed)
{
    float *values = op_alloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = op_normal(seed, i, 0);
    return values;
}

static void check_embed(enum nosa_weight_format format, int32_t vocab, int32_t width, int32_t rows)
{
    float *values = random_floats((size_t)vocab * (size_t)width, (uint64_t)width);
    size_t bytes = (size_t)rows * (size_t)width * sizeof(float);
    float *expected = op_alloc(bytes), *got = op_alloc(bytes), *alone = op_alloc(bytes);
    int32_t *token = op_alloc((size_t)rows * sizeof *token);
    int32_t held = 0;
    for (int32_t row = 0; row < rows; row++) {
        token[row] = 3 + (row * 31 + vocab - 1) % (vocab + 4); /* some are not held */
        held += token[row] >= 5 && token[row] < 5 + vocab;
    }
    assert_true(held > 0 && (rows < vocab || held < rows));
    for (int32_t i = 0; i < n_devices; i++) {
        const struct op_device *device = &devices[i];
        struct nosa_weight weight = op_weight_create(device, format, vocab, width, values);
        struct nosa_embed_params params = {rows, token, &weight, 5, expected};
        assert_int_equal(nosa_reference_ops.embed(NULL, &params), NOSA_OK);
        memset(got, 0xff, bytes);
        params.out = got;
        assert_int_equal(device->ops->embed(device->stream, &params), NOSA_OK);
        assert_memory_equal(got, expected, bytes);
        params.n_rows = 1;
        params.token = token + rows - 1;
        params.out = alone;
        assert_int_equal(device->ops->embed(device->stream, &params), NOSA_OK);
        assert_memory_equal(alone, got + (size_t)(rows - 1) * (size_t)width,
                            (size_t)width * sizeof(float));
        if (format == NOSA_WEIGHT_F32)
            for (int32_t row = 0; row < rows; row++)
                if (token[row] >= 5 && token[row] < 5 + vocab)
                    assert_memory_equal(got + (size_t)row * (size_t)width,
                                        values + (size_t)(token[row] - 5) * (size_t)width,
                                        (size_t)width * sizeof(float));
        op_weight_destroy(device, &weight);
    }
    free(token);
    free(alone);
    free(got);
    free(expected);
    free(values);
}

static void test_embed_ragged_shapes(void **state)
{
    (void)state;
    static const int32_t widths[] = {1, 2, 15, 31, 32, 33, 64, 576};
    for (int format = 0; format < 3; format++)
        for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
            check_embed((enum nosa_weight_format)format, 70, widths[i], 1);
            check_embed((enum nosa_weight_format)format, 33, widths[i], 77);
        }
}

/* The order that ops.h states, one lane at a time. */
static void norm_in_stated_order(const float *x, const float *weight, int32_t width, float eps,
                                 float *out)
{
    float lanes[16] = {0};
    for (int32_t i = 0; i < (width + 15) / 16 * 16; i++) {
        float value = i < width ? x[i] : 0;
        lanes[i % 16] = fmaf(value, value, lanes[i % 16]);
    }
    for (int32_t half = 8; half > 0; half /= 2)
        for (int32_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    float factor = 1.0f / sqrtf(lanes[0] / (float)width + eps);
    for (int32_t i = 0; i < width; i++)
        out[i] = x[i] * factor * weight[i];
}

static void check_rms_norm(int32_t width, int32_t rows, bool indexed)
{
    size_t count = (size_t)width * (size_t)rows, bytes = count * sizeof(float);
    float *x = random_floats(count, 1), *weight = random_floats((size_t)width, 2);
    float *expected = op_alloc(bytes), *stated = op_alloc(bytes), *got = op_alloc(bytes);
    int32_t *index = op_alloc((size_t)rows * sizeof *index);
    for (int32_t row = 0; row < rows; row++)
        index[row] = indexed ? (row * 7 + 3) % rows : row;
    struct nosa_rms_norm_params params = {rows,   width,    1e-5f, x, indexed ? index : NULL,
                                          weight, expected, width};
    assert_int_equal(nosa_reference_ops.rms_norm(NULL, &params), NOSA_OK);
    for (int32_t row = 0; row < rows; row++)
        norm_in_stated_order(x + (size_t)index[row] * (size_t)width, weight, width, 1e-5f,
                             stated + (size_t)row * (size_t)width);
    double tolerance = (width / 32.0 + 6) * 0x1p-24;
    params.out = got;
    for (int32_t i = 0; i < n_devices; i++) {
        memset(got, 0xff, bytes);
        assert_int_equal(devices[i].ops->rms_norm(devices[i].stream, &params), NOSA_OK);
        assert_memory_equal(got, stated, bytes);
        for (size_t value = 0; value < count; value++)
            assert_true(fabs((double)got[value] - expected[value]) <=
                        tolerance * fabs((double)expected[value]));
    }
    free(index);
    free(got);
    free(stated);
    free(expected);
    free(weight);
    free(x);
}

static void test_rms_norm_ragged_shapes(void **state)
{
    (void)state;
    static const int32_t widths[] = {1, 15, 16, 17, 31, 32, 63, 64, 65, 576, 1000, 4096};
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        check_rms_norm(widths[i], 1, false);
        check_rms_norm(widths[i], 2, true);
        check_rms_norm(widths[i], 65, i % 2 == 0);
    }
    check_rms_norm(3, 600, true);
}

/* Rows further apart than they are wide: the same values, and what lies between stays. */
static void test_rms_norm_out_stride(void **state)
{
    (void)state;
    enum { ROWS = 9, WIDTH = 37, STRIDE = 48 };
    float *x = random_floats(ROWS * WIDTH, 5), *weight = random_floats(WIDTH, 6);
    float dense[ROWS * WIDTH], apart[ROWS * STRIDE], untouched[STRIDE - WIDTH];
    memset(untouched, 0x5a, sizeof untouched);
    struct nosa_rms_norm_params params = {ROWS, WIDTH, 1e-6f, x, NULL, weight, dense, WIDTH};
    for (int32_t i = 0; i < n_devices; i++) {
        params.out = dense;
        params.out_stride = WIDTH;
        assert_int_equal(devices[i].ops->rms_norm(devices[i].stream, &params), NOSA_OK);
        memset(apart, 0x5a, sizeof apart);
        params.out = apart;
        params.out_stride = STRIDE;
        assert_int_equal(devices[i].ops->rms_norm(devices[i].stream, &params), NOSA_OK);
        for (int32_t row = 0; row < ROWS; row++) {
            assert_memory_equal(apart + row * STRIDE, dense + row * WIDTH, WIDTH * sizeof(float));
            assert_memory_equal(apart + row * STRIDE + WIDTH, untouched, sizeof untouched);
        }
    }
    free(weight);
    free(x);
}

static void test_rms_norm_in_place(void **state)
{
    (void)state;
    float *x = random_floats(40 * 100, 3), *weight = random_floats(100, 4);
    float *expected = op_alloc(4000 * sizeof(float)), *got = op_alloc(4000 * sizeof(float));
    struct nosa_rms_norm_params params = {40, 100, 1e-6f, x, NULL, weight, expected, 100};
    for (int32_t i = 0; i < n_devices; i++) {
        params.x = x;
        params.out = expected;
        assert_int_equal(devices[i].ops->rms_norm(devices[i].stream, &params), NOSA_OK);
        memcpy(got, x, 4000 * sizeof(float));
        params.x = params.out = got;
        assert_int_equal(devices[i].ops->rms_norm(devices[i].stream, &params), NOSA_OK);
        assert_memory_equal(got, expected, 4000 * sizeof(float));
    }
    free(got);
    free(expected);
    free(weight);
    free(x);
}

/* Rows of every case of the list: the table's rows are a function of their positions. */
static void test_rope_table_all_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        const struct op_case *op_case = &op_cases[i];
        int32_t rows = 0, *pos = op_alloc(1024 * sizeof *pos), half = op_case->head_dim / 2;
        double inv_freq[128];
        for (int32_t seq = 0; seq < op_case->n_seqs; seq++)
            for (int32_t row = 0; row < op_case->seqs[seq].rows; row++)
                pos[rows++] = op_case->seqs[seq].first + row;
        pos[rows++] = 131071;
        for (int32_t k = 0; k < half; k++)
            inv_freq[k] = pow(500000.0, -1.0 * k / half);
        size_t bytes = (size_t)rows * (size_t)op_case->head_dim * sizeof(float);
        float *expected = op_alloc(bytes), *got = op_alloc(bytes);
        struct nosa_rope_table_params params = {rows, op_case->head_dim, pos, inv_freq,
                                                1.19, expected};
        assert_int_equal(nosa_reference_ops.rope_table(NULL, &params), NOSA_OK);
        params.table = got;
        for (int32_t d = 0; d < n_devices; d++) {
            memset(got, 0xff, bytes);
            assert_int_equal(devices[d].ops->rope_table(devices[d].stream, &params), NOSA_OK);
            assert_memory_equal(got, expected, bytes);
        }
        free(got);
        free(expected);
        free(pos);
    }
}

static void test_add_lengths(void **state)
{
    (void)state;
    static const int64_t lengths[] = {0, 1, 15, 16, 17, 255, 32767, 32768, 32769, 100003};
    float *x = random_floats(100004, 5), *y = random_floats(100004, 6);
    float *expected = op_alloc(100004 * sizeof(float)), *got = op_alloc(100004 * sizeof(float));
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct nosa_add_params params = {lengths[i], expected, y};
        memcpy(expected, x, 100004 * sizeof(float));
        assert_int_equal(nosa_reference_ops.add(NULL, &params), NOSA_OK);
        params.x = got;
        for (int32_t d = 0; d < n_devices; d++) {
            memcpy(got, x, 100004 * sizeof(float));
            assert_int_equal(devices[d].ops->add(devices[d].stream, &params), NOSA_OK);
            assert_memory_equal(got, expected, 100004 * sizeof(float));
        }
    }
    free(got);
    free(expected);
    free(y);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed_ragged_shapes),  cmocka_unit_test(test_rms_norm_ragged_shapes),
        cmocka_unit_test(test_rms_norm_out_stride),  cmocka_unit_test(test_rms_norm_in_place),
        cmocka_unit_test(test_rope_table_all_cases), cmocka_unit_test(test_add_lengths),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
