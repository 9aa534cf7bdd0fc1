#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "registry.h"

#define READY    NOSA__V1__WORKER_STATE__WORKER_STATE_READY
#define DRAINING NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING
#define LOST     NOSA__V1__WORKER_STATE__WORKER_STATE_LOST
#define EPOCH    77

struct fixture {
    struct nosa_manual_clock clock;
    struct nosa_registry *registry;
    Nosa__Cluster__V1__JoinRequest join;
    Nosa__Cluster__V1__ModelCard card;
    uint8_t hash[32], files[32];
    uint64_t sequence;
};

static void open_fixture(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    nosa_manual_clock_init(&f->clock, NOSA_NS_PER_S, 0);
    const struct nosa_registry_options options = {.clock = &f->clock.clock,
                                                  .worker_timeout_ms = 3000,
                                                  .forget_ms = 60000,
                                                  .prefix_hashes_max = 1000,
                                                  .epoch = EPOCH};
    assert_int_equal(nosa_registry_create(&f->registry, &options, NULL), NOSA_OK);
    nosa__cluster__v1__join_request__init(&f->join);
    nosa__cluster__v1__model_card__init(&f->card);
    f->card.id = "demo";
    f->card.model_hash = (ProtobufCBinaryData){32, f->hash};
    f->card.files_hash = (ProtobufCBinaryData){32, f->files};
    f->card.vocab_size = 100;
    f->card.max_context_tokens = 1000;
    f->card.block_tokens = 16;
    f->join.protocol = NOSA_CLUSTER_PROTOCOL;
    f->join.model = &f->card;
    f->join.state = READY;
    f->join.fingerprint = "a";
}

static void close_fixture(struct fixture *f)
{
    nosa_registry_free(f->registry);
    nosa_manual_clock_destroy(&f->clock);
}

static enum nosa_rpc_code join(struct fixture *f, char *id, uint64_t incarnation, char *address)
{
    Nosa__Cluster__V1__JoinResponse response = NOSA__CLUSTER__V1__JOIN_RESPONSE__INIT;
    struct nosa_error error = {0};
    f->join.worker_id = id;
    f->join.incarnation = incarnation;
    f->join.address = address;
    return nosa_registry_join(f->registry, &f->join, &response, &error);
}

static enum nosa_rpc_code beat(struct fixture *f, char *id, uint64_t incarnation,
                               Nosa__Cluster__V1__PrefixDelta *delta, bool *known)
{
    Nosa__Cluster__V1__HeartbeatRequest request = NOSA__CLUSTER__V1__HEARTBEAT_REQUEST__INIT;
    Nosa__Cluster__V1__HeartbeatResponse response = NOSA__CLUSTER__V1__HEARTBEAT_RESPONSE__INIT;
    struct nosa_error error = {0};
    request.worker_id = id;
    request.incarnation = incarnation;
    request.coordinator_epoch = EPOCH;
    request.sequence = ++f->sequence;
    request.state = READY;
    request.prefixes = delta;
    enum nosa_rpc_code code = nosa_registry_heartbeat(f->registry, &request, &response, &error);
    if (known)
        *known = response.prefixes_known;
    return code;
}

/* The next event; fetches are answered at once. */
static enum nosa_registry_event next(struct fixture *f)
{
    struct nosa_worker *worker;
    uint64_t timeout_ms;
    enum nosa_registry_event event = nosa_registry_next_event(f->registry, &worker, &timeout_ms);
    if (event == NOSA_REGISTRY_FETCH)
        nosa_registry_model_ready(f->registry, worker->model, NULL);
    nosa_worker_release(worker);
    return event;
}

static Nosa__V1__WorkerState state_of(struct fixture *f, const char *id)
{
    struct nosa_worker_view *views;
    size_t count;
    Nosa__V1__WorkerState state = 0;
    assert_int_equal(nosa_registry_list(f->registry, &views, &count, NULL), NOSA_OK);
    for (size_t i = 0; i < count; i++)
        if (strcmp(views[i].worker->id, id) == 0)
            state = views[i].state;
    nosa_worker_views_free(views, count);
    return state;
}

static void test_join_two_lives(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f, "w"), READY);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(join(&f, "w", 2, "h:2"), NOSA_RPC_ALREADY_EXISTS);
    assert_int_equal(join(&f, "w", 2, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_LOST);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(beat(&f, "w", 1, NULL, NULL), NOSA_RPC_ABORTED);
    assert_int_equal(beat(&f, "w", 2, NULL, NULL), NOSA_RPC_OK);
    assert_int_equal(beat(&f, "other", 2, NULL, NULL), NOSA_RPC_NOT_FOUND);
    f.hash[0] = 1;
    assert_int_equal(join(&f, "v", 3, "h:3"), NOSA_RPC_FAILED_PRECONDITION);
    f.join.protocol = 2;
    assert_int_equal(join(&f, "v", 3, "h:3"), NOSA_RPC_FAILED_PRECONDITION);
    close_fixture(&f);
}

/* A worker that loads its model: a name, no model that others could collide with or ask for. */
static void test_join_starting_knows_a_name_alone(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_model *model;
    struct nosa_error error = {0};
    open_fixture(&f);
    f.card.model_hash.len = f.card.files_hash.len = 0;
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_INVALID_ARGUMENT); /* it is READY */
    f.join.state = NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING;
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(join(&f, "v", 2, "h:2"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING); /* nothing to fetch */
    assert_int_equal(state_of(&f, "w"), NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING);
    assert_int_equal(nosa_registry_find_model(f.registry, "demo", &model, &error),
                     NOSA_UNAVAILABLE);
    assert_non_null(strstr(error.text, "being loaded"));
    f.card.model_hash.len = f.card.files_hash.len = 32;
    f.join.state = READY;
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_LOST); /* its first life, with no streams */
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    assert_int_equal(state_of(&f, "w"), READY);
    f.hash[0] = 1; /* v turns out to have another model */
    assert_int_equal(join(&f, "v", 2, "h:2"), NOSA_RPC_FAILED_PRECONDITION);
    assert_int_equal(nosa_registry_find_model(f.registry, "", &model, NULL), NOSA_OK);
    nosa_model_release(model);
    close_fixture(&f);
}

static void test_next_event_leave_is_no_death(void **state)
{
    (void)state;
    struct fixture f;
    Nosa__Cluster__V1__LeaveRequest leave = NOSA__CLUSTER__V1__LEAVE_REQUEST__INIT;
    leave.worker_id = "w";
    leave.incarnation = 1;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    assert_int_equal(nosa_registry_leave(f.registry, &leave, NULL), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_LEFT);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    close_fixture(&f);
}

static void test_next_event_silence(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    nosa_manual_clock_advance(&f.clock, 2900 * NOSA_NS_PER_MS);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(beat(&f, "w", 1, NULL, NULL), NOSA_RPC_OK);
    nosa_manual_clock_advance(&f.clock, 3001 * NOSA_NS_PER_MS);
    assert_int_equal(next(&f), NOSA_REGISTRY_LOST);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f, "w"), LOST);
    assert_int_equal(beat(&f, "w", 1, NULL, NULL), NOSA_RPC_OK);
    assert_int_equal(state_of(&f, "w"), READY);
    nosa_manual_clock_advance(&f.clock, 3001 * NOSA_NS_PER_MS);
    assert_int_equal(next(&f), NOSA_REGISTRY_LOST);
    /* Lost, so another life may take the id anywhere; and what stays lost is forgotten. */
    assert_int_equal(join(&f, "w", 2, "h:9"), NOSA_RPC_OK);
    nosa_manual_clock_advance(&f.clock, 70000 * NOSA_NS_PER_MS);
    while (next(&f) != NOSA_REGISTRY_NOTHING)
        continue;
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f, "w"), 0);
    close_fixture(&f);
}

static void test_drain_events(void **state)
{
    (void)state;
    struct fixture f;
    Nosa__V1__WorkerState drained;
    struct nosa_worker *worker;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    assert_int_equal(nosa_registry_drain(f.registry, "x", 1000, &drained, NULL), NOSA_NOT_FOUND);
    assert_int_equal(nosa_registry_drain(f.registry, "w", 1000, &drained, NULL), NOSA_OK);
    assert_int_equal(drained, DRAINING);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    nosa_manual_clock_advance(&f.clock, 1000 * NOSA_NS_PER_MS);
    assert_int_equal(next(&f), NOSA_REGISTRY_DRAIN_OVER);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(nosa_registry_resume(f.registry, "w", &worker, NULL), NOSA_OK);
    nosa_registry_resumed(f.registry, worker, READY);
    nosa_worker_release(worker);
    assert_int_equal(state_of(&f, "w"), READY);
    close_fixture(&f);
}

static void test_pick_prefix_and_fingerprint(void **state)
{
    (void)state;
    struct fixture f;
    bool known;
    uint64_t hashes[20], excluded[1] = {2};
    open_fixture(&f);
    f.card.max_context_tokens = 100000;
    assert_int_equal(join(&f, "w1", 1, "h:1"), NOSA_RPC_OK);
    f.join.fingerprint = "b";
    assert_int_equal(join(&f, "w2", 2, "h:2"), NOSA_RPC_OK);
    while (next(&f) != NOSA_REGISTRY_NOTHING)
        continue;
    for (uint64_t i = 0; i < 20; i++)
        hashes[i] = 1000 + i;
    Nosa__Cluster__V1__PrefixDelta delta = NOSA__CLUSTER__V1__PREFIX_DELTA__INIT;
    Nosa__Cluster__V1__TierPrefixes tier = NOSA__CLUSTER__V1__TIER_PREFIXES__INIT;
    Nosa__Cluster__V1__TierPrefixes *tiers[] = {&tier};
    tier.tier = NOSA__CLUSTER__V1__TIER__TIER_HOST;
    tier.added = hashes;
    tier.n_added = 20;
    delta.tiers = tiers;
    delta.n_tiers = 1;
    assert_int_equal(beat(&f, "w2", 2, &delta, &known), NOSA_RPC_OK);
    assert_false(known);
    delta.reset = true;
    assert_int_equal(beat(&f, "w2", 2, &delta, &known), NOSA_RPC_OK);
    assert_true(known);
    struct nosa_model *model;
    assert_int_equal(nosa_registry_find_model(f.registry, "", &model, NULL), NOSA_OK);
    struct nosa_pick pick = {.model = model, .hashes = hashes, .hash_count = 20, .tokens = 325};
    assert_int_equal(nosa_registry_pick(f.registry, &pick, NULL), NOSA_OK);
    assert_string_equal(pick.worker->id, "w2");
    assert_int_equal(pick.held_tokens, 320);
    nosa_registry_stream_ended(f.registry, pick.worker, &pick.load);
    nosa_worker_release(pick.worker);
    pick.fingerprint = "a"; /* an equal one first, whatever it holds */
    assert_int_equal(nosa_registry_pick(f.registry, &pick, NULL), NOSA_OK);
    assert_string_equal(pick.worker->id, "w1");
    nosa_registry_suspect(f.registry, pick.worker);
    nosa_registry_stream_ended(f.registry, pick.worker, &pick.load);
    nosa_worker_release(pick.worker);
    assert_int_equal(nosa_registry_pick(f.registry, &pick, NULL), NOSA_OK);
    assert_string_equal(pick.worker->id, "w2");
    nosa_registry_stream_ended(f.registry, pick.worker, &pick.load);
    nosa_worker_release(pick.worker);
    pick.excluded = excluded;
    pick.excluded_count = 1;
    assert_int_equal(nosa_registry_pick(f.registry, &pick, NULL), NOSA_UNAVAILABLE);
    nosa_model_release(model);
    close_fixture(&f);
}

/* READY alone is no room: places in batch and queue are, and streams that were sent count. */
static void test_has_room_counts_places(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_model *model;
    struct nosa_pick picks[3];
    Nosa__Cluster__V1__Capacity capacity = NOSA__CLUSTER__V1__CAPACITY__INIT;
    open_fixture(&f);
    assert_false(nosa_registry_has_room(f.registry));
    capacity.batch_max = 2;
    capacity.queue_max = 1;
    f.join.capacity = &capacity;
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    while (next(&f) != NOSA_REGISTRY_NOTHING)
        continue;
    assert_int_equal(nosa_registry_find_model(f.registry, "", &model, NULL), NOSA_OK);
    for (size_t i = 0; i < 3; i++) {
        assert_true(nosa_registry_has_room(f.registry));
        picks[i] = (struct nosa_pick){.model = model, .tokens = 10};
        assert_int_equal(nosa_registry_pick(f.registry, &picks[i], NULL), NOSA_OK);
    }
    assert_false(nosa_registry_has_room(f.registry));
    assert_true(nosa_registry_is_ready(f.registry));
    for (size_t i = 0; i < 3; i++) {
        nosa_registry_stream_ended(f.registry, picks[i].worker, &picks[i].load);
        nosa_worker_release(picks[i].worker);
        assert_true(nosa_registry_has_room(f.registry));
    }
    nosa_model_release(model);
    close_fixture(&f);
}

/* Joins with one field of the card changed; the text of the refusal. */
static const char *refusal_of(struct fixture *f, char *id)
{
    static struct nosa_error error;
    Nosa__Cluster__V1__JoinResponse response = NOSA__CLUSTER__V1__JOIN_RESPONSE__INIT;
    error = (struct nosa_error){0};
    f->join.worker_id = id;
    f->join.incarnation = 9;
    f->join.address = "h:9";
    assert_int_equal(nosa_registry_join(f->registry, &f->join, &response, &error),
                     NOSA_RPC_FAILED_PRECONDITION);
    return error.text;
}

static void test_join_one_name_one_model(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    f.hash[31] ^= 1;
    assert_non_null(strstr(refusal_of(&f, "v"), "model.model_hash: worker 'w'"));
    f.hash[31] ^= 1;
    f.files[0] ^= 1;
    assert_non_null(strstr(refusal_of(&f, "v"), "model.files_hash: worker 'w'"));
    f.files[0] ^= 1;
    f.card.attention = "nosa";
    assert_non_null(strstr(refusal_of(&f, "v"), "model.attention: worker 'w'"));
    f.card.attention = "";
    f.card.max_context_tokens = 999;
    assert_non_null(strstr(refusal_of(&f, "v"), "model.max_context_tokens: worker 'w'"));
    /* Another start of the only one that serves it may bring another model. */
    assert_int_equal(join(&f, "w", 2, "h:1"), NOSA_RPC_OK);
    f.card.max_context_tokens = 1000;
    assert_non_null(strstr(refusal_of(&f, "v"), "model.max_context_tokens: worker 'w'"));
    nosa_manual_clock_advance(&f.clock, 3001 * NOSA_NS_PER_MS);
    while (next(&f) != NOSA_REGISTRY_NOTHING)
        continue;
    assert_int_equal(join(&f, "v", 3, "h:3"), NOSA_RPC_OK);
    close_fixture(&f);
}

static void test_next_event_fetch_asks_others(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_worker *worker;
    uint64_t timeout_ms;
    const char *asked[4];
    open_fixture(&f);
    assert_int_equal(join(&f, "a", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(join(&f, "b", 2, "h:2"), NOSA_RPC_OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(nosa_registry_next_event(f.registry, &worker, &timeout_ms),
                         NOSA_REGISTRY_FETCH);
        asked[i] = strcmp(worker->id, "a") == 0 ? "a" : "b";
        nosa_registry_model_failed(f.registry, worker->model, "no route");
        nosa_worker_release(worker);
        nosa_manual_clock_advance(&f.clock, 2000 * NOSA_NS_PER_MS);
        assert_int_equal(beat(&f, "a", 1, NULL, NULL), NOSA_RPC_OK);
        assert_int_equal(beat(&f, "b", 2, NULL, NULL), NOSA_RPC_OK);
    }
    assert_string_not_equal(asked[0], asked[1]);
    assert_string_not_equal(asked[2], asked[3]);
    struct nosa_worker_view *views;
    size_t count;
    assert_int_equal(nosa_registry_list(f.registry, &views, &count, NULL), NOSA_OK);
    assert_string_equal(views[0].reason, "its model's files cannot be had: no route");
    nosa_worker_views_free(views, count);
    close_fixture(&f);
}

/* A pick's worker, whose connection breaks. */
static void break_connection(struct fixture *f, struct nosa_model *model, bool after_a_start)
{
    struct nosa_pick pick = {.model = model, .tokens = 1};
    assert_int_equal(nosa_registry_pick(f->registry, &pick, NULL), NOSA_OK);
    if (after_a_start)
        nosa_registry_proven(f->registry, pick.worker);
    nosa_registry_suspect(f->registry, pick.worker);
    nosa_registry_stream_ended(f->registry, pick.worker, &pick.load);
    nosa_worker_release(pick.worker);
}

static void test_suspect_is_held_longer_each_time(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_model *model;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    assert_int_equal(nosa_registry_find_model(f.registry, "", &model, NULL), NOSA_OK);
    for (int i = 0; i < 2; i++) { /* after streams that started there one heartbeat is enough */
        break_connection(&f, model, true);
        assert_int_equal(state_of(&f, "w"), LOST);
        assert_int_equal(beat(&f, "w", 1, NULL, NULL), NOSA_RPC_OK);
        assert_int_equal(state_of(&f, "w"), READY);
    }
    uint64_t hold_ms = 500;
    for (int i = 0; i < 4; i++, hold_ms *= 2) {
        break_connection(&f, model, false);
        for (uint64_t ms = 100; ms < hold_ms; ms += 100) {
            nosa_manual_clock_advance(&f.clock, 100 * NOSA_NS_PER_MS);
            assert_int_equal(beat(&f, "w", 1, NULL, NULL), NOSA_RPC_OK);
            assert_int_equal(state_of(&f, "w"), LOST);
        }
        nosa_manual_clock_advance(&f.clock, 100 * NOSA_NS_PER_MS);
        assert_int_equal(beat(&f, "w", 1, NULL, NULL), NOSA_RPC_OK);
        assert_int_equal(state_of(&f, "w"), READY);
    }
    nosa_model_release(model);
    close_fixture(&f);
}

static void test_stood_still_is_no_silence(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    assert_int_equal(join(&f, "w", 1, "h:1"), NOSA_RPC_OK);
    assert_int_equal(next(&f), NOSA_REGISTRY_FETCH);
    nosa_manual_clock_advance(&f.clock, 1000 * NOSA_NS_PER_MS);
    nosa_manual_clock_advance(&f.clock, 60000 * NOSA_NS_PER_MS);
    nosa_registry_stood_still(f.registry, 60000 * NOSA_NS_PER_MS);
    assert_int_equal(next(&f), NOSA_REGISTRY_NOTHING);
    assert_int_equal(state_of(&f, "w"), READY);
    nosa_manual_clock_advance(&f.clock, 2001 * NOSA_NS_PER_MS);
    assert_int_equal(next(&f), NOSA_REGISTRY_LOST);
    close_fixture(&f);
}

static void tell_kv(struct fixture *f, char *id, uint64_t incarnation, uint64_t hits)
{
    Nosa__Cluster__V1__KvTotals kv = NOSA__CLUSTER__V1__KV_TOTALS__INIT;
    Nosa__Cluster__V1__Load load = NOSA__CLUSTER__V1__LOAD__INIT;
    kv.gpu_hits = hits;
    kv.corrupt_blocks = 1;
    load.kv = &kv;
    f->join.load = &load;
    assert_int_equal(join(f, id, incarnation, id), NOSA_RPC_OK);
    f->join.load = NULL;
}

static void test_kv_sums_lives(void **state)
{
    (void)state;
    struct fixture f;
    struct nosa_kv_totals totals;
    double usage[NOSA_REGISTRY_TIERS_MAX];
    open_fixture(&f);
    tell_kv(&f, "a:1", 1, 100);
    tell_kv(&f, "b:1", 2, 10);
    tell_kv(&f, "a:1", 1, 130); /* the same life: what it grew by */
    tell_kv(&f, "a:1", 3, 7);   /* the next life begins at 0 */
    nosa_registry_kv(f.registry, &totals, usage);
    assert_int_equal(totals.hits[0], 147);
    assert_int_equal(totals.corrupt_blocks, 3);
    assert_true(usage[0] == 0);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join_two_lives),
        cmocka_unit_test(test_next_event_leave_is_no_death),
        cmocka_unit_test(test_next_event_silence),
        cmocka_unit_test(test_drain_events),
        cmocka_unit_test(test_pick_prefix_and_fingerprint),
        cmocka_unit_test(test_has_room_counts_places),
        cmocka_unit_test(test_join_one_name_one_model),
        cmocka_unit_test(test_join_starting_knows_a_name_alone),
        cmocka_unit_test(test_next_event_fetch_asks_others),
        cmocka_unit_test(test_suspect_is_held_longer_each_time),
        cmocka_unit_test(test_stood_still_is_no_silence),
        cmocka_unit_test(test_kv_sums_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
