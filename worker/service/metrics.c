#include "service/metrics.h"

#include <math.h>
#include <string.h>

static const double latency_bounds_s[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                          1,     2.5,    5,     10,   30,    60,   120, 300,  600};
#define N_BOUNDS (sizeof latency_bounds_s / sizeof *latency_bounds_s)

static const char *const tier_names[NOSA_METRIC_TIERS] = {"gpu", "host", "nvme"};
static const char *const method_names[NOSA_METRIC_METHODS] = {"io_uring", "threads", "none"};

/* Registers one after the other; after a failure the rest does nothing. */
struct registration {
    struct nosa_metrics *registry;
    enum nosa_status status;
    struct nosa_error *error;
};

static struct nosa_metric_options describe(const char *name, const char *help,
                                           const struct nosa_label *labels, size_t count)
{
    return (struct nosa_metric_options){
        .name = name, .help = help, .labels = labels, .label_count = count};
}

static void gauge(struct registration *to, struct nosa_gauge **out, const char *name,
                  const char *help, const struct nosa_label *labels, size_t count)
{
    struct nosa_metric_options options = describe(name, help, labels, count);
    if (to->status == NOSA_OK)
        to->status = nosa_metrics_gauge(to->registry, &options, out, to->error);
}

static void counter(struct registration *to, struct nosa_counter **out, const char *name,
                    const char *help, const struct nosa_label *labels, size_t count)
{
    struct nosa_metric_options options = describe(name, help, labels, count);
    if (to->status == NOSA_OK)
        to->status = nosa_metrics_counter(to->registry, &options, out, to->error);
}

static void histogram(struct registration *to, struct nosa_histogram **out, const char *name,
                      const char *help)
{
    struct nosa_metric_options options = describe(name, help, NULL, 0);
    if (to->status == NOSA_OK)
        to->status = nosa_metrics_histogram(to->registry, &options, latency_bounds_s, N_BOUNDS, out,
                                            to->error);
}

static void register_requests(struct registration *to, struct nosa_worker_metrics *metrics)
{
    gauge(to, &metrics->running, "nosa_requests_running", "Requests in the batch.", NULL, 0);
    gauge(to, &metrics->waiting, "nosa_requests_waiting", "Requests that wait for a place.", NULL,
          0);
    gauge(to, &metrics->suspended, "nosa_requests_suspended",
          "Requests whose KV was moved below to make room.", NULL, 0);
    histogram(to, &metrics->first_token_s, "nosa_time_to_first_token_seconds",
              "From a request's arrival at this worker to its first new token.");
    histogram(to, &metrics->inter_token_s, "nosa_inter_token_latency_seconds",
              "Between two tokens of a request.");
    histogram(to, &metrics->request_s, "nosa_e2e_request_latency_seconds",
              "From a request's arrival at this worker to its end.");
    histogram(to, &metrics->queue_s, "nosa_request_queue_time_seconds",
              "From a request's arrival at this worker to its place.");
    histogram(to, &metrics->step_s, "nosa_step_duration_seconds", "Time of an engine step.");
    counter(to, &metrics->prompt_tokens, "nosa_prompt_tokens_total",
            "Prompt tokens of requests that got a place, cached ones included.", NULL, 0);
    counter(to, &metrics->cached_tokens, "nosa_prompt_tokens_cached_total",
            "Prompt tokens whose KV was taken from a cache.", NULL, 0);
    counter(to, &metrics->generation_tokens, "nosa_generation_tokens_total", "Tokens generated.",
            NULL, 0);
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++) {
        struct nosa_label label = {"code", nosa_rpc_code_name((enum nosa_rpc_code)code)};
        counter(to, &metrics->requests[code], "nosa_requests_total",
                "Requests that ended, by gRPC status.", &label, 1);
    }
    counter(to, &metrics->suspends, "nosa_request_suspends_total",
            "Times that a request's KV was moved below to make room.", NULL, 0);
    counter(to, &metrics->drops, "nosa_request_drops_total",
            "Times that a request's KV was given up to make room, to be computed again.", NULL, 0);
    counter(to, &metrics->decode_stalls, "nosa_decode_stalls_total",
            "Times that a running request got no row for want of a block.", NULL, 0);
}

static void register_transfer(struct registration *to, struct nosa_counter **out, const char *from,
                              const char *where)
{
    struct nosa_label labels[] = {{"from", from}, {"to", where}};
    counter(to, out, "nosa_kv_transfer_bytes_total", "KV bytes moved between tiers.", labels, 2);
}

static void register_kv(struct registration *to, struct nosa_worker_metrics *metrics)
{
    for (int tier = 0; tier < NOSA_METRIC_TIERS; tier++) {
        struct nosa_label label = {"tier", tier_names[tier]};
        counter(to, &metrics->hits[tier], "nosa_kv_block_hits_total",
                "Block records that attention read, by the tier they were found in.", &label, 1);
    }
    for (int tier = 0; tier < NOSA_METRIC_TIERS; tier++) {
        struct nosa_label label = {"tier", tier_names[tier]};
        gauge(to, &metrics->usage[tier], "nosa_kv_usage_ratio",
              "Share of a tier's blocks that hold KV, cached ones included.", &label, 1);
    }
    register_transfer(to, &metrics->first_to_host_bytes, "gpu", "host");
    register_transfer(to, &metrics->host_to_first_bytes, "host", "gpu");
    register_transfer(to, &metrics->host_to_nvme_bytes, "host", "nvme");
    register_transfer(to, &metrics->nvme_to_host_bytes, "nvme", "host");
    counter(to, &metrics->corrupt_blocks, "nosa_kv_corrupt_blocks_total",
            "Blocks on NVMe whose checksums did not match.", NULL, 0);
    counter(to, &metrics->recomputed_blocks, "nosa_kv_recomputed_blocks_total",
            "Blocks that were counted on and computed again.", NULL, 0);
    gauge(to, &metrics->blocks_used, "nosa_kv_blocks_used",
          "Block ids that open sequences hold; 0 when nothing runs.", NULL, 0);
    gauge(to, &metrics->sessions, "nosa_sessions_open", "Open sessions of the engine.", NULL, 0);
}

/* What the store does below the first tier, and to the prefixes in it. */
static void register_store(struct registration *to, struct nosa_worker_metrics *metrics)
{
    const struct nosa_label reasons[] = {{"reason", "full"}, {"reason", "budget"}};
    counter(to, &metrics->prefix_tokens, "nosa_kv_prefix_lookup_tokens_total",
            "Tokens for which a prefix was looked up.", NULL, 0);
    counter(to, &metrics->prefix_hit_tokens, "nosa_kv_prefix_hit_tokens_total",
            "Of these, tokens whose KV was there.", NULL, 0);
    counter(to, &metrics->evicted_blocks, "nosa_kv_evicted_blocks_total",
            "Cached blocks that gave way in the first tier.", NULL, 0);
    counter(to, &metrics->saved_blocks, "nosa_kv_saved_blocks_total",
            "Blocks copied to the host tier.", NULL, 0);
    counter(to, &metrics->loaded_blocks, "nosa_kv_loaded_blocks_total",
            "Blocks brought up from the host tier.", NULL, 0);
    counter(to, &metrics->lost_images, "nosa_kv_lost_blocks_total",
            "Blocks that left the host tier without a copy below.", NULL, 0);
    counter(to, &metrics->prefetched, "nosa_kv_prefetched_records_total",
            "Block records brought up before a step asked for them.", NULL, 0);
    counter(to, &metrics->prefetched_used, "nosa_kv_prefetched_records_used_total",
            "Of these, records that were used, of requests that have ended.", NULL, 0);
    histogram(to, &metrics->stall_s, "nosa_kv_stall_seconds",
              "Time that a request waited for KV to be read from NVMe.");
    gauge(to, &metrics->nvme_bypassed, "nosa_kv_nvme_bypassed",
          "1 while the NVMe tier is left alone because it failed repeatedly.", NULL, 0);
    counter(to, &metrics->nvme_bypassed_blocks, "nosa_kv_nvme_bypassed_blocks_total",
            "Blocks found on NVMe that were computed instead: cheaper, or the tier is bypassed.",
            NULL, 0);
    counter(to, &metrics->nvme_refused_full, "nosa_kv_nvme_refused_writes_total",
            "Blocks that were not written to NVMe, by reason.", &reasons[0], 1);
    counter(to, &metrics->nvme_refused_budget, "nosa_kv_nvme_refused_writes_total",
            "Blocks that were not written to NVMe, by reason.", &reasons[1], 1);
    counter(to, &metrics->nvme_failed_writes, "nosa_kv_nvme_failed_writes_total",
            "Writes to NVMe that failed.", NULL, 0);
    gauge(to, &metrics->nvme_budget_left_bytes, "nosa_kv_nvme_write_budget_left_bytes",
          "What the day's endurance budget leaves; +Inf without one.", NULL, 0);
    for (int method = 0; method < NOSA_METRIC_METHODS; method++) {
        struct nosa_label label = {"method", method_names[method]};
        gauge(to, &metrics->nvme_method[method], "nosa_kv_nvme_io_method",
              "1 for the way in which the NVMe tier reads and writes.", &label, 1);
    }
}

enum nosa_status nosa_worker_metrics_create(struct nosa_worker_metrics *metrics,
                                            struct nosa_error *error)
{
    *metrics = (struct nosa_worker_metrics){0};
    NOSA_TRY(nosa_metrics_create(&metrics->registry, error));
    struct registration to = {metrics->registry, NOSA_OK, error};
    register_requests(&to, metrics);
    register_kv(&to, metrics);
    register_store(&to, metrics);
    if (to.status != NOSA_OK)
        nosa_worker_metrics_free(metrics);
    return to.status;
}

void nosa_worker_metrics_free(struct nosa_worker_metrics *metrics)
{
    nosa_metrics_free(metrics->registry);
    *metrics = (struct nosa_worker_metrics){0};
}

static void raise_to(struct nosa_counter *counter_to, uint64_t value)
{
    uint64_t now = nosa_counter_value(counter_to);
    if (value > now)
        nosa_counter_add(counter_to, value - now);
}

static double ratio(double part, double whole)
{
    double value = whole > 0 ? part / whole : 0;
    return value > 1 ? 1 : value;
}

static void set_store(struct nosa_worker_metrics *metrics, const struct nosa_engine_info *info,
                      const struct nosa_kv_store_counters *kv,
                      const struct nosa_engine_kv_traffic *traffic)
{
    const char *method = info->nvme_method ? info->nvme_method : "none";
    raise_to(metrics->prefix_tokens, kv->prefix_lookup_tokens);
    raise_to(metrics->prefix_hit_tokens, kv->prefix_hit_tokens);
    raise_to(metrics->evicted_blocks, kv->evicted_blocks);
    raise_to(metrics->saved_blocks, kv->saved_blocks);
    raise_to(metrics->loaded_blocks, kv->loaded_blocks);
    raise_to(metrics->lost_images, kv->lost_images);
    raise_to(metrics->prefetched, traffic->prefetched_records);
    nosa_gauge_set(metrics->nvme_bypassed, kv->nvme_bypassed);
    raise_to(metrics->nvme_bypassed_blocks, kv->nvme_bypassed_blocks);
    raise_to(metrics->nvme_refused_full, traffic->nvme_refused_full);
    raise_to(metrics->nvme_refused_budget, traffic->nvme_refused_budget);
    raise_to(metrics->nvme_failed_writes, traffic->nvme_failed_writes);
    nosa_gauge_set(metrics->nvme_budget_left_bytes, traffic->nvme_budget_left_bytes == UINT64_MAX
                                                        ? INFINITY
                                                        : (double)traffic->nvme_budget_left_bytes);
    for (int i = 0; i < NOSA_METRIC_METHODS; i++)
        nosa_gauge_set(metrics->nvme_method[i], strcmp(method, method_names[i]) == 0);
}

void nosa_worker_metrics_set_kv(struct nosa_worker_metrics *metrics,
                                const struct nosa_engine_info *info,
                                const struct nosa_kv_store_counters *kv,
                                const struct nosa_engine_kv_traffic *traffic)
{
    raise_to(metrics->first_to_host_bytes, traffic->first_to_host_bytes);
    raise_to(metrics->host_to_first_bytes, traffic->host_to_first_bytes);
    raise_to(metrics->host_to_nvme_bytes, traffic->nvme_written_bytes);
    raise_to(metrics->nvme_to_host_bytes, traffic->nvme_read_bytes);
    raise_to(metrics->corrupt_blocks, traffic->corrupt_blocks);
    raise_to(metrics->recomputed_blocks, traffic->recomputed_blocks);
    set_store(metrics, info, kv, traffic);
    nosa_gauge_set(metrics->usage[0], ratio(kv->blocks_used + kv->blocks_cached, kv->blocks_total));
    nosa_gauge_set(metrics->usage[1], ratio(kv->images_held + kv->images_cached, kv->images_total));
    nosa_gauge_set(metrics->usage[2], ratio((double)traffic->nvme_blocks_held, info->nvme_blocks));
    nosa_gauge_set(metrics->blocks_used, kv->blocks_used);
    nosa_gauge_set(metrics->sessions, kv->sequences);
}
