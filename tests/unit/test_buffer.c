#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "support/alloc_fail.h"

static void test_append_grows(void **state)
{
    (void)state;
    struct nosa_buffer buffer = {0};
    char expected[5000];
    for (size_t i = 0; i < sizeof expected; i++) {
        expected[i] = (char)('a' + i % 26);
        assert_int_equal(nosa_buffer_append(&buffer, &expected[i], 1), NOSA_OK);
        assert_int_equal(buffer.data[buffer.size], '\0');
    }
    assert_int_equal(buffer.size, sizeof expected);
    assert_memory_equal(buffer.data, expected, sizeof expected);
    nosa_buffer_free(&buffer);
    assert_null(buffer.data);
}

static void test_printf_and_take(void **state)
{
    (void)state;
    struct nosa_buffer buffer = {0};
    assert_int_equal(nosa_buffer_append(&buffer, NULL, 0), NOSA_OK);
    assert_string_equal(buffer.data, "");
    assert_int_equal(nosa_buffer_append_text(&buffer, "x="), NOSA_OK);
    assert_int_equal(nosa_buffer_printf(&buffer, "%d,%0100d", 5, 6), NOSA_OK);
    assert_int_equal(buffer.size, 104);
    char *text = nosa_buffer_take(&buffer);
    assert_memory_equal(text, "x=5,000", 7);
    assert_int_equal(strlen(text), 104);
    free(text);
    assert_null(buffer.data);
    text = nosa_buffer_take(&buffer);
    assert_string_equal(text, "");
    free(text);
}

static void test_reset_keeps_memory(void **state)
{
    (void)state;
    struct nosa_buffer buffer = {0};
    nosa_buffer_append_text(&buffer, "something");
    const char *data = buffer.data;
    nosa_buffer_reset(&buffer);
    assert_int_equal(buffer.size, 0);
    assert_string_equal(buffer.data, "");
    nosa_buffer_append_text(&buffer, "else");
    assert_ptr_equal(buffer.data, data);
    nosa_buffer_free(&buffer);
}

static void test_append_without_memory(void **state)
{
    (void)state;
    struct nosa_buffer buffer = {0};
    nosa_buffer_append_text(&buffer, "kept");
    nosa_alloc_fail_arm(1);
    char large[500];
    memset(large, 'x', sizeof large);
    enum nosa_status status = nosa_buffer_append(&buffer, large, sizeof large);
    nosa_alloc_fail_disarm();
    assert_int_equal(status, NOSA_OUT_OF_MEMORY);
    assert_true(nosa_buffer_failed(&buffer));
    assert_string_equal(buffer.data, "kept");
    assert_null(nosa_buffer_take(&buffer));
    assert_null(buffer.data);
    assert_false(nosa_buffer_failed(&buffer));
    assert_int_equal(nosa_buffer_reserve(&buffer, SIZE_MAX), NOSA_OUT_OF_MEMORY);
    assert_true(nosa_buffer_failed(&buffer));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_grows),
        cmocka_unit_test(test_printf_and_take),
        cmocka_unit_test(test_reset_keeps_memory),
        cmocka_unit_test(test_append_without_memory),
    };
    return cmocka_run_group_tests_name("buffer", tests, NULL, NULL);
}
