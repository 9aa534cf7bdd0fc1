/*
 * What a subcommand of nosactl is. main.c holds the table of all of them, finds the one that argv
 * names, parses the flags and runs it on the main thread.
 */
#ifndef NOSA_CLI_COMMAND_H
#define NOSA_CLI_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

#include "base/flags.h"
#include "base/status.h"
#include "connection.h"
#include "exit_code.h"

/*
 * Runs a command to its end. `flags` holds the command's own flags and nosa_connection_flags;
 * nosa_flags_positional(flags, 0) is the command's name, its words follow. Returns the exit code;
 * unless it is NOSA_EXIT_OK, a text in `error` is printed as "nosactl: text". `connection` is
 * open, but nothing was sent; NULL for a command that is local.
 */
typedef int (*nosa_command_run)(struct nosa_connection *connection, const struct nosa_flags *flags,
                                struct nosa_error *error);

/* Static; texts and flags live as long as the program. */
struct nosa_command {
    const char *name;    /* "drain" */
    const char *words;   /* what must follow the name, as the usage shows it: "ID"; "" for none */
    const char *summary; /* one line for the help */
    int words_min, words_max;
    bool local;                    /* talks to no server and has no flags for it */
    const struct nosa_flag *flags; /* [flag_count] of its own */
    size_t flag_count;
    nosa_command_run run;
};

/* Every command, ended by a name of NULL. */
extern const struct nosa_command nosa_commands[];

#endif
