/* nosa.v1.Inference: what clients call. Generate is generation.c's. */
#include <stdlib.h>
#include <string.h>

#include "coordinator_internal.h"

static void generate(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *request)
{
    nosa_generation_start(context, call, (const Nosa__V1__GenerateRequest *)request);
}

/* ---- Tokenize and Detokenize: here when short, else in the pool ---- */

struct text_job {
    struct nosa_rpc_call *call;
    struct nosa_model *model; /* one reference */
    const Nosa__V1__TokenizeRequest *tokenize;
    const Nosa__V1__DetokenizeRequest *detokenize;
};

static void run_tokenize(const struct text_job *job)
{
    struct nosa_error error = {0};
    struct nosa_tokens tokens = {0};
    Nosa__V1__TokenizeResponse response = NOSA__V1__TOKENIZE_RESPONSE__INIT;
    enum nosa_status status =
        job->tokenize->input_case == NOSA__V1__TOKENIZE_REQUEST__INPUT_TEXT
            ? nosa_prompt_encode_text(job->model, job->tokenize->text, &tokens, &error)
            : nosa_prompt_encode_chat(job->model, job->tokenize->chat, &tokens, &error);
    if (status == NOSA_OK) {
        response.n_token_ids = tokens.count;
        response.token_ids = (uint32_t *)tokens.ids;
        nosa_rpc_call_reply(job->call, &response.base);
    } else {
        nosa_rpc_call_fail(job->call, &error);
    }
    nosa_tokens_free(&tokens);
}

static void run_detokenize(const struct text_job *job)
{
    struct nosa_error error = {0};
    struct nosa_buffer text = {0};
    const Nosa__V1__DetokenizeRequest *request = job->detokenize;
    Nosa__V1__DetokenizeResponse response = NOSA__V1__DETOKENIZE_RESPONSE__INIT;
    enum nosa_status status = nosa_validate_ids(
        "token_ids", request->token_ids, request->n_token_ids, job->model->vocab_size, &error);
    if (status == NOSA_OK && !job->model->tokenizer)
        status = nosa_error_set(&error, NOSA_INVALID_ARGUMENT, "model: '%.128s' has no tokenizer",
                                job->model->id);
    if (status == NOSA_OK)
        status = nosa_tokenizer_decode(job->model->tokenizer, (const int32_t *)request->token_ids,
                                       request->n_token_ids, &text, &error);
    const char *string = status == NOSA_OK ? nosa_text_string(&text) : NULL;
    if (status == NOSA_OK && !string)
        status = nosa_error_set(&error, NOSA_OUT_OF_MEMORY, "no memory for the text");
    response.text = (char *)(uintptr_t)string;
    if (status == NOSA_OK)
        nosa_rpc_call_reply(job->call, &response.base);
    else
        nosa_rpc_call_fail(job->call, &error);
    nosa_buffer_free(&text);
}

static void run_text_job(void *argument)
{
    struct text_job *job = argument;
    if (job->tokenize)
        run_tokenize(job);
    else
        run_detokenize(job);
    nosa_model_release(job->model);
    free(job);
}

/* Takes the model's reference. */
static void start_text_job(struct nosa_coordinator *coordinator, struct text_job job, size_t bytes)
{
    struct text_job *copy = malloc(sizeof *copy);
    if (copy)
        *copy = job;
    if (copy && bytes <= NOSA_INLINE_BYTES) {
        run_text_job(copy);
        return;
    }
    if (copy && nosa_work_pool_submit(coordinator->pool, run_text_job, copy) == NOSA_OK)
        return;
    nosa_rpc_call_finish(job.call, NOSA_RPC_RESOURCE_EXHAUSTED,
                         "too many prompts wait to be encoded");
    nosa_model_release(job.model);
    free(copy);
}

static void tokenize(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    const Nosa__V1__TokenizeRequest *request = (const Nosa__V1__TokenizeRequest *)message;
    struct nosa_error error = {0};
    struct text_job job = {.call = call, .tokenize = request};
    enum nosa_status status;
    size_t bytes = SIZE_MAX;
    if (request->input_case == NOSA__V1__TOKENIZE_REQUEST__INPUT_TEXT) {
        status = nosa_validate_text("text", request->text, &coordinator->limits, &error);
        bytes = strlen(request->text);
    } else if (request->input_case == NOSA__V1__TOKENIZE_REQUEST__INPUT_CHAT) {
        status = nosa_validate_chat(request->chat, &coordinator->limits, &error);
    } else {
        status = nosa_error_set(&error, NOSA_INVALID_ARGUMENT,
                                "input: one of text and chat must be set");
    }
    if (status == NOSA_OK)
        status =
            nosa_registry_find_model(coordinator->registry, request->model, &job.model, &error);
    if (status == NOSA_OK)
        start_text_job(coordinator, job, bytes);
    else
        nosa_rpc_call_fail(call, &error);
}

static void detokenize(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    const Nosa__V1__DetokenizeRequest *request = (const Nosa__V1__DetokenizeRequest *)message;
    struct nosa_error error = {0};
    struct text_job job = {.call = call, .detokenize = request};
    size_t bytes = request->n_token_ids * sizeof(uint32_t);
    enum nosa_status status = NOSA_OK;
    if (bytes > coordinator->limits.prompt_bytes_max)
        status = nosa_error_set(&error, NOSA_RESOURCE_EXHAUSTED,
                                "token_ids: %zu bytes, more than --max-prompt-bytes", bytes);
    if (status == NOSA_OK)
        status =
            nosa_registry_find_model(coordinator->registry, request->model, &job.model, &error);
    if (status == NOSA_OK)
        start_text_job(coordinator, job, bytes);
    else
        nosa_rpc_call_fail(call, &error);
}

/* ---- ListModels ---- */

static Nosa__V1__Model *find_entry(Nosa__V1__Model *models, size_t count, const char *id)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(models[i].id, id) == 0)
            return &models[i];
    return NULL;
}

/* Every model of the views, by the name of its first worker; texts are borrowed from the views. */
static size_t gather_models(const struct nosa_worker_view *views, size_t count,
                            Nosa__V1__Model *models)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const struct nosa_model *model = views[i].worker->model;
        if (model->vocab_size == 0) /* nothing is known of it yet */
            continue;
        Nosa__V1__Model *entry = find_entry(models, found, model->id);
        if (!entry) {
            entry = &models[found++];
            nosa__v1__model__init(entry);
            entry->id = model->id;
            entry->max_context_tokens = model->max_context_tokens;
            entry->vocab_size = model->vocab_size;
            entry->attention = model->attention;
        }
        entry->workers_ready += views[i].state == NOSA__V1__WORKER_STATE__WORKER_STATE_READY;
    }
    return found;
}

static void list_models(void *context, struct nosa_rpc_call *call, const ProtobufCMessage *message)
{
    struct nosa_coordinator *coordinator = context;
    struct nosa_error error = {0};
    struct nosa_worker_view *views = NULL;
    size_t count = 0;
    Nosa__V1__ListModelsResponse response = NOSA__V1__LIST_MODELS_RESPONSE__INIT;
    (void)message;
    if (nosa_registry_list(coordinator->registry, &views, &count, &error) != NOSA_OK) {
        nosa_rpc_call_fail(call, &error);
        return;
    }
    Nosa__V1__Model *models = calloc(count + 1, sizeof *models);
    Nosa__V1__Model **list = calloc(count + 1, sizeof *list);
    if (models && list) {
        response.n_models = gather_models(views, count, models);
        response.models = list;
        for (size_t i = 0; i < response.n_models; i++)
            list[i] = &models[i];
        nosa_rpc_call_reply(call, &response.base);
    } else {
        nosa_rpc_call_finish(call, NOSA_RPC_RESOURCE_EXHAUSTED, "no memory");
    }
    free(models);
    free(list);
    nosa_worker_views_free(views, count);
}

static const struct nosa_rpc_method methods[] = {
    {.name = "Generate", .kind = NOSA_RPC_SERVER_STREAMING, .start = generate},
    {.name = "Tokenize", .kind = NOSA_RPC_UNARY, .start = tokenize},
    {.name = "Detokenize", .kind = NOSA_RPC_UNARY, .start = detokenize},
    {.name = "ListModels", .kind = NOSA_RPC_UNARY, .start = list_models},
};

enum nosa_status nosa_inference_add(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    return nosa_rpc_server_add_service(coordinator->server, &nosa__v1__inference__descriptor,
                                       methods, sizeof methods / sizeof *methods, coordinator,
                                       error);
}
