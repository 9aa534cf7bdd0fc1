/*
 * Which devices an engine runs on: the one place that knows the backends by name.
 *
 * A spec says what a whole tensor-parallel group runs on; each rank's device, and the communicator
 * between them, are made from it here. Everything else of the engine sees device.h and comm.h.
 */
#ifndef NOSA_ENGINE_BACKEND_H
#define NOSA_ENGINE_BACKEND_H

#include "comm/comm.h"
#include "cpu_device.h"
#include "device.h"

enum nosa_device_kind {
    NOSA_DEVICE_CPU = 0,
};

/* Zero-initialised: the CPU with every core of the process. */
struct nosa_device_spec {
    enum nosa_device_kind kind;
    int32_t threads;       /* over all ranks, at least one each; 0: the cores of the process */
    enum nosa_cpu_isa isa; /* of the CPU backend */
};

/* Creates the device of one rank, from the thread that will run it. Threads are dealt as evenly as
 * they go, the first ranks having one more. */
enum nosa_status nosa_backend_device_create(const struct nosa_device_spec *spec, int32_t rank,
                                            int32_t n_ranks, struct nosa_device **out,
                                            struct nosa_error *error);

/* Makes the communicator of n_ranks ranks, at least 2; sizes and ownership as in comm.h. */
enum nosa_status nosa_backend_comms_create(const struct nosa_device_spec *spec, int32_t n_ranks,
                                           size_t bytes_max, struct nosa_comm **out,
                                           struct nosa_error *error);

/* One line for people about the whole group, whose rank 0 has `first`. */
void nosa_backend_describe(const struct nosa_device_spec *spec, int32_t n_ranks,
                           struct nosa_device *first, char *text, size_t text_bytes);

#endif
