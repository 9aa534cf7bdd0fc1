/* What unary and streaming calls have in common: a request kept for its attempts, and one attempt.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/support/time.h>

#include "rpc/channel_internal.h"
#include "rpc/payload_internal.h"

enum nosa_status nosa_rpc_template_init(struct nosa_rpc_template *template,
                                        const struct nosa_rpc_request *request,
                                        struct nosa_error *error)
{
    NOSA_ASSERT(request->path && request->message && request->response &&
                request->header_count <= NOSA_RPC_HEADERS_MAX);
    memset(template, 0, sizeof *template);
    bool complete = (template->path = strdup(request->path)) != NULL;
    for (size_t i = 0; i < request->header_count; i++) {
        template->names[i] = strdup(request->headers[i].name);
        template->values[i] = strdup(request->headers[i].value);
        complete = complete && template->names[i] && template->values[i];
        template->header_count++;
    }
    if (!complete) {
        nosa_rpc_template_free(template);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a call of %s",
                              request->path);
    }
    template->payload = nosa_rpc_payload_pack(request->message);
    template->response = request->response;
    template->wait_for_ready = request->wait_for_ready;
    template->deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (request->timeout_ms)
        template->deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                          gpr_time_from_millis(request->timeout_ms, GPR_TIMESPAN));
    return NOSA_OK;
}

void nosa_rpc_template_free(struct nosa_rpc_template *template)
{
    free(template->path);
    for (size_t i = 0; i < template->header_count; i++) {
        free(template->names[i]);
        free(template->values[i]);
    }
    if (template->payload)
        grpc_byte_buffer_destroy(template->payload);
    memset(template, 0, sizeof *template);
}

void nosa_rpc_attempt_begin(struct nosa_rpc_attempt *attempt, struct nosa_rpc_channel *channel,
                            uint32_t target, const struct nosa_rpc_template *template,
                            struct nosa_rpc_loop *loop)
{
    memset(attempt, 0, sizeof *attempt);
    attempt->target = target;
    attempt->details = grpc_empty_slice();
    grpc_metadata_array_init(&attempt->initial);
    grpc_metadata_array_init(&attempt->trailing);
    attempt->sent = grpc_byte_buffer_copy(template->payload);
    attempt->header_count = template->header_count;
    for (size_t i = 0; i < template->header_count; i++) {
        attempt->headers[i].key = grpc_slice_from_copied_string(template->names[i]);
        attempt->headers[i].value = grpc_slice_from_copied_string(template->values[i]);
    }
    grpc_slice path = grpc_slice_from_copied_string(template->path);
    attempt->call = grpc_channel_create_call(channel->targets[target].grpc, NULL, 0, loop->queue,
                                             path, NULL, template->deadline, NULL);
    grpc_slice_unref(path);
}

void nosa_rpc_attempt_end(struct nosa_rpc_attempt *attempt)
{
    for (size_t i = 0; i < attempt->header_count; i++) {
        grpc_slice_unref(attempt->headers[i].key);
        grpc_slice_unref(attempt->headers[i].value);
    }
    grpc_byte_buffer_destroy(attempt->sent);
    grpc_metadata_array_destroy(&attempt->initial);
    grpc_metadata_array_destroy(&attempt->trailing);
    grpc_slice_unref(attempt->details);
    grpc_call_unref(attempt->call);
    memset(attempt, 0, sizeof *attempt);
}

size_t nosa_rpc_attempt_send_ops(struct nosa_rpc_attempt *attempt,
                                 const struct nosa_rpc_template *template, grpc_op *ops)
{
    memset(ops, 0, 3 * sizeof ops[0]);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET |
                   (template->wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0);
    ops[0].data.send_initial_metadata.count = attempt->header_count;
    ops[0].data.send_initial_metadata.metadata = attempt->headers;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = attempt->sent;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    return 3;
}

grpc_op nosa_rpc_attempt_status_op(struct nosa_rpc_attempt *attempt)
{
    return (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                     .data.recv_status_on_client = {.trailing_metadata = &attempt->trailing,
                                                    .status = &attempt->code,
                                                    .status_details = &attempt->details}};
}

enum nosa_rpc_code nosa_rpc_attempt_outcome(const struct nosa_rpc_attempt *attempt,
                                            char text[NOSA_RPC_OUTCOME_TEXT_MAX])
{
    snprintf(text, NOSA_RPC_OUTCOME_TEXT_MAX, "%.*s", (int)GRPC_SLICE_LENGTH(attempt->details),
             (const char *)GRPC_SLICE_START_PTR(attempt->details));
    for (char *byte = text; *byte; byte++)
        if ((unsigned char)*byte < 0x20 || *byte == 0x7f)
            *byte = ' ';
    unsigned code = (unsigned)attempt->code;
    return code < NOSA_RPC_CODE_COUNT ? (enum nosa_rpc_code)code : NOSA_RPC_UNKNOWN;
}
