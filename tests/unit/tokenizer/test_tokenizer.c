/* The tokenizer's interface: bad files, long inputs, work that stays O(n log n), failing memory. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/alloc_fail.h"
#include "tokenizer/chat.h"
#include "vectors.h"

/* The thread sanitizer makes every access a dozen times as costly. */
#ifdef __SANITIZE_THREAD__
#define MIB (1u << 17)
#else
#define MIB (1u << 20)
#endif

/* ---- broken files ---- */

static enum nosa_status open_text(const char *json, const char *config, struct nosa_error *error)
{
    struct nosa_tokenizer_files files = {.tokenizer_json = {json, strlen(json)}};
    struct nosa_tokenizer *tokenizer;
    if (config != NULL)
        files.config_json = (struct nosa_tokenizer_bytes){config, strlen(config)};
    nosa_error_clear(error);
    enum nosa_status status = nosa_tokenizer_open_memory(&files, &tokenizer, error);
    if (status == NOSA_OK)
        nosa_tokenizer_close(tokenizer);
    else
        assert_null(tokenizer);
    return status;
}

#define MODEL(rest) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}," rest "}"
#define GOOD        MODEL("\"merges\":[\"a b\"]")

struct broken {
    const char *json;
    enum nosa_status status;
    const char *phrase; /* what the error must name */
};

static const struct broken broken_files[] = {
    {"", NOSA_INVALID_ARGUMENT, "tokenizer.json: line 1"},
    {"{", NOSA_INVALID_ARGUMENT, "tokenizer.json: line 1"},
    {"{\"model\":}", NOSA_INVALID_ARGUMENT, "tokenizer.json: line 1"},
    {"[1,2]", NOSA_INVALID_ARGUMENT, "not a JSON object"},
    {"\xFF\xFE", NOSA_INVALID_ARGUMENT, "line 1"},
    {"{}", NOSA_INVALID_ARGUMENT, "\"model\" is not an object"},
    {"{\"model\":null}", NOSA_INVALID_ARGUMENT, "\"model\" is not an object"},
    {"{\"model\":[]}", NOSA_INVALID_ARGUMENT, "\"model\" is not an object"},
    {"{\"model\":{}}", NOSA_INVALID_ARGUMENT, "no \"type\""},
    {"{\"model\":{\"type\":3}}", NOSA_INVALID_ARGUMENT, "\"type\" is not a string"},
    {"{\"model\":{\"type\":\"WordPiece\"}}", NOSA_UNSUPPORTED,
     "tokenizer.json: model type 'WordPiece' is not supported"},
    {"{\"model\":{\"type\":\"Unigram\"}}", NOSA_UNSUPPORTED, "'Unigram'"},
    {"{\"model\":{\"type\":\"BPE\"}}", NOSA_INVALID_ARGUMENT, "\"vocab\""},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", NOSA_INVALID_ARGUMENT, "\"vocab\" is empty"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[\"a\"]}}", NOSA_INVALID_ARGUMENT, "\"vocab\""},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"}}}", NOSA_INVALID_ARGUMENT, "'a'"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0.5}}}", NOSA_INVALID_ARGUMENT, "'a'"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1}}}", NOSA_INVALID_ARGUMENT, "id -1"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4194304}}}", NOSA_INVALID_ARGUMENT, "4194304"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999999}}}", NOSA_INVALID_ARGUMENT, "'a'"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999999999999999999}}}",
     NOSA_INVALID_ARGUMENT, "line 1"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", NOSA_CORRUPT,
     "both have id 1"},
    {"{" MODEL("\"x\":1") "}", NOSA_INVALID_ARGUMENT, "\"merges\""},
    {"{" MODEL("\"merges\":{}") "}", NOSA_INVALID_ARGUMENT, "\"merges\""},
    {"{" MODEL("\"merges\":[\"a b\",\"a c\"]") "}", NOSA_CORRUPT, "merge 1 needs token 'c'"},
    {"{" MODEL("\"merges\":[\"b a\"]") "}", NOSA_CORRUPT, "merge 0 needs token 'ba'"},
    {"{" MODEL("\"merges\":[\"ab\"]") "}", NOSA_INVALID_ARGUMENT, "merge 0"},
    {"{" MODEL("\"merges\":[\"a b c\"]") "}", NOSA_INVALID_ARGUMENT, "merge 0"},
    {"{" MODEL("\"merges\":[[\"a\"]]") "}", NOSA_INVALID_ARGUMENT, "merge 0"},
    {"{" MODEL("\"merges\":[[\"a\",1]]") "}", NOSA_INVALID_ARGUMENT, "merge 0"},
    {"{" MODEL("\"merges\":[7]") "}", NOSA_INVALID_ARGUMENT, "merge 0"},
    {"{" MODEL("\"merges\":[],\"dropout\":0.1") "}", NOSA_UNSUPPORTED, "dropout"},
    {"{" MODEL("\"merges\":[],\"end_of_word_suffix\":\"</w>\"") "}", NOSA_UNSUPPORTED,
     "end_of_word_suffix"},
    {"{" MODEL("\"merges\":[],\"continuing_subword_prefix\":\"##\"") "}", NOSA_UNSUPPORTED,
     "continuing_subword_prefix"},
    {"{" MODEL("\"merges\":[],\"byte_fallback\":1") "}", NOSA_INVALID_ARGUMENT, "byte_fallback"},
    {"{" MODEL("\"merges\":[],\"unk_token\":1") "}", NOSA_INVALID_ARGUMENT, "unk_token"},
    {"{" GOOD ",\"added_tokens\":{}}", NOSA_INVALID_ARGUMENT, "added_tokens"},
    {"{" GOOD ",\"added_tokens\":[3]}", NOSA_INVALID_ARGUMENT, "added_tokens[0]"},
    {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":\"9\"}]}", NOSA_INVALID_ARGUMENT,
     "added_tokens[0]"},
    {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":1}]}", NOSA_CORRUPT, "id 1"},
    {"{" GOOD ",\"added_tokens\":[{\"content\":\"a\",\"id\":9}]}", NOSA_CORRUPT, "'a'"},
    {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":-3}]}", NOSA_INVALID_ARGUMENT, "-3"},
    {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":9,\"special\":\"yes\"}]}",
     NOSA_INVALID_ARGUMENT, "\"special\""},
    {"{" GOOD ",\"normalizer\":\"NFC\"}", NOSA_INVALID_ARGUMENT, "normalizer"},
    {"{" GOOD ",\"normalizer\":{}}", NOSA_INVALID_ARGUMENT, "normalizer has no \"type\""},
    {"{" GOOD ",\"normalizer\":{\"type\":\"Precompiled\"}}", NOSA_UNSUPPORTED,
     "normalizer 'Precompiled' is not supported"},
    {"{" GOOD ",\"normalizer\":{\"type\":\"Sequence\"}}", NOSA_INVALID_ARGUMENT, "normalizers"},
    {"{" GOOD ",\"normalizer\":{\"type\":\"Prepend\"}}", NOSA_INVALID_ARGUMENT, "\"prepend\""},
    {"{" GOOD ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"x\"}}", NOSA_INVALID_ARGUMENT,
     "\"pattern\""},
    {"{" GOOD ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"}}}",
     NOSA_UNSUPPORTED, "'('"},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}}", NOSA_UNSUPPORTED,
     "pre_tokenizer 'UnicodeScripts' is not supported"},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"}}}",
     NOSA_INVALID_ARGUMENT, "\"behavior\""},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"Regex\":\"[a&&b]\"}}}",
     NOSA_UNSUPPORTED, "&&"},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"Regex\":\"\\\\p{Nonsense}\"}}}",
     NOSA_UNSUPPORTED, "Nonsense"},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
     "{\"String\":\"\"}}}",
     NOSA_UNSUPPORTED, "empty pattern"},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"xy\"}}",
     NOSA_INVALID_ARGUMENT, "\"replacement\""},
    {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Digits\",\"individual_digits\":2}}",
     NOSA_INVALID_ARGUMENT, "individual_digits"},
    {"{" GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":\"$A\"}}",
     NOSA_INVALID_ARGUMENT, "\"single\""},
    {"{" GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}",
     NOSA_UNSUPPORTED, "text once"},
    {"{" GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
     "{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}]}}",
     NOSA_CORRUPT, "'<s>'"},
    {"{" GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"special_tokens\":{\"<s>\":"
     "{\"ids\":[77]}},\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{}}]}}",
     NOSA_CORRUPT, "id is of no token"},
    {"{" GOOD ",\"post_processor\":{\"type\":\"Other\"}}", NOSA_UNSUPPORTED, "'Other'"},
    {"{" GOOD ",\"decoder\":{\"type\":\"WordPiece\"}}", NOSA_UNSUPPORTED,
     "decoder 'WordPiece' is not supported"},
    {"{" GOOD ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}}",
     NOSA_UNSUPPORTED, "Strip"},
    {"{" GOOD ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}}",
     NOSA_INVALID_ARGUMENT, "\"start\""},
    {"{" GOOD ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},"
     "{\"type\":\"ByteFallback\"}]}}",
     NOSA_UNSUPPORTED, "ByteFallback in this place"},
};

static void test_open_memory_names_what_is_broken(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    assert_int_equal(open_text("{" GOOD "}", NULL, &error), NOSA_OK);
    for (size_t i = 0; i < sizeof broken_files / sizeof broken_files[0]; i++) {
        const struct broken *broken = &broken_files[i];
        enum nosa_status status = open_text(broken->json, NULL, &error);
        if (status != broken->status || error.status != status ||
            strstr(error.text, broken->phrase) == NULL)
            fail_msg("%s\n gave %s: %s", broken->json, nosa_status_name(status), error.text);
        assert_null(strchr(error.text, '\n'));
        assert_int_equal(open_text(broken->json, NULL, NULL), status);
    }
}

static void test_open_memory_refuses_broken_config(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    assert_int_equal(open_text("{" GOOD "}", "{\"bos_token\"", &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "tokenizer_config.json: line 1"));
    assert_int_equal(open_text("{" GOOD "}", "3", &error), NOSA_INVALID_ARGUMENT);
    assert_int_equal(open_text("{" GOOD "}", "{\"bos_token\":5,\"chat_template\":{}}", &error),
                     NOSA_OK);
}

static void test_open_memory_refuses_deep_nesting(void **state)
{
    (void)state;
    struct nosa_buffer json = {0};
    struct nosa_error error = {0};
    nosa_buffer_append_text(&json, "{" GOOD ",\"normalizer\":");
    for (int i = 0; i < 100; i++)
        nosa_buffer_append_text(&json, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 100; i++)
        nosa_buffer_append_text(&json, "]}");
    nosa_buffer_append_text(&json, "}");
    assert_int_equal(open_text(json.data, NULL, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "nest deeper"));
    nosa_buffer_reset(&json);
    for (int i = 0; i < 100000; i++)
        nosa_buffer_append_text(&json, "[");
    assert_int_equal(open_text(json.data, NULL, &error), NOSA_INVALID_ARGUMENT);
    nosa_buffer_free(&json);
}

static void test_open_memory_refuses_every_truncation(void **state)
{
    (void)state;
    size_t size;
    char *json = vectors_read("gemma.json", &size);
    struct nosa_error error = {0};
    struct nosa_tokenizer *tokenizer;
    for (size_t cut = 0; cut + 1 < size; cut += 97) {
        struct nosa_tokenizer_files files = {.tokenizer_json = {json, cut}};
        nosa_error_clear(&error);
        assert_int_equal(nosa_tokenizer_open_memory(&files, &tokenizer, &error),
                         NOSA_INVALID_ARGUMENT);
    }
    free(json);
}

static void write_file(const char *directory, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    fclose(file);
}

static void test_open_reads_a_model_directory(void **state)
{
    (void)state;
    char directory[] = "tokenizer-XXXXXX";
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "chat_template.jinja"};
    struct nosa_tokenizer *tokenizer;
    struct nosa_error error = {0};
    char path[512];
    assert_non_null(mkdtemp(directory));
    assert_int_equal(nosa_tokenizer_open(directory, &tokenizer, &error), NOSA_NOT_FOUND);
    assert_non_null(strstr(error.text, "tokenizer.json"));
    write_file(directory, names[0], "{" GOOD "}");
    write_file(directory, names[1], "{\"eos_token\":{\"content\":\"b\"},\"chat_template\":\"x\"}");
    write_file(directory, names[2], "{\"bos_token\":\"a\",\"eos_token\":\"a\"}");
    write_file(directory, names[3], "<|im_start|> <|im_end|>");
    nosa_error_clear(&error);
    assert_int_equal(nosa_tokenizer_open(directory, &tokenizer, &error), NOSA_OK);
    assert_int_equal(nosa_tokenizer_bos(tokenizer), 0);
    assert_int_equal(nosa_tokenizer_eos(tokenizer), 1);
    assert_int_equal(nosa_chat_family(tokenizer), NOSA_CHAT_CHATML);
    nosa_tokenizer_close(tokenizer);
    write_file(directory, names[0], "{");
    assert_int_equal(nosa_tokenizer_open(directory, &tokenizer, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, directory));
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

/* ---- vocabulary ---- */

static void test_find_and_piece(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("qwen", NULL);
    size_t size;
    int32_t id = nosa_tokenizer_find(tokenizer, "<|im_end|>", 10);
    assert_in_range(id, 0, nosa_tokenizer_vocab_size(tokenizer) - 1);
    assert_true(nosa_tokenizer_is_special(tokenizer, id));
    assert_string_equal(nosa_tokenizer_piece(tokenizer, id, &size), "<|im_end|>");
    assert_int_equal(size, 10);
    id = nosa_tokenizer_find(tokenizer, "<think>", 7);
    assert_true(id >= 0 && !nosa_tokenizer_is_special(tokenizer, id));
    assert_int_equal(nosa_tokenizer_find(tokenizer, "<|im_end|", 9), -1);
    assert_int_equal(nosa_tokenizer_find(tokenizer, "", 0), -1);
    assert_null(nosa_tokenizer_piece(tokenizer, -1, &size));
    assert_null(nosa_tokenizer_piece(tokenizer, nosa_tokenizer_vocab_size(tokenizer), &size));
    assert_false(nosa_tokenizer_is_special(tokenizer, -1));
    assert_false(nosa_tokenizer_is_special(tokenizer, INT32_MAX));
    nosa_tokenizer_close(tokenizer);
}

static void test_ids_need_not_be_dense(void **state)
{
    (void)state;
    static const char json[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":7,\"b\":100000},"
                               "\"merges\":[]}}";
    struct nosa_tokenizer_files files = {.tokenizer_json = {json, sizeof json - 1}};
    struct nosa_tokenizer *tokenizer;
    struct nosa_tokens tokens = {0};
    struct nosa_buffer text = {0};
    struct nosa_error error = {0};
    size_t size;
    assert_int_equal(nosa_tokenizer_open_memory(&files, &tokenizer, &error), NOSA_OK);
    assert_int_equal(nosa_tokenizer_vocab_size(tokenizer), 100001);
    assert_null(nosa_tokenizer_piece(tokenizer, 8, &size));
    assert_int_equal(nosa_tokenizer_encode(tokenizer, "abxa", 4, 0, &tokens, &error), NOSA_OK);
    assert_int_equal(tokens.count, 3); /* without an unknown token, x has no id */
    assert_int_equal(tokens.ids[1], 100000);
    const int32_t ids[] = {7, -5, 8, 100000, INT32_MAX};
    assert_int_equal(nosa_tokenizer_decode(tokenizer, ids, 5, &text, &error), NOSA_OK);
    assert_string_equal(text.data, "a b"); /* no decoder: joined with spaces */
    nosa_buffer_free(&text);
    nosa_tokens_free(&tokens);
    nosa_tokenizer_close(tokenizer);
}

static void test_encode_ends_at_count_max(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("minicpm", NULL);
    static const char text[] = "the quick brown fox jumps over the lazy dog";
    struct nosa_tokens whole = {0}, exact = {0}, short_of = {0};
    struct nosa_error error = {0};
    assert_int_equal(nosa_tokenizer_encode(tokenizer, text, sizeof text - 1, 0, &whole, &error),
                     NOSA_OK);
    exact.count_max = whole.count;
    assert_int_equal(nosa_tokenizer_encode(tokenizer, text, sizeof text - 1, 0, &exact, &error),
                     NOSA_OK);
    assert_int_equal(exact.count, whole.count);
    assert_false(exact.full);
    short_of.count_max = whole.count - 1;
    assert_int_equal(nosa_tokenizer_encode(tokenizer, text, sizeof text - 1, 0, &short_of, &error),
                     NOSA_RESOURCE_EXHAUSTED);
    assert_true(short_of.full);
    assert_int_equal(short_of.count, 0);
    assert_non_null(strstr(error.text, "more than"));
    nosa_tokens_free(&whole);
    nosa_tokens_free(&exact);
    nosa_tokens_free(&short_of);
    nosa_tokenizer_close(tokenizer);
}

/* ---- long inputs ---- */

static char *repeated(const char *unit, size_t size)
{
    size_t length = strlen(unit);
    size_t whole = size / length * length;
    char *text = malloc(whole + 1);
    assert_non_null(text);
    for (size_t i = 0; i < whole; i += length)
        memcpy(text + i, unit, length);
    text[whole] = '\0';
    return text;
}

static uint64_t merge_steps(const struct nosa_tokenizer *tokenizer, const char *unit, size_t size,
                            bool round_trip)
{
    char *text = repeated(unit, size);
    struct nosa_tokens tokens = {0};
    struct nosa_buffer decoded = {0};
    struct nosa_error error = {0};
    size_t length = strlen(text);
    if (nosa_tokenizer_encode(tokenizer, text, length, 0, &tokens, &error) != NOSA_OK)
        fail_msg("'%s' x %zu: %s", unit, size, error.text);
    assert_true(tokens.count > 0);
    assert_int_equal(nosa_tokenizer_decode(tokenizer, tokens.ids, tokens.count, &decoded, &error),
                     NOSA_OK);
    if (round_trip) {
        assert_int_equal(decoded.size, length);
        assert_memory_equal(decoded.data, text, length);
    }
    uint64_t steps = tokens.merge_steps;
    nosa_buffer_free(&decoded);
    nosa_tokens_free(&tokens);
    free(text);
    return steps;
}

/* Twice the text may take hardly more than twice the work, whatever the text is; a quadratic merge
 * takes four times. */
static void test_encode_work_grows_as_n_log_n(void **state)
{
    (void)state;
    static const char *const units[] = {" ",  "a",         "aB",  "\n", "the", "0",
                                        "中", "e\xCC\x81", " \n", "x ", "-",   "👩\xE2\x80\x8D"};
    static const char *const names[] = {"llama3", "qwen", "smollm", "minicpm", "gemma", "o200k"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        struct nosa_tokenizer *tokenizer = vectors_open(names[n], NULL);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            uint64_t small = merge_steps(tokenizer, units[u], MIB / 16, false);
            uint64_t large = merge_steps(tokenizer, units[u], MIB / 8, false);
            if (large > small * 5 / 2 + 1000)
                fail_msg("%s, '%s': %zu steps, then %zu for twice the text", names[n], units[u],
                         (size_t)small, (size_t)large);
            /* At most a few moves per byte and level of the queue. */
            assert_true(large < (uint64_t)(MIB / 8) * 17 * 4);
        }
        nosa_tokenizer_close(tokenizer);
    }
}

static void test_encode_takes_a_mebibyte_of_one_kind(void **state)
{
    (void)state;
    static const char *const units[] = {" ", "a", "aB", "\n", " \n", "\t", "7", "'", "!", "é"};
    static const char *const names[] = {"llama3", "qwen", "smollm", "o200k"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        struct nosa_tokenizer *tokenizer = vectors_open(names[n], NULL);
        size_t count = n == 0 ? sizeof units / sizeof units[0] : 3;
        for (size_t u = 0; u < count; u++)
            merge_steps(tokenizer, units[u], MIB, true);
        nosa_tokenizer_close(tokenizer);
    }
}

/* Marks of many classes in the worst order: sorting them is the costly part of normal forms. */
static void test_normalize_takes_long_runs_of_marks(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("qwen", NULL);
    merge_steps(tokenizer, "\xCC\x81\xCC\xA3\xCC\x9B", MIB, false);
    nosa_tokenizer_close(tokenizer);
}

static void test_encode_ends_patterns_that_explode(void **state)
{
    (void)state;
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":"
        "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"^(a|aa|a?)+$\"}}}";
    struct nosa_tokenizer_files files = {.tokenizer_json = {json, sizeof json - 1}};
    struct nosa_tokenizer *tokenizer;
    struct nosa_tokens tokens = {0};
    struct nosa_error error = {0};
    assert_int_equal(nosa_tokenizer_open_memory(&files, &tokenizer, &error), NOSA_OK);
    assert_int_equal(nosa_tokens_append(&tokens, 5), NOSA_OK);
    char *text = repeated("a", 200);
    text[199] = 'b';
    assert_int_equal(nosa_tokenizer_encode(tokenizer, text, 200, 0, &tokens, &error),
                     NOSA_RESOURCE_EXHAUSTED);
    assert_int_equal(tokens.count, 1); /* as before the call */
    nosa_tokens_free(&tokens);
    free(text);
    nosa_tokenizer_close(tokenizer);
}

static void test_encode_refuses_too_long_texts(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("smollm", NULL);
    struct nosa_tokens tokens = {0};
    struct nosa_error error = {0};
    /* The size alone decides: nothing of the text is read. */
    assert_int_equal(nosa_tokenizer_encode(tokenizer, "a", NOSA_TOKENIZER_TEXT_BYTES_MAX + 1u, 0,
                                           &tokens, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "limit"));
    nosa_tokenizer_close(tokenizer);
}

/* ---- threads ---- */

#define THREADS 4

struct thread_work {
    const struct nosa_tokenizer *tokenizer; /* shared */
    struct nosa_tokens tokens;
    enum nosa_status status;
};

static void *encode_many(void *argument)
{
    struct thread_work *work = argument;
    static const char text[] =
        "The quick e\xCC\x81 12345 <|im_end|> \xE4\xB8\xAD jumps, don't!\n\n ";
    for (int i = 0; i < 200 && work->status == NOSA_OK; i++)
        work->status = nosa_tokenizer_encode(work->tokenizer, text, sizeof text - 1,
                                             NOSA_ENCODE_PARSE_SPECIAL, &work->tokens, NULL);
    return NULL;
}

static void test_encode_from_many_threads(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("qwen", NULL);
    struct thread_work work[THREADS] = {{.tokenizer = NULL}};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        work[i].tokenizer = tokenizer;
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &work[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_true(work[0].tokens.count > 200);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(work[i].status, NOSA_OK);
        assert_int_equal(work[i].tokens.count, work[0].tokens.count);
        assert_memory_equal(work[i].tokens.ids, work[0].tokens.ids,
                            work[0].tokens.count * sizeof *work[0].tokens.ids);
    }
    for (int i = 0; i < THREADS; i++)
        nosa_tokens_free(&work[i].tokens);
    nosa_tokenizer_close(tokenizer);
}

/* ---- streaming ---- */

static void test_detokenizer_holds_back_unfinished_characters(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("minicpm", NULL);
    struct nosa_detokenizer *detokenizer;
    struct nosa_buffer text = {0};
    struct nosa_error error = {0};
    static const char *const bytes[] = {"<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xE2>"};
    assert_int_equal(nosa_detokenizer_create(tokenizer, NULL, 0, &detokenizer, &error), NOSA_OK);
    for (size_t i = 0; i < 5; i++) {
        int32_t id = nosa_tokenizer_find(tokenizer, bytes[i], 6);
        assert_int_equal(nosa_detokenizer_push(detokenizer, id, &text, &error), NOSA_OK);
        assert_int_equal(text.size, i < 3 ? 0 : 4);
    }
    assert_int_equal(nosa_detokenizer_finish(detokenizer, &text, &error), NOSA_OK);
    assert_string_equal(text.data, "\xF0\x9F\x98\x80\xEF\xBF\xBD");
    nosa_detokenizer_free(detokenizer);
    nosa_buffer_free(&text);
    nosa_tokenizer_close(tokenizer);
}

static void test_detokenizer_keeps_the_space_after_a_context(void **state)
{
    (void)state;
    struct nosa_tokenizer *tokenizer = vectors_open("minicpm", NULL);
    struct nosa_tokens tokens = {0};
    struct nosa_buffer text = {0};
    struct nosa_error error = {0};
    struct nosa_detokenizer *detokenizer;
    assert_int_equal(nosa_tokenizer_encode(tokenizer, "the", 3, 0, &tokens, &error), NOSA_OK);
    for (size_t context = 0; context < 2; context++) {
        nosa_buffer_reset(&text);
        assert_int_equal(nosa_detokenizer_create(tokenizer, tokens.ids, context * tokens.count,
                                                 &detokenizer, &error),
                         NOSA_OK);
        for (size_t i = 0; i < tokens.count; i++)
            nosa_detokenizer_push(detokenizer, tokens.ids[i], &text, &error);
        assert_string_equal(text.data, context == 0 ? "the" : " the");
        nosa_detokenizer_free(detokenizer);
    }
    nosa_buffer_free(&text);
    nosa_tokens_free(&tokens);
    nosa_tokenizer_close(tokenizer);
}

/* ---- memory ---- */

static enum nosa_status whole_life(void *context, struct nosa_error *error)
{
    struct nosa_tokenizer_files *files = context;
    struct nosa_tokenizer *tokenizer = NULL;
    struct nosa_detokenizer *detokenizer = NULL;
    struct nosa_tokens tokens = {0};
    struct nosa_buffer text = {0};
    static const char sentence[] = "Ab e\xCC\x81 12 <|im_end|> \xFF ";
    struct nosa_chat_message message = {"user", sentence, sizeof sentence - 1};
    struct nosa_chat_options options = {.add_generation_prompt = true};
    enum nosa_status status = nosa_tokenizer_open_memory(files, &tokenizer, error);
    if (status == NOSA_OK)
        status = nosa_tokenizer_encode(tokenizer, sentence, sizeof sentence - 1,
                                       NOSA_ENCODE_PARSE_SPECIAL, &tokens, error);
    if (status == NOSA_OK)
        status = nosa_chat_encode(tokenizer, &message, 1, &options, &tokens, error);
    if (status == NOSA_OK)
        status = nosa_tokenizer_decode(tokenizer, tokens.ids, tokens.count, &text, error);
    if (status == NOSA_OK)
        status = nosa_detokenizer_create(tokenizer, tokens.ids, 2, &detokenizer, error);
    if (status == NOSA_OK)
        status = nosa_detokenizer_push(detokenizer, tokens.ids[0], &text, error);
    nosa_detokenizer_free(detokenizer);
    nosa_buffer_free(&text);
    nosa_tokens_free(&tokens);
    nosa_tokenizer_close(tokenizer);
    return status;
}

/* Every allocation of our own: jansson's are left alone, since its lexer writes out of bounds when
 * one of its own fails. */
static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    static const char json[] =
        "{\"added_tokens\":[{\"id\":7,\"content\":\"<|im_start|>\",\"special\":true},"
        "{\"id\":8,\"content\":\"<|im_end|>\",\"special\":true},"
        "{\"id\":9,\"content\":\"Ab\",\"normalized\":true}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"
        "\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"_\"}]},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
        "\"pattern\":{\"Regex\":\"[ _]{1,2}+\"},\"behavior\":\"Isolated\"},{\"type\":"
        "\"Metaspace\",\"replacement\":\"_\"}]},\"post_processor\":null,"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":"
        "{\"String\":\"_\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"byte_fallback\":true,\"vocab\":"
        "{\"?\":0,\"_\":1,\"1\":2,\"2\":3,\"12\":4,\"e\":5,\"<0xC3>\":6},\"merges\":[\"1 2\"]}}";
    static const char config[] =
        "{\"bos_token\":\"?\",\"chat_template\":\"<|im_start|> <|im_end|>\"}";
    struct nosa_tokenizer_files files = {.tokenizer_json = {json, sizeof json - 1},
                                         .config_json = {config, sizeof config - 1}};
    int failures = nosa_alloc_fail_sweep(whole_life, &files);
    print_message("%d allocations failed in turn\n", failures);
    assert_in_range(failures, 30, 100000);
}

/* With an argument, only the tests whose names match it, e.g. "test_encode_*". */
int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_open_memory_names_what_is_broken),
        cmocka_unit_test(test_open_memory_refuses_broken_config),
        cmocka_unit_test(test_open_memory_refuses_deep_nesting),
        cmocka_unit_test(test_open_memory_refuses_every_truncation),
        cmocka_unit_test(test_open_reads_a_model_directory),
        cmocka_unit_test(test_find_and_piece),
        cmocka_unit_test(test_ids_need_not_be_dense),
        cmocka_unit_test(test_encode_ends_at_count_max),
        cmocka_unit_test(test_encode_work_grows_as_n_log_n),
        cmocka_unit_test(test_encode_takes_a_mebibyte_of_one_kind),
        cmocka_unit_test(test_normalize_takes_long_runs_of_marks),
        cmocka_unit_test(test_encode_ends_patterns_that_explode),
        cmocka_unit_test(test_encode_refuses_too_long_texts),
        cmocka_unit_test(test_encode_from_many_threads),
        cmocka_unit_test(test_detokenizer_holds_back_unfinished_characters),
        cmocka_unit_test(test_detokenizer_keeps_the_space_after_a_context),

    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
