/*
 * Drains: what operators want of a worker, here or through another coordinator, and what the worker
 * says about it.
 *
 * A worker reports its own state to every coordinator, so what one coordinator does to it the
 * others hear from it as well. One that was told to drain, said so, and then says READY without
 * having started anew was resumed through another coordinator.
 */
#include <stdlib.h>

#include "base/log.h"
#include "registry_internal.h"

#define DRAIN_REPEAT_NS (1 * NOSA_NS_PER_S) /* that a worker may take to say it drains */
#define RESUME_AFTER_NS (1 * NOSA_NS_PER_S) /* that whoever resumed it may take to tell it */

#define READY    NOSA__V1__WORKER_STATE__WORKER_STATE_READY
#define DRAINING NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING
#define DRAINED  NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED

static void begin_drain(struct nosa_registry *registry, struct nosa_worker *worker,
                        uint64_t timeout_ms, bool told)
{
    struct nosa_worker_state *state = worker->state;
    state->resume_due_ns = 0;
    if (state->drain)
        return;
    state->drain = true;
    state->drain_told = told;
    state->drain_heard = false;
    state->drain_answered_ns = 0;
    state->drain_over_told = false;
    state->drain_timeout_ms = timeout_ms;
    state->drain_deadline_ns = nosa_registry_now_ns(registry) + timeout_ms * NOSA_NS_PER_MS;
    nosa_log_about(NOSA_LOG_INFO, "registry", &(struct nosa_log_subject){.worker = worker->id},
                   "worker %s is drained by an operator", worker->id);
}

static void end_drain(struct nosa_worker *worker)
{
    struct nosa_worker_state *state = worker->state;
    if (state->drain)
        nosa_log_about(NOSA_LOG_INFO, "registry", &(struct nosa_log_subject){.worker = worker->id},
                       "worker %s works again", worker->id);
    state->drain = false;
    state->drain_heard = false;
    state->drain_over_told = false;
}

/* ---- an operator's calls ---- */

enum nosa_status nosa_registry_drain(struct nosa_registry *registry, const char *worker_id,
                                     uint64_t timeout_ms, Nosa__V1__WorkerState *state,
                                     struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_worker *worker = nosa_registry_find(registry, worker_id);
    if (worker) {
        begin_drain(registry, worker, timeout_ms, false);
        *state = nosa_registry_state_of(worker, NULL);
    } else {
        status = nosa_error_set(error, NOSA_NOT_FOUND, "worker_id: there is no worker '%.128s'",
                                worker_id);
    }
    pthread_mutex_unlock(&registry->mutex);
    return status;
}

enum nosa_status nosa_registry_resume(struct nosa_registry *registry, const char *worker_id,
                                      struct nosa_worker **out, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    *out = NULL;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_worker *worker = nosa_registry_find(registry, worker_id);
    if (!worker) {
        status = nosa_error_set(error, NOSA_NOT_FOUND, "worker_id: there is no worker '%.128s'",
                                worker_id);
    } else if (!nosa_registry_is_alive(worker->state)) {
        status = nosa_error_set(error, NOSA_UNAVAILABLE, "worker_id: '%.128s' is %s", worker_id,
                                worker->state->left ? "gone" : "lost");
    } else {
        *out = worker;
        nosa_worker_retain(worker);
    }
    pthread_mutex_unlock(&registry->mutex);
    return status;
}

void nosa_registry_resumed(struct nosa_registry *registry, struct nosa_worker *worker,
                           Nosa__V1__WorkerState reported)
{
    pthread_mutex_lock(&registry->mutex);
    end_drain(worker);
    worker->state->resume_due_ns = 0;
    if (nosa_registry_is_report(reported))
        worker->state->reported = reported;
    pthread_mutex_unlock(&registry->mutex);
}

bool nosa_registry_has(struct nosa_registry *registry, const char *worker_id)
{
    pthread_mutex_lock(&registry->mutex);
    bool has = nosa_registry_find(registry, worker_id) != NULL;
    pthread_mutex_unlock(&registry->mutex);
    return has;
}

/* ---- what the worker says ---- */

void nosa_registry_hear_drain(struct nosa_worker *worker)
{
    struct nosa_worker_state *state = worker->state;
    if (state->reported == DRAINING || state->reported == DRAINED)
        state->drain_heard = state->drain;
    if (state->reported != READY)
        return;
    state->resume_due_ns = 0;
    if (!state->drain || !state->drain_told)
        return;
    if (state->drain_heard || (state->drain_answered_ns > 0 &&
                               state->heard_ns > state->drain_answered_ns + DRAIN_REPEAT_NS))
        end_drain(worker);
    else if (state->drain_answered_ns == 0 &&
             state->heard_ns + state->drain_timeout_ms * NOSA_NS_PER_MS >
                 state->drain_deadline_ns + DRAIN_REPEAT_NS)
        state->drain_told = false; /* it did not hear */
}

void nosa_registry_drain_answered(struct nosa_registry *registry, struct nosa_worker *worker)
{
    pthread_mutex_lock(&registry->mutex);
    worker->state->drain_answered_ns = nosa_registry_now_ns(registry);
    pthread_mutex_unlock(&registry->mutex);
}

/* ---- what all coordinators want ---- */

void nosa_registry_join_drain(struct nosa_registry *registry, struct nosa_worker *worker)
{
    const struct nosa_registry_options *options = &registry->options;
    struct nosa_worker_state *state = worker->state;
    if (!options->is_drained)
        return;
    state->wish = options->is_drained(options->link_context, worker->id);
    if (state->wish)
        begin_drain(registry, worker, options->drain_timeout_ms, true);
    else
        state->drain = false;
}

bool nosa_registry_resume_is_due(const struct nosa_worker_state *state, uint64_t now_ns)
{
    return state->resume_due_ns > 0 && now_ns >= state->resume_due_ns;
}

static void follow(struct nosa_registry *registry, struct nosa_worker *worker, bool wish)
{
    struct nosa_worker_state *state = worker->state;
    if (wish == state->wish)
        return;
    state->wish = wish;
    if (wish) {
        begin_drain(registry, worker, registry->options.drain_timeout_ms, false);
        return;
    }
    end_drain(worker);
    if (state->reported == DRAINING || state->reported == DRAINED)
        state->resume_due_ns = nosa_registry_now_ns(registry) + RESUME_AFTER_NS;
}

void nosa_registry_follow(struct nosa_registry *registry)
{
    const struct nosa_registry_options *options = &registry->options;
    NOSA_ASSERT(options->is_drained);
    pthread_mutex_lock(&registry->mutex);
    for (size_t i = 0; i < registry->count; i++)
        if (!registry->workers[i]->state->superseded)
            follow(registry, registry->workers[i],
                   options->is_drained(options->link_context, registry->workers[i]->id));
    pthread_mutex_unlock(&registry->mutex);
}

enum nosa_status nosa_registry_alive(struct nosa_registry *registry, struct nosa_worker ***workers,
                                     size_t *count)
{
    *count = 0;
    pthread_mutex_lock(&registry->mutex);
    *workers = calloc(registry->count + 1, sizeof **workers);
    for (size_t i = 0; i < registry->count && *workers; i++) {
        if (!nosa_registry_is_alive(registry->workers[i]->state))
            continue;
        (*workers)[*count] = registry->workers[i];
        nosa_worker_retain((*workers)[(*count)++]);
    }
    pthread_mutex_unlock(&registry->mutex);
    return *workers ? NOSA_OK : NOSA_OUT_OF_MEMORY;
}
