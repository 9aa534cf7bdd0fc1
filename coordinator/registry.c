#include "registry_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define MODEL_RETRY_NS (2 * NOSA_NS_PER_S)

uint64_t nosa_registry_now_ns(const struct nosa_registry *registry)
{
    return nosa_clock_monotonic_ns(registry->clock);
}

/* ---- memory ---- */

void nosa_model_retain(struct nosa_model *model)
{
    atomic_fetch_add_explicit(&model->references, 1, memory_order_relaxed);
}

void nosa_model_release(struct nosa_model *model)
{
    if (!model || atomic_fetch_sub_explicit(&model->references, 1, memory_order_acq_rel) != 1)
        return;
    nosa_tokenizer_close(model->tokenizer);
    free(model->id);
    free(model->attention);
    free(model->eos_ids);
    free(model);
}

void nosa_worker_retain(struct nosa_worker *worker)
{
    atomic_fetch_add_explicit(&worker->references, 1, memory_order_relaxed);
}

void nosa_worker_release(struct nosa_worker *worker)
{
    if (!worker || atomic_fetch_sub_explicit(&worker->references, 1, memory_order_acq_rel) != 1)
        return;
    struct nosa_worker_memory *memory = (struct nosa_worker_memory *)worker;
    if (worker->link)
        memory->link_close(worker->link);
    nosa_prefix_set_free(&memory->state.prefixes);
    nosa_prefix_set_free(&memory->state.expected);
    nosa_prefix_set_free(&memory->state.expected_old);
    nosa_model_release(worker->model);
    free(worker->id);
    free(worker->address);
    free(worker->version);
    free(worker->fingerprint);
    free(worker->device);
    free(memory);
}

enum nosa_status nosa_registry_create(struct nosa_registry **out,
                                      const struct nosa_registry_options *options,
                                      struct nosa_error *error)
{
    struct nosa_registry *registry = calloc(1, sizeof *registry);
    *out = registry;
    if (!registry)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the registry");
    registry->options = *options;
    registry->clock = options->clock ? options->clock : nosa_clock_system();
    pthread_mutex_init(&registry->mutex, NULL);
    return NOSA_OK;
}

void nosa_registry_free(struct nosa_registry *registry)
{
    if (!registry)
        return;
    for (size_t i = 0; i < registry->count; i++)
        nosa_worker_release(registry->workers[i]);
    free(registry->workers);
    pthread_mutex_destroy(&registry->mutex);
    free(registry);
}

/* ---- states ---- */

const char *nosa_worker_state_name(Nosa__V1__WorkerState state)
{
    switch (state) {
    case NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING: return "STARTING";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_READY: return "READY";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING: return "DRAINING";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED: return "DRAINED";
    case NOSA__V1__WORKER_STATE__WORKER_STATE_LOST: return "LOST";
    default: return "UNSPECIFIED";
    }
}

bool nosa_registry_is_alive(const struct nosa_worker_state *state)
{
    return !state->lost && !state->superseded && !state->suspect && !state->left;
}

static Nosa__V1__WorkerState say(char reason[NOSA_WORKER_REASON_MAX], const char *text,
                                 Nosa__V1__WorkerState state)
{
    if (reason)
        snprintf(reason, NOSA_WORKER_REASON_MAX, "%s", text);
    return state;
}

Nosa__V1__WorkerState nosa_registry_state_of(const struct nosa_worker *worker,
                                             char reason[NOSA_WORKER_REASON_MAX])
{
    const struct nosa_worker_state *state = worker->state;
    if (state->left)
        return say(reason, "it has left", NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED);
    if (state->lost || state->superseded)
        return say(reason, "silent for longer than --worker-timeout",
                   NOSA__V1__WORKER_STATE__WORKER_STATE_LOST);
    if (state->suspect)
        return say(reason, "its connection broke", NOSA__V1__WORKER_STATE__WORKER_STATE_LOST);
    if (state->reported == NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED)
        return say(reason, state->reason[0] ? state->reason : "drained", state->reported);
    if (state->drain)
        return say(reason, "drained by an operator",
                   state->streams == 0 && state->drain_over_told
                       ? NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED
                       : NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING);
    if (state->reported == NOSA__V1__WORKER_STATE__WORKER_STATE_READY &&
        worker->model->state != NOSA_MODEL_READY)
        return say(reason, "its model's files are being fetched",
                   NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING);
    return say(reason, state->reason, state->reported);
}

/* ---- the list ---- */

struct nosa_worker *nosa_registry_find(struct nosa_registry *registry, const char *id)
{
    for (size_t i = 0; i < registry->count; i++)
        if (strcmp(registry->workers[i]->id, id) == 0 && !registry->workers[i]->state->superseded)
            return registry->workers[i];
    return NULL;
}

/* ---- what is seen ---- */

void nosa_registry_suspect(struct nosa_registry *registry, struct nosa_worker *worker)
{
    pthread_mutex_lock(&registry->mutex);
    if (nosa_registry_is_alive(worker->state))
        nosa_log(NOSA_LOG_WARN, "registry", "the connection to worker %s at %s broke", worker->id,
                 worker->address);
    worker->state->suspect = true;
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_model_ready(struct nosa_registry *registry, struct nosa_model *model,
                               struct nosa_tokenizer *tokenizer)
{
    pthread_mutex_lock(&registry->mutex);
    NOSA_ASSERT(model->state == NOSA_MODEL_FETCHING);
    model->tokenizer = tokenizer;
    model->state = NOSA_MODEL_READY;
    pthread_mutex_unlock(&registry->mutex);
    nosa_log(NOSA_LOG_INFO, "registry", "model %s is ready%s", model->id,
             tokenizer ? "" : "; it has no tokenizer and takes token ids alone");
}

void nosa_registry_model_failed(struct nosa_registry *registry, struct nosa_model *model,
                                const char *reason)
{
    pthread_mutex_lock(&registry->mutex);
    NOSA_ASSERT(model->state == NOSA_MODEL_FETCHING);
    model->state = NOSA_MODEL_WANTED;
    model->fetch_after_ns = nosa_registry_now_ns(registry) + MODEL_RETRY_NS;
    pthread_mutex_unlock(&registry->mutex);
    nosa_log(NOSA_LOG_WARN, "registry", "model %s: its files cannot be had: %s", model->id, reason);
}

/* The worker's next event; the mutex is held. */
static enum nosa_registry_event event_of(struct nosa_worker *worker, uint64_t now)
{
    struct nosa_worker_state *state = worker->state;
    if ((state->lost || state->superseded || state->left) && !state->lost_told) {
        state->lost_told = true;
        return NOSA_REGISTRY_LOST;
    }
    if (!nosa_registry_is_alive(state))
        return NOSA_REGISTRY_NOTHING;
    if (state->drain && !state->drain_told) {
        state->drain_told = true;
        return NOSA_REGISTRY_DRAIN;
    }
    if (state->drain && !state->drain_over_told && now >= state->drain_deadline_ns) {
        state->drain_over_told = true;
        return NOSA_REGISTRY_DRAIN_OVER;
    }
    if (worker->model->state == NOSA_MODEL_WANTED && now >= worker->model->fetch_after_ns) {
        worker->model->state = NOSA_MODEL_FETCHING;
        return NOSA_REGISTRY_FETCH;
    }
    return NOSA_REGISTRY_NOTHING;
}

static void update_state(struct nosa_registry *registry, struct nosa_worker *worker, uint64_t now)
{
    struct nosa_worker_state *state = worker->state;
    if (state->lost || state->left || state->superseded ||
        now <= state->heard_ns + registry->options.worker_timeout_ms * NOSA_NS_PER_MS)
        return;
    state->lost = true;
    nosa_log(NOSA_LOG_WARN, "registry", "worker %s at %s is lost: silent for %.1f s", worker->id,
             worker->address, nosa_seconds_between(state->heard_ns, now));
}

static bool is_forgotten(const struct nosa_registry *registry, const struct nosa_worker *worker,
                         uint64_t now)
{
    const struct nosa_worker_state *state = worker->state;
    if (!state->lost_told)
        return false;
    return state->superseded ||
           now > state->heard_ns + registry->options.forget_ms * NOSA_NS_PER_MS;
}

enum nosa_registry_event nosa_registry_next_event(struct nosa_registry *registry,
                                                  struct nosa_worker **worker, uint64_t *timeout_ms)
{
    enum nosa_registry_event event = NOSA_REGISTRY_NOTHING;
    *worker = NULL;
    *timeout_ms = 0;
    pthread_mutex_lock(&registry->mutex);
    uint64_t now = nosa_registry_now_ns(registry);
    for (size_t i = 0; i < registry->count && event == NOSA_REGISTRY_NOTHING; i++) {
        struct nosa_worker *candidate = registry->workers[i];
        update_state(registry, candidate, now);
        event = event_of(candidate, now);
        if (event != NOSA_REGISTRY_NOTHING) {
            *worker = candidate;
            *timeout_ms = candidate->state->drain_timeout_ms;
            nosa_worker_retain(candidate);
        } else if (is_forgotten(registry, candidate, now)) {
            registry->workers[i--] = registry->workers[--registry->count];
            nosa_worker_release(candidate);
        }
    }
    pthread_mutex_unlock(&registry->mutex);
    return event;
}

/* ---- operators ---- */

enum nosa_status nosa_registry_drain(struct nosa_registry *registry, const char *worker_id,
                                     uint64_t timeout_ms, Nosa__V1__WorkerState *state,
                                     struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_worker *worker = nosa_registry_find(registry, worker_id);
    if (!worker) {
        status = nosa_error_set(error, NOSA_NOT_FOUND, "worker_id: there is no worker '%.128s'",
                                worker_id);
    } else {
        if (!worker->state->drain) {
            worker->state->drain = true;
            worker->state->drain_told = false;
            worker->state->drain_over_told = false;
            worker->state->drain_timeout_ms = timeout_ms;
            worker->state->drain_deadline_ns =
                nosa_registry_now_ns(registry) + timeout_ms * NOSA_NS_PER_MS;
            nosa_log(NOSA_LOG_INFO, "registry", "worker %s is drained by an operator", worker_id);
        }
        *state = nosa_registry_state_of(worker, NULL);
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
    worker->state->drain = false;
    worker->state->drain_over_told = false;
    if (nosa_registry_is_report(reported))
        worker->state->reported = reported;
    pthread_mutex_unlock(&registry->mutex);
    nosa_log(NOSA_LOG_INFO, "registry", "worker %s works again", worker->id);
}
