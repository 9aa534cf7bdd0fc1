#include "rpc/channel_internal.h"

#include <stdlib.h>
#include <string.h>

#include <grpc/grpc_security.h>

#include "rpc/address.h"
#include "rpc/tls_internal.h"

static uint32_t or_default(uint32_t value, uint32_t standard)
{
    return value ? value : standard;
}

static grpc_arg int_arg(const char *key, uint32_t value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER,
                      .key = (char *)(uintptr_t)key,
                      .value.integer = value > INT32_MAX ? INT32_MAX : (int)value};
}

static grpc_channel *make_grpc_channel(const char *address,
                                       const struct nosa_rpc_channel_options *options,
                                       grpc_channel_credentials *credentials)
{
    const char *server_name = options->tls ? options->tls->server_name : NULL;
    grpc_arg args[20] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                or_default(options->message_bytes_max, 16u << 20)),
        int_arg(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
                or_default(options->stream_window_bytes, 64u << 10)),
        int_arg(GRPC_ARG_HTTP2_BDP_PROBE, 0),
        int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, or_default(options->backoff_min_ms, 100)),
        int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, or_default(options->backoff_max_ms, 2000)),
        /* Despite its name, the time that one attempt may take. */
        int_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, or_default(options->connect_timeout_ms, 5000)),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, or_default(options->keepalive_ms, 10000)),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, or_default(options->keepalive_timeout_ms, 5000)),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1u << GRPC_COMPRESS_NONE),
        int_arg(GRPC_ARG_ENABLE_RETRIES, 0),
        int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        int_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        int_arg(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS,
                or_default(options->backoff_max_ms, 2000)),
    };
    size_t count = 17;
    if (server_name)
        args[count++] = (grpc_arg){.type = GRPC_ARG_STRING,
                                   .key = (char *)(uintptr_t)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
                                   .value.string = (char *)(uintptr_t)server_name};
    grpc_channel_args list = {count, args};
    return grpc_channel_create(address, credentials, &list);
}

static enum nosa_status make_credentials(const struct nosa_rpc_tls *tls,
                                         grpc_channel_credentials **credentials,
                                         struct nosa_error *error)
{
    if (!nosa_rpc_tls_is_on(tls)) {
        *credentials = grpc_insecure_credentials_create();
        return NOSA_OK;
    }
    struct nosa_rpc_pem pem;
    NOSA_TRY(nosa_rpc_tls_load(tls, false, &pem, error));
    grpc_ssl_pem_key_cert_pair pair = {.private_key = pem.key, .cert_chain = pem.cert};
    *credentials = grpc_ssl_credentials_create_ex(pem.ca, pem.cert ? &pair : NULL, NULL, NULL);
    nosa_rpc_pem_free(&pem);
    return NOSA_OK;
}

static enum nosa_status check_address(const char *address, struct nosa_error *error)
{
    char host[NOSA_RPC_HOST_MAX];
    uint16_t port;
    NOSA_TRY(nosa_rpc_address_split(address, host, &port, error));
    if (!host[0] || port == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "\"%s\" cannot be dialled: it has no %s", address,
                              host[0] ? "port" : "host");
    return NOSA_OK;
}

static enum nosa_status add_targets(struct nosa_rpc_channel *channel,
                                    const struct nosa_rpc_channel_options *options,
                                    grpc_channel_credentials *credentials, struct nosa_error *error)
{
    for (size_t i = 0; i < options->address_count; i++) {
        struct nosa_rpc_target *target = &channel->targets[i];
        NOSA_TRY(check_address(options->addresses[i], error));
        target->address = strdup(options->addresses[i]);
        if (!target->address)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a channel");
        target->grpc = make_grpc_channel(target->address, options, credentials);
        channel->target_count++;
    }
    return NOSA_OK;
}

enum nosa_status nosa_rpc_channel_create(struct nosa_rpc_channel **out,
                                         struct nosa_rpc_runtime *runtime,
                                         const struct nosa_rpc_channel_options *options,
                                         struct nosa_error *error)
{
    NOSA_ASSERT(options->address_count > 0);
    *out = NULL;
    struct nosa_rpc_channel *channel =
        calloc(1, sizeof *channel + options->address_count * sizeof channel->targets[0]);
    if (!channel)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a channel");
    atomic_init(&channel->references, 1);
    channel->runtime = runtime;
    channel->unpacked_bytes_max =
        options->unpacked_bytes_max ? options->unpacked_bytes_max : 64u << 20;
    grpc_channel_credentials *credentials = NULL;
    enum nosa_status status = make_credentials(options->tls, &credentials, error);
    if (status == NOSA_OK)
        status = add_targets(channel, options, credentials, error);
    if (credentials)
        grpc_channel_credentials_release(credentials);
    if (status != NOSA_OK) {
        nosa_rpc_channel_release(channel);
        return status;
    }
    *out = channel;
    return NOSA_OK;
}

void nosa_rpc_channel_retain(struct nosa_rpc_channel *channel)
{
    atomic_fetch_add_explicit(&channel->references, 1, memory_order_relaxed);
}

void nosa_rpc_channel_release(struct nosa_rpc_channel *channel)
{
    if (atomic_fetch_sub_explicit(&channel->references, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t i = 0; i < channel->target_count; i++) {
        grpc_channel_destroy(channel->targets[i].grpc);
        free(channel->targets[i].address);
    }
    free(channel);
}

void nosa_rpc_channel_free(struct nosa_rpc_channel *channel)
{
    if (channel)
        nosa_rpc_channel_release(channel);
}

void nosa_rpc_channel_reset_backoff(struct nosa_rpc_channel *channel)
{
    for (uint32_t i = 0; i < channel->target_count; i++)
        grpc_channel_reset_connect_backoff(channel->targets[i].grpc);
}

void nosa_rpc_channel_connect(struct nosa_rpc_channel *channel)
{
    grpc_channel *grpc = channel->targets[atomic_load(&channel->current)].grpc;
    (void)grpc_channel_check_connectivity_state(grpc, 1);
}

const char *nosa_rpc_channel_address(struct nosa_rpc_channel *channel)
{
    return channel->targets[atomic_load(&channel->current)].address;
}

void nosa_rpc_channel_move_on(struct nosa_rpc_channel *channel, uint32_t index)
{
    unsigned expected = index;
    (void)atomic_compare_exchange_strong(&channel->current, &expected,
                                         (index + 1) % channel->target_count);
}
