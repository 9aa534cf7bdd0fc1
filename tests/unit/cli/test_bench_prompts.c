/* Files of prompts: what is read, and which line is named when one is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench_prompts.h"

static char path[64];

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/nosa-prompts-XXXXXX");
    int descriptor = mkstemp(path);
    return descriptor >= 0 ? close(descriptor) : -1;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_file(const char *bytes)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, strlen(bytes), file), strlen(bytes));
    assert_int_equal(fclose(file), 0);
}

static void test_read_takes_every_line(void **state)
{
    (void)state;
    struct nosa_bench_prompts prompts;
    struct nosa_error error = {0};
    write_file("{\"prompt\": \"one\"}\n"
               "\n  \r\n"
               "{\"prompt\": \"two\\nlines, \\u00e9\", \"output_tokens\": 7, \"other\": [1]}\n"
               "{\"prompt\": \"three\"}\n{\"prompt\": \"four\"}\n{\"prompt\": \"last\"}");
    assert_int_equal(nosa_bench_prompts_read(path, &prompts, &error), NOSA_OK);
    static const char *const texts[] = {"one", "two\nlines, \xc3\xa9", "three", "four", "last"};
    assert_int_equal(prompts.count, 5);
    for (size_t i = 0; i < prompts.count; i++) {
        assert_string_equal(prompts.list[i].text, texts[i]);
        assert_int_equal(prompts.list[i].output_tokens, i == 1 ? 7 : 0);
    }
    nosa_bench_prompts_free(&prompts);
    assert_int_equal(prompts.count, 0);
}

static void test_read_names_the_line_that_is_wrong(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "text",
        "{\"prompt\": 5}",
        "{\"prompt\": \"\"}",
        "{\"text\": \"x\"}",
        "[\"x\"]",
        "{\"prompt\": \"x\", \"output_tokens\": 0}",
        "{\"prompt\": \"x\", \"output_tokens\": -1}",
        "{\"prompt\": \"x\", \"output_tokens\": \"5\"}",
        "{\"prompt\": \"x\", \"output_tokens\": 99999999}",
        "{\"prompt\": \"\\u0000\"}",
        "{\"prompt\": \"\xff\"}",
        "{\"prompt\": \"x\"} more",
        "{\"prompt\": \"x\", \"prompt\": \"y\"}",
        "{",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char bytes[256];
        struct nosa_bench_prompts prompts;
        struct nosa_error error = {0};
        snprintf(bytes, sizeof bytes, "{\"prompt\": \"good\"}\n\n%s\n", bad[i]);
        write_file(bytes);
        assert_int_equal(nosa_bench_prompts_read(path, &prompts, &error), NOSA_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, path));
        assert_non_null(strstr(error.text, "line 3"));
        assert_int_equal(prompts.count, 0);
        assert_null(prompts.list);
    }
}

static void test_read_needs_a_prompt(void **state)
{
    (void)state;
    struct nosa_bench_prompts prompts;
    struct nosa_error error = {0};
    write_file("\n\n");
    assert_int_equal(nosa_bench_prompts_read(path, &prompts, &error), NOSA_INVALID_ARGUMENT);
    nosa_error_clear(&error);
    assert_int_equal(nosa_bench_prompts_read("/nowhere/prompts", &prompts, &error), NOSA_NOT_FOUND);
    assert_non_null(strstr(error.text, "/nowhere/prompts"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_takes_every_line),
        cmocka_unit_test(test_read_names_the_line_that_is_wrong),
        cmocka_unit_test(test_read_needs_a_prompt),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
