/*
 * What a checkpoint's config.json and generation_config.json say, checked.
 *
 * Parsing either fills a plain struct whose every number is inside the limits below, or returns
 * one line that names the key and why its value is refused. Callers of the structs therefore
 * multiply sizes without checking again: every product of two or three of them that the engine
 * forms fits in 64 bits. Used by the checkpoint loader; any thread; nothing here keeps state.
 *
 * Keys are those of Hugging Face's Llama family; `sparse_config` is NOSA's own.
 */
#ifndef NOSA_MODEL_CONFIG_H
#define NOSA_MODEL_CONFIG_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NOSA_MODEL_HIDDEN_MAX       65536
#define NOSA_MODEL_LAYERS_MAX       512
#define NOSA_MODEL_HEADS_MAX        1024
#define NOSA_MODEL_GROUP_MAX        64 /* query heads per KV head: what the attention ops take */
#define NOSA_MODEL_HEAD_DIM_MAX     256
#define NOSA_MODEL_INTERMEDIATE_MAX (1 << 20)
#define NOSA_MODEL_VOCAB_MAX        (1 << 22)
#define NOSA_MODEL_POSITIONS_MAX    (1 << 26)
#define NOSA_MODEL_EOS_MAX          64
#define NOSA_MODEL_BLOCK_SIZE       64 /* tokens of a block record; the only block_size there is */

enum nosa_rope_type {
    NOSA_ROPE_NONE,     /* no scaling: plain rotary positions */
    NOSA_ROPE_LINEAR,   /* positions divided by factor */
    NOSA_ROPE_LLAMA3,   /* long wavelengths divided by factor, a smooth band between */
    NOSA_ROPE_YARN,     /* a ramp between interpolation and extrapolation by rotation count */
    NOSA_ROPE_LONGROPE, /* a factor for each frequency */
};

/* Rotary positions. Which fields count depends on `type`; the others are 0. */
struct nosa_rope_config {
    enum nosa_rope_type type;
    double theta;                    /* base of the frequencies, > 1 */
    double factor;                   /* linear, llama3, yarn, longrope: context extension */
    double low_freq_factor;          /* llama3 */
    double high_freq_factor;         /* llama3, > low_freq_factor */
    double beta_fast;                /* yarn, default 32 */
    double beta_slow;                /* yarn, default 1 */
    double mscale;                   /* yarn, 0: absent */
    double mscale_all_dim;           /* yarn, 0: absent */
    bool truncate;                   /* yarn: the ramp starts and ends at whole dimensions */
    double attention_factor;         /* yarn, longrope: scale of cos and sin; 0: by formula */
    uint32_t original_max_positions; /* llama3, yarn, longrope: context before extension */
    double short_factor[NOSA_MODEL_HEAD_DIM_MAX / 2]; /* longrope: [head_dim / 2] */
};

/* Block-sparse attention. After parsing: block_size is 64, kernel_size == 2 * kernel_stride,
 * block_size % kernel_stride == 0, window_size % block_size == 0, and
 * init_blocks + window_size / block_size + select_blocks <= topk. */
struct nosa_sparse_config {
    uint32_t kernel_size;   /* tokens of a compression window, default 32 */
    uint32_t kernel_stride; /* tokens between starts of windows, default 16 */
    uint32_t init_blocks;   /* sink blocks, always selected, default 1 */
    uint32_t block_size;    /* tokens of a block, 64 */
    uint32_t window_size;   /* tokens of the local window, default 1024 */
    uint32_t topk;          /* blocks selected in all, default 64 */
    uint32_t select_blocks; /* query-aware blocks of the first cut, default 16 */
    uint32_t dense_len;     /* 0 */
};

/* Sizes of the selection that may be tried in place of a checkpoint's; 0 keeps the checkpoint's. */
struct nosa_sparse_sizes {
    uint32_t topk;
    uint32_t window_size; /* tokens */
    uint32_t select_blocks;
};

enum nosa_model_dtype_hint {
    NOSA_DTYPE_HINT_NONE, /* the config does not say, or says something else */
    NOSA_DTYPE_HINT_F32,
    NOSA_DTYPE_HINT_F16,
    NOSA_DTYPE_HINT_BF16,
};

struct nosa_model_config {
    uint32_t hidden; /* width of the residual stream */
    uint32_t n_layers;
    uint32_t n_heads;      /* query heads */
    uint32_t n_kv_heads;   /* n_heads is 1 to NOSA_MODEL_GROUP_MAX times this */
    uint32_t head_dim;     /* a multiple of 16, at most 256; n_heads * head_dim may differ
                              from hidden */
    uint32_t intermediate; /* width of the feed-forward layer */
    uint32_t vocab;
    uint32_t max_positions; /* longest context in tokens */
    double rms_eps;
    bool tie_word_embeddings; /* the output head is the embedding */
    bool attention_bias;      /* q, k, v and o projections have biases, and so has the head */
    bool has_eviction_head;   /* false after parsing; nosa_checkpoint_open sets it by the tensors */
    struct nosa_rope_config rope;
    struct nosa_sparse_config sparse;
    uint32_t n_eos;
    int32_t eos[NOSA_MODEL_EOS_MAX];       /* [n_eos], any of them ends; distinct, each < vocab */
    enum nosa_model_dtype_hint dtype_hint; /* torch_dtype or dtype; the tensors decide */
};

/* How the checkpoint wants to be sampled. A key that the file lacks is off (and a missing file
 * is greedy): temperature 1, top_k 0, top_p 1, min_p 0, repetition_penalty 1. */
struct nosa_generation_config {
    bool do_sample;            /* false: greedy, whatever the rest says */
    double temperature;        /* >= 0; 0 is greedy */
    double top_p;              /* (0, 1] */
    uint32_t top_k;            /* 0: off */
    double min_p;              /* [0, 1] */
    double repetition_penalty; /* > 0 */
    uint32_t n_eos;
    int32_t eos[NOSA_MODEL_EOS_MAX]; /* [n_eos], may be empty */
};

/* Parses config.json from `bytes` bytes of JSON text (no terminator needed). On failure `config`
 * is zeroed. NOSA_CORRUPT: not JSON; NOSA_INVALID_ARGUMENT: a value that makes no sense;
 * NOSA_UNSUPPORTED: a model that is not implemented; NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_model_config_parse(const char *json, size_t bytes,
                                         struct nosa_model_config *config,
                                         struct nosa_error *error);

/* The same for `directory`/config.json; the error then begins with the file's path. */
enum nosa_status nosa_model_config_load(const char *directory, struct nosa_model_config *config,
                                        struct nosa_error *error);

/* The defaults of a checkpoint without generation_config.json: greedy. */
void nosa_generation_config_default(struct nosa_generation_config *generation);

/* Puts sizes that are not 0 in place of the config's. INVALID_ARGUMENT when the result breaks a
 * rule of struct nosa_sparse_config; it is then unchanged. */
enum nosa_status nosa_sparse_config_resize(struct nosa_sparse_config *sparse,
                                           const struct nosa_sparse_sizes *sizes,
                                           struct nosa_error *error);

/* Parses generation_config.json; `vocab` bounds the token ids (0: not checked). On failure the
 * defaults are left in `generation`. */
enum nosa_status nosa_generation_config_parse(const char *json, size_t bytes, uint32_t vocab,
                                              struct nosa_generation_config *generation,
                                              struct nosa_error *error);

/* The same for `directory`/generation_config.json; a missing file gives the defaults and NOSA_OK.
 */
enum nosa_status nosa_generation_config_load(const char *directory, uint32_t vocab,
                                             struct nosa_generation_config *generation,
                                             struct nosa_error *error);

/* Adds the end ids of generation_config.json to those of config.json: any of either ends.
 * More than NOSA_MODEL_EOS_MAX in all is NOSA_INVALID_ARGUMENT. */
enum nosa_status nosa_model_config_add_eos(struct nosa_model_config *config,
                                           const struct nosa_generation_config *generation,
                                           struct nosa_error *error);

/* Whether `token` ends a text. */
bool nosa_model_config_is_eos(const struct nosa_model_config *config, int32_t token);

#endif
