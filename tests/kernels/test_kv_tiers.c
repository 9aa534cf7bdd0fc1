/*
 * Ops between the first tier and images (ops_kv.h), case by case: what a reader of the header would
 * expect. Random sequences of ops are in test_kv_tiers_random.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv_steps.h"
#include "reference/reference.h"
#include "tier_bench.h"

#define BF16 NOSA_DTYPE_BF16

/* One pool of four slots; block b lies in image b, and blocks 0 .. 3 also in slots 0 .. 3. */
static const struct tier_case small = {"small",       1, 1, 16,   64, BF16, 8, 4, 8, 1, 0,
                                       TIER_BIAS_ALL, 8, 8, false};

static void small_open(struct tier_bench *bench, enum nosa_kv_policy policy)
{
    static const uint32_t touch[4] = {5, 5, 6, 7};
    static const float bias[8] = {0.5f, 0.1f, -3.0f, 0.9f, 0.2f, 0.3f, 0.4f, 0.6f};
    int32_t blocks[4] = {0, 1, 2, 3};
    tier_bench_open(bench, &small, policy);
    tier_place(bench, 4, blocks);
    for (int32_t block = 0; block < 8; block++) {
        struct nosa_kv_block_image move = {block, block};
        bench->model.version[block] = bench->model.image_version[block] = (uint32_t)block + 1;
        for (int32_t i = 0; i < bench->n_subjects && block < 4; i++)
            tier_write_block(bench->subjects[i].tier, block, (uint32_t)block + 1);
        if (block < 4)
            tier_save(bench, 1, &move);
        tier_set_state(bench, block, block, NOSA_KV_CLASS_IN_USE);
        for (int32_t i = 0; i < bench->n_subjects; i++) {
            const struct nosa_kv_view *view = &bench->subjects[i].tier->view;
            if (block >= 4)
                tier_write_block(bench->subjects[i].tier, block, (uint32_t)block + 1);
            view->window_bias[block] = bias[block];
            if (block < 4)
                view->slot_touch[block] = touch[block];
        }
    }
    bench->step = 9;
    snprintf(bench->what, sizeof bench->what, "case by case");
}

/* Sequences of one row each, over every block, that select what is named. */
static struct tier_rows *small_rows(int32_t n_seqs, const int32_t *count, const int32_t *selected)
{
    struct tier_rows *rows = tier_rows_create();
    rows->view.n_rows = rows->view.n_seqs = n_seqs;
    tier_rows_lists(rows, 1, small.topk);
    for (int32_t seq = 0; seq < n_seqs; seq++) {
        for (int32_t b = 0; b < 8; b++)
            rows->table[seq][b] = b;
        rows->row_pos[seq] = 8 * NOSA_BLOCK_TOKENS - 1;
        rows->row_seq[seq] = seq;
        rows->count[seq] = count[seq];
        for (int32_t i = 0; i < count[seq]; i++)
            rows->selected[seq * rows->topk + i] = *selected++;
    }
    return rows;
}

/* Resolves for rows that select the blocks named; all subjects must end alike. */
static struct tier_rows *small_resolve(struct tier_bench *bench, int32_t n_seqs,
                                       const int32_t *count, const int32_t *selected)
{
    struct tier_rows *rows = small_rows(n_seqs, count, selected);
    tier_resolve(bench, rows, 0, 0, n_seqs, false);
    tier_bench_assert_same(bench);
    return rows;
}

static void assert_slots(const struct tier_bench *bench, int32_t a, int32_t b, int32_t c, int32_t d)
{
    int32_t expected[4] = {a, b, c, d};
    assert_memory_equal(tier_bench_view(bench)->slot_block, expected, sizeof expected);
}

static void small_class(struct tier_bench *bench, int32_t block, enum nosa_kv_class kv_class)
{
    tier_set_state(bench, block, block, kv_class);
}

static void test_kv_resolve_takes_victim_of_policy(void **state)
{
    (void)state;
    static const int32_t one = 1, wanted = 4;
    struct tier_bench bench;
    static const int32_t victim[] = {
        [NOSA_KV_POLICY_EDDMA] = 1, [NOSA_KV_POLICY_LRU] = 0, [NOSA_KV_POLICY_LOWEST_E] = 2};
    for (int policy = NOSA_KV_POLICY_EDDMA; policy <= NOSA_KV_POLICY_LOWEST_E; policy++) {
        small_open(&bench, (enum nosa_kv_policy)policy);
        tier_rows_destroy(small_resolve(&bench, 1, &one, &wanted));
        assert_int_equal(tier_bench_view(&bench)->record_slot[4], victim[policy]);
        assert_int_equal(tier_bench_view(&bench)->record_slot[victim[policy]], NOSA_KV_SLOT_NONE);
        assert_int_equal(tier_bench_view(&bench)->slot_touch[victim[policy]], 9);
        tier_bench_close(&bench);
    }
}

static void test_kv_resolve_spare_goes_before_policy(void **state)
{
    (void)state;
    static const int32_t one = 1, wanted = 4;
    struct tier_bench bench;
    for (int policy = NOSA_KV_POLICY_EDDMA; policy <= NOSA_KV_POLICY_LOWEST_E; policy++) {
        small_open(&bench, (enum nosa_kv_policy)policy);
        small_class(&bench, 3, NOSA_KV_CLASS_SPARE);
        tier_rows_destroy(small_resolve(&bench, 1, &one, &wanted));
        assert_slots(&bench, 0, 1, 2, 4);
        tier_bench_close(&bench);
    }
}

static void test_kv_resolve_free_slot_goes_first(void **state)
{
    (void)state;
    static const int32_t one = 1, wanted = 5, forgotten = 2;
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    small_class(&bench, 0, NOSA_KV_CLASS_SPARE);
    tier_update(&bench, 1, &forgotten, 0, NULL);
    assert_slots(&bench, 0, 1, NOSA_KV_BLOCK_NONE, 3);
    tier_rows_destroy(small_resolve(&bench, 1, &one, &wanted));
    assert_slots(&bench, 0, 1, 5, 3);
    tier_bench_close(&bench);
}

static void test_kv_resolve_never_takes_what_it_selected(void **state)
{
    (void)state;
    static const int32_t count = 4, selected[] = {0, 1, 4, 5}; /* 0 and 1 would go first */
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    struct tier_rows *rows = small_resolve(&bench, 1, &count, selected);
    assert_slots(&bench, 0, 1, 4, 5);
    assert_int_equal(rows->hits[0].first, 2);
    assert_int_equal(rows->hits[0].host, 2);
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

/* Blocks 0 and 1 and slots touched in this step stay; what finds no slot is read in its image. */
static void test_kv_resolve_without_victims_reads_in_place(void **state)
{
    (void)state;
    static const int32_t count = 5, selected[] = {2, 4, 5, 6, 7};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_LRU);
    small_class(&bench, 0, NOSA_KV_CLASS_LOCKED);
    small_class(&bench, 1, NOSA_KV_CLASS_LOCKED);
    struct tier_rows *rows = small_resolve(&bench, 1, &count, selected);
    assert_slots(&bench, 0, 1, 2, 4);
    assert_int_equal(rows->hits[0].first, 1);
    assert_int_equal(rows->hits[0].host, 1);
    assert_int_equal(rows->hits[0].in_place, 3);
    assert_ptr_equal(nosa_kv_record(tier_bench_view(&bench), 0, 0, 7),
                     nosa_kv_image_record(tier_bench_view(&bench), 7, 0, 0));
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

static void test_kv_resolve_shared_block_has_one_slot(void **state)
{
    (void)state;
    static const int32_t count[] = {2, 2, 1}, selected[] = {3, 6, 3, 6, 3};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    struct tier_rows *rows = small_resolve(&bench, 3, count, selected);
    assert_slots(&bench, 0, 6, 2, 3);
    for (int32_t seq = 0; seq < 3; seq++)
        assert_int_equal(rows->hits[seq].first, 1);
    assert_int_equal(rows->hits[0].host, 1);
    assert_int_equal(rows->hits[1].host + rows->hits[2].host, 0);
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

/* A record is fresh for whoever selects it first, once in three steps, in whatever place it is. */
static void test_kv_resolve_counts_fresh_records_once(void **state)
{
    (void)state;
    static const int32_t count[] = {5, 3}, selected[] = {2, 3, 5, 6, 7, 1, 2, 5};
    static const uint32_t fresh[4][2] = {{5, 1}, {0, 0}, {0, 0}, {0, 0}};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_LRU);
    struct tier_rows *rows;
    for (int step = 0; step < 4; step++, bench.step++) {
        rows = small_resolve(&bench, 2, count, selected);
        assert_int_equal(rows->hits[0].fresh, fresh[step][0]);
        assert_int_equal(rows->hits[1].fresh, fresh[step][1]);
        tier_rows_destroy(rows);
    }
    bench.step += 2; /* two steps without them */
    rows = small_resolve(&bench, 2, count, selected);
    assert_int_equal(rows->hits[0].fresh, 5);
    assert_int_equal(rows->hits[1].fresh, 1);
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

/* Records that nobody has come before those that could be read in place. */
static void test_kv_resolve_absent_get_slots_first(void **state)
{
    (void)state;
    static const int32_t count = 4, selected[] = {4, 5, 6, 7};
    static const struct tier_case absent_case = {
        "small, absent", 1, 1, 16, 64, BF16, 8, 4, 8, 1, 0, TIER_BIAS_ALL, 8, 8, true};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_LRU);
    bench.tier_case = &absent_case;
    small_class(&bench, 1, NOSA_KV_CLASS_LOCKED);
    small_class(&bench, 2, NOSA_KV_CLASS_LOCKED);
    tier_set_state(&bench, 6, NOSA_KV_IMAGE_NONE, NOSA_KV_CLASS_IN_USE);
    struct tier_rows *rows = small_resolve(&bench, 1, &count, selected);
    assert_slots(&bench, 6, 1, 2, 4);
    assert_int_equal(rows->n_absent, 1);
    assert_int_equal(rows->absent[0].block, 6);
    assert_int_equal(rows->absent[0].slot, 0);
    assert_int_equal(rows->hits[0].absent, 1);
    assert_int_equal(rows->hits[0].host, 1);
    assert_int_equal(rows->hits[0].in_place, 2);
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

/* Without lists: rows 70 and 71 of a sequence see two blocks, row 63 of another one. */
static void test_kv_resolve_full_counts_every_row(void **state)
{
    (void)state;
    static const int32_t count[] = {0, 0, 0};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    struct tier_rows *rows = small_rows(3, count, NULL);
    rows->row_pos[0] = 63;
    rows->row_pos[1] = 64;
    rows->row_seq[1] = 0;
    rows->row_pos[2] = 5 * NOSA_BLOCK_TOKENS - 1;
    rows->row_seq[2] = 1;
    tier_resolve(&bench, rows, 0, 0, 3, true);
    assert_int_equal(rows->hits[0].first, 1 + 2);
    assert_int_equal(rows->hits[1].first, 4);
    assert_int_equal(rows->hits[1].in_place, 1);
    for (int32_t slot = 0; slot < 4; slot++)
        assert_int_equal(tier_bench_view(&bench)->slot_touch[slot], 9);
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

/* Entries 3 .. 6 of the visible blocks, and of a list. */
static void test_kv_resolve_part_asks_for_its_entries(void **state)
{
    (void)state;
    static const int32_t count = 6, selected[] = {0, 1, 2, 3, 4, 5};
    struct tier_bench bench;
    for (int full = 0; full < 2; full++) {
        small_open(&bench, NOSA_KV_POLICY_LRU);
        struct tier_rows *rows = small_rows(1, &count, selected);
        rows->entry_first = 3;
        rows->entry_count = 4;
        tier_resolve(&bench, rows, 0, 0, 1, full);
        assert_int_equal(rows->hits[0].first, 1);
        assert_int_equal(rows->hits[0].host, full ? 3 : 2);
        if (full)
            assert_slots(&bench, 4, 5, 6, 3);
        else
            assert_slots(&bench, 4, 5, 2, 3);
        tier_rows_destroy(rows);
        tier_bench_close(&bench);
    }
}

/* Five records for three slots (block 3 is locked): the first of the list come. */
static void test_kv_fetch_longer_than_victims_takes_first(void **state)
{
    (void)state;
    static const struct nosa_kv_record_name names[] = {{7, 0, 0}, {5, 0, 0}, {7, 0, 0}, {4, 0, 1},
                                                       {1, 0, 0}, {6, 0, 0}, {4, 0, 0}};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    small_class(&bench, 3, NOSA_KV_CLASS_LOCKED);
    assert_int_equal(tier_fetch(&bench, 7, names), 2);
    assert_slots(&bench, 7, 1, 5, 3); /* block 1 is on the list: it stays */
    tier_bench_assert_same(&bench);
    tier_bench_close(&bench);
}

static void test_kv_fetch_counts_first_use(void **state)
{
    (void)state;
    static const struct nosa_kv_record_name names[] = {{4, 0, 0}, {2, 0, 0}};
    static const int32_t count[] = {1, 2}, selected[] = {4, 2, 4};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    assert_int_equal(tier_fetch(&bench, 2, names), 1);
    assert_slots(&bench, 0, 4, 2, 3);
    bench.step++;
    struct tier_rows *rows = small_resolve(&bench, 2, count, selected);
    assert_int_equal(rows->hits[0].prefetched_used, 1);
    assert_int_equal(rows->hits[1].prefetched_used, 0); /* block 2 was there all along */
    assert_int_equal(rows->hits[1].first, 2);
    tier_rows_destroy(rows);
    tier_bench_close(&bench);
}

static void test_kv_place_reused_id_gets_fresh_slots(void **state)
{
    (void)state;
    static const int32_t block = 2;
    static const struct nosa_kv_block_state locked = {2, NOSA_KV_IMAGE_NONE, NOSA_KV_CLASS_LOCKED};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    tier_update(&bench, 1, &block, 1, &locked);
    assert_int_equal(tier_bench_view(&bench)->record_slot[2], NOSA_KV_SLOT_NONE);
    tier_place(&bench, 1, &block);
    assert_slots(&bench, 0, 1, 2, 3); /* the free slot */
    assert_int_equal(tier_bench_view(&bench)->slot_touch[2], 9);
    tier_place(&bench, 1, &block); /* has them: nothing moves */
    assert_slots(&bench, 0, 1, 2, 3);
    tier_bench_close(&bench);
}

/* Block 4's record lies in image 4 and goes to image 0 from there. */
static void test_kv_save_of_record_in_image_copies_it(void **state)
{
    (void)state;
    static const struct nosa_kv_block_image moves[] = {{4, 0}, {1, 1}, {5, 5}};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    tier_save(&bench, 3, moves);
    for (int32_t i = 0; i < bench.n_subjects; i++) {
        const struct nosa_kv_view *view = &bench.subjects[i].tier->view;
        size_t bytes = nosa_kv_record_bytes(&view->geometry);
        assert_memory_equal(nosa_kv_image_record(view, 0, 0, 0), nosa_kv_record(view, 0, 0, 4),
                            bytes);
        assert_memory_equal(nosa_kv_image_record(view, 1, 0, 0), nosa_kv_record(view, 0, 0, 1),
                            bytes);
        tier_assert_same(bench.subjects[i].tier, bench.subjects[0].tier, "save");
    }
    tier_bench_close(&bench);
}

/* Where every record has its slot for ever, a block comes with its records. */
static void test_kv_load_without_tier_arrays_brings_records(void **state)
{
    (void)state;
    static const struct nosa_kv_block_image move = {2, 6};
    struct tier_bench bench;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    for (int32_t i = 0; i < bench.n_subjects; i++) {
        struct nosa_kv_view view = bench.subjects[i].tier->view;
        view.slot_block = NULL;
        struct nosa_kv_load_params params = {&view, 1, &move};
        assert_memory_not_equal(nosa_kv_record(&view, 0, 0, 2),
                                nosa_kv_image_record(&view, 6, 0, 0),
                                nosa_kv_record_bytes(&view.geometry));
        assert_int_equal(bench.subjects[i].ops->kv_load(bench.subjects[i].stream, &params),
                         NOSA_OK);
        assert_memory_equal(nosa_kv_record(&view, 0, 0, 2), nosa_kv_image_record(&view, 6, 0, 0),
                            nosa_kv_record_bytes(&view.geometry));
    }
    tier_bench_assert_same(&bench);
    tier_bench_close(&bench);
}

static void test_kv_ops_with_empty_lists_change_nothing(void **state)
{
    (void)state;
    struct tier_bench bench, before;
    small_open(&bench, NOSA_KV_POLICY_EDDMA);
    small_open(&before, NOSA_KV_POLICY_EDDMA);
    struct tier_rows *rows = small_rows(1, &(int32_t){0}, NULL);
    tier_update(&bench, 0, NULL, 0, NULL);
    tier_load(&bench, 0, NULL);
    tier_save(&bench, 0, NULL);
    tier_place(&bench, 0, NULL);
    assert_int_equal(tier_fetch(&bench, 0, NULL), 0);
    tier_resolve(&bench, rows, 0, 0, 0, false);
    tier_resolve(&bench, rows, 0, 0, 1, false);
    for (int32_t i = 0; i < bench.n_subjects; i++)
        tier_assert_same(bench.subjects[i].tier, before.subjects[0].tier, "empty lists");
    tier_rows_destroy(rows);
    tier_bench_close(&before);
    tier_bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_resolve_takes_victim_of_policy),
        cmocka_unit_test(test_kv_resolve_spare_goes_before_policy),
        cmocka_unit_test(test_kv_resolve_free_slot_goes_first),
        cmocka_unit_test(test_kv_resolve_never_takes_what_it_selected),
        cmocka_unit_test(test_kv_resolve_without_victims_reads_in_place),
        cmocka_unit_test(test_kv_resolve_shared_block_has_one_slot),
        cmocka_unit_test(test_kv_resolve_absent_get_slots_first),
        cmocka_unit_test(test_kv_resolve_counts_fresh_records_once),
        cmocka_unit_test(test_kv_resolve_full_counts_every_row),
        cmocka_unit_test(test_kv_resolve_part_asks_for_its_entries),
        cmocka_unit_test(test_kv_fetch_longer_than_victims_takes_first),
        cmocka_unit_test(test_kv_fetch_counts_first_use),
        cmocka_unit_test(test_kv_place_reused_id_gets_fresh_slots),
        cmocka_unit_test(test_kv_save_of_record_in_image_copies_it),
        cmocka_unit_test(test_kv_load_without_tier_arrays_brings_records),
        cmocka_unit_test(test_kv_ops_with_empty_lists_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
