#include "etcd_client.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "etcd/etcd.pb-c.h"
#include "rpc/address.h"
#include "rpc/client.h"
#include "rpc/message.h"

#define CALL_TIMEOUT_MS    2000
#define CONNECT_TIMEOUT_MS 2000
#define PAGE_KEYS          1024
#define KEYS_MAX           (4 * NOSA_MEMBERSHIP_OTHERS_MAX)
/* etcd counts pings more often than every 5 s as an attack; calls have deadlines anyway. */
#define PING_MS            20000
#define PING_TIMEOUT_MS    5000

struct nosa_etcd_client {
    /* fixed after create */
    struct nosa_rpc_runtime *runtime;
    struct nosa_etcd_options options;
    char endpoints[NOSA_ETCD_ENDPOINTS_MAX][NOSA_RPC_ADDRESS_MAX];
    uint32_t endpoint_count;
    void (*hint)(void *context);
    void *context;
    /* owned by the caller's thread */
    uint32_t current;
    uint32_t moves;                   /* since a call last succeeded */
    struct nosa_rpc_channel *channel; /* owned; NULL: none yet */
    uint64_t cluster_id;              /* 0: none has answered yet */
    struct nosa_rpc_stream *watch;    /* one reference; NULL: none was begun */
    atomic_bool watching; /* changes are told; set by the caller, reset by the watch's end */
    pthread_mutex_t mutex;
    pthread_cond_t ended;
    /* under mutex */
    bool end_awaited; /* the watch's last event is to come */
};

/* ---- endpoints ---- */

/* An URL has to say what the files say: whether there is TLS. */
static enum nosa_status strip_scheme(const struct nosa_etcd_client *client, const char *text,
                                     const char **address, struct nosa_error *error)
{
    bool https = strncmp(text, "https://", 8) == 0;
    bool http = strncmp(text, "http://", 7) == 0;
    *address = text + (https ? 8 : http ? 7 : 0);
    if (https && !client->options.tls.ca_path)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--etcd: '%s' needs --etcd-ca, who signs etcd's certificate", text);
    if (http && nosa_rpc_tls_is_on(&client->options.tls))
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "--etcd: '%s' is without TLS, which --etcd-ca and --etcd-cert ask for", text);
    return NOSA_OK;
}

static enum nosa_status read_endpoint(struct nosa_etcd_client *client, const char *text,
                                      size_t size, struct nosa_error *error)
{
    char whole[NOSA_RPC_ADDRESS_MAX], host[NOSA_RPC_HOST_MAX];
    const char *address;
    uint16_t port = 0;
    if (size >= sizeof whole)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--etcd: an endpoint is too long");
    snprintf(whole, sizeof whole, "%.*s", (int)size, text);
    if (size > 0 && whole[size - 1] == '/')
        whole[size - 1] = '\0';
    NOSA_TRY(strip_scheme(client, whole, &address, error));
    if (nosa_rpc_address_split(address, host, &port, error) != NOSA_OK)
        return nosa_error_prefix(error, "--etcd");
    if (!host[0] || port == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--etcd: '%s' names no host and port to dial", whole);
    if (client->endpoint_count == NOSA_ETCD_ENDPOINTS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--etcd: more than %d endpoints",
                              NOSA_ETCD_ENDPOINTS_MAX);
    snprintf(client->endpoints[client->endpoint_count++], NOSA_RPC_ADDRESS_MAX, "%s", address);
    return NOSA_OK;
}

static enum nosa_status read_endpoints(struct nosa_etcd_client *client, struct nosa_error *error)
{
    const char *text = client->options.endpoints;
    for (;;) {
        size_t size = strcspn(text, ",");
        NOSA_TRY(read_endpoint(client, text, size, error));
        if (text[size] == '\0')
            return NOSA_OK;
        text += size + 1;
    }
}

static enum nosa_status check_prefix(const char *prefix, struct nosa_error *error)
{
    size_t size = strlen(prefix);
    bool good =
        size > 1 && size < NOSA_ETCD_PREFIX_MAX && prefix[0] == '/' && prefix[size - 1] != '/';
    for (size_t i = 0; i < size && good; i++)
        good = (unsigned char)prefix[i] > 0x20 && prefix[i] != 0x7f;
    if (good)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "--etcd-prefix: '%.140s' is not like /nosa: a slash, then up to %d bytes "
                          "without blanks, no slash at the end",
                          prefix, NOSA_ETCD_PREFIX_MAX - 2);
}

static enum nosa_status make_channel(struct nosa_etcd_client *client, struct nosa_error *error)
{
    const char *address = client->endpoints[client->current];
    const struct nosa_rpc_channel_options options = {
        .addresses = &address,
        .address_count = 1,
        .tls = &client->options.tls,
        .backoff_max_ms = 1000,
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
        .keepalive_ms = PING_MS,
        .keepalive_timeout_ms = PING_TIMEOUT_MS,
    };
    if (client->channel)
        return NOSA_OK;
    return nosa_rpc_channel_create(&client->channel, client->runtime, &options, error);
}

enum nosa_status nosa_etcd_client_create(struct nosa_etcd_client **out,
                                         struct nosa_rpc_runtime *runtime,
                                         const struct nosa_etcd_options *options,
                                         void (*hint)(void *context), void *context,
                                         struct nosa_error *error)
{
    struct nosa_etcd_client *client = calloc(1, sizeof *client);
    *out = NULL;
    if (!client)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a client of etcd");
    client->runtime = runtime;
    client->options = *options;
    client->hint = hint;
    client->context = context;
    pthread_mutex_init(&client->mutex, NULL);
    pthread_cond_init(&client->ended, NULL);
    enum nosa_status status = read_endpoints(client, error);
    if (status == NOSA_OK)
        status = check_prefix(options->prefix, error);
    if (status == NOSA_OK && (status = make_channel(client, error)) != NOSA_OK)
        nosa_error_prefix(error, "--etcd");
    if (status != NOSA_OK) {
        nosa_etcd_client_free(client);
        return status;
    }
    *out = client;
    return NOSA_OK;
}

uint32_t nosa_etcd_client_endpoint_count(const struct nosa_etcd_client *client)
{
    return client->endpoint_count;
}

const char *nosa_etcd_client_endpoint(const struct nosa_etcd_client *client)
{
    return client->endpoints[client->current];
}

static void end_watch(struct nosa_etcd_client *client)
{
    if (!client->watch)
        return;
    nosa_rpc_stream_cancel(client->watch);
    pthread_mutex_lock(&client->mutex);
    while (client->end_awaited)
        pthread_cond_wait(&client->ended, &client->mutex);
    pthread_mutex_unlock(&client->mutex);
    nosa_rpc_stream_release(client->watch);
    client->watch = NULL;
}

void nosa_etcd_client_move_on(struct nosa_etcd_client *client)
{
    end_watch(client);
    nosa_rpc_channel_free(client->channel);
    client->channel = NULL;
    client->moves++;
    client->current = (client->current + 1) % client->endpoint_count;
}

void nosa_etcd_client_free(struct nosa_etcd_client *client)
{
    if (!client)
        return;
    end_watch(client);
    nosa_rpc_channel_free(client->channel);
    pthread_cond_destroy(&client->ended);
    pthread_mutex_destroy(&client->mutex);
    free(client);
}

/* ---- calls ---- */

static enum nosa_status check_header(struct nosa_etcd_client *client,
                                     const Etcdserverpb__ResponseHeader *header,
                                     struct nosa_error *error)
{
    const char *endpoint = nosa_etcd_client_endpoint(client);
    if (!header || header->cluster_id == 0)
        return nosa_error_set(error, NOSA_CORRUPT, "%s: answers, but not as an etcd does",
                              endpoint);
    if (client->cluster_id != 0 && client->cluster_id != header->cluster_id) {
        if (client->moves < client->endpoint_count)
            return nosa_error_set(error, NOSA_CORRUPT,
                                  "%s: belongs to another etcd cluster (%" PRIx64 ", not %" PRIx64
                                  ")",
                                  endpoint, header->cluster_id, client->cluster_id);
        nosa_log(NOSA_LOG_WARN, "etcd",
                 "%s: going over to etcd cluster %" PRIx64 "; %" PRIx64 " answers nowhere",
                 endpoint, header->cluster_id, client->cluster_id);
    }
    client->cluster_id = header->cluster_id;
    client->moves = 0;
    return NOSA_OK;
}

/* etcd says in words which of its NOT_FOUNDs it means. */
static enum nosa_status status_of(enum nosa_rpc_code code, struct nosa_error *error)
{
    if (code == NOSA_RPC_NOT_FOUND && strstr(error->text, "lease not found"))
        return error->status = NOSA_NOT_FOUND;
    if (code == NOSA_RPC_UNIMPLEMENTED) {
        struct nosa_error whole = {0};
        nosa_error_set(&whole, NOSA_CORRUPT, "%.400s (is this an etcd?)", error->text);
        *error = whole;
    }
    return error->status = error->status == NOSA_NOT_FOUND ? NOSA_CORRUPT : error->status;
}

static enum nosa_status call(struct nosa_etcd_client *client, const char *path,
                             const ProtobufCMessage *message,
                             const ProtobufCMessageDescriptor *descriptor,
                             ProtobufCMessage **response, struct nosa_error *error)
{
    const struct nosa_rpc_request request = {
        .path = path,
        .message = message,
        .response = descriptor,
        .timeout_ms = CALL_TIMEOUT_MS,
    };
    struct nosa_error local = {0};
    struct nosa_error *said = error ? error : &local;
    *response = NULL;
    if (make_channel(client, said) != NOSA_OK)
        return NOSA_UNAVAILABLE; /* its files are gone: a lease may live on */
    enum nosa_rpc_code code = nosa_rpc_unary(client->channel, &request, response, said);
    return code == NOSA_RPC_OK ? NOSA_OK : status_of(code, said);
}

enum nosa_status nosa_etcd_client_grant(struct nosa_etcd_client *client, int64_t *lease,
                                        uint32_t *ttl_s, struct nosa_error *error)
{
    Etcdserverpb__LeaseGrantRequest request = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    ProtobufCMessage *message;
    request.ttl = client->options.lease_s;
    enum nosa_status status =
        call(client, "/etcdserverpb.Lease/LeaseGrant", &request.base,
             &etcdserverpb__lease_grant_response__descriptor, &message, error);
    if (status != NOSA_OK)
        return status;
    const Etcdserverpb__LeaseGrantResponse *response =
        (const Etcdserverpb__LeaseGrantResponse *)message;
    status = check_header(client, response->header, error);
    if (status == NOSA_OK && (response->id == 0 || response->ttl < 1 || response->ttl > INT32_MAX))
        status = nosa_error_set(error, NOSA_CORRUPT, "%s: grants no lease: %.200s",
                                nosa_etcd_client_endpoint(client), response->error);
    *lease = response->id;
    *ttl_s = (uint32_t)response->ttl;
    nosa_message_free(message);
    return status;
}

/* A stream of etcd's, but it answers one question and ends when nobody asks more. */
enum nosa_status nosa_etcd_client_keep_alive(struct nosa_etcd_client *client, int64_t lease,
                                             uint32_t *ttl_s, struct nosa_error *error)
{
    Etcdserverpb__LeaseKeepAliveRequest request = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    ProtobufCMessage *message;
    request.id = lease;
    enum nosa_status status =
        call(client, "/etcdserverpb.Lease/LeaseKeepAlive", &request.base,
             &etcdserverpb__lease_keep_alive_response__descriptor, &message, error);
    if (status != NOSA_OK)
        return status;
    const Etcdserverpb__LeaseKeepAliveResponse *response =
        (const Etcdserverpb__LeaseKeepAliveResponse *)message;
    status = check_header(client, response->header, error);
    if (status == NOSA_OK && (response->id != lease || response->ttl > INT32_MAX))
        status = nosa_error_set(error, NOSA_CORRUPT, "%s: answers for another lease",
                                nosa_etcd_client_endpoint(client));
    else if (status == NOSA_OK && response->ttl < 1)
        status = nosa_error_set(error, NOSA_NOT_FOUND, "%s: the lease has expired",
                                nosa_etcd_client_endpoint(client));
    *ttl_s = (uint32_t)response->ttl;
    nosa_message_free(message);
    return status;
}

enum nosa_status nosa_etcd_client_revoke(struct nosa_etcd_client *client, int64_t lease,
                                         struct nosa_error *error)
{
    Etcdserverpb__LeaseRevokeRequest request = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    ProtobufCMessage *message;
    request.id = lease;
    enum nosa_status status =
        call(client, "/etcdserverpb.Lease/LeaseRevoke", &request.base,
             &etcdserverpb__lease_revoke_response__descriptor, &message, error);
    nosa_message_free(message);
    return status;
}

/* ---- lists ---- */

/* A key in the making: the prefix, a slash, and `rest`. */
struct key {
    char text[NOSA_ETCD_PREFIX_MAX + NOSA_MEMBERSHIP_KEY_MAX];
};

static ProtobufCBinaryData key_of(const struct nosa_etcd_client *client, const char *rest,
                                  struct key *key)
{
    int size = snprintf(key->text, sizeof key->text, "%.127s/%.319s", client->options.prefix, rest);
    return (ProtobufCBinaryData){(size_t)size, (uint8_t *)key->text};
}

/* One page; `next` (owned by the caller, empty at the end) is where the following one begins. */
static enum nosa_status read_page(struct nosa_etcd_client *client,
                                  const Etcdserverpb__RangeResponse *page, const struct key *begin,
                                  struct nosa_membership_list *list, ProtobufCBinaryData *next,
                                  struct nosa_error *error)
{
    size_t prefix_size = strlen(begin->text);
    for (size_t i = 0; i < page->n_kvs; i++) {
        const Etcdserverpb__KeyValue *pair = page->kvs[i];
        if (pair->key.len <= prefix_size || memcmp(pair->key.data, begin->text, prefix_size) != 0)
            return nosa_error_set(error, NOSA_CORRUPT, "%s: lists a key that was not asked for",
                                  nosa_etcd_client_endpoint(client));
        if (nosa_membership_list_add(list, (const char *)pair->key.data + prefix_size,
                                     pair->key.len - prefix_size, (const char *)pair->value.data,
                                     pair->value.len) != NOSA_OK)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for etcd's keys");
    }
    free(next->data);
    *next = (ProtobufCBinaryData){0};
    if (!page->more || page->n_kvs == 0)
        return NOSA_OK;
    const ProtobufCBinaryData *last = &page->kvs[page->n_kvs - 1]->key;
    next->data = malloc(last->len + 1);
    if (!next->data)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for etcd's keys");
    memcpy(next->data, last->data, last->len);
    next->data[last->len] = 0;
    next->len = last->len + 1;
    return NOSA_OK;
}

enum nosa_status nosa_etcd_client_list(struct nosa_etcd_client *client,
                                       struct nosa_membership_list *list, int64_t *revision,
                                       struct nosa_error *error)
{
    struct key begin, end;
    ProtobufCBinaryData next = {0};
    enum nosa_status status = NOSA_OK;
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    size_t keys = 0;
    request.key = key_of(client, "", &begin);
    request.range_end = key_of(client, "", &end);
    request.range_end.data[request.range_end.len - 1]++; /* '0' follows '/' */
    request.limit = PAGE_KEYS;
    do {
        ProtobufCMessage *message;
        status = call(client, "/etcdserverpb.KV/Range", &request.base,
                      &etcdserverpb__range_response__descriptor, &message, error);
        if (status != NOSA_OK)
            break;
        const Etcdserverpb__RangeResponse *page = (const Etcdserverpb__RangeResponse *)message;
        status = check_header(client, page->header, error);
        if (status == NOSA_OK)
            status = read_page(client, page, &begin, list, &next, error);
        if (status == NOSA_OK && request.revision == 0)
            request.revision = *revision = page->header->revision;
        keys += page->n_kvs;
        request.key = next;
        nosa_message_free(message);
        if (status == NOSA_OK && keys > KEYS_MAX)
            status =
                nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED, "%s: more than %d keys below %s",
                               nosa_etcd_client_endpoint(client), KEYS_MAX, client->options.prefix);
    } while (status == NOSA_OK && next.len > 0);
    free(next.data);
    return status;
}

/* ---- writes ---- */

static enum nosa_status transact(struct nosa_etcd_client *client,
                                 const Etcdserverpb__TxnRequest *request, struct nosa_error *error)
{
    ProtobufCMessage *message;
    NOSA_TRY(call(client, "/etcdserverpb.KV/Txn", &request->base,
                  &etcdserverpb__txn_response__descriptor, &message, error));
    const Etcdserverpb__TxnResponse *response = (const Etcdserverpb__TxnResponse *)message;
    enum nosa_status status = check_header(client, response->header, error);
    if (status == NOSA_OK && !response->succeeded && request->n_compare == 0)
        status = nosa_error_set(error, NOSA_CORRUPT, "%s: a write without conditions failed",
                                nosa_etcd_client_endpoint(client));
    nosa_message_free(message);
    return status;
}

enum nosa_status nosa_etcd_client_mark(struct nosa_etcd_client *client, const char *value,
                                       struct nosa_error *error)
{
    struct key key;
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
    Etcdserverpb__RequestOp op = ETCDSERVERPB__REQUEST_OP__INIT, *ops[] = {&op};
    Etcdserverpb__Compare absent = ETCDSERVERPB__COMPARE__INIT, *compares[] = {&absent};
    Etcdserverpb__TxnRequest request = ETCDSERVERPB__TXN_REQUEST__INIT;
    put.key = absent.key = key_of(client, "marker", &key);
    put.value = (ProtobufCBinaryData){strlen(value), (uint8_t *)(uintptr_t)value};
    op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    op.request_put = &put;
    absent.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    absent.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
    request.n_compare = request.n_success = 1;
    request.compare = compares;
    request.success = ops;
    return transact(client, &request, error);
}

/* What one write is made of. */
struct write_parts {
    struct key key;
    Etcdserverpb__PutRequest put;
    Etcdserverpb__DeleteRangeRequest remove;
    Etcdserverpb__RequestOp op;
};

static void fill_write(const struct nosa_etcd_client *client, struct write_parts *parts,
                       const struct nosa_membership_write *write, int64_t lease)
{
    ProtobufCBinaryData key = key_of(client, write->key, &parts->key);
    etcdserverpb__request_op__init(&parts->op);
    if (!write->put) {
        etcdserverpb__delete_range_request__init(&parts->remove);
        parts->remove.key = key;
        parts->op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        parts->op.request_delete_range = &parts->remove;
        return;
    }
    etcdserverpb__put_request__init(&parts->put);
    parts->put.key = key;
    parts->put.value =
        (ProtobufCBinaryData){strlen(write->value), (uint8_t *)(uintptr_t)write->value};
    parts->put.lease = write->leased ? lease : 0;
    parts->op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    parts->op.request_put = &parts->put;
}

enum nosa_status nosa_etcd_client_write(struct nosa_etcd_client *client,
                                        const struct nosa_membership_write *writes, size_t count,
                                        int64_t lease, struct nosa_error *error)
{
    Etcdserverpb__TxnRequest request = ETCDSERVERPB__TXN_REQUEST__INIT;
    Etcdserverpb__RequestOp *ops[NOSA_ETCD_WRITES_MAX];
    NOSA_ASSERT(count <= NOSA_ETCD_WRITES_MAX);
    struct write_parts *parts = calloc(count + 1, sizeof *parts);
    if (!parts)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a write to etcd");
    for (size_t i = 0; i < count; i++) {
        fill_write(client, &parts[i], &writes[i], lease);
        ops[i] = &parts[i].op;
    }
    request.n_success = count;
    request.success = ops;
    enum nosa_status status = transact(client, &request, error);
    free(parts);
    return status;
}

/* ---- the watch ---- */

static bool on_change(void *context, struct nosa_rpc_stream *stream,
                      const ProtobufCMessage *message)
{
    struct nosa_etcd_client *client = context;
    const Etcdserverpb__WatchResponse *response = (const Etcdserverpb__WatchResponse *)message;
    if (response->canceled)
        nosa_rpc_stream_cancel(stream);
    else if (!response->created)
        client->hint(client->context);
    return true;
}

static void on_watch_ended(void *context, struct nosa_rpc_stream *stream,
                           const struct nosa_rpc_outcome *outcome)
{
    struct nosa_etcd_client *client = context;
    (void)stream;
    (void)outcome;
    atomic_store(&client->watching, false);
    client->hint(client->context);
    pthread_mutex_lock(&client->mutex);
    client->end_awaited = false;
    pthread_cond_signal(&client->ended);
    pthread_mutex_unlock(&client->mutex);
}

static const struct nosa_rpc_stream_events watch_events = {.message = on_change,
                                                           .end = on_watch_ended};

enum nosa_status nosa_etcd_client_watch(struct nosa_etcd_client *client, int64_t revision,
                                        struct nosa_error *error)
{
    struct key begin, end;
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    Etcdserverpb__WatchRequest message = ETCDSERVERPB__WATCH_REQUEST__INIT;
    const struct nosa_rpc_request request = {
        .path = "/etcdserverpb.Watch/Watch",
        .message = &message.base,
        .response = &etcdserverpb__watch_response__descriptor,
    };
    create.key = key_of(client, "", &begin);
    create.range_end = key_of(client, "", &end);
    create.range_end.data[create.range_end.len - 1]++;
    create.start_revision = revision + 1;
    message.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    message.create_request = &create;
    end_watch(client);
    NOSA_TRY(make_channel(client, error));
    client->end_awaited = true;
    atomic_store(&client->watching, true);
    enum nosa_status status = nosa_rpc_stream_start(client->channel, &request, &watch_events,
                                                    client, &client->watch, error);
    if (status == NOSA_OK)
        return NOSA_OK;
    client->end_awaited = false;
    atomic_store(&client->watching, false);
    return status;
}

bool nosa_etcd_client_is_watching(struct nosa_etcd_client *client)
{
    return atomic_load(&client->watching);
}
