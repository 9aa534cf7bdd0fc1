#include "extent_store.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/size.h"
#include "extent_store_internal.h"

#define DEPTH_DEFAULT       32
#define REQUESTS_DEFAULT    256
#define DEADLINE_DEFAULT_MS 10000
#define OPS_OF_OUR_OWN      4 /* beside reads and payloads: flush, headers, clears */
#define RESERVE_MAX         16

/* ---- memory ---- */

/* Zeroed memory for `count` entries, counted in the store's size; NULL when there is none. */
static void *take(struct nosa_extent_store *store, size_t count, size_t bytes)
{
    store->info.memory_bytes += count * bytes;
    return calloc(count, bytes);
}

static void *take_pages(struct nosa_extent_store *store, size_t bytes)
{
    store->info.memory_bytes += bytes;
    void *pages = aligned_alloc(NOSA_EXTENT_PAGE, bytes);
    if (pages)
        memset(pages, 0, bytes);
    return pages;
}

static void free_store(struct nosa_extent_store *store)
{
    free(store->outbox);
    free(store->op_links);
    free(store->ops);
    free(store->request_vectors);
    free(store->request_buffers);
    free(store->request_records);
    free(store->queue_links);
    free(store->age_links);
    free(store->requests);
    nosa_extent_order_destroy(&store->order);
    nosa_prefix_index_destroy(&store->index);
    free(store->sums);
    free(store->ranks);
    free(store->contents);
    free(store->keys);
    free(store->extent_links);
    free(store->extents);
    free(store->zero_page);
    free(store->header_buffers);
    free(store->superblock);
    pthread_cond_destroy(&store->changed);
    pthread_mutex_destroy(&store->mutex);
    free(store);
}

static enum nosa_status no_memory(const struct nosa_extent_store *store, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV file: no memory for %u extents",
                          store->n_extents);
}

static enum nosa_status take_buffers(struct nosa_extent_store *store, struct nosa_error *error)
{
    store->superblock = take_pages(store, NOSA_EXTENT_PAGE);
    store->zero_page = take_pages(store, NOSA_EXTENT_PAGE);
    store->header_buffers = take_pages(store, HEADER_BUFFERS * store->header_bytes);
    if (!store->superblock || !store->zero_page || !store->header_buffers)
        return no_memory(store, error);
    return NOSA_OK;
}

static enum nosa_status take_extents(struct nosa_extent_store *store, struct nosa_error *error)
{
    size_t n = store->n_extents;

    store->extents = take(store, n, sizeof *store->extents);
    store->extent_links = take(store, n, sizeof *store->extent_links);
    store->keys = take(store, n, sizeof *store->keys);
    store->contents = take(store, n, sizeof *store->contents);
    store->ranks = take(store, n, sizeof *store->ranks);
    store->sums = take(store, n, 2 * sizeof *store->sums * store->geometry.n_records);
    if (!store->extents || !store->extent_links || !store->keys || !store->contents ||
        !store->ranks || !store->sums)
        return no_memory(store, error);
    NOSA_TRY(nosa_prefix_index_create(&store->index, (int32_t)n, store->keys, error));
    NOSA_TRY(nosa_extent_order_create(&store->order, (int32_t)n, store->ranks, error));
    for (int32_t i = 0; i < EXTENT_STATES; i++)
        nosa_index_list_init(&store->in_state[i]);
    for (int32_t i = 0; i < (int32_t)n; i++) {
        store->extents[i].request = NOSA_INDEX_NONE;
        nosa_index_list_append(&store->in_state[EXTENT_FREE], store->extent_links, i);
    }
    return NOSA_OK;
}

static enum nosa_status take_requests(struct nosa_extent_store *store, struct nosa_error *error)
{
    size_t n = store->n_requests, lists = n * store->geometry.n_records;

    store->requests = take(store, n, sizeof *store->requests);
    store->age_links = take(store, n, sizeof *store->age_links);
    store->queue_links = take(store, n, sizeof *store->queue_links);
    store->request_records = take(store, lists, sizeof *store->request_records);
    store->request_buffers = take(store, lists, sizeof *store->request_buffers);
    store->request_vectors = take(store, lists, sizeof *store->request_vectors);
    store->ops = take(store, store->n_ops, sizeof *store->ops);
    store->op_links = take(store, store->n_ops, sizeof *store->op_links);
    store->outbox = take(store, store->n_ops, sizeof *store->outbox);
    if (!store->requests || !store->age_links || !store->queue_links || !store->request_records ||
        !store->request_buffers || !store->request_vectors || !store->ops || !store->op_links ||
        !store->outbox)
        return no_memory(store, error);
    struct nosa_index_list *lists_empty[] = {
        &store->unused_requests, &store->by_age,  &store->reads,      &store->fills,
        &store->ready,           &store->arrived, &store->unused_ops, &store->queued};
    for (size_t i = 0; i < sizeof lists_empty / sizeof *lists_empty; i++)
        nosa_index_list_init(lists_empty[i]);
    for (int32_t i = 0; i < (int32_t)n; i++)
        nosa_index_list_append(&store->unused_requests, store->queue_links, i);
    for (int32_t i = 0; i < (int32_t)store->n_ops; i++)
        nosa_index_list_append(&store->unused_ops, store->op_links, i);
    return NOSA_OK;
}

/* ---- open and close ---- */

static enum nosa_status check_options(const struct nosa_extent_store_options *options,
                                      struct nosa_error *error)
{
    const struct nosa_extent_geometry *geometry = &options->geometry;
    char bytes[NOSA_SIZE_TEXT_MAX], least[NOSA_SIZE_TEXT_MAX];

    if (geometry->n_records < 1 || geometry->n_records > NOSA_EXTENT_RECORDS_MAX ||
        geometry->record_bytes < 1 || geometry->record_bytes % NOSA_IO_ALIGNMENT != 0 ||
        nosa_extent_image_bytes(geometry) > (UINT64_C(1) << 30))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a KV file cannot hold blocks of %u records of %u bytes",
                              geometry->n_records, geometry->record_bytes);
    if (nosa_extent_count_in(geometry, options->bytes) < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a KV file of %s holds no block; the least is %s",
                              nosa_size_format(options->bytes, bytes),
                              nosa_size_format(nosa_extent_file_bytes(geometry, 1), least));
    return NOSA_OK;
}

static uint32_t choose(uint32_t wanted, uint32_t by_default, uint32_t least, uint32_t most)
{
    uint32_t value = wanted ? wanted : by_default;
    return value < least ? least : value > most ? most : value;
}

static void init(struct nosa_extent_store *store, const struct nosa_extent_store_options *options)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&store->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&store->changed, &attributes);
    pthread_condattr_destroy(&attributes);

    store->geometry = options->geometry;
    memcpy(store->identity, options->identity, sizeof store->identity);
    store->clock = options->clock ? options->clock : nosa_clock_system();
    store->header_bytes = nosa_extent_header_bytes(&options->geometry);
    store->image_bytes = nosa_extent_image_bytes(&options->geometry);
    store->deadline_ns =
        choose(options->deadline_ms, DEADLINE_DEFAULT_MS, 1, UINT32_MAX) * NOSA_NS_PER_MS;
    store->budget_bytes = options->write_bytes_per_day;
    store->n_extents = nosa_extent_count_in(&options->geometry, options->bytes);
    if (store->n_extents > NOSA_PREFIX_INDEX_BLOCKS_MAX)
        store->n_extents = NOSA_PREFIX_INDEX_BLOCKS_MAX;
    store->n_requests = choose(options->requests_max, REQUESTS_DEFAULT, 4, 65536);
    store->depth = choose(options->depth, DEPTH_DEFAULT, 4, 4096);
    store->n_ops = store->depth + store->depth / 4 + OPS_OF_OUR_OWN;
    store->reserve = store->n_extents / 16 < RESERVE_MAX ? store->n_extents / 16 : RESERVE_MAX;
    store->next_generation = 1;
    store->info.memory_bytes = sizeof *store;
}

static enum nosa_status open_io(struct nosa_extent_store *store,
                                const struct nosa_io_method *method,
                                const struct nosa_io_options *options, struct nosa_error *error)
{
    NOSA_TRY(method ? method->open(method, options, &store->io, error)
                    : nosa_io_open_auto(options, &store->io, error));
    store->info.io_method = store->io->method->name;
    store->info.direct = store->io->direct;
    store->info.registered = store->io->registered;
    store->info.n_extents = store->n_extents;
    return NOSA_OK;
}

/* Closes the file and frees the store, but for memory that the device may still touch. */
static bool end(struct nosa_extent_store *store)
{
    bool ended = !store->io || store->io->method->close(store->io);
    if (ended)
        free_store(store);
    else
        nosa_log(NOSA_LOG_ERROR, "kvstore",
                 "the device of the KV file does not answer: memory of the operations at it is "
                 "given up");
    return ended;
}

enum nosa_status nosa_extent_store_open(const struct nosa_extent_store_options *options,
                                        struct nosa_extent_store **out, struct nosa_error *error)
{
    *out = NULL;
    NOSA_TRY(check_options(options, error));
    struct nosa_extent_store *store = calloc(1, sizeof *store);
    if (!store)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "KV file: no memory");
    init(store, options);
    const struct nosa_io_options io_options = {
        .directory = options->directory,
        .name = NOSA_EXTENT_FILE_NAME,
        .bytes = nosa_extent_file_bytes(&store->geometry, store->n_extents),
        .depth = store->n_ops,
        .pool = options->pool,
        .pool_bytes = options->pool_bytes,
    };
    enum nosa_status status = take_buffers(store, error);
    if (status == NOSA_OK)
        status = open_io(store, options->method, &io_options, error);
    if (status == NOSA_OK)
        status = nosa_extent_recover_layout(store, &io_options, error);
    if (status == NOSA_OK)
        status = take_extents(store, error);
    if (status == NOSA_OK)
        status = take_requests(store, error);
    if (status == NOSA_OK)
        status = nosa_extent_recover_headers(store, error);
    if (status != NOSA_OK) {
        end(store);
        return status;
    }
    *out = store;
    return NOSA_OK;
}

/* Requests that have not ended or hold memory, after the device had the time of a deadline. */
static uint32_t stop_requests(struct nosa_extent_store *store)
{
    uint64_t until_ns = nosa_extent_now(store) + store->deadline_ns, now_ns;
    uint32_t held = 0;

    for (int32_t i = 0; i < (int32_t)store->n_requests; i++) {
        if (!store->requests[i].used)
            continue;
        store->requests[i].cancelled = true;
        nosa_extent_abandon_ops(store, i);
    }
    while (store->at_device > 0 && (now_ns = nosa_extent_now(store)) < until_ns)
        nosa_extent_settle(store, until_ns - now_ns);
    for (uint32_t i = 0; i < store->n_ops; i++)
        held += store->ops[i].state == OP_AT_DEVICE && store->ops[i].request != NOSA_INDEX_NONE;
    return held;
}

uint32_t nosa_extent_store_close(struct nosa_extent_store *store)
{
    if (!store)
        return 0;
    pthread_mutex_lock(&store->mutex);
    NOSA_ASSERT(store->waited == 0 && !store->reaping);
    uint32_t held = stop_requests(store);
    pthread_mutex_unlock(&store->mutex);
    return end(store) ? 0 : held;
}

void nosa_extent_store_info(const struct nosa_extent_store *store,
                            struct nosa_extent_store_info *out)
{
    *out = store->info;
}

/* ---- what is there ---- */

struct nosa_extent_handle nosa_extent_store_find(struct nosa_extent_store *store,
                                                 const struct nosa_chain_key *key,
                                                 const struct nosa_chain_key *parent,
                                                 const uint32_t *tokens)
{
    struct nosa_extent_handle handle = {.index = NOSA_EXTENT_NONE};

    pthread_mutex_lock(&store->mutex);
    store->counters.lookups++;
    int32_t extent = nosa_prefix_index_find(&store->index, key);
    if (extent != NOSA_BLOCK_NONE && store->extents[extent].state == EXTENT_VALID &&
        memcmp(&store->contents[extent].parent, parent, sizeof *parent) == 0 &&
        memcmp(store->contents[extent].tokens, tokens, sizeof store->contents[extent].tokens) ==
            0) {
        store->counters.hits++;
        handle.index = extent;
        handle.generation = store->ranks[extent].generation;
    }
    pthread_mutex_unlock(&store->mutex);
    return handle;
}

bool nosa_extent_store_is_current(struct nosa_extent_store *store, struct nosa_extent_handle handle)
{
    pthread_mutex_lock(&store->mutex);
    bool current = nosa_extent_is_current(store, handle);
    pthread_mutex_unlock(&store->mutex);
    return current;
}

bool nosa_extent_store_pin(struct nosa_extent_store *store, struct nosa_extent_handle handle)
{
    pthread_mutex_lock(&store->mutex);
    bool current = nosa_extent_is_current(store, handle);
    if (current)
        nosa_extent_hold(store, handle.index, &store->extents[handle.index].pins);
    pthread_mutex_unlock(&store->mutex);
    return current;
}

void nosa_extent_store_unpin(struct nosa_extent_store *store, struct nosa_extent_handle handle)
{
    pthread_mutex_lock(&store->mutex);
    NOSA_ASSERT(handle.index >= 0 && handle.index < (int32_t)store->n_extents);
    NOSA_ASSERT(store->ranks[handle.index].generation == handle.generation);
    nosa_extent_unhold(store, handle.index, &store->extents[handle.index].pins);
    pthread_mutex_unlock(&store->mutex);
}

void nosa_extent_store_touch(struct nosa_extent_store *store, struct nosa_extent_handle handle,
                             uint64_t use, float value)
{
    pthread_mutex_lock(&store->mutex);
    if (nosa_extent_is_current(store, handle)) {
        store->ranks[handle.index].use = use;
        store->ranks[handle.index].value = isnan(value) ? 0 : value;
        if (nosa_extent_order_holds(&store->order, handle.index))
            nosa_extent_order_update(&store->order, handle.index);
    }
    pthread_mutex_unlock(&store->mutex);
}

void nosa_extent_store_forget(struct nosa_extent_store *store, struct nosa_extent_handle handle)
{
    pthread_mutex_lock(&store->mutex);
    if (nosa_extent_is_current(store, handle))
        nosa_extent_give_up(store, handle.index);
    pthread_mutex_unlock(&store->mutex);
}

/* ---- accounting ---- */

void nosa_extent_charge(struct nosa_extent_store *store, uint64_t bytes)
{
    uint64_t day = nosa_clock_wall_ns(store->clock) / NS_PER_DAY;
    if (day != store->budget_day) {
        store->budget_day = day;
        store->budget_used = 0;
        store->budget_told = false;
    }
    store->budget_used += bytes;
}

static uint32_t overdue(const struct nosa_extent_store *store, uint64_t now_ns)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < store->n_ops; i++)
        count += store->ops[i].state == OP_AT_DEVICE && store->ops[i].deadline_ns <= now_ns;
    return count;
}

void nosa_extent_store_counters(struct nosa_extent_store *store,
                                struct nosa_extent_store_counters *out)
{
    pthread_mutex_lock(&store->mutex);
    uint64_t now_ns = nosa_extent_now(store);
    nosa_extent_charge(store, 0);
    *out = store->counters;
    out->extents_total = store->n_extents;
    out->extents_valid = (uint32_t)store->in_state[EXTENT_VALID].count;
    out->extents_foreign = store->foreign;
    out->extents_pinned = store->pinned;
    out->operations_in_flight = store->at_device;
    out->operations_overdue = overdue(store, now_ns);
    out->flushes_waiting =
        (uint32_t)(store->in_state[EXTENT_FILLED].count + store->in_state[EXTENT_PUBLISHED].count +
                   store->in_state[EXTENT_CLEARED].count);
    if (store->reads_at_device > 0)
        out->read_busy_ns += now_ns - store->read_busy_since;
    if (store->writes_at_device > 0)
        out->write_busy_ns += now_ns - store->write_busy_since;
    out->budget_left_bytes = UINT64_MAX;
    if (store->budget_bytes > 0)
        out->budget_left_bytes =
            store->budget_used < store->budget_bytes ? store->budget_bytes - store->budget_used : 0;
    pthread_mutex_unlock(&store->mutex);
}
