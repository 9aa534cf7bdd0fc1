/*
 * Metrics: counters, gauges and histograms with labels, and their text in Prometheus's exposition
 * format 0.0.4. A registry owns its metrics; they are registered at start and never removed, so a
 * handle stays valid and an update is an atomic operation without a lock. Registration and
 * rendering take the registry's mutex. Any thread.
 *
 * A family is a name with one help text and one type; each set of label values in it is one metric.
 */
#ifndef NOSA_BASE_METRICS_H
#define NOSA_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"

struct nosa_metrics; /* opaque */

struct nosa_counter;   /* a count that only grows */
struct nosa_gauge;     /* a value that goes up and down */
struct nosa_histogram; /* observations counted by upper bound */

struct nosa_label {
    const char *name; /* copied */
    const char *value;
};

#define NOSA_METRIC_LABELS_MAX 8

/* What is registered; texts are copied. */
struct nosa_metric_options {
    const char *name; /* [a-zA-Z_:][a-zA-Z0-9_:]*, unit last: "nosa_e2e_request_latency_seconds" */
    const char *help; /* one sentence */
    const struct nosa_label *labels; /* [label_count] */
    size_t label_count;              /* at most NOSA_METRIC_LABELS_MAX */
};

enum nosa_status nosa_metrics_create(struct nosa_metrics **metrics, struct nosa_error *error);
/* Frees the registry and every handle of it; NULL is allowed. */
void nosa_metrics_free(struct nosa_metrics *metrics);

/*
 * Each registers a metric and returns its handle, owned by the registry. Registering the same name
 * and labels again returns the same handle. NOSA_INVALID_ARGUMENT: a name or label name of other
 * characters, or a name that exists with another type (histograms: or other bounds);
 * NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_metrics_counter(struct nosa_metrics *metrics,
                                      const struct nosa_metric_options *options,
                                      struct nosa_counter **counter, struct nosa_error *error);
enum nosa_status nosa_metrics_gauge(struct nosa_metrics *metrics,
                                    const struct nosa_metric_options *options,
                                    struct nosa_gauge **gauge, struct nosa_error *error);
/* `bounds` are the inclusive upper bounds, finite and ascending; +Inf is added. Copied. */
enum nosa_status nosa_metrics_histogram(struct nosa_metrics *metrics,
                                        const struct nosa_metric_options *options,
                                        const double *bounds, size_t bound_count,
                                        struct nosa_histogram **histogram,
                                        struct nosa_error *error);

/* Updates and readings: lock-free, never fail. A NULL handle is allowed and does nothing, so that
 * a program without a registry runs the same code. */
void nosa_counter_add(struct nosa_counter *counter, uint64_t amount);
uint64_t nosa_counter_value(const struct nosa_counter *counter);
void nosa_gauge_set(struct nosa_gauge *gauge, double value);
void nosa_gauge_add(struct nosa_gauge *gauge, double amount);
double nosa_gauge_value(const struct nosa_gauge *gauge);
void nosa_histogram_observe(struct nosa_histogram *histogram, double value);
uint64_t nosa_histogram_count(const struct nosa_histogram *histogram);

/*
 * Appends all families in order of registration, each with # HELP and # TYPE. Values of one
 * histogram agree with each other (its count is the sum of its buckets) though updates go on.
 */
enum nosa_status nosa_metrics_render(struct nosa_metrics *metrics, struct nosa_buffer *out,
                                     struct nosa_error *error);

#endif
