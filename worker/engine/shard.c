#include "engine/shard.h"

static enum nosa_status check_division(const struct nosa_model_config *config, int32_t n_ranks,
                                       struct nosa_error *error)
{
    uint32_t tp = (uint32_t)n_ranks;
    if (config->n_heads % tp != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--tp %d does not divide the model's %u query heads", n_ranks,
                              config->n_heads);
    if (config->n_kv_heads % tp != 0 && tp % config->n_kv_heads != 0)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "--tp %d neither divides nor is a multiple of the model's %u KV heads", n_ranks,
            config->n_kv_heads);
    if (config->intermediate < tp)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--tp %d exceeds the model's feed-forward width %u", n_ranks,
                              config->intermediate);
    return NOSA_OK;
}

enum nosa_status nosa_shard_make(const struct nosa_model_config *config, int32_t n_ranks,
                                 int32_t rank, struct nosa_shard *out, struct nosa_error *error)
{
    NOSA_ASSERT(n_ranks >= 1 && rank >= 0 && rank < n_ranks);
    NOSA_TRY(check_division(config, n_ranks, error));
    int32_t n_heads = (int32_t)config->n_heads;
    int32_t n_kv_heads = (int32_t)config->n_kv_heads;
    int32_t group = n_heads / n_kv_heads;
    *out = (struct nosa_shard){.rank = rank, .n_ranks = n_ranks};
    if (n_kv_heads >= n_ranks) {
        out->kv_head_count = n_kv_heads / n_ranks;
        out->kv_head_first = rank * out->kv_head_count;
        out->attend_count = group;
    } else {
        int32_t replicas = n_ranks / n_kv_heads;
        out->kv_head_count = 1;
        out->kv_head_first = rank / replicas;
        out->attend_count = group / replicas;
        out->attend_first = rank % replicas * out->attend_count;
    }
    out->head_count = out->kv_head_count * group;
    out->head_first = out->kv_head_first * group;
    out->output_head_first = out->head_first + out->attend_first;
    out->output_head_count = out->kv_head_count * out->attend_count;
    int32_t columns = (int32_t)config->intermediate / n_ranks;
    int32_t larger = (int32_t)config->intermediate % n_ranks; /* ranks with one column more */
    out->intermediate_count = columns + (rank < larger);
    out->intermediate_first = rank * columns + (rank < larger ? rank : larger);
    int32_t vocab = (int32_t)config->vocab;
    out->vocab_stride = (vocab + n_ranks - 1) / n_ranks;
    out->vocab_first = rank * out->vocab_stride < vocab ? rank * out->vocab_stride : vocab;
    int32_t left = vocab - out->vocab_first;
    out->vocab_count = left < out->vocab_stride ? left : out->vocab_stride;
    NOSA_ASSERT(out->output_head_count * n_ranks == n_heads);
    return NOSA_OK;
}
