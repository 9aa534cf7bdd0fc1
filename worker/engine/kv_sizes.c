#include "engine/kv_sizes.h"

#include "kv_store.h"

/* What block ids can name. */
#define KV_BLOCKS_MAX (1 << 29)

/* Images of a store with a third tier, for blocks on their way to it and back: when none are asked
 * for, and at least. */
#define IMAGES_NVME     16
#define IMAGES_NVME_MIN 4

static int64_t blocks_for(int64_t tokens)
{
    return (tokens + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Blocks of a pool that the records of one step are written to. */
static int64_t written_slots(const struct nosa_kv_demand *demand)
{
    int64_t whole = blocks_for(demand->context_max);
    return least(blocks_for(demand->rows_max) + 1, whole);
}

/* Without a host tier: every id has its slots. */
static enum nosa_status choose_resident(const struct nosa_kv_demand *demand,
                                        struct nosa_kv_sizes *out, struct nosa_error *error)
{
    int64_t context_blocks = blocks_for(demand->context_max);
    int64_t blocks = context_blocks * demand->sessions_max;
    if (demand->first_bytes != NOSA_KV_BYTES_AUTO) {
        uint64_t block_bytes = nosa_kv_block_bytes(&demand->geometry);
        int64_t fitting = (int64_t)(demand->first_bytes / block_bytes);
        if (fitting < context_blocks)
            return nosa_error_set(
                error, NOSA_INVALID_ARGUMENT,
                "--gpu-kv-bytes %llu holds %lld blocks of 64 tokens; without a host tier a context "
                "of %d tokens needs %lld, %llu bytes",
                (unsigned long long)demand->first_bytes, (long long)fitting, demand->context_max,
                (long long)context_blocks, (unsigned long long)context_blocks * block_bytes);
        /* more than the sessions fill at a time keeps prefixes of earlier ones */
        blocks = least(fitting, KV_BLOCKS_MAX);
    }
    if (blocks > KV_BLOCKS_MAX)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "%d sessions of %d tokens need %lld KV blocks, more than can be named",
            demand->sessions_max, demand->context_max, (long long)blocks);
    out->n_blocks = (int32_t)blocks;
    out->n_slots = 0;
    return NOSA_OK;
}

/* Ids for as many blocks as slots and images can keep, as long as slots for a step are left. */
static enum nosa_status choose_tight(const struct nosa_kv_demand *demand, struct nosa_kv_sizes *out,
                                     struct nosa_error *error)
{
    uint64_t id_bytes = nosa_kv_id_bytes(&demand->geometry);
    uint64_t slot_bytes = nosa_kv_slot_bytes(&demand->geometry);
    int64_t context_blocks = blocks_for(demand->context_max);
    int64_t slots_least = demand->working_slots + written_slots(demand);
    uint64_t bytes_least = (uint64_t)context_blocks * id_bytes + (uint64_t)slots_least * slot_bytes;
    if (demand->first_bytes < bytes_least)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "--gpu-kv-bytes %llu: the summaries of a context of %d tokens take %llu, the %lld "
            "blocks that a step reads and writes %llu; give at least %llu",
            (unsigned long long)demand->first_bytes, demand->context_max,
            (unsigned long long)context_blocks * id_bytes, (long long)slots_least,
            (unsigned long long)slots_least * slot_bytes, (unsigned long long)bytes_least);
    int64_t wanted = context_blocks * demand->sessions_max;
    int64_t affordable =
        (int64_t)((demand->first_bytes - (uint64_t)slots_least * slot_bytes) / id_bytes);
    int64_t blocks = least(least(wanted, affordable), KV_BLOCKS_MAX);
    int64_t slots = (int64_t)((demand->first_bytes - (uint64_t)blocks * id_bytes) / slot_bytes);
    int64_t kept = slots - demand->working_slots + out->n_images;
    if (kept < context_blocks && !demand->nvme) {
        uint64_t image_bytes = nosa_kv_image_bytes(&demand->geometry, demand->kv_heads);
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "--host-kv-bytes %llu holds %d blocks of 64 tokens; with %lld in the first tier a "
            "context of %d tokens needs %lld, %llu bytes",
            (unsigned long long)demand->host_bytes, out->n_images,
            (long long)(slots - demand->working_slots), demand->context_max,
            (long long)(out->n_images + context_blocks - kept),
            (unsigned long long)(out->n_images + context_blocks - kept) * image_bytes);
    }
    out->n_blocks = (int32_t)blocks;
    out->n_slots = slots < blocks ? (int32_t)slots : 0;
    return NOSA_OK;
}

enum nosa_status nosa_kv_sizes_choose(const struct nosa_kv_demand *demand,
                                      struct nosa_kv_sizes *out, struct nosa_error *error)
{
    int64_t wanted = blocks_for(demand->context_max) * demand->sessions_max;
    uint64_t block_bytes = nosa_kv_block_bytes(&demand->geometry);
    uint64_t image_bytes = nosa_kv_image_bytes(&demand->geometry, demand->kv_heads);
    bool resident = demand->first_bytes == NOSA_KV_BYTES_AUTO ||
                    demand->first_bytes / block_bytes >= (uint64_t)wanted;

    *out = (struct nosa_kv_sizes){0};
    uint64_t images = demand->host_bytes / image_bytes;
    if (demand->host_bytes == NOSA_KV_BYTES_AUTO) {
        images = demand->host_auto_max / image_bytes;
        images = resident ? 0 : images < (uint64_t)wanted ? images : (uint64_t)wanted;
    }
    bool asked = demand->host_bytes != 0 && demand->host_bytes != NOSA_KV_BYTES_AUTO;
    if (demand->nvme && !asked && images < IMAGES_NVME)
        images = IMAGES_NVME;
    if (images > KV_BLOCKS_MAX)
        images = KV_BLOCKS_MAX;
    uint64_t images_least = demand->nvme ? IMAGES_NVME_MIN : 1;
    if (asked && images < images_least)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "--host-kv-bytes %llu: a block of 64 tokens takes %llu, and there must be place for "
            "%llu; give at least %llu",
            (unsigned long long)demand->host_bytes, (unsigned long long)image_bytes,
            (unsigned long long)images_least, (unsigned long long)(images_least * image_bytes));
    out->n_images = (int32_t)images;
    return resident || images == 0 ? choose_resident(demand, out, error)
                                   : choose_tight(demand, out, error);
}
