#include "coordinator_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/log.h"
#include "generation_internal.h"
#include "nosa_proto_descriptor_set.h"
#include "rpc/address.h"
#include "rpc/health.h"
#include "rpc/reflection.h"

#define TICK_MS            50
#define STANDSTILL_MS      500 /* between ticks: this process did not run */
#define POOL_THREADS       2
#define FORGET_MS          600000 /* a LOST worker */
#define PREFIX_HASHES_MAX  (1u << 20)
#define PROBE_TIMEOUT_MS   1000
#define SEND_QUEUE_MAX     64 /* messages that wait for a reader before its stream is paused */
#define MESSAGE_BYTES_MAX  (80u << 20)
#define UNPACKED_BYTES_MAX (256u << 20)
#define QUOTA_BYTES        (512u << 20)
#define STOP_GRACE_MS      1000

/* ---- the ticker ---- */

void nosa_coordinator_wake(struct nosa_coordinator *coordinator)
{
    pthread_mutex_lock(&coordinator->tick_mutex);
    coordinator->tick_now = true;
    pthread_cond_signal(&coordinator->tick_changed);
    pthread_mutex_unlock(&coordinator->tick_mutex);
}

static void handle_events(struct nosa_coordinator *coordinator)
{
    struct nosa_worker *worker;
    uint64_t timeout_ms;
    enum nosa_registry_event event;
    while ((event = nosa_registry_next_event(coordinator->registry, &worker, &timeout_ms)) !=
           NOSA_REGISTRY_NOTHING) {
        switch (event) {
        case NOSA_REGISTRY_FETCH: nosa_link_fetch_model(coordinator, worker); break;
        case NOSA_REGISTRY_DRAIN: nosa_link_drain(coordinator, worker, timeout_ms); break;
        case NOSA_REGISTRY_RESUME: nosa_link_resume(coordinator, worker, NULL); break;
        default:
            nosa_relay_leave_worker(coordinator, worker, event == NOSA_REGISTRY_LOST);
            nosa_worker_release(worker);
            break;
        }
    }
}

static void update_health(struct nosa_coordinator *coordinator)
{
    bool serving =
        !atomic_load(&coordinator->draining) && nosa_registry_is_ready(coordinator->registry);
    nosa_rpc_health_set(coordinator->server, "", serving);
    nosa_rpc_health_set(coordinator->server, "nosa.v1.Inference", serving);
}

/* Waits for the next tick; false: the end. */
static bool wait_for_tick(struct nosa_coordinator *coordinator)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += TICK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&coordinator->tick_mutex);
    while (!coordinator->stopping && !coordinator->tick_now &&
           pthread_cond_timedwait(&coordinator->tick_changed, &coordinator->tick_mutex, &until) ==
               0)
        continue;
    bool stopping = coordinator->stopping;
    coordinator->tick_now = false;
    pthread_mutex_unlock(&coordinator->tick_mutex);
    return !stopping;
}

static void *tick(void *argument)
{
    struct nosa_coordinator *coordinator = argument;
    uint64_t second_ns = nosa_monotonic_ns();
    uint64_t last_ns = second_ns;
    while (wait_for_tick(coordinator)) {
        uint64_t gap_ns = nosa_monotonic_ns() - last_ns;
        if (gap_ns > STANDSTILL_MS * NOSA_NS_PER_MS)
            nosa_registry_stood_still(coordinator->registry, gap_ns);
        last_ns += gap_ns;
        nosa_share_tick(coordinator);
        handle_events(coordinator);
        nosa_relay_tick(coordinator);
        update_health(coordinator);
        if (nosa_monotonic_ns() - second_ns >= NOSA_NS_PER_S) {
            second_ns += NOSA_NS_PER_S;
            nosa_telemetry_tick(coordinator->telemetry);
            nosa_share_second(coordinator);
        }
    }
    return NULL;
}

/* ---- who may call ---- */

void nosa_coordinator_client_name(struct nosa_coordinator *coordinator, struct nosa_rpc_call *call,
                                  char name[NOSA_CLIENT_NAME_MAX])
{
    size_t size;
    bool operator_allowed;
    char peer[NOSA_RPC_PEER_MAX];
    const char *token = coordinator->auth ? nosa_rpc_call_bearer(call, &size) : NULL;
    const char *found =
        token ? nosa_auth_find(coordinator->auth, token, size, &operator_allowed) : NULL;
    snprintf(name, NOSA_CLIENT_NAME_MAX, "%.127s",
             found ? found : nosa_rpc_call_peer_name(call, peer));
}

static bool admit(void *context, struct nosa_rpc_call *call, enum nosa_rpc_code *code,
                  char text[NOSA_RPC_TEXT_MAX])
{
    struct nosa_coordinator *coordinator = context;
    bool operator_allowed = false;
    size_t size;
    if (!coordinator->auth)
        return true;
    const char *token = nosa_rpc_call_bearer(call, &size);
    const char *name =
        token ? nosa_auth_find(coordinator->auth, token, size, &operator_allowed) : NULL;
    *code = NOSA_RPC_UNAUTHENTICATED;
    if (!token)
        snprintf(text, NOSA_RPC_TEXT_MAX, "authorization: a bearer token is needed");
    else if (!name)
        snprintf(text, NOSA_RPC_TEXT_MAX, "authorization: the token is not known");
    if (!name)
        return false;
    if (operator_allowed || strncmp(nosa_rpc_call_path(call), "/nosa.v1.Admin/", 15) != 0)
        return true;
    *code = NOSA_RPC_PERMISSION_DENIED;
    snprintf(text, NOSA_RPC_TEXT_MAX, "authorization: '%.128s' may not make operators' calls",
             name);
    return false;
}

/* Calls that generation.c never hears of are counted as those that it refuses. */
static void count_refused(void *context, struct nosa_rpc_call *call, enum nosa_rpc_code code)
{
    struct nosa_coordinator *coordinator = context;
    if (strcmp(nosa_rpc_call_path(call), "/nosa.v1.Inference/Generate") == 0)
        nosa_counter_add(coordinator->telemetry->requests[code], 1);
}

/* ---- HTTP ---- */

static bool healthz(void *context, char reason[NOSA_HTTP_REASON_MAX])
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    if (nosa_rpc_address_probe(coordinator->probe_address, PROBE_TIMEOUT_MS, &error) == NOSA_OK)
        return true;
    snprintf(reason, NOSA_HTTP_REASON_MAX, "%.250s", error.text);
    return false;
}

static bool readyz(void *context, char reason[NOSA_HTTP_REASON_MAX])
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_generation_table *table = &coordinator->table;
    pthread_mutex_lock(&table->mutex);
    bool full = table->waiting >= coordinator->options.queue_max;
    bool no_bytes = table->prompt_bytes + sizeof(struct nosa_generation) >
                    coordinator->options.prompts_bytes_max; /* not even the shortest prompt */
    pthread_mutex_unlock(&table->mutex);
    if (atomic_load(&coordinator->draining))
        snprintf(reason, NOSA_HTTP_REASON_MAX, "draining");
    else if (full)
        snprintf(reason, NOSA_HTTP_REASON_MAX, "the queue is full (--max-queue)");
    else if (no_bytes)
        snprintf(reason, NOSA_HTTP_REASON_MAX,
                 "the prompts in flight take all that they may (--max-prompts-bytes)");
    else if (!nosa_registry_is_ready(coordinator->registry))
        snprintf(reason, NOSA_HTTP_REASON_MAX, "no worker is ready");
    else if (!nosa_registry_has_room(coordinator->registry))
        snprintf(reason, NOSA_HTTP_REASON_MAX, "every worker is full");
    return !reason[0];
}

static void collect(void *context)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_telemetry *telemetry = coordinator->telemetry;
    struct nosa_worker_view *views = NULL;
    size_t count = 0;
    uint32_t states[6] = {0};
    struct nosa_kv_totals kv;
    double kv_usage[NOSA_REGISTRY_TIERS_MAX];
    nosa_registry_kv(coordinator->registry, &kv, kv_usage);
    nosa_telemetry_set_kv(telemetry, &kv, kv_usage);
    pthread_mutex_lock(&coordinator->table.mutex);
    uint32_t waiting = coordinator->table.waiting;
    uint32_t running = coordinator->table.count - waiting;
    pthread_mutex_unlock(&coordinator->table.mutex);
    nosa_gauge_set(telemetry->waiting, waiting);
    nosa_gauge_set(telemetry->running, running);
    if (nosa_registry_list(coordinator->registry, &views, &count, NULL) != NOSA_OK)
        return;
    for (size_t i = 0; i < count; i++)
        states[views[i].state]++;
    for (int state = 1; state < 6; state++)
        nosa_gauge_set(telemetry->workers[state], states[state]);
    nosa_worker_views_free(views, count);
}

static enum nosa_status start_http(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    const struct nosa_http_options options = {
        .address = coordinator->options.http,
        .metrics = coordinator->telemetry->metrics,
        .collect = collect,
        .healthz = healthz,
        .readyz = readyz,
        .context = coordinator,
    };
    if (!options.address)
        return NOSA_OK;
    enum nosa_status status = nosa_http_create(&coordinator->http, &options, error);
    if (status != NOSA_OK)
        nosa_error_prefix(error, "--http");
    return status;
}

/* ---- start ---- */

static enum nosa_status add_services(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    const struct nosa_rpc_descriptor_set set = {nosa_proto_descriptor_set,
                                                nosa_proto_descriptor_set_size};
    NOSA_TRY(nosa_rpc_health_add(coordinator->server, error));
    NOSA_TRY(nosa_rpc_reflection_add(coordinator->server, &set, 1, error));
    NOSA_TRY(nosa_inference_add(coordinator, error));
    NOSA_TRY(nosa_admin_add(coordinator, error));
    return nosa_cluster_add(coordinator, error);
}

static enum nosa_status start_server(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    const struct nosa_coordinator_options *options = &coordinator->options;
    const struct nosa_rpc_server_options server_options = {
        .message_bytes_max = MESSAGE_BYTES_MAX,
        .unpacked_bytes_max = UNPACKED_BYTES_MAX,
        .quota_bytes = QUOTA_BYTES,
        .send_queue_max = SEND_QUEUE_MAX,
        .admit = admit,
        .refused = count_refused,
        .admit_context = coordinator,
    };
    NOSA_TRY(
        nosa_rpc_server_create(&coordinator->server, coordinator->runtime, &server_options, error));
    NOSA_TRY(add_services(coordinator, error));
    enum nosa_status status = nosa_rpc_server_listen(coordinator->server, options->listen,
                                                     &options->tls, &coordinator->port, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "--listen");
        return status;
    }
    NOSA_TRY(nosa_share_start(coordinator, error));
    return nosa_rpc_server_start(coordinator->server, error);
}

/* Where /healthz dials: the listener's own host, or this machine where it listens everywhere. */
static void set_probe_address(struct nosa_coordinator *coordinator)
{
    char numeric[1][NOSA_RPC_ADDRESS_MAX];
    size_t count = 0;
    const char *host = "127.0.0.1";
    if (nosa_rpc_address_resolve(coordinator->options.listen, numeric, 1, &count, NULL) ==
            NOSA_OK &&
        count == 1) {
        *strrchr(numeric[0], ':') = '\0';
        if (strcmp(numeric[0], "[::]") == 0)
            host = "[::1]";
        else if (strcmp(numeric[0], "0.0.0.0") != 0)
            host = numeric[0];
    }
    snprintf(coordinator->probe_address, sizeof coordinator->probe_address, "%.50s:%u", host,
             coordinator->port);
}

static void init(struct nosa_coordinator *coordinator,
                 const struct nosa_coordinator_options *options)
{
    pthread_condattr_t attributes;
    coordinator->options = *options;
    coordinator->limits.prompt_bytes_max = options->prompt_bytes_max;
    coordinator->start_ns = nosa_monotonic_ns();
    while (coordinator->epoch == 0)
        if (getrandom(&coordinator->epoch, sizeof coordinator->epoch, 0) !=
            (ssize_t)sizeof coordinator->epoch)
            coordinator->epoch = nosa_monotonic_ns() | 1;
    snprintf(coordinator->id, sizeof coordinator->id, "%016" PRIx64, coordinator->epoch);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&coordinator->tick_mutex, NULL);
    pthread_cond_init(&coordinator->tick_changed, &attributes);
    pthread_mutex_init(&coordinator->table.mutex, NULL);
    pthread_cond_init(&coordinator->table.empty, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* The silence after which a worker is lost: since it is looked for once a tick, a little less than
 * the time within which it is to be noticed. */
static uint32_t silence_ms(const struct nosa_coordinator_options *options)
{
    uint32_t eighth = options->worker_timeout_ms / 8;
    return options->worker_timeout_ms - (eighth < TICK_MS + 10 ? eighth : TICK_MS + 10);
}

static enum nosa_status open_parts(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    const struct nosa_coordinator_options *options = &coordinator->options;
    const struct nosa_registry_options registry_options = {
        .worker_timeout_ms = silence_ms(options),
        .forget_ms = FORGET_MS,
        .prefix_hashes_max = PREFIX_HASHES_MAX,
        .epoch = coordinator->epoch,
        .link_open = nosa_link_open,
        .link_close = nosa_link_close,
        .link_context = coordinator,
        .is_drained = nosa_share_is_drained,
        .drain_timeout_ms = options->drain_timeout_ms,
    };
    if (options->auth_tokens)
        NOSA_TRY(nosa_auth_open(&coordinator->auth, options->auth_tokens, error));
    NOSA_TRY(nosa_telemetry_create(&coordinator->telemetry, error));
    NOSA_TRY(nosa_registry_create(&coordinator->registry, &registry_options, error));
    NOSA_TRY(nosa_rpc_runtime_create(&coordinator->runtime, options->threads, error));
    NOSA_TRY(nosa_work_pool_create(&coordinator->pool, POOL_THREADS, options->queue_max, error));
    NOSA_TRY(start_server(coordinator, error));
    set_probe_address(coordinator);
    NOSA_TRY(start_http(coordinator, error));
    if (pthread_create(&coordinator->ticker, NULL, tick, coordinator) != 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "no thread could be started");
    coordinator->ticking = true;
    return NOSA_OK;
}

enum nosa_status nosa_coordinator_start(struct nosa_coordinator **out,
                                        const struct nosa_coordinator_options *options,
                                        struct nosa_error *error)
{
    struct nosa_coordinator *coordinator = calloc(1, sizeof *coordinator);
    *out = NULL;
    if (!coordinator)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a coordinator");
    init(coordinator, options);
    enum nosa_status status = open_parts(coordinator, error);
    if (status != NOSA_OK) {
        nosa_coordinator_stop(coordinator);
        return status;
    }
    *out = coordinator;
    return NOSA_OK;
}

uint16_t nosa_coordinator_port(const struct nosa_coordinator *coordinator)
{
    return coordinator->port;
}

uint16_t nosa_coordinator_http_port(const struct nosa_coordinator *coordinator)
{
    return coordinator->http ? nosa_http_port(coordinator->http) : 0;
}

/* ---- stop ---- */

/* Waits until no generation runs; false: the time was over first. */
static bool wait_until_empty(struct nosa_coordinator *coordinator)
{
    struct nosa_generation_table *table = &coordinator->table;
    struct timespec until;
    int failed = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += coordinator->options.drain_timeout_ms / 1000;
    until.tv_nsec += coordinator->options.drain_timeout_ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&table->mutex);
    while (table->count > 0 && failed == 0)
        failed = pthread_cond_timedwait(&table->empty, &table->mutex, &until);
    bool empty = table->count == 0;
    pthread_mutex_unlock(&table->mutex);
    return empty;
}

static void stop_ticker(struct nosa_coordinator *coordinator)
{
    if (!coordinator->ticking)
        return;
    pthread_mutex_lock(&coordinator->tick_mutex);
    coordinator->stopping = true;
    pthread_cond_signal(&coordinator->tick_changed);
    pthread_mutex_unlock(&coordinator->tick_mutex);
    pthread_join(coordinator->ticker, NULL);
}

static void free_parts(struct nosa_coordinator *coordinator)
{
    nosa_http_free(coordinator->http);
    nosa_rpc_server_free(coordinator->server);
    /* Calls to workers were cancelled with their generations, or have deadlines of seconds. */
    while (atomic_load(&coordinator->links) > 0)
        usleep(1000);
    nosa_membership_free(coordinator->membership);
    nosa_work_pool_free(coordinator->pool);
    nosa_registry_free(coordinator->registry);
    nosa_rpc_runtime_free(coordinator->runtime);
    nosa_telemetry_free(coordinator->telemetry);
    nosa_auth_free(coordinator->auth);
    pthread_cond_destroy(&coordinator->table.empty);
    pthread_mutex_destroy(&coordinator->table.mutex);
    pthread_cond_destroy(&coordinator->tick_changed);
    pthread_mutex_destroy(&coordinator->tick_mutex);
    free(coordinator);
}

bool nosa_coordinator_stop(struct nosa_coordinator *coordinator)
{
    bool whole = true;
    atomic_store(&coordinator->draining, true);
    if (coordinator->ticking) {
        nosa_coordinator_wake(coordinator);
        whole = wait_until_empty(coordinator);
        nosa_relay_end_all(coordinator, NOSA_RPC_UNAVAILABLE, "this coordinator goes away");
        nosa_rpc_server_shutdown(coordinator->server, STOP_GRACE_MS);
    }
    stop_ticker(coordinator);
    free_parts(coordinator);
    return whole;
}
