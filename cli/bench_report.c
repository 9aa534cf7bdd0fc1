#include "bench_report.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>

/* ---- what both forms say ---- */

struct rates {
    double seconds;
    double requests, output_tokens, tokens, good; /* per second */
    double good_share;                            /* of all that ended */
};

static struct rates rates_of(const struct nosa_bench_statistics *s)
{
    struct rates rates = {.seconds = nosa_bench_statistics_seconds(s)};
    uint64_t ended = s->completed + nosa_bench_statistics_failed(s);
    if (ended > 0)
        rates.good_share = (double)s->good / (double)ended;
    if (rates.seconds <= 0)
        return rates;
    rates.requests = (double)s->completed / rates.seconds;
    rates.output_tokens = (double)s->output_tokens / rates.seconds;
    rates.tokens = (double)(s->prompt_tokens + s->output_tokens) / rates.seconds;
    rates.good = (double)s->good / rates.seconds;
    return rates;
}

static double full_rate(const struct nosa_bench_result *result)
{
    return result->full_s > 0 ? (double)result->full_tokens / result->full_s : 0;
}

static bool has_limits(const struct nosa_bench_limits *limits)
{
    return limits->ttft_ms > 0 || limits->tpot_ms > 0 || limits->e2e_ms > 0;
}

/* ---- for people ---- */

static void print_load(const struct nosa_bench_options *options, FILE *stream)
{
    const struct nosa_bench_plan *plan = &options->plan;
    if (options->rate > 0)
        fprintf(stream, "load         open loop, %.4g requests/s, %s", options->rate,
                options->poisson ? "Poisson" : "evenly spaced");
    else
        fprintf(stream, "load         closed loop");
    if (options->concurrency > 0)
        fprintf(stream, ", %s%u in flight", options->rate > 0 ? "at most " : "",
                options->concurrency);
    fprintf(stream, ", seed %" PRIu64 "\n", plan->seed);
    if (plan->prefix_groups > 0)
        fprintf(stream, "prefixes     %u groups of %u tokens\n", plan->prefix_groups,
                plan->prefix_tokens);
}

static void print_times(const char *name, const struct nosa_bench_histogram *histogram,
                        FILE *stream)
{
    struct nosa_bench_summary summary = nosa_bench_histogram_summary(histogram);
    if (summary.count == 0)
        return;
    fprintf(stream, "%-12s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, summary.mean_ms,
            summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms);
}

static void print_goodput(const struct nosa_bench_limits *limits, const struct rates *rates,
                          FILE *stream)
{
    const char *separator = "";
    if (!has_limits(limits))
        return;
    fprintf(stream, "goodput      %.2f requests/s, %.1f %% within ", rates->good,
            100 * rates->good_share);
    if (limits->ttft_ms > 0) {
        fprintf(stream, "TTFT %g ms", limits->ttft_ms);
        separator = ", ";
    }
    if (limits->tpot_ms > 0) {
        fprintf(stream, "%sTPOT %g ms", separator, limits->tpot_ms);
        separator = ", ";
    }
    if (limits->e2e_ms > 0)
        fprintf(stream, "%sE2E %g ms", separator, limits->e2e_ms);
    fprintf(stream, "\n");
}

static void print_failures(const struct nosa_bench_result *result, FILE *stream)
{
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++)
        if (result->statistics.failed[code] > 0)
            fprintf(stream, "failed       %" PRIu64 " %s: %s\n", result->statistics.failed[code],
                    nosa_rpc_code_name((enum nosa_rpc_code)code), result->failures[code]);
}

void nosa_bench_print(const struct nosa_bench_options *options,
                      const struct nosa_bench_result *result, FILE *stream)
{
    const struct nosa_bench_statistics *s = &result->statistics;
    struct rates rates = rates_of(s);
    print_load(options, stream);
    fprintf(stream, "requests     %" PRIu64 " completed, %" PRIu64 " failed, %.2f s%s\n",
            s->completed, nosa_bench_statistics_failed(s), rates.seconds,
            result->interrupted ? ", interrupted" : "");
    fprintf(stream,
            "tokens       %" PRIu64 " prompt (%" PRIu64 " from a cache), %" PRIu64 " output\n",
            s->prompt_tokens, s->cached_tokens, s->output_tokens);
    fprintf(stream, "throughput   %.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all\n",
            rates.requests, rates.output_tokens, rates.tokens);
    if (result->full_s > 0)
        fprintf(stream, "at full load %.1f output tokens/s over %.2f s\n", full_rate(result),
                result->full_s);
    print_goodput(&s->limits, &rates, stream);
    for (size_t i = 0; i < result->worker_count && result->worker_count > 1; i++)
        fprintf(stream, "%-12s %" PRIu64 " on %s\n", i == 0 ? "workers" : "",
                result->workers[i].requests, result->workers[i].id);
    print_failures(result, stream);
    fprintf(stream, "\n%-12s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p95", "p99", "max");
    print_times("TTFT", &s->ttft, stream);
    print_times("TPOT", &s->tpot, stream);
    print_times("ITL", &s->itl, stream);
    print_times("E2E", &s->e2e, stream);
    if (options->rate > 0)
        print_times("sent late", &s->late, stream);
}

/* ---- JSON ---- */

static json_t *times_json(const struct nosa_bench_histogram *histogram)
{
    struct nosa_bench_summary summary = nosa_bench_histogram_summary(histogram);
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "count", (json_int_t)summary.count,
                     "mean", summary.mean_ms, "min", summary.min_ms, "p50", summary.p50_ms, "p95",
                     summary.p95_ms, "p99", summary.p99_ms, "max", summary.max_ms);
}

static json_t *failures_json(const struct nosa_bench_result *result)
{
    json_t *list = json_array();
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++) {
        json_t *text;
        if (result->statistics.failed[code] == 0)
            continue;
        text = json_string(result->failures[code]);
        json_array_append_new(list, json_pack("{s:s, s:I, s:o}", "code",
                                              nosa_rpc_code_name((enum nosa_rpc_code)code), "count",
                                              (json_int_t)result->statistics.failed[code], "text",
                                              text ? text : json_string("")));
    }
    return list;
}

static json_t *workers_json(const struct nosa_bench_result *result)
{
    json_t *list = json_array();
    for (size_t i = 0; i < result->worker_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:I}", "id", result->workers[i].id, "requests",
                                              (json_int_t)result->workers[i].requests));
    return list;
}

static json_t *load_json(const struct nosa_bench_options *options)
{
    const struct nosa_bench_plan *plan = &options->plan;
    bool open = options->rate > 0;
    return json_pack(
        "{s:s, s:o, s:o, s:o, s:I, s:I, s:I}", "mode", open ? "open" : "closed", "rate",
        open ? json_real(options->rate) : json_null(), "arrivals",
        open ? json_string(options->poisson ? "poisson" : "even") : json_null(), "concurrency",
        options->concurrency ? json_integer(options->concurrency) : json_null(), "seed",
        (json_int_t)plan->seed, "prefix_groups", (json_int_t)plan->prefix_groups, "prefix_tokens",
        (json_int_t)plan->prefix_tokens);
}

static json_t *goodput_json(const struct nosa_bench_limits *limits, const struct rates *rates)
{
    if (!has_limits(limits))
        return json_null();
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "requests_per_s", rates->good, "share",
                     rates->good_share, "ttft_limit_ms", limits->ttft_ms, "tpot_limit_ms",
                     limits->tpot_ms, "e2e_limit_ms", limits->e2e_ms);
}

static json_t *result_json(const struct nosa_bench_options *options,
                           const struct nosa_bench_result *result)
{
    const struct nosa_bench_statistics *s = &result->statistics;
    struct rates rates = rates_of(s);
    json_t *object = json_pack(
        "{s:s, s:o, s:I, s:I, s:f, s:b, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:f, s:o, s:o}", "model",
        options->model, "load", load_json(options), "completed", (json_int_t)s->completed, "failed",
        (json_int_t)nosa_bench_statistics_failed(s), "duration_s", rates.seconds, "interrupted",
        (int)result->interrupted, "prompt_tokens", (json_int_t)s->prompt_tokens,
        "cached_prompt_tokens", (json_int_t)s->cached_tokens, "output_tokens",
        (json_int_t)s->output_tokens, "requests_per_s", rates.requests, "output_tokens_per_s",
        rates.output_tokens, "tokens_per_s", rates.tokens, "full_load",
        result->full_s > 0 ? json_pack("{s:f, s:f}", "seconds", result->full_s,
                                       "output_tokens_per_s", full_rate(result))
                           : json_null(),
        "client_cpu_s", result->client_cpu_s, "failures", failures_json(result), "workers",
        workers_json(result));
    json_t *times = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "goodput",
                              goodput_json(&s->limits, &rates), "ttft_ms", times_json(&s->ttft),
                              "tpot_ms", times_json(&s->tpot), "itl_ms", times_json(&s->itl),
                              "e2e_ms", times_json(&s->e2e), "sent_late_ms", times_json(&s->late));
    if (!object || !times || json_object_update(object, times) != 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(times);
    return object;
}

enum nosa_status nosa_bench_print_json(const struct nosa_bench_options *options,
                                       const struct nosa_bench_result *result,
                                       const struct nosa_bench_details *details, FILE *stream,
                                       struct nosa_error *error)
{
    json_t *object = result_json(options, result);
    json_t *list = details ? nosa_bench_details_list(details) : NULL;
    char *text = NULL;
    bool whole =
        object && (!details || (list && json_object_set(object, "per_request", list) == 0));
    if (whole)
        text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(15));
    json_decref(object);
    if (!text)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the results");
    fprintf(stream, "%s\n", text);
    free(text);
    return NOSA_OK;
}
