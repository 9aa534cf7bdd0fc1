/*
 * A coordinator as a whole: servers, registry, generations in flight, and the thread that looks
 * after them. main.c makes one; its services (service_*.c), the relay and the links to workers are
 * files of this folder and know its inside through coordinator_internal.h.
 *
 * Threads: gRPC's runtime serves calls and relays tokens, never blocking; a small pool encodes long
 * prompts and opens tokenizers; one thread ticks (lost workers, waiting replays, drains).
 */
#ifndef NOSA_COORDINATOR_COORDINATOR_H
#define NOSA_COORDINATOR_COORDINATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "etcd_client.h"
#include "rpc/tls.h"

struct nosa_coordinator; /* opaque */

/* Texts are borrowed until free. */
struct nosa_coordinator_options {
    const char *listen;         /* "HOST:PORT" */
    const char *advertise;      /* "HOST:PORT" under which workers reach it; NULL: from listen */
    const char *http;           /* "HOST:PORT"; NULL: none */
    struct nosa_rpc_tls tls;    /* also shown to workers; all NULL: none */
    const char *auth_tokens;    /* file; NULL: everyone may call */
    uint32_t queue_max;         /* generations that wait for their start */
    uint64_t prompt_bytes_max;  /* of one request */
    uint64_t prompts_bytes_max; /* of all requests that run or wait */
    uint32_t drain_timeout_ms;
    uint32_t worker_timeout_ms;
    uint32_t replay_limit;         /* workers that may die under a request */
    uint32_t slow_request_ms;      /* a log line for each that took longer; 0: none */
    int32_t threads;               /* of gRPC */
    struct nosa_etcd_options etcd; /* endpoints NULL: none */
};

/* Opens the ports and serves. Errors name the flag, file or address. */
enum nosa_status nosa_coordinator_start(struct nosa_coordinator **coordinator,
                                        const struct nosa_coordinator_options *options,
                                        struct nosa_error *error);

/* The ports that were opened; http: 0 without one. */
uint16_t nosa_coordinator_port(const struct nosa_coordinator *coordinator);
uint16_t nosa_coordinator_http_port(const struct nosa_coordinator *coordinator);

/*
 * Takes no new requests, lets those that run finish for drain_timeout_ms, ends the others with
 * UNAVAILABLE, and frees everything. Returns whether none had to be ended. Blocks.
 */
bool nosa_coordinator_stop(struct nosa_coordinator *coordinator);

#endif
