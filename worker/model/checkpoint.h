/*
 * A Hugging Face directory, opened and checked as a whole before anything is loaded.
 *
 * nosa_checkpoint_open reads config.json and generation_config.json, maps the safetensors files
 * (model.safetensors, or the shards of model.safetensors.index.json, or the directory's only
 * *.safetensors), and checks every tensor that the model needs: present, of the shape that the
 * config gives, of a type that can be loaded. What it returns is constant: any thread may read
 * it, and the accessors cannot fail. The engine's loader packs the tensors one after another and
 * gives back each one's pages with nosa_checkpoint_release.
 */
#ifndef NOSA_MODEL_CHECKPOINT_H
#define NOSA_MODEL_CHECKPOINT_H

#include "base/status.h"
#include "model/config.h"
#include "model/safetensors.h"

#include <stdint.h>

/* The tensors of a model. Shapes are [rows, columns] as stored: y = W x. With H = hidden,
 * Q = n_heads * head_dim, KV = n_kv_heads * head_dim, F = intermediate, V = vocab. */
enum nosa_tensor_role {
    /* once; their layer is 0 */
    NOSA_TENSOR_EMBEDDING,  /* model.embed_tokens.weight [V, H] */
    NOSA_TENSOR_FINAL_NORM, /* model.norm.weight [H] */
    NOSA_TENSOR_OUTPUT,     /* lm_head.weight [V, H]; the embedding's tensor when tied */
    /* of each layer, under model.layers.N. */
    NOSA_TENSOR_ATTENTION_NORM,    /* input_layernorm.weight [H] */
    NOSA_TENSOR_Q,                 /* self_attn.q_proj.weight [Q, H] */
    NOSA_TENSOR_K,                 /* self_attn.k_proj.weight [KV, H] */
    NOSA_TENSOR_V,                 /* self_attn.v_proj.weight [KV, H] */
    NOSA_TENSOR_O,                 /* self_attn.o_proj.weight [H, Q] */
    NOSA_TENSOR_Q_BIAS,            /* self_attn.q_proj.bias [Q], with attention_bias, as the next */
    NOSA_TENSOR_K_BIAS,            /* self_attn.k_proj.bias [KV] */
    NOSA_TENSOR_V_BIAS,            /* self_attn.v_proj.bias [KV] */
    NOSA_TENSOR_O_BIAS,            /* self_attn.o_proj.bias [H] */
    NOSA_TENSOR_FEED_FORWARD_NORM, /* post_attention_layernorm.weight [H] */
    NOSA_TENSOR_GATE,              /* mlp.gate_proj.weight [F, H] */
    NOSA_TENSOR_UP,                /* mlp.up_proj.weight [F, H] */
    NOSA_TENSOR_DOWN,              /* mlp.down_proj.weight [H, F] */
    /* of each layer with an eviction head */
    NOSA_TENSOR_DELTA,      /* self_attn.delta.weight [n_kv_heads, KV] */
    NOSA_TENSOR_DELTA_BIAS, /* self_attn.delta.bias [n_kv_heads], with attention_bias */
    NOSA_TENSOR_A,          /* self_attn.A [n_kv_heads] */
    NOSA_TENSOR_ROLES,      /* how many there are */
};

#define NOSA_CHECKPOINT_IDENTITY_BYTES 32

struct nosa_checkpoint;

/* Opens `directory`. On failure *checkpoint is NULL and the error names the file and the key or
 * tensor. May block on the disk for the headers, never for the weights. */
enum nosa_status nosa_checkpoint_open(const char *directory, struct nosa_checkpoint **checkpoint,
                                      struct nosa_error *error);

/* Unmaps everything; its tensors end here. NULL is allowed. */
void nosa_checkpoint_close(struct nosa_checkpoint *checkpoint);

/* The config, with has_eviction_head set and the end ids of both files. */
const struct nosa_model_config *nosa_checkpoint_config(const struct nosa_checkpoint *checkpoint);

/* Forgets the eviction head, if there is one: c = 0 from then on, as in the base model. Call it
 * before anything reads the config; the identity becomes the base model's. */
void nosa_checkpoint_ignore_head(struct nosa_checkpoint *checkpoint);

/* Selects with other sizes than the files say, see nosa_sparse_config_resize; the identity becomes
 * another one. Call it before anything reads the config. */
enum nosa_status nosa_checkpoint_set_sparse(struct nosa_checkpoint *checkpoint,
                                            const struct nosa_sparse_sizes *sizes,
                                            struct nosa_error *error);

const struct nosa_generation_config *
nosa_checkpoint_generation_config(const struct nosa_checkpoint *checkpoint);

/* The tensor of a role (layer 0 for those that the model has once), or NULL when this model has
 * none: biases without attention_bias, the eviction head when it is absent. Its shape is the one
 * in the enum above, its type F32, F16 or BF16. The data may be unaligned. */
const struct nosa_tensor *nosa_checkpoint_tensor(const struct nosa_checkpoint *checkpoint,
                                                 enum nosa_tensor_role role, uint32_t layer);

/* The one type of all the matrices (embedding, projections, output). Norms, biases and the
 * eviction head may each have another one. */
enum nosa_tensor_dtype nosa_checkpoint_matrix_dtype(const struct nosa_checkpoint *checkpoint);

/* Bytes of all the tensors that the model uses (a tied output counted once): the total of a
 * loader's progress. */
uint64_t nosa_checkpoint_weight_bytes(const struct nosa_checkpoint *checkpoint);

/* Whether the tensor's file is still as long as it was; ask before reading a tensor, since reading
 * a mapping past the end of a file that was cut short kills the process. */
enum nosa_status nosa_checkpoint_check(const struct nosa_checkpoint *checkpoint,
                                       const struct nosa_tensor *tensor, struct nosa_error *error);

/* Gives back the pages that reading `tensor` brought in; call when it is packed. */
void nosa_checkpoint_release(const struct nosa_checkpoint *checkpoint,
                             const struct nosa_tensor *tensor);

/* The identity of what the model computes: SHA-256 over the config's values and, for each tensor
 * used, its role, layer, type, shape and XXH3-64 of its bytes. Equal for equal weights however
 * they are sharded. Reads all the weights (about memory speed) each time it is called, so callers
 * ask once, when a cache outlives the process. Guards against mistakes, not against forgery. */
enum nosa_status nosa_checkpoint_identity(const struct nosa_checkpoint *checkpoint,
                                          uint8_t identity[NOSA_CHECKPOINT_IDENTITY_BYTES],
                                          struct nosa_error *error);

#endif
