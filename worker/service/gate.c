#include "service/gate.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct nosa_gate {
    /* fixed after create */
    uint32_t requests_max;
    void (*changed)(void *context);
    void *context; /* borrowed */
    pthread_mutex_t mutex;
    pthread_cond_t over; /* ending and empty */
    /* under mutex */
    bool started;
    bool draining; /* an operator asked for it */
    bool ending;
    bool drained; /* the last one left, or none was inside */
    uint32_t requests;
    uint64_t let_go_ns;
    struct nosa_error failure;
};

enum nosa_status nosa_gate_create(struct nosa_gate **gate, uint32_t requests_max,
                                  void (*changed)(void *context), void *context,
                                  struct nosa_error *error)
{
    *gate = calloc(1, sizeof **gate);
    if (!*gate)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the worker's state");
    (*gate)->requests_max = requests_max;
    (*gate)->changed = changed;
    (*gate)->context = context;
    (*gate)->let_go_ns = NOSA_GATE_NEVER;
    pthread_mutex_init(&(*gate)->mutex, NULL);
    pthread_cond_init(&(*gate)->over, NULL);
    return NOSA_OK;
}

void nosa_gate_free(struct nosa_gate *gate)
{
    if (!gate)
        return;
    pthread_cond_destroy(&gate->over);
    pthread_mutex_destroy(&gate->mutex);
    free(gate);
}

static bool is_closed(const struct nosa_gate *gate)
{
    return gate->draining || gate->ending;
}

static enum nosa_gate_state state_of(const struct nosa_gate *gate)
{
    if (is_closed(gate))
        return gate->drained ? NOSA_GATE_DRAINED : NOSA_GATE_DRAINING;
    return gate->started ? NOSA_GATE_READY : NOSA_GATE_STARTING;
}

/* Under the mutex, after any change: DRAINED is reached once and kept until a resume. */
static void settle(struct nosa_gate *gate)
{
    gate->drained = is_closed(gate) && gate->requests == 0;
    if (gate->ending && gate->requests == 0)
        pthread_cond_broadcast(&gate->over);
}

static void tell(struct nosa_gate *gate)
{
    if (gate->changed)
        gate->changed(gate->context);
}

enum nosa_gate_entry nosa_gate_enter(struct nosa_gate *gate)
{
    enum nosa_gate_entry entry = NOSA_GATE_ENTERED;
    pthread_mutex_lock(&gate->mutex);
    if (is_closed(gate))
        entry = NOSA_GATE_CLOSED;
    else if (!gate->started)
        entry = NOSA_GATE_NOT_STARTED;
    else if (gate->requests >= gate->requests_max)
        entry = NOSA_GATE_FULL;
    else
        gate->requests++;
    pthread_mutex_unlock(&gate->mutex);
    return entry;
}

void nosa_gate_leave(struct nosa_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    NOSA_ASSERT(gate->requests > 0);
    gate->requests--;
    settle(gate);
    bool drained = gate->drained;
    pthread_mutex_unlock(&gate->mutex);
    if (drained)
        tell(gate);
}

void nosa_gate_ready(struct nosa_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->started = true;
    pthread_mutex_unlock(&gate->mutex);
    tell(gate);
}

void nosa_gate_drain(struct nosa_gate *gate, uint64_t let_go_ns)
{
    pthread_mutex_lock(&gate->mutex);
    if (!gate->ending || let_go_ns < gate->let_go_ns)
        gate->let_go_ns = let_go_ns;
    gate->draining = true;
    settle(gate);
    pthread_mutex_unlock(&gate->mutex);
    tell(gate);
}

enum nosa_status nosa_gate_resume(struct nosa_gate *gate, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    pthread_mutex_lock(&gate->mutex);
    if (gate->ending) {
        status = nosa_error_set(error, NOSA_UNAVAILABLE, "the worker's process ends");
    } else {
        gate->draining = false;
        gate->let_go_ns = NOSA_GATE_NEVER;
        settle(gate);
    }
    pthread_mutex_unlock(&gate->mutex);
    if (status == NOSA_OK)
        tell(gate);
    return status;
}

void nosa_gate_end(struct nosa_gate *gate, uint64_t let_go_ns)
{
    pthread_mutex_lock(&gate->mutex);
    if (!is_closed(gate) || let_go_ns < gate->let_go_ns)
        gate->let_go_ns = let_go_ns;
    gate->ending = true;
    settle(gate);
    pthread_mutex_unlock(&gate->mutex);
    tell(gate);
}

void nosa_gate_fail(struct nosa_gate *gate, const struct nosa_error *error)
{
    pthread_mutex_lock(&gate->mutex);
    if (gate->failure.status == NOSA_OK)
        gate->failure = *error;
    pthread_mutex_unlock(&gate->mutex);
    nosa_gate_end(gate, 0);
}

void nosa_gate_view(struct nosa_gate *gate, struct nosa_gate_view *out)
{
    pthread_mutex_lock(&gate->mutex);
    *out = (struct nosa_gate_view){
        .state = state_of(gate),
        .requests = gate->requests,
        .ending = gate->ending,
        .let_go_ns = is_closed(gate) ? gate->let_go_ns : NOSA_GATE_NEVER,
    };
    const char *reason = gate->failure.status != NOSA_OK ? gate->failure.text
                         : gate->ending                  ? "the process ends"
                         : gate->draining                ? "drained by an operator"
                         : out->state != NOSA_GATE_READY ? "the model is being loaded"
                                                         : "";
    snprintf(out->reason, sizeof out->reason, "%.*s", NOSA_GATE_REASON_MAX - 1, reason);
    pthread_mutex_unlock(&gate->mutex);
}

bool nosa_gate_is_open(struct nosa_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    bool open = state_of(gate) == NOSA_GATE_READY && gate->requests < gate->requests_max;
    pthread_mutex_unlock(&gate->mutex);
    return open;
}

enum nosa_status nosa_gate_wait_end(struct nosa_gate *gate, struct nosa_error *error)
{
    pthread_mutex_lock(&gate->mutex);
    while (!gate->ending || gate->requests > 0)
        pthread_cond_wait(&gate->over, &gate->mutex);
    struct nosa_error failure = gate->failure;
    pthread_mutex_unlock(&gate->mutex);
    return failure.status != NOSA_OK ? nosa_error_set(error, failure.status, "%s", failure.text)
                                     : NOSA_OK;
}

const char *nosa_gate_state_name(enum nosa_gate_state state)
{
    switch (state) {
    case NOSA_GATE_STARTING: return "STARTING";
    case NOSA_GATE_READY: return "READY";
    case NOSA_GATE_DRAINING: return "DRAINING";
    case NOSA_GATE_DRAINED: return "DRAINED";
    }
    return "UNKNOWN";
}
