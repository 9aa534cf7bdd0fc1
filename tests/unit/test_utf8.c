#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"

static int decode(const char *text, size_t size)
{
    uint32_t code_point;
    int length = nosa_utf8_decode(text, size, &code_point);
    if (length <= 0 && size > 0)
        assert_int_equal(code_point, NOSA_UTF8_REPLACEMENT);
    return length;
}

static void test_decode_every_code_point_round_trips(void **state)
{
    (void)state;
    for (uint32_t expected = 0; expected <= 0x10FFFF; expected++) {
        if (expected >= 0xD800 && expected <= 0xDFFF)
            continue;
        char bytes[NOSA_UTF8_LENGTH_MAX];
        uint32_t code_point;
        size_t length = nosa_utf8_encode(expected, bytes);
        if (nosa_utf8_decode(bytes, length, &code_point) != (int)length || code_point != expected)
            fail_msg("U+%04X does not round-trip", expected);
        for (size_t cut = 1; cut < length; cut++)
            if (nosa_utf8_decode(bytes, cut, &code_point) != NOSA_UTF8_INCOMPLETE)
                fail_msg("U+%04X cut at %zu is not incomplete", expected, cut);
    }
}

static void test_decode_invalid_forms(void **state)
{
    (void)state;
    static const char *const invalid[] = {"\x80",
                                          "\xBF",
                                          "\xC0\x80",
                                          "\xC1\xBF",
                                          "\xE0\x80\x80",
                                          "\xE0\x9F\xBF",
                                          "\xED\xA0\x80",
                                          "\xED\xBF\xBF",
                                          "\xF0\x8F\xBF\xBF",
                                          "\xF4\x90\x80\x80",
                                          "\xF5\x80\x80\x80",
                                          "\xFE",
                                          "\xFF",
                                          "\xC3(",
                                          "\xE2\x82(",
                                          "\xF0\x9F\x98("};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++)
        assert_int_equal(decode(invalid[i], strlen(invalid[i])), NOSA_UTF8_INVALID);
    assert_int_equal(decode("", 0), 0);
    assert_int_equal(decode("\0", 1), 1);
}

static void test_decode_incomplete_is_not_invalid(void **state)
{
    (void)state;
    assert_int_equal(decode("\xE2\x82", 2), NOSA_UTF8_INCOMPLETE);
    assert_int_equal(decode("\xED\xA0", 2), NOSA_UTF8_INVALID);
    assert_int_equal(decode("\xF4\x90", 2), NOSA_UTF8_INVALID);
    assert_int_equal(decode("\xF0", 1), NOSA_UTF8_INCOMPLETE);
}

static void test_invalid_length_maximal_subparts(void **state)
{
    (void)state;
    assert_int_equal(nosa_utf8_invalid_length("\x80", 1), 1);
    assert_int_equal(nosa_utf8_invalid_length("\xC0\xAF", 2), 1);
    assert_int_equal(nosa_utf8_invalid_length("\xF0\x9F\x98"
                                              "A",
                                              4),
                     3);
    assert_int_equal(nosa_utf8_invalid_length("\xF1\x80", 2), 2);
    assert_int_equal(nosa_utf8_invalid_length("\xE1\x80\xE2", 3), 2);
}

static void test_encode_not_scalar(void **state)
{
    (void)state;
    char bytes[NOSA_UTF8_LENGTH_MAX];
    assert_int_equal(nosa_utf8_encode(0xD800, bytes), 3);
    assert_memory_equal(bytes, "\xEF\xBF\xBD", 3);
    assert_int_equal(nosa_utf8_encode(0x110000, bytes), 3);
    assert_memory_equal(bytes, "\xEF\xBF\xBD", 3);
}

static void test_valid_prefix_stops_before_bad(void **state)
{
    (void)state;
    static const char text[] = "a\xC3\xA9\xF0\x9F\x98\x80\xFFz";
    assert_int_equal(nosa_utf8_valid_prefix(text, sizeof text - 1), 7);
    assert_false(nosa_utf8_is_valid(text, sizeof text - 1));
    assert_true(nosa_utf8_is_valid(text, 7));
    assert_false(nosa_utf8_is_valid(text, 6));
    assert_true(nosa_utf8_is_valid("", 0));
}

static void test_incomplete_tail_lengths(void **state)
{
    (void)state;
    assert_int_equal(nosa_utf8_incomplete_tail("", 0), 0);
    assert_int_equal(nosa_utf8_incomplete_tail("abc", 3), 0);
    assert_int_equal(nosa_utf8_incomplete_tail("a\xC3", 2), 1);
    assert_int_equal(nosa_utf8_incomplete_tail("a\xC3\xA9", 3), 0);
    assert_int_equal(nosa_utf8_incomplete_tail("\xF0\x9F\x98", 3), 3);
    assert_int_equal(nosa_utf8_incomplete_tail("\xF0\x9F\x98\x80", 4), 0);
    assert_int_equal(nosa_utf8_incomplete_tail("x\xE2\x82", 3), 2);
    /* What no byte can complete is not a beginning. */
    assert_int_equal(nosa_utf8_incomplete_tail("x\x80\x80", 3), 0);
    assert_int_equal(nosa_utf8_incomplete_tail("\xED\xA0", 2), 0);
    assert_int_equal(nosa_utf8_incomplete_tail("\x80\x80\x80\x80", 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_every_code_point_round_trips),
        cmocka_unit_test(test_decode_invalid_forms),
        cmocka_unit_test(test_decode_incomplete_is_not_invalid),
        cmocka_unit_test(test_invalid_length_maximal_subparts),
        cmocka_unit_test(test_encode_not_scalar),
        cmocka_unit_test(test_valid_prefix_stops_before_bad),
        cmocka_unit_test(test_incomplete_tail_lengths),
    };
    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
