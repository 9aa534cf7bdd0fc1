#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/status.h"

static void test_error_set_keeps_first(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    assert_int_equal(nosa_error_set(&error, NOSA_CORRUPT, "first %d", 1), NOSA_CORRUPT);
    assert_int_equal(nosa_error_set(&error, NOSA_IO_ERROR, "second"), NOSA_IO_ERROR);
    assert_int_equal(error.status, NOSA_CORRUPT);
    assert_string_equal(error.text, "first 1");
    nosa_error_clear(&error);
    assert_int_equal(error.status, NOSA_OK);
    assert_string_equal(error.text, "");
}

static void test_error_set_null(void **state)
{
    (void)state;
    assert_int_equal(nosa_error_set(NULL, NOSA_NOT_FOUND, "x"), NOSA_NOT_FOUND);
    nosa_error_clear(NULL);
    assert_int_equal(nosa_error_prefix(NULL, "x"), NOSA_INTERNAL);
}

static void test_error_set_one_line(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    nosa_error_set(&error, NOSA_CORRUPT, "a\nb\tc\x7f");
    assert_string_equal(error.text, "a?b?c?");
}

static void test_error_set_long_is_cut(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    char text[2 * NOSA_ERROR_TEXT_MAX];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    nosa_error_set(&error, NOSA_CORRUPT, "%s", text);
    assert_int_equal(strlen(error.text), NOSA_ERROR_TEXT_MAX - 1);
    assert_int_equal(nosa_error_prefix(&error, "file"), NOSA_CORRUPT);
    assert_memory_equal(error.text, "file: xxx", 9);
    assert_true(strlen(error.text) < NOSA_ERROR_TEXT_MAX);
}

static void test_error_prefix_names_outer(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    assert_int_equal(nosa_error_prefix(&error, "unset"), NOSA_OK);
    assert_string_equal(error.text, "");
    nosa_error_set(&error, NOSA_NOT_FOUND, "no such tensor");
    assert_int_equal(nosa_error_prefix(&error, "%s", "a.safetensors"), NOSA_NOT_FOUND);
    assert_string_equal(error.text, "a.safetensors: no such tensor");
}

static void test_status_name_all(void **state)
{
    (void)state;
    for (int i = NOSA_OK; i <= NOSA_INTERNAL; i++)
        assert_string_not_equal(nosa_status_name((enum nosa_status)i), "UNKNOWN");
    assert_string_equal(nosa_status_name(NOSA_DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED");
    assert_string_equal(nosa_status_name((enum nosa_status)99), "UNKNOWN");
}

static void test_status_exit_code_tells_whose_fault(void **state)
{
    (void)state;
    assert_int_equal(nosa_status_exit_code(NOSA_OK), 0);
    assert_int_equal(nosa_status_exit_code(NOSA_INVALID_ARGUMENT), 2);
    assert_int_equal(nosa_status_exit_code(NOSA_NOT_FOUND), 2);
    assert_int_equal(nosa_status_exit_code(NOSA_IO_ERROR), 2);
    assert_int_equal(nosa_status_exit_code(NOSA_OUT_OF_MEMORY), 1);
    assert_int_equal(nosa_status_exit_code(NOSA_INTERNAL), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_set_keeps_first),
        cmocka_unit_test(test_error_set_null),
        cmocka_unit_test(test_error_set_one_line),
        cmocka_unit_test(test_error_set_long_is_cut),
        cmocka_unit_test(test_error_prefix_names_outer),
        cmocka_unit_test(test_status_name_all),
        cmocka_unit_test(test_status_exit_code_tells_whose_fault),
    };
    return cmocka_run_group_tests_name("status", tests, NULL, NULL);
}
