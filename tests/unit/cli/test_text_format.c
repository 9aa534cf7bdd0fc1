#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text_format.h"

static void test_format_count_fits(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {0, "0"},          {1, "1"},        {9.5, "9.5"},    {9.96, "10"},  {87, "87"},
        {999, "999"},      {999.6, "1.0k"}, {1234, "1.2k"},  {9960, "10k"}, {12345, "12k"},
        {999400, "999k"},  {1e6, "1.0M"},   {34.4e6, "34M"}, {5e9, "5.0G"}, {2e12, "2.0T"},
        {1e308 * 10, "-"}, {-3.25, "-3.2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[NOSA_FORMAT_MAX];
        assert_string_equal(nosa_format_count(cases[i].value, text), cases[i].text);
    }
}

static void test_format_duration_units(void **state)
{
    (void)state;
    static const struct {
        uint64_t ms;
        const char *text;
    } cases[] = {
        {0, "0ms"},
        {999, "999ms"},
        {1000, "1.0s"},
        {9999, "9.9s"},
        {10000, "10s"},
        {59999, "59s"},
        {60000, "1m00s"},
        {3599999, "59m59s"},
        {3600000, "1h00m"},
        {86399999, "23h59m"},
        {86400000, "1d0h"},
        {1048000000, "12d3h"},
        {UINT64_MAX, "213503982334d14h"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[NOSA_FORMAT_MAX];
        assert_string_equal(nosa_format_duration(cases[i].ms, text), cases[i].text);
    }
}

static void test_format_latency_and_share(void **state)
{
    (void)state;
    char text[NOSA_FORMAT_MAX];
    assert_string_equal(nosa_format_latency(0, text), "0.0 ms");
    assert_string_equal(nosa_format_latency(8.14, text), "8.1 ms");
    assert_string_equal(nosa_format_latency(340.4, text), "340 ms");
    assert_string_equal(nosa_format_latency(12500, text), "12.5 s");
    assert_string_equal(nosa_format_latency(1e308 * 10, text), "-");
    assert_string_equal(nosa_format_share(45, 100, text), "45%");
    assert_string_equal(nosa_format_share(0, 0, text), "-");
    assert_string_equal(nosa_format_share(UINT64_MAX, UINT64_MAX, text), "100%");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_count_fits),
        cmocka_unit_test(test_format_duration_units),
        cmocka_unit_test(test_format_latency_and_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
