/*
 * Runs a benchmark: one thread starts requests when the plan says so, the runtime's threads take
 * what comes back. In an open loop requests arrive whether or not earlier ones have ended, and a
 * latency counts from the planned arrival, however late the request could be sent. In a closed loop
 * a number of requests is kept in flight, and a latency counts from the sending.
 */
#ifndef NOSA_CLI_BENCH_RUN_H
#define NOSA_CLI_BENCH_RUN_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "bench_plan.h"
#include "bench_prompts.h"
#include "bench_statistics.h"
#include "rpc/client.h"

#define NOSA_BENCH_WORKERS_MAX   256 /* that are told apart */
#define NOSA_BENCH_WORKER_ID_MAX 65  /* bytes with NUL; longer ids are cut */
#define NOSA_BENCH_FAILURE_MAX   192 /* bytes of a failure's text with NUL */

/* One request that ended, for who wants them all. Valid inside the callback. */
struct nosa_bench_record {
    const struct nosa_bench_request *request;
    const struct nosa_bench_outcome *outcome;
    const char *worker_id; /* that took it first; "" when none did */
    uint64_t gap_ns_max;   /* the longest time between two of its messages with tokens */
    uint64_t gap_begin_ns; /* when that gap began; 0: none */
};

/* Everything is borrowed until nosa_bench_run returns. */
struct nosa_bench_options {
    struct nosa_rpc_channel *const *channels; /* [channel_count]; requests take them in turn */
    size_t channel_count;
    const struct nosa_rpc_header *headers; /* [header_count], of every call */
    size_t header_count;
    const char *model; /* "": the only one */
    struct nosa_bench_plan plan;
    const struct nosa_bench_prompts *prompts; /* in order, again from the first; NULL: the plan's */
    bool chat;                                /* prompts are a user's message */
    double rate;                              /* requests per second; 0: a closed loop */
    bool poisson;         /* of arrivals: a Poisson process; false: evenly spaced */
    uint32_t concurrency; /* requests in flight at most; 0: no bound, in an open loop alone */
    uint64_t requests;    /* that count, at most; at least 1 */
    uint64_t duration_ns; /* no request is started after it; 0: no such bound */
    uint32_t warm_up;     /* requests before, which do not count */
    uint32_t timeout_ms;  /* of one request; 0: none */
    float temperature;
    bool stop_at_eos;       /* outputs may end before their length */
    const char *cache_salt; /* of every request */
    struct nosa_bench_limits limits;
    /* Called for each request that counts, on a thread of the runtime, one at a time; or NULL. */
    void (*ended)(void *context, const struct nosa_bench_record *record);
    void *context;
    const volatile sig_atomic_t *interrupted; /* not 0: cancel what is in flight and end; or NULL */
};

struct nosa_bench_worker_count {
    char id[NOSA_BENCH_WORKER_ID_MAX];
    uint64_t requests;
};

struct nosa_bench_result {
    struct nosa_bench_statistics statistics;
    char failures[NOSA_RPC_CODE_COUNT][NOSA_BENCH_FAILURE_MAX]; /* the first of each code */
    struct nosa_bench_worker_count workers[NOSA_BENCH_WORKERS_MAX];
    size_t worker_count;
    /* Of a closed loop: from when the requests in flight were complete until the first end that no
     * request followed, and the tokens that came meanwhile; 0: there was no such time. */
    double full_s;
    uint64_t full_tokens;
    double client_cpu_s; /* that this process used meanwhile */
    bool interrupted;
};

/*
 * Runs it to its end. *result is the caller's to free. An error comes only when there is nothing to
 * report: no memory, or (the status of the first failure) none of the requests that warm up ended
 * well. Failures of requests are part of the result. Blocks; not on a thread of a runtime.
 */
enum nosa_status nosa_bench_run(const struct nosa_bench_options *options,
                                struct nosa_bench_result **result, struct nosa_error *error);

#endif
