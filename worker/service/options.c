#include "service/options.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rpc/address.h"
#include "service/registry.h"

#define SECONDS_MAX 31536000.0 /* a year */

static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const log_formats[] = {"text", "json", NULL};

static const struct nosa_flag flag_table[] = {
    {.name = "model-name",
     .kind = NOSA_FLAG_STRING,
     .value_name = "NAME",
     .group = "Input",
     .help = "the model's name in requests; default: the last part of --model"},

    {.name = "listen",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .default_text = "127.0.0.1:50061",
     .group = "Serving",
     .help = "where coordinators call; an empty host is every address, port 0 a free one"},
    {.name = "advertise",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .group = "Serving",
     .help = "what coordinators are told to call; default: the address that is listened on, or "
             "this host's name"},
    {.name = "coordinator",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT[,...]",
     .group = "Serving",
     .help = "coordinators to join: all addresses that each name resolves to; default: none"},
    {.name = "http",
     .kind = NOSA_FLAG_STRING,
     .value_name = "HOST:PORT",
     .group = "Serving",
     .help = "serve /metrics, /healthz and /readyz there; default: nowhere"},
    {.name = "id",
     .kind = NOSA_FLAG_STRING,
     .value_name = "NAME",
     .group = "Serving",
     .help = "the worker's name, one of its kind; default: host name and port"},
    {.name = "max-batch",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "32",
     .range.integer = {1, 4096},
     .group = "Serving",
     .help = "requests computed together"},
    {.name = "max-queue",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "256",
     .range.integer = {1, 65536},
     .group = "Serving",
     .help = "requests that wait; beyond that they are refused"},
    {.name = "drain-timeout",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "30",
     .range.number = {0, SECONDS_MAX},
     .group = "Serving",
     .help = "after SIGTERM running requests may finish for so long, then they go on elsewhere"},
    {.name = "slow-request",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "60",
     .range.number = {0, SECONDS_MAX},
     .group = "Serving",
     .help = "log where the time of a request went that took longer; 0: of none"},
    {.name = "tls-cert",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Serving",
     .help = "own certificate chain in PEM format, for listening and for dialling coordinators"},
    {.name = "tls-key",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Serving",
     .help = "its private key"},
    {.name = "tls-ca",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Serving",
     .help = "who signs the others' certificates; makes client certificates compulsory"},

    {.name = "log-level",
     .kind = NOSA_FLAG_CHOICE,
     .choices = log_levels,
     .default_text = "info",
     .group = "Output",
     .help = "the last level that is logged"},
    {.name = "log-format",
     .kind = NOSA_FLAG_CHOICE,
     .choices = log_formats,
     .default_text = "text",
     .group = "Output",
     .help = "one line of text, or one JSON object a line"},
};

/* Names the flag in an error about an address. */
static enum nosa_status check_address(const struct nosa_flags *flags, const char *name,
                                      struct nosa_error *error)
{
    char host[NOSA_RPC_HOST_MAX];
    uint16_t port;
    const char *address = nosa_flags_string(flags, name);
    if (!address || nosa_rpc_address_split(address, host, &port, error) == NOSA_OK)
        return NOSA_OK;
    return nosa_error_prefix(error, "%s", nosa_flags_source(flags, name));
}

static enum nosa_status check_text(const struct nosa_flags *flags, const char *name,
                                   struct nosa_error *error)
{
    const char *text = nosa_flags_string(flags, name);
    bool printable = true;
    for (const char *c = text ? text : ""; *c; c++)
        printable = printable && (unsigned char)*c >= 0x20 && *c != 0x7f;
    if (!printable)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: has a control character",
                              nosa_flags_source(flags, name));
    if (!text || (text[0] != '\0' && strlen(text) <= 128))
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: a name has 1 to 128 bytes",
                          nosa_flags_source(flags, name));
}

static enum nosa_status check(const struct nosa_worker_options *options, struct nosa_error *error)
{
    const struct nosa_flags *flags = options->flags;
    NOSA_TRY(check_address(flags, "listen", error));
    NOSA_TRY(check_address(flags, "advertise", error));
    NOSA_TRY(check_address(flags, "http", error));
    NOSA_TRY(check_text(flags, "id", error));
    NOSA_TRY(check_text(flags, "model-name", error));
    if (options->coordinators && nosa_registry_check(options->coordinators, error) != NOSA_OK)
        return nosa_error_prefix(error, "%s", nosa_flags_source(flags, "coordinator"));
    if (nosa_rpc_tls_is_on(&options->tls))
        NOSA_TRY(nosa_rpc_tls_check(&options->tls, true, error));
    return NOSA_OK;
}

static void read_flags(struct nosa_worker_options *out)
{
    const struct nosa_flags *flags = out->flags;
    out->listen = nosa_flags_string(flags, "listen");
    out->advertise = nosa_flags_string(flags, "advertise");
    out->coordinators = nosa_flags_string(flags, "coordinator");
    out->http = nosa_flags_string(flags, "http");
    out->id = nosa_flags_string(flags, "id");
    out->model_name = nosa_flags_string(flags, "model-name");
    out->batch_max = nosa_flags_int32(flags, "max-batch");
    out->queue_max = nosa_flags_int32(flags, "max-queue");
    out->drain_timeout_s = nosa_flags_double(flags, "drain-timeout");
    out->slow_request_s = nosa_flags_double(flags, "slow-request");
    out->tls = (struct nosa_rpc_tls){.cert_path = nosa_flags_string(flags, "tls-cert"),
                                     .key_path = nosa_flags_string(flags, "tls-key"),
                                     .ca_path = nosa_flags_string(flags, "tls-ca")};
    out->log = (struct nosa_log_options){
        .level = (enum nosa_log_level)nosa_flags_choice(flags, "log-level"),
        .format = (enum nosa_log_format)nosa_flags_choice(flags, "log-format"),
        .descriptor = STDERR_FILENO};
}

enum nosa_status nosa_worker_options_parse(int argc, char *const *argv,
                                           struct nosa_worker_options *out,
                                           enum nosa_worker_action *action,
                                           struct nosa_error *error)
{
    *out = (struct nosa_worker_options){0};
    const struct nosa_flag_table tables[] = {nosa_engine_flag_table, NOSA_FLAG_TABLE(flag_table)};
    const struct nosa_flags_program program = {
        .name = "nosa-worker",
        .summary = "Computes generations for the coordinators that it joins.",
        .usage = "--model DIR --coordinator HOST:PORT ...",
        .tables = tables,
        .table_count = 2,
    };
    NOSA_TRY(nosa_flags_parse(&out->flags, &program, argc, argv, error));
    *action = NOSA_WORKER_GO;
    if (nosa_flags_action(out->flags) != NOSA_FLAGS_RUN) {
        nosa_flags_print(out->flags, stdout);
        nosa_worker_options_free(out);
        *action = NOSA_WORKER_PRINTED;
        return NOSA_OK;
    }
    read_flags(out);
    enum nosa_status status = check(out, error);
    if (status == NOSA_OK)
        nosa_log_configure(&out->log);
    if (status == NOSA_OK)
        status = nosa_engine_flags_read(out->flags, "worker", &out->engine, error);
    if (status != NOSA_OK)
        nosa_worker_options_free(out);
    return status;
}

void nosa_worker_options_free(struct nosa_worker_options *options)
{
    nosa_flags_free(options->flags);
    *options = (struct nosa_worker_options){0};
}
