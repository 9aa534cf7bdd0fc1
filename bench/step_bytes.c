/* The bytes that a decode step cannot avoid reading. */
#include "bench.h"
#include "kv_layout.h"

/* Of one sequence, one layer and one KV head. */
static double kv_bytes(const struct nosa_model_config *config,
                       const struct nosa_kv_geometry *geometry, enum nosa_attention_mode mode,
                       bool has_bias, int32_t context)
{
    double blocks = (double)context / NOSA_BLOCK_TOKENS;
    double per_block = (double)nosa_kv_record_bytes(geometry);
    if (has_bias)
        per_block += sizeof(float) * NOSA_BLOCK_TOKENS;
    if (mode == NOSA_ATTENTION_FULL)
        return blocks * per_block;
    double scored = (double)nosa_kv_compressed_key_bytes(geometry);
    if (mode == NOSA_ATTENTION_NOSA && has_bias)
        scored += sizeof(float) * nosa_kv_windows_per_block(geometry);
    double selected = blocks < config->sparse.topk ? blocks : config->sparse.topk;
    return selected * per_block + blocks * scored;
}

double bench_step_bytes(const struct nosa_model_config *config,
                        const struct nosa_kv_geometry *geometry, enum nosa_attention_mode mode,
                        bool has_bias, double weight_bytes, int32_t batch, int32_t context)
{
    double heads = (double)geometry->n_layers * geometry->n_kv_heads;
    return weight_bytes + batch * heads * kv_bytes(config, geometry, mode, has_bias, context);
}
