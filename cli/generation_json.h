/* A generation as one JSON object, collected while it streams. */
#ifndef NOSA_CLI_GENERATION_JSON_H
#define NOSA_CLI_GENERATION_JSON_H

#include <jansson.h>

#include "base/buffer.h"
#include "resumed_call.h"

/* What was collected. All zero but logprobs_asked is an empty one. */
struct nosa_generation_json {
    bool logprobs_asked;
    json_t *prompt_tokens; /* owned, as all of them; NULL: none came */
    json_t *logprobs;      /* of each token chosen */
    json_t *top_logprobs;  /* of each token, an array of {token_id, logprob} */
    struct nosa_buffer text;
};

/* Collect, as a nosa_resumed_events does; the context is a struct nosa_generation_json. */
enum nosa_status nosa_generation_json_accepted(void *context, const Nosa__V1__Accepted *accepted,
                                               struct nosa_error *error);
enum nosa_status nosa_generation_json_delta(void *context, const Nosa__V1__Delta *delta,
                                            struct nosa_error *error);

/* "stop", "length", "interrupted", "cancelled" or "failed". Static. */
const char *nosa_generation_reason(const struct nosa_resumed_result *result);

/* The object; `failure` is why the call did not end well, "" when it did or was interrupted. NULL:
 * no memory. */
json_t *nosa_generation_json_take(struct nosa_generation_json *json,
                                  const struct nosa_resumed_result *result, const char *failure);

void nosa_generation_json_free(struct nosa_generation_json *json);

#endif
