#include "rpc/grpc_log_internal.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <grpc/support/log.h>

#include "base/clock.h"
#include "base/log.h"

#define LINES_PER_PERIOD 5
#define PERIOD_NS        (10 * NOSA_NS_PER_S)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
/* under mutex */
static uint64_t period_start_ns;
static uint32_t lines;   /* written in this period */
static uint64_t dropped; /* since the last one that was written */

/* Whether a line may be written now; *missed: how many were not before it. */
static bool take_line(uint64_t *missed)
{
    uint64_t now = nosa_monotonic_ns();
    pthread_mutex_lock(&mutex);
    if (period_start_ns == 0 || now - period_start_ns >= PERIOD_NS) {
        period_start_ns = now;
        lines = 0;
    }
    bool allowed = lines < LINES_PER_PERIOD;
    if (allowed) {
        lines++;
        *missed = dropped;
        dropped = 0;
    } else {
        dropped++;
    }
    pthread_mutex_unlock(&mutex);
    return allowed;
}

/* What any stranger's connection brings about, and a probe of a TLS port too. */
static bool is_provoked(const char *message)
{
    static const char handshake[] = "Handshake failed";
    return strncmp(message, handshake, sizeof handshake - 1) == 0;
}

static void write_line(gpr_log_func_args *arguments)
{
    uint64_t missed = 0;
    bool error = arguments->severity == GPR_LOG_SEVERITY_ERROR && !is_provoked(arguments->message);
    enum nosa_log_level level = error ? NOSA_LOG_WARN : NOSA_LOG_DEBUG;
    if (!nosa_log_enabled(level) || !take_line(&missed))
        return;
    if (missed > 0)
        nosa_log(level, "grpc", "%s (%llu lines before it left out)", arguments->message,
                 (unsigned long long)missed);
    else
        nosa_log(level, "grpc", "%s", arguments->message);
}

void nosa_rpc_grpc_log_install(void)
{
    gpr_set_log_function(write_line);
}
