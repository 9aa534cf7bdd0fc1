/*
 * Ids, texts and streams against the `tokenizers` library, for one family's vectors (made by
 * tools/tokenizer_vectors.py). Usage: test_tokenizer_vectors FAMILY, or smollm2 for the real
 * vocabulary, whose tokenizer.json is in the directory NOSA_DEMO_MODEL_DIR.
 */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "vectors.h"

static const char *family;
static struct nosa_tokenizer *tokenizer;

static void repair(struct nosa_buffer *text)
{
    struct nosa_buffer out = {0};
    for (size_t at = 0; at < text->size;) {
        size_t valid = nosa_utf8_valid_prefix(text->data + at, text->size - at);
        nosa_buffer_append(&out, text->data + at, valid);
        at += valid;
        if (at < text->size) {
            nosa_buffer_append_text(&out, "\xEF\xBF\xBD");
            at += nosa_utf8_invalid_length(text->data + at, text->size - at);
        }
    }
    assert_false(nosa_buffer_failed(&out));
    nosa_buffer_free(text);
    *text = out;
}

static void print_ids(const char *title, const struct nosa_tokens *tokens)
{
    print_message("  %s:", title);
    for (size_t i = 0; i < tokens->count && i < 60; i++)
        print_message(" %d", tokens->ids[i]);
    print_message("\n");
}

static bool same_ids(const struct nosa_tokens *a, const struct nosa_tokens *b)
{
    return a->count == b->count &&
           (a->count == 0 || memcmp(a->ids, b->ids, a->count * sizeof *a->ids) == 0);
}

static bool same_text(const struct nosa_buffer *a, const struct nosa_buffer *b)
{
    return a->size == b->size && (a->size == 0 || memcmp(a->data, b->data, a->size) == 0);
}

static void encode_line(const struct nosa_buffer *text, size_t index, struct nosa_tokens *tokens)
{
    struct nosa_error error = {0};
    unsigned flags = index % 4 == 2 ? 0 : NOSA_ENCODE_PARSE_SPECIAL;
    if (index % 4 == 1)
        flags |= NOSA_ENCODE_ADD_SPECIAL;
    tokens->count = 0;
    if (nosa_tokenizer_encode(tokenizer, text->data, text->size, flags, tokens, &error) != NOSA_OK)
        fail_msg("line %zu: %s", index + 1, error.text);
}

static void test_encode_ids_equal_library(void **state)
{
    (void)state;
    char name[64];
    struct vectors_lines texts;
    struct vectors_lines lines;
    struct nosa_buffer text = {0};
    struct nosa_tokens expected = {0};
    struct nosa_tokens tokens = {0};
    size_t different = 0;
    snprintf(name, sizeof name, "%s.txt", family);
    vectors_lines_read(&texts, "texts.txt");
    vectors_lines_read(&lines, name);
    for (size_t i = 0; i < lines.count; i++) {
        vectors_bytes(texts.items[i], strlen(texts.items[i]), &text);
        vectors_ids(lines.items[i], strcspn(lines.items[i], " "), &expected);
        encode_line(&text, i, &tokens);
        if (same_ids(&tokens, &expected))
            continue;
        if (different++ < 10) {
            print_message("line %zu: %.*s\n", i + 1, (int)text.size, text.data);
            print_ids("expected", &expected);
            print_ids("given   ", &tokens);
        }
    }
    print_message("%s: %zu texts, %zu different\n", family, lines.count, different);
    assert_int_equal(different, 0);
    nosa_tokens_free(&tokens);
    nosa_tokens_free(&expected);
    nosa_buffer_free(&text);
    vectors_lines_free(&lines);
    vectors_lines_free(&texts);
}

static void expect_decode(const struct nosa_tokens *ids, const struct nosa_buffer *expected,
                          size_t line)
{
    struct nosa_buffer text = {0};
    struct nosa_error error = {0};
    assert_int_equal(nosa_tokenizer_decode(tokenizer, ids->ids, ids->count, &text, &error),
                     NOSA_OK);
    if (!same_text(&text, expected))
        fail_msg("%s line %zu: decoded '%.*s', not '%.*s'", family, line + 1, (int)text.size,
                 text.data, (int)expected->size, expected->data);
    nosa_buffer_free(&text);
}

static void expect_stream(const struct nosa_tokens *ids, const struct nosa_buffer *expected,
                          size_t cut, size_t line)
{
    struct nosa_detokenizer *detokenizer;
    struct nosa_buffer text = {0};
    struct nosa_error error = {0};
    assert_int_equal(nosa_detokenizer_create(tokenizer, NULL, 0, &detokenizer, &error), NOSA_OK);
    for (size_t i = 0; i < ids->count; i++) {
        if (i == cut) {
            /* The stream breaks here and another one goes on from the delivered ids. */
            nosa_detokenizer_free(detokenizer);
            assert_int_equal(nosa_detokenizer_create(tokenizer, ids->ids, i, &detokenizer, &error),
                             NOSA_OK);
        }
        size_t before = text.size;
        assert_int_equal(nosa_detokenizer_push(detokenizer, ids->ids[i], &text, &error), NOSA_OK);
        assert_true(text.size == before ||
                    nosa_utf8_is_valid(text.data + before, text.size - before));
    }
    assert_int_equal(nosa_detokenizer_finish(detokenizer, &text, &error), NOSA_OK);
    if (!same_text(&text, expected))
        fail_msg("%s line %zu: streamed '%.*s', not '%.*s'", family, line + 1, (int)text.size,
                 text.data, (int)expected->size, expected->data);
    nosa_detokenizer_free(detokenizer);
    nosa_buffer_free(&text);
}

static void test_decode_and_stream_equal_library(void **state)
{
    (void)state;
    char name[64];
    struct vectors_lines texts;
    struct vectors_lines lines;
    struct nosa_buffer text = {0};
    struct nosa_tokens ids = {0};
    snprintf(name, sizeof name, "%s.txt", family);
    vectors_lines_read(&texts, "texts.txt");
    vectors_lines_read(&lines, name);
    for (size_t i = 0; i < lines.count; i++) {
        size_t split = strcspn(lines.items[i], " ");
        const char *decoded = lines.items[i] + split + 1;
        vectors_ids(lines.items[i], split, &ids);
        if (strcmp(decoded, "=") == 0) {
            vectors_bytes(texts.items[i], strlen(texts.items[i]), &text);
            repair(&text);
        } else {
            vectors_bytes(decoded, strlen(decoded), &text);
        }
        expect_decode(&ids, &text, i);
        expect_stream(&ids, &text, SIZE_MAX, i);
        expect_stream(&ids, &text, ids.count / 2, i);
        expect_stream(&ids, &text, ids.count > 0 ? i % ids.count : 0, i);
    }
    nosa_tokens_free(&ids);
    nosa_buffer_free(&text);
    vectors_lines_free(&lines);
    vectors_lines_free(&texts);
}

static void test_decode_random_ids_equals_library(void **state)
{
    (void)state;
    char name[64];
    struct vectors_lines lines;
    struct nosa_buffer text = {0};
    struct nosa_tokens ids = {0};
    size_t has_fallback = 0;
    snprintf(name, sizeof name, "%s.decode.txt", family);
    if (strcmp(family, "smollm2") == 0)
        return;
    vectors_lines_read(&lines, name);
    for (size_t i = 0; i < lines.count; i++) {
        size_t split = strcspn(lines.items[i], " ");
        const char *decoded = lines.items[i] + split + 1;
        vectors_ids(lines.items[i], split, &ids);
        vectors_bytes(decoded, strlen(decoded), &text);
        expect_decode(&ids, &text, i);
        has_fallback = nosa_tokenizer_find(tokenizer, "<0x80>", 6) >= 0;
        if (!has_fallback)
            expect_stream(&ids, &text, ids.count / 2, i);
    }
    nosa_tokens_free(&ids);
    nosa_buffer_free(&text);
    vectors_lines_free(&lines);
}

static int open_family(void **state)
{
    (void)state;
    const char *directory = getenv("NOSA_DEMO_MODEL_DIR");
    struct nosa_error error = {0};
    if (strcmp(family, "smollm2") != 0)
        tokenizer = vectors_open(family, NULL);
    else if (nosa_tokenizer_open(directory, &tokenizer, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return 0;
}

static int close_family(void **state)
{
    (void)state;
    nosa_tokenizer_close(tokenizer);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_ids_equal_library),
        cmocka_unit_test(test_decode_and_stream_equal_library),
        cmocka_unit_test(test_decode_random_ids_equals_library),
    };
    family = argc > 1 ? argv[1] : "llama3";
    if (strcmp(family, "smollm2") == 0 && getenv("NOSA_DEMO_MODEL_DIR") == NULL) {
        printf("skipped: NOSA_DEMO_MODEL_DIR is not set\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, open_family, close_family);
}
