#include "service/registry.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc/address.h"
#include "service/load_message.h"

#define NAMES_MAX   16
#define MEMBERS_MAX 64

#define RESOLVE_MS       5000
#define JOIN_TIMEOUT_MS  2000
#define LEAVE_TIMEOUT_MS 1000
#define BACKOFF_MIN_MS   100
#define BACKOFF_MAX_MS   2000
#define REFUSED_MS       2000 /* until the next try after an answer that a retry hardly changes */

/* Bounds of what a coordinator may ask for. */
#define HEARTBEAT_MIN_MS     20
#define HEARTBEAT_MAX_MS     10000
#define HEARTBEAT_DEFAULT_MS 1000

enum call { CALL_NONE, CALL_JOIN, CALL_HEARTBEAT, CALL_LEAVE };

/* One coordinator: an address that a name resolved to. Under the registry's mutex. */
struct member {
    struct nosa_registry *registry;
    char address[NOSA_RPC_ADDRESS_MAX];
    struct nosa_rpc_channel *channel; /* owned */
    enum call call;                   /* under way */
    bool joined;
    bool resolved; /* a name leads to it now */
    bool failing;  /* its last call failed */
    bool urgent;   /* a heartbeat is due as soon as the call under way has ended */
    uint64_t due_ns;
    uint64_t epoch;
    uint64_t sequence;
    uint32_t heartbeat_ms;
    uint32_t prefixes_max;
    uint32_t backoff_ms;
    struct nosa_digest_cursor cursor;
    char said[256]; /* the last trouble that was logged */
};

struct name {
    char text[NOSA_RPC_ADDRESS_MAX];
    char host[NOSA_RPC_HOST_MAX];
    bool said; /* that it does not resolve */
};

struct nosa_registry {
    /* fixed after create */
    struct nosa_registry_options options;
    struct name names[NAMES_MAX]; /* `said`: owned by the resolver's thread */
    size_t name_count;
    uint64_t start_ns;
    pthread_t resolver, caller;
    int threads; /* started */
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* on CLOCK_MONOTONIC */
    /* under mutex */
    bool leaving;
    struct member *members[MEMBERS_MAX]; /* owned */
    size_t member_count;
    /* owned by the caller's thread */
    struct nosa_prefix_message prefix;
    struct nosa_digest_change changes[NOSA_PREFIX_CHANGES_MAX];
};

/* ---- names -------------------------------------------------------------------------------------
 */

static enum nosa_status read_names(const char *text, struct name *names, size_t *count,
                                   struct nosa_error *error)
{
    *count = 0;
    for (const char *at = text; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char address[NOSA_RPC_ADDRESS_MAX], host[NOSA_RPC_HOST_MAX];
        uint16_t port;
        size_t size = strcspn(at, ",");
        if (size >= sizeof address || *count == NAMES_MAX)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  *count == NAMES_MAX ? "more than %d addresses"
                                                      : "an address is longer than %d",
                                  *count == NAMES_MAX ? NAMES_MAX : NOSA_RPC_ADDRESS_MAX);
        snprintf(address, sizeof address, "%.*s", (int)size, at);
        NOSA_TRY(nosa_rpc_address_split(address, host, &port, error));
        if (host[0] == '\0' || port == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "'%s' names no host and port to dial", address);
        if (names) {
            snprintf(names[*count].text, sizeof names[*count].text, "%s", address);
            snprintf(names[*count].host, sizeof names[*count].host, "%s", host);
        }
        (*count)++;
    }
    return NOSA_OK;
}

enum nosa_status nosa_registry_check(const char *coordinators, struct nosa_error *error)
{
    size_t count;
    return read_names(coordinators, NULL, &count, error);
}

static struct member *find_member(struct nosa_registry *registry, const char *address)
{
    for (size_t i = 0; i < registry->member_count; i++)
        if (strcmp(registry->members[i]->address, address) == 0)
            return registry->members[i];
    return NULL;
}

static void add_member(struct nosa_registry *registry, const struct name *name, const char *address)
{
    struct nosa_error error = {0};
    struct nosa_rpc_tls tls = *registry->options.tls;
    tls.server_name = name->host;
    const struct nosa_rpc_channel_options options = {
        .addresses = &address,
        .address_count = 1,
        .tls = nosa_rpc_tls_is_on(&tls) ? &tls : NULL,
        .backoff_max_ms = BACKOFF_MAX_MS,
        .keepalive_ms = 2000,
        .keepalive_timeout_ms = 2000,
    };
    if (registry->member_count == MEMBERS_MAX)
        return;
    struct member *member = calloc(1, sizeof *member);
    if (!member || nosa_rpc_channel_create(&member->channel, registry->options.runtime, &options,
                                           &error) != NOSA_OK) {
        nosa_log(NOSA_LOG_ERROR, "registry", "coordinator %s: %s", address,
                 member ? error.text : "no memory");
        free(member);
        return;
    }
    member->registry = registry;
    member->resolved = true;
    member->backoff_ms = BACKOFF_MIN_MS;
    snprintf(member->address, sizeof member->address, "%s", address);
    registry->members[registry->member_count++] = member;
}

static void free_member(struct member *member)
{
    nosa_rpc_channel_free(member->channel);
    free(member);
}

/* An address that no name leads to any more is given up once it stops answering. */
static void drop_members(struct nosa_registry *registry)
{
    for (size_t i = registry->member_count; i-- > 0;) {
        struct member *member = registry->members[i];
        if (member->resolved || !member->failing || member->call != CALL_NONE)
            continue;
        nosa_log(NOSA_LOG_INFO, "registry", "coordinator %s is no longer named, and is gone",
                 member->address);
        registry->members[i] = registry->members[--registry->member_count];
        free_member(member);
    }
}

static void say_unresolved(struct name *name, const struct nosa_error *error)
{
    if (!name->said)
        nosa_log(NOSA_LOG_WARN, "registry", "coordinator %s: %s; trying again", name->text,
                 error->text);
    name->said = true;
}

static void resolve_all(struct nosa_registry *registry)
{
    static const size_t most = MEMBERS_MAX;
    char(*found)[NOSA_RPC_ADDRESS_MAX] = calloc(most, sizeof *found);
    size_t owner[MEMBERS_MAX];
    size_t total = 0;
    bool whole = found != NULL;
    for (size_t i = 0; i < registry->name_count && found; i++) {
        struct nosa_error error = {0};
        size_t count = 0;
        if (nosa_rpc_address_resolve(registry->names[i].text, found + total, most - total, &count,
                                     &error) != NOSA_OK) {
            say_unresolved(&registry->names[i], &error);
            whole = false;
            continue;
        }
        registry->names[i].said = false;
        for (size_t k = 0; k < count; k++)
            owner[total++] = i;
    }
    pthread_mutex_lock(&registry->mutex);
    for (size_t i = 0; i < registry->member_count && whole; i++)
        registry->members[i]->resolved = false;
    for (size_t i = 0; i < total; i++) {
        struct member *member = find_member(registry, found[i]);
        if (member)
            member->resolved = true;
        else
            add_member(registry, &registry->names[owner[i]], found[i]);
    }
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
    free(found);
}

static void wait_until(struct nosa_registry *registry, uint64_t due_ns)
{
    struct timespec due = {.tv_sec = (time_t)(due_ns / NOSA_NS_PER_S),
                           .tv_nsec = (long)(due_ns % NOSA_NS_PER_S)};
    pthread_cond_timedwait(&registry->changed, &registry->mutex, &due);
}

static void *resolve_thread(void *context)
{
    struct nosa_registry *registry = context;
    pthread_mutex_lock(&registry->mutex);
    while (!registry->leaving) {
        pthread_mutex_unlock(&registry->mutex);
        resolve_all(registry);
        uint64_t due_ns = nosa_monotonic_ns() + RESOLVE_MS * NOSA_NS_PER_MS;
        pthread_mutex_lock(&registry->mutex);
        while (!registry->leaving && nosa_monotonic_ns() < due_ns)
            wait_until(registry, due_ns);
    }
    pthread_mutex_unlock(&registry->mutex);
    return NULL;
}

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
    member->joined = true;
    member->epoch = response->coordinator_epoch;
    member->sequence = 0;
    member->heartbeat_ms = clamp(heartbeat_ms, HEARTBEAT_MIN_MS, HEARTBEAT_MAX_MS);
    member->prefixes_max = clamp(response->prefix_hashes_max, 0, NOSA_PREFIX_CHANGES_MAX);
    member->backoff_ms = BACKOFF_MIN_MS;
    member->said[0] = '\0';
    member->due_ns = 0;
    begin_prefixes(member);
    nosa_log(NOSA_LOG_INFO, "registry", "joined coordinator %s%s", member->address,
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

static void send_join(struct nosa_registry *registry, struct member *member)
{
    Nosa__Cluster__V1__JoinRequest join = *registry->options.join;
    char reason[NOSA_GATE_REASON_MAX];
    struct nosa_loop_load load;
    struct nosa_load_message message;
    fill_state(registry, &join.state, reason, sizeof reason);
    nosa_loop_load(registry->options.loop, &load);
    nosa_load_message_fill(&message, &load, registry->options.info);
    join.load = &message.load;
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
    struct nosa_loop_load load;
    struct nosa_load_message message;
    struct nosa_digest_batch batch;
    heartbeat.worker_id = registry->options.join->worker_id;
    heartbeat.incarnation = registry->options.join->incarnation;
    heartbeat.coordinator_epoch = member->epoch;
    heartbeat.sequence = ++member->sequence;
    fill_state(registry, &heartbeat.state, reason, sizeof reason);
    heartbeat.reason = reason;
    nosa_loop_load(registry->options.loop, &load);
    nosa_load_message_fill(&message, &load, registry->options.info);
    heartbeat.load = &message.load;
    if (member->prefixes_max > 0) {
        nosa_digest_read(registry->options.digest, &member->cursor, registry->changes,
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
        drop_members(registry);
        uint64_t next_ns = make_calls(registry);
        uint64_t latest_ns = in_ms(RESOLVE_MS);
        wait_until(registry, next_ns < latest_ns ? next_ns : latest_ns);
    }
    while (any_call(registry)) /* each has a deadline */
        pthread_cond_wait(&registry->changed, &registry->mutex);
    for (size_t i = 0; i < registry->member_count; i++)
        if (registry->members[i]->joined)
            send_leave(registry, registry->members[i]);
    while (any_call(registry))
        pthread_cond_wait(&registry->changed, &registry->mutex);
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
    enum nosa_status status =
        read_names(options->coordinators, registry->names, &registry->name_count, error);
    if (status == NOSA_OK && pthread_create(&registry->resolver, NULL, resolve_thread, registry))
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

void nosa_registry_free(struct nosa_registry *registry)
{
    if (!registry)
        return;
    pthread_mutex_lock(&registry->mutex);
    registry->leaving = true;
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
    if (registry->threads > 0)
        pthread_join(registry->resolver, NULL);
    if (registry->threads > 1)
        pthread_join(registry->caller, NULL);
    for (size_t i = 0; i < registry->member_count; i++)
        free_member(registry->members[i]);
    pthread_cond_destroy(&registry->changed);
    pthread_mutex_destroy(&registry->mutex);
    free(registry);
}
