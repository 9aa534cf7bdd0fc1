/*
 * A server of echo.proto with health and reflection, for tests in Python and for measurements.
 * Prints "listening <port> [...]" once it serves, ends on SIGTERM with "shut down, quiet" or "shut
 * down, cancelled".
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/flags.h"
#include "nosa_proto_descriptor_set.h"
#include "rpc/health.h"
#include "rpc/reflection.h"
#include "rpc/server.h"
#include "rpc_echo_proto_descriptor_set.h"
#include "support/rpc/echo_service.h"
#include "support/rpc/relay_service.h"

#define COUNT(flag)                                                                                \
    {                                                                                              \
        .name = (flag), .kind = NOSA_FLAG_INT32, .default_text = "0"                               \
    }
#define TEXT(flag)                                                                                 \
    {                                                                                              \
        .name = (flag), .kind = NOSA_FLAG_STRING                                                   \
    }

static const struct nosa_flag table[] = {
    {.name = "listen", .kind = NOSA_FLAG_STRING, .default_text = "127.0.0.1:0"},
    {.name = "threads", .kind = NOSA_FLAG_INT32, .default_text = "2"},
    TEXT("also-listen"), /* without TLS */
    TEXT("upstream"),    /* relays Count to this address, and has no other method */
    TEXT("tls-cert"),
    TEXT("tls-key"),
    TEXT("tls-ca"),
    TEXT("token"),
    COUNT("message-bytes-max"),
    COUNT("unpacked-bytes-max"),
    COUNT("calls-max"),
    COUNT("send-queue-max"),
    COUNT("keepalive-ms"),
    COUNT("keepalive-timeout-ms"),
    COUNT("ping-interval-min-ms"),
    {.name = "grace-ms", .kind = NOSA_FLAG_INT32, .default_text = "2000"},
};

static bool admit(void *context, struct nosa_rpc_call *call, enum nosa_rpc_code *code,
                  char text[NOSA_RPC_TEXT_MAX])
{
    size_t size;
    const char *expected = context;
    const char *token = nosa_rpc_call_bearer(call, &size);
    if (!token) {
        snprintf(text, NOSA_RPC_TEXT_MAX, "a bearer token is needed");
        return false;
    }
    if (size != strlen(expected) || memcmp(token, expected, size) != 0) {
        *code = NOSA_RPC_PERMISSION_DENIED;
        snprintf(text, NOSA_RPC_TEXT_MAX, "the bearer token is not known");
        return false;
    }
    return true;
}

static void fill_options(struct nosa_rpc_server_options *options, const struct nosa_flags *flags)
{
    const char *token = nosa_flags_string(flags, "token");
    options->message_bytes_max = (uint32_t)nosa_flags_int32(flags, "message-bytes-max");
    options->unpacked_bytes_max = (uint32_t)nosa_flags_int32(flags, "unpacked-bytes-max");
    options->calls_max = (uint32_t)nosa_flags_int32(flags, "calls-max");
    options->send_queue_max = (uint32_t)nosa_flags_int32(flags, "send-queue-max");
    options->keepalive_ms = (uint32_t)nosa_flags_int32(flags, "keepalive-ms");
    options->keepalive_timeout_ms = (uint32_t)nosa_flags_int32(flags, "keepalive-timeout-ms");
    options->ping_interval_min_ms = (uint32_t)nosa_flags_int32(flags, "ping-interval-min-ms");
    options->admit = token ? admit : NULL;
    options->admit_context = (void *)(uintptr_t)token;
}

static enum nosa_status listen_all(struct nosa_rpc_server *server, const struct nosa_flags *flags,
                                   uint16_t ports[2], struct nosa_error *error)
{
    const struct nosa_rpc_tls tls = {.cert_path = nosa_flags_string(flags, "tls-cert"),
                                     .key_path = nosa_flags_string(flags, "tls-key"),
                                     .ca_path = nosa_flags_string(flags, "tls-ca")};
    NOSA_TRY(
        nosa_rpc_server_listen(server, nosa_flags_string(flags, "listen"), &tls, &ports[0], error));
    if (nosa_flags_is_set(flags, "also-listen"))
        NOSA_TRY(nosa_rpc_server_listen(server, nosa_flags_string(flags, "also-listen"), NULL,
                                        &ports[1], error));
    return NOSA_OK;
}

static enum nosa_status fill_server(struct nosa_rpc_server *server, struct echo_service **service,
                                    struct nosa_rpc_channel *upstream, struct nosa_error *error)
{
    const struct nosa_rpc_descriptor_set sets[] = {
        {nosa_proto_descriptor_set, nosa_proto_descriptor_set_size},
        {rpc_echo_proto_descriptor_set, rpc_echo_proto_descriptor_set_size},
    };
    if (upstream)
        NOSA_TRY(relay_service_add(server, upstream, error));
    else
        NOSA_TRY(echo_service_add(service, server, error));
    NOSA_TRY(nosa_rpc_health_add(server, error));
    return nosa_rpc_reflection_add(server, sets, 2, error);
}

static enum nosa_status make_upstream(struct nosa_rpc_runtime *runtime,
                                      const struct nosa_flags *flags,
                                      struct nosa_rpc_channel **upstream, struct nosa_error *error)
{
    const char *address = nosa_flags_string(flags, "upstream");
    const struct nosa_rpc_channel_options options = {
        .addresses = &address, .address_count = 1, .backoff_max_ms = 200};
    return address ? nosa_rpc_channel_create(upstream, runtime, &options, error) : NOSA_OK;
}

static enum nosa_status serve(struct nosa_rpc_runtime *runtime, const struct nosa_flags *flags,
                              const sigset_t *ending, struct nosa_error *error)
{
    struct nosa_rpc_server_options options = {0};
    struct nosa_rpc_server *server = NULL;
    struct echo_service *service = NULL;
    struct nosa_rpc_channel *upstream = NULL;
    uint16_t ports[2] = {0};
    int signal_number;
    fill_options(&options, flags);
    enum nosa_status status = nosa_rpc_server_create(&server, runtime, &options, error);
    if (status == NOSA_OK)
        status = make_upstream(runtime, flags, &upstream, error);
    if (status == NOSA_OK)
        status = fill_server(server, &service, upstream, error);
    if (status == NOSA_OK)
        status = listen_all(server, flags, ports, error);
    if (status == NOSA_OK)
        status = nosa_rpc_server_start(server, error);
    if (status == NOSA_OK) {
        nosa_rpc_health_set(server, "", true);
        nosa_rpc_health_set(server, "nosa.test.v1.Echo", true);
        printf("listening %u %u\n", ports[0], ports[1]);
        fflush(stdout);
        sigwait(ending, &signal_number);
        bool quiet =
            nosa_rpc_server_shutdown(server, (uint32_t)nosa_flags_int32(flags, "grace-ms"));
        printf("shut down, %s\n", quiet ? "quiet" : "cancelled");
    }
    nosa_rpc_server_free(server);
    nosa_rpc_channel_free(upstream);
    echo_service_free(service);
    return status;
}

int main(int argc, char **argv)
{
    struct nosa_error error = {0};
    struct nosa_flags *flags = NULL;
    struct nosa_rpc_runtime *runtime = NULL;
    const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(table)};
    const struct nosa_flags_program program = {
        .name = "rpc-test-server", .tables = tables, .table_count = 1};
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ending, NULL);
    enum nosa_status status = nosa_flags_parse(&flags, &program, argc, argv, &error);
    if (status == NOSA_OK)
        status = nosa_rpc_runtime_create(&runtime, nosa_flags_int32(flags, "threads"), &error);
    if (status == NOSA_OK)
        status = serve(runtime, flags, &ending, &error);
    if (status != NOSA_OK)
        fprintf(stderr, "rpc-test-server: %s\n", error.text);
    nosa_rpc_runtime_free(runtime);
    nosa_flags_free(flags);
    return status == NOSA_OK ? 0 : 2;
}
