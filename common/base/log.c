#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

static const char *const level_names[] = {"error", "warn", "info", "debug"};

/* Atomics rather than a mutex: a line takes no lock, and configure may race with a late thread. */
static _Atomic(int) current_level = NOSA_LOG_INFO;
static _Atomic(int) current_format = NOSA_LOG_FORMAT_TEXT;
static _Atomic(int) current_descriptor = STDERR_FILENO;
static _Atomic(const struct nosa_clock *) current_clock;
static _Atomic(const char *) current_worker;

/* A line under construction; what does not fit is dropped, room for `"}` and newline is kept. */
struct line {
    char text[NOSA_LOG_LINE_MAX];
    size_t length;
};

#define LINE_RESERVE       3
#define LINE_FIELD_RESERVE 256 /* kept for the message by the fields before it */

void nosa_log_configure(const struct nosa_log_options *options)
{
    atomic_store(&current_level, (int)options->level);
    atomic_store(&current_format, (int)options->format);
    atomic_store(&current_descriptor, options->descriptor);
    atomic_store(&current_clock, options->clock);
}

bool nosa_log_enabled(enum nosa_log_level level)
{
    return (int)level <= atomic_load_explicit(&current_level, memory_order_relaxed);
}

/* Appends all of the bytes or none, so that a character or escape is never cut in two. */
static bool line_append(struct line *line, const char *bytes, size_t size)
{
    if (size > sizeof line->text - LINE_RESERVE - line->length)
        return false;
    memcpy(line->text + line->length, bytes, size);
    line->length += size;
    return true;
}

static void line_append_text(struct line *line, const char *text)
{
    line_append(line, text, strlen(text));
}

static void line_append_time(struct line *line)
{
    const struct nosa_clock *clock = atomic_load(&current_clock);
    uint64_t now_ns = nosa_clock_wall_ns(clock ? clock : nosa_clock_system());
    time_t seconds = (time_t)(now_ns / NOSA_NS_PER_S);
    struct tm parts;
    char text[48];
    gmtime_r(&seconds, &parts);
    size_t length = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text + length, sizeof text - length, ".%03uZ",
             (unsigned)(now_ns % NOSA_NS_PER_S / NOSA_NS_PER_MS));
    line_append_text(line, text);
}

/* Appends one decoded character to a JSON string, escaped where JSON wants it. */
static bool line_append_json_character(struct line *line, uint32_t code_point)
{
    char bytes[8];
    size_t length;
    if (code_point == '"' || code_point == '\\') {
        bytes[0] = '\\';
        bytes[1] = (char)code_point;
        length = 2;
    } else if (code_point < 0x20 || code_point == 0x7f) {
        length = (size_t)snprintf(bytes, sizeof bytes, "\\u%04x", (unsigned)code_point);
    } else {
        length = nosa_utf8_encode(code_point, bytes);
    }
    return line_append(line, bytes, length);
}

static void line_append_json(struct line *line, const char *text)
{
    size_t size = strlen(text);
    while (size > 0) {
        uint32_t code_point;
        int length = nosa_utf8_decode(text, size, &code_point);
        size_t step = length > 0 ? (size_t)length : nosa_utf8_invalid_length(text, size);
        if (!line_append_json_character(line, code_point))
            return;
        text += step;
        size -= step;
    }
}

static void line_append_plain(struct line *line, char *text)
{
    for (char *cursor = text; *cursor; cursor++)
        if ((unsigned char)*cursor < 0x20 || *cursor == 0x7f)
            *cursor = '?';
    size_t room = sizeof line->text - LINE_RESERVE - line->length;
    size_t length = strlen(text);
    line_append(line, text, length < room ? length : room);
}

static void line_write(struct line *line)
{
    int descriptor = atomic_load(&current_descriptor);
    line->text[line->length++] = '\n';
    ssize_t written;
    do
        written = write(descriptor, line->text, line->length);
    while (written < 0 && errno == EINTR);
}

static void line_append_field(struct line *line, const char *name, const char *text)
{
    if (!text)
        return;
    /* Whole, with its quotes, or not at all: an id is far shorter than a line. */
    struct line trial = *line;
    line_append_text(&trial, "\",\"");
    line_append_text(&trial, name);
    line_append_text(&trial, "\":\"");
    line_append_json(&trial, text);
    if (trial.length + LINE_FIELD_RESERVE < sizeof trial.text)
        *line = trial;
}

static void write_json(struct line *line, enum nosa_log_level level, const char *subsystem,
                       const struct nosa_log_subject *subject, const char *message)
{
    line_append_text(line, "{\"time\":\"");
    line_append_time(line);
    line_append_text(line, "\",\"level\":\"");
    line_append_text(line, nosa_log_level_name(level));
    line_append_text(line, "\",\"subsystem\":\"");
    line_append_text(line, subsystem);
    const char *own = atomic_load(&current_worker);
    if (subject)
        line_append_field(line, "request", subject->request);
    line_append_field(line, "worker", subject && subject->worker ? subject->worker : own);
    line_append_text(line, "\",\"message\":\"");
    line_append_json(line, message);
    line->text[line->length++] = '"';
    line->text[line->length++] = '}';
}

static void write_text(struct line *line, enum nosa_log_level level, const char *subsystem,
                       char *message)
{
    line_append_time(line);
    line_append_text(line, " ");
    line_append_text(line, nosa_log_level_name(level));
    line_append_text(line, " ");
    line_append_text(line, subsystem);
    const char *own = atomic_load(&current_worker);
    if (own) {
        line_append_text(line, "[");
        line_append_text(line, own);
        line_append_text(line, "]");
    }
    line_append_text(line, ": ");
    line_append_plain(line, message);
}

static void write_line(enum nosa_log_level level, const char *subsystem,
                       const struct nosa_log_subject *subject, const char *format,
                       va_list arguments) __attribute__((format(printf, 4, 0)));

static void write_line(enum nosa_log_level level, const char *subsystem,
                       const struct nosa_log_subject *subject, const char *format,
                       va_list arguments)
{
    int saved_errno = errno;
    char message[NOSA_LOG_LINE_MAX];
    struct line line = {.length = 0};
    if (vsnprintf(message, sizeof message, format, arguments) < 0)
        message[0] = '\0';
    if (atomic_load(&current_format) == NOSA_LOG_FORMAT_JSON)
        write_json(&line, level, subsystem, subject, message);
    else
        write_text(&line, level, subsystem, message);
    line_write(&line);
    errno = saved_errno;
}

void nosa_log_set_worker(const char *id)
{
    atomic_store(&current_worker, id);
}

void nosa_log(enum nosa_log_level level, const char *subsystem, const char *format, ...)
{
    if (!nosa_log_enabled(level))
        return;
    va_list arguments;
    va_start(arguments, format);
    write_line(level, subsystem, NULL, format, arguments);
    va_end(arguments);
}

void nosa_log_about(enum nosa_log_level level, const char *subsystem,
                    const struct nosa_log_subject *subject, const char *format, ...)
{
    if (!nosa_log_enabled(level))
        return;
    va_list arguments;
    va_start(arguments, format);
    write_line(level, subsystem, subject, format, arguments);
    va_end(arguments);
}

const char *nosa_log_level_name(enum nosa_log_level level)
{
    size_t index = (size_t)level;
    return index < sizeof level_names / sizeof *level_names ? level_names[index] : "unknown";
}

bool nosa_log_level_parse(const char *name, enum nosa_log_level *level)
{
    for (size_t i = 0; i < sizeof level_names / sizeof *level_names; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum nosa_log_level)i;
            return true;
        }
    }
    return false;
}
