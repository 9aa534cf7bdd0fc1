/* `nosactl completion bash|zsh|fish`: completions made from the table of commands. */
#ifndef NOSA_CLI_COMPLETION_H
#define NOSA_CLI_COMPLETION_H

#include "base/buffer.h"
#include "command.h"

int nosa_completion(struct nosa_connection *connection, const struct nosa_flags *flags,
                    struct nosa_error *error);

/* Appends the script of a shell. NOSA_INVALID_ARGUMENT: none of this name. */
enum nosa_status nosa_completion_script(const char *shell, const struct nosa_command *commands,
                                        struct nosa_buffer *out, struct nosa_error *error);

#endif
