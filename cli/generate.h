/* `nosactl generate`: one generation, streamed as text or printed as one JSON object. */
#ifndef NOSA_CLI_GENERATE_H
#define NOSA_CLI_GENERATE_H

#include "command.h"
#include "generate_request.h"

/* Its flags are nosa_generate_request_flags. */
int nosa_generate(struct nosa_connection *connection, const struct nosa_flags *flags,
                  struct nosa_error *error);

#endif
