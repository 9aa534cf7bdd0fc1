#include "model/config.h"

#include "base/file.h"
#include "model/config_rope_internal.h"
#include "model/json_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static enum nosa_status parse_architecture(const json_t *root, struct nosa_error *error)
{
    const json_t *list = nosa_json_get(root, "architectures");
    const json_t *first = json_is_array(list) ? json_array_get(list, 0) : NULL;
    if (!json_is_string(first))
        return nosa_json_refuse("architectures", "a list that names the architecture", list, error);
    const char *name = json_string_value(first);
    if (strcmp(name, "LlamaForCausalLM") != 0 && strcmp(name, "SparseLlamaForCausalLM") != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "architecture %.80s is not supported; LlamaForCausalLM and "
                              "SparseLlamaForCausalLM are",
                              name);
    const json_t *type = nosa_json_get(root, "model_type");
    if (type && !json_is_string(type))
        return nosa_json_refuse("model_type", "a string", type, error);
    if (type && strcmp(json_string_value(type), "llama") != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "model_type %.80s is not supported; llama is",
                              json_string_value(type));
    const json_t *act = nosa_json_get(root, "hidden_act");
    if (act && !json_is_string(act))
        return nosa_json_refuse("hidden_act", "a string", act, error);
    if (act && strcmp(json_string_value(act), "silu") != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "hidden_act %.80s is not supported; silu is",
                              json_string_value(act));
    return NOSA_OK;
}

/* A key that only models of another kind set: absent, null, false, 0 and empty are harmless. */
static bool is_set(const json_t *value)
{
    if (!value || json_is_false(value))
        return false;
    if (json_is_integer(value))
        return json_integer_value(value) != 0;
    if (json_is_array(value) || json_is_object(value))
        return json_array_size(value) + json_object_size(value) != 0;
    return true;
}

static enum nosa_status refuse_other_kinds(const json_t *root, struct nosa_error *error)
{
    static const struct {
        const char *key;
        const char *what;
    } refused[] = {
        {"num_local_experts", "a mixture of experts"},
        {"num_experts", "a mixture of experts"},
        {"n_routed_experts", "a mixture of experts"},
        {"num_experts_per_tok", "a mixture of experts"},
        {"quantization_config", "a quantised checkpoint"},
        {"mlp_bias", "a feed-forward layer with biases"},
        {"use_nope", "attention without rotary positions"},
        {"no_rope_layers", "attention without rotary positions"},
        {"qk_norm", "normalised queries and keys"},
        {"use_qk_norm", "normalised queries and keys"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (is_set(nosa_json_get(root, refused[i].key)))
            return nosa_error_set(error, NOSA_UNSUPPORTED, "%s: %s is not supported",
                                  refused[i].key, refused[i].what);
    const json_t *use = nosa_json_get(root, "use_sliding_window");
    if (is_set(nosa_json_get(root, "sliding_window")) && !json_is_false(use))
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "sliding_window: attention in a sliding window is not supported");
    const json_t *types = nosa_json_get(root, "layer_types");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention") != 0)
            return nosa_error_set(error, NOSA_UNSUPPORTED,
                                  "layer_types: only full_attention is supported");
    }
    double partial = 1;
    NOSA_TRY(nosa_json_double(root, "partial_rotary_factor", 0, 1, false, &partial, error));
    if (partial != 1)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "partial_rotary_factor %g is not supported; 1 is", partial);
    return NOSA_OK;
}

static enum nosa_status parse_heads(const json_t *root, struct nosa_model_config *config,
                                    struct nosa_error *error)
{
    NOSA_TRY(nosa_json_u32(root, "num_attention_heads", 1, NOSA_MODEL_HEADS_MAX, true,
                           &config->n_heads, error));
    config->n_kv_heads = config->n_heads;
    NOSA_TRY(nosa_json_u32(root, "num_key_value_heads", 1, NOSA_MODEL_HEADS_MAX, false,
                           &config->n_kv_heads, error));
    if (config->n_heads % config->n_kv_heads != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "num_attention_heads %u is not a multiple of num_key_value_heads %u",
                              config->n_heads, config->n_kv_heads);
    if (config->n_heads / config->n_kv_heads > NOSA_MODEL_GROUP_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "%u query heads per KV head (num_attention_heads %u / "
                              "num_key_value_heads %u) are not supported; at most %d are",
                              config->n_heads / config->n_kv_heads, config->n_heads,
                              config->n_kv_heads, NOSA_MODEL_GROUP_MAX);
    if (nosa_json_get(root, "head_dim")) {
        NOSA_TRY(nosa_json_u32(root, "head_dim", 1, NOSA_MODEL_HIDDEN_MAX, true, &config->head_dim,
                               error));
    } else if (config->hidden % config->n_heads != 0) {
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "hidden_size %u is not a multiple of num_attention_heads %u",
                              config->hidden, config->n_heads);
    } else {
        config->head_dim = config->hidden / config->n_heads;
    }
    if (config->head_dim % 16 != 0 || config->head_dim > NOSA_MODEL_HEAD_DIM_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "head_dim %u is not supported; multiples of 16 up to %d are",
                              config->head_dim, NOSA_MODEL_HEAD_DIM_MAX);
    return NOSA_OK;
}

static enum nosa_status parse_sizes(const json_t *root, struct nosa_model_config *config,
                                    struct nosa_error *error)
{
    NOSA_TRY(
        nosa_json_u32(root, "hidden_size", 1, NOSA_MODEL_HIDDEN_MAX, true, &config->hidden, error));
    NOSA_TRY(nosa_json_u32(root, "num_hidden_layers", 1, NOSA_MODEL_LAYERS_MAX, true,
                           &config->n_layers, error));
    NOSA_TRY(parse_heads(root, config, error));
    NOSA_TRY(nosa_json_u32(root, "intermediate_size", 1, NOSA_MODEL_INTERMEDIATE_MAX, true,
                           &config->intermediate, error));
    NOSA_TRY(
        nosa_json_u32(root, "vocab_size", 1, NOSA_MODEL_VOCAB_MAX, true, &config->vocab, error));
    NOSA_TRY(nosa_json_u32(root, "max_position_embeddings", 1, NOSA_MODEL_POSITIONS_MAX, true,
                           &config->max_positions, error));
    config->rms_eps = 1e-6;
    NOSA_TRY(nosa_json_double(root, "rms_norm_eps", 1e-30, 1, false, &config->rms_eps, error));
    NOSA_TRY(nosa_json_bool(root, "tie_word_embeddings", &config->tie_word_embeddings, error));
    return nosa_json_bool(root, "attention_bias", &config->attention_bias, error);
}

static void parse_dtype_hint(const json_t *root, struct nosa_model_config *config)
{
    const json_t *value = nosa_json_get(root, "torch_dtype");
    if (!value)
        value = nosa_json_get(root, "dtype");
    const char *name = json_is_string(value) ? json_string_value(value) : "";
    if (strcmp(name, "float32") == 0)
        config->dtype_hint = NOSA_DTYPE_HINT_F32;
    else if (strcmp(name, "float16") == 0)
        config->dtype_hint = NOSA_DTYPE_HINT_F16;
    else if (strcmp(name, "bfloat16") == 0)
        config->dtype_hint = NOSA_DTYPE_HINT_BF16;
}

static enum nosa_status check_sparse(const struct nosa_sparse_config *sparse,
                                     struct nosa_error *error)
{
    if (sparse->block_size != NOSA_MODEL_BLOCK_SIZE)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "block_size %u is not supported; %d is",
                              sparse->block_size, NOSA_MODEL_BLOCK_SIZE);
    if (sparse->block_size % sparse->kernel_stride != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "block_size %u is not a multiple of kernel_stride %u",
                              sparse->block_size, sparse->kernel_stride);
    if (sparse->kernel_size != 2 * sparse->kernel_stride)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "kernel_size %u is not twice kernel_stride %u", sparse->kernel_size,
                              sparse->kernel_stride);
    if (sparse->window_size % sparse->block_size != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "window_size %u is not a multiple of block_size %u",
                              sparse->window_size, sparse->block_size);
    uint32_t first_cut =
        sparse->init_blocks + sparse->window_size / sparse->block_size + sparse->select_blocks;
    if (sparse->topk < first_cut)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "topk %u is smaller than the first cut: init_blocks %u + window_size "
                              "%u / block_size %u + select_blocks %u = %u",
                              sparse->topk, sparse->init_blocks, sparse->window_size,
                              sparse->block_size, sparse->select_blocks, first_cut);
    if (sparse->dense_len != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "dense_len %u is not supported; 0 is",
                              sparse->dense_len);
    return NOSA_OK;
}

enum nosa_status nosa_sparse_config_resize(struct nosa_sparse_config *sparse,
                                           const struct nosa_sparse_sizes *sizes,
                                           struct nosa_error *error)
{
    const uint32_t blocks = NOSA_MODEL_POSITIONS_MAX / NOSA_MODEL_BLOCK_SIZE;
    struct nosa_sparse_config resized = *sparse;
    if (sizes->topk > blocks || sizes->select_blocks > blocks ||
        sizes->window_size > NOSA_MODEL_POSITIONS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "topk %u, window_size %u or select_blocks %u is out of range",
                              sizes->topk, sizes->window_size, sizes->select_blocks);
    if (sizes->topk > 0)
        resized.topk = sizes->topk;
    if (sizes->window_size > 0)
        resized.window_size = sizes->window_size;
    if (sizes->select_blocks > 0)
        resized.select_blocks = sizes->select_blocks;
    NOSA_TRY(check_sparse(&resized, error));
    *sparse = resized;
    return NOSA_OK;
}

static enum nosa_status parse_sparse(const json_t *root, struct nosa_sparse_config *sparse,
                                     struct nosa_error *error)
{
    const uint32_t tokens = NOSA_MODEL_POSITIONS_MAX;
    const uint32_t blocks = NOSA_MODEL_POSITIONS_MAX / NOSA_MODEL_BLOCK_SIZE;
    *sparse = (struct nosa_sparse_config){.kernel_size = 32,
                                          .kernel_stride = 16,
                                          .init_blocks = 1,
                                          .block_size = NOSA_MODEL_BLOCK_SIZE,
                                          .window_size = 1024,
                                          .topk = 64,
                                          .select_blocks = 16};
    const json_t *object = nosa_json_get(root, "sparse_config");
    if (!object)
        return NOSA_OK;
    if (!json_is_object(object))
        return nosa_json_refuse("sparse_config", "an object", object, error);
    NOSA_TRY(nosa_json_u32(object, "kernel_size", 1, tokens, false, &sparse->kernel_size, error));
    NOSA_TRY(
        nosa_json_u32(object, "kernel_stride", 1, tokens, false, &sparse->kernel_stride, error));
    NOSA_TRY(nosa_json_u32(object, "init_blocks", 0, blocks, false, &sparse->init_blocks, error));
    NOSA_TRY(nosa_json_u32(object, "block_size", 1, tokens, false, &sparse->block_size, error));
    NOSA_TRY(nosa_json_u32(object, "window_size", 1, tokens, false, &sparse->window_size, error));
    NOSA_TRY(nosa_json_u32(object, "topk", 1, blocks, false, &sparse->topk, error));
    NOSA_TRY(
        nosa_json_u32(object, "select_blocks", 1, blocks, false, &sparse->select_blocks, error));
    NOSA_TRY(nosa_json_u32(object, "dense_len", 0, tokens, false, &sparse->dense_len, error));
    bool use_nope = false;
    NOSA_TRY(nosa_json_bool(object, "use_nope", &use_nope, error));
    if (use_nope)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "use_nope: scoring without rotary positions is not supported");
    return check_sparse(sparse, error);
}

static enum nosa_status parse_root(const json_t *root, struct nosa_model_config *config,
                                   struct nosa_error *error)
{
    NOSA_TRY(parse_architecture(root, error));
    NOSA_TRY(refuse_other_kinds(root, error));
    NOSA_TRY(parse_sizes(root, config, error));
    NOSA_TRY(nosa_json_token_ids(root, "eos_token_id", config->vocab, config->eos,
                                 NOSA_MODEL_EOS_MAX, &config->n_eos, error));
    NOSA_TRY(nosa_rope_config_parse(root, config, error));
    enum nosa_status status = parse_sparse(root, &config->sparse, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "sparse_config");
        return status;
    }
    parse_dtype_hint(root, config);
    return NOSA_OK;
}

enum nosa_status nosa_model_config_parse(const char *json, size_t bytes,
                                         struct nosa_model_config *config, struct nosa_error *error)
{
    json_t *root = NULL;
    memset(config, 0, sizeof *config);
    NOSA_TRY(nosa_json_parse(json, bytes, &root, error));
    enum nosa_status status = parse_root(root, config, error);
    json_decref(root);
    if (status != NOSA_OK)
        memset(config, 0, sizeof *config);
    return status;
}

enum nosa_status nosa_model_config_load(const char *directory, struct nosa_model_config *config,
                                        struct nosa_error *error)
{
    char path[PATH_MAX];
    char *text = NULL;
    size_t bytes = 0;
    memset(config, 0, sizeof *config);
    NOSA_TRY(nosa_model_path(path, sizeof path, directory, "config.json", error));
    NOSA_TRY(nosa_file_read(path, NOSA_JSON_CONFIG_BYTES_MAX, &text, &bytes, error));
    enum nosa_status status = nosa_model_config_parse(text, bytes, config, error);
    free(text);
    if (status != NOSA_OK)
        nosa_error_prefix(error, "%s", path);
    return status;
}

enum nosa_status nosa_model_config_add_eos(struct nosa_model_config *config,
                                           const struct nosa_generation_config *generation,
                                           struct nosa_error *error)
{
    for (uint32_t i = 0; i < generation->n_eos; i++) {
        if (nosa_model_config_is_eos(config, generation->eos[i]))
            continue;
        if (config->n_eos == NOSA_MODEL_EOS_MAX)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "eos_token_id: more than %d ids in all", NOSA_MODEL_EOS_MAX);
        config->eos[config->n_eos++] = generation->eos[i];
    }
    return NOSA_OK;
}

bool nosa_model_config_is_eos(const struct nosa_model_config *config, int32_t token)
{
    for (uint32_t i = 0; i < config->n_eos; i++)
        if (config->eos[i] == token)
            return true;
    return false;
}
