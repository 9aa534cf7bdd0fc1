/*
 * The weights of one rank, packed for its device.
 *
 * One device allocation holds every matrix in the order in which a step reads them, so that a
 * decode step is one stream through memory. The eviction head's product is folded into the QKV
 * projection: delta . (W_v x + b_v) + delta_b = (delta W_v) x + (delta . b_v + delta_b), which
 * needs no values of other ranks. The folded rows are formed in double and carried as a high and a
 * low part in the weight's format, so that rounding them to 16 bits costs nothing.
 */
#ifndef NOSA_ENGINE_WEIGHTS_H
#define NOSA_ENGINE_WEIGHTS_H

#include "device.h"
#include "engine/shard.h"
#include "model/checkpoint.h"

/* All pointers are device memory inside nosa_model_weights' two allocations. */
struct nosa_layer_weights {
    const float *attention_norm;    /* [hidden] */
    const float *feed_forward_norm; /* [hidden] */
    struct nosa_weight qkv; /* q heads, k heads, v heads, fold high, fold low: qkv_columns rows */
    struct nosa_weight o;   /* [hidden, output_head_count * head_dim] */
    struct nosa_weight gate_up;
    struct nosa_weight down;
    const float *qkv_bias;       /* [qkv.n] or NULL */
    const float *o_bias;         /* [hidden] or NULL; rank 0 only */
    const float *eviction_scale; /* A [kv_head_count] or NULL */
};

struct nosa_model_weights {
    struct nosa_device *device;        /* borrowed */
    struct nosa_layer_weights *layers; /* [n_layers], owned */
    struct nosa_weight embedding;      /* rows of this rank; the output head's data when tied */
    struct nosa_weight output;
    const float *final_norm; /* [hidden] */
    const double *inv_freq;  /* [head_dim / 2] */
    double rope_scale;
    void *matrices; /* owned */
    size_t matrix_bytes;
    char *vectors; /* owned */
    size_t vector_bytes;
    int32_t k_max; /* over all matrices */
    int32_t n_max;
};

/* Called as tensors are packed, from the loading thread. */
typedef void (*nosa_load_progress)(void *context, uint64_t bytes_done, uint64_t bytes_total);

/* Packs this rank's part of every tensor. Blocks. On failure *out is empty. */
enum nosa_status nosa_model_weights_load(const struct nosa_checkpoint *checkpoint,
                                         const struct nosa_shard *shard, struct nosa_device *device,
                                         nosa_load_progress progress, void *progress_context,
                                         struct nosa_model_weights *out, struct nosa_error *error);
void nosa_model_weights_free(struct nosa_model_weights *weights);

#endif
