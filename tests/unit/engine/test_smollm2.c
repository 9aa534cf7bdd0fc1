/*
 * The engine on the demo model against transformers and the float64 reference
 * (tests/vectors/smollm2/golden.json, README.md there).
 *
 * NOSA_DEMO_MODEL_DIR names the model's folder; without it the program skips. transformers rounds
 * no K and V, and the engine does, to bfloat16: that moves a logit by up to 0.12 and a margin by up
 * to 0.1. The reference rounds them too, so the bound against it is that of float32 sums, and of
 * the elements at a rounding edge that these let fall to the other neighbour. Where blocks are
 * selected such an element can turn a choice; every block in place of the selected ones moves the
 * logits of these rows by 0.12 and 0.20.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "engine/engine.h"

#define MARGIN_MIN         0.2  /* of two tokens whose order rounding cannot change */
#define TRANSFORMERS_BOUND 0.2  /* largest error of a logit against transformers */
#define REFERENCE_BOUND    0.05 /* and against the reference, in the same units */
#define SELECTED_BOUND     0.08 /* the same where blocks are selected */
#define SCORE_BOUND        0.01 /* of the mean log probability of a token */
#define PROMPT_TOKENS_MAX  4096
#define SKIPPED            77

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PROMPT_TOKENS_USED 1000 /* instrumented code is too slow for longer ones */
#define ROWS_MIN           15
#else
#define PROMPT_TOKENS_USED PROMPT_TOKENS_MAX
#define ROWS_MIN           20
#endif

struct prompt {
    const char *name;
    json_t *json; /* borrowed */
    uint32_t tokens[PROMPT_TOKENS_MAX];
    int32_t n_prompt; /* of `tokens` */
    int32_t n_tokens; /* with the greedy ones behind */
};

static const char *model_directory;
static json_t *golden;
static float *logits; /* [vocab] of the last row */

static double number(json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

static void add_ids(struct prompt *prompt, const char *key)
{
    size_t index;
    json_t *id;
    json_t *list = json_object_get(prompt->json, key);
    assert_true(json_array_size(list) > 0);
    json_array_foreach(list, index, id)
    {
        assert_true(prompt->n_tokens < PROMPT_TOKENS_MAX);
        prompt->tokens[prompt->n_tokens++] = (uint32_t)json_integer_value(id);
    }
}

static void read_prompt(json_t *json, struct prompt *prompt)
{
    *prompt = (struct prompt){.json = json};
    prompt->name = json_string_value(json_object_get(json, "name"));
    assert_non_null(prompt->name);
    add_ids(prompt, "prompt_ids");
    prompt->n_prompt = prompt->n_tokens;
    add_ids(prompt, "greedy_ids");
}

static struct nosa_engine *open_engine(int attention)
{
    const struct nosa_engine_options options = {
        .model_directory = model_directory,
        .attention = attention,
        .tp = 1,
        .rows_max = 512,
        .sessions_max = 1,
        .context_max = PROMPT_TOKENS_MAX,
    };
    struct nosa_engine *engine;
    struct nosa_error error = {0};
    if (nosa_engine_open(&options, &engine, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return engine;
}

static struct nosa_session *open_session(struct nosa_engine *engine, const struct prompt *prompt,
                                         int32_t n_tokens, bool score)
{
    const struct nosa_session_options options = {
        .tokens = prompt->tokens,
        .n_tokens = n_tokens,
        .prompt_length = n_tokens < prompt->n_prompt ? n_tokens : prompt->n_prompt,
        .keep_logits = !score,
        .score = score,
    };
    struct nosa_session *session;
    struct nosa_error error = {0};
    if (nosa_session_open(engine, &options, &session, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return session;
}

/* Computes to the end of what is known; returns the token drawn there, if one is. */
static int32_t compute(struct nosa_engine *engine, struct nosa_session *session)
{
    int32_t token = -1, left;
    while (token < 0 &&
           (left = nosa_session_length(session) - nosa_session_computed(session)) > 0) {
        struct nosa_step_item item = {.session = session, .n_tokens = left < 512 ? left : 512};
        struct nosa_error error = {0};
        if (nosa_engine_step(engine, &item, 1, &error) != NOSA_OK)
            fail_msg("%s", error.text);
        if (item.sampled)
            token = item.result.token;
    }
    return token;
}

/* Largest difference of the row's logits from the values listed for its best tokens. */
static double largest_error(json_t *row, json_t *values)
{
    json_t *ids = json_object_get(row, "top_ids");
    double worst = 0;
    size_t index;
    json_t *value;
    assert_true(json_array_size(values) > 0);
    assert_int_equal(json_array_size(values), json_array_size(ids));
    json_array_foreach(values, index, value)
    {
        json_int_t id = json_integer_value(json_array_get(ids, index));
        double error = fabs((double)logits[id] - json_number_value(value));
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static void check_row(const struct prompt *prompt, json_t *row, int32_t token, const char *mode)
{
    int position = (int)number(row, "position");
    double reference = largest_error(row, json_object_get(json_object_get(row, "reference"), mode));
    printf("%s %s position %d: largest error against the reference %.4f", prompt->name, mode,
           position, reference);
    bool full = strcmp(mode, "full") == 0;
    if (!(reference <= (full ? REFERENCE_BOUND : SELECTED_BOUND)))
        fail_msg("position %d: a logit differs by %g", position, reference);
    if (full) {
        double error = largest_error(row, json_object_get(row, "top_logits"));
        printf(", against transformers %.4f", error);
        if (!(error <= TRANSFORMERS_BOUND))
            fail_msg("position %d: a logit differs by %g from transformers", position, error);
        json_t *best = json_array_get(json_object_get(row, "top_ids"), 0);
        if (number(row, "margin") > MARGIN_MIN)
            assert_int_equal(token, json_integer_value(best));
    }
    printf("\n");
}

/* Rows of a prompt; each takes what it can from the prefix cache. */
static void check_rows(int attention)
{
    const char *mode = nosa_attention_mode_name((enum nosa_attention_mode)attention);
    struct nosa_engine *engine = open_engine(attention);
    size_t index, row_index;
    json_t *json, *row;
    int rows = 0;
    logits = calloc(nosa_engine_info(engine)->config->vocab, sizeof *logits);
    assert_non_null(logits);
    json_array_foreach(json_object_get(golden, "prompts"), index, json)
    {
        struct prompt prompt;
        read_prompt(json, &prompt);
        if (prompt.n_prompt > PROMPT_TOKENS_USED)
            continue;
        json_array_foreach(json_object_get(json, "rows"), row_index, row)
        {
            int32_t position = (int32_t)number(row, "position");
            assert_true(position >= 0 && position < prompt.n_tokens);
            struct nosa_session *session = open_session(engine, &prompt, position + 1, false);
            int32_t token = compute(engine, session);
            memcpy(logits, nosa_session_logits(session),
                   sizeof *logits * nosa_engine_info(engine)->config->vocab);
            check_row(&prompt, row, token, mode);
            nosa_session_close(session);
            rows++;
        }
    }
    assert_true(rows >= ROWS_MIN);
    free(logits);
    nosa_engine_close(engine);
}

static void test_engine_step_full_rows_of_smollm2(void **state)
{
    (void)state;
    check_rows(NOSA_ATTENTION_FULL);
}

static void test_engine_step_infllmv2_rows_of_smollm2(void **state)
{
    (void)state;
    check_rows(NOSA_ATTENTION_INFLLMV2);
}

/* Generates freely; where a token differs, the golden one must be a close second, and what follows
 * is generated from the golden tokens. */
static int32_t check_greedy(struct nosa_engine *engine, const struct prompt *prompt)
{
    json_t *margins = json_object_get(prompt->json, "greedy_margins");
    int32_t known = prompt->n_prompt, differing = 0;
    assert_int_equal(json_array_size(margins), prompt->n_tokens - prompt->n_prompt);
    while (known < prompt->n_tokens) {
        struct nosa_session *session = open_session(engine, prompt, known, false);
        bool equal = true;
        for (; equal && known < prompt->n_tokens; known++) {
            int32_t at = known - prompt->n_prompt;
            double margin = json_number_value(json_array_get(margins, (size_t)at));
            equal = compute(engine, session) == (int32_t)prompt->tokens[known];
            if (!equal && margin > MARGIN_MIN)
                fail_msg("%s: greedy token %d differs, though its margin is %g", prompt->name, at,
                         margin);
            differing += !equal;
        }
        nosa_session_close(session);
    }
    return differing;
}

static void test_engine_step_greedy_tokens_of_smollm2(void **state)
{
    (void)state;
    struct nosa_engine *engine = open_engine(NOSA_ENGINE_ATTENTION_DEFAULT);
    assert_int_equal(nosa_engine_info(engine)->attention, NOSA_ATTENTION_FULL);
    size_t index;
    json_t *json;
    json_array_foreach(json_object_get(golden, "prompts"), index, json)
    {
        struct prompt prompt;
        read_prompt(json, &prompt);
        if (prompt.n_prompt > PROMPT_TOKENS_USED)
            continue;
        assert_int_equal(prompt.n_tokens - prompt.n_prompt, 32);
        printf("%s: %d of 32 greedy tokens differ, all within the margin\n", prompt.name,
               check_greedy(engine, &prompt));
    }
    nosa_engine_close(engine);
}

static void test_session_scores_of_smollm2(void **state)
{
    (void)state;
    struct nosa_engine *engine = open_engine(NOSA_ATTENTION_FULL);
    size_t index;
    json_t *json;
    json_array_foreach(json_object_get(golden, "prompts"), index, json)
    {
        struct prompt prompt;
        read_prompt(json, &prompt);
        if (prompt.n_prompt > 1000)
            continue;
        struct nosa_session *session = open_session(engine, &prompt, prompt.n_prompt, true);
        compute(engine, session);
        double sum = 0;
        for (int32_t i = 1; i < prompt.n_prompt; i++)
            sum += (double)nosa_session_scores(session)[i];
        nosa_session_close(session);
        double mean = (sum - number(json, "log_likelihood")) / (prompt.n_prompt - 1);
        printf("%s: log-likelihood %.4f, %.5f a token from transformers\n", prompt.name, sum, mean);
        assert_true(fabs(mean) <= SCORE_BOUND);
    }
    nosa_engine_close(engine);
}

static int setup(void **state)
{
    (void)state;
    json_error_t error;
    golden = json_load_file(NOSA_TEST_VECTORS "/smollm2/golden.json", 0, &error);
    return golden ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    json_decref(golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_step_full_rows_of_smollm2),
        cmocka_unit_test(test_engine_step_infllmv2_rows_of_smollm2),
        cmocka_unit_test(test_engine_step_greedy_tokens_of_smollm2),
        cmocka_unit_test(test_session_scores_of_smollm2),
    };
    char path[4096];
    model_directory = getenv("NOSA_DEMO_MODEL_DIR");
    if (model_directory)
        snprintf(path, sizeof path, "%s/config.json", model_directory);
    if (!model_directory || access(path, R_OK) != 0) {
        printf("the demo model is not there (NOSA_DEMO_MODEL_DIR); skipping\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
