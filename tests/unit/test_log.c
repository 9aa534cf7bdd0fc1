#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "base/log.h"

static struct nosa_manual_clock manual;
static int ends[2];

/* 2026-01-31T12:00:00.123Z */
#define TEST_WALL_NS (UINT64_C(1769860800) * NOSA_NS_PER_S + 123 * NOSA_NS_PER_MS)

static int open_pipe(void **state)
{
    (void)state;
    nosa_manual_clock_init(&manual, 0, TEST_WALL_NS);
    return pipe(ends);
}

static int close_pipe(void **state)
{
    (void)state;
    nosa_log_configure(&(struct nosa_log_options){NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT, 2, NULL});
    nosa_manual_clock_destroy(&manual);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

static void configure(enum nosa_log_level level, enum nosa_log_format format)
{
    nosa_log_configure(&(struct nosa_log_options){level, format, ends[1], &manual.clock});
}

static const char *read_line(void)
{
    static char line[2 * NOSA_LOG_LINE_MAX];
    ssize_t size = read(ends[0], line, sizeof line - 1);
    assert_true(size > 0);
    line[size] = '\0';
    return line;
}

static void test_log_text(void **state)
{
    (void)state;
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT);
    errno = EXDEV;
    nosa_log(NOSA_LOG_WARN, "engine", "took %d\nms\x1b", 7);
    assert_int_equal(errno, EXDEV);
    assert_string_equal(read_line(), "2026-01-31T12:00:00.123Z warn engine: took 7?ms?\n");
}

static void test_log_json_escapes(void **state)
{
    (void)state;
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_JSON);
    nosa_log(NOSA_LOG_ERROR, "kvstore", "a \"b\\\" \n \x01 \xC3\xA9 \xFF.");
    assert_string_equal(read_line(), "{\"time\":\"2026-01-31T12:00:00.123Z\",\"level\":\"error\","
                                     "\"subsystem\":\"kvstore\",\"message\":"
                                     "\"a \\\"b\\\\\\\" \\u000a \\u0001 \xC3\xA9 \xEF\xBF\xBD."
                                     "\"}\n");
}

static void test_log_set_worker_names_it_in_each_line(void **state)
{
    (void)state;
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT);
    nosa_log_set_worker("w-1");
    nosa_log(NOSA_LOG_INFO, "engine", "ready");
    assert_string_equal(read_line(), "2026-01-31T12:00:00.123Z info engine[w-1]: ready\n");
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_JSON);
    nosa_log_about(NOSA_LOG_INFO, "worker", &(struct nosa_log_subject){.request = "r"}, "slow");
    assert_string_equal(read_line(),
                        "{\"time\":\"2026-01-31T12:00:00.123Z\",\"level\":\"info\","
                        "\"subsystem\":\"worker\",\"request\":\"r\",\"worker\":\"w-1\","
                        "\"message\":\"slow\"}\n");
    nosa_log_set_worker(NULL);
    nosa_log(NOSA_LOG_INFO, "engine", "ready");
    assert_null(strstr(read_line(), "w-1"));
}

static void test_log_about_fields(void **state)
{
    (void)state;
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_JSON);
    const struct nosa_log_subject both = {"r\"1", "w0"}, worker = {.worker = "w0"};
    nosa_log_about(NOSA_LOG_INFO, "relay", &both, "on %s", "w0");
    assert_string_equal(read_line(), "{\"time\":\"2026-01-31T12:00:00.123Z\",\"level\":\"info\","
                                     "\"subsystem\":\"relay\",\"request\":\"r\\\"1\","
                                     "\"worker\":\"w0\",\"message\":\"on w0\"}\n");
    nosa_log_about(NOSA_LOG_INFO, "relay", &worker, "back");
    assert_non_null(strstr(read_line(), "\"relay\",\"worker\":\"w0\",\"message\":\"back\"}"));
    nosa_log_about(NOSA_LOG_DEBUG, "relay", &worker, "hidden");
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT);
    nosa_log_about(NOSA_LOG_INFO, "relay", &both, "plain");
    assert_string_equal(read_line(), "2026-01-31T12:00:00.123Z info relay: plain\n");
}

static void test_log_about_long_field_is_left_out(void **state)
{
    (void)state;
    static char id[2 * NOSA_LOG_LINE_MAX];
    memset(id, '"', sizeof id - 1);
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_JSON);
    nosa_log_about(NOSA_LOG_INFO, "relay", &(struct nosa_log_subject){id, "w0"}, "said");
    const char *line = read_line();
    assert_null(strstr(line, "request"));
    assert_non_null(strstr(line, "\"worker\":\"w0\",\"message\":\"said\"}\n"));
}

static void test_log_level_filters(void **state)
{
    (void)state;
    configure(NOSA_LOG_WARN, NOSA_LOG_FORMAT_TEXT);
    assert_true(nosa_log_enabled(NOSA_LOG_ERROR));
    assert_true(nosa_log_enabled(NOSA_LOG_WARN));
    assert_false(nosa_log_enabled(NOSA_LOG_INFO));
    nosa_log(NOSA_LOG_INFO, "engine", "hidden");
    nosa_log(NOSA_LOG_DEBUG, "engine", "hidden");
    nosa_log(NOSA_LOG_WARN, "engine", "shown");
    const char *line = read_line();
    assert_non_null(strstr(line, "shown"));
    assert_null(strstr(line, "hidden"));
}

static void check_long(enum nosa_log_format format, const char *fill, const char *end)
{
    static char message[3 * NOSA_LOG_LINE_MAX];
    size_t length = strlen(fill);
    message[0] = '\0';
    for (size_t i = 0; i + length < sizeof message; i += length)
        memcpy(message + i, fill, length + 1);
    configure(NOSA_LOG_INFO, format);
    nosa_log(NOSA_LOG_INFO, "engine", "%s", message);
    const char *line = read_line();
    size_t size = strlen(line);
    assert_true(size <= NOSA_LOG_LINE_MAX);
    assert_true(size > NOSA_LOG_LINE_MAX - 16);
    assert_string_equal(line + size - strlen(end), end);
}

static void test_log_long_is_cut_whole(void **state)
{
    (void)state;
    check_long(NOSA_LOG_FORMAT_TEXT, "x", "x\n");
    check_long(NOSA_LOG_FORMAT_JSON, "x", "x\"}\n");
    check_long(NOSA_LOG_FORMAT_JSON, "\x02", "\\u0002\"}\n");
    check_long(NOSA_LOG_FORMAT_JSON, "\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80\"}\n");
}

static void test_level_parse_names(void **state)
{
    (void)state;
    enum nosa_log_level level;
    for (int i = NOSA_LOG_ERROR; i <= NOSA_LOG_DEBUG; i++) {
        assert_true(nosa_log_level_parse(nosa_log_level_name((enum nosa_log_level)i), &level));
        assert_int_equal(level, i);
    }
    assert_false(nosa_log_level_parse("loud", &level));
    assert_string_equal(nosa_log_level_name((enum nosa_log_level)9), "unknown");
}

#define THREADS 4
#define LINES   50

static void *write_lines(void *context)
{
    for (int i = 0; i < LINES; i++)
        nosa_log(NOSA_LOG_INFO, "engine", "thread %d line %d end", *(int *)context, i);
    return NULL;
}

static void test_log_lines_do_not_mix(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    int ids[THREADS];
    configure(NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT);
    for (int i = 0; i < THREADS; i++) {
        ids[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, write_lines, &ids[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    nosa_log_configure(&(struct nosa_log_options){NOSA_LOG_INFO, NOSA_LOG_FORMAT_TEXT, 2, NULL});
    FILE *stream = fdopen(dup(ends[0]), "r");
    assert_non_null(stream);
    char line[256];
    int seen[THREADS] = {0};
    for (int i = 0; i < THREADS * LINES; i++) {
        int thread, number;
        assert_non_null(fgets(line, sizeof line, stream));
        assert_int_equal(sscanf(line, "2026-01-31T12:00:00.123Z info engine: thread %d line %d end",
                                &thread, &number),
                         2);
        assert_true(thread >= 0 && thread < THREADS);
        assert_int_equal(number, seen[thread]++);
        assert_string_equal(strstr(line, " end"), " end\n");
    }
    fclose(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_log_text, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(test_log_json_escapes, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(test_log_set_worker_names_it_in_each_line, open_pipe,
                                        close_pipe),
        cmocka_unit_test_setup_teardown(test_log_about_fields, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(test_log_about_long_field_is_left_out, open_pipe,
                                        close_pipe),
        cmocka_unit_test_setup_teardown(test_log_level_filters, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(test_log_long_is_cut_whole, open_pipe, close_pipe),
        cmocka_unit_test(test_level_parse_names),
        cmocka_unit_test_setup_teardown(test_log_lines_do_not_mix, open_pipe, close_pipe),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
