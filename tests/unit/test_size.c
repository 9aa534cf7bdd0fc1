#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/size.h"

static uint64_t parse(const char *text)
{
    uint64_t bytes = 1;
    struct nosa_error error = {0};
    if (nosa_size_parse(text, &bytes, &error) != NOSA_OK)
        fail_msg("%s: %s", text, error.text);
    return bytes;
}

static void test_parse_suffixes(void **state)
{
    (void)state;
    assert_int_equal(parse("0"), 0);
    assert_int_equal(parse("4096"), 4096);
    assert_int_equal(parse("4096B"), 4096);
    assert_int_equal(parse("3K"), 3 * 1024);
    assert_int_equal(parse("3k"), 3 * 1024);
    assert_int_equal(parse("512M"), UINT64_C(512) << 20);
    assert_int_equal(parse("512MiB"), UINT64_C(512) << 20);
    assert_int_equal(parse("2GB"), UINT64_C(2) << 30);
    assert_int_equal(parse("1T"), UINT64_C(1) << 40);
    assert_int_equal(parse("18446744073709551615"), UINT64_MAX);
    assert_int_equal(parse("16777215T"), UINT64_C(16777215) << 40);
}

static void test_parse_bad_values(void **state)
{
    (void)state;
    static const char *const bad[] = {"",          "K",
                                      "-1",        "+1",
                                      "1.5G",      "1 G",
                                      "1X",        "1KK",
                                      "1Ki",       "0x10",
                                      " 1",        "18446744073709551616",
                                      "16777216T", "99999999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t bytes;
        struct nosa_error error = {0};
        if (nosa_size_parse(bad[i], &bytes, &error) != NOSA_INVALID_ARGUMENT)
            fail_msg("\"%s\" was accepted", bad[i]);
        assert_non_null(strstr(error.text, bad[i]));
    }
}

static void test_format_units(void **state)
{
    (void)state;
    char text[NOSA_SIZE_TEXT_MAX];
    assert_string_equal(nosa_size_format(0, text), "0 B");
    assert_string_equal(nosa_size_format(1023, text), "1023 B");
    assert_string_equal(nosa_size_format(1024, text), "1 KiB");
    assert_string_equal(nosa_size_format(UINT64_C(3) << 29, text), "1.5 GiB");
    assert_string_equal(nosa_size_format(UINT64_MAX, text), "16.0 EiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_suffixes),
        cmocka_unit_test(test_parse_bad_values),
        cmocka_unit_test(test_format_units),
    };
    return cmocka_run_group_tests_name("size", tests, NULL, NULL);
}
