#include "service/service.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define CHUNK_BYTES (256u << 10)

/* ---- Run ---------------------------------------------------------------------------------------
 */

static void run_cancelled(void *context, struct nosa_rpc_call *call)
{
    struct nosa_run *run = context;
    (void)call;
    if (nosa_run_cancelled(run))
        nosa_loop_cancel(run->loop, run);
}

static void run_writable(void *context, struct nosa_rpc_call *call)
{
    struct nosa_run *run = context;
    (void)call;
    nosa_run_flush(run);
    nosa_loop_read(run->loop, run);
}

static void run_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    nosa_run_release(context);
}

static const struct nosa_rpc_call_events run_events = {
    .cancelled = run_cancelled, .writable = run_writable, .done = run_done};

static void refuse(struct nosa_worker_service *service, struct nosa_rpc_call *call,
                   enum nosa_rpc_code code, const char *text)
{
    nosa_counter_add(service->metrics->requests[code], 1);
    nosa_rpc_call_finish(call, code, text);
}

static void refuse_entry(struct nosa_worker_service *service, struct nosa_rpc_call *call,
                         enum nosa_gate_entry entry)
{
    char text[NOSA_RPC_TEXT_MAX];
    switch (entry) {
    case NOSA_GATE_ENTERED: break;
    case NOSA_GATE_NOT_STARTED:
        refuse(service, call, NOSA_RPC_UNAVAILABLE, "the worker's model is being loaded");
        break;
    case NOSA_GATE_CLOSED:
        refuse(service, call, NOSA_RPC_ABORTED, "the worker drains; go on elsewhere");
        break;
    case NOSA_GATE_FULL:
        snprintf(text, sizeof text,
                 "the worker is full: %d requests run (--max-batch) and %d wait (--max-queue)",
                 service->batch_max, service->queue_max);
        refuse(service, call, NOSA_RPC_RESOURCE_EXHAUSTED, text);
        break;
    }
}

static void start_run(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_worker_service *service = context;
    struct nosa_run *run;
    enum nosa_rpc_code code;
    struct nosa_error error = {0};
    enum nosa_gate_entry entry = nosa_gate_enter(service->gate);
    if (entry != NOSA_GATE_ENTERED) {
        refuse_entry(service, call, entry);
        return;
    }
    if (nosa_run_create(&run, call, (const Nosa__Cluster__V1__RunRequest *)request,
                        &service->limits, &code, &error) != NOSA_OK) {
        nosa_gate_leave(service->gate);
        refuse(service, call, code, error.text);
        return;
    }
    run->loop = service->loop;
    nosa_rpc_call_set_events(call, &run_events, run);
    nosa_loop_submit(service->loop, run);
}

/* ---- ListRuns, CancelRun -----------------------------------------------------------------------
 */

#define LIST_MAX 16384

struct listing {
    Nosa__Cluster__V1__RunInfo *infos;
    Nosa__Cluster__V1__RunInfo **pointers;
    size_t count, max;
    bool failed;
    uint64_t now_ns;
};

static Nosa__V1__RequestState state_of(enum nosa_scheduler_state state)
{
    switch (state) {
    case NOSA_SCHEDULER_QUEUED:
    case NOSA_SCHEDULER_LOADING: return NOSA__V1__REQUEST_STATE__REQUEST_STATE_QUEUED;
    case NOSA_SCHEDULER_PREFILL: return NOSA__V1__REQUEST_STATE__REQUEST_STATE_PREFILL;
    case NOSA_SCHEDULER_PAUSED: return NOSA__V1__REQUEST_STATE__REQUEST_STATE_PAUSED;
    case NOSA_SCHEDULER_SUSPENDED: return NOSA__V1__REQUEST_STATE__REQUEST_STATE_SUSPENDED;
    case NOSA_SCHEDULER_DECODE:
    case NOSA_SCHEDULER_ENDED: break;
    }
    return NOSA__V1__REQUEST_STATE__REQUEST_STATE_DECODE;
}

static bool grow(struct listing *listing)
{
    size_t max = listing->max ? 2 * listing->max : 64;
    void *infos = realloc(listing->infos, max * sizeof *listing->infos);
    if (!infos)
        return false;
    listing->infos = infos;
    listing->max = max;
    return true;
}

static void list_run(void *context, const struct nosa_run *run)
{
    struct listing *listing = context;
    if (listing->failed || listing->count == LIST_MAX)
        return;
    char *id = strdup(run->id); /* the run may end before the answer is packed */
    if (!id || (listing->count == listing->max && !grow(listing))) {
        free(id);
        listing->failed = true;
        return;
    }
    Nosa__Cluster__V1__RunInfo *info = &listing->infos[listing->count++];
    nosa__cluster__v1__run_info__init(info);
    info->request_id = id;
    info->state = state_of((enum nosa_scheduler_state)atomic_load(&run->state));
    info->prompt_tokens = (uint32_t)run->n_prompt;
    info->output_tokens = atomic_load(&run->output_tokens);
    info->age_ms = (listing->now_ns - run->received_ns) / NOSA_NS_PER_MS;
}

static void start_list(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_worker_service *service = context;
    Nosa__Cluster__V1__ListRunsResponse response = NOSA__CLUSTER__V1__LIST_RUNS_RESPONSE__INIT;
    struct listing listing = {.now_ns = nosa_monotonic_ns()};
    (void)request;
    if (atomic_load(&service->serving))
        nosa_loop_visit(service->loop, list_run, &listing);
    listing.pointers = calloc(listing.count + 1, sizeof(void *));
    if (listing.failed || !listing.pointers) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for the list");
    } else {
        for (size_t i = 0; i < listing.count; i++)
            listing.pointers[i] = &listing.infos[i];
        response.n_runs = listing.count;
        response.runs = listing.pointers;
        nosa_rpc_call_reply(call, &response.base);
    }
    for (size_t i = 0; i < listing.count; i++)
        free(listing.infos[i].request_id);
    free(listing.infos);
    free(listing.pointers);
}

static void start_cancel(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_worker_service *service = context;
    const Nosa__Cluster__V1__CancelRunRequest *message =
        (const Nosa__Cluster__V1__CancelRunRequest *)request;
    Nosa__Cluster__V1__CancelRunResponse response = NOSA__CLUSTER__V1__CANCEL_RUN_RESPONSE__INIT;
    if (atomic_load(&service->serving) && nosa_loop_cancel_id(service->loop, message->request_id))
        nosa_rpc_call_reply(call, &response.base);
    else
        nosa_rpc_call_finish(call, NOSA_RPC_NOT_FOUND, "request_id: no such request runs here");
}

/* ---- DrainWorker, ResumeWorker ------------------------------------------------------------------
 */

static bool is_meant(struct nosa_worker_service *service, struct nosa_rpc_call *call,
                     uint64_t incarnation)
{
    if (incarnation == service->limits.incarnation)
        return true;
    nosa_rpc_call_finish(call, NOSA_RPC_FAILED_PRECONDITION,
                         "incarnation: another start of this worker is meant");
    return false;
}

static Nosa__V1__WorkerState worker_state(struct nosa_worker_service *service)
{
    struct nosa_gate_view view;
    nosa_gate_view(service->gate, &view);
    return (Nosa__V1__WorkerState)view.state;
}

static void start_drain(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_worker_service *service = context;
    const Nosa__Cluster__V1__DrainWorkerRequest *message =
        (const Nosa__Cluster__V1__DrainWorkerRequest *)request;
    Nosa__Cluster__V1__DrainWorkerResponse response =
        NOSA__CLUSTER__V1__DRAIN_WORKER_RESPONSE__INIT;
    if (!is_meant(service, call, message->incarnation))
        return;
    uint64_t now_ns = nosa_monotonic_ns();
    uint64_t most_ms = (NOSA_GATE_NEVER - now_ns) / NOSA_NS_PER_MS;
    nosa_gate_drain(service->gate, message->timeout_ms < most_ms
                                       ? now_ns + message->timeout_ms * NOSA_NS_PER_MS
                                       : NOSA_GATE_NEVER);
    response.state = worker_state(service);
    nosa_rpc_call_reply(call, &response.base);
}

static void start_resume(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_worker_service *service = context;
    const Nosa__Cluster__V1__ResumeWorkerRequest *message =
        (const Nosa__Cluster__V1__ResumeWorkerRequest *)request;
    Nosa__Cluster__V1__ResumeWorkerResponse response =
        NOSA__CLUSTER__V1__RESUME_WORKER_RESPONSE__INIT;
    struct nosa_error error = {0};
    if (!is_meant(service, call, message->incarnation))
        return;
    if (nosa_gate_resume(service->gate, &error) != NOSA_OK) {
        nosa_rpc_call_finish(call, NOSA_RPC_FAILED_PRECONDITION, error.text);
        return;
    }
    response.state = worker_state(service);
    nosa_rpc_call_reply(call, &response.base);
}

/* ---- FetchModel ---------------------------------------------------------------------------------
 */

struct fetch {
    const struct nosa_model_files *files;
    size_t file;
    size_t offset;
    bool finished;
};

/* Sends until the call is full or everything is sent. An empty file is one empty chunk. */
static void send_chunks(struct fetch *fetch, struct nosa_rpc_call *call)
{
    while (!fetch->finished && fetch->file < fetch->files->count) {
        const struct nosa_model_file *file = &fetch->files->files[fetch->file];
        Nosa__Cluster__V1__FileChunk chunk = NOSA__CLUSTER__V1__FILE_CHUNK__INIT;
        size_t left = file->size - fetch->offset;
        chunk.name = (char *)(uintptr_t)file->name;
        chunk.data.len = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        chunk.data.data = (uint8_t *)file->data + fetch->offset;
        if (nosa_rpc_call_send(call, &chunk.base) != NOSA_OK)
            return;
        fetch->offset += chunk.data.len;
        if (fetch->offset == file->size) {
            fetch->file++;
            fetch->offset = 0;
        }
    }
    if (!fetch->finished) {
        fetch->finished = true;
        nosa_rpc_call_finish(call, NOSA_RPC_OK, NULL);
    }
}

static void fetch_writable(void *context, struct nosa_rpc_call *call)
{
    send_chunks(context, call);
}

static void fetch_cancelled(void *context, struct nosa_rpc_call *call)
{
    struct fetch *fetch = context;
    if (fetch->finished)
        return;
    fetch->finished = true;
    nosa_rpc_call_finish(call, nosa_rpc_call_cancel_code(call), NULL);
}

static void fetch_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    free(context);
}

static const struct nosa_rpc_call_events fetch_events = {
    .cancelled = fetch_cancelled, .writable = fetch_writable, .done = fetch_done};

static void start_fetch(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_worker_service *service = context;
    const Nosa__Cluster__V1__FetchModelRequest *message =
        (const Nosa__Cluster__V1__FetchModelRequest *)request;
    if (message->files_hash.len != sizeof service->files->hash ||
        memcmp(message->files_hash.data, service->files->hash, sizeof service->files->hash) != 0) {
        nosa_rpc_call_finish(call, NOSA_RPC_FAILED_PRECONDITION,
                             "files_hash: other files are meant");
        return;
    }
    struct fetch *fetch = calloc(1, sizeof *fetch);
    if (!fetch) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    fetch->files = service->files;
    nosa_rpc_call_set_events(call, &fetch_events, fetch);
    send_chunks(fetch, call);
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Run", .kind = NOSA_RPC_SERVER_STREAMING, .start = start_run},
    {.name = "ListRuns", .kind = NOSA_RPC_UNARY, .start = start_list},
    {.name = "CancelRun", .kind = NOSA_RPC_UNARY, .start = start_cancel},
    {.name = "DrainWorker", .kind = NOSA_RPC_UNARY, .start = start_drain},
    {.name = "ResumeWorker", .kind = NOSA_RPC_UNARY, .start = start_resume},
    {.name = "FetchModel", .kind = NOSA_RPC_SERVER_STREAMING, .start = start_fetch},
};

enum nosa_status nosa_worker_service_add(struct nosa_rpc_server *server,
                                         struct nosa_worker_service *service,
                                         struct nosa_error *error)
{
    return nosa_rpc_server_add_service(server, &nosa__cluster__v1__worker__descriptor, methods,
                                       sizeof methods / sizeof *methods, service, error);
}
