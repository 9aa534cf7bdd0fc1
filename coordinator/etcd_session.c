#include "etcd_session.h"

#include "base/clock.h"
#include "base/status.h"

#define LIST_EVERY_NS  (5 * NOSA_NS_PER_S)    /* without any hint */
#define LIST_APART_NS  (100 * NOSA_NS_PER_MS) /* at least, however many hints come */
#define WATCH_APART_NS (1 * NOSA_NS_PER_S)
#define PAUSE_MIN_NS   (100 * NOSA_NS_PER_MS)
#define PAUSE_MAX_NS   (2 * NOSA_NS_PER_S)
#define KEEPS_PER_TTL  3

void nosa_etcd_session_init(struct nosa_etcd_session *session, uint32_t endpoint_count)
{
    NOSA_ASSERT(endpoint_count > 0);
    *session = (struct nosa_etcd_session){.endpoint_count = endpoint_count};
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

enum nosa_etcd_step nosa_etcd_session_next(const struct nosa_etcd_session *session, uint64_t now_ns,
                                           bool writes_pending, uint64_t *until_ns)
{
    *until_ns = session->retry_ns;
    if (now_ns < session->retry_ns)
        return NOSA_ETCD_WAIT;
    if (session->lease == 0)
        return NOSA_ETCD_GRANT;
    if (now_ns >= session->keep_due_ns)
        return NOSA_ETCD_KEEP_ALIVE;
    if (session->mark_wanted)
        return NOSA_ETCD_MARK;
    if (!session->in_step)
        return NOSA_ETCD_LIST;
    if (writes_pending)
        return NOSA_ETCD_WRITE;
    if (!session->watching && now_ns >= session->watch_soonest_ns)
        return NOSA_ETCD_WATCH;
    if (now_ns >= session->list_due_ns)
        return NOSA_ETCD_LIST;
    *until_ns = earlier(session->keep_due_ns, session->list_due_ns);
    if (!session->watching)
        *until_ns = earlier(*until_ns, session->watch_soonest_ns);
    return NOSA_ETCD_WAIT;
}

void nosa_etcd_session_granted(struct nosa_etcd_session *session, uint64_t now_ns, int64_t lease,
                               uint64_t ttl_ns)
{
    session->lease = lease;
    nosa_etcd_session_kept(session, now_ns, ttl_ns);
}

void nosa_etcd_session_kept(struct nosa_etcd_session *session, uint64_t asked_ns, uint64_t ttl_ns)
{
    session->ttl_ns = ttl_ns;
    session->keep_due_ns = asked_ns + ttl_ns / KEEPS_PER_TTL;
}

void nosa_etcd_session_lost(struct nosa_etcd_session *session, uint64_t now_ns)
{
    session->lease = 0;
    session->in_step = false; /* the store may have forgotten more than the lease */
    session->retry_ns = now_ns + PAUSE_MIN_NS;
}

bool nosa_etcd_session_listed(struct nosa_etcd_session *session, uint64_t now_ns, bool has_marker)
{
    if (!has_marker && session->marked)
        return false;
    session->failures = 0;
    session->marked = false;
    session->mark_wanted = !has_marker;
    session->in_step = has_marker;
    session->list_soonest_ns = now_ns + LIST_APART_NS;
    session->list_due_ns = now_ns + LIST_EVERY_NS;
    return true;
}

void nosa_etcd_session_marked(struct nosa_etcd_session *session)
{
    session->mark_wanted = false;
    session->marked = true;
}

void nosa_etcd_session_watching(struct nosa_etcd_session *session)
{
    session->watching = true;
}

bool nosa_etcd_session_failed(struct nosa_etcd_session *session, uint64_t now_ns)
{
    session->failures++;
    session->in_step = false;
    session->mark_wanted = session->marked = false;
    session->watching = false;
    session->watch_soonest_ns = 0;
    session->keep_due_ns = 0; /* whether the lease lives is the first question to the next one */
    if (session->failures % session->endpoint_count != 0)
        return session->failures > session->endpoint_count;
    uint32_t rounds = session->failures / session->endpoint_count;
    uint64_t pause_ns = rounds > 5 ? PAUSE_MAX_NS : PAUSE_MIN_NS << (rounds - 1);
    session->retry_ns = now_ns + earlier(pause_ns, PAUSE_MAX_NS);
    return true;
}

void nosa_etcd_session_hint(struct nosa_etcd_session *session)
{
    session->list_due_ns = earlier(session->list_due_ns, session->list_soonest_ns);
}

void nosa_etcd_session_watch_ended(struct nosa_etcd_session *session, uint64_t now_ns)
{
    if (!session->watching)
        return;
    session->watching = false;
    session->watch_soonest_ns = now_ns + WATCH_APART_NS;
    nosa_etcd_session_hint(session);
}
