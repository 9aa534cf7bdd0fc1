#include "bench_statistics.h"

#include <math.h>

#include "base/clock.h"

#define SUB (UINT64_C(1) << NOSA_BENCH_HISTOGRAM_BITS)

/* ---- times ---- */

/* Buckets of width 1 below SUB; above, every octave has SUB buckets of equal width. */
static uint32_t bucket_of(uint64_t ns)
{
    const uint64_t most =
        (UINT64_C(1) << (NOSA_BENCH_HISTOGRAM_OCTAVES - 1 + NOSA_BENCH_HISTOGRAM_BITS)) - 1;
    ns = ns < most ? ns : most;
    if (ns < SUB)
        return (uint32_t)ns;
    uint32_t exponent = 63 - (uint32_t)__builtin_clzll(ns) - NOSA_BENCH_HISTOGRAM_BITS;
    return (uint32_t)(((exponent + 1) * SUB) + ((ns >> exponent) - SUB));
}

/* The middle of a bucket. */
static double value_of(uint32_t bucket)
{
    if (bucket < SUB)
        return bucket;
    uint32_t exponent = bucket / (uint32_t)SUB - 1;
    uint64_t low = (SUB + bucket % SUB) << exponent;
    return (double)low + (double)(UINT64_C(1) << exponent) / 2;
}

void nosa_bench_histogram_add(struct nosa_bench_histogram *histogram, uint64_t ns)
{
    if (histogram->count == 0 || ns < histogram->min_ns)
        histogram->min_ns = ns;
    if (ns > histogram->max_ns)
        histogram->max_ns = ns;
    histogram->count++;
    histogram->sum_ns += (double)ns;
    histogram->buckets[bucket_of(ns)]++;
}

double nosa_bench_histogram_percentile_ns(const struct nosa_bench_histogram *histogram,
                                          double percent)
{
    uint64_t seen = 0;
    if (histogram->count == 0)
        return 0;
    double wanted = ceil(percent / 100 * (double)histogram->count);
    uint64_t rank = wanted >= 1 ? (uint64_t)wanted : 1;
    uint32_t bucket = 0;
    while (bucket + 1 < NOSA_BENCH_HISTOGRAM_BUCKETS && (seen += histogram->buckets[bucket]) < rank)
        bucket++;
    double value = value_of(bucket);
    value = value < (double)histogram->max_ns ? value : (double)histogram->max_ns;
    return value > (double)histogram->min_ns ? value : (double)histogram->min_ns;
}

struct nosa_bench_summary nosa_bench_histogram_summary(const struct nosa_bench_histogram *histogram)
{
    struct nosa_bench_summary summary = {.count = histogram->count};
    if (histogram->count == 0)
        return summary;
    summary.mean_ms = histogram->sum_ns / (double)histogram->count / 1e6;
    summary.min_ms = (double)histogram->min_ns / 1e6;
    summary.max_ms = (double)histogram->max_ns / 1e6;
    summary.p50_ms = nosa_bench_histogram_percentile_ns(histogram, 50) / 1e6;
    summary.p95_ms = nosa_bench_histogram_percentile_ns(histogram, 95) / 1e6;
    summary.p99_ms = nosa_bench_histogram_percentile_ns(histogram, 99) / 1e6;
    return summary;
}

/* ---- requests ---- */

static bool within(double limit_ms, double ns)
{
    return limit_ms <= 0 || ns <= limit_ms * 1e6;
}

/* Adds a request that ended with OK. */
static void add_completed(struct nosa_bench_statistics *statistics,
                          const struct nosa_bench_outcome *outcome)
{
    const struct nosa_bench_limits *limits = &statistics->limits;
    double e2e_ns = (double)(outcome->end_ns - outcome->planned_ns);
    bool good = within(limits->e2e_ms, e2e_ns);
    statistics->completed++;
    statistics->prompt_tokens += outcome->prompt_tokens;
    statistics->cached_tokens += outcome->cached_tokens;
    statistics->output_tokens += outcome->output_tokens;
    nosa_bench_histogram_add(&statistics->e2e, (uint64_t)e2e_ns);
    if (outcome->first_ns) {
        uint64_t ttft_ns = outcome->first_ns - outcome->planned_ns;
        nosa_bench_histogram_add(&statistics->ttft, ttft_ns);
        good = good && within(limits->ttft_ms, (double)ttft_ns);
    }
    if (outcome->output_tokens > 1) {
        uint64_t tpot_ns = (outcome->last_ns - outcome->first_ns) / (outcome->output_tokens - 1);
        nosa_bench_histogram_add(&statistics->tpot, tpot_ns);
        good = good && within(limits->tpot_ms, (double)tpot_ns);
    }
    statistics->good += good;
}

void nosa_bench_statistics_add(struct nosa_bench_statistics *statistics,
                               const struct nosa_bench_outcome *outcome)
{
    if (!statistics->first_ns || outcome->planned_ns < statistics->first_ns)
        statistics->first_ns = outcome->planned_ns;
    if (outcome->end_ns > statistics->last_ns)
        statistics->last_ns = outcome->end_ns;
    nosa_bench_histogram_add(&statistics->late, outcome->sent_ns - outcome->planned_ns);
    if (outcome->code == NOSA_RPC_OK)
        add_completed(statistics, outcome);
    else
        statistics
            ->failed[outcome->code < NOSA_RPC_CODE_COUNT ? outcome->code : NOSA_RPC_UNKNOWN]++;
}

uint64_t nosa_bench_statistics_failed(const struct nosa_bench_statistics *statistics)
{
    uint64_t failed = 0;
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++)
        failed += statistics->failed[code];
    return failed;
}

double nosa_bench_statistics_seconds(const struct nosa_bench_statistics *statistics)
{
    return nosa_seconds_between(statistics->first_ns, statistics->last_ns);
}
