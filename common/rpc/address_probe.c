/* Dials a listener as a client would, and opens a port as a server would, to learn what is wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/address.h"
#include "rpc/address_internal.h"

/* The opening of an HTTP/2 client (RFC 9113, section 3.4) and empty SETTINGS. */
static const char opening[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                              "\0\0\0\4\0\0\0\0";

/* `numeric` as the resolver wrote it; the caller frees the list. */
static struct addrinfo *numeric_info(const char *numeric)
{
    char host[NOSA_RPC_HOST_MAX];
    char service[8];
    uint16_t port;
    if (nosa_rpc_address_split(numeric, host, &port, NULL) != NOSA_OK)
        return NULL;
    snprintf(service, sizeof service, "%u", port);
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    return getaddrinfo(host, service, &hints, &list) == 0 ? list : NULL;
}

/* Waits until the socket is ready; false when the time is over. */
static bool wait_for(int descriptor, short events, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = nosa_monotonic_ns();
        if (now >= deadline_ns)
            return false;
        struct pollfd entry = {.fd = descriptor, .events = events};
        int wait_ms = (int)((deadline_ns - now + NOSA_NS_PER_MS - 1) / NOSA_NS_PER_MS);
        int count = poll(&entry, 1, wait_ms);
        if (count > 0)
            return true;
        if (count < 0 && errno != EINTR)
            return false;
    }
}

static enum nosa_status silent(const char *address, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_DEADLINE_EXCEEDED, "%s does not answer", address);
}

static enum nosa_status refused(const char *address, int code, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_UNAVAILABLE, "%s: %s", address, strerror(code));
}

/* Connects and asks; any bytes, or the end of the connection, are an answer. */
static enum nosa_status ask(int descriptor, const struct addrinfo *info, const char *address,
                            uint64_t deadline_ns, struct nosa_error *error)
{
    char answer;
    int code = 0;
    socklen_t size = sizeof code;
    if (connect(descriptor, info->ai_addr, info->ai_addrlen) != 0 && errno != EINPROGRESS)
        return refused(address, errno, error);
    if (!wait_for(descriptor, POLLOUT, deadline_ns))
        return silent(address, error);
    if (getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &code, &size) != 0)
        code = errno;
    if (code != 0)
        return refused(address, code, error);
    if (send(descriptor, opening, sizeof opening - 1, MSG_NOSIGNAL) < 0 && errno != ECONNRESET &&
        errno != EPIPE)
        return refused(address, errno, error);
    if (!wait_for(descriptor, POLLIN, deadline_ns))
        return silent(address, error);
    (void)!recv(descriptor, &answer, 1, 0);
    return NOSA_OK;
}

enum nosa_status nosa_rpc_address_probe(const char *address, uint32_t timeout_ms,
                                        struct nosa_error *error)
{
    char numeric[8][NOSA_RPC_ADDRESS_MAX];
    size_t count;
    uint64_t deadline_ns = nosa_monotonic_ns() + timeout_ms * NOSA_NS_PER_MS;
    NOSA_TRY(nosa_rpc_address_resolve(address, numeric, 8, &count, error));
    struct nosa_error attempt = {0};
    nosa_error_set(&attempt, NOSA_NOT_FOUND, "\"%s\" has no address", address);
    for (size_t i = 0; i < count; i++) {
        struct addrinfo *info = numeric_info(numeric[i]);
        int descriptor =
            info ? socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) : -1;
        nosa_error_clear(&attempt);
        enum nosa_status status;
        if (descriptor < 0)
            status = refused(numeric[i], errno, &attempt);
        else
            status = ask(descriptor, info, numeric[i], deadline_ns, &attempt);
        if (descriptor >= 0)
            close(descriptor);
        if (info)
            freeaddrinfo(info);
        if (status == NOSA_OK)
            return NOSA_OK;
    }
    return nosa_error_set(error, attempt.status, "%s", attempt.text);
}

int nosa_rpc_address_try_bind(const char *numeric)
{
    struct addrinfo *info = numeric_info(numeric);
    int on = 1;
    int code = 0;
    int descriptor = info ? socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    if (descriptor < 0) {
        code = info ? errno : EINVAL;
    } else {
        if (info->ai_family == AF_INET6)
            (void)!setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
        (void)!setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(descriptor, info->ai_addr, info->ai_addrlen) != 0 || listen(descriptor, 1) != 0)
            code = errno;
        close(descriptor);
    }
    if (info)
        freeaddrinfo(info);
    return code;
}
