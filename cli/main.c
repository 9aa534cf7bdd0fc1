/*
 * nosactl: watches and steers a cluster, and generates through it.
 *
 *     nosactl COMMAND [words] [flags]      flags may stand before the command as well
 *
 * exit_code.h has the exit codes.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "admin.h"
#include "base/log.h"
#include "base/version.h"
#include "bench.h"
#include "command.h"
#include "command_line.h"
#include "completion.h"
#include "generate.h"
#include "top.h"

#define FLAGS(table) .flags = (table), .flag_count = sizeof(table) / sizeof *(table)

const struct nosa_command nosa_commands[] = {
    {.name = "workers",
     .words = "",
     .summary = "list the workers that a coordinator knows",
     FLAGS(nosa_admin_list_flags),
     .run = nosa_admin_workers},
    {.name = "status",
     .words = "",
     .summary = "a coordinator's own account: readiness, rates, totals",
     FLAGS(nosa_admin_json_flags),
     .run = nosa_admin_status},
    {.name = "requests",
     .words = "",
     .summary = "list the requests that run or wait",
     FLAGS(nosa_admin_list_flags),
     .run = nosa_admin_requests},
    {.name = "top",
     .words = "",
     .summary = "watch all of these, live",
     FLAGS(nosa_top_flags),
     .run = nosa_top},
    {.name = "cancel",
     .words = "ID",
     .summary = "end a request",
     .words_min = 1,
     .words_max = 1,
     FLAGS(nosa_admin_json_flags),
     .run = nosa_admin_cancel},
    {.name = "drain",
     .words = "ID",
     .summary = "give a worker no new work; its streams finish or move",
     .words_min = 1,
     .words_max = 1,
     FLAGS(nosa_admin_drain_flags),
     .run = nosa_admin_drain},
    {.name = "resume",
     .words = "ID",
     .summary = "give a drained worker work again",
     .words_min = 1,
     .words_max = 1,
     FLAGS(nosa_admin_json_flags),
     .run = nosa_admin_resume},
    {.name = "generate",
     .words = "",
     .summary = "generate text, and stream it",
     FLAGS(nosa_generate_request_flags),
     .run = nosa_generate},
    {.name = "bench",
     .words = "",
     .summary = "load the server and measure how it holds up",
     FLAGS(nosa_bench_flags),
     .run = nosa_bench_command},
    {.name = "completion",
     .words = "bash|zsh|fish",
     .summary = "print a script that completes commands and flags in a shell",
     .words_min = 1,
     .words_max = 1,
     .local = true,
     .run = nosa_completion},
    {0},
};

static void help(FILE *stream)
{
    fputs("Usage: nosactl COMMAND [flags]\n"
          "Watches and steers a cluster, and generates through it.\n\nCommands:\n",
          stream);
    for (const struct nosa_command *command = nosa_commands; command->name; command++) {
        char synopsis[64];
        snprintf(synopsis, sizeof synopsis, "%s%s%s", command->name, *command->words ? " " : "",
                 command->words);
        fprintf(stream, "  %-28s%s\n", synopsis, command->summary);
    }
    fputs("  help [COMMAND]              print this, or a command's flags\n\n"
          "nosactl COMMAND --help prints a command's flags. Every flag can also be set in the\n"
          "environment: --server as NOSA_SERVER.\n\n"
          "Exit codes: 0 done; 1 failed; 2 wrong usage or field; 3 no server or no worker;\n"
          "4 not found; 5 refused; 6 --timeout is over; 7 not allowed; 8 cancelled by others;\n"
          "130 interrupted by Ctrl-C.\n",
          stream);
}

/* The flags of a command as a program of its own. */
static void describe(const struct nosa_command *command, struct nosa_flag_table tables[2],
                     char name[64], char usage[96], struct nosa_flags_program *program)
{
    snprintf(name, 64, "nosactl %s", command->name);
    snprintf(usage, 96, "%s%s[flags]", command->words, *command->words ? " " : "");
    tables[0] = (struct nosa_flag_table){command->flags, command->flag_count};
    tables[1] = (struct nosa_flag_table){nosa_connection_flags, nosa_connection_flag_count};
    *program = (struct nosa_flags_program){
        .name = name,
        .summary = command->summary,
        .usage = usage,
        .tables = tables,
        .table_count = command->local ? 1 : 2,
        .positional_max = 1 + command->words_max,
    };
}

static int run(const struct nosa_command *command, const struct nosa_flags *flags,
               struct nosa_error *error)
{
    int words = nosa_flags_positional_count(flags) - 1;
    if (words < command->words_min) {
        nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s needs %s (see nosactl %s --help)",
                       command->name, command->words, command->name);
        return NOSA_EXIT_USAGE;
    }
    if (command->local)
        return command->run(NULL, flags, error);
    struct nosa_connection connection;
    enum nosa_status status = nosa_connection_open(&connection, flags, error);
    if (status != NOSA_OK)
        return (int)nosa_exit_from_status(status);
    int code = command->run(&connection, flags, error);
    nosa_connection_close(&connection);
    return code;
}

static int parse_and_run(const struct nosa_command *command, int argc, char **argv,
                         struct nosa_error *error)
{
    struct nosa_flag_table tables[2];
    char name[64], usage[96];
    struct nosa_flags_program program;
    struct nosa_flags *flags;
    describe(command, tables, name, usage, &program);
    enum nosa_status status = nosa_flags_parse(&flags, &program, argc, argv, error);
    if (status != NOSA_OK)
        return (int)nosa_exit_from_status(status);
    int code = NOSA_EXIT_OK;
    if (nosa_flags_action(flags) == NOSA_FLAGS_HELP)
        nosa_flags_print(flags, stdout);
    else if (nosa_flags_action(flags) == NOSA_FLAGS_VERSION)
        printf("nosactl %s\n", nosa_version());
    else
        code = run(command, flags, error);
    nosa_flags_free(flags);
    return code;
}

/* `nosactl help [COMMAND]`, and argv without a command. Returns false when `word` is neither. */
static bool run_builtin(const char *word, int argc, char **argv, int *code)
{
    bool version = false, asked = word && strcmp(word, "help") == 0;
    for (int i = 1; i < argc && !word; i++) {
        version = version || strcmp(argv[i], "--version") == 0;
        asked = asked || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    }
    if (version && !asked) {
        printf("nosactl %s\n", nosa_version());
        *code = NOSA_EXIT_OK;
        return true;
    }
    if (!asked)
        return false;
    const struct nosa_command *command =
        argc == 3 && word ? nosa_command_find(nosa_commands, argv[2]) : NULL;
    if (command) {
        struct nosa_flag_table tables[2];
        char name[64], usage[96];
        struct nosa_flags_program program;
        describe(command, tables, name, usage, &program);
        nosa_flags_print_help(&program, stdout);
    } else {
        help(stdout);
    }
    *code = NOSA_EXIT_OK;
    return true;
}

static void explain_unknown(const char *word, struct nosa_error *error)
{
    const char *meant = word ? nosa_command_suggest(nosa_commands, word) : NULL;
    if (!word)
        nosa_error_set(error, NOSA_INVALID_ARGUMENT, "no command is given (see nosactl help)");
    else if (meant)
        nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                       "no command \"%.80s\"; is \"%s\" meant? (see nosactl help)", word, meant);
    else
        nosa_error_set(error, NOSA_INVALID_ARGUMENT, "no command \"%.80s\" (see nosactl help)",
                       word);
}

int main(int argc, char **argv)
{
    struct nosa_error error = {0};
    const struct nosa_log_options log = {.level = NOSA_LOG_ERROR, .descriptor = 2};
    const char *word = nosa_command_word(nosa_commands, argc, argv);
    const struct nosa_command *command = word ? nosa_command_find(nosa_commands, word) : NULL;
    int code = NOSA_EXIT_USAGE;
    signal(SIGPIPE, SIG_IGN);
    nosa_log_configure(&log);
    if (command) {
        code = parse_and_run(command, argc, argv, &error);
    } else if (!run_builtin(word, argc, argv, &code)) {
        explain_unknown(word, &error);
    }
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == NOSA_EXIT_OK) {
        nosa_error_set(&error, NOSA_IO_ERROR, "standard output: cannot write");
        code = NOSA_EXIT_FAILED;
    }
    if (code != NOSA_EXIT_OK && error.text[0])
        fprintf(stderr, "nosactl: %s\n", error.text);
    return code;
}
