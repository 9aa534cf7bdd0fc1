/* Opening with the Nth allocation failing, for every N: OUT_OF_MEMORY, nothing left behind; and
 * nothing is allocated once the store is open. */
#include "extent_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/log.h"
#include "extent_fixture.h"
#include "support/alloc_fail.h"

static char directory[64];
static char *pool;

static enum nosa_status open_and_close(void *context, struct nosa_error *error)
{
    struct nosa_extent_store_options options = fixture_options(directory, 8);
    struct nosa_extent_store *store;
    options.method = context;
    options.pool = pool;
    options.pool_bytes = 4 * 16384;
    enum nosa_status status = nosa_extent_store_open(&options, &store, error);
    nosa_extent_store_close(store);
    return status;
}

static bool is_refused(const struct nosa_io_method *method)
{
    return open_and_close((void *)(uintptr_t)method, NULL) == NOSA_UNSUPPORTED;
}

static void sweep(const struct nosa_io_method *method)
{
    if (is_refused(method))
        skip();
    /* The store, 3 buffers, 8 arrays of extents, 9 of requests and operations; the method's own. */
    assert_true(nosa_alloc_fail_sweep(open_and_close, (void *)(uintptr_t)method) >= 22);
}

static void test_open_on_threads_with_each_allocation_failing(void **state)
{
    (void)state;
    sweep(&nosa_io_threads);
}

static void test_open_on_uring_with_each_allocation_failing(void **state)
{
    (void)state;
    sweep(&nosa_io_uring);
}

static void use(const struct nosa_io_method *method)
{
    struct nosa_extent_store_options options = fixture_options(directory, 8);
    struct nosa_extent_store *store;
    struct nosa_extent_completion completion;

    if (is_refused(method))
        skip();
    options.method = method;
    options.pool = pool;
    options.pool_bytes = 4 * 16384;
    assert_int_equal(nosa_extent_store_open(&options, &store, NULL), NOSA_OK);
    nosa_alloc_fail_arm(0);
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t record = i % 3;
        void *buffer = pool + 16384;
        NOSA_ASSERT(fixture_write(store, 1, i, pool, i, 0) == NOSA_OK);
        while (nosa_extent_store_poll(store, &completion, 1, 1000) == 0)
            continue;
        NOSA_ASSERT(completion.result == NOSA_EXTENT_OK);
        NOSA_ASSERT(nosa_extent_store_read_image(store, 2, completion.handle, pool + 16384) ==
                    NOSA_OK);
        while (nosa_extent_store_poll(store, &completion, 1, 1000) == 0)
            continue;
        NOSA_ASSERT(nosa_extent_store_read_records_wait(store, 3, completion.handle, &record,
                                                        &buffer, 1, &completion) == NOSA_OK);
        NOSA_ASSERT(completion.result == NOSA_EXTENT_OK);
    }
    uint64_t allocations = nosa_alloc_fail_count();
    nosa_alloc_fail_disarm();
    assert_int_equal(allocations, 0);
    assert_int_equal(nosa_extent_store_close(store), 0);
}

static void test_use_on_threads_does_not_allocate(void **state)
{
    (void)state;
    use(&nosa_io_threads);
}

static void test_use_on_uring_does_not_allocate(void **state)
{
    (void)state;
    use(&nosa_io_uring);
}

static int set_up(void **state)
{
    (void)state;
    fixture_make_directory(directory);
    pool = fixture_pages(4 * 16384);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(pool);
    fixture_remove_directory(directory);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_open_on_threads_with_each_allocation_failing, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_open_on_uring_with_each_allocation_failing, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_use_on_threads_does_not_allocate, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_use_on_uring_does_not_allocate, set_up, tear_down),
    };
    const struct nosa_log_options quiet = {.level = NOSA_LOG_ERROR, .descriptor = 2};
    nosa_log_configure(&quiet);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
