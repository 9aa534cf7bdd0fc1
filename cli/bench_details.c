#include "bench_details.h"

#include <stdlib.h>

struct nosa_bench_details {
    json_t *list;
    bool failed;
};

enum nosa_status nosa_bench_details_create(struct nosa_bench_details **out,
                                           struct nosa_error *error)
{
    struct nosa_bench_details *details = calloc(1, sizeof *details);
    if (details)
        details->list = json_array();
    *out = details;
    if (details && details->list)
        return NOSA_OK;
    nosa_bench_details_free(details);
    *out = NULL;
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the details");
}

void nosa_bench_details_free(struct nosa_bench_details *details)
{
    if (!details)
        return;
    json_decref(details->list);
    free(details);
}

static double ms_between(uint64_t begin_ns, uint64_t end_ns)
{
    return (double)(end_ns - begin_ns) / 1e6;
}

/* A moment, in seconds by the machine's monotonic clock; null for none. */
static json_t *moment(uint64_t ns)
{
    return ns ? json_real((double)ns / 1e9) : json_null();
}

void nosa_bench_details_add(void *context, const struct nosa_bench_record *record)
{
    struct nosa_bench_details *details = context;
    const struct nosa_bench_outcome *outcome = record->outcome;
    json_t *object = json_pack(
        "{s:I, s:I, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:o}", "index",
        (json_int_t)record->request->index, "prefix_group", (json_int_t)record->request->group,
        "worker_id", record->worker_id, "code", nosa_rpc_code_name(outcome->code), "prompt_tokens",
        (json_int_t)outcome->prompt_tokens, "cached_prompt_tokens",
        (json_int_t)outcome->cached_tokens, "output_tokens", (json_int_t)outcome->output_tokens,
        "planned_s", moment(outcome->planned_ns), "sent_s", moment(outcome->sent_ns),
        "first_token_s", moment(outcome->first_ns), "end_s", moment(outcome->end_ns), "ttft_ms",
        outcome->first_ns ? json_real(ms_between(outcome->planned_ns, outcome->first_ns))
                          : json_null(),
        "e2e_ms", ms_between(outcome->planned_ns, outcome->end_ns), "gap_ms_max",
        (double)record->gap_ns_max / 1e6, "gap_begin_s", moment(record->gap_begin_ns));
    if (!object || json_array_append_new(details->list, object) != 0)
        details->failed = true;
}

json_t *nosa_bench_details_list(const struct nosa_bench_details *details)
{
    return details->failed ? NULL : details->list;
}
