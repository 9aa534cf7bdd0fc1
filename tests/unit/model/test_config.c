#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <unistd.h>

#include "model/config.h"

/* A config that is accepted; the cases below replace or remove keys of it. */
static const char base[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 128,"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 8, \"num_key_value_heads\": 2,"
    " \"head_dim\": 32, \"intermediate_size\": 256, \"vocab_size\": 1000, \"hidden_act\": \"silu\","
    " \"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0,"
    " \"tie_word_embeddings\": true, \"bos_token_id\": 1, \"eos_token_id\": 2,"
    " \"torch_dtype\": \"bfloat16\"}";

/* Parses `base` with the members of `change` put over it; a null there counts as absent. */
static enum nosa_status parse_changed(const char *change, struct nosa_model_config *config,
                                      struct nosa_error *error)
{
    json_t *root = json_loads(base, 0, NULL);
    json_t *over = json_loads(change, 0, NULL);
    assert_non_null(root);
    if (!over)
        fail_msg("the case is not JSON: %s", change);
    assert_int_equal(json_object_update(root, over), 0);
    char *text = json_dumps(root, 0);
    nosa_error_clear(error);
    enum nosa_status status = nosa_model_config_parse(text, strlen(text), config, error);
    free(text);
    json_decref(over);
    json_decref(root);
    return status;
}

static void accept(const char *change, struct nosa_model_config *config)
{
    struct nosa_error error;
    if (parse_changed(change, config, &error) != NOSA_OK)
        fail_msg("%s: %s", change, error.text);
}

struct refused_case {
    const char *change;
    enum nosa_status status;
    const char *fragment;
};

static void check_refused(const struct refused_case *cases, size_t count)
{
    static const struct nosa_model_config zero;
    for (size_t i = 0; i < count; i++) {
        struct nosa_model_config config;
        struct nosa_error error;
        enum nosa_status status = parse_changed(cases[i].change, &config, &error);
        if (status != cases[i].status || !strstr(error.text, cases[i].fragment) ||
            strchr(error.text, '\n'))
            fail_msg("%s: %s \"%s\", expected %s \"%s\"", cases[i].change, nosa_status_name(status),
                     error.text, nosa_status_name(cases[i].status), cases[i].fragment);
        assert_memory_equal(&config, &zero, sizeof config);
    }
}

static void test_parse_plain(void **state)
{
    (void)state;
    struct nosa_model_config config;
    accept("{}", &config);
    assert_int_equal(config.hidden, 128);
    assert_int_equal(config.n_layers, 2);
    assert_int_equal(config.n_heads, 8);
    assert_int_equal(config.n_kv_heads, 2);
    assert_int_equal(config.head_dim, 32);
    assert_int_equal(config.intermediate, 256);
    assert_int_equal(config.vocab, 1000);
    assert_int_equal(config.max_positions, 8192);
    assert_true(config.rms_eps == 1e-5);
    assert_true(config.tie_word_embeddings);
    assert_false(config.attention_bias);
    assert_false(config.has_eviction_head);
    assert_int_equal(config.n_eos, 1);
    assert_int_equal(config.eos[0], 2);
    assert_int_equal(config.dtype_hint, NOSA_DTYPE_HINT_BF16);
    assert_int_equal(config.rope.type, NOSA_ROPE_NONE);
    assert_true(config.rope.theta == 10000);
    const struct nosa_sparse_config defaults = {32, 16, 1, 64, 1024, 64, 16, 0};
    assert_memory_equal(&config.sparse, &defaults, sizeof defaults);
}

static void test_parse_defaults(void **state)
{
    (void)state;
    struct nosa_model_config config;
    accept("{\"head_dim\": null, \"num_key_value_heads\": null, \"rms_norm_eps\": null,"
           " \"rope_theta\": null, \"tie_word_embeddings\": null, \"hidden_act\": null,"
           " \"bos_token_id\": null, \"eos_token_id\": null, \"torch_dtype\": null,"
           " \"dtype\": \"float16\", \"rope_scaling\": null, \"sliding_window\": null,"
           " \"quantization_config\": null, \"model_type\": null, \"num_local_experts\": 0}",
           &config);
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.n_kv_heads, 8);
    assert_true(config.rms_eps == 1e-6);
    assert_true(config.rope.theta == 10000);
    assert_false(config.tie_word_embeddings);
    assert_int_equal(config.n_eos, 0);
    assert_int_equal(config.dtype_hint, NOSA_DTYPE_HINT_F16);
}

static void test_parse_released_shape(void **state)
{
    (void)state;
    struct nosa_model_config config;
    accept("{\"architectures\": [\"SparseLlamaForCausalLM\"], \"hidden_size\": 4096,"
           " \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 2,"
           " \"head_dim\": 128, \"intermediate_size\": 16384, \"vocab_size\": 73448,"
           " \"tie_word_embeddings\": false, \"eos_token_id\": [2, 73440, 2],"
           " \"max_position_embeddings\": 32768, \"attention_bias\": true, \"sparse_config\":"
           " {\"kernel_size\": 8, \"kernel_stride\": 4, \"window_size\": 512, \"topk\": 32,"
           " \"select_blocks\": 8, \"use_nope\": false}}",
           &config);
    assert_int_equal(config.n_eos, 2);
    assert_true(nosa_model_config_is_eos(&config, 2));
    assert_true(nosa_model_config_is_eos(&config, 73440));
    assert_false(nosa_model_config_is_eos(&config, 1));
    assert_true(config.attention_bias);
    const struct nosa_sparse_config sparse = {8, 4, 1, 64, 512, 32, 8, 0};
    assert_memory_equal(&config.sparse, &sparse, sizeof sparse);
}

static void test_parse_topk_equal_to_first_cut(void **state)
{
    (void)state;
    struct nosa_model_config config;
    accept("{\"sparse_config\": {\"topk\": 33}}", &config);
    assert_int_equal(config.sparse.topk, 33);
}

static void test_parse_nonsense(void **state)
{
    (void)state;
    static const struct refused_case cases[] = {
        {"{\"hidden_size\": null}", NOSA_INVALID_ARGUMENT, "hidden_size is missing"},
        {"{\"hidden_size\": 0}", NOSA_INVALID_ARGUMENT, "from 1 to 65536, not 0"},
        {"{\"hidden_size\": -128}", NOSA_INVALID_ARGUMENT, "not -128"},
        {"{\"hidden_size\": 128.0}", NOSA_INVALID_ARGUMENT, "not the decimal number 128"},
        {"{\"hidden_size\": \"128\"}", NOSA_INVALID_ARGUMENT, "not the string \"128\""},
        {"{\"hidden_size\": true}", NOSA_INVALID_ARGUMENT, "not true"},
        {"{\"hidden_size\": [128]}", NOSA_INVALID_ARGUMENT, "not a list"},
        {"{\"hidden_size\": 65537}", NOSA_INVALID_ARGUMENT, "hidden_size must be"},
        {"{\"num_hidden_layers\": 1000000000}", NOSA_INVALID_ARGUMENT, "not 1000000000"},
        {"{\"num_hidden_layers\": 9223372036854775807}", NOSA_INVALID_ARGUMENT,
         "num_hidden_layers"},
        {"{\"num_hidden_layers\": 0}", NOSA_INVALID_ARGUMENT, "num_hidden_layers"},
        {"{\"num_attention_heads\": 0}", NOSA_INVALID_ARGUMENT, "num_attention_heads"},
        {"{\"num_attention_heads\": -8}", NOSA_INVALID_ARGUMENT, "num_attention_heads"},
        {"{\"num_key_value_heads\": 0}", NOSA_INVALID_ARGUMENT, "num_key_value_heads"},
        {"{\"num_key_value_heads\": 3}", NOSA_INVALID_ARGUMENT,
         "num_attention_heads 8 is not a multiple of num_key_value_heads 3"},
        {"{\"num_key_value_heads\": 16}", NOSA_INVALID_ARGUMENT, "is not a multiple of"},
        {"{\"num_attention_heads\": 130}", NOSA_UNSUPPORTED, "65 query heads per KV head"},
        {"{\"num_attention_heads\": 6, \"head_dim\": null}", NOSA_INVALID_ARGUMENT,
         "hidden_size 128 is not a multiple of num_attention_heads 6"},
        {"{\"head_dim\": 24}", NOSA_UNSUPPORTED, "head_dim 24"},
        {"{\"head_dim\": 272}", NOSA_UNSUPPORTED, "head_dim 272"},
        {"{\"head_dim\": 0}", NOSA_INVALID_ARGUMENT, "head_dim"},
        {"{\"intermediate_size\": 0}", NOSA_INVALID_ARGUMENT, "intermediate_size"},
        {"{\"intermediate_size\": 10000000000}", NOSA_INVALID_ARGUMENT, "intermediate_size"},
        {"{\"vocab_size\": -1}", NOSA_INVALID_ARGUMENT, "vocab_size"},
        {"{\"max_position_embeddings\": 0}", NOSA_INVALID_ARGUMENT, "max_position_embeddings"},
        {"{\"rms_norm_eps\": 0}", NOSA_INVALID_ARGUMENT, "rms_norm_eps"},
        {"{\"rms_norm_eps\": -1e-5}", NOSA_INVALID_ARGUMENT, "rms_norm_eps"},
        {"{\"rms_norm_eps\": \"1e-5\"}", NOSA_INVALID_ARGUMENT, "rms_norm_eps"},
        {"{\"rope_theta\": 0}", NOSA_INVALID_ARGUMENT, "rope_theta"},
        {"{\"rope_theta\": -10000.0}", NOSA_INVALID_ARGUMENT, "rope_theta"},
        {"{\"rope_theta\": 1}", NOSA_INVALID_ARGUMENT, "rope_theta"},
        {"{\"tie_word_embeddings\": 1}", NOSA_INVALID_ARGUMENT, "tie_word_embeddings"},
        {"{\"attention_bias\": \"no\"}", NOSA_INVALID_ARGUMENT, "attention_bias"},
        {"{\"eos_token_id\": -1}", NOSA_INVALID_ARGUMENT, "eos_token_id"},
        {"{\"eos_token_id\": 1000}", NOSA_INVALID_ARGUMENT, "a token id below 1000, not 1000"},
        {"{\"eos_token_id\": [2, \"x\"]}", NOSA_INVALID_ARGUMENT, "eos_token_id"},
        {"{\"partial_rotary_factor\": -1}", NOSA_INVALID_ARGUMENT, "partial_rotary_factor"},
    };
    check_refused(cases, sizeof cases / sizeof cases[0]);
}

static void test_parse_other_models(void **state)
{
    (void)state;
    static const struct refused_case cases[] = {
        {"{\"architectures\": null}", NOSA_INVALID_ARGUMENT, "architectures is missing"},
        {"{\"architectures\": []}", NOSA_INVALID_ARGUMENT, "architectures must be"},
        {"{\"architectures\": \"LlamaForCausalLM\"}", NOSA_INVALID_ARGUMENT, "architectures"},
        {"{\"architectures\": [\"MistralForCausalLM\"]}", NOSA_UNSUPPORTED, "MistralForCausalLM"},
        {"{\"model_type\": \"mistral\"}", NOSA_UNSUPPORTED, "model_type mistral"},
        {"{\"hidden_act\": \"gelu\"}", NOSA_UNSUPPORTED, "hidden_act gelu"},
        {"{\"hidden_act\": 5}", NOSA_INVALID_ARGUMENT, "hidden_act"},
        {"{\"mlp_bias\": true}", NOSA_UNSUPPORTED, "mlp_bias"},
        {"{\"num_local_experts\": 8}", NOSA_UNSUPPORTED, "num_local_experts"},
        {"{\"n_routed_experts\": 8}", NOSA_UNSUPPORTED, "n_routed_experts"},
        {"{\"quantization_config\": {\"bits\": 4}}", NOSA_UNSUPPORTED, "quantization_config"},
        {"{\"sliding_window\": 4096}", NOSA_UNSUPPORTED, "sliding_window"},
        {"{\"sliding_window\": 4096, \"use_sliding_window\": true}", NOSA_UNSUPPORTED,
         "sliding_window"},
        {"{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}", NOSA_UNSUPPORTED,
         "layer_types"},
        {"{\"partial_rotary_factor\": 0.5}", NOSA_UNSUPPORTED, "partial_rotary_factor 0.5"},
        {"{\"use_nope\": true}", NOSA_UNSUPPORTED, "use_nope"},
    };
    check_refused(cases, sizeof cases / sizeof cases[0]);
    struct nosa_model_config config;
    accept("{\"sliding_window\": 4096, \"use_sliding_window\": false, \"mlp_bias\": false,"
           " \"partial_rotary_factor\": 1.0, \"layer_types\": [\"full_attention\"]}",
           &config);
}

static void test_parse_sparse_refused(void **state)
{
    (void)state;
    static const struct refused_case cases[] = {
        {"{\"sparse_config\": 5}", NOSA_INVALID_ARGUMENT, "sparse_config must be an object"},
        {"{\"sparse_config\": {\"block_size\": 128}}", NOSA_UNSUPPORTED, "block_size 128"},
        {"{\"sparse_config\": {\"block_size\": 0}}", NOSA_INVALID_ARGUMENT, "block_size"},
        {"{\"sparse_config\": {\"kernel_stride\": 24, \"kernel_size\": 48}}", NOSA_INVALID_ARGUMENT,
         "block_size 64 is not a multiple of kernel_stride 24"},
        {"{\"sparse_config\": {\"kernel_stride\": 0}}", NOSA_INVALID_ARGUMENT, "kernel_stride"},
        {"{\"sparse_config\": {\"kernel_size\": 64}}", NOSA_INVALID_ARGUMENT,
         "kernel_size 64 is not twice kernel_stride 16"},
        {"{\"sparse_config\": {\"window_size\": 1000}}", NOSA_INVALID_ARGUMENT,
         "window_size 1000 is not a multiple of block_size 64"},
        {"{\"sparse_config\": {\"window_size\": 0}}", NOSA_INVALID_ARGUMENT, "window_size"},
        {"{\"sparse_config\": {\"select_blocks\": 0}}", NOSA_INVALID_ARGUMENT, "select_blocks"},
        {"{\"sparse_config\": {\"select_blocks\": -1}}", NOSA_INVALID_ARGUMENT, "select_blocks"},
        {"{\"sparse_config\": {\"topk\": 32}}", NOSA_INVALID_ARGUMENT,
         "topk 32 is smaller than the first cut"},
        {"{\"sparse_config\": {\"topk\": 64.0}}", NOSA_INVALID_ARGUMENT, "topk"},
        {"{\"sparse_config\": {\"topk\": \"64\"}}", NOSA_INVALID_ARGUMENT, "sparse_config: topk"},
        {"{\"sparse_config\": {\"init_blocks\": -1}}", NOSA_INVALID_ARGUMENT, "init_blocks"},
        {"{\"sparse_config\": {\"init_blocks\": 4294967296}}", NOSA_INVALID_ARGUMENT,
         "init_blocks"},
        {"{\"sparse_config\": {\"dense_len\": 8192}}", NOSA_UNSUPPORTED, "dense_len 8192"},
        {"{\"sparse_config\": {\"use_nope\": true}}", NOSA_UNSUPPORTED, "use_nope"},
    };
    check_refused(cases, sizeof cases / sizeof cases[0]);
}

static void test_parse_rope_types(void **state)
{
    (void)state;
    struct nosa_model_config config;
    accept("{\"rope_scaling\": {\"type\": \"default\"}}", &config);
    assert_int_equal(config.rope.type, NOSA_ROPE_NONE);
    accept("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}", &config);
    assert_int_equal(config.rope.type, NOSA_ROPE_LINEAR);
    assert_true(config.rope.factor == 2);
    accept("{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1,"
           " \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 4096}}",
           &config);
    assert_int_equal(config.rope.type, NOSA_ROPE_LLAMA3);
    assert_int_equal(config.rope.original_max_positions, 4096);
    accept("{\"rope_scaling\": {\"type\": \"yarn\", \"original_max_position_embeddings\": 2048}}",
           &config);
    assert_int_equal(config.rope.type, NOSA_ROPE_YARN);
    assert_true(config.rope.factor == 4 && config.rope.beta_fast == 32);
    assert_true(config.rope.beta_slow == 1 && config.rope.truncate);
    accept("{\"rope_theta\": null, \"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 2.5,"
           " \"rope_theta\": 500000.0, \"truncate\": false}}",
           &config);
    assert_true(config.rope.theta == 500000 && config.rope.factor == 2.5);
    assert_int_equal(config.rope.original_max_positions, 8192);
    assert_false(config.rope.truncate);
    accept("{\"rope_theta\": null, \"rope_parameters\": {\"rope_theta\": 1000000}}", &config);
    assert_true(config.rope.theta == 1000000 && config.rope.type == NOSA_ROPE_NONE);
    accept("{\"head_dim\": 16, \"original_max_position_embeddings\": 4096, \"rope_scaling\":"
           " {\"type\": \"longrope\", \"short_factor\": [1, 1, 1.5, 2, 3, 4, 5, 6],"
           " \"long_factor\": [1, 1, 1.5, 2, 3, 4, 5, 6]}}",
           &config);
    assert_int_equal(config.rope.type, NOSA_ROPE_LONGROPE);
    assert_true(config.rope.factor == 2 && config.rope.short_factor[2] == 1.5);
}

static void test_parse_rope_refused(void **state)
{
    (void)state;
#define LLAMA3(rest) "{\"rope_scaling\": {\"rope_type\": \"llama3\", " rest "}}"
#define YARN(rest)   "{\"rope_scaling\": {\"rope_type\": \"yarn\", " rest "}}"
#define LONGROPE(rest)                                                                             \
    "{\"head_dim\": 16, \"rope_scaling\": {\"rope_type\": \"longrope\", " rest "}}"
    static const struct refused_case cases[] = {
        {"{\"rope_scaling\": \"linear\"}", NOSA_INVALID_ARGUMENT, "rope_scaling must be an object"},
        {"{\"rope_scaling\": {}}", NOSA_INVALID_ARGUMENT, "rope_type is missing"},
        {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", NOSA_UNSUPPORTED,
         "rope type dynamic"},
        {"{\"rope_scaling\": {\"type\": 1}}", NOSA_INVALID_ARGUMENT, "rope_type must be"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"yarn\", \"factor\": 2}}",
         NOSA_INVALID_ARGUMENT, "type and rope_type differ"},
        {"{\"rope_scaling\": {\"type\": \"linear\"}}", NOSA_INVALID_ARGUMENT, "factor is missing"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", NOSA_INVALID_ARGUMENT,
         "rope_scaling: factor must be"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": \"2\"}}", NOSA_INVALID_ARGUMENT,
         "factor"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, \"rope_parameters\":"
         " {\"type\": \"linear\", \"factor\": 3}}",
         NOSA_INVALID_ARGUMENT, "rope_scaling and rope_parameters differ"},
        {"{\"rope_parameters\": {\"rope_theta\": 5000}}", NOSA_INVALID_ARGUMENT,
         "rope_theta is 5000 here and 10000"},
        {"{\"rope_parameters\": {\"rope_theta\": 10000, \"partial_rotary_factor\": 0.25}}",
         NOSA_UNSUPPORTED, "partial_rotary_factor 0.25"},
        {LLAMA3("\"factor\": 8"), NOSA_INVALID_ARGUMENT, "low_freq_factor is missing"},
        {LLAMA3("\"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4"),
         NOSA_INVALID_ARGUMENT, "high_freq_factor 4 is not above low_freq_factor 4"},
        {LLAMA3("\"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4"),
         NOSA_INVALID_ARGUMENT, "original_max_position_embeddings is missing"},
        {LLAMA3("\"factor\": 8, \"low_freq_factor\": 0, \"high_freq_factor\": 4"),
         NOSA_INVALID_ARGUMENT, "low_freq_factor"},
        {YARN("\"beta_fast\": 1"), NOSA_INVALID_ARGUMENT, "factor is missing"},
        {YARN("\"factor\": 4, \"beta_fast\": 1"), NOSA_INVALID_ARGUMENT,
         "beta_fast 1 is not above beta_slow 1"},
        {YARN("\"factor\": 4, \"attention_factor\": -1"), NOSA_INVALID_ARGUMENT,
         "attention_factor"},
        {YARN("\"factor\": 4, \"mscale\": -1"), NOSA_INVALID_ARGUMENT, "mscale"},
        {YARN("\"factor\": 4, \"truncate\": 1"), NOSA_INVALID_ARGUMENT, "truncate"},
        {YARN("\"original_max_position_embeddings\": 16384"), NOSA_INVALID_ARGUMENT,
         "is above max_position_embeddings 8192"},
        {LONGROPE("\"factor\": 4"), NOSA_INVALID_ARGUMENT, "short_factor is missing"},
        {LONGROPE("\"short_factor\": [1, 1, 1]"), NOSA_INVALID_ARGUMENT,
         "short_factor has 3 numbers, head_dim / 2 is 8"},
        {LONGROPE("\"short_factor\": [1, 1, 1, 1, 1, 1, 1, 1, 1]"), NOSA_INVALID_ARGUMENT,
         "short_factor has 9 numbers, head_dim / 2 is 8"},
        {LONGROPE("\"short_factor\": [1, 1, 1, 1, 1, 1, 1, 1], \"long_factor\": [1]"),
         NOSA_INVALID_ARGUMENT, "long_factor has 1 numbers"},
        {LONGROPE("\"short_factor\": [1, 1, 1, 1, 1, 1, 1, 0]"), NOSA_INVALID_ARGUMENT,
         "short_factor must be a list of positive numbers"},
        {LONGROPE("\"short_factor\": [1, 1, 1, 1, 1, 1, 1, \"1\"]"), NOSA_INVALID_ARGUMENT,
         "short_factor must be"},
        {LONGROPE("\"short_factor\": [1, 1, 1, 1, 1, 1, 1, 1],"
                  "\"long_factor\": [1, 1, 1, 1, 1, 1, 1, 2]"),
         NOSA_UNSUPPORTED, "a long_factor that differs from short_factor"},
        {"{\"head_dim\": 16, \"original_max_position_embeddings\": 4096, \"rope_scaling\":"
         " {\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1, 1, 1, 1, 1],"
         " \"original_max_position_embeddings\": 2048}}",
         NOSA_INVALID_ARGUMENT, "is 2048 here and 4096 at the top"},
    };
    check_refused(cases, sizeof cases / sizeof cases[0]);
}

static void test_parse_not_json(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        " ",
        "{",
        "{\"a\": 1, \"a\": 2}",
        "[]",
        "null",
        "{\"a\": NaN}",
        "{} x",
        "{\"a\": 1e999}",
        "{\"\\u0000\": 1}",
        "{\"a\": 99999999999999999999}",
        "\xff\xfe{}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct nosa_model_config config;
        struct nosa_error error;
        nosa_error_clear(&error);
        enum nosa_status status =
            nosa_model_config_parse(texts[i], strlen(texts[i]), &config, &error);
        if (status != NOSA_CORRUPT || !strstr(error.text, "JSON"))
            fail_msg("%s: %s \"%s\"", texts[i], nosa_status_name(status), error.text);
    }
}

static void test_parse_deep_nesting(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    char *text = malloc(DEPTH + 16);
    assert_non_null(text);
    int used = sprintf(text, "{\"a\": ");
    memset(text + used, '[', DEPTH);
    struct nosa_model_config config;
    struct nosa_error error;
    nosa_error_clear(&error);
    assert_int_equal(nosa_model_config_parse(text, (size_t)used + DEPTH, &config, &error),
                     NOSA_CORRUPT);
    free(text);
}

static void test_load_missing_file(void **state)
{
    (void)state;
    char folder[] = "/tmp/nosa-test-config-XXXXXX";
    char path[64];
    struct nosa_model_config config;
    struct nosa_error error;
    nosa_error_clear(&error);
    assert_non_null(mkdtemp(folder));
    assert_int_equal(nosa_model_config_load(folder, &config, &error), NOSA_NOT_FOUND);
    snprintf(path, sizeof path, "%s/config.json", folder);
    assert_non_null(strstr(error.text, path));
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("{\"architectures\": [\"X\"]}", file);
    fclose(file);
    nosa_error_clear(&error);
    assert_int_equal(nosa_model_config_load(folder, &config, &error), NOSA_UNSUPPORTED);
    assert_ptr_equal(strstr(error.text, path), error.text);
    unlink(path);
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_plain),
        cmocka_unit_test(test_parse_defaults),
        cmocka_unit_test(test_parse_released_shape),
        cmocka_unit_test(test_parse_topk_equal_to_first_cut),
        cmocka_unit_test(test_parse_nonsense),
        cmocka_unit_test(test_parse_other_models),
        cmocka_unit_test(test_parse_sparse_refused),
        cmocka_unit_test(test_parse_rope_types),
        cmocka_unit_test(test_parse_rope_refused),
        cmocka_unit_test(test_parse_not_json),
        cmocka_unit_test(test_parse_deep_nesting),
        cmocka_unit_test(test_load_missing_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
