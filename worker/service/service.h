/*
 * nosa.cluster.v1.Worker: what coordinators call. Handlers run on the threads of the RPC runtime,
 * check what came and hand it to the engine's thread; none blocks.
 */
#ifndef NOSA_SERVICE_SERVICE_H
#define NOSA_SERVICE_SERVICE_H

#include "rpc/server.h"
#include "service/gate.h"
#include "service/loop.h"
#include "service/model_files.h"
#include "service/run.h"

/* Outlives the server that it is added to. */
struct nosa_worker_service {
    /* fixed before the server starts */
    struct nosa_gate *gate;               /* borrowed, as the next */
    const struct nosa_model_files *files; /* of the model */
    struct nosa_worker_metrics *metrics;
    /* fixed before the gate is ready */
    struct nosa_run_limits limits; /* incarnation: before the server starts */
    struct nosa_loop *loop;        /* borrowed */
    int32_t queue_max;             /* for words to people, as the next */
    int32_t batch_max;
    atomic_bool serving; /* loop and limits are set */
};

enum nosa_status nosa_worker_service_add(struct nosa_rpc_server *server,
                                         struct nosa_worker_service *service,
                                         struct nosa_error *error);

#endif
