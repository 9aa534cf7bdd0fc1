#include "exit_code.h"

enum nosa_exit nosa_exit_from_code(enum nosa_rpc_code code)
{
    switch (code) {
    case NOSA_RPC_OK: return NOSA_EXIT_OK;
    case NOSA_RPC_INVALID_ARGUMENT:
    case NOSA_RPC_OUT_OF_RANGE: return NOSA_EXIT_USAGE;
    case NOSA_RPC_UNAVAILABLE: return NOSA_EXIT_UNAVAILABLE;
    case NOSA_RPC_NOT_FOUND: return NOSA_EXIT_NOT_FOUND;
    case NOSA_RPC_RESOURCE_EXHAUSTED:
    case NOSA_RPC_FAILED_PRECONDITION:
    case NOSA_RPC_ALREADY_EXISTS:
    case NOSA_RPC_ABORTED: return NOSA_EXIT_REFUSED;
    case NOSA_RPC_DEADLINE_EXCEEDED: return NOSA_EXIT_DEADLINE;
    case NOSA_RPC_UNAUTHENTICATED:
    case NOSA_RPC_PERMISSION_DENIED: return NOSA_EXIT_DENIED;
    case NOSA_RPC_CANCELLED: return NOSA_EXIT_CANCELLED;
    case NOSA_RPC_UNKNOWN:
    case NOSA_RPC_UNIMPLEMENTED:
    case NOSA_RPC_INTERNAL:
    case NOSA_RPC_DATA_LOSS: break;
    }
    return NOSA_EXIT_FAILED;
}

enum nosa_exit nosa_exit_from_status(enum nosa_status status)
{
    switch (status) {
    case NOSA_OK: return NOSA_EXIT_OK;
    case NOSA_INVALID_ARGUMENT:
    case NOSA_NOT_FOUND: /* a file: what a server does not find comes as its code */
    case NOSA_UNSUPPORTED: return NOSA_EXIT_USAGE;
    case NOSA_UNAVAILABLE: return NOSA_EXIT_UNAVAILABLE;
    case NOSA_RESOURCE_EXHAUSTED: return NOSA_EXIT_REFUSED;
    case NOSA_DEADLINE_EXCEEDED: return NOSA_EXIT_DEADLINE;
    case NOSA_CANCELLED: return NOSA_EXIT_CANCELLED;
    case NOSA_CORRUPT:
    case NOSA_IO_ERROR:
    case NOSA_OUT_OF_MEMORY:
    case NOSA_INTERNAL: break;
    }
    return NOSA_EXIT_FAILED;
}
