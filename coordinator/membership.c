#include "membership_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"

/* ---- life ---- */

static void init(struct nosa_membership *membership, const struct nosa_membership_options *options)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&membership->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&membership->mutex, NULL);
    snprintf(membership->id, sizeof membership->id, "%s", options->id);
    membership->changed = options->changed;
    membership->context = options->context;
    nosa_membership_book_init(&membership->book, options->id, options->address);
    if (!options->etcd)
        nosa_membership_book_settle(&membership->book);
}

static enum nosa_status start(struct nosa_membership *membership,
                              const struct nosa_membership_options *options,
                              struct nosa_error *error)
{
    NOSA_TRY(nosa_membership_etcd_metrics(membership, options->metrics, error));
    NOSA_TRY(nosa_etcd_client_create(&membership->client, options->runtime, options->etcd,
                                     nosa_membership_etcd_hint, membership, error));
    nosa_etcd_session_init(&membership->session,
                           nosa_etcd_client_endpoint_count(membership->client));
    if (pthread_create(&membership->thread, NULL, nosa_membership_etcd_run, membership) != 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "no thread could be started");
    membership->running = true;
    return NOSA_OK;
}

static void wait_for_list(struct nosa_membership *membership, uint32_t wait_ms)
{
    struct timespec until;
    int failed = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += wait_ms % 1000 * 1000000L;
    until.tv_sec += wait_ms / 1000 + until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&membership->mutex);
    while (!membership->settled && failed == 0)
        failed = pthread_cond_timedwait(&membership->wake, &membership->mutex, &until);
    bool settled = membership->settled;
    pthread_mutex_unlock(&membership->mutex);
    if (!settled)
        nosa_log(NOSA_LOG_WARN, "etcd", "no answer within %.1f s: starting without it",
                 wait_ms / 1000.0);
}

enum nosa_status nosa_membership_create(struct nosa_membership **out,
                                        const struct nosa_membership_options *options,
                                        struct nosa_error *error)
{
    struct nosa_membership *membership = calloc(1, sizeof *membership);
    *out = NULL;
    if (!membership)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for membership");
    init(membership, options);
    enum nosa_status status = options->etcd ? start(membership, options, error) : NOSA_OK;
    if (status != NOSA_OK) {
        nosa_membership_free(membership);
        return status;
    }
    if (options->etcd)
        wait_for_list(membership, options->start_wait_ms);
    *out = membership;
    return NOSA_OK;
}

void nosa_membership_free(struct nosa_membership *membership)
{
    if (!membership)
        return;
    if (membership->running) {
        pthread_mutex_lock(&membership->mutex);
        membership->stopping = true;
        pthread_cond_broadcast(&membership->wake);
        pthread_mutex_unlock(&membership->mutex);
        pthread_join(membership->thread, NULL);
    }
    nosa_etcd_client_free(membership->client);
    nosa_membership_book_free(&membership->book);
    pthread_cond_destroy(&membership->wake);
    pthread_mutex_destroy(&membership->mutex);
    free(membership);
}

/* ---- drains ---- */

static void write_note(const struct nosa_membership *membership, char *note, size_t size)
{
    time_t now = (time_t)(nosa_clock_wall_ns(nosa_clock_system()) / NOSA_NS_PER_S);
    struct tm parts;
    char text[32] = "";
    if (gmtime_r(&now, &parts))
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    snprintf(note, size, "by an operator through coordinator %.40s at %s", membership->id, text);
}

/* After a change of the book, under the mutex: to be written, or (memory) done. */
static void changed_here(struct nosa_membership *membership)
{
    if (!membership->client)
        nosa_membership_book_settle(&membership->book);
    pthread_cond_broadcast(&membership->wake);
}

enum nosa_status nosa_membership_drain(struct nosa_membership *membership, const char *id,
                                       bool drained, struct nosa_error *error)
{
    char note[NOSA_MEMBERSHIP_TEXT_MAX];
    NOSA_ASSERT(strlen(id) < NOSA_MEMBERSHIP_ID_MAX);
    write_note(membership, note, sizeof note);
    pthread_mutex_lock(&membership->mutex);
    enum nosa_status status = nosa_membership_book_drain(&membership->book, id, drained, note);
    membership->version++;
    changed_here(membership);
    pthread_mutex_unlock(&membership->mutex);
    if (status == NOSA_OK)
        return NOSA_OK;
    return nosa_error_set(error, status,
                          status == NOSA_RESOURCE_EXHAUSTED
                              ? "worker_id: %d ids are drained already"
                              : "no memory for a drain (of %d)",
                          NOSA_MEMBERSHIP_DRAINS_MAX);
}

bool nosa_membership_is_drained(struct nosa_membership *membership, const char *id)
{
    pthread_mutex_lock(&membership->mutex);
    bool drained = nosa_membership_book_is_drained(&membership->book, id);
    pthread_mutex_unlock(&membership->mutex);
    return drained;
}

uint64_t nosa_membership_version(struct nosa_membership *membership)
{
    pthread_mutex_lock(&membership->mutex);
    uint64_t version = membership->version;
    pthread_mutex_unlock(&membership->mutex);
    return version;
}

/* ---- workers and coordinators ---- */

enum nosa_status nosa_membership_have_workers(struct nosa_membership *membership,
                                              const char *const *ids, const char *const *addresses,
                                              size_t count)
{
    if (!membership->client)
        return NOSA_OK;
    pthread_mutex_lock(&membership->mutex);
    enum nosa_status status = nosa_membership_book_have(&membership->book, ids, addresses, count);
    if (nosa_membership_book_is_pending(&membership->book))
        changed_here(membership);
    pthread_mutex_unlock(&membership->mutex);
    return status;
}

bool nosa_membership_others_have(struct nosa_membership *membership, const char *id)
{
    pthread_mutex_lock(&membership->mutex);
    bool have = nosa_name_map_find(&membership->book.others, id) != NULL;
    pthread_mutex_unlock(&membership->mutex);
    return have;
}

void nosa_membership_peers(struct nosa_membership *membership, struct nosa_membership_peers *peers)
{
    peers->count = 0;
    if (!membership->client)
        return;
    pthread_mutex_lock(&membership->mutex);
    const struct nosa_name_map *map = &membership->book.peers;
    for (size_t i = 0; i < map->count && peers->count < NOSA_MEMBERSHIP_LIST_MAX; i++) {
        char *text = peers->texts[peers->count];
        if (!map->names[i].text[0])
            continue;
        snprintf(text, NOSA_MEMBERSHIP_TEXT_MAX, "%s", map->names[i].text);
        peers->addresses[peers->count++] = text;
    }
    pthread_mutex_unlock(&membership->mutex);
}

const char *nosa_membership_name(struct nosa_membership *membership)
{
    if (!membership->client)
        return "memory";
    pthread_mutex_lock(&membership->mutex);
    bool up = membership->up;
    pthread_mutex_unlock(&membership->mutex);
    return up ? "etcd" : "etcd: unreachable";
}
