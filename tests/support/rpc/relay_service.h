/*
 * Count of echo.proto, relayed from another server: each call is a call there, with back-pressure,
 * cancels and endings passed on in both directions, and no thread of its own. For tests and
 * measurements of relays.
 */
#ifndef NOSA_TESTS_SUPPORT_RPC_RELAY_SERVICE_H
#define NOSA_TESTS_SUPPORT_RPC_RELAY_SERVICE_H

#include "base/status.h"
#include "rpc/client.h"
#include "rpc/server.h"

/* Adds the service before start; `channel` is borrowed until the server is freed. */
enum nosa_status relay_service_add(struct nosa_rpc_server *server, struct nosa_rpc_channel *channel,
                                   struct nosa_error *error);

#endif
