/* One fault each, on the simulated disk: what it ends in. */
#include "extent_store.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "extent_fixture.h"
#include "support/io_sim.h"

static struct io_sim sim;
static struct nosa_extent_store_options options;
static struct nosa_extent_store *store;
static char *image;

static void reopen(void)
{
    struct nosa_error error = {0};
    assert_int_equal(nosa_extent_store_close(store), 0);
    if (nosa_extent_store_open(&options, &store, &error) != NOSA_OK)
        fail_msg("%s", error.text);
}

static int set_up(void **state)
{
    (void)state;
    io_sim_init(&sim, 42);
    options = fixture_options("simulated", 6);
    options.method = &sim.method;
    options.clock = &sim.clock.clock;
    options.deadline_ms = 100;
    store = NULL;
    reopen();
    image = fixture_pages(16384);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    nosa_extent_store_close(store);
    io_sim_destroy(&sim);
    free(image);
    return 0;
}

static struct nosa_extent_store_counters counters_of(void)
{
    struct nosa_extent_store_counters counters;
    nosa_extent_store_counters(store, &counters);
    return counters;
}

static void fail_next(uint64_t nth, int64_t result)
{
    sim.fail_nth = nth;
    sim.fail_result = result;
    sim.fail_hangs = false;
}

static void begin_read(uint32_t number, uint64_t token)
{
    assert_int_equal(nosa_extent_store_read_image(store, token, fixture_find(store, number), image),
                     NOSA_OK);
}

static void begin_write(uint32_t number, uint64_t token)
{
    fixture_fill(&fixture_geometry, number, image);
    assert_int_equal(fixture_write(store, token, number, image, 1, 0), NOSA_OK);
}

static void test_read_error_forgets_the_extent(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    fail_next(1, -EIO);
    begin_read(1, 9);
    struct nosa_extent_completion completion = fixture_wait(store, 9);
    assert_int_equal(completion.result, NOSA_EXTENT_IO_ERROR);
    assert_int_equal(completion.os_error, EIO);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    assert_int_equal(counters_of().unreadable_extents, 1);
    assert_int_equal(fixture_put(store, 1, 1, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
}

/* Payload, flush, header and flush: whichever fails, nothing of the write is findable, now or after
 * a restart, and the place is used again. */
static void write_with_nth_failing(uint64_t nth, int code)
{
    fixture_put(store, 1, 1, 0);
    fail_next(nth, -code);
    begin_write(2, 9);
    struct nosa_extent_completion completion = fixture_wait(store, 9);
    assert_int_equal(completion.result, NOSA_EXTENT_IO_ERROR);
    assert_int_equal(completion.os_error, code);
    assert_int_equal(completion.handle.index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    assert_int_equal(counters_of().failed_writes, 1);
    fixture_settle(store);
    reopen();
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
    for (uint32_t i = 10; i < 16; i++)
        assert_int_equal(fixture_put(store, i, 10 + i, 0).result, NOSA_EXTENT_OK);
    for (uint32_t i = 10; i < 16; i++)
        assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
}

static void test_write_error_at_each_step(void **state)
{
    for (uint64_t nth = 1; nth <= 4; nth++) {
        write_with_nth_failing(nth, EIO);
        tear_down(state);
        set_up(state);
    }
}

static void test_write_without_space_at_each_step(void **state)
{
    for (uint64_t nth = 1; nth <= 4; nth++) {
        write_with_nth_failing(nth, ENOSPC);
        tear_down(state);
        set_up(state);
    }
}

static void test_clear_error_keeps_the_place_out_of_use(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    nosa_extent_store_forget(store, fixture_find(store, 1));
    fail_next(1, -EIO);
    fixture_settle(store);
    /* Five places are left; the sixth comes back when clearing is tried again. */
    for (uint32_t i = 10; i < 15; i++)
        assert_int_equal(fixture_put(store, i, i, 0).result, NOSA_EXTENT_OK);
    begin_write(15, 9);
    assert_int_equal(fixture_wait(store, 9).result, NOSA_EXTENT_TIMED_OUT);
    assert_int_equal(counters_of().evicted_extents, 0);
    nosa_manual_clock_advance(&sim.clock, 2 * NOSA_NS_PER_S);
    assert_int_equal(fixture_put(store, 15, 15, 0).result, NOSA_EXTENT_OK);
    for (uint32_t i = 10; i < 16; i++)
        assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
}

static void test_short_transfers_are_completed(void **state)
{
    (void)state;
    for (int64_t moved = 512; moved < 16384; moved += 1536) {
        uint32_t number = (uint32_t)moved;
        fail_next(1, moved); /* the payload; later ones are whole */
        assert_int_equal(fixture_put(store, number, 1, 0).result, NOSA_EXTENT_OK);
        fail_next(1, moved);
        assert_int_equal(fixture_get(store, number), NOSA_EXTENT_OK);
        nosa_extent_store_forget(store, fixture_find(store, number));
        fixture_settle(store);
    }
    assert_true(counters_of().retried_operations >= 20);
    assert_int_equal(counters_of().corrupt_extents + counters_of().failed_writes, 0);
}

static void test_short_read_of_scattered_records(void **state)
{
    (void)state;
    static const uint32_t records[] = {0, 1, 2};
    void *buffers[] = {image + 2 * 4096, image, image + 3 * 4096};
    fixture_put(store, 1, 1, 0);
    for (int64_t moved = 512; moved < 3 * 4096; moved += 512) {
        memset(image, 0, 16384);
        fail_next(1, moved);
        assert_int_equal(
            nosa_extent_store_read_records(store, 9, fixture_find(store, 1), records, buffers, 3),
            NOSA_OK);
        assert_int_equal(fixture_wait(store, 9).result, NOSA_EXTENT_OK);
        for (uint32_t i = 0; i < 3; i++)
            assert_true(fixture_record_is(&fixture_geometry, 1, i, buffers[i]));
    }
}

static void test_transfer_without_progress_fails(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    sim.faults.short_transfer = 1000;
    begin_read(1, 9);
    struct nosa_extent_completion completion = fixture_wait(store, 9);
    /* Zero bytes end it; luck may finish it before. */
    if (completion.result != NOSA_EXTENT_OK) {
        assert_int_equal(completion.result, NOSA_EXTENT_IO_ERROR);
        assert_int_equal(completion.os_error, EIO);
    }
}

static void test_torn_write_is_corrupt_not_wrong(void **state)
{
    (void)state;
    uint32_t corrupt = 0;
    for (uint32_t i = 0; i < 6; i++) {
        sim.faults.torn_write = 1000;
        assert_int_equal(fixture_put(store, i, i, 0).result, NOSA_EXTENT_OK);
        memset(&sim.faults, 0, sizeof sim.faults);
        corrupt += fixture_get(store, i) == NOSA_EXTENT_CORRUPT;
    }
    assert_true(corrupt > 0);
    assert_int_equal(counters_of().corrupt_extents, corrupt);
}

/* One bit in any byte of an extent, each in turn: exact, or a miss that is counted. */
static void test_flipped_bit_in_any_byte(void **state)
{
    (void)state;
    struct nosa_extent_completion written = fixture_put(store, 1, 1, 0);
    uint32_t extent = (uint32_t)written.handle.index;
    uint64_t payload = nosa_extent_payload_offset(&fixture_geometry, extent);
    uint64_t checked = nosa_extent_summary_offset(&fixture_geometry, 3);
    for (uint64_t i = 0; i < 16384; i++) {
        uint64_t corrupt = counters_of().corrupt_extents;
        io_sim_flip(&sim, payload + i, (uint32_t)(i % 8));
        enum nosa_extent_result result = fixture_get(store, 1);
        io_sim_flip(&sim, payload + i, (uint32_t)(i % 8));
        /* Padding holds nothing. */
        assert_int_equal(result, i < checked ? NOSA_EXTENT_CORRUPT : NOSA_EXTENT_OK);
        assert_int_equal(counters_of().corrupt_extents - corrupt, i < checked);
        if (i < checked) {
            assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
            written = fixture_put(store, 1, 1, 0);
            assert_int_equal(written.result, NOSA_EXTENT_OK);
            payload = nosa_extent_payload_offset(&fixture_geometry, (uint32_t)written.handle.index);
        }
    }
}

static void test_flipped_bit_in_any_byte_of_a_header(void **state)
{
    (void)state;
    struct nosa_extent_completion written = fixture_put(store, 1, 1, 0);
    uint64_t header = nosa_extent_header_offset(&fixture_geometry, (uint32_t)written.handle.index);
    fixture_put(store, 2, 1, 0);
    for (uint64_t i = 0; i < 4096; i += i < 512 ? 1 : 13) {
        io_sim_flip(&sim, header + i, (uint32_t)(i % 8));
        reopen();
        assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
        assert_int_equal(fixture_get(store, 2), NOSA_EXTENT_OK);
        io_sim_flip(&sim, header + i, (uint32_t)(i % 8));
    }
    reopen();
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
}

static void test_flipped_bit_on_the_way_is_corrupt(void **state)
{
    (void)state;
    static const uint32_t record = 1;
    void *buffer = image;
    for (uint32_t i = 0; i < 6; i++)
        fixture_put(store, i, 1, 0);
    sim.faults.flip_read = 1000;
    for (uint32_t i = 0; i < 6; i++) {
        struct nosa_extent_completion completion;
        assert_int_equal(nosa_extent_store_read_records_wait(store, 9, fixture_find(store, i),
                                                             &record, &buffer, 1, &completion),
                         NOSA_OK);
        assert_int_equal(completion.result, NOSA_EXTENT_CORRUPT);
    }
    assert_int_equal(counters_of().corrupt_extents, 6);
}

static void test_completion_that_never_comes_times_out(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    sim.cancel_works = false;
    sim.fail_nth = 1;
    sim.fail_result = 0;
    sim.fail_hangs = true;
    begin_read(1, 9);
    uint64_t start_ns = nosa_clock_monotonic_ns(&sim.clock.clock);
    struct nosa_extent_completion completion = fixture_wait(store, 9);
    uint64_t took_ns = nosa_clock_monotonic_ns(&sim.clock.clock) - start_ns;
    assert_int_equal(completion.result, NOSA_EXTENT_TIMED_OUT);
    assert_true(completion.buffer_held);
    assert_true(took_ns >= 100 * NOSA_NS_PER_MS && took_ns < 200 * NOSA_NS_PER_MS);
    assert_int_equal(counters_of().operations_overdue, 1);
    assert_int_equal(nosa_extent_store_pending(store), 1);
    /* Others go on, with other memory; the extent is not given away meanwhile. */
    for (uint32_t i = 10; i < 15; i++)
        assert_int_equal(fixture_put(store, i, 10 + i, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(fixture_put(store, 15, 30, 0).result, NOSA_EXTENT_OK);
    assert_int_not_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    io_sim_release(&sim);
    completion = fixture_wait(store, 9);
    assert_int_equal(completion.result, NOSA_EXTENT_RELEASED);
    assert_false(completion.buffer_held);
    assert_int_equal(nosa_extent_store_pending(store), 0);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
    assert_int_equal(counters_of().extents_pinned, 0);
}

static void test_cancel_brings_hung_read_back(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    for (int i = 0; i < 20; i++) {
        sim.fail_nth = 1;
        sim.fail_result = 0;
        sim.fail_hangs = true;
        begin_read(1, 9);
        nosa_extent_store_submit(store);
        nosa_extent_store_cancel(store, 9);
        struct nosa_extent_completion completion = fixture_wait(store, 9);
        if (completion.result == NOSA_EXTENT_TIMED_OUT) {
            /* The cancellation did not take. */
            assert_true(completion.buffer_held);
            io_sim_release(&sim);
            completion = fixture_wait(store, 9);
            assert_int_equal(completion.result, NOSA_EXTENT_RELEASED);
        } else {
            assert_int_equal(completion.result, NOSA_EXTENT_CANCELLED);
        }
        assert_false(completion.buffer_held);
    }
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
}

/* Payload, flush, header and flush: whichever hangs, the write times out, the store goes on, and
 * nothing half written is ever found. */
static void test_hang_at_each_step_of_a_write(void **state)
{
    for (uint64_t nth = 1; nth <= 4; nth++) {
        fixture_put(store, 1, 1, 0);
        sim.cancel_works = false;
        sim.fail_nth = nth;
        sim.fail_result = 0;
        sim.fail_hangs = true;
        begin_write(2, 9);
        struct nosa_extent_completion completion = fixture_wait(store, 9);
        assert_int_equal(completion.result, NOSA_EXTENT_TIMED_OUT);
        assert_int_equal(completion.buffer_held, nth == 1);
        assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
        assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
        io_sim_release(&sim);
        if (nth == 1)
            assert_int_equal(fixture_wait(store, 9).result, NOSA_EXTENT_RELEASED);
        fixture_settle(store);
        /* Past its payload the write has gone on to its end. */
        assert_int_equal(fixture_get(store, 2), nth == 1 ? NOSA_EXTENT_CANCELLED : NOSA_EXTENT_OK);
        tear_down(state);
        set_up(state);
    }
}

static void test_close_with_hung_operation_ends(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    sim.cancel_works = false;
    sim.fail_nth = 1;
    sim.fail_hangs = true;
    begin_read(1, 9);
    nosa_extent_store_submit(store);
    reopen(); /* the simulated disk touches nothing after close, so nothing is held */
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
}

static void test_again_on_submission_is_tried_again(void **state)
{
    (void)state;
    sim.faults.refuse = 700;
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(fixture_put(store, i, i, 0).result, NOSA_EXTENT_OK);
        assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
    }
    assert_true(counters_of().retried_operations > 0);
    sim.faults.refuse = 1000;
    begin_read(1, 9);
    struct nosa_extent_completion completion = fixture_wait(store, 9);
    assert_int_equal(completion.result, NOSA_EXTENT_TIMED_OUT);
    assert_false(completion.buffer_held);
    memset(&sim.faults, 0, sizeof sim.faults);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
}

static void test_again_as_completion_is_tried_again(void **state)
{
    (void)state;
    sim.faults.again = 500;
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(fixture_put(store, i, i, 0).result, NOSA_EXTENT_OK);
        assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
    }
    assert_int_equal(counters_of().failed_writes + counters_of().unreadable_extents, 0);
}

/* The power fails at every moment of two writes, one over the place of an older block. */
static void test_crash_at_every_moment_of_a_write(void **state)
{
    uint32_t seen_old = 0, seen_new = 0;
    for (uint64_t step = 0; step < 120; step++) {
        for (uint32_t i = 1; i <= 6; i++)
            fixture_put(store, i, i, 0);
        begin_write(7, 9);
        sim.random = step;
        for (uint64_t i = 0; i < step; i++) {
            struct nosa_extent_completion completion;
            nosa_extent_store_poll(store, &completion, 1, 0);
            nosa_manual_clock_advance(&sim.clock, 100 * NOSA_NS_PER_US);
        }
        bool committed = fixture_find(store, 7).index != NOSA_EXTENT_NONE;
        io_sim_crash(&sim);
        reopen();
        for (uint32_t i = 2; i <= 6; i++)
            assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
        enum nosa_extent_result old = fixture_get(store, 1), new = fixture_get(store, 7);
        assert_true(old == NOSA_EXTENT_OK || old == NOSA_EXTENT_CANCELLED);
        assert_true(new == NOSA_EXTENT_OK || (new == NOSA_EXTENT_CANCELLED && !committed));
        assert_false(old == NOSA_EXTENT_OK && new == NOSA_EXTENT_OK);
        seen_old += old == NOSA_EXTENT_OK;
        seen_new += new == NOSA_EXTENT_OK;
        tear_down(state);
        set_up(state);
    }
    assert_true(seen_old > 0 && seen_new > 0);
}

static void test_damaged_superblock_lays_out_anew(void **state)
{
    (void)state;
    struct nosa_extent_store_info info;
    fixture_put(store, 1, 1, 0);
    io_sim_flip(&sim, 20, 1);
    reopen();
    nosa_extent_store_info(store, &info);
    assert_true(info.laid_out_anew);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_put(store, 1, 1, 0).result, NOSA_EXTENT_OK);
}

static void expect_no_open(enum nosa_status status, const char *text)
{
    struct nosa_error error = {0};
    assert_int_equal(nosa_extent_store_close(store), 0);
    assert_int_equal(nosa_extent_store_open(&options, &store, &error), status);
    assert_null(store);
    if (!strstr(error.text, text))
        fail_msg("\"%s\" does not say %s", error.text, text);
}

static void test_open_refuses_foreign_file(void **state)
{
    (void)state;
    io_sim_flip(&sim, 0, 1);
    expect_no_open(NOSA_INVALID_ARGUMENT, "'simulated/nosa-kv.dat' is not a KV file");
}

static void test_open_refuses_newer_version(void **state)
{
    (void)state;
    struct nosa_extent_superblock *superblock = (void *)sim.current;
    uint64_t bytes = sim.bytes;
    superblock->version = 2;
    superblock->checksum =
        nosa_extent_sum(superblock, offsetof(struct nosa_extent_superblock, checksum));
    options.bytes -= 2 * 16384;
    expect_no_open(NOSA_UNSUPPORTED, "format 2");
    assert_int_equal(sim.bytes, bytes); /* not even cut */
}

static void test_open_fails_when_any_operation_does(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 6; i++)
        fixture_put(store, i, i, 0);
    int failures = 0;
    for (uint64_t nth = 1;; nth++) {
        struct nosa_error error = {0};
        assert_int_equal(nosa_extent_store_close(store), 0);
        fail_next(nth, -EIO);
        enum nosa_status status = nosa_extent_store_open(&options, &store, &error);
        if (sim.fail_nth > 0)
            break;
        assert_int_equal(status, NOSA_IO_ERROR);
        assert_non_null(strstr(error.text, "Input/output error"));
        failures++;
    }
    sim.fail_nth = 0;
    assert_true(failures >= 3);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
    sim.fail_nth = 1;
    sim.fail_hangs = true;
    expect_no_open(NOSA_DEADLINE_EXCEEDED, "does not answer");
}

static void test_open_refuses_more_than_is_free(void **state)
{
    (void)state;
    fixture_put(store, 1, 1, 0);
    sim.capacity = sim.bytes;
    options.bytes *= 2;
    expect_no_open(NOSA_INVALID_ARGUMENT, "too little space");
    options.bytes /= 2;
    reopen();
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_error_forgets_the_extent, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_error_at_each_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_without_space_at_each_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_clear_error_keeps_the_place_out_of_use, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_short_transfers_are_completed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_short_read_of_scattered_records, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_transfer_without_progress_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_torn_write_is_corrupt_not_wrong, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_bit_in_any_byte, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_bit_in_any_byte_of_a_header, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_bit_on_the_way_is_corrupt, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_completion_that_never_comes_times_out, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_cancel_brings_hung_read_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hang_at_each_step_of_a_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_close_with_hung_operation_ends, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_again_on_submission_is_tried_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_again_as_completion_is_tried_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_crash_at_every_moment_of_a_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_superblock_lays_out_anew, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_refuses_foreign_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_refuses_newer_version, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_fails_when_any_operation_does, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_refuses_more_than_is_free, set_up, tear_down),
    };
    const struct nosa_log_options quiet = {.level = NOSA_LOG_ERROR, .descriptor = 2};
    nosa_log_configure(&quiet);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
