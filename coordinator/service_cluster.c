/* nosa.cluster.v1.Registry: what workers call. Open to every peer that the transport lets in:
 * workers prove themselves by their certificates (--tls-ca), not by a bearer token. */
#include "coordinator_internal.h"

static void answer(struct nosa_rpc_call *call, enum nosa_rpc_code code,
                   const ProtobufCMessage *response, const struct nosa_error *error)
{
    if (code == NOSA_RPC_OK)
        nosa_rpc_call_reply(call, response);
    else
        nosa_rpc_call_finish(call, code, error->text);
}

static void join(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    struct nosa_membership_peers peers;
    Nosa__Cluster__V1__JoinResponse response = NOSA__CLUSTER__V1__JOIN_RESPONSE__INIT;
    enum nosa_rpc_code code = nosa_registry_join(
        coordinator->registry, (const Nosa__Cluster__V1__JoinRequest *)request, &response, &error);
    nosa_membership_peers(coordinator->membership, &peers);
    response.n_coordinators = peers.count;
    response.coordinators = peers.addresses;
    answer(call, code, &response.base, &error);
    /* What waits for a worker goes there with the next tick, when its link is connected. */
}

static void heartbeat(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    struct nosa_membership_peers peers;
    Nosa__Cluster__V1__HeartbeatResponse response = NOSA__CLUSTER__V1__HEARTBEAT_RESPONSE__INIT;
    enum nosa_rpc_code code = nosa_registry_heartbeat(
        coordinator->registry, (const Nosa__Cluster__V1__HeartbeatRequest *)request, &response,
        &error);
    nosa_membership_peers(coordinator->membership, &peers);
    response.n_coordinators = peers.count;
    response.coordinators = peers.addresses;
    answer(call, code, &response.base, &error);
}

static void leave(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    Nosa__Cluster__V1__LeaveResponse response = NOSA__CLUSTER__V1__LEAVE_RESPONSE__INIT;
    enum nosa_rpc_code code = nosa_registry_leave(
        coordinator->registry, (const Nosa__Cluster__V1__LeaveRequest *)request, &error);
    answer(call, code, &response.base, &error);
    nosa_coordinator_wake(coordinator);
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Join", .kind = NOSA_RPC_UNARY, .open = true, .start = join},
    {.name = "Heartbeat", .kind = NOSA_RPC_UNARY, .open = true, .start = heartbeat},
    {.name = "Leave", .kind = NOSA_RPC_UNARY, .open = true, .start = leave},
};

enum nosa_status nosa_cluster_add(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    return nosa_rpc_server_add_service(coordinator->server,
                                       &nosa__cluster__v1__registry__descriptor, methods,
                                       sizeof methods / sizeof *methods, coordinator, error);
}
