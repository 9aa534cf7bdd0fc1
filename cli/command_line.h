/* Which command argv names. Stateless; any thread. */
#ifndef NOSA_CLI_COMMAND_LINE_H
#define NOSA_CLI_COMMAND_LINE_H

#include "command.h"

/* The command of this name, or NULL. */
const struct nosa_command *nosa_command_find(const struct nosa_command *commands, const char *name);

/*
 * The first word of argv that is neither a flag nor a flag's value, wherever it stands; flags of
 * every command are known. NULL: there is none.
 */
const char *nosa_command_word(const struct nosa_command *commands, int argc, char *const *argv);

/* The name that is meant when `word` is none of the commands, by the fewest slips of the fingers;
 * NULL when nothing is near. */
const char *nosa_command_suggest(const struct nosa_command *commands, const char *word);

#endif
