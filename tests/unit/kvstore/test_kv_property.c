/*
 * The KV store against a plain model, by random operations from a seed.
 *
 * The model knows nothing of keys, lists or reference counts: it numbers contents (salt and all
 * tokens up to the end of a block) by comparing them, and finds users, copies and victims by
 * looking through everything. It predicts every result: hits and their blocks, success of a
 * reservation, which block is evicted, all counters. A victim is the least recently used among
 * cached blocks that no findable block continues.
 *
 *   test_kv_property          many seeds
 *   test_kv_property SEED     one seed, as printed by a failure
 */
#include "kv_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEEDS         4000
#define STEPS         160
#define CONTEXT_MAX   448
#define TABLE_MAX     7
#define POOL_MAX      24
#define SEQUENCES_MAX 6
#define CONTENTS_MAX  4096
#define NONE          (-1)

/* A block's worth of tokens after another content. */
struct content {
    int32_t parent; /* content, or NONE at the start */
    int32_t salt;
    uint32_t tokens[64];
};

enum place { PLACE_FREE, PLACE_HELD, PLACE_CACHED };

struct model_block {
    enum place place;
    int32_t content; /* NONE until complete */
    bool findable;
    uint64_t stamp; /* when it was completed (held) or last used (cached) */
};

struct model_sequence {
    struct nosa_kv_sequence *handle; /* NULL: closed */
    int32_t salt;
    int32_t kind; /* of the block that append is writing */
    int32_t length;
    int32_t computed;
    int32_t n_blocks;
    int32_t blocks[TABLE_MAX];
    uint32_t tokens[CONTEXT_MAX];
};

struct world {
    struct nosa_kv_store *store;
    uint64_t seed;
    uint64_t random;
    int32_t step;
    int32_t n_blocks;
    int32_t n_sequences;
    int32_t context_max;
    int32_t kinds;
    int32_t n_contents;
    uint64_t stamp;
    uint64_t evicted, hits, lookups;
    struct model_block blocks[POOL_MAX];
    struct model_sequence sequences[SEQUENCES_MAX];
    struct content contents[CONTENTS_MAX];
};

static uint64_t seed_first = 1, seed_count = SEEDS;
static uint64_t total_hits, total_evicted, total_takeovers, total_refused;

#define CHECK(world, expression)                                                                   \
    do {                                                                                           \
        if (!(expression))                                                                         \
            fail_with(world, __LINE__, #expression);                                               \
    } while (0)

static void fail_with(const struct world *world, int line, const char *text)
{
    fail_msg("seed %llu, step %d, line %d: %s; replay with: test_kv_property %llu",
             (unsigned long long)world->seed, (int)world->step, line, text,
             (unsigned long long)world->seed);
}

/* A number below n. */
static int32_t draw(struct world *world, int32_t n)
{
    world->random = world->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((uint32_t)(world->random >> 33) % (uint32_t)n);
}

/* ---- model --------------------------------------------------------------------------------- */

/* The number of a content; a new one when `add`, else NONE when it was never seen. */
static int32_t content_number(struct world *world, int32_t parent, int32_t salt,
                              const uint32_t *tokens, bool add)
{
    for (int32_t i = 0; i < world->n_contents; i++) {
        const struct content *content = &world->contents[i];
        if (content->parent == parent && content->salt == salt &&
            memcmp(content->tokens, tokens, sizeof content->tokens) == 0)
            return i;
    }
    if (!add)
        return NONE;
    CHECK(world, world->n_contents < CONTENTS_MAX);
    struct content *content = &world->contents[world->n_contents];
    content->parent = parent;
    content->salt = salt;
    memcpy(content->tokens, tokens, sizeof content->tokens);
    return world->n_contents++;
}

static int32_t users_of(const struct world *world, int32_t block)
{
    int32_t users = 0;
    for (int32_t s = 0; s < world->n_sequences; s++)
        if (world->sequences[s].handle)
            for (int32_t i = 0; i < world->sequences[s].n_blocks; i++)
                users += world->sequences[s].blocks[i] == block;
    return users;
}

static int32_t findable_with(const struct world *world, int32_t content)
{
    int32_t found = NONE;
    for (int32_t block = 0; block < world->n_blocks; block++)
        if (world->blocks[block].findable && world->blocks[block].content == content) {
            CHECK(world, found == NONE);
            found = block;
        }
    return found;
}

static int32_t count_place(const struct world *world, enum place place)
{
    int32_t count = 0;
    for (int32_t block = 0; block < world->n_blocks; block++)
        count += world->blocks[block].place == place;
    return count;
}

static bool is_continued(const struct world *world, int32_t block)
{
    for (int32_t other = 0; other < world->n_blocks; other++)
        if (world->blocks[other].findable &&
            world->contents[world->blocks[other].content].parent == world->blocks[block].content)
            return true;
    return false;
}

static int32_t oldest_leaf(const struct world *world)
{
    int32_t oldest = NONE;
    for (int32_t block = 0; block < world->n_blocks; block++)
        if (world->blocks[block].place == PLACE_CACHED && !is_continued(world, block) &&
            (oldest == NONE || world->blocks[block].stamp < world->blocks[oldest].stamp))
            oldest = block;
    return oldest;
}

static void set_free(struct world *world, int32_t block)
{
    world->blocks[block] = (struct model_block){.place = PLACE_FREE, .content = NONE};
}

/* A sequence has let go of `block`. */
static void model_release(struct world *world, int32_t block)
{
    struct model_block *released = &world->blocks[block];
    if (users_of(world, block) > 0)
        return;
    if (!released->findable) {
        set_free(world, block);
        return;
    }
    /* The copy completed last takes over. */
    int32_t heir = NONE;
    for (int32_t other = 0; other < world->n_blocks; other++)
        if (other != block && world->blocks[other].content == released->content &&
            (heir == NONE || world->blocks[other].stamp > world->blocks[heir].stamp))
            heir = other;
    if (heir != NONE) {
        world->blocks[heir].findable = true;
        set_free(world, block);
        total_takeovers++;
        return;
    }
    released->place = PLACE_CACHED;
    released->stamp = ++world->stamp;
}

static void model_complete(struct world *world, int32_t block, int32_t content)
{
    int32_t known = findable_with(world, content);
    if (known != NONE && world->blocks[known].place == PLACE_CACHED) {
        set_free(world, known);
        known = NONE;
    }
    world->blocks[block].content = content;
    world->blocks[block].findable = known == NONE;
    world->blocks[block].stamp = ++world->stamp;
}

/* ---- comparison ---------------------------------------------------------------------------- */

static void check_world(const struct world *world)
{
    struct nosa_kv_store_counters counters;
    nosa_kv_store_counters(world->store, &counters);
    CHECK(world, counters.blocks_total == world->n_blocks);
    CHECK(world, counters.blocks_used == count_place(world, PLACE_HELD));
    CHECK(world, counters.blocks_cached == count_place(world, PLACE_CACHED));
    CHECK(world, counters.evicted_blocks == world->evicted);
    CHECK(world, counters.prefix_hit_tokens == world->hits);
    CHECK(world, counters.prefix_lookup_tokens == world->lookups);
    int32_t open = 0;
    for (int32_t s = 0; s < world->n_sequences; s++)
        open += world->sequences[s].handle != NULL;
    CHECK(world, counters.sequences == open);
    for (int32_t block = 0; block < world->n_blocks; block++) {
        const struct model_block *known = &world->blocks[block];
        CHECK(world, (known->place == PLACE_HELD) == (users_of(world, block) > 0));
        CHECK(world, known->place != PLACE_CACHED || known->findable);
        if (known->findable && world->contents[known->content].parent != NONE)
            CHECK(world, findable_with(world, world->contents[known->content].parent) != NONE);
    }
}

static void check_sequence(const struct world *world, const struct model_sequence *sequence)
{
    int32_t n_blocks;
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence->handle, &n_blocks);
    CHECK(world, n_blocks == sequence->n_blocks);
    CHECK(world, memcmp(blocks, sequence->blocks, (size_t)n_blocks * sizeof *blocks) == 0);
    CHECK(world, nosa_kv_sequence_length(sequence->handle) == sequence->length);
    CHECK(world, nosa_kv_sequence_computed(sequence->handle) == sequence->computed);
    CHECK(world, memcmp(nosa_kv_sequence_tokens(sequence->handle), sequence->tokens,
                        (size_t)sequence->length * sizeof(uint32_t)) == 0);
}

/* ---- operations ---------------------------------------------------------------------------- */

static const char *const salts[] = {"", "a", "ab"};

/* Blocks come in few kinds, so that prefixes meet; now and then one token differs. */
static uint32_t make_token(struct world *world, struct model_sequence *sequence, int32_t position)
{
    if (position % 64 == 0)
        sequence->kind = draw(world, world->kinds);
    return (uint32_t)(sequence->kind * 1000 + position % 64) + (draw(world, 700) == 0);
}

static void open_sequence(struct world *world, struct model_sequence *sequence)
{
    int32_t n_tokens = 1 + draw(world, world->context_max + 1);
    int32_t cached = 0;
    sequence->salt = draw(world, 8) < 6 ? 0 : draw(world, 3);
    sequence->n_blocks = 0;
    for (int32_t i = 0; i < n_tokens && i < world->context_max; i++)
        sequence->tokens[i] = make_token(world, sequence, i);
    enum nosa_status status =
        nosa_kv_sequence_open(world->store, sequence->tokens, n_tokens, salts[sequence->salt],
                              strlen(salts[sequence->salt]), &sequence->handle, &cached, NULL);
    if (n_tokens > world->context_max) {
        CHECK(world, status == NOSA_INVALID_ARGUMENT && !sequence->handle);
        return;
    }
    CHECK(world, status == NOSA_OK);
    int32_t content = NONE;
    while (sequence->n_blocks < (n_tokens - 1) / 64) {
        content = content_number(world, content, sequence->salt,
                                 sequence->tokens + 64 * sequence->n_blocks, false);
        int32_t block = content == NONE ? NONE : findable_with(world, content);
        if (block == NONE)
            break;
        world->blocks[block].place = PLACE_HELD;
        sequence->blocks[sequence->n_blocks++] = block;
    }
    CHECK(world, cached == 64 * sequence->n_blocks);
    sequence->length = n_tokens;
    sequence->computed = cached;
    world->lookups += (uint64_t)n_tokens;
    world->hits += (uint64_t)cached;
}

static void close_sequence(struct world *world, struct model_sequence *sequence)
{
    nosa_kv_sequence_close(sequence->handle);
    while (sequence->n_blocks > 0)
        model_release(world, sequence->blocks[--sequence->n_blocks]);
    sequence->handle = NULL;
}

/* The store has taken `block` for a sequence. */
static void model_take(struct world *world, int32_t block)
{
    CHECK(world, block >= 0 && block < world->n_blocks);
    if (count_place(world, PLACE_FREE) == 0) {
        CHECK(world, block == oldest_leaf(world));
        world->evicted++;
    } else {
        CHECK(world, world->blocks[block].place == PLACE_FREE);
    }
    world->blocks[block] = (struct model_block){.place = PLACE_HELD, .content = NONE};
}

static bool reserve(struct world *world, struct model_sequence *sequence, int32_t n_tokens)
{
    int32_t needed = (n_tokens + 63) / 64 - sequence->n_blocks;
    int32_t available = world->n_blocks - count_place(world, PLACE_HELD);
    int32_t n_blocks;
    enum nosa_status status = nosa_kv_sequence_reserve(sequence->handle, n_tokens, NULL);
    if (needed > available) {
        CHECK(world, status == NOSA_RESOURCE_EXHAUSTED);
        total_refused++;
        return false;
    }
    CHECK(world, status == NOSA_OK);
    const int32_t *blocks = nosa_kv_sequence_blocks(sequence->handle, &n_blocks);
    for (int32_t i = 0; i < needed; i++) {
        int32_t block = blocks[sequence->n_blocks];
        model_take(world, block);
        sequence->blocks[sequence->n_blocks++] = block;
    }
    return true;
}

static void compute(struct world *world, struct model_sequence *sequence)
{
    int32_t left = sequence->length - sequence->computed;
    int32_t n_tokens = sequence->computed + (draw(world, 2) ? left : draw(world, left + 1));
    if (!reserve(world, sequence, n_tokens))
        return;
    nosa_kv_sequence_commit(sequence->handle, n_tokens);
    int32_t content = NONE;
    for (int32_t i = 0; i < n_tokens / 64; i++) {
        content = content_number(world, content, sequence->salt, sequence->tokens + 64 * i, true);
        if (i >= sequence->computed / 64)
            model_complete(world, sequence->blocks[i], content);
    }
    sequence->computed = n_tokens;
}

static void append(struct world *world, struct model_sequence *sequence)
{
    for (int32_t n = draw(world, 90); n >= 0; n--) {
        bool full = sequence->length == world->context_max;
        uint32_t token = full ? 0 : make_token(world, sequence, sequence->length);
        enum nosa_status status = nosa_kv_sequence_append(sequence->handle, token, NULL);
        CHECK(world, status == (full ? NOSA_RESOURCE_EXHAUSTED : NOSA_OK));
        if (full)
            return;
        sequence->tokens[sequence->length++] = token;
    }
}

static void step(struct world *world)
{
    struct model_sequence *sequence = &world->sequences[draw(world, world->n_sequences)];
    if (!sequence->handle) {
        open_sequence(world, sequence);
    } else {
        int32_t choice = draw(world, 100);
        if (choice < 50)
            compute(world, sequence);
        else if (choice < 65)
            append(world, sequence);
        else if (choice < 75)
            reserve(world, sequence, draw(world, world->context_max + 1));
        else
            close_sequence(world, sequence);
    }
    if (sequence->handle)
        check_sequence(world, sequence);
    check_world(world);
}

static void run_seed(struct world *world, uint64_t seed)
{
    memset(world, 0, offsetof(struct world, contents));
    world->seed = seed;
    world->random = seed * 0x9e3779b97f4a7c15u;
    world->n_blocks = 1 + draw(world, POOL_MAX);
    world->n_sequences = 1 + draw(world, SEQUENCES_MAX);
    world->context_max = 60 + draw(world, CONTEXT_MAX - 60 + 1);
    world->kinds = 1 + draw(world, 3);
    for (int32_t block = 0; block < world->n_blocks; block++)
        set_free(world, block);
    struct nosa_kv_store_options options = {.n_blocks = world->n_blocks,
                                            .sequences_max = world->n_sequences,
                                            .context_max = world->context_max};
    CHECK(world, nosa_kv_store_create(&options, &world->store, NULL) == NOSA_OK);
    for (world->step = 0; world->step < STEPS; world->step++)
        step(world);
    for (int32_t s = 0; s < world->n_sequences; s++)
        if (world->sequences[s].handle)
            close_sequence(world, &world->sequences[s]);
    check_world(world);
    CHECK(world, count_place(world, PLACE_HELD) == 0);
    total_hits += world->hits;
    total_evicted += world->evicted;
    nosa_kv_store_destroy(world->store);
}

static void test_store_behaves_like_the_model(void **state)
{
    (void)state;
    struct world *world = malloc(sizeof *world);
    assert_non_null(world);
    for (uint64_t seed = seed_first; seed < seed_first + seed_count; seed++)
        run_seed(world, seed);
    print_message("%llu seeds of %d steps: %llu hit tokens, %llu evictions, %llu takeovers by a "
                  "copy, %llu refused\n",
                  (unsigned long long)seed_count, STEPS, (unsigned long long)total_hits,
                  (unsigned long long)total_evicted, (unsigned long long)total_takeovers,
                  (unsigned long long)total_refused);
    free(world);
    if (seed_count > 1)
        assert_true(total_hits > 0 && total_evicted > 0 && total_takeovers > 0 &&
                    total_refused > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store_behaves_like_the_model),
    };
    if (argc > 1) {
        seed_first = strtoull(argv[1], NULL, 10);
        seed_count = 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
