#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "rpc/code.h"

static void test_name(void **state)
{
    (void)state;
    assert_string_equal(nosa_rpc_code_name(NOSA_RPC_OK), "OK");
    assert_string_equal(nosa_rpc_code_name(NOSA_RPC_RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED");
    assert_string_equal(nosa_rpc_code_name(NOSA_RPC_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(nosa_rpc_code_name((enum nosa_rpc_code)17), "UNKNOWN");
    assert_string_equal(nosa_rpc_code_name((enum nosa_rpc_code) - 1), "UNKNOWN");
}

/* No error becomes OK in either direction, and what both sides have comes back as it went. */
static void test_round_trip(void **state)
{
    (void)state;
    for (int status = NOSA_OK; status <= NOSA_INTERNAL; status++) {
        enum nosa_rpc_code code = nosa_rpc_code_from_status((enum nosa_status)status);
        assert_int_equal(code == NOSA_RPC_OK, status == NOSA_OK);
    }
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++)
        assert_int_equal(nosa_rpc_code_to_status((enum nosa_rpc_code)code) == NOSA_OK, code == 0);
    static const enum nosa_status both[] = {
        NOSA_INVALID_ARGUMENT, NOSA_NOT_FOUND,         NOSA_RESOURCE_EXHAUSTED, NOSA_UNAVAILABLE,
        NOSA_CANCELLED,        NOSA_DEADLINE_EXCEEDED, NOSA_INTERNAL,
    };
    for (size_t i = 0; i < sizeof both / sizeof both[0]; i++)
        assert_int_equal(nosa_rpc_code_to_status(nosa_rpc_code_from_status(both[i])), both[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_name),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
