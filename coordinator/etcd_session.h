/*
 * What to do next with etcd: a pure state machine over time, so that it is tested without one.
 *
 *     no lease ─granted─> lease ─listed─> in step ─> writes, watch, lists now and then
 *     any ─failed─> a pause (between rounds over the endpoints), the lease is asked for first, then
 *                   everything is listed again
 *     lease ─lost─> no lease; what hung on it is written again
 *
 * In step means that the last list was complete and no call has failed since. One thread.
 */
#ifndef NOSA_COORDINATOR_ETCD_SESSION_H
#define NOSA_COORDINATOR_ETCD_SESSION_H

#include <stdbool.h>
#include <stdint.h>

enum nosa_etcd_step {
    NOSA_ETCD_WAIT = 0,
    NOSA_ETCD_GRANT = 1, /* a lease */
    NOSA_ETCD_KEEP_ALIVE = 2,
    NOSA_ETCD_LIST = 3,
    NOSA_ETCD_MARK = 4,  /* the store has no marker yet: make one */
    NOSA_ETCD_WRITE = 5, /* what is pending */
    NOSA_ETCD_WATCH = 6,
};

struct nosa_etcd_session {
    /* fixed after init */
    uint32_t endpoint_count;
    /* owned by the thread */
    int64_t lease; /* 0: none */
    uint64_t ttl_ns;
    uint64_t keep_due_ns;
    bool in_step;
    bool mark_wanted;
    bool marked; /* since the last list */
    bool watching;
    uint64_t watch_soonest_ns;
    uint64_t list_due_ns;
    uint64_t list_soonest_ns;
    uint64_t retry_ns;
    uint32_t failures; /* since the last list */
};

void nosa_etcd_session_init(struct nosa_etcd_session *session, uint32_t endpoint_count);

/* The next step; of WAIT, *until_ns is when to ask again at the latest. */
enum nosa_etcd_step nosa_etcd_session_next(const struct nosa_etcd_session *session, uint64_t now_ns,
                                           bool writes_pending, uint64_t *until_ns);

/* ---- what became of it ---- */

void nosa_etcd_session_granted(struct nosa_etcd_session *session, uint64_t now_ns, int64_t lease,
                               uint64_t ttl_ns);
/* `asked_ns`: before the call. */
void nosa_etcd_session_kept(struct nosa_etcd_session *session, uint64_t asked_ns, uint64_t ttl_ns);
/* The lease does not exist any more: another one follows, after the shortest pause. */
void nosa_etcd_session_lost(struct nosa_etcd_session *session, uint64_t now_ns);
/* Without a marker the list counts for nothing: MARK and LIST follow. False: the marker that was
 * made a moment ago is not there, which the caller treats as a failed call. */
bool nosa_etcd_session_listed(struct nosa_etcd_session *session, uint64_t now_ns, bool has_marker);
void nosa_etcd_session_marked(struct nosa_etcd_session *session);
void nosa_etcd_session_watching(struct nosa_etcd_session *session);
/* A call failed; whether every endpoint has failed since the last success. */
bool nosa_etcd_session_failed(struct nosa_etcd_session *session, uint64_t now_ns);

/* ---- what comes by itself ---- */

/* Something has changed: list soon. */
void nosa_etcd_session_hint(struct nosa_etcd_session *session);
/* The watch has ended; another one follows, after a while. */
void nosa_etcd_session_watch_ended(struct nosa_etcd_session *session, uint64_t now_ns);

#endif
