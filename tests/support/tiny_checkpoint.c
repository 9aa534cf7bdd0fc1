#include "support/tiny_checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_BYTES            96
#define TENSORS_PER_LAYER     16
#define TENSORS_BESIDE_LAYERS 3

struct drawn_tensor {
    char name[NAME_BYTES];
    uint64_t rows;
    uint64_t columns; /* 0: a vector */
    float offset;     /* value = offset + scale * a draw of variance 1 */
    float scale;
    enum nosa_tensor_dtype dtype;
};

struct tensor_list {
    struct drawn_tensor *tensors; /* owned [count] */
    uint32_t count;
};

void nosa_tiny_checkpoint_defaults(struct nosa_tiny_checkpoint *tiny)
{
    *tiny = (struct nosa_tiny_checkpoint){
        .hidden = 64,
        .n_layers = 2,
        .n_heads = 4,
        .n_kv_heads = 2,
        .head_dim = 16,
        .intermediate = 96,
        .vocab = 128,
        .max_positions = 4096,
        .dtype = NOSA_TENSOR_F32,
        .dtype_rest = NOSA_TENSOR_F32,
        .eviction_head = true,
        .n_shards = 1,
        .seed = 1,
    };
}

static void add(struct tensor_list *list, uint64_t rows, uint64_t columns, float offset,
                float scale, enum nosa_tensor_dtype dtype, const char *name, uint32_t layer)
{
    struct drawn_tensor *tensor = &list->tensors[list->count++];
    *tensor = (struct drawn_tensor){
        .rows = rows, .columns = columns, .offset = offset, .scale = scale, .dtype = dtype};
    if (layer == UINT32_MAX)
        snprintf(tensor->name, NAME_BYTES, "%s", name);
    else
        snprintf(tensor->name, NAME_BYTES, "model.layers.%u.%s", layer, name);
}

static void add_layer(struct tensor_list *list, const struct nosa_tiny_checkpoint *tiny,
                      uint32_t layer)
{
    uint64_t hidden = tiny->hidden;
    uint64_t query = (uint64_t)tiny->n_heads * tiny->head_dim;
    uint64_t kv = (uint64_t)tiny->n_kv_heads * tiny->head_dim;
    float unit = 1.0f / sqrtf((float)hidden); /* unit variance in gives unit variance out */
    enum nosa_tensor_dtype type = tiny->dtype;
    enum nosa_tensor_dtype rest = tiny->dtype_rest;
    add(list, hidden, 0, 1, 0.1f, rest, "input_layernorm.weight", layer);
    add(list, query, hidden, 0, 1.6f * unit, type, "self_attn.q_proj.weight", layer);
    add(list, kv, hidden, 0, 1.6f * unit, type, "self_attn.k_proj.weight", layer);
    add(list, kv, hidden, 0, unit, type, "self_attn.v_proj.weight", layer);
    add(list, hidden, query, 0, 1 / sqrtf((float)query), type, "self_attn.o_proj.weight", layer);
    if (tiny->attention_bias) {
        add(list, query, 0, 0, 0.3f, rest, "self_attn.q_proj.bias", layer);
        add(list, kv, 0, 0, 0.3f, rest, "self_attn.k_proj.bias", layer);
        add(list, kv, 0, 0, 0.3f, rest, "self_attn.v_proj.bias", layer);
        add(list, hidden, 0, 0, 0.1f, rest, "self_attn.o_proj.bias", layer);
    }
    if (tiny->eviction_head) {
        add(list, tiny->n_kv_heads, kv, 0, 2 / sqrtf((float)kv), rest, "self_attn.delta.weight",
            layer);
        add(list, tiny->n_kv_heads, 0, 0, 1, rest, "self_attn.A", layer);
        if (tiny->attention_bias)
            add(list, tiny->n_kv_heads, 0, 0, 0.3f, rest, "self_attn.delta.bias", layer);
    }
    add(list, hidden, 0, 1, 0.1f, rest, "post_attention_layernorm.weight", layer);
    add(list, tiny->intermediate, hidden, 0, unit, type, "mlp.gate_proj.weight", layer);
    add(list, tiny->intermediate, hidden, 0, unit, type, "mlp.up_proj.weight", layer);
    add(list, hidden, tiny->intermediate, 0, 1 / sqrtf((float)tiny->intermediate), type,
        "mlp.down_proj.weight", layer);
}

static enum nosa_status list_tensors(const struct nosa_tiny_checkpoint *tiny,
                                     struct tensor_list *list, struct nosa_error *error)
{
    size_t count_max = (size_t)tiny->n_layers * TENSORS_PER_LAYER + TENSORS_BESIDE_LAYERS;
    list->count = 0;
    list->tensors = calloc(count_max, sizeof *list->tensors);
    if (!list->tensors)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a list of tensors");
    float output = 3.0f / sqrtf((float)tiny->hidden);
    add(list, tiny->vocab, tiny->hidden, 0, output, tiny->dtype, "model.embed_tokens.weight",
        UINT32_MAX);
    for (uint32_t layer = 0; layer < tiny->n_layers; layer++)
        add_layer(list, tiny, layer);
    add(list, tiny->hidden, 0, 1, 0.1f, tiny->dtype_rest, "model.norm.weight", UINT32_MAX);
    if (!tiny->tie_word_embeddings)
        add(list, tiny->vocab, tiny->hidden, 0, output, tiny->dtype, "lm_head.weight", UINT32_MAX);
    NOSA_ASSERT(list->count <= count_max);
    return NOSA_OK;
}

static uint64_t tensor_bytes(const struct drawn_tensor *tensor)
{
    return tensor->rows * (tensor->columns ? tensor->columns : 1) *
           nosa_tensor_dtype_bytes(tensor->dtype);
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t mixed = (*state += 0x9e3779b97f4a7c15u);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return mixed ^ (mixed >> 31);
}

/* Near-normal of variance 1: the sum of four uniform numbers, exact in any compiler. */
static float next_draw(uint64_t *state)
{
    uint64_t bits = next_random(state);
    int32_t sum = 0;
    for (uint32_t i = 0; i < 4; i++)
        sum += (int32_t)((bits >> (16 * i)) & 0xffff);
    return (float)(sum - 2 * 0xffff) * (1.7320508f / 65536.0f);
}

static uint64_t tensor_seed(const struct drawn_tensor *tensor, uint64_t seed)
{
    uint64_t state = 0xcbf29ce484222325u;
    for (const char *c = tensor->name; *c; c++)
        state = (state ^ (uint8_t)*c) * 0x100000001b3u;
    return state ^ (seed * 0x9e3779b97f4a7c15u);
}

/* Drops `shift` low bits of a magnitude, to nearest, ties to even. */
static uint32_t round_off(uint32_t magnitude, uint32_t shift)
{
    uint32_t half = 1u << (shift - 1);
    uint32_t odd = (magnitude >> shift) & 1;
    return (magnitude + half - 1 + odd) >> shift;
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)round_off(bits, 16);
}

/* For the magnitudes that are drawn here: far below 65504. */
static uint16_t to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = (bits >> 16) & 0x8000;
    uint32_t exponent = (bits >> 23) & 0xff;
    if (exponent < 102) /* below half the smallest subnormal */
        return (uint16_t)sign;
    if (exponent < 113) /* subnormal in half precision */
        return (uint16_t)(sign | round_off((bits & 0x7fffff) | 0x800000, 126 - exponent));
    return (uint16_t)(sign | round_off((bits & 0x7fffffff) - (112u << 23), 13));
}

static void write_data(FILE *out, const struct drawn_tensor *tensor, uint64_t seed)
{
    uint64_t state = tensor_seed(tensor, seed);
    uint64_t count = tensor->rows * (tensor->columns ? tensor->columns : 1);
    for (uint64_t i = 0; i < count; i++) {
        float value = tensor->offset + tensor->scale * next_draw(&state);
        uint16_t half = tensor->dtype == NOSA_TENSOR_F16 ? to_f16(value) : to_bf16(value);
        if (tensor->dtype == NOSA_TENSOR_F32)
            fwrite(&value, sizeof value, 1, out);
        else
            fwrite(&half, sizeof half, 1, out);
    }
}

/* Every n_shards-th tensor from `shard` on goes to one file. */
static void format_header(FILE *out, const struct nosa_tiny_checkpoint *tiny,
                          const struct tensor_list *list, uint32_t shard)
{
    uint64_t offset = 0;
    fprintf(out, "{\"__metadata__\": {\"format\": \"pt\"}");
    for (uint32_t i = shard; i < list->count; i += tiny->n_shards) {
        const struct drawn_tensor *tensor = &list->tensors[i];
        uint64_t bytes = tensor_bytes(tensor);
        fprintf(out, ", \"%s\": {\"dtype\": \"%s\", \"shape\": [%llu", tensor->name,
                nosa_tensor_dtype_name(tensor->dtype), (unsigned long long)tensor->rows);
        if (tensor->columns)
            fprintf(out, ", %llu", (unsigned long long)tensor->columns);
        fprintf(out, "], \"data_offsets\": [%llu, %llu]}", (unsigned long long)offset,
                (unsigned long long)offset + bytes);
        offset += bytes;
    }
    fprintf(out, "}");
    fflush(out);
    while (ftell(out) % 8 != 0) {
        fputc(' ', out);
        fflush(out);
    }
}

static FILE *create(const char *directory, const char *name, struct nosa_error *error)
{
    char path[PATH_MAX];
    FILE *out = NULL;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", directory, name) < sizeof path)
        out = fopen(path, "wb");
    if (!out)
        nosa_error_set(error, NOSA_IO_ERROR, "%s/%s: cannot write", directory, name);
    return out;
}

static enum nosa_status finish(FILE *out, struct nosa_error *error)
{
    int failed = ferror(out);
    if (fclose(out) != 0 || failed)
        return nosa_error_set(error, NOSA_IO_ERROR, "cannot write: %s", strerror(errno));
    return NOSA_OK;
}

static void shard_name(const struct nosa_tiny_checkpoint *tiny, uint32_t shard, char *name)
{
    if (tiny->n_shards == 1)
        snprintf(name, NAME_BYTES, "model.safetensors");
    else
        snprintf(name, NAME_BYTES, "model-%05u-of-%05u.safetensors", shard + 1, tiny->n_shards);
}

static enum nosa_status write_shard(const char *directory, const struct nosa_tiny_checkpoint *tiny,
                                    const struct tensor_list *list, uint32_t shard,
                                    struct nosa_error *error)
{
    char name[NAME_BYTES];
    char *header = NULL;
    size_t header_bytes = 0;
    FILE *memory = open_memstream(&header, &header_bytes);
    if (!memory)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a header");
    format_header(memory, tiny, list, shard);
    fclose(memory);
    shard_name(tiny, shard, name);
    FILE *out = create(directory, name, error);
    if (!out) {
        free(header);
        return NOSA_IO_ERROR;
    }
    for (uint32_t i = 0; i < 8; i++)
        fputc((int)((uint64_t)header_bytes >> (8 * i)) & 0xff, out);
    fwrite(header, 1, header_bytes, out);
    free(header);
    for (uint32_t i = shard; i < list->count; i += tiny->n_shards)
        write_data(out, &list->tensors[i], tiny->seed);
    return finish(out, error);
}

static enum nosa_status write_index(const char *directory, const struct nosa_tiny_checkpoint *tiny,
                                    const struct tensor_list *list, struct nosa_error *error)
{
    uint64_t total = 0;
    FILE *out = create(directory, "model.safetensors.index.json", error);
    if (!out)
        return NOSA_IO_ERROR;
    for (uint32_t i = 0; i < list->count; i++)
        total += tensor_bytes(&list->tensors[i]);
    fprintf(out, "{\"metadata\": {\"total_size\": %llu}, \"weight_map\": {",
            (unsigned long long)total);
    for (uint32_t i = 0; i < list->count; i++) {
        char name[NAME_BYTES];
        shard_name(tiny, i % tiny->n_shards, name);
        fprintf(out, "%s\"%s\": \"%s\"", i ? ", " : "", list->tensors[i].name, name);
    }
    fprintf(out, "}}\n");
    return finish(out, error);
}

static enum nosa_status write_config(const char *directory, const struct nosa_tiny_checkpoint *tiny,
                                     struct nosa_error *error)
{
    static const char *const types[] = {"float32", "float16", "bfloat16"};
    const struct nosa_sparse_config *sparse = &tiny->sparse;
    FILE *out = create(directory, "config.json", error);
    if (!out)
        return NOSA_IO_ERROR;
    fprintf(out, "{\"architectures\": [\"%s\"], \"model_type\": \"llama\",\n",
            tiny->eviction_head ? "SparseLlamaForCausalLM" : "LlamaForCausalLM");
    fprintf(out, " \"hidden_size\": %u, \"num_hidden_layers\": %u, \"num_attention_heads\": %u,\n",
            tiny->hidden, tiny->n_layers, tiny->n_heads);
    fprintf(out, " \"num_key_value_heads\": %u, \"head_dim\": %u, \"intermediate_size\": %u,\n",
            tiny->n_kv_heads, tiny->head_dim, tiny->intermediate);
    fprintf(out, " \"vocab_size\": %u, \"max_position_embeddings\": %u, \"rms_norm_eps\": 1e-05,\n",
            tiny->vocab, tiny->max_positions);
    fprintf(out, " \"hidden_act\": \"silu\", \"rope_theta\": 10000.0, \"torch_dtype\": \"%s\",\n",
            types[tiny->dtype]);
    fprintf(out, " \"attention_bias\": %s, \"tie_word_embeddings\": %s",
            tiny->attention_bias ? "true" : "false", tiny->tie_word_embeddings ? "true" : "false");
    if (sparse->block_size)
        fprintf(out,
                ",\n \"sparse_config\": {\"kernel_size\": %u, \"kernel_stride\": %u, "
                "\"init_blocks\": %u, \"block_size\": %u, \"window_size\": %u, \"topk\": %u, "
                "\"select_blocks\": %u, \"dense_len\": %u}",
                sparse->kernel_size, sparse->kernel_stride, sparse->init_blocks, sparse->block_size,
                sparse->window_size, sparse->topk, sparse->select_blocks, sparse->dense_len);
    if (tiny->rope_scaling)
        fprintf(out, ",\n \"rope_scaling\": %s", tiny->rope_scaling);
    if (tiny->extra)
        fprintf(out, ",\n %s", tiny->extra);
    fprintf(out, "}\n");
    return finish(out, error);
}

enum nosa_status nosa_tiny_checkpoint_write(const char *directory,
                                            const struct nosa_tiny_checkpoint *tiny,
                                            struct nosa_error *error)
{
    struct tensor_list list = {NULL, 0};
    NOSA_ASSERT(tiny->n_shards > 0 && tiny->dtype != NOSA_TENSOR_OTHER);
    NOSA_ASSERT(tiny->dtype_rest != NOSA_TENSOR_OTHER);
    if (mkdir(directory, 0777) != 0 && errno != EEXIST)
        return nosa_error_set(error, NOSA_IO_ERROR, "%s: cannot make: %s", directory,
                              strerror(errno));
    enum nosa_status status = write_config(directory, tiny, error);
    if (status == NOSA_OK)
        status = list_tensors(tiny, &list, error);
    for (uint32_t shard = 0; status == NOSA_OK && shard < tiny->n_shards; shard++)
        status = write_shard(directory, tiny, &list, shard, error);
    if (status == NOSA_OK && tiny->n_shards > 1)
        status = write_index(directory, tiny, &list, error);
    free(list.tensors);
    return status;
}

void nosa_tiny_checkpoint_remove(const char *directory)
{
    DIR *listing = opendir(directory);
    struct dirent *entry;
    if (!listing)
        return;
    while ((entry = readdir(listing)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(listing), entry->d_name, 0);
    closedir(listing);
    rmdir(directory);
}
