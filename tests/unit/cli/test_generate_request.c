#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "generate_request.h"

static const struct nosa_flag_table tables[] = {
    {nosa_generate_request_flags, NOSA_GENERATE_REQUEST_FLAG_COUNT},
};
static const struct nosa_flags_program program = {
    .name = "test", .tables = tables, .table_count = 1};

/* The request of a command line; NULL with the error's text in `error`. */
static Nosa__V1__GenerateRequest *make(int argc, const char *const *argv, struct nosa_error *error)
{
    struct nosa_flags *flags;
    Nosa__V1__GenerateRequest *request = NULL;
    nosa_error_clear(error);
    assert_int_equal(
        nosa_flags_parse(&flags, &program, argc, (char *const *)(uintptr_t)argv, error), NOSA_OK);
    enum nosa_status status = nosa_generate_request_make(flags, &request, error);
    assert_int_equal(status == NOSA_OK, request != NULL);
    nosa_flags_free(flags);
    return request;
}

#define MAKE(error, ...)                                                                           \
    make((int)(sizeof((const char *const[]){"test", __VA_ARGS__}) / sizeof(char *)),               \
         (const char *const[]){"test", __VA_ARGS__}, (error))

static void test_request_make_minimal(void **state)
{
    (void)state;
    struct nosa_error error;
    Nosa__V1__GenerateRequest *request = MAKE(&error, "--prompt", "hi");
    assert_non_null(request);
    assert_int_equal(request->input_case, NOSA__V1__GENERATE_REQUEST__INPUT_TEXT);
    assert_string_equal(request->text, "hi");
    assert_null(request->sampling);
    assert_int_equal(request->max_tokens, 128);
    assert_int_equal(request->seed, 0);
    assert_string_equal(request->model, "");
    nosa__v1__generate_request__free_unpacked(request, NULL);
}

static void test_request_make_everything(void **state)
{
    (void)state;
    struct nosa_error error;
    Nosa__V1__GenerateRequest *request =
        MAKE(&error, "--prompt", "hi", "--chat", "--system", "be kind", "--model", "m",
             "--max-tokens", "5", "--top-p", "1e-300", "--seed", "18446744073709551615", "--stop",
             "[\"a\", \"b,\"]", "--stop-token-ids", " 1 ,2", "--ignore-eos", "--resume-tokens", "3",
             "--request-id", "r", "--priority", "-7", "--cache-salt", "s", "--logprobs", "2",
             "--json", "--frequency-penalty", "-1.5");
    assert_non_null(request);
    assert_int_equal(request->chat->n_messages, 2);
    assert_string_equal(request->chat->messages[0]->role, "system");
    assert_string_equal(request->chat->messages[0]->content, "be kind");
    assert_string_equal(request->chat->messages[1]->role, "user");
    assert_string_equal(request->chat->messages[1]->content, "hi");
    assert_true(request->sampling->top_p > 0); /* too small for a float, but not off */
    assert_true(request->sampling->temperature == 1.0f);
    assert_true(request->sampling->frequency_penalty == -1.5f);
    assert_true(request->seed == UINT64_MAX && request->sampling->seed == UINT64_MAX);
    assert_int_equal(request->n_stop, 2);
    assert_string_equal(request->stop[1], "b,");
    assert_int_equal(request->n_stop_token_ids, 2);
    assert_int_equal(request->stop_token_ids[1], 2);
    assert_int_equal(request->n_resume_token_ids, 1);
    assert_string_equal(request->request_id, "r");
    assert_int_equal(request->priority, -7);
    assert_int_equal(request->logprobs, 2);
    assert_true(request->ignore_eos && request->return_prompt_token_ids);
    nosa__v1__generate_request__free_unpacked(request, NULL);
}

static void test_request_make_seed_alone(void **state)
{
    (void)state;
    struct nosa_error error;
    Nosa__V1__GenerateRequest *request = MAKE(&error, "--prompt", "hi", "--seed", "5");
    assert_non_null(request);
    assert_null(request->sampling);
    assert_int_equal(request->seed, 5);
    nosa__v1__generate_request__free_unpacked(request, NULL);
}

static void test_request_make_refuses(void **state)
{
    (void)state;
    struct nosa_error error;
    assert_null(MAKE(&error, "--ignore-eos"));
    assert_non_null(strstr(error.text, "exactly one"));
    assert_null(MAKE(&error, "--prompt", "a", "--messages", "f"));
    assert_non_null(strstr(error.text, "(2 given)"));
    assert_null(MAKE(&error, "--prompt", "\xFF"));
    assert_string_equal(error.text, "--prompt: not UTF-8 at byte 0");
    assert_null(MAKE(&error, "--prompt", "a", "--stop", "x\xC3"));
    assert_string_equal(error.text, "--stop: not UTF-8 at byte 1");
    assert_null(MAKE(&error, "--prompt", "a", "--system", "b"));
    assert_null(MAKE(&error, "--prompt-tokens", "1", "--chat"));
    assert_null(MAKE(&error, "--prompt", "a", "--logprobs", "3"));
    assert_null(MAKE(&error, "--prompt-tokens", "1,,2"));
    assert_null(MAKE(&error, "--prompt-tokens", ""));
    assert_null(MAKE(&error, "--prompt-tokens", "2147483648"));
    assert_null(MAKE(&error, "--prompt-tokens", "99999999999999999999"));
}

static void test_parse_ids_lists(void **state)
{
    (void)state;
    uint32_t *ids;
    size_t count;
    assert_int_equal(nosa_generate_parse_ids("x", "7, 2147483647\n", &ids, &count, NULL), NOSA_OK);
    assert_int_equal(count, 2);
    assert_int_equal(ids[0], 7);
    assert_int_equal(ids[1], INT32_MAX);
    free(ids);
    struct nosa_error error = {0};
    assert_int_equal(nosa_generate_parse_ids("--x", "1,2;3", &ids, &count, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_string_equal(error.text, "--x: ';3' at byte 3 where a comma was expected");
    assert_null(ids);
}

static void test_parse_stops_forms(void **state)
{
    (void)state;
    char **stops;
    size_t count;
    assert_int_equal(nosa_generate_parse_stops("x", "a, [b]", &stops, &count, NULL), NOSA_OK);
    assert_int_equal(count, 1);
    assert_string_equal(stops[0], "a, [b]");
    free(stops[0]);
    free(stops);
    assert_int_equal(nosa_generate_parse_stops("x", "[]", &stops, &count, NULL), NOSA_OK);
    assert_int_equal(count, 0);
    free(stops);
    static const char *const bad[] = {"[", "[1]", "[\"a\", null]", "[\"a\\u0000\"]", "[\"a\"] b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(nosa_generate_parse_stops("x", bad[i], &stops, &count, NULL),
                         NOSA_INVALID_ARGUMENT);
        assert_null(stops);
    }
}

static void test_parse_messages_forms(void **state)
{
    (void)state;
    Nosa__V1__Chat *chat;
    static const char good[] = "[{\"role\": \"user\", \"content\": \"hi\", \"more\": 1}]";
    assert_int_equal(nosa_generate_parse_messages("x", good, strlen(good), &chat, NULL), NOSA_OK);
    assert_int_equal(chat->n_messages, 1);
    assert_string_equal(chat->messages[0]->content, "hi");
    nosa__v1__chat__free_unpacked(chat, NULL);
    static const char *const bad[] = {
        "",
        "{}",
        "[]",
        "[1]",
        "[{\"role\": \"user\"}]",
        "[{\"role\": 1, \"content\": \"\"}]",
        "[{\"role\": \"user\", \"content\": \"a\"}, 5]",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct nosa_error error = {0};
        assert_int_equal(
            nosa_generate_parse_messages("file", bad[i], strlen(bad[i]), &chat, &error),
            NOSA_INVALID_ARGUMENT);
        assert_null(chat);
        assert_int_equal(strncmp(error.text, "file: ", 6), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_make_minimal),
        cmocka_unit_test(test_request_make_everything),
        cmocka_unit_test(test_request_make_seed_alone),
        cmocka_unit_test(test_request_make_refuses),
        cmocka_unit_test(test_parse_ids_lists),
        cmocka_unit_test(test_parse_stops_forms),
        cmocka_unit_test(test_parse_messages_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
