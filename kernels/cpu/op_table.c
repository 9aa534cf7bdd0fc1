/* The op table of one instruction set. */
#include "cpu/cpu_internal.h"

const struct nosa_cpu_isa_ops NOSA_CPU_NAME(nosa_cpu_ops) = {
    .table =
        {
            .embed = NOSA_CPU_NAME(nosa_cpu_embed),
            .rms_norm = NOSA_CPU_NAME(nosa_cpu_rms_norm),
            .matmul = NOSA_CPU_NAME(nosa_cpu_matmul),
            .rope_table = NOSA_CPU_NAME(nosa_cpu_rope_table),
            .qkv_write = NOSA_CPU_NAME(nosa_cpu_qkv_write),
            .compress_keys = NOSA_CPU_NAME(nosa_cpu_compress_keys),
            .select_blocks = NOSA_CPU_NAME(nosa_cpu_select_blocks),
            .attention = NOSA_CPU_NAME(nosa_cpu_attention),
            .add = NOSA_CPU_NAME(nosa_cpu_add),
            .sample = NOSA_CPU_NAME(nosa_cpu_sample),
            .log_prob = NOSA_CPU_NAME(nosa_cpu_log_prob),
            .kv_update = nosa_cpu_kv_update,
            .kv_load = nosa_cpu_kv_load,
            .kv_place = nosa_cpu_kv_place,
            .kv_fetch = nosa_cpu_kv_fetch,
            .kv_resolve = nosa_cpu_kv_resolve,
            .kv_save = nosa_cpu_kv_save,
        },
    .matmul_scratch_bytes = NOSA_CPU_NAME(nosa_cpu_matmul_scratch_bytes),
    .select_scratch_bytes = NOSA_CPU_NAME(nosa_cpu_select_scratch_bytes),
    .attention_scratch_bytes = NOSA_CPU_NAME(nosa_cpu_attention_scratch_bytes),
    .sample_scratch_bytes = NOSA_CPU_NAME(nosa_cpu_sample_scratch_bytes),
    .attention_partial_floats = NOSA_CPU_NAME(nosa_cpu_attention_partial_floats),
    .attention_counter_count = NOSA_CPU_NAME(nosa_cpu_attention_counter_count),
};
