#include "rpc/server_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <grpc/grpc_security.h>

#include "base/clock.h"
#include "rpc/address.h"
#include "rpc/address_internal.h"
#include "rpc/tls_internal.h"

#define ARMED_PER_LOOP       2     /* calls of one method that may arrive at the same moment */
#define OPEN_CALLS_EXTRA     256   /* beyond calls_max, for `open` methods */
#define HANG_UP_MS           1000  /* for connections that were closed to be gone */
#define HANDSHAKE_TIMEOUT_MS 10000 /* of a connection that says nothing */
#define ADDRESSES_MAX        8     /* that one name may stand for */

static uint32_t or_default(uint32_t value, uint32_t standard)
{
    return value ? value : standard;
}

static void set_options(struct nosa_rpc_server_options *own,
                        const struct nosa_rpc_server_options *options)
{
    *own = *options;
    own->message_bytes_max = or_default(own->message_bytes_max, 16u << 20);
    own->unpacked_bytes_max = own->unpacked_bytes_max ? own->unpacked_bytes_max : 64u << 20;
    own->metadata_bytes_max = or_default(own->metadata_bytes_max, 16u << 10);
    own->quota_bytes = own->quota_bytes ? own->quota_bytes : 64u << 20;
    own->calls_max = or_default(own->calls_max, 16384);
    own->send_queue_max = or_default(own->send_queue_max, 64);
    own->keepalive_ms = or_default(own->keepalive_ms, 10000);
    own->keepalive_timeout_ms = or_default(own->keepalive_timeout_ms, 5000);
    own->ping_interval_min_ms = or_default(own->ping_interval_min_ms, 500);
}

static grpc_arg int_arg(const char *key, uint32_t value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER,
                      .key = (char *)(uintptr_t)key,
                      .value.integer = value > INT32_MAX ? INT32_MAX : (int)value};
}

static grpc_server *make_grpc_server(const struct nosa_rpc_server_options *options,
                                     grpc_resource_quota *quota)
{
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, options->message_bytes_max),
        int_arg(GRPC_ARG_MAX_METADATA_SIZE, options->metadata_bytes_max),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, options->keepalive_ms),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options->keepalive_timeout_ms),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                options->ping_interval_min_ms),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        int_arg(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, HANDSHAKE_TIMEOUT_MS),
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        /* A compressed megabyte would unfold to a thousand times as much. */
        int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1u << GRPC_COMPRESS_NONE),
        {.type = GRPC_ARG_POINTER,
         .key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {quota, grpc_resource_quota_arg_vtable()}},
    };
    grpc_channel_args list = {sizeof args / sizeof args[0], args};
    return grpc_server_create(&list, NULL);
}

enum nosa_status nosa_rpc_server_create(struct nosa_rpc_server **out,
                                        struct nosa_rpc_runtime *runtime,
                                        const struct nosa_rpc_server_options *options,
                                        struct nosa_error *error)
{
    *out = NULL;
    struct nosa_rpc_server *server = calloc(1, sizeof *server);
    if (!server)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for an RPC server");
    server->runtime = runtime;
    set_options(&server->options, options);
    server->quota = grpc_resource_quota_create("nosa");
    grpc_resource_quota_resize(server->quota, server->options.quota_bytes);
    server->grpc = make_grpc_server(&server->options, server->quota);
    for (uint32_t i = 0; i < runtime->loop_count; i++)
        grpc_server_register_completion_queue(server->grpc, runtime->loops[i].queue, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&server->mutex, NULL);
    *out = server;
    return NOSA_OK;
}

/* ---- services ---- */

static const ProtobufCMethodDescriptor *find_method(const ProtobufCServiceDescriptor *service,
                                                    const char *name)
{
    for (unsigned i = 0; i < service->n_methods; i++)
        if (strcmp(service->methods[i].name, name) == 0)
            return &service->methods[i];
    return NULL;
}

static enum nosa_status fill_route(struct nosa_rpc_route *route, struct nosa_rpc_server *server,
                                   const ProtobufCServiceDescriptor *service,
                                   const struct nosa_rpc_method *method, void *context,
                                   struct nosa_error *error)
{
    route->server = server;
    route->method = method;
    route->context = context;
    route->descriptor = find_method(service, method->name);
    NOSA_ASSERT(route->descriptor && method->start);
    if (asprintf(&route->path, "/%s/%s", service->name, method->name) < 0) {
        route->path = NULL;
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for service %s", service->name);
    }
    grpc_server_register_method_payload_handling payload =
        method->kind == NOSA_RPC_BIDIRECTIONAL ? GRPC_SRM_PAYLOAD_NONE
                                               : GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER;
    route->registered = grpc_server_register_method(server->grpc, route->path, NULL, payload, 0);
    NOSA_ASSERT(route->registered); /* else the method is there twice */
    return NOSA_OK;
}

enum nosa_status nosa_rpc_server_add_service(struct nosa_rpc_server *server,
                                             const ProtobufCServiceDescriptor *descriptor,
                                             const struct nosa_rpc_method *methods, size_t count,
                                             void *context, struct nosa_error *error)
{
    NOSA_ASSERT(!server->started);
    struct nosa_rpc_service *service =
        calloc(1, sizeof *service + count * sizeof service->routes[0]);
    if (!service)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for service %s",
                              descriptor->name);
    service->descriptor = descriptor;
    service->route_count = count;
    service->next = server->services;
    server->services = service;
    for (size_t i = 0; i < count; i++)
        NOSA_TRY(fill_route(&service->routes[i], server, descriptor, &methods[i], context, error));
    return NOSA_OK;
}

void nosa_rpc_server_add_hook(struct nosa_rpc_server *server, const struct nosa_rpc_hook *hook)
{
    NOSA_ASSERT(!server->started && server->hook_count < NOSA_RPC_HOOKS_MAX);
    server->hooks[server->hook_count++] = *hook;
}

/* ---- ports ---- */

static enum nosa_status make_credentials(const struct nosa_rpc_tls *tls,
                                         grpc_server_credentials **credentials,
                                         struct nosa_error *error)
{
    if (!nosa_rpc_tls_is_on(tls)) {
        *credentials = grpc_insecure_server_credentials_create();
        return NOSA_OK;
    }
    struct nosa_rpc_pem pem;
    NOSA_TRY(nosa_rpc_tls_load(tls, true, &pem, error));
    grpc_ssl_pem_key_cert_pair pair = {.private_key = pem.key, .cert_chain = pem.cert};
    *credentials = grpc_ssl_server_credentials_create_ex(
        pem.ca, &pair, 1,
        pem.ca ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
        NULL);
    nosa_rpc_pem_free(&pem);
    return NOSA_OK;
}

/* Opens numeric addresses on one port, which the first one takes when `port` is 0. */
static uint16_t add_ports(struct nosa_rpc_server *server, char (*numeric)[NOSA_RPC_ADDRESS_MAX],
                          size_t count, uint16_t port, grpc_server_credentials *credentials)
{
    for (size_t i = 0; i < count; i++) {
        char host[NOSA_RPC_HOST_MAX];
        char address[NOSA_RPC_ADDRESS_MAX + 8];
        uint16_t unused;
        (void)nosa_rpc_address_split(numeric[i], host, &unused, NULL);
        bool v6 = strchr(host, ':') != NULL;
        snprintf(address, sizeof address, "%s%s%s:%u", v6 ? "[" : "", host, v6 ? "]" : "", port);
        int opened = grpc_server_add_http2_port(server->grpc, address, credentials);
        if (opened <= 0)
            return 0;
        port = (uint16_t)opened;
    }
    return port;
}

/* Keeps the addresses that this machine has; fails on one that cannot be opened. */
static enum nosa_status choose_addresses(const char *address, char (*numeric)[NOSA_RPC_ADDRESS_MAX],
                                         size_t *count, struct nosa_error *error)
{
    size_t kept = 0;
    int code = 0;
    for (size_t i = 0; i < *count; i++) {
        int result = nosa_rpc_address_try_bind(numeric[i]);
        if (result == 0) {
            memmove(numeric[kept++], numeric[i], NOSA_RPC_ADDRESS_MAX);
            continue;
        }
        code = result;
        if (result != EADDRNOTAVAIL && result != EAFNOSUPPORT)
            break;
        code = result;
    }
    bool usable = kept > 0 && (code == 0 || code == EADDRNOTAVAIL || code == EAFNOSUPPORT);
    if (!usable)
        return nosa_error_set(error, NOSA_IO_ERROR, "cannot listen on %s: %s", address,
                              strerror(code ? code : EADDRNOTAVAIL));
    *count = kept;
    return NOSA_OK;
}

enum nosa_status nosa_rpc_server_listen(struct nosa_rpc_server *server, const char *address,
                                        const struct nosa_rpc_tls *tls, uint16_t *port,
                                        struct nosa_error *error)
{
    NOSA_ASSERT(!server->started && server->port_count < NOSA_RPC_PORTS_MAX);
    char host[NOSA_RPC_HOST_MAX];
    char numeric[ADDRESSES_MAX][NOSA_RPC_ADDRESS_MAX];
    size_t count;
    uint16_t wanted;
    NOSA_TRY(nosa_rpc_address_split(address, host, &wanted, error));
    NOSA_TRY(nosa_rpc_address_resolve(address, numeric, ADDRESSES_MAX, &count, error));
    NOSA_TRY(choose_addresses(address, numeric, &count, error));
    grpc_server_credentials *credentials;
    NOSA_TRY(make_credentials(tls, &credentials, error));
    if (!host[0]) {
        /* gRPC opens both families, or the one there is, for this one. */
        snprintf(numeric[0], sizeof numeric[0], "[::]:%u", wanted);
        count = 1;
    }
    uint16_t opened = add_ports(server, numeric, count, wanted, credentials);
    grpc_server_credentials_release(credentials);
    if (opened == 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "cannot listen on %s", address);
    server->ports[server->port_count++] = opened;
    if (port)
        *port = opened;
    return NOSA_OK;
}

/* ---- life ---- */

enum nosa_status nosa_rpc_server_start(struct nosa_rpc_server *server, struct nosa_error *error)
{
    NOSA_ASSERT(!server->started);
    grpc_server_start(server->grpc);
    server->started = true;
    bool armed = true;
    for (uint32_t l = 0; l < server->runtime->loop_count; l++) {
        struct nosa_rpc_loop *loop = &server->runtime->loops[l];
        armed = armed && nosa_rpc_unknown_arm(server, loop);
        for (struct nosa_rpc_service *service = server->services; service; service = service->next)
            for (size_t i = 0; i < service->route_count * ARMED_PER_LOOP; i++)
                armed = armed && nosa_rpc_call_arm(&service->routes[i / ARMED_PER_LOOP], loop);
    }
    if (!armed)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to start an RPC server");
    return NOSA_OK;
}

static void shutdown_complete(struct nosa_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct nosa_rpc_server *server = NOSA_RPC_OWNER(tag, struct nosa_rpc_server, shutdown_tag);
    pthread_mutex_lock(&server->mutex);
    server->notified = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->mutex);
}

static struct timespec in_ms(uint32_t ms)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    moment.tv_sec += ms / 1000;
    moment.tv_nsec += (long)(ms % 1000) * 1000000;
    if (moment.tv_nsec >= 1000000000) {
        moment.tv_sec++;
        moment.tv_nsec -= 1000000000;
    }
    return moment;
}

/* Waits until no call is left; false: the time was over first. */
static bool wait_without_calls(struct nosa_rpc_server *server, uint32_t ms)
{
    struct timespec deadline = in_ms(ms);
    int failed = 0;
    pthread_mutex_lock(&server->mutex);
    while (server->live > 0 && failed == 0)
        failed = pthread_cond_timedwait(&server->changed, &server->mutex, &deadline);
    bool quiet = server->live == 0;
    pthread_mutex_unlock(&server->mutex);
    return quiet;
}

/* Waits until all is over; false: the time (NULL: there is none) was over first. */
static bool wait_over(struct nosa_rpc_server *server, const struct timespec *deadline)
{
    int failed = 0;
    pthread_mutex_lock(&server->mutex);
    while ((!server->notified || server->live > 0 || server->armed > 0) && failed == 0) {
        if (deadline)
            failed = pthread_cond_timedwait(&server->changed, &server->mutex, deadline);
        else
            pthread_cond_wait(&server->changed, &server->mutex);
    }
    pthread_mutex_unlock(&server->mutex);
    return failed == 0;
}

bool nosa_rpc_server_shutdown(struct nosa_rpc_server *server, uint32_t grace_ms)
{
    NOSA_ASSERT(!server->shut_down && !nosa_rpc_runtime_is_own_thread());
    server->shut_down = true;
    atomic_store(&server->closing, true);
    for (size_t i = 0; i < server->hook_count; i++)
        if (server->hooks[i].shutdown)
            server->hooks[i].shutdown(server->hooks[i].context);
    bool quiet = wait_without_calls(server, grace_ms);
    nosa_rpc_server_hang_up(server);
    server->shutdown_tag.complete = shutdown_complete;
    grpc_server_shutdown_and_notify(server->grpc, server->runtime->loops[0].queue,
                                    nosa_rpc_tag_hand_over(&server->shutdown_tag));
    struct timespec deadline = in_ms(quiet ? HANG_UP_MS : 0);
    if (!wait_over(server, &deadline)) {
        grpc_server_cancel_all_calls(server->grpc);
        (void)wait_over(server, NULL);
    }
    return quiet;
}

static void free_services(struct nosa_rpc_server *server)
{
    while (server->services) {
        struct nosa_rpc_service *service = server->services;
        server->services = service->next;
        for (size_t i = 0; i < service->route_count; i++)
            free(service->routes[i].path);
        free(service);
    }
}

void nosa_rpc_server_free(struct nosa_rpc_server *server)
{
    if (!server)
        return;
    if (!server->shut_down)
        (void)nosa_rpc_server_shutdown(server, 0);
    grpc_server_destroy(server->grpc);
    for (size_t i = server->hook_count; i-- > 0;)
        server->hooks[i].free(server->hooks[i].context);
    free_services(server);
    grpc_resource_quota_unref(server->quota);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->mutex);
    free(server);
}

/* ---- counts ---- */

uint32_t nosa_rpc_server_call_count(struct nosa_rpc_server *server)
{
    pthread_mutex_lock(&server->mutex);
    uint32_t live = server->live;
    pthread_mutex_unlock(&server->mutex);
    return live;
}

bool nosa_rpc_server_enter(struct nosa_rpc_server *server, bool open)
{
    uint32_t bound = server->options.calls_max + (open ? OPEN_CALLS_EXTRA : 0);
    pthread_mutex_lock(&server->mutex);
    bool within = server->live < bound;
    server->live++;
    pthread_mutex_unlock(&server->mutex);
    return within;
}

void nosa_rpc_server_leave(struct nosa_rpc_server *server)
{
    pthread_mutex_lock(&server->mutex);
    NOSA_ASSERT(server->live > 0);
    if (--server->live == 0)
        pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->mutex);
}

void nosa_rpc_server_count_armed(struct nosa_rpc_server *server, int change)
{
    pthread_mutex_lock(&server->mutex);
    server->armed += (uint32_t)change;
    if (server->armed == 0)
        pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->mutex);
}
