#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench_quality_internal.h"

/* ---- figures -------------------------------------------------------------------------------- */

/* Sum over the buckets of the first `length` tokens of one document's windows. */
static double loss_of(const struct quality *quality, int32_t config, int32_t document,
                      int32_t length)
{
    double sum = 0;
    const double *loss = quality->results[config].loss + document * quality->buckets;
    for (int32_t bucket = 0; bucket * QUALITY_BUCKET < length; bucket++)
        sum += loss[bucket];
    return sum;
}

struct quality_difference quality_compare(const struct quality *quality, int32_t config,
                                          int32_t length)
{
    double total = 0, mean = 0, squares = 0, tokens = 0;
    int32_t n = quality->texts.n;
    for (int32_t i = 0; i < n; i++) {
        double scored = (double)quality->document_windows[i] * (length - 1);
        double loss = loss_of(quality, config, i, length);
        double difference = (loss - loss_of(quality, 0, i, length)) / scored;
        total += loss;
        tokens += scored;
        mean += difference / n;
        squares += difference * difference;
    }
    double variance = n > 1 ? (squares - n * mean * mean) / (n - 1) : NAN;
    return (struct quality_difference){
        .perplexity = exp(total / tokens),
        .percent = 100 * expm1(mean),
        .error = 100 * sqrt(variance > 0 ? variance / n : variance),
    };
}

static double bucket_perplexity(const struct quality *quality, int32_t config, int32_t bucket)
{
    double loss = 0, tokens = 0;
    int32_t first = bucket * QUALITY_BUCKET, end = first + QUALITY_BUCKET;
    end = end < quality->context ? end : quality->context;
    for (int32_t i = 0; i < quality->texts.n; i++) {
        loss += quality->results[config].loss[i * quality->buckets + bucket];
        tokens += (double)quality->document_windows[i] * (end - first - (bucket == 0));
    }
    return exp(loss / tokens);
}

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : NAN;
}

/* The sizes that a configuration selects with. */
static struct nosa_sparse_sizes sizes_of(const struct quality_config *config)
{
    const struct nosa_sparse_config *sparse = &nosa_engine_info(config->engine)->config->sparse;
    return (struct nosa_sparse_sizes){sparse->topk, sparse->window_size, sparse->select_blocks};
}

static void name_of(const struct quality_config *config, char name[48])
{
    struct nosa_sparse_sizes sizes = sizes_of(config);
    if (config->mode == NOSA_ATTENTION_FULL)
        snprintf(name, 48, config->plain ? "plain full" : "full, with c");
    else
        snprintf(name, 48, "%s %u/%u/%u", nosa_attention_mode_name(config->mode), sizes.topk,
                 sizes.window_size, sizes.select_blocks);
}

/* Lengths to report: powers of two from 1024 on that are below the window, and the window. */
static int32_t next_length(const struct quality *quality, int32_t length)
{
    int32_t next = length == 0 ? 1024 : 2 * length;
    return length >= quality->context ? 0 : next < quality->context ? next : quality->context;
}

/* ---- tables --------------------------------------------------------------------------------- */

static int32_t count_windows(const struct quality *quality)
{
    int32_t windows = 0;
    for (int32_t i = 0; i < quality->texts.n; i++)
        windows += quality->document_windows[i];
    return windows;
}

static void print_perplexity(const struct quality *quality)
{
    printf("\n%-22s", "perplexity");
    for (int32_t length = 0; (length = next_length(quality, length)) > 0;)
        printf(" %26d", length);
    putchar('\n');
    for (int32_t i = 0; i < quality->n_configs; i++) {
        char name[48];
        name_of(&quality->configs[i], name);
        printf("%-22s", name);
        for (int32_t length = 0; (length = next_length(quality, length)) > 0;) {
            struct quality_difference figures = quality_compare(quality, i, length);
            if (i == 0)
                printf(" %9.4f %16s", figures.perplexity, "");
            else if (isfinite(figures.error))
                printf(" %9.4f %+7.3f%% +-%5.3f", figures.perplexity, figures.percent,
                       figures.error);
            else /* one document has no spread */
                printf(" %9.4f %+7.3f%% %7s", figures.perplexity, figures.percent, "");
        }
        putchar('\n');
    }
    puts("(over the first tokens of each window; difference to plain full by document, paired)");
}

static void print_buckets(const struct quality *quality)
{
    printf("\n%-22s", "by position, from");
    for (int32_t bucket = 0; bucket < quality->buckets; bucket++)
        printf(" %8d", bucket * QUALITY_BUCKET);
    putchar('\n');
    for (int32_t i = 0; i < quality->n_configs; i++) {
        char name[48];
        name_of(&quality->configs[i], name);
        printf("%-22s", name);
        for (int32_t bucket = 0; bucket < quality->buckets; bucket++)
            printf(" %8.3f", bucket_perplexity(quality, i, bucket));
        putchar('\n');
    }
}

static void print_agreement(const struct quality *quality)
{
    printf("\n%-22s %12s %12s %12s %12s\n", "beside plain full", "same top-1", "KL, nats",
           "hits at 1x", "at 1.5x");
    for (int32_t i = 1; i < quality->n_configs; i++) {
        const struct quality_result *result = &quality->results[i];
        char name[48];
        name_of(&quality->configs[i], name);
        printf("%-22s %11.2f%% %12.5f", name, 100 * share(result->agreed, result->compared),
               result->compared ? result->divergence / (double)result->compared : NAN);
        if (result->selected > 0)
            printf(" %11.2f%% %11.2f%%", 100 * share(result->hits_exact, result->selected),
                   100 * share(result->hits_larger, result->selected));
        putchar('\n');
    }
    printf("(top-1 and KL at every %d. position from %d on; hits from the first position that "
           "does not select all)\n",
           quality->compare_every, quality->compare_first);
}

/* Five columns and a blank; nothing was asked at some depths. */
static void print_share(uint64_t part, uint64_t whole)
{
    if (whole > 0)
        printf(" %4.0f%%", 100 * share(part, whole));
    else
        printf(" %5s", "-");
}

static void print_task(const struct quality *quality, int task)
{
    printf("\n%-22s %7s %9s %7s %6s %6s", quality_task_names[task], "asked", "right", "of", "lost",
           "won");
    if (task == QUALITY_RETRIEVAL || task == QUALITY_MULTIKEY)
        for (int32_t depth = 1; depth < QUALITY_DEPTHS; depth++)
            printf("    .%d", depth);
    putchar('\n');
    for (int32_t i = 0; i < quality->n_configs; i++) {
        const struct quality_tally *tally = &quality->results[i].tasks[task];
        char name[48];
        name_of(&quality->configs[i], name);
        printf("%-22s %7llu %8.1f%% ", name, (unsigned long long)tally->asked,
               100 * share(tally->right, tally->asked));
        print_share(tally->right, quality->results[0].tasks[task].right);
        printf(" %6llu %6llu", (unsigned long long)tally->lost, (unsigned long long)tally->won);
        if (task == QUALITY_RETRIEVAL || task == QUALITY_MULTIKEY)
            for (int32_t depth = 1; depth < QUALITY_DEPTHS; depth++)
                print_share(tally->depth_right[depth], tally->depth_asked[depth]);
        putchar('\n');
    }
}

enum nosa_status quality_print(const struct quality *quality, struct nosa_error *error)
{
    printf("%d windows of %d tokens from %d documents", count_windows(quality), quality->context,
           quality->texts.n);
    if (quality->texts.too_short > 0)
        printf(" (%d are shorter)", quality->texts.too_short);
    printf("; %s\n", nosa_engine_info(quality->configs[0].engine)->device);
    if (quality->no_head)
        puts("no eviction head: in nosa mode every E ties, and the second cut takes the lowest "
             "blocks");
    print_perplexity(quality);
    print_buckets(quality);
    if (quality->n_configs > 1)
        print_agreement(quality);
    for (int task = 0; task < QUALITY_TASKS; task++)
        if (quality->runs_task[task])
            print_task(quality, task);
    return fflush(stdout) == 0
               ? NOSA_OK
               : nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write");
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *json_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *json_lengths(const struct quality *quality, int32_t config)
{
    json_t *rows = json_array();
    for (int32_t length = 0; (length = next_length(quality, length)) > 0;) {
        struct quality_difference figures = quality_compare(quality, config, length);
        json_array_append_new(rows, json_pack("{s:i s:o s:o s:o}", "tokens", length, "perplexity",
                                              json_number(figures.perplexity),
                                              "percent_above_plain", json_number(figures.percent),
                                              "error", json_number(figures.error)));
    }
    return rows;
}

static json_t *json_buckets(const struct quality *quality, int32_t config)
{
    json_t *values = json_array();
    for (int32_t bucket = 0; bucket < quality->buckets; bucket++)
        json_array_append_new(values, json_number(bucket_perplexity(quality, config, bucket)));
    return values;
}

static json_t *json_documents(const struct quality *quality, int32_t config)
{
    json_t *object = json_object();
    for (int32_t i = 0; i < quality->texts.n; i++)
        json_object_set_new(object, quality->texts.documents[i].name,
                            json_number(-loss_of(quality, config, i, quality->context)));
    return object;
}

static json_t *json_tasks(const struct quality *quality, int32_t config)
{
    json_t *object = json_object();
    for (int task = 0; task < QUALITY_TASKS; task++) {
        const struct quality_tally *tally = &quality->results[config].tasks[task];
        if (!quality->runs_task[task])
            continue;
        json_t *depths = json_array();
        for (int32_t depth = 1; depth < QUALITY_DEPTHS; depth++)
            json_array_append_new(
                depths, json_number(share(tally->depth_right[depth], tally->depth_asked[depth])));
        json_object_set_new(object, quality_task_names[task],
                            json_pack("{s:I s:I s:I s:I s:o}", "asked", (json_int_t)tally->asked,
                                      "right", (json_int_t)tally->right, "lost",
                                      (json_int_t)tally->lost, "won", (json_int_t)tally->won,
                                      "share_by_depth", depths));
    }
    return object;
}

static json_t *json_config(const struct quality *quality, int32_t config)
{
    const struct quality_config *at = &quality->configs[config];
    const struct quality_result *result = &quality->results[config];
    struct nosa_sparse_sizes sizes = sizes_of(at);
    json_t *divergence =
        json_number(result->compared ? result->divergence / (double)result->compared : NAN);
    return json_pack("{s:s s:b s:i s:i s:i s:o s:o s:o s:o s:o s:o s:o s:o}", "attention",
                     nosa_attention_mode_name(at->mode), "plain", at->plain, "topk",
                     (int)sizes.topk, "window_size", (int)sizes.window_size, "select_blocks",
                     (int)sizes.select_blocks, "lengths", json_lengths(quality, config),
                     "perplexity_by_bucket", json_buckets(quality, config), "log_likelihood",
                     json_documents(quality, config), "agreement",
                     json_number(share(result->agreed, result->compared)), "divergence", divergence,
                     "hit_rate", json_number(share(result->hits_exact, result->selected)),
                     "hit_rate_1_5", json_number(share(result->hits_larger, result->selected)),
                     "tasks", json_tasks(quality, config));
}

enum nosa_status quality_print_json(const struct quality *quality, struct nosa_error *error)
{
    json_t *configs = json_array();
    for (int32_t i = 0; i < quality->n_configs; i++)
        json_array_append_new(configs, json_config(quality, i));
    json_t *object =
        json_pack("{s:i s:i s:i s:i s:b s:o}", "window", quality->context, "windows",
                  count_windows(quality), "documents", quality->texts.n, "bucket", QUALITY_BUCKET,
                  "eviction_head", quality->has_head, "configurations", configs);
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(9)) : -1;
    putchar('\n');
    json_decref(object);
    return failed || fflush(stdout) != 0
               ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write")
               : NOSA_OK;
}
