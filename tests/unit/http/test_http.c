#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "http/http.h"
#include "support/alloc_fail.h"

#define ANSWER_MAX 65536

static atomic_bool alive;
static atomic_bool ready;
static atomic_int collected;

static bool is_alive(void *context, char reason[NOSA_HTTP_REASON_MAX])
{
    (void)context;
    (void)reason;
    return atomic_load(&alive);
}

static bool is_ready(void *context, char reason[NOSA_HTTP_REASON_MAX])
{
    if (atomic_load(&ready))
        return true;
    snprintf(reason, NOSA_HTTP_REASON_MAX, "%s is loading", (const char *)context);
    return false;
}

static void collect(void *context)
{
    (void)context;
    atomic_fetch_add(&collected, 1);
}

struct fixture {
    struct nosa_metrics *metrics;
    struct nosa_counter *counter;
    struct nosa_http *http;
};

static int open_fixture(void **state)
{
    static struct fixture fixture;
    const struct nosa_metric_options requests = {.name = "nosa_requests_total",
                                                 .help = "Requests."};
    assert_int_equal(nosa_metrics_create(&fixture.metrics, NULL), NOSA_OK);
    assert_int_equal(nosa_metrics_counter(fixture.metrics, &requests, &fixture.counter, NULL),
                     NOSA_OK);
    const struct nosa_http_options options = {.address = "127.0.0.1:0",
                                              .metrics = fixture.metrics,
                                              .collect = collect,
                                              .healthz = is_alive,
                                              .readyz = is_ready,
                                              .context = "a model",
                                              .connections_max = 20,
                                              .timeout_s = 1};
    assert_int_equal(nosa_http_create(&fixture.http, &options, NULL), NOSA_OK);
    atomic_store(&alive, true);
    atomic_store(&ready, false);
    *state = &fixture;
    return 0;
}

static int close_fixture(void **state)
{
    struct fixture *fixture = *state;
    nosa_http_free(fixture->http);
    nosa_metrics_free(fixture->metrics);
    return 0;
}

static int dial(const struct fixture *fixture)
{
    const struct sockaddr_in name = {.sin_family = AF_INET,
                                     .sin_port = htons(nosa_http_port(fixture->http)),
                                     .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(descriptor >= 0);
    assert_int_equal(connect(descriptor, (const struct sockaddr *)&name, sizeof name), 0);
    return descriptor;
}

/* Reads until the other end closes, or for `wait_ms`; returns the bytes read, NUL-ended. */
static size_t read_all(int descriptor, char *answer, int wait_ms)
{
    size_t size = 0;
    struct pollfd entry = {.fd = descriptor, .events = POLLIN};
    while (size < ANSWER_MAX - 1 && poll(&entry, 1, wait_ms) > 0) {
        ssize_t count = recv(descriptor, answer + size, ANSWER_MAX - 1 - size, 0);
        if (count <= 0)
            break;
        size += (size_t)count;
    }
    answer[size] = '\0';
    return size;
}

/* Sends a request as it is and returns the whole answer. */
static const char *ask(const struct fixture *fixture, const char *request)
{
    static char answer[ANSWER_MAX];
    int descriptor = dial(fixture);
    assert_true(send(descriptor, request, strlen(request), MSG_NOSIGNAL) ==
                (ssize_t)strlen(request));
    (void)read_all(descriptor, answer, 10000);
    close(descriptor);
    return answer;
}

/* GET of a path; checks the status line. */
static const char *get(const struct fixture *fixture, const char *path, const char *status)
{
    char request[256];
    char line[64];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
             path);
    snprintf(line, sizeof line, "HTTP/1.1 %s", status);
    const char *answer = ask(fixture, request);
    assert_memory_equal(answer, line, strlen(line));
    return answer;
}

static const char *body_of(const char *answer)
{
    const char *end = strstr(answer, "\r\n\r\n");
    assert_non_null(end);
    return end + 4;
}

static void test_metrics(void **state)
{
    struct fixture *fixture = *state;
    int before = atomic_load(&collected);
    nosa_counter_add(fixture->counter, 3);
    const char *answer = get(fixture, "/metrics", "200");
    assert_non_null(strstr(answer, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert_string_equal(body_of(answer), "# HELP nosa_requests_total Requests.\n"
                                         "# TYPE nosa_requests_total counter\n"
                                         "nosa_requests_total 3\n");
    assert_int_equal(atomic_load(&collected), before + 1);
}

static void test_healthz(void **state)
{
    struct fixture *fixture = *state;
    assert_string_equal(body_of(get(fixture, "/healthz", "200")), "ok\n");
    atomic_store(&alive, false);
    assert_string_equal(body_of(get(fixture, "/healthz", "503")), "unavailable\n");
    atomic_store(&alive, true);
}

static void test_readyz(void **state)
{
    struct fixture *fixture = *state;
    assert_string_equal(body_of(get(fixture, "/readyz", "503")), "a model is loading\n");
    atomic_store(&ready, true);
    assert_string_equal(body_of(get(fixture, "/readyz?verbose=1", "200")), "ok\n");
    atomic_store(&ready, false);
}

static void test_not_found(void **state)
{
    struct fixture *fixture = *state;
    static const char *const paths[] = {"/", "/metric", "/metrics/", "//metrics", "/../etc/passwd"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        assert_string_equal(body_of(get(fixture, paths[i], "404")),
                            "not found; there are /metrics, /healthz and /readyz\n");
}

static void test_methods(void **state)
{
    struct fixture *fixture = *state;
    const char *answer =
        ask(fixture, "HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_memory_equal(answer, "HTTP/1.1 200", 12);
    assert_string_equal(body_of(answer), "");
    answer = ask(fixture, "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
                          "Connection: close\r\n\r\nabc");
    assert_memory_equal(answer, "HTTP/1.1 405", 12);
    assert_non_null(strstr(answer, "Allow: GET, HEAD\r\n"));
    answer = ask(fixture, "DELETE /metrics HTTP/1.0\r\n\r\n");
    assert_memory_equal(answer, "HTTP/1.", 7);
    assert_non_null(strstr(answer, " 405 "));
}

static void test_spoilt_requests(void **state)
{
    struct fixture *fixture = *state;
    static const char *const requests[] = {
        "\r\n\r\n",
        "GET\r\n\r\n",
        "nonsense and more\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x01\x01",
        "GET /metrics HTTP/1.1\r\n",
        "GET /metrics HTTP/9.9\r\nHost: x\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++)
        (void)ask(fixture, requests[i]);
    (void)get(fixture, "/healthz", "200");
}

static void test_long_headers_are_refused(void **state)
{
    struct fixture *fixture = *state;
    static char request[40000];
    int start = snprintf(request, sizeof request, "GET /metrics HTTP/1.1\r\nX: ");
    memset(request + start, 'a', sizeof request - (size_t)start - 5);
    memcpy(request + sizeof request - 5, "\r\n\r\n", 5);
    int descriptor = dial(fixture);
    static char answer[ANSWER_MAX];
    (void)!send(descriptor, request, sizeof request - 1, MSG_NOSIGNAL);
    (void)read_all(descriptor, answer, 10000);
    close(descriptor);
    assert_null(strstr(answer, " 200 "));
    (void)get(fixture, "/healthz", "200");
}

/* A large body is cut off rather than read to its end. */
static void test_long_body_is_refused(void **state)
{
    struct fixture *fixture = *state;
    static char piece[65536];
    const char *head = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n";
    int descriptor = dial(fixture);
    size_t sent = 0;
    assert_true(send(descriptor, head, strlen(head), MSG_NOSIGNAL) > 0);
    for (int i = 0; i < 1500; i++) {
        ssize_t count = send(descriptor, piece, sizeof piece, MSG_NOSIGNAL);
        if (count < 0)
            break;
        sent += (size_t)count;
    }
    close(descriptor);
    assert_true(sent < 50000000);
    (void)get(fixture, "/healthz", "200");
}

/* Silent connections beyond the bound are turned away or time out, and others are served again. */
static void test_silent_connections_time_out(void **state)
{
    struct fixture *fixture = *state;
    int descriptors[30];
    char byte;
    for (size_t i = 0; i < 30; i++)
        descriptors[i] = dial(fixture);
    uint64_t start = nosa_monotonic_ns();
    for (size_t i = 0; i < 30; i++) {
        struct pollfd entry = {.fd = descriptors[i], .events = POLLIN};
        assert_int_equal(poll(&entry, 1, 15000), 1);
        assert_true(recv(descriptors[i], &byte, 1, 0) <= 0);
        close(descriptors[i]);
    }
    assert_true(nosa_seconds_between(start, nosa_monotonic_ns()) < 15);
    (void)get(fixture, "/healthz", "200");
}

/* A connection is used again for a second request. */
static void test_keep_alive(void **state)
{
    struct fixture *fixture = *state;
    static char answer[ANSWER_MAX];
    const char *request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    int descriptor = dial(fixture);
    for (int i = 0; i < 3; i++) {
        assert_true(send(descriptor, request, strlen(request), MSG_NOSIGNAL) > 0);
        size_t size = 0;
        for (int tries = 0; tries < 50 && !strstr(answer, "ok\n"); tries++)
            size = read_all(descriptor, answer, 100);
        assert_true(size > 0);
        assert_memory_equal(answer, "HTTP/1.1 200", 12);
        answer[0] = '\0';
    }
    close(descriptor);
}

static void test_create_refuses(void **state)
{
    struct fixture *fixture = *state;
    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%u", nosa_http_port(fixture->http));
    const struct {
        const char *address;
        enum nosa_status status;
        const char *text;
    } cases[] = {
        {"nothing", NOSA_INVALID_ARGUMENT, "\"nothing\" is no HOST:PORT"},
        {"host:", NOSA_INVALID_ARGUMENT, "\"host:\" is no HOST:PORT"},
        {"host:70000", NOSA_INVALID_ARGUMENT, "\"host:70000\" is no HOST:PORT"},
        {"::1:80", NOSA_INVALID_ARGUMENT, "\"::1:80\" is no HOST:PORT"},
        {"no-such-host.invalid:80", NOSA_NOT_FOUND, "no-such-host.invalid"},
        {"192.0.2.1:0", NOSA_IO_ERROR,
         "cannot listen on 192.0.2.1:0: Cannot assign requested address"},
        {taken, NOSA_IO_ERROR, "Address already in use"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_http *http;
        struct nosa_error error = {0};
        const struct nosa_http_options options = {.address = cases[i].address};
        assert_int_equal(nosa_http_create(&http, &options, &error), cases[i].status);
        assert_null(http);
        assert_non_null(strstr(error.text, cases[i].text));
    }
}

static void test_without_metrics_and_probes(void **state)
{
    (void)state;
    struct fixture plain = {0};
    const struct nosa_http_options options = {.address = ":0"};
    assert_int_equal(nosa_http_create(&plain.http, &options, NULL), NOSA_OK);
    (void)get(&plain, "/metrics", "404");
    (void)get(&plain, "/healthz", "200");
    (void)get(&plain, "/readyz", "200");
    nosa_http_free(plain.http);
    nosa_http_free(NULL);
}

static enum nosa_status create_once(void *context, struct nosa_error *error)
{
    (void)context;
    struct nosa_http *http;
    const struct nosa_http_options options = {.address = "127.0.0.1:0"};
    enum nosa_status status = nosa_http_create(&http, &options, error);
    nosa_http_free(http);
    return status;
}

static void test_create_without_memory(void **state)
{
    (void)state;
    assert_true(nosa_alloc_fail_sweep(create_once, NULL) >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_healthz),
        cmocka_unit_test(test_readyz),
        cmocka_unit_test(test_not_found),
        cmocka_unit_test(test_methods),
        cmocka_unit_test(test_spoilt_requests),
        cmocka_unit_test(test_long_headers_are_refused),
        cmocka_unit_test(test_long_body_is_refused),
        cmocka_unit_test(test_silent_connections_time_out),
        cmocka_unit_test(test_keep_alive),
        cmocka_unit_test(test_create_refuses),
        cmocka_unit_test(test_without_metrics_and_probes),
        cmocka_unit_test(test_create_without_memory),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
