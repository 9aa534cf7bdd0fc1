/*
 * Every op that costs time, at the demo model's shapes and at those of a model of 8 billion
 * parameters: its rate, and the share of what this machine's memory and multiply-adds allow.
 */
#include <stdio.h>
#include <string.h>

#include "cpu_device.h"
#include "kernel_bench_internal.h"

#define SAMPLE_ROWS_MAX 8

/* ---- norms and sampling --------------------------------------------------------------------- */

struct rows_bench {
    struct kernel_bench *bench;
    struct nosa_rms_norm_params norm;
    struct nosa_sample_params sample;
    struct nosa_sampling sampling[SAMPLE_ROWS_MAX];
    int64_t position[SAMPLE_ROWS_MAX];
    int32_t n_top[SAMPLE_ROWS_MAX];
    int32_t history_start[SAMPLE_ROWS_MAX + 1]; /* zeros: without penalties none is needed */
    int32_t prompt_length[SAMPLE_ROWS_MAX];
    struct nosa_sample_result result[SAMPLE_ROWS_MAX];
    float *x, *weight, *out, *logits;
};

static enum nosa_status call_rms_norm(void *context, int32_t repetition)
{
    struct rows_bench *rows = context;
    (void)repetition;
    return rows->bench->device->table->ops->rms_norm(rows->bench->stream, &rows->norm);
}

static enum nosa_status call_sample(void *context, int32_t repetition)
{
    struct rows_bench *rows = context;
    (void)repetition;
    return rows->bench->device->table->ops->sample(rows->bench->stream, &rows->sample);
}

static enum nosa_status time_norm(struct rows_bench *rows, int32_t count, struct nosa_error *error)
{
    struct kernel_result result = {.op = "rms_norm", .cached = true};
    int32_t width = rows->bench->shape->hidden;
    rows->norm = (struct nosa_rms_norm_params){.n_rows = count,
                                               .width = width,
                                               .eps = 1e-5f,
                                               .x = rows->x,
                                               .weight = rows->weight,
                                               .out = rows->out,
                                               .out_stride = width};
    NOSA_TRY(kernel_time(rows->bench, call_rms_norm, rows, &result.seconds, error));
    result.bytes = 2.0 * sizeof(float) * count * width;
    snprintf(result.detail, sizeof result.detail, "%d row%s", count, count == 1 ? "" : "s");
    kernel_report(rows->bench, &result);
    return NOSA_OK;
}

static enum nosa_status time_sample(struct rows_bench *rows, int32_t count, bool greedy,
                                    struct nosa_error *error)
{
    static const int32_t no_tokens[1];
    struct kernel_result result = {.op = "sample", .cached = true};
    int32_t vocab = rows->bench->shape->vocab;
    for (int32_t i = 0; i < count; i++) {
        rows->sampling[i] = greedy ? (struct nosa_sampling){0}
                                   : (struct nosa_sampling){.temperature = 0.8f,
                                                            .top_p = 0.9f,
                                                            .seed = (uint64_t)i + 1};
        rows->position[i] = 1;
    }
    rows->sample = (struct nosa_sample_params){.n_rows = count,
                                               .vocab = vocab,
                                               .logits = rows->logits,
                                               .sampling = rows->sampling,
                                               .position = rows->position,
                                               .n_top = rows->n_top,
                                               .history_start = rows->history_start,
                                               .history_tokens = no_tokens,
                                               .prompt_length = rows->prompt_length,
                                               .result = rows->result};
    NOSA_TRY(kernel_time(rows->bench, call_sample, rows, &result.seconds, error));
    result.bytes = sizeof(float) * (double)count * vocab;
    snprintf(result.detail, sizeof result.detail, "%s, %d row%s", greedy ? "greedy" : "top-p 0.9",
             count, count == 1 ? "" : "s");
    kernel_report(rows->bench, &result);
    return NOSA_OK;
}

enum nosa_status kernel_bench_rows(struct kernel_bench *bench, struct nosa_error *error)
{
    struct rows_bench rows = {.bench = bench};
    size_t width = (size_t)bench->shape->hidden, n = KERNEL_ROWS_MAX * width;
    size_t n_logits = SAMPLE_ROWS_MAX * (size_t)bench->shape->vocab;
    enum nosa_status status = kernel_floats(bench, n, &rows.x, error);
    if (status == NOSA_OK)
        status = kernel_floats(bench, n, &rows.out, error);
    if (status == NOSA_OK)
        status = kernel_floats(bench, width, &rows.weight, error);
    if (status == NOSA_OK)
        status = kernel_floats(bench, n_logits, &rows.logits, error);
    if (status == NOSA_OK)
        status = time_norm(&rows, 1, error);
    if (status == NOSA_OK)
        status = time_norm(&rows, KERNEL_ROWS_MAX, error);
    for (int32_t i = 0; i < 4 && status == NOSA_OK; i++)
        status = time_sample(&rows, i % 2 ? SAMPLE_ROWS_MAX : 1, i < 2, error);
    kernel_floats_free(bench, rows.logits, n_logits);
    kernel_floats_free(bench, rows.weight, width);
    kernel_floats_free(bench, rows.out, n);
    kernel_floats_free(bench, rows.x, n);
    return status;
}

/* ---- the subcommand ------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum nosa_status (*run)(struct kernel_bench *bench, struct nosa_error *error);
} groups[] = {
    {"matmul", kernel_bench_matmul},
    {"kv", kernel_bench_kv},
    {"tiers", kernel_bench_tiers},
    {"rows", kernel_bench_rows},
};

#define N_GROUPS ((int)(sizeof groups / sizeof *groups))

/* --only: names with commas between them; without it everything. */
static enum nosa_status choose_groups(const char *only, bool wanted[N_GROUPS],
                                      struct nosa_error *error)
{
    for (int i = 0; i < N_GROUPS; i++)
        wanted[i] = !only;
    while (only) {
        size_t length = strcspn(only, ",");
        int i = 0;
        while (i < N_GROUPS &&
               (strlen(groups[i].name) != length || memcmp(groups[i].name, only, length) != 0))
            i++;
        if (i == N_GROUPS)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "--only: '%.*s' is not matmul, kv, tiers or rows", (int)length,
                                  only);
        wanted[i] = true;
        only = only[length] ? only + length + 1 : NULL;
    }
    return NOSA_OK;
}

static enum nosa_status run_shape(struct kernel_bench *bench, const bool wanted[N_GROUPS],
                                  struct nosa_error *error)
{
    enum nosa_status status = kernel_device_open(bench, error);
    if (status == NOSA_OK)
        kernel_report_head(bench);
    for (int i = 0; i < N_GROUPS && status == NOSA_OK; i++)
        if (wanted[i])
            status = groups[i].run(bench, error);
    kernel_device_close(bench);
    return status;
}

static enum nosa_status print_json(const struct kernel_bench *bench, struct nosa_error *error)
{
    json_t *object =
        json_pack("{s:i s:f s:f s:f s:O}", "threads", bench->limits.threads, "fma_gflops",
                  bench->limits.fma_gflops, "bf16_gflops", bench->limits.bf16_gflops, "read_gbs",
                  bench->limits.read_gbs, "results", bench->rows);
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(6)) : -1;
    putchar('\n');
    json_decref(object);
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write") : NOSA_OK;
}

enum nosa_status bench_kernels(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct kernel_bench bench = {0};
    bool wanted[N_GROUPS];
    NOSA_TRY(choose_groups(nosa_flags_string(flags, "only"), wanted, error));
    if (nosa_flags_bool(flags, "json"))
        bench.rows = json_array();
    enum nosa_status status = bench_measure_limits(flags, &bench.limits, error);
    if (status == NOSA_OK && !bench.rows)
        bench_print_limits(&bench.limits);
    for (int i = 0; i < kernel_shape_count && status == NOSA_OK; i++) {
        bench.shape = &kernel_shapes[i];
        status = run_shape(&bench, wanted, error);
    }
    if (status == NOSA_OK && bench.rows)
        status = print_json(&bench, error);
    json_decref(bench.rows);
    return status;
}
