/*
 * Tiers never change results: with a first tier of any size, any policy, prefetched, fetched or
 * read in place, alone or in a batch, suspended and resumed, a session gets the logits that it has
 * when everything is resident, to the last bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine_support.h"

#define VOCAB  128
#define LENGTH 1400
#define ROWS   128

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
    random_tokens(5, VOCAB, fixture->tokens, LENGTH);
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

static struct nosa_kv_geometry geometry_of(int32_t n_kv_heads)
{
    return (struct nosa_kv_geometry){.n_layers = 2,
                                     .n_kv_heads = n_kv_heads,
                                     .head_dim = 16,
                                     .kernel_size = 8,
                                     .kernel_stride = 4,
                                     .type = NOSA_DTYPE_BF16};
}

struct setting {
    int mode;
    int32_t tp;
    int32_t slots; /* of the first tier beside the ids; 0: everything resident */
    int32_t sessions_max;
    enum nosa_kv_policy policy;
    const char *nvme; /* directory, or NULL */
    int32_t images;   /* of the host tier; 0: as many as are wanted */
};

#define CONTEXT_BLOCKS ((LENGTH + 8 + 63) / 64)

static struct nosa_engine *open_engine(const struct fixture *fixture, const struct setting *setting)
{
    struct nosa_kv_geometry geometry = geometry_of(2 / setting->tp);
    struct nosa_engine_options options = {
        .model_directory = fixture->path,
        .attention = setting->mode,
        .tp = setting->tp,
        .device = {.threads = 2},
        .rows_max = ROWS,
        .sessions_max = setting->sessions_max,
        .context_max = LENGTH + 8,
        .kv_policy = setting->policy,
    };
    int32_t ids = CONTEXT_BLOCKS * setting->sessions_max;
    if (setting->slots) {
        options.kv_bytes = (uint64_t)ids * nosa_kv_id_bytes(&geometry) +
                           (uint64_t)setting->slots * nosa_kv_slot_bytes(&geometry);
        options.host_kv_bytes = NOSA_KV_BYTES_AUTO;
    }
    if (setting->images)
        options.host_kv_bytes = (uint64_t)setting->images * nosa_kv_image_bytes(&geometry, 2);
    options.nvme_directory = setting->nvme;
    options.nvme_kv_bytes = 4 << 20;
    struct nosa_engine *engine;
    struct nosa_error error = {0};
    if (nosa_engine_open(&options, &engine, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    if (setting->slots) {
        assert_int_equal(nosa_engine_info(engine)->kv_slots, setting->slots);
        assert_int_equal(nosa_engine_info(engine)->kv_blocks, ids);
    }
    return engine;
}

/* A step reads 6 blocks (topk), or in `full` a run of 8, and writes at most 3. */
static int32_t least_slots(int mode)
{
    return (mode == NOSA_ATTENTION_FULL ? NOSA_ATTENTION_RUN_BLOCKS : 6) + 3;
}

/* Prefill in chunks, then four tokens one at a time. */
static void run(struct nosa_engine *engine, const struct fixture *fixture, int32_t chunk, int salt,
                float *logits)
{
    logits_after(engine, fixture->tokens, LENGTH - 4, chunk, salt, logits);
    for (int32_t length = LENGTH - 3; length <= LENGTH; length++)
        logits_after(engine, fixture->tokens, length, chunk, salt,
                     logits + (length - (LENGTH - 4)) * VOCAB);
}

static void test_engine_step_same_bits_for_any_first_tier(void **state)
{
    const struct fixture *fixture = *state;
    float expected[5 * VOCAB], got[5 * VOCAB];
    static const int32_t more[] = {0, 1, 3, 5};
    for (size_t m = 0; m < 3; m++)
        for (int32_t tp = 1; tp <= 2; tp++) {
            struct setting setting = {.mode = modes[m], .tp = tp, .sessions_max = 1};
            struct nosa_engine *engine = open_engine(fixture, &setting);
            run(engine, fixture, ROWS, 0, expected);
            nosa_engine_close(engine);
            for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
                setting.slots = least_slots(modes[m]) + more[i];
                setting.policy = (enum nosa_kv_policy)(i % 3);
                engine = open_engine(fixture, &setting);
                run(engine, fixture, ROWS, 0, got);
                assert_memory_equal(expected, got, sizeof got);
                run(engine, fixture, 37, 1, got);
                assert_memory_equal(expected, got, sizeof got);
                run(engine, fixture, ROWS, 0, got); /* a prefix hit in images */
                assert_memory_equal(expected, got, sizeof got);
                nosa_engine_close(engine);
            }
        }
}

static void wait_ready(struct nosa_engine *engine, struct nosa_session *session)
{
    struct nosa_error error = {0};
    while (!nosa_session_ready(session))
        if (nosa_engine_poll(engine, 100, &error) != NOSA_OK)
            fail_msg("%s", error.text);
}

static struct nosa_session *open_session(struct nosa_engine *engine, const uint32_t *tokens,
                                         int32_t n_tokens, const char *salt)
{
    struct nosa_session_options options = {.tokens = tokens,
                                           .n_tokens = n_tokens,
                                           .prompt_length = n_tokens,
                                           .salt = salt,
                                           .salt_bytes = strlen(salt),
                                           .keep_logits = true};
    struct nosa_session *session;
    struct nosa_error error = {0};
    if (nosa_session_open(engine, &options, &session, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return session;
}

/* Computes up to `end` tokens. */
static void advance(struct nosa_engine *engine, struct nosa_session *session, int32_t end)
{
    struct nosa_error error = {0};
    while (nosa_session_computed(session) < end) {
        int32_t left = end - nosa_session_computed(session);
        struct nosa_step_item item = {.session = session, .n_tokens = left < ROWS ? left : ROWS};
        if (nosa_engine_step(engine, &item, 1, &error) != NOSA_OK)
            fail_msg("%s", error.text);
    }
}

/* Two sessions take turns in a first tier that holds neither whole. */
static void test_session_suspend_and_resume_change_no_bit(void **state)
{
    const struct fixture *fixture = *state;
    for (size_t m = 0; m < 3; m++) {
        struct setting setting = {.mode = modes[m], .tp = 1, .sessions_max = 2};
        float expected[2][VOCAB];
        struct nosa_engine *engine = open_engine(fixture, &setting);
        logits_after(engine, fixture->tokens, LENGTH, ROWS, 0, expected[0]);
        logits_after(engine, fixture->tokens + 1, LENGTH - 1, ROWS, 1, expected[1]);
        nosa_engine_close(engine);
        setting.slots = 12;
        engine = open_engine(fixture, &setting);
        struct nosa_session *a = open_session(engine, fixture->tokens, LENGTH, "a");
        struct nosa_session *b = open_session(engine, fixture->tokens + 1, LENGTH - 1, "b");
        for (int32_t end = 100; end < LENGTH - 1; end += 300) {
            advance(engine, a, end);
            assert_int_equal(nosa_session_suspend(a, NULL), NOSA_OK);
            struct nosa_step_item item = {.session = a, .n_tokens = 1};
            assert_int_equal(nosa_engine_step(engine, &item, 1, NULL), NOSA_INVALID_ARGUMENT);
            assert_int_equal(nosa_session_suspend(a, NULL), NOSA_INVALID_ARGUMENT);
            advance(engine, b, end);
            assert_int_equal(nosa_session_suspend(b, NULL), NOSA_OK);
            struct nosa_kv_store_counters counters;
            nosa_engine_kv_counters(engine, &counters);
            assert_int_equal(counters.blocks_used, 0);
            assert_int_equal(nosa_session_resume(a, NULL), NOSA_OK);
            assert_int_equal(nosa_session_computed(a), end / 64 * 64);
            assert_int_equal(nosa_session_resume(b, NULL), NOSA_OK);
            assert_int_equal(nosa_session_resume(b, NULL), NOSA_INVALID_ARGUMENT);
        }
        advance(engine, a, LENGTH);
        advance(engine, b, LENGTH - 1);
        assert_memory_equal(nosa_session_logits(a), expected[0], sizeof expected[0]);
        assert_memory_equal(nosa_session_logits(b), expected[1], sizeof expected[1]);
        nosa_session_close(a);
        nosa_session_close(b);
        nosa_engine_close(engine);
    }
}

/* Sessions of different lengths in one step, sharing too few slots. */
static void test_engine_step_same_bits_in_a_batch_of_few_slots(void **state)
{
    const struct fixture *fixture = *state;
    for (size_t m = 0; m < 3; m++) {
        struct setting setting = {.mode = modes[m], .tp = 1, .sessions_max = 3};
        float expected[3][VOCAB];
        static const int32_t lengths[] = {LENGTH, 800, 401};
        struct nosa_engine *engine = open_engine(fixture, &setting);
        for (int i = 0; i < 3; i++)
            logits_after(engine, fixture->tokens + i, lengths[i] - i, ROWS, i, expected[i]);
        nosa_engine_close(engine);
        setting.slots = 16;
        engine = open_engine(fixture, &setting);
        struct nosa_session *sessions[3];
        struct nosa_step_item items[3];
        static const char *const salts[] = {"a", "b", "c"};
        for (int i = 0; i < 3; i++)
            sessions[i] = open_session(engine, fixture->tokens + i, lengths[i] - i, salts[i]);
        for (int32_t left = 1; left > 0;) {
            int32_t n_items = 0;
            left = 0;
            for (int i = 0; i < 3; i++) {
                int32_t rest = lengths[i] - i - nosa_session_computed(sessions[i]);
                left += rest;
                if (rest > 0)
                    items[n_items++] = (struct nosa_step_item){.session = sessions[i],
                                                               .n_tokens = rest < 40 ? rest : 40};
            }
            if (n_items > 0)
                assert_int_equal(nosa_engine_step(engine, items, n_items, NULL), NOSA_OK);
        }
        for (int i = 0; i < 3; i++) {
            assert_memory_equal(nosa_session_logits(sessions[i]), expected[i], sizeof expected[i]);
            nosa_session_close(sessions[i]);
        }
        nosa_engine_close(engine);
    }
}

/* A host tier that one session fills: what is only cached gives way to the next one. */
static void test_engine_step_goes_on_where_cached_blocks_hold_every_image(void **state)
{
    const struct fixture *fixture = *state;
    struct setting setting = {.mode = NOSA_ATTENTION_NOSA, .tp = 1, .sessions_max = 2};
    float expected[2][VOCAB], got[VOCAB];
    struct nosa_engine *engine = open_engine(fixture, &setting);
    for (int i = 0; i < 2; i++)
        logits_after(engine, fixture->tokens + i, LENGTH - i, ROWS, i, expected[i]);
    nosa_engine_close(engine);
    setting.slots = least_slots(setting.mode);
    setting.images = CONTEXT_BLOCKS - 3; /* three blocks may stay in the first tier alone */
    engine = open_engine(fixture, &setting);
    for (int i = 0; i < 4; i++) {
        logits_after(engine, fixture->tokens + i % 2, LENGTH - i % 2, ROWS, i % 2, got);
        assert_memory_equal(got, expected[i % 2], sizeof got);
    }
    nosa_engine_close(engine);
}

/* What the counters say: hits add up to what attention reads, and a resumed session finds what was
 * brought up for it. */
static void test_session_kv_counts_every_record(void **state)
{
    const struct fixture *fixture = *state;
    struct setting setting = {.mode = NOSA_ATTENTION_NOSA, .tp = 1, .sessions_max = 1};
    struct nosa_session_kv all, tight, resumed;
    struct nosa_engine *engine = open_engine(fixture, &setting);
    struct nosa_session *session = open_session(engine, fixture->tokens, LENGTH, "");
    advance(engine, session, LENGTH);
    nosa_session_kv(session, &all);
    assert_int_equal(all.host_hits, 0);
    nosa_session_close(session);
    nosa_engine_close(engine);
    setting.slots = 10;
    engine = open_engine(fixture, &setting);
    session = open_session(engine, fixture->tokens, LENGTH, "");
    advance(engine, session, LENGTH - 10);
    struct nosa_engine_kv_traffic traffic;
    nosa_engine_kv_traffic(engine, &traffic);
    assert_int_equal(traffic.prefetched_records, 0);
    assert_true(traffic.first_to_host_bytes > 0);
    nosa_session_kv(session, &tight);
    assert_true(tight.host_hits > 0 && tight.nvme_hits == 0);
    assert_int_equal(nosa_session_suspend(session, NULL), NOSA_OK);
    assert_int_equal(nosa_session_resume(session, NULL), NOSA_OK);
    advance(engine, session, LENGTH);
    nosa_session_kv(session, &resumed);
    nosa_engine_kv_traffic(engine, &traffic);
    assert_true(traffic.prefetched_records > 0);
    assert_true(resumed.prefetched_used > tight.prefetched_used);
    nosa_session_close(session);
    nosa_engine_close(engine);
}

/* Decodes `n` tokens of both, one row each in every step. */
static void decode_together(struct nosa_engine *engine, struct nosa_session *sessions[2], int n)
{
    for (int i = 0; i < n; i++) {
        struct nosa_step_item items[2] = {{.session = sessions[0], .n_tokens = 1},
                                          {.session = sessions[1], .n_tokens = 1}};
        assert_int_equal(nosa_engine_step(engine, items, 2, NULL), NOSA_OK);
    }
}

/* What the steps of the last windows selected: at least a row's blocks, not the whole sequence, and
 * shared records in the set of one session alone. */
static void test_session_working_set_counts_distinct_records_once(void **state)
{
    const struct fixture *fixture = *state;
    struct setting setting = {.mode = NOSA_ATTENTION_NOSA, .tp = 1, .sessions_max = 2};
    static const char *const salts[2][2] = {{"a", "b"}, {"a", "a"}};
    int32_t sum[2];
    for (int shared = 0; shared < 2; shared++) {
        setting.slots = 20;
        struct nosa_engine *engine = open_engine(fixture, &setting);
        struct nosa_session *sessions[2];
        for (int i = 0; i < 2; i++) {
            sessions[i] = open_session(engine, fixture->tokens, LENGTH - 40, salts[shared][i]);
            assert_int_equal(nosa_session_working_set(sessions[i]), 0);
            advance(engine, sessions[i], LENGTH - 40);
        }
        decode_together(engine, sessions, 32);
        int32_t first = nosa_session_working_set(sessions[0]);
        int32_t second = nosa_session_working_set(sessions[1]);
        sum[shared] = first + second;
        assert_in_range(first > second ? first : second, 6, CONTEXT_BLOCKS);
        if (!shared)
            assert_in_range(second, 6, CONTEXT_BLOCKS);
        for (int i = 0; i < 2; i++)
            nosa_session_close(sessions[i]);
        nosa_engine_close(engine);
    }
    assert_true(4 * sum[1] < 3 * sum[0]); /* both draw the same tokens */
}

static void make_directory(char path[TINY_PATH_MAX])
{
    snprintf(path, TINY_PATH_MAX, "/tmp/nosa-tiers-XXXXXX");
    assert_non_null(mkdtemp(path));
}

static void remove_directory(const char *path)
{
    char file[TINY_PATH_MAX + 16];
    snprintf(file, sizeof file, "%s/nosa-kv.dat", path);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(path), 0);
}

/* Opens, waits until what is known is read, computes the rest; returns how much was known. */
static int32_t run_with_nvme(struct nosa_engine *engine, const struct fixture *fixture,
                             float logits[VOCAB], struct nosa_session_kv *kv)
{
    struct nosa_session *session = open_session(engine, fixture->tokens, LENGTH, "");
    wait_ready(engine, session);
    int32_t cached = nosa_session_cached(session);
    advance(engine, session, LENGTH);
    memcpy(logits, nosa_session_logits(session), sizeof(float) * VOCAB);
    nosa_session_kv(session, kv);
    nosa_session_close(session);
    return cached;
}

/* Prefixes outlive the engine, whatever its tiers are; another mode never finds them. */
static void test_engine_open_finds_prefixes_on_nvme(void **state)
{
    const struct fixture *fixture = *state;
    static const int32_t more[] = {0, 1, 4}; /* slots than the least; first everything resident */
    for (size_t m = 0; m < 3; m++) {
        char path[TINY_PATH_MAX];
        float expected[VOCAB], got[VOCAB];
        struct nosa_session_kv kv;
        make_directory(path);
        struct setting setting = {.mode = modes[m], .tp = 1, .sessions_max = 1};
        struct nosa_engine *engine = open_engine(fixture, &setting);
        run_with_nvme(engine, fixture, expected, &kv);
        nosa_engine_close(engine);
        setting.nvme = path;
        for (int i = 0; i < 3; i++) {
            setting.slots = i ? least_slots(modes[m]) + more[i] : 0;
            engine = open_engine(fixture, &setting);
            assert_int_equal(run_with_nvme(engine, fixture, got, &kv), i ? LENGTH / 64 * 64 : 0);
            assert_memory_equal(expected, got, sizeof got);
            assert_int_equal(nosa_engine_flush(engine, 10000, NULL), NOSA_OK);
            nosa_engine_close(engine);
        }
        setting.mode = modes[(m + 1) % 3];
        setting.slots = 0;
        engine = open_engine(fixture, &setting);
        assert_int_equal(run_with_nvme(engine, fixture, got, &kv), 0);
        nosa_engine_close(engine);
        remove_directory(path);
    }
}

/* A sequence larger than first tier and host together reads NVMe inside its steps. */
static void test_engine_step_reads_nvme_for_a_sequence_larger_than_memory(void **state)
{
    const struct fixture *fixture = *state;
    static const int32_t more[] = {0, 3, 6}; /* slots than the least: passes of one row and more */
    for (size_t m = 0; m < 3; m++)
        for (int32_t tp = 1; tp <= 2; tp++)
            for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
                char path[TINY_PATH_MAX];
                float expected[VOCAB], got[VOCAB];
                struct nosa_session_kv kv;
                make_directory(path);
                struct setting setting = {.mode = modes[m], .tp = tp, .sessions_max = 1};
                struct nosa_engine *engine = open_engine(fixture, &setting);
                run_with_nvme(engine, fixture, expected, &kv);
                nosa_engine_close(engine);
                setting.slots = least_slots(modes[m]) + more[i];
                if (setting.slots >= CONTEXT_BLOCKS)
                    setting.slots = CONTEXT_BLOCKS - 1;
                setting.images = 4;
                setting.nvme = path;
                engine = open_engine(fixture, &setting);
                run_with_nvme(engine, fixture, got, &kv);
                assert_true(kv.nvme_hits > 0 || i > 1);
                assert_memory_equal(expected, got, sizeof got);
                nosa_engine_close(engine);
                remove_directory(path);
            }
}

static void test_engine_open_names_the_least_that_holds_a_context(void **state)
{
    const struct fixture *fixture = *state;
    struct nosa_kv_geometry geometry = geometry_of(2);
    struct nosa_engine_options options = {
        .model_directory = fixture->path,
        .attention = NOSA_ATTENTION_NOSA,
        .tp = 1,
        .device = {.threads = 1},
        .rows_max = ROWS,
        .sessions_max = 1,
        .context_max = LENGTH + 8,
        .host_kv_bytes = NOSA_KV_BYTES_AUTO,
    };
    uint64_t least =
        CONTEXT_BLOCKS * nosa_kv_id_bytes(&geometry) + 9 * nosa_kv_slot_bytes(&geometry);
    struct nosa_engine *engine;
    struct nosa_error error = {0};
    char text[64];
    options.kv_bytes = least - 1;
    assert_int_equal(nosa_engine_open(&options, &engine, &error), NOSA_INVALID_ARGUMENT);
    snprintf(text, sizeof text, "give at least %llu", (unsigned long long)least);
    assert_non_null(strstr(error.text, text));
    nosa_error_clear(&error);
    options.kv_bytes = least;
    assert_int_equal(nosa_engine_open(&options, &engine, &error), NOSA_OK);
    nosa_engine_close(engine);
    options.host_kv_bytes = 4 * nosa_kv_image_bytes(&geometry, 2);
    assert_int_equal(nosa_engine_open(&options, &engine, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "--host-kv-bytes"));
    nosa_error_clear(&error);
    options.host_kv_bytes = 100;
    assert_int_equal(nosa_engine_open(&options, &engine, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "a block of 64 tokens takes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_step_same_bits_for_any_first_tier),
        cmocka_unit_test(test_session_suspend_and_resume_change_no_bit),
        cmocka_unit_test(test_engine_step_same_bits_in_a_batch_of_few_slots),
        cmocka_unit_test(test_engine_step_goes_on_where_cached_blocks_hold_every_image),
        cmocka_unit_test(test_session_kv_counts_every_record),
        cmocka_unit_test(test_session_working_set_counts_distinct_records_once),
        cmocka_unit_test(test_engine_open_finds_prefixes_on_nvme),
        cmocka_unit_test(test_engine_step_reads_nvme_for_a_sequence_larger_than_memory),
        cmocka_unit_test(test_engine_open_names_the_least_that_holds_a_context),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
