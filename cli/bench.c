#include "bench.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "bench_report.h"
#include "interrupt.h"
#include "nosa/v1/inference.pb-c.h"
#include "rpc/message.h"

#define CONCURRENCY_STANDARD 8
#define REQUESTS_STANDARD    100
#define CONNECTIONS_MAX      64
#define LIST_TIMEOUT_MS      10000
#define SALT_MAX             32

static const char *const arrivals_choices[] = {"poisson", "even", NULL};
static const char *const order_choices[] = {"random", "in-turn", NULL};

const struct nosa_flag nosa_bench_flags[] = {
    {.name = "rate",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "PER-SECOND",
     .range.number = {1e-6, 1e6},
     .group = "Load",
     .help = "open loop: requests arrive at this rate whether or not earlier ones have ended, and "
             "latencies count from the arrival; default: a closed loop"},
    {.name = "arrivals",
     .kind = NOSA_FLAG_CHOICE,
     .choices = arrivals_choices,
     .default_text = "poisson",
     .group = "Load",
     .help = "with --rate: a Poisson process, or evenly spaced"},
    {.name = "concurrency",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {1, 100000},
     .group = "Load",
     .help = "closed loop: requests kept in flight; default: 8. With --rate: at most so many, and "
             "the others wait here; default: no bound"},
    {.name = "requests",
     .kind = NOSA_FLAG_INT64,
     .value_name = "N",
     .range.integer = {1, INT64_C(1) << 40},
     .group = "Load",
     .help = "requests to send at most; default: 100, with --duration any number"},
    {.name = "duration",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .range.number = {0.001, 31536000},
     .group = "Load",
     .help = "start no request after this time; default: no such bound"},
    {.name = "warm-up",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "0",
     .range.integer = {0, 1000000},
     .group = "Load",
     .help = "requests before the others, which do not count"},
    {.name = "seed",
     .kind = NOSA_FLAG_UINT64,
     .value_name = "N",
     .default_text = "1",
     .group = "Load",
     .help = "of arrivals, lengths and prompts; 0: one is drawn"},

    {.name = "model",
     .kind = NOSA_FLAG_STRING,
     .value_name = "NAME",
     .group = "Requests",
     .help = "default: the only one"},
    {.name = "prompt-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "LENGTH",
     .default_text = "128",
     .group = "Requests",
     .help = "tokens of a prompt, drawn at random: 512, 100-900, normal:512,64 or exponential:512"},
    {.name = "output-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "LENGTH",
     .default_text = "64",
     .group = "Requests",
     .help = "tokens to generate, in the same words"},
    {.name = "prompts",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Requests",
     .help = "texts in place of random tokens, a JSON object a line: {\"prompt\": \"text\"}, and "
             "\"output_tokens\" where it differs; in order, again from the first"},
    {.name = "chat",
     .kind = NOSA_FLAG_BOOL,
     .group = "Requests",
     .help = "with --prompts: each text is a user's message in the model's chat format"},
    {.name = "prefix-groups",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "0",
     .range.integer = {0, 1000000},
     .group = "Requests",
     .help = "groups of requests whose prompts begin with the same tokens; 0: none"},
    {.name = "prefix-tokens",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "512",
     .range.integer = {1, NOSA_BENCH_TOKENS_MAX},
     .group = "Requests",
     .help = "tokens that a group shares; --prompt-tokens follow them"},
    {.name = "prefix-order",
     .kind = NOSA_FLAG_CHOICE,
     .choices = order_choices,
     .default_text = "random",
     .group = "Requests",
     .help = "whether a request's group is drawn, or the groups take turns"},
    {.name = "temperature",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "T",
     .default_text = "0",
     .range.number = {0, 100},
     .group = "Requests",
     .help = "0: greedy"},
    {.name = "stop-at-eos",
     .kind = NOSA_FLAG_BOOL,
     .group = "Requests",
     .help = "let outputs end at the model's end of text; otherwise all have their whole length"},
    {.name = "cache-salt",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Requests",
     .help = "default: one of this run's own, so that no run finds what another left in caches"},

    {.name = "ttft-limit-ms",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "MS",
     .range.number = {0, 1e9},
     .group = "Goodput",
     .help = "a good request's first token comes within this time"},
    {.name = "tpot-limit-ms",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "MS",
     .range.number = {0, 1e9},
     .group = "Goodput",
     .help = "its further tokens take this long each, on average"},
    {.name = "e2e-limit-ms",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "MS",
     .range.number = {0, 1e9},
     .group = "Goodput",
     .help = "and it ends within this time"},

    {.name = "connections",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "1",
     .range.integer = {1, CONNECTIONS_MAX},
     .group = "Client",
     .help = "connections that requests take in turn; with several servers the Nth begins with the "
             "Nth"},
    {.name = "threads",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "1",
     .range.integer = {1, 64},
     .group = "Client",
     .help = "threads that read what comes back"},
    {.name = "json", .kind = NOSA_FLAG_BOOL, .group = "Output", .help = "print one JSON object"},
    {.name = "details",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "with --json: an object for every request as well"},
};

/* ---- the options ---- */

static enum nosa_status read_lengths(const struct nosa_flags *flags, const char *name,
                                     struct nosa_bench_lengths *lengths, struct nosa_error *error)
{
    if (nosa_bench_lengths_parse(nosa_flags_string(flags, name), lengths, error) == NOSA_OK)
        return NOSA_OK;
    return nosa_error_prefix(error, "%s", nosa_flags_source(flags, name));
}

/* A number that nobody drew before, unless the system has none. */
static uint64_t draw(void)
{
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number || number == 0)
        number = nosa_clock_wall_ns(nosa_clock_system()) | 1;
    return number;
}

static enum nosa_status read_plan(const struct nosa_flags *flags, struct nosa_bench_plan *plan,
                                  struct nosa_error *error)
{
    plan->seed = nosa_flags_uint64(flags, "seed");
    if (plan->seed == 0)
        plan->seed = draw();
    NOSA_TRY(read_lengths(flags, "prompt-tokens", &plan->prompt, error));
    NOSA_TRY(read_lengths(flags, "output-tokens", &plan->output, error));
    plan->prefix_groups = (uint32_t)nosa_flags_int32(flags, "prefix-groups");
    plan->in_turn = nosa_flags_choice(flags, "prefix-order") == 1;
    if (plan->prefix_groups > 0)
        plan->prefix_tokens = (uint32_t)nosa_flags_int32(flags, "prefix-tokens");
    else if (nosa_flags_is_set(flags, "prefix-tokens"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s means nothing without --prefix-groups",
                              nosa_flags_source(flags, "prefix-tokens"));
    return NOSA_OK;
}

static enum nosa_status read_options(const struct nosa_flags *flags, const char *own_salt,
                                     struct nosa_bench_options *options, struct nosa_error *error)
{
    const char *model = nosa_flags_string(flags, "model");
    const char *salt = nosa_flags_string(flags, "cache-salt");
    NOSA_TRY(read_plan(flags, &options->plan, error));
    options->model = model ? model : "";
    options->rate = nosa_flags_double(flags, "rate");
    options->poisson = nosa_flags_choice(flags, "arrivals") == 0;
    options->concurrency = (uint32_t)nosa_flags_int32(flags, "concurrency");
    if (options->concurrency == 0 && options->rate <= 0)
        options->concurrency = CONCURRENCY_STANDARD;
    options->duration_ns = (uint64_t)(nosa_flags_double(flags, "duration") * 1e9);
    options->requests = (uint64_t)nosa_flags_int64(flags, "requests");
    if (options->requests == 0)
        options->requests = options->duration_ns > 0 ? UINT64_MAX : REQUESTS_STANDARD;
    options->warm_up = (uint32_t)nosa_flags_int32(flags, "warm-up");
    options->timeout_ms = nosa_connection_timeout_ms(flags, 0);
    options->temperature = (float)nosa_flags_double(flags, "temperature");
    options->stop_at_eos = nosa_flags_bool(flags, "stop-at-eos");
    options->cache_salt = salt ? salt : own_salt;
    options->limits = (struct nosa_bench_limits){
        .ttft_ms = nosa_flags_double(flags, "ttft-limit-ms"),
        .tpot_ms = nosa_flags_double(flags, "tpot-limit-ms"),
        .e2e_ms = nosa_flags_double(flags, "e2e-limit-ms"),
    };
    if (nosa_flags_bool(flags, "details") && !nosa_flags_bool(flags, "json"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s needs --json",
                              nosa_flags_source(flags, "details"));
    return NOSA_OK;
}

/* --prompts: the texts, and what means nothing beside them. */
static enum nosa_status read_prompts(const struct nosa_flags *flags,
                                     struct nosa_bench_prompts *prompts,
                                     struct nosa_bench_options *options, struct nosa_error *error)
{
    const char *path = nosa_flags_string(flags, "prompts");
    options->chat = nosa_flags_bool(flags, "chat");
    if (!path && options->chat)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s means nothing without --prompts",
                              nosa_flags_source(flags, "chat"));
    if (!path)
        return NOSA_OK;
    if (nosa_flags_is_set(flags, "prompt-tokens") || options->plan.prefix_groups > 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s: --prompt-tokens and --prefix-groups mean nothing beside it",
                              nosa_flags_source(flags, "prompts"));
    if (nosa_bench_prompts_read(path, prompts, error) != NOSA_OK)
        return nosa_error_prefix(error, "%s", nosa_flags_source(flags, "prompts"));
    options->prompts = prompts;
    return NOSA_OK;
}

/* ---- the model ---- */

/* Whether every request fits the model's context, as far as lengths are bounded. */
static enum nosa_status check_context(const struct nosa_bench_plan *plan,
                                      const Nosa__V1__Model *model, struct nosa_error *error)
{
    uint32_t prompt = nosa_bench_lengths_max(&plan->prompt);
    uint32_t output = nosa_bench_lengths_max(&plan->output);
    uint64_t most = (uint64_t)plan->prefix_tokens + prompt + output;
    if (prompt == NOSA_BENCH_TOKENS_MAX || output == NOSA_BENCH_TOKENS_MAX ||
        most <= model->max_context_tokens)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "prompt and output of up to %" PRIu64 " tokens do not fit the context of "
                          "model '%.128s', %u tokens (--prompt-tokens, --output-tokens)",
                          most, model->id, model->max_context_tokens);
}

static enum nosa_exit read_model(const Nosa__V1__ListModelsResponse *list,
                                 struct nosa_bench_options *options, struct nosa_error *error)
{
    const Nosa__V1__Model *model = NULL;
    for (size_t i = 0; i < list->n_models && !model; i++)
        if (!options->model[0] || strcmp(list->models[i]->id, options->model) == 0)
            model = list->models[i];
    if (list->n_models == 0) {
        nosa_error_set(error, NOSA_UNAVAILABLE, "the server has no model: no worker has joined");
        return NOSA_EXIT_UNAVAILABLE;
    }
    if (!model) {
        nosa_error_set(error, NOSA_NOT_FOUND, "--model: there is no model '%.128s'",
                       options->model);
        return NOSA_EXIT_NOT_FOUND;
    }
    if (!options->model[0] && list->n_models > 1) {
        nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                       "--model is missing: there are %zu models, '%.128s' among them",
                       list->n_models, model->id);
        return NOSA_EXIT_USAGE;
    }
    options->plan.vocab_size = model->vocab_size > 0 ? model->vocab_size : 1;
    if (!options->prompts && check_context(&options->plan, model, error) != NOSA_OK)
        return NOSA_EXIT_USAGE;
    return NOSA_EXIT_OK;
}

static enum nosa_exit find_model(struct nosa_connection *connection,
                                 struct nosa_bench_options *options, struct nosa_error *error)
{
    Nosa__V1__ListModelsRequest request = NOSA__V1__LIST_MODELS_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    enum nosa_rpc_code code = nosa_connection_call(
        connection, "/nosa.v1.Inference/ListModels", &request.base,
        &nosa__v1__list_models_response__descriptor, LIST_TIMEOUT_MS, &response, error);
    if (code != NOSA_RPC_OK)
        return nosa_exit_from_code(code);
    enum nosa_exit code_out =
        read_model((const Nosa__V1__ListModelsResponse *)response, options, error);
    nosa_message_free(response);
    return code_out;
}

/* ---- the run ---- */

/* The channels of a run: the connection's own, or more, on threads of their own. */
struct client {
    struct nosa_rpc_runtime *runtime;                   /* owned, or NULL */
    struct nosa_rpc_channel *channels[CONNECTIONS_MAX]; /* [count], owned if there is a runtime */
    size_t count;
};

static enum nosa_status open_client(struct client *client, struct nosa_connection *connection,
                                    const struct nosa_flags *flags, struct nosa_error *error)
{
    size_t count = (size_t)nosa_flags_int32(flags, "connections");
    int32_t threads = nosa_flags_int32(flags, "threads");
    if (count == 1 && threads == 1) {
        client->channels[client->count++] = connection->channel;
        return NOSA_OK;
    }
    NOSA_TRY(nosa_rpc_runtime_create(&client->runtime, threads, error));
    while (client->count < count) {
        NOSA_TRY(nosa_connection_add_channel(connection, client->runtime, client->count,
                                             &client->channels[client->count], error));
        client->count++;
    }
    return NOSA_OK;
}

static void close_client(struct client *client)
{
    if (!client->runtime)
        return;
    for (size_t i = 0; i < client->count; i++)
        nosa_rpc_channel_free(client->channels[i]);
    nosa_rpc_runtime_free(client->runtime);
}

/* How a run that could be made ends. */
static enum nosa_exit exit_of(const struct nosa_bench_result *result, struct nosa_error *error)
{
    if (result->interrupted)
        return (enum nosa_exit)nosa_interrupt_exit_code();
    for (int code = 0; code < NOSA_RPC_CODE_COUNT && result->statistics.completed == 0; code++) {
        if (result->statistics.failed[code] == 0)
            continue;
        nosa_error_set(error, nosa_rpc_code_to_status((enum nosa_rpc_code)code),
                       "no request ended well: %s: %s",
                       nosa_rpc_code_name((enum nosa_rpc_code)code), result->failures[code]);
        return nosa_exit_from_code((enum nosa_rpc_code)code);
    }
    return NOSA_EXIT_OK;
}

static enum nosa_exit run(const struct nosa_bench_options *options,
                          const struct nosa_bench_details *details, bool json,
                          struct nosa_error *error)
{
    struct nosa_bench_result *result = NULL;
    enum nosa_status status = nosa_bench_run(options, &result, error);
    if (status == NOSA_OK && json)
        status = nosa_bench_print_json(options, result, details, stdout, error);
    else if (status == NOSA_OK)
        nosa_bench_print(options, result, stdout);
    if (status == NOSA_OK && (fflush(stdout) != 0 || ferror(stdout)))
        status = nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write");
    enum nosa_exit code =
        status == NOSA_OK ? exit_of(result, error) : nosa_exit_from_status(status);
    free(result);
    return code;
}

static enum nosa_exit run_with_details(struct nosa_bench_options *options,
                                       const struct nosa_flags *flags, struct nosa_error *error)
{
    struct nosa_bench_details *details = NULL;
    enum nosa_status status = NOSA_OK;
    if (nosa_flags_bool(flags, "details"))
        status = nosa_bench_details_create(&details, error);
    if (details) {
        options->ended = nosa_bench_details_add;
        options->context = details;
    }
    enum nosa_exit code = status == NOSA_OK
                              ? run(options, details, nosa_flags_bool(flags, "json"), error)
                              : nosa_exit_from_status(status);
    nosa_bench_details_free(details);
    return code;
}

int nosa_bench_command(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error)
{
    char salt[SALT_MAX];
    struct client client = {0};
    struct nosa_bench_prompts prompts = {0};
    struct nosa_bench_options options = {
        .headers = connection->headers,
        .header_count = connection->header_count,
        .interrupted = nosa_interrupt_flag(),
    };
    snprintf(salt, sizeof salt, "bench-%016" PRIx64, draw());
    enum nosa_status status = read_options(flags, salt, &options, error);
    if (status == NOSA_OK)
        status = read_prompts(flags, &prompts, &options, error);
    enum nosa_exit code = nosa_exit_from_status(status);
    if (status == NOSA_OK)
        code = find_model(connection, &options, error);
    if (code == NOSA_EXIT_OK) {
        code = nosa_exit_from_status(open_client(&client, connection, flags, error));
        options.channels = client.channels;
        options.channel_count = client.count;
    }
    if (code == NOSA_EXIT_OK)
        code = nosa_exit_from_status(nosa_interrupt_catch(false, error));
    if (code == NOSA_EXIT_OK)
        code = run_with_details(&options, flags, error);
    close_client(&client);
    nosa_bench_prompts_free(&prompts);
    return (int)code;
}
