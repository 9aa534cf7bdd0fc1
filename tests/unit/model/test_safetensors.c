#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sys/stat.h>
#include <unistd.h>

#include "model/safetensors.h"

static char folder[] = "/tmp/nosa-test-safetensors-XXXXXX";
static char path[128];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

/* Writes a file of a header and `data_bytes` bytes 0, 1, 2, ...; the length field says
 * `header_bytes`, whatever the header's own is. */
static void write_file(const char *header, uint64_t header_bytes, uint64_t data_bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (uint32_t i = 0; i < 8; i++)
        fputc((int)(header_bytes >> (8 * i)) & 0xff, file);
    fputs(header, file);
    for (uint64_t i = 0; i < data_bytes; i++)
        fputc((int)i & 0xff, file);
    assert_int_equal(fclose(file), 0);
}

static enum nosa_status open_file(struct nosa_safetensors **file, struct nosa_error *error)
{
    nosa_error_clear(error);
    return nosa_safetensors_open(path, file, error);
}

static void test_open_reads_tensors(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\": {\"format\": \"pt\"},"
        " \"b\": {\"dtype\": \"BF16\", \"shape\": [2, 3], \"data_offsets\": [4, 16]},"
        " \"a\": {\"dtype\": \"F32\", \"shape\": [], \"data_offsets\": [0, 4]},"
        " \"empty\": {\"dtype\": \"F16\", \"shape\": [0, 5], \"data_offsets\": [16, 16]},"
        " \"i\": {\"dtype\": \"I64\", \"shape\": [1], \"data_offsets\": [16, 24]},"
        " \"f4\": {\"dtype\": \"F4\", \"shape\": [4], \"data_offsets\": [24, 26]}}   ";
    struct nosa_safetensors *file = NULL;
    struct nosa_error error;
    write_file(header, strlen(header), 26);
    assert_int_equal(open_file(&file, &error), NOSA_OK);
    assert_int_equal(nosa_safetensors_count(file), 5);
    assert_string_equal(nosa_safetensors_path(file), path);
    assert_string_equal(nosa_safetensors_at(file, 0)->name, "a");
    assert_string_equal(nosa_safetensors_at(file, 4)->name, "i");
    const struct nosa_tensor *b = nosa_safetensors_find(file, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, NOSA_TENSOR_BF16);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 12);
    assert_int_equal(((const uint8_t *)b->data)[0], 4);
    assert_int_equal(((const uint8_t *)b->data)[11], 15);
    nosa_safetensors_release(file, b);
    assert_int_equal(((const uint8_t *)b->data)[11], 15);
    assert_int_equal(nosa_safetensors_find(file, "a")->rank, 0);
    assert_int_equal(nosa_safetensors_find(file, "empty")->bytes, 0);
    assert_int_equal(nosa_safetensors_find(file, "i")->dtype, NOSA_TENSOR_OTHER);
    assert_string_equal(nosa_safetensors_find(file, "i")->dtype_name, "I64");
    assert_null(nosa_safetensors_find(file, "c"));
    assert_true(nosa_safetensors_owns(file, b));
    struct nosa_tensor other = *b;
    assert_false(nosa_safetensors_owns(file, &other));
    nosa_safetensors_close(file);
}

static void test_open_no_tensors(void **state)
{
    (void)state;
    struct nosa_safetensors *file = NULL;
    struct nosa_error error;
    write_file("{}", 2, 0);
    assert_int_equal(open_file(&file, &error), NOSA_OK);
    assert_int_equal(nosa_safetensors_count(file), 0);
    assert_null(nosa_safetensors_find(file, "a"));
    nosa_safetensors_close(file);
}

static void check_refused(const char *what, const char *fragment)
{
    struct nosa_safetensors *file = NULL;
    struct nosa_error error;
    enum nosa_status status = open_file(&file, &error);
    assert_null(file);
    if (status != NOSA_CORRUPT || !strstr(error.text, fragment) ||
        strncmp(error.text, path, strlen(path)) != 0 || strchr(error.text, '\n'))
        fail_msg("%s: %s \"%s\", expected CORRUPT \"%s\"", what, nosa_status_name(status),
                 error.text, fragment);
}

static void test_open_bad_headers(void **state)
{
    (void)state;
#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\": {\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": " offsets "}"
    static const struct {
        const char *header;
        uint64_t data_bytes;
        const char *fragment;
    } cases[] = {
        {"[]", 0, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"", 0, "does not begin with '{'"},
        {"{", 0, "not valid JSON"},
        {"{} x", 0, "not valid JSON"},
        {"{\"a\": 5}", 0, "tensor a: its entry is not an object"},
        {"{\"a\": {}}", 0, "tensor a: dtype is not a string"},
        {"{\"\": 5}", 0, "empty name"},
        {"{\"a\\u0000b\": 5}", 0, "not valid JSON"},
        {"{\"__metadata__\": 5}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\": {\"x\": 1}}", 0, "__metadata__: x is not a string"},
        {"{" T("a", "F32", "[1]", "[0, 4]") "," T("a", "F32", "[1]", "[4, 8]") "}", 8, "duplicate"},
        {"{" T("a", "F99", "[1]", "[0, 4]") "}", 4, "tensor a: unknown dtype F99"},
        {"{" T("a", "F32", "1", "[0, 4]") "}", 4, "shape is not a list"},
        {"{" T("a", "F32", "[-1]", "[0, 4]") "}", 4, "dimension 0 is not a non-negative"},
        {"{" T("a", "F32", "[1, 1.0]", "[0, 4]") "}", 4, "dimension 1 is not a non-negative"},
        {"{" T("a", "F32", "[\"1\"]", "[0, 4]") "}", 4, "dimension 0 is not a non-negative"},
        {"{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0, 4]") "}", 4, "shape has 9 dimensions"},
        {"{" T("a", "F32", "[4294967296, 4294967296]", "[0, 4]") "}", 4, "product overflows"},
        {"{" T("a", "F32", "[4611686018427387904]", "[0, 4]") "}", 4, "product overflows"},
        {"{" T("a", "F32", "[99999999999999999999]", "[0, 4]") "}", 4, "not valid JSON"},
        {"{" T("a", "F4", "[3]", "[0, 2]") "}", 2, "whole number of bytes"},
        {"{" T("a", "F32", "[1]", "[4, 0]") "}", 4, "negative or reversed"},
        {"{" T("a", "F32", "[1]", "[-4, 0]") "}", 4, "negative or reversed"},
        {"{" T("a", "F32", "[1]", "[0]") "}", 4, "not a list of two integers"},
        {"{" T("a", "F32", "[1]", "[0, 4, 8]") "}", 4, "not a list of two integers"},
        {"{" T("a", "F32", "[1]", "[0, 4.0]") "}", 4, "not a list of two integers"},
        {"{" T("a", "F32", "[1]", "{}") "}", 4, "not a list of two integers"},
        {"{" T("a", "F32", "[2]", "[0, 8]") "}", 4, "reach past the 4 bytes of data"},
        {"{" T("a", "F32", "[1]", "[4, 8]") "}", 4, "reach past the 4 bytes of data"},
        {"{" T("a", "F32", "[1]", "[0, 9223372036854775807]") "}", 4, "reach past"},
        {"{" T("a", "F32", "[2]", "[0, 4]") "}", 8, "do not hold the 8 bytes"},
        {"{" T("a", "F32", "[0]", "[0, 4]") "}", 4, "do not hold the 0 bytes"},
        {"{" T("a", "F32", "[1]", "[0, 4]") "," T("b", "F32", "[1]", "[0, 4]") "}", 4, "overlaps"},
        {"{" T("a", "F32", "[2]", "[0, 8]") "," T("b", "F32", "[2]", "[4, 12]") "}", 12,
         "tensor b overlaps tensor a"},
        {"{" T("a", "F32", "[1]", "[0, 4]") "," T("b", "F32", "[1]", "[8, 12]") "}", 12,
         "4 bytes before tensor b belong to no tensor"},
        {"{" T("a", "F32", "[1]", "[4, 8]") "}", 8, "4 bytes before tensor a"},
        {"{" T("a", "F32", "[1]", "[0, 4]") "}", 5, "the tensors end after 4 of 5 bytes"},
        {"{}", 1, "the tensors end after 0 of 1 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_file(cases[i].header, strlen(cases[i].header), cases[i].data_bytes);
        check_refused(cases[i].header, cases[i].fragment);
    }
}

static void test_open_lying_length(void **state)
{
    (void)state;
    write_file("{}", 3, 0);
    check_refused("one past the end", "reaches past the end of the file");
    write_file("{}", UINT64_MAX, 0);
    check_refused("largest", "reaches past the end of the file");
    write_file("{}", UINT64_MAX - 7, 0);
    check_refused("wrapping", "reaches past the end of the file");
    write_file("{}", 1, 0);
    check_refused("cut header", "not valid JSON");
}

static void test_open_header_above_limit(void **state)
{
    (void)state;
    write_file("{}", NOSA_SAFETENSORS_HEADER_BYTES_MAX + 1ull, 0);
    assert_int_equal(truncate(path, (off_t)NOSA_SAFETENSORS_HEADER_BYTES_MAX + 9), 0);
    check_refused("sparse file", "is above the limit");
}

static void test_open_short_files(void **state)
{
    (void)state;
    write_file("{}", 2, 0);
    assert_int_equal(truncate(path, 7), 0);
    check_refused("7 bytes", "too short for a header");
    assert_int_equal(truncate(path, 0), 0);
    check_refused("0 bytes", "the file is empty");
}

/* Every proper prefix of a good file is refused: no length is mistaken for a whole file. */
static void test_open_every_truncation(void **state)
{
    (void)state;
    static const char header[] = "{" T("a", "F32", "[2]", "[0, 8]") "}";
    write_file(header, strlen(header), 8);
    for (off_t size = (off_t)(8 + strlen(header) + 8) - 1; size >= 0; size--) {
        assert_int_equal(truncate(path, size), 0);
        check_refused("a prefix", "");
    }
}

static void test_open_not_a_file(void **state)
{
    (void)state;
    struct nosa_safetensors *file = NULL;
    struct nosa_error error;
    nosa_error_clear(&error);
    assert_int_equal(nosa_safetensors_open(folder, &file, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, folder));
    assert_non_null(strstr(error.text, "directory"));
    nosa_error_clear(&error);
    assert_int_equal(nosa_safetensors_open("/nonexistent/x", &file, &error), NOSA_NOT_FOUND);
    assert_non_null(strstr(error.text, "/nonexistent/x"));
    assert_null(file);
}

static void test_check_length_of_cut_file(void **state)
{
    (void)state;
    static const char header[] = "{" T("a", "F32", "[2]", "[0, 8]") "}";
    struct nosa_safetensors *file = NULL;
    struct nosa_error error;
    write_file(header, strlen(header), 8);
    assert_int_equal(open_file(&file, &error), NOSA_OK);
    assert_int_equal(nosa_safetensors_check_length(file, &error), NOSA_OK);
    assert_int_equal(truncate(path, 16), 0);
    assert_int_equal(nosa_safetensors_check_length(file, &error), NOSA_CORRUPT);
    assert_non_null(strstr(error.text, path));
    assert_int_equal(unlink(path), 0);
    nosa_error_clear(&error);
    assert_int_equal(nosa_safetensors_check_length(file, &error), NOSA_OK);
    nosa_safetensors_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_reads_tensors),       cmocka_unit_test(test_open_no_tensors),
        cmocka_unit_test(test_open_bad_headers),         cmocka_unit_test(test_open_lying_length),
        cmocka_unit_test(test_open_header_above_limit),  cmocka_unit_test(test_open_short_files),
        cmocka_unit_test(test_open_every_truncation),    cmocka_unit_test(test_open_not_a_file),
        cmocka_unit_test(test_check_length_of_cut_file),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
