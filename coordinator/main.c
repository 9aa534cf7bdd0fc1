/*
 * nosa-coordinator: takes generations, tokenizes them, and relays what workers make of them.
 *
 * Exit codes: 0 ended by SIGTERM or SIGINT, whether or not every stream could finish; 1 failed; 2 a
 * flag, file or address is wrong.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "base/flags.h"
#include "base/log.h"
#include "coordinator.h"

static const char *const level_choices[] = {"error", "warn", "info", "debug", NULL};
static const char *const format_choices[] = {"text", "json", NULL};

static const struct nosa_flag flag_table[] = {
    {.name = "listen",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .default_text = "127.0.0.1:50051",
     .group = "Network",
     .help = "where clients, operators and workers call; port 0 takes a free one"},
    {.name = "advertise",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .group = "Network",
     .help = "where workers reach this coordinator, for --etcd; default: --listen, with this "
             "machine's name where that is every address"},
    {.name = "http",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .group = "Network",
     .help = "serve /metrics, /healthz and /readyz here; default: not at all"},
    {.name = "tls-cert",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Network",
     .help = "certificate chain in PEM; with --tls-key"},
    {.name = "tls-key",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Network",
     .help = "private key in PEM"},
    {.name = "tls-ca",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Network",
     .help = "who signs clients' and workers' certificates, which are compulsory then"},
    {.name = "auth-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Network",
     .help = "a bearer token and its name per line; a third word, inference, keeps a token from "
             "operators' calls. Workers are not asked for one: --tls-ca guards their calls"},
    {.name = "threads",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "2",
     .range.integer = {1, 64},
     .group = "Network",
     .help = "threads that serve calls"},

    {.name = "max-queue",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "1024",
     .range.integer = {1, 1000000},
     .group = "Limits",
     .help = "requests that wait for their start; more are refused at once"},
    {.name = "max-prompt-bytes",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "16M",
     .range.count = {1, 64u << 20},
     .group = "Limits",
     .help = "of one request's text, chat or token ids"},
    {.name = "max-prompts-bytes",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "1G",
     .range.count = {1, UINT64_MAX / 2},
     .group = "Limits",
     .help = "of all requests that run or wait; more are refused at once"},

    {.name = "worker-timeout",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "3",
     .range.number = {0.1, 3600},
     .group = "Workers",
     .help = "a worker silent for longer is LOST, and its streams go on elsewhere"},
    {.name = "drain-timeout",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "30",
     .range.number = {0, 86400},
     .group = "Workers",
     .help =
         "streams of a drained worker, and all of them after SIGTERM, may run on for this long"},
    {.name = "replay-limit",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "3",
     .range.integer = {1, 64},
     .group = "Workers",
     .help = "a request that has seen this many workers die ends with INTERNAL"},

    {.name = "etcd",
     .kind = NOSA_FLAG_STRING,
     .value_name = "ENDPOINTS",
     .group = "Several coordinators",
     .help = "HOST:PORT or URLs of etcd, separated by commas: coordinators of one etcd and prefix "
             "know of each other and obey the same drains; default: memory"},
    {.name = "etcd-prefix",
     .kind = NOSA_FLAG_STRING,
     .value_name = "PREFIX",
     .default_text = "/nosa",
     .group = "Several coordinators",
     .help = "of all keys; one for each cluster"},
    {.name = "etcd-ttl",
     .kind = NOSA_FLAG_INT32,
     .value_name = "SECONDS",
     .default_text = "10",
     .range.integer = {2, 3600},
     .group = "Several coordinators",
     .help = "a coordinator that has not renewed its lease for this long is gone to the others"},
    {.name = "etcd-ca",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Several coordinators",
     .help = "who signs etcd's certificate; makes the connection TLS"},
    {.name = "etcd-cert",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Several coordinators",
     .help = "certificate chain to show etcd, in PEM; with --etcd-key"},
    {.name = "etcd-key",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Several coordinators",
     .help = "its private key"},

    {.name = "log-level",
     .kind = NOSA_FLAG_CHOICE,
     .choices = level_choices,
     .default_text = "info",
     .group = "Log",
     .help = "the last level that is written"},
    {.name = "log-format",
     .kind = NOSA_FLAG_CHOICE,
     .choices = format_choices,
     .default_text = "text",
     .group = "Log",
     .help = "lines of text or of JSON, on standard error"},
    {.name = "slow-request",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "60",
     .range.number = {0, 86400},
     .group = "Log",
     .help = "a line for each request that took longer, with where its time went; 0: none"},
};

static uint32_t milliseconds(const struct nosa_flags *flags, const char *name)
{
    return (uint32_t)(nosa_flags_double(flags, name) * 1000);
}

static enum nosa_status read_options(const struct nosa_flags *flags,
                                     struct nosa_coordinator_options *options,
                                     struct nosa_error *error)
{
    static const char *const sizes[] = {"max-prompt-bytes", "max-prompts-bytes"};
    for (int i = 0; i < 2; i++)
        if (nosa_flags_size(flags, sizes[i]) == NOSA_FLAG_SIZE_AUTO)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: auto means nothing here",
                                  nosa_flags_source(flags, sizes[i]));
    static const char *const only_etcd[] = {"etcd-ca", "etcd-cert", "etcd-key", "advertise"};
    for (size_t i = 0; i < sizeof only_etcd / sizeof *only_etcd; i++)
        if (nosa_flags_is_set(flags, only_etcd[i]) && !nosa_flags_is_set(flags, "etcd"))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: means nothing without --etcd",
                                  nosa_flags_source(flags, only_etcd[i]));
    *options = (struct nosa_coordinator_options){
        .listen = nosa_flags_string(flags, "listen"),
        .advertise = nosa_flags_string(flags, "advertise"),
        .http = nosa_flags_string(flags, "http"),
        .tls = {.cert_path = nosa_flags_string(flags, "tls-cert"),
                .key_path = nosa_flags_string(flags, "tls-key"),
                .ca_path = nosa_flags_string(flags, "tls-ca")},
        .auth_tokens = nosa_flags_string(flags, "auth-tokens"),
        .queue_max = (uint32_t)nosa_flags_int32(flags, "max-queue"),
        .prompt_bytes_max = nosa_flags_size(flags, "max-prompt-bytes"),
        .prompts_bytes_max = nosa_flags_size(flags, "max-prompts-bytes"),
        .drain_timeout_ms = milliseconds(flags, "drain-timeout"),
        .worker_timeout_ms = milliseconds(flags, "worker-timeout"),
        .replay_limit = (uint32_t)nosa_flags_int32(flags, "replay-limit"),
        .slow_request_ms = milliseconds(flags, "slow-request"),
        .threads = nosa_flags_int32(flags, "threads"),
        .etcd = {.endpoints = nosa_flags_string(flags, "etcd"),
                 .prefix = nosa_flags_string(flags, "etcd-prefix"),
                 .tls = {.cert_path = nosa_flags_string(flags, "etcd-cert"),
                         .key_path = nosa_flags_string(flags, "etcd-key"),
                         .ca_path = nosa_flags_string(flags, "etcd-ca")},
                 .lease_s = (uint32_t)nosa_flags_int32(flags, "etcd-ttl")},
    };
    const struct nosa_log_options log = {
        .level = (enum nosa_log_level)nosa_flags_choice(flags, "log-level"),
        .format = (enum nosa_log_format)nosa_flags_choice(flags, "log-format"),
        .descriptor = 2,
    };
    nosa_log_configure(&log);
    return NOSA_OK;
}

/* Serves until a signal; a second one ends the program at once. */
static void serve(struct nosa_coordinator *coordinator, const sigset_t *signals)
{
    int number = 0;
    printf("listening on port %u", nosa_coordinator_port(coordinator));
    if (nosa_coordinator_http_port(coordinator))
        printf(", http on port %u", nosa_coordinator_http_port(coordinator));
    printf("\n");
    fflush(stdout);
    sigwait(signals, &number);
    nosa_log(NOSA_LOG_INFO, "coordinator", "%s: no new requests; what runs may finish",
             number == SIGTERM ? "SIGTERM" : "SIGINT");
    signal(number, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, signals, NULL);
    if (!nosa_coordinator_stop(coordinator))
        nosa_log(NOSA_LOG_WARN, "coordinator",
                 "--drain-timeout is over: streams were ended with UNAVAILABLE");
}

int main(int argc, char **argv)
{
    const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(flag_table)};
    const struct nosa_flags_program program = {
        .name = "nosa-coordinator",
        .summary = "Takes generations over gRPC and has workers compute them.",
        .tables = tables,
        .table_count = 1,
    };
    struct nosa_error error = {0};
    struct nosa_flags *flags = NULL;
    struct nosa_coordinator_options options;
    struct nosa_coordinator *coordinator = NULL;
    sigset_t signals;
    enum nosa_status status = nosa_flags_parse(&flags, &program, argc, argv, &error);
    if (status == NOSA_OK && nosa_flags_action(flags) != NOSA_FLAGS_RUN) {
        nosa_flags_print(flags, stdout);
        nosa_flags_free(flags);
        return 0;
    }
    /* Every thread inherits this: signals come to the main thread's sigwait alone. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (status == NOSA_OK)
        status = read_options(flags, &options, &error);
    if (status == NOSA_OK)
        status = nosa_coordinator_start(&coordinator, &options, &error);
    if (status == NOSA_OK)
        serve(coordinator, &signals);
    else
        fprintf(stderr, "nosa-coordinator: %s\n", error.text);
    nosa_flags_free(flags);
    return status == NOSA_IO_ERROR && !coordinator ? 2 : nosa_status_exit_code(status);
}
