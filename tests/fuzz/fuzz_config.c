/*
 * config.json and generation_config.json from any bytes. What is accepted must keep the promises
 * of model/config.h, and its rotary frequencies must be numbers.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model/config.h"
#include "model/rope.h"

static void check_config(const struct nosa_model_config *config)
{
    const struct nosa_sparse_config *sparse = &config->sparse;
    double inv_freq[NOSA_MODEL_HEAD_DIM_MAX / 2];
    double attention_factor = 0;
    NOSA_ASSERT(config->hidden > 0 && config->hidden <= NOSA_MODEL_HIDDEN_MAX);
    NOSA_ASSERT(config->n_layers > 0 && config->n_layers <= NOSA_MODEL_LAYERS_MAX);
    NOSA_ASSERT(config->n_heads > 0 && config->n_heads <= NOSA_MODEL_HEADS_MAX);
    NOSA_ASSERT(config->n_kv_heads > 0 && config->n_heads % config->n_kv_heads == 0);
    NOSA_ASSERT(config->head_dim > 0 && config->head_dim % 16 == 0);
    NOSA_ASSERT(config->head_dim <= NOSA_MODEL_HEAD_DIM_MAX);
    NOSA_ASSERT(config->vocab > 0 && config->vocab <= NOSA_MODEL_VOCAB_MAX);
    NOSA_ASSERT(config->max_positions > 0 && config->rms_eps > 0);
    NOSA_ASSERT(config->n_eos <= NOSA_MODEL_EOS_MAX);
    for (uint32_t i = 0; i < config->n_eos; i++)
        NOSA_ASSERT(config->eos[i] >= 0 && (uint32_t)config->eos[i] < config->vocab);
    NOSA_ASSERT(sparse->block_size == NOSA_MODEL_BLOCK_SIZE && sparse->kernel_stride > 0);
    NOSA_ASSERT(sparse->block_size % sparse->kernel_stride == 0);
    NOSA_ASSERT(sparse->kernel_size == 2 * sparse->kernel_stride);
    NOSA_ASSERT(sparse->init_blocks + sparse->window_size / sparse->block_size +
                    sparse->select_blocks <=
                sparse->topk);
    nosa_rope_frequencies(config, inv_freq, &attention_factor);
    for (uint32_t i = 0; i < config->head_dim / 2; i++)
        NOSA_ASSERT(isfinite(inv_freq[i]) && inv_freq[i] > 0);
    NOSA_ASSERT(isfinite(attention_factor) && attention_factor > 0);
}

/* A refusal says why, in one line. */
static void check_error(const struct nosa_error *error)
{
    NOSA_ASSERT(error->status != NOSA_OK && error->status != NOSA_INTERNAL);
    NOSA_ASSERT(error->text[0] != '\0' && !strchr(error->text, '\n'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nosa_model_config config;
    struct nosa_generation_config generation;
    struct nosa_error error;
    nosa_error_clear(&error);
    if (nosa_model_config_parse((const char *)data, size, &config, &error) == NOSA_OK)
        check_config(&config);
    else
        check_error(&error);
    nosa_error_clear(&error);
    if (nosa_generation_config_parse((const char *)data, size, 1000, &generation, &error) !=
        NOSA_OK)
        check_error(&error);
    NOSA_ASSERT(generation.temperature >= 0 && generation.top_p > 0 && generation.top_p <= 1);
    NOSA_ASSERT(generation.repetition_penalty > 0 && generation.n_eos <= NOSA_MODEL_EOS_MAX);
    return 0;
}
