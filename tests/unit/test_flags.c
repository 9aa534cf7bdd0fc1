#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/flags.h"
#include "base/version.h"
#include "support/alloc_fail.h"

static const char *const modes[] = {"nosa", "infllmv2", "full", NULL};

static const struct nosa_flag model_flags[] = {
    {.name = "model",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DIR",
     .group = "Model",
     .help = "folder of the checkpoint"},
    {.name = "attention",
     .kind = NOSA_FLAG_CHOICE,
     .choices = modes,
     .group = "Model",
     .help = "attention mode"},
    {.name = "host-kv-bytes",
     .kind = NOSA_FLAG_SIZE,
     .default_text = "auto",
     .range.count = {4096, UINT64_C(1) << 40},
     .group = "Model",
     .help = "host memory for KV",
     .unavailable = "there is one tier in this build"},
};

static const struct nosa_flag run_flags[] = {
    {.name = "chat", .kind = NOSA_FLAG_BOOL, .group = "Run", .help = "wrap in the chat format"},
    {.name = "max-tokens",
     .kind = NOSA_FLAG_INT32,
     .default_text = "128",
     .range.integer = {1, 1000000},
     .group = "Run",
     .help = "tokens to generate at most"},
    {.name = "offset", .kind = NOSA_FLAG_INT64, .group = "Run", .help = "any number"},
    {.name = "seed", .kind = NOSA_FLAG_UINT64, .group = "Run", .help = "random seed"},
    {.name = "temperature",
     .kind = NOSA_FLAG_DOUBLE,
     .default_text = "0.5",
     .range.number = {0, 2},
     .group = "Run",
     .help = "randomness"},
    {.name = "threads",
     .kind = NOSA_FLAG_INT32,
     .range.integer = {1, INT32_MAX},
     .group = "Run",
     .help = "threads"},
    {.name = "bytes",
     .kind = NOSA_FLAG_SIZE,
     .range.count = {4096, UINT64_MAX},
     .group = "Run",
     .help = "bytes"},
    {.name = "scale", .kind = NOSA_FLAG_DOUBLE, .group = "Run", .help = "any finite number"},
};

static const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(model_flags),
                                                NOSA_FLAG_TABLE(run_flags)};
static const struct nosa_flags_program program = {.name = "nosa-test",
                                                  .summary = "A program of tests.",
                                                  .usage = "--model DIR [flags]",
                                                  .tables = tables,
                                                  .table_count = 2,
                                                  .positional_max = 2};

#define ARGUMENTS(...)                                                                             \
    (char *[])                                                                                     \
    {                                                                                              \
        "nosa-test", __VA_ARGS__, NULL                                                             \
    }

static struct nosa_flags *parse(char **argv)
{
    int argc = 0;
    struct nosa_flags *flags;
    struct nosa_error error = {0};
    while (argv[argc])
        argc++;
    if (nosa_flags_parse(&flags, &program, argc, argv, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return flags;
}

static void check_error(char **argv, const char *text)
{
    int argc = 0;
    struct nosa_flags *flags;
    struct nosa_error error = {0};
    while (argv[argc])
        argc++;
    if (nosa_flags_parse(&flags, &program, argc, argv, &error) != NOSA_INVALID_ARGUMENT)
        fail_msg("accepted, expected: %s", text);
    assert_null(flags);
    assert_string_equal(error.text, text);
}

static void test_parse_defaults(void **state)
{
    (void)state;
    struct nosa_flags *flags = parse((char *[]){"nosa-test", NULL});
    assert_int_equal(nosa_flags_action(flags), NOSA_FLAGS_RUN);
    assert_null(nosa_flags_string(flags, "model"));
    assert_int_equal(nosa_flags_choice(flags, "attention"), -1);
    assert_null(nosa_flags_choice_text(flags, "attention"));
    assert_true(nosa_flags_size(flags, "host-kv-bytes") == NOSA_FLAG_SIZE_AUTO);
    assert_false(nosa_flags_bool(flags, "chat"));
    assert_int_equal(nosa_flags_int32(flags, "max-tokens"), 128);
    assert_int_equal(nosa_flags_int64(flags, "offset"), 0);
    assert_int_equal(nosa_flags_uint64(flags, "seed"), 0);
    assert_true(nosa_flags_double(flags, "temperature") == 0.5);
    assert_false(nosa_flags_is_set(flags, "max-tokens"));
    assert_int_equal(nosa_flags_positional_count(flags), 0);
    assert_null(nosa_flags_positional(flags, 0));
    assert_null(nosa_flags_next_unavailable(flags, NULL));
    nosa_flags_free(flags);
    nosa_flags_free(NULL);
}

static void test_parse_values(void **state)
{
    (void)state;
    struct nosa_flags *flags =
        parse(ARGUMENTS("--model", "dir", "--attention=full", "--host-kv-bytes", "2G", "--chat",
                        "--max-tokens=7", "--offset", "-9223372036854775808", "--seed",
                        "18446744073709551615", "--temperature", "1e-1", "--scale=-1.5E3"));
    assert_string_equal(nosa_flags_string(flags, "model"), "dir");
    assert_int_equal(nosa_flags_choice(flags, "attention"), 2);
    assert_string_equal(nosa_flags_choice_text(flags, "attention"), "full");
    assert_int_equal(nosa_flags_size(flags, "host-kv-bytes"), UINT64_C(2) << 30);
    assert_true(nosa_flags_bool(flags, "chat"));
    assert_int_equal(nosa_flags_int32(flags, "max-tokens"), 7);
    assert_true(nosa_flags_int64(flags, "offset") == INT64_MIN);
    assert_true(nosa_flags_uint64(flags, "seed") == UINT64_MAX);
    assert_true(nosa_flags_double(flags, "temperature") == 0.1);
    assert_true(nosa_flags_double(flags, "scale") == -1500);
    assert_true(nosa_flags_is_set(flags, "seed"));
    assert_string_equal(nosa_flags_source(flags, "seed"), "--seed");
    nosa_flags_free(flags);
}

static void test_parse_words_and_dashes(void **state)
{
    (void)state;
    struct nosa_flags *flags =
        parse(ARGUMENTS("drain", "--model=--x=y", "--chat=off", "--", "--seed"));
    assert_string_equal(nosa_flags_string(flags, "model"), "--x=y");
    assert_false(nosa_flags_bool(flags, "chat"));
    assert_true(nosa_flags_is_set(flags, "chat"));
    assert_int_equal(nosa_flags_positional_count(flags), 2);
    assert_string_equal(nosa_flags_positional(flags, 0), "drain");
    assert_string_equal(nosa_flags_positional(flags, 1), "--seed");
    assert_null(nosa_flags_positional(flags, 2));
    nosa_flags_free(flags);
    flags = parse(ARGUMENTS("--model", "-", "--offset", "-3", "-"));
    assert_string_equal(nosa_flags_string(flags, "model"), "-");
    assert_int_equal(nosa_flags_int64(flags, "offset"), -3);
    assert_string_equal(nosa_flags_positional(flags, 0), "-");
    nosa_flags_free(flags);
}

static void test_parse_bad_structure(void **state)
{
    (void)state;
    check_error(ARGUMENTS("--bogus"), "unknown flag --bogus (see --help)");
    check_error(ARGUMENTS("--bogus=3"), "unknown flag --bogus (see --help)");
    check_error(ARGUMENTS("--mod", "x"), "unknown flag --mod (see --help)");
    check_error(ARGUMENTS("--=3"), "unknown flag -- (see --help)");
    check_error(ARGUMENTS("-x"), "unknown flag -x (see --help)");
    check_error(ARGUMENTS("--model"), "--model needs a value");
    check_error(ARGUMENTS("--model", "--chat"), "--model needs a value");
    check_error(ARGUMENTS("--seed", "1", "--seed=2"), "--seed is given more than once");
    check_error(ARGUMENTS("--chat", "--chat"), "--chat is given more than once");
    check_error(ARGUMENTS("a", "b", "c\n"), "unexpected argument \"c?\"");
}

static void test_parse_bad_integers(void **state)
{
    (void)state;
    check_error(ARGUMENTS("--max-tokens", "0"), "--max-tokens: 0 is out of range (1 to 1000000)");
    check_error(ARGUMENTS("--max-tokens=-1"), "--max-tokens: -1 is out of range (1 to 1000000)");
    check_error(ARGUMENTS("--max-tokens=4294967297"),
                "--max-tokens: 4294967297 is out of range (1 to 1000000)");
    check_error(ARGUMENTS("--max-tokens=99999999999999999999"),
                "--max-tokens: 99999999999999999999 is out of range (1 to 1000000)");
    check_error(ARGUMENTS("--threads=0"), "--threads: 0 is out of range (1 to 2147483647)");
    check_error(ARGUMENTS("--threads=2147483648"),
                "--threads: 2147483648 is out of range (1 to 2147483647)");
    check_error(ARGUMENTS("--bytes=1"), "--bytes: 1 is out of range (4 KiB to 16.0 EiB)");
    check_error(ARGUMENTS("--bytes=18446744073709551615"),
                "--bytes: 18446744073709551615 is out of range (4 KiB to 16.0 EiB)");
    static char *const bad[] = {"", " 1", "1 ", "+1", "1.0", "0x1", "1e3", "-", "--1", "NaN", "1K"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char argument[64], expected[96];
        snprintf(argument, sizeof argument, "--offset=%s", bad[i]);
        snprintf(expected, sizeof expected, "--offset: \"%s\" is not a whole number", bad[i]);
        check_error(ARGUMENTS(argument), expected);
    }
    check_error(ARGUMENTS("--offset=9223372036854775808"),
                "--offset: 9223372036854775808 is out of range "
                "(-9223372036854775808 to 9223372036854775807)");
    check_error(ARGUMENTS("--seed=-1"), "--seed: -1 is out of range (0 to 18446744073709551615)");
    check_error(ARGUMENTS("--seed=18446744073709551616"),
                "--seed: 18446744073709551616 is out of range (0 to 18446744073709551615)");
}

static void test_parse_bad_doubles(void **state)
{
    (void)state;
    static char *const bad[] = {"",   "nan", "NaN", "inf", "-inf", "1e999", "0x1p3", "1.5x",
                                "1 ", " 1",  "e",   "1e",  ".",    "--1",   "1,5",   "infinity"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char argument[64], expected[96];
        snprintf(argument, sizeof argument, "--scale=%s", bad[i]);
        snprintf(expected, sizeof expected, "--scale: \"%s\" is not a finite number", bad[i]);
        check_error(ARGUMENTS(argument), expected);
    }
    check_error(ARGUMENTS("--temperature=2.1"), "--temperature: 2.1 is out of range (0 to 2)");
    check_error(ARGUMENTS("--temperature=-0.1"), "--temperature: -0.1 is out of range (0 to 2)");
}

static void test_parse_bad_others(void **state)
{
    (void)state;
    check_error(ARGUMENTS("--chat=maybe"), "--chat: \"maybe\" is not true or false");
    check_error(ARGUMENTS("--attention", "Full"),
                "--attention: \"Full\" is not one of nosa, infllmv2, full");
    check_error(ARGUMENTS("--host-kv-bytes", "1.5G"),
                "--host-kv-bytes: \"1.5G\" is not a size (a whole number and K, M, G or T)");
    check_error(ARGUMENTS("--host-kv-bytes", "99999999T"),
                "--host-kv-bytes: \"99999999T\" is too large");
    check_error(ARGUMENTS("--host-kv-bytes", "4095"),
                "--host-kv-bytes: 4095 is out of range (4 KiB to 1 TiB)");
}

static void test_parse_environment(void **state)
{
    (void)state;
    setenv("NOSA_MAX_TOKENS", "9", 1);
    setenv("NOSA_MODEL", "from-environment", 1);
    setenv("NOSA_CHAT", "1", 1);
    struct nosa_flags *flags = parse(ARGUMENTS("--model", "from-argv"));
    assert_int_equal(nosa_flags_int32(flags, "max-tokens"), 9);
    assert_string_equal(nosa_flags_string(flags, "model"), "from-argv");
    assert_true(nosa_flags_bool(flags, "chat"));
    assert_true(nosa_flags_is_set(flags, "max-tokens"));
    assert_string_equal(nosa_flags_source(flags, "max-tokens"),
                        "environment variable NOSA_MAX_TOKENS");
    nosa_flags_free(flags);
    setenv("NOSA_MAX_TOKENS", "many", 1);
    check_error(ARGUMENTS("--chat"),
                "environment variable NOSA_MAX_TOKENS: \"many\" is not a whole number");
    /* argv wins, so the bad variable is not looked at. */
    flags = parse(ARGUMENTS("--max-tokens", "3"));
    assert_int_equal(nosa_flags_int32(flags, "max-tokens"), 3);
    nosa_flags_free(flags);
    unsetenv("NOSA_MAX_TOKENS");
    unsetenv("NOSA_MODEL");
    unsetenv("NOSA_CHAT");
}

static void test_next_unavailable_names_given(void **state)
{
    (void)state;
    struct nosa_flags *flags = parse(ARGUMENTS("--host-kv-bytes", "auto"));
    const struct nosa_flag *flag = nosa_flags_next_unavailable(flags, NULL);
    assert_non_null(flag);
    assert_string_equal(flag->name, "host-kv-bytes");
    assert_null(nosa_flags_next_unavailable(flags, flag));
    nosa_flags_free(flags);
}

static char *print(char **argv)
{
    char *text = NULL;
    size_t size;
    struct nosa_flags *flags = parse(argv);
    FILE *stream = open_memstream(&text, &size);
    assert_non_null(stream);
    nosa_flags_print(flags, stream);
    fclose(stream);
    nosa_flags_free(flags);
    return text;
}

static void test_print_help_from_table(void **state)
{
    (void)state;
    char *text = print(ARGUMENTS("--seed", "bad", "--help"));
    static const char *const expected[] = {
        "Usage: nosa-test --model DIR [flags]\nA program of tests.\n\nModel:\n",
        "  --model DIR                 folder of the checkpoint\n",
        "  --attention nosa|infllmv2|full\n                              attention mode\n",
        "  --host-kv-bytes SIZE        host memory for KV (4 KiB to 1 TiB; default auto) [there",
        "\nRun:\n  --chat                      wrap in the chat format\n",
        "  --max-tokens N              tokens to generate at most (1 to 1000000; default 128)\n",
        "  --temperature X             randomness (0 to 2; default 0.5)\n",
        "  --threads N                 threads (at least 1)\n",
        "  --bytes SIZE                bytes (at least 4 KiB)\n",
        "  --version ",
        "NOSA_MAX_TOKENS",
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(text, expected[i]))
            fail_msg("not in the help: %s\n%s", expected[i], text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        assert_true(strlen(line) <= 100);
    free(text);
    text = print(ARGUMENTS("-h"));
    assert_memory_equal(text, "Usage: ", 7);
    free(text);
}

static void test_print_version(void **state)
{
    (void)state;
    char expected[64];
    snprintf(expected, sizeof expected, "nosa-test %s\n", nosa_version());
    char *text = print(ARGUMENTS("--version"));
    assert_string_equal(text, expected);
    free(text);
    text = print(ARGUMENTS("--model", "-h", "--", "--version"));
    assert_string_equal(text, "");
    free(text);
}

static enum nosa_status parse_all(void *context, struct nosa_error *error)
{
    struct nosa_flags *flags;
    NOSA_TRY(nosa_flags_parse(&flags, &program, 4, context, error));
    nosa_flags_free(flags);
    return NOSA_OK;
}

static void test_parse_without_memory(void **state)
{
    (void)state;
    assert_int_equal(nosa_alloc_fail_sweep(parse_all, ARGUMENTS("--model", "x", "word")), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_defaults),
        cmocka_unit_test(test_parse_values),
        cmocka_unit_test(test_parse_words_and_dashes),
        cmocka_unit_test(test_parse_bad_structure),
        cmocka_unit_test(test_parse_bad_integers),
        cmocka_unit_test(test_parse_bad_doubles),
        cmocka_unit_test(test_parse_bad_others),
        cmocka_unit_test(test_parse_environment),
        cmocka_unit_test(test_next_unavailable_names_given),
        cmocka_unit_test(test_print_help_from_table),
        cmocka_unit_test(test_print_version),
        cmocka_unit_test(test_parse_without_memory),
    };
    return cmocka_run_group_tests_name("flags", tests, NULL, NULL);
}
