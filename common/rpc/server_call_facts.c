/* What a handler may ask of a call. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>

#include "base/clock.h"
#include "rpc/server_internal.h"

#define DEADLINE_SLACK_NS (100 * NOSA_NS_PER_MS)

uint32_t nosa_rpc_call_waiting(struct nosa_rpc_call *call)
{
    pthread_mutex_lock(&call->mutex);
    uint32_t count = call->count;
    pthread_mutex_unlock(&call->mutex);
    return count;
}

bool nosa_rpc_call_is_cancelled(struct nosa_rpc_call *call)
{
    return atomic_load(&call->cancelled);
}

uint64_t nosa_rpc_call_deadline_ns(struct nosa_rpc_call *call)
{
    gpr_timespec deadline = call->deadline;
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0)
        return UINT64_MAX;
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    uint64_t now = nosa_monotonic_ns();
    if (left.tv_sec < 0)
        return now;
    if ((uint64_t)left.tv_sec >= (UINT64_MAX - now) / NOSA_NS_PER_S - 1)
        return UINT64_MAX;
    return now + (uint64_t)left.tv_sec * NOSA_NS_PER_S + (uint64_t)left.tv_nsec;
}

enum nosa_rpc_code nosa_rpc_call_cancel_code(struct nosa_rpc_call *call)
{
    /* The caller gives up by its own clock, which began before the request arrived here, and gRPC
     * rounds what it says of its deadline up by a percent or so. */
    uint64_t deadline_ns = nosa_rpc_call_deadline_ns(call);
    uint64_t whole_ns = deadline_ns > call->arrived_ns ? deadline_ns - call->arrived_ns : 0;
    uint64_t slack_ns = whole_ns / 50 > DEADLINE_SLACK_NS ? whole_ns / 50 : DEADLINE_SLACK_NS;
    if (slack_ns > whole_ns / 2)
        slack_ns = whole_ns / 2;
    bool over = deadline_ns != UINT64_MAX && deadline_ns - slack_ns <= nosa_monotonic_ns();
    return over ? NOSA_RPC_DEADLINE_EXCEEDED : NOSA_RPC_CANCELLED;
}

const char *nosa_rpc_call_metadata(struct nosa_rpc_call *call, const char *name, size_t *size)
{
    for (size_t i = 0; i < call->headers.count; i++) {
        const grpc_metadata *entry = &call->headers.metadata[i];
        if (grpc_slice_str_cmp(entry->key, name) == 0) {
            *size = GRPC_SLICE_LENGTH(entry->value);
            return (const char *)GRPC_SLICE_START_PTR(entry->value);
        }
    }
    *size = 0;
    return NULL;
}

const char *nosa_rpc_call_bearer(struct nosa_rpc_call *call, size_t *size)
{
    static const char scheme[] = "bearer ";
    const char *value = nosa_rpc_call_metadata(call, "authorization", size);
    if (!value || *size < sizeof scheme - 1 || strncasecmp(value, scheme, sizeof scheme - 1) != 0) {
        *size = 0;
        return NULL;
    }
    *size -= sizeof scheme - 1;
    return value + sizeof scheme - 1;
}

const char *nosa_rpc_call_peer(struct nosa_rpc_call *call, char peer[NOSA_RPC_PEER_MAX])
{
    peer[0] = '\0';
    pthread_mutex_lock(&call->mutex);
    if (call->grpc) {
        char *text = grpc_call_get_peer(call->grpc);
        snprintf(peer, NOSA_RPC_PEER_MAX, "%s", text ? text : "");
        gpr_free(text);
    }
    pthread_mutex_unlock(&call->mutex);
    return peer;
}

const char *nosa_rpc_call_peer_name(struct nosa_rpc_call *call, char name[NOSA_RPC_PEER_MAX])
{
    name[0] = '\0';
    pthread_mutex_lock(&call->mutex);
    grpc_auth_context *context = call->grpc ? grpc_call_auth_context(call->grpc) : NULL;
    if (context) {
        grpc_auth_property_iterator iterator =
            grpc_auth_context_find_properties_by_name(context, GRPC_X509_CN_PROPERTY_NAME);
        const grpc_auth_property *property = grpc_auth_property_iterator_next(&iterator);
        if (property && grpc_auth_context_peer_is_authenticated(context))
            snprintf(name, NOSA_RPC_PEER_MAX, "%.*s", (int)property->value_length, property->value);
        grpc_auth_context_release(context);
    }
    pthread_mutex_unlock(&call->mutex);
    return name;
}

const char *nosa_rpc_call_path(const struct nosa_rpc_call *call)
{
    return call->route->path;
}
