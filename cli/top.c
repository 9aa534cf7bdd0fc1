#include "top.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "interrupt.h"
#include "output.h"
#include "screen.h"
#include "snapshot.h"
#include "text_table.h"

#define ASK_TIMEOUT_MS 3000
#define PLAIN_WIDTH    80

const struct nosa_flag nosa_top_flags[3] = {
    {.name = "interval",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "SECONDS",
     .default_text = "1",
     .range.number = {0.1, 3600},
     .group = "Output",
     .help = "time between two looks"},
    {.name = "count",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "0",
     .range.integer = {0, INT32_MAX},
     .group = "Output",
     .help = "end after N looks; 0: on Ctrl-C, or with q on a terminal"},
    {.name = "json",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "print one JSON object per look, each in one line"},
};

/* ---- without a terminal ---- */

static enum nosa_status print_look(const struct nosa_snapshot *snapshot, bool json, bool first,
                                   struct nosa_error *error)
{
    struct nosa_buffer text = {0};
    if (json)
        return nosa_output_json(nosa_snapshot_json(snapshot), error);
    nosa_buffer_append_text(&text, first ? "" : "\n");
    nosa_snapshot_text(snapshot, PLAIN_WIDTH, UINT32_MAX, &text);
    enum nosa_status status = nosa_output_text(&text, error);
    nosa_buffer_free(&text);
    return status;
}

/* Looks and prints until the count or a signal. A server that is away at the first look or at the
 * last one is an error, in between a line on standard error. */
static int print_looks(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error)
{
    uint32_t interval_ms = (uint32_t)(nosa_flags_double(flags, "interval") * 1000);
    uint32_t timeout_ms = nosa_connection_timeout_ms(flags, ASK_TIMEOUT_MS);
    int32_t count = nosa_flags_int32(flags, "count");
    bool any = false;
    for (int32_t i = 1; !nosa_interrupt_signal(); i += count > 0) {
        uint64_t next_ns = nosa_monotonic_ns() + interval_ms * NOSA_NS_PER_MS;
        struct nosa_snapshot look;
        nosa_snapshot_take(&look, connection, timeout_ms);
        enum nosa_rpc_code code = look.code;
        enum nosa_status status = NOSA_OK;
        bool last = count > 0 && i >= count;
        if (code == NOSA_RPC_OK)
            status = print_look(&look, nosa_flags_bool(flags, "json"), !any, error);
        else if (!any || last)
            nosa_error_set(error, look.error.status, "%s", look.error.text);
        else
            fprintf(stderr, "nosactl: %s\n", look.error.text);
        nosa_snapshot_free(&look);
        if (status != NOSA_OK)
            return (int)nosa_exit_from_status(status);
        if ((code != NOSA_RPC_OK && !any) || last)
            return (int)nosa_exit_from_code(code);
        any = true;
        for (uint64_t now; !nosa_interrupt_signal() && (now = nosa_monotonic_ns()) < next_ns;)
            nosa_interrupt_wait(-1, (uint32_t)((next_ns - now) / NOSA_NS_PER_MS) + 1);
    }
    return nosa_interrupt_exit_code();
}

/* ---- on a terminal ---- */

struct asker {
    /* fixed after init */
    struct nosa_connection *connection;
    uint32_t interval_ms, timeout_ms;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* under mutex */
    struct nosa_snapshot good; /* the last one that came */
    enum nosa_rpc_code code;   /* of the last look, and its error */
    struct nosa_error error;
    uint64_t looks;
    bool ended;
};

static void *ask(void *context)
{
    struct asker *asker = context;
    pthread_mutex_lock(&asker->mutex);
    while (!asker->ended) {
        pthread_mutex_unlock(&asker->mutex);
        struct nosa_snapshot look;
        nosa_snapshot_take(&look, asker->connection, asker->timeout_ms);
        pthread_mutex_lock(&asker->mutex);
        asker->code = look.code;
        asker->error = look.error;
        struct nosa_snapshot stale = look;
        if (look.code == NOSA_RPC_OK) {
            stale = asker->good;
            asker->good = look;
        }
        nosa_snapshot_free(&stale);
        asker->looks++;
        nosa_interrupt_wake();
        struct timespec end;
        clock_gettime(CLOCK_MONOTONIC, &end);
        uint64_t ns = (uint64_t)end.tv_nsec + asker->interval_ms % 1000 * NOSA_NS_PER_MS;
        end.tv_sec += (time_t)(asker->interval_ms / 1000 + ns / NOSA_NS_PER_S);
        end.tv_nsec = (long)(ns % NOSA_NS_PER_S);
        while (!asker->ended && pthread_cond_timedwait(&asker->changed, &asker->mutex, &end) == 0)
            ;
    }
    pthread_mutex_unlock(&asker->mutex);
    return NULL;
}

/* Draws what is known; one line at the end says that the server is away. */
static enum nosa_status draw(struct asker *asker, struct nosa_error *error)
{
    struct nosa_buffer text = {0};
    uint32_t columns, lines;
    nosa_screen_size(&columns, &lines);
    pthread_mutex_lock(&asker->mutex);
    bool away = asker->looks > 0 && asker->code != NOSA_RPC_OK;
    if (away) {
        nosa_text_append_cut(&text, asker->error.text, columns);
        nosa_buffer_append_text(&text, "\n\n");
    }
    if (asker->good.status)
        nosa_snapshot_text(&asker->good, columns, lines > 2 && away ? lines - 2 : lines, &text);
    else if (!away)
        nosa_buffer_append_text(&text, "asking ...\n");
    pthread_mutex_unlock(&asker->mutex);
    enum nosa_status status = nosa_screen_draw(&text, error);
    nosa_buffer_free(&text);
    return status;
}

/* Draws whenever something changed, until q, a signal or the count. */
static enum nosa_status watch(struct asker *asker, uint64_t count, struct nosa_error *error)
{
    bool input = true;
    for (;;) {
        enum nosa_status status = draw(asker, error);
        if (status != NOSA_OK)
            return status;
        nosa_interrupt_wait(input ? STDIN_FILENO : -1, asker->interval_ms);
        for (int key = nosa_screen_key(); key != 0; key = input ? nosa_screen_key() : 0) {
            if (key == 'q' || key == 'Q')
                return NOSA_OK;
            input = key > 0;
        }
        pthread_mutex_lock(&asker->mutex);
        bool enough = count > 0 && asker->looks >= count;
        pthread_mutex_unlock(&asker->mutex);
        if (enough || nosa_interrupt_signal())
            return NOSA_OK;
    }
}

/* Waits by a clock that nobody sets. */
static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

static int show_screen(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error)
{
    struct asker asker = {
        .connection = connection,
        .interval_ms = (uint32_t)(nosa_flags_double(flags, "interval") * 1000),
        .timeout_ms = nosa_connection_timeout_ms(flags, ASK_TIMEOUT_MS),
        .mutex = PTHREAD_MUTEX_INITIALIZER,
    };
    pthread_t thread;
    init_condition(&asker.changed);
    if (pthread_create(&thread, NULL, ask, &asker) != 0) {
        pthread_cond_destroy(&asker.changed);
        nosa_error_set(error, NOSA_IO_ERROR, "no thread could be started");
        return NOSA_EXIT_FAILED;
    }
    enum nosa_status status = nosa_screen_open(error);
    if (status == NOSA_OK)
        status = watch(&asker, (uint64_t)nosa_flags_int32(flags, "count"), error);
    nosa_screen_close();
    pthread_mutex_lock(&asker.mutex);
    asker.ended = true;
    pthread_cond_signal(&asker.changed);
    pthread_mutex_unlock(&asker.mutex);
    pthread_join(thread, NULL);
    pthread_cond_destroy(&asker.changed);
    int code = (int)nosa_exit_from_status(status);
    if (status == NOSA_OK && nosa_interrupt_signal()) {
        code = nosa_interrupt_exit_code();
    } else if (status == NOSA_OK && asker.looks > 0 && asker.code != NOSA_RPC_OK) {
        code = (int)nosa_exit_from_code(asker.code);
        nosa_error_set(error, asker.error.status, "%s", asker.error.text);
    }
    nosa_snapshot_free(&asker.good);
    return code;
}

int nosa_top(struct nosa_connection *connection, const struct nosa_flags *flags,
             struct nosa_error *error)
{
    bool screen = nosa_screen_available() && !nosa_flags_bool(flags, "json");
    enum nosa_status status = nosa_interrupt_catch(screen, error);
    if (status != NOSA_OK)
        return (int)nosa_exit_from_status(status);
    return screen ? show_screen(connection, flags, error) : print_looks(connection, flags, error);
}
