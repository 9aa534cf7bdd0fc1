/*
 * Matrix products of the CPU backend over ragged shapes, all formats and epilogues.
 *
 * Three promises are checked. Against the plain reference in double every sum stays within the
 * bound of a chain, (k + 2) 2^-24 (sum |x w| + |bias| + |old|); a gated product adds the error of
 * its two factors. The bits of a sum are those of the scalar chain over the source matrix, k
 * ascending from zero. And the bits do not depend on how rows are grouped, the instruction set or
 * the threads.
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

#include "cpu_device.h"
#include "device.h"
#include "reference/reference.h"

#define ROWS_MAX  300
#define X_PADDING 3 /* elements behind each row of x, holding NaN */
#define CANARY    -12345.0f

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
/* Instrumented code is too slow for all of it; every kernel and path is still taken. */
static const int32_t n_list[] = {1, 33, 64};
static const int32_t k_list[] = {1, 16, 63, 1537};
#else
static const int32_t n_list[] = {1, 31, 32, 33, 64, 966};
static const int32_t k_list[] = {1, 2, 15, 16, 63, 576, 1537};
#endif
static const int32_t rows_list[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10,  11,
                                    12, 13, 14, 15, 16, 17, 63, 64, 65, 130, 300};

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

struct backend {
    enum nosa_cpu_isa isa;
    int32_t threads;
    struct nosa_device *device;
    struct nosa_stream *stream;
};

static struct backend backends[] = {
    {NOSA_CPU_ISA_BEST, 2, NULL, NULL},     {NOSA_CPU_ISA_BEST, 1, NULL, NULL},
    {NOSA_CPU_ISA_AVX512, 3, NULL, NULL},   {NOSA_CPU_ISA_AVX2, 2, NULL, NULL},
    {NOSA_CPU_ISA_PORTABLE, 2, NULL, NULL},
};

/* One shape: sources and inputs, the same for every format. */
struct shape {
    int32_t n;
    int32_t k;
    bool gated;
    float *source[2]; /* [n][k]; the second is the up half of a gated pair */
    float *x;         /* [ROWS_MAX][k + X_PADDING] */
    float *bias;      /* [n] */
    float *old;       /* [ROWS_MAX][n] what an added product finds */
    struct nosa_weight weight;
};

static uint32_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

static float next_float(void)
{
    return ((float)next_random() - 0x1p23f) * 0x1p-23f;
}

static float *new_floats(size_t count)
{
    float *floats = malloc((count + 1) * sizeof *floats);
    assert_non_null(floats);
    return floats;
}

static int open_backends(void **state)
{
    (void)state;
    const struct nosa_step_limits limits = {.rows_max = ROWS_MAX,
                                            .seqs_max = 1,
                                            .context_max = 64,
                                            .n_heads = 1,
                                            .n_kv_heads = 1,
                                            .head_dim = 16,
                                            .k_max = 1537,
                                            .n_max = 1984,
                                            .topk_max = 1,
                                            .vocab_max = 1,
                                            .windows_per_block = 4};
    for (int b = 0; b < COUNT(backends); b++) {
        if (!nosa_cpu_isa_available(backends[b].isa))
            continue;
        const struct nosa_cpu_options options = {backends[b].threads, backends[b].isa};
        struct nosa_error error = {0};
        size_t bytes;
        assert_int_equal(nosa_cpu_device_create(&options, &backends[b].device, &error), NOSA_OK);
        const struct nosa_device_table *table = backends[b].device->table;
        assert_int_equal(table->reserve(backends[b].device, &limits, &bytes, &error), NOSA_OK);
        assert_int_equal(table->stream_create(backends[b].device, &backends[b].stream, &error),
                         NOSA_OK);
    }
    return 0;
}

static int close_backends(void **state)
{
    (void)state;
    for (int b = 0; b < COUNT(backends); b++)
        if (backends[b].device != NULL) {
            backends[b].device->table->stream_destroy(backends[b].stream);
            backends[b].device->table->destroy(backends[b].device);
        }
    return 0;
}

static struct shape shape_create(int32_t n, int32_t k, bool gated)
{
    struct shape shape = {.n = n, .k = k, .gated = gated};
    for (int half = 0; half < 2; half++) {
        shape.source[half] = new_floats((size_t)n * (size_t)k);
        for (int64_t i = 0; i < (int64_t)n * k; i++) /* exact in every format */
            shape.source[half][i] = (float)((int32_t)(next_random() % 257) - 128) * 0x1p-7f;
    }
    shape.x = new_floats((size_t)ROWS_MAX * (size_t)(k + X_PADDING));
    for (int32_t row = 0; row < ROWS_MAX; row++)
        for (int32_t i = 0; i < k + X_PADDING; i++)
            shape.x[(int64_t)row * (k + X_PADDING) + i] = i < k ? next_float() : NAN;
    shape.bias = new_floats((size_t)n);
    for (int32_t i = 0; i < n; i++)
        shape.bias[i] = next_float();
    shape.old = new_floats((size_t)ROWS_MAX * (size_t)n);
    for (int64_t i = 0; i < (int64_t)ROWS_MAX * n; i++)
        shape.old[i] = next_float();
    return shape;
}

static void shape_destroy(struct shape *shape)
{
    free(shape->source[0]);
    free(shape->source[1]);
    free(shape->x);
    free(shape->bias);
    free(shape->old);
}

/* Packs the shape's source in a format; every backend reads the same packed weight. */
static void pack(struct shape *shape, enum nosa_weight_format format)
{
    struct nosa_device *device = backends[0].device;
    struct nosa_weight *weight = &shape->weight;
    struct nosa_error error = {0};
    int32_t columns = shape->gated ? (shape->n + 15) / 16 * 32 : shape->n;
    *weight = (struct nosa_weight){.format = format, .n = columns, .k = shape->k};
    weight->bytes = nosa_weight_packed_bytes(format, columns, shape->k);
    assert_int_equal(device->table->memory_alloc(device, NOSA_MEMORY_DEVICE, weight->bytes,
                                                 &weight->data, &error),
                     NOSA_OK);
    enum nosa_weight_placement first = shape->gated ? NOSA_PLACE_GATE : NOSA_PLACE_ROWS;
    assert_int_equal(device->table->weight_pack(device, weight, first, 0, shape->n, shape->k, 0,
                                                NOSA_DTYPE_F32, shape->source[0], &error),
                     NOSA_OK);
    if (shape->gated)
        assert_int_equal(device->table->weight_pack(device, weight, NOSA_PLACE_UP, 0, shape->n,
                                                    shape->k, 0, NOSA_DTYPE_F32, shape->source[1],
                                                    &error),
                         NOSA_OK);
}

static void unpack(struct shape *shape)
{
    struct nosa_device *device = backends[0].device;
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, shape->weight.data, shape->weight.bytes);
}

/* Rows first .. first + rows - 1 by `op`; `out` is [rows][n], checked for writes beside it. */
static void run(const struct shape *shape, enum nosa_matmul_epilogue epilogue, bool with_bias,
                int32_t first, int32_t rows, const struct nosa_op_table *ops,
                struct nosa_stream *stream, float *out)
{
    int64_t stride = shape->n + 2;
    float *padded = new_floats((size_t)(rows * stride));
    for (int64_t i = 0; i < rows * stride; i++)
        padded[i] = CANARY;
    for (int32_t row = 0; row < rows; row++)
        memcpy(padded + row * stride, shape->old + (int64_t)(first + row) * shape->n,
               (size_t)shape->n * sizeof *padded);
    const struct nosa_matmul_params params = {
        .n_rows = rows,
        .weight = &shape->weight,
        .x = shape->x + (int64_t)first * (shape->k + X_PADDING),
        .x_stride = shape->k + X_PADDING,
        .bias = with_bias ? shape->bias : NULL,
        .epilogue = epilogue,
        .n_out = shape->n,
        .out = padded,
        .out_stride = stride,
    };
    assert_int_equal(ops->matmul(stream, &params), NOSA_OK);
    for (int32_t row = 0; row < rows; row++) {
        memcpy(out + (int64_t)row * shape->n, padded + row * stride,
               (size_t)shape->n * sizeof *out);
        assert_true(padded[row * stride + shape->n] == CANARY);
        assert_true(padded[row * stride + shape->n + 1] == CANARY);
    }
    free(padded);
}

static const struct nosa_op_table *ops_of(const struct backend *backend)
{
    return backend->device->table->ops;
}

/* The product of row `row` with one source row: the scalar chain, and sum |x w|. */
static float chain(const struct shape *shape, int half, int32_t row, int32_t column, double *size)
{
    const float *x = shape->x + (int64_t)row * (shape->k + X_PADDING);
    const float *w = shape->source[half] + (int64_t)column * shape->k;
    float sum = 0.0f;
    *size = 0;
    for (int32_t i = 0; i < shape->k; i++) {
        sum = fmaf(x[i], w[i], sum);
        *size += fabs((double)x[i] * (double)w[i]);
    }
    return sum;
}

/* One output against the reference and, but for gated products, the scalar chain. */
static void check_value(const struct shape *shape, enum nosa_matmul_epilogue epilogue,
                        bool with_bias, int32_t row, int32_t column, float value, float reference)
{
    double size;
    double unit = ((double)shape->k + 2) * 0x1p-24;
    float sum = chain(shape, 0, row, column, &size);
    if (epilogue == NOSA_MATMUL_SWIGLU) {
        double up_size;
        double up = (double)chain(shape, 1, row, column, &up_size);
        double tolerance = unit * (1.2 * size * fabs(up) + up_size * fabs((double)sum)) +
                           8 * 0x1p-24 * fabs((double)reference) + FLT_MIN;
        assert_true(fabs((double)value - (double)reference) <= tolerance);
        return;
    }
    if (with_bias) {
        sum = sum + shape->bias[column];
        size += fabs((double)shape->bias[column]);
    }
    if (epilogue == NOSA_MATMUL_ADD) {
        float old = shape->old[(int64_t)row * shape->n + column];
        sum = old + sum;
        size += fabs((double)old);
    }
    assert_true(fabs((double)value - (double)reference) <= unit * size);
    assert_memory_equal(&value, &sum, sizeof value);
}

/* The first rows in full and others here and there. */
static void check_values(const struct shape *shape, enum nosa_matmul_epilogue epilogue,
                         bool with_bias, const float *out)
{
    const int32_t reference_rows = 2;
    float *reference = new_floats((size_t)reference_rows * (size_t)shape->n);
    for (int32_t first = 0; first < ROWS_MAX; first += 149) {
        run(shape, epilogue, with_bias, first, reference_rows, &nosa_reference_ops, NULL,
            reference);
        for (int32_t row = 0; row < reference_rows; row++)
            for (int32_t column = 0; column < shape->n; column++)
                check_value(shape, epilogue, with_bias, first + row, column,
                            out[(int64_t)(first + row) * shape->n + column],
                            reference[(int64_t)row * shape->n + column]);
    }
    free(reference);
}

/* Every grouping on every backend gives the bits of `expected`, the product of all rows at once. */
static void check_groupings(const struct shape *shape, enum nosa_matmul_epilogue epilogue,
                            bool with_bias, const float *expected)
{
    float *out = new_floats((size_t)ROWS_MAX * (size_t)shape->n);
    for (int b = 0; b < COUNT(backends); b++) {
        if (backends[b].device == NULL)
            continue;
        bool slow = backends[b].isa == NOSA_CPU_ISA_PORTABLE;
        for (int r = 0; r < COUNT(rows_list); r++) {
            int32_t rows = rows_list[r];
            if (slow && (rows > 17 || (int64_t)shape->n * shape->k * rows > 3000000))
                continue;
            int32_t first =
                rows < ROWS_MAX ? (int32_t)(next_random() % (uint32_t)(ROWS_MAX - rows)) : 0;
            run(shape, epilogue, with_bias, first, rows, ops_of(&backends[b]), backends[b].stream,
                out);
            if (memcmp(out, expected + (int64_t)first * shape->n,
                       (size_t)rows * (size_t)shape->n * sizeof *out) != 0)
                fail_msg("n %d, k %d, format %d, epilogue %d: %d rows differ on %s, %d threads",
                         shape->n, shape->k, (int)shape->weight.format, (int)epilogue, rows,
                         nosa_cpu_isa_name(backends[b].isa), backends[b].threads);
        }
    }
    free(out);
}

static void check_format(enum nosa_weight_format format, bool gated)
{
    for (int ni = 0; ni < COUNT(n_list); ni++)
        for (int ki = 0; ki < COUNT(k_list); ki++) {
            struct shape shape = shape_create(n_list[ni], k_list[ki], gated);
            float *out = new_floats((size_t)ROWS_MAX * (size_t)shape.n);
            pack(&shape, format);
            for (int variant = 0; variant < (gated ? 1 : 3); variant++) {
                enum nosa_matmul_epilogue epilogue = gated          ? NOSA_MATMUL_SWIGLU
                                                     : variant == 1 ? NOSA_MATMUL_ADD
                                                                    : NOSA_MATMUL_STORE;
                bool with_bias = !gated && variant > 0;
                run(&shape, epilogue, with_bias, 0, ROWS_MAX, ops_of(&backends[0]),
                    backends[0].stream, out);
                check_values(&shape, epilogue, with_bias, out);
                check_groupings(&shape, epilogue, with_bias, out);
            }
            unpack(&shape);
            free(out);
            shape_destroy(&shape);
        }
}

static void test_matmul_f32_equals_the_chain_in_any_grouping(void **state)
{
    (void)state;
    check_format(NOSA_WEIGHT_F32, false);
}

static void test_matmul_bf16_equals_the_chain_in_any_grouping(void **state)
{
    (void)state;
    check_format(NOSA_WEIGHT_BF16, false);
}

static void test_matmul_f16_equals_the_chain_in_any_grouping(void **state)
{
    (void)state;
    check_format(NOSA_WEIGHT_F16, false);
}

static void test_matmul_gated_is_the_same_in_any_grouping(void **state)
{
    (void)state;
    check_format(NOSA_WEIGHT_F32, true);
    check_format(NOSA_WEIGHT_BF16, true);
    check_format(NOSA_WEIGHT_F16, true);
}

/* The chain starts from +0 and adds in order: a large term absorbs what came before it, and the sum
 * of negative zeros is +0. */
static void test_matmul_sums_in_ascending_order_from_zero(void **state)
{
    (void)state;
    struct shape shape = shape_create(33, 6, false);
    const float terms[6] = {1.0f, 0x1p30f, 1.0f, -0x1p30f, 3.0f, -0.0f};
    for (int64_t i = 0; i < (int64_t)shape.n * shape.k; i++)
        shape.source[0][i] = 1.0f;
    for (int32_t row = 0; row < ROWS_MAX; row++)
        memcpy(shape.x + (int64_t)row * (shape.k + X_PADDING), terms, sizeof terms);
    for (int32_t i = 0; i < shape.k; i++)
        shape.x[i] = -0.0f;
    pack(&shape, NOSA_WEIGHT_BF16);
    float out[20 * 33];
    for (int b = 0; b < COUNT(backends); b++) {
        if (backends[b].device == NULL)
            continue;
        run(&shape, NOSA_MATMUL_STORE, false, 0, 20, ops_of(&backends[b]), backends[b].stream, out);
        for (int i = 0; i < 20 * 33; i++)
            assert_true(out[i] == (i < 33 ? 0.0f : 3.0f) && !signbit(out[i]));
    }
    unpack(&shape);
    shape_destroy(&shape);
}

static void test_matmul_refuses_contradicting_parameters(void **state)
{
    (void)state;
    struct shape shape = shape_create(32, 16, false);
    pack(&shape, NOSA_WEIGHT_F32);
    float out[32];
    const struct nosa_matmul_params good = {.n_rows = 1,
                                            .weight = &shape.weight,
                                            .x = shape.x,
                                            .x_stride = 16,
                                            .n_out = 32,
                                            .out = out,
                                            .out_stride = 32};
    const struct nosa_op_table *ops = ops_of(&backends[0]);
    struct nosa_stream *stream = backends[0].stream;
    assert_int_equal(ops->matmul(stream, &good), NOSA_OK);
    struct nosa_matmul_params bad = good;
    bad.x_stride = 15;
    assert_int_equal(ops->matmul(stream, &bad), NOSA_INVALID_ARGUMENT);
    bad = good;
    bad.n_out = 33;
    assert_int_equal(ops->matmul(stream, &bad), NOSA_INVALID_ARGUMENT);
    bad = good;
    bad.out_stride = 31;
    assert_int_equal(ops->matmul(stream, &bad), NOSA_INVALID_ARGUMENT);
    bad = good;
    bad.epilogue = NOSA_MATMUL_SWIGLU;
    assert_int_equal(ops->matmul(stream, &bad), NOSA_INVALID_ARGUMENT);
    bad = good;
    bad.n_rows = 0;
    assert_int_equal(ops->matmul(stream, &bad), NOSA_OK);
    unpack(&shape);
    shape_destroy(&shape);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_f32_equals_the_chain_in_any_grouping),
        cmocka_unit_test(test_matmul_bf16_equals_the_chain_in_any_grouping),
        cmocka_unit_test(test_matmul_f16_equals_the_chain_in_any_grouping),
        cmocka_unit_test(test_matmul_gated_is_the_same_in_any_grouping),
        cmocka_unit_test(test_matmul_sums_in_ascending_order_from_zero),
        cmocka_unit_test(test_matmul_refuses_contradicting_parameters),
    };
    return cmocka_run_group_tests_name("matmul", tests, open_backends, close_backends);
}
