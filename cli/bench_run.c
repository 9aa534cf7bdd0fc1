#include "bench_run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "nosa/v1/inference.pb-c.h"

#define LOOK_NS (100 * NOSA_NS_PER_MS) /* between looks whether the run is interrupted */

struct bench;

/* One request in flight. Freed by the later of its starting and its end. */
struct stream {
    /* fixed after start */
    struct bench *bench;
    struct nosa_bench_request request;
    bool counts;
    /* owned by the call's thread */
    struct nosa_bench_outcome outcome;
    char worker_id[NOSA_BENCH_WORKER_ID_MAX];
    uint64_t gap_ns_max, gap_begin_ns;
    /* under the bench's mutex */
    struct nosa_rpc_stream *rpc; /* one reference; NULL while it is being started */
    struct stream *previous, *next;
    bool started, ended;
};

struct bench {
    /* fixed after create */
    const struct nosa_bench_options *options;
    struct nosa_bench_result *result; /* under mutex while requests are in flight */
    uint32_t *prompt;                 /* owned by the starting thread, [prompt_capacity] */
    size_t prompt_capacity;
    uint64_t n_started; /* by the starting thread, of all */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* under mutex */
    struct stream *first;
    uint32_t in_flight;
    uint64_t tokens; /* that came, of all requests */
    bool all_sent;
    uint64_t full_begin_ns, full_end_ns;
    uint64_t full_begin_tokens;
    uint64_t warm_up_ok;
    struct nosa_error warm_up_error;
};

/* ---- what comes back; on threads of the runtime ---- */

/* As many whole characters of `text` as find room, and a NUL. */
static void copy_text(char *out, size_t capacity, const char *text)
{
    size_t size = nosa_utf8_valid_prefix(text, strnlen(text, capacity - 1));
    memcpy(out, text, size);
    out[size] = '\0';
}

static void note_tokens(struct stream *stream, uint32_t count, uint64_t now)
{
    struct nosa_bench_outcome *outcome = &stream->outcome;
    uint64_t before = outcome->last_ns;
    if (!outcome->first_ns)
        outcome->first_ns = now;
    outcome->last_ns = now;
    outcome->output_tokens += count;
    if (before && now - before > stream->gap_ns_max) {
        stream->gap_ns_max = now - before;
        stream->gap_begin_ns = before;
    }
    pthread_mutex_lock(&stream->bench->mutex);
    stream->bench->tokens += count;
    if (before && stream->counts)
        nosa_bench_histogram_add(&stream->bench->result->statistics.itl, now - before);
    pthread_mutex_unlock(&stream->bench->mutex);
}

static bool on_message(void *context, struct nosa_rpc_stream *rpc, const ProtobufCMessage *message)
{
    struct stream *stream = context;
    const Nosa__V1__GenerateResponse *response = (const Nosa__V1__GenerateResponse *)message;
    uint64_t now = nosa_monotonic_ns();
    (void)rpc;
    switch (response->event_case) {
    case NOSA__V1__GENERATE_RESPONSE__EVENT_ACCEPTED:
        copy_text(stream->worker_id, sizeof stream->worker_id, response->accepted->worker_id);
        stream->outcome.prompt_tokens = response->accepted->prompt_tokens;
        break;
    case NOSA__V1__GENERATE_RESPONSE__EVENT_DELTA:
        if (response->delta->n_token_ids > 0)
            note_tokens(stream, (uint32_t)response->delta->n_token_ids, now);
        break;
    case NOSA__V1__GENERATE_RESPONSE__EVENT_FINISHED:
        if (response->finished->usage)
            stream->outcome.cached_tokens = response->finished->usage->cached_prompt_tokens;
        break;
    default: break;
    }
    return true;
}

/* Under the mutex. */
static void count_worker(struct nosa_bench_result *result, const char *id)
{
    size_t i = 0;
    if (!id[0])
        return;
    while (i < result->worker_count && strcmp(result->workers[i].id, id) != 0)
        i++;
    if (i == NOSA_BENCH_WORKERS_MAX)
        return;
    if (i == result->worker_count)
        copy_text(result->workers[result->worker_count++].id, NOSA_BENCH_WORKER_ID_MAX, id);
    result->workers[i].requests++;
}

/* Under the mutex. */
static void count_end(struct bench *bench, const struct stream *stream,
                      const struct nosa_rpc_outcome *end)
{
    struct nosa_bench_result *result = bench->result;
    unsigned code = end->code < NOSA_RPC_CODE_COUNT ? end->code : NOSA_RPC_UNKNOWN;
    if (!stream->counts) {
        bench->warm_up_ok += end->code == NOSA_RPC_OK;
        if (end->code != NOSA_RPC_OK)
            nosa_error_set(&bench->warm_up_error, nosa_rpc_code_to_status(end->code), "%s: %s: %s",
                           end->address, nosa_rpc_code_name(end->code), end->text);
        return;
    }
    nosa_bench_statistics_add(&result->statistics, &stream->outcome);
    count_worker(result, stream->worker_id);
    if (end->code != NOSA_RPC_OK && !result->failures[code][0])
        copy_text(result->failures[code], NOSA_BENCH_FAILURE_MAX, end->text);
    const struct nosa_bench_record record = {
        .request = &stream->request,
        .outcome = &stream->outcome,
        .worker_id = stream->worker_id,
        .gap_ns_max = stream->gap_ns_max,
        .gap_begin_ns = stream->gap_begin_ns,
    };
    if (bench->options->ended)
        bench->options->ended(bench->options->context, &record);
}

static void stream_free(struct stream *stream)
{
    if (stream->rpc)
        nosa_rpc_stream_release(stream->rpc);
    free(stream);
}

static void on_end(void *context, struct nosa_rpc_stream *rpc, const struct nosa_rpc_outcome *end)
{
    struct stream *stream = context;
    struct bench *bench = stream->bench;
    uint64_t now = nosa_monotonic_ns();
    (void)rpc;
    pthread_mutex_lock(&bench->mutex);
    stream->outcome.code = end->code;
    stream->outcome.end_ns = now;
    count_end(bench, stream, end);
    *(stream->previous ? &stream->previous->next : &bench->first) = stream->next;
    if (stream->next)
        stream->next->previous = stream->previous;
    if (bench->all_sent && bench->full_begin_ns && !bench->full_end_ns) {
        bench->full_end_ns = now;
        bench->result->full_tokens = bench->tokens - bench->full_begin_tokens;
    }
    bench->in_flight--;
    stream->ended = true;
    bool last = stream->started;
    pthread_cond_signal(&bench->changed);
    pthread_mutex_unlock(&bench->mutex);
    if (last)
        stream_free(stream);
}

static const struct nosa_rpc_stream_events stream_events = {.message = on_message, .end = on_end};

/* ---- starting requests; on the caller's thread ---- */

static enum nosa_status reserve_prompt(struct bench *bench, size_t tokens)
{
    if (tokens <= bench->prompt_capacity)
        return NOSA_OK;
    uint32_t *prompt = realloc(bench->prompt, tokens * sizeof *prompt);
    if (!prompt)
        return NOSA_OUT_OF_MEMORY;
    bench->prompt = prompt;
    bench->prompt_capacity = tokens;
    return NOSA_OK;
}

/* What a request says before its settings, in memory that lives as long as the sending. */
struct input {
    Nosa__V1__TokenIds ids;
    Nosa__V1__Message message;
    Nosa__V1__Message *messages[1];
    Nosa__V1__Chat chat;
};

static void fill_input(struct bench *bench, const struct nosa_bench_request *request,
                       struct input *input, Nosa__V1__GenerateRequest *generate)
{
    static char user[] = "user";
    const struct nosa_bench_options *options = bench->options;
    const struct nosa_bench_prompts *prompts = options->prompts;
    if (!prompts) {
        nosa_bench_plan_prompt(&options->plan, request, bench->prompt);
        nosa__v1__token_ids__init(&input->ids);
        input->ids.n_ids = request->prompt_tokens;
        input->ids.ids = bench->prompt;
        generate->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
        generate->token_ids = &input->ids;
        return;
    }
    char *text = prompts->list[request->index % prompts->count].text;
    if (!options->chat) {
        generate->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_TEXT;
        generate->text = text;
        return;
    }
    nosa__v1__message__init(&input->message);
    nosa__v1__chat__init(&input->chat);
    input->message.role = user;
    input->message.content = text;
    input->messages[0] = &input->message;
    input->chat.n_messages = 1;
    input->chat.messages = input->messages;
    generate->input_case = NOSA__V1__GENERATE_REQUEST__INPUT_CHAT;
    generate->chat = &input->chat;
}

static enum nosa_status send_request(struct stream *stream, struct nosa_rpc_stream **rpc,
                                     struct nosa_error *error)
{
    struct bench *bench = stream->bench;
    const struct nosa_bench_options *options = bench->options;
    Nosa__V1__GenerateRequest generate = NOSA__V1__GENERATE_REQUEST__INIT;
    struct input input;
    Nosa__V1__Sampling sampling = NOSA__V1__SAMPLING__INIT;
    fill_input(bench, &stream->request, &input, &generate);
    sampling.temperature = options->temperature;
    sampling.seed = stream->request.index + 1;
    generate.model = (char *)(uintptr_t)options->model;
    generate.sampling = &sampling;
    generate.max_tokens = stream->request.output_tokens;
    generate.ignore_eos = !options->stop_at_eos;
    generate.cache_salt = (char *)(uintptr_t)options->cache_salt;
    const struct nosa_rpc_request call = {
        .path = "/nosa.v1.Inference/Generate",
        .message = &generate.base,
        .response = &nosa__v1__generate_response__descriptor,
        .timeout_ms = options->timeout_ms,
        .headers = options->headers,
        .header_count = options->header_count,
    };
    return nosa_rpc_stream_start(options->channels[bench->n_started++ % options->channel_count],
                                 &call, &stream_events, stream, rpc, error);
}

/* Puts it in the list of those in flight. */
static void list(struct bench *bench, struct stream *stream)
{
    pthread_mutex_lock(&bench->mutex);
    stream->next = bench->first;
    if (bench->first)
        bench->first->previous = stream;
    bench->first = stream;
    bench->in_flight++;
    if (stream->counts && !bench->full_begin_ns && bench->options->rate <= 0 &&
        bench->in_flight == bench->options->concurrency) {
        bench->full_begin_ns = nosa_monotonic_ns();
        bench->full_begin_tokens = bench->tokens;
    }
    pthread_mutex_unlock(&bench->mutex);
}

static void unlist(struct bench *bench, struct stream *stream)
{
    pthread_mutex_lock(&bench->mutex);
    *(stream->previous ? &stream->previous->next : &bench->first) = stream->next;
    if (stream->next)
        stream->next->previous = stream->previous;
    bench->in_flight--;
    pthread_mutex_unlock(&bench->mutex);
}

static struct nosa_bench_request request_of(const struct nosa_bench_options *options,
                                            uint64_t index)
{
    struct nosa_bench_request request = nosa_bench_plan_request(&options->plan, index);
    const struct nosa_bench_prompts *prompts = options->prompts;
    if (!prompts)
        return request;
    const struct nosa_bench_prompt *prompt = &prompts->list[index % prompts->count];
    request.prompt_tokens = 0; /* the server counts them */
    if (prompt->output_tokens > 0)
        request.output_tokens = prompt->output_tokens;
    return request;
}

/* Starts a request that was due at `planned_ns` (0: is due now). */
static enum nosa_status start(struct bench *bench, uint64_t index, bool counts, uint64_t planned_ns,
                              struct nosa_error *error)
{
    struct nosa_rpc_stream *rpc = NULL;
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a request");
    stream->bench = bench;
    stream->request = request_of(bench->options, index);
    stream->counts = counts;
    if (reserve_prompt(bench, stream->request.prompt_tokens) != NOSA_OK) {
        free(stream);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a prompt");
    }
    stream->outcome.sent_ns = nosa_monotonic_ns();
    stream->outcome.planned_ns = planned_ns ? planned_ns : stream->outcome.sent_ns;
    stream->outcome.prompt_tokens = stream->request.prompt_tokens;
    list(bench, stream);
    enum nosa_status status = send_request(stream, &rpc, error);
    if (status != NOSA_OK) {
        unlist(bench, stream);
        free(stream);
        return status;
    }
    pthread_mutex_lock(&bench->mutex);
    stream->rpc = rpc;
    stream->started = true;
    bool last = stream->ended;
    pthread_mutex_unlock(&bench->mutex);
    if (last)
        stream_free(stream);
    return NOSA_OK;
}

static bool interrupted(const struct bench *bench)
{
    return bench->options->interrupted && *bench->options->interrupted;
}

/* Under the mutex: waits for a change, at most until `until_ns` and not for long. */
static void wait_changed(struct bench *bench, uint64_t until_ns)
{
    uint64_t soon = nosa_monotonic_ns() + LOOK_NS;
    uint64_t wake = until_ns < soon ? until_ns : soon;
    struct timespec at = {.tv_sec = (time_t)(wake / NOSA_NS_PER_S),
                          .tv_nsec = (long)(wake % NOSA_NS_PER_S)};
    pthread_cond_timedwait(&bench->changed, &bench->mutex, &at);
}

/* Waits until it is `due_ns` and fewer than `in_flight_max` (0: any number) are in flight; false:
 * `last_ns` or an interruption came first. What was due before `last_ns` and waited only for this
 * thread is not late. */
static bool wait_turn(struct bench *bench, uint64_t due_ns, uint32_t in_flight_max,
                      uint64_t last_ns)
{
    bool in_time;
    pthread_mutex_lock(&bench->mutex);
    for (;;) {
        uint64_t now = nosa_monotonic_ns();
        bool room = in_flight_max == 0 || bench->in_flight < in_flight_max;
        in_time =
            !interrupted(bench) && due_ns < last_ns && (now < last_ns || (due_ns > 0 && room));
        if (!in_time || (room && now >= due_ns))
            break;
        uint64_t wake = now < due_ns ? due_ns : UINT64_MAX;
        wait_changed(bench, wake < last_ns ? wake : last_ns);
    }
    pthread_mutex_unlock(&bench->mutex);
    return in_time;
}

/* Waits until nothing is in flight; an interruption cancels what is. */
static void wait_all(struct bench *bench)
{
    bool cancelled = false;
    pthread_mutex_lock(&bench->mutex);
    while (bench->in_flight > 0) {
        if (interrupted(bench) && !cancelled) {
            cancelled = true;
            for (struct stream *stream = bench->first; stream; stream = stream->next)
                if (stream->rpc)
                    nosa_rpc_stream_cancel(stream->rpc);
        }
        wait_changed(bench, UINT64_MAX);
    }
    pthread_mutex_unlock(&bench->mutex);
}

/* ---- the whole ---- */

static enum nosa_status warm_up(struct bench *bench, struct nosa_error *error)
{
    const struct nosa_bench_options *options = bench->options;
    enum nosa_status status = NOSA_OK;
    for (uint32_t i = 0; i < options->warm_up && status == NOSA_OK; i++)
        if (wait_turn(bench, 0, options->concurrency, UINT64_MAX))
            status = start(bench, NOSA_BENCH_WARM_UP_INDEX + i, false, 0, error);
    wait_all(bench);
    if (status == NOSA_OK && options->warm_up > 0 && bench->warm_up_ok == 0 && !interrupted(bench))
        status =
            nosa_error_set(error, bench->warm_up_error.status, "%s", bench->warm_up_error.text);
    return status;
}

static enum nosa_status run_all(struct bench *bench, struct nosa_error *error)
{
    const struct nosa_bench_options *options = bench->options;
    struct nosa_bench_arrivals arrivals;
    enum nosa_status status = NOSA_OK;
    bool open = options->rate > 0;
    uint64_t begin = nosa_monotonic_ns();
    uint64_t last = options->duration_ns ? begin + options->duration_ns : UINT64_MAX;
    if (open)
        nosa_bench_arrivals_start(&arrivals, options->plan.seed, options->rate, options->poisson);
    for (uint64_t i = 0; i < options->requests && status == NOSA_OK; i++) {
        uint64_t due = open ? begin + nosa_bench_arrivals_next(&arrivals) : 0;
        if (!wait_turn(bench, due, options->concurrency, last))
            break;
        status = start(bench, i, true, due, error);
    }
    pthread_mutex_lock(&bench->mutex);
    bench->all_sent = true;
    pthread_mutex_unlock(&bench->mutex);
    wait_all(bench);
    return status;
}

static double cpu_s(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void init(struct bench *bench, const struct nosa_bench_options *options,
                 struct nosa_bench_result *result)
{
    pthread_condattr_t attributes;
    *bench = (struct bench){.options = options, .result = result};
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&bench->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&bench->mutex, NULL);
    result->statistics.limits = options->limits;
}

enum nosa_status nosa_bench_run(const struct nosa_bench_options *options,
                                struct nosa_bench_result **out, struct nosa_error *error)
{
    NOSA_ASSERT(options->channel_count > 0 && options->requests > 0);
    NOSA_ASSERT(options->rate > 0 || options->concurrency > 0);
    NOSA_ASSERT(options->plan.vocab_size > 0);
    struct bench bench;
    *out = NULL;
    struct nosa_bench_result *result = calloc(1, sizeof *result);
    if (!result)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the results");
    init(&bench, options, result);
    enum nosa_status status = warm_up(&bench, error);
    double cpu_before_s = cpu_s();
    if (status == NOSA_OK && !interrupted(&bench))
        status = run_all(&bench, error);
    result->client_cpu_s = cpu_s() - cpu_before_s;
    result->interrupted = interrupted(&bench);
    if (bench.full_end_ns)
        result->full_s = nosa_seconds_between(bench.full_begin_ns, bench.full_end_ns);
    free(bench.prompt);
    pthread_cond_destroy(&bench.changed);
    pthread_mutex_destroy(&bench.mutex);
    if (status != NOSA_OK) {
        free(result);
        return status;
    }
    *out = result;
    return NOSA_OK;
}
