/*
 * Cost of one decoded token against the length of its context, in each attention mode.
 *
 * The model has the demo model's shape, random weights, an eviction head and the default sparse
 * sizes. Nothing is prefilled: the KV arena is filled with random values, whose cost is the same,
 * and a step of one row is planned at the wanted position. One rank serves all modes, so that they
 * take turns on the same weights and the same KV.
 */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench.h"
#include "cpu_device.h"
#include "engine/engine.h"
#include "engine/rank.h"
#include "support/tiny_checkpoint.h"

#define CONTEXT_FIRST 8192
#define CONTEXTS_MAX  5
#define STEPS         16 /* positions of one round */

static const enum nosa_attention_mode modes[] = {NOSA_ATTENTION_NOSA, NOSA_ATTENTION_INFLLMV2,
                                                 NOSA_ATTENTION_FULL};

#define N_MODES ((int)(sizeof modes / sizeof *modes))

struct result {
    double *ms; /* [rounds] per token; a part of `times` */
    double median_ms;
    double bytes; /* that a step must read */
};

struct context_run {
    int32_t rounds;
    int32_t context_max;
    int32_t n_contexts;
    struct bench_limits limits;
    char directory[PATH_MAX]; /* of the checkpoint; empty: not made */
    struct nosa_checkpoint *checkpoint;
    struct nosa_device *device;
    struct nosa_rank rank;
    struct nosa_step_plan plan;
    int32_t *blocks;  /* [context_max / 64] */
    uint32_t *tokens; /* [context_max] */
    double *times;    /* [N_MODES][CONTEXTS_MAX][rounds] */
    struct result results[N_MODES][CONTEXTS_MAX];
};

/* ---- the model ------------------------------------------------------------------------------ */

static enum nosa_status write_checkpoint(struct context_run *run, struct nosa_error *error)
{
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.hidden = 576;
    tiny.n_layers = 30;
    tiny.n_heads = 9;
    tiny.n_kv_heads = 3;
    tiny.head_dim = 64;
    tiny.intermediate = 1536;
    tiny.vocab = 49152;
    tiny.max_positions = (uint32_t)run->context_max;
    tiny.dtype = NOSA_TENSOR_BF16;
    tiny.dtype_rest = NOSA_TENSOR_BF16;
    tiny.tie_word_embeddings = true;
    const char *parent = getenv("TMPDIR");
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/nosa-bench-XXXXXX", parent ? parent : "/tmp") >=
            sizeof path ||
        !mkdtemp(path))
        return nosa_error_set(error, NOSA_IO_ERROR, "%s: cannot make a directory: %s",
                              parent ? parent : "/tmp", strerror(errno));
    memcpy(run->directory, path, sizeof path);
    return nosa_tiny_checkpoint_write(run->directory, &tiny, error);
}

static enum nosa_status create_rank(struct context_run *run, int32_t threads,
                                    struct nosa_error *error)
{
    struct nosa_cpu_options cpu = {.threads = threads};
    NOSA_TRY(nosa_checkpoint_open(run->directory, &run->checkpoint, error));
    NOSA_TRY(nosa_cpu_device_create(&cpu, &run->device, error));
    struct nosa_rank_options options = {
        .checkpoint = run->checkpoint,
        .device = run->device,
        .mode = NOSA_ATTENTION_NOSA, /* takes the memory that every mode needs */
        .limits = {.rows_max = 1,
                   .seqs_max = 1,
                   .blocks_max = run->context_max / NOSA_BLOCK_TOKENS},
        .context_max = run->context_max,
        .n_blocks = run->context_max / NOSA_BLOCK_TOKENS,
    };
    NOSA_TRY(nosa_shard_make(nosa_checkpoint_config(run->checkpoint), 1, 0, &options.shard, error));
    NOSA_TRY(nosa_rank_create(&options, &run->rank, error));
    bench_fill_kv(&run->rank.arena.view);
    return nosa_step_plan_create(&options.limits, run->device, &run->plan, error);
}

static enum nosa_status take_arrays(struct context_run *run, struct nosa_error *error)
{
    size_t n_blocks = (size_t)run->context_max / NOSA_BLOCK_TOKENS;
    run->blocks = calloc(n_blocks, sizeof *run->blocks);
    run->tokens = calloc((size_t)run->context_max, sizeof *run->tokens);
    run->times = calloc((size_t)run->rounds * N_MODES * CONTEXTS_MAX, sizeof *run->times);
    if (!run->blocks || !run->tokens || !run->times)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for results");
    bench_scatter_blocks(run->blocks, (int32_t)n_blocks);
    for (int32_t i = 0; i < run->context_max; i++)
        run->tokens[i] = (uint32_t)(i * 7919) % 49152;
    for (int mode = 0; mode < N_MODES; mode++)
        for (int at = 0; at < CONTEXTS_MAX; at++)
            run->results[mode][at].ms =
                run->times + (size_t)(mode * CONTEXTS_MAX + at) * (size_t)run->rounds;
    return NOSA_OK;
}

static enum nosa_status prepare(const struct nosa_flags *flags, struct context_run *run,
                                struct nosa_error *error)
{
    run->rounds = nosa_flags_int32(flags, "rounds");
    run->context_max = nosa_flags_int32(flags, "context") / NOSA_BLOCK_TOKENS * NOSA_BLOCK_TOKENS;
    for (int32_t context = CONTEXT_FIRST; context <= run->context_max; context *= 2)
        run->n_contexts++;
    NOSA_TRY(take_arrays(run, error));
    NOSA_TRY(bench_measure_limits(flags, &run->limits, error));
    NOSA_TRY(write_checkpoint(run, error));
    return create_rank(run, run->limits.threads, error);
}

static void release(struct context_run *run)
{
    run->rank.options.mode = NOSA_ATTENTION_NOSA; /* as it was created */
    nosa_rank_destroy(&run->rank);
    nosa_step_plan_destroy(&run->plan);
    if (run->device)
        run->device->table->destroy(run->device);
    nosa_checkpoint_close(run->checkpoint);
    if (run->directory[0])
        nosa_tiny_checkpoint_remove(run->directory);
    free(run->blocks);
    free(run->tokens);
    free(run->times);
}

/* ---- measuring ------------------------------------------------------------------------------ */

/* One decode step: the token at `position`, with everything before it in the KV arena. */
static enum nosa_status step(struct context_run *run, int32_t position, struct nosa_error *error)
{
    static const struct nosa_sampling greedy;
    struct nosa_step_plan *plan = &run->plan;
    int32_t n_blocks = position / NOSA_BLOCK_TOKENS + 1;
    nosa_step_plan_begin(plan, 1, 1, n_blocks);
    nosa_step_plan_add(plan, run->tokens, position, 1, run->blocks, n_blocks);
    nosa_step_plan_add_sample(plan, &(struct nosa_plan_sample){.sampling = &greedy,
                                                               .tokens = run->tokens,
                                                               .n_tokens = position + 1,
                                                               .prompt_length = position + 1});
    NOSA_TRY(nosa_rank_enqueue(&run->rank, plan, error));
    return nosa_rank_wait(&run->rank, error);
}

/* Milliseconds per token over the last positions of a context. */
static enum nosa_status measure(struct context_run *run, enum nosa_attention_mode mode,
                                int32_t context, double *ms, struct nosa_error *error)
{
    run->rank.options.mode = mode;
    uint64_t start = nosa_monotonic_ns();
    for (int32_t i = 0; i < STEPS; i++)
        NOSA_TRY(step(run, context - STEPS + i, error));
    *ms = nosa_seconds_between(start, nosa_monotonic_ns()) * 1e3 / STEPS;
    return NOSA_OK;
}

static enum nosa_status measure_all(struct context_run *run, struct nosa_error *error)
{
    double warm_up_ms;
    NOSA_TRY(measure(run, NOSA_ATTENTION_NOSA, run->context_max, &warm_up_ms, error));
    for (int32_t round = 0; round < run->rounds; round++)
        for (int at = 0; at < run->n_contexts; at++)
            for (int mode = 0; mode < N_MODES; mode++)
                NOSA_TRY(measure(run, modes[mode], CONTEXT_FIRST << at,
                                 &run->results[mode][at].ms[round], error));
    const struct nosa_rank *rank = &run->rank;
    double weights = (double)(rank->weights.matrix_bytes + rank->weights.vector_bytes);
    for (int mode = 0; mode < N_MODES; mode++)
        for (int at = 0; at < run->n_contexts; at++) {
            struct result *result = &run->results[mode][at];
            result->median_ms = bench_median(result->ms, run->rounds);
            result->bytes = bench_step_bytes(rank->config, &rank->arena.view.geometry, modes[mode],
                                             true, weights, 1, CONTEXT_FIRST << at);
        }
    return NOSA_OK;
}

/* ---- output --------------------------------------------------------------------------------- */

static double share_of_read(const struct context_run *run, const struct result *result)
{
    return result->bytes / (result->median_ms / 1e3) / 1e9 / run->limits.read_gbs;
}

static void print_results(const struct context_run *run)
{
    char device[160];
    run->device->table->describe(run->device, device, sizeof device);
    printf("%s, demo model's shape, default sparse sizes, %.2f GB of KV\n", device,
           (double)run->rank.arena.bytes / 1e9);
    bench_print_limits(&run->limits);
    printf("\n%-9s %8s %9s %17s %7s %9s %7s %6s\n", "attention", "context", "ms/token",
           "lowest-highest", "x 8192", "MB/token", "x 8192", "share");
    for (int mode = 0; mode < N_MODES; mode++)
        for (int at = 0; at < run->n_contexts; at++) {
            const struct result *result = &run->results[mode][at];
            const struct result *first = &run->results[mode][0];
            printf("%-9s %8d %9.2f %8.2f-%-8.2f %7.2f %9.1f %7.2f %5.0f%%\n",
                   nosa_attention_mode_name(modes[mode]), CONTEXT_FIRST << at, result->median_ms,
                   result->ms[0], result->ms[run->rounds - 1], result->median_ms / first->median_ms,
                   result->bytes / 1e6, result->bytes / first->bytes,
                   100 * share_of_read(run, result));
        }
}

static enum nosa_status print_json(const struct context_run *run, struct nosa_error *error)
{
    json_t *rows = json_array();
    for (int mode = 0; mode < N_MODES; mode++)
        for (int at = 0; at < run->n_contexts; at++) {
            const struct result *result = &run->results[mode][at];
            json_array_append_new(
                rows, json_pack("{s:s s:i s:f s:f s:f s:f s:f}", "attention",
                                nosa_attention_mode_name(modes[mode]), "context",
                                CONTEXT_FIRST << at, "ms_per_token", result->median_ms, "lowest",
                                result->ms[0], "highest", result->ms[run->rounds - 1], "bytes",
                                result->bytes, "share_of_read", share_of_read(run, result)));
        }
    json_t *object = json_pack("{s:i s:f s:o}", "threads", run->limits.threads, "read_gbs",
                               run->limits.read_gbs, "results", rows);
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(6)) : -1;
    putchar('\n');
    json_decref(object);
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write") : NOSA_OK;
}

enum nosa_status bench_context(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct context_run run = {0};
    enum nosa_status status = prepare(flags, &run, error);
    if (status == NOSA_OK)
        status = measure_all(&run, error);
    if (status == NOSA_OK) {
        if (nosa_flags_bool(flags, "json"))
            status = print_json(&run, error);
        else
            print_results(&run);
    }
    release(&run);
    return status;
}
