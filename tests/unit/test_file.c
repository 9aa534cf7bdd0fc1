#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

static char folder[] = "/tmp/nosa-test-file-XXXXXX";

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *write_file(const char *name, const void *bytes, size_t size)
{
    const char *path = path_of(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"some", "empty", "fifo", "exact"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(path_of(names[i]));
    return rmdir(folder);
}

static void test_read_whole(void **state)
{
    (void)state;
    char *data;
    size_t size;
    const char *path = write_file("some", "a\0b", 3);
    assert_int_equal(nosa_file_read(path, 100, &data, &size, NULL), NOSA_OK);
    assert_int_equal(size, 3);
    assert_memory_equal(data, "a\0b", 4);
    free(data);
    path = write_file("empty", "", 0);
    assert_int_equal(nosa_file_read(path, 100, &data, &size, NULL), NOSA_OK);
    assert_int_equal(size, 0);
    assert_string_equal(data, "");
    free(data);
}

static void test_read_limit(void **state)
{
    (void)state;
    char *data;
    size_t size;
    struct nosa_error error = {0};
    const char *path = write_file("exact", "12345", 5);
    assert_int_equal(nosa_file_read(path, 5, &data, &size, NULL), NOSA_OK);
    free(data);
    assert_int_equal(nosa_file_read(path, 4, &data, &size, &error), NOSA_INVALID_ARGUMENT);
    assert_null(data);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, "more than the 4 allowed"));
}

static void check_both(const char *path, enum nosa_status status, const char *text)
{
    char *data;
    size_t size;
    struct nosa_file_map map;
    struct nosa_error error = {0};
    assert_int_equal(nosa_file_read(path, 100, &data, &size, &error), status);
    assert_null(data);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, text));
    nosa_error_clear(&error);
    assert_int_equal(nosa_file_map_open(&map, path, &error), status);
    assert_null(map.data);
    assert_non_null(strstr(error.text, text));
}

static void test_open_not_a_file(void **state)
{
    (void)state;
    check_both(path_of("absent"), NOSA_NOT_FOUND, "No such file");
    check_both(folder, NOSA_INVALID_ARGUMENT, "is a directory");
    assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
    check_both(path_of("fifo"), NOSA_INVALID_ARGUMENT, "not a regular file");
    check_both("/dev/null", NOSA_INVALID_ARGUMENT, "not a regular file");
    write_file("some", "abc", 3);
    check_both(path_of("some/below"), NOSA_NOT_FOUND, "Not a directory");
}

static void test_open_not_allowed(void **state)
{
    (void)state;
    if (geteuid() == 0)
        skip();
    const char *path = write_file("some", "abc", 3);
    assert_int_equal(chmod(path, 0), 0);
    check_both(path, NOSA_IO_ERROR, "Permission denied");
}

static void test_map_whole(void **state)
{
    (void)state;
    struct nosa_file_map map;
    const char *path = write_file("some", "mapped", 6);
    assert_int_equal(nosa_file_map_open(&map, path, NULL), NOSA_OK);
    assert_int_equal(map.size, 6);
    assert_memory_equal(map.data, "mapped", 6);
    nosa_file_map_close(&map);
    assert_null(map.data);
    nosa_file_map_close(&map);
    path = write_file("empty", "", 0);
    assert_int_equal(nosa_file_map_open(&map, path, NULL), NOSA_OK);
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    nosa_file_map_close(&map);
}

/* A pipe that holds `size` bytes and then ends; its path under /dev/fd is in `name`. */
static int make_pipe(const char *bytes, size_t size, char name[32])
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], bytes, size), size);
    close(ends[1]);
    snprintf(name, 32, "/dev/fd/%d", ends[0]);
    return ends[0];
}

static void test_read_input_of_a_pipe(void **state)
{
    (void)state;
    char *data;
    size_t size;
    char name[32];
    struct nosa_error error = {0};
    int descriptor = make_pipe("piped", 5, name);
    assert_int_equal(nosa_file_read_input(name, 5, &data, &size, NULL), NOSA_OK);
    assert_int_equal(size, 5);
    assert_string_equal(data, "piped");
    free(data);
    close(descriptor);
    descriptor = make_pipe("piped", 5, name);
    assert_int_equal(nosa_file_read_input(name, 4, &data, &size, &error), NOSA_INVALID_ARGUMENT);
    assert_null(data);
    assert_non_null(strstr(error.text, "more than the 4 bytes allowed"));
    close(descriptor);
    descriptor = make_pipe("", 0, name);
    assert_int_equal(nosa_file_read_input(name, 4, &data, &size, NULL), NOSA_OK);
    assert_int_equal(size, 0);
    assert_string_equal(data, "");
    free(data);
    close(descriptor);
    assert_int_equal(nosa_file_read_input("/dev/zero", 1 << 20, &data, &size, NULL),
                     NOSA_INVALID_ARGUMENT);
}

static void test_read_input_of_standard_input(void **state)
{
    (void)state;
    char *data;
    size_t size;
    char name[32];
    int kept = dup(STDIN_FILENO);
    int descriptor = make_pipe("typed", 5, name);
    assert_true(dup2(descriptor, STDIN_FILENO) >= 0);
    assert_int_equal(nosa_file_read_input("-", 100, &data, &size, NULL), NOSA_OK);
    assert_int_equal(size, 5);
    assert_string_equal(data, "typed");
    free(data);
    close(descriptor);
    close(STDIN_FILENO);
    assert_int_equal(nosa_file_read_input("-", 100, &data, &size, NULL), NOSA_IO_ERROR);
    if (kept >= 0) {
        dup2(kept, STDIN_FILENO);
        close(kept);
    }
}

static void test_read_input_of_files(void **state)
{
    (void)state;
    char *data;
    size_t size;
    const char *path = write_file("some", "abc", 3);
    assert_int_equal(nosa_file_read_input(path, 3, &data, &size, NULL), NOSA_OK);
    assert_string_equal(data, "abc");
    free(data);
    assert_int_equal(nosa_file_read_input(path, 2, &data, &size, NULL), NOSA_INVALID_ARGUMENT);
    assert_int_equal(nosa_file_read_input(folder, 9, &data, &size, NULL), NOSA_INVALID_ARGUMENT);
    assert_int_equal(nosa_file_read_input(path_of("absent"), 9, &data, &size, NULL),
                     NOSA_NOT_FOUND);
    assert_null(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_whole),
        cmocka_unit_test(test_read_limit),
        cmocka_unit_test(test_open_not_a_file),
        cmocka_unit_test(test_open_not_allowed),
        cmocka_unit_test(test_map_whole),
        cmocka_unit_test(test_read_input_of_a_pipe),
        cmocka_unit_test(test_read_input_of_standard_input),
        cmocka_unit_test(test_read_input_of_files),
    };
    return cmocka_run_group_tests_name("file", tests, make_folder, remove_folder);
}
