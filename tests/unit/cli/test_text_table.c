#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text_table.h"

static const struct nosa_table_column columns[] = {
    {"NAME", false, 4},
    {"N", true, 0},
    {"NOTE", false, 4},
};

/* A table of two rows, printed. */
static char *print(uint32_t width_max, uint32_t rows_max)
{
    struct nosa_table table = {.columns = columns, .column_count = 3};
    struct nosa_buffer out = {0};
    nosa_table_cell(&table, "a name that is long");
    nosa_table_cell(&table, "%d", 7);
    nosa_table_cell(&table, "%s", "");
    nosa_table_cell(&table, "b");
    nosa_table_cell(&table, "%d", 1234);
    nosa_table_cell(&table, "%s", "all is well");
    assert_int_equal(nosa_table_print(&table, width_max, rows_max, &out), NOSA_OK);
    nosa_table_free(&table);
    return nosa_buffer_take(&out);
}

static void test_table_print_aligns(void **state)
{
    (void)state;
    char *text = print(UINT32_MAX, UINT32_MAX);
    assert_string_equal(text, "NAME                    N  NOTE\n"
                              "a name that is long     7\n"
                              "b                    1234  all is well\n");
    free(text);
    text = print(UINT32_MAX, 1);
    assert_string_equal(text, "NAME                 N  NOTE\n"
                              "a name that is long  7\n");
    free(text);
    text = print(UINT32_MAX, 0);
    assert_string_equal(text, "NAME  N  NOTE\n");
    free(text);
}

static void test_table_print_cuts(void **state)
{
    (void)state;
    char *text = print(24, UINT32_MAX);
    assert_string_equal(text, "NAME         N  NOTE\n"
                              "a name ~     7\n"
                              "b         1234  all is ~\n");
    free(text);
    for (uint32_t width = 0; width < 60; width++) {
        text = print(width, UINT32_MAX);
        for (const char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
            assert_true(strlen(line) <= width);
            assert_true(line[0] == '\0' || line[strlen(line) - 1] != ' ');
        }
        free(text);
    }
}

static void test_text_append_cut_characters(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t width;
        const char *out;
        size_t columns;
    } cases[] = {
        {"plain", 9, "plain", 5},
        {"plain", 5, "plain", 5},
        {"plain", 4, "pla~", 4},
        {"plain", 1, "~", 1},
        {"plain", 0, "", 0},
        {"caf\xC3\xA9s", 5, "caf\xC3\xA9s", 5},
        {"caf\xC3\xA9s", 4, "caf~", 4},
        {"a\033[31m\n", 9, "a?[31m?", 7},
        {"\xC2\x9B"
         "31m",
         9, "?31m", 4},
        {"\xFF\xC3", 9, "??", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nosa_buffer out = {0};
        size_t shown = nosa_text_append_cut(&out, cases[i].text, cases[i].width);
        assert_int_equal(shown, cases[i].columns);
        char *text = nosa_buffer_take(&out);
        assert_string_equal(text, cases[i].out);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_print_aligns),
        cmocka_unit_test(test_table_print_cuts),
        cmocka_unit_test(test_text_append_cut_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
