/* The answer to methods that a server does not have: without it such a call would hang. */
#include <stdio.h>
#include <stdlib.h>

#include <grpc/grpc.h>

#include "rpc/server_internal.h"

#define PATH_QUOTED_MAX 200

struct unknown {
    struct nosa_rpc_tag tag;
    struct nosa_rpc_server *server;
    struct nosa_rpc_loop *loop;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array headers;
    int cancelled;
};

static void answered(struct nosa_rpc_tag *tag, bool ok)
{
    (void)ok;
    struct unknown *unknown = NOSA_RPC_OWNER(tag, struct unknown, tag);
    struct nosa_rpc_server *server = unknown->server;
    grpc_metadata_array_destroy(&unknown->headers);
    grpc_call_details_destroy(&unknown->details);
    grpc_call_unref(unknown->call);
    free(unknown);
    nosa_rpc_server_leave(server);
}

static void answer(struct unknown *unknown)
{
    char text[PATH_QUOTED_MAX + 32];
    size_t size = GRPC_SLICE_LENGTH(unknown->details.method);
    int shown = size < PATH_QUOTED_MAX ? (int)size : PATH_QUOTED_MAX;
    snprintf(text, sizeof text, "there is no method %.*s", shown,
             (const char *)GRPC_SLICE_START_PTR(unknown->details.method));
    grpc_slice details = grpc_slice_from_copied_string(text);
    grpc_op ops[3] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
         .data.send_status_from_server = {.status = GRPC_STATUS_UNIMPLEMENTED,
                                          .status_details = &details}},
        {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
         .data.recv_close_on_server = {.cancelled = &unknown->cancelled}},
    };
    unknown->tag.complete = answered;
    grpc_call_error code =
        grpc_call_start_batch(unknown->call, ops, 3, nosa_rpc_tag_hand_over(&unknown->tag), NULL);
    NOSA_ASSERT(code == GRPC_CALL_OK);
    grpc_slice_unref(details);
}

static void arm(struct unknown *unknown);

static void arrived(struct nosa_rpc_tag *tag, bool ok)
{
    struct unknown *unknown = NOSA_RPC_OWNER(tag, struct unknown, tag);
    struct nosa_rpc_server *server = unknown->server;
    if (!ok) {
        grpc_metadata_array_destroy(&unknown->headers);
        grpc_call_details_destroy(&unknown->details);
        free(unknown);
        nosa_rpc_server_count_armed(server, -1);
        return;
    }
    if (nosa_rpc_unknown_arm(server, unknown->loop)) {
        (void)nosa_rpc_server_enter(server, true);
        nosa_rpc_server_count_armed(server, -1);
        answer(unknown);
        return;
    }
    /* No memory for the next one: this one goes without an answer. */
    grpc_call_cancel(unknown->call, NULL);
    grpc_metadata_array_destroy(&unknown->headers);
    grpc_call_details_destroy(&unknown->details);
    grpc_call_unref(unknown->call);
    arm(unknown);
}

static void arm(struct unknown *unknown)
{
    unknown->tag.complete = arrived;
    unknown->call = NULL;
    grpc_metadata_array_init(&unknown->headers);
    grpc_call_details_init(&unknown->details);
    grpc_call_error code = grpc_server_request_call(
        unknown->server->grpc, &unknown->call, &unknown->details, &unknown->headers,
        unknown->loop->queue, unknown->loop->queue, nosa_rpc_tag_hand_over(&unknown->tag));
    NOSA_ASSERT(code == GRPC_CALL_OK);
}

bool nosa_rpc_unknown_arm(struct nosa_rpc_server *server, struct nosa_rpc_loop *loop)
{
    struct unknown *unknown = calloc(1, sizeof *unknown);
    if (!unknown)
        return false;
    unknown->server = server;
    unknown->loop = loop;
    nosa_rpc_server_count_armed(server, +1);
    arm(unknown);
    return true;
}
