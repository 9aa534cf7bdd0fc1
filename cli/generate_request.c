#include "generate_request.h"

#include <float.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/generation_flags.h"
#include "base/utf8.h"

#define FILE_BYTES_MAX (64u << 20)

const struct nosa_flag nosa_generate_request_flags[NOSA_GENERATE_REQUEST_FLAG_COUNT] = {
    {.name = "prompt",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Input",
     .help = "text to continue"},
    {.name = "prompt-file",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Input",
     .help = "file with the text to continue, UTF-8; - is standard input"},
    {.name = "prompt-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "IDS",
     .group = "Input",
     .help = "token ids to continue, separated by commas"},
    {.name = "messages",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Input",
     .help = "a chat: file with a JSON array of {\"role\", \"content\"}; - is standard input"},
    {.name = "chat",
     .kind = NOSA_FLAG_BOOL,
     .group = "Input",
     .help = "send the text prompt as a user's message, in the model's chat format"},
    {.name = "system",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Input",
     .help = "with --chat: a system message before it"},
    {.name = "model",
     .kind = NOSA_FLAG_STRING,
     .value_name = "NAME",
     .group = "Input",
     .help = "which model, where there are several"},

    NOSA_GENERATION_FLAGS,
    {.name = "stop",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Generation",
     .help = "end before this text; a JSON array of texts where there are several"},
    {.name = "stop-token-ids",
     .kind = NOSA_FLAG_STRING,
     .value_name = "IDS",
     .group = "Generation",
     .help = "end with any of these tokens, separated by commas"},
    {.name = "ignore-eos",
     .kind = NOSA_FLAG_BOOL,
     .group = "Generation",
     .help = "go on past end tokens"},
    {.name = "resume-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "IDS",
     .group = "Generation",
     .help =
         "tokens that an earlier stream of this request delivered; what follows them is printed"},

    {.name = "request-id",
     .kind = NOSA_FLAG_STRING,
     .value_name = "ID",
     .group = "Request",
     .help = "its name for requests and cancel; default: one is drawn"},
    {.name = "priority",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "0",
     .group = "Request",
     .help = "larger is served first"},
    {.name = "cache-salt",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Request",
     .help = "share cached prefixes with requests of the same salt alone"},
    {.name = "logprobs",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "0",
     .range.integer = {0, 20},
     .group = "Request",
     .help = "alternatives of each token to report; with --json"},
    {.name = "json",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "print one JSON object at the end instead of text"},
    {.name = "quiet",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "no line of figures on standard error"},
    {.name = "resume-timeout",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "30",
     .range.number = {0, 1e6},
     .group = "Connection",
     .help = "when the stream breaks, try for this long to go on where it ended; 0: do not"},
};

static enum nosa_status no_memory(struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the request");
}

/* ---- parts ---- */

enum nosa_status nosa_generate_parse_ids(const char *source, const char *text, uint32_t **ids,
                                         size_t *count, struct nosa_error *error)
{
    const char *at = text;
    size_t capacity = 1;
    *count = 0;
    for (const char *comma = strchr(text, ','); comma; comma = strchr(comma + 1, ','))
        capacity++;
    *ids = malloc(capacity * sizeof **ids);
    enum nosa_status status = *ids ? NOSA_OK : no_memory(error);
    while (status == NOSA_OK) {
        at += strspn(at, " \t\n");
        size_t digits = strspn(at, "0123456789");
        unsigned long long id = digits >= 1 && digits <= 10 ? strtoull(at, NULL, 10) : UINT64_MAX;
        if (id > INT32_MAX) {
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                    "%s: '%.20s' at byte %zu is not a token id", source, at,
                                    (size_t)(at - text));
            break;
        }
        (*ids)[(*count)++] = (uint32_t)id;
        at += digits;
        at += strspn(at, " \t\n");
        if (*at == '\0')
            return NOSA_OK;
        if (*at++ != ',')
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                    "%s: '%.20s' at byte %zu where a comma was expected", source,
                                    at - 1, (size_t)(at - 1 - text));
    }
    free(*ids);
    *ids = NULL;
    *count = 0;
    return status;
}

/* A copy of what is valid UTF-8 without NUL. */
static enum nosa_status copy_text(const char *source, const char *text, size_t size, char **copy,
                                  struct nosa_error *error)
{
    size_t valid = nosa_utf8_valid_prefix(text, size);
    const char *nul = memchr(text, '\0', size);
    if (valid != size)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not UTF-8 at byte %zu", source,
                              valid);
    if (nul)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: a NUL at byte %zu", source,
                              (size_t)(nul - text));
    *copy = strndup(text, size);
    return *copy ? NOSA_OK : no_memory(error);
}

static void free_texts(char **texts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(texts[i]);
    free(texts);
}

/* The texts of a JSON array. */
static enum nosa_status take_stops(const char *source, const json_t *array, char ***stops,
                                   size_t *count, struct nosa_error *error)
{
    size_t size = json_array_size(array);
    *stops = calloc(size + 1, sizeof **stops);
    enum nosa_status status = *stops ? NOSA_OK : no_memory(error);
    for (size_t i = 0; i < size && status == NOSA_OK; i++) {
        const json_t *item = json_array_get(array, i);
        if (!json_is_string(item)) {
            status =
                nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: item %zu is no text", source, i);
            break;
        }
        status =
            copy_text(source, json_string_value(item), json_string_length(item), *stops + i, error);
        *count += status == NOSA_OK;
    }
    return status;
}

enum nosa_status nosa_generate_parse_stops(const char *source, const char *text, char ***stops,
                                           size_t *count, struct nosa_error *error)
{
    json_error_t fault;
    enum nosa_status status;
    *stops = NULL;
    *count = 0;
    if (text[0] == '[') {
        json_t *array = json_loads(text, 0, &fault);
        status = array ? take_stops(source, array, stops, count, error)
                       : nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                        "%s: begins with [ but is no JSON array: %s", source,
                                        fault.text);
        json_decref(array);
    } else {
        *stops = calloc(1, sizeof **stops);
        status = *stops ? copy_text(source, text, strlen(text), *stops, error) : no_memory(error);
        *count = status == NOSA_OK;
    }
    if (status != NOSA_OK) {
        free_texts(*stops, *count);
        *stops = NULL;
        *count = 0;
    }
    return status;
}

/* Appends a message whose texts are copied. There is room for it. */
static enum nosa_status add_message(Nosa__V1__Chat *chat, const char *source, const char *role,
                                    const char *content, size_t content_size,
                                    struct nosa_error *error)
{
    Nosa__V1__Message *message = malloc(sizeof *message);
    char *content_copy = NULL;
    if (!message)
        return no_memory(error);
    nosa__v1__message__init(message);
    chat->messages[chat->n_messages++] = message;
    NOSA_TRY(copy_text(source, content, content_size, &content_copy, error));
    message->content = content_copy;
    char *role_copy = strdup(role);
    if (!role_copy)
        return no_memory(error);
    message->role = role_copy;
    return NOSA_OK;
}

/* An empty chat with room for `capacity` messages; NULL: no memory. */
static Nosa__V1__Chat *make_chat(size_t capacity)
{
    Nosa__V1__Chat *chat = malloc(sizeof *chat);
    if (!chat)
        return NULL;
    nosa__v1__chat__init(chat);
    chat->messages = calloc(capacity + 1, sizeof(Nosa__V1__Message *));
    if (!chat->messages) {
        free(chat);
        return NULL;
    }
    return chat;
}

static enum nosa_status take_messages(const char *source, const json_t *array, Nosa__V1__Chat *chat,
                                      struct nosa_error *error)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        const json_t *role = json_object_get(item, "role");
        const json_t *content = json_object_get(item, "content");
        if (!json_is_string(role) || !json_is_string(content))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "%s: message %zu is not {\"role\": text, \"content\": text}",
                                  source, i);
        NOSA_TRY(add_message(chat, source, json_string_value(role), json_string_value(content),
                             json_string_length(content), error));
    }
    return NOSA_OK;
}

enum nosa_status nosa_generate_parse_messages(const char *source, const char *text, size_t size,
                                              Nosa__V1__Chat **chat, struct nosa_error *error)
{
    json_error_t fault;
    json_t *array = json_loadb(text, size, 0, &fault);
    *chat = NULL;
    if (!array)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: line %d: %s", source, fault.line,
                              fault.text);
    enum nosa_status status = NOSA_OK;
    if (json_array_size(array) == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "%s: is no array with at least one message", source);
    if (status == NOSA_OK && !(*chat = make_chat(json_array_size(array))))
        status = no_memory(error);
    if (status == NOSA_OK)
        status = take_messages(source, array, *chat, error);
    json_decref(array);
    if (status != NOSA_OK && *chat) {
        nosa__v1__chat__free_unpacked(*chat, NULL);
        *chat = NULL;
    }
    return status;
}

/* ---- the prompt ---- */

static const char *const input_names[] = {"prompt", "prompt-file", "prompt-tokens", "messages"};

#define N_INPUTS (sizeof input_names / sizeof *input_names)

/* Which input is meant: one on the command line sets aside those that the environment names. */
static enum nosa_status choose_input(const struct nosa_flags *flags, const char **chosen,
                                     struct nosa_error *error)
{
    int given = 0, on_command_line = 0;
    const char *last = NULL, *last_on_command_line = NULL;
    for (size_t i = 0; i < N_INPUTS; i++) {
        if (!nosa_flags_is_set(flags, input_names[i]))
            continue;
        given++;
        last = input_names[i];
        if (strncmp(nosa_flags_source(flags, last), "--", 2) == 0) {
            on_command_line++;
            last_on_command_line = last;
        }
    }
    *chosen = on_command_line ? last_on_command_line : last;
    if (on_command_line == 1 || (on_command_line == 0 && given == 1))
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "give exactly one of --prompt, --prompt-file, --prompt-tokens and "
                          "--messages (%d given)",
                          on_command_line ? on_command_line : given);
}

/* Puts a text into the request: as it is, or as a chat. */
static enum nosa_status set_text(const struct nosa_flags *flags, Nosa__V1__GenerateRequest *request,
                                 const char *source, const char *text, size_t size,
                                 struct nosa_error *error)
{
    const char *system = nosa_flags_string(flags, "system");
    if (size == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: the text is empty", source);
    if (!nosa_flags_bool(flags, "chat")) {
        char *copy;
        NOSA_TRY(copy_text(source, text, size, &copy, error));
        request->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_TEXT;
        request->text = copy;
        return NOSA_OK;
    }
    Nosa__V1__Chat *chat = make_chat(2);
    if (!chat)
        return no_memory(error);
    request->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_CHAT;
    request->chat = chat;
    if (system)
        NOSA_TRY(add_message(chat, nosa_flags_source(flags, "system"), "system", system,
                             strlen(system), error));
    return add_message(chat, source, "user", text, size, error);
}

static enum nosa_status set_file(const struct nosa_flags *flags, Nosa__V1__GenerateRequest *request,
                                 const char *name, struct nosa_error *error)
{
    const char *path = nosa_flags_string(flags, name);
    const char *source = strcmp(path, "-") == 0 ? "standard input" : path;
    char *text;
    size_t size;
    NOSA_TRY(nosa_file_read_input(path, FILE_BYTES_MAX, &text, &size, error));
    enum nosa_status status;
    if (strcmp(name, "messages") == 0) {
        status = nosa_generate_parse_messages(source, text, size, &request->chat, error);
        if (status == NOSA_OK)
            request->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_CHAT;
    } else {
        status = set_text(flags, request, source, text, size, error);
    }
    free(text);
    return status;
}

static enum nosa_status set_tokens(const struct nosa_flags *flags,
                                   Nosa__V1__GenerateRequest *request, struct nosa_error *error)
{
    Nosa__V1__TokenIds *tokens = malloc(sizeof *tokens);
    if (!tokens)
        return no_memory(error);
    nosa__v1__token_ids__init(tokens);
    request->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    request->token_ids = tokens;
    return nosa_generate_parse_ids(nosa_flags_source(flags, "prompt-tokens"),
                                   nosa_flags_string(flags, "prompt-tokens"), &tokens->ids,
                                   &tokens->n_ids, error);
}

static enum nosa_status set_input(const struct nosa_flags *flags,
                                  Nosa__V1__GenerateRequest *request, struct nosa_error *error)
{
    const char *input;
    NOSA_TRY(choose_input(flags, &input, error));
    bool text = strcmp(input, "prompt") == 0 || strcmp(input, "prompt-file") == 0;
    if (nosa_flags_bool(flags, "chat") && !text)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s wraps a text prompt, not --%s",
                              nosa_flags_source(flags, "chat"), input);
    if (nosa_flags_is_set(flags, "system") && !nosa_flags_bool(flags, "chat"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s goes with --chat",
                              nosa_flags_source(flags, "system"));
    if (strcmp(input, "prompt-tokens") == 0)
        return set_tokens(flags, request, error);
    if (strcmp(input, "prompt") != 0)
        return set_file(flags, request, input, error);
    const char *prompt = nosa_flags_string(flags, "prompt");
    return set_text(flags, request, nosa_flags_source(flags, "prompt"), prompt, strlen(prompt),
                    error);
}

/* ---- the rest ---- */

/* A share that is too small for a float is not 0, which would turn the filter off. */
static float share(double value)
{
    return value > 0 && value < (double)FLT_MIN ? FLT_MIN : (float)value;
}

/* Without any of these flags the model's own settings hold. */
static enum nosa_status set_sampling(const struct nosa_flags *flags,
                                     Nosa__V1__GenerateRequest *request, struct nosa_error *error)
{
    static const char *const names[] = {
        "temperature",      "top-p", "top-k", "min-p", "repetition-penalty", "presence-penalty",
        "frequency-penalty"};
    bool any = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        any = any || nosa_flags_is_set(flags, names[i]);
    request->seed = nosa_flags_uint64(flags, "seed");
    if (!any)
        return NOSA_OK;
    Nosa__V1__Sampling *sampling = malloc(sizeof *sampling);
    if (!sampling)
        return no_memory(error);
    nosa__v1__sampling__init(sampling);
    request->sampling = sampling;
    sampling->top_p = share(nosa_flags_double(flags, "top-p"));
    sampling->top_k = (uint32_t)nosa_flags_int32(flags, "top-k");
    sampling->min_p = share(nosa_flags_double(flags, "min-p"));
    bool filtered = sampling->top_p > 0 || sampling->top_k > 0 || sampling->min_p > 0;
    sampling->temperature = nosa_flags_is_set(flags, "temperature")
                                ? (float)nosa_flags_double(flags, "temperature")
                                : (float)filtered; /* a filter without a temperature means 1 */
    sampling->seed = request->seed;
    sampling->repetition_penalty = (float)nosa_flags_double(flags, "repetition-penalty");
    sampling->presence_penalty = (float)nosa_flags_double(flags, "presence-penalty");
    sampling->frequency_penalty = (float)nosa_flags_double(flags, "frequency-penalty");
    return NOSA_OK;
}

/* Copies a flag's text into a field of the request, when it was given. */
static enum nosa_status set_string(const struct nosa_flags *flags, const char *name, char **field,
                                   struct nosa_error *error)
{
    const char *text = nosa_flags_string(flags, name);
    char *copy;
    if (!text || !*text)
        return NOSA_OK;
    NOSA_TRY(copy_text(nosa_flags_source(flags, name), text, strlen(text), &copy, error));
    *field = copy;
    return NOSA_OK;
}

static enum nosa_status set_ids(const struct nosa_flags *flags, const char *name, uint32_t **ids,
                                size_t *count, struct nosa_error *error)
{
    const char *text = nosa_flags_string(flags, name);
    if (!text || !*text)
        return NOSA_OK;
    return nosa_generate_parse_ids(nosa_flags_source(flags, name), text, ids, count, error);
}

static enum nosa_status fill(const struct nosa_flags *flags, Nosa__V1__GenerateRequest *request,
                             struct nosa_error *error)
{
    const char *stop = nosa_flags_string(flags, "stop");
    request->max_tokens = (uint32_t)nosa_flags_int32(flags, "max-tokens");
    request->ignore_eos = nosa_flags_bool(flags, "ignore-eos");
    request->priority = nosa_flags_int32(flags, "priority");
    request->logprobs = (uint32_t)nosa_flags_int32(flags, "logprobs");
    request->return_prompt_token_ids = nosa_flags_bool(flags, "json");
    if (request->logprobs > 0 && !nosa_flags_bool(flags, "json"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s goes with --json",
                              nosa_flags_source(flags, "logprobs"));
    NOSA_TRY(set_sampling(flags, request, error));
    NOSA_TRY(set_string(flags, "model", &request->model, error));
    NOSA_TRY(set_string(flags, "request-id", &request->request_id, error));
    NOSA_TRY(set_string(flags, "cache-salt", &request->cache_salt, error));
    NOSA_TRY(set_ids(flags, "stop-token-ids", &request->stop_token_ids, &request->n_stop_token_ids,
                     error));
    NOSA_TRY(set_ids(flags, "resume-tokens", &request->resume_token_ids,
                     &request->n_resume_token_ids, error));
    if (stop && *stop)
        NOSA_TRY(nosa_generate_parse_stops(nosa_flags_source(flags, "stop"), stop, &request->stop,
                                           &request->n_stop, error));
    return set_input(flags, request, error);
}

enum nosa_status nosa_generate_request_make(const struct nosa_flags *flags,
                                            Nosa__V1__GenerateRequest **request,
                                            struct nosa_error *error)
{
    *request = malloc(sizeof **request);
    if (!*request)
        return no_memory(error);
    nosa__v1__generate_request__init(*request);
    enum nosa_status status = fill(flags, *request, error);
    if (status != NOSA_OK) {
        nosa__v1__generate_request__free_unpacked(*request, NULL);
        *request = NULL;
    }
    return status;
}
