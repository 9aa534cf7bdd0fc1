/*
 * One generation that outlives the coordinator that carries it: when its stream breaks, it goes on
 * through the next server of the channel, or the same one once it is back, with the tokens that
 * came so far as resume_token_ids and the seed that was in use. Token for token and letter for
 * letter it is what one unbroken stream would have been. Main thread.
 */
#ifndef NOSA_CLI_RESUMED_CALL_H
#define NOSA_CLI_RESUMED_CALL_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "connection.h"
#include "nosa/v1/inference.pb-c.h"

/* What a caller is told, on the calling thread. Messages are valid inside the callback. */
struct nosa_resumed_events {
    /* The first Accepted. */
    enum nosa_status (*accepted)(void *context, const Nosa__V1__Accepted *accepted,
                                 struct nosa_error *error);
    /* The next tokens and their text; each token comes once. An error ends the call with it. */
    enum nosa_status (*delta)(void *context, const Nosa__V1__Delta *delta,
                              struct nosa_error *error);
    /* The stream broke, as `reason` says, and the call tries to go on. Once for each break. */
    void (*broken)(void *context, const struct nosa_error *reason);
};

struct nosa_resumed_options {
    uint32_t timeout_ms; /* of the whole call; 0: none */
    uint32_t resume_ms;  /* how long to try to go on after a break; 0: do not */
    const volatile sig_atomic_t *interrupted; /* not 0: cancel and return; or NULL */
};

/* How a call went. All zero is a valid empty one; freed by nosa_resumed_result_free. */
struct nosa_resumed_result {
    enum nosa_rpc_code code; /* the last stream's; CANCELLED when interrupted */
    bool interrupted;
    bool local_failure;     /* `error` is of this side: an event failed, no memory */
    char *request_id;       /* of Accepted; NULL before it, as the next one */
    char *worker_id;        /* that had it first */
    uint64_t seed;          /* in use */
    uint32_t prompt_tokens; /* as Accepted says */
    uint32_t *tokens;       /* owned, [token_count]: those that came */
    size_t token_count, token_capacity;
    Nosa__V1__Finished *finished;        /* owned; NULL unless the code is OK */
    uint32_t breaks;                     /* that were overcome */
    uint64_t start_ns, first_ns, end_ns; /* monotonic; first token, 0: none came */
};

/*
 * Runs it to its end; blocks. `request` is changed (request_id, seed and resume_token_ids of later
 * attempts) and is as before when it returns. Returns the code in *result, which is filled either
 * way; unless it is OK `error` says why.
 */
enum nosa_rpc_code nosa_resumed_call(struct nosa_connection *connection,
                                     Nosa__V1__GenerateRequest *request,
                                     const struct nosa_resumed_options *options,
                                     const struct nosa_resumed_events *events, void *context,
                                     struct nosa_resumed_result *result, struct nosa_error *error);

void nosa_resumed_result_free(struct nosa_resumed_result *result);

#endif
