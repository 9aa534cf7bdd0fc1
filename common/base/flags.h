/*
 * Flags of a program, from one table that drives parsing, the environment and --help.
 *
 * A program concatenates tables (its own, and those that it shares with other programs), calls
 * nosa_flags_parse once at start, and reads values by name. A flag's value comes from argv, else
 * from the environment variable NOSA_<FLAG> (upper case, '-' as '_'), else from its default.
 * `--name value` and `--name=value` mean the same (only the latter takes a value that begins with
 * two dashes); a bool is `--name` or `--name=true|false`.
 * --help (-h) and --version exist in every program. One thread parses; afterwards any thread reads.
 *
 *     static const struct nosa_flag table[] = {
 *         {.name = "max-tokens", .kind = NOSA_FLAG_INT32, .value_name = "N",
 *          .default_text = "128", .range.integer = {1, INT32_MAX},
 *          .group = "Generation", .help = "tokens to generate at most"},
 *     };
 *     const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(table)};
 *     const struct nosa_flags_program program = {.name = "nosa-run", .tables = tables,
 *                                                .table_count = 1};
 *     status = nosa_flags_parse(&flags, &program, argc, argv, &error);
 */
#ifndef NOSA_BASE_FLAGS_H
#define NOSA_BASE_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

#define NOSA_FLAG_SIZE_AUTO UINT64_MAX /* what nosa_flags_size returns for `auto` */

enum nosa_flag_kind {
    NOSA_FLAG_BOOL,
    NOSA_FLAG_INT32,
    NOSA_FLAG_INT64,
    NOSA_FLAG_UINT64,
    NOSA_FLAG_DOUBLE, /* finite */
    NOSA_FLAG_STRING,
    NOSA_FLAG_SIZE,   /* bytes with an optional suffix K, M, G or T, or `auto` */
    NOSA_FLAG_CHOICE, /* one word of `choices` */
};

/* One flag. The table and all it points to live as long as the flags parsed from it. */
struct nosa_flag {
    const char *name; /* without dashes: "max-tokens" */
    enum nosa_flag_kind kind;
    const char *value_name;   /* in --help: "N"; NULL: derived from the kind */
    const char *default_text; /* parsed like a value; NULL: unset (bool: false) */
    const char *help;         /* one sentence, wrapped by --help */
    const char *group;        /* heading in --help; flags of one group stand together */
    union {
        struct {
            int64_t min, max;
        } integer; /* INT32, INT64 */
        struct {
            uint64_t min, max;
        } count; /* UINT64, SIZE (not applied to `auto`) */
        struct {
            double min, max;
        } number;               /* DOUBLE */
    } range;                    /* inclusive; {0, 0}: all that the kind holds */
    const char *const *choices; /* CHOICE: words, ended by NULL */
    const char *unavailable;    /* NULL, or why the flag has no effect in this build; see below */
};

struct nosa_flag_table {
    const struct nosa_flag *flags;
    size_t count;
};

#define NOSA_FLAG_TABLE(array)                                                                     \
    {                                                                                              \
        (array), sizeof(array) / sizeof *(array)                                                   \
    }

struct nosa_flags_program {
    const char *name;    /* "nosa-run" */
    const char *summary; /* one line under the usage; may be NULL */
    const char *usage;   /* what follows the name: "--model DIR [flags]"; NULL: "[flags]" */
    const struct nosa_flag_table *tables;
    size_t table_count;
    int positional_max; /* words without dashes that are accepted, e.g. a subcommand and its id */
};

/* What argv asks the program to do. */
enum nosa_flags_action { NOSA_FLAGS_RUN, NOSA_FLAGS_HELP, NOSA_FLAGS_VERSION };

struct nosa_flags; /* values; opaque */

/*
 * Parses argv (argv[0] is skipped) and the environment. On success the caller owns *flags. With
 * --help or --version the rest is not looked at and every flag keeps its default. `--` ends flags.
 * NOSA_INVALID_ARGUMENT: unknown flag, missing or bad value, value out of range, a flag
 * given twice, too many words, a bad environment value; the text names the flag or the variable.
 * On error *flags is NULL. A table that contradicts itself (a name twice, a default that does not
 * parse) is an assertion.
 */
enum nosa_status nosa_flags_parse(struct nosa_flags **flags,
                                  const struct nosa_flags_program *program, int argc,
                                  char *const *argv, struct nosa_error *error);
void nosa_flags_free(struct nosa_flags *flags);

enum nosa_flags_action nosa_flags_action(const struct nosa_flags *flags);

/* Does what the action asks on `stream`: the help, or "<name> <version>"; nothing for RUN. */
void nosa_flags_print(const struct nosa_flags *flags, FILE *stream);

/*
 * Values by name and kind; a name that is not in the table or of another kind is an assertion.
 * A flag without default that was not given is 0, false or NULL: nosa_flags_is_set tells.
 */
bool nosa_flags_bool(const struct nosa_flags *flags, const char *name);
int32_t nosa_flags_int32(const struct nosa_flags *flags, const char *name);
int64_t nosa_flags_int64(const struct nosa_flags *flags, const char *name);
uint64_t nosa_flags_uint64(const struct nosa_flags *flags, const char *name);
double nosa_flags_double(const struct nosa_flags *flags, const char *name);
/* Borrowed from `flags`. */
const char *nosa_flags_string(const struct nosa_flags *flags, const char *name);
/* Bytes, or NOSA_FLAG_SIZE_AUTO. */
uint64_t nosa_flags_size(const struct nosa_flags *flags, const char *name);
/* Index into `choices`, or -1 when unset. */
int nosa_flags_choice(const struct nosa_flags *flags, const char *name);
/* The chosen word, from `choices`; NULL when unset. */
const char *nosa_flags_choice_text(const struct nosa_flags *flags, const char *name);

/* Whether argv or the environment gave a value. */
bool nosa_flags_is_set(const struct nosa_flags *flags, const char *name);

/*
 * "--max-tokens" or "environment variable NOSA_MAX_TOKENS": where the value came from, for errors
 * that the program finds itself. Borrowed from `flags`.
 */
const char *nosa_flags_source(const struct nosa_flags *flags, const char *name);

/*
 * Steps through the flags that were given although they are marked unavailable: pass NULL first,
 * then the last result; NULL ends. The program decides whether to refuse or to say so and go on.
 */
const struct nosa_flag *nosa_flags_next_unavailable(const struct nosa_flags *flags,
                                                    const struct nosa_flag *previous);

/* Words without dashes, in order; borrowed from `flags`. NULL past the last. */
int nosa_flags_positional_count(const struct nosa_flags *flags);
const char *nosa_flags_positional(const struct nosa_flags *flags, int index);

/* Prints usage, summary and every flag by group with range, default and help, at most 100 columns.
 */
void nosa_flags_print_help(const struct nosa_flags_program *program, FILE *stream);

#endif
