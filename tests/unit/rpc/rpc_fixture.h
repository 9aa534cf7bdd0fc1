/* A server of the echo service and a channel to it, in one process, for the tests of this folder.
 */
#ifndef NOSA_TESTS_UNIT_RPC_RPC_FIXTURE_H
#define NOSA_TESTS_UNIT_RPC_RPC_FIXTURE_H

#include <stdint.h>

#include "rpc/client.h"
#include "rpc/server.h"
#include "support/rpc/echo.pb-c.h"
#include "support/rpc/echo_service.h"

typedef Nosa__Test__V1__SayRequest say_request;
typedef Nosa__Test__V1__SayResponse say_response;
typedef Nosa__Test__V1__CountRequest count_request;
typedef Nosa__Test__V1__CountResponse count_response;
typedef Nosa__Test__V1__StatsResponse stats_response;

struct fixture {
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    struct echo_service *service;
    struct nosa_rpc_channel *channel;
    uint16_t port;
    char address[32];
    uint32_t keepalive_ms; /* of channels; 0: the default, which suits a busy machine */
};

/* Each asserts that it succeeds. A server may be stopped and another started on its port. */
void fixture_open(struct fixture *fixture, const struct nosa_rpc_server_options *options);
void fixture_start_server(struct fixture *fixture, const struct nosa_rpc_server_options *options,
                          uint16_t port);
void fixture_stop_server(struct fixture *fixture);
struct nosa_rpc_channel *fixture_channel(struct fixture *fixture, const char *first,
                                         const char *second);
void fixture_close(struct fixture *fixture);

/* A request of Say or Count; `message` lives as long as the request. */
struct nosa_rpc_request say_call(const say_request *message, uint32_t timeout_ms);
struct nosa_rpc_request count_call(const count_request *message, uint32_t timeout_ms);

/* What the server has counted; the caller frees it by nosa_message_free(&stats->base). */
stats_response *fixture_stats(struct nosa_rpc_channel *channel);

#endif
