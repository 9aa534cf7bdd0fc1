#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>

#include "base/metrics.h"
#include "support/alloc_fail.h"

static struct nosa_metrics *create(void)
{
    struct nosa_metrics *metrics;
    assert_int_equal(nosa_metrics_create(&metrics, NULL), NOSA_OK);
    return metrics;
}

static void check_render(struct nosa_metrics *metrics, const char *expected)
{
    struct nosa_buffer out = {0};
    assert_int_equal(nosa_metrics_render(metrics, &out, NULL), NOSA_OK);
    assert_string_equal(out.data ? out.data : "", expected);
    nosa_buffer_free(&out);
}

static void test_render_counter_and_gauge(void **state)
{
    (void)state;
    struct nosa_metrics *metrics = create();
    struct nosa_counter *gpu, *host, *plain;
    struct nosa_gauge *gauge;
    struct nosa_label label = {"tier", "gpu"};
    struct nosa_metric_options options = {"nosa_kv_block_hits_total", "Hits by\ntier \\.", &label,
                                          1};
    check_render(metrics, "");
    assert_int_equal(nosa_metrics_counter(metrics, &options, &gpu, NULL), NOSA_OK);
    label.value = "ho\"s\\t\n";
    assert_int_equal(nosa_metrics_counter(metrics, &options, &host, NULL), NOSA_OK);
    assert_ptr_not_equal(gpu, host);
    assert_int_equal(nosa_metrics_gauge(
                         metrics,
                         &(struct nosa_metric_options){.name = "nosa_usage_ratio", .help = "Used."},
                         &gauge, NULL),
                     NOSA_OK);
    assert_int_equal(
        nosa_metrics_counter(metrics, &(struct nosa_metric_options){.name = "nosa_tokens_total"},
                             &plain, NULL),
        NOSA_OK);
    nosa_counter_add(gpu, 3);
    nosa_counter_add(gpu, 4);
    nosa_counter_add(host, UINT64_MAX);
    nosa_gauge_set(gauge, 0.1);
    assert_int_equal(nosa_counter_value(gpu), 7);
    check_render(metrics, "# HELP nosa_kv_block_hits_total Hits by\\ntier \\\\.\n"
                          "# TYPE nosa_kv_block_hits_total counter\n"
                          "nosa_kv_block_hits_total{tier=\"gpu\"} 7\n"
                          "nosa_kv_block_hits_total{tier=\"ho\\\"s\\\\t\\n\"} "
                          "18446744073709551615\n"
                          "# HELP nosa_usage_ratio Used.\n"
                          "# TYPE nosa_usage_ratio gauge\n"
                          "nosa_usage_ratio 0.1\n"
                          "# HELP nosa_tokens_total \n"
                          "# TYPE nosa_tokens_total counter\n"
                          "nosa_tokens_total 0\n");
    nosa_metrics_free(metrics);
    nosa_metrics_free(NULL);
}

static void test_render_histogram(void **state)
{
    (void)state;
    struct nosa_metrics *metrics = create();
    struct nosa_histogram *histogram;
    static const double bounds[] = {0.005, 0.1, 2.5};
    struct nosa_label label = {"op", "gemm"};
    struct nosa_metric_options options = {"nosa_step_seconds", "Steps.", &label, 1};
    assert_int_equal(nosa_metrics_histogram(metrics, &options, bounds, 3, &histogram, NULL),
                     NOSA_OK);
    nosa_histogram_observe(histogram, 0.005);
    nosa_histogram_observe(histogram, 0.05);
    nosa_histogram_observe(histogram, 2.5);
    nosa_histogram_observe(histogram, 100);
    assert_int_equal(nosa_histogram_count(histogram), 4);
    check_render(metrics, "# HELP nosa_step_seconds Steps.\n"
                          "# TYPE nosa_step_seconds histogram\n"
                          "nosa_step_seconds_bucket{op=\"gemm\",le=\"0.005\"} 1\n"
                          "nosa_step_seconds_bucket{op=\"gemm\",le=\"0.1\"} 2\n"
                          "nosa_step_seconds_bucket{op=\"gemm\",le=\"2.5\"} 3\n"
                          "nosa_step_seconds_bucket{op=\"gemm\",le=\"+Inf\"} 4\n"
                          "nosa_step_seconds_sum{op=\"gemm\"} 102.555\n"
                          "nosa_step_seconds_count{op=\"gemm\"} 4\n");
    nosa_metrics_free(metrics);
}

static void test_gauge_special_values(void **state)
{
    (void)state;
    struct nosa_metrics *metrics = create();
    struct nosa_gauge *gauge;
    struct nosa_metric_options options = {.name = "g", .help = "h"};
    assert_int_equal(nosa_metrics_gauge(metrics, &options, &gauge, NULL), NOSA_OK);
    nosa_gauge_set(gauge, INFINITY);
    check_render(metrics, "# HELP g h\n# TYPE g gauge\ng +Inf\n");
    nosa_gauge_set(gauge, NAN);
    check_render(metrics, "# HELP g h\n# TYPE g gauge\ng NaN\n");
    nosa_gauge_set(gauge, -1.5);
    nosa_gauge_add(gauge, 0.25);
    assert_true(nosa_gauge_value(gauge) == -1.25);
    nosa_metrics_free(metrics);
}

static void test_register_twice_is_one(void **state)
{
    (void)state;
    struct nosa_metrics *metrics = create();
    struct nosa_counter *first, *second;
    struct nosa_gauge *gauge;
    struct nosa_histogram *histogram;
    struct nosa_error error = {0};
    struct nosa_metric_options options = {.name = "nosa_x_total", .help = "X."};
    assert_int_equal(nosa_metrics_counter(metrics, &options, &first, NULL), NOSA_OK);
    assert_int_equal(nosa_metrics_counter(metrics, &options, &second, NULL), NOSA_OK);
    assert_ptr_equal(first, second);
    assert_int_equal(nosa_metrics_gauge(metrics, &options, &gauge, &error), NOSA_INVALID_ARGUMENT);
    assert_null(gauge);
    assert_string_equal(error.text, "metric nosa_x_total exists as a counter");
    options.name = "nosa_h";
    assert_int_equal(
        nosa_metrics_histogram(metrics, &options, (double[]){1, 2}, 2, &histogram, NULL), NOSA_OK);
    assert_int_equal(
        nosa_metrics_histogram(metrics, &options, (double[]){1, 3}, 2, &histogram, NULL),
        NOSA_INVALID_ARGUMENT);
    nosa_metrics_free(metrics);
}

static void test_register_bad_names(void **state)
{
    (void)state;
    struct nosa_metrics *metrics = create();
    struct nosa_counter *counter;
    struct nosa_histogram *histogram;
    static const char *const names[] = {"", "1a", "a-b", "a b", "\xC3\xA9"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct nosa_metric_options options = {.name = names[i], .help = ""};
        assert_int_equal(nosa_metrics_counter(metrics, &options, &counter, NULL),
                         NOSA_INVALID_ARGUMENT);
        assert_null(counter);
    }
    struct nosa_label colon = {"a:b", "x"};
    struct nosa_metric_options options = {"nosa_ok", "", &colon, 1};
    assert_int_equal(nosa_metrics_counter(metrics, &options, &counter, NULL),
                     NOSA_INVALID_ARGUMENT);
    options.label_count = 0;
    static const double bad_bounds[][2] = {{2, 1}, {1, 1}, {1, INFINITY}, {NAN, 1}};
    for (size_t i = 0; i < sizeof bad_bounds / sizeof *bad_bounds; i++)
        assert_int_equal(
            nosa_metrics_histogram(metrics, &options, bad_bounds[i], 2, &histogram, NULL),
            NOSA_INVALID_ARGUMENT);
    check_render(metrics, "");
    nosa_metrics_free(metrics);
}

static void test_update_null_handles(void **state)
{
    (void)state;
    nosa_counter_add(NULL, 1);
    nosa_gauge_set(NULL, 1);
    nosa_gauge_add(NULL, 1);
    nosa_histogram_observe(NULL, 1);
    assert_int_equal(nosa_counter_value(NULL), 0);
    assert_int_equal(nosa_histogram_count(NULL), 0);
}

#define THREADS 4
#define UPDATES 20000

struct handles {
    struct nosa_counter *counter;
    struct nosa_gauge *gauge;
    struct nosa_histogram *histogram;
};

static void *update(void *context)
{
    struct handles *handles = context;
    for (int i = 0; i < UPDATES; i++) {
        nosa_counter_add(handles->counter, 2);
        nosa_gauge_add(handles->gauge, 0.5);
        nosa_histogram_observe(handles->histogram, i % 2);
    }
    return NULL;
}

static void test_update_many_threads(void **state)
{
    (void)state;
    struct nosa_metrics *metrics = create();
    struct handles handles;
    pthread_t threads[THREADS];
    struct nosa_metric_options options = {.name = "c", .help = ""};
    assert_int_equal(nosa_metrics_counter(metrics, &options, &handles.counter, NULL), NOSA_OK);
    options.name = "g";
    assert_int_equal(nosa_metrics_gauge(metrics, &options, &handles.gauge, NULL), NOSA_OK);
    options.name = "h";
    assert_int_equal(
        nosa_metrics_histogram(metrics, &options, (double[]){0.5}, 1, &handles.histogram, NULL),
        NOSA_OK);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, update, &handles), 0);
    struct nosa_buffer out = {0};
    assert_int_equal(nosa_metrics_render(metrics, &out, NULL), NOSA_OK);
    nosa_buffer_free(&out);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(nosa_counter_value(handles.counter), 2 * THREADS * UPDATES);
    assert_true(nosa_gauge_value(handles.gauge) == 0.5 * THREADS * UPDATES);
    assert_int_equal(nosa_histogram_count(handles.histogram), THREADS * UPDATES);
    assert_int_equal(nosa_metrics_render(metrics, &out, NULL), NOSA_OK);
    assert_non_null(strstr(out.data, "h_bucket{le=\"0.5\"} 40000\n"));
    assert_non_null(strstr(out.data, "h_sum 40000\n"));
    nosa_buffer_free(&out);
    nosa_metrics_free(metrics);
}

static enum nosa_status register_and_render(void *context, struct nosa_error *error)
{
    (void)context;
    struct nosa_metrics *metrics = NULL;
    struct nosa_counter *counter;
    struct nosa_histogram *histogram;
    struct nosa_buffer out = {0};
    struct nosa_label label = {"tier", "gpu"};
    struct nosa_metric_options counter_options = {"c", "help", &label, 1};
    struct nosa_metric_options histogram_options = {"h", "help", NULL, 0};
    enum nosa_status status = nosa_metrics_create(&metrics, error);
    if (status == NOSA_OK)
        status = nosa_metrics_counter(metrics, &counter_options, &counter, error);
    if (status == NOSA_OK)
        status = nosa_metrics_histogram(metrics, &histogram_options, (double[]){1}, 1, &histogram,
                                        error);
    if (status == NOSA_OK)
        status = nosa_metrics_render(metrics, &out, error);
    nosa_buffer_free(&out);
    nosa_metrics_free(metrics);
    return status;
}

static void test_register_without_memory(void **state)
{
    (void)state;
    assert_true(nosa_alloc_fail_sweep(register_and_render, NULL) >= 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_render_counter_and_gauge),
        cmocka_unit_test(test_render_histogram),
        cmocka_unit_test(test_gauge_special_values),
        cmocka_unit_test(test_register_twice_is_one),
        cmocka_unit_test(test_register_bad_names),
        cmocka_unit_test(test_update_null_handles),
        cmocka_unit_test(test_update_many_threads),
        cmocka_unit_test(test_register_without_memory),
    };
    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
