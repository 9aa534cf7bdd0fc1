#include "registry_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define MODEL_RETRY_NS     (2 * NOSA_NS_PER_S)
#define SUSPECT_HOLD_NS    (NOSA_NS_PER_S / 2) /* the second time, doubled with each more */
#define SUSPECT_HOLD_TIMES 6

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
        return say(reason,
                   worker->model->failure[0] ? worker->model->failure
                                             : "its model's files are being fetched",
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
    struct nosa_worker_state *state = worker->state;
    pthread_mutex_lock(&registry->mutex);
    if (nosa_registry_is_alive(state)) {
        uint32_t doublings = state->suspects > SUSPECT_HOLD_TIMES ? SUSPECT_HOLD_TIMES
                             : state->suspects > 0                ? state->suspects - 1
                                                                  : 0;
        state->suspect_until_ns = 0;
        if (state->suspects > 0)
            state->suspect_until_ns =
                nosa_registry_now_ns(registry) + (SUSPECT_HOLD_NS << doublings);
        state->suspects++;
        nosa_log_about(NOSA_LOG_WARN, "registry", &(struct nosa_log_subject){.worker = worker->id},
                       "the connection to worker %s at %s broke", worker->id, worker->address);
    }
    state->suspect = true;
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_proven(struct nosa_registry *registry, struct nosa_worker *worker)
{
    pthread_mutex_lock(&registry->mutex);
    worker->state->suspects = 0;
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_stood_still(struct nosa_registry *registry, uint64_t gap_ns)
{
    pthread_mutex_lock(&registry->mutex);
    uint64_t now = nosa_registry_now_ns(registry);
    for (size_t i = 0; i < registry->count; i++) {
        struct nosa_worker_state *state = registry->workers[i]->state;
        uint64_t heard_ns = state->heard_ns + gap_ns;
        if (!state->lost && !state->left)
            state->heard_ns = heard_ns < now ? heard_ns : now;
    }
    pthread_mutex_unlock(&registry->mutex);
}

void nosa_registry_model_ready(struct nosa_registry *registry, struct nosa_model *model,
                               struct nosa_tokenizer *tokenizer)
{
    pthread_mutex_lock(&registry->mutex);
    NOSA_ASSERT(model->state == NOSA_MODEL_FETCHING);
    model->tokenizer = tokenizer;
    model->state = NOSA_MODEL_READY;
    model->failure[0] = '\0';
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
    snprintf(model->failure, sizeof model->failure, "its model's files cannot be had: %.120s",
             reason);
    pthread_mutex_unlock(&registry->mutex);
    nosa_log(NOSA_LOG_WARN, "registry", "model %s: its files cannot be had: %s", model->id, reason);
}

/* Whether another worker of the model is to be asked for its files first. */
static bool others_turn(const struct nosa_registry *registry, const struct nosa_worker *worker)
{
    for (size_t i = 0; i < registry->count; i++) {
        const struct nosa_worker *other = registry->workers[i];
        if (other->model == worker->model && nosa_registry_is_alive(other->state) &&
            other->state->fetches < worker->state->fetches)
            return true;
    }
    return false;
}

/* The worker's next event; the mutex is held. */
static enum nosa_registry_event event_of(const struct nosa_registry *registry,
                                         struct nosa_worker *worker, uint64_t now)
{
    struct nosa_worker_state *state = worker->state;
    if ((state->lost || state->superseded || state->left) && !state->lost_told) {
        state->lost_told = true;
        return state->left ? NOSA_REGISTRY_LEFT : NOSA_REGISTRY_LOST;
    }
    if (!nosa_registry_is_alive(state))
        return NOSA_REGISTRY_NOTHING;
    if (state->drain && !state->drain_told) {
        state->drain_told = true;
        return NOSA_REGISTRY_DRAIN;
    }
    if (nosa_registry_resume_is_due(state, now)) {
        state->resume_due_ns = 0;
        return NOSA_REGISTRY_RESUME;
    }
    if (state->drain && !state->drain_over_told && now >= state->drain_deadline_ns) {
        state->drain_over_told = true;
        return NOSA_REGISTRY_DRAIN_OVER;
    }
    if (worker->model->state == NOSA_MODEL_WANTED && now >= worker->model->fetch_after_ns &&
        !others_turn(registry, worker)) {
        worker->model->state = NOSA_MODEL_FETCHING;
        state->fetches++;
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
    nosa_log_about(NOSA_LOG_WARN, "registry", &(struct nosa_log_subject){.worker = worker->id},
                   "worker %s at %s is lost: silent for %.1f s", worker->id, worker->address,
                   nosa_seconds_between(state->heard_ns, now));
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
        event = event_of(registry, candidate, now);
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
