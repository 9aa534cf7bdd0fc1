#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rpc/address.h"
#include "rpc/server.h"

static void test_split_accepts(void **state)
{
    (void)state;
    static const struct {
        const char *address;
        const char *host;
        uint16_t port;
    } cases[] = {
        {"localhost:50051", "localhost", 50051},
        {"127.0.0.1:1", "127.0.0.1", 1},
        {"[::1]:65535", "::1", 65535},
        {"[fe80::1%eth0]:7", "fe80::1%eth0", 7},
        {":0", "", 0},
        {"a-b_c.example.org:80", "a-b_c.example.org", 80},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char host[NOSA_RPC_HOST_MAX];
        uint16_t port = 9;
        assert_int_equal(nosa_rpc_address_split(cases[i].address, host, &port, NULL), NOSA_OK);
        assert_string_equal(host, cases[i].host);
        assert_int_equal(port, cases[i].port);
    }
}

static void test_split_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *address;
        const char *reason;
    } cases[] = {
        {"", "the port is missing"},
        {"localhost", "the port is missing"},
        {"[::1]", "the port is missing"},
        {"[::1]50051", "the port is missing"},
        {"[::1:50051", "the bracket is not closed"},
        {"[]:1", "the host has characters that no host has"},
        {"::1:50051", "an IPv6 address stands in brackets"},
        {"host:", "the port is no number of 0-65535"},
        {"host:65536", "the port is no number of 0-65535"},
        {"host:123456", "the port is no number of 0-65535"},
        {"host:-1", "the port is no number of 0-65535"},
        {"host:80x", "the port is no number of 0-65535"},
        {"ho st:80", "the host has characters that no host has"},
        {"http://host:80", "an IPv6 address stands in brackets"},
        {"host/x:80", "the host has characters that no host has"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char host[NOSA_RPC_HOST_MAX];
        char text[NOSA_ERROR_TEXT_MAX];
        uint16_t port;
        struct nosa_error error = {0};
        assert_int_equal(nosa_rpc_address_split(cases[i].address, host, &port, &error),
                         NOSA_INVALID_ARGUMENT);
        snprintf(text, sizeof text, "\"%s\" is no HOST:PORT: %s", cases[i].address,
                 cases[i].reason);
        assert_string_equal(error.text, text);
    }
}

static void test_split_long_host(void **state)
{
    (void)state;
    char address[400];
    char host[NOSA_RPC_HOST_MAX];
    uint16_t port;
    memset(address, 'a', sizeof address);
    memcpy(address + 253, ":80", 4);
    assert_int_equal(nosa_rpc_address_split(address, host, &port, NULL), NOSA_OK);
    address[253] = 'a';
    memcpy(address + 254, ":80", 4);
    assert_int_equal(nosa_rpc_address_split(address, host, &port, NULL), NOSA_INVALID_ARGUMENT);
}

static void test_resolve_numeric(void **state)
{
    (void)state;
    char numeric[4][NOSA_RPC_ADDRESS_MAX];
    size_t count;
    assert_int_equal(nosa_rpc_address_resolve("127.0.0.1:80", numeric, 4, &count, NULL), NOSA_OK);
    assert_int_equal(count, 1);
    assert_string_equal(numeric[0], "127.0.0.1:80");
    assert_int_equal(nosa_rpc_address_resolve("[::1]:80", numeric, 4, &count, NULL), NOSA_OK);
    assert_string_equal(numeric[0], "[::1]:80");
    assert_int_equal(nosa_rpc_address_resolve("localhost:80", numeric, 4, &count, NULL), NOSA_OK);
    assert_true(count >= 1);
}

static void test_resolve_unknown(void **state)
{
    (void)state;
    char numeric[4][NOSA_RPC_ADDRESS_MAX];
    size_t count;
    struct nosa_error error = {0};
    enum nosa_status status =
        nosa_rpc_address_resolve("no-such-host.invalid:80", numeric, 4, &count, &error);
    assert_true(status == NOSA_NOT_FOUND || status == NOSA_UNAVAILABLE);
    assert_int_equal(count, 0);
    assert_non_null(strstr(error.text, "no-such-host.invalid"));
}

/* A socket that listens and is never accepted from; returns it and stores its address. */
static int listen_deaf(char address[NOSA_RPC_ADDRESS_MAX])
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof name;
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(descriptor >= 0);
    assert_int_equal(bind(descriptor, (struct sockaddr *)&name, sizeof name), 0);
    assert_int_equal(listen(descriptor, 4), 0);
    assert_int_equal(getsockname(descriptor, (struct sockaddr *)&name, &size), 0);
    snprintf(address, NOSA_RPC_ADDRESS_MAX, "127.0.0.1:%u", ntohs(name.sin_port));
    return descriptor;
}

static void test_probe_deaf_listener(void **state)
{
    (void)state;
    char address[NOSA_RPC_ADDRESS_MAX];
    struct nosa_error error = {0};
    int descriptor = listen_deaf(address);
    uint64_t start = nosa_monotonic_ns();
    assert_int_equal(nosa_rpc_address_probe(address, 200, &error), NOSA_DEADLINE_EXCEEDED);
    uint64_t took_ms = (nosa_monotonic_ns() - start) / NOSA_NS_PER_MS;
    assert_true(took_ms >= 200 && took_ms < 10000);
    assert_non_null(strstr(error.text, "does not answer"));
    close(descriptor);
    nosa_error_clear(&error);
    assert_int_equal(nosa_rpc_address_probe(address, 2000, &error), NOSA_UNAVAILABLE);
    assert_non_null(strstr(error.text, "refused"));
}

static void test_probe_server(void **state)
{
    (void)state;
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    const struct nosa_rpc_server_options options = {0};
    struct nosa_error error = {0};
    char address[NOSA_RPC_ADDRESS_MAX];
    uint16_t port;
    assert_int_equal(nosa_rpc_runtime_create(&runtime, 1, &error), NOSA_OK);
    assert_int_equal(nosa_rpc_server_create(&server, runtime, &options, &error), NOSA_OK);
    assert_int_equal(nosa_rpc_server_listen(server, "localhost:0", NULL, &port, &error), NOSA_OK);
    assert_true(port > 0);
    assert_int_equal(nosa_rpc_server_start(server, &error), NOSA_OK);
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    assert_int_equal(nosa_rpc_address_probe(address, 5000, &error), NOSA_OK);
    assert_true(nosa_rpc_server_shutdown(server, 1000));
    assert_int_equal(nosa_rpc_address_probe(address, 1000, &error), NOSA_UNAVAILABLE);
    nosa_rpc_server_free(server);
    nosa_rpc_runtime_free(runtime);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_accepts),   cmocka_unit_test(test_split_refuses),
        cmocka_unit_test(test_split_long_host), cmocka_unit_test(test_resolve_numeric),
        cmocka_unit_test(test_resolve_unknown), cmocka_unit_test(test_probe_deaf_listener),
        cmocka_unit_test(test_probe_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
