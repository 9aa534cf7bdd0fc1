/* The extent store over real files, on io_uring and on threads, and over the simulated disk: the
 * same cases on each. */
#include "extent_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "extent_fixture.h"
#include "support/io_sim.h"

/* What the group that runs now uses. */
static const struct nosa_io_method *real_method; /* NULL: the simulated disk */
static struct io_sim sim;
static char directory[64];

static int set_up(void **state)
{
    (void)state;
    io_sim_init(&sim, 1);
    fixture_make_directory(directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    io_sim_destroy(&sim);
    fixture_remove_directory(directory);
    return 0;
}

static struct nosa_extent_store_options options_for(uint32_t n_extents)
{
    struct nosa_extent_store_options options = fixture_options(directory, n_extents);
    options.method = real_method ? real_method : &sim.method;
    options.clock = real_method ? NULL : &sim.clock.clock;
    return options;
}

static struct nosa_extent_store *open_with(const struct nosa_extent_store_options *options)
{
    struct nosa_extent_store *store;
    struct nosa_error error = {0};
    if (nosa_extent_store_open(options, &store, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return store;
}

static struct nosa_extent_store *open_store(uint32_t n_extents)
{
    struct nosa_extent_store_options options = options_for(n_extents);
    return open_with(&options);
}

static struct nosa_extent_store_counters counters_of(struct nosa_extent_store *store)
{
    struct nosa_extent_store_counters counters;
    nosa_extent_store_counters(store, &counters);
    return counters;
}

static void close_store(struct nosa_extent_store *store)
{
    assert_int_equal(nosa_extent_store_close(store), 0);
}

static void test_write_then_find_and_read(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    assert_int_equal(fixture_find(store, 5).index, NOSA_EXTENT_NONE);
    struct nosa_extent_completion written = fixture_put(store, 5, 1, 0.5F);
    assert_int_equal(written.result, NOSA_EXTENT_OK);
    assert_int_equal(written.kind, NOSA_EXTENT_WRITE);
    struct nosa_extent_handle handle = fixture_find(store, 5);
    assert_int_equal(handle.index, written.handle.index);
    assert_int_equal(handle.generation, written.handle.generation);
    assert_int_equal(fixture_get(store, 5), NOSA_EXTENT_OK);
    struct nosa_extent_store_counters counters = counters_of(store);
    assert_int_equal(counters.writes, 1);
    assert_int_equal(counters.reads, 1);
    assert_int_equal(counters.read_bytes, 16384);
    assert_int_equal(counters.written_bytes, 16384 + 4096);
    assert_true(counters.read_busy_ns > 0 && counters.write_busy_ns > 0);
    assert_int_equal(counters.extents_valid, 1);
    assert_int_equal(counters.extents_pinned, 0);
    close_store(store);
}

static void test_find_compares_parent_and_tokens(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    struct fixture_block block;
    fixture_put(store, 5, 1, 0);
    fixture_block(5, &block);
    block.tokens[63]++;
    assert_int_equal(nosa_extent_store_find(store, &block.key, &block.parent, block.tokens).index,
                     NOSA_EXTENT_NONE);
    block.tokens[63]--;
    block.parent.bytes[31] ^= 1;
    assert_int_equal(nosa_extent_store_find(store, &block.key, &block.parent, block.tokens).index,
                     NOSA_EXTENT_NONE);
    block.parent.bytes[31] ^= 1;
    assert_int_not_equal(
        nosa_extent_store_find(store, &block.key, &block.parent, block.tokens).index,
        NOSA_EXTENT_NONE);
    close_store(store);
}

static void test_write_of_known_key_exists(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    void *image = fixture_pages(16384);
    fixture_put(store, 5, 1, 0);
    assert_int_equal(fixture_put(store, 5, 2, 0).result, NOSA_EXTENT_EXISTS);
    /* Also while the first write is under way. */
    fixture_fill(&fixture_geometry, 6, image);
    assert_int_equal(fixture_write(store, 60, 6, image, 1, 0), NOSA_OK);
    assert_int_equal(fixture_write(store, 61, 6, image, 1, 0), NOSA_OK);
    assert_int_equal(fixture_wait(store, 61).result, NOSA_EXTENT_EXISTS);
    assert_int_equal(fixture_wait(store, 60).result, NOSA_EXTENT_OK);
    assert_int_equal(counters_of(store).writes, 2);
    free(image);
    close_store(store);
}

static void test_read_records_any_order(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    char *pages = fixture_pages(3 * 4096);
    fixture_put(store, 5, 1, 0);
    struct nosa_extent_handle handle = fixture_find(store, 5);
    static const uint32_t orders[][3] = {{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}, {1, 0, 0}};
    static const uint32_t counts[] = {3, 3, 3, 3, 2};
    for (uint32_t i = 0; i < 5; i++) {
        /* Once beside each other in the order of the list, once the other way round. */
        for (int reversed = 0; reversed < 2; reversed++) {
            void *buffers[3];
            memset(pages, 0, 3 * 4096);
            for (uint32_t k = 0; k < 3; k++)
                buffers[k] = pages + (reversed ? 2 - k : k) * 4096;
            assert_int_equal(
                nosa_extent_store_read_records(store, 9, handle, orders[i], buffers, counts[i]),
                NOSA_OK);
            struct nosa_extent_completion completion = fixture_wait(store, 9);
            assert_int_equal(completion.result, NOSA_EXTENT_OK);
            assert_int_equal(completion.kind, NOSA_EXTENT_READ_RECORDS);
            assert_int_equal(completion.bytes, counts[i] * 4096);
            for (uint32_t k = 0; k < counts[i]; k++)
                assert_true(fixture_record_is(&fixture_geometry, 5, orders[i][k], buffers[k]));
        }
    }
    free(pages);
    close_store(store);
}

static void test_read_summaries(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    char *page = fixture_pages(4096);
    fixture_put(store, 5, 1, 0);
    assert_int_equal(nosa_extent_store_read_summaries(store, 9, fixture_find(store, 5), page),
                     NOSA_OK);
    assert_int_equal(fixture_wait(store, 9).result, NOSA_EXTENT_OK);
    assert_true(fixture_summaries_are(&fixture_geometry, 5, page));
    free(page);
    close_store(store);
}

static void test_read_records_wait_returns_records(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    char *page = fixture_pages(4096);
    struct nosa_extent_completion completion;
    fixture_put(store, 5, 1, 0);
    uint32_t record = 2;
    void *buffer = page;
    struct nosa_extent_handle handle = fixture_find(store, 5);
    assert_int_equal(
        nosa_extent_store_read_records_wait(store, 9, handle, &record, &buffer, 1, &completion),
        NOSA_OK);
    assert_int_equal(completion.result, NOSA_EXTENT_OK);
    assert_true(fixture_record_is(&fixture_geometry, 5, 2, page));
    assert_int_equal(nosa_extent_store_pending(store), 0);
    nosa_extent_store_forget(store, handle);
    assert_int_equal(
        nosa_extent_store_read_records_wait(store, 9, handle, &record, &buffer, 1, &completion),
        NOSA_NOT_FOUND);
    free(page);
    close_store(store);
}

#define BATCH 300 /* more than requests_max */

static void test_read_batch_wait_returns_every_read(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    struct nosa_extent_read *reads = calloc(BATCH, sizeof *reads);
    char *pages = fixture_pages(BATCH * 4096);
    static const uint32_t records[3] = {0, 1, 2};
    void *buffers[BATCH];
    assert_non_null(reads);
    for (uint32_t i = 0; i < 8; i++)
        fixture_put(store, i, 1, 0);
    struct nosa_extent_handle gone = fixture_find(store, 7);
    nosa_extent_store_forget(store, gone);
    for (uint32_t i = 0; i < BATCH; i++) {
        buffers[i] = pages + i * 4096;
        reads[i] =
            (struct nosa_extent_read){.token = i,
                                      .handle = i % 8 == 7 ? gone : fixture_find(store, i % 8),
                                      .records = &records[i % 3],
                                      .buffers = &buffers[i],
                                      .n = 1};
    }
    nosa_extent_store_read_batch_wait(store, reads, BATCH);
    for (uint32_t i = 0; i < BATCH; i++) {
        if (i % 8 == 7) {
            assert_int_equal(reads[i].status, NOSA_NOT_FOUND);
            continue;
        }
        assert_int_equal(reads[i].status, NOSA_OK);
        assert_int_equal(reads[i].completion.result, NOSA_EXTENT_OK);
        assert_int_equal(reads[i].completion.token, i);
        assert_true(fixture_record_is(&fixture_geometry, i % 8, i % 3, buffers[i]));
    }
    assert_int_equal(nosa_extent_store_pending(store), 0);
    free(pages);
    free(reads);
    close_store(store);
}

static void test_reopen_finds_all(void **state)
{
    (void)state;
    struct nosa_extent_store_info info;
    struct nosa_extent_store *store = open_store(70); /* more than a segment */
    for (uint32_t i = 0; i < 66; i++)
        fixture_put(store, 100 + i, 7 + i, 0);
    close_store(store);
    store = open_store(70);
    nosa_extent_store_info(store, &info);
    assert_int_equal(info.recovered, 66);
    assert_int_equal(info.recovered_foreign, 0);
    assert_int_equal(info.use_max, 72);
    assert_false(info.laid_out_anew);
    for (uint32_t i = 0; i < 66; i++)
        assert_int_equal(fixture_get(store, 100 + i), NOSA_EXTENT_OK);
    close_store(store);
}

static void test_reopen_with_other_size_keeps_what_fits(void **state)
{
    (void)state;
    struct nosa_extent_store_info info;
    struct nosa_extent_store *store = open_store(70);
    for (uint32_t i = 0; i < 66; i++)
        assert_int_equal(fixture_put(store, i, i, 0).handle.index, i);
    close_store(store);
    static const uint32_t sizes[] = {65, 200, 10, 64, 70};
    static const uint32_t kept[] = {65, 65, 10, 10, 10};
    for (int k = 0; k < 5; k++) {
        store = open_store(sizes[k]);
        nosa_extent_store_info(store, &info);
        assert_int_equal(info.n_extents, sizes[k]);
        assert_int_equal(info.recovered, kept[k]);
        for (uint32_t i = 0; i < kept[k]; i++)
            assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
        close_store(store);
    }
}

static void test_forget_lasts(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    fixture_put(store, 1, 1, 0);
    fixture_put(store, 2, 1, 0);
    struct nosa_extent_handle handle = fixture_find(store, 1);
    nosa_extent_store_forget(store, handle);
    nosa_extent_store_forget(store, handle);
    assert_false(nosa_extent_store_is_current(store, handle));
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    assert_int_equal(nosa_extent_store_read_image(store, 1, handle, (void *)4096), NOSA_NOT_FOUND);
    fixture_settle(store);
    close_store(store);
    store = open_store(8);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_get(store, 2), NOSA_EXTENT_OK);
    close_store(store);
}

static void test_full_store_evicts_by_use_then_value(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(4);
    fixture_put(store, 1, 10, 0.1F);
    fixture_put(store, 2, 10, 0.9F);
    fixture_put(store, 3, 20, 0.0F);
    fixture_put(store, 4, 30, 0.0F);
    nosa_extent_store_touch(store, fixture_find(store, 1), 10, 1.0F); /* now worth more than 2 */
    assert_int_equal(fixture_put(store, 5, 40, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    nosa_extent_store_touch(store, fixture_find(store, 1), 50, 0);
    assert_int_equal(fixture_put(store, 6, 60, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(fixture_find(store, 3).index, NOSA_EXTENT_NONE);
    static const uint32_t left[] = {1, 4, 5, 6};
    for (int i = 0; i < 4; i++)
        assert_int_equal(fixture_get(store, left[i]), NOSA_EXTENT_OK);
    assert_int_equal(counters_of(store).evicted_extents, 2);
    close_store(store);
    store = open_store(4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(fixture_get(store, left[i]), NOSA_EXTENT_OK);
    close_store(store);
}

static void test_pinned_extents_stay(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(2);
    void *image = fixture_pages(16384);
    fixture_put(store, 1, 1, 0);
    fixture_put(store, 2, 2, 0);
    struct nosa_extent_handle first = fixture_find(store, 1), second = fixture_find(store, 2);
    assert_true(nosa_extent_store_pin(store, first));
    assert_true(nosa_extent_store_pin(store, first));
    assert_int_equal(fixture_put(store, 3, 3, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    assert_false(nosa_extent_store_pin(store, second));
    assert_true(nosa_extent_store_pin(store, fixture_find(store, 3)));
    assert_int_equal(counters_of(store).extents_pinned, 2);
    fixture_fill(&fixture_geometry, 4, image);
    assert_int_equal(fixture_write(store, 4, 4, image, 4, 0), NOSA_RESOURCE_EXHAUSTED);
    assert_int_equal(counters_of(store).refused_full, 1);
    nosa_extent_store_unpin(store, first);
    assert_int_equal(fixture_write(store, 4, 4, image, 4, 0), NOSA_RESOURCE_EXHAUSTED);
    nosa_extent_store_unpin(store, first);
    assert_int_equal(fixture_put(store, 4, 4, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    free(image);
    close_store(store);
}

static void test_forgotten_while_pinned_frees_place_at_unpin(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(1);
    void *image = fixture_pages(16384);
    fixture_put(store, 1, 1, 0);
    struct nosa_extent_handle handle = fixture_find(store, 1);
    assert_true(nosa_extent_store_pin(store, handle));
    nosa_extent_store_forget(store, handle);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    fixture_fill(&fixture_geometry, 2, image);
    assert_int_equal(fixture_write(store, 2, 2, image, 2, 0), NOSA_RESOURCE_EXHAUSTED);
    nosa_extent_store_unpin(store, handle);
    assert_int_equal(fixture_put(store, 2, 2, 0).result, NOSA_EXTENT_OK);
    free(image);
    close_store(store);
}

static void test_many_requests_at_once(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(40);
    char *images = fixture_pages(16 * 16384);
    struct nosa_extent_completion completions[16];
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t i = 0; i < 16; i++) {
            uint32_t number = 16 * round + i;
            fixture_fill(&fixture_geometry, number, images + i * 16384);
            assert_int_equal(fixture_write(store, i, number, images + i * 16384, number, 0),
                             NOSA_OK);
        }
        assert_int_equal(fixture_write(store, 99, 999, images, 0, 0), NOSA_UNAVAILABLE);
        assert_int_equal(nosa_extent_store_pending(store), 16);
        uint32_t done = 0;
        while (done < 16) {
            uint32_t n = nosa_extent_store_poll(store, completions, 16, 5000);
            assert_true(n > 0);
            for (uint32_t i = 0; i < n; i++)
                assert_int_equal(completions[i].result, NOSA_EXTENT_OK);
            done += n;
        }
        for (uint32_t i = 0; i < 16; i++)
            assert_int_equal(nosa_extent_store_read_image(
                                 store, i, fixture_find(store, 16 * round + i), images + i * 16384),
                             NOSA_OK);
        done = 0;
        while (done < 16) {
            uint32_t n = nosa_extent_store_poll(store, completions, 16, 5000);
            assert_true(n > 0);
            for (uint32_t i = 0; i < n; i++) {
                uint32_t token = (uint32_t)completions[i].token;
                assert_int_equal(completions[i].result, NOSA_EXTENT_OK);
                assert_true(fixture_image_is(&fixture_geometry, 16 * round + token,
                                             images + token * 16384));
            }
            done += n;
        }
    }
    struct nosa_extent_store_counters counters = counters_of(store);
    assert_int_equal(counters.writes, 160);
    /* One flush for many: far fewer than the three that each write goes through. */
    assert_true(counters.flushes < 160);
    free(images);
    close_store(store);
}

static void test_other_identity_is_space_only(void **state)
{
    (void)state;
    struct nosa_extent_store_info info;
    struct nosa_extent_store_options options = options_for(4);
    struct nosa_extent_store *store = open_with(&options);
    for (uint32_t i = 1; i <= 4; i++)
        fixture_put(store, i, i, 0);
    close_store(store);
    memset(options.identity, 2, sizeof options.identity);
    store = open_with(&options);
    nosa_extent_store_info(store, &info);
    assert_int_equal(info.recovered, 0);
    assert_int_equal(info.recovered_foreign, 4);
    for (uint32_t i = 1; i <= 4; i++)
        assert_int_equal(fixture_find(store, i).index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_put(store, 1, 9, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(counters_of(store).extents_foreign, 3);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
    close_store(store);
    memset(options.identity, 1, sizeof options.identity);
    store = open_with(&options);
    nosa_extent_store_info(store, &info);
    assert_int_equal(info.recovered, 3);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    for (uint32_t i = 2; i <= 4; i++)
        assert_int_equal(fixture_get(store, i), NOSA_EXTENT_OK);
    close_store(store);
}

static void test_other_geometry_is_laid_out_anew(void **state)
{
    (void)state;
    struct nosa_extent_store_info info;
    struct nosa_extent_store *store = open_store(8);
    fixture_put(store, 1, 1, 0);
    fixture_put(store, 2, 1, 0);
    close_store(store);
    struct nosa_extent_store_options options = options_for(8);
    options.geometry.summary_bytes = 104;
    store = open_with(&options);
    nosa_extent_store_info(store, &info);
    assert_true(info.laid_out_anew);
    assert_int_equal(info.recovered + info.recovered_foreign, 0);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    close_store(store);
    /* And back: what the first layout wrote means nothing any more. */
    store = open_store(8);
    nosa_extent_store_info(store, &info);
    assert_true(info.laid_out_anew);
    assert_int_equal(fixture_find(store, 1).index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_put(store, 1, 1, 0).result, NOSA_EXTENT_OK);
    close_store(store);
    store = open_store(8);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    close_store(store);
}

static void test_write_budget_of_the_day(void **state)
{
    (void)state;
    void *image = fixture_pages(16384);
    struct nosa_extent_store_options options = options_for(8);
    options.write_bytes_per_day = 2 * (16384 + 4096) + 100;
    struct nosa_extent_store *store = open_with(&options);
    fixture_put(store, 1, 1, 0);
    assert_int_equal(counters_of(store).budget_left_bytes, 16384 + 4096 + 100);
    fixture_put(store, 2, 2, 0);
    fixture_fill(&fixture_geometry, 3, image);
    assert_int_equal(fixture_write(store, 3, 3, image, 3, 0), NOSA_RESOURCE_EXHAUSTED);
    assert_int_equal(fixture_write(store, 3, 3, image, 3, 0), NOSA_RESOURCE_EXHAUSTED);
    assert_int_equal(counters_of(store).refused_budget, 2);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK); /* reads go on */
    close_store(store);
    /* A restart does not renew it. */
    store = open_with(&options);
    assert_int_equal(fixture_write(store, 3, 3, image, 3, 0), NOSA_RESOURCE_EXHAUSTED);
    if (!real_method) {
        nosa_manual_clock_advance(&sim.clock, 86400 * NOSA_NS_PER_S);
        assert_int_equal(fixture_put(store, 3, 3, 0).result, NOSA_EXTENT_OK);
    }
    free(image);
    close_store(store);
}

static void test_cancel_before_submission(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    void *image = fixture_pages(16384);
    fixture_put(store, 1, 1, 0);
    assert_int_equal(nosa_extent_store_read_image(store, 7, fixture_find(store, 1), image),
                     NOSA_OK);
    nosa_extent_store_cancel(store, 7);
    struct nosa_extent_completion completion = fixture_wait(store, 7);
    assert_int_equal(completion.result, NOSA_EXTENT_CANCELLED);
    assert_false(completion.buffer_held);
    fixture_fill(&fixture_geometry, 2, image);
    assert_int_equal(fixture_write(store, 8, 2, image, 1, 0), NOSA_OK);
    nosa_extent_store_cancel(store, 8);
    assert_int_equal(fixture_wait(store, 8).result, NOSA_EXTENT_CANCELLED);
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    assert_int_equal(fixture_put(store, 2, 1, 0).result, NOSA_EXTENT_OK);
    assert_int_equal(counters_of(store).cancelled_requests, 2);
    free(image);
    close_store(store);
}

static void test_cancel_under_way_completes_once(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    void *image = fixture_pages(16384);
    fixture_put(store, 1, 1, 0);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(nosa_extent_store_read_image(store, 7, fixture_find(store, 1), image),
                         NOSA_OK);
        nosa_extent_store_submit(store);
        nosa_extent_store_cancel(store, 7);
        struct nosa_extent_completion completion = fixture_wait(store, 7);
        assert_true(completion.result == NOSA_EXTENT_CANCELLED ||
                    completion.result == NOSA_EXTENT_OK);
        assert_false(completion.buffer_held);
        fixture_fill(&fixture_geometry, 2, image);
        assert_int_equal(fixture_write(store, 8, 2, image, 1, 0), NOSA_OK);
        nosa_extent_store_submit(store);
        nosa_extent_store_cancel(store, 8);
        completion = fixture_wait(store, 8);
        bool there = fixture_find(store, 2).index != NOSA_EXTENT_NONE;
        assert_int_equal(there, completion.result == NOSA_EXTENT_OK);
        nosa_extent_store_forget(store, fixture_find(store, 2));
        fixture_settle(store);
    }
    assert_int_equal(nosa_extent_store_pending(store), 0);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
    free(image);
    close_store(store);
}

static void test_close_with_requests_under_way(void **state)
{
    (void)state;
    struct nosa_extent_store *store = open_store(8);
    char *images = fixture_pages(3 * 16384);
    fixture_put(store, 1, 1, 0);
    nosa_extent_store_read_image(store, 2, fixture_find(store, 1), images);
    fixture_fill(&fixture_geometry, 2, images + 16384);
    fixture_write(store, 3, 2, images + 16384, 1, 0);
    nosa_extent_store_submit(store);
    fixture_fill(&fixture_geometry, 3, images + 32768);
    fixture_write(store, 4, 3, images + 32768, 1, 0);
    close_store(store);
    store = open_store(8);
    assert_int_equal(fixture_get(store, 1), NOSA_EXTENT_OK);
    assert_int_equal(fixture_find(store, 2).index, NOSA_EXTENT_NONE);
    free(images);
    close_store(store);
}

static void test_open_refuses_what_it_cannot_use(void **state)
{
    (void)state;
    struct nosa_extent_store *store;
    struct nosa_error error = {0};
    struct nosa_extent_store_options options = options_for(8);
    options.bytes = 4096 + 64 * 4096 + 16383;
    assert_int_equal(nosa_extent_store_open(&options, &store, &error), NOSA_INVALID_ARGUMENT);
    assert_null(store);
    assert_non_null(strstr(error.text, "holds no block"));
    nosa_error_clear(&error);
    options = options_for(8);
    options.geometry.record_bytes = 4000;
    assert_int_equal(nosa_extent_store_open(&options, &store, &error), NOSA_INVALID_ARGUMENT);
    store = open_store(8);
    struct nosa_extent_store *second;
    options = options_for(8);
    nosa_error_clear(&error);
    assert_int_equal(nosa_extent_store_open(&options, &second, &error), NOSA_UNAVAILABLE);
    assert_non_null(strstr(error.text, "in use"));
    assert_int_equal(fixture_put(store, 1, 1, 0).result, NOSA_EXTENT_OK);
    close_store(store);
}

static int run_group(const char *name, const struct nosa_io_method *method)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_then_find_and_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_find_compares_parent_and_tokens, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_of_known_key_exists, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_records_any_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_summaries, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_records_wait_returns_records, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_batch_wait_returns_every_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reopen_finds_all, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reopen_with_other_size_keeps_what_fits, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_forget_lasts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_store_evicts_by_use_then_value, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_pinned_extents_stay, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_forgotten_while_pinned_frees_place_at_unpin, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_many_requests_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_other_identity_is_space_only, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_other_geometry_is_laid_out_anew, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_budget_of_the_day, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cancel_before_submission, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cancel_under_way_completes_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_close_with_requests_under_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_refuses_what_it_cannot_use, set_up, tear_down),
    };
    real_method = method;
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
    int failed = run_group("simulated", NULL) + run_group("threads", &nosa_io_threads);

    /* Where the kernel refuses io_uring, the two others have to do. */
    struct nosa_extent_store *store;
    struct nosa_error error = {0};
    fixture_make_directory(directory);
    real_method = &nosa_io_uring;
    struct nosa_extent_store_options options = options_for(1);
    enum nosa_status status = nosa_extent_store_open(&options, &store, &error);
    nosa_extent_store_close(store);
    fixture_remove_directory(directory);
    if (status == NOSA_UNSUPPORTED)
        printf("skipped the io_uring group: %s\n", error.text);
    else
        failed += run_group("io_uring", &nosa_io_uring);
    return failed;
}
