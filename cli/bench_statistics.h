/*
 * What a benchmark measures, in memory that does not grow with the number of requests: histograms
 * whose percentiles are exact to 0.4 %, counts, and goodput under limits. Not shared between
 * threads without the caller's mutex.
 */
#ifndef NOSA_CLI_BENCH_STATISTICS_H
#define NOSA_CLI_BENCH_STATISTICS_H

#include <stdbool.h>
#include <stdint.h>

#include "rpc/code.h"

/* ---- times ---- */

#define NOSA_BENCH_HISTOGRAM_BITS    8  /* buckets of an octave, as a power of two */
#define NOSA_BENCH_HISTOGRAM_OCTAVES 37 /* up to 2^44 ns, 4.8 hours; longer ones count as that */
#define NOSA_BENCH_HISTOGRAM_BUCKETS ((NOSA_BENCH_HISTOGRAM_OCTAVES) << (NOSA_BENCH_HISTOGRAM_BITS))

struct nosa_bench_histogram {
    uint64_t count;
    uint64_t min_ns, max_ns;
    double sum_ns;
    uint64_t buckets[NOSA_BENCH_HISTOGRAM_BUCKETS];
};

/* All zero is an empty histogram. */
void nosa_bench_histogram_add(struct nosa_bench_histogram *histogram, uint64_t ns);

/* The value that `percent` (0-100) of the values do not exceed, by nearest rank; 0 when empty. */
double nosa_bench_histogram_percentile_ns(const struct nosa_bench_histogram *histogram,
                                          double percent);

struct nosa_bench_summary {
    uint64_t count;
    double mean_ms, min_ms, p50_ms, p95_ms, p99_ms, max_ms;
};

struct nosa_bench_summary
nosa_bench_histogram_summary(const struct nosa_bench_histogram *histogram);

/* ---- requests ---- */

/* How a request went; times by nosa_monotonic_ns. */
struct nosa_bench_outcome {
    enum nosa_rpc_code code;
    uint64_t planned_ns; /* when it was to be sent: latencies count from here */
    uint64_t sent_ns;
    uint64_t first_ns; /* first token; 0: none came */
    uint64_t last_ns;  /* last token */
    uint64_t end_ns;
    uint32_t prompt_tokens;
    uint32_t cached_tokens; /* of the prompt, as its worker says */
    uint32_t output_tokens; /* that came */
};

/* 0: no limit. */
struct nosa_bench_limits {
    double ttft_ms, tpot_ms, e2e_ms;
};

struct nosa_bench_statistics {
    /* fixed after start */
    struct nosa_bench_limits limits;
    /* counts of requests that ended */
    uint64_t completed; /* with OK */
    uint64_t good;      /* of them, within every limit */
    uint64_t failed[NOSA_RPC_CODE_COUNT];
    /* tokens of those that completed */
    uint64_t prompt_tokens, cached_tokens, output_tokens;
    uint64_t first_ns, last_ns;       /* the first one was planned, the last one ended */
    struct nosa_bench_histogram ttft; /* planned to first token */
    struct nosa_bench_histogram tpot; /* (last - first token) / (tokens - 1), of 2 and more */
    struct nosa_bench_histogram e2e;  /* planned to end */
    struct nosa_bench_histogram late; /* planned to sent */
    struct nosa_bench_histogram itl;  /* between two messages with tokens; the caller's to add */
};

/* Counts a request that ended. Those that failed count in `failed` and `late` alone. */
void nosa_bench_statistics_add(struct nosa_bench_statistics *statistics,
                               const struct nosa_bench_outcome *outcome);

/* Requests that failed, of all codes. */
uint64_t nosa_bench_statistics_failed(const struct nosa_bench_statistics *statistics);

/* Seconds from the first arrival to the last end; 0 when nothing ended. */
double nosa_bench_statistics_seconds(const struct nosa_bench_statistics *statistics);

#endif
