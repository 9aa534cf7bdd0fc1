#include "http/http.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>

#include "base/buffer.h"
#include "base/log.h"

#define CONNECTION_MEMORY_BYTES 16384 /* of one connection: request line, headers, bookkeeping */
#define BODY_BYTES_MAX          65536 /* of a request; nothing reads it */
#define LISTEN_BACKLOG          64
#define PROMETHEUS_TEXT         "text/plain; version=0.0.4; charset=utf-8"
#define PLAIN_TEXT              "text/plain; charset=utf-8"

struct nosa_http {
    struct MHD_Daemon *daemon;
    struct nosa_http_options options; /* its address is not kept */
    uint16_t port;
};

/* ---- answers; all on the server's thread ---- */

static enum MHD_Result respond(struct MHD_Connection *connection, unsigned code, const char *type,
                               const char *text, size_t size)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (!response)
        return MHD_NO;
    enum MHD_Result result = MHD_add_response_header(response, "Content-Type", type);
    if (result == MHD_YES)
        result = MHD_add_response_header(response, "Cache-Control", "no-store");
    if (result == MHD_YES && code == MHD_HTTP_METHOD_NOT_ALLOWED)
        result = MHD_add_response_header(response, "Allow", "GET, HEAD");
    if (result == MHD_YES)
        result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result respond_text(struct MHD_Connection *connection, unsigned code,
                                    const char *text)
{
    return respond(connection, code, PLAIN_TEXT, text, strlen(text));
}

static enum MHD_Result answer_probe(struct nosa_http *http, struct MHD_Connection *connection,
                                    nosa_http_probe probe)
{
    char reason[NOSA_HTTP_REASON_MAX] = "";
    char line[NOSA_HTTP_REASON_MAX + 1];
    if (!probe || probe(http->options.context, reason))
        return respond_text(connection, MHD_HTTP_OK, "ok\n");
    snprintf(line, sizeof line, "%s\n", reason[0] ? reason : "unavailable");
    return respond_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, line);
}

static enum MHD_Result answer_metrics(struct nosa_http *http, struct MHD_Connection *connection)
{
    struct nosa_buffer text = {0};
    struct nosa_error error = {0};
    if (http->options.collect)
        http->options.collect(http->options.context);
    enum MHD_Result result;
    if (nosa_metrics_render(http->options.metrics, &text, &error) == NOSA_OK)
        result = respond(connection, MHD_HTTP_OK, PROMETHEUS_TEXT, text.data ? text.data : "",
                         text.size);
    else
        result = respond_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "no memory\n");
    nosa_buffer_free(&text);
    return result;
}

static enum MHD_Result answer(struct nosa_http *http, struct MHD_Connection *connection,
                              const char *path)
{
    if (strcmp(path, "/metrics") == 0 && http->options.metrics)
        return answer_metrics(http, connection);
    if (strcmp(path, "/healthz") == 0)
        return answer_probe(http, connection, http->options.healthz);
    if (strcmp(path, "/readyz") == 0)
        return answer_probe(http, connection, http->options.readyz);
    return respond_text(connection, MHD_HTTP_NOT_FOUND,
                        "not found; there are /metrics, /healthz and /readyz\n");
}

/* Called once when the headers are there, again for each part of a body, and once more at its end,
 * when the answer is given. `*state` is ours: how much of a body has come, as a number. */
static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *path,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **state)
{
    (void)version;
    (void)upload;
    uintptr_t seen = (uintptr_t)*state;
    if (seen == 0) {
        *state = (void *)(uintptr_t)1;
        return MHD_YES;
    }
    if (*upload_size > 0) {
        seen += *upload_size;
        *upload_size = 0;
        *state = (void *)seen;
        return seen > BODY_BYTES_MAX ? MHD_NO : MHD_YES;
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return respond_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    return answer(context, connection, path);
}

static void log_line(void *context, const char *format, va_list arguments)
    __attribute__((format(printf, 2, 0)));

static void log_line(void *context, const char *format, va_list arguments)
{
    char line[512];
    (void)context;
    vsnprintf(line, sizeof line, format, arguments);
    line[strcspn(line, "\n")] = '\0';
    nosa_log(NOSA_LOG_DEBUG, "http", "%s", line);
}

/* ---- the port ---- */

/* Takes "HOST:PORT" or "[HOST]:PORT" apart; the host may be empty. */
static enum nosa_status split(const char *address, char *host, size_t host_size, char *service,
                              size_t service_size, struct nosa_error *error)
{
    const char *colon = strrchr(address, ':');
    size_t size = colon ? (size_t)(colon - address) : 0;
    const char *begin = address;
    if (colon && size >= 2 && address[0] == '[' && address[size - 1] == ']') {
        begin++;
        size -= 2;
    } else if (!colon || memchr(address, ':', size)) {
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.100s\" is no HOST:PORT", address);
    }
    size_t digits = strspn(colon + 1, "0123456789");
    if (size >= host_size || digits == 0 || digits >= service_size || colon[1 + digits] ||
        strtoul(colon + 1, NULL, 10) > UINT16_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.100s\" is no HOST:PORT", address);
    memcpy(host, begin, size);
    host[size] = '\0';
    memcpy(service, colon + 1, digits + 1);
    return NOSA_OK;
}

/* A listening socket, or -1 with errno. */
static int open_socket(const struct addrinfo *info)
{
    int on = 1;
    int off = 0;
    int descriptor = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0)
        return -1;
    (void)!setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (info->ai_family == AF_INET6)
        (void)!setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(descriptor, info->ai_addr, info->ai_addrlen) == 0 &&
        listen(descriptor, LISTEN_BACKLOG) == 0)
        return descriptor;
    int code = errno;
    close(descriptor);
    errno = code;
    return -1;
}

/* The port that a bound socket has. */
static uint16_t port_of(int descriptor)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    char service[8];
    if (getsockname(descriptor, (struct sockaddr *)&address, &size) != 0 ||
        getnameinfo((struct sockaddr *)&address, size, NULL, 0, service, sizeof service,
                    NI_NUMERICSERV) != 0)
        return 0;
    return (uint16_t)strtoul(service, NULL, 10);
}

static enum nosa_status open_port(const char *address, int *descriptor, struct nosa_error *error)
{
    char host[256];
    char service[8];
    NOSA_TRY(split(address, host, sizeof host, service, sizeof service, error));
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list = NULL;
    int code = getaddrinfo(host[0] ? host : NULL, service, &hints, &list);
    if (code != 0)
        return nosa_error_set(error, NOSA_NOT_FOUND, "cannot resolve \"%s\": %s", host,
                              gai_strerror(code));
    /* Without a host: the address of both families first. */
    *descriptor = -1;
    for (int pass = 0; pass < 2 && *descriptor < 0; pass++)
        for (struct addrinfo *info = list; info && *descriptor < 0; info = info->ai_next)
            if ((!host[0] && info->ai_family == AF_INET6) == (pass == 0) || host[0])
                *descriptor = open_socket(info);
    int reason = errno;
    freeaddrinfo(list);
    if (*descriptor < 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "cannot listen on %s: %s", address,
                              strerror(reason));
    return NOSA_OK;
}

/* ---- life ---- */

enum nosa_status nosa_http_create(struct nosa_http **out, const struct nosa_http_options *options,
                                  struct nosa_error *error)
{
    *out = NULL;
    int descriptor;
    NOSA_TRY(open_port(options->address, &descriptor, error));
    struct nosa_http *http = calloc(1, sizeof *http);
    if (!http) {
        close(descriptor);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for an HTTP server");
    }
    http->options = *options;
    http->options.address = NULL;
    http->port = port_of(descriptor);
    unsigned connections_max = options->connections_max ? options->connections_max : 64;
    unsigned timeout_s = options->timeout_s ? options->timeout_s : 10;
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ERROR_LOG, 0, NULL, NULL, handle, http,
        MHD_OPTION_EXTERNAL_LOGGER, log_line, NULL, MHD_OPTION_LISTEN_SOCKET, descriptor,
        MHD_OPTION_CONNECTION_LIMIT, connections_max, MHD_OPTION_CONNECTION_TIMEOUT, timeout_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_END);
    if (!http->daemon) {
        close(descriptor);
        free(http);
        return nosa_error_set(error, NOSA_IO_ERROR, "cannot serve HTTP on %s", options->address);
    }
    *out = http;
    return NOSA_OK;
}

uint16_t nosa_http_port(const struct nosa_http *http)
{
    return http->port;
}

void nosa_http_free(struct nosa_http *http)
{
    if (!http)
        return;
    MHD_stop_daemon(http->daemon);
    free(http);
}
