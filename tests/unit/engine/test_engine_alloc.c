/*
 * The engine without memory and without threads: every allocation of opening, of a session and of
 * steps fails once, as does every thread; nothing is leaked (the sanitizer's to find) and nothing
 * hangs. And a step allocates nothing.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine_support.h"
#include "support/alloc_fail.h"

#define LENGTH 450

/* The thread that is not created, counted from 1; 0: all are. */
static int thread_failing;
static int threads_created;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument)
{
    if (__atomic_add_fetch(&threads_created, 1, __ATOMIC_RELAXED) == thread_failing)
        return EAGAIN;
    return __real_pthread_create(thread, attributes, start, argument);
}

struct work {
    char path[TINY_PATH_MAX];
    struct nosa_engine_options options;
    struct nosa_session_options session;
    uint32_t tokens[LENGTH];
};

static enum nosa_status run_steps(struct nosa_engine *engine, struct nosa_session *session,
                                  int32_t n_tokens, struct nosa_error *error)
{
    while (nosa_session_computed(session) < n_tokens) {
        int32_t left = nosa_session_length(session) - nosa_session_computed(session);
        struct nosa_step_item item = {.session = session, .n_tokens = left < 200 ? left : 200};
        NOSA_TRY(nosa_engine_step(engine, &item, 1, error));
    }
    return NOSA_OK;
}

/* Opens the engine and a session, computes the prompt and a few tokens more, closes all. */
static enum nosa_status run_all(void *context, struct nosa_error *error)
{
    const struct work *work = context;
    struct nosa_engine *engine = NULL;
    struct nosa_session *session = NULL;
    enum nosa_status status = nosa_engine_open(&work->options, &engine, error);
    if (status != NOSA_OK) {
        assert_null(engine);
        return status;
    }
    status = nosa_session_open(engine, &work->session, &session, error);
    if (status == NOSA_OK)
        status = run_steps(engine, session, LENGTH + (work->session.score ? 0 : 3), error);
    else
        assert_null(session);
    nosa_session_close(session);
    nosa_engine_close(engine);
    return status;
}

static void work_open(struct work *work, int32_t tp, int32_t threads)
{
    struct nosa_tiny_checkpoint tiny;
    tiny_sparse_defaults(&tiny);
    tiny.dtype = NOSA_TENSOR_BF16;
    tiny.attention_bias = true;
    tiny_write(&tiny, work->path);
    random_tokens(3, tiny.vocab, work->tokens, LENGTH);
    work->options = (struct nosa_engine_options){
        .model_directory = work->path,
        .attention = NOSA_ATTENTION_NOSA,
        .tp = tp,
        .device = {.threads = threads},
        .rows_max = 200,
        .sessions_max = 2,
        .context_max = LENGTH + 64,
    };
    work->session = (struct nosa_session_options){
        .tokens = work->tokens,
        .n_tokens = LENGTH,
        .prompt_length = LENGTH,
        .sampling = {.temperature = 1, .top_p = 0.9f, .presence_penalty = 1, .seed = 1},
        .n_top = 5,
        .keep_logits = true,
    };
}

static void work_close(struct work *work)
{
    nosa_tiny_checkpoint_remove(work->path);
}

static void test_engine_open_allocation_failures(void **state)
{
    (void)state;
    struct work work;
    work_open(&work, 1, 2);
    int allocations = nosa_alloc_fail_sweep(run_all, &work);
    printf("one rank: %d allocations\n", allocations);
    assert_true(allocations > 200);
    work_close(&work);
}

static void test_engine_open_allocation_failures_of_two_ranks(void **state)
{
    (void)state;
    struct work work;
    work_open(&work, 2, 2);
    int allocations = nosa_alloc_fail_sweep(run_all, &work);
    printf("two ranks: %d allocations\n", allocations);
    assert_true(allocations > 200);
    work_close(&work);
}

static void test_session_open_allocation_failures_of_a_score(void **state)
{
    (void)state;
    struct work work;
    work_open(&work, 1, 1);
    work.session.score = true;
    work.session.keep_logits = false;
    assert_true(nosa_alloc_fail_sweep(run_all, &work) > 200);
    work_close(&work);
}

static void count_row(void *context, const struct nosa_trace_row *row)
{
    int *rows = context;
    *rows += row->n_blocks > 0;
}

/* The memory of traced rows and of kept rows of logits, over two ranks. */
static void test_engine_open_allocation_failures_of_a_trace(void **state)
{
    (void)state;
    struct work work;
    int rows = 0;
    const struct nosa_trace_sink sink = {.row = count_row, .context = &rows};
    work_open(&work, 2, 2);
    work.options.trace_rows_max = 200;
    work.options.score_rows_kept = 200;
    work.session.score = true;
    work.session.keep_logits = false;
    work.session.trace = &sink;
    assert_true(nosa_alloc_fail_sweep(run_all, &work) > 200);
    assert_true(rows >= LENGTH);
    work_close(&work);
}

/* Every thread of ranks and pools is missing once; the engine says so. */
static void test_engine_open_thread_failures(void **state)
{
    (void)state;
    for (int32_t tp = 1; tp <= 2; tp++) {
        struct work work;
        work_open(&work, tp, 4);
        int failures = 0;
        for (thread_failing = 1;; thread_failing++) {
            struct nosa_error error = {0};
            __atomic_store_n(&threads_created, 0, __ATOMIC_RELAXED);
            enum nosa_status status = run_all(&work, &error);
            if (threads_created < thread_failing) {
                assert_int_equal(status, NOSA_OK);
                break;
            }
            failures++;
            assert_true(status == NOSA_RESOURCE_EXHAUSTED || status == NOSA_OUT_OF_MEMORY);
            assert_true(error.text[0] != '\0');
        }
        assert_true(failures >= 3);
        thread_failing = 0;
        work_close(&work);
    }
}

/* Of prefill chunks, decode tokens, scored rows and shared prefixes alike. */
static void test_engine_step_allocates_nothing(void **state)
{
    (void)state;
    for (int32_t tp = 1; tp <= 2; tp++)
        for (int32_t score = 0; score <= 1; score++) {
            struct work work;
            work_open(&work, tp, 2);
            work.session.score = score;
            work.session.keep_logits = !score;
            struct nosa_engine *engine;
            struct nosa_session *session;
            struct nosa_error error = {0};
            assert_int_equal(nosa_engine_open(&work.options, &engine, &error), NOSA_OK);
            for (int run = 0; run < 2; run++) {
                assert_int_equal(nosa_session_open(engine, &work.session, &session, &error),
                                 NOSA_OK);
                nosa_alloc_fail_arm(0);
                enum nosa_status status =
                    run_steps(engine, session, score ? LENGTH : LENGTH + 60, &error);
                nosa_alloc_fail_disarm();
                assert_int_equal(status, NOSA_OK);
                assert_int_equal(nosa_alloc_fail_count(), 0);
                nosa_session_close(session);
            }
            nosa_engine_close(engine);
            work_close(&work);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_open_allocation_failures),
        cmocka_unit_test(test_engine_open_allocation_failures_of_two_ranks),
        cmocka_unit_test(test_session_open_allocation_failures_of_a_score),
        cmocka_unit_test(test_engine_open_allocation_failures_of_a_trace),
        cmocka_unit_test(test_engine_open_thread_failures),
        cmocka_unit_test(test_engine_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
