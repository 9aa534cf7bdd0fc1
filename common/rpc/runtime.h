/*
 * The threads behind servers and channels. A runtime has N threads, each with one completion queue;
 * every call, incoming or outgoing, belongs to one of them for its life, so callbacks of one call
 * never run at the same time. A program makes one runtime, its servers and channels stand on it.
 *
 * Callbacks run on these threads and must not block: a blocked callback holds up every call of its
 * thread. The blocking functions of client.h assert that they are not called from one of them.
 */
#ifndef NOSA_RPC_RUNTIME_H
#define NOSA_RPC_RUNTIME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct nosa_rpc_runtime; /* opaque */

/* Starts gRPC (counted: several runtimes may exist) and `threads` (1-64) threads; gRPC's own log
 * lines go to nosa_log as "grpc", a few in ten seconds. Raises the limit of open descriptors as far
 * as it goes and sets GRPC_DNS_RESOLVER, so it belongs before other threads. NOSA_IO_ERROR: no
 * thread could be started. */
enum nosa_status nosa_rpc_runtime_create(struct nosa_rpc_runtime **runtime, int32_t threads,
                                         struct nosa_error *error);

/* Ends the threads and frees the runtime. Its servers and channels must be freed before; waits for
 * calls that still run, so cancel them first. NULL is allowed. */
void nosa_rpc_runtime_free(struct nosa_rpc_runtime *runtime);

/* Whether the calling thread is one of a runtime's. */
bool nosa_rpc_runtime_is_own_thread(void);

#endif
