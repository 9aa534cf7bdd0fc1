#include "engine/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/rope.h"

#define ALIGNMENT 64

struct loader {
    const struct nosa_checkpoint *checkpoint;
    const struct nosa_model_config *config;
    const struct nosa_shard *shard;
    struct nosa_device *device;
    struct nosa_model_weights *out;
    enum nosa_weight_format format;
    nosa_load_progress progress;
    void *progress_context;
    uint64_t bytes_done;
    /* host image of the vectors, uploaded at the end */
    char *image; /* owned, `out->vector_bytes` bytes */
    size_t image_used;
};

static enum nosa_dtype tensor_type(const struct nosa_tensor *tensor)
{
    NOSA_ASSERT(tensor->dtype != NOSA_TENSOR_OTHER);
    return tensor->dtype == NOSA_TENSOR_F32    ? NOSA_DTYPE_F32
           : tensor->dtype == NOSA_TENSOR_BF16 ? NOSA_DTYPE_BF16
                                               : NOSA_DTYPE_F16;
}

/* The tensor's values at an address that is aligned for its type: the mapping, or *copy (owned by
 * the caller). Fails when the file became shorter since it was checked. */
static enum nosa_status tensor_values(const struct loader *loader, const struct nosa_tensor *tensor,
                                      const void **values, void **copy, struct nosa_error *error)
{
    *copy = NULL;
    NOSA_TRY(nosa_checkpoint_check(loader->checkpoint, tensor, error));
    *values = tensor->data;
    if ((uintptr_t)tensor->data % (uintptr_t)nosa_dtype_bytes(tensor_type(tensor)) == 0)
        return NOSA_OK;
    *copy = malloc(tensor->bytes);
    if (!*copy)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to align tensor %s",
                              tensor->name);
    memcpy(*copy, tensor->data, tensor->bytes);
    *values = *copy;
    return NOSA_OK;
}

static void tensor_done(struct loader *loader, const struct nosa_tensor *tensor)
{
    nosa_checkpoint_release(loader->checkpoint, tensor);
    loader->bytes_done += tensor->bytes;
    if (loader->progress)
        loader->progress(loader->progress_context, loader->bytes_done,
                         nosa_checkpoint_weight_bytes(loader->checkpoint));
}

/* ---- vectors -------------------------------------------------------------------------------- */

static size_t padded(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Takes `bytes` of the image; *offset is kept as a "pointer" until the upload adds the base. */
static void *image_take(struct loader *loader, size_t bytes, size_t *offset)
{
    *offset = loader->image_used;
    loader->image_used += padded(bytes);
    NOSA_ASSERT(loader->image_used <= loader->out->vector_bytes);
    return loader->image + *offset;
}

/* `count` elements from `first` of a one-dimensional tensor, as float32. */
static enum nosa_status image_add_tensor(struct loader *loader, enum nosa_tensor_role role,
                                         uint32_t layer, int64_t first, int32_t count,
                                         const float **out, struct nosa_error *error)
{
    const struct nosa_tensor *tensor = nosa_checkpoint_tensor(loader->checkpoint, role, layer);
    const void *values;
    void *copy;
    NOSA_TRY(tensor_values(loader, tensor, &values, &copy, error));
    size_t offset;
    float *to = image_take(loader, sizeof(float) * (size_t)count, &offset);
    for (int32_t i = 0; i < count; i++)
        to[i] = nosa_dtype_load(tensor_type(tensor), values, first + i);
    *out = (const float *)(loader->out->vectors + offset);
    free(copy);
    tensor_done(loader, tensor);
    return NOSA_OK;
}

/* ---- matrices ------------------------------------------------------------------------------- */

static size_t matrix_bytes(enum nosa_weight_format format, int32_t n, int32_t k)
{
    return padded(nosa_weight_packed_bytes(format, n, k));
}

static int32_t gated_columns(int32_t outputs)
{
    return (outputs + 15) / 16 * 32;
}

static int32_t qkv_columns(const struct nosa_model_config *config, const struct nosa_shard *shard)
{
    int32_t heads = shard->head_count + 2 * shard->kv_head_count;
    int32_t fold = config->has_eviction_head ? 2 * shard->kv_head_count : 0;
    return heads * (int32_t)config->head_dim + fold;
}

static void plan_matrix(struct nosa_model_weights *out, struct nosa_weight *weight,
                        enum nosa_weight_format format, int32_t n, int32_t k)
{
    *weight = (struct nosa_weight){.format = format, .n = n, .k = k};
    weight->bytes = nosa_weight_packed_bytes(format, n, k);
    out->matrix_bytes += matrix_bytes(format, n, k);
    out->n_max = n > out->n_max ? n : out->n_max;
    out->k_max = k > out->k_max ? k : out->k_max;
}

/* Sizes of everything, in the order in which a step reads it. */
static void plan_sizes(struct loader *loader)
{
    const struct nosa_model_config *config = loader->config;
    const struct nosa_shard *shard = loader->shard;
    struct nosa_model_weights *out = loader->out;
    int32_t hidden = (int32_t)config->hidden;
    int32_t qkv = qkv_columns(config, shard);
    for (uint32_t i = 0; i < config->n_layers; i++) {
        struct nosa_layer_weights *layer = &out->layers[i];
        plan_matrix(out, &layer->qkv, loader->format, qkv, hidden);
        plan_matrix(out, &layer->o, loader->format, hidden,
                    shard->output_head_count * (int32_t)config->head_dim);
        plan_matrix(out, &layer->gate_up, loader->format, gated_columns(shard->intermediate_count),
                    hidden);
        plan_matrix(out, &layer->down, loader->format, hidden, shard->intermediate_count);
    }
    plan_matrix(out, &out->output, loader->format, shard->vocab_count, hidden);
    if (!config->tie_word_embeddings)
        plan_matrix(out, &out->embedding, loader->format, shard->vocab_count, hidden);
    size_t layer_vectors = 3 * padded(sizeof(float) * (size_t)hidden) +
                           padded(sizeof(float) * (size_t)qkv) +
                           padded(sizeof(float) * (size_t)shard->kv_head_count);
    out->vector_bytes = config->n_layers * layer_vectors + padded(sizeof(float) * (size_t)hidden) +
                        padded(sizeof(double) * (size_t)(config->head_dim / 2));
}

static void place_matrix(struct nosa_weight *weight, char *base, size_t *used)
{
    weight->data = base + *used;
    *used += padded(weight->bytes);
}

static void place_matrices(struct loader *loader)
{
    struct nosa_model_weights *out = loader->out;
    size_t used = 0;
    for (uint32_t i = 0; i < loader->config->n_layers; i++) {
        struct nosa_layer_weights *layer = &out->layers[i];
        place_matrix(&layer->qkv, out->matrices, &used);
        place_matrix(&layer->o, out->matrices, &used);
        place_matrix(&layer->gate_up, out->matrices, &used);
        place_matrix(&layer->down, out->matrices, &used);
    }
    place_matrix(&out->output, out->matrices, &used);
    if (loader->config->tie_word_embeddings)
        out->embedding = out->output;
    else
        place_matrix(&out->embedding, out->matrices, &used);
    NOSA_ASSERT(used == out->matrix_bytes);
}

/* Rows [row_first, row_first + rows) of a two-dimensional tensor, inputs from k_first on. */
static enum nosa_status pack_tensor(struct loader *loader, struct nosa_weight *weight,
                                    enum nosa_weight_placement placement, int32_t column_first,
                                    enum nosa_tensor_role role, uint32_t layer, int64_t row_first,
                                    int32_t rows, int64_t k_first, struct nosa_error *error)
{
    const struct nosa_tensor *tensor = nosa_checkpoint_tensor(loader->checkpoint, role, layer);
    const void *values;
    void *copy;
    NOSA_TRY(tensor_values(loader, tensor, &values, &copy, error));
    enum nosa_dtype type = tensor_type(tensor);
    int64_t stride = (int64_t)tensor->shape[1];
    const char *source = (const char *)values + row_first * stride * nosa_dtype_bytes(type);
    enum nosa_status status =
        loader->device->table->weight_pack(loader->device, weight, placement, column_first, rows,
                                           stride, k_first, type, source, error);
    free(copy);
    if (status == NOSA_OK)
        tensor_done(loader, tensor);
    return status;
}

/* ---- eviction head folded into QKV ---------------------------------------------------------- */

static float round_to_format(enum nosa_weight_format format, double value)
{
    switch (format) {
    case NOSA_WEIGHT_F32: return (float)value;
    case NOSA_WEIGHT_BF16: return nosa_bf16_to_f32(nosa_f32_to_bf16((float)value));
    case NOSA_WEIGHT_F16: return nosa_f16_to_f32(nosa_f32_to_f16((float)value));
    }
    NOSA_ASSERT(!"weight format");
    return 0;
}

struct fold {
    int32_t heads;  /* KV heads of this rank */
    int32_t hidden; /* H */
    double *rows;   /* [heads][hidden]: delta W_v */
    double *bias;   /* [heads]: delta . b_v + delta_b */
    float *parts;   /* [2 * heads][hidden]: high rows, low rows */
};

static void fold_free(struct fold *fold)
{
    free(fold->rows);
    free(fold->bias);
    free(fold->parts);
}

/* Adds delta[h][j] * W_v[j] of every value dimension j of the whole model. */
static enum nosa_status fold_rows(struct loader *loader, uint32_t layer, struct fold *fold,
                                  struct nosa_error *error)
{
    const struct nosa_tensor *delta =
        nosa_checkpoint_tensor(loader->checkpoint, NOSA_TENSOR_DELTA, layer);
    const struct nosa_tensor *value =
        nosa_checkpoint_tensor(loader->checkpoint, NOSA_TENSOR_V, layer);
    const void *delta_values = NULL, *v = NULL;
    void *delta_copy = NULL, *v_copy = NULL;
    enum nosa_status status = tensor_values(loader, delta, &delta_values, &delta_copy, error);
    if (status == NOSA_OK)
        status = tensor_values(loader, value, &v, &v_copy, error);
    if (status != NOSA_OK)
        goto cleanup;
    int32_t value_dims = (int32_t)value->shape[0];
    for (int32_t j = 0; j < value_dims; j++) {
        for (int32_t h = 0; h < fold->heads; h++) {
            double weight =
                nosa_dtype_load(tensor_type(delta), delta_values,
                                (int64_t)(loader->shard->kv_head_first + h) * value_dims + j);
            double *row = fold->rows + (int64_t)h * fold->hidden;
            for (int32_t i = 0; i < fold->hidden; i++)
                row[i] +=
                    weight * nosa_dtype_load(tensor_type(value), v, (int64_t)j * fold->hidden + i);
        }
    }
cleanup:
    free(delta_copy);
    free(v_copy);
    return status;
}

static enum nosa_status fold_bias(struct loader *loader, uint32_t layer, struct fold *fold,
                                  struct nosa_error *error)
{
    const struct nosa_checkpoint *checkpoint = loader->checkpoint;
    const struct nosa_tensor *tensors[] = {
        nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_DELTA, layer),
        nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_V_BIAS, layer),
        nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_DELTA_BIAS, layer)};
    const void *values[3] = {0};
    void *copies[3] = {0};
    enum nosa_status status = NOSA_OK;
    for (int i = 0; i < 3 && status == NOSA_OK; i++)
        status = tensor_values(loader, tensors[i], &values[i], &copies[i], error);
    if (status == NOSA_OK) {
        int64_t value_dims = (int64_t)tensors[1]->shape[0];
        for (int32_t h = 0; h < fold->heads; h++) {
            int64_t head = loader->shard->kv_head_first + h;
            double sum = nosa_dtype_load(tensor_type(tensors[2]), values[2], head);
            for (int64_t j = 0; j < value_dims; j++)
                sum += (double)nosa_dtype_load(tensor_type(tensors[0]), values[0],
                                               head * value_dims + j) *
                       nosa_dtype_load(tensor_type(tensors[1]), values[1], j);
            fold->bias[h] = sum;
        }
    }
    for (int i = 0; i < 3; i++)
        free(copies[i]);
    return status;
}

/* Forms the high and low parts; what the format cannot hold is refused. */
static enum nosa_status split_fold(enum nosa_weight_format format, uint32_t layer,
                                   struct fold *fold, struct nosa_error *error)
{
    size_t count = (size_t)fold->heads * (size_t)fold->hidden;
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        fold->parts[i] = round_to_format(format, fold->rows[i]);
        fold->parts[count + i] = (float)(fold->rows[i] - (double)fold->parts[i]);
        finite = finite && isfinite(fold->parts[i]) && isfinite(fold->parts[count + i]);
    }
    for (int32_t h = 0; h < fold->heads; h++)
        finite = finite && isfinite((float)fold->bias[h]);
    if (!finite)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "layer %u: the eviction head times the value projection exceeds what "
                              "the weights' type can hold",
                              layer);
    return NOSA_OK;
}

/* Packs the folded rows behind the v heads; *bias_out [2 * heads] gets what the QKV bias holds
 * there (zero without attention_bias). */
static enum nosa_status pack_fold(struct loader *loader, uint32_t layer, struct nosa_weight *qkv,
                                  double *bias_out, struct nosa_error *error)
{
    const struct nosa_model_config *config = loader->config;
    struct fold fold = {.heads = loader->shard->kv_head_count, .hidden = (int32_t)config->hidden};
    size_t count = (size_t)fold.heads * (size_t)fold.hidden;
    fold.rows = calloc(count, sizeof *fold.rows);
    fold.bias = calloc((size_t)fold.heads, sizeof *fold.bias);
    fold.parts = calloc(2 * count, sizeof *fold.parts);
    enum nosa_status status = NOSA_OK;
    if (!fold.rows || !fold.bias || !fold.parts)
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to fold the eviction head");
    if (status == NOSA_OK)
        status = fold_rows(loader, layer, &fold, error);
    if (status == NOSA_OK && config->attention_bias)
        status = fold_bias(loader, layer, &fold, error);
    if (status != NOSA_OK)
        goto cleanup;
    tensor_done(loader, nosa_checkpoint_tensor(loader->checkpoint, NOSA_TENSOR_DELTA, layer));
    if (config->attention_bias)
        tensor_done(loader,
                    nosa_checkpoint_tensor(loader->checkpoint, NOSA_TENSOR_DELTA_BIAS, layer));
    status = split_fold(loader->format, layer, &fold, error);
    if (status != NOSA_OK)
        goto cleanup;
    int32_t first = qkv->n - 2 * fold.heads;
    status = loader->device->table->weight_pack(loader->device, qkv, NOSA_PLACE_ROWS, first,
                                                2 * fold.heads, fold.hidden, 0, NOSA_DTYPE_F32,
                                                fold.parts, error);
    for (int32_t h = 0; h < fold.heads; h++) {
        bias_out[h] = fold.bias[h];
        bias_out[fold.heads + h] = 0;
    }
cleanup:
    fold_free(&fold);
    return status;
}

/* ---- a layer -------------------------------------------------------------------------------- */

/* Copies a head range of a bias vector into the QKV bias. */
static enum nosa_status qkv_bias_part(struct loader *loader, enum nosa_tensor_role role,
                                      uint32_t layer, int64_t first, int32_t count, float *to,
                                      struct nosa_error *error)
{
    const struct nosa_tensor *tensor = nosa_checkpoint_tensor(loader->checkpoint, role, layer);
    const void *values;
    void *copy;
    NOSA_TRY(tensor_values(loader, tensor, &values, &copy, error));
    for (int32_t i = 0; i < count; i++)
        to[i] = nosa_dtype_load(tensor_type(tensor), values, first + i);
    free(copy);
    tensor_done(loader, tensor);
    return NOSA_OK;
}

static enum nosa_status load_qkv(struct loader *loader, uint32_t index, struct nosa_error *error)
{
    const struct nosa_model_config *config = loader->config;
    const struct nosa_shard *shard = loader->shard;
    struct nosa_layer_weights *layer = &loader->out->layers[index];
    int32_t dim = (int32_t)config->head_dim;
    int32_t q = shard->head_count * dim;
    int32_t kv = shard->kv_head_count * dim;
    int64_t q_first = (int64_t)shard->head_first * dim;
    int64_t kv_first = (int64_t)shard->kv_head_first * dim;
    double fold_bias_values[2 * NOSA_MODEL_HEADS_MAX] = {0};
    if (config->has_eviction_head) /* reads W_v before its pages are given back */
        NOSA_TRY(pack_fold(loader, index, &layer->qkv, fold_bias_values, error));
    NOSA_TRY(pack_tensor(loader, &layer->qkv, NOSA_PLACE_ROWS, 0, NOSA_TENSOR_Q, index, q_first, q,
                         0, error));
    NOSA_TRY(pack_tensor(loader, &layer->qkv, NOSA_PLACE_ROWS, q, NOSA_TENSOR_K, index, kv_first,
                         kv, 0, error));
    NOSA_TRY(pack_tensor(loader, &layer->qkv, NOSA_PLACE_ROWS, q + kv, NOSA_TENSOR_V, index,
                         kv_first, kv, 0, error));
    if (!config->attention_bias)
        return NOSA_OK;
    size_t offset;
    float *bias = image_take(loader, sizeof(float) * (size_t)layer->qkv.n, &offset);
    NOSA_TRY(qkv_bias_part(loader, NOSA_TENSOR_Q_BIAS, index, q_first, q, bias, error));
    NOSA_TRY(qkv_bias_part(loader, NOSA_TENSOR_K_BIAS, index, kv_first, kv, bias + q, error));
    NOSA_TRY(qkv_bias_part(loader, NOSA_TENSOR_V_BIAS, index, kv_first, kv, bias + q + kv, error));
    for (int32_t i = q + 2 * kv; i < layer->qkv.n; i++)
        bias[i] = (float)fold_bias_values[i - q - 2 * kv];
    layer->qkv_bias = (const float *)(loader->out->vectors + offset);
    return NOSA_OK;
}

static enum nosa_status load_layer(struct loader *loader, uint32_t index, struct nosa_error *error)
{
    const struct nosa_model_config *config = loader->config;
    const struct nosa_shard *shard = loader->shard;
    struct nosa_layer_weights *layer = &loader->out->layers[index];
    int32_t hidden = (int32_t)config->hidden;
    NOSA_TRY(image_add_tensor(loader, NOSA_TENSOR_ATTENTION_NORM, index, 0, hidden,
                              &layer->attention_norm, error));
    NOSA_TRY(load_qkv(loader, index, error));
    if (config->has_eviction_head)
        NOSA_TRY(image_add_tensor(loader, NOSA_TENSOR_A, index, shard->kv_head_first,
                                  shard->kv_head_count, &layer->eviction_scale, error));
    NOSA_TRY(pack_tensor(loader, &layer->o, NOSA_PLACE_ROWS, 0, NOSA_TENSOR_O, index, 0, hidden,
                         (int64_t)shard->output_head_first * config->head_dim, error));
    if (config->attention_bias && shard->rank == 0)
        NOSA_TRY(
            image_add_tensor(loader, NOSA_TENSOR_O_BIAS, index, 0, hidden, &layer->o_bias, error));
    NOSA_TRY(image_add_tensor(loader, NOSA_TENSOR_FEED_FORWARD_NORM, index, 0, hidden,
                              &layer->feed_forward_norm, error));
    NOSA_TRY(pack_tensor(loader, &layer->gate_up, NOSA_PLACE_GATE, 0, NOSA_TENSOR_GATE, index,
                         shard->intermediate_first, shard->intermediate_count, 0, error));
    NOSA_TRY(pack_tensor(loader, &layer->gate_up, NOSA_PLACE_UP, 0, NOSA_TENSOR_UP, index,
                         shard->intermediate_first, shard->intermediate_count, 0, error));
    return pack_tensor(loader, &layer->down, NOSA_PLACE_ROWS, 0, NOSA_TENSOR_DOWN, index, 0, hidden,
                       shard->intermediate_first, error);
}

static enum nosa_status load_output(struct loader *loader, struct nosa_error *error)
{
    const struct nosa_model_config *config = loader->config;
    const struct nosa_shard *shard = loader->shard;
    struct nosa_model_weights *out = loader->out;
    NOSA_TRY(image_add_tensor(loader, NOSA_TENSOR_FINAL_NORM, 0, 0, (int32_t)config->hidden,
                              &out->final_norm, error));
    NOSA_TRY(pack_tensor(loader, &out->output, NOSA_PLACE_ROWS, 0, NOSA_TENSOR_OUTPUT, 0,
                         shard->vocab_first, shard->vocab_count, 0, error));
    if (!config->tie_word_embeddings)
        NOSA_TRY(pack_tensor(loader, &out->embedding, NOSA_PLACE_ROWS, 0, NOSA_TENSOR_EMBEDDING, 0,
                             shard->vocab_first, shard->vocab_count, 0, error));
    size_t offset;
    double *inv_freq = image_take(loader, sizeof(double) * (config->head_dim / 2), &offset);
    nosa_rope_frequencies(config, inv_freq, &out->rope_scale);
    out->inv_freq = (const double *)(out->vectors + offset);
    return NOSA_OK;
}

static enum nosa_status upload_vectors(struct loader *loader, struct nosa_error *error)
{
    const struct nosa_device_table *table = loader->device->table;
    struct nosa_stream *stream;
    NOSA_TRY(table->stream_create(loader->device, &stream, error));
    table->copy(stream, loader->out->vectors, loader->image, loader->image_used);
    enum nosa_status status = table->stream_synchronize(stream, error);
    table->stream_destroy(stream);
    return status;
}

static enum nosa_status load_all(struct loader *loader, struct nosa_error *error)
{
    const struct nosa_device_table *table = loader->device->table;
    struct nosa_model_weights *out = loader->out;
    plan_sizes(loader);
    NOSA_TRY(table->memory_alloc(loader->device, NOSA_MEMORY_DEVICE, out->matrix_bytes,
                                 &out->matrices, error));
    void *vectors;
    NOSA_TRY(table->memory_alloc(loader->device, NOSA_MEMORY_DEVICE, out->vector_bytes, &vectors,
                                 error));
    out->vectors = vectors;
    loader->image = calloc(1, out->vector_bytes);
    if (!loader->image)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %zu bytes of norms",
                              out->vector_bytes);
    place_matrices(loader);
    for (uint32_t i = 0; i < loader->config->n_layers; i++)
        NOSA_TRY(load_layer(loader, i, error));
    NOSA_TRY(load_output(loader, error));
    return upload_vectors(loader, error);
}

static enum nosa_weight_format weight_format(const struct nosa_checkpoint *checkpoint)
{
    switch (nosa_checkpoint_matrix_dtype(checkpoint)) {
    case NOSA_TENSOR_BF16: return NOSA_WEIGHT_BF16;
    case NOSA_TENSOR_F16: return NOSA_WEIGHT_F16;
    default: return NOSA_WEIGHT_F32;
    }
}

enum nosa_status nosa_model_weights_load(const struct nosa_checkpoint *checkpoint,
                                         const struct nosa_shard *shard, struct nosa_device *device,
                                         nosa_load_progress progress, void *progress_context,
                                         struct nosa_model_weights *out, struct nosa_error *error)
{
    *out = (struct nosa_model_weights){.device = device};
    struct loader loader = {.checkpoint = checkpoint,
                            .config = nosa_checkpoint_config(checkpoint),
                            .shard = shard,
                            .device = device,
                            .out = out,
                            .format = weight_format(checkpoint),
                            .progress = progress,
                            .progress_context = progress_context};
    out->layers = calloc(loader.config->n_layers, sizeof *out->layers);
    enum nosa_status status =
        out->layers ? load_all(&loader, error)
                    : nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the layer table");
    free(loader.image);
    if (status != NOSA_OK)
        nosa_model_weights_free(out);
    return status;
}

void nosa_model_weights_free(struct nosa_model_weights *weights)
{
    struct nosa_device *device = weights->device;
    if (device) {
        device->table->memory_free(device, NOSA_MEMORY_DEVICE, weights->matrices,
                                   weights->matrix_bytes);
        device->table->memory_free(device, NOSA_MEMORY_DEVICE, weights->vectors,
                                   weights->vector_bytes);
    }
    free(weights->layers);
    *weights = (struct nosa_model_weights){0};
}
