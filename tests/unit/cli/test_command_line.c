#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "command_line.h"

static int run_nothing(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error)
{
    (void)connection;
    (void)flags;
    (void)error;
    return NOSA_EXIT_OK;
}

static const struct nosa_flag list_flags[] = {{.name = "json", .kind = NOSA_FLAG_BOOL}};
static const struct nosa_flag ask_flags[] = {
    {.name = "json", .kind = NOSA_FLAG_BOOL},
    {.name = "prompt", .kind = NOSA_FLAG_STRING},
};
static const struct nosa_command commands[] = {
    {.name = "list", .words = "", .flags = list_flags, .flag_count = 1, .run = run_nothing},
    {.name = "ask", .words = "", .flags = ask_flags, .flag_count = 2, .run = run_nothing},
    {.name = "drain", .words = "ID", .run = run_nothing},
    {0},
};

static const char *word_of(int argc, const char *const *argv)
{
    return nosa_command_word(commands, argc, (char *const *)(uintptr_t)argv);
}

static void test_command_word_anywhere(void **state)
{
    (void)state;
    static const struct {
        const char *argv[8];
        int argc;
        const char *word;
    } cases[] = {
        {{"nosactl"}, 1, NULL},
        {{"nosactl", "list"}, 2, "list"},
        {{"nosactl", "--json", "list"}, 3, "list"},
        {{"nosactl", "--server", "a:1", "list"}, 4, "list"},
        {{"nosactl", "--server=a:1", "list"}, 3, "list"},
        {{"nosactl", "--prompt", "list", "ask"}, 4, "ask"},
        {{"nosactl", "--unknown", "list"}, 3, "list"},
        {{"nosactl", "--server"}, 2, NULL},
        {{"nosactl", "-h"}, 2, NULL},
        {{"nosactl", "--", "drain"}, 3, "drain"},
        {{"nosactl", "--"}, 2, NULL},
        {{"nosactl", "-"}, 2, "-"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *word = word_of(cases[i].argc, cases[i].argv);
        if (cases[i].word)
            assert_string_equal(word, cases[i].word);
        else
            assert_null(word);
    }
}

static void test_command_find_by_name(void **state)
{
    (void)state;
    assert_ptr_equal(nosa_command_find(commands, "ask"), &commands[1]);
    assert_null(nosa_command_find(commands, "as"));
    assert_null(nosa_command_find(commands, ""));
}

static void test_command_suggest_near(void **state)
{
    (void)state;
    assert_string_equal(nosa_command_suggest(commands, "lits"), "list");
    assert_string_equal(nosa_command_suggest(commands, "drian"), "drain");
    assert_string_equal(nosa_command_suggest(commands, "asks"), "ask");
    assert_null(nosa_command_suggest(commands, "generate"));
    assert_null(nosa_command_suggest(commands, ""));
    char longest[200];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_null(nosa_command_suggest(commands, longest));
}

static void test_exit_code_of_codes(void **state)
{
    (void)state;
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_OK), 0);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_INTERNAL), 1);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_INVALID_ARGUMENT), 2);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_UNAVAILABLE), 3);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_NOT_FOUND), 4);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_RESOURCE_EXHAUSTED), 5);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_FAILED_PRECONDITION), 5);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_DEADLINE_EXCEEDED), 6);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_UNAUTHENTICATED), 7);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_PERMISSION_DENIED), 7);
    assert_int_equal(nosa_exit_from_code(NOSA_RPC_CANCELLED), 8);
    assert_int_equal(nosa_exit_from_status(NOSA_NOT_FOUND), 2); /* a file of ours */
    assert_int_equal(nosa_exit_from_status(NOSA_OUT_OF_MEMORY), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_command_word_anywhere),
        cmocka_unit_test(test_command_find_by_name),
        cmocka_unit_test(test_command_suggest_near),
        cmocka_unit_test(test_exit_code_of_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
