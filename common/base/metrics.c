#include "base/metrics.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum metric_type { TYPE_COUNTER, TYPE_GAUGE, TYPE_HISTOGRAM };

static const char *const type_names[] = {"counter", "gauge", "histogram"};

struct nosa_counter {
    _Atomic(uint64_t) value;
};

struct nosa_gauge {
    _Atomic(double) value;
};

struct nosa_histogram {
    /* fixed after registration */
    const double *bounds; /* borrowed from the family, [bound_count] */
    size_t bound_count;
    _Atomic(double) sum;
    _Atomic(uint64_t)
        counts[]; /* [bound_count + 1]; not cumulative; the last is above all bounds */
};

/* One set of label values. Fixed after registration, but for what `handle` points to. */
struct metric {
    struct metric *next; /* owned */
    char *labels;        /* owned: rendered as `a="x",b="y"`; "" without labels */
    void *handle; /* owned: nosa_counter, nosa_gauge or nosa_histogram by the family's type */
};

struct family {
    /* fixed after registration */
    struct family *next; /* owned */
    enum metric_type type;
    char *name;     /* owned */
    char *help;     /* owned */
    double *bounds; /* owned; histograms only */
    size_t bound_count;
    /* under the registry's mutex */
    struct metric *metrics; /* owned, in order of registration */
};

struct nosa_metrics {
    pthread_mutex_t mutex;
    /* under mutex */
    struct family *families; /* owned, in order of registration */
};

enum nosa_status nosa_metrics_create(struct nosa_metrics **out, struct nosa_error *error)
{
    struct nosa_metrics *metrics = calloc(1, sizeof *metrics);
    *out = metrics;
    if (!metrics)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for metrics");
    pthread_mutex_init(&metrics->mutex, NULL);
    return NOSA_OK;
}

static void free_metric(struct metric *metric)
{
    if (!metric)
        return;
    free(metric->labels);
    free(metric->handle);
    free(metric);
}

static void free_family(struct family *family)
{
    if (!family)
        return;
    while (family->metrics) {
        struct metric *metric = family->metrics;
        family->metrics = metric->next;
        free_metric(metric);
    }
    free(family->name);
    free(family->help);
    free(family->bounds);
    free(family);
}

void nosa_metrics_free(struct nosa_metrics *metrics)
{
    if (!metrics)
        return;
    while (metrics->families) {
        struct family *family = metrics->families;
        metrics->families = family->next;
        free_family(family);
    }
    pthread_mutex_destroy(&metrics->mutex);
    free(metrics);
}

static bool name_is_valid(const char *name, bool colons)
{
    if (!name || !*name || isdigit((unsigned char)*name))
        return false;
    for (; *name; name++)
        if (!(isalnum((unsigned char)*name) && (unsigned char)*name < 0x80) && *name != '_' &&
            !(colons && *name == ':'))
            return false;
    return true;
}

static enum nosa_status check_options(const struct nosa_metric_options *options,
                                      struct nosa_error *error)
{
    if (!name_is_valid(options->name, true))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "metric name \"%s\" is not valid",
                              options->name ? options->name : "");
    if (options->label_count > NOSA_METRIC_LABELS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "metric %s has more than %d labels",
                              options->name, NOSA_METRIC_LABELS_MAX);
    for (size_t i = 0; i < options->label_count; i++)
        if (!name_is_valid(options->labels[i].name, false) || !options->labels[i].value)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "metric %s: label \"%s\" is not valid", options->name,
                                  options->labels[i].name ? options->labels[i].name : "");
    return NOSA_OK;
}

/* Appends text with the escapes of the format; quotes are escaped in label values only. */
static void append_escaped(struct nosa_buffer *out, const char *text, bool quotes)
{
    for (; *text; text++) {
        if (*text == '\\')
            nosa_buffer_append_text(out, "\\\\");
        else if (*text == '\n')
            nosa_buffer_append_text(out, "\\n");
        else if (*text == '"' && quotes)
            nosa_buffer_append_text(out, "\\\"");
        else
            nosa_buffer_append(out, text, 1);
    }
}

/* The labels as they are printed, a new allocation; NULL without memory. */
static char *render_labels(const struct nosa_metric_options *options)
{
    struct nosa_buffer out = {0};
    for (size_t i = 0; i < options->label_count; i++) {
        nosa_buffer_printf(&out, "%s%s=\"", i ? "," : "", options->labels[i].name);
        append_escaped(&out, options->labels[i].value, true);
        nosa_buffer_append_text(&out, "\"");
    }
    return nosa_buffer_take(&out);
}

static struct family *create_family(const struct nosa_metric_options *options,
                                    enum metric_type type, const double *bounds, size_t bound_count)
{
    struct family *family = calloc(1, sizeof *family);
    if (!family)
        return NULL;
    family->type = type;
    family->name = strdup(options->name);
    family->help = strdup(options->help ? options->help : "");
    family->bounds = malloc((bound_count + 1) * sizeof *bounds);
    family->bound_count = bound_count;
    if (!family->name || !family->help || !family->bounds) {
        free_family(family);
        return NULL;
    }
    for (size_t i = 0; i < bound_count; i++)
        family->bounds[i] = bounds[i];
    return family;
}

static void *create_handle(const struct family *family)
{
    if (family->type == TYPE_COUNTER)
        return calloc(1, sizeof(struct nosa_counter));
    if (family->type == TYPE_GAUGE)
        return calloc(1, sizeof(struct nosa_gauge));
    struct nosa_histogram *histogram =
        calloc(1, sizeof *histogram + (family->bound_count + 1) * sizeof histogram->counts[0]);
    if (histogram) {
        histogram->bounds = family->bounds;
        histogram->bound_count = family->bound_count;
    }
    return histogram;
}

/* Finds or appends the family; the mutex is held. */
static enum nosa_status family_locked(struct nosa_metrics *metrics,
                                      const struct nosa_metric_options *options,
                                      enum metric_type type, const double *bounds,
                                      size_t bound_count, struct family **out,
                                      struct nosa_error *error)
{
    struct family **link = &metrics->families;
    while (*link && strcmp((*link)->name, options->name) != 0)
        link = &(*link)->next;
    if (!*link)
        *link = create_family(options, type, bounds, bound_count);
    *out = *link;
    if (!*out)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for metric %s", options->name);
    if ((*out)->type != type)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "metric %s exists as a %s",
                              options->name, type_names[(*out)->type]);
    bool same_bounds = (*out)->bound_count == bound_count;
    for (size_t i = 0; same_bounds && i < bound_count; i++)
        same_bounds = (*out)->bounds[i] == bounds[i];
    if (!same_bounds)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "metric %s exists with other bounds",
                              options->name);
    return NOSA_OK;
}

/* Finds or appends the metric with these rendered labels, of which it takes ownership. */
static enum nosa_status metric_locked(struct family *family, char *labels, void **handle,
                                      struct nosa_error *error)
{
    struct metric **link = &family->metrics;
    while (*link && strcmp((*link)->labels, labels) != 0)
        link = &(*link)->next;
    if (*link) {
        free(labels);
        *handle = (*link)->handle;
        return NOSA_OK;
    }
    struct metric *metric = calloc(1, sizeof *metric);
    void *created = create_handle(family);
    if (!metric || !created) {
        free(labels);
        free(created);
        free(metric);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for metric %s", family->name);
    }
    metric->labels = labels;
    metric->handle = created;
    *link = metric;
    *handle = created;
    return NOSA_OK;
}

static enum nosa_status register_metric(struct nosa_metrics *metrics,
                                        const struct nosa_metric_options *options,
                                        enum metric_type type, const double *bounds,
                                        size_t bound_count, void **handle, struct nosa_error *error)
{
    struct family *family = NULL;
    *handle = NULL;
    NOSA_TRY(check_options(options, error));
    char *labels = render_labels(options);
    if (!labels)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for metric %s", options->name);
    pthread_mutex_lock(&metrics->mutex);
    enum nosa_status status =
        family_locked(metrics, options, type, bounds, bound_count, &family, error);
    if (status == NOSA_OK) {
        NOSA_ASSERT(family);
        status = metric_locked(family, labels, handle, error);
    } else {
        free(labels);
    }
    pthread_mutex_unlock(&metrics->mutex);
    return status;
}

enum nosa_status nosa_metrics_counter(struct nosa_metrics *metrics,
                                      const struct nosa_metric_options *options,
                                      struct nosa_counter **counter, struct nosa_error *error)
{
    void *handle;
    enum nosa_status status =
        register_metric(metrics, options, TYPE_COUNTER, NULL, 0, &handle, error);
    *counter = handle;
    return status;
}

enum nosa_status nosa_metrics_gauge(struct nosa_metrics *metrics,
                                    const struct nosa_metric_options *options,
                                    struct nosa_gauge **gauge, struct nosa_error *error)
{
    void *handle;
    enum nosa_status status =
        register_metric(metrics, options, TYPE_GAUGE, NULL, 0, &handle, error);
    *gauge = handle;
    return status;
}

enum nosa_status nosa_metrics_histogram(struct nosa_metrics *metrics,
                                        const struct nosa_metric_options *options,
                                        const double *bounds, size_t bound_count,
                                        struct nosa_histogram **histogram, struct nosa_error *error)
{
    void *handle;
    *histogram = NULL;
    for (size_t i = 0; i < bound_count; i++)
        if (!isfinite(bounds[i]) || (i > 0 && bounds[i] <= bounds[i - 1]))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "metric %s: bounds must be finite and ascending", options->name);
    enum nosa_status status =
        register_metric(metrics, options, TYPE_HISTOGRAM, bounds, bound_count, &handle, error);
    *histogram = handle;
    return status;
}

static void add_double(_Atomic(double) *target, double amount)
{
    double old = atomic_load_explicit(target, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(target, &old, old + amount, memory_order_relaxed,
                                                  memory_order_relaxed))
        continue;
}

void nosa_counter_add(struct nosa_counter *counter, uint64_t amount)
{
    if (counter)
        atomic_fetch_add_explicit(&counter->value, amount, memory_order_relaxed);
}

uint64_t nosa_counter_value(const struct nosa_counter *counter)
{
    return counter ? atomic_load_explicit(&counter->value, memory_order_relaxed) : 0;
}

void nosa_gauge_set(struct nosa_gauge *gauge, double value)
{
    if (gauge)
        atomic_store_explicit(&gauge->value, value, memory_order_relaxed);
}

void nosa_gauge_add(struct nosa_gauge *gauge, double amount)
{
    if (gauge)
        add_double(&gauge->value, amount);
}

double nosa_gauge_value(const struct nosa_gauge *gauge)
{
    return gauge ? atomic_load_explicit(&gauge->value, memory_order_relaxed) : 0;
}

void nosa_histogram_observe(struct nosa_histogram *histogram, double value)
{
    if (!histogram)
        return;
    size_t bucket = 0;
    while (bucket < histogram->bound_count && !(value <= histogram->bounds[bucket]))
        bucket++;
    add_double(&histogram->sum, value);
    atomic_fetch_add_explicit(&histogram->counts[bucket], 1, memory_order_relaxed);
}

uint64_t nosa_histogram_count(const struct nosa_histogram *histogram)
{
    uint64_t total = 0;
    if (histogram)
        for (size_t i = 0; i <= histogram->bound_count; i++)
            total += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
    return total;
}

/* Appends the shortest decimal text that reads back as the same double, as Prometheus spells it. */
static void append_double(struct nosa_buffer *out, double value)
{
    char text[40];
    if (isnan(value)) {
        nosa_buffer_append_text(out, "NaN");
        return;
    }
    if (isinf(value)) {
        nosa_buffer_append_text(out, value > 0 ? "+Inf" : "-Inf");
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    nosa_buffer_append_text(out, text);
}

static void append_series(struct nosa_buffer *out, const struct family *family,
                          const struct metric *metric, const char *suffix)
{
    nosa_buffer_printf(out, "%s%s", family->name, suffix);
    if (*metric->labels)
        nosa_buffer_printf(out, "{%s}", metric->labels);
    nosa_buffer_append_text(out, " ");
}

static void append_histogram(struct nosa_buffer *out, const struct family *family,
                             const struct metric *metric)
{
    const struct nosa_histogram *histogram = metric->handle;
    uint64_t cumulative = 0;
    double sum = atomic_load_explicit(&histogram->sum, memory_order_relaxed);
    for (size_t i = 0; i <= histogram->bound_count; i++) {
        cumulative += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
        nosa_buffer_printf(out, "%s_bucket{%s%sle=\"", family->name, metric->labels,
                           *metric->labels ? "," : "");
        append_double(out, i < histogram->bound_count ? histogram->bounds[i] : INFINITY);
        nosa_buffer_printf(out, "\"} %" PRIu64 "\n", cumulative);
    }
    append_series(out, family, metric, "_sum");
    append_double(out, sum);
    nosa_buffer_append_text(out, "\n");
    append_series(out, family, metric, "_count");
    nosa_buffer_printf(out, "%" PRIu64 "\n", cumulative);
}

static void append_metric(struct nosa_buffer *out, const struct family *family,
                          const struct metric *metric)
{
    switch (family->type) {
    case TYPE_COUNTER:
        append_series(out, family, metric, "");
        nosa_buffer_printf(out, "%" PRIu64 "\n", nosa_counter_value(metric->handle));
        break;
    case TYPE_GAUGE:
        append_series(out, family, metric, "");
        append_double(out, nosa_gauge_value(metric->handle));
        nosa_buffer_append_text(out, "\n");
        break;
    case TYPE_HISTOGRAM: append_histogram(out, family, metric); break;
    }
}

enum nosa_status nosa_metrics_render(struct nosa_metrics *metrics, struct nosa_buffer *out,
                                     struct nosa_error *error)
{
    pthread_mutex_lock(&metrics->mutex);
    for (const struct family *family = metrics->families; family; family = family->next) {
        nosa_buffer_printf(out, "# HELP %s ", family->name);
        append_escaped(out, family->help, false);
        nosa_buffer_printf(out, "\n# TYPE %s %s\n", family->name, type_names[family->type]);
        for (const struct metric *metric = family->metrics; metric; metric = metric->next)
            append_metric(out, family, metric);
    }
    pthread_mutex_unlock(&metrics->mutex);
    if (nosa_buffer_failed(out))
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to print metrics");
    return NOSA_OK;
}
