/*
 * "HOST:PORT" texts: taken apart, resolved, and tried. The host is a name, an IPv4 address, an IPv6
 * address in brackets, or empty (every local address, for listening). Any thread.
 */
#ifndef NOSA_RPC_ADDRESS_H
#define NOSA_RPC_ADDRESS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_RPC_HOST_MAX    254 /* bytes of a host with NUL */
#define NOSA_RPC_ADDRESS_MAX 264 /* bytes of "[host]:port" with NUL */

/* Takes an address apart. NOSA_INVALID_ARGUMENT: no port, a port that is no number of 0-65535, a
 * host that is too long or has characters that no host has; the text quotes the address and leaves
 * naming the flag to the caller. */
enum nosa_status nosa_rpc_address_split(const char *address, char host[NOSA_RPC_HOST_MAX],
                                        uint16_t *port, struct nosa_error *error);

/*
 * Resolves "HOST:PORT" to numeric addresses ("10.0.0.7:50051", "[fd00::1]:50051"), each once, in
 * the resolver's order, at most `capacity`. Blocks on the resolver. NOSA_INVALID_ARGUMENT as split;
 * NOSA_NOT_FOUND: no such name; NOSA_UNAVAILABLE: the resolver has no answer now.
 */
enum nosa_status nosa_rpc_address_resolve(const char *address,
                                          char (*numeric)[NOSA_RPC_ADDRESS_MAX], size_t capacity,
                                          size_t *count, struct nosa_error *error);

/*
 * Whether a gRPC listener answers at `address`: connects anew, sends the opening of HTTP/2 and
 * waits for any answer (on a TLS port its refusal). A listener that the kernel still queues
 * connections for but that no thread serves fails this. Blocks up to `timeout_ms`.
 * NOSA_UNAVAILABLE: refused; NOSA_DEADLINE_EXCEEDED: no answer in time; else as resolve.
 */
enum nosa_status nosa_rpc_address_probe(const char *address, uint32_t timeout_ms,
                                        struct nosa_error *error);

#endif
