/*
 * The KV store of one engine: block ids, sequences, block tables and the prefix cache over them.
 *
 * A sequence is a list of block ids by logical block, 64 tokens each. Complete blocks (all 64
 * tokens computed) are immutable and named by a chain of hashes over the token ids, starting from
 * the identity and the cache salt; another sequence with the same prefix shares them by reference.
 * Blocks that no sequence uses stay cached until their place is needed, least recently used first,
 * a block never before the blocks that continue it.
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

#define NOSA_IDENTITY_BYTES 32

/* ---- arena: the arrays of one rank ------------------------------------------------------- */

struct nosa_kv_arena {
    struct nosa_kv_view view; /* what ops receive */
    size_t bytes;             /* of device memory held */
    struct nosa_device *device;
    int32_t *record_slot; /* owned; view.record_slot */
};

/* Device bytes that one block (all layers, all KV heads of the rank: record, summary and slot
 * number) takes; an arena of n blocks takes n times as many. */
size_t nosa_kv_block_bytes(const struct nosa_kv_geometry *geometry);

/* Takes the arrays for n_blocks blocks, zeroed, record i in slot i. On failure nothing is held.
 * INVALID_ARGUMENT for a geometry outside kv_layout.h's bounds, UNSUPPORTED for another KV type.
 * Blocks. */
enum nosa_status nosa_kv_arena_create(struct nosa_device *device,
                                      const struct nosa_kv_geometry *geometry, int32_t n_blocks,
                                      struct nosa_kv_arena *out, struct nosa_error *error);
/* No work that uses the arrays may be pending. An arena of zero bytes is allowed. */
void nosa_kv_arena_destroy(struct nosa_kv_arena *arena);

/* ---- store: who holds which block --------------------------------------------------------- */

struct nosa_kv_store;
struct nosa_kv_sequence;

struct nosa_kv_store_options {
    int32_t n_blocks;
    int32_t sequences_max;
    int32_t context_max; /* tokens of one sequence */
    uint8_t
        identity[NOSA_IDENTITY_BYTES]; /* everything that decides KV bits, but salt and tokens */
};

struct nosa_kv_store_counters {
    int32_t blocks_total;
    int32_t blocks_used;   /* referenced by sequences; total - used can be reserved */
    int32_t blocks_cached; /* referenced by none, findable by prefix */
    int32_t sequences;
    uint64_t prefix_hit_tokens;
    uint64_t prefix_lookup_tokens;
    uint64_t evicted_blocks;
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
/* Gives every block back (complete ones stay cached). NULL is allowed. */
void nosa_kv_sequence_close(struct nosa_kv_sequence *sequence);

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

#endif
