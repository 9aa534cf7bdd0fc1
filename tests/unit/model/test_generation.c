#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/config.h"

static enum nosa_status parse(const char *text, struct nosa_generation_config *generation,
                              struct nosa_error *error)
{
    nosa_error_clear(error);
    return nosa_generation_config_parse(text, strlen(text), 1000, generation, error);
}

static void test_parse_all_keys(void **state)
{
    (void)state;
    struct nosa_generation_config generation;
    struct nosa_error error;
    assert_int_equal(parse("{\"do_sample\": true, \"temperature\": 0.6, \"top_p\": 0.9,"
                           " \"top_k\": 40, \"min_p\": 0.05, \"repetition_penalty\": 1.1,"
                           " \"eos_token_id\": [7, 8, 7], \"_from_model_config\": true}",
                           &generation, &error),
                     NOSA_OK);
    assert_true(generation.do_sample);
    assert_true(generation.temperature == 0.6 && generation.top_p == 0.9);
    assert_int_equal(generation.top_k, 40);
    assert_true(generation.min_p == 0.05 && generation.repetition_penalty == 1.1);
    assert_int_equal(generation.n_eos, 2);
    assert_int_equal(generation.eos[1], 8);
}

static void test_parse_defaults(void **state)
{
    (void)state;
    struct nosa_generation_config generation;
    struct nosa_error error;
    assert_int_equal(parse("{\"temperature\": null, \"eos_token_id\": 3}", &generation, &error),
                     NOSA_OK);
    assert_false(generation.do_sample);
    assert_true(generation.temperature == 1 && generation.top_p == 1 && generation.min_p == 0);
    assert_int_equal(generation.top_k, 0);
    assert_int_equal(generation.n_eos, 1);
}

static void test_load_missing_file(void **state)
{
    (void)state;
    struct nosa_generation_config generation;
    assert_int_equal(nosa_generation_config_load("/", 10, &generation, NULL), NOSA_OK);
    assert_false(generation.do_sample);
    assert_true(generation.repetition_penalty == 1);
}

static void test_parse_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum nosa_status status;
        const char *fragment;
    } cases[] = {
        {"{", NOSA_CORRUPT, "JSON"},
        {"{\"temperature\": NaN}", NOSA_CORRUPT, "JSON"},
        {"{\"temperature\": -0.1}", NOSA_INVALID_ARGUMENT, "temperature must be"},
        {"{\"temperature\": \"hot\"}", NOSA_INVALID_ARGUMENT, "temperature must be"},
        {"{\"top_p\": 0}", NOSA_INVALID_ARGUMENT, "top_p"},
        {"{\"top_p\": 1.5}", NOSA_INVALID_ARGUMENT, "top_p"},
        {"{\"top_k\": -1}", NOSA_INVALID_ARGUMENT, "top_k"},
        {"{\"top_k\": 1.0}", NOSA_INVALID_ARGUMENT, "top_k"},
        {"{\"min_p\": 2}", NOSA_INVALID_ARGUMENT, "min_p"},
        {"{\"repetition_penalty\": 0}", NOSA_INVALID_ARGUMENT, "repetition_penalty"},
        {"{\"do_sample\": 1}", NOSA_INVALID_ARGUMENT, "do_sample"},
        {"{\"eos_token_id\": 1000}", NOSA_INVALID_ARGUMENT, "eos_token_id"},
        {"{\"eos_token_id\": [[1]]}", NOSA_INVALID_ARGUMENT, "eos_token_id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_generation_config generation;
        struct nosa_error error;
        enum nosa_status status = parse(cases[i].text, &generation, &error);
        if (status != cases[i].status || !strstr(error.text, cases[i].fragment))
            fail_msg("%s: %s \"%s\"", cases[i].text, nosa_status_name(status), error.text);
        assert_true(generation.temperature == 1 && generation.n_eos == 0);
    }
}

static void test_add_eos_union(void **state)
{
    (void)state;
    struct nosa_model_config config = {.n_eos = 2, .eos = {5, 6}};
    struct nosa_generation_config generation;
    struct nosa_error error;
    assert_int_equal(parse("{\"eos_token_id\": [6, 7]}", &generation, &error), NOSA_OK);
    assert_int_equal(nosa_model_config_add_eos(&config, &generation, &error), NOSA_OK);
    assert_int_equal(config.n_eos, 3);
    assert_true(nosa_model_config_is_eos(&config, 5) && nosa_model_config_is_eos(&config, 7));
    assert_false(nosa_model_config_is_eos(&config, 0));
}

static void test_add_eos_too_many(void **state)
{
    (void)state;
    struct nosa_model_config config = {.n_eos = NOSA_MODEL_EOS_MAX};
    struct nosa_generation_config generation = {.n_eos = 1, .eos = {9}};
    struct nosa_error error;
    nosa_error_clear(&error);
    assert_int_equal(nosa_model_config_add_eos(&config, &generation, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "eos_token_id"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_all_keys),    cmocka_unit_test(test_parse_defaults),
        cmocka_unit_test(test_load_missing_file), cmocka_unit_test(test_parse_refused),
        cmocka_unit_test(test_add_eos_union),     cmocka_unit_test(test_add_eos_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
