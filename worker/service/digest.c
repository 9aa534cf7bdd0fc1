#include "service/digest.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define NONE UINT32_MAX

/* Changes that are kept for readers, per block of the set, and at least. */
#define CHANGES_PER_BLOCK 2
#define CHANGES_MIN       4096

struct entry {
    uint64_t hash;
    uint32_t next_in_bucket;
    uint32_t newer, older; /* in its tier, or free list by `older` */
    int8_t tier;           /* -1: free */
};

struct list {
    uint32_t newest, oldest;
    uint32_t count, count_max;
};

struct nosa_digest {
    pthread_mutex_t mutex;
    /* fixed after create */
    uint32_t n_entries;
    uint32_t bucket_mask;
    uint32_t changes_max;
    /* under mutex */
    struct entry *entries;              /* [n_entries] */
    uint32_t *buckets;                  /* [bucket_mask + 1] */
    struct nosa_digest_change *changes; /* [changes_max], a ring */
    uint64_t n_changes;                 /* ever */
    uint32_t free;
    struct list tiers[NOSA_DIGEST_TIERS];
};

uint64_t nosa_digest_root(const void *salt, size_t salt_bytes)
{
    return nosa_hash64(salt_bytes ? salt : "", salt_bytes, 0);
}

void nosa_digest_chain(uint64_t before, const uint32_t *tokens, size_t n_blocks, uint64_t *hashes)
{
    for (size_t i = 0; i < n_blocks; i++) {
        before = nosa_hash64(tokens + i * NOSA_DIGEST_BLOCK_TOKENS,
                             NOSA_DIGEST_BLOCK_TOKENS * sizeof *tokens, before);
        hashes[i] = before;
    }
}

enum nosa_status nosa_digest_create(struct nosa_digest **digest,
                                    const int32_t blocks[NOSA_DIGEST_TIERS],
                                    struct nosa_error *error)
{
    *digest = calloc(1, sizeof **digest);
    if (!*digest)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a prefix digest");
    struct nosa_digest *made = *digest;
    pthread_mutex_init(&made->mutex, NULL);
    for (int tier = 0; tier < NOSA_DIGEST_TIERS; tier++) {
        uint32_t most = NOSA_DIGEST_BLOCKS_MAX - made->n_entries;
        uint32_t count = (uint32_t)(blocks[tier] > 0 ? blocks[tier] : 0);
        made->tiers[tier] = (struct list){NONE, NONE, 0, count < most ? count : most};
        made->n_entries += made->tiers[tier].count_max;
    }
    made->n_entries++; /* one on its way between tiers */
    uint32_t buckets = 1;
    while (buckets < made->n_entries)
        buckets *= 2;
    made->bucket_mask = buckets - 1;
    made->changes_max = made->n_entries * CHANGES_PER_BLOCK;
    made->changes_max = made->changes_max > CHANGES_MIN ? made->changes_max : CHANGES_MIN;
    made->entries = calloc(made->n_entries, sizeof *made->entries);
    made->buckets = malloc(buckets * sizeof *made->buckets);
    made->changes = calloc(made->changes_max, sizeof *made->changes);
    if (!made->entries || !made->buckets || !made->changes) {
        nosa_digest_free(made);
        *digest = NULL;
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a digest of %u blocks",
                              made->n_entries);
    }
    memset(made->buckets, 0xff, buckets * sizeof *made->buckets);
    for (uint32_t i = 0; i < made->n_entries; i++) {
        made->entries[i].tier = -1;
        made->entries[i].older = i + 1 < made->n_entries ? i + 1 : NONE;
    }
    return NOSA_OK;
}

void nosa_digest_free(struct nosa_digest *digest)
{
    if (!digest)
        return;
    pthread_mutex_destroy(&digest->mutex);
    free(digest->changes);
    free(digest->buckets);
    free(digest->entries);
    free(digest);
}

/* ---- the set, under the mutex ---------------------------------------------------------------- */

static uint32_t *bucket_of(struct nosa_digest *digest, uint64_t hash)
{
    return &digest->buckets[(hash ^ hash >> 32) & digest->bucket_mask];
}

static uint32_t find(struct nosa_digest *digest, uint64_t hash)
{
    uint32_t index = *bucket_of(digest, hash);
    while (index != NONE && digest->entries[index].hash != hash)
        index = digest->entries[index].next_in_bucket;
    return index;
}

static void note(struct nosa_digest *digest, uint64_t hash, int tier, bool added)
{
    digest->changes[digest->n_changes++ % digest->changes_max] =
        (struct nosa_digest_change){.hash = hash, .tier = (uint8_t)tier, .added = added};
}

static void unlink_entry(struct nosa_digest *digest, uint32_t index)
{
    struct entry *entry = &digest->entries[index];
    struct list *list = &digest->tiers[entry->tier];
    *(entry->newer != NONE ? &digest->entries[entry->newer].older : &list->newest) = entry->older;
    *(entry->older != NONE ? &digest->entries[entry->older].newer : &list->oldest) = entry->newer;
    list->count--;
}

static void link_newest(struct nosa_digest *digest, uint32_t index, int tier)
{
    struct entry *entry = &digest->entries[index];
    struct list *list = &digest->tiers[tier];
    entry->tier = (int8_t)tier;
    entry->newer = NONE;
    entry->older = list->newest;
    *(list->newest != NONE ? &digest->entries[list->newest].newer : &list->oldest) = index;
    list->newest = index;
    list->count++;
}

static void drop(struct nosa_digest *digest, uint32_t index)
{
    struct entry *entry = &digest->entries[index];
    note(digest, entry->hash, entry->tier, false);
    unlink_entry(digest, index);
    uint32_t *link = bucket_of(digest, entry->hash);
    while (*link != index)
        link = &digest->entries[*link].next_in_bucket;
    *link = entry->next_in_bucket;
    entry->tier = -1;
    entry->older = digest->free;
    digest->free = index;
}

/* What a tier has no place for moves to the next one that exists, or out. */
static void spill(struct nosa_digest *digest, int tier)
{
    while (digest->tiers[tier].count > digest->tiers[tier].count_max) {
        uint32_t index = digest->tiers[tier].oldest;
        int below = tier + 1;
        while (below < NOSA_DIGEST_TIERS && digest->tiers[below].count_max == 0)
            below++;
        if (below == NOSA_DIGEST_TIERS) {
            drop(digest, index);
            continue;
        }
        note(digest, digest->entries[index].hash, tier, false);
        unlink_entry(digest, index);
        link_newest(digest, index, below);
        note(digest, digest->entries[index].hash, below, true);
        spill(digest, below);
    }
}

static void touch(struct nosa_digest *digest, uint64_t hash)
{
    uint32_t index = find(digest, hash);
    if (index != NONE) {
        int tier = digest->entries[index].tier;
        unlink_entry(digest, index);
        link_newest(digest, index, 0);
        if (tier == 0)
            return;
        note(digest, hash, tier, false);
    } else {
        index = digest->free;
        NOSA_ASSERT(index != NONE);
        digest->free = digest->entries[index].older;
        uint32_t *bucket = bucket_of(digest, hash);
        digest->entries[index].hash = hash;
        digest->entries[index].next_in_bucket = *bucket;
        *bucket = index;
        link_newest(digest, index, 0);
    }
    note(digest, hash, 0, true);
    spill(digest, 0);
}

/* ---- the interface --------------------------------------------------------------------------- */

void nosa_digest_touch(struct nosa_digest *digest, const uint64_t *hashes, size_t n)
{
    pthread_mutex_lock(&digest->mutex);
    while (n-- > 0) /* a block outlives those that continue it */
        touch(digest, hashes[n]);
    pthread_mutex_unlock(&digest->mutex);
}

void nosa_digest_forget(struct nosa_digest *digest, const uint64_t *hashes, size_t n)
{
    pthread_mutex_lock(&digest->mutex);
    for (size_t i = 0; i < n; i++) {
        uint32_t index = find(digest, hashes[i]);
        if (index != NONE)
            drop(digest, index);
    }
    pthread_mutex_unlock(&digest->mutex);
}

size_t nosa_digest_known(struct nosa_digest *digest, const uint64_t *hashes, size_t n)
{
    size_t known = 0;
    pthread_mutex_lock(&digest->mutex);
    while (known < n && find(digest, hashes[known]) != NONE)
        known++;
    pthread_mutex_unlock(&digest->mutex);
    return known;
}

size_t nosa_digest_count(struct nosa_digest *digest, int tier)
{
    pthread_mutex_lock(&digest->mutex);
    size_t count = digest->tiers[tier].count;
    pthread_mutex_unlock(&digest->mutex);
    return count;
}

/* Whether a batch already says something of the block: what a message adds and removes has no
 * order, so that the change must wait for the next one. Recent changes come last. */
static bool is_said(const struct nosa_digest_change *changes, size_t n, uint64_t hash, int tier)
{
    while (n-- > 0)
        if (changes[n].hash == hash && changes[n].tier == tier)
            return true;
    return false;
}

static void read_set(struct nosa_digest *digest, struct nosa_digest_cursor *cursor,
                     struct nosa_digest_change *changes, size_t max,
                     struct nosa_digest_batch *batch)
{
    while (batch->n < max && cursor->slot < digest->n_entries) {
        const struct entry *entry = &digest->entries[cursor->slot++];
        if (entry->tier >= 0)
            changes[batch->n++] = (struct nosa_digest_change){
                .hash = entry->hash, .tier = (uint8_t)entry->tier, .added = true};
    }
    cursor->whole = cursor->slot == digest->n_entries;
}

void nosa_digest_read(struct nosa_digest *digest, struct nosa_digest_cursor *cursor,
                      struct nosa_digest_change *changes, size_t max,
                      struct nosa_digest_batch *batch)
{
    *batch = (struct nosa_digest_batch){0};
    pthread_mutex_lock(&digest->mutex);
    if (cursor->running && digest->n_changes - cursor->change > digest->changes_max)
        cursor->running = false;
    if (!cursor->running) {
        *cursor = (struct nosa_digest_cursor){.running = true, .change = digest->n_changes};
        batch->reset = true;
    }
    if (!cursor->whole)
        read_set(digest, cursor, changes, max, batch);
    size_t first = batch->n; /* changes are not mixed with the set's beginning */
    while (cursor->whole && first == 0 && batch->n < max && cursor->change < digest->n_changes) {
        const struct nosa_digest_change *change =
            &digest->changes[cursor->change % digest->changes_max];
        if (is_said(changes, batch->n, change->hash, change->tier))
            break;
        changes[batch->n++] = *change;
        cursor->change++;
    }
    batch->partial = !cursor->whole || cursor->change < digest->n_changes;
    pthread_mutex_unlock(&digest->mutex);
}
