/*
 * Small random checkpoints for tests: a complete Hugging Face directory (config.json and
 * safetensors, no tokenizer) of any shape, the same bytes for the same options on any machine.
 *
 *     struct nosa_tiny_checkpoint tiny;
 *     nosa_tiny_checkpoint_defaults(&tiny);
 *     tiny.n_kv_heads = 2;
 *     assert_int_equal(nosa_tiny_checkpoint_write("/tmp/x", &tiny, &error), NOSA_OK);
 *     ...
 *     nosa_tiny_checkpoint_remove("/tmp/x");
 *
 * Values are drawn for each tensor from (seed, tensor name) in float32 and then rounded to the
 * type: sharding, the type and other tensors do not change them. They are scaled so that a model
 * of them behaves like one: with normalised inputs the scores q . k / sqrt(head_dim) have a
 * standard deviation of about 2.5 (attention is far from flat and differs between heads), the
 * biases c of the eviction head spread over several units of both signs, a layer adds about as
 * much as it finds, and the logits have a standard deviation of about 3.
 */
#ifndef NOSA_TESTS_SUPPORT_TINY_CHECKPOINT_H
#define NOSA_TESTS_SUPPORT_TINY_CHECKPOINT_H

#include "base/status.h"
#include "model/config.h"
#include "model/safetensors.h"

struct nosa_tiny_checkpoint {
    uint32_t hidden;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t intermediate;
    uint32_t vocab;
    uint32_t max_positions;
    enum nosa_tensor_dtype dtype;      /* F32, F16 or BF16: of the matrices */
    enum nosa_tensor_dtype dtype_rest; /* of norms, biases and the eviction head */
    bool eviction_head;
    bool attention_bias;
    bool tie_word_embeddings; /* then lm_head.weight is not written */
    uint32_t n_shards;        /* 1: model.safetensors; more: with model.safetensors.index.json */
    uint64_t seed;
    struct nosa_sparse_config sparse; /* written as sparse_config unless block_size is 0 */
    const char *rope_scaling;         /* JSON value of that key, or NULL */
    const char *extra;                /* further members of config.json, as `"key": value`, or NULL;
                                         a key that is written anyway is refused when read */
};

/* hidden 64, 2 layers, 4 heads, 2 KV heads, head_dim 16, intermediate 96, vocab 128, 4096
 * positions, float32, eviction head, no biases, untied, one file, seed 1, default sparse_config,
 * plain rope. */
void nosa_tiny_checkpoint_defaults(struct nosa_tiny_checkpoint *tiny);

/* Writes the directory, which is made when it does not exist; its parent must. Files of the same
 * names are replaced. */
enum nosa_status nosa_tiny_checkpoint_write(const char *directory,
                                            const struct nosa_tiny_checkpoint *tiny,
                                            struct nosa_error *error);

/* Removes the regular files in the directory, and the directory. */
void nosa_tiny_checkpoint_remove(const char *directory);

#endif
