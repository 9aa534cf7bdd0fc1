/*
 * Haystacks: exactly as long as asked for, every fact planted once near its depth, every question
 * at the end with the fact's own answer; the same seed makes the same one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "quality.h"

#define CONTEXT 3000

struct fixture {
    struct nosa_tokenizer *tokenizer;
    int32_t window[CONTEXT];
    uint32_t memory[CONTEXT];
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct nosa_tokenizer_files files = {0};
    struct nosa_error error = {0};
    char *json;
    size_t size;
    if (nosa_file_read(NOSA_TEST_VECTORS "/tokenizer/smollm.json", 64 << 20, &json, &size,
                       &error) != NOSA_OK)
        fail_msg("%s", error.text);
    files.tokenizer_json.data = json;
    files.tokenizer_json.size = size;
    if (nosa_tokenizer_open_memory(&files, &fixture->tokenizer, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    free(json);
    struct nosa_tokens filler = {0};
    assert_int_equal(nosa_tokenizer_encode(fixture->tokenizer, "#", 1, 0, &filler, NULL), NOSA_OK);
    for (int32_t i = 0; i < CONTEXT; i++)
        fixture->window[i] = filler.ids[0];
    nosa_tokens_free(&filler);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    nosa_tokenizer_close(fixture->tokenizer);
    free(fixture);
    return 0;
}

/* The text of ids [begin, end); the caller frees it. */
static char *text_of(const struct fixture *fixture, int32_t begin, int32_t end)
{
    struct nosa_buffer text = {0};
    assert_int_equal(nosa_tokenizer_decode(fixture->tokenizer,
                                           (const int32_t *)fixture->memory + begin,
                                           (size_t)(end - begin), &text, NULL),
                     NOSA_OK);
    return nosa_buffer_take(&text);
}

static void make(struct fixture *fixture, enum quality_task task, uint64_t seed,
                 struct quality_case *out)
{
    struct nosa_error error = {0};
    if (quality_haystack(task, fixture->tokenizer, fixture->window, CONTEXT, &seed, fixture->memory,
                         out, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    assert_int_equal(out->n, CONTEXT);
    assert_ptr_equal(out->ids, fixture->memory);
}

static int32_t count_text(const char *text, const char *part)
{
    int32_t count = 0;
    for (; (text = strstr(text, part)) != NULL; text++)
        count++;
    return count;
}

/* Where the questions begin. */
static const char *tail_of(const char *text)
{
    const char *tail = strstr(text, "\n\nAs was said above:\n");
    assert_non_null(tail);
    return tail;
}

static void test_haystack_plants_what_it_asks_for(void **state)
{
    struct fixture *fixture = *state;
    static const enum quality_task tasks[] = {QUALITY_RETRIEVAL, QUALITY_MULTIKEY};
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct quality_case subject;
        make(fixture, tasks[seed % 2], seed, &subject);
        assert_int_equal(subject.n_probes, 6);
        char *text = text_of(fixture, 0, CONTEXT);
        const char *tail = tail_of(text);
        for (int32_t i = 0; i < subject.n_probes; i++) {
            const struct quality_probe *probe = &subject.probes[i];
            int32_t from = i == 0 ? 0 : subject.probes[i - 1].end;
            char *question = text_of(fixture, from, probe->begin), fact[400];
            char *answer = text_of(fixture, probe->begin, probe->end);
            assert_int_equal(answer[0], ' ');
            assert_int_equal(probe->n_choices, 0);
            snprintf(fact, sizeof fact, "%s%s.\n", strrchr(question, '\n'), answer);
            const char *planted = strstr(text, fact);
            assert_true(planted && planted < tail);
            planted = strstr(planted + 1, fact);
            assert_true(!planted || planted > tail);
            double place = (double)(strstr(text, fact) - text) / (double)(tail - text);
            assert_true(place > probe->depth - 0.1 && place < probe->depth + 0.1);
            free(question);
            free(answer);
        }
        free(text);
    }
}

static void test_haystack_variables_name_the_first_ones_value(void **state)
{
    struct fixture *fixture = *state;
    for (uint64_t seed = 0; seed < 10; seed++) {
        struct quality_case subject;
        make(fixture, QUALITY_VARIABLES, seed, &subject);
        assert_int_equal(subject.n_probes, 4);
        char *text = text_of(fixture, 0, CONTEXT);
        for (int32_t i = 0; i < subject.n_probes; i++) {
            const struct quality_probe *probe = &subject.probes[i];
            char *before = text_of(fixture, 0, probe->begin), *answer, first[16], second[16];
            char told[200];
            answer = text_of(fixture, probe->begin, probe->end);
            assert_int_equal(sscanf(strrchr(before, '\n'),
                                    "\nThe variable %15[a-z], which has the value of %15[a-z],",
                                    second, first),
                             2);
            snprintf(told, sizeof told, "The variable %s has the value%s.\n", first, answer);
            const char *value = strstr(text, told);
            assert_non_null(value);
            snprintf(told, sizeof told, "The variable %s has the value of the variable %s.\n",
                     second, first);
            assert_non_null(strstr(value, told)); /* after it */
            free(before);
            free(answer);
        }
        free(text);
    }
}

static void test_haystack_counting_marks_one_word_most(void **state)
{
    struct fixture *fixture = *state;
    for (uint64_t seed = 0; seed < 10; seed++) {
        struct quality_case subject;
        make(fixture, QUALITY_COUNTING, seed, &subject);
        assert_int_equal(subject.n_probes, 1);
        const struct quality_probe *probe = &subject.probes[0];
        assert_int_equal(probe->n_choices, QUALITY_CHOICES);
        assert_int_equal(probe->end, probe->begin + 1);
        assert_int_equal(probe->choice[0], (int32_t)subject.ids[probe->begin]);
        char *text = text_of(fixture, 0, CONTEXT);
        char *answer = text_of(fixture, probe->begin, CONTEXT);
        int32_t words = 0;
        for (const char *at = text; (at = strstr(at, "\nMarked word: ")) != NULL; at++) {
            char mark[64];
            assert_int_equal(sscanf(at, "\nMarked word:%31[ a-z].", mark), 1);
            bool asked = strncmp(answer, mark, strlen(mark)) == 0;
            assert_int_equal(count_text(text, mark), asked ? 6 + 1 : 1); /* and in the question */
            words++;
        }
        assert_int_equal(words, 11);
        free(answer);
        free(text);
    }
}

static void test_haystack_same_seed_same_tokens(void **state)
{
    struct fixture *fixture = *state;
    struct quality_case subject;
    uint32_t *first = malloc(sizeof fixture->memory);
    for (int task = 0; task < QUALITY_TASKS; task++) {
        make(fixture, (enum quality_task)task, 3, &subject);
        memcpy(first, fixture->memory, sizeof fixture->memory);
        make(fixture, (enum quality_task)task, 3, &subject);
        assert_memory_equal(first, fixture->memory, sizeof fixture->memory);
        make(fixture, (enum quality_task)task, 4, &subject);
        assert_memory_not_equal(first, fixture->memory, sizeof fixture->memory);
    }
    free(first);
}

static void test_haystack_in_a_short_context_is_refused(void **state)
{
    struct fixture *fixture = *state;
    struct quality_case subject;
    struct nosa_error error = {0};
    uint64_t seed = 1;
    assert_int_equal(quality_haystack(QUALITY_RETRIEVAL, fixture->tokenizer, fixture->window, 256,
                                      &seed, fixture->memory, &subject, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "256 tokens is too short"));
}

static void test_window_spreads_over_the_document(void **state)
{
    (void)state;
    struct quality_document document = {.ids = {.count = 1000}};
    assert_int_equal(quality_window(&document, 100, 1, 0), 0);
    assert_int_equal(quality_window(&document, 100, 1, 1), -1);
    assert_int_equal(quality_window(&document, 100, 4, 0), 0);
    assert_int_equal(quality_window(&document, 100, 4, 3), 750);
    assert_int_equal(quality_window(&document, 300, 50, 2), 666);
    assert_int_equal(quality_window(&document, 300, 50, 3), -1);
    assert_int_equal(quality_window(&document, 1001, 1, 0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_haystack_plants_what_it_asks_for),
        cmocka_unit_test(test_haystack_variables_name_the_first_ones_value),
        cmocka_unit_test(test_haystack_counting_marks_one_word_most),
        cmocka_unit_test(test_haystack_same_seed_same_tokens),
        cmocka_unit_test(test_haystack_in_a_short_context_is_refused),
        cmocka_unit_test(test_window_spreads_over_the_document),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
