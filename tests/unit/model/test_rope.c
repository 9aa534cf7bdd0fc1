#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>

#include "model/rope.h"

/* The golden values are float32 computed in float32: a few roundings of 6e-8 each, and up to 1e-6
 * where yarn's ramp or llama3's mix subtracts nearly equal numbers. */
#define TOLERANCE 2e-6

static void parse(json_t *keys, struct nosa_model_config *config)
{
    json_t *root = json_pack("{s:[s], s:i, s:i, s:i}", "architectures", "LlamaForCausalLM",
                             "num_hidden_layers", 1, "intermediate_size", 64, "vocab_size", 100);
    struct nosa_error error;
    nosa_error_clear(&error);
    assert_non_null(root);
    assert_int_equal(json_object_update(root, keys), 0);
    char *text = json_dumps(root, JSON_REAL_PRECISION(17));
    assert_non_null(text);
    if (nosa_model_config_parse(text, strlen(text), config, &error) != NOSA_OK)
        fail_msg("%s: %s", text, error.text);
    free(text);
    json_decref(root);
}

static void check_close(const char *name, size_t index, double value, double golden)
{
    if (!(fabs(value / golden - 1) < TOLERANCE))
        fail_msg("%s: value %zu is %.9g, expected %.9g", name, index, value, golden);
}

static void test_frequencies_golden(void **state)
{
    (void)state;
    json_error_t reason;
    json_t *root = json_load_file(NOSA_TEST_VECTORS "/rope.json", 0, &reason);
    if (!root)
        fail_msg("rope.json: %s", reason.text);
    const json_t *cases = json_object_get(root, "cases");
    bool seen[NOSA_ROPE_LONGROPE + 1] = {false};
    assert_true(json_array_size(cases) > 0);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *item = json_array_get(cases, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *golden = json_object_get(item, "inverse_frequencies");
        struct nosa_model_config config;
        double inv_freq[NOSA_MODEL_HEAD_DIM_MAX / 2];
        double attention_factor = 0;
        parse(json_object_get(item, "config"), &config);
        nosa_rope_frequencies(&config, inv_freq, &attention_factor);
        seen[config.rope.type] = true;
        assert_int_equal(json_array_size(golden), config.head_dim / 2);
        for (size_t k = 0; k < json_array_size(golden); k++)
            check_close(name, k, inv_freq[k], json_number_value(json_array_get(golden, k)));
        check_close(name, SIZE_MAX, attention_factor,
                    json_number_value(json_object_get(item, "attention_factor")));
    }
    for (int type = NOSA_ROPE_NONE; type <= NOSA_ROPE_LONGROPE; type++)
        if (!seen[type])
            fail_msg("no case of rope type %d", type);
    json_decref(root);
}

/* Whatever passes the parser gives finite, positive frequencies, also at the edges of its limits.
 */
static void test_frequencies_extreme_parameters(void **state)
{
    (void)state;
    static const char *const scalings[] = {
        "{\"rope_type\": \"yarn\", \"factor\": 1e6, \"original_max_position_embeddings\": 2}",
        "{\"rope_type\": \"yarn\", \"factor\": 1, \"beta_fast\": 1e6, \"beta_slow\": 1e-3}",
        "{\"rope_type\": \"yarn\", \"factor\": 2, \"beta_fast\": 1e6, \"beta_slow\": 999999}",
        "{\"rope_type\": \"yarn\", \"factor\": 2, \"beta_fast\": 0.0011, \"beta_slow\": 0.001}",
        ("{\"rope_type\": \"llama3\", \"factor\": 1e6, \"low_freq_factor\": 1e-3,"
         " \"high_freq_factor\": 1e6, \"original_max_position_embeddings\": 2}"),
        "{\"rope_type\": \"linear\", \"factor\": 1e6}",
    };
    static const double thetas[] = {2, 10000, 1e15};
    for (size_t i = 0; i < sizeof scalings / sizeof scalings[0]; i++) {
        for (size_t k = 0; k < sizeof thetas / sizeof thetas[0]; k++) {
            struct nosa_model_config config;
            double inv_freq[NOSA_MODEL_HEAD_DIM_MAX / 2];
            double attention_factor = 0;
            json_t *scaling = json_loads(scalings[i], 0, NULL);
            json_t *keys = json_pack("{s:i, s:i, s:f, s:i, s:o}", "hidden_size", 64,
                                     "num_attention_heads", 2, "rope_theta", thetas[k],
                                     "max_position_embeddings", 64, "rope_scaling", scaling);
            assert_non_null(keys);
            parse(keys, &config);
            nosa_rope_frequencies(&config, inv_freq, &attention_factor);
            for (uint32_t n = 0; n < config.head_dim / 2; n++)
                if (!(isfinite(inv_freq[n]) && inv_freq[n] > 0 && inv_freq[n] <= 1))
                    fail_msg("%s, theta %g: %g", scalings[i], thetas[k], inv_freq[n]);
            assert_true(isfinite(attention_factor) && attention_factor > 0);
            json_decref(keys);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies_golden),
        cmocka_unit_test(test_frequencies_extreme_parameters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
