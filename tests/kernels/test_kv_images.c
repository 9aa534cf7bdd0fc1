/*
 * Where a record lies changes no bit: attention and compress_keys over caches whose records lie in
 * slots, in images, or here and there, on every CPU device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv_steps.h"
#include "reference/reference.h"

struct lists {
    int32_t *selected; /* NULL: every visible block */
    int32_t *count;
};

static struct lists lists_selected(const struct kv_step *step)
{
    size_t cells = (size_t)step->batch->view.n_rows * (size_t)step->op_case->n_kv_heads;
    struct lists lists = {op_alloc(cells * (size_t)step->op_case->topk * sizeof(int32_t)),
                          op_alloc(cells * sizeof(int32_t))};
    struct nosa_select_blocks_params params = op_select_blocks_params(
        step->fixture, step->batch, &step->fixture->kv, NOSA_ATTENTION_NOSA, step->qkv);
    params.selected = lists.selected;
    params.selected_count = lists.count;
    assert_int_equal(nosa_reference_ops.select_blocks(NULL, &params), NOSA_OK);
    return lists;
}

static void attend(const struct kv_step *step, const struct op_device *device,
                   const struct op_kv *kv, const struct lists *lists, float *out)
{
    struct nosa_attention_params params =
        op_attention_params(step->fixture, step->batch, kv, step->qkv);
    params.head_count = step->op_case->n_heads / step->op_case->n_kv_heads;
    params.selected = lists->selected;
    params.selected_count = lists->count;
    params.topk = step->op_case->topk;
    params.out = out;
    params.out_stride = step->op_case->n_heads * step->op_case->head_dim;
    assert_int_equal(device->ops->attention(device->stream, &params), NOSA_OK);
}

static void check_attention(const struct kv_step *step, const struct op_kv *elsewhere,
                            const struct lists *lists)
{
    size_t bytes = sizeof(float) * (size_t)(step->batch->view.n_rows * step->op_case->n_heads *
                                            step->op_case->head_dim);
    float *expected = op_alloc(bytes), *got = op_alloc(bytes);
    attend(step, &step->devices[step->n_devices - 1], &step->fixture->kv, lists, expected);
    for (int32_t i = 1; i < step->n_devices; i += 2) { /* several threads */
        memset(got, 0xff, bytes);
        attend(step, &step->devices[i], elsewhere, lists, got);
        kv_step_assert_same(step, &step->devices[i], "attention over images", got, expected, bytes);
    }
    free(got);
    free(expected);
}

static void test_attention_over_images_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 41);
        struct lists full = {NULL, NULL}, selected = lists_selected(step);
        struct op_kv elsewhere;
        op_kv_copy(&step->fixture->kv, &elsewhere);
        op_kv_offload(&elsewhere, i % 3 == 0 ? 1.0f : 0.5f, 42);
        check_attention(step, &elsewhere, i % 2 ? &full : &selected);
        op_kv_destroy(&elsewhere);
        free(selected.count);
        free(selected.selected);
        kv_step_destroy(step);
    }
}

/* Forms the batch's windows again, over a cache in which they are NaN. */
static void check_compress(const struct kv_step *step, const struct op_device *device, float share)
{
    const struct op_kv *expected = &step->fixture->kv;
    const struct nosa_kv_geometry *geometry = &expected->view.geometry;
    size_t key_bytes = nosa_kv_compressed_key_bytes(geometry);
    size_t r = (size_t)nosa_kv_windows_per_block(geometry);
    struct op_kv elsewhere;
    op_kv_copy(expected, &elsewhere);
    op_kv_offload(&elsewhere, share, 43);
    for (int32_t row = 0; row < step->batch->view.n_rows; row++) {
        int32_t pos = step->batch->row_pos[row];
        int32_t window = (pos + 1 - geometry->kernel_size) / geometry->kernel_stride;
        if (pos + 1 < geometry->kernel_size || (pos + 1) % geometry->kernel_stride != 0)
            continue;
        int32_t place = (window + 1) % (int32_t)r;
        int32_t block =
            step->batch->block_table[step->batch->row_seq[row] * step->batch->view.table_stride +
                                     pos / NOSA_BLOCK_TOKENS];
        for (int32_t head = 0; head < geometry->n_kv_heads; head++) {
            size_t record =
                (size_t)nosa_kv_record_index(&elsewhere.view, OP_CASE_LAYER, head, block);
            for (int32_t dim = 0; dim < geometry->head_dim; dim++)
                memset(elsewhere.view.compressed_keys + record * key_bytes +
                           (size_t)nosa_kv_compressed_offset(geometry, place, dim) *
                               (size_t)nosa_dtype_bytes(geometry->type),
                       0xff, (size_t)nosa_dtype_bytes(geometry->type));
            if (step->op_case->has_bias)
                memset(&elsewhere.view.window_bias[record * r + (size_t)place], 0xff, 4);
        }
    }
    struct nosa_compress_keys_params params =
        op_compress_keys_params(step->fixture, step->batch, &elsewhere);
    assert_int_equal(device->ops->compress_keys(device->stream, &params), NOSA_OK);
    kv_step_assert_same(step, device, "compressed keys from images", elsewhere.view.compressed_keys,
                        expected->view.compressed_keys, expected->n_records * key_bytes);
    kv_step_assert_same(step, device, "window biases from images", elsewhere.view.window_bias,
                        expected->view.window_bias, expected->n_records * r * sizeof(float));
    op_kv_destroy(&elsewhere);
}

static void test_compress_keys_from_images_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        struct kv_step *step = kv_step_create(&op_cases[i], 44);
        for (int32_t device = 1; device < step->n_devices; device += 2)
            check_compress(step, &step->devices[device], i % 3 == 0 ? 1.0f : 0.5f);
        kv_step_destroy(step);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_over_images_same_bits),
        cmocka_unit_test(test_compress_keys_from_images_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
