/*
 * Ops that move KV between the first tier and images in host memory, and decide which records the
 * first tier holds. All work on flat arrays of struct nosa_kv_view, so that on a GPU they run
 * inside the step; the host only writes the lists between steps. Pools (kv_layout.h) are
 * independent of one another: an item of work is a pool.
 *
 * They decide where a record lies and when it moves, never what is computed: whatever a list says,
 * attention reads the same bytes, from a slot or from an image.
 *
 * A first tier that has a slot for every record needs none of them.
 */
#ifndef NOSA_KERNELS_OPS_KV_H
#define NOSA_KERNELS_OPS_KV_H

#include <stdint.h>

#include "kv_layout.h"

struct nosa_batch_view;

/* Which record of a pool gives up its slot first; see policy.h of the store for the keys. */
enum nosa_kv_policy {
    NOSA_KV_POLICY_EDDMA = 0,    /* used least often lately; of equals the lowest E */
    NOSA_KV_POLICY_LRU = 1,      /* used longest ago */
    NOSA_KV_POLICY_LOWEST_E = 2, /* lowest E; of equals the one used longest ago */
};

/*
 * Choice of victims, the same in every op that needs slots: free slots first, then slots of blocks
 * of class SPARE, then IN_USE, by the policy's key, then the lower slot number. Never a LOCKED
 * block, never a slot touched in this step. E here is the largest window bias C of the windows that
 * end in the block (without an eviction head all are equal). A record that loses its slot gets
 * NOSA_KV_SLOT_NONE; its bytes are in the block's image or the host knows that they are not needed.
 *
 * An op first touches every record of its list that has a slot, then chooses as many victims as
 * records are missing (or as there are), all at once. Missing records take them in list order, the
 * slots in ascending order; records that nobody has go before records that lie in images. A free
 * slot has touch 0.
 */

struct nosa_kv_block_state {
    int32_t block;
    int32_t image; /* NOSA_KV_IMAGE_NONE: none */
    int32_t kv_class;
};

struct nosa_kv_block_image {
    int32_t block;
    int32_t image;
};

struct nosa_kv_record_name {
    int32_t block;
    int32_t layer;
    int32_t kv_head; /* of the model; a rank passes over the heads that are not its own */
};

/* Writes class and image of blocks. Blocks of `forget` lose their slots in every pool first, and
 * what is known of their use (their id is used anew, or for nothing). */
struct nosa_kv_update_params {
    const struct nosa_kv_view *kv;
    int32_t n_forget;
    const int32_t *forget; /* [n_forget] block ids */
    int32_t n_states;
    const struct nosa_kv_block_state *states; /* [n_states] */
};

/* Copies summaries from images into the first tier: blocks that a prefix hit or a resume brings.
 * Where the first tier has a slot for every record (slot_block NULL) the records are copied too. */
struct nosa_kv_load_params {
    const struct nosa_kv_view *kv;
    int32_t n;
    const struct nosa_kv_block_image *moves; /* [n] */
};

/* Gives blocks that are about to be written a slot in every pool, touched in `step`. The host
 * leaves room: in each pool locked blocks and these together are at most n_slots. */
struct nosa_kv_place_params {
    const struct nosa_kv_view *kv;
    enum nosa_kv_policy policy;
    uint32_t step;
    int32_t n;
    const int32_t *blocks; /* [n] */
};

/* Brings records up from images before a step asks for them, in list order, while victims last.
 * Records that have a slot keep it and count as touched in `step`; records in no image are passed
 * over. `fetched` counts those copied. */
struct nosa_kv_fetch_params {
    const struct nosa_kv_view *kv;
    enum nosa_kv_policy policy;
    uint32_t step;
    int32_t n;
    const struct nosa_kv_record_name *records; /* [n], those of a pool in order of preference */
    uint64_t *fetched;                         /* [1] added to */
};

/* How a sequence's records were found, summed over layers, KV heads and rows of a step. A record
 * without a slot counts once, for the sequence that asks first, so that sums are bytes moved. */
struct nosa_kv_hits {
    uint64_t first;    /* (row, block) pairs whose record had a slot when the step asked */
    uint64_t host;     /* records that the step brought up from an image */
    uint64_t in_place; /* records that were read where they lay in an image: no slot was left */
    uint64_t absent;   /* records in neither: fetched from NVMe by the host */
    uint64_t prefetched_used; /* records that a fetch brought and that were now used first */
    uint64_t fresh; /* records selected for the first time since step fresh_since: over the steps
                       since then, the distinct ones; a shared one counts where it was first */
};

struct nosa_kv_absent {
    int32_t block;
    int32_t layer;
    int32_t kv_head; /* of the rank */
    int32_t slot;    /* where it is wanted */
};

/*
 * After selection, before attention of a layer: every record that rows row_first .. row_first +
 * n_rows - 1 selected gets a slot if one can be had, and is copied into it from its image.
 *
 * In each pool: all selected records that have a slot are touched first; then each missing record
 * takes the slot of a victim. A record for which no victim is left stays in its image and is read
 * there. A record that has neither slot nor image gets a slot and is listed in `absent` for the
 * host, which fills it before attention runs; there are always slots for these (the host sees to
 * it by the number of rows).
 *
 * The copies need not have ended when later work on the stream begins: a backend may leave them to
 * a stream of its own, and let the attention that follows form the runs whose records were there
 * first and wait for the copies before the others. Runs are merged in list order either way. What
 * else reads or writes these slots (the next look-up of the layer, kv_save, the host after
 * synchronisation) comes after the copies.
 */
struct nosa_kv_resolve_params {
    const struct nosa_batch_view *batch;
    const struct nosa_kv_view *kv;
    int32_t layer;
    int32_t row_first;
    int32_t n_rows;
    enum nosa_kv_policy policy;
    uint32_t step;
    uint32_t fresh_since;    /* at most `step`: hits.fresh counts from there */
    const int32_t *selected; /* [n_rows of the batch][n_kv_heads][topk], or NULL: every visible */
    const int32_t *selected_count; /* [n_rows of the batch][n_kv_heads] */
    int32_t topk;
    /* A part of every row's list (without lists: of its visible blocks), as attention takes it.
     * Each part has a step number of its own, so that what the one before brought may go. */
    int32_t entry_first;
    int32_t entry_count;       /* 0: all entries */
    struct nosa_kv_hits *hits; /* [n_seqs] added to */
    /* Sorted by nothing; NULL when every block has an image or slots. */
    struct nosa_kv_absent *absent; /* [absent_max] */
    int32_t *n_absent;             /* [1] set */
    int32_t absent_max;
};

/* Copies records and summaries of blocks into images: records from their slots (those that lie in
 * another image already are taken from there). A rank whose KV heads are replicas of another's
 * writes nothing. */
struct nosa_kv_save_params {
    const struct nosa_kv_view *kv;
    int32_t n;
    const struct nosa_kv_block_image *moves; /* [n] */
};

#endif
