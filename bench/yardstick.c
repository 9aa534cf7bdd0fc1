/* oneDNN (2.x C API) as the yardstick for matrix products. */
#include <dlfcn.h>
#include <dnnl.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench.h"

#define REPETITIONS 12
#define COPIES_MAX  1024
#define SECONDS_MAX 0.6 /* of repetitions, once there were three */

struct product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, out;
    dnnl_memory_t weight[COPIES_MAX];
};

static void product_free(struct product *product)
{
    dnnl_memory_destroy(product->x);
    for (int i = 0; i < COPIES_MAX && product->weight[i]; i++)
        dnnl_memory_destroy(product->weight[i]);
    dnnl_memory_destroy(product->out);
    dnnl_primitive_destroy(product->primitive);
    dnnl_primitive_desc_destroy(product->description);
    dnnl_stream_destroy(product->stream);
    dnnl_engine_destroy(product->engine);
}

/* Small positive numbers in bf16; as float32 bits they are harmless too. */
static void fill(dnnl_memory_t memory, const dnnl_memory_desc_t *description)
{
    void *data = NULL;
    if (dnnl_memory_get_data_handle(memory, &data) != dnnl_success || !data)
        return;
    uint16_t *values = data;
    for (size_t i = 0; i < dnnl_memory_desc_get_size(description) / 2; i++)
        values[i] = (uint16_t)(0x3c00 + i % 251);
}

static bool product_create(struct product *product, bool bf16, int32_t rows, int32_t k, int32_t n,
                           int32_t copies)
{
    dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t x, weight, out;
    const dnnl_dims_t x_dims = {rows, k}, weight_dims = {k, n}, out_dims = {rows, n};
    dnnl_matmul_desc_t matmul;
    if (dnnl_engine_create(&product->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&product->stream, product->engine, 0) != dnnl_success ||
        dnnl_memory_desc_init_by_tag(&x, 2, x_dims, type, dnnl_ab) != dnnl_success ||
        dnnl_memory_desc_init_by_tag(&weight, 2, weight_dims, type, dnnl_format_tag_any) !=
            dnnl_success ||
        dnnl_memory_desc_init_by_tag(&out, 2, out_dims, dnnl_f32, dnnl_ab) != dnnl_success ||
        dnnl_matmul_desc_init(&matmul, &x, &weight, NULL, &out) != dnnl_success ||
        dnnl_primitive_desc_create(&product->description, &matmul, NULL, product->engine, NULL) !=
            dnnl_success ||
        dnnl_primitive_create(&product->primitive, product->description) != dnnl_success)
        return false;
    const dnnl_memory_desc_t *packed =
        dnnl_primitive_desc_query_md(product->description, dnnl_query_weights_md, 0);
    if (dnnl_memory_create(&product->x, &x, product->engine, DNNL_MEMORY_ALLOCATE) !=
            dnnl_success ||
        dnnl_memory_create(&product->out, &out, product->engine, DNNL_MEMORY_ALLOCATE) !=
            dnnl_success)
        return false;
    fill(product->x, &x);
    for (int i = 0; i < copies; i++) {
        if (dnnl_memory_create(&product->weight[i], packed, product->engine,
                               DNNL_MEMORY_ALLOCATE) != dnnl_success)
            return false;
        fill(product->weight[i], packed);
    }
    return true;
}

void bench_onednn_set_threads(int32_t threads)
{
    void *symbol = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    void (*set_threads)(int);
    memcpy(&set_threads, &symbol, sizeof symbol);
    if (set_threads)
        set_threads(threads);
}

/* Seconds of one product; negative when oneDNN fails. */
static double run_once(const struct product *product, int32_t copy)
{
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, product->x},
                                         {DNNL_ARG_WEIGHTS, product->weight[copy]},
                                         {DNNL_ARG_DST, product->out}};
    uint64_t start = nosa_monotonic_ns();
    if (dnnl_primitive_execute(product->primitive, product->stream, 3, arguments) != dnnl_success ||
        dnnl_stream_wait(product->stream) != dnnl_success)
        return -1;
    return nosa_seconds_between(start, nosa_monotonic_ns());
}

double bench_onednn_gflops(bool bf16, int32_t rows, int32_t k, int32_t n, int32_t copies)
{
    struct product product = {0};
    double best_s = 0, total_s = 0;
    copies = copies < COPIES_MAX ? copies : COPIES_MAX;
    if (product_create(&product, bf16, rows, k, n, copies)) {
        int32_t repetitions = copies > REPETITIONS ? copies : REPETITIONS;
        for (int32_t i = 0; i < repetitions && (i < 3 || total_s < SECONDS_MAX); i++) {
            double seconds = run_once(&product, i % copies);
            if (seconds <= 0)
                break;
            best_s = i == 0 || seconds < best_s ? seconds : best_s;
            total_s += seconds;
        }
    }
    product_free(&product);
    return best_s > 0 ? 2.0 * rows * k * n / best_s / 1e9 : 0;
}
