#include "base/hash.h"
#include "model/checkpoint.h"

#include <string.h>

/* Changes whenever what is hashed, or its order, does. */
#define IDENTITY_VERSION 1

static enum nosa_status add_u64(struct nosa_sha256 *hash, uint64_t value, struct nosa_error *error)
{
    uint8_t bytes[8];
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    return nosa_sha256_update(hash, bytes, sizeof bytes, error);
}

static enum nosa_status add_double(struct nosa_sha256 *hash, double value, struct nosa_error *error)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return add_u64(hash, bits, error);
}

static enum nosa_status add_config(struct nosa_sha256 *hash, const struct nosa_model_config *config,
                                   struct nosa_error *error)
{
    const struct nosa_rope_config *rope = &config->rope;
    const struct nosa_sparse_config *sparse = &config->sparse;
    const uint64_t integers[] = {
        IDENTITY_VERSION,
        config->hidden,
        config->n_layers,
        config->n_heads,
        config->n_kv_heads,
        config->head_dim,
        config->intermediate,
        config->vocab,
        config->max_positions,
        config->tie_word_embeddings,
        config->attention_bias,
        config->has_eviction_head,
        rope->type,
        rope->truncate,
        rope->original_max_positions,
        sparse->kernel_size,
        sparse->kernel_stride,
        sparse->init_blocks,
        sparse->block_size,
        sparse->window_size,
        sparse->topk,
        sparse->select_blocks,
        sparse->dense_len,
    };
    const double numbers[] = {
        config->rms_eps,        rope->theta,
        rope->factor,           rope->low_freq_factor,
        rope->high_freq_factor, rope->beta_fast,
        rope->beta_slow,        rope->mscale,
        rope->mscale_all_dim,   rope->attention_factor,
    };
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++)
        NOSA_TRY(add_u64(hash, integers[i], error));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        NOSA_TRY(add_double(hash, numbers[i], error));
    for (size_t i = 0; i < config->head_dim / 2; i++)
        NOSA_TRY(add_double(hash, rope->short_factor[i], error));
    return NOSA_OK;
}

static enum nosa_status add_tensor(struct nosa_sha256 *hash,
                                   const struct nosa_checkpoint *checkpoint,
                                   enum nosa_tensor_role role, uint32_t layer,
                                   struct nosa_error *error)
{
    const struct nosa_tensor *tensor = nosa_checkpoint_tensor(checkpoint, role, layer);
    if (!tensor)
        return NOSA_OK;
    NOSA_TRY(nosa_checkpoint_check(checkpoint, tensor, error));
    NOSA_TRY(add_u64(hash, (uint64_t)role, error));
    NOSA_TRY(add_u64(hash, layer, error));
    NOSA_TRY(add_u64(hash, tensor->dtype, error));
    for (uint32_t i = 0; i < tensor->rank; i++)
        NOSA_TRY(add_u64(hash, tensor->shape[i], error));
    NOSA_TRY(add_u64(hash, nosa_hash64(tensor->data, tensor->bytes, 0), error));
    nosa_checkpoint_release(checkpoint, tensor);
    return NOSA_OK;
}

enum nosa_status nosa_checkpoint_identity(const struct nosa_checkpoint *checkpoint,
                                          uint8_t identity[NOSA_CHECKPOINT_IDENTITY_BYTES],
                                          struct nosa_error *error)
{
    _Static_assert(NOSA_CHECKPOINT_IDENTITY_BYTES == NOSA_SHA256_SIZE,
                   "the digest is the identity");
    const struct nosa_model_config *config = nosa_checkpoint_config(checkpoint);
    struct nosa_sha256 hash = {NULL};
    enum nosa_status status = nosa_sha256_init(&hash, error);
    if (status == NOSA_OK)
        status = add_config(&hash, config, error);
    for (uint32_t layer = 0; status == NOSA_OK && layer < config->n_layers; layer++)
        for (int role = 0; status == NOSA_OK && role < NOSA_TENSOR_ROLES; role++)
            if (layer == 0 || role >= NOSA_TENSOR_ATTENTION_NORM)
                status = add_tensor(&hash, checkpoint, (enum nosa_tensor_role)role, layer, error);
    if (status == NOSA_OK)
        status = nosa_sha256_final(&hash, identity, error);
    nosa_sha256_free(&hash);
    return status;
}
