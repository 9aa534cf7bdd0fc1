/*
 * What a step hands out beside tokens: traced selections (which rows, the same for any chunking,
 * all KV heads under tensor parallelism), rows of logits, and sparse sizes other than the
 * checkpoint's.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine_support.h"

#define VOCAB      128
#define LENGTH     700
#define STEP_FIRST 650
#define LAYERS     2
#define KV_HEADS   2
#define TOPK       6
#define BLOCKS     ((LENGTH + 63) / 64 + 1)
#define POOLS      (LAYERS * KV_HEADS)
#define ROWS_MAX   128

struct fixture {
    char path[TINY_PATH_MAX];
    uint32_t tokens[LENGTH];
};

struct kept_row {
    int32_t position;
    int32_t n_blocks;
    int32_t count[POOLS];
    int32_t selected[POOLS][TOPK];
    float e[POOLS][BLOCKS];
};

struct kept {
    int32_t n_rows;
    struct kept_row rows[ROWS_MAX];
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct nosa_tiny_checkpoint tiny;
    tiny_sparse_defaults(&tiny);
    tiny_write(&tiny, fixture->path);
    random_tokens(11, VOCAB, fixture->tokens, LENGTH);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    nosa_tiny_checkpoint_remove(fixture->path);
    free(fixture);
    return 0;
}

static struct nosa_engine *open_engine(const char *path, struct nosa_engine_options options)
{
    struct nosa_engine *engine;
    struct nosa_error error = {0};
    options.model_directory = path;
    options.tp = options.tp ? options.tp : 1;
    options.device.threads = 2;
    options.rows_max = 128;
    options.sessions_max = 2;
    options.context_max = LENGTH + 64;
    if (nosa_engine_open(&options, &engine, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return engine;
}

static void keep_row(void *context, const struct nosa_trace_row *row)
{
    struct kept *kept = context;
    assert_true(kept->n_rows < ROWS_MAX);
    assert_int_equal(row->n_layers, LAYERS);
    assert_int_equal(row->n_kv_heads, KV_HEADS);
    assert_int_equal(row->topk, TOPK);
    struct kept_row *to = &kept->rows[kept->n_rows++];
    to->position = row->position;
    to->n_blocks = row->n_blocks;
    for (int32_t pool = 0; pool < POOLS; pool++) {
        to->count[pool] = row->selected_count[pool];
        memcpy(to->selected[pool], row->selected + pool * row->topk,
               sizeof(int32_t) * (size_t)to->count[pool]);
        memcpy(to->e[pool], row->e + pool * row->e_stride, sizeof(float) * (size_t)row->n_blocks);
    }
}

/* Runs the prompt in chunks, then `decoded` tokens; what was traced is in *kept. */
static void run_traced(struct nosa_engine *engine, const struct fixture *fixture, int32_t chunk,
                       int32_t decoded, bool score, struct kept *kept)
{
    memset(kept, 0, sizeof *kept);
    struct nosa_trace_sink sink = {.step_first = STEP_FIRST, .row = keep_row, .context = kept};
    struct nosa_session_options options = {.tokens = fixture->tokens,
                                           .n_tokens = LENGTH,
                                           .prompt_length = LENGTH,
                                           .score = score,
                                           .salt = &chunk,
                                           .salt_bytes = sizeof chunk,
                                           .trace = &sink};
    struct nosa_session *session;
    struct nosa_error error = {0};
    assert_int_equal(nosa_session_open(engine, &options, &session, &error), NOSA_OK);
    sink.step_first = 0; /* the session has its own copy */
    while (nosa_session_computed(session) < LENGTH + decoded) {
        int32_t left = nosa_session_length(session) - nosa_session_computed(session);
        struct nosa_step_item item = {.session = session, .n_tokens = left < chunk ? left : chunk};
        if (nosa_engine_step(engine, &item, 1, &error) != NOSA_OK)
            fail_msg("%s", error.text);
    }
    nosa_session_close(session);
}

static void test_trace_has_ends_of_blocks_and_then_every_row(void **state)
{
    struct fixture *fixture = *state;
    struct kept *kept = calloc(1, sizeof *kept);
    struct nosa_engine *engine =
        open_engine(fixture->path, (struct nosa_engine_options){.attention = NOSA_ATTENTION_NOSA,
                                                                .trace_rows_max = 128});
    run_traced(engine, fixture, 100, 5, false, kept);
    int32_t row = 0;
    for (int32_t position = 0; position < LENGTH + 5; position++) {
        if (position < STEP_FIRST - 1 && position % 64 != 63)
            continue;
        assert_int_equal(kept->rows[row].position, position);
        assert_int_equal(kept->rows[row].n_blocks, position / 64 + 1);
        row++;
    }
    assert_int_equal(kept->n_rows, row);
    for (row = 0; row < kept->n_rows; row++)
        for (int32_t pool = 0; pool < POOLS; pool++) {
            const struct kept_row *at = &kept->rows[row];
            assert_int_equal(at->count[pool], at->n_blocks < TOPK ? at->n_blocks : TOPK);
            assert_int_equal(at->selected[pool][0], 0);
            assert_int_equal(at->selected[pool][at->count[pool] - 1], at->n_blocks - 1);
            for (int32_t i = 1; i < at->count[pool]; i++)
                assert_true(at->selected[pool][i - 1] < at->selected[pool][i]);
        }
    nosa_engine_close(engine);
    free(kept);
}

/* A block's E is final once the window that begins in it and ends in the next block is complete. */
static void test_trace_e_is_final_after_the_last_window(void **state)
{
    struct fixture *fixture = *state;
    struct kept *kept = calloc(1, sizeof *kept);
    struct nosa_engine *engine =
        open_engine(fixture->path, (struct nosa_engine_options){.attention = NOSA_ATTENTION_NOSA,
                                                                .trace_rows_max = 128});
    run_traced(engine, fixture, 128, 0, true, kept);
    int32_t compared = 0;
    float spread = 0;
    const struct kept_row *last = &kept->rows[kept->n_rows - 1];
    for (int32_t row = 0; row < kept->n_rows; row++)
        for (int32_t pool = 0; pool < POOLS; pool++)
            for (int32_t block = 0; block < kept->rows[row].n_blocks; block++) {
                if (64 * block + 63 + 4 > kept->rows[row].position) /* the stride is 4 */
                    continue;
                compared++;
                assert_true(kept->rows[row].e[pool][block] == last->e[pool][block]);
                spread = fmaxf(spread, fabsf(last->e[pool][block] - last->e[pool][0]));
            }
    assert_true(compared > 1000 && spread > 0.1f);
    nosa_engine_close(engine);
    free(kept);
}

static void test_trace_does_not_depend_on_chunks_nor_on_scoring(void **state)
{
    struct fixture *fixture = *state;
    static const int modes[] = {NOSA_ATTENTION_NOSA, NOSA_ATTENTION_INFLLMV2};
    struct kept *expected = calloc(1, sizeof *expected), *kept = calloc(1, sizeof *kept);
    for (int mode = 0; mode < 2; mode++) {
        struct nosa_engine *engine =
            open_engine(fixture->path, (struct nosa_engine_options){.attention = modes[mode],
                                                                    .trace_rows_max = 128});
        run_traced(engine, fixture, 128, 0, false, expected);
        run_traced(engine, fixture, 33, 0, false, kept);
        assert_memory_equal(kept, expected, sizeof *kept);
        run_traced(engine, fixture, 1, 0, true, kept);
        assert_memory_equal(kept, expected, sizeof *kept);
        nosa_engine_close(engine);
    }
    free(expected);
    free(kept);
}

static void test_trace_has_the_heads_of_every_rank(void **state)
{
    struct fixture *fixture = *state;
    struct kept *expected = calloc(1, sizeof *expected), *kept = calloc(1, sizeof *kept);
    for (int32_t tp = 1; tp <= 4; tp *= 2) {
        struct nosa_engine *engine = open_engine(
            fixture->path, (struct nosa_engine_options){
                               .attention = NOSA_ATTENTION_NOSA, .tp = tp, .trace_rows_max = 128});
        run_traced(engine, fixture, 128, 0, false, tp == 1 ? expected : kept);
        nosa_engine_close(engine);
        if (tp == 1)
            continue;
        int32_t equal = 0, all = 0;
        assert_int_equal(kept->n_rows, expected->n_rows);
        for (int32_t row = 0; row < kept->n_rows; row++)
            for (int32_t pool = 0; pool < POOLS; pool++) {
                const struct kept_row *a = &expected->rows[row], *b = &kept->rows[row];
                for (int32_t block = 0; block < a->n_blocks; block++)
                    assert_true(a->e[pool][block] == b->e[pool][block] ||
                                fabsf(a->e[pool][block] - b->e[pool][block]) < 1e-2f);
                equal += memcmp(a->selected[pool], b->selected[pool],
                                sizeof(int32_t) * (size_t)a->count[pool]) == 0;
                all++;
            }
        assert_true(equal > all * 9 / 10); /* rounding may turn a few */
    }
    free(expected);
    free(kept);
}

static void test_trace_in_full_mode_is_empty(void **state)
{
    struct fixture *fixture = *state;
    struct kept *kept = calloc(1, sizeof *kept);
    struct nosa_engine *engine =
        open_engine(fixture->path, (struct nosa_engine_options){.attention = NOSA_ATTENTION_FULL,
                                                                .trace_rows_max = 128});
    run_traced(engine, fixture, 128, 3, false, kept);
    assert_int_equal(kept->n_rows, 0);
    nosa_engine_close(engine);
    free(kept);
}

static void test_trace_of_more_rows_than_there_is_room_for_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct kept *kept = calloc(1, sizeof *kept);
    struct nosa_trace_sink sink = {.step_first = 0, .row = keep_row, .context = kept};
    struct nosa_session_options options = {
        .tokens = fixture->tokens, .n_tokens = LENGTH, .prompt_length = LENGTH, .trace = &sink};
    struct nosa_engine *engine =
        open_engine(fixture->path, (struct nosa_engine_options){.attention = NOSA_ATTENTION_NOSA,
                                                                .trace_rows_max = 20});
    struct nosa_session *session;
    struct nosa_error error = {0};
    assert_int_equal(nosa_session_open(engine, &options, &session, &error), NOSA_OK);
    struct nosa_step_item item = {.session = session, .n_tokens = 21};
    assert_int_equal(nosa_engine_step(engine, &item, 1, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "21 rows"));
    assert_int_equal(nosa_session_computed(session), 0);
    item.n_tokens = 20;
    assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
    assert_int_equal(kept->n_rows, 20);
    nosa_session_close(session);
    nosa_engine_close(engine);
    free(kept);
}

static void test_engine_without_traces_takes_no_memory_for_them(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine_options options = {.attention = NOSA_ATTENTION_NOSA};
    struct nosa_engine *plain = open_engine(fixture->path, options);
    options.trace_rows_max = 64;
    struct nosa_engine *traced = open_engine(fixture->path, options);
    assert_true(nosa_engine_info(plain)->scratch_bytes < nosa_engine_info(traced)->scratch_bytes);
    int32_t n_rows = -1;
    assert_null(nosa_engine_score_logits(plain, &n_rows));
    assert_int_equal(n_rows, 0);
    nosa_engine_close(plain);
    nosa_engine_close(traced);
}

static void test_score_logits_give_the_scores(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine =
        open_engine(fixture->path, (struct nosa_engine_options){.attention = NOSA_ATTENTION_NOSA,
                                                                .score_rows_kept = 100});
    struct nosa_session_options options = {
        .tokens = fixture->tokens, .n_tokens = 150, .prompt_length = 150, .score = true};
    struct nosa_session *session;
    assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
    static const int32_t steps[] = {100, 49, 1};
    static const int32_t scored[] = {100, 49, 0}; /* the last token has no successor */
    int32_t first = 0;
    for (int step = 0; step < 3; step++) {
        struct nosa_step_item item = {.session = session, .n_tokens = steps[step]};
        assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
        int32_t n_rows;
        const float *logits = nosa_engine_score_logits(engine, &n_rows);
        assert_int_equal(n_rows, scored[step]);
        for (int32_t row = 0; row < n_rows; row++) {
            double sum = 0;
            for (int32_t i = 0; i < VOCAB; i++)
                sum += exp((double)logits[row * VOCAB + i]);
            double logprob =
                (double)logits[row * VOCAB + (int32_t)fixture->tokens[first + row + 1]] - log(sum);
            assert_true(fabs(logprob - (double)nosa_session_scores(session)[first + row + 1]) <
                        1e-4);
        }
        first += steps[step];
    }
    nosa_session_close(session);
    nosa_engine_close(engine);
}

static void test_score_logits_of_more_rows_than_kept_are_none(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine =
        open_engine(fixture->path, (struct nosa_engine_options){.attention = NOSA_ATTENTION_NOSA,
                                                                .score_rows_kept = 50});
    struct nosa_session_options options = {
        .tokens = fixture->tokens, .n_tokens = 150, .prompt_length = 150, .score = true};
    struct nosa_session *session;
    assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
    struct nosa_step_item item = {.session = session, .n_tokens = 51};
    assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
    int32_t n_rows;
    assert_null(nosa_engine_score_logits(engine, &n_rows));
    assert_int_equal(n_rows, 0);
    assert_true(nosa_session_scores(session)[51] < 0);
    nosa_session_close(session);
    nosa_engine_close(engine);
}

static void test_sparse_sizes_are_as_if_the_checkpoint_had_them(void **state)
{
    struct fixture *fixture = *state;
    char path[TINY_PATH_MAX];
    struct nosa_tiny_checkpoint tiny;
    tiny_sparse_defaults(&tiny);
    tiny.sparse.topk = 8;
    tiny.sparse.window_size = 192;
    tiny.sparse.select_blocks = 3;
    tiny_write(&tiny, path);
    float logits[3][VOCAB];
    struct nosa_engine_options options = {.attention = NOSA_ATTENTION_NOSA};
    for (int i = 0; i < 3; i++) {
        options.sparse =
            i == 1 ? (struct nosa_sparse_sizes){8, 192, 3} : (struct nosa_sparse_sizes){0, 0, 0};
        struct nosa_engine *engine = open_engine(i == 0 ? path : fixture->path, options);
        logits_after(engine, fixture->tokens, LENGTH, 128, 0, logits[i]);
        nosa_engine_close(engine);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    assert_memory_not_equal(logits[0], logits[2], sizeof logits[0]);
    nosa_tiny_checkpoint_remove(path);
}

static void test_ignored_head_is_as_if_there_were_none(void **state)
{
    struct fixture *fixture = *state;
    static const int modes[] = {NOSA_ATTENTION_FULL, NOSA_ATTENTION_INFLLMV2};
    char path[TINY_PATH_MAX];
    struct nosa_tiny_checkpoint tiny;
    tiny_sparse_defaults(&tiny);
    tiny.eviction_head = false;
    tiny_write(&tiny, path);
    for (int mode = 0; mode < 2; mode++) {
        float logits[3][VOCAB];
        for (int i = 0; i < 3; i++) {
            struct nosa_engine_options options = {.attention = modes[mode], .ignore_head = i == 1};
            struct nosa_engine *engine = open_engine(i == 0 ? path : fixture->path, options);
            assert_int_equal(nosa_engine_info(engine)->config->has_eviction_head, i == 2);
            logits_after(engine, fixture->tokens, LENGTH, 128, 0, logits[i]);
            nosa_engine_close(engine);
        }
        assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
        assert_memory_not_equal(logits[0], logits[2], sizeof logits[0]);
    }
    struct nosa_engine_options by_default = {.attention = NOSA_ENGINE_ATTENTION_DEFAULT,
                                             .ignore_head = true};
    struct nosa_engine *engine = open_engine(fixture->path, by_default);
    assert_int_equal(nosa_engine_info(engine)->attention, NOSA_ATTENTION_FULL);
    nosa_engine_close(engine);
    nosa_tiny_checkpoint_remove(path);
}

static void test_sparse_sizes_that_contradict_are_refused(void **state)
{
    struct fixture *fixture = *state;
    static const struct nosa_sparse_sizes bad[] = {
        {.topk = 4}, {.window_size = 100}, {.select_blocks = 5}, {.topk = UINT32_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct nosa_engine_options options = {.model_directory = fixture->path,
                                              .attention = NOSA_ATTENTION_NOSA,
                                              .tp = 1,
                                              .rows_max = 16,
                                              .sessions_max = 1,
                                              .sparse = bad[i]};
        struct nosa_engine *engine;
        struct nosa_error error = {0};
        assert_int_equal(nosa_engine_open(&options, &engine, &error), NOSA_INVALID_ARGUMENT);
        assert_null(engine);
        assert_true(strlen(error.text) > 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trace_has_ends_of_blocks_and_then_every_row),
        cmocka_unit_test(test_trace_e_is_final_after_the_last_window),
        cmocka_unit_test(test_trace_does_not_depend_on_chunks_nor_on_scoring),
        cmocka_unit_test(test_trace_has_the_heads_of_every_rank),
        cmocka_unit_test(test_trace_in_full_mode_is_empty),
        cmocka_unit_test(test_trace_of_more_rows_than_there_is_room_for_is_refused),
        cmocka_unit_test(test_engine_without_traces_takes_no_memory_for_them),
        cmocka_unit_test(test_score_logits_give_the_scores),
        cmocka_unit_test(test_score_logits_of_more_rows_than_kept_are_none),
        cmocka_unit_test(test_sparse_sizes_are_as_if_the_checkpoint_had_them),
        cmocka_unit_test(test_ignored_head_is_as_if_there_were_none),
        cmocka_unit_test(test_sparse_sizes_that_contradict_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
