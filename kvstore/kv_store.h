/*
 * The KV store of one engine: block ids, sequences, block tables, the prefix cache over them, and
 * the tiers that a block's bytes lie in.
 *
 * A sequence is a list of block ids by logical block, 64 tokens each. Complete blocks (all 64
 * tokens computed) are immutable and named by a chain of hashes over the token ids, starting from
 * the identity and the cache salt; another sequence with the same prefix shares them by reference.
 * Blocks that no sequence uses stay cached until their place is needed, least recently used first,
 * a block never before the blocks that continue it.
 *
 * Tiers. A block id has a summary and slots for its records in the first tier. With a host pool a
 * complete block is copied to an image soon after it is computed, in bulk, as part of a step; from
 * then on its records may lose their slots, by the policy that runs inside the step (ops_kv.h), and
 * its id may be given up while the image stays findable. The host never moves a byte itself and
 * never asks where a record lies: it hands lists of moves to the step (struct nosa_kv_moves), and
 * says which blocks may be given up. Until a block has an image its records are locked.
 *
 * All functions are called by the one thread that owns the engine's KV state; none blocks, and
 * after nosa_kv_store_create none allocates. With tensor parallelism one store serves all ranks:
 * block ids are the same on each, and every rank has its own arrays (nosa_kv_arena) in its own
 * device memory.
 */
#ifndef NOSA_KVSTORE_KV_STORE_H
#define NOSA_KVSTORE_KV_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "device.h"
#include "kv_layout.h"
#include "ops_kv.h"

struct nosa_clock;
struct nosa_extent_store;

#define NOSA_IDENTITY_BYTES 32

/* ---- host pool: images of blocks in pinned memory ------------------------------------------ */

struct nosa_kv_host_pool {
    char *images; /* [n_images][image_bytes] owned */
    size_t image_bytes;
    int32_t n_images;
    int32_t kv_heads;           /* of the model: an image holds the records of all ranks */
    struct nosa_device *device; /* whose pinned memory it is */
};

/* Takes n_images images (at least 1) of the model whose rank has `geometry`. Blocks. On failure
 * nothing is held. */
enum nosa_status nosa_kv_host_pool_create(struct nosa_device *device,
                                          const struct nosa_kv_geometry *geometry, int32_t kv_heads,
                                          int32_t n_images, struct nosa_kv_host_pool *out,
                                          struct nosa_error *error);
/* No work that uses the images may be pending. A pool of zero bytes is allowed. */
void nosa_kv_host_pool_destroy(struct nosa_kv_host_pool *pool);

/* ---- arena: the arrays of one rank ------------------------------------------------------- */

struct nosa_kv_arena_options {
    struct nosa_kv_geometry geometry;
    int32_t n_blocks; /* block ids */
    int32_t n_slots;  /* of a pool; 0 or at least n_blocks: one for every id */
};

struct nosa_kv_arena {
    struct nosa_kv_view view; /* what ops receive */
    size_t bytes;             /* of device memory held */
    struct nosa_device *device;
};

/* Device bytes of what every block id keeps in a first tier with fewer slots than ids, over all
 * layers and KV heads of the rank (summaries, slot numbers and use), and of one slot in every pool
 * (records). */
size_t nosa_kv_id_bytes(const struct nosa_kv_geometry *geometry);
size_t nosa_kv_slot_bytes(const struct nosa_kv_geometry *geometry);
/* What a block takes in a first tier that holds everything, where nobody asks for its use. */
size_t nosa_kv_block_bytes(const struct nosa_kv_geometry *geometry);

/* Takes the arrays, zeroed. With a slot for every id record i lies in slot i for ever; else all
 * slots are free, and the tier arrays of the view exist (a host pool must be attached). On failure
 * nothing is held. INVALID_ARGUMENT for a geometry outside kv_layout.h's bounds, UNSUPPORTED for
 * another KV type. Blocks. */
enum nosa_status nosa_kv_arena_create(struct nosa_device *device,
                                      const struct nosa_kv_arena_options *options,
                                      struct nosa_kv_arena *out, struct nosa_error *error);
/* Lets ops reach the images of `host`, which outlives the arena; kv_head_first: the model's KV head
 * that is this rank's first. Before the first op. */
void nosa_kv_arena_attach(struct nosa_kv_arena *arena, const struct nosa_kv_host_pool *host,
                          int32_t kv_head_first);
/* No work that uses the arrays may be pending. An arena of zero bytes is allowed. */
void nosa_kv_arena_destroy(struct nosa_kv_arena *arena);

/* ---- store: who holds which block --------------------------------------------------------- */

struct nosa_kv_store;
struct nosa_kv_sequence;

/* Zero-initialised: the first tier alone, with a slot for every record. */
struct nosa_kv_tier_options {
    const struct nosa_kv_host_pool *host; /* borrowed for the store's life, or NULL */
    struct nosa_kv_geometry geometry;     /* of the whole model, with a host pool */
    int32_t n_slots;                      /* as of the arenas: of a pool; 0: one for every id */
    int32_t working_slots; /* of a pool: at least these stay for records that steps select */
    /* What is brought up for a sequence whose prefix lies in images, before its first step: */
    int32_t sink_blocks;  /* the first ones, */
    int32_t local_blocks; /* the last ones, */
    int32_t top_e_blocks; /* and of each layer and KV head those of the largest E */
    bool has_bias;        /* there is an eviction head; else recency stands for E */
    bool selects_all;     /* every visible block: a cold step passes over all of a sequence's */

    /* The NVMe tier, borrowed for the store's life, or NULL: complete blocks that others may find
     * are written there in the background, and prefixes are read back. Needs a host pool. */
    struct nosa_extent_store *extents;
    const struct nosa_clock *clock; /* borrowed; NULL: the system's */
};

/* Records that the moves of one step bring up ahead at most. */
int32_t nosa_kv_fetch_max(const struct nosa_kv_tier_options *tiers);

struct nosa_kv_store_options {
    int32_t n_blocks;
    int32_t sequences_max;
    int32_t context_max; /* tokens of one sequence */
    uint8_t
        identity[NOSA_IDENTITY_BYTES]; /* everything that decides KV bits, but salt and tokens */
    struct nosa_kv_tier_options tiers;
};

struct nosa_kv_store_counters {
    int32_t blocks_total;
    int32_t blocks_used;   /* referenced by sequences; total - used can be reserved */
    int32_t blocks_cached; /* referenced by none, findable by prefix */
    int32_t sequences;
    uint64_t prefix_hit_tokens;
    uint64_t prefix_lookup_tokens;
    uint64_t evicted_blocks;
    int32_t blocks_locked; /* only in the first tier, where it has fewer slots than ids */
    int32_t images_total;
    int32_t images_held;           /* of blocks in the first tier */
    int32_t images_cached;         /* of none, findable by prefix */
    uint64_t saved_blocks;         /* copied to images */
    uint64_t loaded_blocks;        /* made from images */
    uint64_t prefetched_records;   /* asked for before a first step */
    uint64_t lost_images;          /* given up without a copy in a lower tier */
    uint64_t nvme_loaded_blocks;   /* read back from NVMe */
    uint64_t nvme_written_blocks;  /* that can be found there from now on */
    uint64_t nvme_bypassed_blocks; /* found there, but computing was cheaper, or the tier is off */
    uint64_t nvme_recomputed_blocks; /* counted on, and lost to a read that failed */
    int32_t blocks_cold;             /* in use, with records on NVMe alone */
    uint64_t nvme_stall_ns;          /* steps waited so long for records that NVMe alone had */
    bool nvme_bypassed;              /* the tier failed repeatedly and is left alone for now */
};

enum nosa_status nosa_kv_store_create(const struct nosa_kv_store_options *options,
                                      struct nosa_kv_store **out, struct nosa_error *error);
/* NULL is allowed. Sequences that are still open end with the store. */
void nosa_kv_store_destroy(struct nosa_kv_store *store);
void nosa_kv_store_counters(const struct nosa_kv_store *store, struct nosa_kv_store_counters *out);

/* Opens a sequence over `tokens` (copied) and gives it the cached blocks of its longest known
 * prefix, at most n_tokens - 1 tokens, so that at least one is left to compute. *cached_tokens is a
 * multiple of 64. `salt` may be empty; sequences with different salts never share blocks.
 * RESOURCE_EXHAUSTED when sequences_max are open; INVALID_ARGUMENT when n_tokens is 0 or exceeds
 * context_max. */
enum nosa_status nosa_kv_sequence_open(struct nosa_kv_store *store, const uint32_t *tokens,
                                       int32_t n_tokens, const void *salt, size_t salt_bytes,
                                       struct nosa_kv_sequence **out, int32_t *cached_tokens,
                                       struct nosa_error *error);
/* The same for a sequence that shares nothing: it takes no block over and gives none away, now or
 * later. */
enum nosa_status nosa_kv_sequence_open_private(struct nosa_kv_store *store, const uint32_t *tokens,
                                               int32_t n_tokens, struct nosa_kv_sequence **out,
                                               struct nosa_error *error);
/* Gives every block back (complete ones stay cached). NULL is allowed; suspended is too. */
void nosa_kv_sequence_close(struct nosa_kv_sequence *sequence);

/* Whether steps may use the sequence: false while blocks of its prefix are read from NVMe. A read
 * that fails shortens what is computed (nosa_kv_sequence_computed). */
bool nosa_kv_sequence_ready(struct nosa_kv_sequence *sequence);

/* Appends one token (generated) to the sequence's token list. RESOURCE_EXHAUSTED at context_max. */
enum nosa_status nosa_kv_sequence_append(struct nosa_kv_sequence *sequence, uint32_t token,
                                         struct nosa_error *error);

/* Blocks that nosa_kv_sequence_reserve would take for the same n_tokens; and how many it can get,
 * cached ones that would be evicted included. */
int32_t nosa_kv_sequence_blocks_needed(const struct nosa_kv_sequence *sequence, int32_t n_tokens);
int32_t nosa_kv_store_blocks_available(const struct nosa_kv_store *store);

/* Makes blocks for positions below `n_tokens` exist in the block table, evicting cached blocks as
 * needed; n_tokens may exceed the tokens known so far, and fewer than reserved before is no change.
 * All or nothing: RESOURCE_EXHAUSTED (naming blocks needed and free) changes nothing.
 * INVALID_ARGUMENT beyond context_max. */
enum nosa_status nosa_kv_sequence_reserve(struct nosa_kv_sequence *sequence, int32_t n_tokens,
                                          struct nosa_error *error);

/* Says that KV of positions below `n_tokens` is computed (known and reserved before, and no fewer
 * than last time); blocks that are complete with it become findable at once. If sequences use an
 * equal block already, this one keeps its own as a copy, which takes the known one's place when its
 * users are gone. If an equal block is cached and unused, that one's place becomes free. */
void nosa_kv_sequence_commit(struct nosa_kv_sequence *sequence, int32_t n_tokens);

int32_t nosa_kv_sequence_length(const struct nosa_kv_sequence *sequence);   /* tokens known */
int32_t nosa_kv_sequence_computed(const struct nosa_kv_sequence *sequence); /* tokens committed */
const uint32_t *nosa_kv_sequence_tokens(const struct nosa_kv_sequence *sequence);
/* Block ids by logical block; *n_blocks entries. Valid until the next call on the sequence. */
const int32_t *nosa_kv_sequence_blocks(const struct nosa_kv_sequence *sequence, int32_t *n_blocks);

/* ---- steps and moves ------------------------------------------------------------------------ */

/* What a step does to the tiers: lists for the ops of ops_kv.h, in pinned memory. At its start, in
 * this order: forget and states (kv_update), loads (kv_load), place (kv_place), fetch (kv_fetch);
 * at its end saves (kv_save). */
struct nosa_kv_moves {
    uint32_t step; /* counts steps, for touches */
    /* Records of the step's sequences may lie on NVMe alone: its rows are then looked up and
     * attended to at most rows_per_pass at a time, so that all of a pass find slots; pass i of a
     * layer counts as step `step` + 1 + i. */
    bool cold;
    int32_t rows_per_pass;
    int32_t slots_per_pass; /* of each pool */
    int32_t n_forget, n_states, n_loads, n_place, n_fetch, n_saves;
    int32_t *forget;                    /* [n_blocks] */
    struct nosa_kv_block_state *states; /* [n_blocks] */
    struct nosa_kv_block_image *loads;  /* [n_blocks] */
    int32_t *place;                     /* [n_blocks] */
    struct nosa_kv_record_name *fetch;  /* [fetch_max] */
    struct nosa_kv_block_image *saves;  /* [n_blocks] */
    int32_t fetch_max;
    void *memory; /* owned: all of the above */
    size_t bytes;
    struct nosa_device *device; /* whose pinned memory it is */
};

/* Takes lists for the largest step of `store`; without a host pool they are empty. Blocks. */
enum nosa_status nosa_kv_moves_create(const struct nosa_kv_store *store, struct nosa_device *device,
                                      struct nosa_kv_moves *out, struct nosa_error *error);
/* Lists of zero bytes are allowed. */
void nosa_kv_moves_destroy(struct nosa_kv_moves *moves);
bool nosa_kv_moves_any(const struct nosa_kv_moves *moves);

struct nosa_kv_step_item {
    struct nosa_kv_sequence *sequence; /* ready, and reserved up to `end` */
    int32_t end;                       /* tokens computed when the step is over */
};

/* Says what the step to come computes and writes its moves; n_items may be 0: a step that only
 * moves. The lists stay as they are until nosa_kv_store_end_step. */
void nosa_kv_store_begin_step(struct nosa_kv_store *store, const struct nosa_kv_step_item *items,
                              int32_t n_items, struct nosa_kv_moves *moves);
/* The step is over on every rank; its sequences are committed after this. */
void nosa_kv_store_end_step(struct nosa_kv_store *store);

/* Moves reads and writes of the NVMe tier on; when nothing has happened waits up to wait_ms for the
 * first end of one. Between steps; without an NVMe tier returns at once. */
void nosa_kv_store_poll(struct nosa_kv_store *store, uint32_t wait_ms);
/* Blocks that wait for an image, for a step that copies them, or for NVMe: 0 when everything that
 * can be kept is. */
int32_t nosa_kv_store_unsaved(const struct nosa_kv_store *store);
/* Whether a step that only moves would get sequences ready sooner or blocks saved. */
bool nosa_kv_store_has_moves(const struct nosa_kv_store *store);
/* Tells the store how fast tokens are computed, which decides whether a prefix is read or computed
 * again. */
void nosa_kv_store_report_compute(struct nosa_kv_store *store, int32_t n_tokens, uint64_t ns);

/* During a step, from any rank's thread: reads records of one layer that lie on NVMe alone into
 * their slots (device memory that the host can write), many at a time; reorders the list. A block
 * that cannot be read is lost, and its slots hold zeros: what the step computes from them is worth
 * nothing. Blocks. */
void nosa_kv_store_fetch(struct nosa_kv_store *store, const struct nosa_kv_view *view,
                         struct nosa_kv_absent *absent, int32_t n_absent);
/* Whether blocks will be left to NVMe soon, and the choice should know what steps used. */
bool nosa_kv_store_wants_use(const struct nosa_kv_store *store);
/* Between steps: a rank's view, with record_slot, record_use and record_weight in memory that the
 * host can read; `first` for the first of the ranks that hold the model's KV heads once. O(images *
 * records). */
void nosa_kv_store_report_use(struct nosa_kv_store *store, const struct nosa_kv_view *view,
                              bool first);
/* After a step, instead of committing it: whether it needed blocks of the sequence that were lost.
 * The sequence then ends before the first of them; the rest is computed again. */
bool nosa_kv_sequence_take_loss(struct nosa_kv_sequence *sequence);

/* Suspends a sequence, so that its place in the first tier is free for others: its complete blocks
 * stay in images that wait for it, or where others use them; what it computed of an incomplete
 * block (less than 64 tokens) is computed again. First has nosa_kv_sequence_save asked for images
 * of all its blocks and a step run them; blocks without an image are only cached. */
void nosa_kv_sequence_save(struct nosa_kv_sequence *sequence);
void nosa_kv_sequence_suspend(struct nosa_kv_sequence *sequence);
bool nosa_kv_sequence_suspended(const struct nosa_kv_sequence *sequence);
/* Before the sequence is suspended, so that its first step after it finds what its last ones
 * selected: takes note of the complete blocks that each layer and KV head of a rank used last.
 * record_use: a copy of the array of the rank's `view` that the host can read. Without it the
 * largest E stand for them. Nothing where the first tier is not tight. */
void nosa_kv_sequence_remember(struct nosa_kv_sequence *sequence, const struct nosa_kv_view *view,
                               const uint32_t *record_use);
/* Makes it ready to run again from what is still there; nosa_kv_sequence_computed says how far that
 * goes. RESOURCE_EXHAUSTED, while it stays suspended, when the first tier has too few ids free. */
enum nosa_status nosa_kv_sequence_resume(struct nosa_kv_sequence *sequence,
                                         struct nosa_error *error);

#endif
