/*
 * The thread that keeps membership's book and etcd in step. etcd_session.c decides what is next;
 * here it is done, one call at a time, and said: one line when etcd is reached, one when it is
 * lost, one for each endpoint that fails in between.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "membership_internal.h"

void nosa_membership_etcd_hint(void *argument)
{
    struct nosa_membership *membership = argument;
    pthread_mutex_lock(&membership->mutex);
    membership->hinted = true;
    pthread_cond_broadcast(&membership->wake);
    pthread_mutex_unlock(&membership->mutex);
}

/* ---- metrics ---- */

enum nosa_status nosa_membership_etcd_metrics(struct nosa_membership *membership,
                                              struct nosa_metrics *metrics,
                                              struct nosa_error *error)
{
    struct nosa_membership_metrics *m = &membership->metrics;
    const struct {
        const char *name, *help;
        struct nosa_gauge **gauge;
        struct nosa_counter **counter;
    } rows[] = {
        {"nosa_etcd_up", "1 while this coordinator is in step with etcd.", &m->up, NULL},
        {"nosa_etcd_pending_writes", "Changes that etcd has not taken yet.", &m->pending, NULL},
        {"nosa_coordinators", "Coordinators that etcd names, this one included.", &m->coordinators,
         NULL},
        {"nosa_etcd_lease_losses_total", "Leases that ran out before they were renewed.", NULL,
         &m->lease_losses},
        {"nosa_etcd_failed_calls_total", "Calls to etcd that failed.", NULL, &m->failed_calls},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct nosa_metric_options options = {.name = rows[i].name, .help = rows[i].help};
        if (rows[i].gauge)
            NOSA_TRY(nosa_metrics_gauge(metrics, &options, rows[i].gauge, error));
        else
            NOSA_TRY(nosa_metrics_counter(metrics, &options, rows[i].counter, error));
    }
    return NOSA_OK;
}

/* ---- what is said ---- */

static void settle(struct nosa_membership *membership, bool up)
{
    pthread_mutex_lock(&membership->mutex);
    bool was_up = membership->up;
    membership->up = up;
    membership->settled = true;
    size_t coordinators = membership->book.peers.count + 1;
    size_t drains = membership->book.drains.count;
    pthread_cond_broadcast(&membership->wake);
    pthread_mutex_unlock(&membership->mutex);
    nosa_gauge_set(membership->metrics.up, up);
    nosa_gauge_set(membership->metrics.coordinators, (double)coordinators);
    if (!up)
        return;
    membership->said_away = false;
    membership->said_failures = 0;
    if (was_up)
        return;
    nosa_log(NOSA_LOG_INFO, "etcd",
             "%s: in step, lease %" PRIx64 ", %zu coordinator%s, %zu worker%s drained",
             nosa_etcd_client_endpoint(membership->client), (uint64_t)membership->session.lease,
             coordinators, coordinators == 1 ? "" : "s", drains, drains == 1 ? "" : "s");
}

static void lose_lease(struct nosa_membership *membership, const struct nosa_error *error)
{
    nosa_log(NOSA_LOG_WARN, "etcd", "%s: others took this coordinator for gone; taking a new lease",
             error->text);
    nosa_counter_add(membership->metrics.lease_losses, 1);
    nosa_etcd_session_lost(&membership->session, nosa_monotonic_ns());
    pthread_mutex_lock(&membership->mutex);
    nosa_membership_book_unlease(&membership->book);
    pthread_mutex_unlock(&membership->mutex);
}

/* Goes to the next endpoint; says each endpoint's failure once, and once that all have failed. */
static void fail(struct nosa_membership *membership, const struct nosa_error *error)
{
    bool all = nosa_etcd_session_failed(&membership->session, nosa_monotonic_ns());
    uint32_t count = nosa_etcd_client_endpoint_count(membership->client);
    nosa_counter_add(membership->metrics.failed_calls, 1);
    nosa_etcd_client_move_on(membership->client);
    if (all)
        settle(membership, false);
    if (all && !membership->said_away)
        nosa_log(NOSA_LOG_WARN, "etcd",
                 "unreachable: %.400s; requests go on, drains are kept here until it is back",
                 error->text);
    else if (!all && count > 1 && membership->said_failures < count)
        nosa_log(NOSA_LOG_WARN, "etcd", "%.400s; trying %s", error->text,
                 nosa_etcd_client_endpoint(membership->client));
    membership->said_away = membership->said_away || all;
    membership->said_failures++;
}

/* ---- steps ---- */

static enum nosa_status grant(struct nosa_membership *membership, struct nosa_error *error)
{
    int64_t lease = 0;
    uint32_t ttl_s = 0;
    NOSA_TRY(nosa_etcd_client_grant(membership->client, &lease, &ttl_s, error));
    nosa_etcd_session_granted(&membership->session, membership->asked_ns, lease,
                              ttl_s * NOSA_NS_PER_S);
    return NOSA_OK;
}

static enum nosa_status keep_alive(struct nosa_membership *membership, struct nosa_error *error)
{
    uint32_t ttl_s = 0;
    NOSA_TRY(
        nosa_etcd_client_keep_alive(membership->client, membership->session.lease, &ttl_s, error));
    nosa_etcd_session_kept(&membership->session, membership->asked_ns, ttl_s * NOSA_NS_PER_S);
    return NOSA_OK;
}

static enum nosa_status mark(struct nosa_membership *membership, struct nosa_error *error)
{
    uint64_t random[2] = {0};
    char value[33];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        random[0] = nosa_clock_wall_ns(nosa_clock_system());
    snprintf(value, sizeof value, "%016" PRIx64 "%016" PRIx64, random[0], random[1]);
    NOSA_TRY(nosa_etcd_client_mark(membership->client, value, error));
    nosa_etcd_session_marked(&membership->session);
    return NOSA_OK;
}

static void say_news(struct nosa_membership *membership, const struct nosa_membership_news *news,
                     uint64_t ignored)
{
    if (news->other_store)
        nosa_log(NOSA_LOG_WARN, "etcd",
                 "%s: has lost its data or is another store: %zu drains are written into it",
                 nosa_etcd_client_endpoint(membership->client), news->restored);
    if (ignored > 0 && ignored != membership->ignored)
        nosa_log(NOSA_LOG_WARN, "etcd", "%s: %" PRIu64 " keys below the prefix are ignored",
                 nosa_etcd_client_endpoint(membership->client), ignored);
    membership->ignored = ignored;
}

/* Takes a list over; whether a call should be counted as failed. */
static enum nosa_status take_list(struct nosa_membership *membership,
                                  struct nosa_membership_list *list, struct nosa_error *error)
{
    struct nosa_membership_news news = {0};
    bool has_marker = list->marker[0] != '\0';
    if (!nosa_etcd_session_listed(&membership->session, nosa_monotonic_ns(), has_marker))
        return nosa_error_set(error, NOSA_CORRUPT, "%s: does not keep what is written",
                              nosa_etcd_client_endpoint(membership->client));
    if (!has_marker)
        return NOSA_OK;
    pthread_mutex_lock(&membership->mutex);
    enum nosa_status status = nosa_membership_book_apply(&membership->book, list, &news);
    membership->version += news.drains;
    pthread_mutex_unlock(&membership->mutex);
    say_news(membership, &news, list->ignored);
    if (news.drains && membership->changed)
        membership->changed(membership->context);
    settle(membership, true);
    return status == NOSA_OK ? status : nosa_error_set(error, status, "no memory for etcd's keys");
}

static enum nosa_status list(struct nosa_membership *membership, struct nosa_error *error)
{
    struct nosa_membership_list keys = {.id = membership->id};
    enum nosa_status status =
        nosa_etcd_client_list(membership->client, &keys, &membership->revision, error);
    if (status == NOSA_OK)
        status = take_list(membership, &keys, error);
    nosa_membership_list_free(&keys);
    return status;
}

static enum nosa_status write_pending(struct nosa_membership *membership, struct nosa_error *error)
{
    struct nosa_membership_write *writes = calloc(NOSA_ETCD_WRITES_MAX, sizeof *writes);
    if (!writes)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a write to etcd");
    pthread_mutex_lock(&membership->mutex);
    size_t count = nosa_membership_book_take(&membership->book, writes, NOSA_ETCD_WRITES_MAX);
    pthread_mutex_unlock(&membership->mutex);
    enum nosa_status status =
        nosa_etcd_client_write(membership->client, writes, count, membership->session.lease, error);
    if (status == NOSA_OK) {
        pthread_mutex_lock(&membership->mutex);
        nosa_membership_book_wrote(&membership->book, writes, count);
        pthread_mutex_unlock(&membership->mutex);
    }
    free(writes);
    return status;
}

static enum nosa_status watch(struct nosa_membership *membership, struct nosa_error *error)
{
    NOSA_TRY(nosa_etcd_client_watch(membership->client, membership->revision, error));
    nosa_etcd_session_watching(&membership->session);
    return NOSA_OK;
}

static void take_step(struct nosa_membership *membership, enum nosa_etcd_step step)
{
    struct nosa_error error = {0};
    enum nosa_status status = NOSA_OK;
    membership->asked_ns = nosa_monotonic_ns();
    switch (step) {
    case NOSA_ETCD_GRANT: status = grant(membership, &error); break;
    case NOSA_ETCD_KEEP_ALIVE: status = keep_alive(membership, &error); break;
    case NOSA_ETCD_LIST: status = list(membership, &error); break;
    case NOSA_ETCD_MARK: status = mark(membership, &error); break;
    case NOSA_ETCD_WRITE: status = write_pending(membership, &error); break;
    case NOSA_ETCD_WATCH: status = watch(membership, &error); break;
    case NOSA_ETCD_WAIT: break;
    }
    if (status == NOSA_NOT_FOUND)
        lose_lease(membership, &error);
    else if (status != NOSA_OK)
        fail(membership, &error);
}

/* ---- the thread ---- */

/* Under the mutex: what has come by itself. */
static void read_hints(struct nosa_membership *membership)
{
    if (!membership->hinted)
        return;
    membership->hinted = false;
    nosa_etcd_session_hint(&membership->session);
    if (!nosa_etcd_client_is_watching(membership->client))
        nosa_etcd_session_watch_ended(&membership->session, nosa_monotonic_ns());
}

static void wait_until(struct nosa_membership *membership, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / NOSA_NS_PER_S),
                             .tv_nsec = (long)(until_ns % NOSA_NS_PER_S)};
    pthread_cond_timedwait(&membership->wake, &membership->mutex, &until);
}

/* Others are to see at once that this coordinator is gone; if that fails the lease runs out. */
static void leave(struct nosa_membership *membership)
{
    if (membership->session.lease != 0 && membership->up)
        (void)nosa_etcd_client_revoke(membership->client, membership->session.lease, NULL);
}

void *nosa_membership_etcd_run(void *argument)
{
    struct nosa_membership *membership = argument;
    pthread_mutex_lock(&membership->mutex);
    while (!membership->stopping) {
        uint64_t until_ns;
        read_hints(membership);
        size_t pending = nosa_membership_book_pending(&membership->book);
        enum nosa_etcd_step step = nosa_etcd_session_next(&membership->session, nosa_monotonic_ns(),
                                                          pending > 0, &until_ns);
        nosa_gauge_set(membership->metrics.pending, (double)pending);
        if (step == NOSA_ETCD_WAIT) {
            wait_until(membership, until_ns);
            continue;
        }
        pthread_mutex_unlock(&membership->mutex);
        take_step(membership, step);
        pthread_mutex_lock(&membership->mutex);
    }
    pthread_mutex_unlock(&membership->mutex);
    leave(membership);
    return NULL;
}
