/* nosa.v1.Admin: what operators call. */
#include <stdlib.h>
#include <string.h>

#include "base/version.h"
#include "coordinator_internal.h"

/* ---- Workers ---- */

static const char *tier_name(Nosa__Cluster__V1__Tier tier)
{
    return tier == NOSA__CLUSTER__V1__TIER__TIER_GPU    ? "gpu"
           : tier == NOSA__CLUSTER__V1__TIER__TIER_HOST ? "host"
                                                        : "nvme";
}

/* One worker's message with what it points to; texts are borrowed from the view. */
struct worker_entry {
    Nosa__V1__WorkerInfo info;
    Nosa__V1__TierUsage tiers[NOSA_REGISTRY_TIERS_MAX];
    Nosa__V1__TierUsage *tier_list[NOSA_REGISTRY_TIERS_MAX];
};

static void fill_worker(struct worker_entry *entry, struct nosa_worker_view *view)
{
    Nosa__V1__WorkerInfo *info = &entry->info;
    struct nosa_worker *worker = view->worker;
    nosa__v1__worker_info__init(info);
    info->id = worker->id;
    info->address = worker->address;
    info->state = view->state;
    info->model = worker->model->id;
    info->attention = worker->model->attention;
    info->device = worker->device;
    info->version = worker->version;
    info->fingerprint = worker->fingerprint;
    info->tensor_parallel = worker->tensor_parallel;
    info->incarnation = worker->incarnation;
    info->requests_running = view->running;
    info->requests_waiting = view->waiting;
    info->requests_suspended = view->suspended;
    info->batch_max = view->batch_max;
    info->queue_max = view->queue_max;
    info->prefill_tokens_per_s = view->prefill_tokens_per_s;
    info->decode_tokens_per_s = view->decode_tokens_per_s;
    info->prefix_blocks = view->prefix_blocks;
    info->heartbeat_age_ms = view->heartbeat_age_ms;
    info->uptime_ms = view->uptime_ms;
    info->reason = view->reason;
    info->n_tiers = view->tier_count;
    info->tiers = entry->tier_list;
    for (size_t i = 0; i < view->tier_count; i++) {
        nosa__v1__tier_usage__init(&entry->tiers[i]);
        entry->tiers[i].tier = (char *)(uintptr_t)tier_name(view->tiers[i].tier);
        entry->tiers[i].used_bytes = view->tiers[i].used_bytes;
        entry->tiers[i].total_bytes = view->tiers[i].total_bytes;
        entry->tier_list[i] = &entry->tiers[i];
    }
}

static void workers(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    struct nosa_worker_view *views = NULL;
    size_t count = 0;
    Nosa__V1__WorkersResponse response = NOSA__V1__WORKERS_RESPONSE__INIT;
    (void)message;
    if (nosa_registry_list(coordinator->registry, &views, &count, &error) != NOSA_OK) {
        nosa_rpc_call_fail(call, &error);
        return;
    }
    struct worker_entry *entries = calloc(count + 1, sizeof *entries);
    Nosa__V1__WorkerInfo **list = calloc(count + 1, sizeof *list);
    for (size_t i = 0; i < count && entries && list; i++) {
        fill_worker(&entries[i], &views[i]);
        list[i] = &entries[i].info;
    }
    response.n_workers = count;
    response.workers = list;
    if (entries && list)
        nosa_rpc_call_reply(call, &response.base);
    else
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
    free(entries);
    free(list);
    nosa_worker_views_free(views, count);
}

/* ---- Requests ---- */

static void free_infos(Nosa__V1__RequestInfo **infos, size_t count)
{
    for (size_t i = 0; i < count; i++)
        nosa__v1__request_info__free_unpacked(infos[i], NULL);
    free(infos);
}

static void requests(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    Nosa__V1__RequestsResponse response = NOSA__V1__REQUESTS_RESPONSE__INIT;
    (void)message;
    enum nosa_status status = nosa_relay_list(context, &response.requests, &response.n_requests);
    if (status == NOSA_OK)
        nosa_rpc_call_reply(call, &response.base);
    else
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
    free_infos(response.requests, response.n_requests);
}

/* ---- Status ---- */

#define STATES     6
#define MODELS_MAX 64

/* What a Status message points to. */
struct status_parts {
    Nosa__V1__CodeCount codes[NOSA_RPC_CODE_COUNT];
    Nosa__V1__CodeCount *code_list[NOSA_RPC_CODE_COUNT];
    Nosa__V1__StateCount states[STATES];
    Nosa__V1__StateCount *state_list[STATES];
    Nosa__V1__ModelStatus models[MODELS_MAX];
    Nosa__V1__ModelStatus *model_list[MODELS_MAX];
};

static void count_codes(struct nosa_coordinator *coordinator, struct status_parts *parts,
                        Nosa__V1__StatusResponse *response)
{
    response->requests = parts->code_list;
    for (int code = 0; code < NOSA_RPC_CODE_COUNT; code++) {
        uint64_t count = nosa_counter_value(coordinator->telemetry->requests[code]);
        if (count == 0)
            continue;
        Nosa__V1__CodeCount *entry = &parts->codes[response->n_requests];
        nosa__v1__code_count__init(entry);
        entry->code = (char *)(uintptr_t)nosa_rpc_code_name((enum nosa_rpc_code)code);
        entry->count = count;
        parts->code_list[response->n_requests++] = entry;
    }
}

static Nosa__V1__ModelStatus *model_entry(struct status_parts *parts,
                                          Nosa__V1__StatusResponse *response, char *id)
{
    for (size_t i = 0; i < response->n_models; i++)
        if (strcmp(parts->models[i].id, id) == 0)
            return &parts->models[i];
    if (response->n_models == MODELS_MAX)
        return NULL;
    Nosa__V1__ModelStatus *entry = &parts->models[response->n_models];
    nosa__v1__model_status__init(entry);
    entry->id = id;
    parts->model_list[response->n_models++] = entry;
    return entry;
}

static void count_workers(const struct nosa_worker_view *views, size_t count,
                          struct status_parts *parts, Nosa__V1__StatusResponse *response)
{
    uint32_t states[STATES] = {0};
    response->models = parts->model_list;
    response->workers = parts->state_list;
    for (size_t i = 0; i < count; i++) {
        states[views[i].state]++;
        Nosa__V1__ModelStatus *entry = model_entry(parts, response, views[i].worker->model->id);
        if (entry)
            entry->workers_ready += views[i].state == NOSA__V1__WORKER_STATE__WORKER_STATE_READY;
    }
    for (int state = 1; state < STATES; state++) {
        if (states[state] == 0)
            continue;
        Nosa__V1__StateCount *entry = &parts->states[response->n_workers];
        nosa__v1__state_count__init(entry);
        entry->state = (Nosa__V1__WorkerState)state;
        entry->count = states[state];
        parts->state_list[response->n_workers++] = entry;
    }
}

static void count_requests(Nosa__V1__RequestInfo **infos, size_t count, struct status_parts *parts,
                           Nosa__V1__StatusResponse *response)
{
    for (size_t i = 0; i < count; i++) {
        bool waits = infos[i]->state == NOSA__V1__REQUEST_STATE__REQUEST_STATE_QUEUED ||
                     infos[i]->state == NOSA__V1__REQUEST_STATE__REQUEST_STATE_REPLAYING;
        Nosa__V1__ModelStatus *entry = model_entry(parts, response, infos[i]->model);
        response->requests_waiting += waits;
        response->requests_running += !waits;
        if (entry) {
            entry->requests_waiting += waits;
            entry->requests_running += !waits;
        }
    }
}

static void read_telemetry(struct nosa_coordinator *coordinator, Nosa__V1__StatusResponse *response)
{
    struct nosa_telemetry *telemetry = coordinator->telemetry;
    response->prompt_tokens = nosa_counter_value(telemetry->prompt_tokens);
    response->generation_tokens = nosa_counter_value(telemetry->generation_tokens);
    response->replays_exact = nosa_counter_value(telemetry->replays_exact);
    response->replays_inexact = nosa_counter_value(telemetry->replays_inexact);
    nosa_telemetry_rates(telemetry, &response->prompt_tokens_per_s,
                         &response->generation_tokens_per_s);
    nosa_telemetry_percentiles(&telemetry->ttft_ring, telemetry->start_ns, &response->ttft_p50_ms,
                               &response->ttft_p99_ms);
    nosa_telemetry_percentiles(&telemetry->inter_token_ring, telemetry->start_ns,
                               &response->inter_token_p50_ms, &response->inter_token_p99_ms);
}

static void status(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    struct nosa_worker_view *views = NULL;
    Nosa__V1__RequestInfo **infos = NULL;
    size_t view_count = 0, info_count = 0;
    struct nosa_membership_peers peers;
    Nosa__V1__StatusResponse response = NOSA__V1__STATUS_RESPONSE__INIT;
    (void)message;
    struct status_parts *parts = calloc(1, sizeof *parts);
    enum nosa_status result =
        nosa_registry_list(coordinator->registry, &views, &view_count, &error);
    if (nosa_relay_list(coordinator, &infos, &info_count) != NOSA_OK || !parts)
        result = nosa_error_set(&error, NOSA_OUT_OF_MEMORY, "no memory for the status");
    if (result == NOSA_OK) {
        response.version = (char *)(uintptr_t)nosa_version();
        response.coordinator_id = coordinator->id;
        response.uptime_ms = (nosa_monotonic_ns() - coordinator->start_ns) / NOSA_NS_PER_MS;
        response.draining = atomic_load(&coordinator->draining);
        response.ready = !response.draining && nosa_registry_is_ready(coordinator->registry);
        response.queue_max = coordinator->options.queue_max;
        nosa_membership_peers(coordinator->membership, &peers);
        response.membership = (char *)(uintptr_t)nosa_membership_name(coordinator->membership);
        response.n_coordinators = peers.count;
        response.coordinators = peers.addresses;
        count_codes(coordinator, parts, &response);
        count_workers(views, view_count, parts, &response);
        count_requests(infos, info_count, parts, &response);
        read_telemetry(coordinator, &response);
        nosa_rpc_call_reply(call, &response.base);
    } else {
        nosa_rpc_call_fail(call, &error);
    }
    free_infos(infos, info_count);
    nosa_worker_views_free(views, view_count);
    free(parts);
}

/* ---- Cancel, Drain, Resume ---- */

static void cancel(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    const Nosa__V1__CancelRequest *request = (const Nosa__V1__CancelRequest *)message;
    const Nosa__V1__CancelResponse response = NOSA__V1__CANCEL_RESPONSE__INIT;
    struct nosa_error error = {0};
    if (nosa_relay_cancel(context, request->request_id, &error) == NOSA_OK)
        nosa_rpc_call_reply(call, &response.base);
    else
        nosa_rpc_call_fail(call, &error);
}

static void drain(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    const Nosa__V1__DrainRequest *request = (const Nosa__V1__DrainRequest *)message;
    Nosa__V1__DrainResponse response = NOSA__V1__DRAIN_RESPONSE__INIT;
    struct nosa_error error = {0};
    if (nosa_share_drain(coordinator, request->worker_id, &response.state, &error) == NOSA_OK)
        nosa_rpc_call_reply(call, &response.base);
    else
        nosa_rpc_call_fail(call, &error);
    nosa_coordinator_wake(coordinator);
}

static void resume(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    const Nosa__V1__ResumeRequest *request = (const Nosa__V1__ResumeRequest *)message;
    struct nosa_error error = {0};
    struct nosa_worker *worker;
    Nosa__V1__ResumeResponse response = NOSA__V1__RESUME_RESPONSE__INIT;
    enum nosa_status result =
        nosa_registry_resume(coordinator->registry, request->worker_id, &worker, &error);
    if (result == NOSA_OK)
        nosa_link_resume(coordinator, worker, call);
    else if (nosa_share_forget_drain(coordinator, request->worker_id, &response.state))
        nosa_rpc_call_reply(call, &response.base);
    else
        nosa_rpc_call_finish(
            call, result == NOSA_NOT_FOUND ? NOSA_RPC_NOT_FOUND : NOSA_RPC_FAILED_PRECONDITION,
            error.text);
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Workers", .kind = NOSA_RPC_UNARY, .start = workers},
    {.name = "Status", .kind = NOSA_RPC_UNARY, .start = status},
    {.name = "Requests", .kind = NOSA_RPC_UNARY, .start = requests},
    {.name = "Cancel", .kind = NOSA_RPC_UNARY, .start = cancel},
    {.name = "Drain", .kind = NOSA_RPC_UNARY, .start = drain},
    {.name = "Resume", .kind = NOSA_RPC_UNARY, .start = resume},
};

enum nosa_status nosa_admin_add(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    return nosa_rpc_server_add_service(coordinator->server, &nosa__v1__admin__descriptor, methods,
                                       sizeof methods / sizeof *methods, coordinator, error);
}
