#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "registry.h"

#define STARTING NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING
#define READY    NOSA__V1__WORKER_STATE__WORKER_STATE_READY
#define DRAINING NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING
#define DRAINED  NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED
#define EPOCH    77
#define TIMEOUT  5000

struct fixture {
    struct nosa_manual_clock clock;
    struct nosa_registry *registry;
    bool drained; /* what membership says of any id */
    uint64_t sequence;
};

static bool is_drained(void *context, const char *id)
{
    assert_string_equal(id, "w");
    return ((struct fixture *)context)->drained;
}

static void open_fixture(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    nosa_manual_clock_init(&f->clock, NOSA_NS_PER_S, 0);
    const struct nosa_registry_options options = {
        .clock = &f->clock.clock,
        .worker_timeout_ms = 3000,
        .forget_ms = 60000,
        .prefix_hashes_max = 1000,
        .epoch = EPOCH,
        .link_context = f,
        .is_drained = is_drained,
        .drain_timeout_ms = TIMEOUT,
    };
    assert_int_equal(nosa_registry_create(&f->registry, &options, NULL), NOSA_OK);
}

static void close_fixture(struct fixture *f)
{
    nosa_registry_free(f->registry);
    nosa_manual_clock_destroy(&f->clock);
}

/* Joins; whether it was told to drain. */
static bool join(struct fixture *f, uint64_t incarnation)
{
    static uint8_t hash[32];
    Nosa__Cluster__V1__JoinRequest request = NOSA__CLUSTER__V1__JOIN_REQUEST__INIT;
    Nosa__Cluster__V1__ModelCard card = NOSA__CLUSTER__V1__MODEL_CARD__INIT;
    Nosa__Cluster__V1__JoinResponse response = NOSA__CLUSTER__V1__JOIN_RESPONSE__INIT;
    card.id = "demo";
    card.model_hash = card.files_hash = (ProtobufCBinaryData){32, hash};
    card.vocab_size = 100;
    card.max_context_tokens = 1000;
    card.block_tokens = 16;
    card.attention = "full";
    request.protocol = NOSA_CLUSTER_PROTOCOL;
    request.worker_id = "w";
    request.incarnation = incarnation;
    request.address = "h:1";
    request.model = &card;
    request.state = READY;
    struct nosa_error error = {0};
    enum nosa_rpc_code code = nosa_registry_join(f->registry, &request, &response, &error);
    if (code != NOSA_RPC_OK)
        print_error("%s\n", error.text);
    assert_int_equal(code, NOSA_RPC_OK);
    return response.drain;
}

/* The next event but for fetches, which are answered, and for lives that are over. */
static enum nosa_registry_event next(struct fixture *f)
{
    enum nosa_registry_event event;
    do {
        struct nosa_worker *worker;
        uint64_t timeout_ms;
        event = nosa_registry_next_event(f->registry, &worker, &timeout_ms);
        if (event == NOSA_REGISTRY_FETCH)
            nosa_registry_model_ready(f->registry, worker->model, NULL);
        nosa_worker_release(worker);
    } while (event == NOSA_REGISTRY_FETCH || event == NOSA_REGISTRY_LOST);
    return event;
}

static void beat(struct fixture *f, uint64_t incarnation, Nosa__V1__WorkerState state)
{
    Nosa__Cluster__V1__HeartbeatRequest request = NOSA__CLUSTER__V1__HEARTBEAT_REQUEST__INIT;
    Nosa__Cluster__V1__HeartbeatResponse response = NOSA__CLUSTER__V1__HEARTBEAT_RESPONSE__INIT;
    request.worker_id = "w";
    request.incarnation = incarnation;
    request.coordinator_epoch = EPOCH;
    request.sequence = ++f->sequence;
    request.state = state;
    assert_int_equal(nosa_registry_heartbeat(f->registry, &request, &response, NULL), NOSA_RPC_OK);
}

static void pass(struct fixture *f, uint64_t ms)
{
    nosa_manual_clock_advance(&f->clock, ms * NOSA_NS_PER_MS);
}

static Nosa__V1__WorkerState state_of(struct fixture *f)
{
    struct nosa_worker_view *views;
    size_t count;
    assert_int_equal(nosa_registry_list(f->registry, &views, &count, NULL), NOSA_OK);
    assert_int_equal(count, 1);
    Nosa__V1__WorkerState state = views[0].state;
    nosa_worker_views_free(views, count);
    return state;
}

static void follow(struct fixture *f, bool drained)
{
    f->drained = drained;
    nosa_registry_follow(f->registry);
}

static void test_follow_drains_and_tells(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    assert_false(join(&f, 1));
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f), READY);
    follow(&f, true);
    assert_int_equal(state_of(&f), DRAINING);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    follow(&f, true);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    close_fixture(&f);
}

static void test_join_of_a_drained_id(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    f.drained = true;
    assert_true(join(&f, 1));
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING); /* the answer told it */
    assert_int_equal(state_of(&f), DRAINING);
    assert_true(join(&f, 2)); /* another life of the id */
    assert_int_equal(state_of(&f), DRAINING);
    f.drained = false; /* resumed while it was away */
    assert_false(join(&f, 3));
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f), READY);
    close_fixture(&f);
}

static void test_follow_resume_tells_only_whom_nobody_told(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    join(&f, 1);
    next(&f);
    follow(&f, true);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    beat(&f, 1, DRAINED);
    follow(&f, false);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    pass(&f, 500);
    beat(&f, 1, READY); /* whoever resumed it told it */
    pass(&f, 1000);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f), READY);
    follow(&f, true);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    beat(&f, 1, DRAINED);
    follow(&f, false);
    pass(&f, 999);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    pass(&f, 1);
    assert_int_equal(next(&f), NOSA_REGISTRY_RESUME); /* nobody did */
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    close_fixture(&f);
}

static void test_follow_drained_again_cancels_resume(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    join(&f, 1);
    next(&f);
    follow(&f, true);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    beat(&f, 1, DRAINED);
    follow(&f, false);
    follow(&f, true);
    pass(&f, 1500);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    close_fixture(&f);
}

static void test_heartbeat_ready_after_drained_was_resumed_elsewhere(void **state)
{
    (void)state;
    struct fixture f;
    Nosa__V1__WorkerState drained;
    open_fixture(&f);
    join(&f, 1);
    next(&f);
    assert_int_equal(nosa_registry_drain(f.registry, "w", TIMEOUT, &drained, NULL), NOSA_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    beat(&f, 1, READY); /* sent before it heard */
    assert_int_equal(state_of(&f), DRAINING);
    beat(&f, 1, DRAINING);
    beat(&f, 1, DRAINED);
    assert_int_equal(state_of(&f), DRAINED);
    beat(&f, 1, READY);
    assert_int_equal(state_of(&f), READY);
    pass(&f, 2000);
    beat(&f, 1, READY);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING); /* and is not drained again */
    close_fixture(&f);
}

/* It answered, and was resumed through another coordinator before it could report. */
static void test_heartbeat_ready_after_answer_was_resumed_elsewhere(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_worker *worker;
    uint64_t timeout_ms;
    open_fixture(&f);
    join(&f, 1);
    next(&f);
    follow(&f, true);
    assert_int_equal(nosa_registry_next_event(f.registry, &worker, &timeout_ms),
                     NOSA_REGISTRY_DRAIN);
    pass(&f, 700);
    nosa_registry_drain_answered(f.registry, worker);
    nosa_worker_release(worker);
    pass(&f, 500);
    beat(&f, 1, READY); /* this may have been under way */
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f), DRAINING);
    pass(&f, 600);
    beat(&f, 1, READY);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f), READY);
    follow(&f, true); /* the list still says so: no new wish */
    assert_int_equal(state_of(&f), READY);
    close_fixture(&f);
}

static void test_heartbeat_ready_for_long_is_told_again(void **state)
{
    (void)state;
    struct fixture f;
    Nosa__V1__WorkerState drained;
    open_fixture(&f);
    join(&f, 1);
    next(&f);
    assert_int_equal(nosa_registry_drain(f.registry, "w", TIMEOUT, &drained, NULL), NOSA_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    pass(&f, 1100);
    beat(&f, 1, READY);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    close_fixture(&f);
}

static void test_alive_and_has(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_worker **workers;
    size_t count;
    open_fixture(&f);
    join(&f, 1);
    assert_true(nosa_registry_has(f.registry, "w"));
    assert_false(nosa_registry_has(f.registry, "x"));
    assert_int_equal(nosa_registry_alive(f.registry, &workers, &count), NOSA_OK);
    assert_int_equal(count, 1);
    assert_string_equal(workers[0]->id, "w");
    nosa_worker_release(workers[0]);
    free(workers);
    pass(&f, 4000);
    next(&f);
    assert_int_equal(nosa_registry_alive(f.registry, &workers, &count), NOSA_OK);
    assert_int_equal(count, 0);
    free(workers);
    assert_true(nosa_registry_has(f.registry, "w"));
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_follow_drains_and_tells),
        cmocka_unit_test(test_join_of_a_drained_id),
        cmocka_unit_test(test_follow_resume_tells_only_whom_nobody_told),
        cmocka_unit_test(test_follow_drained_again_cancels_resume),
        cmocka_unit_test(test_heartbeat_ready_after_drained_was_resumed_elsewhere),
        cmocka_unit_test(test_heartbeat_ready_after_answer_was_resumed_elsewhere),
        cmocka_unit_test(test_heartbeat_ready_for_long_is_told_again),
        cmocka_unit_test(test_alive_and_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
