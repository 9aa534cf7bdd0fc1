/*
 * gRPC's status codes, and how they correspond to the project's own. Stateless; any thread.
 */
#ifndef NOSA_RPC_CODE_H
#define NOSA_RPC_CODE_H

#include "base/status.h"

/* The numbers that travel, as gRPC fixes them. */
enum nosa_rpc_code {
    NOSA_RPC_OK = 0,
    NOSA_RPC_CANCELLED = 1,
    NOSA_RPC_UNKNOWN = 2,
    NOSA_RPC_INVALID_ARGUMENT = 3,
    NOSA_RPC_DEADLINE_EXCEEDED = 4,
    NOSA_RPC_NOT_FOUND = 5,
    NOSA_RPC_ALREADY_EXISTS = 6,
    NOSA_RPC_PERMISSION_DENIED = 7,
    NOSA_RPC_RESOURCE_EXHAUSTED = 8,
    NOSA_RPC_FAILED_PRECONDITION = 9,
    NOSA_RPC_ABORTED = 10,
    NOSA_RPC_OUT_OF_RANGE = 11,
    NOSA_RPC_UNIMPLEMENTED = 12,
    NOSA_RPC_INTERNAL = 13,
    NOSA_RPC_UNAVAILABLE = 14,
    NOSA_RPC_DATA_LOSS = 15,
    NOSA_RPC_UNAUTHENTICATED = 16,
};

#define NOSA_RPC_CODE_COUNT 17

/* "OK", "DEADLINE_EXCEEDED", ... as metrics and people know them; "UNKNOWN" for other numbers. */
const char *nosa_rpc_code_name(enum nosa_rpc_code code);

/* The code under which an error of ours is told to a client. A file or message that contradicts
 * itself (NOSA_CORRUPT) and a device's refusal (NOSA_IO_ERROR) are INTERNAL; NOSA_UNSUPPORTED is
 * INVALID_ARGUMENT, since UNIMPLEMENTED is kept for methods that do not exist; no memory is
 * RESOURCE_EXHAUSTED. */
enum nosa_rpc_code nosa_rpc_code_from_status(enum nosa_status status);

/* What a peer's code means to us; codes that have no counterpart are NOSA_INTERNAL, those of
 * authentication NOSA_INVALID_ARGUMENT, FAILED_PRECONDITION and ABORTED NOSA_UNAVAILABLE. */
enum nosa_status nosa_rpc_code_to_status(enum nosa_rpc_code code);

#endif
