/*
 * Both versions of the service have the same messages but for their package, so one code serves
 * both: it reads and writes v1's structs, whose layout is v1alpha's, and a response carries the
 * descriptor of the version that was asked.
 */
#include "rpc/reflection.h"

#include <assert.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc/reflection/v1alpha/reflection.pb-c.h"
#include "rpc/reflection_internal.h"
#include "rpc/server_internal.h"

#define SERVICES_MAX 32

typedef Grpc__Reflection__V1__ServerReflectionRequest reflection_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse reflection_response;
typedef Grpc__Reflection__V1alpha__ServerReflectionRequest alpha_request;
typedef Grpc__Reflection__V1alpha__ServerReflectionResponse alpha_response;

static_assert(sizeof(reflection_request) == sizeof(alpha_request), "one layout");
static_assert(offsetof(reflection_request, message_request_case) ==
                  offsetof(alpha_request, message_request_case),
              "one layout");
static_assert(sizeof(reflection_response) == sizeof(alpha_response), "one layout");
static_assert(offsetof(reflection_response, message_response_case) ==
                  offsetof(alpha_response, message_response_case),
              "one layout");

#define REQUEST(name)  GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define RESPONSE(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

struct reflection {
    struct nosa_rpc_server *server;
    struct nosa_rpc_file_index index; /* fixed after add */
    pthread_mutex_t mutex;
    /* under mutex */
    struct session *sessions;
    bool shutting_down;
};

/* One stream of questions. Freed by its `done`. */
struct session {
    struct reflection *reflection;
    struct nosa_rpc_call *call;
    const ProtobufCMessageDescriptor *response; /* of its version */
    struct session *next;
    struct session *previous;
    bool finished; /* under the reflection's mutex */
};

/* What a response is made of; lives until it is packed. */
struct answer {
    reflection_response response;
    Grpc__Reflection__V1__FileDescriptorResponse files;
    Grpc__Reflection__V1__ListServiceResponse list;
    Grpc__Reflection__V1__ExtensionNumberResponse extensions;
    Grpc__Reflection__V1__ErrorResponse refusal;
    ProtobufCBinaryData file_data[NOSA_RPC_FILES_MAX];
    Grpc__Reflection__V1__ServiceResponse services[SERVICES_MAX];
    Grpc__Reflection__V1__ServiceResponse *service_list[SERVICES_MAX];
};

static void refuse(struct answer *answer, enum nosa_rpc_code code, const char *text)
{
    grpc__reflection__v1__error_response__init(&answer->refusal);
    answer->refusal.error_code = code;
    answer->refusal.error_message = (char *)(uintptr_t)text;
    answer->response.message_response_case = RESPONSE(ERROR_RESPONSE);
    answer->response.error_response = &answer->refusal;
}

static void answer_file(struct answer *answer, const struct nosa_rpc_file_index *index, int file)
{
    if (file < 0) {
        refuse(answer, NOSA_RPC_NOT_FOUND, "not found");
        return;
    }
    int closure[NOSA_RPC_FILES_MAX];
    grpc__reflection__v1__file_descriptor_response__init(&answer->files);
    answer->files.n_file_descriptor_proto = nosa_rpc_file_index_closure(index, file, closure);
    answer->files.file_descriptor_proto = answer->file_data;
    for (size_t i = 0; i < answer->files.n_file_descriptor_proto; i++) {
        const struct nosa_rpc_file *found = &index->files[closure[i]];
        answer->file_data[i] =
            (ProtobufCBinaryData){found->size, (uint8_t *)(uintptr_t)found->data};
    }
    answer->response.message_response_case = RESPONSE(FILE_DESCRIPTOR_RESPONSE);
    answer->response.file_descriptor_response = &answer->files;
}

static void answer_services(struct answer *answer, const struct nosa_rpc_server *server)
{
    size_t count = 0;
    for (const struct nosa_rpc_service *service = server->services; service && count < SERVICES_MAX;
         service = service->next) {
        grpc__reflection__v1__service_response__init(&answer->services[count]);
        answer->services[count].name = (char *)(uintptr_t)service->descriptor->name;
        answer->service_list[count] = &answer->services[count];
        count++;
    }
    grpc__reflection__v1__list_service_response__init(&answer->list);
    answer->list.n_service = count;
    answer->list.service = answer->service_list;
    answer->response.message_response_case = RESPONSE(LIST_SERVICES_RESPONSE);
    answer->response.list_services_response = &answer->list;
}

/* The descriptors hold no extensions, so a type has none. */
static void answer_extensions(struct answer *answer, const struct nosa_rpc_file_index *index,
                              char *type)
{
    if (nosa_rpc_file_index_find_symbol(index, type) < 0) {
        refuse(answer, NOSA_RPC_NOT_FOUND, "not found");
        return;
    }
    grpc__reflection__v1__extension_number_response__init(&answer->extensions);
    answer->extensions.base_type_name = type;
    answer->response.message_response_case = RESPONSE(ALL_EXTENSION_NUMBERS_RESPONSE);
    answer->response.all_extension_numbers_response = &answer->extensions;
}

static void fill_answer(struct answer *answer, const struct session *session,
                        reflection_request *request)
{
    const struct nosa_rpc_file_index *index = &session->reflection->index;
    grpc__reflection__v1__server_reflection_response__init(&answer->response);
    answer->response.base.descriptor = session->response;
    answer->response.valid_host = request->host;
    answer->response.original_request = request;
    switch (request->message_request_case) {
    case REQUEST(FILE_BY_FILENAME):
        answer_file(answer, index, nosa_rpc_file_index_find_name(index, request->file_by_filename));
        break;
    case REQUEST(FILE_CONTAINING_SYMBOL):
        answer_file(answer, index,
                    nosa_rpc_file_index_find_symbol(index, request->file_containing_symbol));
        break;
    case REQUEST(FILE_CONTAINING_EXTENSION):
        refuse(answer, NOSA_RPC_NOT_FOUND, "there are no extensions");
        break;
    case REQUEST(ALL_EXTENSION_NUMBERS_OF_TYPE):
        answer_extensions(answer, index, request->all_extension_numbers_of_type);
        break;
    case REQUEST(LIST_SERVICES): answer_services(answer, session->reflection->server); break;
    default: refuse(answer, NOSA_RPC_INVALID_ARGUMENT, "no question"); break;
    }
}

static void finish(struct session *session, enum nosa_rpc_code code, const char *text)
{
    struct reflection *reflection = session->reflection;
    pthread_mutex_lock(&reflection->mutex);
    bool first = !session->finished;
    session->finished = true;
    if (first)
        nosa_rpc_call_finish(session->call, code, text);
    pthread_mutex_unlock(&reflection->mutex);
}

static bool session_message(void *context, struct nosa_rpc_call *call,
                            const ProtobufCMessage *message)
{
    struct session *session = context;
    if (!message) {
        finish(session, NOSA_RPC_OK, NULL);
        return false;
    }
    struct answer answer;
    fill_answer(&answer, session, (reflection_request *)(uintptr_t)message);
    enum nosa_status status = nosa_rpc_call_send(call, &answer.response.base);
    if (status == NOSA_RESOURCE_EXHAUSTED)
        finish(session, NOSA_RPC_RESOURCE_EXHAUSTED, "too many answers wait to be read");
    return status == NOSA_OK;
}

static void session_cancelled(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    finish(context, NOSA_RPC_CANCELLED, NULL);
}

static void session_done(void *context, struct nosa_rpc_call *call)
{
    (void)call;
    struct session *session = context;
    struct reflection *reflection = session->reflection;
    pthread_mutex_lock(&reflection->mutex);
    if (session->previous)
        session->previous->next = session->next;
    else
        reflection->sessions = session->next;
    if (session->next)
        session->next->previous = session->previous;
    pthread_mutex_unlock(&reflection->mutex);
    free(session);
}

static const struct nosa_rpc_call_events session_events = {
    .cancelled = session_cancelled, .message = session_message, .done = session_done};

static void begin(struct reflection *reflection, struct nosa_rpc_call *call,
                  const ProtobufCMessageDescriptor *response)
{
    struct session *session = calloc(1, sizeof *session);
    if (!session) {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory for reflection");
        return;
    }
    session->reflection = reflection;
    session->call = call;
    session->response = response;
    nosa_rpc_call_set_events(call, &session_events, session);
    pthread_mutex_lock(&reflection->mutex);
    session->next = reflection->sessions;
    if (session->next)
        session->next->previous = session;
    reflection->sessions = session;
    bool shutting_down = reflection->shutting_down;
    pthread_mutex_unlock(&reflection->mutex);
    if (shutting_down)
        finish(session, NOSA_RPC_UNAVAILABLE, "the server is shutting down");
}

static void begin_v1(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    (void)request;
    begin(context, call, &grpc__reflection__v1__server_reflection_response__descriptor);
}

static void begin_v1alpha(void *context, struct nosa_rpc_call *call,
                          const ProtobufCMessage *request)
{
    (void)request;
    begin(context, call, &grpc__reflection__v1alpha__server_reflection_response__descriptor);
}

static const struct nosa_rpc_method v1_methods[] = {
    {.name = "ServerReflectionInfo", .kind = NOSA_RPC_BIDIRECTIONAL, .start = begin_v1}};
static const struct nosa_rpc_method v1alpha_methods[] = {
    {.name = "ServerReflectionInfo", .kind = NOSA_RPC_BIDIRECTIONAL, .start = begin_v1alpha}};

static void begin_shutdown(void *context)
{
    struct reflection *reflection = context;
    pthread_mutex_lock(&reflection->mutex);
    reflection->shutting_down = true;
    for (struct session *session = reflection->sessions; session; session = session->next) {
        if (!session->finished)
            nosa_rpc_call_finish(session->call, NOSA_RPC_UNAVAILABLE,
                                 "the server is shutting down");
        session->finished = true;
    }
    pthread_mutex_unlock(&reflection->mutex);
}

static void reflection_free(void *context)
{
    struct reflection *reflection = context;
    NOSA_ASSERT(!reflection->sessions);
    pthread_mutex_destroy(&reflection->mutex);
    free(reflection);
}

enum nosa_status nosa_rpc_reflection_add(struct nosa_rpc_server *server,
                                         const struct nosa_rpc_descriptor_set *sets, size_t count,
                                         struct nosa_error *error)
{
    struct reflection *reflection = calloc(1, sizeof *reflection);
    if (!reflection)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for reflection");
    reflection->server = server;
    pthread_mutex_init(&reflection->mutex, NULL);
    const struct nosa_rpc_hook hook = {begin_shutdown, reflection_free, reflection};
    nosa_rpc_server_add_hook(server, &hook);
    for (size_t i = 0; i < count; i++)
        NOSA_TRY(nosa_rpc_file_index_add(&reflection->index, &sets[i], error));
    NOSA_TRY(nosa_rpc_server_add_service(server,
                                         &grpc__reflection__v1__server_reflection__descriptor,
                                         v1_methods, 1, reflection, error));
    return nosa_rpc_server_add_service(server,
                                       &grpc__reflection__v1alpha__server_reflection__descriptor,
                                       v1alpha_methods, 1, reflection, error);
}
