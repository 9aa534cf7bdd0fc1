/* Shapes of models, and the device on which a shape's ops are timed. */
#include <string.h>

#include "base/clock.h"
#include "cpu_device.h"
#include "kernel_bench_internal.h"

#define SECONDS_ENOUGH  0.3 /* of repetitions, if there were five */
#define SECONDS_MAX     1.0 /* of repetitions, if there were three */
#define REPETITIONS_MAX 5000

const struct kernel_shape kernel_shapes[] = {
    {.name = "demo model",
     .hidden = 576,
     .n_heads = 9,
     .n_kv_heads = 3,
     .head_dim = 64,
     .intermediate = 1536,
     .vocab = 49152,
     .sparse = {.kernel_size = 4,
                .kernel_stride = 2,
                .init_blocks = 1,
                .block_size = 64,
                .window_size = 384,
                .topk = 32,
                .select_blocks = 9}},
    {.name = "8B",
     .hidden = 4096,
     .n_heads = 32,
     .n_kv_heads = 2,
     .head_dim = 128,
     .intermediate = 16384,
     .vocab = 73448,
     .sparse = {.kernel_size = 32,
                .kernel_stride = 16,
                .init_blocks = 1,
                .block_size = 64,
                .window_size = 1024,
                .topk = 64,
                .select_blocks = 16}},
};

const int kernel_shape_count = (int)(sizeof kernel_shapes / sizeof *kernel_shapes);

enum nosa_status kernel_device_open(struct kernel_bench *bench, struct nosa_error *error)
{
    const struct kernel_shape *shape = bench->shape;
    struct nosa_cpu_options options = {.threads = bench->limits.threads};
    int32_t wide = 2 * shape->intermediate;
    struct nosa_step_limits limits = {
        .rows_max = KERNEL_ROWS_MAX,
        .seqs_max = 1,
        .context_max = KERNEL_CONTEXT_MAX,
        .n_heads = shape->n_heads,
        .n_kv_heads = shape->n_kv_heads,
        .head_dim = shape->head_dim,
        .k_max = shape->intermediate > shape->hidden ? shape->intermediate : shape->hidden,
        .n_max = wide > shape->vocab ? wide : shape->vocab,
        .topk_max = (int32_t)shape->sparse.topk,
        .vocab_max = shape->vocab,
        .windows_per_block = NOSA_BLOCK_TOKENS / (int32_t)shape->sparse.kernel_stride,
        .kv_pools_max = KERNEL_POOLS_MAX,
        .kv_slots_max = KERNEL_SLOTS_MAX,
        .kv_fetch_max = KERNEL_POOLS_MAX * KERNEL_SLOTS_MAX,
    };
    size_t bytes;
    NOSA_TRY(nosa_cpu_device_create(&options, &bench->device, error));
    NOSA_TRY(bench->device->table->reserve(bench->device, &limits, &bytes, error));
    return bench->device->table->stream_create(bench->device, &bench->stream, error);
}

void kernel_device_close(struct kernel_bench *bench)
{
    if (bench->stream)
        bench->device->table->stream_destroy(bench->stream);
    if (bench->device)
        bench->device->table->destroy(bench->device);
    bench->stream = NULL;
    bench->device = NULL;
}

enum nosa_status kernel_floats(struct kernel_bench *bench, size_t n, float **out,
                               struct nosa_error *error)
{
    void *memory = NULL;
    *out = NULL;
    NOSA_TRY(bench->device->table->memory_alloc(bench->device, NOSA_MEMORY_DEVICE,
                                                n * sizeof(float), &memory, error));
    *out = memory;
    uint64_t state = 3;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        (*out)[i] = ((float)(state >> 40) / 8388608.0f - 1.0f) * 1.7320508f;
    }
    return NOSA_OK;
}

void kernel_floats_free(struct kernel_bench *bench, float *floats, size_t n)
{
    bench->device->table->memory_free(bench->device, NOSA_MEMORY_DEVICE, floats, n * sizeof(float));
}

enum nosa_status kernel_time(struct kernel_bench *bench, kernel_call call, void *context,
                             double *best_s, struct nosa_error *error)
{
    double total_s = 0;
    *best_s = 0;
    for (int32_t i = -1; i < REPETITIONS_MAX; i++) {
        uint64_t start = nosa_monotonic_ns();
        enum nosa_status status = call(context, i + 1);
        if (status != NOSA_OK)
            return nosa_error_set(error, status, "an op refused a case of the benchmark");
        NOSA_TRY(bench->device->table->stream_synchronize(bench->stream, error));
        double seconds = nosa_seconds_between(start, nosa_monotonic_ns());
        if (i < 0)
            continue;
        *best_s = i == 0 || seconds < *best_s ? seconds : *best_s;
        total_s += seconds;
        if ((i >= 4 && total_s > SECONDS_ENOUGH) || (i >= 2 && total_s > SECONDS_MAX))
            break;
    }
    return NOSA_OK;
}
