/* The flags of nosa-worker as one checked struct. */
#ifndef NOSA_SERVICE_OPTIONS_H
#define NOSA_SERVICE_OPTIONS_H

#include "base/flags.h"
#include "base/log.h"
#include "options/engine_flags.h"
#include "rpc/tls.h"

struct nosa_worker_options {
    struct nosa_flags *flags; /* owned; the strings below are borrowed from it */
    struct nosa_engine_flags engine;
    const char *listen;
    const char *advertise;    /* or NULL */
    const char *coordinators; /* or NULL */
    const char *http;         /* or NULL */
    const char *id;           /* or NULL */
    const char *model_name;   /* or NULL */
    int32_t batch_max;
    int32_t queue_max;
    double drain_timeout_s;
    double slow_request_s;
    struct nosa_rpc_tls tls;
    struct nosa_log_options log;
};

enum nosa_worker_action { NOSA_WORKER_GO, NOSA_WORKER_PRINTED };

/* Parses argv and the environment; help and version are printed here. On failure nothing is owned.
 */
enum nosa_status nosa_worker_options_parse(int argc, char *const *argv,
                                           struct nosa_worker_options *out,
                                           enum nosa_worker_action *action,
                                           struct nosa_error *error);
void nosa_worker_options_free(struct nosa_worker_options *options);

#endif
