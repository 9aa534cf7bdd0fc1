/* Steps that the tests of the KV ops share: devices for a case, and a fixture advanced to where a
 * batch's rows are in the cache. */
#ifndef NOSA_TESTS_KERNELS_KV_STEPS_H
#define NOSA_TESTS_KERNELS_KV_STEPS_H

#include "op_cases.h"
#include "op_devices.h"

/* A case whose batch has been written and compressed by the references. */
struct kv_step {
    const struct op_case *op_case;
    struct op_fixture *fixture;
    struct op_batch *batch;
    float *qkv; /* rotated */
    float *rope;
    struct op_device devices[OP_DEVICES_MAX];
    int32_t n_devices;
};

struct kv_step *kv_step_create(const struct op_case *op_case, uint64_t seed);
void kv_step_destroy(struct kv_step *step);

/* Largest sizes that the case needs of a device. */
struct nosa_step_limits kv_step_limits(const struct op_case *op_case);

/* A batch of the one row `row` of the step's batch; ended with op_batch_destroy. */
struct op_batch *kv_step_row(const struct kv_step *step, int32_t row);

/* Fails the test, naming case and device, unless both arrays hold the same bytes. */
void kv_step_assert_same(const struct kv_step *step, const struct op_device *device,
                         const char *what, const void *got, const void *expected, size_t bytes);

#endif
