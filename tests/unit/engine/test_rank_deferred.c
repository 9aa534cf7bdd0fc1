/*
 * A rank on a device that runs nothing until its stream is waited for, as an asynchronous backend
 * may: every copy and op is kept, with what device.h says is read during the call, and run on the
 * CPU backend later. Results are the same bits as on the CPU backend itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_device.h"
#include "engine/rank.h"
#include "engine_support.h"

#define ROWS_MAX 128
#define BLOCKS   8
#define PROMPT   400

struct deferred;

/* A copy or an op that waits for its turn. */
struct work {
    struct work *next;
    void (*run)(struct deferred *deferred, const struct work *work);
    union {
        struct nosa_embed_params embed;
        struct nosa_rms_norm_params rms_norm;
        struct nosa_matmul_params matmul;
        struct nosa_rope_table_params rope_table;
        struct nosa_qkv_write_params qkv_write;
        struct nosa_compress_keys_params compress_keys;
        struct nosa_select_blocks_params select_blocks;
        struct nosa_attention_params attention;
        struct nosa_add_params add;
        struct nosa_sample_params sample;
        struct nosa_log_prob_params log_prob;
        struct {
            void *to;
            const void *from;
            size_t bytes;
        } copy;
    } params;
    /* what params points to */
    struct nosa_batch_view batch;
    struct nosa_kv_view kv;
    struct nosa_weight weight;
};

struct deferred {
    struct nosa_device base;
    struct nosa_device_table table;
    struct nosa_op_table ops;
    struct nosa_device *cpu;
    struct nosa_stream *stream; /* of cpu */
    struct work *first, **end;
    int waiting;
};

static struct work *defer(struct nosa_stream *stream,
                          void (*run)(struct deferred *deferred, const struct work *work))
{
    struct deferred *deferred = (struct deferred *)(void *)stream;
    struct work *work = calloc(1, sizeof *work);
    assert_non_null(work);
    work->run = run;
    *deferred->end = work;
    deferred->end = &work->next;
    deferred->waiting++;
    return work;
}

static void keep_views(struct work *work, const struct nosa_batch_view **batch,
                       const struct nosa_kv_view **kv)
{
    work->batch = **batch;
    work->kv = **kv;
    *batch = &work->batch;
    *kv = &work->kv;
}

static void keep_weight(struct work *work, const struct nosa_weight **weight)
{
    work->weight = **weight;
    *weight = &work->weight;
}

#define DEFERRED_OP(op, keep)                                                                      \
    static void run_##op(struct deferred *deferred, const struct work *work)                       \
    {                                                                                              \
        assert_int_equal(deferred->cpu->table->ops->op(deferred->stream, &work->params.op),        \
                         NOSA_OK);                                                                 \
    }                                                                                              \
    static enum nosa_status defer_##op(struct nosa_stream *stream,                                 \
                                       const struct nosa_##op##_params *params)                    \
    {                                                                                              \
        struct work *work = defer(stream, run_##op);                                               \
        work->params.op = *params;                                                                 \
        keep;                                                                                      \
        return NOSA_OK;                                                                            \
    }

#define VIEWS(op)  keep_views(work, &work->params.op.batch, &work->params.op.kv)
#define WEIGHT(op) keep_weight(work, &work->params.op.weight)

DEFERRED_OP(embed, WEIGHT(embed))
DEFERRED_OP(rms_norm, (void)0)
DEFERRED_OP(matmul, WEIGHT(matmul))
DEFERRED_OP(rope_table, (void)0)
DEFERRED_OP(qkv_write, VIEWS(qkv_write))
DEFERRED_OP(compress_keys, VIEWS(compress_keys))
DEFERRED_OP(select_blocks, VIEWS(select_blocks))
DEFERRED_OP(attention, VIEWS(attention))
DEFERRED_OP(add, (void)0)
DEFERRED_OP(sample, (void)0)
DEFERRED_OP(log_prob, (void)0)

static void run_copy(struct deferred *deferred, const struct work *work)
{
    deferred->cpu->table->copy(deferred->stream, work->params.copy.to, work->params.copy.from,
                               work->params.copy.bytes);
}

static void defer_copy(struct nosa_stream *stream, void *to, const void *from, size_t bytes)
{
    struct work *work = defer(stream, run_copy);
    work->params.copy.to = to;
    work->params.copy.from = from;
    work->params.copy.bytes = bytes;
}

static struct nosa_device *cpu_of(struct nosa_device *device)
{
    return ((struct deferred *)(void *)device)->cpu;
}

static enum nosa_status memory_alloc(struct nosa_device *device, enum nosa_memory_kind kind,
                                     size_t bytes, void **out, struct nosa_error *error)
{
    return cpu_of(device)->table->memory_alloc(cpu_of(device), kind, bytes, out, error);
}

static void memory_free(struct nosa_device *device, enum nosa_memory_kind kind, void *memory,
                        size_t bytes)
{
    cpu_of(device)->table->memory_free(cpu_of(device), kind, memory, bytes);
}

static enum nosa_status stream_create(struct nosa_device *device, struct nosa_stream **out,
                                      struct nosa_error *error)
{
    (void)error;
    *out = (struct nosa_stream *)(void *)device;
    return NOSA_OK;
}

static void stream_destroy(struct nosa_stream *stream)
{
    assert_int_equal(((struct deferred *)(void *)stream)->waiting, 0);
}

static enum nosa_status stream_synchronize(struct nosa_stream *stream, struct nosa_error *error)
{
    struct deferred *deferred = (struct deferred *)(void *)stream;
    for (struct work *work = deferred->first, *next; work; work = next) {
        next = work->next;
        work->run(deferred, work);
        free(work);
    }
    deferred->first = NULL;
    deferred->end = &deferred->first;
    deferred->waiting = 0;
    return deferred->cpu->table->stream_synchronize(deferred->stream, error);
}

static enum nosa_status reserve(struct nosa_device *device, const struct nosa_step_limits *limits,
                                size_t *bytes_out, struct nosa_error *error)
{
    return cpu_of(device)->table->reserve(cpu_of(device), limits, bytes_out, error);
}

static enum nosa_status weight_pack(struct nosa_device *device, struct nosa_weight *weight,
                                    enum nosa_weight_placement placement, int32_t first,
                                    int32_t rows, int64_t stride, int64_t k_first,
                                    enum nosa_dtype type, const void *source,
                                    struct nosa_error *error)
{
    return cpu_of(device)->table->weight_pack(cpu_of(device), weight, placement, first, rows,
                                              stride, k_first, type, source, error);
}

static void deferred_open(struct deferred *deferred, struct nosa_device *cpu)
{
    *deferred = (struct deferred){
        .table = {.name = "deferred",
                  .memory_alloc = memory_alloc,
                  .memory_free = memory_free,
                  .stream_create = stream_create,
                  .stream_destroy = stream_destroy,
                  .stream_synchronize = stream_synchronize,
                  .copy = defer_copy,
                  .reserve = reserve,
                  .weight_pack = weight_pack},
        .ops = {.embed = defer_embed,
                .rms_norm = defer_rms_norm,
                .matmul = defer_matmul,
                .rope_table = defer_rope_table,
                .qkv_write = defer_qkv_write,
                .compress_keys = defer_compress_keys,
                .select_blocks = defer_select_blocks,
                .attention = defer_attention,
                .add = defer_add,
                .sample = defer_sample,
                .log_prob = defer_log_prob},
        .cpu = cpu,
    };
    deferred->base.table = &deferred->table;
    deferred->table.ops = &deferred->ops;
    deferred->end = &deferred->first;
    assert_int_equal(cpu->table->stream_create(cpu, &deferred->stream, NULL), NOSA_OK);
}

/* A rank with one sequence whose blocks are 0, 1, ... */
struct run {
    struct nosa_device *cpu;
    struct nosa_rank rank;
    struct nosa_step_plan plan;
    uint32_t tokens[PROMPT + 64];
    int32_t n_tokens;
};

static void run_open(struct run *run, const struct nosa_checkpoint *checkpoint,
                     struct deferred *deferred)
{
    const struct nosa_cpu_options cpu = {.threads = 2};
    struct nosa_rank_options options = {
        .checkpoint = checkpoint,
        .mode = NOSA_ATTENTION_NOSA,
        .limits = {.rows_max = ROWS_MAX,
                   .seqs_max = 1,
                   .blocks_max = BLOCKS,
                   .vocab = (int32_t)nosa_checkpoint_config(checkpoint)->vocab},
        .context_max = BLOCKS * NOSA_BLOCK_TOKENS,
        .n_blocks = BLOCKS,
    };
    *run = (struct run){.n_tokens = PROMPT};
    assert_int_equal(nosa_cpu_device_create(&cpu, &run->cpu, NULL), NOSA_OK);
    options.device = run->cpu;
    if (deferred) {
        deferred_open(deferred, run->cpu);
        options.device = &deferred->base;
    }
    assert_int_equal(
        nosa_shard_make(nosa_checkpoint_config(checkpoint), 1, 0, &options.shard, NULL), NOSA_OK);
    assert_int_equal(nosa_rank_create(&options, &run->rank, NULL), NOSA_OK);
    assert_int_equal(nosa_step_plan_create(&options.limits, options.device, &run->plan, NULL),
                     NOSA_OK);
    random_tokens(5, nosa_checkpoint_config(checkpoint)->vocab, run->tokens, PROMPT);
}

static void run_close(struct run *run)
{
    nosa_step_plan_destroy(&run->plan);
    nosa_rank_destroy(&run->rank);
    run->cpu->table->destroy(run->cpu);
}

/* Enqueues the tokens from `first` on: the known next ones of a chunk are scored, and at the end
 * one is drawn. */
static void enqueue(struct run *run, int32_t first, int32_t count)
{
    static const int32_t blocks[BLOCKS] = {0, 1, 2, 3, 4, 5, 6, 7};
    static const struct nosa_sampling sampling = {
        .temperature = 1, .top_p = 0.95f, .presence_penalty = 1, .seed = 4};
    struct nosa_step_plan *plan = &run->plan;
    int32_t n_blocks = (first + count - 1) / NOSA_BLOCK_TOKENS + 1;
    nosa_step_plan_begin(plan, count, 1, n_blocks);
    nosa_step_plan_add(plan, run->tokens, first, count, blocks, n_blocks);
    for (int32_t i = 0; i < count && first + i + 1 < run->n_tokens; i++) {
        plan->score_row[plan->n_score] = i;
        plan->score_token[plan->n_score++] = (int32_t)run->tokens[first + i + 1];
    }
    if (first + count == run->n_tokens)
        nosa_step_plan_add_sample(plan, &(struct nosa_plan_sample){.sampling = &sampling,
                                                                   .tokens = run->tokens,
                                                                   .n_tokens = run->n_tokens,
                                                                   .prompt_length = PROMPT,
                                                                   .n_top = 3,
                                                                   .keep = true});
    assert_int_equal(nosa_rank_enqueue(&run->rank, plan, NULL), NOSA_OK);
}

/* Ends the step, and appends what was drawn. */
static void finish(struct run *run)
{
    assert_int_equal(nosa_rank_wait(&run->rank, NULL), NOSA_OK);
    if (run->plan.n_sample)
        run->tokens[run->n_tokens++] = (uint32_t)run->plan.result[0].token;
}

static void test_rank_enqueue_on_a_deferred_device(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    struct nosa_checkpoint *checkpoint;
    char path[TINY_PATH_MAX];
    tiny_sparse_defaults(&tiny);
    tiny.attention_bias = true;
    tiny_write(&tiny, path);
    assert_int_equal(nosa_checkpoint_open(path, &checkpoint, NULL), NOSA_OK);
    static struct run direct, later;
    static struct deferred deferred;
    run_open(&direct, checkpoint, NULL);
    run_open(&later, checkpoint, &deferred);
    int32_t count;
    for (int32_t first = 0; first < PROMPT + 60; first += count) {
        int32_t left = direct.n_tokens - first;
        count = left < ROWS_MAX ? left : ROWS_MAX;
        enqueue(&direct, first, count);
        finish(&direct);
        memset(later.plan.result, 0xff, sizeof *later.plan.result);
        enqueue(&later, first, count);
        assert_int_equal(later.plan.result[0].token, -1); /* so nothing has run yet */
        assert_true(deferred.waiting > 20);
        finish(&later);
        assert_int_equal(later.plan.n_score, direct.plan.n_score);
        assert_memory_equal(later.plan.score, direct.plan.score,
                            sizeof(float) * (size_t)direct.plan.n_score);
        if (direct.plan.n_sample == 0)
            continue;
        assert_memory_equal(later.plan.result, direct.plan.result, sizeof *direct.plan.result);
        assert_memory_equal(later.plan.logits, direct.plan.logits, sizeof(float) * tiny.vocab);
    }
    assert_int_equal(later.n_tokens, direct.n_tokens);
    assert_memory_equal(later.tokens, direct.tokens, sizeof direct.tokens);
    run_close(&later);
    run_close(&direct);
    nosa_checkpoint_close(checkpoint);
    nosa_tiny_checkpoint_remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_enqueue_on_a_deferred_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
