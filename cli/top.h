/*
 * `nosactl top`: a live screen of the cluster, or repeated output where there is no terminal. A
 * thread asks the coordinator; the main thread draws, so that keys, signals and a new window size
 * count at once, however long an answer takes.
 */
#ifndef NOSA_CLI_TOP_H
#define NOSA_CLI_TOP_H

#include "command.h"

extern const struct nosa_flag nosa_top_flags[3];

int nosa_top(struct nosa_connection *connection, const struct nosa_flags *flags,
             struct nosa_error *error);

#endif
