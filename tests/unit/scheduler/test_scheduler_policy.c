/* Who runs: budget and chunks, ranks and ageing, preemption, readers, prefixes, sizes. */
#include "worker_double.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void add_with_priority(struct worker_double *worker, uint64_t tag, int32_t priority,
                              int32_t known, int32_t max_new)
{
    struct nosa_scheduler_request request = {
        .tag = tag, .priority = priority, .known_tokens = known, .max_new_tokens = max_new};
    assert_int_equal(worker_submit(worker, request), NOSA_OK);
}

static enum nosa_scheduler_state state_of(const struct worker_double *worker, uint64_t tag)
{
    return worker_info(worker, tag).state;
}

static void expect_action(const struct worker_double *worker, uint64_t tag,
                          enum nosa_scheduler_action_kind kind)
{
    const struct nosa_scheduler_action *action = worker_action(worker, tag);
    assert_non_null(action);
    assert_int_equal(action->kind, kind);
}

/* ---- budget ------------------------------------------------------------------------------- */

static void test_step_decode_rows_first_then_a_chunk(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.blocks_total = 200;
    worker_open(&worker);
    worker_add(&worker, 0, 10, 100);
    worker_add(&worker, 1, 20, 100);
    worker_steps(&worker, 1);
    worker_add(&worker, 2, 3000, 10);
    worker_add(&worker, 3, 3000, 10);
    for (int i = 0; i < 23; i++) { /* 2944 tokens */
        worker_steps(&worker, 1);
        assert_int_equal(worker_row(&worker, 0), 1);
        assert_int_equal(worker_row(&worker, 1), 1);
        assert_int_equal(worker_row(&worker, 2), 128);
        assert_int_equal(worker_row(&worker, 3), 0);
        assert_int_equal(worker.rows.rows[2].n_tokens, 128); /* after the decode rows */
    }
    worker_steps(&worker, 1); /* 56 are left; the next takes the rest, up to the end of a block */
    assert_int_equal(worker_row(&worker, 2), 56);
    assert_int_equal(worker_row(&worker, 3), 64);
    worker_close(&worker);
}

static void test_step_prefill_alone_takes_the_whole_step(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 3000, 10);
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 0), 256);
    worker_close(&worker);
}

static void test_step_batch_is_bounded(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    for (uint64_t tag = 0; tag < 10; tag++)
        worker_add(&worker, tag, 10, 100);
    worker_steps(&worker, 1);
    assert_int_equal(worker.rows.n_rows, 4);
    assert_int_equal(worker.rows.n_tokens, 40);
    worker_close(&worker);
}

/* ---- ranks -------------------------------------------------------------------------------- */

static void test_arrange_larger_priority_first(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.batch_max = 1;
    worker_open(&worker);
    add_with_priority(&worker, 0, 0, 10, 5);
    add_with_priority(&worker, 1, 2, 10, 5);
    add_with_priority(&worker, 2, 2, 10, 5);
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 1), 10);
    worker_steps(&worker, 5);
    assert_int_equal(worker_row(&worker, 2), 10);
    worker_close(&worker);
}

/* Waiting for ageing_ns equals one level: two levels are overtaken after 200 ms, not before. */
static void age(uint64_t waited_ns, uint64_t expected)
{
    struct worker_double worker;
    worker_init(&worker);
    worker.options.batch_max = 1;
    worker_open(&worker);
    struct nosa_scheduler_request request = {.known_tokens = 10, .max_new_tokens = 5};
    request.arrival_ns = worker.now_ns - waited_ns;
    assert_int_equal(worker_submit(&worker, request), NOSA_OK);
    add_with_priority(&worker, 1, 2, 10, 5);
    worker_steps(&worker, 1);
    assert_int_equal(worker.rows.n_rows, 1);
    assert_int_equal(worker.rows.rows[0].tag, expected);
    worker_close(&worker);
}

static void test_arrange_waiting_raises_priority(void **state)
{
    (void)state;
    age(199 * MS, 1);
    age(201 * MS, 0);
}

/* The stated bound: 2 * priority_max * ageing_ns, whatever the priorities. */
static void test_arrange_ageing_bound_holds_for_extreme_priorities(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_request request = {
        .priority = INT32_MIN, .known_tokens = 10, .max_new_tokens = 5};
    worker_init(&worker);
    worker.now_ns = 5000 * MS;
    worker.options.batch_max = 1;
    worker_open(&worker);
    request.arrival_ns = worker.now_ns - 2001 * MS;
    assert_int_equal(worker_submit(&worker, request), NOSA_OK);
    add_with_priority(&worker, 1, INT32_MAX, 10, 5);
    worker_steps(&worker, 1);
    assert_int_equal(worker.rows.rows[0].tag, 0);
    worker_close(&worker);
}

/* ---- preemption --------------------------------------------------------------------------- */

static void test_arrange_priority_takes_a_place_and_leaves_the_blocks(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.batch_max = 2;
    worker_open(&worker);
    worker_add(&worker, 0, 100, 50);
    worker_add(&worker, 1, 100, 50);
    worker_steps(&worker, 3);
    add_with_priority(&worker, 2, 5, 10, 3);
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 2), 10);
    assert_int_equal(worker_row(&worker, 0), 1);
    assert_int_equal(worker_row(&worker, 1), 0); /* equal priority: the later one leaves */
    assert_null(worker_action(&worker, 1));      /* and stays resident */
    assert_int_equal(worker_info(&worker, 1).computed_tokens, 102);
    worker_steps(&worker, 3);
    assert_int_equal(worker_row(&worker, 1), 1);
    worker_close(&worker);
}

/* 64 blocks; 0, 1 and 2 hold 17 each, and the fourth, of higher priority, wants 40. */
static void prepare_full(struct worker_double *worker)
{
    worker_open(worker);
    for (uint64_t tag = 0; tag < 3; tag++)
        worker_add(worker, tag, 1060, 200);
    worker_steps(worker, 25);
    assert_int_equal(state_of(worker, 2), NOSA_SCHEDULER_DECODE);
    add_with_priority(worker, 3, 5, 2540, 3);
}

static void test_arrange_suspends_the_last_by_rank_for_blocks(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_counters counters;
    worker_init(&worker);
    prepare_full(&worker);
    worker_arrange(&worker);
    expect_action(&worker, 2, NOSA_SCHEDULER_SUSPEND);
    expect_action(&worker, 1, NOSA_SCHEDULER_SUSPEND);
    assert_null(worker_action(&worker, 0));
    assert_null(worker_action(&worker, 3)); /* its blocks are reported first */
    worker_arrange(&worker);
    expect_action(&worker, 3, NOSA_SCHEDULER_OPEN);
    worker_steps(&worker, 22);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_SUSPENDED);
    assert_true(worker_row(&worker, 0) == 1);
    worker_steps(&worker, 3); /* 3 ends: the others resume, in order */
    assert_int_equal(state_of(&worker, 3), NOSA_SCHEDULER_ENDED);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_DECODE);
    assert_int_equal(state_of(&worker, 2), NOSA_SCHEDULER_DECODE);
    nosa_scheduler_counters(worker.scheduler, &counters);
    assert_int_equal(counters.suspends, 2);
    assert_int_equal(counters.resumes, 2);
    assert_int_equal(counters.drops, 0);
    worker_close(&worker);
}

static void test_arrange_drops_when_nothing_fits_below(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.lower_blocks_total = 20; /* one of them */
    prepare_full(&worker);
    int32_t known = worker_info(&worker, 1).known_tokens;
    worker_arrange(&worker);
    expect_action(&worker, 2, NOSA_SCHEDULER_SUSPEND);
    expect_action(&worker, 1, NOSA_SCHEDULER_DROP);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_QUEUED);
    assert_int_equal(worker_info(&worker, 1).known_tokens, known); /* all of it comes again */
    worker_steps(&worker, 40);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_DECODE);
    assert_true(worker_info(&worker, 1).known_tokens > known);
    worker_close(&worker);
}

static void test_suspended_failure_leaves_it_resident_and_it_is_dropped(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.saves_fail = true;
    prepare_full(&worker);
    worker_arrange(&worker);
    expect_action(&worker, 2, NOSA_SCHEDULER_SUSPEND);
    worker_arrange(&worker);
    expect_action(&worker, 2, NOSA_SCHEDULER_DROP);
    worker_close(&worker);
}

static void test_arrange_spares_what_has_not_run_its_steps(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.batch_max = 1;
    worker.options.run_steps_min = 5;
    worker_open(&worker);
    worker_add(&worker, 0, 10, 100);
    worker_steps(&worker, 1);
    add_with_priority(&worker, 1, 5, 10, 3);
    for (int i = 0; i < 4; i++) {
        worker_steps(&worker, 1);
        assert_int_equal(worker_row(&worker, 0), 1);
    }
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 1), 10);
    worker_close(&worker);
}

/* A small one behind a large one that does not fit comes in, and makes way for it later. */
static void test_arrange_passes_over_what_does_not_fit(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 1900, 70); /* 31 blocks, ranks first */
    worker_steps(&worker, 10);
    worker_add(&worker, 1, 2500, 10); /* 40 */
    worker_add(&worker, 2, 300, 300);
    worker_steps(&worker, 1);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_QUEUED);
    assert_true(worker_row(&worker, 2) > 0);
    worker_steps(&worker, 75);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_ENDED);
    assert_int_not_equal(state_of(&worker, 1), NOSA_SCHEDULER_QUEUED);
    worker_close(&worker);
}

/* What a close frees is not reported yet, and belongs to the first that waits all the same. */
static void test_arrange_keeps_the_blocks_of_a_close_for_the_first(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 1900, 2); /* 30 blocks */
    worker_steps(&worker, 9);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_ENDED);
    worker_add(&worker, 1, 4000, 10); /* 63 of 64 */
    worker_add(&worker, 2, 300, 10);
    worker_arrange(&worker);
    assert_int_equal(worker.actions.n_actions, 1); /* the close */
    worker_arrange(&worker);
    expect_action(&worker, 1, NOSA_SCHEDULER_OPEN);
    worker_close(&worker);
}

static void test_arrange_gives_the_session_of_one_behind(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.batch_max = worker.options.sequences_max = 1;
    worker_open(&worker);
    worker_add(&worker, 0, 100, 100);
    worker_steps(&worker, 3);
    add_with_priority(&worker, 1, 5, 10, 3);
    worker_arrange(&worker);
    expect_action(&worker, 0, NOSA_SCHEDULER_DROP);
    worker_arrange(&worker);
    assert_int_equal(worker_info(&worker, 1).state, NOSA_SCHEDULER_PREFILL);
    worker_close(&worker);
}

/* Growth alone: nobody waits, and the blocks of the running ones run out. */
static void test_arrange_covers_growth_before_it_stalls(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_counters counters;
    worker_init(&worker);
    worker.options.blocks_total = 13;
    worker.options.outsize_blocks = 4;
    worker_open(&worker);
    worker_add(&worker, 0, 300, 400);
    worker_add(&worker, 1, 300, 400);
    for (int i = 0; i < 200; i++) {
        worker_steps(&worker, 1);
        assert_true(i == 0 || worker_row(&worker, 0) > 0);
    }
    nosa_scheduler_counters(worker.scheduler, &counters);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_SUSPENDED);
    assert_int_equal(counters.suspends, 1);
    assert_int_equal(counters.decode_stalls, 0);
    worker_close(&worker);
}

/* ---- readers ------------------------------------------------------------------------------ */

static void test_reader_paused_at_its_bound(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.reader_tokens_max = 8;
    worker.options.batch_max = 1;
    worker_open(&worker);
    worker_add(&worker, 0, 10, 100);
    worker_add(&worker, 1, 10, 100);
    worker_steps(&worker, 8);
    assert_int_equal(worker_info(&worker, 0).new_tokens, 8);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_PAUSED);
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 0), 0);
    assert_int_equal(worker_row(&worker, 1), 10); /* its place goes to the next */
    nosa_scheduler_reader(worker.scheduler, worker.ids[0], 5);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_PAUSED);
    nosa_scheduler_reader(worker.scheduler, worker.ids[0], 4);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_DECODE);
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 0), 1); /* it ranks first */
    worker_close(&worker);
}

static void test_reader_paused_gives_up_blocks_to_anyone(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.reader_tokens_max = 1;
    worker_open(&worker);
    add_with_priority(&worker, 0, 10, 3000, 100); /* 47 blocks */
    worker_steps(&worker, 12);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_PAUSED);
    add_with_priority(&worker, 1, -10, 2000, 5);
    worker_arrange(&worker);
    expect_action(&worker, 0, NOSA_SCHEDULER_SUSPEND);
    worker_steps(&worker, 1);
    assert_true(worker_row(&worker, 1) > 0);
    nosa_scheduler_reader(worker.scheduler, worker.ids[0], 0);
    worker_arrange(&worker); /* and takes its own back from what ranks behind it */
    expect_action(&worker, 1, NOSA_SCHEDULER_SUSPEND);
    expect_action(&worker, 0, NOSA_SCHEDULER_RESUME); /* 1 had taken but a few yet */
    worker_close(&worker);
}

static void test_reader_paused_gives_up_its_session(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.reader_tokens_max = 1;
    worker.options.batch_max = worker.options.sequences_max = 2;
    worker_open(&worker);
    add_with_priority(&worker, 0, 10, 10, 100);
    add_with_priority(&worker, 1, 10, 10, 100);
    worker_steps(&worker, 1);
    add_with_priority(&worker, 2, -10, 10, 100);
    worker_arrange(&worker);
    expect_action(&worker, 1, NOSA_SCHEDULER_DROP);
    expect_action(&worker, 2, NOSA_SCHEDULER_OPEN);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_PAUSED);
    worker_steps(&worker, 20);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_PAUSED); /* not opened again by itself */
    nosa_scheduler_reader(worker.scheduler, worker.ids[1], 0);
    worker_steps(&worker, 2);
    assert_int_equal(worker_info(&worker, 1).new_tokens, 2);
    worker_close(&worker);
}

/* ---- prefixes ----------------------------------------------------------------------------- */

static void add_with_prefix(struct worker_double *worker, uint64_t tag, uint64_t key)
{
    struct nosa_scheduler_request request = {.tag = tag,
                                             .known_tokens = 1000,
                                             .max_new_tokens = 10,
                                             .prefix_key = key,
                                             .prefix_tokens = 640};
    assert_int_equal(worker_submit(worker, request), NOSA_OK);
}

static int32_t parked(const struct worker_double *worker)
{
    struct nosa_scheduler_counters counters;
    nosa_scheduler_counters(worker->scheduler, &counters);
    return counters.parked;
}

static void test_arrange_one_computes_a_prefix(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    add_with_prefix(&worker, 0, 7);
    add_with_prefix(&worker, 1, 7);
    add_with_prefix(&worker, 2, 8);
    add_with_prefix(&worker, 3, 7);
    worker_steps(&worker, 1);
    assert_int_equal(parked(&worker), 2);
    assert_int_equal(state_of(&worker, 2), NOSA_SCHEDULER_PREFILL);
    worker_steps(&worker, 1); /* 512 of 640 */
    assert_int_equal(parked(&worker), 2);
    worker_steps(&worker, 1);
    assert_int_equal(parked(&worker), 0);
    worker.prefixes[1] = worker.prefixes[3] = (struct nosa_scheduler_prefix){10, 640};
    worker_steps(&worker, 1);
    assert_int_equal(state_of(&worker, 1), NOSA_SCHEDULER_PREFILL);
    assert_int_equal(state_of(&worker, 3), NOSA_SCHEDULER_PREFILL);
    worker_close(&worker);
}

static void test_arrange_waits_for_a_prefix_no_longer_than_its_bound(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.hold_moves = true; /* the first one never gets on */
    worker_open(&worker);
    add_with_prefix(&worker, 0, 7);
    add_with_prefix(&worker, 1, 7);
    worker_arrange(&worker);
    assert_int_equal(parked(&worker), 1);
    assert_int_equal(nosa_scheduler_wake_ns(worker.scheduler), worker.now_ns + 500 * MS);
    worker.now_ns += 500 * MS;
    worker_arrange(&worker);
    expect_action(&worker, 1, NOSA_SCHEDULER_OPEN);
    worker_close(&worker);
}

static void test_end_of_the_leader_frees_those_that_wait(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    for (uint64_t tag = 0; tag < 3; tag++)
        add_with_prefix(&worker, tag, 7);
    worker_steps(&worker, 1);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_CANCELLED);
    worker_arrange(&worker);
    expect_action(&worker, 1, NOSA_SCHEDULER_OPEN); /* leads now */
    assert_int_equal(parked(&worker), 1);
    worker_close(&worker);
}

/* Five of 40 blocks each, 39 of them shared, fit 64 blocks. */
static void test_arrange_counts_shared_blocks_once(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_store store = {.blocks_available = 24};
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 2540, 10);
    worker_steps(&worker, 15);
    worker_add(&worker, 1, 2540, 10);
    worker.prefixes[1] = (struct nosa_scheduler_prefix){39, 39 * 64};
    worker.actions = nosa_scheduler_arrange(worker.scheduler, worker.now_ns, &store);
    expect_action(&worker, 1, NOSA_SCHEDULER_OPEN);
    worker_close(&worker);
}

/* ---- sizes -------------------------------------------------------------------------------- */

static void test_arrange_working_sets_fit_the_slots_together(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.slots = 20;
    worker_open(&worker);
    for (uint64_t tag = 0; tag < 4; tag++) {
        worker.working_sets[tag] = 8;
        worker_add(&worker, tag, 600, 100); /* the guess is 8 */
    }
    worker_steps(&worker, 10);
    assert_int_equal(worker.rows.n_rows, 2);
    worker.working_sets[0] = 14; /* 14 and 8 no longer do: the last by rank leaves the batch */
    worker_steps(&worker, 2);
    assert_int_equal(worker.rows.n_rows, 1);
    assert_int_equal(worker_row(&worker, 0), 1);
    worker.working_sets[0] = 30; /* more than there are: it runs alone */
    worker_steps(&worker, 2);
    assert_int_equal(worker_row(&worker, 0), 1);
    worker.working_sets[0] = 4;
    worker_steps(&worker, 2);
    assert_int_equal(worker.rows.n_rows, 3);
    worker_close(&worker);
}

static void test_step_outsize_takes_turns_with_the_others(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.context_max = 6000;
    worker_open(&worker);
    worker_add(&worker, 0, 5000, 10); /* 79 blocks of 64 */
    worker_steps(&worker, 1);
    assert_true(worker_info(&worker, 0).outsize);
    assert_int_equal(worker_row(&worker, 0), 256);
    worker_add(&worker, 1, 10, 100);
    worker_steps(&worker, 1);
    bool outsize = worker.rows.rows[0].outsize;
    for (int i = 0; i < 50; i++) {
        worker_steps(&worker, 1);
        assert_int_equal(worker.rows.n_rows, 1);
        assert_int_equal(worker.rows.rows[0].outsize, !outsize);
        assert_true(worker.rows.n_tokens <= 128);
        outsize = !outsize;
    }
    worker_steps(&worker, 60);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_ENDED);
    worker_close(&worker);
}

static void test_arrange_spills_what_grows_outsize(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.blocks_total = 4;
    worker.options.outsize_blocks = 2;
    worker_open(&worker);
    worker_add(&worker, 0, 250, 100);
    worker_steps(&worker, 6);
    assert_int_equal(worker_info(&worker, 0).known_tokens, 256);
    assert_false(worker_info(&worker, 0).outsize);
    worker_arrange(&worker);
    expect_action(&worker, 0, NOSA_SCHEDULER_SPILL);
    worker_steps(&worker, 96);
    assert_int_equal(state_of(&worker, 0), NOSA_SCHEDULER_ENDED);
    assert_int_equal(worker_info(&worker, 0).known_tokens, 0);
    worker_close(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_decode_rows_first_then_a_chunk),
        cmocka_unit_test(test_step_prefill_alone_takes_the_whole_step),
        cmocka_unit_test(test_step_batch_is_bounded),
        cmocka_unit_test(test_arrange_larger_priority_first),
        cmocka_unit_test(test_arrange_waiting_raises_priority),
        cmocka_unit_test(test_arrange_ageing_bound_holds_for_extreme_priorities),
        cmocka_unit_test(test_arrange_priority_takes_a_place_and_leaves_the_blocks),
        cmocka_unit_test(test_arrange_suspends_the_last_by_rank_for_blocks),
        cmocka_unit_test(test_arrange_drops_when_nothing_fits_below),
        cmocka_unit_test(test_suspended_failure_leaves_it_resident_and_it_is_dropped),
        cmocka_unit_test(test_arrange_spares_what_has_not_run_its_steps),
        cmocka_unit_test(test_arrange_passes_over_what_does_not_fit),
        cmocka_unit_test(test_arrange_keeps_the_blocks_of_a_close_for_the_first),
        cmocka_unit_test(test_arrange_gives_the_session_of_one_behind),
        cmocka_unit_test(test_arrange_covers_growth_before_it_stalls),
        cmocka_unit_test(test_reader_paused_at_its_bound),
        cmocka_unit_test(test_reader_paused_gives_up_blocks_to_anyone),
        cmocka_unit_test(test_reader_paused_gives_up_its_session),
        cmocka_unit_test(test_arrange_one_computes_a_prefix),
        cmocka_unit_test(test_arrange_waits_for_a_prefix_no_longer_than_its_bound),
        cmocka_unit_test(test_end_of_the_leader_frees_those_that_wait),
        cmocka_unit_test(test_arrange_counts_shared_blocks_once),
        cmocka_unit_test(test_arrange_working_sets_fit_the_slots_together),
        cmocka_unit_test(test_step_outsize_takes_turns_with_the_others),
        cmocka_unit_test(test_arrange_spills_what_grows_outsize),
    };
    return cmocka_run_group_tests_name("scheduler_policy", tests, NULL, NULL);
}
