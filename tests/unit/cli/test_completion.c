#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "completion.h"

static const char *const colours[] = {"red", "green", NULL};
static const struct nosa_flag paint_flags[] = {
    {.name = "colour", .kind = NOSA_FLAG_CHOICE, .choices = colours, .help = "it's a \\ colour"},
    {.name = "from", .kind = NOSA_FLAG_STRING, .value_name = "FILE", .help = "where: here"},
    {.name = "json", .kind = NOSA_FLAG_BOOL, .help = "print JSON"},
};

/* completion.c's command prints the program's own table. */
const struct nosa_command nosa_commands[] = {
    {.name = "paint", .words = "", .summary = "paint", .flags = paint_flags, .flag_count = 3},
    {.name = "drain", .words = "ID", .summary = "drain"},
    {.name = "cancel", .words = "ID", .summary = "cancel"},
    {.name = "shell", .words = "one|two", .summary = "words", .local = true},
    {0},
};

static char *script(const char *shell)
{
    struct nosa_buffer out = {0};
    assert_int_equal(nosa_completion_script(shell, nosa_commands, &out, NULL), NOSA_OK);
    return nosa_buffer_take(&out);
}

static void test_script_bash(void **state)
{
    (void)state;
    char *text = script("bash");
    assert_non_null(strstr(text, "    paint|drain|cancel|shell|help) command="));
    assert_non_null(strstr(text, "    --colour) choices='red green' ;;\n"));
    assert_non_null(strstr(text, "--from) mapfile"));
    assert_non_null(strstr(text, "    shell) words='one two --help' ;;\n"));
    assert_non_null(strstr(text, "; list=workers ;;\n"));
    assert_non_null(strstr(text, "; list=requests ;;\n"));
    assert_non_null(strstr(text, "--server"));
    free(text);
}

static void test_script_quotes_help(void **state)
{
    (void)state;
    char *text = script("zsh");
    assert_non_null(strstr(text, "'--colour:it'\\''s a \\ colour'"));
    free(text);
    text = script("fish");
    assert_non_null(strstr(text, "-l colour -x -a 'red green' -d 'it\\'s a \\\\ colour'"));
    assert_non_null(strstr(text, "-l from -r -F"));
    assert_non_null(strstr(text, "-l json -d"));
    free(text);
}

static void test_script_unknown_shell(void **state)
{
    (void)state;
    struct nosa_buffer out = {0};
    struct nosa_error error = {0};
    assert_int_equal(nosa_completion_script("tcsh", nosa_commands, &out, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "tcsh"));
    assert_int_equal(out.size, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_script_bash),
        cmocka_unit_test(test_script_quotes_help),
        cmocka_unit_test(test_script_unknown_shell),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
