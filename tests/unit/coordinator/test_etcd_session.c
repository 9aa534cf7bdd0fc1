#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "etcd_session.h"

#define MS NOSA_NS_PER_MS
#define S  NOSA_NS_PER_S

static enum nosa_etcd_step next(const struct nosa_etcd_session *session, uint64_t now, bool pending)
{
    uint64_t until;
    return nosa_etcd_session_next(session, now, pending, &until);
}

/* With a lease of 9 s, in step, watching, at `now`. */
static struct nosa_etcd_session in_step(uint32_t endpoints, uint64_t now)
{
    struct nosa_etcd_session session;
    nosa_etcd_session_init(&session, endpoints);
    nosa_etcd_session_granted(&session, now, 7, 9 * S);
    assert_true(nosa_etcd_session_listed(&session, now, true));
    nosa_etcd_session_watching(&session);
    return session;
}

static void test_next_order(void **state)
{
    (void)state;
    struct nosa_etcd_session session;
    uint64_t until;
    nosa_etcd_session_init(&session, 1);
    assert_int_equal(next(&session, 10 * S, true), NOSA_ETCD_GRANT);
    nosa_etcd_session_granted(&session, 10 * S, 7, 9 * S);
    assert_int_equal(next(&session, 10 * S, true), NOSA_ETCD_LIST);
    assert_true(nosa_etcd_session_listed(&session, 10 * S, false));
    assert_int_equal(next(&session, 10 * S, true), NOSA_ETCD_MARK);
    nosa_etcd_session_marked(&session);
    assert_int_equal(next(&session, 10 * S, true), NOSA_ETCD_LIST);
    assert_true(nosa_etcd_session_listed(&session, 10 * S, true));
    assert_int_equal(next(&session, 10 * S, true), NOSA_ETCD_WRITE);
    assert_int_equal(next(&session, 10 * S, false), NOSA_ETCD_WATCH);
    nosa_etcd_session_watching(&session);
    assert_int_equal(nosa_etcd_session_next(&session, 10 * S, false, &until), NOSA_ETCD_WAIT);
    assert_int_equal(until, 13 * S);
    assert_int_equal(next(&session, 13 * S, true), NOSA_ETCD_KEEP_ALIVE);
    nosa_etcd_session_kept(&session, 13 * S, 9 * S);
    assert_int_equal(nosa_etcd_session_next(&session, 13 * S, false, &until), NOSA_ETCD_WAIT);
    assert_int_equal(until, 15 * S);
    assert_int_equal(next(&session, 15 * S, false), NOSA_ETCD_LIST);
}

static void test_hint_lists_soon_not_often(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(1, 10 * S);
    assert_int_equal(next(&session, 10 * S + 1, false), NOSA_ETCD_WAIT);
    nosa_etcd_session_hint(&session);
    assert_int_equal(next(&session, 10 * S + 99 * MS, false), NOSA_ETCD_WAIT);
    assert_int_equal(next(&session, 10 * S + 100 * MS, false), NOSA_ETCD_LIST);
    assert_true(nosa_etcd_session_listed(&session, 11 * S, true));
    assert_int_equal(next(&session, 11 * S + 100 * MS, false), NOSA_ETCD_WAIT);
}

static void test_lost_lease_is_taken_anew(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(1, 10 * S);
    nosa_etcd_session_lost(&session, 13 * S);
    assert_int_equal(next(&session, 13 * S, true), NOSA_ETCD_WAIT);
    assert_int_equal(next(&session, 13 * S + 100 * MS, true), NOSA_ETCD_GRANT);
    nosa_etcd_session_granted(&session, 14 * S, 8, 9 * S);
    assert_int_equal(next(&session, 14 * S, true), NOSA_ETCD_LIST);
}

static void test_failed_asks_the_lease_first(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(1, 10 * S);
    assert_true(nosa_etcd_session_failed(&session, 11 * S));
    assert_int_equal(next(&session, 11 * S, true), NOSA_ETCD_WAIT);
    assert_int_equal(next(&session, 11 * S + 100 * MS, true), NOSA_ETCD_KEEP_ALIVE);
    nosa_etcd_session_kept(&session, 11 * S + 100 * MS, 9 * S);
    assert_int_equal(next(&session, 11 * S + 100 * MS, true), NOSA_ETCD_LIST);
    assert_true(nosa_etcd_session_listed(&session, 11 * S + 100 * MS, true));
    assert_int_equal(next(&session, 11 * S + 100 * MS, false), NOSA_ETCD_WATCH);
}

static void test_failed_pauses_grow_to_a_bound(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(1, 10 * S);
    const uint64_t pauses[] = {100, 200, 400, 800, 1600, 2000, 2000};
    for (int i = 0; i < 7; i++) {
        uint64_t until;
        assert_true(nosa_etcd_session_failed(&session, 20 * S));
        assert_int_equal(nosa_etcd_session_next(&session, 20 * S, true, &until), NOSA_ETCD_WAIT);
        assert_int_equal(until, 20 * S + pauses[i] * MS);
    }
    for (int i = 0; i < 100; i++)
        assert_true(nosa_etcd_session_failed(&session, 20 * S));
    assert_int_equal(session.retry_ns, 22 * S);
    assert_true(nosa_etcd_session_listed(&session, 30 * S, true));
    assert_true(nosa_etcd_session_failed(&session, 40 * S));
    assert_int_equal(session.retry_ns, 40 * S + 100 * MS);
}

static void test_failed_tries_every_endpoint_at_once(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(3, 10 * S);
    assert_false(nosa_etcd_session_failed(&session, 11 * S));
    assert_int_equal(next(&session, 11 * S, false), NOSA_ETCD_KEEP_ALIVE);
    assert_false(nosa_etcd_session_failed(&session, 11 * S));
    assert_int_equal(next(&session, 11 * S, false), NOSA_ETCD_KEEP_ALIVE);
    assert_true(nosa_etcd_session_failed(&session, 11 * S));
    assert_int_equal(next(&session, 11 * S, false), NOSA_ETCD_WAIT);
    assert_int_equal(session.retry_ns, 11 * S + 100 * MS);
    assert_true(nosa_etcd_session_failed(&session, 12 * S)); /* the next round: still all */
}

static void test_listed_marker_not_kept(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(1, 10 * S);
    assert_true(nosa_etcd_session_listed(&session, 11 * S, false));
    nosa_etcd_session_marked(&session);
    assert_false(nosa_etcd_session_listed(&session, 11 * S, false));
    assert_true(nosa_etcd_session_failed(&session, 11 * S));
    assert_int_equal(next(&session, 11 * S, false), NOSA_ETCD_WAIT);
}

static void test_watch_ended_begins_again(void **state)
{
    (void)state;
    struct nosa_etcd_session session = in_step(1, 10 * S);
    nosa_etcd_session_watch_ended(&session, 10 * S + 500 * MS);
    assert_int_equal(next(&session, 10 * S + 500 * MS, false), NOSA_ETCD_LIST);
    assert_true(nosa_etcd_session_listed(&session, 10 * S + 500 * MS, true));
    assert_int_equal(next(&session, 10 * S + 600 * MS, false), NOSA_ETCD_WAIT);
    assert_int_equal(next(&session, 11 * S + 500 * MS, false), NOSA_ETCD_WATCH);
}

/* Whatever happens in whatever order: a step is never more than the longest pause away, and no two
 * failures are without one. */
static void test_next_random_events(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 200; seed++) {
        struct nosa_etcd_session session;
        uint64_t now = 10 * S, until;
        unsigned draw = seed;
        uint32_t endpoints = 1 + seed % 3, failures = 0;
        nosa_etcd_session_init(&session, endpoints);
        for (int i = 0; i < 500; i++) {
            int event = rand_r(&draw) % 8;
            bool pending = event == 1;
            enum nosa_etcd_step step = nosa_etcd_session_next(&session, now, pending, &until);
            if (step == NOSA_ETCD_WAIT) {
                assert_true(until > now && until <= now + 5 * S);
                now = until;
                failures = 0;
                continue;
            }
            if (event == 0) {
                nosa_etcd_session_failed(&session, now);
                assert_true(++failures <= endpoints);
            } else if (step == NOSA_ETCD_GRANT) {
                nosa_etcd_session_granted(&session, now, i + 1, (2 + event) * S);
            } else if (step == NOSA_ETCD_KEEP_ALIVE && event == 2) {
                nosa_etcd_session_lost(&session, now);
            } else if (step == NOSA_ETCD_KEEP_ALIVE) {
                nosa_etcd_session_kept(&session, now, 2 * S);
            } else if (step == NOSA_ETCD_LIST) {
                if (!nosa_etcd_session_listed(&session, now, event != 3))
                    nosa_etcd_session_failed(&session, now);
                failures = 0;
            } else if (step == NOSA_ETCD_MARK) {
                nosa_etcd_session_marked(&session);
            } else if (step == NOSA_ETCD_WATCH) {
                nosa_etcd_session_watching(&session);
            }
            now += (uint64_t)(rand_r(&draw) % 3) * MS;
            if (event == 4)
                nosa_etcd_session_hint(&session);
            if (event == 5)
                nosa_etcd_session_watch_ended(&session, now);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_next_order),
        cmocka_unit_test(test_hint_lists_soon_not_often),
        cmocka_unit_test(test_lost_lease_is_taken_anew),
        cmocka_unit_test(test_failed_asks_the_lease_first),
        cmocka_unit_test(test_failed_pauses_grow_to_a_bound),
        cmocka_unit_test(test_failed_tries_every_endpoint_at_once),
        cmocka_unit_test(test_listed_marker_not_kept),
        cmocka_unit_test(test_watch_ended_begins_again),
        cmocka_unit_test(test_next_random_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
