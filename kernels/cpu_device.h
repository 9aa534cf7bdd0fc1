/*
 * The CPU backend.
 *
 * Streams run their work at once, in the calling thread together with the device's thread pool.
 * Every op exists once in source and is compiled for each instruction set; the best that the
 * processor has is chosen at creation. All of them compute the same bits.
 */
#ifndef NOSA_KERNELS_CPU_DEVICE_H
#define NOSA_KERNELS_CPU_DEVICE_H

#include "device.h"

enum nosa_cpu_isa {
    NOSA_CPU_ISA_BEST = 0, /* the best of those below that this processor has */
    NOSA_CPU_ISA_PORTABLE = 1,
    NOSA_CPU_ISA_AVX2 = 2,   /* with FMA and F16C */
    NOSA_CPU_ISA_AVX512 = 3, /* F, BW, DQ, VL */
};

struct nosa_cpu_options {
    int32_t threads; /* including the calling one; 0: the cores this process may use */
    enum nosa_cpu_isa isa;
};

/* Creates the device and starts its threads. Fails with UNSUPPORTED when the processor lacks the
 * instruction set asked for. The caller ends it through table->destroy, from the thread that
 * enqueued on it. */
enum nosa_status nosa_cpu_device_create(const struct nosa_cpu_options *options,
                                        struct nosa_device **out, struct nosa_error *error);

/* Whether this processor (and build) has the instruction set. */
bool nosa_cpu_isa_available(enum nosa_cpu_isa isa);

/* "AVX-512", "AVX2", "portable". */
const char *nosa_cpu_isa_name(enum nosa_cpu_isa isa);

/* Cores that this process may run on: affinity mask and control-group quota. At least 1. */
int32_t nosa_cpu_count(void);

#endif
