/* The generations in flight: their table with its bounds, and what is done over all of them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "generation_internal.h"

#define PRIORITY_MAX 16                  /* larger and smaller ones count as +-this */
#define AGEING_NS    (5 * NOSA_NS_PER_S) /* waiting so long equals one level of priority */

/* ---- the table ---- */

static struct nosa_generation **bucket_of(struct nosa_generation_table *table, const char *id)
{
    return &table->buckets[nosa_hash64(id, strlen(id), 0) % NOSA_TABLE_BUCKETS];
}

static bool is_listed(struct nosa_generation_table *table, const char *id)
{
    for (struct nosa_generation *g = *bucket_of(table, id); g; g = g->next_in_bucket)
        if (strcmp(g->request_id, id) == 0)
            return true;
    return false;
}

static void link_in(struct nosa_generation_table *table, struct nosa_generation *generation)
{
    struct nosa_generation **bucket = bucket_of(table, generation->request_id);
    generation->next_in_bucket = *bucket;
    *bucket = generation;
    generation->previous = table->last;
    generation->next = NULL;
    if (table->last)
        table->last->next = generation;
    else
        table->first = generation;
    table->last = generation;
    table->count++;
    table->waiting++;
    table->prompt_bytes += generation->prompt_bytes;
    generation->listed = true;
    generation->counted_waiting = true;
}

enum nosa_status nosa_generation_list(struct nosa_generation *generation, struct nosa_error *error)
{
    struct nosa_coordinator *coordinator = generation->coordinator;
    struct nosa_generation_table *table = &coordinator->table;
    enum nosa_status status = NOSA_OK;
    pthread_mutex_lock(&table->mutex);
    if (is_listed(table, generation->request_id))
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "request_id: '%.128s' is already running", generation->request_id);
    else if (table->waiting >= coordinator->options.queue_max)
        status = nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                                "%u requests wait already (--max-queue)", table->waiting);
    else if (table->prompt_bytes + generation->prompt_bytes >
             coordinator->options.prompts_bytes_max)
        status = nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                                "the prompts in flight take %" PRIu64
                                " bytes already (--max-prompts-bytes)",
                                table->prompt_bytes);
    else
        link_in(table, generation);
    pthread_mutex_unlock(&table->mutex);
    return status;
}

void nosa_generation_unlist(struct nosa_generation *generation)
{
    struct nosa_generation_table *table = &generation->coordinator->table;
    pthread_mutex_lock(&table->mutex);
    struct nosa_generation **at = bucket_of(table, generation->request_id);
    while (*at != generation)
        at = &(*at)->next_in_bucket;
    *at = generation->next_in_bucket;
    *(generation->previous ? &generation->previous->next : &table->first) = generation->next;
    *(generation->next ? &generation->next->previous : &table->last) = generation->previous;
    table->count--;
    table->waiting -= generation->counted_waiting;
    table->prompt_bytes -= generation->prompt_bytes;
    generation->listed = false;
    if (table->count == 0)
        pthread_cond_broadcast(&table->empty);
    pthread_mutex_unlock(&table->mutex);
}

void nosa_generation_count_started(struct nosa_generation *generation)
{
    struct nosa_generation_table *table = &generation->coordinator->table;
    pthread_mutex_lock(&table->mutex);
    table->waiting -= generation->counted_waiting;
    generation->counted_waiting = false;
    pthread_mutex_unlock(&table->mutex);
}

/* ---- over all generations ---- */

/* The generations of this moment, oldest first, a reference each; the caller frees the array.
 * NULL: no memory. */
static struct nosa_generation **snapshot(struct nosa_coordinator *coordinator, size_t *count)
{
    struct nosa_generation_table *table = &coordinator->table;
    *count = 0;
    pthread_mutex_lock(&table->mutex);
    struct nosa_generation **list = calloc((size_t)table->count + 1, sizeof(void *));
    for (struct nosa_generation *g = table->first; g && list; g = g->next) {
        nosa_generation_retain(g);
        list[(*count)++] = g;
    }
    pthread_mutex_unlock(&table->mutex);
    return list;
}

typedef void (*visit)(struct nosa_generation *generation, void *argument);

/* Calls `act` for each that has not ended, under its mutex. */
static void for_each(struct nosa_coordinator *coordinator, visit act, void *argument)
{
    size_t count;
    struct nosa_generation **list = snapshot(coordinator, &count);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&list[i]->mutex);
        if (list[i]->state != NOSA_GENERATION_ENDED)
            act(list[i], argument);
        pthread_mutex_unlock(&list[i]->mutex);
        nosa_generation_release(list[i]);
    }
    free(list);
}

struct leaving {
    const struct nosa_worker *worker;
    bool died;
};

static void leave(struct nosa_generation *g, void *argument)
{
    const struct leaving *leaving = argument;
    if (!g->attempt || g->attempt->worker != leaving->worker)
        return;
    nosa_relay_abandon(g);
    nosa_relay_lose_worker(g, leaving->died ? NOSA_RELAY_DIED : NOSA_RELAY_DRAINED);
}

void nosa_relay_leave_worker(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                             bool died)
{
    struct leaving leaving = {worker, died};
    for_each(coordinator, leave, &leaving);
}

/* Whose turn comes first: its arrival, moved forward for each level of priority, as a worker's
 * scheduler ranks them. */
static int64_t rank_of(const struct nosa_generation *g)
{
    int32_t priority = g->priority < -PRIORITY_MAX  ? -PRIORITY_MAX
                       : g->priority > PRIORITY_MAX ? PRIORITY_MAX
                                                    : g->priority;
    return (int64_t)g->arrival_ns - priority * (int64_t)AGEING_NS;
}

static int compare_ranks(const void *a, const void *b)
{
    int64_t x = rank_of(*(struct nosa_generation *const *)a);
    int64_t y = rank_of(*(struct nosa_generation *const *)b);
    return (x > y) - (x < y);
}

/* Keeps those that wait for a worker, and returns their number. */
static size_t keep_waiting(struct nosa_generation **list, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&list[i]->mutex);
        bool waits = list[i]->state == NOSA_GENERATION_WAITING && !list[i]->paused;
        pthread_mutex_unlock(&list[i]->mutex);
        if (waits)
            list[kept++] = list[i];
        else
            nosa_generation_release(list[i]);
    }
    return kept;
}

/* Under its mutex. */
static void try_again(struct nosa_generation *g)
{
    if (g->state != NOSA_GENERATION_WAITING || g->paused)
        return;
    if (g->wait_until_ns && nosa_monotonic_ns() >= g->wait_until_ns)
        nosa_generation_end(g, NOSA_RPC_UNAVAILABLE,
                            "no worker came within --worker-timeout to go on with this request",
                            true);
    else
        nosa_relay_dispatch(g);
}

void nosa_relay_tick(struct nosa_coordinator *coordinator)
{
    size_t count;
    struct nosa_generation **list = snapshot(coordinator, &count);
    count = keep_waiting(list, count);
    if (count > 1)
        qsort(list, count, sizeof(struct nosa_generation *), compare_ranks);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&list[i]->mutex);
        try_again(list[i]);
        pthread_mutex_unlock(&list[i]->mutex);
        nosa_generation_release(list[i]);
    }
    free(list);
}

struct ending {
    enum nosa_rpc_code code;
    const char *text;
};

static void end_one(struct nosa_generation *g, void *argument)
{
    const struct ending *ending = argument;
    nosa_generation_end(g, ending->code, ending->text, true);
}

void nosa_relay_end_all(struct nosa_coordinator *coordinator, enum nosa_rpc_code code,
                        const char *text)
{
    struct ending ending = {code, text};
    for_each(coordinator, end_one, &ending);
}

struct cancelling {
    const char *request_id;
    bool found;
};

static void cancel_one(struct nosa_generation *g, void *argument)
{
    struct cancelling *cancelling = argument;
    if (strcmp(g->request_id, cancelling->request_id) != 0)
        return;
    cancelling->found = true;
    nosa_generation_end(g, NOSA_RPC_CANCELLED, "cancelled by an operator", true);
}

enum nosa_status nosa_relay_cancel(struct nosa_coordinator *coordinator, const char *request_id,
                                   struct nosa_error *error)
{
    struct cancelling cancelling = {.request_id = request_id};
    for_each(coordinator, cancel_one, &cancelling);
    if (cancelling.found)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_NOT_FOUND, "request_id: no request '%.128s' runs",
                          request_id);
}

/* ---- for people ---- */

static Nosa__V1__RequestState state_of(const struct nosa_generation *g)
{
    if (g->state == NOSA_GENERATION_WAITING && (g->replay_pending || g->move_pending))
        return NOSA__V1__REQUEST_STATE__REQUEST_STATE_REPLAYING;
    if (g->paused)
        return NOSA__V1__REQUEST_STATE__REQUEST_STATE_PAUSED;
    if (!g->started)
        return NOSA__V1__REQUEST_STATE__REQUEST_STATE_QUEUED;
    return g->first_token_ns ? NOSA__V1__REQUEST_STATE__REQUEST_STATE_DECODE
                             : NOSA__V1__REQUEST_STATE__REQUEST_STATE_PREFILL;
}

struct listing {
    Nosa__V1__RequestInfo **infos;
    size_t count;
    size_t capacity;
    bool failed;
};

static void describe(struct nosa_generation *g, void *argument)
{
    struct listing *listing = argument;
    if (listing->count == listing->capacity) {
        size_t capacity = listing->capacity ? 2 * listing->capacity : 64;
        Nosa__V1__RequestInfo **infos = realloc(listing->infos, capacity * sizeof *infos);
        if (!infos) {
            listing->failed = true;
            return;
        }
        listing->infos = infos;
        listing->capacity = capacity;
    }
    Nosa__V1__RequestInfo *info = malloc(sizeof *info);
    if (!info) {
        listing->failed = true;
        return;
    }
    nosa__v1__request_info__init(info);
    listing->infos[listing->count++] = info;
    info->request_id = strdup(g->request_id);
    info->worker_id = strdup(g->attempt ? g->attempt->worker->id : "");
    info->model = strdup(g->model_name);
    info->client = strdup(g->client);
    info->client_name = strdup(g->client_name);
    info->state = state_of(g);
    info->tokens = (uint32_t)g->output.count;
    info->prompt_tokens = g->state == NOSA_GENERATION_ENCODING ? 0 : (uint32_t)g->prompt_count;
    info->max_tokens = g->asked_max_tokens;
    info->priority = g->priority;
    info->age_ms = (nosa_monotonic_ns() - g->arrival_ns) / NOSA_NS_PER_MS;
    info->replays = g->replays;
    listing->failed = listing->failed || !info->request_id || !info->worker_id || !info->model ||
                      !info->client || !info->client_name;
}

enum nosa_status nosa_relay_list(struct nosa_coordinator *coordinator,
                                 Nosa__V1__RequestInfo ***infos, size_t *count)
{
    struct listing listing = {0};
    for_each(coordinator, describe, &listing);
    *infos = listing.infos;
    *count = listing.count;
    return listing.failed ? NOSA_OUT_OF_MEMORY : NOSA_OK;
}
