/* Servers that begin, end, refuse and vanish, seen from this process. */
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
#include <signal.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rpc/health.h"
#include "rpc/message.h"
#include "rpc/reflection.h"
#include "rpc_echo_proto_descriptor_set.h"
#include "rpc_fixture.h"
#include "support/alloc_fail.h"

static enum nosa_rpc_code say_hello(struct nosa_rpc_channel *channel, bool wait_for_ready,
                                    struct nosa_error *error)
{
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    say.text = "hello";
    struct nosa_rpc_request request = say_call(&say, 10000);
    request.wait_for_ready = wait_for_ready;
    enum nosa_rpc_code code = nosa_rpc_unary(channel, &request, &message, error);
    nosa_message_free(message);
    return code;
}

static uint64_t ms_since(uint64_t start_ns)
{
    return (nosa_monotonic_ns() - start_ns) / NOSA_NS_PER_MS;
}

/* ---- addresses ---- */

static void test_listen_port_in_use(void **state)
{
    (void)state;
    struct fixture fixture;
    struct nosa_rpc_server *second;
    const struct nosa_rpc_server_options options = {0};
    struct nosa_error error = {0};
    char text[128];
    fixture_open(&fixture, NULL);
    assert_int_equal(nosa_rpc_server_create(&second, fixture.runtime, &options, &error), NOSA_OK);
    assert_int_equal(nosa_rpc_server_listen(second, fixture.address, NULL, NULL, &error),
                     NOSA_IO_ERROR);
    snprintf(text, sizeof text, "cannot listen on %s: Address already in use", fixture.address);
    assert_string_equal(error.text, text);
    nosa_error_clear(&error);
    snprintf(text, sizeof text, ":%u", fixture.port);
    assert_int_equal(nosa_rpc_server_listen(second, text, NULL, NULL, &error), NOSA_IO_ERROR);
    assert_non_null(strstr(error.text, "Address already in use"));
    nosa_rpc_server_free(second);
    fixture_close(&fixture);
}

static void test_listen_bad_addresses(void **state)
{
    (void)state;
    static const struct {
        const char *address;
        const char *text;
    } cases[] = {
        {"nothing", "the port is missing"},
        {"127.0.0.1:99999", "the port is no number"},
        {"no-such-host.invalid:0", "no-such-host.invalid"},
        {"192.0.2.1:0", "cannot listen on 192.0.2.1:0: Cannot assign requested address"},
    };
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    const struct nosa_rpc_server_options options = {0};
    assert_int_equal(nosa_rpc_runtime_create(&runtime, 1, NULL), NOSA_OK);
    assert_int_equal(nosa_rpc_server_create(&server, runtime, &options, NULL), NOSA_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_error error = {0};
        assert_true(nosa_rpc_server_listen(server, cases[i].address, NULL, NULL, &error) !=
                    NOSA_OK);
        assert_non_null(strstr(error.text, cases[i].text));
    }
    nosa_rpc_server_free(server);
    nosa_rpc_runtime_free(runtime);
}

static void test_listen_every_address(void **state)
{
    (void)state;
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    const struct nosa_rpc_server_options options = {0};
    struct nosa_error error = {0};
    uint16_t port;
    assert_int_equal(nosa_rpc_runtime_create(&runtime, 1, NULL), NOSA_OK);
    assert_int_equal(nosa_rpc_server_create(&server, runtime, &options, NULL), NOSA_OK);
    assert_int_equal(nosa_rpc_server_listen(server, ":0", NULL, &port, &error), NOSA_OK);
    assert_true(port > 0);
    assert_int_equal(nosa_rpc_server_start(server, NULL), NOSA_OK);
    nosa_rpc_server_free(server);
    nosa_rpc_runtime_free(runtime);
}

static void test_channel_bad_addresses(void **state)
{
    (void)state;
    struct nosa_rpc_runtime *runtime;
    assert_int_equal(nosa_rpc_runtime_create(&runtime, 1, NULL), NOSA_OK);
    static const char *const bad[] = {"nothing", ":50051", "host:0", "host:x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nosa_rpc_channel *channel;
        struct nosa_error error = {0};
        const char *addresses[] = {"127.0.0.1:1", bad[i]};
        const struct nosa_rpc_channel_options options = {.addresses = addresses,
                                                         .address_count = 2};
        assert_int_equal(nosa_rpc_channel_create(&channel, runtime, &options, &error),
                         NOSA_INVALID_ARGUMENT);
        assert_null(channel);
        assert_non_null(strstr(error.text, bad[i]));
    }
    nosa_rpc_runtime_free(runtime);
}

/* ---- servers that are away ---- */

static void test_channel_fails_over(void **state)
{
    (void)state;
    struct fixture fixture;
    struct nosa_error error = {0};
    fixture_open(&fixture, NULL);
    struct nosa_rpc_channel *channel = fixture_channel(&fixture, "127.0.0.1:1", fixture.address);
    assert_string_equal(nosa_rpc_channel_address(channel), "127.0.0.1:1");
    assert_int_equal(say_hello(channel, false, &error), NOSA_RPC_OK);
    assert_string_equal(nosa_rpc_channel_address(channel), fixture.address);
    assert_int_equal(say_hello(channel, false, &error), NOSA_RPC_OK);
    nosa_rpc_channel_free(channel);
    fixture_close(&fixture);
}

static void test_channel_nobody_there(void **state)
{
    (void)state;
    struct fixture fixture;
    struct nosa_error error = {0};
    fixture_open(&fixture, NULL);
    struct nosa_rpc_channel *channel = fixture_channel(&fixture, "127.0.0.1:1", "127.0.0.1:2");
    uint64_t start = nosa_monotonic_ns();
    assert_int_equal(say_hello(channel, false, &error), NOSA_RPC_UNAVAILABLE);
    assert_true(ms_since(start) < 5000);
    assert_int_equal(error.status, NOSA_UNAVAILABLE);
    assert_non_null(strstr(error.text, "127.0.0.1:2: UNAVAILABLE: "));
    nosa_rpc_channel_free(channel);
    fixture_close(&fixture);
}

static void *restart_later(void *argument)
{
    struct fixture *fixture = argument;
    const struct nosa_rpc_server_options options = {.ping_interval_min_ms = 100};
    usleep(300000);
    fixture_start_server(fixture, &options, fixture->port);
    return NULL;
}

static void test_channel_reconnects(void **state)
{
    (void)state;
    struct fixture fixture;
    struct nosa_error error = {0};
    pthread_t thread;
    fixture_open(&fixture, NULL);
    assert_int_equal(say_hello(fixture.channel, false, &error), NOSA_RPC_OK);
    fixture_stop_server(&fixture);
    assert_int_equal(say_hello(fixture.channel, false, &error), NOSA_RPC_UNAVAILABLE);
    assert_int_equal(pthread_create(&thread, NULL, restart_later, &fixture), 0);
    nosa_error_clear(&error);
    uint64_t start = nosa_monotonic_ns();
    if (say_hello(fixture.channel, true, &error) != NOSA_RPC_OK)
        fail_msg("%s", error.text);
    assert_true(ms_since(start) >= 250 && ms_since(start) < 5000);
    pthread_join(thread, NULL);
    fixture_close(&fixture);
}

/* ---- shutdown ---- */

struct ended {
    atomic_int over;
    atomic_uint messages;
    enum nosa_rpc_code code;
};

static bool on_message(void *context, struct nosa_rpc_stream *stream,
                       const ProtobufCMessage *message)
{
    (void)stream;
    (void)message;
    atomic_fetch_add(&((struct ended *)context)->messages, 1);
    return true;
}

static void on_end(void *context, struct nosa_rpc_stream *stream,
                   const struct nosa_rpc_outcome *outcome)
{
    (void)stream;
    struct ended *ended = context;
    ended->code = outcome->code;
    atomic_store(&ended->over, 1);
}

static const struct nosa_rpc_stream_events events = {on_message, on_end};

/* Starts a stream and waits for its first message. */
static void start_stream(struct fixture *fixture, uint32_t count, uint32_t interval_us,
                         struct ended *ended)
{
    count_request message = NOSA__TEST__V1__COUNT_REQUEST__INIT;
    message.count = count;
    message.interval_us = interval_us;
    struct nosa_rpc_request request = count_call(&message, 0);
    assert_int_equal(nosa_rpc_stream_start(fixture->channel, &request, &events, ended, NULL, NULL),
                     NOSA_OK);
    for (int i = 0; i < 10000 && atomic_load(&ended->messages) == 0; i++)
        usleep(1000);
    assert_true(atomic_load(&ended->messages) > 0);
}

static void wait_for_end(struct ended *ended)
{
    for (int i = 0; i < 20000 && !atomic_load(&ended->over); i++)
        usleep(1000);
    assert_true(atomic_load(&ended->over));
}

static void test_shutdown_lets_calls_finish(void **state)
{
    (void)state;
    struct fixture fixture;
    struct ended ended = {0};
    fixture_open(&fixture, NULL);
    start_stream(&fixture, 20, 20000, &ended);
    assert_int_equal(nosa_rpc_server_call_count(fixture.server), 1);
    assert_true(nosa_rpc_server_shutdown(fixture.server, 20000));
    wait_for_end(&ended);
    assert_int_equal(ended.code, NOSA_RPC_OK);
    assert_int_equal(atomic_load(&ended.messages), 20);
    assert_int_equal(nosa_rpc_server_call_count(fixture.server), 0);
    fixture_close(&fixture);
}

static void test_shutdown_cancels_after_grace(void **state)
{
    (void)state;
    struct fixture fixture;
    struct ended ended = {0};
    fixture_open(&fixture, NULL);
    start_stream(&fixture, 0, 20000, &ended);
    uint64_t start = nosa_monotonic_ns();
    assert_false(nosa_rpc_server_shutdown(fixture.server, 200));
    assert_true(ms_since(start) >= 200 && ms_since(start) < 10000);
    wait_for_end(&ended);
    assert_true(ended.code != NOSA_RPC_OK);
    assert_int_equal(say_hello(fixture.channel, false, NULL), NOSA_RPC_UNAVAILABLE);
    fixture_close(&fixture);
}

static void test_shutdown_without_calls_is_quick(void **state)
{
    (void)state;
    struct fixture fixture;
    fixture_open(&fixture, NULL);
    assert_int_equal(say_hello(fixture.channel, false, NULL), NOSA_RPC_OK);
    uint64_t start = nosa_monotonic_ns();
    assert_true(nosa_rpc_server_shutdown(fixture.server, 20000));
    assert_true(ms_since(start) < 3000);
    fixture_close(&fixture);
}

struct caller {
    pthread_t thread;
    struct nosa_rpc_channel *channel;
    atomic_bool stopping;
    uint32_t whole, refused, others;
};

static void *call_on(void *argument)
{
    struct caller *caller = argument;
    while (!atomic_load(&caller->stopping)) {
        enum nosa_rpc_code code = say_hello(caller->channel, false, NULL);
        caller->whole += code == NOSA_RPC_OK;
        caller->refused += code == NOSA_RPC_UNAVAILABLE;
        caller->others += code != NOSA_RPC_OK && code != NOSA_RPC_UNAVAILABLE;
    }
    return NULL;
}

static void test_shutdown_refuses_calls_that_cross_it(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        struct fixture fixture;
        struct ended ended = {0};
        struct caller callers[4] = {0};
        fixture_open(&fixture, NULL);
        start_stream(&fixture, 20, 10000, &ended);
        for (int i = 0; i < 4; i++) {
            callers[i].channel = fixture.channel;
            assert_int_equal(pthread_create(&callers[i].thread, NULL, call_on, &callers[i]), 0);
        }
        usleep(20000);
        assert_true(nosa_rpc_server_shutdown(fixture.server, 20000));
        for (int i = 0; i < 4; i++) {
            atomic_store(&callers[i].stopping, true);
            pthread_join(callers[i].thread, NULL);
            assert_true(callers[i].whole > 0 && callers[i].refused > 0);
            assert_int_equal(callers[i].others, 0);
        }
        wait_for_end(&ended);
        assert_int_equal(ended.code, NOSA_RPC_OK);
        fixture_close(&fixture);
    }
}

/* ---- bounds ---- */

static void test_calls_max(void **state)
{
    (void)state;
    struct fixture fixture;
    struct ended ended[3] = {0};
    struct nosa_error error = {0};
    const struct nosa_rpc_server_options options = {.calls_max = 3, .ping_interval_min_ms = 100};
    fixture_open(&fixture, &options);
    for (int i = 0; i < 3; i++)
        start_stream(&fixture, 10, 100000, &ended[i]);
    assert_int_equal(say_hello(fixture.channel, false, &error), NOSA_RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.text, "the server has 3 calls already"));
    nosa_message_free(&fixture_stats(fixture.channel)->base); /* an open method is served */
    for (int i = 0; i < 3; i++)
        wait_for_end(&ended[i]);
    enum nosa_rpc_code code = NOSA_RPC_RESOURCE_EXHAUSTED;
    for (int i = 0; i < 1000 && code != NOSA_RPC_OK; i++) {
        usleep(5000);
        code = say_hello(fixture.channel, false, NULL);
    }
    assert_int_equal(code, NOSA_RPC_OK);
    fixture_close(&fixture);
}

/* A reply is taken although the queue, of one message, is full. */
static void test_reply_with_a_full_queue(void **state)
{
    (void)state;
    struct fixture fixture;
    const struct nosa_rpc_server_options options = {.send_queue_max = 1,
                                                    .ping_interval_min_ms = 100};
    fixture_open(&fixture, &options);
    for (uint32_t count = 1; count < 20; count++) {
        struct ended ended = {0};
        start_stream(&fixture, count, 0, &ended);
        wait_for_end(&ended);
        assert_int_equal(ended.code, NOSA_RPC_OK);
        assert_int_equal(atomic_load(&ended.messages), count);
    }
    fixture_close(&fixture);
}

/* ---- handles ---- */

/* Keeps its call beyond the end. */
static atomic_uintptr_t kept;

static void keep(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    say_response response = NOSA__TEST__V1__SAY_RESPONSE__INIT;
    nosa_rpc_call_retain(call);
    nosa_rpc_call_reply(call, &response.base);
    atomic_store(&kept, (uintptr_t)call);
}

static void test_call_retained_beyond_its_end(void **state)
{
    (void)state;
    struct fixture fixture;
    struct nosa_rpc_server *server;
    const struct nosa_rpc_server_options options = {0};
    static const struct nosa_rpc_method methods[] = {
        {.name = "Say", .kind = NOSA_RPC_UNARY, .start = keep}};
    char address[32];
    char peer[NOSA_RPC_PEER_MAX];
    uint16_t port;
    fixture_open(&fixture, NULL);
    assert_int_equal(nosa_rpc_server_create(&server, fixture.runtime, &options, NULL), NOSA_OK);
    assert_int_equal(nosa_rpc_server_add_service(server, &nosa__test__v1__echo__descriptor, methods,
                                                 1, NULL, NULL),
                     NOSA_OK);
    assert_int_equal(nosa_rpc_server_listen(server, "127.0.0.1:0", NULL, &port, NULL), NOSA_OK);
    assert_int_equal(nosa_rpc_server_start(server, NULL), NOSA_OK);
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    struct nosa_rpc_channel *channel = fixture_channel(&fixture, address, NULL);
    assert_int_equal(say_hello(channel, false, NULL), NOSA_RPC_OK);
    assert_true(nosa_rpc_server_shutdown(server, 5000));
    struct nosa_rpc_call *call = (struct nosa_rpc_call *)atomic_load(&kept);
    say_response response = NOSA__TEST__V1__SAY_RESPONSE__INIT;
    assert_non_null(call);
    assert_int_equal(nosa_rpc_call_send(call, &response.base), NOSA_CANCELLED);
    assert_string_equal(nosa_rpc_call_peer(call, peer), "");
    assert_string_equal(nosa_rpc_call_path(call), "/nosa.test.v1.Echo/Say");
    nosa_rpc_server_free(server);
    nosa_rpc_call_release(call);
    nosa_rpc_channel_free(channel);
    fixture_close(&fixture);
}

/* ---- a peer that freezes ---- */

/* The test server as a process; stores its address. */
static pid_t spawn_server(char address[32])
{
    const char *program = getenv("RPC_TEST_SERVER");
    char line[64] = "";
    unsigned port;
    int ends[2];
    assert_non_null(program);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        execl(program, program, "--ping-interval-min-ms", "100", (char *)NULL);
        _exit(127);
    }
    assert_true(child > 0);
    close(ends[1]);
    FILE *stream = fdopen(ends[0], "r");
    assert_non_null(stream);
    assert_non_null(fgets(line, sizeof line, stream));
    assert_int_equal(sscanf(line, "listening %u", &port), 1);
    fclose(stream);
    snprintf(address, 32, "127.0.0.1:%u", port);
    return child;
}

static void test_frozen_server_is_noticed(void **state)
{
    (void)state;
    char address[32];
    struct fixture fixture = {.keepalive_ms = 300};
    struct ended ended = {0};
    int status;
    /* Before any thread is: a child of fork must not inherit gRPC's locks. */
    pid_t child = spawn_server(address);
    assert_int_equal(nosa_rpc_runtime_create(&fixture.runtime, 1, NULL), NOSA_OK);
    fixture.channel = fixture_channel(&fixture, address, NULL);
    start_stream(&fixture, 0, 10000, &ended);
    assert_int_equal(kill(child, SIGSTOP), 0);
    uint64_t start = nosa_monotonic_ns();
    wait_for_end(&ended);
    assert_true(ms_since(start) < 5000);
    assert_int_equal(ended.code, NOSA_RPC_UNAVAILABLE);
    assert_int_equal(kill(child, SIGCONT), 0);
    /* A connection made meanwhile may still be given up under the first call. */
    enum nosa_rpc_code code = NOSA_RPC_UNAVAILABLE;
    for (int i = 0; i < 10 && code == NOSA_RPC_UNAVAILABLE; i++)
        code = say_hello(fixture.channel, true, NULL);
    assert_int_equal(code, NOSA_RPC_OK);
    assert_int_equal(kill(child, SIGTERM), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    nosa_rpc_channel_free(fixture.channel);
    nosa_rpc_runtime_free(fixture.runtime);
}

/* ---- memory ---- */

/* A server is made, filled and started while an allocation fails. */
static enum nosa_status make_server(void *context, struct nosa_error *error)
{
    struct nosa_rpc_runtime *runtime = context;
    struct nosa_rpc_server *server = NULL;
    struct echo_service *service = NULL;
    const struct nosa_rpc_server_options options = {0};
    const struct nosa_rpc_descriptor_set set = {rpc_echo_proto_descriptor_set,
                                                rpc_echo_proto_descriptor_set_size};
    enum nosa_status status = nosa_rpc_server_create(&server, runtime, &options, error);
    if (status == NOSA_OK)
        status = echo_service_add(&service, server, error);
    if (status == NOSA_OK)
        status = nosa_rpc_health_add(server, error);
    if (status == NOSA_OK)
        status = nosa_rpc_reflection_add(server, &set, 1, error);
    if (status == NOSA_OK)
        status = nosa_rpc_server_listen(server, "127.0.0.1:0", NULL, NULL, error);
    if (status == NOSA_OK)
        status = nosa_rpc_server_start(server, error);
    nosa_rpc_server_free(server);
    echo_service_free(service);
    return status;
}

static void test_server_without_memory(void **state)
{
    (void)state;
    struct nosa_rpc_runtime *runtime;
    assert_int_equal(nosa_rpc_runtime_create(&runtime, 1, NULL), NOSA_OK);
    assert_true(nosa_alloc_fail_sweep(make_server, runtime) > 20);
    nosa_rpc_runtime_free(runtime);
}

/* A server that has no memory for the next call drops one and serves on. */
static void test_call_without_memory(void **state)
{
    (void)state;
    struct fixture fixture;
    fixture_open(&fixture, NULL);
    assert_int_equal(say_hello(fixture.channel, false, NULL), NOSA_RPC_OK);
    int lost = 0;
    for (uint64_t nth = 1; nth < 30; nth++) {
        nosa_alloc_fail_arm(nth);
        enum nosa_rpc_code code = say_hello(fixture.channel, false, NULL);
        nosa_alloc_fail_disarm();
        lost += code != NOSA_RPC_OK;
        assert_int_equal(say_hello(fixture.channel, false, NULL), NOSA_RPC_OK);
    }
    assert_true(lost > 2);
    fixture_close(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frozen_server_is_noticed),
        cmocka_unit_test(test_listen_port_in_use),
        cmocka_unit_test(test_listen_bad_addresses),
        cmocka_unit_test(test_listen_every_address),
        cmocka_unit_test(test_channel_bad_addresses),
        cmocka_unit_test(test_channel_fails_over),
        cmocka_unit_test(test_channel_nobody_there),
        cmocka_unit_test(test_channel_reconnects),
        cmocka_unit_test(test_shutdown_lets_calls_finish),
        cmocka_unit_test(test_shutdown_cancels_after_grace),
        cmocka_unit_test(test_shutdown_without_calls_is_quick),
        cmocka_unit_test(test_shutdown_refuses_calls_that_cross_it),
        cmocka_unit_test(test_calls_max),
        cmocka_unit_test(test_reply_with_a_full_queue),
        cmocka_unit_test(test_call_retained_beyond_its_end),
        cmocka_unit_test(test_server_without_memory),
        cmocka_unit_test(test_call_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
