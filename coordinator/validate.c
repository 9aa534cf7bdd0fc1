#include "validate.h"

#include <float.h>
#include <math.h>
#include <string.h>

static enum nosa_status check_number(const char *field, float value, float min, float max,
                                     struct nosa_error *error)
{
    if (isfinite(value) && value >= min && value <= max)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "sampling.%s: %g is not within %g to %g",
                          field, (double)value, (double)min, (double)max);
}

enum nosa_status nosa_validate_sampling(const Nosa__V1__Sampling *sampling,
                                        struct nosa_error *error)
{
    NOSA_TRY(check_number("temperature", sampling->temperature, 0, 100, error));
    NOSA_TRY(check_number("top_p", sampling->top_p, 0, 1, error));
    NOSA_TRY(check_number("min_p", sampling->min_p, 0, 1, error));
    NOSA_TRY(check_number("repetition_penalty", sampling->repetition_penalty, 0, 100, error));
    NOSA_TRY(check_number("presence_penalty", sampling->presence_penalty, -100, 100, error));
    NOSA_TRY(check_number("frequency_penalty", sampling->frequency_penalty, -100, 100, error));
    if (sampling->top_k > INT32_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "sampling.top_k: %u is more than %d",
                              sampling->top_k, INT32_MAX);
    return NOSA_OK;
}

static enum nosa_status check_size(const char *field, size_t size, size_t max,
                                   struct nosa_error *error)
{
    if (size <= max)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: %zu bytes, more than %zu", field, size,
                          max);
}

/* A name that goes into logs and tables: no control characters. */
static enum nosa_status check_name(const char *field, const char *text, size_t max,
                                   struct nosa_error *error)
{
    NOSA_TRY(check_size(field, strlen(text), max, error));
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "%s: has a control character at byte %td", field, c - text);
    return NOSA_OK;
}

static enum nosa_status check_stops(const Nosa__V1__GenerateRequest *request,
                                    struct nosa_error *error)
{
    if (request->n_stop > NOSA_STOPS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "stop: %zu strings, more than %d",
                              request->n_stop, NOSA_STOPS_MAX);
    for (size_t i = 0; i < request->n_stop; i++) {
        size_t size = strlen(request->stop[i]);
        if (size == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "stop[%zu]: is empty", i);
        if (size > NOSA_STOP_BYTES_MAX)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "stop[%zu]: %zu bytes, more than %d", i, size,
                                  NOSA_STOP_BYTES_MAX);
    }
    if (request->n_stop_token_ids > NOSA_STOP_IDS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "stop_token_ids: %zu ids, more than %d",
                              request->n_stop_token_ids, NOSA_STOP_IDS_MAX);
    return NOSA_OK;
}

static enum nosa_status check_prompt_bytes(const char *field, uint64_t bytes,
                                           const struct nosa_request_limits *limits,
                                           struct nosa_error *error)
{
    if (bytes <= limits->prompt_bytes_max)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                          "%s: %llu bytes, more than --max-prompt-bytes %llu", field,
                          (unsigned long long)bytes, (unsigned long long)limits->prompt_bytes_max);
}

enum nosa_status nosa_validate_text(const char *field, const char *text,
                                    const struct nosa_request_limits *limits,
                                    struct nosa_error *error)
{
    return check_prompt_bytes(field, strlen(text), limits, error);
}

enum nosa_status nosa_validate_chat(const Nosa__V1__Chat *chat,
                                    const struct nosa_request_limits *limits,
                                    struct nosa_error *error)
{
    uint64_t bytes = 0;
    if (chat->n_messages == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "chat.messages: is empty");
    if (chat->n_messages > NOSA_CHAT_MESSAGES_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "chat.messages: %zu of them, more than %d", chat->n_messages,
                              NOSA_CHAT_MESSAGES_MAX);
    for (size_t i = 0; i < chat->n_messages; i++) {
        const char *role = chat->messages[i]->role;
        if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 &&
            strcmp(role, "assistant") != 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "chat.messages[%zu].role: '%.32s' is not system, user or "
                                  "assistant",
                                  i, role);
        bytes += strlen(chat->messages[i]->content);
    }
    return check_prompt_bytes("chat", bytes, limits, error);
}

static enum nosa_status check_input(const Nosa__V1__GenerateRequest *request,
                                    const struct nosa_request_limits *limits,
                                    struct nosa_error *error)
{
    switch (request->input_case) {
    case NOSA__V1__GENERATE_REQUEST__INPUT_TEXT:
        return nosa_validate_text("text", request->text, limits, error);
    case NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS:
        if (request->token_ids->n_ids == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "token_ids.ids: is empty");
        return check_prompt_bytes("token_ids.ids", 4 * (uint64_t)request->token_ids->n_ids, limits,
                                  error);
    case NOSA__V1__GENERATE_REQUEST__INPUT_CHAT:
        return nosa_validate_chat(request->chat, limits, error);
    default:
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "input: one of text, token_ids and chat must be set");
    }
}

enum nosa_status nosa_validate_generate(const Nosa__V1__GenerateRequest *request,
                                        const struct nosa_request_limits *limits,
                                        struct nosa_error *error)
{
    NOSA_TRY(check_name("request_id", request->request_id, NOSA_REQUEST_ID_BYTES_MAX, error));
    NOSA_TRY(
        check_size("cache_salt", strlen(request->cache_salt), NOSA_CACHE_SALT_BYTES_MAX, error));
    NOSA_TRY(check_input(request, limits, error));
    if (request->sampling)
        NOSA_TRY(nosa_validate_sampling(request->sampling, error));
    if (request->max_tokens == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "max_tokens: must be at least 1");
    NOSA_TRY(check_stops(request, error));
    if (request->logprobs > NOSA_LOGPROBS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "logprobs: %u is more than %d",
                              request->logprobs, NOSA_LOGPROBS_MAX);
    return check_prompt_bytes("resume_token_ids", 4 * (uint64_t)request->n_resume_token_ids, limits,
                              error);
}

enum nosa_status nosa_validate_ids(const char *field, const uint32_t *ids, size_t count,
                                   uint32_t vocab_size, struct nosa_error *error)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocab_size)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "%s[%zu]: %u is past the vocabulary of %u", field, i, ids[i],
                                  vocab_size);
    return NOSA_OK;
}

enum nosa_status nosa_validate_generate_ids(const Nosa__V1__GenerateRequest *request,
                                            const struct nosa_model_limits *model,
                                            struct nosa_error *error)
{
    if (request->input_case == NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS)
        NOSA_TRY(nosa_validate_ids("token_ids.ids", request->token_ids->ids,
                                   request->token_ids->n_ids, model->vocab_size, error));
    NOSA_TRY(nosa_validate_ids("stop_token_ids", request->stop_token_ids, request->n_stop_token_ids,
                               model->vocab_size, error));
    NOSA_TRY(nosa_validate_ids("resume_token_ids", request->resume_token_ids,
                               request->n_resume_token_ids, model->vocab_size, error));
    if (request->n_resume_token_ids > model->max_context_tokens)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "resume_token_ids: %zu ids, more than the model's context of %u",
                              request->n_resume_token_ids, model->max_context_tokens);
    return NOSA_OK;
}
