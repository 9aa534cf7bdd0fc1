/*
 * The worker as a whole: opens its ports, loads its model, serves, drains and closes, in that
 * order. One thread calls; the others are its own.
 */
#ifndef NOSA_SERVICE_WORKER_H
#define NOSA_SERVICE_WORKER_H

#include "service/options.h"

/*
 * Serves until SIGTERM or SIGINT (blocked by the caller in every thread) and drains: running
 * requests may finish for --drain-timeout, a second signal ends the wait. NOSA_OK after a drain;
 * INVALID_ARGUMENT and NOT_FOUND for what the caller gave, a port in use being one; else what the
 * worker failed with, its requests having been let go.
 */
enum nosa_status nosa_worker_run(const struct nosa_worker_options *options,
                                 struct nosa_error *error);

#endif
