#include "service/registry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "service/registry_internal.h"

#define JOIN_TIMEOUT_MS  2000
#define LEAVE_TIMEOUT_MS 1000
#define REFUSED_MS       2000  /* until the next try after an answer that a retry hardly changes */
#define TWIN_MS          60000 /* until an address of a coordinator that is joined is tried again */

/* Bounds of what a coordinator may ask for. */
#define HEARTBEAT_MIN_MS     20
#define HEARTBEAT_MAX_MS     10000
#define HEARTBEAT_DEFAULT_MS 1000

/* ---- answers ------------------------------------------------------------------------------------
 */

static uint64_t in_ms(uint64_t ms)
{
    return nosa_monotonic_ns() + ms * NOSA_NS_PER_MS;
}

static void say_trouble(struct member *member, const char *doing,
                        const struct nosa_rpc_outcome *outcome)
{
    char text[sizeof member->said];
    snprintf(text, sizeof text, "%s: %s: %s", doing, nosa_rpc_code_name(outcome->code),
             outcome->text);
    if (strcmp(text, member->said) == 0)
        return;
    snprintf(member->said, sizeof member->said, "%s", text);
    nosa_log(NOSA_LOG_WARN, "registry", "coordinator %s: %s; trying again", member->address, text);
}

static void begin_prefixes(struct member *member)
{
    member->cursor = (struct nosa_digest_cursor){0};
}

/* Another address that leads to the coordinator that this one has just joined; NULL: none. */
static const struct member *find_twin(const struct member *member)
{
    const struct nosa_registry *registry = member->registry;
    for (size_t i = 0; i < registry->member_count; i++) {
        const struct member *other = registry->members[i];
        if (other != member && other->joined && !other->failing && other->epoch == member->epoch)
            return other;
    }
    return NULL;
}

/* A coordinator does not answer at one address: those that may lead to it as well have their turn.
 */
static void wake_twins(struct nosa_registry *registry)
{
    for (size_t i = 0; i < registry->member_count; i++)
        if (registry->members[i]->twin)
            registry->members[i]->due_ns = 0;
}

static uint32_t clamp(uint32_t value, uint32_t min, uint32_t max)
{
    return value < min ? min : value > max ? max : value;
}

static void join_ended(struct member *member, const struct nosa_rpc_outcome *outcome,
                       const Nosa__Cluster__V1__JoinResponse *response)
{
    if (outcome->code != NOSA_RPC_OK) {
        bool refused =
            outcome->code != NOSA_RPC_UNAVAILABLE && outcome->code != NOSA_RPC_DEADLINE_EXCEEDED;
        say_trouble(member, "cannot join", outcome);
        member->due_ns = in_ms(refused ? REFUSED_MS : member->backoff_ms);
        member->backoff_ms = clamp(2 * member->backoff_ms, BACKOFF_MIN_MS, BACKOFF_MAX_MS);
        return;
    }
    uint32_t heartbeat_ms = response->heartbeat_ms ? response->heartbeat_ms : HEARTBEAT_DEFAULT_MS;
    nosa_registry_learn(member->registry, response->coordinators, response->n_coordinators);
    member->epoch = response->coordinator_epoch;
    const struct member *twin = find_twin(member);
    if (twin && !member->twin)
        nosa_log(NOSA_LOG_INFO, "registry", "coordinator %s is the one at %s", member->address,
                 twin->address);
    member->twin = twin != NULL;
    if (twin) { /* one of the two is enough */
        member->due_ns = in_ms(TWIN_MS);
        return;
    }
    member->joined = true;
    member->sequence = 0;
    member->heartbeat_ms = clamp(heartbeat_ms, HEARTBEAT_MIN_MS, HEARTBEAT_MAX_MS);
    member->prefixes_max = clamp(response->prefix_hashes_max, 0, NOSA_PREFIX_CHANGES_MAX);
    member->backoff_ms = BACKOFF_MIN_MS;
    member->said[0] = '\0';
    member->due_ns = 0;
    begin_prefixes(member);
    nosa_log(NOSA_LOG_INFO, "registry", "joined coordinator %s%s%s", member->address,
             member->registry->loaded.join ? "" : ", while the model is being loaded",
             response->drain ? ", which wants this worker drained" : "");
}

/* Another process has taken this worker's id: what runs here goes on elsewhere. */
static void fence(const char *address, const char *id, struct nosa_gate *gate)
{
    struct nosa_error error = {0};
    nosa_error_set(&error, NOSA_UNAVAILABLE,
                   "coordinator %s: a newer start of worker '%s' has taken its place", address, id);
    nosa_gate_fail(gate, &error);
}

static void heartbeat_ended(struct member *member, const struct nosa_rpc_outcome *outcome,
                            const Nosa__Cluster__V1__HeartbeatResponse *response)
{
    member->due_ns = in_ms(member->heartbeat_ms);
    if (outcome->code == NOSA_RPC_OK) {
        member->said[0] = '\0';
        nosa_registry_learn(member->registry, response->coordinators, response->n_coordinators);
        if (!response->prefixes_known)
            begin_prefixes(member);
        return;
    }
    begin_prefixes(member); /* whether the last changes came in is not known */
    switch (outcome->code) {
    case NOSA_RPC_ABORTED: member->joined = false; return;
    case NOSA_RPC_NOT_FOUND:
        nosa_log(NOSA_LOG_INFO, "registry", "coordinator %s does not know this worker; joining",
                 member->address);
        member->joined = false;
        member->due_ns = 0;
        return;
    case NOSA_RPC_FAILED_PRECONDITION:
    case NOSA_RPC_INVALID_ARGUMENT: member->joined = false; break;
    default: break;
    }
    say_trouble(member, "no heartbeat", outcome);
    if (member->due_ns < in_ms(BACKOFF_MIN_MS))
        member->due_ns = in_ms(BACKOFF_MIN_MS);
}

static void call_ended(void *context, const struct nosa_rpc_outcome *outcome,
                       const ProtobufCMessage *response)
{
    struct member *member = context;
    struct nosa_registry *registry = member->registry;
    struct nosa_gate *gate = registry->options.gate;
    char address[NOSA_RPC_ADDRESS_MAX];
    const char *id = registry->options.join->worker_id;
    bool fenced = false, drain = false;
    pthread_mutex_lock(&registry->mutex);
    enum call call = member->call;
    member->call = CALL_NONE;
    member->failing = outcome->code != NOSA_RPC_OK;
    if (member->failing && member->joined)
        wake_twins(registry);
    memcpy(address, member->address, sizeof address);
    if (call == CALL_JOIN) {
        const Nosa__Cluster__V1__JoinResponse *joined =
            (const Nosa__Cluster__V1__JoinResponse *)response;
        drain = outcome->code == NOSA_RPC_OK && joined->drain;
        join_ended(member, outcome, joined);
    } else if (call == CALL_HEARTBEAT) {
        fenced = outcome->code == NOSA_RPC_ABORTED;
        heartbeat_ended(member, outcome, (const Nosa__Cluster__V1__HeartbeatResponse *)response);
    }
    if (member->stale) {
        member->joined = false;
        member->due_ns = 0;
    }
    member->stale = false;
    if (fenced) /* not to join again */
        member->due_ns = UINT64_MAX;
    else if (member->urgent && member->joined)
        member->due_ns = 0;
    member->urgent = false;
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
    /* The gate tells the registry of its changes, so not under the mutex. */
    if (drain)
        nosa_gate_drain(gate, NOSA_GATE_NEVER);
    if (fenced)
        fence(address, id, gate);
}

/* ---- calls
 * --------------------------------------------------------------------------------------- */

static void start_call(struct member *member, enum call call,
                       const struct nosa_rpc_request *request)
{
    member->call = call;
    if (nosa_rpc_unary_start(member->channel, request, call_ended, member, NULL) == NOSA_OK)
        return;
    member->call = CALL_NONE; /* no memory: later, perhaps */
    member->due_ns = in_ms(BACKOFF_MAX_MS);
}

static void fill_state(struct nosa_registry *registry, Nosa__V1__WorkerState *state, char *reason,
                       size_t size)
{
    struct nosa_gate_view view;
    nosa_gate_view(registry->options.gate, &view);
    *state = (Nosa__V1__WorkerState)view.state;
    snprintf(reason, size, "%s", view.reason);
}

/* NULL while the model is loaded. */
static Nosa__Cluster__V1__Load *fill_load(struct nosa_registry *registry,
                                          struct nosa_load_message *message)
{
    struct nosa_loop_load load;
    if (!registry->loaded.join)
        return NULL;
    nosa_loop_load(registry->loaded.loop, &load);
    nosa_load_message_fill(message, &load, registry->loaded.info);
    return &message->load;
}

static void send_join(struct nosa_registry *registry, struct member *member)
{
    Nosa__Cluster__V1__JoinRequest join =
        *(registry->loaded.join ? registry->loaded.join : registry->options.join);
    char reason[NOSA_GATE_REASON_MAX];
    struct nosa_load_message message;
    fill_state(registry, &join.state, reason, sizeof reason);
    if (!registry->loaded.join) /* whatever is to become of it */
        join.state = NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING;
    join.load = fill_load(registry, &message);
    join.uptime_ms = (nosa_monotonic_ns() - registry->start_ns) / NOSA_NS_PER_MS;
    start_call(member, CALL_JOIN,
               &(struct nosa_rpc_request){
                   .path = "/nosa.cluster.v1.Registry/Join",
                   .message = &join.base,
                   .response = &nosa__cluster__v1__join_response__descriptor,
                   .timeout_ms = JOIN_TIMEOUT_MS,
               });
}

static void send_heartbeat(struct nosa_registry *registry, struct member *member)
{
    Nosa__Cluster__V1__HeartbeatRequest heartbeat = NOSA__CLUSTER__V1__HEARTBEAT_REQUEST__INIT;
    char reason[NOSA_GATE_REASON_MAX];
    struct nosa_load_message message;
    struct nosa_digest_batch batch;
    heartbeat.worker_id = registry->options.join->worker_id;
    heartbeat.incarnation = registry->options.join->incarnation;
    heartbeat.coordinator_epoch = member->epoch;
    heartbeat.sequence = ++member->sequence;
    fill_state(registry, &heartbeat.state, reason, sizeof reason);
    heartbeat.reason = reason;
    heartbeat.load = fill_load(registry, &message);
    if (member->prefixes_max > 0 && registry->loaded.join) {
        nosa_digest_read(registry->loaded.digest, &member->cursor, registry->changes,
                         member->prefixes_max, &batch);
        nosa_prefix_message_fill(&registry->prefix, &batch, registry->changes);
        heartbeat.prefixes = &registry->prefix.delta;
    }
    uint32_t timeout_ms = 2 * member->heartbeat_ms;
    start_call(member, CALL_HEARTBEAT,
               &(struct nosa_rpc_request){
                   .path = "/nosa.cluster.v1.Registry/Heartbeat",
                   .message = &heartbeat.base,
                   .response = &nosa__cluster__v1__heartbeat_response__descriptor,
                   .timeout_ms = timeout_ms < 1000 ? 1000 : timeout_ms,
               });
}

static void send_leave(struct nosa_registry *registry, struct member *member)
{
    Nosa__Cluster__V1__LeaveRequest leave = NOSA__CLUSTER__V1__LEAVE_REQUEST__INIT;
    leave.worker_id = registry->options.join->worker_id;
    leave.incarnation = registry->options.join->incarnation;
    member->joined = false;
    start_call(member, CALL_LEAVE,
               &(struct nosa_rpc_request){
                   .path = "/nosa.cluster.v1.Registry/Leave",
                   .message = &leave.base,
                   .response = &nosa__cluster__v1__leave_response__descriptor,
                   .timeout_ms = LEAVE_TIMEOUT_MS,
               });
}

/* Makes the calls that are due; returns when the next one is. */
static uint64_t make_calls(struct nosa_registry *registry)
{
    uint64_t now_ns = nosa_monotonic_ns(), next_ns = UINT64_MAX;
    for (size_t i = 0; i < registry->member_count; i++) {
        struct member *member = registry->members[i];
        if (member->call != CALL_NONE)
            continue;
        if (member->due_ns > now_ns)
            next_ns = member->due_ns < next_ns ? member->due_ns : next_ns;
        else if (member->joined)
            send_heartbeat(registry, member);
        else
            send_join(registry, member);
    }
    return next_ns;
}

static bool any_call(const struct nosa_registry *registry)
{
    for (size_t i = 0; i < registry->member_count; i++)
        if (registry->members[i]->call != CALL_NONE)
            return true;
    return false;
}

static void *call_thread(void *context)
{
    struct nosa_registry *registry = context;
    pthread_mutex_lock(&registry->mutex);
    while (!registry->leaving) {
        nosa_registry_drop_members(registry);
        uint64_t next_ns = make_calls(registry);
        uint64_t latest_ns = in_ms(RESOLVE_MS);
        nosa_registry_wait_until(registry, next_ns < latest_ns ? next_ns : latest_ns);
    }
    while (any_call(registry)) /* each has a deadline */
        pthread_cond_wait(&registry->changed, &registry->mutex);
    for (size_t i = 0; i < registry->member_count; i++)
        if (registry->members[i]->joined)
            send_leave(registry, registry->members[i]);
    while (any_call(registry))
        pthread_cond_wait(&registry->changed, &registry->mutex);
    registry->left = true;
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
    return NULL;
}

/* ---- life
 * ----------------------------------------------------------------------------------------- */

enum nosa_status nosa_registry_create(struct nosa_registry **out,
                                      const struct nosa_registry_options *options,
                                      struct nosa_error *error)
{
    pthread_condattr_t attributes;
    *out = NULL;
    struct nosa_registry *registry = calloc(1, sizeof *registry);
    if (!registry)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the registry");
    registry->options = *options;
    registry->start_ns = nosa_monotonic_ns();
    pthread_mutex_init(&registry->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&registry->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    enum nosa_status status = nosa_registry_read_names(options->coordinators, registry->names,
                                                       &registry->name_count, error);
    if (status == NOSA_OK &&
        pthread_create(&registry->resolver, NULL, nosa_registry_resolve_thread, registry))
        status = nosa_error_set(error, NOSA_IO_ERROR, "the registry's thread cannot be started");
    registry->threads += status == NOSA_OK;
    if (status == NOSA_OK && pthread_create(&registry->caller, NULL, call_thread, registry))
        status = nosa_error_set(error, NOSA_IO_ERROR, "the registry's thread cannot be started");
    registry->threads += status == NOSA_OK;
    if (status != NOSA_OK) {
        nosa_registry_free(registry);
        return status;
    }
    *out = registry;
    return NOSA_OK;
}

void nosa_registry_set_loaded(struct nosa_registry *registry,
                              const struct nosa_registry_loaded *loaded)
{
    pthread_mutex_lock(&registry->mutex);
    NOSA_ASSERT(!registry->loaded.join);
    registry->loaded = *loaded;
    for (size_t i = 0; i < registry->member_count; i++) {
        struct member *member = registry->members[i];
        if (member->call != CALL_NONE) {
            member->stale = true;
        } else if (member->joined) {
            member->joined = false;
            member->due_ns = 0;
        }
    }
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_wake(struct nosa_registry *registry)
{
    pthread_mutex_lock(&registry->mutex);
    for (size_t i = 0; i < registry->member_count; i++) {
        struct member *member = registry->members[i];
        if (member->call != CALL_NONE)
            member->urgent = true;
        else if (member->joined)
            member->due_ns = 0;
    }
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_leave(struct nosa_registry *registry)
{
    pthread_mutex_lock(&registry->mutex);
    registry->leaving = true;
    pthread_cond_broadcast(&registry->changed);
    while (!registry->left && registry->threads > 1)
        pthread_cond_wait(&registry->changed, &registry->mutex);
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_free(struct nosa_registry *registry)
{
    if (!registry)
        return;
    nosa_registry_leave(registry);
    if (registry->threads > 0)
        pthread_join(registry->resolver, NULL);
    if (registry->threads > 1)
        pthread_join(registry->caller, NULL);
    for (size_t i = 0; i < registry->member_count; i++)
        nosa_registry_free_member(registry->members[i]);
    pthread_cond_destroy(&registry->changed);
    pthread_mutex_destroy(&registry->mutex);
    free(registry);
}
