/* Readers on other threads beside the owner's own requests, on the real I/O methods: every record
 * is exact, and every request completes where it was made. */
#include "extent_store.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/log.h"
#include "extent_fixture.h"
#include "support/io_sim.h"

#define READERS 3
#define READS   400
#define KEPT    8  /* blocks that stay */
#define EXTENTS 16 /* the rest is written over and over */

static char directory[64];

struct reader {
    struct nosa_extent_store *store;
    uint64_t random;
    uint32_t wrong;
    uint32_t refused;
};

static void *read_records(void *argument)
{
    struct reader *self = argument;
    char *pages = aligned_alloc(4096, 2 * 4096);

    for (int i = 0; pages && i < READS; i++) {
        uint32_t number = io_sim_below(&self->random, KEPT);
        uint32_t first = io_sim_below(&self->random, 2);
        uint32_t records[] = {first, first + 1};
        void *buffers[] = {pages, pages + 4096};
        struct nosa_extent_completion completion;
        enum nosa_status status = nosa_extent_store_read_records_wait(
            self->store, 1000, fixture_find(self->store, number), records, buffers, 2, &completion);
        if (status == NOSA_UNAVAILABLE) {
            self->refused++;
            continue;
        }
        self->wrong += status != NOSA_OK || completion.result != NOSA_EXTENT_OK ||
                       !fixture_record_is(&fixture_geometry, number, first, pages) ||
                       !fixture_record_is(&fixture_geometry, number, first + 1, pages + 4096);
    }
    free(pages);
    return NULL;
}

static void test_readers(const struct nosa_io_method *method)
{
    struct nosa_extent_store_options options = fixture_options(directory, EXTENTS);
    struct nosa_extent_store *store;
    struct reader readers[READERS];
    pthread_t threads[READERS];
    struct nosa_extent_completion completion;
    char *image = fixture_pages(16384);

    options.method = method;
    if (nosa_extent_store_open(&options, &store, NULL) == NOSA_UNSUPPORTED) {
        free(image);
        skip();
    }
    for (uint32_t i = 0; i < KEPT; i++) {
        fixture_put(store, i, 1, 0);
        assert_true(nosa_extent_store_pin(store, fixture_find(store, i)));
    }
    for (uint32_t i = 0; i < READERS; i++) {
        readers[i] = (struct reader){.store = store, .random = i};
        assert_int_equal(pthread_create(&threads[i], NULL, read_records, &readers[i]), 0);
    }
    for (uint32_t i = 0; i < 150; i++) {
        uint32_t number = 100 + i;
        fixture_fill(&fixture_geometry, number, image);
        enum nosa_status status = fixture_write(store, number, number, image, i, 0);
        if (status == NOSA_UNAVAILABLE)
            continue;
        assert_int_equal(status, NOSA_OK);
        completion = fixture_wait(store, number);
        assert_int_equal(completion.result, NOSA_EXTENT_OK);
        assert_int_equal(fixture_get(store, number), NOSA_EXTENT_OK);
    }
    for (uint32_t i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, 0);
        assert_true(readers[i].refused < READS);
    }
    assert_int_equal(nosa_extent_store_pending(store), 0);
    assert_int_equal(nosa_extent_store_close(store), 0);
    free(image);
}

static int set_up(void **state)
{
    (void)state;
    fixture_make_directory(directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_remove_directory(directory);
    return 0;
}

static void test_readers_beside_owner_on_threads(void **state)
{
    (void)state;
    test_readers(&nosa_io_threads);
}

static void test_readers_beside_owner_on_uring(void **state)
{
    (void)state;
    test_readers(&nosa_io_uring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_readers_beside_owner_on_threads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_readers_beside_owner_on_uring, set_up, tear_down),
    };
    const struct nosa_log_options quiet = {.level = NOSA_LOG_ERROR, .descriptor = 2};
    nosa_log_configure(&quiet);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
