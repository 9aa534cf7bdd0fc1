/* A step of the simulated engine: what the ranks would enqueue, with bytes in place of arithmetic.
 */
#include <stdio.h>
#include <string.h>

#include "tier_world.h"

struct step {
    struct tier_world *world;
    int32_t n_items;
    struct nosa_kv_step_item items[TIER_SEQUENCES_MAX];
    int32_t index[TIER_SEQUENCES_MAX]; /* of the sequence in the world */
    int32_t first[TIER_SEQUENCES_MAX]; /* position */
    bool suspect[TIER_SEQUENCES_MAX];  /* bytes that were not the model's were read */
    struct nosa_batch_view batch;
    int32_t row_pos[TIER_SEQUENCES_MAX * TIER_ROWS_MAX];
    int32_t row_seq[TIER_SEQUENCES_MAX * TIER_ROWS_MAX];
    int32_t block_table[TIER_SEQUENCES_MAX * TIER_BLOCKS_MAX];
    int32_t selected[TIER_SEQUENCES_MAX * TIER_ROWS_MAX * 2 * TIER_TOPK_MAX];
    int32_t selected_count[TIER_SEQUENCES_MAX * TIER_ROWS_MAX * 2];
    struct nosa_kv_hits hits[TIER_SEQUENCES_MAX];
    struct nosa_kv_absent absent[128];
    int32_t n_absent;
    uint64_t fetched;
};

static const struct nosa_op_table *ops_of(const struct tier_world *world)
{
    return world->device->table->ops;
}

static void start_moves(struct step *step)
{
    struct tier_world *world = step->world;
    const struct nosa_kv_moves *moves = &world->moves;
    const struct nosa_kv_view *view = &world->arena.view;
    enum nosa_kv_policy policy = world->config.policy;

    if (view->slot_block) {
        ops_of(world)->kv_update(world->stream,
                                 &(struct nosa_kv_update_params){.kv = view,
                                                                 .n_forget = moves->n_forget,
                                                                 .forget = moves->forget,
                                                                 .n_states = moves->n_states,
                                                                 .states = moves->states});
        ops_of(world)->kv_place(world->stream,
                                &(struct nosa_kv_place_params){.kv = view,
                                                               .policy = policy,
                                                               .step = moves->step,
                                                               .n = moves->n_place,
                                                               .blocks = moves->place});
        ops_of(world)->kv_fetch(world->stream,
                                &(struct nosa_kv_fetch_params){.kv = view,
                                                               .policy = policy,
                                                               .step = moves->step,
                                                               .n = moves->n_fetch,
                                                               .records = moves->fetch,
                                                               .fetched = &step->fetched});
    }
    ops_of(world)->kv_load(
        world->stream,
        &(struct nosa_kv_load_params){.kv = view, .n = moves->n_loads, .moves = moves->loads});
}

static void end_moves(struct step *step)
{
    struct tier_world *world = step->world;
    ops_of(world)->kv_save(world->stream,
                           &(struct nosa_kv_save_params){.kv = &world->arena.view,
                                                         .n = world->moves.n_saves,
                                                         .moves = world->moves.saves});
    nosa_kv_store_end_step(world->store);
}

/* ---- the bytes of a token ------------------------------------------------------------------- */

#define RECORD_STRIPE 64 /* bytes of a token in a record of 4096 */

static void fill(uint64_t value, char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i += sizeof value) {
        value = tier_hash_next(value, i);
        memcpy(bytes + i, &value, n - i < sizeof value ? n - i : sizeof value);
    }
}

/* A finite float. */
static float fill_float(uint64_t value)
{
    return (float)(value >> 40) / 1000.0f;
}

static void write_token(struct step *step, int32_t item, int32_t position, int32_t layer)
{
    struct tier_world *world = step->world;
    const struct nosa_kv_view *view = &world->arena.view;
    int32_t block = step->block_table[item * TIER_BLOCKS_MAX + position / NOSA_BLOCK_TOKENS];
    int32_t at = position % NOSA_BLOCK_TOKENS;
    for (int32_t h = 0; h < view->geometry.n_kv_heads; h++) {
        uint64_t value =
            tier_token_value(world->sequences[step->index[item]].hash[position + 1], layer, h);
        int64_t record = nosa_kv_record_index(view, layer, h, block);
        TIER_CHECK(world, view->record_slot[record] != NOSA_KV_SLOT_NONE);
        fill(value, nosa_kv_record(view, layer, h, block) + at * RECORD_STRIPE, RECORD_STRIPE);
        fill(value ^ 1, view->compressed_keys + record * 512 + at * 8, 8);
        view->token_bias[record * NOSA_BLOCK_TOKENS + at] = fill_float(value);
        if (at % 4 == 3)
            view->window_bias[record * 16 + at / 4] = fill_float(value ^ 2);
    }
}

static bool token_is_right(const struct step *step, int32_t item, int32_t position, int32_t layer,
                           int32_t kv_head, const char *record)
{
    const struct tier_world *world = step->world;
    const struct nosa_kv_view *view = &world->arena.view;
    int32_t block = step->block_table[item * TIER_BLOCKS_MAX + position / NOSA_BLOCK_TOKENS];
    int32_t at = position % NOSA_BLOCK_TOKENS;
    uint64_t value =
        tier_token_value(world->sequences[step->index[item]].hash[position + 1], layer, kv_head);
    int64_t index = nosa_kv_record_index(view, layer, kv_head, block);
    char stripe[RECORD_STRIPE], key[8];

    fill(value ^ 1, key, sizeof key);
    TIER_CHECK(world, memcmp(key, view->compressed_keys + index * 512 + at * 8, 8) == 0);
    TIER_CHECK(world, view->token_bias[index * NOSA_BLOCK_TOKENS + at] == fill_float(value));
    if (at % 4 == 3)
        TIER_CHECK(world, view->window_bias[index * 16 + at / 4] == fill_float(value ^ 2));
    fill(value, stripe, sizeof stripe);
    return memcmp(stripe, record + at * RECORD_STRIPE, sizeof stripe) == 0;
}

/* Attention of one row: reads every token of its blocks. */
static void read_row(struct step *step, int32_t row, int32_t layer)
{
    struct tier_world *world = step->world;
    const struct nosa_kv_view *view = &world->arena.view;
    int32_t item = step->row_seq[row], position = step->row_pos[row];
    int32_t stride = view->geometry.n_kv_heads, topk = world->config.topk;
    for (int32_t h = 0; h < stride; h++)
        for (int32_t i = 0; i < step->selected_count[row * stride + h]; i++) {
            int32_t logical = step->selected[(row * stride + h) * topk + i];
            int32_t block = step->block_table[item * TIER_BLOCKS_MAX + logical];
            int64_t record = nosa_kv_record_index(view, layer, h, block);
            if (view->record_slot[record] == NOSA_KV_SLOT_NONE)
                TIER_CHECK(world, view->block_image[block] != NOSA_KV_IMAGE_NONE);
            const char *bytes = nosa_kv_record(view, layer, h, block);
            int32_t first = logical * NOSA_BLOCK_TOKENS;
            for (int32_t p = first; p < first + NOSA_BLOCK_TOKENS && p <= position; p++)
                if (!token_is_right(step, item, p, layer, h, bytes)) {
                    if (!world->moves.cold)
                        tier_fail(world,
                                  "sequence %d, layer %d, head %d, block %d (%d): wrong bytes at "
                                  "token %d",
                                  step->index[item], layer, h, logical, block, p);
                    step->suspect[item] = true;
                    break;
                }
        }
}

/* ---- selection ------------------------------------------------------------------------------ */

/* The first block, the last two, and others by chance, ascending. */
static void select_row(struct step *step, int32_t row)
{
    struct tier_world *world = step->world;
    int32_t own = step->row_pos[row] / NOSA_BLOCK_TOKENS, topk = world->config.topk;
    for (int32_t h = 0; h < 2; h++) {
        int32_t *list = &step->selected[(row * 2 + h) * topk], count = 0;
        int32_t want = own + 1 < topk ? own + 1 : topk, left = own + 1;
        for (int32_t b = 0; b <= own; b++, left--) {
            int32_t missing = want - count;
            bool forced = b == 0 || b >= own - 1;
            if (missing > 0 &&
                (forced || missing >= left || (missing > 2 && tier_chance(world, 50))))
                list[count++] = b;
        }
        step->selected_count[row * 2 + h] = count;
    }
}

static void resolve(struct step *step, int32_t layer, int32_t row_first, int32_t n_rows,
                    int32_t pass)
{
    struct tier_world *world = step->world;
    const struct nosa_kv_view *view = &world->arena.view;
    struct nosa_kv_resolve_params params = {
        .batch = &step->batch,
        .kv = view,
        .layer = layer,
        .row_first = row_first,
        .n_rows = n_rows,
        .policy = world->config.policy,
        .step = world->moves.step + (uint32_t)pass,
        .selected = step->selected,
        .selected_count = step->selected_count,
        .topk = world->config.topk,
        .hits = step->hits,
    };
    if (world->moves.cold) {
        params.absent = step->absent;
        params.n_absent = &step->n_absent;
        params.absent_max = 128;
    }
    ops_of(world)->kv_resolve(world->stream, &params);
    if (world->moves.cold)
        nosa_kv_store_fetch(world->store, view, step->absent, step->n_absent);
}

static void run_layer(struct step *step, int32_t layer)
{
    struct tier_world *world = step->world;
    bool tight = world->arena.view.slot_block != NULL;
    int32_t n_rows = step->batch.n_rows;

    for (int32_t row = 0; row < n_rows; row++)
        write_token(step, step->row_seq[row], step->row_pos[row], layer);
    for (int32_t row = 0; row < n_rows; row++)
        select_row(step, row);
    if (!world->moves.cold) {
        if (tight)
            resolve(step, layer, 0, n_rows, 0);
        for (int32_t row = 0; row < n_rows; row++)
            read_row(step, row, layer);
        return;
    }
    for (int32_t row = 0; row < n_rows; row++) {
        resolve(step, layer, row, 1, 1 + row);
        read_row(step, row, layer);
    }
}

/* ---- the step ------------------------------------------------------------------------------- */

/* Chooses sequences and lengths and reserves blocks. */
static void choose(struct step *step)
{
    struct tier_world *world = step->world;
    for (int32_t i = 0; i < world->config.sequences_max; i++) {
        struct tier_sequence *entry = &world->sequences[i];
        struct nosa_kv_sequence *sequence = entry->sequence;
        if (!sequence || nosa_kv_sequence_suspended(sequence) ||
            !nosa_kv_sequence_ready(sequence) || tier_chance(world, 30))
            continue;
        int32_t computed = nosa_kv_sequence_computed(sequence);
        int32_t left = nosa_kv_sequence_length(sequence) - computed;
        if (left == 0 && nosa_kv_sequence_append(sequence, tier_below(world, 9), NULL) == NOSA_OK) {
            entry->hash[computed + 1] =
                tier_hash_next(entry->hash[computed], nosa_kv_sequence_tokens(sequence)[computed]);
            left = 1;
        }
        if (left == 0)
            continue;
        int32_t most = tier_chance(world, 50) ? 10 : TIER_ROWS_MAX;
        int32_t n = 1 + (int32_t)tier_below(world, (uint32_t)(left < most ? left : most));
        if (nosa_kv_sequence_reserve(sequence, computed + n, NULL) != NOSA_OK) {
            world->totals->full++;
            continue;
        }
        step->index[step->n_items] = i;
        step->first[step->n_items] = computed;
        step->items[step->n_items++] =
            (struct nosa_kv_step_item){.sequence = sequence, .end = computed + n};
    }
}

static void fill_batch(struct step *step)
{
    int32_t n_rows = 0;
    for (int32_t item = 0; item < step->n_items; item++) {
        int32_t n_blocks;
        const int32_t *blocks = nosa_kv_sequence_blocks(step->items[item].sequence, &n_blocks);
        memcpy(&step->block_table[item * TIER_BLOCKS_MAX], blocks,
               sizeof *blocks * (size_t)n_blocks);
        for (int32_t p = step->first[item]; p < step->items[item].end; p++) {
            step->row_pos[n_rows] = p;
            step->row_seq[n_rows++] = item;
        }
    }
    step->batch = (struct nosa_batch_view){
        .n_rows = n_rows,
        .n_seqs = step->n_items,
        .row_pos = step->row_pos,
        .row_seq = step->row_seq,
        .block_table = step->block_table,
        .table_stride = TIER_BLOCKS_MAX,
    };
}

static void finish(struct step *step)
{
    struct tier_world *world = step->world;
    struct tier_totals *totals = world->totals;
    for (int32_t item = 0; item < step->n_items; item++) {
        struct nosa_kv_sequence *sequence = step->items[item].sequence;
        bool lost = nosa_kv_sequence_take_loss(sequence);
        if (step->suspect[item] && !lost)
            tier_fail(world, "sequence %d read wrong bytes", step->index[item]);
        totals->losses += lost;
        if (!lost)
            nosa_kv_sequence_commit(sequence, step->items[item].end);
        totals->hits += step->hits[item].first;
        totals->host_hits += step->hits[item].host;
        totals->in_place += step->hits[item].in_place;
        totals->absent += step->hits[item].absent;
    }
    totals->steps++;
    totals->rows += (uint64_t)step->batch.n_rows;
}

static struct step shared_step; /* too large for a stack */

void tier_step(struct tier_world *world)
{
    struct step *step = &shared_step;
    memset(step, 0, sizeof *step);
    step->world = world;
    choose(step);
    nosa_kv_store_begin_step(world->store, step->items, step->n_items, &world->moves);
    fill_batch(step);
    if (world->loud)
        printf("step %u: %d sequences, %d rows%s; forget %d, load %d, place %d, fetch %d, save "
               "%d\n",
               world->moves.step, step->n_items, step->batch.n_rows,
               world->moves.cold ? ", cold" : "", world->moves.n_forget, world->moves.n_loads,
               world->moves.n_place, world->moves.n_fetch, world->moves.n_saves);
    start_moves(step);
    for (int32_t layer = 0; layer < world->geometry.n_layers && step->n_items > 0; layer++)
        run_layer(step, layer);
    end_moves(step);
    finish(step);
    if (nosa_kv_store_wants_use(world->store) && tier_chance(world, 50))
        nosa_kv_store_report_use(world->store, &world->arena.view, true);
}

void tier_step_moves(struct tier_world *world)
{
    struct step *step = &shared_step;
    memset(step, 0, sizeof *step);
    step->world = world;
    nosa_kv_store_begin_step(world->store, NULL, 0, &world->moves);
    start_moves(step);
    end_moves(step);
}
