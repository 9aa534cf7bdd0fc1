/*
 * Ops between the first tier and images (ops_kv.h) over random sequences of ops, with a host that
 * computes, saves, drops, loads and fetches blocks: the CPU backend beside the references, byte for
 * byte in every array, and beside a plain model of what each record must hold.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op_cases.h"
#include "tier_bench.h"

#define ROUNDS     160 /* ops of one sequence */
#define BLOCKS_MAX 64

#define F32  NOSA_DTYPE_F32
#define BF16 NOSA_DTYPE_BF16

/* clang-format off */
static const struct tier_case cases[] = {
    /* name, layers, heads, dim, stride, type, blocks, slots, images, model heads, first, bias,
       rows, topk, absent */
    {"one_head", 1, 1, 16, 16, BF16, 12, 5, 14, 1, 0, TIER_BIAS_ALL, 3, 4, false},
    {"two_of_four_heads", 2, 2, 16, 16, BF16, 20, 9, 22, 4, 2, TIER_BIAS_LEVELS, 4, 5, false},
    {"float32", 2, 3, 16, 4, F32, 14, 6, 16, 3, 0, TIER_BIAS_LEVELS, 3, 5, false},
    {"no_eviction_head", 2, 2, 32, 32, BF16, 16, 8, 18, 2, 0, TIER_BIAS_NONE, 4, 5, false},
    {"one_slot", 1, 2, 16, 64, BF16, 8, 1, 10, 2, 0, TIER_BIAS_ALL, 2, 3, false},
    {"all_but_one", 2, 1, 16, 16, BF16, 10, 9, 12, 2, 1, TIER_BIAS_LEVELS, 4, 8, false},
    {"prefill_rows", 1, 2, 16, 16, BF16, 60, 33, 64, 2, 0, TIER_BIAS_LEVELS,
        TIER_ROWS_MAX, 24, false},
    {"absent", 2, 2, 16, 16, BF16, 20, 12, 14, 4, 1, TIER_BIAS_LEVELS, 2, 4, true},
    {"absent_float32", 1, 1, 16, 8, F32, 16, 10, 9, 1, 0, TIER_BIAS_ALL, 3, 3, true},
};
/* clang-format on */
#define N_CASES (sizeof cases / sizeof cases[0])

static uint32_t draw(struct tier_bench *bench, uint32_t below)
{
    bench->random = bench->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(bench->random >> 33) % below;
}

/* ---- what the host does ---- */

static int32_t count_locked(const struct tier_bench *bench)
{
    int32_t locked = 0;
    for (int32_t b = 0; b < bench->tier_case->n_blocks; b++)
        locked += tier_bench_view(bench)->block_class[b] == NOSA_KV_CLASS_LOCKED;
    return locked;
}

/* A random block that is (not) in use and has (no) image, or -1. */
static int32_t some_block(struct tier_bench *bench, bool in_use, int has_image)
{
    int32_t n = bench->tier_case->n_blocks, first = (int32_t)draw(bench, (uint32_t)n);
    for (int32_t i = 0; i < n; i++) {
        int32_t block = (first + i) % n;
        bool image = tier_bench_view(bench)->block_image[block] != NOSA_KV_IMAGE_NONE;
        if ((bench->model.version[block] != 0) == in_use && (has_image < 0 || image == has_image))
            return block;
    }
    return -1;
}

/* A random image that no block has, holding a version or nothing, or -1. */
static int32_t some_image(struct tier_bench *bench, bool holding)
{
    int32_t n = bench->tier_case->n_images, first = (int32_t)draw(bench, (uint32_t)n);
    for (int32_t i = 0; i < n; i++) {
        int32_t image = (first + i) % n;
        bool taken = false;
        for (int32_t b = 0; b < bench->tier_case->n_blocks; b++)
            taken = taken || tier_bench_view(bench)->block_image[b] == image;
        if (!taken && (bench->model.image_version[image] != 0) == holding)
            return image;
    }
    return -1;
}

static int32_t free_image(struct tier_bench *bench)
{
    int32_t image = some_image(bench, false);
    return image >= 0 ? image : some_image(bench, true);
}

/* New blocks are placed and written, as a step that computes them does. */
static void act_compute(struct tier_bench *bench)
{
    int32_t blocks[3] = {0}, n = 0, room = bench->tier_case->n_slots - count_locked(bench);
    bench->step++;
    for (int32_t wanted = 1 + (int32_t)draw(bench, 3); n < wanted && n < room; n++) {
        blocks[n] = some_block(bench, false, -1);
        if (blocks[n] < 0 || (n > 0 && blocks[n] == blocks[n - 1]) ||
            (n > 1 && blocks[n] == blocks[n - 2]))
            break;
        struct nosa_kv_block_state state = {blocks[n], NOSA_KV_IMAGE_NONE, NOSA_KV_CLASS_LOCKED};
        tier_update(bench, 1, &blocks[n], 1, &state);
    }
    tier_place(bench, n, blocks);
    for (int32_t i = 0; i < n; i++)
        tier_compute(bench, blocks[i], ++bench->versions);
}

/* A block is saved, for the first time or into another image, and may be given up from then on. */
static void act_save(struct tier_bench *bench)
{
    struct nosa_kv_block_image moves[2];
    int32_t n = 0, from = -1;
    for (int32_t i = 0; i < 2; i++) {
        int32_t block = some_block(bench, true, i == 0 ? 0 : -1), image = free_image(bench);
        if (block < 0 || image < 0 || bench->model.stored[block] || (n > 0 && block == from))
            continue;
        if (n > 0 && image == moves[0].image)
            continue;
        from = block;
        moves[n++] = (struct nosa_kv_block_image){block, image};
    }
    tier_save(bench, n, moves);
    for (int32_t i = 0; i < n; i++) {
        bench->model.image_version[moves[i].image] = bench->model.version[moves[i].block];
        tier_set_state(bench, moves[i].block, moves[i].image, NOSA_KV_CLASS_IN_USE);
    }
}

/* A block is given up; its image stays. */
static void act_drop(struct tier_bench *bench)
{
    int32_t block = some_block(bench, true, -1);
    if (block < 0)
        return;
    struct nosa_kv_block_state state = {block, NOSA_KV_IMAGE_NONE, NOSA_KV_CLASS_SPARE};
    tier_update(bench, 1, &block, 1, &state);
    bench->model.version[block] = 0;
    bench->model.stored[block] = false;
}

/* An image that is left over comes back under a free id. */
static void act_load(struct tier_bench *bench)
{
    int32_t block = some_block(bench, false, -1), image = some_image(bench, true);
    if (block < 0 || image < 0)
        return;
    struct nosa_kv_block_state state = {block, image, NOSA_KV_CLASS_IN_USE};
    struct nosa_kv_block_image move = {block, image};
    tier_update(bench, 1, &block, 1, &state);
    tier_load(bench, 1, &move);
    bench->model.version[block] = bench->model.image_version[image];
}

/* A block with an image becomes spare, in use again, or locked while there is room. */
static void act_class(struct tier_bench *bench)
{
    int32_t block = some_block(bench, true, 1);
    if (block < 0)
        return;
    tier_set_state(bench, block, tier_bench_view(bench)->block_image[block],
                   draw(bench, 2) ? NOSA_KV_CLASS_SPARE : NOSA_KV_CLASS_IN_USE);
}

/* A block's image goes; the host keeps the bytes elsewhere. */
static void act_store(struct tier_bench *bench)
{
    int32_t block = some_block(bench, true, 1);
    if (block < 0 || !bench->tier_case->with_absent)
        return;
    bench->model.stored[block] = true;
    bench->model.image_version[tier_bench_view(bench)->block_image[block]] = 0;
    tier_set_state(bench, block, NOSA_KV_IMAGE_NONE, NOSA_KV_CLASS_IN_USE);
}

/* Records of any blocks, layers and heads of the model, some twice, more than there are slots. */
static void act_fetch(struct tier_bench *bench)
{
    struct nosa_kv_record_name records[TIER_FETCH_MAX];
    int32_t n = 0, wanted = (int32_t)draw(bench, draw(bench, 4) ? 30 : TIER_FETCH_MAX);
    bench->step += draw(bench, 2);
    for (; n < wanted; n++) {
        int32_t block = some_block(bench, true, -1);
        if (block < 0)
            break;
        records[n] = (struct nosa_kv_record_name){
            block, (int32_t)draw(bench, (uint32_t)bench->tier_case->n_layers),
            (int32_t)draw(bench, (uint32_t)bench->tier_case->image_kv_heads)};
    }
    tier_fetch(bench, n, records);
}

/* ---- steps ---- */

/* Sequences over the blocks in use, sharing some; rows at random positions of each. */
static void make_rows(struct tier_bench *bench, struct tier_rows *rows)
{
    uint32_t left = (uint32_t)bench->tier_case->rows_max;
    while (rows->view.n_seqs < TIER_SEQS_MAX && left > 0) {
        int32_t seq = rows->view.n_seqs, length = 0;
        for (int32_t b = 0; b < bench->tier_case->n_blocks && length < TIER_TABLE_MAX; b++)
            if (bench->model.version[b] != 0 && draw(bench, 3) > 0)
                rows->table[seq][length++] = b;
        if (length == 0)
            break;
        for (int32_t i = length - 1; i > 0; i--) { /* Fisher and Yates */
            int32_t other = (int32_t)draw(bench, (uint32_t)i + 1), kept = rows->table[seq][i];
            rows->table[seq][i] = rows->table[seq][other];
            rows->table[seq][other] = kept;
        }
        int32_t n = 1 + (int32_t)draw(bench, left), end = length * NOSA_BLOCK_TOKENS;
        int32_t first = (int32_t)draw(bench, (uint32_t)end);
        n = n < end - first ? n : end - first;
        for (int32_t i = 0; i < n; i++) {
            rows->row_pos[rows->view.n_rows] = first + i;
            rows->row_seq[rows->view.n_rows++] = seq;
        }
        rows->view.n_seqs++;
        left -= (uint32_t)n;
        if (draw(bench, 3) == 0)
            break;
    }
}

/* Random ascending lists of visible blocks. */
static void make_lists(struct tier_bench *bench, struct tier_rows *rows)
{
    int32_t heads = bench->tier_case->n_kv_heads;
    tier_rows_lists(rows, heads, bench->tier_case->topk);
    for (int32_t cell = 0; cell < rows->view.n_rows * heads; cell++) {
        int32_t visible = rows->row_pos[cell / heads] / NOSA_BLOCK_TOKENS + 1;
        for (int32_t b = 0; b < visible && rows->count[cell] < rows->topk; b++)
            if (draw(bench, (uint32_t)visible) < (uint32_t)rows->topk)
                rows->selected[cell * rows->topk + rows->count[cell]++] = b;
    }
}

/* With absent records: whether locked blocks and all that the rows may want fit the slots. */
static bool rows_fit(const struct tier_bench *bench, const struct tier_rows *rows)
{
    bool wanted[BLOCKS_MAX] = {false};
    int32_t count = 0;
    for (int32_t row = 0; row < rows->view.n_rows; row++)
        for (int32_t b = 0; b <= rows->row_pos[row] / NOSA_BLOCK_TOKENS; b++)
            wanted[rows->table[rows->row_seq[row]][b]] = true;
    for (int32_t block = 0; block < bench->tier_case->n_blocks; block++)
        count +=
            wanted[block] || tier_bench_view(bench)->block_class[block] == NOSA_KV_CLASS_LOCKED;
    return count <= bench->tier_case->n_slots;
}

/* How many of a list's entries are in the part that is resolved. */
static uint64_t in_part(const struct tier_rows *rows, int32_t length)
{
    int32_t end = rows->entry_count > 0 ? rows->entry_first + rows->entry_count : length;
    end = end < length ? end : length;
    return end > rows->entry_first ? (uint64_t)(end - rows->entry_first) : 0;
}

/* Every (row, block) pair of a step was a hit or asked for a record that was missing. */
static void check_hits(const struct tier_bench *bench, const struct tier_rows *rows,
                       int32_t row_first, int32_t n_rows, bool full)
{
    uint64_t pairs[TIER_SEQS_MAX] = {0}, all = 0, missing = 0;
    int32_t heads = bench->tier_case->n_kv_heads;
    for (int32_t row = row_first; row < row_first + n_rows; row++)
        for (int32_t head = 0; head < heads; head++)
            pairs[rows->row_seq[row]] +=
                in_part(rows, full ? rows->row_pos[row] / NOSA_BLOCK_TOKENS + 1
                                   : rows->count[row * heads + head]);
    for (int32_t seq = 0; seq < TIER_SEQS_MAX; seq++) {
        const struct nosa_kv_hits *hits = &rows->hits[seq];
        assert_true(hits->first + hits->host + hits->in_place + hits->absent <= pairs[seq]);
        all += pairs[seq] - hits->first;
        missing += hits->host + hits->in_place + hits->absent;
    }
    assert_true((all > 0) == (missing > 0));
}

static void act_step(struct tier_bench *bench)
{
    struct tier_rows *rows = tier_rows_create();
    bool full = draw(bench, 4) == 0;
    make_rows(bench, rows);
    int32_t n_rows = rows->view.n_rows;
    if (n_rows > 0 && (!bench->tier_case->with_absent || rows_fit(bench, rows))) {
        make_lists(bench, rows);
        bench->step++;
        if (draw(bench, 4) == 0) {
            rows->entry_first = (int32_t)draw(bench, 5);
            rows->entry_count = 1 + (int32_t)draw(bench, 5);
        }
        for (int32_t layer = 0; layer < bench->tier_case->n_layers; layer++) {
            int32_t first = draw(bench, 3) ? 0 : (int32_t)draw(bench, (uint32_t)n_rows);
            tier_resolve(bench, rows, layer, first, n_rows - first, full);
            check_hits(bench, rows, first, n_rows - first, full);
        }
    }
    tier_rows_destroy(rows);
}

static const struct {
    const char *name;
    void (*act)(struct tier_bench *bench);
    uint32_t share;
} actions[] = {
    {"compute", act_compute, 5}, {"save", act_save, 6},   {"drop", act_drop, 2},
    {"load", act_load, 3},       {"class", act_class, 3}, {"store", act_store, 2},
    {"fetch", act_fetch, 4},     {"step", act_step, 10},
};

static void run_sequence(const struct tier_case *tier_case, enum nosa_kv_policy policy,
                         uint64_t seed)
{
    struct tier_bench bench;
    tier_bench_open(&bench, tier_case, policy);
    bench.random = seed;
    for (int32_t round = 0; round < ROUNDS; round++) {
        uint32_t at = draw(&bench, 35), action = 0;
        while (at >= actions[action].share)
            at -= actions[action++].share;
        snprintf(bench.what, sizeof bench.what, "policy %d, seed %d, round %d: %s", (int)policy,
                 (int)seed, round, actions[action].name);
        actions[action].act(&bench);
        tier_bench_check(&bench);
    }
    tier_bench_close(&bench);
}

static void test_kv_ops_random_sequences_match_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++)
        for (int policy = NOSA_KV_POLICY_EDDMA; policy <= NOSA_KV_POLICY_LOWEST_E; policy++)
            for (uint64_t seed = 1; seed <= 3; seed++)
                run_sequence(&cases[i], (enum nosa_kv_policy)policy, seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_ops_random_sequences_match_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
