/*
 * The service of echo.proto on a server: calls are answered by one thread that stands for an
 * engine, while the runtime's threads take them in, as in the product. For tests and measurements.
 */
#ifndef NOSA_TESTS_SUPPORT_RPC_ECHO_SERVICE_H
#define NOSA_TESTS_SUPPORT_RPC_ECHO_SERVICE_H

#include "base/status.h"
#include "rpc/server.h"

struct echo_service; /* opaque */

/* Adds the service before start; the caller frees it after the server. */
enum nosa_status echo_service_add(struct echo_service **service, struct nosa_rpc_server *server,
                                  struct nosa_error *error);
void echo_service_free(struct echo_service *service);

#endif
