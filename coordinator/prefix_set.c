#include "prefix_set.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define CAPACITY_MIN 64

/* The hashes are hashes already, but a stranger may choose them: one more mix costs little. */
static size_t home(const struct nosa_prefix_set *set, uint64_t hash)
{
    return (size_t)((hash * UINT64_C(0x9E3779B97F4A7C15)) >> 20) & (set->capacity - 1);
}

static size_t find(const struct nosa_prefix_set *set, uint64_t hash)
{
    size_t slot = home(set, hash);
    while (set->entries[slot].tiers && set->entries[slot].hash != hash)
        slot = (slot + 1) & (set->capacity - 1);
    return slot;
}

static enum nosa_status grow(struct nosa_prefix_set *set)
{
    struct nosa_prefix_set larger = *set;
    larger.capacity = set->capacity ? 2 * set->capacity : CAPACITY_MIN;
    larger.entries = calloc(larger.capacity, sizeof *larger.entries);
    if (!larger.entries)
        return NOSA_OUT_OF_MEMORY;
    for (size_t i = 0; i < set->capacity; i++)
        if (set->entries[i].tiers)
            larger.entries[find(&larger, set->entries[i].hash)] = set->entries[i];
    free(set->entries);
    *set = larger;
    return NOSA_OK;
}

enum nosa_status nosa_prefix_set_add(struct nosa_prefix_set *set, uint64_t hash, uint8_t tiers)
{
    NOSA_ASSERT(tiers != 0);
    if (4 * (set->count + 1) > 3 * set->capacity)
        NOSA_TRY(grow(set));
    struct nosa_prefix_entry *entry = &set->entries[find(set, hash)];
    if (!entry->tiers) {
        if (set->count_max && set->count >= set->count_max)
            return NOSA_RESOURCE_EXHAUSTED;
        entry->hash = hash;
        set->count++;
    }
    entry->tiers |= tiers;
    return NOSA_OK;
}

void nosa_prefix_set_remove(struct nosa_prefix_set *set, uint64_t hash, uint8_t tiers)
{
    if (!set->count)
        return;
    size_t hole = find(set, hash);
    if (!set->entries[hole].tiers)
        return;
    set->entries[hole].tiers &= (uint8_t)~tiers;
    if (set->entries[hole].tiers)
        return;
    set->count--;
    /* What follows and could lie earlier moves up, so that no search stops at the hole. */
    size_t mask = set->capacity - 1;
    for (size_t slot = (hole + 1) & mask; set->entries[slot].tiers; slot = (slot + 1) & mask) {
        size_t wanted = home(set, set->entries[slot].hash);
        if (((slot - wanted) & mask) < ((slot - hole) & mask))
            continue;
        set->entries[hole] = set->entries[slot];
        set->entries[slot].tiers = 0;
        hole = slot;
    }
}

uint8_t nosa_prefix_set_find(const struct nosa_prefix_set *set, uint64_t hash)
{
    return set->count ? set->entries[find(set, hash)].tiers : 0;
}

void nosa_prefix_set_clear(struct nosa_prefix_set *set)
{
    if (set->count)
        memset(set->entries, 0, set->capacity * sizeof *set->entries);
    set->count = 0;
}

void nosa_prefix_set_free(struct nosa_prefix_set *set)
{
    free(set->entries);
    *set = (struct nosa_prefix_set){0};
}

void nosa_prefix_hash(const uint32_t *tokens, size_t count, uint32_t block_tokens, const char *salt,
                      uint64_t *hashes)
{
    uint64_t hash = nosa_hash64(salt, strlen(salt), 0);
    for (size_t block = 0; block < count / block_tokens; block++) {
        hash = nosa_hash64(tokens + block * block_tokens, block_tokens * sizeof *tokens, hash);
        hashes[block] = hash;
    }
}
