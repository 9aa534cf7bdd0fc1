/*
 * To the servers that --server names, with the TLS and the token that the flags give. Made once per
 * run of the program, on its main thread, which is also the thread that calls.
 */
#ifndef NOSA_CLI_CONNECTION_H
#define NOSA_CLI_CONNECTION_H

#include <stddef.h>
#include <stdint.h>

#include "base/flags.h"
#include "base/status.h"
#include "rpc/client.h"

#define NOSA_CONNECTION_SERVERS_MAX 64

/* The flags of every command that talks to a server: --server, --timeout, --token and TLS. */
extern const struct nosa_flag nosa_connection_flags[];
extern const size_t nosa_connection_flag_count;

/* All of it is fixed after open and owned by the connection. */
struct nosa_connection {
    struct nosa_rpc_runtime *runtime; /* with one thread */
    struct nosa_rpc_channel *channel; /* to all servers; goes to the next when one is away */
    char *addresses[NOSA_CONNECTION_SERVERS_MAX]; /* [address_count] of --server, in order */
    size_t address_count;
    struct nosa_rpc_tls tls;           /* texts are borrowed from the flags */
    struct nosa_rpc_header headers[1]; /* [header_count]: the bearer token */
    size_t header_count;
    char *authorization; /* the header's value; NULL without a token */
};

/*
 * Reads the flags and makes the channel; connects to nobody yet. `flags` outlive the connection.
 * NOSA_INVALID_ARGUMENT: an address, a file or a token that is wrong, naming the flag.
 */
enum nosa_status nosa_connection_open(struct nosa_connection *connection,
                                      const struct nosa_flags *flags, struct nosa_error *error);
void nosa_connection_close(struct nosa_connection *connection);

/*
 * One more channel to the same servers, with connections of its own; the caller frees it before the
 * connection is closed. It begins with server `first` (modulo their number). `runtime` NULL: that
 * of the connection, which has one thread.
 */
enum nosa_status nosa_connection_add_channel(const struct nosa_connection *connection,
                                             struct nosa_rpc_runtime *runtime, size_t first,
                                             struct nosa_rpc_channel **channel,
                                             struct nosa_error *error);

/* Makes the connection's next calls begin with the server after the present one. */
enum nosa_status nosa_connection_go_on(struct nosa_connection *connection,
                                       struct nosa_error *error);

/* --timeout in milliseconds, or `standard_ms` when it was not given; 0: without end. */
uint32_t nosa_connection_timeout_ms(const struct nosa_flags *flags, uint32_t standard_ms);

/*
 * A unary call over all servers with the connection's headers; as nosa_rpc_unary. When no server
 * answers the error says so in words that name them.
 */
enum nosa_rpc_code nosa_connection_call(struct nosa_connection *connection, const char *path,
                                        const ProtobufCMessage *message,
                                        const ProtobufCMessageDescriptor *response_type,
                                        uint32_t timeout_ms, ProtobufCMessage **response,
                                        struct nosa_error *error);

#endif
