#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "model/checkpoint.h"
#include "support/tiny_checkpoint.h"

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/nosa-test-checkpoint-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    nosa_tiny_checkpoint_remove(folder);
    return 0;
}

static const char *file_path(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_tiny(const struct nosa_tiny_checkpoint *tiny)
{
    struct nosa_error error;
    nosa_error_clear(&error);
    nosa_tiny_checkpoint_remove(folder);
    if (nosa_tiny_checkpoint_write(folder, tiny, &error) != NOSA_OK)
        fail_msg("%s", error.text);
}

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(file_path(name), "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

/* Replaces every `from` in a file by `to`, of the same length, and counts them. */
static int edit_file(const char *name, const char *from, const char *to)
{
    char *data = NULL;
    size_t size = 0;
    int count = 0;
    size_t length = strlen(from);
    assert_int_equal(length, strlen(to));
    assert_int_equal(nosa_file_read(file_path(name), 1 << 24, &data, &size, NULL), NOSA_OK);
    for (size_t i = 0; i + length <= size; i++) {
        if (memcmp(data + i, from, length) == 0) {
            memcpy(data + i, to, length);
            count++;
        }
    }
    FILE *file = fopen(file_path(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(data);
    return count;
}

static struct nosa_checkpoint *open_good(void)
{
    struct nosa_checkpoint *checkpoint = NULL;
    struct nosa_error error;
    nosa_error_clear(&error);
    if (nosa_checkpoint_open(folder, &checkpoint, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    assert_non_null(checkpoint);
    return checkpoint;
}

static void check_refused(enum nosa_status expected, const char *fragment)
{
    struct nosa_checkpoint *checkpoint = NULL;
    struct nosa_error error;
    nosa_error_clear(&error);
    enum nosa_status status = nosa_checkpoint_open(folder, &checkpoint, &error);
    assert_null(checkpoint);
    if (status != expected || !strstr(error.text, fragment) || !strstr(error.text, folder) ||
        strchr(error.text, '\n'))
        fail_msg("%s \"%s\", expected %s \"%s\"", nosa_status_name(status), error.text,
                 nosa_status_name(expected), fragment);
}

static void check_shape(const struct nosa_tensor *tensor, uint32_t rank, uint64_t rows,
                        uint64_t columns)
{
    assert_non_null(tensor);
    assert_int_equal(tensor->rank, rank);
    assert_int_equal(tensor->shape[0], rows);
    if (rank == 2)
        assert_int_equal(tensor->shape[1], columns);
}

static void test_open_with_everything(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.attention_bias = true;
    tiny.dtype = NOSA_TENSOR_BF16;
    tiny.sparse = (struct nosa_sparse_config){8, 4, 1, 64, 128, 8, 3, 0};
    tiny.extra = "\"eos_token_id\": [5, 6], \"bos_token_id\": 1";
    write_tiny(&tiny);
    write_text("generation_config.json", "{\"eos_token_id\": [6, 9], \"do_sample\": true}");
    struct nosa_checkpoint *checkpoint = open_good();
    const struct nosa_model_config *config = nosa_checkpoint_config(checkpoint);
    assert_true(config->has_eviction_head && config->attention_bias);
    assert_int_equal(config->n_eos, 3);
    assert_int_equal(config->eos[2], 9);
    assert_memory_equal(&config->sparse, &tiny.sparse, sizeof tiny.sparse);
    assert_true(nosa_checkpoint_generation_config(checkpoint)->do_sample);
    assert_int_equal(nosa_checkpoint_matrix_dtype(checkpoint), NOSA_TENSOR_BF16);
    check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_EMBEDDING, 0), 2, 128, 64);
    check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_OUTPUT, 0), 2, 128, 64);
    check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_FINAL_NORM, 0), 1, 64, 0);
    for (uint32_t layer = 0; layer < 2; layer++) {
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_Q, layer), 2, 64, 64);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_K, layer), 2, 32, 64);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_K_BIAS, layer), 1, 32, 0);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_O_BIAS, layer), 1, 64, 0);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_DOWN, layer), 2, 64, 96);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_DELTA, layer), 2, 2, 32);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_DELTA_BIAS, layer), 1, 2, 0);
        check_shape(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_A, layer), 1, 2, 0);
    }
    const struct nosa_tensor *a = nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_A, 1);
    assert_int_equal(nosa_checkpoint_check(checkpoint, a, NULL), NOSA_OK);
    nosa_checkpoint_close(checkpoint);
}

static void test_open_plain_llama(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.eviction_head = false;
    tiny.tie_word_embeddings = true;
    tiny.dtype = NOSA_TENSOR_F16;
    write_tiny(&tiny);
    struct nosa_checkpoint *checkpoint = open_good();
    assert_false(nosa_checkpoint_config(checkpoint)->has_eviction_head);
    assert_ptr_equal(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_OUTPUT, 0),
                     nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_EMBEDDING, 0));
    assert_null(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_A, 1));
    assert_null(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_Q_BIAS, 0));
    assert_int_equal(nosa_checkpoint_matrix_dtype(checkpoint), NOSA_TENSOR_F16);
    /* embedding, per layer q, k, v, o and the feed-forward's three at 2 bytes; the norms at 4 */
    uint64_t matrices = 128 * 64 + 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64);
    assert_int_equal(nosa_checkpoint_weight_bytes(checkpoint), 2 * matrices + 4 * 5 * 64);
    nosa_checkpoint_close(checkpoint);
}

static void test_open_tied_ignores_output(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    write_tiny(&tiny);
    assert_int_equal(edit_file("config.json", "\"tie_word_embeddings\": false",
                               "\"tie_word_embeddings\":  true"),
                     1);
    struct nosa_checkpoint *checkpoint = open_good();
    assert_ptr_equal(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_OUTPUT, 0),
                     nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_EMBEDDING, 0));
    nosa_checkpoint_close(checkpoint);
}

static void identity_of(const struct nosa_tiny_checkpoint *tiny, uint8_t *identity)
{
    struct nosa_error error;
    nosa_error_clear(&error);
    write_tiny(tiny);
    struct nosa_checkpoint *checkpoint = open_good();
    if (nosa_checkpoint_identity(checkpoint, identity, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    nosa_checkpoint_close(checkpoint);
}

static void test_identity_of_shards_seed_and_config(void **state)
{
    (void)state;
    uint8_t one[NOSA_CHECKPOINT_IDENTITY_BYTES];
    uint8_t other[NOSA_CHECKPOINT_IDENTITY_BYTES];
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    identity_of(&tiny, one);
    tiny.n_shards = 5;
    identity_of(&tiny, other);
    assert_memory_equal(one, other, sizeof one);
    tiny.seed = 2;
    identity_of(&tiny, other);
    assert_memory_not_equal(one, other, sizeof one);
    tiny.seed = 1;
    tiny.rope_scaling = "{\"type\": \"linear\", \"factor\": 2}";
    identity_of(&tiny, other);
    assert_memory_not_equal(one, other, sizeof one);
    tiny.rope_scaling = NULL;
    tiny.sparse = (struct nosa_sparse_config){32, 16, 1, 64, 1024, 63, 16, 0};
    identity_of(&tiny, other);
    assert_memory_not_equal(one, other, sizeof one);
}

static void test_identity_of_one_changed_bit(void **state)
{
    (void)state;
    uint8_t one[NOSA_CHECKPOINT_IDENTITY_BYTES];
    uint8_t other[NOSA_CHECKPOINT_IDENTITY_BYTES];
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    identity_of(&tiny, one);
    FILE *file = fopen(file_path("model.safetensors"), "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -1, SEEK_END), 0);
    int last = fgetc(file);
    assert_int_equal(fseek(file, -1, SEEK_END), 0);
    fputc(last ^ 1, file);
    fclose(file);
    struct nosa_checkpoint *checkpoint = open_good();
    assert_int_equal(nosa_checkpoint_identity(checkpoint, other, NULL), NOSA_OK);
    nosa_checkpoint_close(checkpoint);
    assert_memory_not_equal(one, other, sizeof one);
}

static void test_identity_of_cut_file(void **state)
{
    (void)state;
    uint8_t identity[NOSA_CHECKPOINT_IDENTITY_BYTES];
    struct nosa_tiny_checkpoint tiny;
    struct nosa_error error;
    nosa_error_clear(&error);
    nosa_tiny_checkpoint_defaults(&tiny);
    write_tiny(&tiny);
    struct nosa_checkpoint *checkpoint = open_good();
    assert_int_equal(truncate(file_path("model.safetensors"), 4096), 0);
    assert_int_equal(nosa_checkpoint_identity(checkpoint, identity, &error), NOSA_CORRUPT);
    assert_non_null(strstr(error.text, "model.safetensors"));
    nosa_checkpoint_close(checkpoint);
}

static void test_open_single_file_of_other_name(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    char from[256];
    nosa_tiny_checkpoint_defaults(&tiny);
    write_tiny(&tiny);
    snprintf(from, sizeof from, "%s", file_path("model.safetensors"));
    assert_int_equal(rename(from, file_path("weights.safetensors")), 0);
    nosa_checkpoint_close(open_good());
    write_text("more.safetensors", "x");
    check_refused(NOSA_NOT_FOUND, "several *.safetensors files and no");
    unlink(file_path("more.safetensors"));
    unlink(file_path("weights.safetensors"));
    check_refused(NOSA_NOT_FOUND, "no *.safetensors file");
}

static void test_open_bad_index(void **state)
{
    (void)state;
    static const char index[] = "model.safetensors.index.json";
    static const struct {
        const char *from;
        const char *to;
        enum nosa_status status;
        const char *fragment;
    } cases[] = {
        {"\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"/odel-00002",
         NOSA_CORRUPT, "weight_map: model.norm.weight is in \"/odel-00002-of-00002.safetensors\""},
        {"\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"../el-00002",
         NOSA_CORRUPT, "plain file name"},
        {"\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"model-00001",
         NOSA_CORRUPT, "model-00001-of-00002.safetensors: tensor model.norm.weight is not in it"},
        {"\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"model-00003",
         NOSA_NOT_FOUND, "model-00003-of-00002.safetensors"},
        {"\"model.norm.weight\"", "\"model.norm.Weight\"", NOSA_CORRUPT,
         "tensor model.norm.Weight is not in it"},
        {"\"model.norm.weight\"", "\"lm_head.weight\"   ", NOSA_CORRUPT, "not valid JSON"},
        {"\"weight_map\"", "\"Weight_map\"", NOSA_CORRUPT, "weight_map is not an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_tiny_checkpoint tiny;
        nosa_tiny_checkpoint_defaults(&tiny);
        tiny.n_shards = 2;
        write_tiny(&tiny);
        assert_int_equal(edit_file(index, cases[i].from, cases[i].to), 1);
        check_refused(cases[i].status, cases[i].fragment);
    }
}

static void test_open_contradicting_config(void **state)
{
    (void)state;
    static const struct {
        const char *from;
        const char *to;
        enum nosa_status status;
        const char *fragment;
    } cases[] = {
        {"\"vocab_size\": 128", "\"vocab_size\": 129", NOSA_INVALID_ARGUMENT,
         "tensor model.embed_tokens.weight has shape [128, 64], the config asks for [129, 64]"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", NOSA_UNSUPPORTED,
         "layer 2 has no eviction head but layer 0 has one"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", NOSA_INVALID_ARGUMENT,
         "is there though num_hidden_layers is 1"},
        {"\"intermediate_size\": 96", "\"intermediate_size\": 80", NOSA_INVALID_ARGUMENT,
         "tensor model.layers.0.mlp.gate_proj.weight has shape [96, 64], the config asks for "
         "[80, 64]"},
        {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", NOSA_INVALID_ARGUMENT,
         "tensor model.layers.0.self_attn.k_proj.weight has shape [32, 64], the config asks for "
         "[64, 64]"},
        {"\"attention_bias\": false", "\"attention_bias\":  true", NOSA_NOT_FOUND,
         "tensor model.layers.0.self_attn.q_proj.bias is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_tiny_checkpoint tiny;
        nosa_tiny_checkpoint_defaults(&tiny);
        write_tiny(&tiny);
        assert_int_equal(edit_file("config.json", cases[i].from, cases[i].to), 1);
        check_refused(cases[i].status, cases[i].fragment);
    }
}

static void test_open_bad_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *from;
        const char *to;
        enum nosa_status status;
        const char *fragment;
    } cases[] = {
        {"\"model.norm.weight\"", "\"model.norm.Weight\"", NOSA_NOT_FOUND,
         "tensor model.norm.weight is missing"},
        {"\"lm_head.weight\"", "\"lm_head.Weight\"", NOSA_NOT_FOUND,
         "lm_head.weight is missing and tie_word_embeddings is not set"},
        {"layers.1.mlp.up_proj.weight", "layers.1.mlp.uq_proj.weight", NOSA_NOT_FOUND,
         "tensor model.layers.1.mlp.up_proj.weight is missing"},
        {"layers.1.self_attn.A\"", "layers.1.self_attn.B\"", NOSA_NOT_FOUND,
         "tensor model.layers.1.self_attn.A is missing"},
        {"layers.0.self_attn.delta.weight", "layers.0.self_attn.Delta.weight", NOSA_NOT_FOUND,
         "tensor model.layers.0.self_attn.delta.weight is missing"},
        {"\"model.norm.weight\": {\"dtype\": \"F32\"", "\"model.norm.weight\": {\"dtype\": \"I32\"",
         NOSA_UNSUPPORTED, "tensor model.norm.weight has type I32"},
        {"layers.1.self_attn.A\": {\"dtype\": \"F32\", \"shape\": [2]",
         "layers.1.self_attn.A\": {\"dtype\": \"F16\", \"shape\": [4]", NOSA_INVALID_ARGUMENT,
         "tensor model.layers.1.self_attn.A has shape [4], the config asks for [2]"},
        {"\"model.norm.weight\": {\"dtype\": \"F32\", \"shape\": [64]",
         "\"model.norm.weight\": {\"dtype\": \"F32\", \"shape\":[8,8]", NOSA_INVALID_ARGUMENT,
         "tensor model.norm.weight has shape [8, 8], the config asks for [64]"},
        {"layers.1.self_attn.v_proj.weight\": {\"dtype\": \"F32\", \"shape\": [32, 64]",
         "layers.1.self_attn.v_proj.weight\": {\"dtype\": \"F32\", \"shape\": [64, 32]",
         NOSA_INVALID_ARGUMENT, "v_proj.weight has shape [64, 32], the config asks for [32, 64]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_tiny_checkpoint tiny;
        nosa_tiny_checkpoint_defaults(&tiny);
        write_tiny(&tiny);
        if (edit_file("model.safetensors", cases[i].from, cases[i].to) != 1)
            fail_msg("not found once: %s", cases[i].from);
        check_refused(cases[i].status, cases[i].fragment);
    }
}

static void test_open_biases_without_attention_bias(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.attention_bias = true;
    write_tiny(&tiny);
    assert_int_equal(
        edit_file("config.json", "\"attention_bias\": true", "\"attention_bias\": null"), 1);
    check_refused(NOSA_UNSUPPORTED, "q_proj.bias is there though attention_bias is not set");
}

static void test_open_missing_delta_bias(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.attention_bias = true;
    write_tiny(&tiny);
    assert_int_equal(edit_file("model.safetensors", "layers.1.self_attn.delta.bias",
                               "layers.1.self_attn.delta.Bias"),
                     1);
    check_refused(NOSA_NOT_FOUND, "tensor model.layers.1.self_attn.delta.bias is missing");
}

/* Appends an empty tensor of that name to the header, in the place of its metadata. */
static void add_extra_tensor(const char *name)
{
    char from[] = "\"__metadata__\": {\"format\": \"pt\"}, \"";
    char *data = NULL;
    size_t size = 0;
    char entry[256];
    assert_int_equal(nosa_file_read(file_path("model.safetensors"), 1 << 24, &data, &size, NULL),
                     NOSA_OK);
    int length = snprintf(entry, sizeof entry,
                          "{\"%s\": {\"dtype\": \"F32\", \"shape\": [0], "
                          "\"data_offsets\": [0, 0]}, \"",
                          name);
    assert_memory_equal(data + 9, from, strlen(from));
    uint64_t header_bytes = 0;
    memcpy(&header_bytes, data, sizeof header_bytes);
    header_bytes = header_bytes - strlen(from) - 1 + (uint64_t)length;
    FILE *file = fopen(file_path("model.safetensors"), "wb");
    assert_non_null(file);
    fwrite(&header_bytes, sizeof header_bytes, 1, file);
    fwrite(entry, 1, (size_t)length, file);
    fwrite(data + 9 + strlen(from), 1, size - 9 - strlen(from), file);
    assert_int_equal(fclose(file), 0);
    free(data);
}

static void test_open_extra_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool refused;
    } cases[] = {
        {"model.layers.0.self_attn.rotary_emb.inv_freq", false},
        {"something.else", false},
        {"model.layers.0.self_attn.q_norm.weight", true},
        {"model.layers.1.mlp.experts.0.w1.weight", true},
        {"model.layers.0.mlp.gate_proj.bias", true},
        {"model.layers.0.mlp.gate_proj.weight_scale", true},
        {"model.layers.2.mlp.gate_proj.weight", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_tiny_checkpoint tiny;
        nosa_tiny_checkpoint_defaults(&tiny);
        write_tiny(&tiny);
        add_extra_tensor(cases[i].name);
        if (cases[i].refused)
            check_refused(i + 1 == sizeof cases / sizeof cases[0] ? NOSA_INVALID_ARGUMENT
                                                                  : NOSA_UNSUPPORTED,
                          cases[i].name);
        else
            nosa_checkpoint_close(open_good());
    }
}

static void test_open_mixed_matrix_types(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    tiny.dtype = NOSA_TENSOR_F16;
    write_tiny(&tiny);
    assert_int_equal(edit_file("model.safetensors",
                               "layers.1.mlp.down_proj.weight\": {\"dtype\": \"F16\", ",
                               "layers.1.mlp.down_proj.weight\": {\"dtype\":\"BF16\", "),
                     1);
    check_refused(NOSA_UNSUPPORTED, "must be of one type");
}

static void test_open_bad_paths(void **state)
{
    (void)state;
    struct nosa_tiny_checkpoint tiny;
    struct nosa_checkpoint *checkpoint = NULL;
    struct nosa_error error;
    nosa_tiny_checkpoint_defaults(&tiny);
    write_tiny(&tiny);
    nosa_error_clear(&error);
    assert_int_equal(nosa_checkpoint_open("/nonexistent", &checkpoint, &error), NOSA_NOT_FOUND);
    assert_non_null(strstr(error.text, "/nonexistent"));
    nosa_error_clear(&error);
    assert_int_equal(nosa_checkpoint_open(file_path("config.json"), &checkpoint, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "not a directory"));
    assert_int_equal(nosa_checkpoint_open("", &checkpoint, NULL), NOSA_NOT_FOUND);
    write_text("generation_config.json", "{\"temperature\": -1}");
    check_refused(NOSA_INVALID_ARGUMENT, "generation_config.json: temperature must be");
    unlink(file_path("generation_config.json"));
    assert_int_equal(mkdir(file_path("generation_config.json"), 0777), 0);
    check_refused(NOSA_INVALID_ARGUMENT, "generation_config.json: is a directory");
    assert_int_equal(rmdir(file_path("generation_config.json")), 0);
    unlink(file_path("model.safetensors"));
    assert_int_equal(mkdir(file_path("model.safetensors"), 0777), 0);
    check_refused(NOSA_INVALID_ARGUMENT, "model.safetensors: is a directory");
    assert_int_equal(rmdir(file_path("model.safetensors")), 0);
    write_text("model.safetensors", "");
    check_refused(NOSA_CORRUPT, "model.safetensors: the file is empty");
    unlink(file_path("config.json"));
    check_refused(NOSA_NOT_FOUND, "config.json");
}

static double value_of(const struct nosa_tensor *tensor, uint64_t index)
{
    uint16_t half;
    float value;
    if (tensor->dtype == NOSA_TENSOR_F32) {
        memcpy(&value, (const char *)tensor->data + 4 * index, sizeof value);
        return value;
    }
    memcpy(&half, (const char *)tensor->data + 2 * index, sizeof half);
    if (tensor->dtype == NOSA_TENSOR_BF16) {
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    int exponent = (half >> 10) & 31;
    double magnitude =
        exponent ? ldexp(1024 + (half & 1023), exponent - 25) : ldexp(half & 1023, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

/* The three types hold the same draws, each within its rounding. */
static void test_tiny_checkpoint_same_values_in_every_type(void **state)
{
    (void)state;
    static const struct {
        enum nosa_tensor_dtype dtype;
        double error_max; /* of a value, as a share of it */
    } cases[] = {{NOSA_TENSOR_F16, 1.0 / 2048}, {NOSA_TENSOR_BF16, 1.0 / 256}};
    enum { COUNT = 128 * 64 };
    static double exact[COUNT];
    struct nosa_tiny_checkpoint tiny;
    nosa_tiny_checkpoint_defaults(&tiny);
    write_tiny(&tiny);
    struct nosa_checkpoint *checkpoint = open_good();
    double squares = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        exact[i] = value_of(nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_EMBEDDING, 0), i);
        squares += exact[i] * exact[i];
    }
    nosa_checkpoint_close(checkpoint);
    assert_true(fabs(sqrt(squares / COUNT) - 3.0 / 8) < 0.02);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        tiny.dtype = cases[c].dtype;
        write_tiny(&tiny);
        checkpoint = open_good();
        const struct nosa_tensor *tensor =
            nosa_checkpoint_tensor(checkpoint, NOSA_TENSOR_EMBEDDING, 0);
        for (uint64_t i = 0; i < COUNT; i++)
            if (fabs(value_of(tensor, i) - exact[i]) > fabs(exact[i]) * cases[c].error_max + 3e-8)
                fail_msg("%s: value %d is %g, not %g", tensor->dtype_name, (int)i,
                         value_of(tensor, i), exact[i]);
        nosa_checkpoint_close(checkpoint);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_with_everything),
        cmocka_unit_test(test_open_plain_llama),
        cmocka_unit_test(test_open_tied_ignores_output),
        cmocka_unit_test(test_identity_of_shards_seed_and_config),
        cmocka_unit_test(test_identity_of_one_changed_bit),
        cmocka_unit_test(test_identity_of_cut_file),
        cmocka_unit_test(test_open_single_file_of_other_name),
        cmocka_unit_test(test_open_bad_index),
        cmocka_unit_test(test_open_contradicting_config),
        cmocka_unit_test(test_open_bad_tensors),
        cmocka_unit_test(test_open_biases_without_attention_bias),
        cmocka_unit_test(test_open_missing_delta_bias),
        cmocka_unit_test(test_open_extra_tensors),
        cmocka_unit_test(test_open_mixed_matrix_types),
        cmocka_unit_test(test_open_bad_paths),
        cmocka_unit_test(test_tiny_checkpoint_same_values_in_every_type),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
