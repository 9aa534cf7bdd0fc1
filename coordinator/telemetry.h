/*
 * What the coordinator counts: the metrics of /metrics, and what of the last seconds `nosactl`
 * shows. Updates are atomic, from any thread; the readings over the last seconds are taken from
 * rings whose oldest entries are overwritten without care, which costs at most a sample.
 */
#ifndef NOSA_COORDINATOR_TELEMETRY_H
#define NOSA_COORDINATOR_TELEMETRY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"
#include "registry.h"
#include "rpc/code.h"

#define NOSA_TELEMETRY_SAMPLES 4096 /* of a ring, a power of two */
#define NOSA_TELEMETRY_SECONDS 10   /* that "the last seconds" are */

/* The last latencies: high half the second since start, low half a float of milliseconds. */
struct nosa_latency_ring {
    atomic_uint next;
    _Atomic uint64_t samples[NOSA_TELEMETRY_SAMPLES];
};

struct nosa_telemetry {
    /* fixed after create */
    struct nosa_metrics *metrics; /* owned */
    uint64_t start_ns;
    struct nosa_counter *requests[NOSA_RPC_CODE_COUNT];
    struct nosa_counter *prompt_tokens;
    struct nosa_counter *generation_tokens;
    struct nosa_counter *replays_exact;
    struct nosa_counter *replays_inexact;
    struct nosa_counter *moves;
    struct nosa_gauge *running;
    struct nosa_gauge *waiting;
    struct nosa_gauge *workers[6]; /* by WorkerState */
    struct nosa_histogram *ttft;
    struct nosa_histogram *inter_token;
    struct nosa_histogram *e2e;
    struct nosa_histogram *redispatch; /* from a worker's death to the next one */
    struct nosa_counter *kv_hits[NOSA_REGISTRY_TIERS_MAX];
    struct nosa_gauge *kv_usage[NOSA_REGISTRY_TIERS_MAX];
    struct nosa_counter *kv_gpu_to_host, *kv_host_to_gpu, *kv_host_to_nvme, *kv_nvme_to_host;
    struct nosa_counter *kv_corrupt_blocks, *kv_recomputed_blocks, *kv_evicted_blocks;
    struct nosa_counter *kv_prefix_lookup_tokens, *kv_prefix_hit_tokens;
    /* any thread */
    struct nosa_latency_ring ttft_ring;
    struct nosa_latency_ring inter_token_ring;
    /* owned by the thread that ticks, read by any */
    _Atomic uint64_t prompt_history[NOSA_TELEMETRY_SECONDS + 1];
    _Atomic uint64_t generation_history[NOSA_TELEMETRY_SECONDS + 1];
    atomic_uint ticks;
};

enum nosa_status nosa_telemetry_create(struct nosa_telemetry **telemetry, struct nosa_error *error);
void nosa_telemetry_free(struct nosa_telemetry *telemetry);

void nosa_telemetry_ttft(struct nosa_telemetry *telemetry, double seconds);
/* `tokens` came together, this long after those before. */
void nosa_telemetry_inter_token(struct nosa_telemetry *telemetry, double seconds, uint32_t tokens);

/* What nosa_registry_kv told; the thread that serves /metrics alone. */
void nosa_telemetry_set_kv(struct nosa_telemetry *telemetry, const struct nosa_kv_totals *totals,
                           const double usage[NOSA_REGISTRY_TIERS_MAX]);

/* Once a second. */
void nosa_telemetry_tick(struct nosa_telemetry *telemetry);

/* Of the last seconds, 0 without any. */
void nosa_telemetry_percentiles(const struct nosa_latency_ring *ring, uint64_t start_ns,
                                double *p50_ms, double *p99_ms);
void nosa_telemetry_rates(struct nosa_telemetry *telemetry, double *prompt_per_s,
                          double *generation_per_s);

#endif
