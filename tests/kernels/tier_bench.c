/* Running the KV ops on every subject. */
#include "tier_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op_cases.h"
#include "reference/reference.h"

void tier_bench_open(struct tier_bench *bench, const struct tier_case *tier_case,
                     enum nosa_kv_policy policy)
{
    struct nosa_step_limits limits = {.rows_max = TIER_ROWS_MAX,
                                      .seqs_max = TIER_SEQS_MAX,
                                      .context_max = 1024,
                                      .n_heads = tier_case->n_kv_heads,
                                      .n_kv_heads = tier_case->n_kv_heads,
                                      .head_dim = tier_case->head_dim,
                                      .k_max = 16,
                                      .n_max = 16,
                                      .topk_max = 32,
                                      .vocab_max = 16,
                                      .windows_per_block = 64 / tier_case->kernel_stride,
                                      .kv_pools_max = tier_case->n_layers * tier_case->n_kv_heads,
                                      .kv_slots_max = tier_case->n_slots,
                                      .kv_fetch_max = TIER_FETCH_MAX};
    *bench = (struct tier_bench){.tier_case = tier_case, .policy = policy, .step = 1};
    bench->n_devices = op_devices_open(bench->devices, &limits);
    bench->subjects[0] = (struct tier_subject){&nosa_reference_ops, NULL, tier_create(tier_case)};
    bench->n_subjects = 1;
    /* One copy of these ops serves every instruction set: one thread, and several. */
    for (int32_t i = 0; i < 2; i++)
        bench->subjects[bench->n_subjects++] = (struct tier_subject){
            bench->devices[i].ops, bench->devices[i].stream, tier_create(tier_case)};
    bench->model.tier_case = tier_case;
    bench->model.version = op_alloc((size_t)tier_case->n_blocks * sizeof(uint32_t));
    bench->model.image_version = op_alloc((size_t)tier_case->n_images * sizeof(uint32_t));
    bench->model.stored = op_alloc((size_t)tier_case->n_blocks * sizeof(bool));
}

void tier_bench_close(struct tier_bench *bench)
{
    free(bench->model.stored);
    free(bench->model.image_version);
    free(bench->model.version);
    for (int32_t i = 0; i < bench->n_subjects; i++)
        tier_destroy(bench->subjects[i].tier);
    op_devices_close(bench->devices, bench->n_devices);
}

void tier_bench_assert_same(const struct tier_bench *bench)
{
    for (int32_t i = 1; i < bench->n_subjects; i++)
        tier_assert_same(bench->subjects[i].tier, bench->subjects[0].tier, bench->what);
}

void tier_bench_check(const struct tier_bench *bench)
{
    tier_bench_assert_same(bench);
    tier_check(bench->subjects[1].tier, &bench->model, bench->what);
}

void tier_update(struct tier_bench *bench, int32_t n_forget, const int32_t *forget,
                 int32_t n_states, const struct nosa_kv_block_state *states)
{
    for (int32_t i = 0; i < bench->n_subjects; i++) {
        struct nosa_kv_update_params params = {&bench->subjects[i].tier->view, n_forget, forget,
                                               n_states, states};
        assert_int_equal(bench->subjects[i].ops->kv_update(bench->subjects[i].stream, &params),
                         NOSA_OK);
    }
}

void tier_set_state(struct tier_bench *bench, int32_t block, int32_t image,
                    enum nosa_kv_class kv_class)
{
    struct nosa_kv_block_state state = {block, image, (int32_t)kv_class};
    tier_update(bench, 0, NULL, 1, &state);
}

void tier_place(struct tier_bench *bench, int32_t n, const int32_t *blocks)
{
    for (int32_t i = 0; i < bench->n_subjects; i++) {
        struct nosa_kv_place_params params = {.kv = &bench->subjects[i].tier->view,
                                              .policy = bench->policy,
                                              .step = bench->step,
                                              .n = n,
                                              .blocks = blocks};
        assert_int_equal(bench->subjects[i].ops->kv_place(bench->subjects[i].stream, &params),
                         NOSA_OK);
    }
}

void tier_load(struct tier_bench *bench, int32_t n, const struct nosa_kv_block_image *moves)
{
    for (int32_t i = 0; i < bench->n_subjects; i++) {
        struct nosa_kv_load_params params = {&bench->subjects[i].tier->view, n, moves};
        assert_int_equal(bench->subjects[i].ops->kv_load(bench->subjects[i].stream, &params),
                         NOSA_OK);
    }
}

void tier_save(struct tier_bench *bench, int32_t n, const struct nosa_kv_block_image *moves)
{
    for (int32_t i = 0; i < bench->n_subjects; i++) {
        struct nosa_kv_save_params params = {&bench->subjects[i].tier->view, n, moves};
        assert_int_equal(bench->subjects[i].ops->kv_save(bench->subjects[i].stream, &params),
                         NOSA_OK);
    }
}

uint64_t tier_fetch(struct tier_bench *bench, int32_t n, const struct nosa_kv_record_name *records)
{
    uint64_t expected = 0;
    for (int32_t i = 0; i < bench->n_subjects; i++) {
        uint64_t fetched = 7;
        struct nosa_kv_fetch_params params = {.kv = &bench->subjects[i].tier->view,
                                              .policy = bench->policy,
                                              .step = bench->step,
                                              .n = n,
                                              .records = records,
                                              .fetched = &fetched};
        assert_int_equal(bench->subjects[i].ops->kv_fetch(bench->subjects[i].stream, &params),
                         NOSA_OK);
        expected = i == 0 ? fetched : expected;
        assert_int_equal(fetched, expected);
    }
    return expected - 7;
}

void tier_compute(struct tier_bench *bench, int32_t block, uint32_t version)
{
    bench->model.version[block] = version;
    for (int32_t i = 0; i < bench->n_subjects; i++)
        tier_write_block(bench->subjects[i].tier, block, version);
}

struct tier_rows *tier_rows_create(void)
{
    struct tier_rows *rows = op_alloc(sizeof *rows);
    rows->view = (struct nosa_batch_view){.row_pos = rows->row_pos,
                                          .row_seq = rows->row_seq,
                                          .block_table = rows->table[0],
                                          .table_stride = TIER_TABLE_MAX};
    return rows;
}

void tier_rows_lists(struct tier_rows *rows, int32_t n_kv_heads, int32_t topk)
{
    size_t cells = (size_t)(rows->view.n_rows * n_kv_heads);
    rows->topk = topk;
    rows->selected = op_alloc(cells * (size_t)topk * sizeof(int32_t));
    rows->count = op_alloc(cells * sizeof(int32_t));
}

void tier_rows_destroy(struct tier_rows *rows)
{
    free(rows->count);
    free(rows->selected);
    free(rows);
}

static int compare_absent(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct nosa_kv_absent));
}

void tier_resolve(struct tier_bench *bench, struct tier_rows *rows, int32_t layer,
                  int32_t row_first, int32_t n_rows, bool full)
{
    for (int32_t i = 0; i < bench->n_subjects; i++) {
        struct nosa_kv_hits hits[TIER_SEQS_MAX] = {{.first = 3}};
        struct nosa_kv_absent absent[TIER_ABSENT_MAX];
        int32_t n_absent = 5;
        struct nosa_kv_resolve_params params = {.batch = &rows->view,
                                                .kv = &bench->subjects[i].tier->view,
                                                .layer = layer,
                                                .row_first = row_first,
                                                .n_rows = n_rows,
                                                .policy = bench->policy,
                                                .step = bench->step,
                                                .fresh_since =
                                                    bench->step > 2 ? bench->step - 2 : 0,
                                                .selected = full ? NULL : rows->selected,
                                                .selected_count = full ? NULL : rows->count,
                                                .topk = rows->topk,
                                                .entry_first = rows->entry_first,
                                                .entry_count = rows->entry_count,
                                                .hits = hits};
        if (bench->tier_case->with_absent) {
            params.absent = absent;
            params.n_absent = &n_absent;
            params.absent_max = TIER_ABSENT_MAX;
        } else {
            n_absent = 0;
        }
        assert_int_equal(bench->subjects[i].ops->kv_resolve(bench->subjects[i].stream, &params),
                         NOSA_OK);
        qsort(absent, (size_t)n_absent, sizeof absent[0], compare_absent);
        for (int32_t k = 0; k < n_absent; k++)
            tier_write_absent(bench->subjects[i].tier, &absent[k],
                              bench->model.version[absent[k].block]);
        if (i == 0) {
            memcpy(rows->hits, hits, sizeof hits);
            memcpy(rows->absent, absent, (size_t)n_absent * sizeof absent[0]);
            rows->n_absent = n_absent;
            continue;
        }
        assert_memory_equal(hits, rows->hits, sizeof hits);
        assert_int_equal(n_absent, rows->n_absent);
        assert_memory_equal(absent, rows->absent, (size_t)n_absent * sizeof absent[0]);
    }
    rows->hits[0].first -= 3;
}
