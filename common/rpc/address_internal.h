/* What servers ask of addresses beside address.h. */
#ifndef NOSA_RPC_ADDRESS_INTERNAL_H
#define NOSA_RPC_ADDRESS_INTERNAL_H

/* Opens a numeric address and closes it again: 0, or the errno that gRPC does not tell (EADDRINUSE,
 * EACCES, EADDRNOTAVAIL, EAFNOSUPPORT). */
int nosa_rpc_address_try_bind(const char *numeric);

#endif
