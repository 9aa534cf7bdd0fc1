/*
 * Rates and latencies of common/rpc against the test server, as a client of it: unary calls with a
 * number in flight, and streams of small messages, free running or paced.
 *
 *     build/tests/rpc-test-server --listen 127.0.0.1:50060 &
 *     build/tests/rpc-bench --address 127.0.0.1:50060 --kind unary --at-once 64
 *     build/tests/rpc-bench --address 127.0.0.1:50060 --kind stream --at-once 512 --interval-us
 * 10000
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/flags.h"
#include "rpc/client.h"
#include "support/rpc/echo.pb-c.h"

#define LATENCIES_MAX (1u << 20)

static const char *const kinds[] = {"unary", "stream", NULL};

static const struct nosa_flag table[] = {
    {.name = "address", .kind = NOSA_FLAG_STRING, .help = "HOST:PORT of the server"},
    {.name = "kind", .kind = NOSA_FLAG_CHOICE, .choices = kinds, .default_text = "unary"},
    {.name = "at-once",
     .kind = NOSA_FLAG_INT32,
     .range.integer = {1, 100000},
     .default_text = "1",
     .help = "calls in flight, or streams"},
    {.name = "seconds", .kind = NOSA_FLAG_DOUBLE, .default_text = "2"},
    {.name = "threads", .kind = NOSA_FLAG_INT32, .range.integer = {1, 64}, .default_text = "1"},
    {.name = "payload-bytes", .kind = NOSA_FLAG_INT32, .default_text = "0"},
    {.name = "interval-us", .kind = NOSA_FLAG_INT32, .default_text = "0"},
    {.name = "tls-cert", .kind = NOSA_FLAG_STRING},
    {.name = "tls-key", .kind = NOSA_FLAG_STRING},
    {.name = "tls-ca", .kind = NOSA_FLAG_STRING},
};

struct bench {
    struct nosa_rpc_channel *channel;
    atomic_bool stopping;
    atomic_uint running;
    atomic_ullong messages;
    atomic_uint failed;
    char failure[256]; /* the first one; written once */
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

static void next_call(struct chain *chain);

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
    free(chain);
    atomic_fetch_sub(&bench->running, 1);
}

static void next_call(struct chain *chain)
{
    const struct nosa_rpc_request request = {.path = "/nosa.test.v1.Echo/Say",
                                             .message = &chain->bench->say.base,
                                             .response = &nosa__test__v1__say_response__descriptor,
                                             .timeout_ms = 10000};
    chain->start_ns = nosa_monotonic_ns();
    if (nosa_rpc_unary_start(chain->bench->channel, &request, replied, chain, NULL) != NOSA_OK)
        abort();
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

static void start_one(struct bench *bench, bool stream)
{
    atomic_fetch_add(&bench->running, 1);
    if (!stream) {
        struct chain *chain = calloc(1, sizeof *chain);
        if (!chain)
            abort();
        chain->bench = bench;
        next_call(chain);
        return;
    }
    const struct nosa_rpc_request request = {.path = "/nosa.test.v1.Echo/Count",
                                             .message = &bench->count.base,
                                             .response =
                                                 &nosa__test__v1__count_response__descriptor};
    if (nosa_rpc_stream_start(bench->channel, &request, &events, bench,
                              &bench->streams[bench->stream_count], NULL) != NOSA_OK)
        abort();
    bench->stream_count++;
}

static int by_value(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left;
    uint32_t b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void report(struct bench *bench, const struct nosa_flags *flags, double seconds)
{
    unsigned count = atomic_load(&bench->latency_count);
    count = count < LATENCIES_MAX ? count : LATENCIES_MAX;
    qsort(bench->latencies_ns, count, sizeof bench->latencies_ns[0], by_value);
    printf("%s, %d at once: %.0f/s, latency us p50 %.0f p99 %.0f\n",
           nosa_flags_choice_text(flags, "kind"), nosa_flags_int32(flags, "at-once"),
           (double)atomic_load(&bench->messages) / seconds,
           count ? bench->latencies_ns[count / 2] / 1e3 : 0,
           count ? bench->latencies_ns[(size_t)count * 99 / 100] / 1e3 : 0);
}

static void run(struct bench *bench, const struct nosa_flags *flags)
{
    bool stream = nosa_flags_choice(flags, "kind") == 1;
    size_t at_once = (size_t)nosa_flags_int32(flags, "at-once");
    bench->streams = calloc(at_once, sizeof bench->streams[0]);
    uint8_t *payload = calloc(1, (size_t)nosa_flags_int32(flags, "payload-bytes") + 1);
    nosa__test__v1__say_request__init(&bench->say);
    nosa__test__v1__count_request__init(&bench->count);
    bench->say.data.data = payload;
    bench->say.data.len = (size_t)nosa_flags_int32(flags, "payload-bytes");
    bench->count.payload_bytes = (uint32_t)nosa_flags_int32(flags, "payload-bytes");
    bench->count.interval_us = (uint32_t)nosa_flags_int32(flags, "interval-us");
    if (!payload || !bench->streams)
        abort();
    for (size_t i = 0; i < at_once; i++)
        start_one(bench, stream);
    usleep(200000); /* connections and first messages do not count */
    unsigned long long before = atomic_load(&bench->messages);
    atomic_store(&bench->latency_count, 0);
    uint64_t start = nosa_monotonic_ns();
    usleep((useconds_t)(nosa_flags_double(flags, "seconds") * 1e6));
    atomic_store(&bench->stopping, true);
    uint64_t end = nosa_monotonic_ns();
    unsigned long long after = atomic_load(&bench->messages);
    for (int i = 0; i < bench->stream_count; i++) {
        nosa_rpc_stream_cancel(bench->streams[i]);
        nosa_rpc_stream_release(bench->streams[i]);
    }
    for (int i = 0; i < 20000 && atomic_load(&bench->running) > 0; i++)
        usleep(1000);
    atomic_store(&bench->messages, after - before);
    if (atomic_load(&bench->failed) == 0)
        report(bench, flags, nosa_seconds_between(start, end));
    free(payload);
    free(bench->streams);
}

static enum nosa_status run_all(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct nosa_rpc_runtime *runtime = NULL;
    struct bench *bench = calloc(1, sizeof *bench);
    const char *address = nosa_flags_string(flags, "address");
    const struct nosa_rpc_tls tls = {.cert_path = nosa_flags_string(flags, "tls-cert"),
                                     .key_path = nosa_flags_string(flags, "tls-key"),
                                     .ca_path = nosa_flags_string(flags, "tls-ca")};
    const struct nosa_rpc_channel_options options = {
        .addresses = &address, .address_count = 1, .tls = &tls};
    if (!bench || !address) {
        free(bench);
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--address is missing");
    }
    enum nosa_status status =
        nosa_rpc_runtime_create(&runtime, nosa_flags_int32(flags, "threads"), error);
    if (status == NOSA_OK)
        status = nosa_rpc_channel_create(&bench->channel, runtime, &options, error);
    if (status == NOSA_OK)
        run(bench, flags);
    if (status == NOSA_OK && atomic_load(&bench->failed) > 0)
        status = nosa_error_set(error, NOSA_UNAVAILABLE, "%u calls failed, the first with %s",
                                atomic_load(&bench->failed), bench->failure);
    nosa_rpc_channel_free(bench->channel);
    nosa_rpc_runtime_free(runtime);
    free(bench);
    return status;
}

int main(int argc, char **argv)
{
    struct nosa_error error = {0};
    struct nosa_flags *flags = NULL;
    const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(table)};
    const struct nosa_flags_program program = {
        .name = "rpc-bench", .tables = tables, .table_count = 1};
    enum nosa_status status = nosa_flags_parse(&flags, &program, argc, argv, &error);
    if (status == NOSA_OK && nosa_flags_action(flags) != NOSA_FLAGS_RUN)
        nosa_flags_print(flags, stdout);
    else if (status == NOSA_OK)
        status = run_all(flags, &error);
    if (status != NOSA_OK)
        fprintf(stderr, "rpc-bench: %s\n", error.text);
    nosa_flags_free(flags);
    return status == NOSA_OK ? 0 : 2;
}
