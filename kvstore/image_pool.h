/*
 * Lifecycle of images: whole blocks in pinned host memory (kv_layout.h), which copies of a block
 * exist, and which may go. It moves no bytes. Owned by the KV store; one thread; only create
 * allocates; every other call is O(1).
 *
 *   FREE     holds nothing
 *   SAVING   the step in flight copies a block of the first tier into it
 *   LOADING  an extent is being read into it
 *   HELD     valid; a block of the first tier counts on it: its records may have lost their slots
 *   CACHED   valid, findable by its key; no block of the first tier has it
 *
 *   FREE -> SAVING      taken for a block that is complete when the step is
 *   FREE -> LOADING     taken for a block whose extent was found
 *   SAVING -> HELD      the step is over
 *   LOADING -> HELD     the read ended well
 *   LOADING -> FREE     it did not, or nobody waits for it any more
 *   HELD -> CACHED      its block's id was given up
 *   HELD -> FREE        its block is forgotten: it was a copy, or private, or another took its key
 *   CACHED -> HELD      found: a block of the first tier is made from it
 *   CACHED -> FREE      evicted, or a block with the same key was computed anew
 *
 * A CACHED image is pinned while a suspended sequence needs it or a write to NVMe reads it; those
 * that are not are on a list by last use. An image that a write reads is never made FREE: it is
 * CACHED until the write ends.
 */
#ifndef NOSA_KVSTORE_IMAGE_POOL_H
#define NOSA_KVSTORE_IMAGE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "chain_key.h"
#include "kv_layout.h"
#include "prefix_cache.h"
#include "prefix_index.h"

enum nosa_image_state {
    NOSA_IMAGE_FREE = 0,
    NOSA_IMAGE_SAVING = 1,
    NOSA_IMAGE_LOADING = 2,
    NOSA_IMAGE_HELD = 3,
    NOSA_IMAGE_CACHED = 4,
};

#define NOSA_IMAGE_STATES 5

/* Of an image whose use nobody has reported: as if each record had been used two half-lives ago
 * (kv_policy.h). */
#define NOSA_IMAGE_USE_UNKNOWN 0.25f

struct nosa_image {
    uint8_t state; /* enum nosa_image_state */
    bool on_list;  /* CACHED and not pinned */
    bool on_nvme;  /* an extent holds the same bytes */
    bool named;    /* its key is set: others may find it */
    bool hidden;  /* CACHED without being findable: another image has the key; goes when unpinned */
    float use;    /* how often steps lately used those of its records that have no slot; see
                     NOSA_IMAGE_USE_UNKNOWN */
    float value;  /* what the store thinks it is worth (E) */
    int32_t pins; /* suspended sequences, and one for a write under way */
    int32_t block; /* SAVING, LOADING, HELD: the block of the first tier */
    int32_t newer; /* FREE: next free; on the list: the one used next after it */
    int32_t older;
};

struct nosa_image_pool {
    int32_t n_images;                    /* fixed after create; 0: no host tier */
    struct nosa_image *images;           /* owned arrays, [n_images] */
    struct nosa_chain_key *keys;         /* of named images */
    struct nosa_block_content *contents; /* likewise */
    struct nosa_prefix_index index;      /* of CACHED images */
    int32_t free_first;
    int32_t oldest;
    int32_t newest;
    int32_t on_list; /* images on the list */
    int32_t in_state[NOSA_IMAGE_STATES];
    uint64_t evicted; /* CACHED images that went for others */
    uint64_t lost;    /* of them without an extent */
};

/* All FREE. n_images may be 0: the pool then never gives one. */
enum nosa_status nosa_image_pool_create(struct nosa_image_pool *pool, int32_t n_images,
                                        struct nosa_error *error);
/* A pool of zero bytes is allowed. */
void nosa_image_pool_destroy(struct nosa_image_pool *pool);

/* Images that take can give. */
int32_t nosa_image_pool_available(const struct nosa_image_pool *pool);

/* An image for `block`, SAVING or LOADING as `to` says; evicts the CACHED image used longest ago
 * when none is free. NOSA_KV_IMAGE_NONE when none is available. */
int32_t nosa_image_pool_take(struct nosa_image_pool *pool, int32_t block, enum nosa_image_state to);

/* The one place where an image changes state; asserts that the move is one of those above. To
 * CACHED: it is named, and no CACHED image that is not hidden has the key. To HELD from CACHED the
 * caller then names the block. */
void nosa_image_pool_move(struct nosa_image_pool *pool, int32_t image, enum nosa_image_state to);

/* Gives the image its key; it is SAVING or HELD, of a block that others may find. */
void nosa_image_pool_name(struct nosa_image_pool *pool, int32_t image,
                          const struct nosa_chain_key *key,
                          const struct nosa_block_content *content);

/* The image is not needed by its block any more: HELD becomes CACHED if it has a key and `keep` is
 * wanted or a write reads it, else FREE. A CACHED image of the same key makes room for it, or, if
 * it is pinned, stays the findable one. */
void nosa_image_pool_drop(struct nosa_image_pool *pool, int32_t image, bool keep);

/* The CACHED image of `key`, which is that of `tokens` after `parent`, or NOSA_KV_IMAGE_NONE. */
int32_t nosa_image_pool_find(const struct nosa_image_pool *pool, const struct nosa_chain_key *key,
                             const struct nosa_chain_key *parent, const uint32_t *tokens);

/* Keeps the image from being evicted, and lets it go again. */
void nosa_image_pool_pin(struct nosa_image_pool *pool, int32_t image);
void nosa_image_pool_unpin(struct nosa_image_pool *pool, int32_t image);

#endif
