#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "stop_matcher.h"

/* What comes out of `text` in pieces of `piece` bytes; *found as the matcher says. */
static char *run(char *const *stops, size_t count, const char *text, size_t piece,
                 const char **found)
{
    struct nosa_stop_matcher matcher;
    struct nosa_buffer out = {0};
    bool ended = false;
    assert_int_equal(nosa_stop_matcher_init(&matcher, stops, count, NULL), NOSA_OK);
    for (size_t at = 0; at < strlen(text) && !ended; at += piece) {
        size_t size = strlen(text) - at < piece ? strlen(text) - at : piece;
        assert_int_equal(nosa_stop_matcher_push(&matcher, text + at, size, &out, &ended), NOSA_OK);
    }
    assert_int_equal(nosa_stop_matcher_finish(&matcher, &out), NOSA_OK);
    *found = nosa_stop_matcher_found(&matcher);
    assert_int_equal(*found != NULL, ended);
    nosa_stop_matcher_free(&matcher);
    return nosa_buffer_take(&out);
}

static void test_push_finds_stops(void **state)
{
    (void)state;
    static const struct {
        char *stops[3];
        size_t count;
        const char *text, *out, *found;
    } cases[] = {
        {{NULL}, 0, "all of it", "all of it", NULL},
        {{"end"}, 1, "to the end, and on", "to the ", "end"},
        {{"end"}, 1, "to the en", "to the en", NULL},
        {{"aab"}, 1, "aaaaab", "aaa", "aab"},
        {{"abab", "bab"}, 2, "xabab", "x", "abab"},
        {{"abcd", "bc"}, 2, "abce", "a", "bc"},
        {{"\n\n", "\n"}, 2, "one\n\ntwo", "one", "\n"},
        {{"aaaa", "ab"}, 2, "aaab", "aa", "ab"},
        {{"é"}, 1, "caf\xC3\xA9", "caf", "é"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t piece = 1; piece < 8; piece++) {
            const char *found;
            char *out = run(cases[i].stops, cases[i].count, cases[i].text, piece, &found);
            assert_string_equal(out, cases[i].out);
            assert_int_equal(found != NULL, cases[i].found != NULL);
            if (found)
                assert_string_equal(found, cases[i].found);
            free(out);
        }
}

/* Against a plain search: the match that ends first, of those the longest. */
static void test_push_agrees_with_search(void **state)
{
    (void)state;
    srand(7);
    for (int round = 0; round < 3000; round++) {
        char text[40], first[6], second[6];
        char *stops[2] = {first, second};
        for (int i = 0; i < 39; i++)
            text[i] = (char)('a' + rand() % 2);
        text[39] = '\0';
        for (int s = 0; s < 2; s++) {
            int size = 1 + rand() % 5;
            for (int i = 0; i < size; i++)
                stops[s][i] = (char)('a' + rand() % 2);
            stops[s][size] = '\0';
        }
        size_t end = SIZE_MAX, begin = strlen(text);
        for (int s = 0; s < 2; s++) {
            char *at = strstr(text, stops[s]);
            size_t from = at ? (size_t)(at - text) : 0, to = from + strlen(stops[s]);
            if (at && (to < end || (to == end && from < begin))) {
                begin = from;
                end = to;
            }
        }
        const char *found;
        char *out = run(stops, 2, text, 1 + (size_t)rand() % 6, &found);
        assert_int_equal(strlen(out), begin);
        assert_memory_equal(out, text, begin);
        free(out);
    }
}

/* Nothing that may be part of a match is given out early. */
static void test_push_holds_back(void **state)
{
    (void)state;
    char *stops[] = {"STOP"};
    struct nosa_stop_matcher matcher;
    struct nosa_buffer out = {0};
    bool found;
    assert_int_equal(nosa_stop_matcher_init(&matcher, stops, 1, NULL), NOSA_OK);
    assert_int_equal(nosa_stop_matcher_push(&matcher, "go ST", 5, &out, &found), NOSA_OK);
    assert_int_equal(out.size, 3);
    assert_int_equal(nosa_stop_matcher_push(&matcher, "x", 1, &out, &found), NOSA_OK);
    assert_int_equal(out.size, 6);
    assert_false(found);
    nosa_stop_matcher_free(&matcher);
    nosa_buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_push_finds_stops),
        cmocka_unit_test(test_push_agrees_with_search),
        cmocka_unit_test(test_push_holds_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
