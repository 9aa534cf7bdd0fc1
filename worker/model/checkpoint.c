#include "model/checkpoint.h"

#include "base/hash.h"
#include "model/shards_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define TENSOR_NAME_MAX 128
#define LAYER_PREFIX    "model.layers."

struct nosa_checkpoint {
    char *directory; /* owned */
    struct nosa_model_config config;
    struct nosa_generation_config generation;
    struct nosa_shards shards;
    const struct nosa_tensor **roles; /* owned [n_layers][NOSA_TENSOR_ROLES], of the shards */
    enum nosa_tensor_dtype matrix_dtype;
    uint64_t weight_bytes;
};

/* A size of the model that a tensor's shape is made of. */
enum dimension { NONE, HIDDEN, QUERY, KEY_VALUE, INTERMEDIATE, VOCAB, KV_HEADS };

/* When a model has the tensor. */
enum condition { ALWAYS, WITH_BIAS, WITH_HEAD, WITH_HEAD_AND_BIAS };

static const struct role {
    const char *name; /* below "model.layers.N." when is_layer */
    enum dimension rows;
    enum dimension columns; /* NONE: a vector */
    enum condition condition;
    bool is_layer;
    bool is_matrix; /* counts for the one type of the matrices */
} roles[NOSA_TENSOR_ROLES] = {
    [NOSA_TENSOR_EMBEDDING] = {"model.embed_tokens.weight", VOCAB, HIDDEN, ALWAYS, false, true},
    [NOSA_TENSOR_FINAL_NORM] = {"model.norm.weight", HIDDEN, NONE, ALWAYS, false, false},
    [NOSA_TENSOR_OUTPUT] = {"lm_head.weight", VOCAB, HIDDEN, ALWAYS, false, true},
    [NOSA_TENSOR_ATTENTION_NORM] = {"input_layernorm.weight", HIDDEN, NONE, ALWAYS, true, false},
    [NOSA_TENSOR_Q] = {"self_attn.q_proj.weight", QUERY, HIDDEN, ALWAYS, true, true},
    [NOSA_TENSOR_K] = {"self_attn.k_proj.weight", KEY_VALUE, HIDDEN, ALWAYS, true, true},
    [NOSA_TENSOR_V] = {"self_attn.v_proj.weight", KEY_VALUE, HIDDEN, ALWAYS, true, true},
    [NOSA_TENSOR_O] = {"self_attn.o_proj.weight", HIDDEN, QUERY, ALWAYS, true, true},
    [NOSA_TENSOR_Q_BIAS] = {"self_attn.q_proj.bias", QUERY, NONE, WITH_BIAS, true, false},
    [NOSA_TENSOR_K_BIAS] = {"self_attn.k_proj.bias", KEY_VALUE, NONE, WITH_BIAS, true, false},
    [NOSA_TENSOR_V_BIAS] = {"self_attn.v_proj.bias", KEY_VALUE, NONE, WITH_BIAS, true, false},
    [NOSA_TENSOR_O_BIAS] = {"self_attn.o_proj.bias", HIDDEN, NONE, WITH_BIAS, true, false},
    [NOSA_TENSOR_FEED_FORWARD_NORM] = {"post_attention_layernorm.weight", HIDDEN, NONE, ALWAYS,
                                       true, false},
    [NOSA_TENSOR_GATE] = {"mlp.gate_proj.weight", INTERMEDIATE, HIDDEN, ALWAYS, true, true},
    [NOSA_TENSOR_UP] = {"mlp.up_proj.weight", INTERMEDIATE, HIDDEN, ALWAYS, true, true},
    [NOSA_TENSOR_DOWN] = {"mlp.down_proj.weight", HIDDEN, INTERMEDIATE, ALWAYS, true, true},
    [NOSA_TENSOR_DELTA] = {"self_attn.delta.weight", KV_HEADS, KEY_VALUE, WITH_HEAD, true, false},
    [NOSA_TENSOR_DELTA_BIAS] = {"self_attn.delta.bias", KV_HEADS, NONE, WITH_HEAD_AND_BIAS, true,
                                false},
    [NOSA_TENSOR_A] = {"self_attn.A", KV_HEADS, NONE, WITH_HEAD, true, false},
};

static uint64_t dimension_size(const struct nosa_model_config *config, enum dimension dimension)
{
    switch (dimension) {
    case NONE: break;
    case HIDDEN: return config->hidden;
    case QUERY: return (uint64_t)config->n_heads * config->head_dim;
    case KEY_VALUE: return (uint64_t)config->n_kv_heads * config->head_dim;
    case INTERMEDIATE: return config->intermediate;
    case VOCAB: return config->vocab;
    case KV_HEADS: return config->n_kv_heads;
    }
    return 0;
}

static bool is_needed(const struct nosa_model_config *config, enum condition condition)
{
    switch (condition) {
    case ALWAYS: break;
    case WITH_BIAS: return config->attention_bias;
    case WITH_HEAD: return config->has_eviction_head;
    case WITH_HEAD_AND_BIAS: return config->has_eviction_head && config->attention_bias;
    }
    return true;
}

static void role_name(enum nosa_tensor_role role, uint32_t layer, char name[TENSOR_NAME_MAX])
{
    if (roles[role].is_layer)
        snprintf(name, TENSOR_NAME_MAX, LAYER_PREFIX "%u.%s", layer, roles[role].name);
    else
        snprintf(name, TENSOR_NAME_MAX, "%s", roles[role].name);
}

static const struct nosa_tensor *find_role(const struct nosa_checkpoint *checkpoint,
                                           enum nosa_tensor_role role, uint32_t layer)
{
    char name[TENSOR_NAME_MAX];
    role_name(role, layer, name);
    return nosa_shards_find(&checkpoint->shards, name);
}

/* "[3, 64]" */
static void format_shape(const uint64_t *shape, uint32_t rank, char *text, size_t size)
{
    size_t used = 0;
    int written = snprintf(text, size, "[");
    for (uint32_t i = 0; i < rank && written >= 0 && used + (size_t)written < size; i++) {
        used += (size_t)written;
        written = snprintf(text + used, size - used, "%s%llu", i ? ", " : "",
                           (unsigned long long)shape[i]);
    }
    if (written >= 0 && used + (size_t)written < size)
        snprintf(text + used + written, size - used - (size_t)written, "]");
}

static const char *path_of(const struct nosa_checkpoint *checkpoint,
                           const struct nosa_tensor *tensor)
{
    return nosa_safetensors_path(nosa_shards_file_of(&checkpoint->shards, tensor));
}

static enum nosa_status check_shape(const struct nosa_checkpoint *checkpoint,
                                    const struct role *role, const struct nosa_tensor *tensor,
                                    struct nosa_error *error)
{
    const uint64_t expected[2] = {dimension_size(&checkpoint->config, role->rows),
                                  dimension_size(&checkpoint->config, role->columns)};
    uint32_t rank = role->columns == NONE ? 1 : 2;
    bool matches = tensor->rank == rank;
    for (uint32_t i = 0; matches && i < rank; i++)
        matches = tensor->shape[i] == expected[i];
    if (matches)
        return NOSA_OK;
    char want[64];
    char found[192];
    format_shape(expected, rank, want, sizeof want);
    format_shape(tensor->shape, tensor->rank, found, sizeof found);
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "%s: tensor %s has shape %s, the config asks for %s",
                          path_of(checkpoint, tensor), tensor->name, found, want);
}

static enum nosa_status check_dtype(struct nosa_checkpoint *checkpoint, const struct role *role,
                                    const struct nosa_tensor *tensor, struct nosa_error *error)
{
    if (tensor->dtype == NOSA_TENSOR_OTHER)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "%s: tensor %s has type %s; F32, F16 and BF16 are supported",
                              path_of(checkpoint, tensor), tensor->name, tensor->dtype_name);
    if (!role->is_matrix)
        return NOSA_OK;
    const struct nosa_tensor *first = checkpoint->roles[NOSA_TENSOR_EMBEDDING];
    checkpoint->matrix_dtype = first ? first->dtype : tensor->dtype;
    if (tensor->dtype != checkpoint->matrix_dtype)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "%s: tensor %s has type %s but %s has %s; the matrices of one "
                              "checkpoint must be of one type",
                              path_of(checkpoint, tensor), tensor->name, tensor->dtype_name,
                              first->name, first->dtype_name);
    return NOSA_OK;
}

/* Finds the tensor of a role, checks it and enters it in the table. */
static enum nosa_status take_role(struct nosa_checkpoint *checkpoint, enum nosa_tensor_role role,
                                  uint32_t layer, struct nosa_error *error)
{
    const struct role *what = &roles[role];
    const struct nosa_tensor **place = &checkpoint->roles[(size_t)layer * NOSA_TENSOR_ROLES + role];
    if (role == NOSA_TENSOR_OUTPUT && checkpoint->config.tie_word_embeddings) {
        *place = checkpoint->roles[NOSA_TENSOR_EMBEDDING];
        return NOSA_OK;
    }
    char name[TENSOR_NAME_MAX];
    role_name(role, layer, name);
    const struct nosa_tensor *tensor = nosa_shards_find(&checkpoint->shards, name);
    if (!is_needed(&checkpoint->config, what->condition)) {
        if (tensor)
            return nosa_error_set(error, NOSA_UNSUPPORTED,
                                  "%s: tensor %s is there though attention_bias is not set",
                                  path_of(checkpoint, tensor), name);
        return NOSA_OK;
    }
    if (!tensor && role == NOSA_TENSOR_OUTPUT)
        return nosa_error_set(error, NOSA_NOT_FOUND,
                              "%s: tensor %s is missing and tie_word_embeddings is not set",
                              checkpoint->directory, name);
    if (!tensor)
        return nosa_error_set(error, NOSA_NOT_FOUND, "%s: tensor %s is missing",
                              checkpoint->directory, name);
    NOSA_TRY(check_shape(checkpoint, what, tensor, error));
    NOSA_TRY(check_dtype(checkpoint, what, tensor, error));
    *place = tensor;
    checkpoint->weight_bytes += tensor->bytes;
    return NOSA_OK;
}

static bool layer_has_head(const struct nosa_checkpoint *checkpoint, uint32_t layer)
{
    return find_role(checkpoint, NOSA_TENSOR_DELTA, layer) ||
           find_role(checkpoint, NOSA_TENSOR_DELTA_BIAS, layer) ||
           find_role(checkpoint, NOSA_TENSOR_A, layer);
}

static enum nosa_status detect_head(struct nosa_checkpoint *checkpoint, struct nosa_error *error)
{
    struct nosa_model_config *config = &checkpoint->config;
    config->has_eviction_head = layer_has_head(checkpoint, 0);
    for (uint32_t layer = 1; layer < config->n_layers; layer++) {
        if (layer_has_head(checkpoint, layer) != config->has_eviction_head)
            return nosa_error_set(error, NOSA_UNSUPPORTED,
                                  "%s: layer %u has %s eviction head but layer 0 has %s; all "
                                  "layers must have one or none",
                                  checkpoint->directory, layer,
                                  config->has_eviction_head ? "no" : "an",
                                  config->has_eviction_head ? "one" : "none");
    }
    return NOSA_OK;
}

/* Tensors that the model does not use are ignored, except where they show that it is another
 * model: computing it without them would give wrong text and no error. */
static enum nosa_status check_extra(const struct nosa_checkpoint *checkpoint,
                                    const struct nosa_tensor *tensor, struct nosa_error *error)
{
    static const char *const telling[] = {
        ".q_norm.",
        ".k_norm.",
        "_feedforward_layernorm.",
        ".experts.",
        ".block_sparse_moe.",
        ".mlp.gate.",
        ".mlp.router.",
        ".gate_proj.bias",
        ".up_proj.bias",
        ".down_proj.bias",
        "layernorm.bias",
        "lm_head.bias",
        "model.norm.bias",
        ".lora_A.",
        ".lora_B.",
        ".qweight",
        ".qzeros",
        ".weight_scale",
        ".weight_packed",
        ".absmax",
    };
    for (size_t i = 0; i < sizeof telling / sizeof telling[0]; i++)
        if (strstr(tensor->name, telling[i]))
            return nosa_error_set(error, NOSA_UNSUPPORTED,
                                  "%s: tensor %.160s belongs to a kind of model that is not "
                                  "supported",
                                  path_of(checkpoint, tensor), tensor->name);
    if (strncmp(tensor->name, LAYER_PREFIX, strlen(LAYER_PREFIX)) != 0)
        return NOSA_OK;
    char *end = NULL;
    unsigned long long layer = strtoull(tensor->name + strlen(LAYER_PREFIX), &end, 10);
    if (*end == '.' && layer >= checkpoint->config.n_layers)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s: tensor %.160s is there though num_hidden_layers is %u",
                              path_of(checkpoint, tensor), tensor->name,
                              checkpoint->config.n_layers);
    return NOSA_OK;
}

static enum nosa_status check_tensors(struct nosa_checkpoint *checkpoint, struct nosa_error *error)
{
    uint32_t n_layers = checkpoint->config.n_layers;
    checkpoint->roles = calloc((size_t)n_layers * NOSA_TENSOR_ROLES, sizeof(struct nosa_tensor *));
    if (!checkpoint->roles)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory for the table of tensors",
                              checkpoint->directory);
    for (uint64_t i = 0; i < checkpoint->shards.n_tensors; i++)
        NOSA_TRY(check_extra(checkpoint, checkpoint->shards.tensors[i], error));
    NOSA_TRY(detect_head(checkpoint, error));
    for (uint32_t layer = 0; layer < n_layers; layer++)
        for (int role = 0; role < NOSA_TENSOR_ROLES; role++)
            if (layer == 0 || roles[role].is_layer)
                NOSA_TRY(take_role(checkpoint, (enum nosa_tensor_role)role, layer, error));
    return NOSA_OK;
}

static enum nosa_status open_parts(struct nosa_checkpoint *checkpoint, struct nosa_error *error)
{
    const char *directory = checkpoint->directory;
    struct stat info;
    if (stat(directory, &info) != 0)
        return nosa_error_set(error, errno == ENOENT ? NOSA_NOT_FOUND : NOSA_IO_ERROR, "%s: %s",
                              directory, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not a directory", directory);
    NOSA_TRY(nosa_model_config_load(directory, &checkpoint->config, error));
    NOSA_TRY(nosa_generation_config_load(directory, checkpoint->config.vocab,
                                         &checkpoint->generation, error));
    NOSA_TRY(nosa_model_config_add_eos(&checkpoint->config, &checkpoint->generation, error));
    NOSA_TRY(nosa_shards_open(directory, &checkpoint->shards, error));
    return check_tensors(checkpoint, error);
}

enum nosa_status nosa_checkpoint_open(const char *directory, struct nosa_checkpoint **checkpoint,
                                      struct nosa_error *error)
{
    *checkpoint = NULL;
    size_t length = strlen(directory);
    struct nosa_checkpoint *made = calloc(1, sizeof *made);
    if (made)
        made->directory = malloc(length + 1);
    if (!made || !made->directory) {
        free(made);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory", directory);
    }
    memcpy(made->directory, directory, length + 1);
    while (length > 1 && made->directory[length - 1] == '/')
        made->directory[--length] = '\0';
    enum nosa_status status = open_parts(made, error);
    if (status != NOSA_OK) {
        nosa_checkpoint_close(made);
        return status;
    }
    *checkpoint = made;
    return NOSA_OK;
}

void nosa_checkpoint_close(struct nosa_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    free(checkpoint->roles);
    nosa_shards_close(&checkpoint->shards);
    free(checkpoint->directory);
    free(checkpoint);
}

const struct nosa_model_config *nosa_checkpoint_config(const struct nosa_checkpoint *checkpoint)
{
    return &checkpoint->config;
}

void nosa_checkpoint_ignore_head(struct nosa_checkpoint *checkpoint)
{
    static const enum nosa_tensor_role head[] = {NOSA_TENSOR_DELTA, NOSA_TENSOR_DELTA_BIAS,
                                                 NOSA_TENSOR_A};
    checkpoint->config.has_eviction_head = false;
    for (size_t layer = 0; layer < checkpoint->config.n_layers; layer++)
        for (size_t i = 0; i < sizeof head / sizeof *head; i++) {
            const struct nosa_tensor **role =
                &checkpoint->roles[layer * NOSA_TENSOR_ROLES + (size_t)head[i]];
            checkpoint->weight_bytes -= *role ? (*role)->bytes : 0;
            *role = NULL;
        }
}

enum nosa_status nosa_checkpoint_set_sparse(struct nosa_checkpoint *checkpoint,
                                            const struct nosa_sparse_sizes *sizes,
                                            struct nosa_error *error)
{
    return nosa_sparse_config_resize(&checkpoint->config.sparse, sizes, error);
}

const struct nosa_generation_config *
nosa_checkpoint_generation_config(const struct nosa_checkpoint *checkpoint)
{
    return &checkpoint->generation;
}

const struct nosa_tensor *nosa_checkpoint_tensor(const struct nosa_checkpoint *checkpoint,
                                                 enum nosa_tensor_role role, uint32_t layer)
{
    NOSA_ASSERT(role < NOSA_TENSOR_ROLES);
    NOSA_ASSERT(layer < checkpoint->config.n_layers && (layer == 0 || roles[role].is_layer));
    return checkpoint->roles[(size_t)layer * NOSA_TENSOR_ROLES + role];
}

enum nosa_tensor_dtype nosa_checkpoint_matrix_dtype(const struct nosa_checkpoint *checkpoint)
{
    return checkpoint->matrix_dtype;
}

uint64_t nosa_checkpoint_weight_bytes(const struct nosa_checkpoint *checkpoint)
{
    return checkpoint->weight_bytes;
}

enum nosa_status nosa_checkpoint_check(const struct nosa_checkpoint *checkpoint,
                                       const struct nosa_tensor *tensor, struct nosa_error *error)
{
    return nosa_safetensors_check_length(nosa_shards_file_of(&checkpoint->shards, tensor), error);
}

void nosa_checkpoint_release(const struct nosa_checkpoint *checkpoint,
                             const struct nosa_tensor *tensor)
{
    nosa_safetensors_release(nosa_shards_file_of(&checkpoint->shards, tensor), tensor);
}
