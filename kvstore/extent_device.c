#include "extent_store_internal.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define ABSENCE_NS NOSA_NS_PER_S /* of the owner, that counts for deadlines at most */

/* ---- operation slots ---- */

static uint64_t op_tag(const struct nosa_extent_store *store, int32_t op)
{
    return (uint64_t)store->ops[op].serial << 32 | (uint32_t)op;
}

/* A queued operation of no bytes yet; there must be an unused slot. */
static struct op *take_op(struct nosa_extent_store *store, enum op_kind kind)
{
    int32_t index = store->unused_ops.first;
    NOSA_ASSERT(index != NOSA_INDEX_NONE);
    struct op *op = &store->ops[index];
    nosa_index_list_remove(&store->unused_ops, store->op_links, index);
    nosa_index_list_append(&store->queued, store->op_links, index);
    *op = (struct op){.kind = kind,
                      .state = OP_QUEUED,
                      .serial = (op->serial + 1) & INT32_MAX,
                      .request = NOSA_INDEX_NONE,
                      .extent = NOSA_INDEX_NONE,
                      .buffer = NOSA_INDEX_NONE,
                      .deadline_ns = nosa_extent_now(store) + store->deadline_ns};
    store->reads_issued += kind == OP_READ;
    store->payloads_issued += kind == OP_PAYLOAD;
    return op;
}

/* The operation is neither queued nor at the device any more. */
static void drop_op(struct nosa_extent_store *store, int32_t index)
{
    struct op *op = &store->ops[index];
    store->reads_issued -= op->kind == OP_READ;
    store->payloads_issued -= op->kind == OP_PAYLOAD;
    op->state = OP_UNUSED;
    nosa_index_list_append(&store->unused_ops, store->op_links, index);
}

static void use_own_vector(struct op *op, void *memory, uint64_t bytes, uint64_t offset)
{
    op->own = (struct iovec){.iov_base = memory, .iov_len = bytes};
    op->vectors = &op->own;
    op->n_vectors = 1;
    op->bytes_left = bytes;
    op->offset = offset;
}

static bool is_dead(const struct nosa_extent_store *store, const struct op *op)
{
    if (op->request == NOSA_INDEX_NONE)
        return false;
    const struct request *request = &store->requests[op->request];
    return request->ended || request->cancelled;
}

void nosa_extent_abandon_ops(struct nosa_extent_store *store, int32_t request)
{
    for (int32_t i = 0; i < (int32_t)store->n_ops; i++) {
        struct op *op = &store->ops[i];
        if (op->request != request || op->state == OP_UNUSED)
            continue;
        if (op->state == OP_AT_DEVICE) {
            store->io->method->cancel(store->io, op_tag(store, i));
            continue;
        }
        nosa_index_list_remove(&store->queued, store->op_links, i);
        drop_op(store, i);
        store->requests[request].ops--;
    }
}

/* ---- issue ---- */

static void issue_flush(struct nosa_extent_store *store)
{
    int32_t waiting = store->in_state[EXTENT_FILLED].count +
                      store->in_state[EXTENT_PUBLISHED].count +
                      store->in_state[EXTENT_CLEARED].count;
    if (store->flushing || waiting == 0 || store->unused_ops.count == 0)
        return;
    take_op(store, OP_FLUSH);
    store->flushing = true;
    store->flushes_issued++;
}

static void write_header(struct nosa_extent_store *store, int32_t extent, void *buffer)
{
    struct nosa_extent_header *header = buffer;

    memset(header, 0, store->header_bytes);
    header->n_records = store->geometry.n_records;
    header->layout_id = store->superblock->layout_id;
    header->number = (uint64_t)extent;
    header->generation = store->ranks[extent].generation;
    header->use = store->ranks[extent].use;
    header->written_ns = nosa_clock_wall_ns(store->clock);
    header->value = store->ranks[extent].value;
    memcpy(header->identity, store->identity, sizeof header->identity);
    header->key = store->keys[extent];
    header->parent = store->contents[extent].parent;
    memcpy(header->tokens, store->contents[extent].tokens, sizeof header->tokens);
    memcpy(header->sums, nosa_extent_sums(store, extent),
           2 * sizeof(uint64_t) * store->geometry.n_records);
    nosa_extent_header_seal(header, store->header_bytes);
}

static void issue_headers(struct nosa_extent_store *store)
{
    while (store->in_state[EXTENT_SEALED].count > 0 && store->unused_ops.count > 0 &&
           ~store->header_buffers_used != 0) {
        int32_t extent = store->in_state[EXTENT_SEALED].first;
        struct op *op = take_op(store, OP_HEADER);
        op->extent = extent;
        op->buffer = __builtin_ctzll(~store->header_buffers_used);
        store->header_buffers_used |= UINT64_C(1) << op->buffer;
        void *memory = store->header_buffers + (size_t)op->buffer * store->header_bytes;
        write_header(store, extent, memory);
        use_own_vector(op, memory, store->header_bytes,
                       nosa_extent_header_offset(&store->geometry, (uint32_t)extent));
        nosa_extent_move(store, extent, EXTENT_PUBLISHING);
    }
}

static void issue_clears(struct nosa_extent_store *store, uint64_t now_ns)
{
    while (store->in_state[EXTENT_DIRTY].count > 0 && store->unused_ops.count > 0 &&
           now_ns >= store->clear_after_ns) {
        int32_t extent = store->in_state[EXTENT_DIRTY].first;
        struct op *op = take_op(store, OP_CLEAR);
        op->extent = extent;
        use_own_vector(op, store->zero_page, NOSA_EXTENT_PAGE,
                       nosa_extent_header_offset(&store->geometry, (uint32_t)extent));
        nosa_extent_charge(store, NOSA_EXTENT_PAGE);
        nosa_extent_move(store, extent, EXTENT_CLEARING);
    }
}

/* Vectors for records [next, end) of the request, neighbours in memory as one; returns how many. */
static uint32_t gather_vectors(const struct nosa_extent_store *store, struct request *request,
                               uint32_t end)
{
    struct iovec *vectors = request->vectors + request->next;
    const uint64_t bytes = store->geometry.record_bytes;
    uint32_t n = 0;

    for (uint32_t i = request->next; i < end; i++) {
        char *buffer = request->buffers[i];
        if (n > 0 && (char *)vectors[n - 1].iov_base + vectors[n - 1].iov_len == buffer)
            vectors[n - 1].iov_len += bytes;
        else
            vectors[n++] = (struct iovec){.iov_base = buffer, .iov_len = bytes};
    }
    return n;
}

/* End of the run of records that starts at `next` and can be one read. */
static uint32_t run_end(const struct nosa_extent_store *store, const struct request *request)
{
    const uint32_t vectors_max = 1024; /* what the system takes in one call */
    uint64_t run_max = (UINT64_C(1) << 30) / store->geometry.record_bytes;
    uint32_t start = request->next, end = start + 1;

    if (run_max > vectors_max)
        run_max = vectors_max;
    while (end < request->n && end - start < run_max &&
           request->records[end] == request->records[end - 1] + 1)
        end++;
    return end;
}

static void issue_read(struct nosa_extent_store *store, int32_t index)
{
    struct request *request = &store->requests[index];
    uint64_t payload = nosa_extent_payload_offset(&store->geometry, (uint32_t)request->extent);
    struct op *op = take_op(store, OP_READ);

    op->request = index;
    op->deadline_ns = request->deadline_ns;
    if (request->kind == NOSA_EXTENT_READ_RECORDS) {
        uint32_t end = run_end(store, request);
        op->vectors = request->vectors + request->next;
        op->n_vectors = gather_vectors(store, request, end);
        op->offset =
            payload + nosa_extent_record_offset(&store->geometry, request->records[request->next]);
        op->bytes_left = (uint64_t)(end - request->next) * store->geometry.record_bytes;
        request->next = end;
    } else if (request->kind == NOSA_EXTENT_READ_SUMMARIES) {
        use_own_vector(op, request->buffers[0], nosa_extent_summaries_bytes(&store->geometry),
                       payload + nosa_extent_summary_offset(&store->geometry, 0));
        request->next = 1;
    } else {
        use_own_vector(op, request->buffers[0], store->image_bytes, payload);
        request->next = 1;
    }
    request->ops++;
    if (request->next == request->n)
        nosa_extent_request_dequeue(store, index);
}

static void issue_fill(struct nosa_extent_store *store, int32_t index)
{
    struct request *request = &store->requests[index];
    struct op *op = take_op(store, OP_PAYLOAD);

    NOSA_ASSERT(store->extents[request->extent].state == EXTENT_FILLING);
    op->request = index;
    op->extent = request->extent;
    op->deadline_ns = request->deadline_ns;
    use_own_vector(op, request->buffers[0], store->image_bytes,
                   nosa_extent_payload_offset(&store->geometry, (uint32_t)request->extent));
    request->ops++;
    nosa_extent_request_dequeue(store, index);
}

/* Reads go before payloads; each kind has a share of the operations, and what is left is for
 * flushes and headers, so that none waits for the others. */
static void issue_requests(struct nosa_extent_store *store, uint64_t now_ns)
{
    while (store->reads.count > 0 && store->unused_ops.count > 0 &&
           store->reads_issued < store->depth) {
        int32_t request = store->reads.first;
        if (store->requests[request].first_ns == 0)
            store->requests[request].first_ns = now_ns;
        issue_read(store, request);
    }
    while (store->fills.count > 0 && store->unused_ops.count > 0 &&
           store->payloads_issued < store->depth / 4) {
        store->requests[store->fills.first].first_ns = now_ns;
        issue_fill(store, store->fills.first);
    }
}

/* ---- to the device and back ---- */

static void count_at_device(struct nosa_extent_store *store, const struct op *op, uint32_t change,
                            uint64_t now_ns)
{
    bool reads = op->kind == OP_READ;
    uint32_t *count = reads ? &store->reads_at_device : &store->writes_at_device;
    uint64_t *since = reads ? &store->read_busy_since : &store->write_busy_since;
    uint64_t *busy = reads ? &store->counters.read_busy_ns : &store->counters.write_busy_ns;

    if (*count == 0)
        *since = now_ns;
    *count += change;
    store->at_device += change;
    if (*count == 0)
        *busy += now_ns - *since;
}

static void send_queued(struct nosa_extent_store *store, uint64_t now_ns)
{
    static const enum nosa_io_kind kinds[] = {[OP_READ] = NOSA_IO_READ,
                                              [OP_PAYLOAD] = NOSA_IO_WRITE,
                                              [OP_HEADER] = NOSA_IO_WRITE,
                                              [OP_CLEAR] = NOSA_IO_WRITE,
                                              [OP_FLUSH] = NOSA_IO_FLUSH};
    uint32_t n = 0;

    if (now_ns < store->submit_after_ns)
        return;
    for (int32_t i = store->queued.first; i != NOSA_INDEX_NONE; i = store->op_links[i].next) {
        const struct op *op = &store->ops[i];
        store->outbox[n++] = (struct nosa_io_op){.kind = kinds[op->kind],
                                                 .n_vectors = op->n_vectors,
                                                 .vectors = op->vectors,
                                                 .offset = op->offset,
                                                 .tag = op_tag(store, i)};
    }
    if (n == 0 && !store->io->held_back)
        return;
    uint32_t taken = store->io->method->submit(store->io, store->outbox, n);
    NOSA_ASSERT(taken <= n);
    for (uint32_t i = 0; i < taken; i++) {
        int32_t op = store->queued.first;
        nosa_index_list_remove(&store->queued, store->op_links, op);
        store->ops[op].state = OP_AT_DEVICE;
        count_at_device(store, &store->ops[op], 1, now_ns);
    }
    if (taken < n) {
        store->counters.retried_operations++;
        store->submit_after_ns = now_ns + RETRY_NS;
    }
}

/* Counts what has moved, and skips it. */
static void advance(struct nosa_extent_store *store, struct op *op, uint64_t bytes)
{
    if (op->request != NOSA_INDEX_NONE)
        store->requests[op->request].bytes += bytes;
    op->offset += bytes;
    op->bytes_left -= bytes;
    while (op->n_vectors > 0 && bytes >= op->vectors->iov_len) {
        bytes -= op->vectors->iov_len;
        op->vectors++;
        op->n_vectors--;
    }
    if (bytes > 0) {
        op->vectors->iov_base = (char *)op->vectors->iov_base + bytes;
        op->vectors->iov_len -= bytes;
    }
}

static void send_again(struct nosa_extent_store *store, int32_t index)
{
    store->counters.retried_operations++;
    store->ops[index].state = OP_QUEUED;
    nosa_index_list_append(&store->queued, store->op_links, index);
}

/* Whether the operation goes on; else *os_error says how it ended. */
static bool goes_on(struct nosa_extent_store *store, int32_t index, int64_t result, uint64_t now_ns,
                    int32_t *os_error)
{
    struct op *op = &store->ops[index];

    *os_error = result < 0 ? (int32_t)-result : 0;
    if (is_dead(store, op))
        return false;
    if (result == -EAGAIN || result == -EINTR) {
        store->submit_after_ns = now_ns + RETRY_NS;
        send_again(store, index);
        return true;
    }
    if (result < 0 || op->kind == OP_FLUSH)
        return false;
    if ((uint64_t)result >= op->bytes_left) {
        advance(store, op, op->bytes_left);
        return false;
    }
    /* Direct I/O goes on at an aligned place. */
    uint64_t moved = (uint64_t)result / NOSA_IO_ALIGNMENT * NOSA_IO_ALIGNMENT;
    op->stalls = moved > 0 ? 0 : op->stalls + 1;
    if (result == 0 || op->stalls > STALLS_MAX) {
        *os_error = EIO;
        return false;
    }
    advance(store, op, moved);
    send_again(store, index);
    return true;
}

/* ---- what follows ---- */

/* The write of an extent has failed; its place is FREE or DIRTY afterwards. */
static void fail_write(struct nosa_extent_store *store, int32_t extent, enum extent_state to,
                       int32_t os_error)
{
    int32_t request = store->extents[extent].request;

    store->counters.failed_writes++;
    nosa_extent_unname(store, extent);
    store->extents[extent].request = NOSA_INDEX_NONE;
    nosa_extent_move(store, extent, to);
    if (request != NOSA_INDEX_NONE) {
        store->requests[request].extent = NOSA_INDEX_NONE;
        nosa_extent_request_end(store, request, NOSA_EXTENT_IO_ERROR, os_error);
    }
}

static void payload_done(struct nosa_extent_store *store, int32_t request, int32_t extent,
                         int32_t os_error)
{
    struct request *self = &store->requests[request];

    if (os_error == 0 && !self->ended && !self->cancelled) {
        nosa_extent_move(store, extent, EXTENT_FILLED);
    } else {
        store->counters.failed_writes += !self->ended && !self->cancelled;
        nosa_extent_unname(store, extent);
        store->extents[extent].request = NOSA_INDEX_NONE;
        self->extent = NOSA_INDEX_NONE;
        nosa_extent_move(store, extent, EXTENT_FREE);
    }
    nosa_extent_request_op_done(store, request, os_error);
}

static void published(struct nosa_extent_store *store, int32_t extent)
{
    struct extent *self = &store->extents[extent];

    nosa_extent_move(store, extent, EXTENT_VALID);
    store->counters.writes++;
    if (self->request == NOSA_INDEX_NONE)
        return;
    struct request *request = &store->requests[self->request];
    request->handle =
        (struct nosa_extent_handle){.index = extent, .generation = store->ranks[extent].generation};
    request->extent = NOSA_INDEX_NONE;
    int32_t index = self->request;
    self->request = NOSA_INDEX_NONE;
    nosa_extent_request_end(store, index, NOSA_EXTENT_OK, 0);
}

static void cleared(struct nosa_extent_store *store, int32_t extent)
{
    int32_t request = store->extents[extent].request;

    nosa_extent_move(store, extent, EXTENT_FREE);
    if (request == NOSA_INDEX_NONE)
        return;
    nosa_extent_move(store, extent, EXTENT_FILLING);
    nosa_extent_request_enqueue(store, request, &store->fills);
}

static void clear_failed(struct nosa_extent_store *store, int32_t extent)
{
    nosa_extent_move(store, extent, EXTENT_DIRTY);
    store->clear_after_ns = nosa_extent_now(store) + CLEAR_RETRY_NS;
}

/* The first extent of `state` that the flush just done covers, or NONE. */
static int32_t first_flushed(const struct nosa_extent_store *store, enum extent_state state)
{
    int32_t extent = store->in_state[state].first;
    if (extent == NOSA_INDEX_NONE || store->extents[extent].flush_epoch >= store->flushes_issued)
        return NOSA_INDEX_NONE;
    return extent;
}

static void flush_done(struct nosa_extent_store *store, int32_t os_error)
{
    int32_t extent;

    store->flushing = false;
    store->counters.flushes += os_error == 0;
    while ((extent = first_flushed(store, EXTENT_FILLED)) != NOSA_INDEX_NONE) {
        if (os_error == 0)
            nosa_extent_move(store, extent, EXTENT_SEALED);
        else
            fail_write(store, extent, EXTENT_FREE, os_error);
    }
    while ((extent = first_flushed(store, EXTENT_PUBLISHED)) != NOSA_INDEX_NONE) {
        if (os_error == 0)
            published(store, extent);
        else
            fail_write(store, extent, EXTENT_DIRTY, os_error);
    }
    while ((extent = first_flushed(store, EXTENT_CLEARED)) != NOSA_INDEX_NONE) {
        if (os_error == 0)
            cleared(store, extent);
        else
            clear_failed(store, extent);
    }
}

static void op_done(struct nosa_extent_store *store, int32_t index, int32_t os_error)
{
    struct op op = store->ops[index];

    drop_op(store, index);
    switch (op.kind) {
    case OP_READ: nosa_extent_request_op_done(store, op.request, os_error); break;
    case OP_PAYLOAD: payload_done(store, op.request, op.extent, os_error); break;
    case OP_HEADER:
        store->header_buffers_used &= ~(UINT64_C(1) << op.buffer);
        if (os_error == 0)
            nosa_extent_move(store, op.extent, EXTENT_PUBLISHED);
        else
            fail_write(store, op.extent, EXTENT_DIRTY, os_error);
        break;
    case OP_CLEAR:
        if (os_error == 0)
            nosa_extent_move(store, op.extent, EXTENT_CLEARED);
        else
            clear_failed(store, op.extent);
        break;
    case OP_FLUSH: flush_done(store, os_error); break;
    }
}

static void take_completions(struct nosa_extent_store *store,
                             const struct nosa_io_completion *completions, uint32_t n)
{
    uint64_t now_ns = nosa_extent_now(store);

    for (uint32_t i = 0; i < n; i++) {
        int32_t index = (int32_t)(completions[i].tag & UINT32_MAX);
        int64_t result = completions[i].result;
        NOSA_ASSERT(index < (int32_t)store->n_ops);
        struct op *op = &store->ops[index];
        NOSA_ASSERT(op->state == OP_AT_DEVICE && op->serial == completions[i].tag >> 32);
        count_at_device(store, op, -1u, now_ns);
        if (result > 0)
            *(op->kind == OP_READ ? &store->counters.read_bytes : &store->counters.written_bytes) +=
                (uint64_t)result;
        int32_t os_error;
        if (!goes_on(store, index, result, now_ns, &os_error))
            op_done(store, index, os_error);
    }
}

static void keep_device_at_work(struct nosa_extent_store *store)
{
    struct nosa_io_completion batch[REAP_BATCH];
    uint32_t n = REAP_BATCH;

    while (!store->reaping && n == REAP_BATCH) {
        n = store->io->method->reap(store->io, batch, REAP_BATCH, 0);
        take_completions(store, batch, n);
    }
    uint64_t now_ns = nosa_extent_now(store);
    nosa_extent_expire(store, now_ns);
    issue_flush(store);
    issue_headers(store);
    issue_clears(store, now_ns);
    issue_requests(store, now_ns);
    send_queued(store, now_ns);
}

/* Checksums are verified one read at a time, so that the device never waits for a batch of them. */
/* A write takes several turns, and an owner who computes in between may leave the store alone for
 * seconds at a time: deadlines are for the device, so that an absence counts as a second at most.
 */
static void excuse_absence(struct nosa_extent_store *store)
{
    uint64_t now_ns = nosa_extent_now(store), away_ns = now_ns - store->attended_ns;
    if (store->attended_ns > 0 && now_ns > store->attended_ns && away_ns > ABSENCE_NS)
        nosa_extent_put_off(store, away_ns - ABSENCE_NS);
    store->attended_ns = now_ns;
}

void nosa_extent_progress(struct nosa_extent_store *store)
{
    excuse_absence(store);
    do
        keep_device_at_work(store);
    while (nosa_extent_finish_read(store));
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* When something is due without the device: a deadline, or another try. */
static uint64_t next_due(const struct nosa_extent_store *store, uint64_t now_ns)
{
    uint64_t due_ns = UINT64_MAX;
    if (store->by_age.first != NOSA_INDEX_NONE)
        due_ns = store->requests[store->by_age.first].deadline_ns;
    if (store->queued.count > 0)
        due_ns = least(due_ns, store->submit_after_ns);
    if (store->in_state[EXTENT_DIRTY].count > 0 && store->clear_after_ns > now_ns)
        due_ns = least(due_ns, store->clear_after_ns);
    if (store->io->held_back)
        due_ns = least(due_ns, now_ns + RETRY_NS);
    return due_ns;
}

static void wait_for_reaper(struct nosa_extent_store *store, uint64_t wait_ns)
{
    uint64_t until_ns = nosa_monotonic_ns() + least(wait_ns, store->deadline_ns);
    struct timespec until = {.tv_sec = (time_t)(until_ns / NOSA_NS_PER_S),
                             .tv_nsec = (long)(until_ns % NOSA_NS_PER_S)};
    pthread_cond_timedwait(&store->changed, &store->mutex, &until);
}

void nosa_extent_wait(struct nosa_extent_store *store, uint64_t wait_ns)
{
    struct nosa_io_completion batch[REAP_BATCH];
    uint64_t now_ns = nosa_extent_now(store), due_ns = next_due(store, now_ns);

    wait_ns = least(wait_ns, due_ns > now_ns ? due_ns - now_ns : 0);
    /* No request that comes meanwhile is due earlier than this. */
    wait_ns = least(wait_ns, store->deadline_ns);
    if (wait_ns == 0)
        return;
    if (store->reaping) {
        wait_for_reaper(store, wait_ns);
        store->attended_ns = nosa_extent_now(store);
        return;
    }
    store->reaping = true;
    pthread_mutex_unlock(&store->mutex);
    uint32_t n = store->io->method->reap(store->io, batch, REAP_BATCH, wait_ns);
    pthread_mutex_lock(&store->mutex);
    store->reaping = false;
    store->attended_ns = nosa_extent_now(store);
    take_completions(store, batch, n);
    pthread_cond_broadcast(&store->changed);
}

void nosa_extent_settle(struct nosa_extent_store *store, uint64_t wait_ns)
{
    struct nosa_io_completion batch[REAP_BATCH];
    if (store->io->held_back) {
        store->io->method->submit(store->io, NULL, 0);
        wait_ns = least(wait_ns, RETRY_NS);
    }
    uint32_t n = store->io->method->reap(store->io, batch, REAP_BATCH, wait_ns);
    take_completions(store, batch, n);
}
