#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <unistd.h>

#include "base/file.h"
#include "base/npy.h"

static char path[] = "/tmp/nosa-test-npy-XXXXXX";

static int make_file(void **state)
{
    (void)state;
    int descriptor = mkstemp(path);
    return descriptor < 0 ? -1 : close(descriptor);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static char *read_file(size_t *size)
{
    char *data;
    assert_int_equal(nosa_file_read(path, 1 << 20, &data, size, NULL), NOSA_OK);
    return data;
}

static void test_npy_rows_and_header(void **state)
{
    (void)state;
    struct nosa_npy_writer writer;
    static const float rows[3][2] = {{1.5f, -2.0f}, {0.0f, 3e38f}, {1e-40f, 7.0f}};
    assert_int_equal(nosa_npy_open(&writer, path, 2, NULL), NOSA_OK);
    assert_int_equal(nosa_npy_append(&writer, rows[0], 1, NULL), NOSA_OK);
    assert_int_equal(nosa_npy_append(&writer, rows[1], 2, NULL), NOSA_OK);
    assert_int_equal(nosa_npy_close(&writer, NULL), NOSA_OK);
    assert_int_equal(nosa_npy_close(&writer, NULL), NOSA_OK);

    size_t size;
    char *data = read_file(&size);
    assert_memory_equal(data, "\x93NUMPY\x01\x00", 8);
    size_t header = 10 + (size_t)(uint8_t)data[8] + 256 * (size_t)(uint8_t)data[9];
    assert_int_equal(header % 64, 0);
    assert_int_equal(size, header + sizeof rows);
    assert_int_equal(data[header - 1], '\n');
    static const char description[] =
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), } ";
    assert_memory_equal(data + 10, description, sizeof description - 1);
    assert_memory_equal(data + header, rows, sizeof rows);
    free(data);
}

static void test_npy_no_rows(void **state)
{
    (void)state;
    struct nosa_npy_writer writer;
    size_t size;
    assert_int_equal(nosa_npy_open(&writer, path, UINT64_MAX, NULL), NOSA_OK);
    assert_int_equal(nosa_npy_close(&writer, NULL), NOSA_OK);
    char *data = read_file(&size);
    assert_int_equal(size, 128);
    assert_non_null(strstr(data + 10, "'shape': (0, 18446744073709551615), }"));
    free(data);
}

static void test_npy_open_bad_path(void **state)
{
    (void)state;
    struct nosa_npy_writer writer;
    struct nosa_error error = {0};
    assert_int_equal(nosa_npy_open(&writer, "/nonexistent/a.npy", 2, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "/nonexistent/a.npy: cannot create"));
    assert_int_equal(nosa_npy_close(&writer, NULL), NOSA_OK);
}

static void test_npy_disk_full(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    struct nosa_npy_writer writer;
    struct nosa_error error = {0};
    float row[4096] = {0};
    assert_int_equal(nosa_npy_open(&writer, "/dev/full", 4096, NULL), NOSA_OK);
    enum nosa_status status = nosa_npy_append(&writer, row, 1, &error);
    enum nosa_status closed = nosa_npy_close(&writer, &error);
    assert_true(status == NOSA_IO_ERROR || closed == NOSA_IO_ERROR);
    assert_non_null(strstr(error.text, "/dev/full"));
    assert_non_null(strstr(error.text, "No space left"));
}

static void test_npy_check_changes_nothing(void **state)
{
    (void)state;
    char absent[64];
    struct nosa_error error = {0};
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite("kept", 1, 4, file), 4);
    fclose(file);
    assert_int_equal(nosa_npy_check(path, NULL), NOSA_OK);
    size_t size;
    char *data = read_file(&size);
    assert_int_equal(size, 4);
    free(data);
    snprintf(absent, sizeof absent, "%s-absent", path);
    assert_int_equal(nosa_npy_check(absent, NULL), NOSA_OK);
    assert_int_equal(access(absent, F_OK), -1);
    assert_int_equal(nosa_npy_check("/nonexistent/x.npy", &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "/nonexistent/x.npy: cannot create"));
    assert_int_equal(nosa_npy_check("/tmp", NULL), NOSA_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_npy_rows_and_header),       cmocka_unit_test(test_npy_no_rows),
        cmocka_unit_test(test_npy_open_bad_path),         cmocka_unit_test(test_npy_disk_full),
        cmocka_unit_test(test_npy_check_changes_nothing),
    };
    return cmocka_run_group_tests_name("npy", tests, make_file, remove_file);
}
