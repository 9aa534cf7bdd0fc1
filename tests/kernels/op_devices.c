/* Opening the devices that op tests compare. */
#include "op_devices.h"

#include <stdio.h>
#include <string.h>

/* A sanitizer makes the portable code many times slower: it then runs with several threads only. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW_PORTABLE true
#else
#define SLOW_PORTABLE false
#endif

static void open_one(struct op_device *device, enum nosa_cpu_isa isa, int32_t threads,
                     const struct nosa_step_limits *limits)
{
    struct nosa_cpu_options options = {.threads = threads, .isa = isa};
    size_t bytes = 0;
    memset(device, 0, sizeof *device);
    NOSA_ASSERT(nosa_cpu_device_create(&options, &device->device, NULL) == NOSA_OK);
    const struct nosa_device_table *table = device->device->table;
    NOSA_ASSERT(table->stream_create(device->device, &device->stream, NULL) == NOSA_OK);
    NOSA_ASSERT(table->reserve(device->device, limits, &bytes, NULL) == NOSA_OK);
    device->ops = table->ops;
    snprintf(device->name, sizeof device->name, "%s, %d threads", nosa_cpu_isa_name(isa), threads);
}

int32_t op_devices_open(struct op_device devices[OP_DEVICES_MAX],
                        const struct nosa_step_limits *limits)
{
    static const enum nosa_cpu_isa isas[] = {NOSA_CPU_ISA_PORTABLE, NOSA_CPU_ISA_AVX2,
                                             NOSA_CPU_ISA_AVX512};
    int32_t count = 0;
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        if (!nosa_cpu_isa_available(isas[i]))
            continue;
        if (!SLOW_PORTABLE || isas[i] != NOSA_CPU_ISA_PORTABLE)
            open_one(&devices[count++], isas[i], 1, limits);
        open_one(&devices[count++], isas[i], 3, limits);
    }
    return count;
}

void op_devices_close(struct op_device *devices, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const struct nosa_device_table *table = devices[i].device->table;
        table->stream_destroy(devices[i].stream);
        table->destroy(devices[i].device);
    }
}

struct nosa_weight op_weight_create(const struct op_device *device, enum nosa_weight_format format,
                                    int32_t n, int32_t k, const float *values)
{
    const struct nosa_device_table *table = device->device->table;
    struct nosa_weight weight = {.format = format, .n = n, .k = k};
    weight.bytes = nosa_weight_packed_bytes(format, n, k);
    NOSA_ASSERT(table->memory_alloc(device->device, NOSA_MEMORY_DEVICE, weight.bytes, &weight.data,
                                    NULL) == NOSA_OK);
    NOSA_ASSERT(table->weight_pack(device->device, &weight, NOSA_PLACE_ROWS, 0, n, k, 0,
                                   NOSA_DTYPE_F32, values, NULL) == NOSA_OK);
    return weight;
}

void op_weight_destroy(const struct op_device *device, struct nosa_weight *weight)
{
    device->device->table->memory_free(device->device, NOSA_MEMORY_DEVICE, weight->data,
                                       weight->bytes);
    weight->data = NULL;
}
