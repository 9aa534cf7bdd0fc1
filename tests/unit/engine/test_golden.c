/*
 * The engine against the float64 reference: random NOSA checkpoints of several shapes, types and
 * rope kinds, all three modes, lengths around every edge (tests/vectors/random, README.md there).
 *
 * The sessions of a mode share one engine, so longer cases also run over KV that shorter ones left
 * in the prefix cache, and prompts are cut into chunks of many sizes.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "engine/engine.h"
#include "support/npy_read.h"

/* Largest error allowed, in standard deviations of the logits. float32 checkpoints: a tenth of the
 * bound. 16-bit ones: K and V are rounded after float32 sums, so an element that lies at a rounding
 * edge may fall to the other neighbour than in float64 and moves by 2^-8 of itself. */
static double tolerance(const char *dtype)
{
    return strcmp(dtype, "f32") == 0 ? 1e-4 : 5e-3;
}

static int attention_mode(const char *name)
{
    return strcmp(name, "nosa") == 0       ? NOSA_ATTENTION_NOSA
           : strcmp(name, "infllmv2") == 0 ? NOSA_ATTENTION_INFLLMV2
                                           : NOSA_ATTENTION_FULL;
}

struct golden {
    json_t *manifest;
    double worst;
    int cases;
    int64_t cached;
};

static const char *text_of(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    assert_non_null(text);
    return text;
}

static const char *vector_path(const char *name, char *path, size_t path_bytes)
{
    snprintf(path, path_bytes, "%s/random/%s", NOSA_TEST_VECTORS, name);
    return path;
}

/* Logits after tokens[0 .. length), the prompt cut into chunks of 1, 3, 7, ... tokens. */
static void check_case(struct nosa_engine *engine, json_t *item, const struct npy_array *tokens,
                       const struct npy_array *logits, double bound, struct golden *golden)
{
    int32_t length = (int32_t)json_integer_value(json_object_get(item, "length"));
    int64_t row = json_integer_value(json_object_get(item, "row"));
    double std = json_real_value(json_object_get(item, "std"));
    assert_true(length >= 1 && length <= tokens->rows && row < logits->rows && std > 0);
    struct nosa_session_options options = {
        .tokens = tokens->data, .n_tokens = length, .prompt_length = length, .keep_logits = true};
    struct nosa_session *session;
    struct nosa_error error = {0};
    assert_int_equal(nosa_session_open(engine, &options, &session, &error), NOSA_OK);
    golden->cached += nosa_session_cached(session);
    int32_t chunk = 1 + length % 7;
    bool sampled = false;
    while (!sampled) {
        int32_t left = length - nosa_session_computed(session);
        struct nosa_step_item step = {.session = session, .n_tokens = left < chunk ? left : chunk};
        assert_int_equal(nosa_engine_step(engine, &step, 1, &error), NOSA_OK);
        sampled = step.sampled;
        chunk = chunk * 2 + 1 < 512 ? chunk * 2 + 1 : 512;
    }
    const float *got = nosa_session_logits(session);
    const float *expected = (const float *)logits->data + row * logits->columns;
    double worst = 0;
    for (int64_t i = 0; i < logits->columns; i++) {
        double difference = fabs((double)got[i] - (double)expected[i]) / std;
        worst = difference > worst || isnan(difference) ? difference : worst;
    }
    if (!(worst <= bound))
        fail_msg("%s %s length %d: logits differ by %g standard deviations (at most %g)",
                 text_of(item, "directory"), text_of(item, "mode"), length, worst, bound);
    golden->worst = worst > golden->worst ? worst : golden->worst;
    golden->cases++;
    nosa_session_close(session);
}

/* All cases of one checkpoint and mode on one engine. */
static void check_mode(struct golden *golden, json_t *checkpoint, const char *mode)
{
    const char *directory = text_of(checkpoint, "directory");
    char path[512];
    struct nosa_engine_options options = {
        .model_directory = vector_path(directory, path, sizeof path),
        .attention = attention_mode(mode),
        .tp = 1,
        .device = {.threads = 2},
        .rows_max = 512,
        .sessions_max = 2,
        .context_max = 0,
    };
    struct nosa_engine *engine;
    struct nosa_error error = {0};
    if (nosa_engine_open(&options, &engine, &error) != NOSA_OK)
        fail_msg("%s: %s", directory, error.text);
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(golden->manifest, "cases"), index, item)
    {
        if (strcmp(text_of(item, "directory"), directory) != 0 ||
            strcmp(text_of(item, "mode"), mode) != 0)
            continue;
        struct npy_array tokens, logits;
        assert_true(
            npy_read(vector_path(text_of(item, "tokens"), path, sizeof path), "<i4", &tokens));
        assert_true(
            npy_read(vector_path(text_of(item, "logits"), path, sizeof path), "<f4", &logits));
        check_case(engine, item, &tokens, &logits, tolerance(text_of(checkpoint, "dtype")), golden);
        free(tokens.file);
        free(logits.file);
    }
    nosa_engine_close(engine);
}

static void check_all(const char *mode)
{
    char path[512];
    struct golden golden = {0};
    json_error_t json_error;
    golden.manifest =
        json_load_file(vector_path("manifest.json", path, sizeof path), 0, &json_error);
    assert_non_null(golden.manifest);
    size_t index;
    json_t *checkpoint;
    json_array_foreach(json_object_get(golden.manifest, "checkpoints"), index, checkpoint)
    {
        golden.worst = 0;
        int before = golden.cases;
        check_mode(&golden, checkpoint, mode);
        printf("%s %s: %d cases, largest error %.2e standard deviations\n",
               text_of(checkpoint, "directory"), mode, golden.cases - before, golden.worst);
    }
    assert_true(golden.cases >= 60);
    assert_true(golden.cached > 0);
    json_decref(golden.manifest);
}

static void test_engine_step_full_against_reference(void **state)
{
    (void)state;
    check_all("full");
}

static void test_engine_step_infllmv2_against_reference(void **state)
{
    (void)state;
    check_all("infllmv2");
}

static void test_engine_step_nosa_against_reference(void **state)
{
    (void)state;
    check_all("nosa");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_step_full_against_reference),
        cmocka_unit_test(test_engine_step_infllmv2_against_reference),
        cmocka_unit_test(test_engine_step_nosa_against_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
