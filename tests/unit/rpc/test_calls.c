/* Both ends of calls in one process: what client.h and server.h promise each other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rpc/message.h"
#include "rpc_fixture.h"

#define WAIT_MS 20000

/* ---- unary ---- */

static void test_unary_round_trip(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    const struct nosa_rpc_header headers[] = {{"authorization", "Bearer secret"}};
    say.text = "Gr\xc3\xbc\xc3\x9f";
    struct nosa_rpc_request request = say_call(&say, 5000);
    request.headers = headers;
    request.header_count = 1;
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, &error), NOSA_RPC_OK);
    const say_response *response = (const say_response *)message;
    assert_string_equal(response->text, say.text);
    assert_string_equal(response->bearer, "secret");
    assert_string_equal(response->peer_name, "");
    assert_memory_equal(response->peer, "ipv4:127.0.0.1:", 15);
    assert_true(response->deadline_ms > 0 && response->deadline_ms <= 5100);
    nosa_message_free(message);
}

static void test_unary_without_deadline(void **state)
{
    struct fixture *fixture = *state;
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    say.text = "x";
    struct nosa_rpc_request request = say_call(&say, 0);
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, NULL), NOSA_RPC_OK);
    assert_int_equal(((const say_response *)message)->deadline_ms, 0);
    nosa_message_free(message);
}

static void test_unary_every_code(void **state)
{
    struct fixture *fixture = *state;
    for (uint32_t code = 1; code < NOSA_RPC_CODE_COUNT; code++) {
        struct nosa_error error = {0};
        ProtobufCMessage *message;
        char text[128];
        say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
        say.text = "why";
        say.code = code;
        struct nosa_rpc_request request = say_call(&say, 5000);
        assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, &error), code);
        assert_null(message);
        snprintf(text, sizeof text, "%s: %s: why", fixture->address,
                 nosa_rpc_code_name((enum nosa_rpc_code)code));
        assert_string_equal(error.text, text);
        assert_int_equal(error.status, nosa_rpc_code_to_status((enum nosa_rpc_code)code));
    }
}

static void test_unary_long_status_text_is_cut(void **state)
{
    struct fixture *fixture = *state;
    char text[2000];
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    for (size_t i = 0; i + 2 < sizeof text; i += 2)
        memcpy(text + i, "\xc3\xa9", 3); /* the bound falls inside a character */
    say.text = text;
    say.code = NOSA_RPC_ABORTED;
    struct nosa_rpc_request request = say_call(&say, 5000);
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, &error),
                     NOSA_RPC_ABORTED);
    assert_true(strlen(error.text) > 400);
}

static void test_unary_unknown_method(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    struct nosa_rpc_request request = say_call(&say, 5000);
    request.path = "/nosa.test.v1.Echo/Absent";
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, &error),
                     NOSA_RPC_UNIMPLEMENTED);
    request.path = "/no.such.Service/Method";
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, &error),
                     NOSA_RPC_UNIMPLEMENTED);
    assert_int_equal(error.status, NOSA_UNSUPPORTED);
}

static void test_unary_deadline(void **state)
{
    struct fixture *fixture = *state;
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    say.delay_ms = 60000;
    struct nosa_rpc_request request = say_call(&say, 100);
    uint64_t start = nosa_monotonic_ns();
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, NULL),
                     NOSA_RPC_DEADLINE_EXCEEDED);
    uint64_t took_ms = (nosa_monotonic_ns() - start) / NOSA_NS_PER_MS;
    assert_true(took_ms >= 95 && took_ms < 5000);
}

/* The peer's answer is of another type than expected: INTERNAL, and it says why. */
static void test_unary_answer_that_does_not_parse(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    say.text = "x";
    struct nosa_rpc_request request = say_call(&say, 5000);
    request.response = &nosa__test__v1__stats_response__descriptor;
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, &error),
                     NOSA_RPC_INTERNAL);
    assert_null(message);
    assert_non_null(strstr(error.text, "live: has another type on the wire"));
}

struct replies {
    atomic_int count;
    atomic_int good;
};

static void count_reply(void *context, const struct nosa_rpc_outcome *outcome,
                        const ProtobufCMessage *response)
{
    struct replies *replies = context;
    assert_true(nosa_rpc_runtime_is_own_thread());
    if (outcome->code == NOSA_RPC_OK &&
        strcmp(((const say_response *)response)->text, "again") == 0)
        atomic_fetch_add(&replies->good, 1);
    atomic_fetch_add(&replies->count, 1);
}

static void wait_for_count(atomic_int *count, int expected)
{
    for (int i = 0; i < WAIT_MS && atomic_load(count) < expected; i++)
        usleep(1000);
    assert_int_equal(atomic_load(count), expected);
}

static void test_unary_many_at_once(void **state)
{
    struct fixture *fixture = *state;
    struct replies replies = {0};
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    say.text = "again";
    struct nosa_rpc_request request = say_call(&say, WAIT_MS);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(
            nosa_rpc_unary_start(fixture->channel, &request, count_reply, &replies, NULL), NOSA_OK);
    wait_for_count(&replies.count, 1000);
    assert_int_equal(atomic_load(&replies.good), 1000);
}

/* ---- streams ---- */

/* What a stream brought; `pause_at` stops reading at that message. */
struct seen {
    atomic_uint next; /* index expected */
    atomic_int ended;
    uint32_t pause_at;
    enum nosa_rpc_code code;
    char text[256];
};

static bool see_message(void *context, struct nosa_rpc_stream *stream,
                        const ProtobufCMessage *message)
{
    struct seen *seen = context;
    (void)stream;
    assert_int_equal(((const count_response *)message)->index, atomic_load(&seen->next));
    return atomic_fetch_add(&seen->next, 1) + 1 != seen->pause_at;
}

static void see_end(void *context, struct nosa_rpc_stream *stream,
                    const struct nosa_rpc_outcome *outcome)
{
    struct seen *seen = context;
    (void)stream;
    seen->code = outcome->code;
    snprintf(seen->text, sizeof seen->text, "%s", outcome->text);
    atomic_store(&seen->ended, 1);
}

static const struct nosa_rpc_stream_events seeing = {see_message, see_end};

static struct nosa_rpc_stream *start_count(struct nosa_rpc_channel *channel, uint32_t count,
                                           uint32_t payload_bytes, uint32_t timeout_ms,
                                           struct seen *seen)
{
    struct nosa_rpc_stream *stream;
    count_request message = NOSA__TEST__V1__COUNT_REQUEST__INIT;
    message.count = count;
    message.payload_bytes = payload_bytes;
    struct nosa_rpc_request request = count_call(&message, timeout_ms);
    assert_int_equal(nosa_rpc_stream_start(channel, &request, &seeing, seen, &stream, NULL),
                     NOSA_OK);
    return stream;
}

static void test_stream_in_order(void **state)
{
    struct fixture *fixture = *state;
    struct seen seen = {0};
    nosa_rpc_stream_release(start_count(fixture->channel, 20000, 10, 0, &seen));
    wait_for_count(&seen.ended, 1);
    assert_int_equal(seen.code, NOSA_RPC_OK);
    assert_int_equal(atomic_load(&seen.next), 20000);
}

/* A reader that stops stops the writer too, at the stream's window and the call's queue. */
static void test_stream_paused_reader_pauses_writer(void **state)
{
    struct fixture *fixture = *state;
    struct seen seen = {.pause_at = 10};
    stats_response *before = fixture_stats(fixture->channel);
    struct nosa_rpc_stream *stream = start_count(fixture->channel, 20000, 1000, 0, &seen);
    uint64_t sent = 0;
    uint64_t last = UINT64_MAX;
    for (int i = 0; i < 200 && sent != last; i++) {
        usleep(100000);
        stats_response *now = fixture_stats(fixture->channel);
        last = sent;
        sent = now->sent - before->sent;
        assert_true(now->waiting_max <= 64);
        nosa_message_free(&now->base);
    }
    assert_int_equal(atomic_load(&seen.next), 10);
    /* 64 KiB of window, what the two ends hold in hand, and 64 messages of the queue. */
    assert_true(sent >= 10 + 64 && sent < 10 + 64 + 300);
    assert_int_equal(atomic_load(&seen.ended), 0);
    nosa_rpc_stream_resume(stream);
    wait_for_count(&seen.ended, 1);
    assert_int_equal(seen.code, NOSA_RPC_OK);
    assert_int_equal(atomic_load(&seen.next), 20000);
    nosa_rpc_stream_resume(stream);
    nosa_rpc_stream_cancel(stream);
    nosa_rpc_stream_release(stream);
    nosa_message_free(&before->base);
}

/* Waits until the server has no call but the one that asks. */
static void wait_for_idle(struct nosa_rpc_channel *channel)
{
    uint32_t live = 1;
    for (int i = 0; i < WAIT_MS / 10 && live > 0; i++) {
        stats_response *stats = fixture_stats(channel);
        live = stats->live;
        nosa_message_free(&stats->base);
        usleep(live > 0 ? 10000 : 0);
    }
    assert_int_equal(live, 0);
}

static void test_stream_cancel(void **state)
{
    struct fixture *fixture = *state;
    for (uint32_t pause_at = 0; pause_at < 3; pause_at++) {
        struct seen seen = {.pause_at = pause_at};
        struct nosa_rpc_stream *stream = start_count(fixture->channel, 0, 100, 0, &seen);
        for (int i = 0; i < WAIT_MS && atomic_load(&seen.next) < pause_at; i++)
            usleep(1000);
        nosa_rpc_stream_cancel(stream);
        wait_for_count(&seen.ended, 1);
        assert_int_equal(seen.code, NOSA_RPC_CANCELLED);
        nosa_rpc_stream_cancel(stream);
        nosa_rpc_stream_release(stream);
        wait_for_idle(fixture->channel);
    }
}

/* The last message was read, and the status lies behind a pause: a cancel still brings the end. */
static void test_stream_cancel_after_the_last_message(void **state)
{
    struct fixture *fixture = *state;
    struct seen seen = {.pause_at = 3};
    struct nosa_rpc_stream *stream = start_count(fixture->channel, 3, 0, 0, &seen);
    for (int i = 0; i < WAIT_MS && atomic_load(&seen.next) < 3; i++)
        usleep(1000);
    wait_for_idle(fixture->channel);
    assert_int_equal(atomic_load(&seen.ended), 0);
    nosa_rpc_stream_cancel(stream);
    wait_for_count(&seen.ended, 1);
    nosa_rpc_stream_release(stream);
}

/* Everything has arrived, the status too, but is not read: after a cancel it is not OK. */
static void test_stream_cancel_with_messages_unread(void **state)
{
    struct fixture *fixture = *state;
    for (int i = 0; i < 20; i++) {
        struct seen seen = {.pause_at = 3};
        struct nosa_rpc_stream *stream = start_count(fixture->channel, 10, 0, 0, &seen);
        for (int tries = 0; tries < WAIT_MS && atomic_load(&seen.next) < 3; tries++)
            usleep(1000);
        wait_for_idle(fixture->channel);
        nosa_rpc_stream_cancel(stream);
        wait_for_count(&seen.ended, 1);
        assert_int_equal(seen.code, NOSA_RPC_CANCELLED);
        assert_int_equal(atomic_load(&seen.next), 3);
        nosa_rpc_stream_release(stream);
    }
}

/* Holds up the thread that it is called on until it is told otherwise. */
struct holdup {
    atomic_int begun;
    atomic_bool over;
    atomic_int ended;
};

static bool hold_up(void *context, struct nosa_rpc_stream *stream, const ProtobufCMessage *message)
{
    struct holdup *holdup = context;
    (void)stream;
    (void)message;
    atomic_store(&holdup->begun, 1);
    for (int i = 0; i < WAIT_MS && !atomic_load(&holdup->over); i++)
        usleep(1000);
    return true;
}

static void end_holdup(void *context, struct nosa_rpc_stream *stream,
                       const struct nosa_rpc_outcome *outcome)
{
    (void)stream;
    (void)outcome;
    atomic_store(&((struct holdup *)context)->ended, 1);
}

/* A cancel between the arrival of the last message and its event: the status had been OK, but what
 * the caller gets is not whole. The thread of the stream is held up by another one meanwhile. */
static void test_stream_cancel_before_the_last_event(void **state)
{
    static const struct nosa_rpc_stream_events holding = {hold_up, end_holdup};
    struct fixture *fixture = *state;
    struct holdup holdup = {0};
    struct seen seen = {0};
    struct replies replies = {0};
    count_request one = NOSA__TEST__V1__COUNT_REQUEST__INIT;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    one.count = 1;
    struct nosa_rpc_request request = count_call(&one, 0);
    assert_int_equal(
        nosa_rpc_stream_start(fixture->channel, &request, &holding, &holdup, NULL, NULL), NOSA_OK);
    wait_for_count(&holdup.begun, 1);
    /* Of two threads every second call is on the same one. */
    request = say_call(&say, WAIT_MS);
    assert_int_equal(nosa_rpc_unary_start(fixture->channel, &request, count_reply, &replies, NULL),
                     NOSA_OK);
    struct nosa_rpc_stream *stream = start_count(fixture->channel, 1, 0, 0, &seen);
    usleep(300000);
    nosa_rpc_stream_cancel(stream);
    atomic_store(&holdup.over, true);
    wait_for_count(&seen.ended, 1);
    wait_for_count(&holdup.ended, 1);
    wait_for_count(&replies.count, 1);
    assert_int_equal(atomic_load(&seen.next), 0);
    assert_int_equal(seen.code, NOSA_RPC_CANCELLED);
    nosa_rpc_stream_release(stream);
}

/* The server ends calls at once, whether their reader reads or not. */
static void test_stream_aborted_by_the_server(void **state)
{
    struct fixture *fixture = *state;
    struct seen stuck = {.pause_at = 5};
    struct seen idle = {0};
    ProtobufCMessage *message;
    say_request say = NOSA__TEST__V1__SAY_REQUEST__INIT;
    struct nosa_rpc_stream *stream = start_count(fixture->channel, 0, 1000, 0, &stuck);
    count_request slow = NOSA__TEST__V1__COUNT_REQUEST__INIT;
    slow.interval_us = 600000000;
    struct nosa_rpc_request request = count_call(&slow, 0);
    assert_int_equal(nosa_rpc_stream_start(fixture->channel, &request, &seeing, &idle, NULL, NULL),
                     NOSA_OK);
    usleep(500000); /* the first one's window is full by now */
    request = say_call(&say, 10000);
    request.path = "/nosa.test.v1.Echo/Abort";
    say.code = NOSA_RPC_ABORTED;
    say.text = "moved away";
    assert_int_equal(nosa_rpc_unary(fixture->channel, &request, &message, NULL), NOSA_RPC_OK);
    nosa_message_free(message);
    wait_for_count(&idle.ended, 1);
    assert_int_equal(idle.code, NOSA_RPC_ABORTED);
    assert_string_equal(idle.text, "moved away");
    assert_int_equal(atomic_load(&idle.next), 1);
    wait_for_idle(fixture->channel);
    nosa_rpc_stream_resume(stream);
    wait_for_count(&stuck.ended, 1);
    assert_true(stuck.code != NOSA_RPC_OK);
    nosa_rpc_stream_release(stream);
}

static void test_stream_deadline(void **state)
{
    struct fixture *fixture = *state;
    struct seen seen = {.pause_at = 1};
    stats_response *before = fixture_stats(fixture->channel);
    nosa_rpc_stream_release(start_count(fixture->channel, 0, 100, 150, &seen));
    wait_for_count(&seen.ended, 1);
    assert_int_equal(seen.code, NOSA_RPC_DEADLINE_EXCEEDED);
    wait_for_idle(fixture->channel);
    stats_response *after = fixture_stats(fixture->channel);
    assert_int_equal(after->cancelled, before->cancelled + 1);
    nosa_message_free(&before->base);
    nosa_message_free(&after->base);
}

static void test_stream_512_at_once(void **state)
{
    struct fixture *fixture = *state;
    static struct seen seen[512];
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < 512; i++)
        nosa_rpc_stream_release(start_count(fixture->channel, 50, 8, 0, &seen[i]));
    for (int i = 0; i < 512; i++) {
        wait_for_count(&seen[i].ended, 1);
        assert_int_equal(seen[i].code, NOSA_RPC_OK);
        assert_int_equal(atomic_load(&seen[i].next), 50);
    }
}

/* ---- readers ---- */

/* A socket that listens on the loopback, and its address. */
static int listen_somewhere(char address[32])
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof own;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(listener >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&own, sizeof own), 0);
    assert_int_equal(listen(listener, 4), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&own, &size), 0);
    snprintf(address, 32, "127.0.0.1:%u", ntohs(own.sin_port));
    return listener;
}

static void test_channel_connect_needs_no_call(void **state)
{
    struct fixture *fixture = *state;
    char address[32];
    struct pollfd wait = {.fd = listen_somewhere(address), .events = POLLIN};
    struct nosa_rpc_channel *channel = fixture_channel(fixture, address, NULL);
    assert_int_equal(poll(&wait, 1, 200), 0); /* a channel alone connects to nobody */
    nosa_rpc_channel_connect(channel);
    assert_int_equal(poll(&wait, 1, 20000), 1);
    nosa_rpc_channel_free(channel);
    close(wait.fd);
}

static void test_reader_reads_all(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_rpc_reader *reader;
    struct nosa_error error = {0};
    count_request message = NOSA__TEST__V1__COUNT_REQUEST__INIT;
    message.count = 500;
    struct nosa_rpc_request request = count_call(&message, 0);
    ProtobufCMessage *answer;
    enum nosa_rpc_code code = NOSA_RPC_UNKNOWN;
    bool ended = false;
    assert_int_equal(nosa_rpc_reader_start(&reader, fixture->channel, &request, &error), NOSA_OK);
    for (uint32_t i = 0; i < 500; i++) {
        assert_int_equal(nosa_rpc_reader_next(reader, UINT32_MAX, &answer, &ended, &code, &error),
                         NOSA_OK);
        assert_false(ended);
        assert_int_equal(((count_response *)answer)->index, i);
        nosa_message_free(answer);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nosa_rpc_reader_next(reader, 10000, &answer, &ended, &code, &error),
                         NOSA_OK);
        assert_true(ended);
        assert_null(answer);
        assert_int_equal(code, NOSA_RPC_OK);
    }
    nosa_rpc_reader_free(reader);
}

static void test_reader_waits_and_is_cancelled(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_rpc_reader *reader;
    struct nosa_error error = {0};
    count_request message = NOSA__TEST__V1__COUNT_REQUEST__INIT;
    message.interval_us = 60000000;
    struct nosa_rpc_request request = count_call(&message, 0);
    ProtobufCMessage *answer;
    enum nosa_rpc_code code = NOSA_RPC_OK;
    bool ended = true;
    assert_int_equal(nosa_rpc_reader_start(&reader, fixture->channel, &request, &error), NOSA_OK);
    assert_int_equal(nosa_rpc_reader_next(reader, 10000, &answer, &ended, &code, &error), NOSA_OK);
    nosa_message_free(answer);
    assert_int_equal(nosa_rpc_reader_next(reader, 50, &answer, &ended, &code, &error),
                     NOSA_DEADLINE_EXCEEDED);
    assert_false(ended);
    nosa_error_clear(&error);
    nosa_rpc_reader_cancel(reader);
    assert_int_equal(nosa_rpc_reader_next(reader, 10000, &answer, &ended, &code, &error),
                     NOSA_CANCELLED);
    assert_true(ended);
    assert_int_equal(code, NOSA_RPC_CANCELLED);
    nosa_rpc_reader_free(reader);
}

static void test_reader_freed_midway(void **state)
{
    struct fixture *fixture = *state;
    for (int reads = 0; reads < 3; reads++) {
        struct nosa_rpc_reader *reader;
        count_request message = NOSA__TEST__V1__COUNT_REQUEST__INIT;
        struct nosa_rpc_request request = count_call(&message, 0);
        ProtobufCMessage *answer;
        bool ended;
        assert_int_equal(nosa_rpc_reader_start(&reader, fixture->channel, &request, NULL), NOSA_OK);
        for (int i = 0; i < reads; i++) {
            assert_int_equal(nosa_rpc_reader_next(reader, 10000, &answer, &ended, NULL, NULL),
                             NOSA_OK);
            nosa_message_free(answer);
        }
        nosa_rpc_reader_free(reader);
    }
    wait_for_idle(fixture->channel);
}

static int open_fixture(void **state)
{
    static struct fixture fixture;
    fixture_open(&fixture, NULL);
    *state = &fixture;
    return 0;
}

static int close_fixture(void **state)
{
    fixture_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unary_round_trip),
        cmocka_unit_test(test_unary_without_deadline),
        cmocka_unit_test(test_unary_every_code),
        cmocka_unit_test(test_unary_long_status_text_is_cut),
        cmocka_unit_test(test_unary_unknown_method),
        cmocka_unit_test(test_unary_deadline),
        cmocka_unit_test(test_unary_answer_that_does_not_parse),
        cmocka_unit_test(test_unary_many_at_once),
        cmocka_unit_test(test_stream_in_order),
        cmocka_unit_test(test_stream_paused_reader_pauses_writer),
        cmocka_unit_test(test_stream_cancel),
        cmocka_unit_test(test_stream_cancel_after_the_last_message),
        cmocka_unit_test(test_stream_cancel_with_messages_unread),
        cmocka_unit_test(test_stream_cancel_before_the_last_event),
        cmocka_unit_test(test_stream_aborted_by_the_server),
        cmocka_unit_test(test_stream_deadline),
        cmocka_unit_test(test_stream_512_at_once),
        cmocka_unit_test(test_channel_connect_needs_no_call),
        cmocka_unit_test(test_reader_reads_all),
        cmocka_unit_test(test_reader_waits_and_is_cancelled),
        cmocka_unit_test(test_reader_freed_midway),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
