/*
 * The eviction head as it is folded into the QKV projection: the high and low columns together give
 * delta . (W_v x + b_v) + delta_b in every weight format, far beyond what one 16-bit part can hold.
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

#include "cpu_device.h"
#include "engine_support.h"
#include "model/checkpoint.h"
#include "ops.h"

#define HIDDEN   64
#define HEADS    4
#define KV_HEADS 2
#define HEAD_DIM 16
#define LAYERS   2
#define COLUMNS  ((HEADS + 2 * KV_HEADS) * HEAD_DIM + 2 * KV_HEADS)

/* Both parts together hold a folded weight to 2^-17 of itself in bfloat16 and better in float16;
 * sums of 64 products in float32 add less. One part alone is off by up to 2^-9. */
#define PART_BOUND 0x1p-16

struct fixture {
    char path[TINY_PATH_MAX];
    struct nosa_checkpoint *checkpoint;
    struct nosa_device *device;
    struct nosa_model_weights weights;
    float x[HIDDEN];
    float out[COLUMNS];
};

static void fixture_open(struct fixture *fixture, enum nosa_tensor_dtype dtype, bool bias,
                         int32_t n_ranks, int32_t rank)
{
    struct nosa_tiny_checkpoint tiny;
    struct nosa_error error = {0};
    struct nosa_shard shard;
    const struct nosa_cpu_options options = {.threads = 1};
    tiny_sparse_defaults(&tiny);
    tiny.dtype = dtype;
    tiny.attention_bias = bias;
    tiny_write(&tiny, fixture->path);
    assert_int_equal(nosa_checkpoint_open(fixture->path, &fixture->checkpoint, &error), NOSA_OK);
    assert_int_equal(
        nosa_shard_make(nosa_checkpoint_config(fixture->checkpoint), n_ranks, rank, &shard, &error),
        NOSA_OK);
    assert_int_equal(nosa_cpu_device_create(&options, &fixture->device, &error), NOSA_OK);
    assert_int_equal(nosa_model_weights_load(fixture->checkpoint, &shard, fixture->device, NULL,
                                             NULL, &fixture->weights, &error),
                     NOSA_OK);
    for (int32_t i = 0; i < HIDDEN; i++)
        fixture->x[i] = (float)((i * 37 + 11) % 64 - 32) / 16;
}

static void fixture_close(struct fixture *fixture)
{
    nosa_model_weights_free(&fixture->weights);
    fixture->device->table->destroy(fixture->device);
    nosa_checkpoint_close(fixture->checkpoint);
    nosa_tiny_checkpoint_remove(fixture->path);
}

/* QKV of x, as a step computes it. */
static void project(struct fixture *fixture, int32_t layer)
{
    const struct nosa_device_table *table = fixture->device->table;
    const struct nosa_layer_weights *weights = &fixture->weights.layers[layer];
    struct nosa_stream *stream;
    assert_true(weights->qkv.n <= COLUMNS);
    assert_int_equal(table->stream_create(fixture->device, &stream, NULL), NOSA_OK);
    const struct nosa_matmul_params params = {
        .n_rows = 1,
        .weight = &weights->qkv,
        .x = fixture->x,
        .x_stride = HIDDEN,
        .bias = weights->qkv_bias,
        .epilogue = NOSA_MATMUL_STORE,
        .n_out = weights->qkv.n,
        .out = fixture->out,
        .out_stride = weights->qkv.n,
    };
    assert_int_equal(table->ops->matmul(stream, &params), NOSA_OK);
    assert_int_equal(table->stream_synchronize(stream, NULL), NOSA_OK);
    table->stream_destroy(stream);
}

static double value_of(const struct fixture *fixture, enum nosa_tensor_role role, int32_t layer,
                       int64_t index)
{
    const struct nosa_tensor *tensor =
        nosa_checkpoint_tensor(fixture->checkpoint, role, (uint32_t)layer);
    enum nosa_dtype type = tensor->dtype == NOSA_TENSOR_F32    ? NOSA_DTYPE_F32
                           : tensor->dtype == NOSA_TENSOR_BF16 ? NOSA_DTYPE_BF16
                                                               : NOSA_DTYPE_F16;
    return (double)nosa_dtype_load(type, tensor->data, index);
}

/* The head's input to softplus from the checkpoint's own tensors; *scale is the sum of the absolute
 * products of the folded rows. */
static double expected(const struct fixture *fixture, int32_t layer, int32_t head, bool bias,
                       double *scale)
{
    const int32_t values = KV_HEADS * HEAD_DIM;
    double sum = bias ? value_of(fixture, NOSA_TENSOR_DELTA_BIAS, layer, head) : 0;
    *scale = fabs(sum);
    for (int32_t i = 0; i < HIDDEN; i++) {
        double row = 0;
        for (int32_t j = 0; j < values; j++)
            row += value_of(fixture, NOSA_TENSOR_DELTA, layer, head * values + j) *
                   value_of(fixture, NOSA_TENSOR_V, layer, (int64_t)j * HIDDEN + i);
        sum += row * (double)fixture->x[i];
        *scale += fabs(row * (double)fixture->x[i]);
    }
    for (int32_t j = 0; bias && j < values; j++)
        sum += value_of(fixture, NOSA_TENSOR_DELTA, layer, head * values + j) *
               value_of(fixture, NOSA_TENSOR_V_BIAS, layer, j);
    return sum;
}

static void check(enum nosa_tensor_dtype dtype, bool bias, int32_t n_ranks)
{
    const int32_t heads = KV_HEADS / n_ranks;
    for (int32_t rank = 0; rank < n_ranks; rank++) {
        struct fixture fixture;
        fixture_open(&fixture, dtype, bias, n_ranks, rank);
        double beyond_one_part = 0;
        for (int32_t layer = 0; layer < LAYERS; layer++) {
            project(&fixture, layer);
            const float *fold = fixture.out + fixture.weights.layers[layer].qkv.n - 2 * heads;
            for (int32_t head = 0; head < heads; head++) {
                double scale, high = (double)fold[head];
                double want = expected(&fixture, layer, rank * heads + head, bias, &scale);
                double error = fabs(high + (double)fold[heads + head] - want) / scale;
                if (!(error <= PART_BOUND))
                    fail_msg("layer %d, head %d: off by %g of the products", layer, head, error);
                beyond_one_part = fmax(beyond_one_part, fabs(high - want) / scale);
            }
        }
        if (dtype != NOSA_TENSOR_F32)
            assert_true(beyond_one_part > PART_BOUND); /* so the low part is what is tested */
        fixture_close(&fixture);
    }
}

static void test_model_weights_load_fold_in_every_format(void **state)
{
    (void)state;
    check(NOSA_TENSOR_F32, false, 1);
    check(NOSA_TENSOR_BF16, false, 1);
    check(NOSA_TENSOR_F16, false, 1);
}

static void test_model_weights_load_fold_with_biases(void **state)
{
    (void)state;
    check(NOSA_TENSOR_F32, true, 1);
    check(NOSA_TENSOR_BF16, true, 1);
}

static void test_model_weights_load_fold_of_each_rank(void **state)
{
    (void)state;
    check(NOSA_TENSOR_BF16, false, 2);
    check(NOSA_TENSOR_BF16, true, 2);
}

/* Replaces the first layer's delta by values too large for F16 in the checkpoint's file. */
static void enlarge_delta(const char *directory)
{
    struct nosa_checkpoint *checkpoint;
    char path[TINY_PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(nosa_checkpoint_open(directory, &checkpoint, NULL), NOSA_OK);
    const struct nosa_tensor *delta = nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_DELTA, 0);
    assert_int_equal(delta->dtype, NOSA_TENSOR_F32);
    float values[KV_HEADS * KV_HEADS * HEAD_DIM];
    memcpy(values, delta->data, sizeof values);
    nosa_checkpoint_close(checkpoint);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    char *bytes = malloc(1 << 20);
    assert_non_null(bytes);
    size_t size = fread(bytes, 1, 1 << 20, file);
    char *place = memmem(bytes, size, values, sizeof values);
    assert_non_null(place);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        values[i] *= 1e8f;
    assert_int_equal(fseek(file, place - bytes, SEEK_SET), 0);
    assert_int_equal(fwrite(values, sizeof values, 1, file), 1);
    assert_int_equal(fclose(file), 0);
    free(bytes);
}

static void test_model_weights_load_fold_beyond_the_type_is_refused(void **state)
{
    (void)state;
    static const enum nosa_tensor_dtype types[] = {NOSA_TENSOR_F16, NOSA_TENSOR_BF16};
    for (size_t i = 0; i < 2; i++) {
        struct nosa_tiny_checkpoint tiny;
        struct nosa_error error = {0};
        char path[TINY_PATH_MAX];
        tiny_sparse_defaults(&tiny);
        tiny.dtype = types[i];
        tiny.dtype_rest = NOSA_TENSOR_F32;
        tiny_write(&tiny, path);
        enlarge_delta(path);
        const struct nosa_engine_options options = {
            .model_directory = path,
            .attention = NOSA_ATTENTION_NOSA,
            .tp = 1,
            .device = {.threads = 1},
            .rows_max = 1,
            .sessions_max = 1,
            .context_max = 64,
        };
        struct nosa_engine *engine;
        enum nosa_status status = nosa_engine_open(&options, &engine, &error);
        assert_int_equal(status, types[i] == NOSA_TENSOR_F16 ? NOSA_INVALID_ARGUMENT : NOSA_OK);
        if (status != NOSA_OK)
            assert_non_null(strstr(error.text, "layer 0: the eviction head"));
        nosa_engine_close(engine);
        nosa_tiny_checkpoint_remove(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_weights_load_fold_in_every_format),
        cmocka_unit_test(test_model_weights_load_fold_with_biases),
        cmocka_unit_test(test_model_weights_load_fold_of_each_rank),
        cmocka_unit_test(test_model_weights_load_fold_beyond_the_type_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
