#include "service/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "http/http.h"
#include "model/checkpoint.h"
#include "nosa_proto_descriptor_set.h"
#include "rpc/health.h"
#include "rpc/reflection.h"
#include "service/card.h"
#include "service/registry.h"
#include "service/service.h"

#define RPC_THREADS     2
#define SEND_QUEUE_MAX  16   /* messages of one stream; the rest waits in its run's ring */
#define OTHER_CALLS_MAX 256  /* beside generations */
#define PROBE_MS        2000 /* for the own listener to answer */
#define GRACE_MS        5000 /* for the last tokens to be read */
#define FLUSH_MS        30000
#define SERVICE_NAME    "nosa.cluster.v1.Worker"
#define SESSIONS_PER_ROW                                                                           \
    2 /* open sessions, suspended ones included, for each place in the batch                       \
       */

struct worker {
    const struct nosa_worker_options *options;
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    struct nosa_http *http;
    struct nosa_gate *gate;
    struct nosa_model_files files;
    struct nosa_worker_metrics metrics;
    struct nosa_worker_service service;
    struct nosa_worker_card card;
    struct nosa_engine *engine;
    struct nosa_digest *digest;
    struct nosa_loop *loop;
    char own_address[NOSA_RPC_ADDRESS_MAX];
    pthread_t signals;
    bool signals_started;
    atomic_bool loaded;
    struct nosa_registry *registry; /* owned; NULL without coordinators; freed under `leaving` */
    pthread_mutex_t leaving;
    pthread_mutex_t mutex;
    /* under mutex: who is told of changes of the gate; NULL: nobody any more */
    struct nosa_rpc_server *told_server;
    struct nosa_loop *told_loop;
    struct nosa_registry *told_registry;
};

/* ---- changes of state ---------------------------------------------------------------------------
 */

static void gate_changed(void *context)
{
    struct worker *worker = context;
    struct nosa_gate_view view;
    pthread_mutex_lock(&worker->mutex);
    nosa_gate_view(worker->gate,
                   &view); /* under the mutex, so that the last one told is the last */
    bool serving = view.state == NOSA_GATE_READY;
    if (worker->told_server) {
        nosa_rpc_health_set(worker->told_server, "", serving);
        nosa_rpc_health_set(worker->told_server, SERVICE_NAME, serving);
    }
    if (worker->told_loop)
        nosa_loop_wake(worker->told_loop);
    if (worker->told_registry)
        nosa_registry_wake(worker->told_registry);
    pthread_mutex_unlock(&worker->mutex);
    nosa_log(NOSA_LOG_DEBUG, "worker", "%s%s%s", nosa_gate_state_name(view.state),
             view.reason[0] ? ": " : "", view.reason);
}

static void tell(struct worker *worker, struct nosa_rpc_server *server, struct nosa_loop *loop,
                 struct nosa_registry *registry)
{
    pthread_mutex_lock(&worker->mutex);
    worker->told_server = server;
    worker->told_loop = loop;
    worker->told_registry = registry;
    pthread_mutex_unlock(&worker->mutex);
}

/* A signal before there is anything to drain: says goodbye and ends the process, in the middle of
 * the loading. */
static void end_loading(struct worker *worker)
{
    nosa_log(NOSA_LOG_INFO, "worker", "ended before its model was loaded");
    pthread_mutex_lock(&worker->leaving);
    if (worker->registry)
        nosa_registry_leave(worker->registry);
    _exit(0); /* nothing runs and nothing was written */
}

static void *wait_for_signals(void *context)
{
    struct worker *worker = context;
    sigset_t set;
    int number = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR2); /* the worker's own: it is over */
    for (int count = 0; sigwait(&set, &number) == 0 && number != SIGUSR2; count++) {
        struct nosa_gate_view view;
        nosa_gate_view(worker->gate, &view);
        if (!atomic_load(&worker->loaded))
            end_loading(worker);
        uint64_t wait_ns =
            count == 0 ? (uint64_t)(worker->options->drain_timeout_s * (double)NOSA_NS_PER_S) : 0;
        nosa_log(NOSA_LOG_INFO, "worker", "%s: draining, %u requests inside", strsignal(number),
                 view.requests);
        nosa_gate_end(worker->gate, nosa_monotonic_ns() + wait_ns);
    }
    return NULL;
}

static enum nosa_status start_signals(struct worker *worker, struct nosa_error *error)
{
    if (pthread_create(&worker->signals, NULL, wait_for_signals, worker) != 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "a thread cannot be started");
    worker->signals_started = true;
    return NOSA_OK;
}

/* ---- ports --------------------------------------------------------------------------------------
 */

/* Of every kind, generations at once and those whose readers have yet to read the last tokens. */
static uint32_t calls_max(const struct nosa_worker_options *options)
{
    return 2 * (uint32_t)(options->queue_max + options->batch_max) + OTHER_CALLS_MAX;
}

static bool is_alive(void *context, char reason[NOSA_HTTP_REASON_MAX])
{
    struct worker *worker = context;
    struct nosa_error error = {0};
    if (nosa_rpc_address_probe(worker->own_address, PROBE_MS, &error) == NOSA_OK)
        return true;
    snprintf(reason, NOSA_HTTP_REASON_MAX, "%.*s", NOSA_HTTP_REASON_MAX - 1, error.text);
    return false;
}

static bool is_ready(void *context, char reason[NOSA_HTTP_REASON_MAX])
{
    struct worker *worker = context;
    struct nosa_gate_view view;
    if (nosa_gate_is_open(worker->gate))
        return true;
    nosa_gate_view(worker->gate, &view);
    snprintf(reason, NOSA_HTTP_REASON_MAX, "%s: %.200s", nosa_gate_state_name(view.state),
             view.reason[0] ? view.reason : "full");
    return false;
}

/* Names the flag that opened a port. A port in use is the caller's to change. */
static enum nosa_status name_flag(struct nosa_error *error, const char *flag)
{
    if (error->status == NOSA_IO_ERROR)
        error->status = NOSA_INVALID_ARGUMENT;
    return nosa_error_prefix(error, "%s", flag);
}

static enum nosa_status open_http(struct worker *worker, struct nosa_error *error)
{
    const struct nosa_http_options options = {
        .address = worker->options->http,
        .metrics = worker->metrics.registry,
        .healthz = is_alive,
        .readyz = is_ready,
        .context = worker,
    };
    if (!options.address)
        return NOSA_OK;
    if (nosa_http_create(&worker->http, &options, error) != NOSA_OK)
        return name_flag(error, "--http");
    nosa_log(NOSA_LOG_INFO, "worker", "HTTP on port %u", nosa_http_port(worker->http));
    return NOSA_OK;
}

static enum nosa_status open_server(struct worker *worker, struct nosa_error *error)
{
    const struct nosa_worker_options *options = worker->options;
    const struct nosa_rpc_server_options server_options = {.calls_max = calls_max(options),
                                                           .send_queue_max = SEND_QUEUE_MAX};
    const struct nosa_rpc_descriptor_set set = {nosa_proto_descriptor_set,
                                                nosa_proto_descriptor_set_size};
    uint16_t port;
    NOSA_TRY(nosa_rpc_server_create(&worker->server, worker->runtime, &server_options, error));
    worker->service.gate = worker->gate;
    worker->service.files = &worker->files;
    worker->service.metrics = &worker->metrics;
    worker->service.queue_max = options->queue_max;
    worker->service.batch_max = options->batch_max;
    NOSA_TRY(nosa_worker_service_add(worker->server, &worker->service, error));
    NOSA_TRY(nosa_rpc_health_add(worker->server, error));
    NOSA_TRY(nosa_rpc_reflection_add(worker->server, &set, 1, error));
    if (nosa_rpc_server_listen(worker->server, options->listen,
                               nosa_rpc_tls_is_on(&options->tls) ? &options->tls : NULL, &port,
                               error) != NOSA_OK)
        return name_flag(error, "--listen");
    nosa_worker_card_name(&worker->card, options, port);
    nosa_worker_own_address(options->listen, port, worker->own_address);
    worker->service.limits.incarnation = worker->card.starting.incarnation;
    nosa_log_set_worker(worker->card.id);
    NOSA_TRY(nosa_rpc_server_start(worker->server, error));
    nosa_log(NOSA_LOG_INFO, "worker", "worker %s listens on port %u, advertised as %s",
             worker->card.id, port, worker->card.address);
    return NOSA_OK;
}

/* ---- model
 * --------------------------------------------------------------------------------------- */

/* With `auto` the first tier holds every session whole, unless that would take more than half of
 * the memory that is free; then it holds what fits in there. */
static void choose_kv(const struct nosa_worker_options *options,
                      const struct nosa_model_config *config, struct nosa_engine_options *engine)
{
    uint64_t context =
        engine->context_max > 0 ? (uint64_t)engine->context_max : (uint64_t)config->max_positions;
    uint64_t blocks = (context + NOSA_MODEL_BLOCK_SIZE - 1) / NOSA_MODEL_BLOCK_SIZE;
    /* K and V in the widest type, and a twentieth for summaries. */
    uint64_t block_bytes = (uint64_t)config->n_layers * config->n_kv_heads * config->head_dim * 2 *
                           sizeof(float) * NOSA_MODEL_BLOCK_SIZE;
    block_bytes += block_bytes / 20;
    uint64_t wanted = block_bytes * blocks * (uint64_t)engine->sessions_max;
    uint64_t memory = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
    if (options->engine.kv_bytes != NOSA_KV_BYTES_AUTO || wanted <= memory)
        return;
    uint64_t least = block_bytes * (blocks + 16);
    engine->kv_bytes = memory > least ? memory : least;
    if (engine->host_kv_bytes == NOSA_KV_BYTES_AUTO)
        engine->host_kv_bytes = 0; /* it would be of the same memory */
}

static enum nosa_status hash_model(const struct nosa_worker_options *options, uint8_t hash[32],
                                   struct nosa_error *error)
{
    struct nosa_checkpoint *checkpoint;
    NOSA_TRY(nosa_checkpoint_open(options->engine.model_directory, &checkpoint, error));
    enum nosa_status status = nosa_checkpoint_identity(checkpoint, hash, error);
    nosa_checkpoint_close(checkpoint);
    return status;
}

static enum nosa_status open_engine(struct worker *worker, struct nosa_error *error)
{
    const struct nosa_worker_options *options = worker->options;
    struct nosa_engine_options engine;
    struct nosa_model_config config;
    uint8_t hash[32];
    uint64_t start_ns = nosa_monotonic_ns();
    NOSA_TRY(nosa_model_config_load(options->engine.model_directory, &config, error));
    nosa_engine_flags_options(&options->engine, &engine);
    engine.rows_max = options->engine.prefill_chunk + options->batch_max;
    engine.sessions_max = SESSIONS_PER_ROW * options->batch_max;
    choose_kv(options, &config, &engine);
    NOSA_TRY(hash_model(options, hash, error));
    NOSA_TRY(nosa_engine_open(&engine, &worker->engine, error));
    const struct nosa_engine_info *info = nosa_engine_info(worker->engine);
    nosa_worker_card_fill(&worker->card, options, info, &worker->files, hash);
    struct nosa_run_limits *limits = &worker->service.limits;
    memcpy(limits->model_hash, hash, sizeof limits->model_hash);
    limits->vocab = info->config->vocab;
    limits->context_max = info->context_max;
    nosa_log(NOSA_LOG_INFO, "worker",
             "model %s loaded in %.1f s: %s attention, context %d, %s, KV blocks %d in the first "
             "tier, %d in the host's, %d on NVMe",
             worker->card.model_id, nosa_seconds_between(start_ns, nosa_monotonic_ns()),
             nosa_attention_mode_name(info->attention), info->context_max, info->device,
             info->kv_slots, info->kv_images, info->nvme_blocks);
    return NOSA_OK;
}

static enum nosa_status start_loop(struct worker *worker, struct nosa_error *error)
{
    const struct nosa_worker_options *options = worker->options;
    const struct nosa_engine_info *info = nosa_engine_info(worker->engine);
    const int32_t tiers[NOSA_DIGEST_TIERS] = {info->kv_blocks, info->kv_images, info->nvme_blocks};
    NOSA_TRY(nosa_digest_create(&worker->digest, tiers, error));
    const struct nosa_loop_options loop = {
        .engine = worker->engine,
        .gate = worker->gate,
        .digest = worker->digest,
        .metrics = &worker->metrics,
        .queue_max = options->queue_max,
        .batch_max = options->batch_max,
        .sequences_max = SESSIONS_PER_ROW * options->batch_max,
        .prefill_chunk = options->engine.prefill_chunk,
        .step_tokens_max = info->rows_max,
        .calls_max = calls_max(options),
        .slow_ns = (uint64_t)(options->slow_request_s * (double)NOSA_NS_PER_S),
    };
    NOSA_TRY(nosa_loop_create(&worker->loop, &loop, error));
    NOSA_TRY(nosa_loop_start(worker->loop, error));
    worker->service.loop = worker->loop;
    atomic_store(&worker->service.serving, true);
    return NOSA_OK;
}

static enum nosa_status join(struct worker *worker, struct nosa_error *error)
{
    const struct nosa_registry_options options = {
        .runtime = worker->runtime,
        .coordinators = worker->options->coordinators,
        .tls = &worker->options->tls,
        .join = &worker->card.starting,
        .gate = worker->gate,
    };
    if (options.coordinators)
        return nosa_registry_create(&worker->registry, &options, error);
    nosa_log(NOSA_LOG_INFO, "worker", "no --coordinator: nobody is told of this worker");
    return NOSA_OK;
}

/* The model is here: takes work, and says so. */
static void open_gate(struct worker *worker)
{
    const struct nosa_registry_loaded loaded = {
        .join = &worker->card.join,
        .info = nosa_engine_info(worker->engine),
        .loop = worker->loop,
        .digest = worker->digest,
    };
    atomic_store(&worker->loaded, true);
    tell(worker, worker->server, worker->loop, NULL);
    nosa_gate_ready(worker->gate);
    if (worker->registry)
        nosa_registry_set_loaded(worker->registry, &loaded);
    tell(worker, worker->server, worker->loop, worker->registry);
    gate_changed(worker);
}

static void leave(struct worker *worker)
{
    pthread_mutex_lock(&worker->leaving); /* or a signal ends the process now */
    nosa_registry_free(worker->registry);
    worker->registry = NULL;
    pthread_mutex_unlock(&worker->leaving);
}

/* ---- as a whole
 * ----------------------------------------------------------------------------------- */

/* Loads, serves until the gate has ended. */
static enum nosa_status serve(struct worker *worker, struct nosa_error *error)
{
    tell(worker, worker->server, NULL, worker->registry);
    enum nosa_status status = open_engine(worker, error);
    if (status == NOSA_OK)
        status = start_loop(worker, error);
    if (status == NOSA_OK) {
        open_gate(worker);
        status = nosa_gate_wait_end(worker->gate, error);
    }
    return status;
}

/* What the NVMe tier has not taken by now is computed again by the next start. */
static void keep_prefixes(struct worker *worker)
{
    struct nosa_error error = {0};
    if (nosa_engine_flush(worker->engine, FLUSH_MS, &error) != NOSA_OK)
        nosa_log(NOSA_LOG_WARN, "worker", "%s", error.text);
}

static void stop(struct worker *worker, bool whole)
{
    tell(worker, worker->server, NULL, NULL);
    leave(worker);
    if (worker->loop)
        nosa_loop_stop(worker->loop);
    if (worker->server)
        nosa_rpc_server_shutdown(worker->server, GRACE_MS);
    if (worker->engine && whole)
        keep_prefixes(worker);
    if (worker->signals_started) {
        pthread_kill(worker->signals, SIGUSR2);
        pthread_join(worker->signals, NULL);
    }
    nosa_http_free(worker->http);
    tell(worker, NULL, NULL, NULL);
    nosa_rpc_server_free(worker->server);
    nosa_loop_free(worker->loop);
    nosa_digest_free(worker->digest);
    nosa_engine_close(worker->engine);
    nosa_worker_metrics_free(&worker->metrics);
    nosa_gate_free(worker->gate);
    nosa_model_files_free(&worker->files);
    nosa_rpc_runtime_free(worker->runtime);
    pthread_mutex_destroy(&worker->leaving);
    pthread_mutex_destroy(&worker->mutex);
}

enum nosa_status nosa_worker_run(const struct nosa_worker_options *options,
                                 struct nosa_error *error)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory");
    worker->options = options;
    pthread_mutex_init(&worker->mutex, NULL);
    pthread_mutex_init(&worker->leaving, NULL);
    uint32_t requests_max = (uint32_t)(options->queue_max + options->batch_max);
    enum nosa_status status =
        nosa_model_files_read(&worker->files, options->engine.model_directory, error);
    if (status == NOSA_OK)
        status = nosa_rpc_runtime_create(&worker->runtime, RPC_THREADS, error);
    if (status == NOSA_OK)
        status = nosa_gate_create(&worker->gate, requests_max, gate_changed, worker, error);
    if (status == NOSA_OK)
        status = nosa_worker_metrics_create(&worker->metrics, error);
    if (status == NOSA_OK)
        status = open_server(worker, error);
    if (status == NOSA_OK)
        status = open_http(worker, error);
    if (status == NOSA_OK)
        status = join(worker, error);
    if (status == NOSA_OK)
        status = start_signals(worker, error);
    if (status == NOSA_OK)
        status = serve(worker, error);
    stop(worker, status == NOSA_OK);
    if (status == NOSA_OK)
        nosa_log(NOSA_LOG_INFO, "worker", "drained and ended");
    nosa_log_set_worker(NULL);
    free(worker);
    return status;
}
