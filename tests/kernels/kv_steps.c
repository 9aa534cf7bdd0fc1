/* Steps that the tests of the KV ops share. */
#include "kv_steps.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "reference/reference.h"

struct nosa_step_limits kv_step_limits(const struct op_case *op_case)
{
    struct nosa_step_limits limits = {
        .seqs_max = op_case->n_seqs,
        .n_heads = op_case->n_heads,
        .n_kv_heads = op_case->n_kv_heads,
        .head_dim = op_case->head_dim,
        .k_max = 64,
        .n_max = 64,
        .topk_max = op_case->topk,
        .vocab_max = 16,
        .windows_per_block = NOSA_BLOCK_TOKENS / op_case->kernel_stride,
    };
    for (int32_t seq = 0; seq < op_case->n_seqs; seq++) {
        int32_t context = op_case->seqs[seq].first + op_case->seqs[seq].rows;
        limits.rows_max += op_case->seqs[seq].rows;
        limits.context_max = context > limits.context_max ? context : limits.context_max;
    }
    return limits;
}

struct kv_step *kv_step_create(const struct op_case *op_case, uint64_t seed)
{
    struct kv_step *step = op_alloc(sizeof *step);
    step->op_case = op_case;
    step->fixture = op_fixture_create(op_case, seed);
    step->batch = op_batch_of_case(step->fixture);
    step->qkv = op_batch_qkv(step->fixture, step->batch);
    step->rope = op_batch_rope(step->fixture, step->batch);
    struct nosa_qkv_write_params write =
        op_qkv_write_params(step->fixture, step->batch, &step->fixture->kv, step->qkv, step->rope);
    struct nosa_compress_keys_params compress =
        op_compress_keys_params(step->fixture, step->batch, &step->fixture->kv);
    NOSA_ASSERT(nosa_reference_ops.qkv_write(NULL, &write) == NOSA_OK);
    NOSA_ASSERT(nosa_reference_ops.compress_keys(NULL, &compress) == NOSA_OK);
    struct nosa_step_limits limits = kv_step_limits(op_case);
    step->n_devices = op_devices_open(step->devices, &limits);
    return step;
}

void kv_step_destroy(struct kv_step *step)
{
    op_devices_close(step->devices, step->n_devices);
    free(step->rope);
    free(step->qkv);
    op_batch_destroy(step->batch);
    op_fixture_destroy(step->fixture);
    free(step);
}

struct op_batch *kv_step_row(const struct kv_step *step, int32_t row)
{
    struct op_span span = {step->batch->row_case_seq[row], step->batch->row_pos[row], 1};
    return op_batch_create(step->fixture, &span, 1);
}

void kv_step_assert_same(const struct kv_step *step, const struct op_device *device,
                         const char *what, const void *got, const void *expected, size_t bytes)
{
    const unsigned char *a = got, *b = expected;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i])
            fail_msg("%s, %s: %s differs at byte %zu of %zu", step->op_case->name, device->name,
                     what, i, bytes);
}
