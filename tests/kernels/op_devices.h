/* The CPU devices that op tests compare: every instruction set that this processor has, with one
 * thread and with several. All of them promise the same bits. */
#ifndef NOSA_TESTS_KERNELS_OP_DEVICES_H
#define NOSA_TESTS_KERNELS_OP_DEVICES_H

#include "cpu_device.h"

#define OP_DEVICES_MAX 6

struct op_device {
    struct nosa_device *device;
    struct nosa_stream *stream;
    const struct nosa_op_table *ops;
    char name[32]; /* "AVX2, 3 threads" */
};

/* Opens the devices and reserves scratch for `limits`; aborts on failure. Returns their number. */
int32_t op_devices_open(struct op_device devices[OP_DEVICES_MAX],
                        const struct nosa_step_limits *limits);
void op_devices_close(struct op_device *devices, int32_t count);

/* Packs [n, k] float32 values into a new weight of the device; its data is ended with
 * op_weight_destroy. */
struct nosa_weight op_weight_create(const struct op_device *device, enum nosa_weight_format format,
                                    int32_t n, int32_t k, const float *values);
void op_weight_destroy(const struct op_device *device, struct nosa_weight *weight);

#endif
