/*
 * Geometry of the KV cache and the view of it that ops receive.
 *
 * A block is NOSA_BLOCK_TOKENS consecutive tokens of one sequence. Block ids name physical blocks;
 * a sequence's block table maps its logical block index to a block id. For one (block, layer, KV
 * head) there are
 *
 *   record           K and V, contiguous, in the KV type; the unit that tiers move. It lies in slot
 *                    record_slot[record index] of `records`, or, where that is NOSA_KV_SLOT_NONE,
 *                    in the block's image in host memory.
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
 *
 * Slots are dealt in pools of equal size, one for each (layer, KV head) of the rank: pool
 * p = layer * n_kv_heads + kv_head has slots p * n_slots .. (p + 1) * n_slots - 1. Every block
 * needs one record of each pool, so pools fill alike, and heads do not contend for one another's
 * slots: on a GPU one thread block decides about a pool on its own.
 *
 * An image is a whole block in host memory (and, the same bytes, in an extent on NVMe), over all
 * ranks: the records by [layer][KV head of the model], then the summaries by the same order, each
 * compressed keys, window biases, biases c; padded to a multiple of 4096 bytes.
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
    int32_t n_blocks;      /* block ids are 0 .. n_blocks - 1 */
    int32_t n_slots;       /* of one pool; at least n_blocks: record i lies in slot i for ever */
    char *records;         /* [n_layers * n_kv_heads * n_slots][record bytes] */
    int32_t *record_slot;  /* [n_layers * n_kv_heads * n_blocks] slot of each record, or
                              NOSA_KV_SLOT_NONE */
    char *compressed_keys; /* [n_layers * n_kv_heads * n_blocks][r * head_dim] KV type */
    float *window_bias;    /* [n_layers * n_kv_heads * n_blocks][r]: C */
    float *token_bias;     /* [n_layers * n_kv_heads * n_blocks][64]: c */

    /* What only a first tier with fewer slots than blocks has; else NULL and 0. */
    int32_t *slot_block;   /* [n_layers * n_kv_heads * n_slots] block held, or NOSA_KV_BLOCK_NONE */
    uint32_t *slot_touch;  /* [n_layers * n_kv_heads * n_slots] step of the last use */
    uint8_t *slot_fetched; /* [n_layers * n_kv_heads * n_slots] 1: brought up before it was asked
                              for, and not used since */
    uint32_t *record_use;  /* [n_layers * n_kv_heads * n_blocks] step that selected it last */
    float *record_weight;  /* [n_layers * n_kv_heads * n_blocks] how often steps selected it, as of
                              that one (kv_policy.h); 0: none did */
    uint8_t *block_class;  /* [n_blocks] enum nosa_kv_class */
    int32_t *block_image;  /* [n_blocks] image that holds the block's records, or
                              NOSA_KV_IMAGE_NONE */
    char *images;          /* [..][image_bytes] pinned host memory */
    size_t image_bytes;
    int32_t image_kv_heads;      /* KV heads of the model */
    int32_t image_kv_head_first; /* the model's KV head that is this rank's first */
};

#define NOSA_KV_SLOT_NONE  (-1)
#define NOSA_KV_BLOCK_NONE (-1)
#define NOSA_KV_IMAGE_NONE (-1)

/* What the choice of victims knows of a block; the host sets it between steps. */
enum nosa_kv_class {
    NOSA_KV_CLASS_SPARE = 0,  /* no sequence that runs uses it: its records go first */
    NOSA_KV_CLASS_IN_USE = 1, /* they may be given up */
    NOSA_KV_CLASS_LOCKED = 2, /* they are the only copy, or being written: they stay */
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

/* Bytes of an image of a model with image_kv_heads KV heads. */
static inline size_t nosa_kv_image_bytes(const struct nosa_kv_geometry *geometry,
                                         int32_t image_kv_heads)
{
    size_t bytes = (size_t)geometry->n_layers * (size_t)image_kv_heads *
                   (nosa_kv_record_bytes(geometry) + nosa_kv_summary_bytes(geometry));
    return (bytes + 4095) / 4096 * 4096;
}

/* Place of (layer, KV head of the rank) among the records, and the summaries, of an image. */
static inline size_t nosa_kv_image_index(const struct nosa_kv_view *view, int32_t layer,
                                         int32_t kv_head)
{
    return (size_t)layer * (size_t)view->image_kv_heads +
           (size_t)(view->image_kv_head_first + kv_head);
}

static inline char *nosa_kv_image_record(const struct nosa_kv_view *view, int32_t image,
                                         int32_t layer, int32_t kv_head)
{
    return view->images + (size_t)image * view->image_bytes +
           nosa_kv_image_index(view, layer, kv_head) * nosa_kv_record_bytes(&view->geometry);
}

/* Compressed keys, then window biases, then the biases c of (layer, KV head of the rank). */
static inline char *nosa_kv_image_summary(const struct nosa_kv_view *view, int32_t image,
                                          int32_t layer, int32_t kv_head)
{
    size_t n_records = (size_t)view->geometry.n_layers * (size_t)view->image_kv_heads;
    return view->images + (size_t)image * view->image_bytes +
           n_records * nosa_kv_record_bytes(&view->geometry) +
           nosa_kv_image_index(view, layer, kv_head) * nosa_kv_summary_bytes(&view->geometry);
}

/* Address of the record's K, in its slot or in the block's image; its V follows at
 * nosa_kv_half_bytes. The record must be in one of the two. */
static inline char *nosa_kv_record(const struct nosa_kv_view *view, int32_t layer, int32_t kv_head,
                                   int32_t block)
{
    int32_t slot = view->record_slot[nosa_kv_record_index(view, layer, kv_head, block)];
    if (slot == NOSA_KV_SLOT_NONE)
        return nosa_kv_image_record(view, view->block_image[block], layer, kv_head);
    return view->records + (size_t)slot * nosa_kv_record_bytes(&view->geometry);
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
