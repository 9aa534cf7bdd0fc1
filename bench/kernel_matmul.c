/* Matrix products at a model's shapes, beside oneDNN's of the same shape and type. */
#include <stdio.h>
#include <string.h>

#include "kernel_bench_internal.h"

#define WEIGHT_BYTES_MAX ((size_t)640 << 20) /* larger ones tell nothing that others do not */
#define FEW_ROWS         8 /* up to here reading the weights is the cost, beyond it the arithmetic */
#define WARM_COPIES      4

static const int32_t row_counts[] = {1, FEW_ROWS, 64, KERNEL_ROWS_MAX};

struct product {
    const char *name;
    int32_t k, n;
    enum nosa_matmul_epilogue epilogue;
    bool few_rows_only; /* the output head sees sampled rows alone */
};

/* Operands of one product; the weights are `copies` equal ones, each read once in a round. */
struct operands {
    struct kernel_bench *bench;
    struct nosa_weight weight; /* data: that of the first copy, owned */
    int32_t copies;
    int32_t used; /* of them, by the running case */
    struct nosa_matmul_params params;
    float *x, *out;
    size_t x_floats, out_floats;
};

/* The rows of x serve as the weights' values, over and over. */
static enum nosa_status pack(struct operands *operands, struct nosa_weight *weight,
                             const struct product *product, struct nosa_error *error)
{
    struct nosa_device *device = operands->bench->device;
    int32_t rows = (int32_t)(operands->x_floats / (size_t)product->k);
    for (int32_t first = 0; first < product->n; first += rows) {
        int32_t left = product->n - first;
        NOSA_TRY(device->table->weight_pack(device, weight, NOSA_PLACE_ROWS, first,
                                            left < rows ? left : rows, product->k, 0,
                                            NOSA_DTYPE_F32, operands->x, error));
    }
    return NOSA_OK;
}

static enum nosa_status open_operands(struct operands *operands, const struct product *product,
                                      enum nosa_weight_format format, struct nosa_error *error)
{
    struct kernel_bench *bench = operands->bench;
    size_t bytes = (nosa_weight_packed_bytes(format, product->n, product->k) + 63) / 64 * 64;
    int32_t n_out = product->epilogue == NOSA_MATMUL_SWIGLU ? product->n / 2 : product->n;
    size_t rows_out = product->few_rows_only ? FEW_ROWS : KERNEL_ROWS_MAX;
    operands->copies = (int32_t)((KERNEL_COLD_BYTES + bytes - 1) / bytes);
    operands->weight =
        (struct nosa_weight){.format = format, .n = product->n, .k = product->k, .bytes = bytes};
    operands->x_floats = KERNEL_ROWS_MAX * (size_t)product->k;
    operands->out_floats = rows_out * (size_t)n_out;
    NOSA_TRY(kernel_floats(bench, operands->x_floats, &operands->x, error));
    NOSA_TRY(kernel_floats(bench, operands->out_floats, &operands->out, error));
    NOSA_TRY(bench->device->table->memory_alloc(bench->device, NOSA_MEMORY_DEVICE,
                                                bytes * (size_t)operands->copies,
                                                &operands->weight.data, error));
    NOSA_TRY(pack(operands, &operands->weight, product, error));
    for (int32_t i = 1; i < operands->copies; i++)
        memcpy((char *)operands->weight.data + (size_t)i * bytes, operands->weight.data, bytes);
    operands->params = (struct nosa_matmul_params){
        .weight = &operands->weight,
        .x = operands->x,
        .x_stride = product->k,
        .epilogue = product->epilogue,
        .n_out = n_out,
        .out = operands->out,
        .out_stride = n_out,
    };
    return NOSA_OK;
}

static void close_operands(struct operands *operands)
{
    struct nosa_device *device = operands->bench->device;
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, operands->weight.data,
                               operands->weight.bytes * (size_t)operands->copies);
    kernel_floats_free(operands->bench, operands->out, operands->out_floats);
    kernel_floats_free(operands->bench, operands->x, operands->x_floats);
}

static enum nosa_status call_matmul(void *context, int32_t repetition)
{
    struct operands *operands = context;
    struct nosa_weight weight = operands->weight;
    struct nosa_matmul_params params = operands->params;
    size_t copy = (size_t)(repetition % operands->used);
    weight.data = (char *)weight.data + copy * weight.bytes;
    params.weight = &weight;
    return operands->bench->device->table->ops->matmul(operands->bench->stream, &params);
}

static enum nosa_status time_rows(struct operands *operands, const struct product *product,
                                  int32_t rows, struct nosa_error *error)
{
    struct kernel_bench *bench = operands->bench;
    bool bf16 = operands->weight.format == NOSA_WEIGHT_BF16;
    struct kernel_result result = {.op = "matmul"};
    operands->params.n_rows = rows;
    operands->used =
        rows <= FEW_ROWS || operands->copies < WARM_COPIES ? operands->copies : WARM_COPIES;
    NOSA_TRY(kernel_time(bench, call_matmul, operands, &result.seconds, error));
    snprintf(result.detail, sizeof result.detail, "%s %dx%d %s, %d row%s", product->name,
             product->k, product->n, bf16 ? "bf16" : "f32", rows, rows == 1 ? "" : "s");
    result.operations = 2.0 * rows * product->k * product->n;
    result.bytes = (double)operands->weight.bytes +
                   sizeof(float) * (double)rows * (product->k + operands->params.n_out);
    result.onednn_gflops = bench_onednn_gflops(bf16, rows, product->k, product->n, operands->used);
    kernel_report(bench, &result);
    return NOSA_OK;
}

static enum nosa_status time_product(struct kernel_bench *bench, const struct product *product,
                                     enum nosa_weight_format format, struct nosa_error *error)
{
    if (nosa_weight_packed_bytes(format, product->n, product->k) > WEIGHT_BYTES_MAX)
        return NOSA_OK;
    struct operands operands = {.bench = bench};
    enum nosa_status status = open_operands(&operands, product, format, error);
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts && status == NOSA_OK; i++)
        if (!product->few_rows_only || row_counts[i] <= FEW_ROWS)
            status = time_rows(&operands, product, row_counts[i], error);
    close_operands(&operands);
    return status;
}

enum nosa_status kernel_bench_matmul(struct kernel_bench *bench, struct nosa_error *error)
{
    const struct kernel_shape *shape = bench->shape;
    int32_t heads = shape->n_heads * shape->head_dim;
    int32_t qkv = heads + 2 * shape->n_kv_heads * shape->head_dim;
    const struct product products[] = {
        {"qkv", shape->hidden, qkv, NOSA_MATMUL_STORE, false},
        {"o", heads, shape->hidden, NOSA_MATMUL_ADD, false},
        {"gate, up", shape->hidden, 2 * shape->intermediate, NOSA_MATMUL_SWIGLU, false},
        {"down", shape->intermediate, shape->hidden, NOSA_MATMUL_ADD, false},
        {"head", shape->hidden, shape->vocab, NOSA_MATMUL_STORE, true},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        NOSA_TRY(time_product(bench, &products[i], NOSA_WEIGHT_BF16, error));
        NOSA_TRY(time_product(bench, &products[i], NOSA_WEIGHT_F32, error));
    }
    return NOSA_OK;
}
