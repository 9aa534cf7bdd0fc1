/*
 * The health service (grpc.health.v1) of a server: Check and Watch, as stock probes ask. The empty
 * name stands for the whole server. A name that was never set is NOT_FOUND to Check and
 * SERVICE_UNKNOWN to Watch. The server turns every name to NOT_SERVING when its shutdown begins.
 */
#ifndef NOSA_RPC_HEALTH_H
#define NOSA_RPC_HEALTH_H

#include <stdbool.h>

#include "base/status.h"
#include "rpc/server.h"

#define NOSA_RPC_HEALTH_SERVICES_MAX 16 /* names of a server */

/* Adds the service before start, with "" NOT_SERVING; freed with the server. */
enum nosa_status nosa_rpc_health_add(struct nosa_rpc_server *server, struct nosa_error *error);

/* Sets a name's state and tells who watches it. At most NOSA_RPC_HEALTH_SERVICES_MAX names
 * (assertion). Any thread, until the server is freed; changes nothing once shutdown has begun. */
void nosa_rpc_health_set(struct nosa_rpc_server *server, const char *service, bool serving);

#endif
