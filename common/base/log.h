/*
 * Log lines to stderr (or another descriptor), as text or as JSON lines. A line is built in memory
 * and leaves with one write, so lines of several threads and processes do not mix. Messages longer
 * than NOSA_LOG_LINE_MAX are cut. Any thread; nosa_log_configure belongs before the threads start.
 *
 * Text: 2026-01-31T12:00:00.123Z warn engine: message
 * JSON: {"time":"2026-01-31T12:00:00.123Z","level":"warn","subsystem":"engine","message":"..."}
 */
#ifndef NOSA_BASE_LOG_H
#define NOSA_BASE_LOG_H

#include <stdbool.h>

#include "base/clock.h"

#define NOSA_LOG_LINE_MAX 4096 /* bytes of one line, newline included */

enum nosa_log_level {
    NOSA_LOG_ERROR = 0, /* something asked for was not done */
    NOSA_LOG_WARN = 1,  /* done, but not as asked: a fallback, a retry */
    NOSA_LOG_INFO = 2,  /* what an operator wants to see once */
    NOSA_LOG_DEBUG = 3, /* per request or step */
};

enum nosa_log_format { NOSA_LOG_FORMAT_TEXT = 0, NOSA_LOG_FORMAT_JSON = 1 };

struct nosa_log_options {
    enum nosa_log_level level; /* the last level that is written */
    enum nosa_log_format format;
    int descriptor;                 /* borrowed; 2 is stderr */
    const struct nosa_clock *clock; /* borrowed until the next configure; NULL: the system's */
};

/* Replaces the options; the first ones are {NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT, 2, NULL}. */
void nosa_log_configure(const struct nosa_log_options *options);

/* This process is the worker `id`: every line names it, in text after the subsystem
 * ("engine[worker-0]: ..."), in JSON as "worker". Without control characters; borrowed until it is
 * set anew; NULL: none. */
void nosa_log_set_worker(const char *id);

/* Whether a line of `level` would be written, for arguments that cost something. */
bool nosa_log_enabled(enum nosa_log_level level);

/*
 * Writes one line. `subsystem` is a short word ("engine", "kvstore"). Control characters in the
 * message become '?' (text) or are escaped (JSON); bytes that are not UTF-8 become U+FFFD in JSON.
 * Keeps errno. Blocks as long as the descriptor's write blocks.
 */
void nosa_log(enum nosa_log_level level, const char *subsystem, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Whom a line is about. NULL: nobody. */
struct nosa_log_subject {
    const char *request; /* its request_id */
    const char *worker;  /* its id */
};

/*
 * The same, with the subject's ids as fields of their own in JSON ("request", "worker", before the
 * message); in text the message names them in its words.
 */
void nosa_log_about(enum nosa_log_level level, const char *subsystem,
                    const struct nosa_log_subject *subject, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* "error", "warn", "info", "debug"; never NULL. */
const char *nosa_log_level_name(enum nosa_log_level level);

/* Finds a level by name; false when there is none. */
bool nosa_log_level_parse(const char *name, enum nosa_log_level *level);

#endif
