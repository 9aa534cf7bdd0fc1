/*
 * Geometry of the KV cache and the view of it that ops receive.
 *
 * A block is NOSA_BLOCK_TOKENS consecutive tokens of one sequence. Block ids name physical blocks;
 * a sequence's block table maps its logical block index to a block id. For one (block, layer, KV
 * head) there are
 *
 *   record           K and V, contiguous, in the KV type; the unit that tiers move. It lies in slot
 *                    record_slot[record index] of `records`.
 *   summary          what selection reads; it never leaves the first tier while a sequence that
 *                    uses the block lives: compressed keys and window biases of the windows that
 *                    END in the block, and the 64 biases c.
 *
 * Block b of a sequence owns windows r*b - 1 .. r*b + r - 2, r = 64 / kernel_stride; window j is
 * held by block (j + 1) / r in place (j + 1) % r. Place 0 of block 0 does not exist.
 *
 * Layout on the CPU. `pair` is 2 for 16-bit types and 1 for float32, so that one 4-byte unit holds
 * `pair` values that are consecutive in the direction in which products are summed:
 *
 *   K                [head_dim / pair][64 tokens][pair]
 *   V                [64 / pair tokens][head_dim][pair]
 *   compressed keys  [head_dim / pair][r][pair]
 *
 * Record and summary arrays are indexed by the record index
 * (layer * n_kv_heads + kv_head) * n_blocks + block id.
 */
#ifndef NOSA_KERNELS_KV_LAYOUT_H
#define NOSA_KERNELS_KV_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

#define NOSA_BLOCK_TOKENS 64

struct nosa_kv_geometry {
    int32_t n_layers;
    int32_t n_kv_heads; /* of this rank */
    int32_t head_dim;   /* multiple of 16, at most 256 */
    int32_t kernel_size;
    int32_t kernel_stride; /* divides 64; kernel_size is twice this */
    enum nosa_dtype type;  /* NOSA_DTYPE_F32 or NOSA_DTYPE_BF16 */
};

/* Device addresses. All arrays are owned by the store that made the view and live as long as it. */
struct nosa_kv_view {
    struct nosa_kv_geometry geometry;
    int32_t n_blocks;           /* block ids are 0 .. n_blocks - 1 */
    char *records;              /* [slots][record bytes] */
    const int32_t *record_slot; /* [n_layers * n_kv_heads * n_blocks] slot of each record */
    char *compressed_keys;      /* [n_layers * n_kv_heads * n_blocks][r * head_dim] KV type */
    float *window_bias;         /* [n_layers * n_kv_heads * n_blocks][r]: C */
    float *token_bias;          /* [n_layers * n_kv_heads * n_blocks][64]: c */
};

static inline int32_t nosa_kv_pair(const struct nosa_kv_geometry *geometry)
{
    return geometry->type == NOSA_DTYPE_F32 ? 1 : 2;
}

/* r: windows that start in (and windows that end in) one block. */
static inline int32_t nosa_kv_windows_per_block(const struct nosa_kv_geometry *geometry)
{
    return NOSA_BLOCK_TOKENS / geometry->kernel_stride;
}

/* Bytes of K (or of V) in a record. */
static inline size_t nosa_kv_half_bytes(const struct nosa_kv_geometry *geometry)
{
    return (size_t)NOSA_BLOCK_TOKENS * (size_t)geometry->head_dim *
           (size_t)nosa_dtype_bytes(geometry->type);
}

/* Bytes of a record: K, then V. A multiple of 4096 for every supported geometry. */
static inline size_t nosa_kv_record_bytes(const struct nosa_kv_geometry *geometry)
{
    return 2 * nosa_kv_half_bytes(geometry);
}

static inline size_t nosa_kv_compressed_key_bytes(const struct nosa_kv_geometry *geometry)
{
    return (size_t)nosa_kv_windows_per_block(geometry) * (size_t)geometry->head_dim *
           (size_t)nosa_dtype_bytes(geometry->type);
}

/* Bytes of everything a block keeps beside its record, per layer and KV head. */
static inline size_t nosa_kv_summary_bytes(const struct nosa_kv_geometry *geometry)
{
    return nosa_kv_compressed_key_bytes(geometry) +
           sizeof(float) * (size_t)(nosa_kv_windows_per_block(geometry) + NOSA_BLOCK_TOKENS);
}

static inline int64_t nosa_kv_record_index(const struct nosa_kv_view *view, int32_t layer,
                                           int32_t kv_head, int32_t block)
{
    return ((int64_t)layer * view->geometry.n_kv_heads + kv_head) * view->n_blocks + block;
}

/* Address of the record's K; its V follows at nosa_kv_half_bytes. */
static inline char *nosa_kv_record(const struct nosa_kv_view *view, int32_t layer, int32_t kv_head,
                                   int32_t block)
{
    int64_t record = nosa_kv_record_index(view, layer, kv_head, block);
    return view->records +
           (size_t)view->record_slot[record] * nosa_kv_record_bytes(&view->geometry);
}

/* Element offsets inside K, V and the compressed keys (CPU layout). */
static inline int32_t nosa_kv_k_offset(const struct nosa_kv_geometry *geometry, int32_t token,
                                       int32_t dim)
{
    int32_t pair = nosa_kv_pair(geometry);
    return ((dim / pair) * NOSA_BLOCK_TOKENS + token) * pair + dim % pair;
}

static inline int32_t nosa_kv_v_offset(const struct nosa_kv_geometry *geometry, int32_t token,
                                       int32_t dim)
{
    int32_t pair = nosa_kv_pair(geometry);
    return ((token / pair) * geometry->head_dim + dim) * pair + token % pair;
}

static inline int32_t nosa_kv_compressed_offset(const struct nosa_kv_geometry *geometry,
                                                int32_t place, int32_t dim)
{
    int32_t pair = nosa_kv_pair(geometry);
    return ((dim / pair) * nosa_kv_windows_per_block(geometry) + place) * pair + dim % pair;
}

#endif
