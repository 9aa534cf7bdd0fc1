/*
 * What the tests of ops_kv.h share: a first tier with few slots and a host pool of images, built
 * alike any number of times; a plain model of what each record must hold; and the checks that hold
 * after every op.
 *
 * A block's bytes are a function of its version, layer and KV head, so the model is one number per
 * block and image. Heads of the model that are not the rank's keep a fill byte in every image.
 */
#ifndef NOSA_TESTS_KERNELS_KV_TIERS_H
#define NOSA_TESTS_KERNELS_KV_TIERS_H

#include <stddef.h>
#include <stdint.h>

#include "ops.h"

enum tier_bias {
    TIER_BIAS_NONE,   /* no eviction head: nothing has written a window bias (NaN) */
    TIER_BIAS_LEVELS, /* few values, zeros of both signs, some NaN: many blocks tie */
    TIER_BIAS_ALL,    /* all different */
};

struct tier_case {
    const char *name;
    int32_t n_layers;
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t kernel_stride;
    enum nosa_dtype type;
    int32_t n_blocks;
    int32_t n_slots;
    int32_t n_images;
    int32_t image_kv_heads;
    int32_t image_kv_head_first;
    enum tier_bias bias;
    int32_t rows_max; /* of one resolve */
    int32_t topk;
    bool with_absent; /* blocks lose their images while they are in use */
};

/* What each record must hold: bytes of a version; 0: nothing that anyone may read. */
struct tier_model {
    const struct tier_case *tier_case;
    uint32_t *version;       /* [n_blocks] */
    uint32_t *image_version; /* [n_images] */
    bool *stored;            /* [n_blocks] the host can fill records that are nowhere */
};

/* A tier's memory; `view` points into it. */
struct tier {
    const struct tier_case *tier_case;
    struct nosa_kv_view view;
    size_t n_records;
    size_t n_slots; /* of all pools */
};

/* Empty tiers are equal byte for byte. */
struct tier *tier_create(const struct tier_case *tier_case);
void tier_destroy(struct tier *tier);

/* Writes records (where they lie) and summaries of a version, as a step that computes the block
 * does. */
void tier_write_block(const struct tier *tier, int32_t block, uint32_t version);
/* Writes the record that `absent` names into the slot that it names. */
void tier_write_absent(const struct tier *tier, const struct nosa_kv_absent *absent,
                       uint32_t version);

/* Fails the test, naming the case and `what`, unless both tiers are equal in every byte. */
void tier_assert_same(const struct tier *got, const struct tier *expected, const char *what);

/* Fails the test unless record_slot and slot_block are inverse to each other within each pool,
 * every locked block has all its slots, every record's bytes are the model's wherever they lie, and
 * images hold nothing in the heads of other ranks. */
void tier_check(const struct tier *tier, const struct tier_model *model, const char *what);

#endif
