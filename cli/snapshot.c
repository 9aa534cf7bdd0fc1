#include "snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "admin.h"
#include "base/clock.h"
#include "rpc/message.h"
#include "text_format.h"
#include "text_table.h"
#include "view.h"

#define HEAD_LINES      5 /* the empty line after it included */
#define LINES_MIN       10
#define TABLE_OVERHEAD  3 /* titles, the line that counts what is left out, an empty line */
#define WORKER_ROWS_MIN 3

void nosa_snapshot_take(struct nosa_snapshot *snapshot, struct nosa_connection *connection,
                        uint32_t timeout_ms)
{
    memset(snapshot, 0, sizeof *snapshot);
    snapshot->wall_ns = nosa_clock_wall_ns(nosa_clock_system());
    snapshot->code =
        nosa_admin_call_status(connection, timeout_ms, &snapshot->status, &snapshot->error);
    if (snapshot->code == NOSA_RPC_OK)
        snapshot->code =
            nosa_admin_call_workers(connection, timeout_ms, &snapshot->workers, &snapshot->error);
    if (snapshot->code == NOSA_RPC_OK)
        snapshot->code =
            nosa_admin_call_requests(connection, timeout_ms, &snapshot->requests, &snapshot->error);
    snapshot->server = nosa_rpc_channel_address(connection->channel);
}

void nosa_snapshot_free(struct nosa_snapshot *snapshot)
{
    nosa_message_free((ProtobufCMessage *)snapshot->status);
    nosa_message_free((ProtobufCMessage *)snapshot->workers);
    nosa_message_free((ProtobufCMessage *)snapshot->requests);
    memset(snapshot, 0, sizeof *snapshot);
}

/* Appends a line, cut to the width. */
static void line(struct nosa_buffer *out, uint32_t width_max, const char *text)
{
    nosa_text_append_cut(out, text, width_max);
    nosa_buffer_append(out, "\n", 1);
}

static void head(const struct nosa_snapshot *snapshot, uint32_t width_max, struct nosa_buffer *out)
{
    const Nosa__V1__StatusResponse *status = snapshot->status;
    char text[512], a[NOSA_FORMAT_MAX], b[NOSA_FORMAT_MAX], c[NOSA_FORMAT_MAX], d[NOSA_FORMAT_MAX];
    char clock[16] = "";
    time_t seconds = (time_t)(snapshot->wall_ns / NOSA_NS_PER_S);
    struct tm moment;
    if (localtime_r(&seconds, &moment))
        strftime(clock, sizeof clock, "%H:%M:%S", &moment);
    snprintf(text, sizeof text, "%s  %s  nosa %s, up %s, %s%s%s", clock, snapshot->server,
             status->version, nosa_format_duration(status->uptime_ms, a),
             status->draining ? "draining"
             : status->ready  ? "ready"
                              : "no worker is ready",
             strcmp(status->membership, "memory") == 0 ? "" : ", ",
             strcmp(status->membership, "memory") == 0 ? "" : status->membership);
    line(out, width_max, text);
    snprintf(text, sizeof text,
             "requests: %" PRIu32 " running, %" PRIu32 " waiting   tokens/s: %s in, %s out",
             status->requests_running, status->requests_waiting,
             nosa_format_count(status->prompt_tokens_per_s, a),
             nosa_format_count(status->generation_tokens_per_s, b));
    line(out, width_max, text);
    snprintf(text, sizeof text, "first token: p50 %s, p99 %s   between: p50 %s, p99 %s",
             nosa_format_latency(status->ttft_p50_ms, a),
             nosa_format_latency(status->ttft_p99_ms, b),
             nosa_format_latency(status->inter_token_p50_ms, c),
             nosa_format_latency(status->inter_token_p99_ms, d));
    line(out, width_max, text);
    snprintf(text, sizeof text,
             "since start: %s in, %s out   replays: %" PRIu64 " exact, %" PRIu64 " inexact",
             nosa_format_count((double)status->prompt_tokens, a),
             nosa_format_count((double)status->generation_tokens, b), status->replays_exact,
             status->replays_inexact);
    line(out, width_max, text);
    line(out, width_max, "");
}

/* How many rows of workers are shown, when both tables have `rows` lines together. */
static uint32_t share_rows(size_t workers, size_t requests, uint32_t rows)
{
    uint32_t half = rows / 2 > WORKER_ROWS_MIN ? rows / 2 : WORKER_ROWS_MIN;
    if (workers + requests <= rows || workers <= half)
        return (uint32_t)workers;
    return requests < rows - half ? rows - (uint32_t)requests : half;
}

static void left_out(struct nosa_buffer *out, size_t count, uint32_t shown, const char *what)
{
    if (count > shown)
        nosa_buffer_printf(out, "... and %zu more %s\n", count - shown, what);
}

void nosa_snapshot_text(const struct nosa_snapshot *snapshot, uint32_t width_max,
                        uint32_t lines_max, struct nosa_buffer *out)
{
    size_t workers = snapshot->workers->n_workers, requests = snapshot->requests->n_requests;
    uint32_t worker_rows = UINT32_MAX, request_rows = UINT32_MAX;
    if (lines_max != UINT32_MAX) {
        uint32_t lines = lines_max > LINES_MIN ? lines_max : LINES_MIN;
        uint32_t fixed = HEAD_LINES + 2 * TABLE_OVERHEAD - 1;
        uint32_t rows = lines > fixed + 1 ? lines - fixed : 1;
        worker_rows = share_rows(workers, requests, rows);
        request_rows = rows > worker_rows ? rows - worker_rows : 1;
    }
    head(snapshot, width_max, out);
    nosa_view_workers_text(snapshot->workers, width_max, worker_rows, out);
    left_out(out, workers, worker_rows, "workers");
    line(out, width_max, "");
    nosa_view_requests_text(snapshot->requests, width_max, request_rows, out);
    left_out(out, requests, request_rows, "requests");
}

json_t *nosa_snapshot_json(const struct nosa_snapshot *snapshot)
{
    return json_pack("{s:f s:o s:o s:o}", "time", (double)snapshot->wall_ns / 1e9, "status",
                     nosa_view_status_json(snapshot->status, snapshot->server), "workers",
                     nosa_view_workers_json(snapshot->workers), "requests",
                     nosa_view_requests_json(snapshot->requests));
}
