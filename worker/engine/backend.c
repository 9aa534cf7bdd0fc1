#include "engine/backend.h"

#include <stdio.h>

static int32_t all_threads(const struct nosa_device_spec *spec, int32_t n_ranks)
{
    int32_t threads = spec->threads > 0 ? spec->threads : nosa_cpu_count();
    return threads > n_ranks ? threads : n_ranks;
}

enum nosa_status nosa_backend_device_create(const struct nosa_device_spec *spec, int32_t rank,
                                            int32_t n_ranks, struct nosa_device **out,
                                            struct nosa_error *error)
{
    NOSA_ASSERT(spec->kind == NOSA_DEVICE_CPU);
    int32_t threads = all_threads(spec, n_ranks);
    struct nosa_cpu_options options = {
        .threads = threads / n_ranks + (rank < threads % n_ranks),
        .isa = spec->isa,
    };
    return nosa_cpu_device_create(&options, out, error);
}

enum nosa_status nosa_backend_comms_create(const struct nosa_device_spec *spec, int32_t n_ranks,
                                           size_t bytes_max, struct nosa_comm **out,
                                           struct nosa_error *error)
{
    NOSA_ASSERT(spec->kind == NOSA_DEVICE_CPU);
    return nosa_comm_threads_create(n_ranks, bytes_max, out, error);
}

void nosa_backend_describe(const struct nosa_device_spec *spec, int32_t n_ranks,
                           struct nosa_device *first, char *text, size_t text_bytes)
{
    char device[128];
    first->table->describe(first, device, sizeof device);
    int32_t threads = all_threads(spec, n_ranks);
    if (n_ranks == 1)
        snprintf(text, text_bytes, "%s", device);
    else if (threads % n_ranks == 0)
        snprintf(text, text_bytes, "%d ranks x %s", n_ranks, device);
    else
        snprintf(text, text_bytes, "%d ranks x %s (%d in all)", n_ranks, device, threads);
}
