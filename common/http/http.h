/*
 * The HTTP side of a server program: /metrics for Prometheus, /healthz (alive) and /readyz (ready
 * for work) for probes. GET and HEAD only; one thread; bounded connections, header bytes and time.
 * Plain text; meant for the inner network.
 */
#ifndef NOSA_HTTP_HTTP_H
#define NOSA_HTTP_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/metrics.h"
#include "base/status.h"

struct nosa_http; /* opaque */

#define NOSA_HTTP_REASON_MAX 256 /* bytes of a probe's reason with NUL */

/* Answers a probe: true is 200 "ok". False is 503 with `reason`, one line (initially ""). Runs on
 * the server's thread; may block for a moment (a dial of the own listener). */
typedef bool (*nosa_http_probe)(void *context, char reason[NOSA_HTTP_REASON_MAX]);

struct nosa_http_options {
    const char *address;          /* "HOST:PORT"; host empty: all; port 0: a free one */
    struct nosa_metrics *metrics; /* borrowed until free; NULL: /metrics is 404 */
    /* Called before each rendering of /metrics, for gauges that are read rather than kept; NULL. */
    void (*collect)(void *context);
    nosa_http_probe healthz;  /* NULL: always alive */
    nosa_http_probe readyz;   /* NULL: always ready */
    void *context;            /* of the three callbacks; borrowed until free */
    uint32_t connections_max; /* at a time; 0: 64 */
    uint32_t timeout_s;       /* of a connection that is silent; 0: 10 */
};

/*
 * Opens the port and serves until nosa_http_free. NOSA_INVALID_ARGUMENT: bad address;
 * NOSA_NOT_FOUND: no such host; NOSA_IO_ERROR: in use, or not ours to open; the text names the
 * address and says why.
 */
enum nosa_status nosa_http_create(struct nosa_http **http, const struct nosa_http_options *options,
                                  struct nosa_error *error);

/* The port that was opened. */
uint16_t nosa_http_port(const struct nosa_http *http);

/* Closes the port and every connection; returns when no callback runs. NULL is allowed. */
void nosa_http_free(struct nosa_http *http);

#endif
