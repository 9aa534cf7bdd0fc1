/*
 * The engine's contract: what a token gets does not depend on chunking, on what else is in the
 * batch, on threads, on the instruction set or on where its KV came from, to the last bit; and its
 * errors change nothing.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine_support.h"

#define VOCAB  128
#define LENGTH 700

static const int modes[] = {NOSA_ATTENTION_FULL, NOSA_ATTENTION_INFLLMV2, NOSA_ATTENTION_NOSA};

struct fixture {
    char path[TINY_PATH_MAX];
    uint32_t tokens[LENGTH];
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct nosa_tiny_checkpoint tiny;
    tiny_sparse_defaults(&tiny);
    tiny.dtype = NOSA_TENSOR_BF16;
    tiny_write(&tiny, fixture->path);
    random_tokens(7, VOCAB, fixture->tokens, LENGTH);
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

static void assert_same_logits(const float *a, const float *b)
{
    assert_memory_equal(a, b, sizeof(float) * VOCAB);
}

static void test_engine_step_same_bits_for_any_chunk(void **state)
{
    struct fixture *fixture = *state;
    static const int32_t chunks[] = {LENGTH, 1, 7, 64, 65, 333};
    for (size_t m = 0; m < 3; m++) {
        struct nosa_engine *engine =
            tiny_engine(fixture->path, modes[m], 1, 2, LENGTH, 2, LENGTH + 8);
        float expected[VOCAB], got[VOCAB];
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
            logits_after(engine, fixture->tokens, LENGTH, chunks[i], (int)i, i ? got : expected);
            if (i)
                assert_same_logits(got, expected);
        }
        nosa_engine_close(engine);
    }
}

static void test_engine_step_modes_differ_where_blocks_are_left_out(void **state)
{
    struct fixture *fixture = *state;
    float logits[3][VOCAB];
    for (int32_t length = 384; length <= LENGTH; length += LENGTH - 384) {
        for (size_t m = 0; m < 3; m++) {
            struct nosa_engine *engine = tiny_engine(fixture->path, modes[m], 1, 1, 512, 1, LENGTH);
            logits_after(engine, fixture->tokens, length, 512, 0, logits[m]);
            nosa_engine_close(engine);
        }
        bool all_visible = length <= 6 * 64; /* topk blocks: exact full attention */
        for (size_t m = 1; m < 3; m++)
            assert_int_equal(memcmp(logits[0], logits[m], sizeof logits[0]) == 0, all_visible);
        if (!all_visible)
            assert_memory_not_equal(logits[1], logits[2], sizeof logits[1]);
    }
}

static void test_engine_step_same_bits_for_any_thread_count(void **state)
{
    struct fixture *fixture = *state;
    float expected[VOCAB], got[VOCAB];
    for (int32_t threads = 1; threads <= 4; threads++) {
        struct nosa_engine *engine =
            tiny_engine(fixture->path, NOSA_ENGINE_ATTENTION_DEFAULT, 1, threads, 256, 1, LENGTH);
        assert_int_equal(nosa_engine_info(engine)->attention, NOSA_ATTENTION_NOSA);
        logits_after(engine, fixture->tokens, LENGTH, 256, 0, threads == 1 ? expected : got);
        if (threads > 1)
            assert_same_logits(got, expected);
        nosa_engine_close(engine);
    }
}

static void test_engine_step_same_bits_on_every_instruction_set(void **state)
{
    struct fixture *fixture = *state;
    float expected[VOCAB], got[VOCAB];
    for (int isa = NOSA_CPU_ISA_PORTABLE; isa <= NOSA_CPU_ISA_AVX512; isa++) {
        if (!nosa_cpu_isa_available((enum nosa_cpu_isa)isa))
            continue;
        struct nosa_engine_options options = {
            .model_directory = fixture->path,
            .attention = NOSA_ATTENTION_NOSA,
            .tp = 1,
            .device = {.threads = 2, .isa = (enum nosa_cpu_isa)isa},
            .rows_max = 256,
            .sessions_max = 1,
            .context_max = LENGTH};
        struct nosa_engine *engine;
        struct nosa_error error = {0};
        assert_int_equal(nosa_engine_open(&options, &engine, &error), NOSA_OK);
        bool first = isa == NOSA_CPU_ISA_PORTABLE;
        logits_after(engine, fixture->tokens, LENGTH, 256, 0, first ? expected : got);
        if (!first)
            assert_same_logits(got, expected);
        nosa_engine_close(engine);
    }
}

/* Three sessions at different points share steps; each ends with the logits that it has alone. */
static void test_engine_step_same_bits_in_a_batch(void **state)
{
    struct fixture *fixture = *state;
    static const int32_t lengths[] = {LENGTH, 190, 65};
    for (size_t m = 0; m < 3; m++) {
        struct nosa_engine *engine = tiny_engine(fixture->path, modes[m], 1, 2, 200, 4, LENGTH + 8);
        struct nosa_session *sessions[3];
        float alone[3][VOCAB];
        for (int i = 0; i < 3; i++)
            logits_after(engine, fixture->tokens + i, lengths[i] - i, 128, 100 + i, alone[i]);
        for (int i = 0; i < 3; i++) {
            struct nosa_session_options options = {.tokens = fixture->tokens + i,
                                                   .n_tokens = lengths[i] - i,
                                                   .prompt_length = lengths[i] - i,
                                                   .keep_logits = true};
            assert_int_equal(nosa_session_open(engine, &options, &sessions[i], NULL), NOSA_OK);
        }
        int finished = 0;
        while (finished < 3) {
            struct nosa_step_item items[3];
            int index[3], n = 0;
            for (int i = 0; i < 3; i++) {
                int32_t left = lengths[i] - i - nosa_session_computed(sessions[i]);
                if (left <= 0)
                    continue;
                int32_t most = 20 + 40 * (2 - i);
                index[n] = i;
                items[n++] = (struct nosa_step_item){.session = sessions[i],
                                                     .n_tokens = left < most ? left : most};
            }
            assert_int_equal(nosa_engine_step(engine, items, n, NULL), NOSA_OK);
            for (int j = 0; j < n; j++)
                if (items[j].sampled) {
                    assert_same_logits(nosa_session_logits(items[j].session), alone[index[j]]);
                    finished++;
                }
        }
        for (int i = 0; i < 3; i++)
            nosa_session_close(sessions[i]);
        nosa_engine_close(engine);
    }
}

static void test_engine_step_same_bits_on_shared_prefix(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine =
        tiny_engine(fixture->path, NOSA_ATTENTION_NOSA, 1, 2, 512, 2, LENGTH);
    float cold[VOCAB], warm[VOCAB], other[VOCAB];
    logits_after(engine, fixture->tokens, LENGTH, 512, 1, cold);
    struct nosa_kv_store_counters before, after;
    nosa_engine_kv_counters(engine, &before);
    logits_after(engine, fixture->tokens, LENGTH, 512, 1, warm);
    nosa_engine_kv_counters(engine, &after);
    assert_int_equal(after.prefix_hit_tokens - before.prefix_hit_tokens, (LENGTH - 1) / 64 * 64);
    assert_same_logits(warm, cold);
    logits_after(engine, fixture->tokens, LENGTH, 512, 2, other); /* another salt shares nothing */
    nosa_engine_kv_counters(engine, &before);
    assert_int_equal(before.prefix_hit_tokens, after.prefix_hit_tokens);
    assert_same_logits(other, cold);
    nosa_engine_close(engine);
}

/* Tokens generated one at a time have the KV that a prompt of the same tokens has. */
static void test_engine_step_decode_equals_prefill(void **state)
{
    struct fixture *fixture = *state;
    for (size_t m = 0; m < 3; m++) {
        struct nosa_engine *engine = tiny_engine(fixture->path, modes[m], 1, 2, 600, 2, LENGTH);
        struct nosa_session_options options = {.tokens = fixture->tokens,
                                               .n_tokens = 500,
                                               .prompt_length = 500,
                                               .sampling = {.temperature = 1, .seed = 3},
                                               .keep_logits = true};
        struct nosa_session *session;
        assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
        float prefill[VOCAB];
        for (int32_t i = 0; i < 100; i++) {
            int32_t left = nosa_session_length(session) - nosa_session_computed(session);
            struct nosa_step_item item = {.session = session, .n_tokens = left};
            assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
            assert_true(item.sampled && item.appended);
            assert_int_equal(nosa_session_tokens(session)[500 + i], item.result.token);
        }
        logits_after(engine, nosa_session_tokens(session), 599, 600, 9, prefill);
        assert_same_logits(nosa_session_logits(session), prefill);
        nosa_session_close(session);
        nosa_engine_close(engine);
    }
}

static void test_session_scores_equal_softmax_of_logits(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine =
        tiny_engine(fixture->path, NOSA_ATTENTION_NOSA, 1, 2, 100, 2, LENGTH);
    struct nosa_session_options options = {
        .tokens = fixture->tokens, .n_tokens = 450, .prompt_length = 450, .score = true};
    struct nosa_session *session;
    assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
    while (nosa_session_computed(session) < 450) {
        int32_t left = 450 - nosa_session_computed(session);
        struct nosa_step_item item = {.session = session, .n_tokens = left < 100 ? left : 100};
        assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
        assert_false(item.sampled);
    }
    const float *scores = nosa_session_scores(session);
    static const int32_t positions[] = {1, 2, 63, 64, 65, 99, 100, 101, 300, 449};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        float logits[VOCAB];
        logits_after(engine, fixture->tokens, positions[i], 64, 1, logits);
        double sum = 0;
        for (int j = 0; j < VOCAB; j++)
            sum += exp((double)logits[j]);
        double expected = (double)logits[fixture->tokens[positions[i]]] - log(sum);
        assert_true(fabs((double)scores[positions[i]] - expected) < 1e-4);
    }
    nosa_session_close(session);
    nosa_engine_close(engine);
}

/* Equal where the same bits come out: threads do not matter, ranks and modes do. */
static void test_engine_info_fingerprint_names_what_decides_bits(void **state)
{
    struct fixture *fixture = *state;
    const struct {
        int attention;
        int32_t tp, threads;
    } kinds[] = {{NOSA_ATTENTION_NOSA, 1, 1},
                 {NOSA_ATTENTION_NOSA, 1, 2},
                 {NOSA_ATTENTION_FULL, 1, 1},
                 {NOSA_ATTENTION_NOSA, 2, 2}};
    char fingerprints[4][160];
    for (int i = 0; i < 4; i++) {
        struct nosa_engine *engine = tiny_engine(fixture->path, kinds[i].attention, kinds[i].tp,
                                                 kinds[i].threads, 16, 1, 64);
        strcpy(fingerprints[i], nosa_engine_info(engine)->fingerprint);
        nosa_engine_close(engine);
    }
    assert_non_null(strstr(fingerprints[0], "weights=bf16 kv=bf16"));
    assert_string_equal(fingerprints[0], fingerprints[1]);
    assert_string_not_equal(fingerprints[0], fingerprints[2]);
    assert_string_not_equal(fingerprints[0], fingerprints[3]);
}

static void test_session_open_bad_input_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine = tiny_engine(fixture->path, NOSA_ATTENTION_FULL, 1, 1, 64, 1, 128);
    uint32_t bad[] = {1, VOCAB};
    const struct {
        struct nosa_session_options options;
        const char *text;
    } cases[] = {
        {{.tokens = bad, .n_tokens = 0, .prompt_length = 0}, "empty"},
        {{.tokens = bad, .n_tokens = 2, .prompt_length = 2}, "token 128 at position 1"},
        {{.tokens = fixture->tokens, .n_tokens = 129, .prompt_length = 129}, "129 tokens"},
        {{.tokens = bad, .n_tokens = 1, .prompt_length = 1, .sampling = {.temperature = NAN}},
         "temperature"},
        {{.tokens = bad, .n_tokens = 1, .prompt_length = 1, .sampling = {.top_p = 1.5f}}, "top_p"},
        {{.tokens = bad, .n_tokens = 1, .prompt_length = 1, .sampling = {.top_k = -1}}, "top_k"},
        {{.tokens = bad, .n_tokens = 1, .prompt_length = 1, .n_top = 21}, "21"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nosa_session *session;
        struct nosa_error error = {0};
        assert_int_equal(nosa_session_open(engine, &cases[i].options, &session, &error),
                         NOSA_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, cases[i].text));
        assert_null(session);
    }
    nosa_engine_close(engine);
}

static void test_engine_step_bad_items_change_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine = tiny_engine(fixture->path, NOSA_ATTENTION_FULL, 1, 1, 64, 2, 128);
    struct nosa_session_options options = {
        .tokens = fixture->tokens, .n_tokens = 100, .prompt_length = 100};
    struct nosa_session *session;
    assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
    static const int32_t counts[] = {0, -1, 101, 65};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct nosa_step_item item = {.session = session, .n_tokens = counts[i]};
        assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_INVALID_ARGUMENT);
        assert_int_equal(nosa_session_computed(session), 0);
    }
    struct nosa_step_item twice[] = {{.session = session, .n_tokens = 1},
                                     {.session = session, .n_tokens = 1}};
    assert_int_equal(nosa_engine_step(engine, twice, 2, NULL), NOSA_INVALID_ARGUMENT);
    assert_int_equal(nosa_engine_step(engine, twice, 0, NULL), NOSA_INVALID_ARGUMENT);
    struct nosa_step_item item = {.session = session, .n_tokens = 64};
    assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
    assert_int_equal(nosa_session_computed(session), 64);
    nosa_session_close(session);
    nosa_engine_close(engine);
}

static void test_engine_step_full_context_appends_no_more(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine *engine = tiny_engine(fixture->path, NOSA_ATTENTION_FULL, 1, 1, 64, 1, 64);
    struct nosa_session_options options = {
        .tokens = fixture->tokens, .n_tokens = 62, .prompt_length = 62};
    struct nosa_session *session;
    assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
    static const bool appended[] = {true, true, false};
    for (int i = 0; i < 3; i++) {
        int32_t left = nosa_session_length(session) - nosa_session_computed(session);
        struct nosa_step_item item = {.session = session, .n_tokens = left};
        assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_OK);
        assert_true(item.sampled);
        assert_int_equal(item.appended, appended[i]);
    }
    assert_int_equal(nosa_session_length(session), 64);
    nosa_session_close(session);
    nosa_engine_close(engine);
}

static void test_engine_open_bad_options_are_refused(void **state)
{
    struct fixture *fixture = *state;
    const struct {
        struct nosa_engine_options options;
        const char *text;
    } cases[] = {
        {{.model_directory = "/nonexistent/model", .tp = 1, .rows_max = 1, .sessions_max = 1},
         "/nonexistent/model"},
        {{.model_directory = fixture->path, .tp = 3, .rows_max = 1, .sessions_max = 1}, "--tp 3"},
        {{.model_directory = fixture->path, .tp = 8, .rows_max = 1, .sessions_max = 1}, "--tp 8"},
        {{.model_directory = fixture->path,
          .tp = 1,
          .rows_max = 1,
          .sessions_max = 1,
          .context_max = 5000},
         "4096 positions"},
        {{.model_directory = fixture->path,
          .tp = 1,
          .rows_max = 1,
          .sessions_max = 1,
          .kv_bytes = 4096},
         "--gpu-kv-bytes 4096 holds 0 blocks"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nosa_engine *engine;
        struct nosa_error error = {0};
        assert_int_not_equal(nosa_engine_open(&cases[i].options, &engine, &error), NOSA_OK);
        assert_null(engine);
        if (!strstr(error.text, cases[i].text))
            fail_msg("'%s' does not name '%s'", error.text, cases[i].text);
    }
}

/* More sessions than blocks: the one that finds none is told so, the others go on. */
static void test_engine_step_without_blocks_is_refused_whole(void **state)
{
    struct fixture *fixture = *state;
    struct nosa_engine_options options = {.model_directory = fixture->path,
                                          .attention = NOSA_ATTENTION_FULL,
                                          .tp = 1,
                                          .device = {.threads = 1},
                                          .rows_max = 256,
                                          .sessions_max = 2,
                                          .context_max = 256};
    struct nosa_engine *engine;
    assert_int_equal(nosa_engine_open(&options, &engine, NULL), NOSA_OK);
    assert_int_equal(nosa_engine_info(engine)->kv_blocks, 8);
    nosa_engine_close(engine);
    const struct nosa_kv_geometry geometry = {.n_layers = 2,
                                              .n_kv_heads = 2,
                                              .head_dim = 16,
                                              .kernel_size = 8,
                                              .kernel_stride = 4,
                                              .type = NOSA_DTYPE_BF16};
    options.kv_bytes = 6 * nosa_kv_block_bytes(&geometry) - 1;
    assert_int_equal(nosa_engine_open(&options, &engine, NULL), NOSA_OK);
    assert_int_equal(nosa_engine_info(engine)->kv_blocks, 5);
    struct nosa_session *sessions[2];
    for (int i = 0; i < 2; i++) {
        struct nosa_session_options session = {
            .tokens = fixture->tokens + 300 * i, .n_tokens = 250, .prompt_length = 250};
        assert_int_equal(nosa_session_open(engine, &session, &sessions[i], NULL), NOSA_OK);
    }
    struct nosa_step_item first = {.session = sessions[0], .n_tokens = 250};
    assert_int_equal(nosa_engine_step(engine, &first, 1, NULL), NOSA_OK);
    struct nosa_step_item both[] = {{.session = sessions[0], .n_tokens = 1},
                                    {.session = sessions[1], .n_tokens = 250}};
    struct nosa_error error = {0};
    assert_int_equal(nosa_session_blocks_needed(sessions[0], 1), 0);
    assert_int_equal(nosa_session_blocks_needed(sessions[1], 250), 4);
    assert_int_equal(nosa_engine_blocks_available(engine), 1);
    struct nosa_step_item mixed[] = {{.session = sessions[1], .n_tokens = 65},
                                     {.session = sessions[0], .n_tokens = 1}};
    assert_int_equal(nosa_engine_step(engine, mixed, 2, NULL), NOSA_RESOURCE_EXHAUSTED);
    assert_int_equal(nosa_engine_blocks_available(engine), 1); /* nothing was taken */
    assert_int_equal(nosa_engine_step(engine, both, 2, &error), NOSA_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.text, "4 KV blocks; 1 of 5"));
    assert_int_equal(nosa_session_computed(sessions[0]), 250);
    assert_int_equal(nosa_session_computed(sessions[1]), 0);
    assert_int_equal(nosa_engine_step(engine, both, 1, &error), NOSA_OK);
    nosa_session_close(sessions[0]);
    assert_int_equal(nosa_engine_step(engine, both + 1, 1, &error), NOSA_OK);
    nosa_session_close(sessions[1]);
    nosa_engine_close(engine);
}

/* Steps until the session has `n_tokens` tokens; the others take a step's part each time. */
static void run_to(struct nosa_engine *engine, struct nosa_session **sessions, int n,
                   int32_t n_tokens)
{
    while (nosa_session_length(sessions[0]) < n_tokens) {
        struct nosa_step_item items[3];
        for (int i = 0; i < n; i++)
            items[i] = (struct nosa_step_item){.session = sessions[i],
                                               .n_tokens = nosa_session_length(sessions[i]) -
                                                           nosa_session_computed(sessions[i])};
        assert_int_equal(nosa_engine_step(engine, items, n, NULL), NOSA_OK);
    }
}

/* Each session is drawn for with its own parameters and history, alone or beside others: a strong
 * presence penalty never repeats an output token, and seeds and positions decide the draws. */
static void test_engine_step_sampling_in_a_batch(void **state)
{
    struct fixture *fixture = *state;
    enum { PROMPT = 100, END = 190 };
    const struct nosa_sampling samplings[] = {
        {.presence_penalty = 100},
        {.temperature = 1, .top_p = 0.9f, .seed = 5},
        {.temperature = 0.8f, .repetition_penalty = 1.5f, .frequency_penalty = 2, .seed = 6},
    };
    for (int32_t tp = 1; tp <= 2; tp++) {
        struct nosa_engine *engine =
            tiny_engine(fixture->path, NOSA_ATTENTION_NOSA, tp, 2, 300, 3, END + 1);
        uint32_t alone[3][END];
        for (int pass = 0; pass < 2; pass++) {
            struct nosa_session *sessions[3];
            for (int i = 0; i < 3; i++) {
                struct nosa_session_options options = {.tokens = fixture->tokens + i,
                                                       .n_tokens = PROMPT,
                                                       .prompt_length = PROMPT,
                                                       .sampling = samplings[i]};
                assert_int_equal(nosa_session_open(engine, &options, &sessions[i], NULL), NOSA_OK);
                if (pass == 0) {
                    run_to(engine, &sessions[i], 1, END);
                    memcpy(alone[i], nosa_session_tokens(sessions[i]), sizeof alone[i]);
                }
            }
            if (pass == 1)
                run_to(engine, sessions, 3, END);
            for (int i = 0; i < 3; i++) {
                assert_memory_equal(nosa_session_tokens(sessions[i]), alone[i], sizeof alone[i]);
                nosa_session_close(sessions[i]);
            }
        }
        bool seen[VOCAB] = {false};
        for (int32_t i = PROMPT; i < END; i++) {
            assert_false(seen[alone[0][i]]);
            seen[alone[0][i]] = true;
        }
        nosa_engine_close(engine);
    }
}

/* A step in flight: no second one, its sessions stay, others come and go. */
static void test_engine_step_begin_and_finish(void **state)
{
    struct fixture *fixture = *state;
    for (int32_t tp = 1; tp <= 2; tp++) {
        struct nosa_engine *engine =
            tiny_engine(fixture->path, NOSA_ATTENTION_NOSA, tp, 2, 200, 3, LENGTH);
        float alone[VOCAB];
        logits_after(engine, fixture->tokens, 190, 190, 1, alone);
        struct nosa_session_options options = {
            .tokens = fixture->tokens, .n_tokens = 190, .prompt_length = 190, .keep_logits = true};
        struct nosa_session *session, *other;
        assert_int_equal(nosa_session_open(engine, &options, &session, NULL), NOSA_OK);
        assert_int_equal(nosa_engine_step_finish(engine, NULL), NOSA_INVALID_ARGUMENT);
        struct nosa_step_item item = {.session = session, .n_tokens = 190};
        assert_int_equal(nosa_engine_step_begin(engine, &item, 1, NULL), NOSA_OK);
        assert_int_equal(nosa_engine_step_begin(engine, &item, 1, NULL), NOSA_INVALID_ARGUMENT);
        assert_int_equal(nosa_session_append(session, 1, NULL), NOSA_INVALID_ARGUMENT);
        assert_int_equal(nosa_session_open(engine, &options, &other, NULL), NOSA_OK);
        assert_int_equal(nosa_session_append(other, 1, NULL), NOSA_OK);
        nosa_session_close(other);
        assert_int_equal(nosa_session_computed(session), 0);
        assert_int_equal(nosa_engine_step_finish(engine, NULL), NOSA_OK);
        assert_true(item.sampled && item.appended);
        assert_int_equal(nosa_session_computed(session), 190);
        assert_same_logits(nosa_session_logits(session), alone);
        assert_int_equal(nosa_engine_step_finish(engine, NULL), NOSA_INVALID_ARGUMENT);
        nosa_session_close(session);
        nosa_engine_close(engine);
    }
}

/* Memory beyond what open sessions fill keeps the prefixes of closed ones. */
static void test_engine_open_more_kv_bytes_keep_more_prefixes(void **state)
{
    struct fixture *fixture = *state;
    const struct nosa_kv_geometry geometry = {.n_layers = 2,
                                              .n_kv_heads = 2,
                                              .head_dim = 16,
                                              .kernel_size = 8,
                                              .kernel_stride = 4,
                                              .type = NOSA_DTYPE_BF16};
    struct nosa_engine_options options = {.model_directory = fixture->path,
                                          .attention = NOSA_ATTENTION_NOSA,
                                          .tp = 1,
                                          .device = {.threads = 1},
                                          .rows_max = 256,
                                          .sessions_max = 1,
                                          .context_max = 256,
                                          .kv_bytes = 12 * nosa_kv_block_bytes(&geometry)};
    struct nosa_engine *engine;
    assert_int_equal(nosa_engine_open(&options, &engine, NULL), NOSA_OK);
    assert_int_equal(nosa_engine_info(engine)->kv_blocks, 12);
    float logits[VOCAB];
    for (int32_t i = 0; i < 3; i++)
        logits_after(engine, fixture->tokens + 200 * i, 200, 200, 1, logits);
    struct nosa_kv_store_counters counters;
    nosa_engine_kv_counters(engine, &counters);
    assert_int_equal(counters.prefix_hit_tokens, 0);
    for (int32_t i = 0; i < 3; i++)
        logits_after(engine, fixture->tokens + 200 * i, 200, 200, 1, logits);
    nosa_engine_kv_counters(engine, &counters);
    assert_int_equal(counters.prefix_hit_tokens, 3 * 192);
    nosa_engine_close(engine);
}

static void test_engine_open_threads_are_dealt_over_ranks(void **state)
{
    struct fixture *fixture = *state;
    static const struct {
        int32_t tp, threads;
        const char *start, *end;
    } cases[] = {
        {1, 3, "", ", 3 threads"},
        {2, 4, "2 ranks x ", ", 2 threads"},
        {2, 3, "2 ranks x ", ", 2 threads (3 in all)"},
        {2, 1, "2 ranks x ", ", 1 thread"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nosa_engine *engine = tiny_engine(fixture->path, NOSA_ATTENTION_FULL, cases[i].tp,
                                                 cases[i].threads, 64, 1, 64);
        const char *device = nosa_engine_info(engine)->device;
        size_t length = strlen(device), end = strlen(cases[i].end);
        assert_memory_equal(device, cases[i].start, strlen(cases[i].start));
        assert_string_equal(device + (length > end ? length - end : 0), cases[i].end);
        nosa_engine_close(engine);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_step_same_bits_for_any_chunk),
        cmocka_unit_test(test_engine_step_modes_differ_where_blocks_are_left_out),
        cmocka_unit_test(test_engine_step_same_bits_for_any_thread_count),
        cmocka_unit_test(test_engine_step_same_bits_on_every_instruction_set),
        cmocka_unit_test(test_engine_step_same_bits_in_a_batch),
        cmocka_unit_test(test_engine_step_same_bits_on_shared_prefix),
        cmocka_unit_test(test_engine_step_decode_equals_prefill),
        cmocka_unit_test(test_session_scores_equal_softmax_of_logits),
        cmocka_unit_test(test_engine_info_fingerprint_names_what_decides_bits),
        cmocka_unit_test(test_session_open_bad_input_is_refused),
        cmocka_unit_test(test_engine_step_bad_items_change_nothing),
        cmocka_unit_test(test_engine_step_full_context_appends_no_more),
        cmocka_unit_test(test_engine_open_bad_options_are_refused),
        cmocka_unit_test(test_engine_step_without_blocks_is_refused_whole),
        cmocka_unit_test(test_engine_step_sampling_in_a_batch),
        cmocka_unit_test(test_engine_step_begin_and_finish),
        cmocka_unit_test(test_engine_open_more_kv_bytes_keep_more_prefixes),
        cmocka_unit_test(test_engine_open_threads_are_dealt_over_ranks),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
