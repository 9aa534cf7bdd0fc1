#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model/checkpoint.h"
#include "support/alloc_fail.h"
#include "support/tiny_checkpoint.h"

static enum nosa_status open_and_close(void *context, struct nosa_error *error)
{
    struct nosa_checkpoint *checkpoint = NULL;
    enum nosa_status status = nosa_checkpoint_open(context, &checkpoint, error);
    if (status != NOSA_OK)
        assert_null(checkpoint);
    nosa_checkpoint_close(checkpoint);
    return status;
}

static void sweep(uint32_t n_shards)
{
    char folder[] = "/tmp/nosa-test-alloc-XXXXXX";
    struct nosa_tiny_checkpoint tiny;
    struct nosa_error error;
    nosa_error_clear(&error);
    assert_non_null(mkdtemp(folder));
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.n_shards = n_shards;
    tiny.attention_bias = true;
    if (nosa_tiny_checkpoint_write(folder, &tiny, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    int allocations = nosa_alloc_fail_sweep(open_and_close, folder);
    nosa_tiny_checkpoint_remove(folder);
    /* Each tensor's header entry alone takes several. */
    assert_true(allocations > 200);
}

static void test_open_allocation_failures(void **state)
{
    (void)state;
    sweep(1);
}

static void test_open_allocation_failures_sharded(void **state)
{
    (void)state;
    sweep(3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_allocation_failures),
        cmocka_unit_test(test_open_allocation_failures_sharded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
