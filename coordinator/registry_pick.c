/* Choosing a worker, finding a model, and looking at what is known. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "registry_internal.h"
#include "router.h"

static bool is_ready(const struct nosa_worker *worker)
{
    return nosa_registry_state_of(worker, NULL) == NOSA__V1__WORKER_STATE__WORKER_STATE_READY;
}

static bool is_excluded(const struct nosa_pick *pick, const struct nosa_worker *worker)
{
    for (size_t i = 0; i < pick->excluded_count; i++)
        if (pick->excluded[i] == worker->incarnation)
            return true;
    return false;
}

static double pressure(const struct nosa_worker_state *state)
{
    double pinned = 0, total = 0;
    for (size_t i = 0; i < state->tier_count; i++) {
        if (state->tiers[i].tier == NOSA__CLUSTER__V1__TIER__TIER_NVME)
            continue;
        pinned += (double)state->tiers[i].pinned_bytes;
        total += (double)state->tiers[i].total_bytes;
    }
    return total > 0 && pinned < total ? pinned / total : total > 0 ? 1 : 0;
}

/* Counts the tokens at the beginning of the prompt that the worker holds, by tier. */
static void count_held(const struct nosa_pick *pick, const struct nosa_worker *worker,
                       struct nosa_route_candidate *candidate)
{
    const struct nosa_worker_state *state = worker->state;
    uint32_t block = pick->model->block_tokens;
    for (size_t i = 0; i < pick->hash_count; i++) {
        uint8_t tiers = nosa_prefix_set_find(&state->prefixes, pick->hashes[i]);
        if (!tiers)
            tiers = nosa_prefix_set_find(&state->expected, pick->hashes[i]);
        if (!tiers)
            tiers = nosa_prefix_set_find(&state->expected_old, pick->hashes[i]);
        if (!tiers)
            return;
        if (tiers & NOSA_PREFIX_GPU)
            candidate->gpu_tokens += block;
        else if (tiers & NOSA_PREFIX_HOST)
            candidate->host_tokens += block;
        else if (tiers & NOSA_PREFIX_NVME)
            candidate->nvme_tokens += block;
        else
            candidate->expected_tokens += block;
    }
}

/* Moves the windows of recent requests on to `now`. */
static void move_windows(struct nosa_worker_state *state, uint64_t now)
{
    uint64_t elapsed = now - state->window_ns;
    if (elapsed < NOSA_RECENT_NS)
        return;
    state->window_before = elapsed < 2 * NOSA_RECENT_NS ? state->window_streams : 0;
    state->window_streams = 0;
    state->window_ns = now - elapsed % NOSA_RECENT_NS;
}

/* Requests of about the last NOSA_RECENT_NS. */
static double count_recent(struct nosa_worker_state *state, uint64_t now)
{
    move_windows(state, now);
    double left = 1 - (double)(now - state->window_ns) / (double)NOSA_RECENT_NS;
    return state->window_streams + left * state->window_before;
}

/* Requests that the worker holds: as it said last and what was sent since, or ours. */
static uint32_t count_streams(const struct nosa_worker_state *state)
{
    uint32_t reported = state->running + state->waiting + state->suspended + state->sent_streams;
    return reported > state->streams ? reported : state->streams;
}

static struct nosa_route_candidate make_candidate(const struct nosa_registry *registry,
                                                  const struct nosa_pick *pick,
                                                  const struct nosa_worker *worker)
{
    struct nosa_worker_state *state = worker->state;
    struct nosa_route_candidate candidate = {
        .streams = count_streams(state),
        .waiting = state->waiting + state->sent_streams,
        .recent = count_recent(state, nosa_registry_now_ns(registry)),
        .batch_max = state->batch_max,
        .queue_max = state->batch_max + state->queue_max,
        .prefill_tokens_pending = state->prefill_tokens_pending + state->sent_tokens,
        .prefill_tokens_per_s = state->prefill_tokens_per_s,
        .host_tokens_per_s = state->host_tokens_per_s,
        .nvme_tokens_per_s = state->nvme_tokens_per_s,
        .kv_pressure = pressure(state),
        .tie = nosa_hash64(&pick->tie, sizeof pick->tie, worker->incarnation),
    };
    count_held(pick, worker, &candidate);
    return candidate;
}

/* Candidates with an equal fingerprint, or all. */
static size_t gather(const struct nosa_registry *registry, const struct nosa_pick *pick,
                     const char *fingerprint, struct nosa_route_candidate *candidates,
                     struct nosa_worker **workers)
{
    size_t count = 0;
    for (size_t i = 0; i < registry->count; i++) {
        struct nosa_worker *worker = registry->workers[i];
        if (worker->model != pick->model || !is_ready(worker) || is_excluded(pick, worker) ||
            (fingerprint && strcmp(fingerprint, worker->fingerprint) != 0))
            continue;
        candidates[count] = make_candidate(registry, pick, worker);
        workers[count++] = worker;
    }
    return count;
}

static void count_stream(struct nosa_pick *pick, const struct nosa_route_candidate *candidate)
{
    struct nosa_worker_state *state = pick->worker->state;
    pick->held_tokens = candidate->gpu_tokens + candidate->host_tokens + candidate->nvme_tokens +
                        candidate->expected_tokens;
    state->streams++;
    state->sent_streams++;
    state->window_streams++;
    uint32_t computed = pick->tokens > pick->held_tokens ? pick->tokens - pick->held_tokens : 0;
    state->sent_tokens += computed;
    pick->load = (struct nosa_pick_load){state->heartbeats, computed};
    for (size_t i = 0; i < pick->hash_count; i++)
        (void)nosa_prefix_set_add(&state->expected, pick->hashes[i], NOSA_PREFIX_EXPECTED);
}

enum nosa_status nosa_registry_pick(struct nosa_registry *registry, struct nosa_pick *pick,
                                    struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    pick->worker = NULL;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_route_candidate *candidates = calloc(registry->count + 1, sizeof *candidates);
    struct nosa_worker **workers = calloc(registry->count + 1, sizeof *workers);
    if (!candidates || !workers) {
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to choose a worker");
        goto cleanup;
    }
    size_t count = 0;
    if (pick->fingerprint)
        count = gather(registry, pick, pick->fingerprint, candidates, workers);
    if (count == 0)
        count = gather(registry, pick, NULL, candidates, workers);
    size_t best = nosa_router_choose(candidates, count, pick->tokens);
    if (best == NOSA_ROUTER_NONE) {
        status = nosa_error_set(error, NOSA_UNAVAILABLE, "no worker of model '%.128s' is ready",
                                pick->model->id);
        goto cleanup;
    }
    pick->worker = workers[best];
    nosa_worker_retain(pick->worker);
    count_stream(pick, &candidates[best]);
cleanup:
    pthread_mutex_unlock(&registry->mutex);
    free(candidates);
    free(workers);
    return status;
}

void nosa_registry_stream_ended(struct nosa_registry *registry, struct nosa_worker *worker,
                                const struct nosa_pick_load *load)
{
    struct nosa_worker_state *state = worker->state;
    pthread_mutex_lock(&registry->mutex);
    NOSA_ASSERT(state->streams > 0);
    state->streams--;
    if (state->heartbeats == load->heartbeats) {
        state->sent_streams--;
        state->sent_tokens -= load->tokens;
    }
    pthread_mutex_unlock(&registry->mutex);
}

/* ---- models ---- */

/* Among the known: *model is the one of this name, or the only one; *several: there are others. */
static void find_named(struct nosa_registry *registry, const char *name, struct nosa_model **model,
                       bool *several)
{
    struct nosa_model *loading =
        NULL; /* of a worker that is not further; counts if no other does */
    for (size_t i = 0; i < registry->count; i++) {
        struct nosa_worker *worker = registry->workers[i];
        if (name[0] && strcmp(worker->model->id, name) != 0)
            continue;
        if (worker->model->state == NOSA_MODEL_UNKNOWN) {
            loading = worker->model;
        } else if (!*model) {
            *model = worker->model;
        } else if (*model != worker->model) {
            *several = *several || strcmp((*model)->id, worker->model->id) != 0;
            /* Two hashes of one name: an old one is on its way out. */
            if (is_ready(worker))
                *model = worker->model;
        }
    }
    if (!*model)
        *model = loading;
}

enum nosa_status nosa_registry_find_model(struct nosa_registry *registry, const char *name,
                                          struct nosa_model **model, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    bool several = false;
    *model = NULL;
    pthread_mutex_lock(&registry->mutex);
    find_named(registry, name, model, &several);
    if (registry->count == 0)
        status = nosa_error_set(error, NOSA_UNAVAILABLE, "no worker has joined");
    else if (!*model)
        status = nosa_error_set(error, NOSA_NOT_FOUND, "model: there is no model '%.128s'", name);
    else if (several && !name[0])
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "model: is empty, but there are several, '%.128s' among them",
                                (*model)->id);
    else if ((*model)->state != NOSA_MODEL_READY)
        status = nosa_error_set(
            error, NOSA_UNAVAILABLE, "no worker of model '%.128s' is ready: %s", (*model)->id,
            (*model)->state == NOSA_MODEL_UNKNOWN ? "it is being loaded"
                                                  : "its files are being fetched");
    if (status == NOSA_OK)
        nosa_model_retain(*model);
    else
        *model = NULL;
    pthread_mutex_unlock(&registry->mutex);
    return status;
}

/* ---- looking ---- */

static void look(const struct nosa_registry *registry, struct nosa_worker *worker, uint64_t now,
                 struct nosa_worker_view *view)
{
    const struct nosa_worker_state *state = worker->state;
    *view = (struct nosa_worker_view){
        .worker = worker,
        .running = state->running,
        .waiting = state->waiting,
        .suspended = state->suspended,
        .batch_max = state->batch_max,
        .queue_max = state->queue_max,
        .prefill_tokens_per_s = state->prefill_tokens_per_s,
        .decode_tokens_per_s = state->decode_tokens_per_s,
        .tier_count = state->tier_count,
        .prefix_blocks = state->prefixes.count,
        .heartbeat_age_ms = (now - state->heard_ns) / NOSA_NS_PER_MS,
        .uptime_ms = state->joined_uptime_ms + (now - state->joined_ns) / NOSA_NS_PER_MS,
    };
    (void)registry;
    view->state = nosa_registry_state_of(worker, view->reason);
    for (size_t i = 0; i < state->tier_count; i++) {
        view->tiers[i].tier = state->tiers[i].tier;
        view->tiers[i].used_bytes = state->tiers[i].used_bytes;
        view->tiers[i].total_bytes = state->tiers[i].total_bytes;
    }
    nosa_worker_retain(worker);
}

static int compare_views(const void *a, const void *b)
{
    return strcmp(((const struct nosa_worker_view *)a)->worker->id,
                  ((const struct nosa_worker_view *)b)->worker->id);
}

enum nosa_status nosa_registry_list(struct nosa_registry *registry, struct nosa_worker_view **views,
                                    size_t *count, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    *count = 0;
    pthread_mutex_lock(&registry->mutex);
    *views = calloc(registry->count + 1, sizeof **views);
    if (!*views)
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the list of workers");
    uint64_t now = nosa_clock_monotonic_ns(registry->clock);
    for (size_t i = 0; i < registry->count && status == NOSA_OK; i++)
        if (!registry->workers[i]->state->superseded)
            look(registry, registry->workers[i], now, &(*views)[(*count)++]);
    pthread_mutex_unlock(&registry->mutex);
    if (status == NOSA_OK)
        qsort(*views, *count, sizeof **views, compare_views);
    return status;
}

void nosa_worker_views_free(struct nosa_worker_view *views, size_t count)
{
    for (size_t i = 0; i < count; i++)
        nosa_worker_release(views[i].worker);
    free(views);
}

bool nosa_registry_is_ready(struct nosa_registry *registry)
{
    bool ready = false;
    pthread_mutex_lock(&registry->mutex);
    for (size_t i = 0; i < registry->count && !ready; i++)
        ready = is_ready(registry->workers[i]);
    pthread_mutex_unlock(&registry->mutex);
    return ready;
}

static bool has_room(const struct nosa_worker *worker)
{
    const struct nosa_worker_state *state = worker->state;
    uint64_t most = (uint64_t)state->batch_max + state->queue_max;
    return is_ready(worker) && (most == 0 || count_streams(state) < most);
}

bool nosa_registry_has_room(struct nosa_registry *registry)
{
    bool room = false;
    pthread_mutex_lock(&registry->mutex);
    for (size_t i = 0; i < registry->count && !room; i++)
        room = has_room(registry->workers[i]);
    pthread_mutex_unlock(&registry->mutex);
    return room;
}

void nosa_registry_kv(struct nosa_registry *registry, struct nosa_kv_totals *totals,
                      double usage[NOSA_REGISTRY_TIERS_MAX])
{
    double used[NOSA_REGISTRY_TIERS_MAX] = {0}, total[NOSA_REGISTRY_TIERS_MAX] = {0};
    pthread_mutex_lock(&registry->mutex);
    *totals = registry->kv;
    for (size_t i = 0; i < registry->count; i++) {
        const struct nosa_worker_state *state = registry->workers[i]->state;
        for (size_t j = 0; j < state->tier_count && nosa_registry_is_alive(state); j++) {
            int tier = state->tiers[j].tier - NOSA__CLUSTER__V1__TIER__TIER_GPU;
            used[tier] += (double)state->tiers[j].used_bytes;
            total[tier] += (double)state->tiers[j].total_bytes;
        }
    }
    pthread_mutex_unlock(&registry->mutex);
    for (int tier = 0; tier < NOSA_REGISTRY_TIERS_MAX; tier++)
        usage[tier] = total[tier] <= 0           ? 0
                      : used[tier] < total[tier] ? used[tier] / total[tier]
                                                 : 1;
}
