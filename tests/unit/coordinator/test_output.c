/* The state that a replay goes on from, without a tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "output.h"

static const uint32_t ids[] = {10, 11, 12, 13, 14, 15};
static const uint32_t eos[] = {2};
static const struct nosa_output_options plain = {
    .max_tokens = 5, .eos_ids = eos, .eos_id_count = 1};

static void test_take_overlap_and_gap(void **state)
{
    (void)state;
    struct nosa_output output;
    struct nosa_error error = {0};
    size_t skipped, taken;
    assert_int_equal(nosa_output_init(&output, &plain, &error), NOSA_OK);
    assert_int_equal(nosa_output_take(&output, 0, ids, 3, &skipped, &taken, &error), NOSA_OK);
    assert_int_equal(skipped, 0);
    assert_int_equal(taken, 3);
    /* Sent again after a replay: none twice. */
    assert_int_equal(nosa_output_take(&output, 1, ids + 1, 3, &skipped, &taken, &error), NOSA_OK);
    assert_int_equal(skipped, 2);
    assert_int_equal(taken, 1);
    assert_int_equal(output.count, 4);
    assert_memory_equal(output.ids, ids, 4 * sizeof *ids);
    assert_int_equal(nosa_output_take(&output, 5, ids, 1, &skipped, &taken, &error), NOSA_CORRUPT);
    /* max_tokens ends it, and what comes after is dropped. */
    assert_int_equal(nosa_output_take(&output, 4, ids + 4, 2, &skipped, &taken, NULL), NOSA_OK);
    assert_int_equal(taken, 1);
    assert_int_equal(output.end, NOSA_OUTPUT_LENGTH);
    assert_int_equal(output.count, 5);
    nosa_output_free(&output);
}

static void test_take_end_of_text(void **state)
{
    (void)state;
    static const uint32_t with_eos[] = {10, 2, 11};
    struct nosa_output output;
    size_t skipped, taken;
    assert_int_equal(nosa_output_init(&output, &plain, NULL), NOSA_OK);
    assert_int_equal(nosa_output_take(&output, 0, with_eos, 3, &skipped, &taken, NULL), NOSA_OK);
    assert_int_equal(taken, 2);
    assert_int_equal(output.end, NOSA_OUTPUT_STOP);
    nosa_output_free(&output);
}

static void test_init_resumed(void **state)
{
    (void)state;
    static const uint32_t beyond[] = {10, 2, 11};
    struct nosa_output_options options = plain;
    struct nosa_output output;
    struct nosa_error error = {0};
    options.resume = ids;
    options.resume_count = 4;
    assert_int_equal(nosa_output_init(&output, &options, NULL), NOSA_OK);
    assert_int_equal(output.end, NOSA_OUTPUT_OPEN);
    assert_int_equal(output.count, 4);
    nosa_output_free(&output);
    options.resume_count = 6;
    assert_int_equal(nosa_output_init(&output, &options, NULL), NOSA_OK);
    assert_int_equal(output.end, NOSA_OUTPUT_LENGTH);
    assert_int_equal(output.count, 6);
    nosa_output_free(&output);
    options.resume = beyond;
    options.resume_count = 3;
    assert_int_equal(nosa_output_init(&output, &options, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "resume_token_ids[2]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_overlap_and_gap),
        cmocka_unit_test(test_take_end_of_text),
        cmocka_unit_test(test_init_resumed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
