#include "policy_replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *replay_policy_name(enum replay_policy policy)
{
    static const char *const names[REPLAY_POLICIES] = {"eddma", "lru", "lowest-e", "oracle"};
    return names[policy];
}

const char *replay_prefetch_name(enum replay_prefetch prefetch)
{
    static const char *const names[REPLAY_PREFETCHES] = {"nothing", "e", "recency", "eddma",
                                                         "oracle"};
    return names[prefetch];
}

/* ---- the pool ------------------------------------------------------------------------------- */

static void list_selected(const struct nosa_trace_record *record, int32_t index,
                          struct replay_pool *pool, int32_t row)
{
    const uint32_t *words = record->selected + (size_t)index * (size_t)record->words;
    int32_t n = pool->start[row];
    for (int32_t i = 0; i < record->words; i++)
        for (uint32_t bits = words[i]; bits != 0; bits &= bits - 1)
            pool->block[n++] = i * 32 + __builtin_ctz(bits);
    pool->start[row + 1] = n;
    pool->own_block[row] = record->n_blocks - 1;
    const float *e = record->e + (int64_t)index * (record->n_blocks - record->e_first);
    memcpy(pool->e + record->e_first, e,
           sizeof(float) * (size_t)(record->n_blocks - record->e_first));
}

static enum nosa_status link_next(struct replay_pool *pool, struct nosa_error *error)
{
    int32_t *seen = malloc(sizeof *seen * (size_t)pool->n_blocks);
    if (!seen)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a replay");
    for (int32_t block = 0; block < pool->n_blocks; block++)
        seen[block] = pool->n_rows;
    for (int32_t row = pool->n_rows - 1; row >= 0; row--)
        for (int32_t i = pool->start[row]; i < pool->start[row + 1]; i++) {
            pool->next[i] = seen[pool->block[i]];
            seen[pool->block[i]] = row;
        }
    free(seen);
    return NOSA_OK;
}

enum nosa_status replay_pool_read(const struct nosa_trace_reader *reader, int32_t index,
                                  struct replay_pool *out, struct nosa_error *error)
{
    size_t rows = (size_t)reader->rows;
    size_t cells = rows * (size_t)reader->info.topk;
    *out = (struct replay_pool){
        .n_rows = (int32_t)reader->rows,
        .n_blocks = reader->n_blocks_max,
        .step_first = (int32_t)(reader->rows - reader->steps),
        .init_blocks = reader->info.init_blocks,
        .window_blocks = reader->info.window_blocks,
        .own_block = calloc(rows, sizeof *out->own_block),
        .start = calloc(rows + 1, sizeof *out->start),
        .block = calloc(cells, sizeof *out->block),
        .next = calloc(cells, sizeof *out->next),
        .e = calloc((size_t)reader->n_blocks_max, sizeof *out->e),
    };
    enum nosa_status status = NOSA_OK;
    if (cells > INT32_MAX || !out->own_block || !out->start || !out->block || !out->next || !out->e)
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a trace of %llu rows",
                                (unsigned long long)reader->rows);
    struct nosa_trace_record record;
    size_t offset = 0;
    for (int32_t row = 0; status == NOSA_OK && nosa_trace_reader_next(reader, &offset, &record);
         row++)
        list_selected(&record, index, out, row);
    if (status == NOSA_OK)
        status = link_next(out, error);
    if (status != NOSA_OK)
        replay_pool_free(out);
    return status;
}

void replay_pool_free(struct replay_pool *pool)
{
    free(pool->own_block);
    free(pool->start);
    free(pool->block);
    free(pool->next);
    free(pool->e);
    *pool = (struct replay_pool){0};
}

/* ---- a tier --------------------------------------------------------------------------------- */

struct tier {
    const struct replay_pool *pool;
    const struct replay_history *history;
    enum replay_policy policy;
    int32_t capacity;
    int32_t n;        /* blocks held */
    int32_t *held;    /* [capacity + blocks of a row] owned: blocks, in no order */
    bool *holds;      /* [n_blocks] owned */
    bool *keep;       /* [n_blocks] borrowed: never given up; or NULL */
    bool *prefetched; /* [n_blocks] owned: held, and not selected since it was prefetched */
};

void replay_history_free(struct replay_history *history)
{
    free(history->weight);
    free(history->touch);
    free(history->next);
    free(history->made);
    *history = (struct replay_history){0};
}

static enum nosa_status history_allocate(struct replay_history *history,
                                         const struct replay_pool *pool, struct nosa_error *error)
{
    size_t n = (size_t)pool->n_blocks;
    *history = (struct replay_history){
        .touch = calloc(n, sizeof *history->touch),
        .weight = calloc(n, sizeof *history->weight),
        .next = calloc(n, sizeof *history->next),
        .made = calloc(n, sizeof *history->made),
    };
    if (!history->touch || !history->weight || !history->next || !history->made) {
        replay_history_free(history);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a replay");
    }
    return NOSA_OK;
}

enum nosa_status replay_history_create(struct replay_history *history,
                                       const struct replay_pool *pool, struct nosa_error *error)
{
    NOSA_TRY(history_allocate(history, pool, error));
    for (int32_t block = 0; block < pool->n_blocks; block++)
        history->next[block] = pool->n_rows;
    for (int32_t row = pool->n_rows - 1; row >= 0; row--)
        for (int32_t i = pool->start[row]; i < pool->start[row + 1]; i++)
            history->next[pool->block[i]] = row;
    return NOSA_OK;
}

static void tier_destroy(struct tier *tier)
{
    free(tier->held);
    free(tier->holds);
    free(tier->prefetched);
    *tier = (struct tier){0};
}

static enum nosa_status tier_create(struct tier *tier, const struct replay_pool *pool,
                                    const struct replay_history *history, enum replay_policy policy,
                                    int32_t capacity, struct nosa_error *error)
{
    *tier = (struct tier){.pool = pool, .history = history, .policy = policy, .capacity = capacity};
    tier->held = calloc((size_t)pool->n_blocks, sizeof *tier->held);
    tier->holds = calloc((size_t)pool->n_blocks, sizeof *tier->holds);
    tier->prefetched = calloc((size_t)pool->n_blocks, sizeof *tier->prefetched);
    if (tier->held && tier->holds && tier->prefetched)
        return NOSA_OK;
    tier_destroy(tier);
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a replay");
}

/* Smallest goes first; the oracle's key falls with the distance to the next use. */
static uint64_t key(const struct tier *tier, int32_t block)
{
    const struct replay_history *history = tier->history;
    if (tier->policy == REPLAY_ORACLE)
        return (uint64_t)(tier->pool->n_rows - history->next[block]);
    return nosa_kv_policy_key((enum nosa_kv_policy)tier->policy,
                              (struct nosa_kv_policy_input){.last_touch = history->touch[block] >>
                                                                          tier->pool->touch_shift,
                                                            .weight = history->weight[block],
                                                            .e = tier->pool->e[block]});
}

/* Gives up blocks that were not touched at `now` until at most `capacity` are held. */
static void tier_shrink(struct tier *tier, uint32_t now)
{
    while (tier->n > tier->capacity) {
        int32_t victim = -1;
        uint64_t smallest = UINT64_MAX;
        for (int32_t i = 0; i < tier->n; i++) {
            int32_t block = tier->held[i];
            if (tier->history->touch[block] == now || (tier->keep && tier->keep[block]))
                continue;
            uint64_t candidate = key(tier, block);
            if (victim >= 0 &&
                (candidate > smallest || (candidate == smallest && block > tier->held[victim])))
                continue;
            victim = i;
            smallest = candidate;
        }
        NOSA_ASSERT(victim >= 0);
        tier->holds[tier->held[victim]] = false;
        tier->prefetched[tier->held[victim]] = false;
        tier->held[victim] = tier->held[--tier->n];
    }
}

static void tier_take(struct tier *tier, int32_t block)
{
    if (tier->holds[block])
        return;
    tier->holds[block] = true;
    tier->held[tier->n++] = block;
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* The next row happens: what it selects is touched, and blocks that exist with it are put into the
 * tiers where they are made. */
static void history_step(struct replay_history *history, const struct replay_pool *pool,
                         struct tier *tiers, int32_t n_tiers)
{
    int32_t row = history->row++;
    for (int32_t i = pool->start[row]; i < pool->start[row + 1]; i++) {
        int32_t block = pool->block[i];
        uint32_t step = ((uint32_t)row + 1) >> pool->touch_shift;
        uint32_t last = history->touch[block] >> pool->touch_shift;
        if (last != step)
            history->weight[block] = nosa_kv_policy_weight(history->weight[block], last, step);
        history->touch[block] = (uint32_t)row + 1;
        history->next[block] = pool->next[i];
    }
    for (int32_t block = pool->own_block[row]; block >= 0 && !history->made[block]; block--) {
        history->made[block] = true;
        for (int32_t i = 0; i < n_tiers; i++)
            tier_take(&tiers[i], block);
    }
}

void replay_history_advance(struct replay_history *history, const struct replay_pool *pool,
                            int32_t row)
{
    while (history->row < row)
        history_step(history, pool, NULL, 0);
}

/* A row that has just happened, over a tier: loads what is missing. */
static void tier_step(struct tier *tier, int32_t row, struct replay_counts *counts)
{
    const struct replay_pool *pool = tier->pool;
    struct replay_counts unused = {0};
    struct replay_counts *sums = counts ? counts : &unused;
    for (int32_t i = pool->start[row]; i < pool->start[row + 1]; i++) {
        int32_t block = pool->block[i];
        sums->misses += !tier->holds[block];
        sums->prefetched_used += tier->prefetched[block];
        tier->prefetched[block] = false;
        tier_take(tier, block);
    }
    sums->selected += (uint64_t)(pool->start[row + 1] - pool->start[row]);
    sums->steps++;
    tier_shrink(tier, (uint32_t)row + 1);
}

/* Every row, over each tier in turn; what the last one misses at steps is counted. */
static void run_rows(const struct replay_pool *pool, struct replay_history *history,
                     struct tier *tiers, int32_t n_tiers, struct replay_counts *counts)
{
    for (int32_t row = 0; row < pool->n_rows; row++) {
        history_step(history, pool, tiers, n_tiers);
        for (int32_t i = 0; i < n_tiers; i++)
            tier_step(&tiers[i], row, row >= pool->step_first && i == n_tiers - 1 ? counts : NULL);
    }
}

enum nosa_status replay_decode(const struct replay_pool *pool, enum replay_policy policy,
                               int32_t capacity, struct replay_counts *counts,
                               struct nosa_error *error)
{
    struct replay_history history;
    struct tier tier;
    NOSA_TRY(replay_history_create(&history, pool, error));
    enum nosa_status status = tier_create(&tier, pool, &history, policy, capacity, error);
    if (status == NOSA_OK) {
        run_rows(pool, &history, &tier, 1, counts);
        tier_destroy(&tier);
    }
    replay_history_free(&history);
    return status;
}

enum nosa_status replay_demotion(const struct replay_pool *pool, enum replay_policy host_policy,
                                 int32_t capacity, int32_t host_capacity,
                                 struct replay_counts *counts, struct nosa_error *error)
{
    struct replay_history history;
    struct tier tiers[2] = {{0}, {0}};
    NOSA_ASSERT(host_capacity > capacity);
    NOSA_TRY(replay_history_create(&history, pool, error));
    enum nosa_status status = tier_create(&tiers[0], pool, &history, REPLAY_EDDMA, capacity, error);
    if (status == NOSA_OK)
        status = tier_create(&tiers[1], pool, &history, host_policy, host_capacity, error);
    if (status == NOSA_OK) {
        tiers[1].keep = tiers[0].holds;
        run_rows(pool, &history, tiers, 2, counts);
        tier_destroy(&tiers[1]);
    }
    tier_destroy(&tiers[0]);
    replay_history_free(&history);
    return status;
}

/* ---- a first tier that starts empty --------------------------------------------------------- */

/* Larger is wanted more; of equals the later block. */
static uint64_t wish(const struct replay_pool *pool, const struct replay_history *history,
                     enum replay_prefetch prefetch, int32_t own_block, int32_t block)
{
    uint32_t e = nosa_kv_policy_order(pool->e[block]);
    bool forced = block < pool->init_blocks || block >= own_block - pool->window_blocks;
    switch (prefetch) {
    case REPLAY_PREFETCH_E: return (uint64_t)forced << 32 | e;
    case REPLAY_PREFETCH_RECENCY: return history->touch[block];
    case REPLAY_PREFETCH_EDDMA: return (uint64_t)history->touch[block] << 32 | e;
    case REPLAY_PREFETCH_ORACLE: return (uint64_t)(pool->n_rows - history->next[block]);
    case REPLAY_PREFETCH_NOTHING:
    case REPLAY_PREFETCHES: break;
    }
    return 0;
}

static void prefetch_blocks(struct tier *tier, enum replay_prefetch prefetch, int32_t first,
                            struct replay_counts *counts)
{
    const struct replay_pool *pool = tier->pool;
    while (prefetch != REPLAY_PREFETCH_NOTHING && tier->n < tier->capacity) {
        int32_t best = -1;
        uint64_t best_wish = 0;
        for (int32_t block = 0; block < pool->n_blocks; block++) {
            if (!tier->history->made[block] || tier->holds[block])
                continue;
            uint64_t value = wish(pool, tier->history, prefetch, pool->own_block[first], block);
            if (best >= 0 && value < best_wish)
                continue;
            best = block;
            best_wish = value;
        }
        if (best < 0)
            return;
        tier_take(tier, best);
        tier->prefetched[best] = true;
        counts->prefetched++;
    }
}

/* A copy of what was known, in which prefetched blocks share a touch: nothing here has used them.
 */
static enum nosa_status history_resume(struct replay_history *history,
                                       const struct replay_history *past,
                                       const struct replay_pool *pool, struct nosa_error *error)
{
    size_t n = (size_t)pool->n_blocks;
    NOSA_TRY(history_allocate(history, pool, error));
    history->row = past->row;
    memcpy(history->touch, past->touch, sizeof *past->touch * n);
    memcpy(history->next, past->next, sizeof *past->next * n);
    memcpy(history->made, past->made, sizeof *past->made * n);
    return NOSA_OK;
}

static void add_counts(struct replay_counts *sum, const struct replay_counts *counts)
{
    sum->steps += counts->steps;
    sum->selected += counts->selected;
    sum->misses += counts->misses;
    sum->prefetched += counts->prefetched;
    sum->prefetched_used += counts->prefetched_used;
}

enum nosa_status replay_resume(const struct replay_pool *pool, const struct replay_history *past,
                               enum replay_prefetch prefetch, enum replay_policy policy,
                               int32_t capacity, int32_t horizon, struct replay_counts counts[2],
                               struct nosa_error *error)
{
    struct replay_history history;
    struct tier tier;
    NOSA_ASSERT(past->row < pool->n_rows);
    NOSA_TRY(history_resume(&history, past, pool, error));
    enum nosa_status status = tier_create(&tier, pool, &history, policy, capacity, error);
    if (status != NOSA_OK) {
        replay_history_free(&history);
        return status;
    }
    struct replay_counts sum = {0};
    prefetch_blocks(&tier, prefetch, past->row, &sum);
    memset(history.touch, 0, sizeof *history.touch * (size_t)pool->n_blocks);
    memset(history.weight, 0, sizeof *history.weight * (size_t)pool->n_blocks);
    int32_t first = past->row,
            end = pool->n_rows - first < horizon ? pool->n_rows : first + horizon;
    for (int32_t row = first; row < end; row++) {
        history_step(&history, pool, &tier, 1);
        tier_step(&tier, row, &sum);
        if (row == first)
            add_counts(&counts[0], &sum);
    }
    add_counts(&counts[1], &sum);
    tier_destroy(&tier);
    replay_history_free(&history);
    return NOSA_OK;
}
