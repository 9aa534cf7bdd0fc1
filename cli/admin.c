#include "admin.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "interrupt.h"
#include "output.h"
#include "rpc/message.h"
#include "text_table.h"
#include "view.h"

#define POLL_MS 200 /* between two looks at a worker that drains */

#define JSON_FLAG                                                                                  \
    {                                                                                              \
        .name = "json", .kind = NOSA_FLAG_BOOL, .group = "Output",                                 \
        .help = "print JSON in one line"                                                           \
    }

const struct nosa_flag nosa_admin_json_flags[1] = {JSON_FLAG};

const struct nosa_flag nosa_admin_list_flags[2] = {
    JSON_FLAG,
    {.name = "quiet",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "print the ids alone, one in a line"},
};

const struct nosa_flag nosa_admin_drain_flags[2] = {
    JSON_FLAG,
    {.name = "wait",
     .kind = NOSA_FLAG_BOOL,
     .help = "return when the worker is DRAINED or gone; --timeout bounds it"},
};

/* ---- calls ---- */

enum nosa_rpc_code nosa_admin_call_workers(struct nosa_connection *connection, uint32_t timeout_ms,
                                           Nosa__V1__WorkersResponse **response,
                                           struct nosa_error *error)
{
    const Nosa__V1__WorkersRequest request = NOSA__V1__WORKERS_REQUEST__INIT;
    return nosa_connection_call(connection, "/nosa.v1.Admin/Workers", &request.base,
                                &nosa__v1__workers_response__descriptor, timeout_ms,
                                (ProtobufCMessage **)response, error);
}

enum nosa_rpc_code nosa_admin_call_status(struct nosa_connection *connection, uint32_t timeout_ms,
                                          Nosa__V1__StatusResponse **response,
                                          struct nosa_error *error)
{
    const Nosa__V1__StatusRequest request = NOSA__V1__STATUS_REQUEST__INIT;
    return nosa_connection_call(connection, "/nosa.v1.Admin/Status", &request.base,
                                &nosa__v1__status_response__descriptor, timeout_ms,
                                (ProtobufCMessage **)response, error);
}

enum nosa_rpc_code nosa_admin_call_requests(struct nosa_connection *connection, uint32_t timeout_ms,
                                            Nosa__V1__RequestsResponse **response,
                                            struct nosa_error *error)
{
    const Nosa__V1__RequestsRequest request = NOSA__V1__REQUESTS_REQUEST__INIT;
    return nosa_connection_call(connection, "/nosa.v1.Admin/Requests", &request.base,
                                &nosa__v1__requests_response__descriptor, timeout_ms,
                                (ProtobufCMessage **)response, error);
}

static uint32_t timeout_of(const struct nosa_flags *flags)
{
    return nosa_connection_timeout_ms(flags, NOSA_ADMIN_TIMEOUT_MS);
}

/* Prints the one of the two that is asked for; frees the text. */
static int print(const struct nosa_flags *flags, json_t *value, struct nosa_buffer *text,
                 struct nosa_error *error)
{
    enum nosa_status status;
    if (nosa_flags_bool(flags, "json")) {
        status = nosa_output_json(value, error);
    } else {
        json_decref(value);
        status = nosa_output_text(text, error);
    }
    nosa_buffer_free(text);
    return (int)nosa_exit_from_status(status);
}

/* An id in a line of its own. */
static void add_id(struct nosa_buffer *out, const char *id)
{
    nosa_text_append_cut(out, id, SIZE_MAX);
    nosa_buffer_append(out, "\n", 1);
}

/* ---- lists ---- */

int nosa_admin_workers(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error)
{
    Nosa__V1__WorkersResponse *workers;
    struct nosa_buffer text = {0};
    enum nosa_rpc_code code =
        nosa_admin_call_workers(connection, timeout_of(flags), &workers, error);
    if (code != NOSA_RPC_OK)
        return (int)nosa_exit_from_code(code);
    if (nosa_flags_bool(flags, "quiet"))
        for (size_t i = 0; i < workers->n_workers; i++)
            add_id(&text, workers->workers[i]->id);
    else
        nosa_view_workers_text(workers, UINT32_MAX, UINT32_MAX, &text);
    int result = print(flags, nosa_view_workers_json(workers), &text, error);
    nosa_message_free(&workers->base);
    return result;
}

int nosa_admin_requests(struct nosa_connection *connection, const struct nosa_flags *flags,
                        struct nosa_error *error)
{
    Nosa__V1__RequestsResponse *requests;
    struct nosa_buffer text = {0};
    enum nosa_rpc_code code =
        nosa_admin_call_requests(connection, timeout_of(flags), &requests, error);
    if (code != NOSA_RPC_OK)
        return (int)nosa_exit_from_code(code);
    if (nosa_flags_bool(flags, "quiet"))
        for (size_t i = 0; i < requests->n_requests; i++)
            add_id(&text, requests->requests[i]->request_id);
    else
        nosa_view_requests_text(requests, UINT32_MAX, UINT32_MAX, &text);
    int result = print(flags, nosa_view_requests_json(requests), &text, error);
    nosa_message_free(&requests->base);
    return result;
}

int nosa_admin_status(struct nosa_connection *connection, const struct nosa_flags *flags,
                      struct nosa_error *error)
{
    Nosa__V1__StatusResponse *status;
    struct nosa_buffer text = {0};
    enum nosa_rpc_code code = nosa_admin_call_status(connection, timeout_of(flags), &status, error);
    if (code != NOSA_RPC_OK)
        return (int)nosa_exit_from_code(code);
    const char *server = nosa_rpc_channel_address(connection->channel);
    nosa_view_status_text(status, server, &text);
    int result = print(flags, nosa_view_status_json(status, server), &text, error);
    nosa_message_free(&status->base);
    return result;
}

/* ---- steering ---- */

/* Asks one server after the other for the one that has the request. */
static enum nosa_rpc_code call_cancel(struct nosa_connection *connection, const char *id,
                                      uint32_t timeout_ms, struct nosa_error *error)
{
    Nosa__V1__CancelRequest request = NOSA__V1__CANCEL_REQUEST__INIT;
    request.request_id = (char *)(uintptr_t)id;
    for (size_t server = 1;; server++) {
        ProtobufCMessage *response;
        struct nosa_error cause = {0};
        enum nosa_rpc_code code = nosa_connection_call(
            connection, "/nosa.v1.Admin/Cancel", &request.base,
            &nosa__v1__cancel_response__descriptor, timeout_ms, &response, &cause);
        if (code == NOSA_RPC_OK)
            nosa_message_free(response);
        else if (code != NOSA_RPC_NOT_FOUND || server >= connection->address_count)
            nosa_error_set(error, cause.status, "%s", cause.text);
        if (code != NOSA_RPC_NOT_FOUND || server >= connection->address_count)
            return code;
        if (nosa_connection_go_on(connection, error) != NOSA_OK)
            return NOSA_RPC_INTERNAL;
    }
}

int nosa_admin_cancel(struct nosa_connection *connection, const struct nosa_flags *flags,
                      struct nosa_error *error)
{
    const char *id = nosa_flags_positional(flags, 1);
    struct nosa_buffer text = {0};
    enum nosa_rpc_code code = call_cancel(connection, id, timeout_of(flags), error);
    if (code != NOSA_RPC_OK)
        return (int)nosa_exit_from_code(code);
    nosa_buffer_printf(&text, "%s: cancelled\n", id);
    return print(flags, json_pack("{s:s s:b}", "request_id", id, "cancelled", 1), &text, error);
}

static int print_state(const struct nosa_flags *flags, const char *id, const char *state,
                       struct nosa_error *error)
{
    struct nosa_buffer text = {0};
    nosa_buffer_printf(&text, "%s: %s\n", id, state);
    return print(flags, json_pack("{s:s s:s}", "worker_id", id, "state", state), &text, error);
}

/* Looks at the worker until it is DRAINED or gone. *state is what to print. */
static int wait_drained(struct nosa_connection *connection, const struct nosa_flags *flags,
                        const char *id, const char **state, struct nosa_error *error)
{
    uint32_t timeout_ms = nosa_connection_timeout_ms(flags, 0);
    uint64_t end_ns = nosa_monotonic_ns() + timeout_ms * NOSA_NS_PER_MS;
    if (nosa_interrupt_catch(false, error) != NOSA_OK)
        return NOSA_EXIT_FAILED;
    while (!nosa_interrupt_signal()) {
        Nosa__V1__WorkersResponse *workers;
        enum nosa_rpc_code code =
            nosa_admin_call_workers(connection, NOSA_ADMIN_TIMEOUT_MS, &workers, error);
        if (code != NOSA_RPC_OK)
            return (int)nosa_exit_from_code(code);
        *state = "GONE";
        for (size_t i = 0; i < workers->n_workers; i++)
            if (strcmp(workers->workers[i]->id, id) == 0)
                *state = nosa_view_worker_state(workers->workers[i]->state);
        nosa_message_free(&workers->base);
        if (strcmp(*state, "DRAINING") != 0 && strcmp(*state, "STARTING") != 0)
            return NOSA_EXIT_OK;
        if (timeout_ms > 0 && nosa_monotonic_ns() >= end_ns) {
            nosa_error_set(error, NOSA_DEADLINE_EXCEEDED, "%.128s is still %s after --timeout", id,
                           *state);
            return NOSA_EXIT_DEADLINE;
        }
        nosa_interrupt_wait(-1, POLL_MS);
    }
    return nosa_interrupt_exit_code();
}

int nosa_admin_drain(struct nosa_connection *connection, const struct nosa_flags *flags,
                     struct nosa_error *error)
{
    const char *id = nosa_flags_positional(flags, 1);
    Nosa__V1__DrainRequest request = NOSA__V1__DRAIN_REQUEST__INIT;
    Nosa__V1__DrainResponse *response;
    request.worker_id = (char *)(uintptr_t)id;
    enum nosa_rpc_code code = nosa_connection_call(
        connection, "/nosa.v1.Admin/Drain", &request.base, &nosa__v1__drain_response__descriptor,
        timeout_of(flags), (ProtobufCMessage **)&response, error);
    if (code != NOSA_RPC_OK)
        return (int)nosa_exit_from_code(code);
    const char *state = nosa_view_worker_state(response->state);
    nosa_message_free(&response->base);
    if (nosa_flags_bool(flags, "wait")) {
        int result = wait_drained(connection, flags, id, &state, error);
        if (result != NOSA_EXIT_OK)
            return result;
    }
    return print_state(flags, id, state, error);
}

int nosa_admin_resume(struct nosa_connection *connection, const struct nosa_flags *flags,
                      struct nosa_error *error)
{
    const char *id = nosa_flags_positional(flags, 1);
    Nosa__V1__ResumeRequest request = NOSA__V1__RESUME_REQUEST__INIT;
    Nosa__V1__ResumeResponse *response;
    request.worker_id = (char *)(uintptr_t)id;
    enum nosa_rpc_code code = nosa_connection_call(
        connection, "/nosa.v1.Admin/Resume", &request.base, &nosa__v1__resume_response__descriptor,
        timeout_of(flags), (ProtobufCMessage **)&response, error);
    if (code != NOSA_RPC_OK)
        return (int)nosa_exit_from_code(code);
    const char *state = nosa_view_worker_state(response->state);
    nosa_message_free(&response->base);
    return print_state(flags, id, state, error);
}
