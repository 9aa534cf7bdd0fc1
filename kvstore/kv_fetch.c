/*
 * Records that a cold step reads from NVMe into slots (struct nosa_kv_moves): a layer's selection
 * is known as a whole, so the records of a block's KV heads, which are neighbours on the device,
 * are one read, and the reads of many blocks are at the device side by side.
 *
 * They go through staging buffers, which a device that does not answer may keep: slots are used
 * again at once. The ranks' threads call this side by side; a thread that finds every buffer in use
 * waits for another's reads, unless all are held by the device.
 */
#include <stdlib.h>
#include <string.h>

#include "kv_store_internal.h"

#define STAGING_BYTES_MAX ((size_t)16 << 20) /* of all buffers, beyond the least number of them */

/* ---- staging -------------------------------------------------------------------------------- */

enum nosa_status nosa_kv_stagings_create(struct nosa_kv_nvme *nvme,
                                         const struct nosa_kv_geometry *geometry,
                                         struct nosa_error *error)
{
    size_t heads = (size_t)geometry->n_kv_heads, record_bytes = nosa_kv_record_bytes(geometry);
    size_t n = STAGING_BYTES_MAX / (heads * record_bytes);

    n = n < NOSA_KV_STAGINGS_MIN ? NOSA_KV_STAGINGS_MIN : n;
    nvme->n_stagings = n < NOSA_KV_STAGINGS ? (int32_t)n : NOSA_KV_STAGINGS;
    n = (size_t)nvme->n_stagings;
    nvme->staging_memory = aligned_alloc(NOSA_IO_ALIGNMENT, n * heads * record_bytes);
    nvme->staging_records = calloc(n * heads, sizeof *nvme->staging_records);
    nvme->staging_buffers = calloc(n * heads, sizeof *nvme->staging_buffers);
    if (!nvme->staging_memory || !nvme->staging_records || !nvme->staging_buffers)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                              "KV store: no memory for %zu reads of %zu bytes", n,
                              heads * record_bytes);
    for (size_t i = 0; i < n * heads; i++)
        nvme->staging_buffers[i] = nvme->staging_memory + i * record_bytes;
    return NOSA_OK;
}

void nosa_kv_stagings_destroy(struct nosa_kv_nvme *nvme)
{
    bool held = false; /* a device may still write there */
    for (int32_t i = 0; i < nvme->n_stagings; i++)
        held |= nvme->staging_state[i] != NOSA_KV_STAGING_FREE;
    if (!held)
        free(nvme->staging_memory);
    free(nvme->staging_buffers);
    free(nvme->staging_records);
}

void nosa_kv_staging_move(struct nosa_kv_nvme *nvme, int32_t staging, enum nosa_kv_staging to)
{
    pthread_mutex_lock(&nvme->staging_mutex);
    NOSA_ASSERT(nvme->staging_state[staging] != NOSA_KV_STAGING_FREE);
    nvme->staging_state[staging] = to;
    pthread_cond_broadcast(&nvme->staging_changed);
    pthread_mutex_unlock(&nvme->staging_mutex);
}

/* Whether threads use buffers, so that one will be free; else the device holds all of them. */
static bool any_used(const struct nosa_kv_nvme *nvme)
{
    for (int32_t i = 0; i < nvme->n_stagings; i++)
        if (nvme->staging_state[i] == NOSA_KV_STAGING_USED)
            return true;
    return false;
}

/* A free buffer, or -1; with `wait` only when the device holds on to all. */
static int32_t take_staging(struct nosa_kv_nvme *nvme, bool wait)
{
    int32_t taken = -1;

    pthread_mutex_lock(&nvme->staging_mutex);
    for (;;) {
        for (int32_t i = 0; i < nvme->n_stagings && taken < 0; i++)
            if (nvme->staging_state[i] == NOSA_KV_STAGING_FREE)
                taken = i;
        if (taken >= 0 || !wait || !any_used(nvme))
            break;
        pthread_cond_wait(&nvme->staging_changed, &nvme->staging_mutex);
    }
    if (taken >= 0)
        nvme->staging_state[taken] = NOSA_KV_STAGING_USED;
    pthread_mutex_unlock(&nvme->staging_mutex);
    return taken;
}

/* ---- order ---------------------------------------------------------------------------------- */

/* By block, then KV head; all are of one layer. */
static bool goes_before(const struct nosa_kv_absent *a, const struct nosa_kv_absent *b)
{
    return a->block != b->block ? a->block < b->block : a->kv_head < b->kv_head;
}

static void sift_down(struct nosa_kv_absent *absent, int32_t n, int32_t at)
{
    for (int32_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && goes_before(&absent[child], &absent[child + 1]))
            child++;
        if (!goes_before(&absent[at], &absent[child]))
            return;
        struct nosa_kv_absent swapped = absent[at];
        absent[at] = absent[child];
        absent[child] = swapped;
        at = child;
    }
}

/* Heap sort: takes no memory. */
static void sort(struct nosa_kv_absent *absent, int32_t n)
{
    for (int32_t i = n / 2 - 1; i >= 0; i--)
        sift_down(absent, n, i);
    for (int32_t left = n - 1; left > 0; left--) {
        struct nosa_kv_absent last = absent[left];
        absent[left] = absent[0];
        absent[0] = last;
        sift_down(absent, left, 0);
    }
}

/* ---- reads ---------------------------------------------------------------------------------- */

/* Reads that are under way together. */
struct round {
    struct nosa_kv_nvme *nvme;
    const struct nosa_kv_view *view;
    const struct nosa_kv_absent *absent;
    int32_t n;
    struct nosa_extent_read read[NOSA_KV_STAGINGS];
    int32_t first[NOSA_KV_STAGINGS]; /* of its records, in `absent` */
    int32_t staging[NOSA_KV_STAGINGS];
};

/* End of the entries from `first` on that are of its block. */
static int32_t block_end(const struct nosa_kv_absent *absent, int32_t first, int32_t n)
{
    int32_t end = first + 1;
    while (end < n && absent[end].block == absent[first].block)
        end++;
    return end;
}

static void add_read(struct round *round, int32_t first, int32_t end, int32_t staging)
{
    struct nosa_kv_nvme *nvme = round->nvme;
    size_t place = (size_t)staging * (size_t)round->view->image_kv_heads;
    uint32_t *records = nvme->staging_records + place;

    for (int32_t i = first; i < end; i++)
        records[i - first] = (uint32_t)nosa_kv_image_index(round->view, round->absent[i].layer,
                                                           round->absent[i].kv_head);
    round->first[round->n] = first;
    round->staging[round->n] = staging;
    round->read[round->n++] =
        (struct nosa_extent_read){.token = NOSA_KV_STAGING_TOKEN + (uint64_t)staging,
                                  .handle = nvme->handle[round->absent[first].block],
                                  .records = records,
                                  .buffers = nvme->staging_buffers + place,
                                  .n = (uint32_t)(end - first)};
}

/* Slots that could not be filled hold zeros: what a step computes from them is thrown away. */
static void lose(const struct round *round, int32_t first, int32_t end)
{
    size_t record_bytes = nosa_kv_record_bytes(&round->view->geometry);
    for (int32_t i = first; i < end; i++)
        memset(round->view->records + (size_t)round->absent[i].slot * record_bytes, 0,
               record_bytes);
    __atomic_store_n(&round->nvme->lost[round->absent[first].block], true, __ATOMIC_RELAXED);
}

static void end_read(const struct round *round, int32_t index)
{
    const struct nosa_extent_read *read = &round->read[index];
    size_t record_bytes = nosa_kv_record_bytes(&round->view->geometry);
    int32_t first = round->first[index];
    bool held = read->status == NOSA_OK && read->completion.buffer_held;

    if (read->status == NOSA_OK && read->completion.result == NOSA_EXTENT_OK)
        for (int32_t i = 0; i < (int32_t)read->n; i++)
            memcpy(round->view->records + (size_t)round->absent[first + i].slot * record_bytes,
                   read->buffers[i], record_bytes);
    else
        lose(round, first, first + (int32_t)read->n);
    nosa_kv_staging_move(round->nvme, round->staging[index],
                         held ? NOSA_KV_STAGING_HELD : NOSA_KV_STAGING_FREE);
}

/* Reads entries from `first` on, as many as find buffers; returns where the next are. */
static int32_t run_round(struct nosa_kv_nvme *nvme, const struct nosa_kv_view *view,
                         const struct nosa_kv_absent *absent, int32_t first, int32_t n)
{
    struct round round = {.nvme = nvme, .view = view, .absent = absent};
    int32_t staging;

    while (first < n && round.n < nvme->n_stagings &&
           (staging = take_staging(nvme, round.n == 0)) >= 0) {
        int32_t end = block_end(absent, first, n);
        add_read(&round, first, end, staging);
        first = end;
    }
    if (round.n == 0) {
        int32_t end = block_end(absent, first, n);
        lose(&round, first, end);
        return end;
    }
    nosa_extent_store_read_batch_wait(nvme->extents, round.read, (uint32_t)round.n);
    for (int32_t i = 0; i < round.n; i++)
        end_read(&round, i);
    return first;
}

void nosa_kv_store_fetch(struct nosa_kv_store *store, const struct nosa_kv_view *view,
                         struct nosa_kv_absent *absent, int32_t n_absent)
{
    struct nosa_kv_nvme *nvme = &store->tiers.nvme;

    if (n_absent == 0)
        return;
    uint64_t start_ns = nosa_clock_monotonic_ns(nvme->clock);
    sort(absent, n_absent);
    for (int32_t at = 0; at < n_absent;)
        at = run_round(nvme, view, absent, at, n_absent);
    __atomic_fetch_add(&nvme->stall_ns, nosa_clock_monotonic_ns(nvme->clock) - start_ns,
                       __ATOMIC_RELAXED);
}
