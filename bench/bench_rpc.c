/*
 * Rates and latencies of common/rpc when nothing is computed, as a client of the echo service:
 * unary calls with a number in flight, and streams of small messages, free running or paced.
 * Without
 * --address the service is in this process, behind a port of its own.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/clock.h"
#include "bench.h"
#include "rpc/client.h"
#include "rpc/server.h"
#include "support/rpc/echo.pb-c.h"
#include "support/rpc/echo_service.h"

#define LATENCIES_MAX (1u << 20)
#define WARM_UP_US    200000 /* connections and first messages do not count */
#define END_MS        20000

static const char *const kinds[] = {"unary", "stream", NULL};

const struct nosa_flag bench_rpc_flags[] = {
    {.name = "address",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .group = "rpc",
     .help = "server of the echo service; default: one in this process"},
    {.name = "kind",
     .kind = NOSA_FLAG_CHOICE,
     .choices = kinds,
     .default_text = "unary",
     .group = "rpc",
     .help = "calls, or messages of streams"},
    {.name = "at-once",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {1, 10000},
     .default_text = "1",
     .group = "rpc",
     .help = "calls in flight, or streams"},
    {.name = "seconds",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .range.number = {0.01, 3600},
     .default_text = "2",
     .group = "rpc",
     .help = "how long it is measured"},
    {.name = "payload-bytes",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {0, 1 << 20},
     .default_text = "0",
     .group = "rpc",
     .help = "of each message"},
    {.name = "interval-us",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {0, 60000000},
     .default_text = "0",
     .group = "rpc",
     .help = "between two messages of a stream; 0: as fast as they go"},
    {.name = "tls-cert",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "rpc",
     .help = "this client's certificate, for --address"},
    {.name = "tls-key",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "rpc",
     .help = "its key"},
    {.name = "tls-ca",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "rpc",
     .help = "authorities of the server's certificate"},
};
const size_t bench_rpc_flag_count = sizeof bench_rpc_flags / sizeof *bench_rpc_flags;

struct bench {
    struct nosa_rpc_channel *channel;
    atomic_bool stopping;
    atomic_uint running;
    atomic_ullong messages;
    atomic_uint failed;
    char failure[600]; /* the first one; written once */
    atomic_uint latency_count;
    uint32_t latencies_ns[LATENCIES_MAX];
    Nosa__Test__V1__SayRequest say;
    Nosa__Test__V1__CountRequest count;
    struct nosa_rpc_stream **streams; /* owned, [stream_count] */
    int stream_count;
};

/* One chain of unary calls. */
struct chain {
    struct bench *bench;
    uint64_t start_ns;
};

static void note_latency(struct bench *bench, uint64_t ns)
{
    unsigned index = atomic_fetch_add(&bench->latency_count, 1);
    if (index < LATENCIES_MAX)
        bench->latencies_ns[index] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static void note_failure(struct bench *bench, const struct nosa_rpc_outcome *outcome)
{
    if (atomic_fetch_add(&bench->failed, 1) == 0)
        snprintf(bench->failure, sizeof bench->failure, "%s: %s: %s", outcome->address,
                 nosa_rpc_code_name(outcome->code), outcome->text);
}

static void note_own_failure(struct bench *bench, const struct nosa_error *error)
{
    if (atomic_fetch_add(&bench->failed, 1) == 0)
        snprintf(bench->failure, sizeof bench->failure, "%s", error->text);
}

static void next_call(struct chain *chain);

static void end_chain(struct chain *chain)
{
    struct bench *bench = chain->bench;
    free(chain);
    atomic_fetch_sub(&bench->running, 1);
}

static void replied(void *context, const struct nosa_rpc_outcome *outcome,
                    const ProtobufCMessage *response)
{
    (void)response;
    struct chain *chain = context;
    struct bench *bench = chain->bench;
    note_latency(bench, nosa_monotonic_ns() - chain->start_ns);
    if (outcome->code != NOSA_RPC_OK)
        note_failure(bench, outcome);
    else
        atomic_fetch_add(&bench->messages, 1);
    if (outcome->code == NOSA_RPC_OK && !atomic_load(&bench->stopping)) {
        next_call(chain);
        return;
    }
    end_chain(chain);
}

static void next_call(struct chain *chain)
{
    struct nosa_error error = {0};
    const struct nosa_rpc_request request = {.path = "/nosa.test.v1.Echo/Say",
                                             .message = &chain->bench->say.base,
                                             .response = &nosa__test__v1__say_response__descriptor,
                                             .timeout_ms = 10000};
    chain->start_ns = nosa_monotonic_ns();
    if (nosa_rpc_unary_start(chain->bench->channel, &request, replied, chain, &error) != NOSA_OK) {
        note_own_failure(chain->bench, &error);
        end_chain(chain);
    }
}

static bool counted(void *context, struct nosa_rpc_stream *stream, const ProtobufCMessage *message)
{
    struct bench *bench = context;
    const Nosa__Test__V1__CountResponse *response = (const Nosa__Test__V1__CountResponse *)message;
    (void)stream;
    note_latency(bench, nosa_monotonic_ns() - response->sent_ns);
    atomic_fetch_add(&bench->messages, 1);
    return true;
}

static void ended(void *context, struct nosa_rpc_stream *stream,
                  const struct nosa_rpc_outcome *outcome)
{
    (void)stream;
    struct bench *bench = context;
    if (outcome->code != NOSA_RPC_CANCELLED)
        note_failure(bench, outcome);
    atomic_fetch_sub(&bench->running, 1);
}

static const struct nosa_rpc_stream_events events = {counted, ended};

static enum nosa_status start_stream(struct bench *bench, struct nosa_error *error)
{
    const struct nosa_rpc_request request = {.path = "/nosa.test.v1.Echo/Count",
                                             .message = &bench->count.base,
                                             .response =
                                                 &nosa__test__v1__count_response__descriptor};
    atomic_fetch_add(&bench->running, 1);
    enum nosa_status status = nosa_rpc_stream_start(bench->channel, &request, &events, bench,
                                                    &bench->streams[bench->stream_count], error);
    if (status == NOSA_OK)
        bench->stream_count++;
    else
        atomic_fetch_sub(&bench->running, 1);
    return status;
}

static enum nosa_status start_chain(struct bench *bench, struct nosa_error *error)
{
    struct chain *chain = calloc(1, sizeof *chain);
    if (!chain)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for calls");
    chain->bench = bench;
    atomic_fetch_add(&bench->running, 1);
    next_call(chain);
    return NOSA_OK;
}

static int by_value(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left;
    uint32_t b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static enum nosa_status report(struct bench *bench, const struct nosa_flags *flags, double seconds,
                               struct nosa_error *error)
{
    const char *kind = nosa_flags_choice_text(flags, "kind");
    int32_t at_once = nosa_flags_int32(flags, "at-once");
    double per_s = (double)atomic_load(&bench->messages) / seconds;
    unsigned count = atomic_load(&bench->latency_count);
    count = count < LATENCIES_MAX ? count : LATENCIES_MAX;
    qsort(bench->latencies_ns, count, sizeof bench->latencies_ns[0], by_value);
    double p50_us = count ? bench->latencies_ns[count / 2] / 1e3 : 0;
    double p99_us = count ? bench->latencies_ns[(size_t)count * 99 / 100] / 1e3 : 0;
    if (!nosa_flags_bool(flags, "json")) {
        printf("%s, %d at once: %.0f/s, latency us p50 %.0f p99 %.0f\n", kind, at_once, per_s,
               p50_us, p99_us);
        return NOSA_OK;
    }
    json_t *object = json_pack("{s:s s:i s:f s:f s:f}", "kind", kind, "at_once", at_once, "per_s",
                               per_s, "p50_us", p50_us, "p99_us", p99_us);
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(6)) : -1;
    json_decref(object);
    putchar('\n');
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output could not be written")
                  : NOSA_OK;
}

/* Starts what runs at once, measures, and ends it all. */
static enum nosa_status measure(struct bench *bench, const struct nosa_flags *flags,
                                double *seconds, struct nosa_error *error)
{
    bool stream = nosa_flags_choice(flags, "kind") == 1;
    int32_t at_once = nosa_flags_int32(flags, "at-once");
    enum nosa_status status = NOSA_OK;
    for (int32_t i = 0; i < at_once && status == NOSA_OK; i++)
        status = stream ? start_stream(bench, error) : start_chain(bench, error);
    usleep(WARM_UP_US);
    unsigned long long before = atomic_load(&bench->messages);
    atomic_store(&bench->latency_count, 0);
    uint64_t start = nosa_monotonic_ns();
    if (status == NOSA_OK)
        usleep((useconds_t)(nosa_flags_double(flags, "seconds") * 1e6));
    atomic_store(&bench->stopping, true);
    *seconds = nosa_seconds_between(start, nosa_monotonic_ns());
    unsigned long long after = atomic_load(&bench->messages);
    for (int i = 0; i < bench->stream_count; i++) {
        nosa_rpc_stream_cancel(bench->streams[i]);
        nosa_rpc_stream_release(bench->streams[i]);
    }
    for (int i = 0; i < END_MS && atomic_load(&bench->running) > 0; i++)
        usleep(1000);
    atomic_store(&bench->messages, after - before);
    return status;
}

static enum nosa_status run(struct bench *bench, const struct nosa_flags *flags,
                            struct nosa_error *error)
{
    double seconds = 0;
    int32_t payload_bytes = nosa_flags_int32(flags, "payload-bytes");
    uint8_t *payload = calloc(1, (size_t)payload_bytes + 1);
    bench->streams = calloc((size_t)nosa_flags_int32(flags, "at-once"), sizeof bench->streams[0]);
    if (!payload || !bench->streams) {
        free(payload);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for calls");
    }
    nosa__test__v1__say_request__init(&bench->say);
    nosa__test__v1__count_request__init(&bench->count);
    bench->say.data.data = payload;
    bench->say.data.len = (size_t)payload_bytes;
    bench->count.payload_bytes = (uint32_t)payload_bytes;
    bench->count.interval_us = (uint32_t)nosa_flags_int32(flags, "interval-us");
    enum nosa_status status = measure(bench, flags, &seconds, error);
    if (status == NOSA_OK && atomic_load(&bench->failed) > 0)
        status = nosa_error_set(error, NOSA_UNAVAILABLE, "%u calls failed, the first with %s",
                                atomic_load(&bench->failed), bench->failure);
    if (status == NOSA_OK)
        status = report(bench, flags, seconds, error);
    free(payload);
    return status;
}

/* ---- the server in this process ---- */

struct home {
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    struct echo_service *service;
    char address[32];
};

static enum nosa_status open_home(struct home *home, int32_t threads, struct nosa_error *error)
{
    const struct nosa_rpc_server_options options = {0};
    uint16_t port;
    NOSA_TRY(nosa_rpc_runtime_create(&home->runtime, threads, error));
    NOSA_TRY(nosa_rpc_server_create(&home->server, home->runtime, &options, error));
    NOSA_TRY(echo_service_add(&home->service, home->server, error));
    NOSA_TRY(nosa_rpc_server_listen(home->server, "127.0.0.1:0", NULL, &port, error));
    snprintf(home->address, sizeof home->address, "127.0.0.1:%u", port);
    return nosa_rpc_server_start(home->server, error);
}

static void close_home(struct home *home)
{
    nosa_rpc_server_free(home->server);
    echo_service_free(home->service);
    nosa_rpc_runtime_free(home->runtime);
}

/* ---- the subcommand ---- */

enum nosa_status bench_rpc(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct nosa_rpc_runtime *runtime = NULL;
    struct home home = {0};
    struct bench *bench = calloc(1, sizeof *bench);
    const char *address = nosa_flags_string(flags, "address");
    int32_t threads = nosa_flags_is_set(flags, "threads") ? nosa_flags_int32(flags, "threads") : 1;
    const struct nosa_rpc_tls tls = {.cert_path = nosa_flags_string(flags, "tls-cert"),
                                     .key_path = nosa_flags_string(flags, "tls-key"),
                                     .ca_path = nosa_flags_string(flags, "tls-ca")};
    struct nosa_rpc_channel_options options = {.address_count = 1};
    if (!bench)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for latencies");
    enum nosa_status status = address ? NOSA_OK : open_home(&home, threads, error);
    const char *server = address ? address : home.address;
    options.addresses = &server;
    options.tls = address ? &tls : NULL;
    if (status == NOSA_OK)
        status = nosa_rpc_runtime_create(&runtime, threads, error);
    if (status == NOSA_OK)
        status = nosa_rpc_channel_create(&bench->channel, runtime, &options, error);
    if (status == NOSA_OK)
        status = run(bench, flags, error);
    nosa_rpc_channel_free(bench->channel);
    nosa_rpc_runtime_free(runtime);
    close_home(&home);
    free(bench->streams);
    free(bench);
    return status;
}
