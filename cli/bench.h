/* `nosactl bench`: loads a server and says how it held up. */
#ifndef NOSA_CLI_BENCH_H
#define NOSA_CLI_BENCH_H

#include "command.h"

#define NOSA_BENCH_FLAG_COUNT 25

extern const struct nosa_flag nosa_bench_flags[NOSA_BENCH_FLAG_COUNT];

/*
 * The command. NOSA_EXIT_OK when at least one request ended well, whatever became of the others,
 * which the report tells; otherwise the exit code of the first failure, and 130 after Ctrl-C.
 */
int nosa_bench_command(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error);

#endif
