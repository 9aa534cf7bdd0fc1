/*
 * Many streams that are paused, resumed, cancelled, aborted, timed out and refused at random, from
 * several threads: each ends exactly once, in order, whole when it says OK, and nothing is left.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pthread.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rpc/message.h"
#include "rpc_fixture.h"

#define STREAMS 1500

struct one {
    struct nosa_rpc_stream *stream; /* a reference of the test's */
    atomic_bool started;
    atomic_uint next;
    atomic_uint ends;
    atomic_bool spoilt; /* a message out of order, or after the end */
    uint32_t count;     /* asked for; 0: without end */
    uint32_t pause_every;
    enum nosa_rpc_code code;
};

struct storm {
    struct fixture fixture;
    struct one streams[STREAMS];
    atomic_bool over;
};

/* A generator of its own per thread (xorshift), so that a seed gives the same choices. */
static uint32_t draw(uint32_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

static bool on_message(void *context, struct nosa_rpc_stream *stream,
                       const ProtobufCMessage *message)
{
    struct one *one = context;
    (void)stream;
    uint32_t index = atomic_fetch_add(&one->next, 1);
    if (((const count_response *)message)->index != index || atomic_load(&one->ends) > 0)
        atomic_store(&one->spoilt, true);
    return !one->pause_every || (index + 1) % one->pause_every != 0;
}

static void on_end(void *context, struct nosa_rpc_stream *stream,
                   const struct nosa_rpc_outcome *outcome)
{
    struct one *one = context;
    (void)stream;
    one->code = outcome->code;
    atomic_fetch_add(&one->ends, 1);
}

static const struct nosa_rpc_stream_events events = {on_message, on_end};

/* Resumes and cancels whatever it meets. */
static void *disturb(void *argument)
{
    struct storm *storm = argument;
    uint32_t seed = 12345;
    while (!atomic_load(&storm->over)) {
        for (int i = 0; i < 50; i++) {
            struct one *one = &storm->streams[draw(&seed) % STREAMS];
            if (!atomic_load(&one->started))
                continue;
            nosa_rpc_stream_resume(one->stream);
            if (draw(&seed) % 8 == 0)
                nosa_rpc_stream_cancel(one->stream);
        }
        usleep(500);
    }
    return NULL;
}

static void abort_all(struct storm *storm)
{
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    ProtobufCMessage *message;
    say.code = NOSA_RPC_ABORTED;
    struct nosa_rpc_request request = say_call(&say, 20000);
    request.path = "/nosa.test.v1.Echo/Abort";
    (void)nosa_rpc_unary(storm->fixture.channel, &request, &message, NULL);
    nosa_message_free(message);
}

static void start_all(struct storm *storm)
{
    uint32_t seed = 777;
    for (int i = 0; i < STREAMS; i++) {
        struct one *one = &storm->streams[i];
        count_request message = NOSA__TEST__V1__COUNT_REQUEST__INIT;
        one->count = draw(&seed) % 4 == 0 ? 0 : draw(&seed) % 300 + 1;
        one->pause_every = draw(&seed) % 3 == 0 ? draw(&seed) % 50 + 1 : 0;
        message.count = one->count;
        message.payload_bytes = draw(&seed) % 2000;
        message.interval_us = draw(&seed) % 3 == 0 ? draw(&seed) % 3000 : 0;
        struct nosa_rpc_request request =
            count_call(&message, draw(&seed) % 4 == 0 ? draw(&seed) % 200 + 1 : 0);
        assert_int_equal(nosa_rpc_stream_start(storm->fixture.channel, &request, &events, one,
                                               &one->stream, NULL),
                         NOSA_OK);
        atomic_store(&one->started, true);
        if (i % 400 == 399)
            abort_all(storm);
        if (i % 20 == 19)
            usleep(2000);
    }
}

static void wait_for_all(struct storm *storm)
{
    for (int i = 0; i < STREAMS; i++) {
        struct one *one = &storm->streams[i];
        for (int tries = 0; tries < 60000 && atomic_load(&one->ends) == 0; tries++) {
            nosa_rpc_stream_resume(one->stream);
            if (one->count == 0)
                nosa_rpc_stream_cancel(one->stream);
            usleep(1000);
        }
        assert_int_equal(atomic_load(&one->ends), 1);
    }
}

static void test_storm(void **state)
{
    (void)state;
    static struct storm storm;
    pthread_t thread;
    const struct nosa_rpc_server_options options = {
        .send_queue_max = 8, .calls_max = 600, .ping_interval_min_ms = 100};
    int seen[NOSA_RPC_CODE_COUNT] = {0};
    fixture_open(&storm.fixture, &options);
    assert_int_equal(pthread_create(&thread, NULL, disturb, &storm), 0);
    start_all(&storm);
    wait_for_all(&storm);
    atomic_store(&storm.over, true);
    pthread_join(thread, NULL);
    for (int i = 0; i < STREAMS; i++) {
        struct one *one = &storm.streams[i];
        assert_false(atomic_load(&one->spoilt));
        if (one->code == NOSA_RPC_OK)
            assert_int_equal(atomic_load(&one->next), one->count);
        seen[one->code]++;
        nosa_rpc_stream_release(one->stream);
    }
    assert_true(seen[NOSA_RPC_OK] > 10 && seen[NOSA_RPC_CANCELLED] > 10);
    assert_true(seen[NOSA_RPC_UNAVAILABLE] == 0);
    assert_true(nosa_rpc_server_shutdown(storm.fixture.server, 20000));
    assert_int_equal(nosa_rpc_server_call_count(storm.fixture.server), 0);
    fixture_close(&storm.fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_storm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
