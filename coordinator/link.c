/*
 * Calls to workers that are no generations: fetching a model's files, drain, resume. Each runs on
 * its own and ends by a callback; coordinator->links counts them, so that a coordinator is not
 * freed under one.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator_internal.h"

#define FETCH_BYTES_MAX     (192u << 20) /* of all files of a model */
#define FETCH_TIMEOUT_MS    60000
#define STEERING_TIMEOUT_MS 5000

void *nosa_link_open(void *context, const char *address, struct nosa_error *error)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_rpc_channel *channel = NULL;
    uint32_t half_ms = coordinator->options.worker_timeout_ms / 2;
    const struct nosa_rpc_channel_options options = {
        .addresses = &address,
        .address_count = 1,
        .tls = &coordinator->options.tls,
        .backoff_min_ms = 100,
        .backoff_max_ms = 1000,
        .keepalive_ms = half_ms < 1000 ? 1000 : half_ms,
        .keepalive_timeout_ms = half_ms < 1000 ? 1000 : half_ms,
    };
    if (nosa_rpc_channel_create(&channel, coordinator->runtime, &options, error) != NOSA_OK)
        return NULL;
    /* Calls that wait for a connection come out of it in no order that is kept. */
    nosa_rpc_channel_connect(channel);
    return channel;
}

void nosa_link_close(void *link)
{
    nosa_rpc_channel_free(link);
}

/* ---- a model's files ---- */

enum file_kind { TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE, OTHER, FILE_KINDS };

static const char *const file_names[] = {"tokenizer.json", "tokenizer_config.json",
                                         "special_tokens_map.json", "chat_template.jinja"};

struct fetch {
    struct nosa_coordinator *coordinator;
    struct nosa_worker *worker; /* one reference */
    struct nosa_buffer files[FILE_KINDS];
    bool seen[FILE_KINDS];
    size_t bytes;
    bool too_large;
    struct nosa_sha256 hash; /* as files_hash of the model's card is formed */
    bool hash_failed;
    char *name; /* owned: of the file that comes; NULL before the first */
};

static void fetch_free(struct fetch *fetch)
{
    atomic_uint *links = &fetch->coordinator->links;
    for (int i = 0; i < FILE_KINDS; i++)
        nosa_buffer_free(&fetch->files[i]);
    nosa_sha256_free(&fetch->hash);
    free(fetch->name);
    nosa_worker_release(fetch->worker);
    free(fetch);
    atomic_fetch_sub(links, 1);
}

static void hash_chunk(struct fetch *fetch, const Nosa__Cluster__V1__FileChunk *chunk)
{
    enum nosa_status status = fetch->hash_failed ? NOSA_OUT_OF_MEMORY : NOSA_OK;
    if (status == NOSA_OK && (!fetch->name || strcmp(fetch->name, chunk->name) != 0)) {
        free(fetch->name);
        fetch->name = strdup(chunk->name);
        status = fetch->name
                     ? nosa_sha256_update(&fetch->hash, chunk->name, strlen(chunk->name) + 1, NULL)
                     : NOSA_OUT_OF_MEMORY;
    }
    if (status == NOSA_OK)
        status = nosa_sha256_update(&fetch->hash, chunk->data.data, chunk->data.len, NULL);
    fetch->hash_failed = status != NOSA_OK;
}

/* Whether what came is what the model's card speaks of. */
static bool hash_agrees(struct fetch *fetch)
{
    uint8_t digest[NOSA_SHA256_SIZE];
    return nosa_sha256_final(&fetch->hash, digest, NULL) == NOSA_OK &&
           memcmp(digest, fetch->worker->model->files_hash, sizeof digest) == 0;
}

static bool on_chunk(void *context, struct nosa_rpc_stream *stream, const ProtobufCMessage *message)
{
    struct fetch *fetch = context;
    const Nosa__Cluster__V1__FileChunk *chunk = (const Nosa__Cluster__V1__FileChunk *)message;
    int kind = 0;
    while (kind < OTHER && strcmp(chunk->name, file_names[kind]) != 0)
        kind++;
    fetch->bytes += chunk->data.len;
    if (fetch->bytes > FETCH_BYTES_MAX) {
        fetch->too_large = true;
        nosa_rpc_stream_cancel(stream);
        return true;
    }
    fetch->seen[kind] = true;
    hash_chunk(fetch, chunk);
    if (kind != OTHER)
        nosa_buffer_append(&fetch->files[kind], chunk->data.data, chunk->data.len);
    return true;
}

static struct nosa_tokenizer_bytes bytes_of(const struct nosa_buffer *buffer)
{
    return (struct nosa_tokenizer_bytes){buffer->data, buffer->size};
}

/* On a thread of the pool: opening takes a while. */
static void open_model(void *argument)
{
    struct fetch *fetch = argument;
    struct nosa_registry *registry = fetch->coordinator->registry;
    struct nosa_model *model = fetch->worker->model;
    struct nosa_error error = {0};
    struct nosa_tokenizer *tokenizer = NULL;
    const struct nosa_tokenizer_files files = {
        .tokenizer_json = bytes_of(&fetch->files[TOKENIZER]),
        .config_json = bytes_of(&fetch->files[TOKENIZER_CONFIG]),
        .special_tokens_map = bytes_of(&fetch->files[SPECIAL_TOKENS]),
        .chat_template = bytes_of(&fetch->files[CHAT_TEMPLATE]),
    };
    enum nosa_status status = NOSA_OK;
    if (fetch->seen[TOKENIZER])
        status = nosa_tokenizer_open_memory(&files, &tokenizer, &error);
    if (status == NOSA_OK)
        nosa_registry_model_ready(registry, model, tokenizer);
    else
        nosa_registry_model_failed(registry, model, error.text);
    nosa_coordinator_wake(fetch->coordinator);
    fetch_free(fetch);
    (void)malloc_trim(0); /* what reading the files took is several times what stays */
}

static void on_fetched(void *context, struct nosa_rpc_stream *stream,
                       const struct nosa_rpc_outcome *outcome)
{
    struct fetch *fetch = context;
    struct nosa_registry *registry = fetch->coordinator->registry;
    char reason[NOSA_RPC_TEXT_MAX];
    bool failed = fetch->hash_failed;
    (void)stream;
    for (int i = 0; i < FILE_KINDS; i++)
        failed = failed || nosa_buffer_failed(&fetch->files[i]);
    if (fetch->too_large)
        snprintf(reason, sizeof reason, "worker %.64s sends more than %u bytes", fetch->worker->id,
                 FETCH_BYTES_MAX);
    else if (outcome->code != NOSA_RPC_OK)
        snprintf(reason, sizeof reason, "worker %.64s: %s: %.300s", fetch->worker->id,
                 nosa_rpc_code_name(outcome->code), outcome->text);
    else if (failed)
        snprintf(reason, sizeof reason, "no memory");
    else if (!hash_agrees(fetch))
        snprintf(reason, sizeof reason, "worker %.64s sends other files than its files_hash names",
                 fetch->worker->id);
    else if (nosa_work_pool_submit(fetch->coordinator->pool, open_model, fetch) == NOSA_OK)
        return;
    else
        snprintf(reason, sizeof reason, "too much else is being encoded");
    nosa_registry_model_failed(registry, fetch->worker->model, reason);
    fetch_free(fetch);
}

static const struct nosa_rpc_stream_events fetch_events = {.message = on_chunk, .end = on_fetched};

void nosa_link_fetch_model(struct nosa_coordinator *coordinator, struct nosa_worker *worker)
{
    struct nosa_error error = {0};
    Nosa__Cluster__V1__FetchModelRequest message = NOSA__CLUSTER__V1__FETCH_MODEL_REQUEST__INIT;
    message.files_hash = (ProtobufCBinaryData){NOSA_SHA256_SIZE, worker->model->files_hash};
    const struct nosa_rpc_request request = {
        .path = "/nosa.cluster.v1.Worker/FetchModel",
        .message = &message.base,
        .response = &nosa__cluster__v1__file_chunk__descriptor,
        .timeout_ms = FETCH_TIMEOUT_MS,
    };
    struct fetch *fetch = calloc(1, sizeof *fetch);
    if (!fetch) {
        nosa_registry_model_failed(coordinator->registry, worker->model, "no memory");
        nosa_worker_release(worker);
        return;
    }
    fetch->coordinator = coordinator;
    fetch->worker = worker;
    fetch->hash_failed = nosa_sha256_init(&fetch->hash, NULL) != NOSA_OK;
    atomic_fetch_add(&coordinator->links, 1);
    if (nosa_rpc_stream_start(worker->link, &request, &fetch_events, fetch, NULL, &error) ==
        NOSA_OK)
        return;
    nosa_registry_model_failed(coordinator->registry, worker->model, error.text);
    fetch_free(fetch);
}

/* ---- drain and resume ---- */

struct steering {
    struct nosa_coordinator *coordinator;
    struct nosa_worker *worker; /* one reference */
    struct nosa_rpc_call *call; /* one reference, an operator's; NULL: none waits */
};

static void steering_free(struct steering *steering)
{
    atomic_uint *links = &steering->coordinator->links;
    if (steering->call)
        nosa_rpc_call_release(steering->call);
    nosa_worker_release(steering->worker);
    free(steering);
    atomic_fetch_sub(links, 1);
}

static struct steering *steering_create(struct nosa_coordinator *coordinator,
                                        struct nosa_worker *worker, struct nosa_rpc_call *call)
{
    struct steering *steering = calloc(1, sizeof *steering);
    if (!steering) {
        nosa_worker_release(worker);
        return NULL;
    }
    *steering = (struct steering){coordinator, worker, call};
    if (call)
        nosa_rpc_call_retain(call);
    atomic_fetch_add(&coordinator->links, 1);
    return steering;
}

static void on_drain_told(void *context, const struct nosa_rpc_outcome *outcome,
                          const ProtobufCMessage *response)
{
    struct steering *steering = context;
    (void)response;
    /* It gets no new work from here in any case, and is told again while it says READY. */
    if (outcome->code != NOSA_RPC_OK)
        nosa_log_about(NOSA_LOG_WARN, "link",
                       &(struct nosa_log_subject){.worker = steering->worker->id},
                       "worker %s cannot be told to drain: %s: %s", steering->worker->id,
                       nosa_rpc_code_name(outcome->code), outcome->text);
    else
        nosa_registry_drain_answered(steering->coordinator->registry, steering->worker);
    steering_free(steering);
}

void nosa_link_drain(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                     uint64_t timeout_ms)
{
    struct nosa_error error = {0};
    Nosa__Cluster__V1__DrainWorkerRequest message = NOSA__CLUSTER__V1__DRAIN_WORKER_REQUEST__INIT;
    message.incarnation = worker->incarnation;
    message.timeout_ms = timeout_ms;
    const struct nosa_rpc_request request = {
        .path = "/nosa.cluster.v1.Worker/DrainWorker",
        .message = &message.base,
        .response = &nosa__cluster__v1__drain_worker_response__descriptor,
        .timeout_ms = STEERING_TIMEOUT_MS,
    };
    struct steering *steering = steering_create(coordinator, worker, NULL);
    if (steering &&
        nosa_rpc_unary_start(worker->link, &request, on_drain_told, steering, &error) != NOSA_OK)
        steering_free(steering);
}

static void on_resumed(void *context, const struct nosa_rpc_outcome *outcome,
                       const ProtobufCMessage *response)
{
    struct steering *steering = context;
    char text[NOSA_RPC_TEXT_MAX];
    Nosa__V1__ResumeResponse answer = NOSA__V1__RESUME_RESPONSE__INIT;
    if (outcome->code == NOSA_RPC_OK) {
        answer.state = ((const Nosa__Cluster__V1__ResumeWorkerResponse *)response)->state;
        nosa_registry_resumed(steering->coordinator->registry, steering->worker, answer.state);
        if (steering->call) {
            (void)nosa_membership_drain(steering->coordinator->membership, steering->worker->id,
                                        false, NULL);
            nosa_rpc_call_reply(steering->call, &answer.base);
        }
        nosa_coordinator_wake(steering->coordinator);
    } else if (steering->call) {
        snprintf(text, sizeof text, "worker_id: '%.64s': %s: %.300s", steering->worker->id,
                 nosa_rpc_code_name(outcome->code), outcome->text);
        nosa_rpc_call_finish(steering->call, NOSA_RPC_FAILED_PRECONDITION, text);
    }
    steering_free(steering);
}

void nosa_link_resume(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                      struct nosa_rpc_call *call)
{
    struct nosa_error error = {0};
    Nosa__Cluster__V1__ResumeWorkerRequest message = NOSA__CLUSTER__V1__RESUME_WORKER_REQUEST__INIT;
    message.incarnation = worker->incarnation;
    const struct nosa_rpc_request request = {
        .path = "/nosa.cluster.v1.Worker/ResumeWorker",
        .message = &message.base,
        .response = &nosa__cluster__v1__resume_worker_response__descriptor,
        .timeout_ms = STEERING_TIMEOUT_MS,
    };
    struct steering *steering = steering_create(coordinator, worker, call);
    if (!steering) {
        if (call)
            nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    if (nosa_rpc_unary_start(worker->link, &request, on_resumed, steering, &error) == NOSA_OK)
        return;
    if (call)
        nosa_rpc_call_fail(call, &error);
    steering_free(steering);
}
