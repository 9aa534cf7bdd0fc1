/* gRPC's own log lines, into ours. */
#ifndef NOSA_RPC_GRPC_LOG_INTERNAL_H
#define NOSA_RPC_GRPC_LOG_INTERNAL_H

/* Errors become warnings of "grpc", other lines and failed handshakes debug ones, a few in ten
 * seconds at most. Again and again is allowed. */
void nosa_rpc_grpc_log_install(void);

#endif
