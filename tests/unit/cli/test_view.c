#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "view.h"

/* A worker whose every text is odd. */
static void make_worker(Nosa__V1__WorkerInfo *worker, Nosa__V1__TierUsage *tier,
                        Nosa__V1__TierUsage **tiers)
{
    static char id[] = "w\033[2Jx", name[] = "host", reason[] = "loading \"it\"";
    nosa__v1__worker_info__init(worker);
    nosa__v1__tier_usage__init(tier);
    tier->tier = name;
    tier->used_bytes = 1;
    tier->total_bytes = UINT64_MAX;
    tiers[0] = tier;
    worker->id = id;
    worker->reason = reason;
    worker->state = NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING;
    worker->incarnation = UINT64_MAX;
    worker->decode_tokens_per_s = 1e308 * 10;
    worker->n_tiers = 1;
    worker->tiers = tiers;
}

static void test_workers_json_holds_any_number(void **state)
{
    (void)state;
    Nosa__V1__WorkerInfo worker, *workers[1] = {&worker};
    Nosa__V1__TierUsage tier, *tiers[1];
    Nosa__V1__WorkersResponse response = NOSA__V1__WORKERS_RESPONSE__INIT;
    make_worker(&worker, &tier, tiers);
    response.n_workers = 1;
    response.workers = workers;
    json_t *array = nosa_view_workers_json(&response);
    assert_non_null(array);
    char *text = json_dumps(array, JSON_COMPACT);
    assert_non_null(strstr(text, "\"id\":\"w\\u001B[2Jx\""));
    assert_non_null(strstr(text, "\"state\":\"STARTING\""));
    assert_non_null(strstr(text, "\"incarnation\":\"18446744073709551615\""));
    assert_non_null(strstr(text, "\"total_bytes\":\"18446744073709551615\""));
    assert_non_null(strstr(text, "\"decode_tokens_per_s\":0.0"));
    free(text);
    json_decref(array);
}

static void test_workers_text_cannot_steer(void **state)
{
    (void)state;
    Nosa__V1__WorkerInfo worker, *workers[1] = {&worker};
    Nosa__V1__TierUsage tier, *tiers[1];
    Nosa__V1__WorkersResponse response = NOSA__V1__WORKERS_RESPONSE__INIT;
    struct nosa_buffer out = {0};
    make_worker(&worker, &tier, tiers);
    nosa_view_workers_text(&response, 80, UINT32_MAX, &out);
    assert_string_equal(out.data, "no workers\n");
    nosa_buffer_reset(&out);
    response.n_workers = 1;
    response.workers = workers;
    nosa_view_workers_text(&response, UINT32_MAX, UINT32_MAX, &out);
    assert_null(strchr(out.data, '\033'));
    assert_non_null(strstr(out.data, "w?[2Jx"));
    assert_non_null(strstr(out.data, "loading \"it\""));
    nosa_buffer_free(&out);
}

static void test_requests_and_status_json(void **state)
{
    (void)state;
    Nosa__V1__RequestsResponse requests = NOSA__V1__REQUESTS_RESPONSE__INIT;
    Nosa__V1__RequestInfo info = NOSA__V1__REQUEST_INFO__INIT, *infos[1] = {&info};
    Nosa__V1__StatusResponse status = NOSA__V1__STATUS_RESPONSE__INIT;
    requests.n_requests = 1;
    requests.requests = infos;
    info.state = (Nosa__V1__RequestState)99;
    info.priority = INT32_MIN;
    info.tokens = UINT32_MAX;
    json_t *array = nosa_view_requests_json(&requests);
    assert_non_null(array);
    const json_t *object = json_array_get(array, 0);
    assert_string_equal(json_string_value(json_object_get(object, "state")), "UNSPECIFIED");
    assert_int_equal(json_integer_value(json_object_get(object, "priority")), INT32_MIN);
    assert_int_equal(json_integer_value(json_object_get(object, "tokens")), UINT32_MAX);
    json_decref(array);
    json_t *empty = nosa_view_status_json(&status, "a:1");
    assert_non_null(empty);
    assert_int_equal(json_object_size(empty), 24);
    assert_string_equal(json_string_value(json_object_get(empty, "server")), "a:1");
    json_decref(empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_workers_json_holds_any_number),
        cmocka_unit_test(test_workers_text_cannot_steer),
        cmocka_unit_test(test_requests_and_status_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
