/* What a coordinator tells operators, as JSON. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "view.h"

/* Numbers that JSON has: what is not finite is 0. */
static json_t *number(double value)
{
    return json_real(isfinite(value) ? value : 0);
}

/* A whole number, as text where it does not fit JSON's readers. */
static json_t *whole(uint64_t value)
{
    char text[24];
    if (value <= INT64_MAX)
        return json_integer((json_int_t)value);
    snprintf(text, sizeof text, "%" PRIu64, value);
    return json_string(text);
}

/* An array of what `item` makes of each; NULL when there was no memory for one. */
static json_t *list(size_t count, json_t *(*item)(const void *context, size_t index),
                    const void *context)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count && array; i++)
        if (json_array_append_new(array, item(context, i)) != 0) {
            json_decref(array);
            array = NULL;
        }
    return array;
}

/* ---- workers ---- */

static json_t *tier(const void *context, size_t index)
{
    const Nosa__V1__WorkerInfo *worker = context;
    const Nosa__V1__TierUsage *usage = worker->tiers[index];
    return json_pack("{s:s s:o s:o}", "tier", usage->tier, "used_bytes", whole(usage->used_bytes),
                     "total_bytes", whole(usage->total_bytes));
}

static json_t *worker(const void *context, size_t index)
{
    const Nosa__V1__WorkersResponse *workers = context;
    const Nosa__V1__WorkerInfo *info = workers->workers[index];
    char incarnation[24];
    snprintf(incarnation, sizeof incarnation, "%" PRIu64, info->incarnation);
    return json_pack(
        "{s:s s:s s:s s:s s:s s:s s:s s:s s:I s:s s:I s:I s:I s:I s:I s:o s:o s:o s:o s:o s:o s:s}",
        "id", info->id, "address", info->address, "state", nosa_view_worker_state(info->state),
        "model", info->model, "attention", info->attention, "device", info->device, "version",
        info->version, "fingerprint", info->fingerprint, "tensor_parallel",
        (json_int_t)info->tensor_parallel, "incarnation", incarnation, "requests_running",
        (json_int_t)info->requests_running, "requests_waiting", (json_int_t)info->requests_waiting,
        "requests_suspended", (json_int_t)info->requests_suspended, "batch_max",
        (json_int_t)info->batch_max, "queue_max", (json_int_t)info->queue_max,
        "prefill_tokens_per_s", number(info->prefill_tokens_per_s), "decode_tokens_per_s",
        number(info->decode_tokens_per_s), "tiers", list(info->n_tiers, tier, info),
        "prefix_blocks", whole(info->prefix_blocks), "heartbeat_age_ms",
        whole(info->heartbeat_age_ms), "uptime_ms", whole(info->uptime_ms), "reason", info->reason);
}

json_t *nosa_view_workers_json(const Nosa__V1__WorkersResponse *workers)
{
    return list(workers->n_workers, worker, workers);
}

/* ---- requests ---- */

static json_t *request(const void *context, size_t index)
{
    const Nosa__V1__RequestsResponse *requests = context;
    const Nosa__V1__RequestInfo *info = requests->requests[index];
    return json_pack(
        "{s:s s:s s:s s:I s:I s:I s:s s:i s:o s:I s:s s:s}", "request_id", info->request_id,
        "worker_id", info->worker_id, "state", nosa_view_request_state(info->state), "tokens",
        (json_int_t)info->tokens, "prompt_tokens", (json_int_t)info->prompt_tokens, "max_tokens",
        (json_int_t)info->max_tokens, "model", info->model, "priority", (int)info->priority,
        "age_ms", whole(info->age_ms), "replays", (json_int_t)info->replays, "client", info->client,
        "client_name", info->client_name);
}

json_t *nosa_view_requests_json(const Nosa__V1__RequestsResponse *requests)
{
    return list(requests->n_requests, request, requests);
}

/* ---- status ---- */

static json_t *model(const void *context, size_t index)
{
    const Nosa__V1__StatusResponse *status = context;
    const Nosa__V1__ModelStatus *entry = status->models[index];
    return json_pack("{s:s s:I s:I s:I}", "id", entry->id, "workers_ready",
                     (json_int_t)entry->workers_ready, "requests_running",
                     (json_int_t)entry->requests_running, "requests_waiting",
                     (json_int_t)entry->requests_waiting);
}

static json_t *coordinator(const void *context, size_t index)
{
    const Nosa__V1__StatusResponse *status = context;
    return json_string(status->coordinators[index]);
}

/* {"OK": 12, "CANCELLED": 1}. */
static json_t *codes(const Nosa__V1__StatusResponse *status)
{
    json_t *object = json_object();
    for (size_t i = 0; i < status->n_requests && object; i++)
        if (json_object_set_new(object, status->requests[i]->code,
                                whole(status->requests[i]->count)) != 0) {
            json_decref(object);
            object = NULL;
        }
    return object;
}

/* {"READY": 2, "LOST": 1}. */
static json_t *states(const Nosa__V1__StatusResponse *status)
{
    json_t *object = json_object();
    for (size_t i = 0; i < status->n_workers && object; i++)
        if (json_object_set_new(object, nosa_view_worker_state(status->workers[i]->state),
                                json_integer(status->workers[i]->count)) != 0) {
            json_decref(object);
            object = NULL;
        }
    return object;
}

json_t *nosa_view_status_json(const Nosa__V1__StatusResponse *status, const char *server)
{
    return json_pack(
        "{s:s s:s s:s s:o s:b s:b s:I s:I s:I s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o "
        "s:s s:o}",
        "server", server, "version", status->version, "coordinator_id", status->coordinator_id,
        "uptime_ms", whole(status->uptime_ms), "ready", status->ready, "draining", status->draining,
        "requests_running", (json_int_t)status->requests_running, "requests_waiting",
        (json_int_t)status->requests_waiting, "queue_max", (json_int_t)status->queue_max,
        "requests", codes(status), "prompt_tokens", whole(status->prompt_tokens),
        "generation_tokens", whole(status->generation_tokens), "replays_exact",
        whole(status->replays_exact), "replays_inexact", whole(status->replays_inexact),
        "prompt_tokens_per_s", number(status->prompt_tokens_per_s), "generation_tokens_per_s",
        number(status->generation_tokens_per_s), "ttft_p50_ms", number(status->ttft_p50_ms),
        "ttft_p99_ms", number(status->ttft_p99_ms), "inter_token_p50_ms",
        number(status->inter_token_p50_ms), "inter_token_p99_ms",
        number(status->inter_token_p99_ms), "workers", states(status), "models",
        list(status->n_models, model, status), "membership", status->membership, "coordinators",
        list(status->n_coordinators, coordinator, status));
}
