/* The worker's metrics, named as the coordinator's and vLLM's where they mean the same. Updates
 * come from any thread. */
#ifndef NOSA_SERVICE_METRICS_H
#define NOSA_SERVICE_METRICS_H

#include <stdint.h>

#include "base/metrics.h"
#include "engine/engine.h"
#include "rpc/code.h"

#define NOSA_METRIC_TIERS   3 /* gpu, host, nvme */
#define NOSA_METRIC_METHODS 3 /* io_uring, threads, none */

struct nosa_worker_metrics {
    struct nosa_metrics *registry; /* owned; the handles are its */
    struct nosa_gauge *running;
    struct nosa_gauge *waiting;
    struct nosa_gauge *suspended;
    struct nosa_histogram *first_token_s;
    struct nosa_histogram *inter_token_s;
    struct nosa_histogram *request_s;
    struct nosa_histogram *queue_s;
    struct nosa_histogram *step_s;
    struct nosa_histogram *stall_s;
    struct nosa_counter *prompt_tokens;
    struct nosa_counter *cached_tokens;
    struct nosa_counter *generation_tokens;
    struct nosa_counter *requests[NOSA_RPC_CODE_COUNT];
    struct nosa_counter *hits[NOSA_METRIC_TIERS];
    struct nosa_gauge *usage[NOSA_METRIC_TIERS];
    struct nosa_counter *first_to_host_bytes;
    struct nosa_counter *host_to_first_bytes;
    struct nosa_counter *host_to_nvme_bytes;
    struct nosa_counter *nvme_to_host_bytes;
    struct nosa_counter *corrupt_blocks;
    struct nosa_counter *recomputed_blocks;
    struct nosa_counter *suspends;
    struct nosa_counter *drops;
    struct nosa_counter *decode_stalls;
    struct nosa_counter *prefix_tokens, *prefix_hit_tokens;
    struct nosa_counter *evicted_blocks, *saved_blocks, *loaded_blocks, *lost_images;
    struct nosa_counter *prefetched, *prefetched_used; /* records */
    struct nosa_gauge *nvme_bypassed;
    struct nosa_counter *nvme_bypassed_blocks;
    struct nosa_counter *nvme_refused_full, *nvme_refused_budget, *nvme_failed_writes;
    struct nosa_gauge *nvme_budget_left_bytes;
    struct nosa_gauge *nvme_method[NOSA_METRIC_METHODS];
    struct nosa_gauge *blocks_used;
    struct nosa_gauge *sessions;
};

enum nosa_status nosa_worker_metrics_create(struct nosa_worker_metrics *metrics,
                                            struct nosa_error *error);
/* Zero bytes are allowed. */
void nosa_worker_metrics_free(struct nosa_worker_metrics *metrics);

/* Brings the counters of moves and the usage of the tiers up to what the engine counted. */
void nosa_worker_metrics_set_kv(struct nosa_worker_metrics *metrics,
                                const struct nosa_engine_info *info,
                                const struct nosa_kv_store_counters *kv,
                                const struct nosa_engine_kv_traffic *traffic);

#endif
