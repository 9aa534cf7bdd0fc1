/*
 * What the KV tiers cost and gain with a model: decode over a first tier of exactly and of one and
 * a half times what steps select, beside everything resident; tiers that are there and not needed
 * beside none; the store's part of a step; and the first token of a prompt whose KV is on NVMe
 * beside computing it. Ops between the tiers stand beside a plain copy, the KV file beside fio.
 *
 * One engine without tiers stays open. The others are opened one after the other in every round,
 * read the prompt's KV from the file that the first of them wrote, and take turns with the engine
 * without tiers, step by step over the same tokens: a round's share is that of the median steps.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench.h"
#include "engine/engine.h"
#include "engine/rank.h"
#include "extent_store.h"
#include "kernel_bench_internal.h"
#include "kv_store.h"
#include "quality.h"
#include "tokenizer/tokenizer.h"

#define CONTEXT      8129 /* of 8192 positions; all but the last token fill blocks */
#define WARM_STEPS   8
#define STEPS        48
#define ROWS         512
#define TOPK         32
#define WINDOW       512
#define SELECT       8
#define ROUNDS_MAX   15
#define STORE_STEPS  2000
#define FLUSH_MS     120000
#define POLL_MS      20
#define CONTEXT_ROOM (WARM_STEPS + STEPS + 1)

struct setting {
    const char *name;
    double slots; /* of the first tier, in selected sets; 0: everything is resident */
    bool host;
    bool nvme;
};

static const struct setting settings[] = {
    {"tiers not needed", 0, true, false},
    {"tiers not needed, NVMe", 0, true, true},
    {"first tier 1.5 x selected", 1.5, true, true},
    {"first tier 1 x selected", 1, true, true},
};

#define N_SETTINGS ((int)(sizeof settings / sizeof *settings))

struct pairs {
    double share[ROUNDS_MAX];   /* of the rate without tiers */
    double rate[ROUNDS_MAX];    /* tokens per second */
    double ready_s[ROUNDS_MAX]; /* until the first token */
    double hit_share;           /* of records, in the first tier; of the last round */
    double copied_bytes;        /* to the first tier, of a step; likewise */
    int32_t n;
};

/* First steps after a suspension. */
struct resumes {
    double step_s[ROUNDS_MAX]; /* from the resume to its token */
    double brought;            /* records brought up ahead, of one resume */
    double used;               /* share of them that steps used */
};

struct tiers_bench {
    struct nosa_engine_options options; /* without tiers */
    struct nosa_kv_geometry geometry;
    char directory[4096]; /* of the KV file; ours */
    int32_t rounds;
    uint32_t *tokens; /* owned [CONTEXT] */
    struct nosa_engine *plain;
    double compute_s; /* first token of a prompt that is computed */
    double plain_rate;
    struct pairs pairs[N_SETTINGS];
    double store_us[2];        /* of a step, at CONTEXT and at eight times that */
    struct resumes resumes[2]; /* with prefetch, without */
};

/* ---- sessions ------------------------------------------------------------------------------- */

static enum nosa_status first_token(struct nosa_engine *engine, struct nosa_session *session,
                                    struct nosa_error *error)
{
    struct nosa_step_item item = {.session = session};
    while (!nosa_session_ready(session))
        NOSA_TRY(nosa_engine_poll(engine, POLL_MS, error));
    while (!item.sampled) {
        int32_t left = nosa_session_length(session) - nosa_session_computed(session);
        item.n_tokens = left < ROWS ? left : ROWS;
        NOSA_TRY(nosa_engine_step(engine, &item, 1, error));
    }
    return NOSA_OK;
}

static enum nosa_status decode(struct nosa_engine *engine, struct nosa_session *session,
                               int32_t steps, struct nosa_error *error)
{
    for (int32_t i = 0; i < steps; i++) {
        struct nosa_step_item item = {.session = session, .n_tokens = 1};
        NOSA_TRY(nosa_engine_step(engine, &item, 1, error));
    }
    return NOSA_OK;
}

struct session_result {
    double ready_s;
    double step_s[STEPS];
    double rate; /* of the median step */
    double hit_share;
    double copied_bytes;
};

/* A session on its engine, and what it counted before the steps that are timed. */
struct side {
    struct nosa_engine *engine;
    struct nosa_session *session;
    struct nosa_session_kv kv;
    struct nosa_engine_kv_traffic traffic;
};

/* Opens the prompt, times its first token and decodes until all is warm. */
static enum nosa_status open_side(const struct tiers_bench *bench, struct side *side,
                                  struct session_result *out, struct nosa_error *error)
{
    struct nosa_session_options options = {
        .tokens = bench->tokens, .n_tokens = CONTEXT, .prompt_length = CONTEXT};
    uint64_t start = nosa_monotonic_ns();
    NOSA_TRY(nosa_session_open(side->engine, &options, &side->session, error));
    NOSA_TRY(first_token(side->engine, side->session, error));
    out->ready_s = nosa_seconds_between(start, nosa_monotonic_ns());
    NOSA_TRY(decode(side->engine, side->session, WARM_STEPS, error));
    nosa_session_kv(side->session, &side->kv);
    nosa_engine_kv_traffic(side->engine, &side->traffic);
    return NOSA_OK;
}

static void close_side(struct side *side, struct session_result *out)
{
    struct nosa_session_kv kv = {0};
    struct nosa_engine_kv_traffic traffic;
    if (side->session)
        nosa_session_kv(side->session, &kv);
    nosa_engine_kv_traffic(side->engine, &traffic);
    double first = (double)(kv.first_hits - side->kv.first_hits);
    double missed = (double)(kv.host_hits - side->kv.host_hits + kv.nvme_hits - side->kv.nvme_hits);
    out->hit_share = first + missed > 0 ? first / (first + missed) : 1;
    out->copied_bytes =
        (double)(traffic.host_to_first_bytes - side->traffic.host_to_first_bytes) / STEPS;
    out->rate = 1 / bench_median(out->step_s, STEPS);
    nosa_session_close(side->session);
}

/* The two take turns, step by step, so that what else the machine does meets both. */
static enum nosa_status run_pair(const struct tiers_bench *bench, struct nosa_engine *engines[2],
                                 struct session_result results[2], struct nosa_error *error)
{
    struct side sides[2] = {{.engine = engines[0]}, {.engine = engines[1]}};
    enum nosa_status status = open_side(bench, &sides[0], &results[0], error);
    if (status == NOSA_OK)
        status = open_side(bench, &sides[1], &results[1], error);
    for (int32_t turn = 0; turn < 2 * STEPS && status == NOSA_OK; turn++) {
        int32_t step = turn / 2, which = (turn + step) % 2;
        uint64_t start = nosa_monotonic_ns();
        status = decode(sides[which].engine, sides[which].session, 1, error);
        results[which].step_s[step] = nosa_seconds_between(start, nosa_monotonic_ns());
    }
    for (int i = 0; i < 2; i++)
        close_side(&sides[i], &results[i]);
    return status;
}

/* One session is suspended and resumed, as often as there are rounds. */
static enum nosa_status run_resumes(const struct tiers_bench *bench, struct nosa_engine *engine,
                                    struct resumes *out, struct nosa_error *error)
{
    struct nosa_session_options options = {
        .tokens = bench->tokens, .n_tokens = CONTEXT, .prompt_length = CONTEXT};
    struct nosa_session *session;
    struct nosa_session_kv kv[2];
    struct nosa_engine_kv_traffic traffic[2];
    NOSA_TRY(nosa_session_open(engine, &options, &session, error));
    enum nosa_status status = first_token(engine, session, error);
    nosa_session_kv(session, &kv[0]);
    nosa_engine_kv_traffic(engine, &traffic[0]);
    for (int32_t round = 0; round < bench->rounds && status == NOSA_OK; round++) {
        status = nosa_session_suspend(session, error);
        uint64_t start = nosa_monotonic_ns();
        if (status == NOSA_OK)
            status = nosa_session_resume(session, error);
        if (status == NOSA_OK)
            status = first_token(engine, session, error);
        out->step_s[round] = nosa_seconds_between(start, nosa_monotonic_ns());
    }
    nosa_session_kv(session, &kv[1]);
    nosa_engine_kv_traffic(engine, &traffic[1]);
    double brought = (double)(traffic[1].prefetched_records - traffic[0].prefetched_records);
    out->brought = brought / bench->rounds;
    if (brought > 0)
        out->used = (double)(kv[1].prefetched_used - kv[0].prefetched_used) / brought;
    nosa_session_close(session);
    return status;
}

/* The prompt alone. */
static enum nosa_status run_prompt(const struct tiers_bench *bench, struct nosa_engine *engine,
                                   double *ready_s, struct nosa_error *error)
{
    struct side side = {.engine = engine};
    struct session_result result = {0};
    enum nosa_status status = open_side(bench, &side, &result, error);
    nosa_session_close(side.session);
    *ready_s = result.ready_s;
    return status;
}

/* ---- engines -------------------------------------------------------------------------------- */

static int32_t context_blocks(void)
{
    return (CONTEXT + CONTEXT_ROOM + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
}

static struct nosa_engine_options options_of(const struct tiers_bench *bench,
                                             const struct setting *setting)
{
    struct nosa_engine_options options = bench->options;
    uint64_t image_bytes = nosa_kv_image_bytes(&bench->geometry, bench->geometry.n_kv_heads);
    uint64_t blocks = (uint64_t)context_blocks();
    options.host_kv_bytes = setting->host ? blocks * image_bytes : 0;
    if (setting->slots > 0) {
        uint64_t slots =
            (uint64_t)(setting->slots * options.sparse.topk) + ROWS / NOSA_BLOCK_TOKENS + 1;
        options.kv_bytes = blocks * nosa_kv_id_bytes(&bench->geometry) +
                           slots * nosa_kv_slot_bytes(&bench->geometry);
    }
    if (setting->nvme) {
        options.nvme_directory = bench->directory;
        options.nvme_kv_bytes = (blocks + 64) * (image_bytes + 65536);
    }
    return options;
}

/* The prompt's KV comes to the file. */
static enum nosa_status fill_file(struct tiers_bench *bench, struct nosa_error *error)
{
    struct nosa_engine_options options = options_of(bench, &settings[1]);
    struct nosa_engine *engine;
    NOSA_TRY(nosa_engine_open(&options, &engine, error));
    enum nosa_status status = run_prompt(bench, engine, &bench->compute_s, error);
    if (status == NOSA_OK)
        status = nosa_engine_flush(engine, FLUSH_MS, error);
    nosa_engine_close(engine);
    return status;
}

static enum nosa_status measure_pair(struct tiers_bench *bench, int index,
                                     struct nosa_engine *engine, struct nosa_error *error)
{
    struct pairs *pairs = &bench->pairs[index];
    struct nosa_engine *engines[2] = {bench->plain, engine};
    struct session_result results[2] = {{0}};
    NOSA_TRY(run_pair(bench, engines, results, error));
    pairs->rate[pairs->n] = results[1].rate;
    pairs->share[pairs->n] = results[1].rate / results[0].rate;
    pairs->ready_s[pairs->n++] = results[1].ready_s;
    pairs->hit_share = results[1].hit_share;
    pairs->copied_bytes = results[1].copied_bytes;
    bench->plain_rate = results[0].rate;
    return NOSA_OK;
}

static enum nosa_status measure_round(struct tiers_bench *bench, int32_t round,
                                      struct nosa_error *error)
{
    for (int i = 0; i < N_SETTINGS; i++) {
        struct nosa_engine_options options = options_of(bench, &settings[i]);
        struct nosa_engine *engine;
        double unused_s;
        enum nosa_status status = NOSA_OK;
        if (!settings[i].nvme && round > 0)
            continue; /* would compute the prompt anew: its rounds follow one another */
        NOSA_TRY(nosa_engine_open(&options, &engine, error));
        if (!settings[i].nvme)
            status = run_prompt(bench, engine, &unused_s, error);
        int32_t n = settings[i].nvme ? 1 : bench->rounds;
        for (int32_t pair = 0; pair < n && status == NOSA_OK; pair++)
            status = measure_pair(bench, i, engine, error);
        nosa_engine_close(engine);
        NOSA_TRY(status);
    }
    return NOSA_OK;
}

/* In a first tier of 1.5 selected sets; the prompt comes from the file. */
static enum nosa_status measure_resumes(struct tiers_bench *bench, struct nosa_error *error)
{
    for (int i = 0; i < 2; i++) {
        struct nosa_engine_options options = options_of(bench, &settings[2]);
        struct nosa_engine *engine;
        options.kv_no_prefetch = i == 1;
        NOSA_TRY(nosa_engine_open(&options, &engine, error));
        enum nosa_status status = run_resumes(bench, engine, &bench->resumes[i], error);
        nosa_engine_close(engine);
        NOSA_TRY(status);
    }
    return NOSA_OK;
}

/* ---- the store's part of a step -------------------------------------------------------------- */

/* Steps of one token of a sequence that waits in a tight first tier, without their ops. */
static enum nosa_status time_store(struct tiers_bench *bench, struct nosa_device *device,
                                   int32_t context, double *us, struct nosa_error *error)
{
    int32_t n_blocks = context / NOSA_BLOCK_TOKENS + STORE_STEPS / NOSA_BLOCK_TOKENS + 2;
    struct nosa_kv_host_pool host;
    struct nosa_kv_store *store = NULL;
    struct nosa_kv_moves moves = {0};
    struct nosa_kv_sequence *sequence = NULL;
    struct nosa_kv_geometry geometry = bench->geometry;
    int32_t cached, slots = n_blocks - 1;
    uint32_t *tokens = calloc((size_t)context, sizeof *tokens);

    NOSA_TRY(
        nosa_kv_host_pool_create(device, &geometry, geometry.n_kv_heads, n_blocks, &host, error));
    struct nosa_kv_store_options options = {
        .n_blocks = n_blocks,
        .sequences_max = 1,
        .context_max = n_blocks * NOSA_BLOCK_TOKENS,
        .tiers = {.host = &host, .geometry = geometry, .n_slots = slots, .working_slots = TOPK}};
    enum nosa_status status = tokens ? nosa_kv_store_create(&options, &store, error)
                                     : nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory");
    if (status == NOSA_OK)
        status = nosa_kv_moves_create(store, device, &moves, error);
    if (status == NOSA_OK)
        status = nosa_kv_sequence_open(store, tokens, context, NULL, 0, &sequence, &cached, error);
    uint64_t start = 0;
    for (int32_t at = 0; at < context + STORE_STEPS && status == NOSA_OK;) {
        int32_t left = context - at, n = left > ROWS ? ROWS : left > 0 ? left : 1;
        if (left == 0)
            start = nosa_monotonic_ns();
        if (left <= 0)
            status = nosa_kv_sequence_append(sequence, 1, error);
        if (status == NOSA_OK)
            status = nosa_kv_sequence_reserve(sequence, at + n, error);
        if (status != NOSA_OK)
            break;
        struct nosa_kv_step_item item = {.sequence = sequence, .end = at + n};
        nosa_kv_store_begin_step(store, &item, 1, &moves);
        nosa_kv_store_end_step(store);
        nosa_kv_sequence_commit(sequence, at += n);
    }
    *us = nosa_seconds_between(start, nosa_monotonic_ns()) * 1e6 / STORE_STEPS;
    NOSA_ASSERT(status != NOSA_OK || nosa_kv_sequence_computed(sequence) == context + STORE_STEPS);
    nosa_kv_sequence_close(sequence);
    nosa_kv_moves_destroy(&moves);
    nosa_kv_store_destroy(store);
    nosa_kv_host_pool_destroy(&host);
    free(tokens);
    return status;
}

static enum nosa_status measure_ops(struct tiers_bench *bench, const struct nosa_flags *flags,
                                    bool json, struct nosa_error *error)
{
    struct kernel_bench kernels = {.shape = &kernel_shapes[0]};
    NOSA_TRY(bench_measure_limits(flags, &kernels.limits, error));
    NOSA_TRY(kernel_device_open(&kernels, error));
    if (json)
        kernels.rows = json_array();
    enum nosa_status status = NOSA_OK;
    if (!json) {
        bench_print_limits(&kernels.limits);
        kernel_report_head(&kernels);
    }
    status = kernel_bench_tiers(&kernels, error);
    for (int i = 0; i < 2 && status == NOSA_OK; i++)
        status = time_store(bench, kernels.device, CONTEXT << (3 * i), &bench->store_us[i], error);
    if (json) {
        json_dumpf(kernels.rows, stdout, JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    json_decref(kernels.rows);
    kernel_device_close(&kernels);
    return status;
}

/* ---- report --------------------------------------------------------------------------------- */

static void print_results(struct tiers_bench *bench, bool json)
{
    double step_us = 1e6 / bench->plain_rate, ready_s = 0;
    for (int i = 0; i < N_SETTINGS; i++) {
        struct pairs *pairs = &bench->pairs[i];
        double share = bench_median(pairs->share, pairs->n);
        double rate = bench_median(pairs->rate, pairs->n);
        if (settings[i].nvme && settings[i].slots == 0)
            ready_s = bench_median(pairs->ready_s, pairs->n);
        const char *format =
            json ? "{\"setting\": \"%s\", \"tokens_per_s\": %.2f, \"share\": %.4f, \"lowest\": "
                   "%.4f, \"highest\": %.4f, \"hits\": %.5f, \"copied_mb_per_step\": %.3f}\n"
                 : "%-28s %8.2f tokens/s  %5.3f of resident (%.3f-%.3f)  hits %.4f  %.2f MB "
                   "copied per step\n";
        printf(format, settings[i].name, rate, share, pairs->share[0], pairs->share[pairs->n - 1],
               pairs->hit_share, pairs->copied_bytes / 1e6);
    }
    const struct resumes *resumes = bench->resumes;
    double resume_ms = 1e3 * bench_median(bench->resumes[0].step_s, bench->rounds);
    double bare_ms = 1e3 * bench_median(bench->resumes[1].step_s, bench->rounds);
    if (json) {
        printf("{\"resume_ms\": %.3f, \"resume_without_prefetch_ms\": %.3f, "
               "\"prefetched_records\": %.1f, \"prefetched_used\": %.4f}\n",
               resume_ms, bare_ms, resumes[0].brought, resumes[0].used);
        printf("{\"compute_s\": %.3f, \"restart_s\": %.3f, \"store_us\": %.3f, \"store_us_at_8x\": "
               "%.3f, \"step_us\": %.1f}\n",
               bench->compute_s, ready_s, bench->store_us[0], bench->store_us[1], step_us);
        return;
    }
    printf("first token of %d tokens: computed %.2f s, read from NVMe %.3f s: %.1f x sooner\n",
           CONTEXT, bench->compute_s, ready_s, bench->compute_s / ready_s);
    printf(
        "first token after a suspension: %.1f ms (%.0f records brought up ahead, %.1f %% of them "
        "used), %.1f ms without prefetch\n",
        resume_ms, resumes[0].brought, 100 * resumes[0].used, bare_ms);
    printf("the store's part of a step: %.2f us at %d tokens, %.2f us at %d; %.3f %% of %.0f us\n",
           bench->store_us[0], CONTEXT, bench->store_us[1], 8 * CONTEXT,
           100 * bench->store_us[0] / step_us, step_us);
}

/* ---- set-up --------------------------------------------------------------------------------- */

static enum nosa_status read_geometry(struct tiers_bench *bench, struct nosa_error *error)
{
    struct nosa_checkpoint *checkpoint;
    struct nosa_shard shard;
    NOSA_TRY(nosa_checkpoint_open(bench->options.model_directory, &checkpoint, error));
    enum nosa_status status =
        nosa_shard_make(nosa_checkpoint_config(checkpoint), 1, 0, &shard, error);
    if (status == NOSA_OK)
        bench->geometry = nosa_rank_kv_geometry(checkpoint, &shard);
    nosa_checkpoint_close(checkpoint);
    return status;
}

/* The beginning of a text, or without one tokens that follow from their place. */
static enum nosa_status choose_tokens(struct tiers_bench *bench, const char *path,
                                      struct nosa_error *error)
{
    struct nosa_tokenizer *tokenizer = NULL;
    struct quality_texts texts = {0};
    bench->tokens = calloc(CONTEXT, sizeof *bench->tokens);
    if (!bench->tokens)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %d tokens", CONTEXT);
    uint32_t vocab = nosa_engine_info(bench->plain)->config->vocab;
    for (uint32_t i = 0; i < CONTEXT; i++)
        bench->tokens[i] = i * 7919u % vocab;
    if (!path)
        return NOSA_OK;
    NOSA_TRY(nosa_tokenizer_open(bench->options.model_directory, &tokenizer, error));
    enum nosa_status status = quality_texts_read(&texts, path, tokenizer, CONTEXT, 1, error);
    if (status == NOSA_OK && texts.n == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--texts %s: fewer than %d tokens",
                                path, CONTEXT);
    for (int32_t i = 0; i < CONTEXT && status == NOSA_OK; i++)
        bench->tokens[i] = (uint32_t)texts.documents[0].ids.ids[i];
    quality_texts_free(&texts);
    nosa_tokenizer_close(tokenizer);
    return status;
}

static enum nosa_status prepare(struct tiers_bench *bench, const struct nosa_flags *flags,
                                struct nosa_error *error)
{
    const char *parent = nosa_flags_positional(flags, 1);
    int attention = nosa_flags_choice(flags, "attention");
    struct nosa_device_spec device = {0};
    if (nosa_flags_is_set(flags, "threads"))
        device.threads = nosa_flags_int32(flags, "threads");
    bench->options = (struct nosa_engine_options){
        .model_directory = nosa_flags_string(flags, "model"),
        .attention = attention,
        .tp = 1,
        .device = device,
        .context_max = CONTEXT + CONTEXT_ROOM,
        .rows_max = ROWS,
        .sessions_max = 1,
        .sparse = {.topk = TOPK, .window_size = WINDOW, .select_blocks = SELECT},
    };
    if (!bench->options.model_directory || !parent)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "tiers: give --model, and a directory on the disk to measure, with "
                              "3 GiB free");
    if (attention == NOSA_ATTENTION_FULL)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "tiers: --attention nosa or infllmv2; full attention selects nothing");
    bench->rounds = nosa_flags_int32(flags, "rounds");
    bench->rounds = bench->rounds < ROUNDS_MAX ? bench->rounds : ROUNDS_MAX;
    if ((size_t)snprintf(bench->directory, sizeof bench->directory, "%s/nosa-bench-XXXXXX",
                         parent) >= sizeof bench->directory ||
        !mkdtemp(bench->directory)) {
        bench->directory[0] = '\0';
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "'%s' cannot be written: %s", parent,
                              strerror(errno));
    }
    NOSA_TRY(read_geometry(bench, error));
    NOSA_TRY(nosa_engine_open(&bench->options, &bench->plain, error));
    return choose_tokens(bench, nosa_flags_string(flags, "texts"), error);
}

static void release(struct tiers_bench *bench)
{
    char file[4200];
    nosa_engine_close(bench->plain);
    free(bench->tokens);
    if (!bench->directory[0])
        return;
    snprintf(file, sizeof file, "%s/%s", bench->directory, NOSA_EXTENT_FILE_NAME);
    unlink(file);
    rmdir(bench->directory);
}

enum nosa_status bench_tiers(const struct nosa_flags *flags, struct nosa_error *error)
{
    static struct tiers_bench bench; /* large */
    bool json = nosa_flags_bool(flags, "json");
    double warm_s;

    memset(&bench, 0, sizeof bench);
    enum nosa_status status = prepare(&bench, flags, error);
    if (status == NOSA_OK)
        status = run_prompt(&bench, bench.plain, &warm_s, error);
    if (status == NOSA_OK)
        status = fill_file(&bench, error);
    for (int32_t round = 0; round < bench.rounds && status == NOSA_OK; round++)
        status = measure_round(&bench, round, error);
    if (status == NOSA_OK)
        status = measure_resumes(&bench, error);
    if (status == NOSA_OK)
        status = measure_ops(&bench, flags, json, error);
    if (status == NOSA_OK)
        print_results(&bench, json);
    fflush(stdout);
    release(&bench);
    return status == NOSA_OK ? bench_extents(flags, error) : status;
}
