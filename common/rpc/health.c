#include "rpc/health.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/health/v1/health.pb-c.h"
#include "rpc/server_internal.h"

#define NAME_MAX_SIZE 128 /* bytes of a service's name with NUL */

typedef Grpc__Health__V1__HealthCheckRequest health_request;
typedef Grpc__Health__V1__HealthCheckResponse health_response;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

#define STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

struct entry {
    char name[NAME_MAX_SIZE];
    serving_status status;
};

/* One Watch. Freed by its `done`. */
struct watcher {
    struct health *health;
    struct nosa_rpc_call *call;
    struct watcher *next;
    struct watcher *previous;
    bool finished;
    serving_status told;
    char name[NAME_MAX_SIZE];
};

struct health {
    pthread_mutex_t mutex;
    /* under mutex */
    struct entry entries[NOSA_RPC_HEALTH_SERVICES_MAX];
    size_t count;
    struct watcher *watchers;
    bool shutting_down;
};

/* Under the mutex; NULL: no such name. */
static struct entry *find(struct health *health, const char *name)
{
    for (size_t i = 0; i < health->count; i++)
        if (strcmp(health->entries[i].name, name) == 0)
            return &health->entries[i];
    return NULL;
}

static serving_status status_of(struct health *health, const char *name)
{
    struct entry *entry = find(health, name);
    return entry ? entry->status : STATUS(SERVICE_UNKNOWN);
}

static void check(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct health *health = context;
    const health_request *request = (const health_request *)message;
    pthread_mutex_lock(&health->mutex);
    serving_status status = status_of(health, request->service);
    pthread_mutex_unlock(&health->mutex);
    if (status == STATUS(SERVICE_UNKNOWN)) {
        nosa_rpc_call_finish(call, NOSA_RPC_NOT_FOUND, "no such service");
        return;
    }
    health_response response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = status;
    nosa_rpc_call_reply(call, &response.base);
}

/* Under the mutex. A watcher whose queue is full hears the state when it has room again. */
static void tell(struct watcher *watcher, serving_status status)
{
    health_response response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = status;
    if (watcher->finished || watcher->told == status)
        return;
    if (nosa_rpc_call_send(watcher->call, &response.base) == NOSA_OK)
        watcher->told = status;
}

/* Under the mutex. */
static void finish(struct watcher *watcher, enum nosa_rpc_code code, const char *text)
{
    if (watcher->finished)
        return;
    watcher->finished = true;
    nosa_rpc_call_finish(watcher->call, code, text);
}

static void watcher_cancelled(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct watcher *watcher = context;
    struct health *health = watcher->health;
    pthread_mutex_lock(&health->mutex);
    finish(watcher, NOSA_RPC_CANCELLED, NULL);
    pthread_mutex_unlock(&health->mutex);
}

static void watcher_writable(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct watcher *watcher = context;
    struct health *health = watcher->health;
    pthread_mutex_lock(&health->mutex);
    tell(watcher, status_of(health, watcher->name));
    pthread_mutex_unlock(&health->mutex);
}

static void watcher_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct watcher *watcher = context;
    struct health *health = watcher->health;
    pthread_mutex_lock(&health->mutex);
    if (watcher->previous)
        watcher->previous->next = watcher->next;
    else
        health->watchers = watcher->next;
    if (watcher->next)
        watcher->next->previous = watcher->previous;
    pthread_mutex_unlock(&health->mutex);
    free(watcher);
}

static const struct nosa_rpc_call_events watcher_events = {
    .cancelled = watcher_cancelled, .writable = watcher_writable, .done = watcher_done};

static void watch(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct health *health = context;
    const health_request *request = (const health_request *)message;
    if (strlen(request->service) >= NAME_MAX_SIZE) {
        nosa_rpc_call_finish(call, NOSA_RPC_INVALID_ARGUMENT, "service: too long");
        return;
    }
    struct watcher *watcher = calloc(1, sizeof *watcher);
    if (!watcher) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for a watch");
        return;
    }
    watcher->health = health;
    watcher->call = call;
    watcher->told = STATUS(UNKNOWN); /* which is never told */
    memcpy(watcher->name, request->service, strlen(request->service) + 1);
    nosa_rpc_call_set_events(call, &watcher_events, watcher);
    pthread_mutex_lock(&health->mutex);
    watcher->next = health->watchers;
    if (watcher->next)
        watcher->next->previous = watcher;
    health->watchers = watcher;
    tell(watcher, status_of(health, watcher->name));
    if (health->shutting_down)
        finish(watcher, NOSA_RPC_UNAVAILABLE, "the server is shutting down");
    pthread_mutex_unlock(&health->mutex);
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Check", .kind = NOSA_RPC_UNARY, .open = true, .start = check},
    {.name = "Watch", .kind = NOSA_RPC_SERVER_STREAMING, .open = true, .start = watch},
};

/* Under the mutex. */
static void tell_watchers(struct health *health)
{
    for (struct watcher *watcher = health->watchers; watcher; watcher = watcher->next)
        tell(watcher, status_of(health, watcher->name));
}

static void begin_shutdown(void *context)
{
    struct health *health = context;
    pthread_mutex_lock(&health->mutex);
    health->shutting_down = true;
    for (size_t i = 0; i < health->count; i++)
        health->entries[i].status = STATUS(NOT_SERVING);
    tell_watchers(health);
    for (struct watcher *watcher = health->watchers; watcher; watcher = watcher->next)
        finish(watcher, NOSA_RPC_UNAVAILABLE, "the server is shutting down");
    pthread_mutex_unlock(&health->mutex);
}

static void health_free(void *context)
{
    struct health *health = context;
    NOSA_ASSERT(!health->watchers);
    pthread_mutex_destroy(&health->mutex);
    free(health);
}

enum nosa_status nosa_rpc_health_add(struct nosa_rpc_server *server, struct nosa_error *error)
{
    struct health *health = calloc(1, sizeof *health);
    if (!health)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the health service");
    pthread_mutex_init(&health->mutex, NULL);
    health->count = 1;
    health->entries[0].status = STATUS(NOT_SERVING);
    server->health = health;
    const struct nosa_rpc_hook hook = {begin_shutdown, health_free, health};
    nosa_rpc_server_add_hook(server, &hook);
    return nosa_rpc_server_add_service(server, &grpc__health__v1__health__descriptor, methods,
                                       sizeof methods / sizeof methods[0], health, error);
}

void nosa_rpc_health_set(struct nosa_rpc_server *server, const char *service, bool serving)
{
    struct health *health = server->health;
    NOSA_ASSERT(health && strlen(service) < NAME_MAX_SIZE);
    pthread_mutex_lock(&health->mutex);
    if (!health->shutting_down) {
        struct entry *entry = find(health, service);
        if (!entry) {
            NOSA_ASSERT(health->count < NOSA_RPC_HEALTH_SERVICES_MAX);
            entry = &health->entries[health->count++];
            memcpy(entry->name, service, strlen(service) + 1);
        }
        entry->status = serving ? STATUS(SERVING) : STATUS(NOT_SERVING);
        tell_watchers(health);
    }
    pthread_mutex_unlock(&health->mutex);
}
