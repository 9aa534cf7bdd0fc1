#include "support/rpc/echo_service.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "support/rpc/echo.pb-c.h"

#define BURST_MAX 64 /* messages of one stream before the others have their turn */

typedef Nosa__Test__V1__SayRequest say_request;
typedef Nosa__Test__V1__SayResponse say_response;
typedef Nosa__Test__V1__CountRequest count_request;
typedef Nosa__Test__V1__CountResponse count_response;
typedef Nosa__Test__V1__StatsResponse stats_response;

/* A call that the engine works on. */
struct job {
    struct echo_service *service;
    struct nosa_rpc_call *call;
    struct job *next;
    struct job *previous;
    const say_request *say;     /* of the call; NULL: */
    const count_request *count; /* of the call */
    uint32_t index;             /* of the next message */
    uint64_t due_ns;
    bool paused;   /* the call's queue is full */
    bool gone;     /* the caller is */
    bool finished; /* not in the list any more */
};

struct echo_service {
    struct nosa_rpc_server *server;
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* on CLOCK_MONOTONIC */
    /* under mutex */
    struct job *jobs;
    bool stopping;
    struct {
        uint32_t live;
        uint64_t started, cancelled, deadlines, done, sent, full;
        uint32_t waiting_max;
    } stats;
    uint8_t payload[65536];
};

/* ---- the engine, all under the mutex ---- */

static void leave(struct job *job)
{
    struct echo_service *service = job->service;
    job->finished = true;
    if (job->previous)
        job->previous->next = job->next;
    else
        service->jobs = job->next;
    if (job->next)
        job->next->previous = job->previous;
}

static void finish(struct job *job, enum nosa_rpc_code code, const char *text)
{
    leave(job);
    nosa_rpc_call_finish(job->call, code, text);
}

static void answer_say(struct job *job)
{
    char peer[NOSA_RPC_PEER_MAX];
    char name[NOSA_RPC_PEER_MAX];
    char bearer[256];
    size_t size;
    say_response response = NOSA__TEST__V1__SAY_RESPONSE__INIT;
    const char *token = nosa_rpc_call_bearer(job->call, &size);
    uint64_t deadline_ns = nosa_rpc_call_deadline_ns(job->call);
    snprintf(bearer, sizeof bearer, "%.*s", (int)size, token ? token : "");
    response.text = job->say->text;
    response.data = job->say->data;
    response.peer = (char *)(uintptr_t)nosa_rpc_call_peer(job->call, peer);
    response.peer_name = (char *)(uintptr_t)nosa_rpc_call_peer_name(job->call, name);
    response.bearer = bearer;
    if (deadline_ns != UINT64_MAX)
        response.deadline_ms = (deadline_ns - nosa_monotonic_ns()) / NOSA_NS_PER_MS + 1;
    if (job->say->code != 0) {
        finish(job, (enum nosa_rpc_code)job->say->code, job->say->text);
        return;
    }
    (void)nosa_rpc_call_send(job->call, &response.base);
    job->service->stats.sent++;
    finish(job, nosa_rpc_call_is_cancelled(job->call) ? NOSA_RPC_CANCELLED : NOSA_RPC_OK, NULL);
}

/* Sends what is due and has room. */
static void count_on(struct job *job, uint64_t now)
{
    struct echo_service *service = job->service;
    count_response response = NOSA__TEST__V1__COUNT_RESPONSE__INIT;
    response.payload.data = service->payload;
    response.payload.len = job->count->payload_bytes;
    for (int i = 0; i < BURST_MAX && job->due_ns <= now; i++) {
        response.index = job->index;
        response.sent_ns = nosa_monotonic_ns();
        if (job->index + 1 == job->count->count) {
            service->stats.sent++;
            leave(job);
            nosa_rpc_call_reply(job->call, &response.base);
            return;
        }
        enum nosa_status status = nosa_rpc_call_send(job->call, &response.base);
        if (status == NOSA_RESOURCE_EXHAUSTED) {
            service->stats.full++;
            job->paused = true;
        }
        if (status != NOSA_OK)
            return;
        uint32_t waiting = nosa_rpc_call_waiting(job->call);
        if (waiting > service->stats.waiting_max)
            service->stats.waiting_max = waiting;
        service->stats.sent++;
        job->index++;
        job->due_ns += job->count->interval_us * NOSA_NS_PER_US;
    }
}

/* Works once through the jobs; returns when the next one is due. */
static uint64_t work(struct echo_service *service)
{
    uint64_t due_ns = UINT64_MAX;
    uint64_t now = nosa_monotonic_ns();
    struct job *next;
    for (struct job *job = service->jobs; job; job = next) {
        next = job->next;
        if (job->gone)
            finish(job, nosa_rpc_call_cancel_code(job->call), "the caller is gone");
        else if (job->due_ns <= now && job->say)
            answer_say(job);
        else if (!job->paused && job->count)
            count_on(job, now);
        if (!job->finished && !job->paused && job->due_ns < due_ns)
            due_ns = job->due_ns;
    }
    return due_ns;
}

static void *engine(void *argument)
{
    struct echo_service *service = argument;
    pthread_mutex_lock(&service->mutex);
    while (!service->stopping) {
        uint64_t due_ns = work(service);
        struct timespec until = {(time_t)(due_ns / NOSA_NS_PER_S), (long)(due_ns % NOSA_NS_PER_S)};
        if (due_ns == UINT64_MAX) {
            pthread_cond_wait(&service->changed, &service->mutex);
        } else if (due_ns > nosa_monotonic_ns()) {
            pthread_cond_timedwait(&service->changed, &service->mutex, &until);
        } else {
            pthread_mutex_unlock(&service->mutex);
            pthread_mutex_lock(&service->mutex);
        }
    }
    pthread_mutex_unlock(&service->mutex);
    return NULL;
}

/* ---- calls, on the runtime's threads ---- */

static void on_cancelled(void *context, struct nosa_rpc_call *call)
{
    struct job *job = context;
    struct echo_service *service = job->service;
    pthread_mutex_lock(&service->mutex);
    service->stats.cancelled++;
    if (nosa_rpc_call_cancel_code(call) == NOSA_RPC_DEADLINE_EXCEEDED)
        service->stats.deadlines++;
    job->gone = true;
    job->paused = false;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->mutex);
}

static void on_writable(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct job *job = context;
    pthread_mutex_lock(&job->service->mutex);
    job->paused = false;
    pthread_cond_signal(&job->service->changed);
    pthread_mutex_unlock(&job->service->mutex);
}

static void count_done(struct echo_service *service)
{
    pthread_mutex_lock(&service->mutex);
    service->stats.live--;
    service->stats.done++;
    pthread_mutex_unlock(&service->mutex);
}

static void on_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct job *job = context;
    count_done(job->service);
    free(job);
}

static const struct nosa_rpc_call_events events = {
    .cancelled = on_cancelled, .writable = on_writable, .done = on_done};

static void count_started(struct echo_service *service)
{
    service->stats.live++;
    service->stats.started++;
}

static void add_job(struct echo_service *service, struct nosa_rpc_call *call,
                    const say_request *say, const count_request *count)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    job->service = service;
    job->call = call;
    job->say = say;
    job->count = count;
    job->due_ns = nosa_monotonic_ns() + (say ? say->delay_ms * NOSA_NS_PER_MS : 0);
    nosa_rpc_call_set_events(call, &events, job);
    pthread_mutex_lock(&service->mutex);
    count_started(service);
    job->next = service->jobs;
    if (job->next)
        job->next->previous = job;
    service->jobs = job;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->mutex);
}

static void say(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    const say_request *asked = (const say_request *)request;
    if (asked->delay_ms || asked->code || asked->text[0]) {
        add_job(context, call, asked, NULL);
        return;
    }
    say_response response = NOSA__TEST__V1__SAY_RESPONSE__INIT;
    response.data = asked->data;
    nosa_rpc_call_reply(call, &response.base);
}

static void count(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct echo_service *service = context;
    const count_request *asked = (const count_request *)request;
    if (asked->payload_bytes > sizeof service->payload) {
        nosa_rpc_call_finish(call, NOSA_RPC_INVALID_ARGUMENT, "payload_bytes: more than 65536");
        return;
    }
    add_job(service, call, NULL, asked);
}

static void stats(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    (void)request;
    struct echo_service *service = context;
    stats_response response = NOSA__TEST__V1__STATS_RESPONSE__INIT;
    pthread_mutex_lock(&service->mutex);
    response.live = service->stats.live;
    response.started = service->stats.started;
    response.cancelled = service->stats.cancelled;
    response.deadlines = service->stats.deadlines;
    response.done = service->stats.done;
    response.sent = service->stats.sent;
    response.full = service->stats.full;
    response.waiting_max = service->stats.waiting_max;
    pthread_mutex_unlock(&service->mutex);
    nosa_rpc_call_reply(call, &response.base);
}

static void abort_all(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct echo_service *service = context;
    const say_request *asked = (const say_request *)request;
    say_response response = NOSA__TEST__V1__SAY_RESPONSE__INIT;
    pthread_mutex_lock(&service->mutex);
    while (service->jobs) {
        struct job *job = service->jobs;
        leave(job);
        nosa_rpc_call_abort(job->call, (enum nosa_rpc_code)asked->code, asked->text);
    }
    pthread_mutex_unlock(&service->mutex);
    nosa_rpc_call_reply(call, &response.base);
}

/* ---- Mirror: without the engine ---- */

struct mirror {
    struct echo_service *service;
    bool finished;
};

/* A text is refused when the queue is full, and read again when it is not: the next request is only
 * read once this one was sent. */
static bool mirror_message(void *context, struct nosa_rpc_call *call,
                           const ProtobufCMessage *request)
{
    struct mirror *mirror = context;
    if (!request) {
        mirror->finished = true;
        nosa_rpc_call_finish(call, NOSA_RPC_OK, NULL);
        return false;
    }
    say_response response = NOSA__TEST__V1__SAY_RESPONSE__INIT;
    response.text = ((const say_request *)request)->text;
    response.data = ((const say_request *)request)->data;
    enum nosa_status status = nosa_rpc_call_send(call, &response.base);
    if (status == NOSA_RESOURCE_EXHAUSTED) {
        mirror->finished = true;
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "the mirror is full");
    }
    return status == NOSA_OK;
}

static void mirror_cancelled(void *context, struct nosa_rpc_call *call)
{
    struct mirror *mirror = context;
    pthread_mutex_lock(&mirror->service->mutex);
    mirror->service->stats.cancelled++;
    pthread_mutex_unlock(&mirror->service->mutex);
    if (!mirror->finished)
        nosa_rpc_call_finish(call, NOSA_RPC_CANCELLED, NULL);
    mirror->finished = true;
}

static void mirror_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct mirror *mirror = context;
    count_done(mirror->service);
    free(mirror);
}

static const struct nosa_rpc_call_events mirror_events = {
    .cancelled = mirror_cancelled, .message = mirror_message, .done = mirror_done};

static void mirror(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    (void)request;
    struct echo_service *service = context;
    struct mirror *state = calloc(1, sizeof *state);
    if (!state) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    state->service = service;
    nosa_rpc_call_set_events(call, &mirror_events, state);
    pthread_mutex_lock(&service->mutex);
    count_started(service);
    pthread_mutex_unlock(&service->mutex);
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Say", .kind = NOSA_RPC_UNARY, .start = say},
    {.name = "Count", .kind = NOSA_RPC_SERVER_STREAMING, .start = count},
    {.name = "Mirror", .kind = NOSA_RPC_BIDIRECTIONAL, .start = mirror},
    {.name = "Abort", .kind = NOSA_RPC_UNARY, .start = abort_all},
    {.name = "Stats", .kind = NOSA_RPC_UNARY, .open = true, .start = stats},
};

enum nosa_status echo_service_add(struct echo_service **out, struct nosa_rpc_server *server,
                                  struct nosa_error *error)
{
    *out = NULL;
    struct echo_service *service = calloc(1, sizeof *service);
    if (!service)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the test service");
    service->server = server;
    memset(service->payload, 'x', sizeof service->payload);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&service->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&service->mutex, NULL);
    service->started = pthread_create(&service->thread, NULL, engine, service) == 0;
    enum nosa_status status =
        nosa_rpc_server_add_service(server, &nosa__test__v1__echo__descriptor, methods,
                                    sizeof methods / sizeof methods[0], service, error);
    if (status == NOSA_OK && !service->started)
        status = nosa_error_set(error, NOSA_INTERNAL, "cannot start the engine's thread");
    *out = service;
    return status;
}

void echo_service_free(struct echo_service *service)
{
    if (!service)
        return;
    pthread_mutex_lock(&service->mutex);
    service->stopping = true;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->mutex);
    if (service->started)
        pthread_join(service->thread, NULL);
    pthread_cond_destroy(&service->changed);
    pthread_mutex_destroy(&service->mutex);
    free(service);
}
