#include "rpc/code.h"

static const char *const names[NOSA_RPC_CODE_COUNT] = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
};

const char *nosa_rpc_code_name(enum nosa_rpc_code code)
{
    unsigned number = (unsigned)code;
    return number < NOSA_RPC_CODE_COUNT ? names[number] : names[NOSA_RPC_UNKNOWN];
}

enum nosa_rpc_code nosa_rpc_code_from_status(enum nosa_status status)
{
    switch (status) {
    case NOSA_OK: return NOSA_RPC_OK;
    case NOSA_INVALID_ARGUMENT:
    case NOSA_UNSUPPORTED: return NOSA_RPC_INVALID_ARGUMENT;
    case NOSA_NOT_FOUND: return NOSA_RPC_NOT_FOUND;
    case NOSA_OUT_OF_MEMORY:
    case NOSA_RESOURCE_EXHAUSTED: return NOSA_RPC_RESOURCE_EXHAUSTED;
    case NOSA_UNAVAILABLE: return NOSA_RPC_UNAVAILABLE;
    case NOSA_CANCELLED: return NOSA_RPC_CANCELLED;
    case NOSA_DEADLINE_EXCEEDED: return NOSA_RPC_DEADLINE_EXCEEDED;
    case NOSA_CORRUPT:
    case NOSA_IO_ERROR:
    case NOSA_INTERNAL: break;
    }
    return NOSA_RPC_INTERNAL;
}

enum nosa_status nosa_rpc_code_to_status(enum nosa_rpc_code code)
{
    switch (code) {
    case NOSA_RPC_OK: return NOSA_OK;
    case NOSA_RPC_CANCELLED: return NOSA_CANCELLED;
    case NOSA_RPC_DEADLINE_EXCEEDED: return NOSA_DEADLINE_EXCEEDED;
    case NOSA_RPC_NOT_FOUND: return NOSA_NOT_FOUND;
    case NOSA_RPC_RESOURCE_EXHAUSTED: return NOSA_RESOURCE_EXHAUSTED;
    case NOSA_RPC_UNAVAILABLE:
    case NOSA_RPC_FAILED_PRECONDITION:
    case NOSA_RPC_ABORTED: return NOSA_UNAVAILABLE;
    case NOSA_RPC_UNIMPLEMENTED: return NOSA_UNSUPPORTED;
    case NOSA_RPC_INVALID_ARGUMENT:
    case NOSA_RPC_OUT_OF_RANGE:
    case NOSA_RPC_ALREADY_EXISTS:
    case NOSA_RPC_UNAUTHENTICATED:
    case NOSA_RPC_PERMISSION_DENIED: return NOSA_INVALID_ARGUMENT;
    case NOSA_RPC_UNKNOWN:
    case NOSA_RPC_INTERNAL:
    case NOSA_RPC_DATA_LOSS: break;
    }
    return NOSA_INTERNAL;
}
