#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <sys/mman.h>

#include "base/file.h"
#include "base/queue.h"
#include "support/alloc_fail.h"

static void test_arm_fails_only_the_nth(void **state)
{
    (void)state;
    nosa_alloc_fail_arm(2);
    void *volatile first = malloc(1);
    void *volatile second = calloc(1, 1);
    void *volatile third = malloc(1);
    nosa_alloc_fail_disarm();
    assert_non_null(first);
    assert_null(second);
    assert_non_null(third);
    assert_int_equal(nosa_alloc_fail_count(), 3);
    assert_true(nosa_alloc_fail_hit());
    free(first);
    free(third);
}

static void test_arm_counts_every_kind(void **state)
{
    (void)state;
    nosa_alloc_fail_arm_from(1);
    void *aligned = &aligned;
    assert_null(malloc(1));
    assert_null(calloc(1, 1));
    assert_null(realloc(NULL, 1));
    assert_null(reallocarray(NULL, 1, 1));
    assert_null(aligned_alloc(64, 64));
    assert_int_not_equal(posix_memalign(&aligned, 64, 64), 0);
    assert_null(strdup("text"));
    assert_null(strndup("text", 2));
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), MAP_FAILED);
    nosa_alloc_fail_disarm();
    assert_int_equal(nosa_alloc_fail_count(), 9);
    nosa_alloc_fail_arm(0);
    char *volatile copy = strdup("text");
    nosa_alloc_fail_disarm();
    assert_string_equal(copy, "text");
    assert_int_equal(nosa_alloc_fail_count(), 1);
    assert_false(nosa_alloc_fail_hit());
    free(copy);
}

static enum nosa_status parse_json(void *context, struct nosa_error *error)
{
    (void)context;
    json_error_t json_error;
    json_t *root = json_loads("{\"a\": [1, 2, \"three\"]}", 0, &json_error);
    if (!root)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for JSON");
    json_decref(root);
    return NOSA_OK;
}

static void test_hook_jansson_fails_inside(void **state)
{
    (void)state;
    nosa_alloc_fail_hook_jansson();
    assert_true(nosa_alloc_fail_sweep(parse_json, NULL) > 5);
}

static enum nosa_status use_queue(void *context, struct nosa_error *error)
{
    (void)context;
    struct nosa_queue *queue;
    NOSA_TRY(nosa_queue_create(&queue, 4, 8, error));
    nosa_queue_free(queue);
    return NOSA_OK;
}

static void test_queue_create_without_memory(void **state)
{
    (void)state;
    assert_int_equal(nosa_alloc_fail_sweep(use_queue, NULL), 2);
    struct nosa_queue *queue;
    struct nosa_error error = {0};
    assert_int_equal(nosa_queue_create(&queue, SIZE_MAX / 2, 8, &error), NOSA_OUT_OF_MEMORY);
    assert_null(queue);
}

static enum nosa_status use_file(void *context, struct nosa_error *error)
{
    char *data;
    size_t size;
    struct nosa_file_map map;
    NOSA_TRY(nosa_file_read(context, 1 << 24, &data, &size, error));
    free(data);
    NOSA_TRY(nosa_file_map_open(&map, context, error));
    nosa_file_map_close(&map);
    return NOSA_OK;
}

static void test_file_without_memory(void **state)
{
    assert_int_equal(nosa_alloc_fail_sweep(use_file, *state), 2);
}

int main(int argc, char **argv)
{
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arm_fails_only_the_nth),
        cmocka_unit_test(test_arm_counts_every_kind),
        cmocka_unit_test(test_hook_jansson_fails_inside),
        cmocka_unit_test(test_queue_create_without_memory),
        cmocka_unit_test_prestate(test_file_without_memory, argv[0]),
    };
    return cmocka_run_group_tests_name("alloc_fail", tests, NULL, NULL);
}
