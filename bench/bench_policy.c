/*
 * `nosa-bench policy FILE`: what residency policies would have made of a recorded selection.
 *
 * Three questions, each at several sizes of a tier, given as multiples of the selected set:
 *
 *   decode    a first tier that the prompt has filled: misses of every step
 *   resume    a first tier that starts empty, at points spread over the trace, after it was filled
 *             in one way or another: misses of the first step and of the first `--horizon`
 *   demotion  a host tier under a first tier of one selected set: what comes from NVMe
 *
 * The oracle knows the rest of the trace. Nothing is measured in time.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "engine/engine.h"
#include "policy_replay.h"

static const double first_sizes[] = {1, 1.25, 1.5, 2};
static const double host_sizes[] = {1.25, 1.5, 2, 3};

#define SIZES 4

struct policy_run {
    const char *path;
    struct nosa_trace_reader reader;
    int32_t n_points;
    int32_t horizon;
    int32_t touch_shift;
    int32_t n_pools;
    struct replay_counts decode[REPLAY_POLICIES][SIZES];
    struct replay_counts resume[REPLAY_PREFETCHES][SIZES][2];
    struct replay_counts demotion[REPLAY_POLICIES][SIZES];
    double *pool_misses; /* [n_pools] per step, of eddma at each size of the first tier */
};

/* Blocks of a tier of `size` selected sets, and what one step selects at most. */
static int32_t capacity_of(const struct policy_run *run, double size)
{
    int32_t topk = run->reader.info.topk;
    return (int32_t)ceil(topk * size);
}

/* ---- replay --------------------------------------------------------------------------------- */

static enum nosa_status replay_tiers(struct policy_run *run, const struct replay_pool *pool,
                                     int32_t index, struct nosa_error *error)
{
    for (int policy = 0; policy < REPLAY_POLICIES; policy++)
        for (int size = 0; size < SIZES; size++) {
            uint64_t before = run->decode[policy][size].misses;
            NOSA_TRY(replay_decode(pool, (enum replay_policy)policy,
                                   capacity_of(run, first_sizes[size]), &run->decode[policy][size],
                                   error));
            if (policy == REPLAY_EDDMA)
                run->pool_misses[index * SIZES + size] =
                    (double)(run->decode[policy][size].misses - before) / (double)run->reader.steps;
            NOSA_TRY(replay_demotion(pool, (enum replay_policy)policy, capacity_of(run, 1),
                                     capacity_of(run, host_sizes[size]),
                                     &run->demotion[policy][size], error));
        }
    return NOSA_OK;
}

static enum nosa_status replay_point(struct policy_run *run, const struct replay_pool *pool,
                                     const struct replay_history *past, struct nosa_error *error)
{
    for (int prefetch = 0; prefetch < REPLAY_PREFETCHES; prefetch++)
        for (int size = 0; size < SIZES; size++)
            NOSA_TRY(
                replay_resume(pool, past, (enum replay_prefetch)prefetch,
                              prefetch == REPLAY_PREFETCH_ORACLE ? REPLAY_ORACLE : REPLAY_EDDMA,
                              capacity_of(run, first_sizes[size]), run->horizon,
                              run->resume[prefetch][size], error));
    return NOSA_OK;
}

/* Points spread evenly over the steps, the first at the first one. */
static enum nosa_status replay_points(struct policy_run *run, const struct replay_pool *pool,
                                      struct nosa_error *error)
{
    struct replay_history past;
    NOSA_TRY(replay_history_create(&past, pool, error));
    int64_t steps = pool->n_rows - pool->step_first;
    enum nosa_status status = NOSA_OK;
    for (int32_t i = 0; status == NOSA_OK && i < run->n_points && i < steps; i++) {
        int32_t points = run->n_points < steps ? run->n_points : (int32_t)steps;
        int32_t row = pool->step_first + (int32_t)(i * steps / points);
        replay_history_advance(&past, pool, row);
        status = replay_point(run, pool, &past, error);
    }
    replay_history_free(&past);
    return status;
}

static enum nosa_status replay_all(struct policy_run *run, struct nosa_error *error)
{
    const struct nosa_trace_reader *reader = &run->reader;
    run->n_pools = reader->info.n_layers * reader->info.n_kv_heads;
    run->pool_misses = calloc((size_t)run->n_pools * SIZES, sizeof *run->pool_misses);
    if (!run->pool_misses)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for results");
    for (int32_t index = 0; index < run->n_pools; index++) {
        struct replay_pool pool;
        NOSA_TRY(replay_pool_read(reader, index, &pool, error));
        pool.touch_shift = (uint32_t)run->touch_shift;
        enum nosa_status status = replay_tiers(run, &pool, index, error);
        if (status == NOSA_OK)
            status = replay_points(run, &pool, error);
        replay_pool_free(&pool);
        if (status != NOSA_OK)
            return status;
    }
    return NOSA_OK;
}

/* ---- output --------------------------------------------------------------------------------- */

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

static double hit_rate(const struct replay_counts *counts)
{
    return 1 - share(counts->misses, counts->selected);
}

/* How much of lru's way to the oracle a policy goes; 0 where there is none. */
static double closed(const struct replay_counts *counts, const struct replay_counts *lru,
                     const struct replay_counts *oracle)
{
    double way = (double)lru->misses - (double)oracle->misses;
    return way > 0 ? ((double)lru->misses - (double)counts->misses) / way : 0;
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* A quantile of eddma's misses a step over pools. */
static double pool_quantile(const struct policy_run *run, int size, double quantile)
{
    double *sorted = malloc(sizeof *sorted * (size_t)run->n_pools);
    if (!sorted)
        return 0;
    for (int32_t i = 0; i < run->n_pools; i++)
        sorted[i] = run->pool_misses[i * SIZES + size];
    qsort(sorted, (size_t)run->n_pools, sizeof *sorted, compare_doubles);
    double value = sorted[(int32_t)(quantile * (run->n_pools - 1) + 0.5)];
    free(sorted);
    return value;
}

static void print_policies(const char *title, const double sizes[SIZES],
                           struct replay_counts counts[REPLAY_POLICIES][SIZES],
                           const struct policy_run *run)
{
    printf("\n%-10s %5s %7s %9s %14s %13s %14s\n", title, "size", "blocks", "hit rate",
           "misses/step", "per KV head", "way to oracle");
    for (int size = 0; size < SIZES; size++)
        for (int policy = 0; policy < REPLAY_POLICIES; policy++) {
            const struct replay_counts *now = &counts[policy][size];
            double per_head = share(now->misses, now->steps);
            printf("%-10s %4.2fx %7d %8.3f%% %14.3f %13.5f %13.0f%%\n",
                   replay_policy_name((enum replay_policy)policy), sizes[size],
                   capacity_of(run, sizes[size]), 100 * hit_rate(now), per_head * run->n_pools,
                   per_head,
                   100 * closed(now, &counts[REPLAY_LRU][size], &counts[REPLAY_ORACLE][size]));
        }
}

static void print_resume(const struct policy_run *run)
{
    printf("\n%-10s %5s %12s %15s %14s %12s %15s %11s %6s\n", "resume", "size", "first: hits",
           "misses/KV head", "way to oracle", "all: hits", "misses/KV head", "prefetched", "used");
    for (int size = 0; size < SIZES; size++)
        for (int prefetch = 0; prefetch < REPLAY_PREFETCHES; prefetch++) {
            const struct replay_counts *first = &run->resume[prefetch][size][0];
            const struct replay_counts *all = &run->resume[prefetch][size][1];
            uint64_t starts = first->steps;
            double way = closed(first, &run->resume[REPLAY_PREFETCH_NOTHING][size][0],
                                &run->resume[REPLAY_PREFETCH_ORACLE][size][0]);
            printf("%-10s %4.2fx %11.3f%% %15.3f %13.0f%% %11.3f%% %15.3f %11.2f %5.1f%%\n",
                   replay_prefetch_name((enum replay_prefetch)prefetch), first_sizes[size],
                   100 * hit_rate(first), share(first->misses, starts), 100 * way,
                   100 * hit_rate(all), share(all->misses, starts), share(all->prefetched, starts),
                   100 * share(all->prefetched_used, all->prefetched));
        }
}

static void print_tables(struct policy_run *run)
{
    const struct nosa_trace_info *info = &run->reader.info;
    printf("%s: %s%s, %d layers, %d KV heads, topk %d (first cut %d), %llu steps from position "
           "%d of %d prompt tokens, up to %d blocks\n",
           run->path, nosa_attention_mode_name(info->attention),
           info->has_eviction_head ? "" : " without an eviction head (E tells nothing)",
           info->n_layers, info->n_kv_heads, info->topk, info->first_cut,
           (unsigned long long)run->reader.steps, info->step_first, info->prompt_tokens,
           run->reader.n_blocks_max);
    print_policies("decode", first_sizes, run->decode, run);
    printf("misses a step over layers and KV heads, eddma:");
    for (int size = 0; size < SIZES; size++)
        printf(" %.2fx median %.3f, worst %.3f%s", first_sizes[size], pool_quantile(run, size, 0.5),
               pool_quantile(run, size, 1), size + 1 < SIZES ? ";" : "\n");
    print_resume(run);
    printf("(first: the first step; all: %d steps; an empty first tier at %d points)\n",
           run->horizon, run->n_points);
    print_policies("host", host_sizes, run->demotion, run);
    puts("(misses come from NVMe; the first tier holds one selected set)");
}

static json_t *json_counts(const char *name, double size, const struct replay_counts *counts)
{
    return json_pack("{s:s s:f s:I s:I s:I s:f s:f}", "policy", name, "size", size, "steps",
                     (json_int_t)counts->steps, "selected", (json_int_t)counts->selected, "misses",
                     (json_int_t)counts->misses, "hit_rate", hit_rate(counts), "misses_per_kv_head",
                     share(counts->misses, counts->steps));
}

static json_t *json_policies(const double sizes[SIZES],
                             struct replay_counts counts[REPLAY_POLICIES][SIZES])
{
    json_t *rows = json_array();
    for (int size = 0; size < SIZES; size++)
        for (int policy = 0; policy < REPLAY_POLICIES; policy++) {
            json_t *row = json_counts(replay_policy_name((enum replay_policy)policy), sizes[size],
                                      &counts[policy][size]);
            json_object_set_new(row, "way_to_oracle",
                                json_real(closed(&counts[policy][size], &counts[REPLAY_LRU][size],
                                                 &counts[REPLAY_ORACLE][size])));
            json_array_append_new(rows, row);
        }
    return rows;
}

static json_t *json_resume(const struct policy_run *run)
{
    json_t *rows = json_array();
    for (int size = 0; size < SIZES; size++)
        for (int prefetch = 0; prefetch < REPLAY_PREFETCHES; prefetch++) {
            const char *name = replay_prefetch_name((enum replay_prefetch)prefetch);
            const struct replay_counts *counts = run->resume[prefetch][size];
            json_array_append_new(
                rows, json_pack("{s:s s:f s:I s:I s:o s:o}", "prefetch", name, "size",
                                first_sizes[size], "prefetched", (json_int_t)counts[1].prefetched,
                                "prefetched_used", (json_int_t)counts[1].prefetched_used,
                                "first_step", json_counts(name, first_sizes[size], &counts[0]),
                                "all_steps", json_counts(name, first_sizes[size], &counts[1])));
        }
    return rows;
}

static enum nosa_status print_json(struct policy_run *run, struct nosa_error *error)
{
    const struct nosa_trace_info *info = &run->reader.info;
    json_t *object = json_pack(
        "{s:s s:b s:i s:i s:i s:i s:I s:i s:i s:o s:o s:o}", "attention",
        nosa_attention_mode_name(info->attention), "eviction_head", info->has_eviction_head,
        "layers", info->n_layers, "kv_heads", info->n_kv_heads, "topk", info->topk, "first_cut",
        info->first_cut, "steps", (json_int_t)run->reader.steps, "points", run->n_points, "horizon",
        run->horizon, "decode", json_policies(first_sizes, run->decode), "resume", json_resume(run),
        "demotion", json_policies(host_sizes, run->demotion));
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(9)) : -1;
    putchar('\n');
    json_decref(object);
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write") : NOSA_OK;
}

enum nosa_status bench_policy(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct policy_run run = {
        .path = nosa_flags_positional(flags, 1),
        .n_points = nosa_flags_int32(flags, "points"),
        .horizon = nosa_flags_int32(flags, "horizon"),
        .touch_shift = nosa_flags_int32(flags, "touch-shift"),
    };
    if (!run.path)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "name the trace: nosa-bench policy FILE");
    NOSA_TRY(nosa_trace_reader_open(&run.reader, run.path, error));
    enum nosa_status status = NOSA_OK;
    if (run.reader.steps == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "%s: no row from the first step, position %d, on", run.path,
                                run.reader.info.step_first);
    if (status == NOSA_OK)
        status = replay_all(&run, error);
    if (status == NOSA_OK && nosa_flags_bool(flags, "json"))
        status = print_json(&run, error);
    else if (status == NOSA_OK)
        print_tables(&run);
    free(run.pool_misses);
    nosa_trace_reader_close(&run.reader);
    return status;
}
