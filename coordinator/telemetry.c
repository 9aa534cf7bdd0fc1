#include "telemetry.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define ITL_OBSERVATIONS_MAX 64 /* of one batch of tokens */

static const double latency_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                        1,     2.5,    5,     10,   30,    60,   120, 300,  600};
#define N_LATENCY_BOUNDS (sizeof latency_bounds / sizeof *latency_bounds)

static enum nosa_status counter(struct nosa_telemetry *telemetry, const char *name,
                                const char *help, const struct nosa_label *label,
                                struct nosa_counter **out, struct nosa_error *error)
{
    const struct nosa_metric_options options = {
        .name = name, .help = help, .labels = label, .label_count = label != NULL};
    return nosa_metrics_counter(telemetry->metrics, &options, out, error);
}

static enum nosa_status gauge(struct nosa_telemetry *telemetry, const char *name, const char *help,
                              const struct nosa_label *label, struct nosa_gauge **out,
                              struct nosa_error *error)
{
    const struct nosa_metric_options options = {
        .name = name, .help = help, .labels = label, .label_count = label != NULL};
    return nosa_metrics_gauge(telemetry->metrics, &options, out, error);
}

static enum nosa_status histogram(struct nosa_telemetry *telemetry, const char *name,
                                  const char *help, struct nosa_histogram **out,
                                  struct nosa_error *error)
{
    const struct nosa_metric_options options = {.name = name, .help = help};
    return nosa_metrics_histogram(telemetry->metrics, &options, latency_bounds, N_LATENCY_BOUNDS,
                                  out, error);
}

static enum nosa_status add_counters(struct nosa_telemetry *t, struct nosa_error *error)
{
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++) {
        const struct nosa_label label = {"code", nosa_rpc_code_name((enum nosa_rpc_code)code)};
        NOSA_TRY(counter(t, "nosa_requests_total", "Generations that ended, by gRPC status.",
                         &label, &t->requests[code], error));
    }
    const struct nosa_label exact = {"exact", "true"}, inexact = {"exact", "false"};
    const char *help = "Generations that went on after their worker died, by whether the next "
                       "worker's fingerprint is equal.";
    NOSA_TRY(counter(t, "nosa_request_replays_total", help, &exact, &t->replays_exact, error));
    NOSA_TRY(counter(t, "nosa_request_replays_total", help, &inexact, &t->replays_inexact, error));
    NOSA_TRY(counter(t, "nosa_request_moves_total",
                     "Generations that a drained worker handed to another.", NULL, &t->moves,
                     error));
    NOSA_TRY(counter(t, "nosa_prompt_tokens_total", "Prompt tokens of generations that started.",
                     NULL, &t->prompt_tokens, error));
    return counter(t, "nosa_generation_tokens_total", "Tokens delivered.", NULL,
                   &t->generation_tokens, error);
}

static enum nosa_status add_transfer(struct nosa_telemetry *t, const char *from, const char *to,
                                     struct nosa_counter **out, struct nosa_error *error)
{
    const struct nosa_label labels[] = {{"from", from}, {"to", to}};
    const struct nosa_metric_options options = {.name = "nosa_kv_transfer_bytes_total",
                                                .help =
                                                    "KV bytes moved between tiers, all workers.",
                                                .labels = labels,
                                                .label_count = 2};
    return nosa_metrics_counter(t->metrics, &options, out, error);
}

static enum nosa_status add_kv_cache(struct nosa_telemetry *t, struct nosa_error *error)
{
    NOSA_TRY(counter(t, "nosa_kv_prefix_lookup_tokens_total",
                     "Prompt tokens that were looked up in the prefix cache, all workers.", NULL,
                     &t->kv_prefix_lookup_tokens, error));
    NOSA_TRY(counter(t, "nosa_kv_prefix_hit_tokens_total",
                     "Prompt tokens that were found in the prefix cache, all workers.", NULL,
                     &t->kv_prefix_hit_tokens, error));
    return counter(t, "nosa_kv_evicted_blocks_total",
                   "Cached blocks that gave way in the first tier, all workers.", NULL,
                   &t->kv_evicted_blocks, error);
}

static enum nosa_status add_kv(struct nosa_telemetry *t, struct nosa_error *error)
{
    static const char *const tiers[] = {"gpu", "host", "nvme"};
    for (int tier = 0; tier < NOSA_REGISTRY_TIERS_MAX; tier++) {
        const struct nosa_label label = {"tier", tiers[tier]};
        NOSA_TRY(counter(t, "nosa_kv_block_hits_total",
                         "Block records that attention read, by the tier they were found in, all "
                         "workers.",
                         &label, &t->kv_hits[tier], error));
    }
    for (int tier = 0; tier < NOSA_REGISTRY_TIERS_MAX; tier++) {
        const struct nosa_label label = {"tier", tiers[tier]};
        NOSA_TRY(
            gauge(t, "nosa_kv_usage_ratio",
                  "Share of the living workers' KV bytes that is used, cached blocks included.",
                  &label, &t->kv_usage[tier], error));
    }
    NOSA_TRY(add_transfer(t, "gpu", "host", &t->kv_gpu_to_host, error));
    NOSA_TRY(add_transfer(t, "host", "gpu", &t->kv_host_to_gpu, error));
    NOSA_TRY(add_transfer(t, "host", "nvme", &t->kv_host_to_nvme, error));
    NOSA_TRY(add_transfer(t, "nvme", "host", &t->kv_nvme_to_host, error));
    NOSA_TRY(counter(t, "nosa_kv_corrupt_blocks_total",
                     "Blocks on NVMe whose checksums did not match, all workers.", NULL,
                     &t->kv_corrupt_blocks, error));
    return counter(t, "nosa_kv_recomputed_blocks_total",
                   "Blocks that were counted on and computed again, all workers.", NULL,
                   &t->kv_recomputed_blocks, error);
}

static enum nosa_status add_gauges(struct nosa_telemetry *t, struct nosa_error *error)
{
    static const char *const states[] = {NULL, "STARTING", "READY", "DRAINING", "DRAINED", "LOST"};
    NOSA_TRY(gauge(t, "nosa_requests_running", "Generations that a worker computes.", NULL,
                   &t->running, error));
    NOSA_TRY(gauge(t, "nosa_requests_waiting", "Generations that wait for their start.", NULL,
                   &t->waiting, error));
    for (int i = 1; i < 6; i++) {
        const struct nosa_label label = {"state", states[i]};
        NOSA_TRY(gauge(t, "nosa_workers", "Workers by state.", &label, &t->workers[i], error));
    }
    return NOSA_OK;
}

static enum nosa_status add_histograms(struct nosa_telemetry *t, struct nosa_error *error)
{
    NOSA_TRY(histogram(t, "nosa_time_to_first_token_seconds",
                       "From a request's arrival to its first token.", &t->ttft, error));
    NOSA_TRY(histogram(t, "nosa_inter_token_latency_seconds", "Between tokens of a generation.",
                       &t->inter_token, error));
    NOSA_TRY(histogram(t, "nosa_e2e_request_latency_seconds",
                       "From a request's arrival to its end with OK.", &t->e2e, error));
    return histogram(t, "nosa_redispatch_seconds",
                     "From the notice that a worker is gone to the next one's start of work.",
                     &t->redispatch, error);
}

enum nosa_status nosa_telemetry_create(struct nosa_telemetry **out, struct nosa_error *error)
{
    struct nosa_telemetry *telemetry = calloc(1, sizeof *telemetry);
    *out = NULL;
    if (!telemetry)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for metrics");
    telemetry->start_ns = nosa_monotonic_ns();
    enum nosa_status status = nosa_metrics_create(&telemetry->metrics, error);
    if (status == NOSA_OK)
        status = add_gauges(telemetry, error);
    if (status == NOSA_OK)
        status = add_histograms(telemetry, error);
    if (status == NOSA_OK)
        status = add_counters(telemetry, error);
    if (status == NOSA_OK)
        status = add_kv(telemetry, error);
    if (status == NOSA_OK)
        status = add_kv_cache(telemetry, error);
    if (status != NOSA_OK) {
        nosa_telemetry_free(telemetry);
        return status;
    }
    *out = telemetry;
    return NOSA_OK;
}

void nosa_telemetry_free(struct nosa_telemetry *telemetry)
{
    if (!telemetry)
        return;
    nosa_metrics_free(telemetry->metrics);
    free(telemetry);
}

/* The totals only grow; one thread, that of /metrics, calls. */
static void raise_to(struct nosa_counter *counter_to, uint64_t value)
{
    uint64_t now = nosa_counter_value(counter_to);
    nosa_counter_add(counter_to, value > now ? value - now : 0);
}

void nosa_telemetry_set_kv(struct nosa_telemetry *telemetry, const struct nosa_kv_totals *totals,
                           const double usage[NOSA_REGISTRY_TIERS_MAX])
{
    for (int tier = 0; tier < NOSA_REGISTRY_TIERS_MAX; tier++) {
        raise_to(telemetry->kv_hits[tier], totals->hits[tier]);
        nosa_gauge_set(telemetry->kv_usage[tier], usage[tier]);
    }
    raise_to(telemetry->kv_gpu_to_host, totals->gpu_to_host_bytes);
    raise_to(telemetry->kv_host_to_gpu, totals->host_to_gpu_bytes);
    raise_to(telemetry->kv_host_to_nvme, totals->host_to_nvme_bytes);
    raise_to(telemetry->kv_nvme_to_host, totals->nvme_to_host_bytes);
    raise_to(telemetry->kv_corrupt_blocks, totals->corrupt_blocks);
    raise_to(telemetry->kv_recomputed_blocks, totals->recomputed_blocks);
    raise_to(telemetry->kv_evicted_blocks, totals->evicted_blocks);
    raise_to(telemetry->kv_prefix_lookup_tokens, totals->prefix_lookup_tokens);
    raise_to(telemetry->kv_prefix_hit_tokens, totals->prefix_hit_tokens);
}

static uint32_t second_of(uint64_t start_ns)
{
    return (uint32_t)((nosa_monotonic_ns() - start_ns) / NOSA_NS_PER_S) + 1;
}

static void note(struct nosa_latency_ring *ring, uint64_t start_ns, double seconds)
{
    float ms = (float)(seconds * 1000);
    uint32_t bits;
    memcpy(&bits, &ms, sizeof bits);
    unsigned slot = atomic_fetch_add(&ring->next, 1) & (NOSA_TELEMETRY_SAMPLES - 1);
    atomic_store(&ring->samples[slot], (uint64_t)second_of(start_ns) << 32 | bits);
}

void nosa_telemetry_ttft(struct nosa_telemetry *telemetry, double seconds)
{
    nosa_histogram_observe(telemetry->ttft, seconds);
    note(&telemetry->ttft_ring, telemetry->start_ns, seconds);
}

void nosa_telemetry_inter_token(struct nosa_telemetry *telemetry, double seconds, uint32_t tokens)
{
    for (uint32_t i = 0; i < tokens && i < ITL_OBSERVATIONS_MAX; i++)
        nosa_histogram_observe(telemetry->inter_token, seconds / tokens);
    note(&telemetry->inter_token_ring, telemetry->start_ns, seconds / tokens);
}

void nosa_telemetry_tick(struct nosa_telemetry *telemetry)
{
    unsigned slot = (atomic_load(&telemetry->ticks) + 1) % (NOSA_TELEMETRY_SECONDS + 1);
    atomic_store(&telemetry->prompt_history[slot], nosa_counter_value(telemetry->prompt_tokens));
    atomic_store(&telemetry->generation_history[slot],
                 nosa_counter_value(telemetry->generation_tokens));
    atomic_fetch_add(&telemetry->ticks, 1);
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void nosa_telemetry_percentiles(const struct nosa_latency_ring *ring, uint64_t start_ns,
                                double *p50_ms, double *p99_ms)
{
    size_t count = 0;
    uint32_t now = second_of(start_ns);
    *p50_ms = *p99_ms = 0;
    float *values = malloc(NOSA_TELEMETRY_SAMPLES * sizeof *values);
    if (!values)
        return;
    for (size_t i = 0; i < NOSA_TELEMETRY_SAMPLES; i++) {
        uint64_t sample = atomic_load(&ring->samples[i]);
        uint32_t bits = (uint32_t)sample;
        uint32_t second = (uint32_t)(sample >> 32);
        if (second > 0 && second + NOSA_TELEMETRY_SECONDS >= now)
            memcpy(&values[count++], &bits, sizeof bits);
    }
    if (count > 0) {
        qsort(values, count, sizeof *values, compare);
        *p50_ms = (double)values[count / 2];
        *p99_ms = (double)values[count * 99 / 100];
    }
    free(values);
}

void nosa_telemetry_rates(struct nosa_telemetry *telemetry, double *prompt_per_s,
                          double *generation_per_s)
{
    unsigned ticks = atomic_load(&telemetry->ticks);
    unsigned span = ticks < NOSA_TELEMETRY_SECONDS ? ticks : NOSA_TELEMETRY_SECONDS;
    *prompt_per_s = *generation_per_s = 0;
    if (span == 0)
        return;
    unsigned slot = (ticks - span) % (NOSA_TELEMETRY_SECONDS + 1);
    unsigned last = ticks % (NOSA_TELEMETRY_SECONDS + 1);
    *prompt_per_s =
        (double)(telemetry->prompt_history[last] - telemetry->prompt_history[slot]) / span;
    *generation_per_s =
        (double)(telemetry->generation_history[last] - telemetry->generation_history[slot]) / span;
}
