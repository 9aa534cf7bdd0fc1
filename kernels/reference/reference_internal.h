/* Inside the references: one function per op, and access to packed layouts by element. */
#ifndef NOSA_KERNELS_REFERENCE_INTERNAL_H
#define NOSA_KERNELS_REFERENCE_INTERNAL_H

#include "reference/reference.h"

/* Element [column][k] of a packed weight. */
float nosa_reference_weight_at(const struct nosa_weight *weight, int32_t column, int32_t k);

/* Stored elements of a record or summary, in the KV type, as float32. */
float nosa_reference_k_at(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                          int32_t block, int32_t token, int32_t dim);
float nosa_reference_v_at(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                          int32_t block, int32_t token, int32_t dim);
float nosa_reference_ck_at(const struct nosa_kv_view *kv, int32_t layer, int32_t kv_head,
                           int32_t block, int32_t place, int32_t dim);

/* Element `index` of an array of the KV type becomes `value`, rounded once. */
void nosa_reference_store(enum nosa_dtype type, void *array, int64_t index, float value);

/* The block id of a row's logical block. */
static inline int32_t nosa_reference_block(const struct nosa_batch_view *batch, int32_t row,
                                           int32_t logical)
{
    return batch->block_table[(int64_t)batch->row_seq[row] * batch->table_stride + logical];
}

enum nosa_status nosa_reference_embed(struct nosa_stream *stream,
                                      const struct nosa_embed_params *params);
enum nosa_status nosa_reference_rms_norm(struct nosa_stream *stream,
                                         const struct nosa_rms_norm_params *params);
enum nosa_status nosa_reference_matmul(struct nosa_stream *stream,
                                       const struct nosa_matmul_params *params);
enum nosa_status nosa_reference_rope_table(struct nosa_stream *stream,
                                           const struct nosa_rope_table_params *params);
enum nosa_status nosa_reference_add(struct nosa_stream *stream,
                                    const struct nosa_add_params *params);
enum nosa_status nosa_reference_qkv_write(struct nosa_stream *stream,
                                          const struct nosa_qkv_write_params *params);
enum nosa_status nosa_reference_compress_keys(struct nosa_stream *stream,
                                              const struct nosa_compress_keys_params *params);
enum nosa_status nosa_reference_select_blocks(struct nosa_stream *stream,
                                              const struct nosa_select_blocks_params *params);
enum nosa_status nosa_reference_attention(struct nosa_stream *stream,
                                          const struct nosa_attention_params *params);
enum nosa_status nosa_reference_sample(struct nosa_stream *stream,
                                       const struct nosa_sample_params *params);
enum nosa_status nosa_reference_log_prob(struct nosa_stream *stream,
                                         const struct nosa_log_prob_params *params);
enum nosa_status nosa_reference_kv_update(struct nosa_stream *stream,
                                          const struct nosa_kv_update_params *params);
enum nosa_status nosa_reference_kv_load(struct nosa_stream *stream,
                                        const struct nosa_kv_load_params *params);
enum nosa_status nosa_reference_kv_place(struct nosa_stream *stream,
                                         const struct nosa_kv_place_params *params);
enum nosa_status nosa_reference_kv_fetch(struct nosa_stream *stream,
                                         const struct nosa_kv_fetch_params *params);
enum nosa_status nosa_reference_kv_resolve(struct nosa_stream *stream,
                                           const struct nosa_kv_resolve_params *params);
enum nosa_status nosa_reference_kv_save(struct nosa_stream *stream,
                                        const struct nosa_kv_save_params *params);

#endif
