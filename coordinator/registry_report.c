/* What workers say of themselves: joining, heartbeats, leaving. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "registry_internal.h"

#define PREFIX_HASHES_PER_HEARTBEAT 65536
#define EXPECTED_HASHES_MAX         65536

typedef Nosa__Cluster__V1__JoinRequest join_request;
typedef Nosa__Cluster__V1__HeartbeatRequest heartbeat_request;

/* ---- join ---- */

static enum nosa_rpc_code refuse(struct nosa_error *error, enum nosa_rpc_code code,
                                 const char *text)
{
    nosa_error_set(error, nosa_rpc_code_to_status(code), "%s", text);
    return code;
}

/* What workers of one model name must agree on: NULL when they do, else the field. */
static const char *differing_field(const struct nosa_model *model,
                                   const Nosa__Cluster__V1__ModelCard *card)
{
    if (card->model_hash.len != NOSA_SHA256_SIZE ||
        memcmp(model->hash, card->model_hash.data, NOSA_SHA256_SIZE) != 0)
        return "model_hash";
    if (memcmp(model->files_hash, card->files_hash.data, NOSA_SHA256_SIZE) != 0)
        return "files_hash";
    if (strcmp(model->attention, card->attention) != 0)
        return "attention";
    if (model->max_context_tokens != card->max_context_tokens)
        return "max_context_tokens";
    if (model->vocab_size != card->vocab_size)
        return "vocab_size";
    return model->block_tokens != card->block_tokens ? "block_tokens" : NULL;
}

/* A card that names no hash is of a worker that is still loading. */
static bool is_unknown(const Nosa__Cluster__V1__ModelCard *card)
{
    return card->model_hash.len == 0;
}

static bool same_model(const struct nosa_model *model, const Nosa__Cluster__V1__ModelCard *card)
{
    if (model->state == NOSA_MODEL_UNKNOWN || is_unknown(card))
        return model->state == NOSA_MODEL_UNKNOWN && is_unknown(card) &&
               strcmp(model->id, card->id) == 0;
    return strcmp(model->id, card->id) == 0 && !differing_field(model, card);
}

static struct nosa_model *model_create(const Nosa__Cluster__V1__ModelCard *card)
{
    struct nosa_model *model = calloc(1, sizeof *model);
    if (!model)
        return NULL;
    atomic_init(&model->references, 1);
    model->id = strdup(card->id);
    model->attention = strdup(card->attention);
    model->eos_ids = calloc(card->n_eos_token_ids + 1, sizeof *model->eos_ids);
    if (!model->id || !model->attention || !model->eos_ids) {
        nosa_model_release(model);
        return NULL;
    }
    if (is_unknown(card)) {
        model->state = NOSA_MODEL_UNKNOWN;
        return model;
    }
    memcpy(model->hash, card->model_hash.data, NOSA_SHA256_SIZE);
    memcpy(model->files_hash, card->files_hash.data, NOSA_SHA256_SIZE);
    model->vocab_size = card->vocab_size;
    model->max_context_tokens = card->max_context_tokens;
    model->block_tokens = card->block_tokens;
    model->eos_id_count = card->n_eos_token_ids;
    if (card->n_eos_token_ids > 0)
        memcpy(model->eos_ids, card->eos_token_ids, card->n_eos_token_ids * sizeof(uint32_t));
    model->has_sampling = card->default_sampling != NULL;
    if (card->default_sampling) {
        model->sampling = *card->default_sampling;
        model->sampling.base.n_unknown_fields = 0;
        model->sampling.base.unknown_fields = NULL;
    }
    return model;
}

/* The model of a card: one that is known, or a new one. Another model of this name stands in the
 * way as long as a worker that has it lives: a name means one model, wherever a request goes. */
static enum nosa_rpc_code find_or_make_model(struct nosa_registry *registry,
                                             const join_request *request, struct nosa_model **model,
                                             struct nosa_error *error)
{
    *model = NULL;
    for (size_t i = 0; i < registry->count; i++) {
        struct nosa_worker *worker = registry->workers[i];
        if (same_model(worker->model, request->model)) {
            *model = worker->model;
        } else if (worker->model->state != NOSA_MODEL_UNKNOWN && !is_unknown(request->model) &&
                   strcmp(worker->model->id, request->model->id) == 0 &&
                   nosa_registry_is_alive(worker->state) &&
                   strcmp(worker->id, request->worker_id) != 0) {
            nosa_error_set(error, NOSA_UNAVAILABLE,
                           "model.%s: worker '%.64s' serves a model named '%.64s' with another one",
                           differing_field(worker->model, request->model), worker->id,
                           request->model->id);
            return NOSA_RPC_FAILED_PRECONDITION;
        }
    }
    if (*model)
        nosa_model_retain(*model);
    else
        *model = model_create(request->model);
    return *model ? NOSA_RPC_OK : refuse(error, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
}

/* Adds what a count has grown by since it was last told. */
static void add_growth(uint64_t *total, uint64_t *seen, uint64_t told)
{
    *total += told > *seen ? told - *seen : 0;
    *seen = told;
}

static void read_kv(struct nosa_kv_totals *total, struct nosa_kv_totals *seen,
                    const Nosa__Cluster__V1__KvTotals *told)
{
    if (!told)
        return;
    add_growth(&total->hits[0], &seen->hits[0], told->gpu_hits);
    add_growth(&total->hits[1], &seen->hits[1], told->host_hits);
    add_growth(&total->hits[2], &seen->hits[2], told->nvme_hits);
    add_growth(&total->gpu_to_host_bytes, &seen->gpu_to_host_bytes, told->gpu_to_host_bytes);
    add_growth(&total->host_to_gpu_bytes, &seen->host_to_gpu_bytes, told->host_to_gpu_bytes);
    add_growth(&total->host_to_nvme_bytes, &seen->host_to_nvme_bytes, told->host_to_nvme_bytes);
    add_growth(&total->nvme_to_host_bytes, &seen->nvme_to_host_bytes, told->nvme_to_host_bytes);
    add_growth(&total->corrupt_blocks, &seen->corrupt_blocks, told->corrupt_blocks);
    add_growth(&total->recomputed_blocks, &seen->recomputed_blocks, told->recomputed_blocks);
    add_growth(&total->prefix_lookup_tokens, &seen->prefix_lookup_tokens,
               told->prefix_lookup_tokens);
    add_growth(&total->prefix_hit_tokens, &seen->prefix_hit_tokens, told->prefix_hit_tokens);
    add_growth(&total->evicted_blocks, &seen->evicted_blocks, told->evicted_blocks);
}

static void read_load(struct nosa_registry *registry, struct nosa_worker_state *state,
                      const Nosa__Cluster__V1__Load *load)
{
    if (!load)
        return;
    read_kv(&registry->kv, &state->kv, load->kv);
    state->running = load->running;
    state->waiting = load->waiting;
    state->suspended = load->suspended;
    state->prefill_tokens_pending = load->prefill_tokens_pending;
    state->prefill_tokens_per_s = load->prefill_tokens_per_s;
    state->decode_tokens_per_s = load->decode_tokens_per_s;
    state->host_tokens_per_s = load->host_tokens_per_s;
    state->nvme_tokens_per_s = load->nvme_tokens_per_s;
    for (size_t i = 0; i < load->n_tiers; i++)
        for (size_t j = 0; j < state->tier_count; j++)
            if (state->tiers[j].tier == load->tiers[i]->tier) {
                state->tiers[j].used_bytes = load->tiers[i]->used_bytes;
                state->tiers[j].pinned_bytes = load->tiers[i]->pinned_bytes;
            }
}

static void read_capacity(struct nosa_worker_state *state,
                          const Nosa__Cluster__V1__Capacity *capacity)
{
    if (!capacity)
        return;
    state->batch_max = capacity->batch_max;
    state->queue_max = capacity->queue_max;
    state->tier_count = 0;
    for (size_t i = 0; i < capacity->n_tiers && state->tier_count < NOSA_REGISTRY_TIERS_MAX; i++)
        state->tiers[state->tier_count++] = (struct nosa_tier_state){
            .tier = capacity->tiers[i]->tier, .total_bytes = capacity->tiers[i]->bytes};
}

/* What a worker says when it joins, and joins again. */
static void read_join(struct nosa_registry *registry, struct nosa_worker *worker,
                      const join_request *request)
{
    struct nosa_worker_state *state = worker->state;
    state->heard_ns = state->joined_ns = nosa_registry_now_ns(registry);
    state->joined_uptime_ms = request->uptime_ms;
    state->sequence = 0;
    state->lost = state->suspect = state->left = state->lost_told = false;
    state->fetches = 0;
    state->prefixes_known = false;
    state->reported = request->state;
    state->reason[0] = '\0';
    nosa_prefix_set_clear(&state->prefixes);
    read_capacity(state, request->capacity);
    read_load(registry, state, request->load);
}

static struct nosa_worker *worker_create(struct nosa_registry *registry,
                                         const join_request *request, struct nosa_model *model,
                                         struct nosa_error *error)
{
    struct nosa_worker_memory *memory = calloc(1, sizeof *memory);
    if (!memory)
        return NULL;
    struct nosa_worker *worker = &memory->worker;
    atomic_init(&worker->references, 1);
    memory->link_close = registry->options.link_close;
    memory->state.prefixes.count_max = registry->options.prefix_hashes_max;
    memory->state.expected.count_max = EXPECTED_HASHES_MAX;
    memory->state.expected_old.count_max = EXPECTED_HASHES_MAX;
    worker->state = &memory->state;
    worker->incarnation = request->incarnation;
    worker->tensor_parallel = request->capacity ? request->capacity->tensor_parallel : 0;
    worker->id = strdup(request->worker_id);
    worker->address = strdup(request->address);
    worker->version = strdup(request->version);
    worker->fingerprint = strdup(request->fingerprint);
    worker->device = strdup(request->device);
    worker->model = model;
    nosa_model_retain(model);
    bool whole =
        worker->id && worker->address && worker->version && worker->fingerprint && worker->device;
    if (whole && registry->options.link_open) {
        worker->link =
            registry->options.link_open(registry->options.link_context, request->address, error);
        whole = worker->link != NULL;
    }
    if (whole)
        return worker;
    nosa_worker_release(worker);
    return NULL;
}

static enum nosa_status insert(struct nosa_registry *registry, struct nosa_worker *worker)
{
    if (registry->count == registry->capacity) {
        size_t capacity = registry->capacity ? 2 * registry->capacity : 16;
        struct nosa_worker **workers = realloc(registry->workers, capacity * sizeof *workers);
        if (!workers)
            return NOSA_OUT_OF_MEMORY;
        registry->workers = workers;
        registry->capacity = capacity;
    }
    registry->workers[registry->count++] = worker;
    return NOSA_OK;
}

static void carry_drain(struct nosa_worker_state *to, const struct nosa_worker_state *from)
{
    to->drain = from->drain;
    to->drain_told = true; /* by the answer to the join */
    to->drain_over_told = from->drain_over_told;
    to->drain_deadline_ns = from->drain_deadline_ns;
    to->drain_timeout_ms = from->drain_timeout_ms;
}

/* A worker whose id has another life already: whether that one gives way. */
static enum nosa_rpc_code check_older(const struct nosa_worker *older, const join_request *request,
                                      struct nosa_error *error)
{
    /* At the same address only one process can listen, so the older one is gone. */
    if (!nosa_registry_is_alive(older->state) || strcmp(older->address, request->address) == 0)
        return NOSA_RPC_OK;
    nosa_error_set(error, NOSA_UNAVAILABLE, "worker_id: '%.64s' is alive at %.128s",
                   request->worker_id, older->address);
    return NOSA_RPC_ALREADY_EXISTS;
}

static enum nosa_rpc_code join_new(struct nosa_registry *registry, struct nosa_worker *older,
                                   const join_request *request, struct nosa_error *error)
{
    struct nosa_model *model = NULL;
    enum nosa_rpc_code code = NOSA_RPC_OK;
    if (older)
        code = check_older(older, request, error);
    if (code == NOSA_RPC_OK && registry->count >= NOSA_REGISTRY_WORKERS_MAX)
        code = refuse(error, NOSA_RPC_RESOURCE_EXHAUSTED, "there are 4096 workers already");
    if (code == NOSA_RPC_OK)
        code = find_or_make_model(registry, request, &model, error);
    if (code != NOSA_RPC_OK)
        return code;
    struct nosa_worker *worker = worker_create(registry, request, model, error);
    nosa_model_release(model);
    if (!worker)
        return refuse(error, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for a worker");
    if (insert(registry, worker) != NOSA_OK) {
        nosa_worker_release(worker);
        return refuse(error, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for a worker");
    }
    read_join(registry, worker, request);
    if (older) {
        carry_drain(worker->state, older->state);
        older->state->superseded = true;
    }
    nosa_registry_join_drain(registry, worker);
    nosa_log_about(NOSA_LOG_INFO, "registry", &(struct nosa_log_subject){.worker = worker->id},
                   "worker %s at %s joined: %s %s%s%s%s%s", worker->id, worker->address,
                   worker->model->state == NOSA_MODEL_UNKNOWN ? "it is loading" : "model",
                   worker->model->id, worker->device[0] ? ", " : "", worker->device,
                   worker->fingerprint[0] ? ", " : "", worker->fingerprint);
    return NOSA_RPC_OK;
}

enum nosa_rpc_code nosa_registry_join(struct nosa_registry *registry, const join_request *request,
                                      Nosa__Cluster__V1__JoinResponse *response,
                                      struct nosa_error *error)
{
    enum nosa_rpc_code code = nosa_registry_check_join(request, error);
    if (code != NOSA_RPC_OK)
        return code;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_worker *worker = nosa_registry_find(registry, request->worker_id);
    if (worker && worker->incarnation == request->incarnation &&
        same_model(worker->model, request->model) && strcmp(worker->address, request->address) == 0)
        read_join(registry, worker, request);
    else
        code = join_new(registry, worker, request, error);
    if (code == NOSA_RPC_OK) {
        worker = nosa_registry_find(registry, request->worker_id);
        uint32_t heartbeat_ms = registry->options.worker_timeout_ms / 6;
        response->coordinator_epoch = registry->options.epoch;
        response->heartbeat_ms = heartbeat_ms < 50 ? 50 : heartbeat_ms > 1000 ? 1000 : heartbeat_ms;
        response->prefix_hashes_max = PREFIX_HASHES_PER_HEARTBEAT;
        response->drain = worker->state->drain;
    }
    pthread_mutex_unlock(&registry->mutex);
    return code;
}

/* ---- heartbeats ---- */

static uint8_t tier_bit(Nosa__Cluster__V1__Tier tier)
{
    switch (tier) {
    case NOSA__CLUSTER__V1__TIER__TIER_GPU: return NOSA_PREFIX_GPU;
    case NOSA__CLUSTER__V1__TIER__TIER_HOST: return NOSA_PREFIX_HOST;
    case NOSA__CLUSTER__V1__TIER__TIER_NVME: return NOSA_PREFIX_NVME;
    default: return 0;
    }
}

/* Whether the delta could be applied. What the bound has no place for is only not known. */
static bool read_prefixes(struct nosa_worker_state *state,
                          const Nosa__Cluster__V1__PrefixDelta *delta)
{
    if (!delta)
        return state->prefixes_known;
    if (delta->reset) {
        nosa_prefix_set_clear(&state->prefixes);
        state->prefixes_known = true;
    }
    if (!state->prefixes_known)
        return false;
    for (size_t i = 0; i < delta->n_tiers; i++) {
        uint8_t bit = tier_bit(delta->tiers[i]->tier);
        for (size_t j = 0; j < delta->tiers[i]->n_removed && bit; j++)
            nosa_prefix_set_remove(&state->prefixes, delta->tiers[i]->removed[j], bit);
        for (size_t j = 0; j < delta->tiers[i]->n_added && bit; j++)
            (void)nosa_prefix_set_add(&state->prefixes, delta->tiers[i]->added[j], bit);
    }
    return true;
}

/* What was sent before the last heartbeat but one is reported by now, or is not there. */
static void age_expected(struct nosa_worker_state *state)
{
    struct nosa_prefix_set old = state->expected_old;
    state->expected_old = state->expected;
    state->expected = old;
    nosa_prefix_set_clear(&state->expected);
    state->sent_streams = 0;
    state->sent_tokens = 0;
    state->heartbeats++;
}

/* It lives, in this state. */
static void hear(struct nosa_registry *registry, struct nosa_worker *worker,
                 const heartbeat_request *request)
{
    struct nosa_worker_state *state = worker->state;
    uint64_t now = nosa_registry_now_ns(registry);
    bool held = state->suspect && now < state->suspect_until_ns;
    if ((state->lost || state->suspect) && !held)
        nosa_log_about(NOSA_LOG_INFO, "registry", &(struct nosa_log_subject){.worker = worker->id},
                       "worker %s is back", worker->id);
    state->sequence = request->sequence;
    state->heard_ns = now;
    state->lost = state->lost_told = false;
    state->suspect = held;
    state->reported = request->state;
    snprintf(state->reason, sizeof state->reason, "%s", request->reason);
    nosa_registry_hear_drain(worker);
}

enum nosa_rpc_code nosa_registry_heartbeat(struct nosa_registry *registry,
                                           const heartbeat_request *request,
                                           Nosa__Cluster__V1__HeartbeatResponse *response,
                                           struct nosa_error *error)
{
    enum nosa_rpc_code code =
        nosa_registry_check_heartbeat(request, PREFIX_HASHES_PER_HEARTBEAT, error);
    if (code != NOSA_RPC_OK)
        return code;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_worker *worker = nosa_registry_find(registry, request->worker_id);
    struct nosa_worker_state *state = worker ? worker->state : NULL;
    if (!worker || state->left) {
        code = refuse(error, NOSA_RPC_NOT_FOUND, "worker_id: has not joined here");
    } else if (worker->incarnation != request->incarnation) {
        code = refuse(error, NOSA_RPC_ABORTED, "incarnation: another one has taken this id");
    } else if (request->coordinator_epoch != registry->options.epoch) {
        code = refuse(error, NOSA_RPC_NOT_FOUND,
                      "coordinator_epoch: of another life of this "
                      "coordinator; join again");
    } else if (request->sequence > state->sequence) {
        hear(registry, worker, request);
        age_expected(state);
        read_load(registry, state, request->load);
        response->prefixes_known = read_prefixes(state, request->prefixes);
    } else {
        response->prefixes_known = state->prefixes_known;
    }
    pthread_mutex_unlock(&registry->mutex);
    return code;
}

enum nosa_rpc_code nosa_registry_leave(struct nosa_registry *registry,
                                       const Nosa__Cluster__V1__LeaveRequest *request,
                                       struct nosa_error *error)
{
    enum nosa_rpc_code code = NOSA_RPC_OK;
    pthread_mutex_lock(&registry->mutex);
    struct nosa_worker *worker = nosa_registry_find(registry, request->worker_id);
    if (!worker) {
        code = refuse(error, NOSA_RPC_NOT_FOUND, "worker_id: has not joined here");
    } else if (worker->incarnation != request->incarnation) {
        code = refuse(error, NOSA_RPC_ABORTED, "incarnation: another one has taken this id");
    } else {
        worker->state->left = true;
        worker->state->heard_ns = nosa_registry_now_ns(registry);
        nosa_log_about(NOSA_LOG_INFO, "registry", &(struct nosa_log_subject){.worker = worker->id},
                       "worker %s left", worker->id);
    }
    pthread_mutex_unlock(&registry->mutex);
    return code;
}
