/* The table of references. */
#include "reference_internal.h"

const struct nosa_op_table nosa_reference_ops = {
    .embed = nosa_reference_embed,
    .rms_norm = nosa_reference_rms_norm,
    .matmul = nosa_reference_matmul,
    .rope_table = nosa_reference_rope_table,
    .qkv_write = nosa_reference_qkv_write,
    .compress_keys = nosa_reference_compress_keys,
    .select_blocks = nosa_reference_select_blocks,
    .attention = nosa_reference_attention,
    .add = nosa_reference_add,
    .sample = nosa_reference_sample,
    .log_prob = nosa_reference_log_prob,
    .kv_update = nosa_reference_kv_update,
    .kv_load = nosa_reference_kv_load,
    .kv_place = nosa_reference_kv_place,
    .kv_fetch = nosa_reference_kv_fetch,
    .kv_resolve = nosa_reference_kv_resolve,
    .kv_save = nosa_reference_kv_save,
};
