#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "rpc/message.h"
#include "rpc_fixture.h"

void fixture_start_server(struct fixture *fixture, const struct nosa_rpc_server_options *options,
                          uint16_t port)
{
    struct nosa_error error = {0};
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    assert_int_equal(nosa_rpc_server_create(&fixture->server, fixture->runtime, options, &error),
                     NOSA_OK);
    assert_int_equal(echo_service_add(&fixture->service, fixture->server, &error), NOSA_OK);
    if (nosa_rpc_server_listen(fixture->server, address, NULL, &fixture->port, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    assert_int_equal(nosa_rpc_server_start(fixture->server, &error), NOSA_OK);
    snprintf(fixture->address, sizeof fixture->address, "127.0.0.1:%u", fixture->port);
}

void fixture_stop_server(struct fixture *fixture)
{
    nosa_rpc_server_free(fixture->server);
    echo_service_free(fixture->service);
    fixture->server = NULL;
    fixture->service = NULL;
}

struct nosa_rpc_channel *fixture_channel(struct fixture *fixture, const char *first,
                                         const char *second)
{
    struct nosa_error error = {0};
    struct nosa_rpc_channel *channel;
    const char *addresses[] = {first, second};
    const struct nosa_rpc_channel_options options = {
        .addresses = addresses,
        .address_count = second ? 2 : 1,
        .backoff_min_ms = 50,
        .backoff_max_ms = 200,
        .keepalive_ms = fixture->keepalive_ms,
        .keepalive_timeout_ms = fixture->keepalive_ms,
    };
    if (nosa_rpc_channel_create(&channel, fixture->runtime, &options, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return channel;
}

void fixture_open(struct fixture *fixture, const struct nosa_rpc_server_options *options)
{
    const struct nosa_rpc_server_options none = {.ping_interval_min_ms = 100};
    memset(fixture, 0, sizeof *fixture);
    assert_int_equal(nosa_rpc_runtime_create(&fixture->runtime, 2, NULL), NOSA_OK);
    fixture_start_server(fixture, options ? options : &none, 0);
    fixture->channel = fixture_channel(fixture, fixture->address, NULL);
}

void fixture_close(struct fixture *fixture)
{
    nosa_rpc_channel_free(fixture->channel);
    fixture_stop_server(fixture);
    nosa_rpc_runtime_free(fixture->runtime);
}

struct nosa_rpc_request say_call(const say_request *message, uint32_t timeout_ms)
{
    return (struct nosa_rpc_request){.path = "/nosa.test.v1.Echo/Say",
                                     .message = &message->base,
                                     .response = &nosa__test__v1__say_response__descriptor,
                                     .timeout_ms = timeout_ms};
}

struct nosa_rpc_request count_call(const count_request *message, uint32_t timeout_ms)
{
    return (struct nosa_rpc_request){.path = "/nosa.test.v1.Echo/Count",
                                     .message = &message->base,
                                     .response = &nosa__test__v1__count_response__descriptor,
                                     .timeout_ms = timeout_ms};
}

stats_response *fixture_stats(struct nosa_rpc_channel *channel)
{
    const Nosa__Test__V1__StatsRequest message = NOSA__TEST__V1__STATS_REQUEST__INIT;
    const struct nosa_rpc_request request = {.path = "/nosa.test.v1.Echo/Stats",
                                             .message = &message.base,
                                             .response =
                                                 &nosa__test__v1__stats_response__descriptor,
                                             .timeout_ms = 10000};
    struct nosa_error error = {0};
    ProtobufCMessage *response;
    if (nosa_rpc_unary(channel, &request, &response, &error) != NOSA_RPC_OK)
        fail_msg("%s", error.text);
    return (stats_response *)response;
}
