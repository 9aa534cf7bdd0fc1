/* How nosactl ends: exit codes that scripts can tell apart. Stateless; any thread. */
#ifndef NOSA_CLI_EXIT_CODE_H
#define NOSA_CLI_EXIT_CODE_H

#include "base/status.h"
#include "rpc/code.h"

enum nosa_exit {
    NOSA_EXIT_OK = 0,
    NOSA_EXIT_FAILED = 1,      /* INTERNAL, UNKNOWN, DATA_LOSS; output that cannot be written */
    NOSA_EXIT_USAGE = 2,       /* a flag, a file or a field of the request is wrong */
    NOSA_EXIT_UNAVAILABLE = 3, /* no server answers, or it has no worker */
    NOSA_EXIT_NOT_FOUND = 4,   /* no such worker, request or model */
    NOSA_EXIT_REFUSED = 5,     /* overload, or the thing is in no state for this */
    NOSA_EXIT_DEADLINE = 6,    /* --timeout is over */
    NOSA_EXIT_DENIED = 7,      /* no token or certificate, or one that may not do this */
    NOSA_EXIT_CANCELLED = 8,   /* somebody else cancelled the request */
    NOSA_EXIT_SIGNAL = 128,    /* ended by a signal: this and its number, 130 for Ctrl-C */
};

/* The exit code for a call that ended with `code`. */
enum nosa_exit nosa_exit_from_code(enum nosa_rpc_code code);

/* The exit code for an error that was found on this side. */
enum nosa_exit nosa_exit_from_status(enum nosa_status status);

#endif
