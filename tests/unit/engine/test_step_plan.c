/*
 * The step plan's image: places depend on the step's buckets alone, a copy holds little more than
 * the step uses, and histories are there only where penalties need them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_device.h"
#include "engine/step_plan.h"

#define TOKENS 200
#define BLOCKS 4

static const struct nosa_plan_limits limits = {
    .rows_max = 300, .seqs_max = 6, .blocks_max = 100, .vocab = 10};

struct fixture {
    struct nosa_device *device;
    struct nosa_step_plan plan;
    uint32_t tokens[TOKENS];
    int32_t blocks[BLOCKS];
};

static int setup(void **state)
{
    static struct fixture fixture;
    const struct nosa_cpu_options options = {.threads = 1};
    assert_int_equal(nosa_cpu_device_create(&options, &fixture.device, NULL), NOSA_OK);
    assert_int_equal(nosa_step_plan_create(&limits, fixture.device, &fixture.plan, NULL), NOSA_OK);
    for (uint32_t i = 0; i < TOKENS; i++)
        fixture.tokens[i] = 3 * i + 1;
    for (int32_t i = 0; i < BLOCKS; i++)
        fixture.blocks[i] = 17 - i;
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    nosa_step_plan_destroy(&fixture->plan);
    fixture->device->table->destroy(fixture->device);
    return 0;
}

static void test_step_plan_bucket_is_a_power_of_two_or_the_bound(void **state)
{
    (void)state;
    static const int32_t cases[][3] = {{1, 1, 1},      {1, 100, 1},
                                       {2, 100, 2},    {3, 100, 4},
                                       {64, 100, 64},  {65, 100, 100},
                                       {99, 100, 100}, {100, 100, 100},
                                       {33, 64, 64},   {1073741825, INT32_MAX, INT32_MAX}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(nosa_step_plan_bucket(cases[i][0], cases[i][1]), cases[i][2]);
}

static void test_step_plan_add_rows_and_tiles(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_step_plan *plan = &fixture->plan;
    nosa_step_plan_begin(plan, 72, 2, 3);
    assert_int_equal(nosa_step_plan_add(plan, fixture->tokens, 60, 70, fixture->blocks, 3), 0);
    assert_int_equal(nosa_step_plan_add(plan, fixture->tokens, 10, 2, fixture->blocks + 1, 1), 1);
    static const int32_t tile_row[] = {0, 4, 68, 70}, tile_rows[] = {4, 64, 2, 2};
    assert_int_equal(plan->n_tiles, 4);
    assert_memory_equal(plan->tile_row, tile_row, sizeof tile_row);
    assert_memory_equal(plan->tile_rows, tile_rows, sizeof tile_rows);
    assert_int_equal(plan->row_pos[69], 129);
    assert_int_equal(plan->row_seq[70], 1);
    assert_int_equal(plan->token[71], fixture->tokens[11]);
    assert_int_equal(plan->table_stride, 4);
    assert_memory_equal(plan->block_table, fixture->blocks, 3 * sizeof(int32_t));
    assert_int_equal(plan->block_table[4], fixture->blocks[1]);
}

/* Offsets of all arrays. */
static void list_places(const struct nosa_step_plan *plan, ptrdiff_t places[15])
{
    const void *arrays[15] = {plan->token,         plan->row_pos,        plan->row_seq,
                              plan->tile_row,      plan->tile_rows,      plan->score_row,
                              plan->score_token,   plan->sample_row,     plan->sampling,
                              plan->position,      plan->n_top,          plan->prompt_length,
                              plan->history_start, plan->history_tokens, plan->block_table};
    for (int i = 0; i < 15; i++)
        places[i] = (const char *)arrays[i] - plan->image;
}

static void test_step_plan_begin_places_depend_on_the_bucket_alone(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_step_plan *plan = &fixture->plan;
    ptrdiff_t first[15], places[15];
    nosa_step_plan_begin(plan, 5, 3, 9);
    list_places(plan, first);
    nosa_step_plan_begin(plan, 8, 4, 16);
    list_places(plan, places);
    assert_memory_equal(first, places, sizeof first);
    assert_int_equal(plan->table_stride, 16);
    nosa_step_plan_begin(plan, 20, 4, 16);
    list_places(plan, places);
    assert_memory_not_equal(first, places, sizeof first);
    for (int i = 0; i < 15; i++)
        assert_int_equal(places[i] % 64, 0);
    nosa_step_plan_begin(plan, 300, 6, 100);
    assert_true(plan->used_bytes < nosa_step_plan_bytes(&limits));
}

static void test_step_plan_add_sample_copies_history_for_penalties(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_step_plan *plan = &fixture->plan;
    const struct nosa_sampling plain = {.temperature = 1, .repetition_penalty = 1};
    const struct nosa_sampling penalised = {.presence_penalty = 0.5f};
    nosa_step_plan_begin(plan, 3, 3, BLOCKS);
    size_t before = plan->used_bytes;
    assert_true(before < 2048); /* three rows; the bounds alone would take 200 KB */
    for (int32_t i = 0; i < 3; i++) {
        nosa_step_plan_add(plan, fixture->tokens, 150 + i, 1, fixture->blocks, BLOCKS);
        nosa_step_plan_add_sample(
            plan, &(struct nosa_plan_sample){.sampling = i == 1 ? &penalised : &plain,
                                             .tokens = fixture->tokens,
                                             .n_tokens = 151 + i,
                                             .prompt_length = 100,
                                             .n_top = i,
                                             .keep = i == 2});
    }
    static const int32_t start[] = {0, 0, 152, 152};
    assert_memory_equal(plan->history_start, start, sizeof start);
    assert_memory_equal(plan->history_tokens, fixture->tokens, 152 * sizeof(int32_t));
    assert_int_equal(plan->used_bytes, before + 152 * sizeof(int32_t));
    assert_true(plan->shared_bytes < before);
    assert_int_equal(plan->prompt_length[1], 100);
    assert_int_equal(plan->position[2], 153);
    assert_int_equal(plan->sample_row[2], 2);
    assert_true(!plan->keep[0] && !plan->keep[1] && plan->keep[2]);
    assert_true(plan->sampling[1].presence_penalty == 0.5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_plan_bucket_is_a_power_of_two_or_the_bound),
        cmocka_unit_test(test_step_plan_add_rows_and_tiles),
        cmocka_unit_test(test_step_plan_begin_places_depend_on_the_bucket_alone),
        cmocka_unit_test(test_step_plan_add_sample_copies_history_for_penalties),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
