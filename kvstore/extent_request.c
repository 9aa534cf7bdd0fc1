#include "extent_store_internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/log.h"

/* ---- queues ---- */

void nosa_extent_request_dequeue(struct nosa_extent_store *store, int32_t request)
{
    struct nosa_index_list *queue = store->requests[request].queue;
    if (queue)
        nosa_index_list_remove(queue, store->queue_links, request);
    store->requests[request].queue = NULL;
}

void nosa_extent_request_enqueue(struct nosa_extent_store *store, int32_t request,
                                 struct nosa_index_list *queue)
{
    nosa_extent_request_dequeue(store, request);
    nosa_index_list_append(queue, store->queue_links, request);
    store->requests[request].queue = queue;
}

/* A fresh request in by_age, or NONE when requests_max are under way. */
static int32_t take_request(struct nosa_extent_store *store, uint64_t token,
                            enum nosa_extent_request_kind kind)
{
    int32_t index = store->unused_requests.first;
    if (index == NOSA_INDEX_NONE)
        return NOSA_INDEX_NONE;
    nosa_index_list_remove(&store->unused_requests, store->queue_links, index);
    nosa_index_list_append(&store->by_age, store->age_links, index);
    uint64_t now_ns = nosa_extent_now(store);
    size_t first = (size_t)index * store->geometry.n_records;
    store->requests[index] = (struct request){
        .used = true,
        .kind = kind,
        .extent = NOSA_INDEX_NONE,
        .n = 1,
        .records = store->request_records + first,
        .buffers = store->request_buffers + first,
        .vectors = store->request_vectors + first,
        .handle = {.index = NOSA_EXTENT_NONE},
        .token = token,
        .accepted_ns = now_ns,
        .deadline_ns = now_ns + store->deadline_ns,
    };
    return index;
}

static void free_request(struct nosa_extent_store *store, int32_t request)
{
    NOSA_ASSERT(store->requests[request].ended && store->requests[request].ops == 0);
    store->requests[request].used = false;
    nosa_index_list_append(&store->unused_requests, store->queue_links, request);
}

/* ---- end ---- */

static void release_read(struct nosa_extent_store *store, struct request *request)
{
    nosa_extent_unhold(store, request->extent, &store->extents[request->extent].readers);
    request->extent = NOSA_INDEX_NONE;
}

void nosa_extent_request_end(struct nosa_extent_store *store, int32_t request,
                             enum nosa_extent_result result, int32_t os_error)
{
    struct request *self = &store->requests[request];

    NOSA_ASSERT(!self->ended);
    nosa_index_list_remove(&store->by_age, store->age_links, request);
    nosa_extent_request_dequeue(store, request);
    self->ended = true;
    self->result = result;
    self->os_error = os_error;
    self->ended_ns = nosa_extent_now(store);
    if (self->kind != NOSA_EXTENT_WRITE && self->ops == 0)
        release_read(store, self);
    if (self->kind != NOSA_EXTENT_WRITE && result == NOSA_EXTENT_OK)
        store->counters.reads++;
    store->counters.timed_out_requests += result == NOSA_EXTENT_TIMED_OUT;
    store->counters.cancelled_requests += result == NOSA_EXTENT_CANCELLED;
    if (!self->waited)
        nosa_extent_request_enqueue(store, request, &store->ready);
}

/* 1, 2, 4, 8, ...: what is worth a line in the log. */
static bool worth_a_line(uint64_t count)
{
    return (count & (count - 1)) == 0;
}

/* What was read is of no use: the block must be computed again. */
static void forget_bad(struct nosa_extent_store *store, int32_t extent, uint64_t *counter,
                       const char *what)
{
    if (store->extents[extent].state != EXTENT_VALID)
        return;
    ++*counter;
    if (worth_a_line(*counter))
        nosa_log(NOSA_LOG_WARN, "kvstore", "KV file: extent %d %s; forgotten (%llu so far)",
                 (int)extent, what, (unsigned long long)*counter);
    nosa_extent_give_up(store, extent);
}

static bool records_match(const struct nosa_extent_store *store, const struct request *request,
                          const uint64_t *sums)
{
    for (uint32_t i = 0; i < request->n; i++)
        if (nosa_extent_sum(request->buffers[i], store->geometry.record_bytes) !=
            sums[request->records[i]])
            return false;
    return true;
}

/* `bytes` each from `data` on, against sums[0 .. n_records). */
static bool run_matches(const struct nosa_extent_store *store, const void *data, size_t bytes,
                        const uint64_t *sums)
{
    for (uint32_t i = 0; i < store->geometry.n_records; i++)
        if (nosa_extent_sum((const char *)data + i * bytes, bytes) != sums[i])
            return false;
    return true;
}

static bool matches(const struct nosa_extent_store *store, const struct request *request)
{
    const struct nosa_extent_geometry *geometry = &store->geometry;
    const uint64_t *sums = nosa_extent_sums(store, request->extent);
    const uint64_t *summary_sums = sums + geometry->n_records;
    const char *data = request->buffers[0];

    switch (request->kind) {
    case NOSA_EXTENT_READ_RECORDS: return records_match(store, request, sums);
    case NOSA_EXTENT_READ_SUMMARIES:
        return run_matches(store, data, geometry->summary_bytes, summary_sums);
    default:
        return run_matches(store, data, geometry->record_bytes, sums) &&
               run_matches(store, data + nosa_extent_summary_offset(geometry, 0),
                           geometry->summary_bytes, summary_sums);
    }
}

static void finish_read(struct nosa_extent_store *store, int32_t request)
{
    struct request *self = &store->requests[request];

    if (self->os_error != 0) {
        forget_bad(store, self->extent, &store->counters.unreadable_extents, "cannot be read");
        nosa_extent_request_end(store, request, NOSA_EXTENT_IO_ERROR, self->os_error);
    } else if (!matches(store, self)) {
        forget_bad(store, self->extent, &store->counters.corrupt_extents,
                   "does not match its checksums");
        nosa_extent_request_end(store, request, NOSA_EXTENT_CORRUPT, 0);
    } else {
        nosa_extent_request_end(store, request, NOSA_EXTENT_OK, 0);
    }
}

bool nosa_extent_finish_read(struct nosa_extent_store *store)
{
    if (store->arrived.count == 0)
        return false;
    finish_read(store, store->arrived.first);
    return true;
}

void nosa_extent_request_op_done(struct nosa_extent_store *store, int32_t request, int32_t os_error)
{
    struct request *self = &store->requests[request];
    bool reads = self->kind != NOSA_EXTENT_WRITE;

    NOSA_ASSERT(self->used && self->ops > 0);
    self->ops--;
    if (self->ended) {
        if (self->ops > 0)
            return;
        if (reads)
            release_read(store, self);
        if (self->reported) {
            self->reported = false;
            self->result = NOSA_EXTENT_RELEASED;
            self->os_error = 0;
            nosa_extent_request_enqueue(store, request, &store->ready);
        }
        return;
    }
    if (os_error != 0 && self->os_error == 0 && !self->cancelled) {
        self->os_error = os_error;
        nosa_extent_request_dequeue(store, request); /* the rest is not issued */
    }
    if (self->ops > 0 || self->queue)
        return;
    if (self->cancelled)
        nosa_extent_request_end(store, request, NOSA_EXTENT_CANCELLED, 0);
    else if (reads)
        nosa_extent_request_enqueue(store, request, &store->arrived);
    else if (self->os_error != 0)
        nosa_extent_request_end(store, request, NOSA_EXTENT_IO_ERROR, self->os_error);
}

/*
 * Takes a write off its extent, whose queued payload was dropped. True when the request can end
 * now; false when its payload is at the device, and the extent is freed when that comes back. An
 * extent past its payload goes on alone.
 */
static bool detach_write(struct nosa_extent_store *store, int32_t request)
{
    struct request *self = &store->requests[request];
    if (self->extent == NOSA_INDEX_NONE)
        return true;
    struct extent *extent = &store->extents[self->extent];

    switch (extent->state) {
    case EXTENT_FILLING:
        nosa_extent_unname(store, self->extent);
        if (self->ops > 0)
            return false;
        nosa_extent_move(store, self->extent, EXTENT_FREE);
        break;
    case EXTENT_DIRTY:
    case EXTENT_CLEARING:
    case EXTENT_CLEARED: nosa_extent_unname(store, self->extent); break;
    default: break;
    }
    extent->request = NOSA_INDEX_NONE;
    self->extent = NOSA_INDEX_NONE;
    return true;
}

void nosa_extent_put_off(struct nosa_extent_store *store, uint64_t ns)
{
    for (int32_t request = store->by_age.first; request != NOSA_INDEX_NONE;
         request = store->age_links[request].next)
        store->requests[request].deadline_ns += ns;
}

void nosa_extent_expire(struct nosa_extent_store *store, uint64_t now_ns)
{
    for (;;) {
        int32_t request = store->by_age.first;
        if (request == NOSA_INDEX_NONE || store->requests[request].deadline_ns > now_ns)
            return;
        if (store->requests[request].queue == &store->arrived) {
            finish_read(store, request);
            continue;
        }
        nosa_extent_request_dequeue(store, request);
        nosa_extent_abandon_ops(store, request);
        if (store->requests[request].kind == NOSA_EXTENT_WRITE)
            detach_write(store, request);
        nosa_extent_request_end(store, request, NOSA_EXTENT_TIMED_OUT, 0);
    }
}

static bool past_payload(const struct nosa_extent_store *store, const struct request *request)
{
    if (request->kind != NOSA_EXTENT_WRITE || request->extent == NOSA_INDEX_NONE)
        return false;
    enum extent_state state = store->extents[request->extent].state;
    return state == EXTENT_FILLED || state == EXTENT_SEALED || state == EXTENT_PUBLISHING ||
           state == EXTENT_PUBLISHED;
}

static void cancel_request(struct nosa_extent_store *store, int32_t request)
{
    struct request *self = &store->requests[request];
    if (self->ended || self->cancelled || past_payload(store, self))
        return;
    self->cancelled = true;
    nosa_extent_request_dequeue(store, request);
    nosa_extent_abandon_ops(store, request);
    if (self->kind == NOSA_EXTENT_WRITE)
        detach_write(store, request);
    if (self->ops == 0)
        nosa_extent_request_end(store, request, NOSA_EXTENT_CANCELLED, 0);
}

void nosa_extent_store_cancel(struct nosa_extent_store *store, uint64_t token)
{
    pthread_mutex_lock(&store->mutex);
    for (int32_t i = 0; i < (int32_t)store->n_requests; i++)
        if (store->requests[i].used && store->requests[i].token == token)
            cancel_request(store, i);
    pthread_mutex_unlock(&store->mutex);
}

/* ---- accept ---- */

/* On NOSA_OK the extent is held for *request, which is not queued yet. */
static enum nosa_status accept_read(struct nosa_extent_store *store, uint64_t token,
                                    struct nosa_extent_handle handle,
                                    enum nosa_extent_request_kind kind, int32_t *request)
{
    if (!nosa_extent_is_current(store, handle))
        return NOSA_NOT_FOUND;
    *request = take_request(store, token, kind);
    if (*request == NOSA_INDEX_NONE)
        return NOSA_UNAVAILABLE;
    store->requests[*request].extent = handle.index;
    store->requests[*request].handle = handle;
    nosa_extent_hold(store, handle.index, &store->extents[handle.index].readers);
    return NOSA_OK;
}

static bool is_aligned(const void *memory)
{
    return (uintptr_t)memory % NOSA_IO_ALIGNMENT == 0;
}

static enum nosa_status read_whole(struct nosa_extent_store *store, uint64_t token,
                                   struct nosa_extent_handle handle, void *buffer,
                                   enum nosa_extent_request_kind kind)
{
    int32_t request;

    NOSA_ASSERT(is_aligned(buffer));
    pthread_mutex_lock(&store->mutex);
    enum nosa_status status = accept_read(store, token, handle, kind, &request);
    if (status == NOSA_OK) {
        store->requests[request].buffers[0] = buffer;
        nosa_extent_request_enqueue(store, request, &store->reads);
    }
    pthread_mutex_unlock(&store->mutex);
    return status;
}

enum nosa_status nosa_extent_store_read_image(struct nosa_extent_store *store, uint64_t token,
                                              struct nosa_extent_handle handle, void *image)
{
    return read_whole(store, token, handle, image, NOSA_EXTENT_READ_IMAGE);
}

enum nosa_status nosa_extent_store_read_summaries(struct nosa_extent_store *store, uint64_t token,
                                                  struct nosa_extent_handle handle, void *buffer)
{
    NOSA_ASSERT(store->geometry.summary_bytes > 0);
    return read_whole(store, token, handle, buffer, NOSA_EXTENT_READ_SUMMARIES);
}

static enum nosa_status accept_records(struct nosa_extent_store *store, uint64_t token,
                                       struct nosa_extent_handle handle, const uint32_t *records,
                                       void *const *buffers, uint32_t n, int32_t *request)
{
    NOSA_ASSERT(n > 0 && n <= store->geometry.n_records);
    enum nosa_status status = accept_read(store, token, handle, NOSA_EXTENT_READ_RECORDS, request);
    if (status != NOSA_OK)
        return status;
    struct request *self = &store->requests[*request];
    for (uint32_t i = 0; i < n; i++) {
        NOSA_ASSERT(records[i] < store->geometry.n_records && is_aligned(buffers[i]));
        self->records[i] = records[i];
        self->buffers[i] = buffers[i];
    }
    self->n = n;
    nosa_extent_request_enqueue(store, *request, &store->reads);
    return NOSA_OK;
}

enum nosa_status nosa_extent_store_read_records(struct nosa_extent_store *store, uint64_t token,
                                                struct nosa_extent_handle handle,
                                                const uint32_t *records, void *const *buffers,
                                                uint32_t n)
{
    int32_t request;

    pthread_mutex_lock(&store->mutex);
    enum nosa_status status = accept_records(store, token, handle, records, buffers, n, &request);
    pthread_mutex_unlock(&store->mutex);
    return status;
}

static bool within_budget(struct nosa_extent_store *store)
{
    uint64_t bytes = store->image_bytes + store->header_bytes;

    nosa_extent_charge(store, 0);
    if (store->budget_bytes == 0 || store->budget_used + bytes <= store->budget_bytes)
        return true;
    store->counters.refused_budget++;
    if (!store->budget_told)
        nosa_log(
            NOSA_LOG_WARN, "kvstore",
            "the KV file's write budget of today (UTC) is spent: %llu of %llu bytes; no blocks "
            "are written until midnight",
            (unsigned long long)store->budget_used, (unsigned long long)store->budget_bytes);
    store->budget_told = true;
    return false;
}

/* Names the extent and lets it wait for its place or its payload. */
static void begin_write(struct nosa_extent_store *store, int32_t request, int32_t extent,
                        const struct nosa_extent_write *write)
{
    const struct nosa_extent_geometry *geometry = &store->geometry;
    uint64_t *sums = nosa_extent_sums(store, extent);
    const char *image = write->image;

    store->keys[extent] = write->key;
    store->contents[extent].parent = write->parent;
    memcpy(store->contents[extent].tokens, write->tokens, sizeof store->contents[extent].tokens);
    store->ranks[extent] =
        (struct nosa_extent_rank){.use = write->use,
                                  .generation = store->next_generation++,
                                  .value = isnan(write->value) ? 0 : write->value};
    for (uint32_t i = 0; i < geometry->n_records; i++) {
        sums[i] =
            nosa_extent_sum(image + nosa_extent_record_offset(geometry, i), geometry->record_bytes);
        sums[geometry->n_records + i] = nosa_extent_sum(
            image + nosa_extent_summary_offset(geometry, i), geometry->summary_bytes);
    }
    store->extents[extent].foreign = false;
    store->extents[extent].request = request;
    store->requests[request].extent = extent;
    /* The image is written as it is, so its type may drop const here alone. */
    memcpy(&store->requests[request].buffers[0], &write->image, sizeof write->image);
    nosa_extent_name(store, extent);
    nosa_extent_charge(store, store->image_bytes + store->header_bytes);
    if (store->extents[extent].state == EXTENT_FREE) {
        nosa_extent_move(store, extent, EXTENT_FILLING);
        nosa_extent_request_enqueue(store, request, &store->fills);
    }
}

static enum nosa_status accept_write(struct nosa_extent_store *store, uint64_t token,
                                     const struct nosa_extent_write *write)
{
    if (store->unused_requests.count == 0)
        return NOSA_UNAVAILABLE;
    int32_t known = nosa_prefix_index_find(&store->index, &write->key);
    if (known != NOSA_BLOCK_NONE) {
        int32_t request = take_request(store, token, NOSA_EXTENT_WRITE);
        if (store->extents[known].state == EXTENT_VALID)
            store->requests[request].handle =
                (struct nosa_extent_handle){known, store->ranks[known].generation};
        nosa_extent_request_end(store, request, NOSA_EXTENT_EXISTS, 0);
        return NOSA_OK;
    }
    if (!within_budget(store))
        return NOSA_RESOURCE_EXHAUSTED;
    int32_t extent = nosa_extent_take_place(store);
    if (extent == NOSA_INDEX_NONE) {
        store->counters.refused_full++;
        return NOSA_RESOURCE_EXHAUSTED;
    }
    begin_write(store, take_request(store, token, NOSA_EXTENT_WRITE), extent, write);
    nosa_extent_keep_reserve(store);
    return NOSA_OK;
}

enum nosa_status nosa_extent_store_write(struct nosa_extent_store *store, uint64_t token,
                                         const struct nosa_extent_write *write)
{
    NOSA_ASSERT(is_aligned(write->image));
    pthread_mutex_lock(&store->mutex);
    enum nosa_status status = accept_write(store, token, write);
    pthread_mutex_unlock(&store->mutex);
    return status;
}

/* ---- completions ---- */

const char *nosa_extent_result_name(enum nosa_extent_result result)
{
    static const char *const names[] = {
        [NOSA_EXTENT_OK] = "ok",
        [NOSA_EXTENT_CORRUPT] = "corrupt",
        [NOSA_EXTENT_IO_ERROR] = "io error",
        [NOSA_EXTENT_TIMED_OUT] = "timed out",
        [NOSA_EXTENT_CANCELLED] = "cancelled",
        [NOSA_EXTENT_EXISTS] = "exists",
        [NOSA_EXTENT_RELEASED] = "released",
    };
    size_t i = (size_t)result;
    return i < sizeof names / sizeof *names ? names[i] : "unknown";
}

/* The request's completion; frees it unless operations of it are at the device. */
static void report(struct nosa_extent_store *store, int32_t request,
                   struct nosa_extent_completion *out)
{
    struct request *self = &store->requests[request];
    uint64_t first_ns = self->first_ns ? self->first_ns : self->ended_ns;

    nosa_extent_request_dequeue(store, request);
    *out = (struct nosa_extent_completion){.token = self->token,
                                           .kind = self->kind,
                                           .result = self->result,
                                           .buffer_held = self->ops > 0,
                                           .os_error = self->os_error,
                                           .handle = self->handle,
                                           .bytes = self->bytes,
                                           .queue_ns = first_ns - self->accepted_ns,
                                           .service_ns = self->ended_ns - first_ns};
    if (self->ops > 0)
        self->reported = true;
    else
        free_request(store, request);
}

/* Requests whose completions poll gives. */
static uint32_t owned(const struct nosa_extent_store *store)
{
    return store->n_requests - (uint32_t)store->unused_requests.count - store->waited;
}

uint32_t nosa_extent_store_poll(struct nosa_extent_store *store,
                                struct nosa_extent_completion *completions, uint32_t max,
                                uint32_t wait_ms)
{
    uint32_t n = 0;

    pthread_mutex_lock(&store->mutex);
    uint64_t until_ns = nosa_extent_now(store) + wait_ms * NOSA_NS_PER_MS;
    for (;;) {
        nosa_extent_progress(store);
        for (; n < max && store->ready.count > 0; n++)
            report(store, store->ready.first, &completions[n]);
        uint64_t now_ns = nosa_extent_now(store);
        bool idle = owned(store) == 0 && store->at_device == 0 && store->queued.count == 0;
        if (n > 0 || idle || now_ns >= until_ns)
            break;
        nosa_extent_wait(store, until_ns - now_ns);
    }
    pthread_mutex_unlock(&store->mutex);
    return n;
}

void nosa_extent_store_submit(struct nosa_extent_store *store)
{
    pthread_mutex_lock(&store->mutex);
    nosa_extent_progress(store);
    pthread_mutex_unlock(&store->mutex);
}

uint32_t nosa_extent_store_pending(struct nosa_extent_store *store)
{
    pthread_mutex_lock(&store->mutex);
    uint32_t pending = owned(store);
    pthread_mutex_unlock(&store->mutex);
    return pending;
}

/* Accepts a read that the calling thread waits for; false when it has to wait for a place that one
 * of its `open` earlier reads will leave. */
static bool begin_waited(struct nosa_extent_store *store, struct nosa_extent_read *read,
                         uint32_t open)
{
    read->request = NOSA_INDEX_NONE;
    read->status = accept_records(store, read->token, read->handle, read->records, read->buffers,
                                  read->n, &read->request);
    if (read->status == NOSA_OK) {
        store->requests[read->request].waited = true;
        store->waited++;
    } else {
        read->request = NOSA_INDEX_NONE;
    }
    return read->status != NOSA_UNAVAILABLE || open == 0;
}

/* Reports the waited reads that have ended; returns how many. */
static uint32_t end_waited(struct nosa_extent_store *store, struct nosa_extent_read *reads,
                           uint32_t n)
{
    uint32_t ended = 0;
    for (uint32_t i = 0; i < n; i++) {
        int32_t request = reads[i].request;
        if (request == NOSA_INDEX_NONE || !store->requests[request].ended)
            continue;
        store->requests[request].waited = false;
        store->waited--;
        report(store, request, &reads[i].completion);
        reads[i].request = NOSA_INDEX_NONE;
        ended++;
    }
    return ended;
}

void nosa_extent_store_read_batch_wait(struct nosa_extent_store *store,
                                       struct nosa_extent_read *reads, uint32_t n_reads)
{
    uint32_t begun = 0, open = 0;

    pthread_mutex_lock(&store->mutex);
    while (begun < n_reads || open > 0) {
        while (begun < n_reads && begin_waited(store, &reads[begun], open))
            open += reads[begun++].status == NOSA_OK;
        nosa_extent_progress(store);
        uint32_t ended = end_waited(store, reads, begun);
        open -= ended;
        if (ended == 0 && open > 0)
            nosa_extent_wait(store, store->deadline_ns);
    }
    pthread_mutex_unlock(&store->mutex);
}

enum nosa_status nosa_extent_store_read_records_wait(struct nosa_extent_store *store,
                                                     uint64_t token,
                                                     struct nosa_extent_handle handle,
                                                     const uint32_t *records, void *const *buffers,
                                                     uint32_t n, struct nosa_extent_completion *out)
{
    struct nosa_extent_read read = {
        .token = token, .handle = handle, .records = records, .buffers = buffers, .n = n};
    nosa_extent_store_read_batch_wait(store, &read, 1);
    if (read.status == NOSA_OK)
        *out = read.completion;
    return read.status;
}
