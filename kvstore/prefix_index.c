#include "prefix_index.h"

#include <stdlib.h>
#include <string.h>

#include "block_pool.h"

/* A key is a digest, so any four bytes of it are spread well. */
static uint32_t first_place(const struct nosa_prefix_index *index, const struct nosa_chain_key *key)
{
    uint32_t bits;
    memcpy(&bits, key->bytes, sizeof bits);
    return bits & index->mask;
}

enum nosa_status nosa_prefix_index_create(struct nosa_prefix_index *index, int32_t n_blocks,
                                          const struct nosa_chain_key *keys,
                                          struct nosa_error *error)
{
    NOSA_ASSERT(n_blocks > 0 && n_blocks <= NOSA_PREFIX_INDEX_BLOCKS_MAX);
    uint32_t n_places = 4;
    while (n_places < 2 * (uint32_t)n_blocks)
        n_places *= 2;
    index->places = malloc(n_places * sizeof *index->places);
    if (!index->places)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV store: no memory for an index of %d",
                              (int)n_blocks);
    for (uint32_t i = 0; i < n_places; i++)
        index->places[i] = NOSA_BLOCK_NONE;
    index->mask = n_places - 1;
    index->keys = keys;
    return NOSA_OK;
}

void nosa_prefix_index_destroy(struct nosa_prefix_index *index)
{
    free(index->places);
    memset(index, 0, sizeof *index);
}

/* The place that holds `key`, or the empty one where it would go. */
static uint32_t find_place(const struct nosa_prefix_index *index, const struct nosa_chain_key *key)
{
    uint32_t place = first_place(index, key);
    while (index->places[place] != NOSA_BLOCK_NONE &&
           memcmp(&index->keys[index->places[place]], key, sizeof *key) != 0)
        place = (place + 1) & index->mask;
    return place;
}

int32_t nosa_prefix_index_find(const struct nosa_prefix_index *index,
                               const struct nosa_chain_key *key)
{
    return index->places[find_place(index, key)];
}

void nosa_prefix_index_insert(struct nosa_prefix_index *index, int32_t block)
{
    uint32_t place = find_place(index, &index->keys[block]);
    NOSA_ASSERT(index->places[place] == NOSA_BLOCK_NONE);
    index->places[place] = block;
}

void nosa_prefix_index_replace(struct nosa_prefix_index *index, int32_t block, int32_t by)
{
    uint32_t place = find_place(index, &index->keys[block]);
    NOSA_ASSERT(index->places[place] == block);
    NOSA_ASSERT(memcmp(&index->keys[block], &index->keys[by], sizeof *index->keys) == 0);
    index->places[place] = by;
}

void nosa_prefix_index_remove(struct nosa_prefix_index *index, int32_t block)
{
    uint32_t gap = find_place(index, &index->keys[block]);
    NOSA_ASSERT(index->places[gap] == block);
    /* Every key must stay reachable from its first place without crossing an empty one: a later
     * key moves into the gap unless its first place lies after the gap. */
    for (uint32_t place = (gap + 1) & index->mask; index->places[place] != NOSA_BLOCK_NONE;
         place = (place + 1) & index->mask) {
        uint32_t first = first_place(index, &index->keys[index->places[place]]);
        if (((place - first) & index->mask) >= ((place - gap) & index->mask)) {
            index->places[gap] = index->places[place];
            gap = place;
        }
    }
    index->places[gap] = NOSA_BLOCK_NONE;
}
