/*
 * Prefill and decode of a model beside the ceilings that this machine sets.
 *
 * Prefill ceiling: the time that the model's matrix products take through oneDNN (the better of
 * bf16 and float32), each shape measured, plus the attention's operations at the same rate. Decode
 * ceiling: the bytes that a step must read (weights once, KV of every sequence) at the measured
 * rate of reading.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench.h"
#include "engine/engine.h"
#include "engine/rank.h"

#define DECODE_STEPS  32
#define CONTEXT_MAX   4096
#define WARM_UP_MAX   512 /* tokens computed before the clock runs */
#define SEQUENCES_MAX 8

struct workload {
    const char *name; /* of --only */
    const char *title;
    bool decode;
    int32_t batch;   /* sequences */
    int32_t context; /* tokens before the first measured one; of prefill: tokens computed */
};

static const struct workload workloads[] = {
    {"prefill-512", "prefill 512", false, 1, 512},
    {"prefill-4096", "prefill 4096", false, 1, 4096},
    {"decode-128", "decode after 128", true, 1, 128},
    {"decode-4096", "decode after 4096", true, 1, 4096},
    {"decode-128x8", "decode after 128, batch 8", true, 8, 128},
    {"decode-4096x8", "decode after 4096, batch 8", true, 8, 4096},
};

#define N_WORKLOADS ((int)(sizeof workloads / sizeof *workloads))

struct result {
    bool wanted;
    double *rates; /* [rounds] tokens per second */
    double rate;   /* their median */
    double ceiling;
    double ceiling_bf16, ceiling_f32; /* of prefill: with products of that type through oneDNN */
};

struct run {
    int32_t rounds;
    struct nosa_engine *engine;
    const struct nosa_engine_info *info;
    struct nosa_kv_geometry geometry;
    struct bench_limits limits;
    uint32_t *tokens; /* owned [CONTEXT_MAX + SEQUENCES_MAX] */
    struct nosa_session *sessions[SEQUENCES_MAX];
    struct nosa_step_item items[SEQUENCES_MAX];
    uint64_t salt; /* sessions with the same salt find each other's KV */
    struct result results[N_WORKLOADS];
};

/* ---- measuring ------------------------------------------------------------------------------ */

static enum nosa_status open_sessions(struct run *run, int32_t batch, int32_t context,
                                      struct nosa_error *error)
{
    for (int32_t i = 0; i < batch; i++) {
        struct nosa_session_options options = {.tokens = run->tokens + i,
                                               .n_tokens = context,
                                               .prompt_length = context,
                                               .salt = &run->salt,
                                               .salt_bytes = sizeof run->salt};
        NOSA_TRY(nosa_session_open(run->engine, &options, &run->sessions[i], error));
    }
    return NOSA_OK;
}

static void close_sessions(struct run *run)
{
    for (int32_t i = 0; i < SEQUENCES_MAX; i++) {
        nosa_session_close(run->sessions[i]);
        run->sessions[i] = NULL;
    }
}

/* Computes each session's known tokens, one session after the other. */
static enum nosa_status prefill(struct run *run, int32_t batch, struct nosa_error *error)
{
    for (int32_t i = 0; i < batch; i++) {
        int32_t left;
        while ((left = nosa_session_length(run->sessions[i]) -
                       nosa_session_computed(run->sessions[i])) > 0) {
            struct nosa_step_item item = {
                .session = run->sessions[i],
                .n_tokens = left < run->info->rows_max ? left : run->info->rows_max};
            NOSA_TRY(nosa_engine_step(run->engine, &item, 1, error));
            if (item.sampled)
                break;
        }
    }
    return NOSA_OK;
}

static enum nosa_status decode(struct run *run, int32_t batch, struct nosa_error *error)
{
    for (int32_t step = 0; step < DECODE_STEPS; step++) {
        for (int32_t i = 0; i < batch; i++)
            run->items[i] = (struct nosa_step_item){.session = run->sessions[i], .n_tokens = 1};
        NOSA_TRY(nosa_engine_step(run->engine, run->items, batch, error));
    }
    return NOSA_OK;
}

/* Tokens per second of one round. */
static enum nosa_status measure(struct run *run, const struct workload *work, double *rate,
                                struct nosa_error *error)
{
    enum nosa_status status = open_sessions(run, work->batch, work->context, error);
    uint64_t start = nosa_monotonic_ns();
    if (status == NOSA_OK)
        status = prefill(run, work->batch, error);
    uint64_t middle = nosa_monotonic_ns();
    if (status == NOSA_OK && work->decode)
        status = decode(run, work->batch, error);
    uint64_t end = nosa_monotonic_ns();
    close_sessions(run);
    *rate = work->decode ? work->batch * DECODE_STEPS / nosa_seconds_between(middle, end)
                         : work->context / nosa_seconds_between(start, middle);
    return status;
}

/* Touches weights, KV and scratch once. */
static enum nosa_status warm_up(struct run *run, const struct workload *work,
                                struct nosa_error *error)
{
    struct workload brief = *work;
    double rate;
    brief.context = work->context < WARM_UP_MAX ? work->context : WARM_UP_MAX;
    run->salt++;
    return measure(run, &brief, &rate, error);
}

/* Every round of prefill computes all anew. Rounds of decode share one salt: from the second on
 * the prompts' complete blocks are found in the prefix cache, so that a round costs its steps. */
static enum nosa_status run_workload(struct run *run, int index, struct nosa_error *error)
{
    const struct workload *work = &workloads[index];
    NOSA_TRY(warm_up(run, work, error));
    run->salt++;
    for (int32_t round = 0; round < run->rounds; round++) {
        NOSA_TRY(measure(run, work, &run->results[index].rates[round], error));
        if (!work->decode)
            run->salt++;
    }
    run->results[index].rate = bench_median(run->results[index].rates, run->rounds);
    return NOSA_OK;
}

/* ---- ceilings ------------------------------------------------------------------------------- */

/* Seconds that one layer's products of `rows` rows take through oneDNN, and their operations. */
static void layer_products(const struct nosa_model_config *config, int32_t rows, bool bf16,
                           double *seconds, double *operations)
{
    int32_t hidden = (int32_t)config->hidden, dim = (int32_t)config->head_dim;
    int32_t heads = (int32_t)config->n_heads, kv = (int32_t)config->n_kv_heads;
    int32_t wide = (int32_t)config->intermediate;
    const int32_t shapes[][2] = {{hidden, (heads + 2 * kv) * dim},
                                 {heads * dim, hidden},
                                 {hidden, 2 * wide},
                                 {wide, hidden}};
    *seconds = *operations = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        double work = 2.0 * rows * shapes[i][0] * shapes[i][1];
        *operations += work;
        *seconds += work / 1e9 / bench_onednn_gflops(bf16, rows, shapes[i][0], shapes[i][1], 1);
    }
}

/* Query-key pairs of one head over the whole prompt. */
static double attended_pairs(const struct nosa_engine_info *info, double tokens)
{
    double all = tokens * (tokens + 1) / 2;
    double limit = (double)info->config->sparse.topk * NOSA_BLOCK_TOKENS;
    if (info->attention == NOSA_ATTENTION_FULL || tokens <= limit)
        return all;
    return limit * (limit + 1) / 2 + (tokens - limit) * limit;
}

/* Tokens per second; 0 when oneDNN has no product of the type. */
static double prefill_ceiling(const struct nosa_engine_info *info, int32_t tokens, bool bf16)
{
    const struct nosa_model_config *config = info->config;
    int32_t rows = info->rows_max < tokens ? info->rows_max : tokens;
    double seconds, operations;
    layer_products(config, rows, bf16, &seconds, &operations);
    double rate = operations / seconds;
    double attention = 4.0 * config->n_heads * config->head_dim * attended_pairs(info, tokens);
    double head = 2.0 * config->hidden * config->vocab; /* of the last row */
    return tokens / (config->n_layers * (seconds * tokens / rows + attention / rate) + head / rate);
}

/* Tokens per second at which a decode step's bytes can be read. */
static double decode_ceiling(const struct run *run, const struct workload *work)
{
    const struct nosa_model_config *config = run->info->config;
    double weights = (double)run->info->weight_bytes;
    if (!config->tie_word_embeddings)
        weights -= (double)config->vocab * config->hidden * nosa_dtype_bytes(run->geometry.type);
    double bytes =
        bench_step_bytes(config, &run->geometry, run->info->attention, config->has_eviction_head,
                         weights, work->batch, work->context + DECODE_STEPS / 2);
    return work->batch * run->limits.read_gbs * 1e9 / bytes;
}

static void find_ceilings(struct run *run)
{
    for (int i = 0; i < N_WORKLOADS; i++) {
        struct result *result = &run->results[i];
        if (!result->wanted)
            continue;
        if (workloads[i].decode) {
            result->ceiling = decode_ceiling(run, &workloads[i]);
            continue;
        }
        result->ceiling_bf16 = prefill_ceiling(run->info, workloads[i].context, true);
        result->ceiling_f32 = prefill_ceiling(run->info, workloads[i].context, false);
        result->ceiling =
            result->ceiling_bf16 > result->ceiling_f32 ? result->ceiling_bf16 : result->ceiling_f32;
    }
}

/* ---- output --------------------------------------------------------------------------------- */

static void print_results(const struct run *run)
{
    printf("%s, %s attention\n", run->info->device, nosa_attention_mode_name(run->info->attention));
    bench_print_limits(&run->limits);
    printf("\n%-27s %9s %19s %9s %6s  %s\n", "tokens/s", "median", "lowest-highest", "ceiling",
           "share", "ceiling with oneDNN's bf16, f32");
    for (int i = 0; i < N_WORKLOADS; i++) {
        const struct result *result = &run->results[i];
        if (!result->wanted)
            continue;
        printf("%-27s %9.1f %9.1f-%-9.1f %9.1f %5.0f%%", workloads[i].title, result->rate,
               result->rates[0], result->rates[run->rounds - 1], result->ceiling,
               100 * result->rate / result->ceiling);
        if (!workloads[i].decode)
            printf("  %.1f, %.1f", result->ceiling_bf16, result->ceiling_f32);
        putchar('\n');
    }
}

static json_t *result_json(const struct run *run, int index)
{
    const struct result *result = &run->results[index];
    json_t *object = json_pack("{s:s s:f s:f s:f s:f}", "workload", workloads[index].name,
                               "tokens_per_s", result->rate, "lowest", result->rates[0], "highest",
                               result->rates[run->rounds - 1], "ceiling", result->ceiling);
    if (object && !workloads[index].decode) {
        json_object_set_new(object, "ceiling_bf16", json_real(result->ceiling_bf16));
        json_object_set_new(object, "ceiling_f32", json_real(result->ceiling_f32));
    }
    return object;
}

static enum nosa_status print_json(const struct run *run, struct nosa_error *error)
{
    json_t *rows = json_array();
    for (int i = 0; i < N_WORKLOADS; i++)
        if (run->results[i].wanted)
            json_array_append_new(rows, result_json(run, i));
    json_t *object =
        json_pack("{s:s s:s s:i s:f s:f s:f s:o}", "device", run->info->device, "attention",
                  nosa_attention_mode_name(run->info->attention), "threads", run->limits.threads,
                  "fma_gflops", run->limits.fma_gflops, "bf16_gflops", run->limits.bf16_gflops,
                  "read_gbs", run->limits.read_gbs, "results", rows);
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(6)) : -1;
    putchar('\n');
    json_decref(object);
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write") : NOSA_OK;
}

/* ---- the subcommand ------------------------------------------------------------------------- */

static enum nosa_status find_workload(const char *name, size_t length, int *index,
                                      struct nosa_error *error)
{
    for (*index = 0; *index < N_WORKLOADS; ++*index)
        if (strlen(workloads[*index].name) == length &&
            memcmp(workloads[*index].name, name, length) == 0)
            return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "--only: '%.*s' is not prefill-512, prefill-4096, decode-128, "
                          "decode-4096, decode-128x8 or decode-4096x8",
                          (int)length, name);
}

/* --only: names with commas between them; without it everything. */
static enum nosa_status choose_workloads(const char *only, struct run *run,
                                         struct nosa_error *error)
{
    for (int i = 0; i < N_WORKLOADS; i++)
        run->results[i].wanted = !only;
    while (only) {
        size_t length = strcspn(only, ",");
        int index;
        NOSA_TRY(find_workload(only, length, &index, error));
        run->results[index].wanted = true;
        only = only[length] ? only + length + 1 : NULL;
    }
    return NOSA_OK;
}

/* How the engine stores KV, which it does not tell itself. */
static enum nosa_status read_geometry(const char *directory, struct nosa_kv_geometry *out,
                                      struct nosa_error *error)
{
    struct nosa_checkpoint *checkpoint;
    struct nosa_shard shard;
    NOSA_TRY(nosa_checkpoint_open(directory, &checkpoint, error));
    enum nosa_status status =
        nosa_shard_make(nosa_checkpoint_config(checkpoint), 1, 0, &shard, error);
    if (status == NOSA_OK)
        *out = nosa_rank_kv_geometry(checkpoint, &shard);
    nosa_checkpoint_close(checkpoint);
    return status;
}

static enum nosa_status open_engine(const struct nosa_flags *flags, struct run *run,
                                    struct nosa_error *error)
{
    struct nosa_engine_options options = {
        .model_directory = nosa_flags_string(flags, "model"),
        .attention = nosa_flags_choice(flags, "attention"),
        .tp = 1,
        .device = {.threads = nosa_flags_int32(flags, "threads")},
        .context_max = CONTEXT_MAX + DECODE_STEPS + 1,
        .rows_max = nosa_flags_int32(flags, "prefill-chunk"),
        .sessions_max = SEQUENCES_MAX,
    };
    NOSA_TRY(read_geometry(options.model_directory, &run->geometry, error));
    NOSA_TRY(nosa_engine_open(&options, &run->engine, error));
    run->info = nosa_engine_info(run->engine);
    int32_t count = CONTEXT_MAX + SEQUENCES_MAX;
    run->tokens = malloc(sizeof *run->tokens * (size_t)count);
    if (!run->tokens)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for prompts");
    uint64_t state = 1;
    for (int32_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        run->tokens[i] = (uint32_t)(state >> 33) % run->info->config->vocab;
    }
    return NOSA_OK;
}

static enum nosa_status prepare(const struct nosa_flags *flags, struct run *run,
                                struct nosa_error *error)
{
    if (!nosa_flags_string(flags, "model"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--model is missing");
    run->rounds = nosa_flags_int32(flags, "rounds");
    NOSA_TRY(choose_workloads(nosa_flags_string(flags, "only"), run, error));
    for (int i = 0; i < N_WORKLOADS; i++) {
        run->results[i].rates = calloc((size_t)run->rounds, sizeof(double));
        if (!run->results[i].rates)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for results");
    }
    return open_engine(flags, run, error);
}

enum nosa_status bench_model(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct run run = {0};
    enum nosa_status status = prepare(flags, &run, error);
    if (status == NOSA_OK)
        status = bench_measure_limits(flags, &run.limits, error);
    for (int i = 0; i < N_WORKLOADS && status == NOSA_OK; i++)
        if (run.results[i].wanted)
            status = run_workload(&run, i, error);
    if (status == NOSA_OK) {
        find_ceilings(&run);
        if (nosa_flags_bool(flags, "json"))
            status = print_json(&run, error);
        else
            print_results(&run);
    }
    nosa_engine_close(run.engine);
    free(run.tokens);
    for (int i = 0; i < N_WORKLOADS; i++)
        free(run.results[i].rates);
    return status;
}
