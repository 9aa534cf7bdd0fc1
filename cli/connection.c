#include "connection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

#define TOKEN_BYTES_MAX      4096
/* A server that is frozen is given up after the sum. */
#define KEEPALIVE_MS         4000
#define KEEPALIVE_TIMEOUT_MS 3000

#define GROUP "Connection"

const struct nosa_flag nosa_connection_flags[] = {
    {.name = "server",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT[,...]",
     .default_text = "127.0.0.1:50051",
     .group = GROUP,
     .help = "coordinators; the next one is called when one is away"},
    {.name = "timeout",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .range.number = {0, 1e6},
     .group = GROUP,
     .help = "give a call up after this long; 0: never. Default: 10, without end for generations"},
    {.name = "token",
     .kind = NOSA_FLAG_STRING,
     .group = GROUP,
     .help = "bearer token; better in NOSA_TOKEN or in a file, where other users do not see it"},
    {.name = "token-file",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = GROUP,
     .help = "a file whose first line is the bearer token"},
    {.name = "tls-ca",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = GROUP,
     .help = "use TLS; who signs the servers' certificates, in PEM"},
    {.name = "tls-cert",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = GROUP,
     .help = "use TLS; own certificate chain in PEM, with --tls-key"},
    {.name = "tls-key",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = GROUP,
     .help = "its private key in PEM"},
    {.name = "tls-name",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST",
     .group = GROUP,
     .help = "the name in the servers' certificates, when it is not the host of --server"},
};
const size_t nosa_connection_flag_count =
    sizeof nosa_connection_flags / sizeof *nosa_connection_flags;

/* Takes --server apart. */
static enum nosa_status read_servers(struct nosa_connection *connection,
                                     const struct nosa_flags *flags, struct nosa_error *error)
{
    const char *source = nosa_flags_source(flags, "server");
    const char *text = nosa_flags_string(flags, "server");
    for (;;) {
        size_t length = strcspn(text, ",");
        if (length == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: an address is empty", source);
        if (connection->address_count == NOSA_CONNECTION_SERVERS_MAX)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: more than %d addresses",
                                  source, NOSA_CONNECTION_SERVERS_MAX);
        char *address = strndup(text, length);
        if (!address)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for an address");
        connection->addresses[connection->address_count++] = address;
        if (!text[length])
            return NOSA_OK;
        text += length + 1;
    }
}

/* Makes the header of a token of `size` bytes. */
static enum nosa_status set_token(struct nosa_connection *connection, const char *source,
                                  const char *token, size_t size, struct nosa_error *error)
{
    if (size == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: the token is empty", source);
    for (size_t i = 0; i < size; i++)
        if (token[i] < 0x21 || token[i] > 0x7e)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "%s: a token has no spaces and no characters beyond ASCII",
                                  source);
    if (asprintf(&connection->authorization, "Bearer %.*s", (int)size, token) < 0) {
        connection->authorization = NULL;
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a token");
    }
    connection->headers[0] =
        (struct nosa_rpc_header){.name = "authorization", .value = connection->authorization};
    connection->header_count = 1;
    return NOSA_OK;
}

static enum nosa_status read_token(struct nosa_connection *connection,
                                   const struct nosa_flags *flags, struct nosa_error *error)
{
    const char *token = nosa_flags_string(flags, "token");
    const char *path = nosa_flags_string(flags, "token-file");
    if (token && path)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT, "a token is given twice: by %s and by %s",
            nosa_flags_source(flags, "token"), nosa_flags_source(flags, "token-file"));
    if (token && strlen(token) > TOKEN_BYTES_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: longer than %d bytes",
                              nosa_flags_source(flags, "token"), TOKEN_BYTES_MAX);
    if (token)
        return set_token(connection, nosa_flags_source(flags, "token"), token, strlen(token),
                         error);
    if (!path)
        return NOSA_OK;
    char *text;
    size_t size;
    enum nosa_status status = nosa_file_read_input(path, TOKEN_BYTES_MAX, &text, &size, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "%s", nosa_flags_source(flags, "token-file"));
        return status;
    }
    status = set_token(connection, path, text, strcspn(text, "\r\n"), error);
    free(text);
    return status;
}

enum nosa_status nosa_connection_open(struct nosa_connection *connection,
                                      const struct nosa_flags *flags, struct nosa_error *error)
{
    memset(connection, 0, sizeof *connection);
    connection->tls = (struct nosa_rpc_tls){
        .ca_path = nosa_flags_string(flags, "tls-ca"),
        .cert_path = nosa_flags_string(flags, "tls-cert"),
        .key_path = nosa_flags_string(flags, "tls-key"),
        .server_name = nosa_flags_string(flags, "tls-name"),
    };
    enum nosa_status status = read_servers(connection, flags, error);
    if (status == NOSA_OK)
        status = read_token(connection, flags, error);
    if (status == NOSA_OK && nosa_rpc_tls_is_on(&connection->tls))
        status = nosa_rpc_tls_check(&connection->tls, false, error);
    if (status == NOSA_OK)
        status = nosa_rpc_runtime_create(&connection->runtime, 1, error);
    if (status == NOSA_OK) {
        status = nosa_connection_add_channel(connection, NULL, 0, &connection->channel, error);
        if (status == NOSA_INVALID_ARGUMENT)
            nosa_error_prefix(error, "%s", nosa_flags_source(flags, "server"));
    }
    if (status != NOSA_OK)
        nosa_connection_close(connection);
    return status;
}

void nosa_connection_close(struct nosa_connection *connection)
{
    nosa_rpc_channel_free(connection->channel);
    nosa_rpc_runtime_free(connection->runtime);
    free(connection->authorization);
    for (size_t i = 0; i < connection->address_count; i++)
        free(connection->addresses[i]);
    memset(connection, 0, sizeof *connection);
}

enum nosa_status nosa_connection_add_channel(const struct nosa_connection *connection,
                                             struct nosa_rpc_runtime *runtime, size_t first,
                                             struct nosa_rpc_channel **channel,
                                             struct nosa_error *error)
{
    const char *addresses[NOSA_CONNECTION_SERVERS_MAX];
    for (size_t i = 0; i < connection->address_count; i++)
        addresses[i] = connection->addresses[(first + i) % connection->address_count];
    const struct nosa_rpc_channel_options options = {
        .addresses = addresses,
        .address_count = connection->address_count,
        .tls = nosa_rpc_tls_is_on(&connection->tls) ? &connection->tls : NULL,
        .keepalive_ms = KEEPALIVE_MS,
        .keepalive_timeout_ms = KEEPALIVE_TIMEOUT_MS,
    };
    return nosa_rpc_channel_create(channel, runtime ? runtime : connection->runtime, &options,
                                   error);
}

enum nosa_status nosa_connection_go_on(struct nosa_connection *connection, struct nosa_error *error)
{
    const char *current = nosa_rpc_channel_address(connection->channel);
    struct nosa_rpc_channel *channel;
    size_t next = 0;
    for (size_t i = 0; i < connection->address_count; i++)
        if (strcmp(connection->addresses[i], current) == 0)
            next = i + 1;
    NOSA_TRY(nosa_connection_add_channel(connection, NULL, next, &channel, error));
    nosa_rpc_channel_free(connection->channel);
    connection->channel = channel;
    return NOSA_OK;
}

uint32_t nosa_connection_timeout_ms(const struct nosa_flags *flags, uint32_t standard_ms)
{
    if (!nosa_flags_is_set(flags, "timeout"))
        return standard_ms;
    double timeout_ms = nosa_flags_double(flags, "timeout") * 1000;
    return timeout_ms > 0 && timeout_ms < 1 ? 1 : (uint32_t)timeout_ms;
}

/* "a:1 and b:2". */
static void join_addresses(const struct nosa_connection *connection, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < connection->address_count && used < size; i++) {
        const char *joint = i == 0 ? "" : i + 1 == connection->address_count ? " and " : ", ";
        int length = snprintf(text + used, size - used, "%s%s", joint, connection->addresses[i]);
        used += length > 0 ? (size_t)length : 0;
    }
}

enum nosa_rpc_code nosa_connection_call(struct nosa_connection *connection, const char *path,
                                        const ProtobufCMessage *message,
                                        const ProtobufCMessageDescriptor *response_type,
                                        uint32_t timeout_ms, ProtobufCMessage **response,
                                        struct nosa_error *error)
{
    const struct nosa_rpc_request request = {
        .path = path,
        .message = message,
        .response = response_type,
        .timeout_ms = timeout_ms,
        .headers = connection->headers,
        .header_count = connection->header_count,
    };
    struct nosa_error cause = {0};
    char servers[256];
    enum nosa_rpc_code code = nosa_rpc_unary(connection->channel, &request, response, &cause);
    join_addresses(connection, servers, sizeof servers);
    if (code == NOSA_RPC_UNAVAILABLE && connection->address_count > 1)
        nosa_error_set(error, NOSA_UNAVAILABLE, "no server answers at %s (%s)", servers,
                       cause.text);
    else if (code == NOSA_RPC_UNAVAILABLE)
        nosa_error_set(error, NOSA_UNAVAILABLE, "no server answers: %s", cause.text);
    else if (code != NOSA_RPC_OK)
        nosa_error_set(error, cause.status, "%s", cause.text);
    return code;
}
