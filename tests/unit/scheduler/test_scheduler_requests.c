/* What comes in and what goes out: submission, ends at every stage, states, counts. */
#include "worker_double.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "support/alloc_fail.h"

/* ---- create and submit -------------------------------------------------------------------- */

static void refuse(const struct nosa_scheduler_options *options, const char *name)
{
    struct nosa_scheduler *scheduler;
    struct nosa_error error = {0};
    assert_int_equal(nosa_scheduler_create(options, &scheduler, &error), NOSA_INVALID_ARGUMENT);
    assert_null(scheduler);
    assert_non_null(strstr(error.text, name));
}

static void test_create_names_the_option_out_of_range(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_options options;

    worker_init(&worker);
    options = worker.options, options.queue_max = 0, refuse(&options, "queue_max");
    options = worker.options, options.batch_max = 0, refuse(&options, "batch_max");
    options = worker.options, options.sequences_max = 3, refuse(&options, "sequences_max");
    options = worker.options, options.step_tokens_max = 3, refuse(&options, "step_tokens_max");
    options = worker.options, options.prefill_chunk_max = 0, refuse(&options, "prefill_chunk_max");
    options = worker.options, options.blocks_total = 0, refuse(&options, "blocks_total");
    options = worker.options, options.outsize_blocks = 65, refuse(&options, "outsize_blocks");
    options = worker.options, options.slots = -1, refuse(&options, "slots");
    options = worker.options, options.reader_tokens_max = 0, refuse(&options, "reader_tokens_max");
    options = worker.options, options.ageing_ns = UINT64_MAX, refuse(&options, "ageing_ns");
}

static enum nosa_status create(void *context, struct nosa_error *error)
{
    struct nosa_scheduler *scheduler;
    NOSA_TRY(nosa_scheduler_create(context, &scheduler, error));
    nosa_scheduler_destroy(scheduler);
    return NOSA_OK;
}

static void test_create_without_memory(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    assert_true(nosa_alloc_fail_sweep(create, &worker.options) > 8);
}

static void test_nothing_allocates_after_create(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    nosa_alloc_fail_arm(0);
    for (uint64_t tag = 0; tag < 20; tag++)
        worker_add(&worker, tag, 200, 20);
    worker_steps(&worker, 300);
    nosa_alloc_fail_disarm();
    assert_int_equal(nosa_alloc_fail_count(), 0);
    assert_int_equal(worker_info(&worker, 19).state, NOSA_SCHEDULER_ENDED);
    worker_close(&worker);
}

static void refuse_request(struct worker_double *worker, struct nosa_scheduler_request request,
                           enum nosa_status status, const char *text)
{
    struct nosa_error error = {0};
    uint64_t id;
    request.deadline_ns = NOSA_SCHEDULER_NO_DEADLINE;
    assert_int_equal(nosa_scheduler_submit(worker->scheduler, &request, &id, &error), status);
    assert_non_null(strstr(error.text, text));
}

static void test_submit_refuses_what_cannot_be(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.context_max = 100000;
    worker_open(&worker);
    refuse_request(&worker, (struct nosa_scheduler_request){.known_tokens = 0, .max_new_tokens = 1},
                   NOSA_INVALID_ARGUMENT, "0 tokens");
    refuse_request(&worker,
                   (struct nosa_scheduler_request){.known_tokens = 100000, .max_new_tokens = 1},
                   NOSA_INVALID_ARGUMENT, "100000 tokens");
    refuse_request(&worker, (struct nosa_scheduler_request){.known_tokens = 5},
                   NOSA_INVALID_ARGUMENT, "0 tokens to generate");
    /* 16 resident and 64 below are 80 blocks of 64 tokens; the last token needs no KV. */
    refuse_request(&worker,
                   (struct nosa_scheduler_request){.known_tokens = 5000, .max_new_tokens = 122},
                   NOSA_RESOURCE_EXHAUSTED, "need 81 KV blocks");
    worker_add(&worker, 0, 5000, 121);
    worker_close(&worker);
}

static void test_submit_refuses_what_never_fits_without_place_below(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.lower_blocks_total = 0;
    worker_open(&worker);
    worker_add(&worker, 0, 4000, 97); /* 64 blocks */
    worker_close(&worker);
    worker.options.context_max = 5000;
    worker_open(&worker);
    refuse_request(&worker,
                   (struct nosa_scheduler_request){.known_tokens = 4000, .max_new_tokens = 98},
                   NOSA_RESOURCE_EXHAUSTED, "need 65 KV blocks; one sequence can have at most 64");
    worker_close(&worker);
}

static void test_submit_full_queue(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.queue_max = 3;
    worker_open(&worker);
    for (uint64_t tag = 0; tag < 7; tag++) /* 4 places in the batch are free */
        worker_add(&worker, tag, 10, 10);
    refuse_request(&worker, (struct nosa_scheduler_request){.known_tokens = 1, .max_new_tokens = 1},
                   NOSA_RESOURCE_EXHAUSTED, "the queue is full: 7");
    worker_arrange(&worker);
    refuse_request(&worker, (struct nosa_scheduler_request){.known_tokens = 1, .max_new_tokens = 1},
                   NOSA_RESOURCE_EXHAUSTED, "the queue is full: 3");
    nosa_scheduler_end(worker.scheduler, worker.ids[6], NOSA_SCHEDULER_END_CANCELLED);
    worker_add(&worker, 7, 10, 10);
    worker_close(&worker);
}

/* ---- ends --------------------------------------------------------------------------------- */

static void expect_close(const struct worker_double *worker, uint64_t tag,
                         enum nosa_scheduler_end reason, bool has_session)
{
    const struct nosa_scheduler_action *action = worker_action(worker, tag);
    assert_non_null(action);
    assert_int_equal(action->kind, NOSA_SCHEDULER_CLOSE);
    assert_int_equal(action->reason, reason);
    assert_int_equal(action->has_session, has_session);
    assert_int_equal(worker_info(worker, tag).state, NOSA_SCHEDULER_ENDED);
}

static void test_step_done_ends_by_length(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.options.context_max = 100;
    worker_open(&worker);
    worker_add(&worker, 0, 10, 3);
    worker_add(&worker, 1, 98, 50); /* the context ends it after 2 */
    worker_steps(&worker, 2);
    assert_int_equal(worker_info(&worker, 0).new_tokens, 2);
    worker_arrange(&worker);
    expect_close(&worker, 1, NOSA_SCHEDULER_END_LENGTH, true);
    worker_choose(&worker);
    worker_compute(&worker);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_LENGTH, true);
    worker_arrange(&worker);
    assert_int_equal(worker.actions.n_actions, 0);
    worker_close(&worker);
}

static void test_step_done_ends_as_the_caller_sees_it(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 10, 100);
    worker_add(&worker, 1, 10, 100);
    worker_steps(&worker, 2);
    worker.ends[0] = NOSA_SCHEDULER_END_STOP;
    worker.ends[1] = NOSA_SCHEDULER_END_FAILED;
    worker_steps(&worker, 1);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_STOP, true);
    expect_close(&worker, 1, NOSA_SCHEDULER_END_FAILED, true);
    worker_close(&worker);
}

static void test_step_failed_changes_nothing(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 300, 3);
    worker_arrange(&worker);
    worker_choose(&worker);
    assert_int_equal(worker_row(&worker, 0), 256);
    nosa_scheduler_step_failed(worker.scheduler);
    assert_int_equal(worker_info(&worker, 0).computed_tokens, 0);
    worker_steps(&worker, 1);
    assert_int_equal(worker_row(&worker, 0), 256);
    assert_int_equal(worker_info(&worker, 0).computed_tokens, 256);
    worker_close(&worker);
}

static void test_end_first_reason_counts(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 10, 10);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_MOVED);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_CANCELLED);
    assert_int_equal(nosa_scheduler_wake_ns(worker.scheduler), 0);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_MOVED, false);
    worker_close(&worker);
}

static void test_end_with_its_step_in_flight(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 10, 10);
    worker_arrange(&worker);
    worker_choose(&worker);
    assert_int_equal(worker_row(&worker, 0), 10);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_CANCELLED);
    worker.ends[0] = NOSA_SCHEDULER_END_STOP; /* what it computed still comes */
    nosa_scheduler_step_done(worker.scheduler,
                             &(struct nosa_scheduler_result){true, NOSA_SCHEDULER_END_STOP, 1}, 1);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_CANCELLED, true);
    worker_close(&worker);
}

static void test_end_between_arrange_and_step(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 10, 10);
    worker_arrange(&worker);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_CANCELLED);
    worker_choose(&worker);
    assert_int_equal(worker.rows.n_rows, 0);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_CANCELLED, true);
    worker_close(&worker);
}

static void test_end_while_loading_ignores_the_load(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker.hold_moves = true;
    worker_open(&worker);
    worker_add(&worker, 0, 500, 10);
    worker_arrange(&worker);
    assert_int_equal(worker_info(&worker, 0).state, NOSA_SCHEDULER_LOADING);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_CANCELLED);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_CANCELLED, true);
    nosa_scheduler_loaded(worker.scheduler, worker.ids[0], 64);
    worker_add(&worker, 1, 10, 10); /* takes the same slot; the old id stays dead */
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_FAILED);
    assert_int_equal(worker_info(&worker, 0).state, NOSA_SCHEDULER_ENDED);
    assert_int_equal(worker_info(&worker, 1).state, NOSA_SCHEDULER_QUEUED);
    worker_close(&worker);
}

/* One that is suspended and one on its way there. */
static void test_end_while_suspended(void **state)
{
    (void)state;
    struct worker_double worker;
    worker_init(&worker);
    worker_open(&worker);
    worker_add(&worker, 0, 1000, 100);
    worker_add(&worker, 1, 1000, 100);
    worker_steps(&worker, 12);
    worker.hold_moves = true;
    assert_int_equal(worker_submit(&worker, (struct nosa_scheduler_request){.tag = 2,
                                                                            .priority = 9,
                                                                            .known_tokens = 4000,
                                                                            .max_new_tokens = 2}),
                     NOSA_OK);
    worker_arrange(&worker);
    assert_int_equal(worker_action(&worker, 0)->kind, NOSA_SCHEDULER_SUSPEND);
    assert_int_equal(worker_action(&worker, 1)->kind, NOSA_SCHEDULER_SUSPEND);
    nosa_scheduler_suspended(worker.scheduler, worker.ids[0], true);
    nosa_scheduler_end(worker.scheduler, worker.ids[0], NOSA_SCHEDULER_END_CANCELLED);
    nosa_scheduler_end(worker.scheduler, worker.ids[1], NOSA_SCHEDULER_END_CANCELLED);
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_CANCELLED, true);
    expect_close(&worker, 1, NOSA_SCHEDULER_END_CANCELLED, true);
    nosa_scheduler_suspended(worker.scheduler, worker.ids[1], true);
    worker_close(&worker);
}

static void test_arrange_closes_past_the_deadline(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_request request = {.known_tokens = 1000, .max_new_tokens = 500};
    worker_init(&worker);
    worker.options.batch_max = 1;
    worker_open(&worker);
    request.deadline_ns = worker.now_ns + 50 * MS;
    assert_int_equal(worker_submit(&worker, request), NOSA_OK);
    request.tag = 1;
    request.deadline_ns = worker.now_ns + 45 * MS;
    assert_int_equal(worker_submit(&worker, request), NOSA_OK);
    assert_int_equal(nosa_scheduler_wake_ns(worker.scheduler), worker.now_ns + 45 * MS);
    worker_steps(&worker, 4);
    worker.now_ns += 5 * MS; /* 45 */
    worker_arrange(&worker);
    expect_close(&worker, 1, NOSA_SCHEDULER_END_DEADLINE, false);
    assert_null(worker_action(&worker, 0));
    worker_choose(&worker);
    assert_true(worker_row(&worker, 0) > 0);
    worker_compute(&worker); /* 55: it passed with the step in flight */
    worker_arrange(&worker);
    expect_close(&worker, 0, NOSA_SCHEDULER_END_DEADLINE, true);
    assert_int_equal(nosa_scheduler_wake_ns(worker.scheduler), NOSA_SCHEDULER_NO_WAKE);
    worker_close(&worker);
}

/* ---- states and counts -------------------------------------------------------------------- */

static void test_counters_follow_the_requests(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_counters counters;
    worker_init(&worker);
    worker.options.batch_max = 2;
    worker_open(&worker);
    for (uint64_t tag = 0; tag < 3; tag++)
        worker_add(&worker, tag, 300, 5);
    nosa_scheduler_counters(worker.scheduler, &counters);
    assert_int_equal(counters.queued, 3);
    assert_int_equal(counters.prefill_tokens_pending, 900);
    worker_steps(&worker, 1);
    assert_int_equal(worker_info(&worker, 0).state, NOSA_SCHEDULER_PREFILL);
    worker_steps(&worker, 1);
    nosa_scheduler_counters(worker.scheduler, &counters);
    assert_int_equal(counters.queued, 1);
    assert_int_equal(counters.running, 2);
    assert_int_equal(worker_info(&worker, 0).state, NOSA_SCHEDULER_DECODE);
    assert_int_equal(worker_info(&worker, 2).state, NOSA_SCHEDULER_QUEUED);
    worker_steps(&worker, 40);
    nosa_scheduler_counters(worker.scheduler, &counters);
    assert_int_equal(counters.queued + counters.running + counters.ready + counters.loading, 0);
    assert_int_equal(counters.prefill_tokens_pending, 0);
    worker_close(&worker);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(nosa_scheduler_state_name(NOSA_SCHEDULER_SUSPENDED), "SUSPENDED");
    assert_string_equal(nosa_scheduler_state_name(NOSA_SCHEDULER_ENDED), "ENDED");
    assert_string_equal(nosa_scheduler_end_name(NOSA_SCHEDULER_END_NONE), "NONE");
    assert_string_equal(nosa_scheduler_end_name(NOSA_SCHEDULER_END_MOVED), "MOVED");
}

static void arrange_and_step(struct worker_double *worker, const struct nosa_scheduler_store *store,
                             int n)
{
    for (int i = 0; i < n; i++) {
        nosa_scheduler_arrange(worker->scheduler, worker->now_ns, store);
        worker->rows = nosa_scheduler_step(worker->scheduler, store);
        worker_compute(worker);
    }
}

/* A long queue costs no more than its logarithm: an arrange and a step with 10,000 waiting, when
 * the batch is full and when blocks are short. */
static void test_arrange_with_ten_thousand_queued(void **state)
{
    (void)state;
    struct worker_double worker;
    struct nosa_scheduler_request request = {.tag = 100, .known_tokens = 64, .max_new_tokens = 100};
    struct nosa_scheduler_store store = {.blocks_available = 64, .lower_blocks_available = 64};
    uint64_t id;
    worker_init(&worker);
    worker.options.queue_max = 10000;
    worker.options.batch_max = 64;
    worker.options.sequences_max = 64;
    worker.options.blocks_total = 1000;
    worker.options.reader_tokens_max = 100000;
    worker_open(&worker);
    for (uint64_t tag = 0; tag < 64; tag++)
        worker_add(&worker, tag, 10, 4000);
    worker_steps(&worker, 3);
    uint64_t start_ns = nosa_monotonic_ns();
    for (int i = 0; i < 10000; i++) {
        request.priority = i % 7 - 8; /* behind all that run */
        request.arrival_ns = worker.now_ns + (uint64_t)i;
        request.deadline_ns = worker.now_ns + 3600000 * MS + (uint64_t)i;
        assert_int_equal(nosa_scheduler_submit(worker.scheduler, &request, &id, NULL), NOSA_OK);
    }
    uint64_t queued_ns = nosa_monotonic_ns();
    arrange_and_step(&worker, &store, 1000);
    uint64_t full_ns = nosa_monotonic_ns();
    for (uint64_t tag = 0; tag < 32; tag++) /* places for 32, and blocks for none */
        nosa_scheduler_end(worker.scheduler, worker.ids[tag], NOSA_SCHEDULER_END_CANCELLED);
    store.blocks_available = 34;
    arrange_and_step(&worker, &store, 1000);
    uint64_t end_ns = nosa_monotonic_ns();
    assert_int_equal(worker.rows.n_rows, 32);
    printf("# 10000 submits: %.0f ns each; arrange and step with 64 running: %.1f us, with 32 and "
           "no blocks for the next: %.1f us\n",
           (double)(queued_ns - start_ns) / 1e4, (double)(full_ns - queued_ns) / 1e6,
           (double)(end_ns - full_ns) / 1e6);
    assert_true(end_ns - start_ns < 5000 * MS); /* also under sanitizers, on a busy machine */
    worker_close(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_names_the_option_out_of_range),
        cmocka_unit_test(test_create_without_memory),
        cmocka_unit_test(test_nothing_allocates_after_create),
        cmocka_unit_test(test_submit_refuses_what_cannot_be),
        cmocka_unit_test(test_submit_refuses_what_never_fits_without_place_below),
        cmocka_unit_test(test_submit_full_queue),
        cmocka_unit_test(test_step_done_ends_by_length),
        cmocka_unit_test(test_step_done_ends_as_the_caller_sees_it),
        cmocka_unit_test(test_step_failed_changes_nothing),
        cmocka_unit_test(test_end_first_reason_counts),
        cmocka_unit_test(test_end_with_its_step_in_flight),
        cmocka_unit_test(test_end_between_arrange_and_step),
        cmocka_unit_test(test_end_while_loading_ignores_the_load),
        cmocka_unit_test(test_end_while_suspended),
        cmocka_unit_test(test_arrange_closes_past_the_deadline),
        cmocka_unit_test(test_counters_follow_the_requests),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_arrange_with_ten_thousand_queued),
    };
    return cmocka_run_group_tests_name("scheduler_requests", tests, NULL, NULL);
}
