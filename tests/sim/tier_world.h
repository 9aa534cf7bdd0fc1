/*
 * One engine's KV tiers without an engine: a store, an arena of a tiny model and the CPU backend's
 * ops over it, a simulated disk, and a plain model of what every byte must be. What a step would
 * compute is replaced by bytes that follow from all tokens before (and the salt and identity), so
 * that a block in a wrong place, of another sequence, or stale in one byte, is noticed when a step
 * reads it.
 */
#ifndef NOSA_TESTS_SIM_TIER_WORLD_H
#define NOSA_TESTS_SIM_TIER_WORLD_H

#include "extent_store.h"
#include "kv_store.h"
#include "kv_store_internal.h"
#include "support/io_sim.h"

#define TIER_SEQUENCES_MAX 4
#define TIER_CONTEXT_MAX   (14 * NOSA_BLOCK_TOKENS)
#define TIER_BLOCKS_MAX    14
#define TIER_TOPK_MAX      6
#define TIER_ROWS_MAX      130

struct tier_config {
    int32_t n_blocks;
    int32_t n_slots; /* 0: one for every id */
    int32_t n_images;
    int32_t n_extents; /* 0: no NVMe tier */
    int32_t sequences_max;
    int32_t topk;
    enum nosa_kv_policy policy;
};

struct tier_sequence {
    struct nosa_kv_sequence *sequence; /* NULL: not open */
    bool private;
    uint64_t hash[TIER_CONTEXT_MAX + 1]; /* of the salt, identity and the tokens before */
};

/* What has happened, over all seeds. */
struct tier_totals {
    uint64_t steps, rows, hits, host_hits, in_place, absent, prefetched, losses, suspended, crashes,
        reopened, prefix_hits, nvme_prefix_hits, full, corrupt, bypassed;
};

struct tier_world {
    uint64_t seed;
    uint64_t random;
    bool loud;
    struct tier_config config;
    struct nosa_device *device; /* borrowed, with scratch memory */
    struct nosa_stream *stream; /* borrowed */
    struct io_sim disk;
    uint64_t identity;
    struct nosa_kv_geometry geometry;
    struct nosa_kv_host_pool host;
    struct nosa_kv_arena arena;
    struct nosa_extent_store *extents;
    struct nosa_kv_store *store;
    struct nosa_kv_moves moves;
    struct tier_sequence sequences[TIER_SEQUENCES_MAX];
    uint64_t next_salt;
    struct tier_totals *totals;
};

/* The machine that all worlds share: a device with scratch memory for the largest of them. */
void tier_machine_open(struct nosa_device **device, struct nosa_stream **stream);
void tier_machine_close(struct nosa_device *device, struct nosa_stream *stream);

uint32_t tier_below(struct tier_world *world, uint32_t n);
bool tier_chance(struct tier_world *world, uint32_t in_a_hundred);

/* Makes and ends what a process has; the disk stays. With `crash` nothing is closed in order. */
void tier_world_boot(struct tier_world *world);
void tier_world_halt(struct tier_world *world, bool crash);

/* The bytes of a token after the tokens before, in a pool of the model. */
uint64_t tier_token_value(uint64_t hash, int32_t layer, int32_t kv_head);
uint64_t tier_hash_next(uint64_t hash, uint64_t number);

/* Opens a sequence in place `index`. */
void tier_open(struct tier_world *world, int32_t index, bool private);
void tier_close(struct tier_world *world, int32_t index);
/* One step of some of the open sequences. */
void tier_step(struct tier_world *world);
/* A step that only moves. */
void tier_step_moves(struct tier_world *world);
void tier_suspend(struct tier_world *world, int32_t index);
void tier_resume(struct tier_world *world, int32_t index);

/* What must hold between steps. */
void tier_check(struct tier_world *world);

void tier_fail(const struct tier_world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));

#define TIER_CHECK(world, condition)                                                               \
    do {                                                                                           \
        if (!(condition))                                                                          \
            tier_fail((world), "%s:%d: %s", __FILE__, __LINE__, #condition);                       \
    } while (0)

#endif
