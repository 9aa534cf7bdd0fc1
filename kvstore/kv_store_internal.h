/*
 * What the files of the store share. kv_store.c creates and counts, kv_sequence.c keeps sequences,
 * kv_tiers.c knows which copies of a block exist and plans the moves of a step, kv_nvme.c reads
 * from and writes to the third tier, kv_fetch.c reads for steps that find records there alone, and
 * kv_prefetch.c says what is brought up before a first step.
 *
 * Store and sequences lie in memory taken by create: sequences are an array with a list of the
 * closed ones, and each has its own stretch of three large arrays (tokens, block table, keys).
 */
#ifndef NOSA_KVSTORE_KV_STORE_INTERNAL_H
#define NOSA_KVSTORE_KV_STORE_INTERNAL_H

#include <pthread.h>

#include "chain_key.h"
#include "extent_store.h"
#include "image_pool.h"
#include "kv_store.h"
#include "prefix_cache.h"

#define SEQUENCE_NONE (-1)

/* Reads of steps that may be under way, or held by a device that does not answer: one block's
 * records of a layer each. */
#define NOSA_KV_STAGINGS     32
#define NOSA_KV_STAGINGS_MIN 8

/* Tokens of reads into staging buffers; others are image numbers. */
#define NOSA_KV_STAGING_TOKEN (UINT64_C(1) << 32)

/* FREE -> USED by a step's thread; USED -> FREE at the read's end, or USED -> HELD when it has
 * timed out; HELD -> FREE when the device lets go. */
enum nosa_kv_staging { NOSA_KV_STAGING_FREE, NOSA_KV_STAGING_USED, NOSA_KV_STAGING_HELD };

/*
 * A sequence's leading blocks are complete (computed / 64 of them) and known to the prefix cache;
 * those after are FILLING. Keys are made when tokens become known, so commit cannot fail.
 */
struct nosa_kv_sequence {
    /* fixed after create */
    struct nosa_kv_store *store; /* borrowed */
    uint32_t *tokens;            /* borrowed: [context_max] */
    int32_t *blocks;             /* borrowed: [blocks_max]; of a suspended one: images it pins */
    struct nosa_chain_key *keys; /* borrowed: [blocks_max + 1]: the root, then one a block */
    int32_t *recent;             /* borrowed: [pools of the model][recent_max] logical blocks that
                                    steps selected last, latest first; -1 ends a list. NULL where
                                    the first tier is not tight */

    bool open;
    bool private; /* opened so, or a key of ours named other tokens: publishes no more */
    bool suspended;
    bool prefetch;       /* its records are to be brought up before its first step */
    bool remembers;      /* `recent` says which */
    uint8_t nvme_choice; /* enum nvme_choice: of the prefix that was found on NVMe */
    int32_t n_ready;     /* leading blocks that are known to be in memory */
    int32_t idle_steps;  /* steps that went by without the sequence */
    int32_t length;      /* tokens known */
    int32_t computed;    /* tokens committed */
    int32_t n_blocks;    /* entries of `blocks` */
    int32_t next_closed; /* while closed */
};

/* A ring of block or image numbers, each in it at most once. */
struct nosa_number_ring {
    int32_t *numbers; /* [capacity] owned */
    bool *listed;     /* [capacity] owned: by number */
    int32_t capacity;
    int32_t first;
    int32_t count;
};

enum nvme_choice { NVME_UNDECIDED, NVME_READ, NVME_COMPUTE };

/* The third tier as the store uses it; nothing without extents. */
struct nosa_kv_nvme {
    struct nosa_extent_store *extents; /* borrowed */
    const struct nosa_clock *clock;    /* borrowed */
    bool *absent;                      /* [n_blocks] owned: its bytes are on NVMe or on the way */
    bool *cold;                        /* [n_blocks] owned: no image: NVMe has what has no slot */
    bool *lost;                        /* [n_blocks] owned: a step could not read it; atomic */
    int32_t n_cold;
    bool *written;                     /* [n_blocks] owned: an extent has held the block */
    struct nosa_extent_handle *handle; /* [n_blocks] owned: of absent and cold blocks, pinned */
    struct nosa_number_ring to_read;   /* absent blocks that wait for an image */
    struct nosa_number_ring to_write;  /* images */
    int32_t *freed;                    /* [n_images] owned: images that end with the step's loads */
    int32_t n_freed;
    int32_t reading, writing;
    uint64_t epoch; /* of use: grows with every sequence closed */
    uint64_t writes_of_epoch;
    int32_t failures; /* in a row */
    uint64_t bypass_until_ns;
    bool bypassed;
    uint32_t use_step; /* in which use was reported last */
    double compute_ns; /* of a token; 0: not known */
    uint64_t read_blocks, written_blocks, bypassed_blocks, recomputed_blocks;

    /* kv_fetch.c: buffers of records on their way to slots, fixed after create */
    int32_t n_stagings;
    char *staging_memory;      /* [n_stagings][KV heads][record bytes] owned */
    uint32_t *staging_records; /* [n_stagings][KV heads] owned: records of each one's read */
    void **staging_buffers;    /* [n_stagings][KV heads] owned: where they go */
    pthread_mutex_t staging_mutex;
    pthread_cond_t staging_changed;
    uint8_t staging_state[NOSA_KV_STAGINGS]; /* under the mutex: enum nosa_kv_staging */
    uint64_t stall_ns;                       /* atomic: steps waited so long for reads */
};

/* Which copies of each block exist. Without a host pool nothing of it is used. */
struct nosa_kv_tiers {
    struct nosa_kv_tier_options options;
    struct nosa_kv_view images_view; /* addresses images only */
    bool tight;                      /* the first tier has fewer slots than ids */
    struct nosa_image_pool pool;
    /* owned arrays, [n_blocks] */
    int32_t *image;      /* SAVING, LOADING or HELD image of the block, or NOSA_KV_IMAGE_NONE */
    uint8_t *kv_class;   /* enum nosa_kv_class */
    bool *state_changed; /* listed in `states` */
    bool *forgotten;     /* listed in `forget` */
    bool *loading;       /* listed in `loads` */
    int32_t *states;     /* blocks whose class or image the ops must learn */
    int32_t *forget;     /* ids given up since the last step */
    int32_t *loads;      /* blocks whose summary lies in their image only */
    int32_t *place;      /* blocks taken to be written */
    int32_t *saving;     /* images that the step in flight fills, [n_images] */
    int32_t n_states, n_forget, n_loads, n_place, n_saving;
    struct nosa_number_ring unsaved; /* complete blocks that want an image */
    struct nosa_kv_nvme nvme;
    int32_t locked; /* blocks of class LOCKED; of them cached: */
    int32_t locked_cached;
    uint32_t step;
    bool in_step;
    uint64_t saved_blocks, loaded_blocks, prefetched_records;
};

struct nosa_kv_store {
    /* fixed after create */
    struct nosa_kv_store_options options;
    int32_t blocks_max;                 /* of one sequence */
    struct nosa_kv_sequence *sequences; /* owned: [sequences_max] */
    uint32_t *tokens;                   /* owned: [sequences_max][context_max] */
    int32_t *blocks;                    /* owned: [sequences_max][blocks_max] */
    struct nosa_chain_key *keys;        /* owned: [sequences_max][blocks_max + 1] */
    int32_t *recent;                    /* owned: [sequences_max][pools][recent_max], or NULL */
    int32_t recent_max;                 /* of a pool: what a first step finds brought up */

    struct nosa_prefix_cache cache;
    struct nosa_kv_tiers tiers;
    struct nosa_sha256 hash;
    int32_t closed_first;
    int32_t sequences_open;
    uint64_t prefix_hit_tokens;
    uint64_t prefix_lookup_tokens;
};

static inline int32_t nosa_blocks_for(int32_t n_tokens)
{
    return n_tokens / NOSA_BLOCK_TOKENS + (n_tokens % NOSA_BLOCK_TOKENS != 0);
}

/* One user gives a block of a sequence back. */
void nosa_kv_sequence_release_block(struct nosa_kv_store *store, int32_t block);

enum nosa_status nosa_kv_tiers_create(struct nosa_kv_store *store, struct nosa_error *error);
void nosa_kv_tiers_destroy(struct nosa_kv_tiers *tiers);

/* Block ids that can be taken to be written, by what must stay in the first tier. */
int32_t nosa_kv_tiers_room(const struct nosa_kv_store *store);
/* A FILLING block that the cache gave: it is placed in slots by the next step. Room was asked for
 * before. */
int32_t nosa_kv_tiers_take(struct nosa_kv_store *store);

/* The block's bytes are safe in its image: its records may be given up. */
void nosa_kv_tiers_unlock(struct nosa_kv_store *store, int32_t block);
/* In a tight first tier: the block used longest ago of those that are only cached and whose image
 * others may have, or NOSA_BLOCK_NONE. O(cached blocks). */
int32_t nosa_kv_tiers_spare(const struct nosa_kv_store *store);
/* The block has slots for ever and needs its HELD image no more; nothing in a tight first tier,
 * while the image is pinned, or while a step still has to load it. */
void nosa_kv_tiers_detach(struct nosa_kv_store *store, int32_t image);
/* The block's summary lies in its image only: the next step loads it. */
void nosa_kv_tiers_want_loaded(struct nosa_kv_store *store, int32_t block);
void nosa_kv_tiers_state_changed(struct nosa_kv_tiers *tiers, int32_t block);
void nosa_kv_tiers_set_class(struct nosa_kv_store *store, int32_t block,
                             enum nosa_kv_class kv_class);
/* Gives the block's image the block's key. */
void nosa_kv_tiers_name_image(struct nosa_kv_store *store, int32_t block);

enum nosa_status nosa_number_ring_create(struct nosa_number_ring *ring, int32_t capacity);
void nosa_number_ring_destroy(struct nosa_number_ring *ring);
/* Adds `number` unless it is there. */
void nosa_number_ring_push(struct nosa_number_ring *ring, int32_t number);
/* The first number, of a ring that is not empty. */
int32_t nosa_number_ring_front(const struct nosa_number_ring *ring);
void nosa_number_ring_pop(struct nosa_number_ring *ring);

enum nosa_status nosa_kv_nvme_create(struct nosa_kv_store *store, struct nosa_error *error);
void nosa_kv_nvme_destroy(struct nosa_kv_nvme *nvme);
/* As nosa_kv_tiers_adopt, from an extent: the block is absent until it is read. */
int32_t nosa_kv_nvme_adopt(struct nosa_kv_sequence *sequence, int32_t index);
/* Makes an image free by leaving a block in use to its slots and NVMe; false when none can go. */
bool nosa_kv_nvme_demote(struct nosa_kv_store *store);
/* Ends the sequence's known prefix before its last blocks that have no image: the windows of its
 * next block reach into the last one. */
void nosa_kv_nvme_drop_cold_tail(struct nosa_kv_sequence *sequence);
/* The block's id is given up. */
void nosa_kv_nvme_block_free(struct nosa_kv_store *store, int32_t block);
/* The image is named and valid: it is written, unless it is there. */
void nosa_kv_nvme_want_written(struct nosa_kv_store *store, int32_t image);
/* The sequence is closed: its chain counts as used, parents last. */
void nosa_kv_nvme_touch(struct nosa_kv_sequence *sequence);
/* Takes what has ended and starts what waits. */
void nosa_kv_nvme_pump(struct nosa_kv_store *store, uint32_t wait_ms);

/* On failure destroy frees what was taken. */
enum nosa_status nosa_kv_stagings_create(struct nosa_kv_nvme *nvme,
                                         const struct nosa_kv_geometry *geometry,
                                         struct nosa_error *error);
void nosa_kv_stagings_destroy(struct nosa_kv_nvme *nvme);
void nosa_kv_staging_move(struct nosa_kv_nvme *nvme, int32_t staging, enum nosa_kv_staging to);

/* Makes a complete block of the first tier, which the caller then holds, from the image of the key
 * of the sequence's block `index`; NOSA_BLOCK_NONE when there is no such image or no id for it. */
int32_t nosa_kv_tiers_adopt(struct nosa_kv_sequence *sequence, int32_t index);
/* The sequence's block `index` is complete and known to the prefix cache. */
void nosa_kv_tiers_completed(struct nosa_kv_sequence *sequence, int32_t index);

/* Has the block copied to an image by a step to come, unless it has one. */
void nosa_kv_tiers_want_saved(struct nosa_kv_store *store, int32_t block);

/* E of (layer, KV head of the model) of the block in `image`: the largest of the window biases in
 * its summary, those of the windows that end in the block. */
float nosa_kv_image_e(const struct nosa_kv_tiers *tiers, int32_t image, int32_t layer,
                      int32_t kv_head);

/* Writes what the sequence's first step should find in slots to moves->fetch; false when the list
 * has no room left. */
bool nosa_kv_prefetch(struct nosa_kv_sequence *sequence, struct nosa_kv_moves *moves);

/* Records of a pool that are brought up for a sequence at most. */
int32_t nosa_kv_prefetch_max(const struct nosa_kv_tier_options *options);

#endif
