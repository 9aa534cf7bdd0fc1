/* What a coordinator tells operators, as text. */
#include <inttypes.h>
#include <string.h>

#include "text_format.h"
#include "text_table.h"
#include "view.h"

const char *nosa_view_worker_state(Nosa__V1__WorkerState state)
{
    switch (state) {
    case NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING: return "STARTING";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_READY: return "READY";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING: return "DRAINING";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED: return "DRAINED";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_LOST: return "LOST";
    default: return "UNSPECIFIED";
    }
}

const char *nosa_view_request_state(Nosa__V1__RequestState state)
{
    switch (state) {
    case NOSA__V1__REQUEST_STATE__REQUEST_STATE_QUEUED: return "QUEUED";
    case NOSA__V1__REQUEST_STATE__REQUEST_STATE_PREFILL: return "PREFILL";
    case NOSA__V1__REQUEST_STATE__REQUEST_STATE_DECODE: return "DECODE";
    case NOSA__V1__REQUEST_STATE__REQUEST_STATE_SUSPENDED: return "SUSPENDED";
    case NOSA__V1__REQUEST_STATE__REQUEST_STATE_PAUSED: return "PAUSED";
    case NOSA__V1__REQUEST_STATE__REQUEST_STATE_REPLAYING: return "REPLAYING";
    default: return "UNSPECIFIED";
    }
}

/* ---- workers ---- */

/* Below this width a line has no room for where a worker is and what it serves. */
#define BRIEF_BELOW 110

static const struct nosa_table_column worker_columns[] = {
    {"WORKER", false, 6}, {"STATE", false, 0}, {"RUN", true, 0},      {"WAIT", true, 0},
    {"GPU", true, 0},     {"HOST", true, 0},   {"NVME", true, 0},     {"IN/S", true, 0},
    {"OUT/S", true, 0},   {"SEEN", true, 0},   {"ADDRESS", false, 7}, {"MODEL", false, 5},
    {"REMARK", false, 6},
};

static const struct nosa_table_column brief_worker_columns[] = {
    {"WORKER", false, 6}, {"STATE", false, 0}, {"RUN", true, 0},     {"WAIT", true, 0},
    {"GPU", true, 0},     {"HOST", true, 0},   {"NVME", true, 0},    {"IN/S", true, 0},
    {"OUT/S", true, 0},   {"SEEN", true, 0},   {"REMARK", false, 6},
};

static const char *tier_share(const Nosa__V1__WorkerInfo *worker, const char *name,
                              char text[NOSA_FORMAT_MAX])
{
    for (size_t i = 0; i < worker->n_tiers; i++)
        if (strcmp(worker->tiers[i]->tier, name) == 0)
            return nosa_format_share(worker->tiers[i]->used_bytes, worker->tiers[i]->total_bytes,
                                     text);
    return "-";
}

static void add_worker(struct nosa_table *table, const Nosa__V1__WorkerInfo *worker, bool brief)
{
    char text[NOSA_FORMAT_MAX];
    nosa_table_cell(table, "%s", worker->id);
    nosa_table_cell(table, "%s", nosa_view_worker_state(worker->state));
    nosa_table_cell(table, "%" PRIu32 "/%" PRIu32, worker->requests_running, worker->batch_max);
    nosa_table_cell(table, "%" PRIu32, worker->requests_waiting + worker->requests_suspended);
    nosa_table_cell(table, "%s", tier_share(worker, "gpu", text));
    nosa_table_cell(table, "%s", tier_share(worker, "host", text));
    nosa_table_cell(table, "%s", tier_share(worker, "nvme", text));
    nosa_table_cell(table, "%s", nosa_format_count(worker->prefill_tokens_per_s, text));
    nosa_table_cell(table, "%s", nosa_format_count(worker->decode_tokens_per_s, text));
    nosa_table_cell(table, "%s", nosa_format_duration(worker->heartbeat_age_ms, text));
    if (!brief) {
        nosa_table_cell(table, "%s", worker->address);
        nosa_table_cell(table, "%s", worker->model);
    }
    nosa_table_cell(table, "%s", worker->reason);
}

void nosa_view_workers_text(const Nosa__V1__WorkersResponse *workers, uint32_t width_max,
                            uint32_t rows_max, struct nosa_buffer *out)
{
    bool brief = width_max < BRIEF_BELOW;
    struct nosa_table table = {
        .columns = brief ? brief_worker_columns : worker_columns,
        .column_count = brief ? sizeof brief_worker_columns / sizeof *brief_worker_columns
                              : sizeof worker_columns / sizeof *worker_columns,
    };
    for (size_t i = 0; i < workers->n_workers && i < rows_max; i++)
        add_worker(&table, workers->workers[i], brief);
    if (workers->n_workers == 0)
        nosa_buffer_append_text(out, "no workers\n");
    else if (nosa_table_print(&table, width_max, rows_max, out) != NOSA_OK)
        out->failed = true;
    nosa_table_free(&table);
}

/* ---- requests ---- */

static const struct nosa_table_column request_columns[] = {
    {"REQUEST", false, 8}, {"WORKER", false, 6}, {"STATE", false, 0}, {"PROMPT", true, 0},
    {"TOKENS", true, 0},   {"OF", true, 0},      {"PRIO", true, 0},   {"AGE", true, 0},
    {"REPL", true, 0},     {"CLIENT", false, 6},
};

static void add_request(struct nosa_table *table, const Nosa__V1__RequestInfo *request)
{
    char text[NOSA_FORMAT_MAX];
    nosa_table_cell(table, "%s", request->request_id);
    nosa_table_cell(table, "%s", request->worker_id[0] ? request->worker_id : "-");
    nosa_table_cell(table, "%s", nosa_view_request_state(request->state));
    nosa_table_cell(table, "%" PRIu32, request->prompt_tokens);
    nosa_table_cell(table, "%" PRIu32, request->tokens);
    nosa_table_cell(table, "%" PRIu32, request->max_tokens);
    nosa_table_cell(table, "%" PRId32, request->priority);
    nosa_table_cell(table, "%s", nosa_format_duration(request->age_ms, text));
    nosa_table_cell(table, "%" PRIu32, request->replays);
    nosa_table_cell(table, "%s%s%s", request->client_name, request->client_name[0] ? " " : "",
                    request->client);
}

void nosa_view_requests_text(const Nosa__V1__RequestsResponse *requests, uint32_t width_max,
                             uint32_t rows_max, struct nosa_buffer *out)
{
    struct nosa_table table = {
        .columns = request_columns,
        .column_count = sizeof request_columns / sizeof *request_columns,
    };
    for (size_t i = 0; i < requests->n_requests && i < rows_max; i++)
        add_request(&table, requests->requests[i]);
    if (requests->n_requests == 0)
        nosa_buffer_append_text(out, "no requests\n");
    else if (nosa_table_print(&table, width_max, rows_max, out) != NOSA_OK)
        out->failed = true;
    nosa_table_free(&table);
}

/* ---- status ---- */

/* "label      text". */
static void fact(struct nosa_buffer *out, const char *label, const char *text)
{
    nosa_buffer_printf(out, "%-14s", label);
    nosa_text_append_cut(out, text, SIZE_MAX);
    nosa_buffer_append(out, "\n", 1);
}

static void fact_latency(struct nosa_buffer *out, const char *label, double p50, double p99)
{
    char middle[NOSA_FORMAT_MAX], high[NOSA_FORMAT_MAX];
    nosa_buffer_printf(out, "%-14sp50 %s, p99 %s\n", label, nosa_format_latency(p50, middle),
                       nosa_format_latency(p99, high));
}

static void workers_line(const Nosa__V1__StatusResponse *status, struct nosa_buffer *out)
{
    nosa_buffer_printf(out, "%-14s", "workers");
    for (size_t i = 0; i < status->n_workers; i++)
        nosa_buffer_printf(out, "%s%" PRIu32 " %s", i ? ", " : "", status->workers[i]->count,
                           nosa_view_worker_state(status->workers[i]->state));
    nosa_buffer_append_text(out, status->n_workers ? "\n" : "none\n");
}

static void ended_line(const Nosa__V1__StatusResponse *status, struct nosa_buffer *out)
{
    nosa_buffer_printf(out, "%-14s", "ended");
    for (size_t i = 0; i < status->n_requests; i++)
        nosa_buffer_printf(out, "%s%" PRIu64 " %s", i ? ", " : "", status->requests[i]->count,
                           status->requests[i]->code);
    nosa_buffer_append_text(out, status->n_requests ? "\n" : "none\n");
}

void nosa_view_status_text(const Nosa__V1__StatusResponse *status, const char *server,
                           struct nosa_buffer *out)
{
    char text[NOSA_FORMAT_MAX], other[NOSA_FORMAT_MAX];
    fact(out, "server", server);
    fact(out, "version", status->version);
    fact(out, "coordinator", status->coordinator_id);
    fact(out, "up", nosa_format_duration(status->uptime_ms, text));
    fact(out, "state",
         status->draining ? "draining"
         : status->ready  ? "ready"
                          : "no worker is ready");
    workers_line(status, out);
    for (size_t i = 0; i < status->n_models; i++) {
        const Nosa__V1__ModelStatus *model = status->models[i];
        nosa_buffer_printf(out, "%-14s", "model");
        nosa_text_append_cut(out, model->id, SIZE_MAX);
        nosa_buffer_printf(out, ": %" PRIu32 " ready, %" PRIu32 " running, %" PRIu32 " waiting\n",
                           model->workers_ready, model->requests_running, model->requests_waiting);
    }
    nosa_buffer_printf(
        out, "%-14s%" PRIu32 " running, %" PRIu32 " waiting, at most %" PRIu32 " may wait\n",
        "requests", status->requests_running, status->requests_waiting, status->queue_max);
    ended_line(status, out);
    nosa_buffer_printf(out, "%-14s%" PRIu64 " of prompts, %" PRIu64 " generated\n", "tokens",
                       status->prompt_tokens, status->generation_tokens);
    nosa_buffer_printf(out, "%-14s%s in, %s out\n", "tokens/s",
                       nosa_format_count(status->prompt_tokens_per_s, text),
                       nosa_format_count(status->generation_tokens_per_s, other));
    fact_latency(out, "first token", status->ttft_p50_ms, status->ttft_p99_ms);
    fact_latency(out, "between", status->inter_token_p50_ms, status->inter_token_p99_ms);
    nosa_buffer_printf(out, "%-14s%" PRIu64 " exact, %" PRIu64 " inexact\n", "replays",
                       status->replays_exact, status->replays_inexact);
    fact(out, "membership", status->membership);
    for (size_t i = 0; i < status->n_coordinators; i++)
        fact(out, "beside", status->coordinators[i]);
}
