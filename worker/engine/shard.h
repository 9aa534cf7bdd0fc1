/*
 * How a model is cut over the ranks of a tensor-parallel group.
 *
 * Query heads are split evenly, feed-forward columns as evenly as they go (the first ranks have one
 * more). KV heads are split evenly, or, with more ranks than KV heads, each KV head is held by tp /
 * n_kv_heads ranks: such a replica scores with all query heads of its group, so that every replica
 * selects the same blocks without an exchange, but attends with and projects only its own.
 * Vocabulary rows are split in parts of ceil(vocab / tp), the last ones shorter.
 */
#ifndef NOSA_ENGINE_SHARD_H
#define NOSA_ENGINE_SHARD_H

#include <stdint.h>

#include "base/status.h"
#include "model/config.h"

struct nosa_shard {
    int32_t rank;
    int32_t n_ranks;
    int32_t kv_head_first; /* KV heads [first, first + count) are held here */
    int32_t kv_head_count;
    int32_t head_first; /* query heads [first, first + count): projected, rotated, used to score */
    int32_t head_count;
    int32_t attend_first;      /* of each group's query heads, those that this rank attends with */
    int32_t attend_count;      /* per KV head */
    int32_t output_head_first; /* model-wide index of the first head that this rank attends with */
    int32_t output_head_count; /* kv_head_count * attend_count */
    int32_t intermediate_first;
    int32_t intermediate_count;
    int32_t vocab_first;
    int32_t vocab_count;  /* rows here; 0 for a last rank that got none */
    int32_t vocab_stride; /* ceil(vocab / n_ranks): columns of a rank's part of the logits */
};

/* Cuts for one rank. INVALID_ARGUMENT, in one line, when the heads do not divide or there are
 * more ranks than columns. */
enum nosa_status nosa_shard_make(const struct nosa_model_config *config, int32_t n_ranks,
                                 int32_t rank, struct nosa_shard *out, struct nosa_error *error);

#endif
