/* The I/O methods of the operating system on real files, and how each degrades. */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "extent_fixture.h"

#define FILE_BYTES (64 * 4096)
#define WAIT_NS    (10 * NOSA_NS_PER_S)

static const struct nosa_io_method *method;
static bool has_uring;
static char directory[64];

static struct nosa_io_options options_for(uint32_t depth)
{
    return (struct nosa_io_options){
        .directory = directory, .name = NOSA_EXTENT_FILE_NAME, .bytes = FILE_BYTES, .depth = depth};
}

static int set_up(void **state)
{
    (void)state;
    fixture_make_directory(directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_remove_directory(directory);
    return 0;
}

static struct nosa_io *open_io(const struct nosa_io_options *options)
{
    struct nosa_error error = {0};
    struct nosa_io *io;
    if (method->open(method, options, &io, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    assert_string_equal(io->method->name, method->name);
    if (method->resize(io, options, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    assert_int_equal(io->bytes, options->bytes);
    return io;
}

/* One operation to its end. */
static int64_t perform(struct nosa_io *io, enum nosa_io_kind kind, struct iovec *vectors,
                       uint32_t n_vectors, uint64_t offset)
{
    struct nosa_io_op op = {
        .kind = kind, .n_vectors = n_vectors, .vectors = vectors, .offset = offset, .tag = 77};
    struct nosa_io_completion completion;
    assert_int_equal(io->method->submit(io, &op, 1), 1);
    for (int i = 0; i < 10; i++) {
        if (io->method->reap(io, &completion, 1, WAIT_NS) == 0)
            continue;
        assert_int_equal(completion.tag, 77);
        return completion.result;
    }
    fail_msg("the operation does not end");
    return 0;
}

static int64_t move(struct nosa_io *io, enum nosa_io_kind kind, void *memory, size_t bytes,
                    uint64_t offset)
{
    struct iovec vector = {.iov_base = memory, .iov_len = bytes};
    return perform(io, kind, &vector, 1, offset);
}

static void test_read_returns_what_was_written(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(8);
    struct nosa_io *io = open_io(&options);
    char *pages = fixture_pages(8 * 4096), *back = fixture_pages(8 * 4096);
    for (int i = 0; i < 8 * 4096; i++)
        pages[i] = (char)(i * 31 / 7);
    assert_int_equal(move(io, NOSA_IO_READ, back, 4096, 0), 4096);
    for (int i = 0; i < 4096; i++)
        assert_int_equal(back[i], 0);
    struct iovec scattered[] = {{pages + 4096, 4096}, {pages, 4096}, {pages + 2 * 4096, 6 * 4096}};
    assert_int_equal(perform(io, NOSA_IO_WRITE, scattered, 3, 3 * 4096), 8 * 4096);
    assert_int_equal(perform(io, NOSA_IO_FLUSH, NULL, 0, 0), 0);
    assert_int_equal(move(io, NOSA_IO_READ, back, 8 * 4096, 3 * 4096), 8 * 4096);
    assert_memory_equal(back, pages + 4096, 4096);
    assert_memory_equal(back + 4096, pages, 4096);
    assert_memory_equal(back + 2 * 4096, pages + 2 * 4096, 6 * 4096);
    struct iovec gathered[] = {{back + 4096, 4096}, {back, 4096}};
    assert_int_equal(perform(io, NOSA_IO_READ, gathered, 2, 3 * 4096), 2 * 4096);
    assert_memory_equal(back, pages, 2 * 4096);
    assert_true(io->method->close(io));
    free(back);
    free(pages);
}

static void test_read_past_the_end_is_short(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(8);
    struct nosa_io *io = open_io(&options);
    char *pages = fixture_pages(2 * 4096);
    assert_int_equal(move(io, NOSA_IO_READ, pages, 2 * 4096, FILE_BYTES - 4096), 4096);
    assert_int_equal(move(io, NOSA_IO_READ, pages, 4096, FILE_BYTES), 0);
    assert_true(io->method->close(io));
    free(pages);
}

static void test_submit_takes_no_more_than_it_can(void **state)
{
    (void)state;
    enum { N = 64 };
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io = open_io(&options);
    char *pages = fixture_pages(N * 4096);
    struct nosa_io_op ops[N];
    struct iovec vectors[N];
    struct nosa_io_completion completions[N];
    bool seen[N] = {false};
    for (uint32_t i = 0; i < N; i++) {
        vectors[i] = (struct iovec){pages + i * 4096, 4096};
        ops[i] = (struct nosa_io_op){.kind = NOSA_IO_READ,
                                     .n_vectors = 1,
                                     .vectors = &vectors[i],
                                     .offset = i * 4096,
                                     .tag = i};
    }
    uint32_t sent = 0, done = 0;
    while (done < N) {
        uint32_t taken = io->method->submit(io, ops + sent, N - sent);
        assert_true(taken <= N - sent);
        sent += taken;
        assert_true(sent > done);
        uint32_t n = io->method->reap(io, completions, N, WAIT_NS);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(completions[i].result, 4096);
            assert_false(seen[completions[i].tag]);
            seen[completions[i].tag] = true;
        }
        done += n;
    }
    assert_int_equal(io->method->reap(io, completions, N, 0), 0);
    assert_true(io->method->close(io));
    free(pages);
}

static void test_reap_waits_no_longer_than_told(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io = open_io(&options);
    struct nosa_io_completion completion;
    uint64_t start_ns = nosa_monotonic_ns();
    assert_int_equal(io->method->reap(io, &completion, 1, 20 * NOSA_NS_PER_MS), 0);
    uint64_t took_ns = nosa_monotonic_ns() - start_ns;
    assert_true(took_ns >= 15 * NOSA_NS_PER_MS && took_ns < 5 * NOSA_NS_PER_S);
    assert_true(io->method->close(io));
}

static void test_cancelled_operations_complete(void **state)
{
    (void)state;
    enum { N = 32 };
    struct nosa_io_options options = options_for(N);
    struct nosa_io *io = open_io(&options);
    char *pages = fixture_pages(N * 4096);
    struct iovec vectors[N];
    struct nosa_io_op ops[N];
    struct nosa_io_completion completion;
    for (uint32_t i = 0; i < N; i++) {
        vectors[i] = (struct iovec){pages + i * 4096, 4096};
        ops[i] = (struct nosa_io_op){.kind = NOSA_IO_WRITE,
                                     .n_vectors = 1,
                                     .vectors = &vectors[i],
                                     .offset = i * 4096,
                                     .tag = i};
    }
    assert_int_equal(io->method->submit(io, ops, N), N);
    for (uint32_t i = 0; i < N; i++)
        io->method->cancel(io, i);
    io->method->cancel(io, 1000); /* of no operation */
    for (uint32_t done = 0; done < N;) {
        uint32_t n = io->method->reap(io, &completion, 1, WAIT_NS);
        done += n;
        if (n > 0)
            assert_true(completion.result == 4096 || completion.result == -ECANCELED);
    }
    assert_true(io->method->close(io));
    free(pages);
}

static void test_resize_keeps_and_zeroes(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io = open_io(&options);
    char *pages = fixture_pages(2 * 4096);
    memset(pages, 7, 4096);
    assert_int_equal(move(io, NOSA_IO_WRITE, pages, 4096, 0), 4096);
    assert_int_equal(move(io, NOSA_IO_WRITE, pages, 4096, 5 * 4096), 4096);
    options.bytes = 2 * 4096;
    assert_int_equal(method->resize(io, &options, NULL), NOSA_OK);
    options.bytes = FILE_BYTES;
    assert_int_equal(method->resize(io, &options, NULL), NOSA_OK);
    assert_int_equal(move(io, NOSA_IO_READ, pages + 4096, 4096, 0), 4096);
    assert_memory_equal(pages + 4096, pages, 4096);
    assert_int_equal(move(io, NOSA_IO_READ, pages + 4096, 4096, 5 * 4096), 4096);
    memset(pages, 0, 4096);
    assert_memory_equal(pages + 4096, pages, 4096);
    assert_true(io->method->close(io));
    io = open_io(&options);
    assert_int_equal(io->bytes, FILE_BYTES);
    assert_true(io->method->close(io));
    free(pages);
}

static void expect_refusal(const struct nosa_io_options *options, enum nosa_status status,
                           const char *names)
{
    struct nosa_error error = {0};
    struct nosa_io *io;
    enum nosa_status got = method->open(method, options, &io, &error);
    if (got == NOSA_OK) {
        got = method->resize(io, options, &error);
        method->close(io);
    }
    assert_int_equal(got, status);
    if (!strstr(error.text, names))
        fail_msg("\"%s\" does not name %s", error.text, names);
}

static void test_open_refuses_bad_directories(void **state)
{
    (void)state;
    char path[128];
    struct nosa_io_options options = options_for(4);
    snprintf(path, sizeof path, "%s/file", directory);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    options.directory = path;
    expect_refusal(&options, NOSA_INVALID_ARGUMENT, "file' is not a directory");
    unlink(path);
    snprintf(path, sizeof path, "%s/a/b", directory);
    expect_refusal(&options, NOSA_INVALID_ARGUMENT, path);
    options.directory = directory;
    snprintf(path, sizeof path, "%s/%s", directory, options.name);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_refusal(&options, NOSA_INVALID_ARGUMENT, directory);
    rmdir(path);
    assert_int_equal(symlink("/dev/null", path), 0);
    expect_refusal(&options, NOSA_INVALID_ARGUMENT, directory);
}

static void test_open_makes_the_directory(void **state)
{
    (void)state;
    char path[128];
    struct stat status;
    struct nosa_io_options options = options_for(4);
    snprintf(path, sizeof path, "%s/new", directory);
    options.directory = path;
    struct nosa_io *io = open_io(&options);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0700);
    uint64_t bytes;
    assert_int_equal(nosa_io_free_bytes(path, options.name, &bytes, NULL), NOSA_OK);
    assert_true(bytes > FILE_BYTES);
    assert_true(io->method->close(io));
    fixture_remove_directory(path);
    assert_int_equal(nosa_io_free_bytes(path, options.name, &bytes, NULL), NOSA_OK);
    assert_true(bytes > FILE_BYTES);
}

static void test_resize_refuses_more_than_is_free(void **state)
{
    (void)state;
    char path[128];
    struct nosa_io_options options = options_for(4);
    options.bytes = UINT64_C(1) << 60;
    expect_refusal(&options, NOSA_INVALID_ARGUMENT, "are free");
    snprintf(path, sizeof path, "%s/%s", directory, options.name);
    assert_int_not_equal(access(path, F_OK), 0); /* no empty file stays behind */
    options.bytes = FILE_BYTES;
    struct nosa_io *io = open_io(&options);
    options.bytes = UINT64_C(1) << 60;
    assert_int_equal(method->resize(io, &options, NULL), NOSA_INVALID_ARGUMENT);
    assert_int_equal(io->bytes, FILE_BYTES);
    assert_true(io->method->close(io));
    assert_int_equal(access(path, F_OK), 0);
}

static void test_open_twice_is_in_use(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io = open_io(&options);
    expect_refusal(&options, NOSA_UNAVAILABLE, "in use by another process");
    assert_true(io->method->close(io));
    io = open_io(&options);
    assert_true(io->method->close(io));
}

static void test_file_goes_on_without_its_directory(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io = open_io(&options);
    char *pages = fixture_pages(2 * 4096);
    fixture_remove_directory(directory);
    assert_int_equal(move(io, NOSA_IO_WRITE, pages, 4096, 0), 4096);
    assert_int_equal(perform(io, NOSA_IO_FLUSH, NULL, 0, 0), 0);
    assert_int_equal(move(io, NOSA_IO_READ, pages + 4096, 4096, 0), 4096);
    assert_memory_equal(pages, pages + 4096, 4096);
    assert_true(io->method->close(io));
    assert_int_equal(mkdir(directory, 0700), 0);
    free(pages);
}

static void test_pool_and_other_memory_both_work(void **state)
{
    (void)state;
    struct nosa_io_options options = options_for(8);
    char *pool = fixture_pages(16 * 4096), *other = fixture_pages(4 * 4096);
    options.pool = pool + 4096;
    options.pool_bytes = 14 * 4096;
    struct nosa_io *io = open_io(&options);
    if (method == &nosa_io_uring)
        assert_true(io->registered);
    for (int i = 0; i < 16 * 4096; i++)
        pool[i] = (char)(i / 4096);
    /* Inside, across either end, and outside of what is registered. */
    static const int first[] = {2, 0, 14, 15}, count[] = {3, 2, 2, 1};
    for (int k = 0; k < 4; k++) {
        size_t bytes = (size_t)count[k] * 4096;
        assert_int_equal(move(io, NOSA_IO_WRITE, pool + first[k] * 4096, bytes, 4096), bytes);
        memset(other, 99, 4 * 4096);
        assert_int_equal(move(io, NOSA_IO_READ, other, bytes, 4096), bytes);
        assert_memory_equal(other, pool + first[k] * 4096, bytes);
        memset(pool + first[k] * 4096, 0, bytes);
        assert_int_equal(move(io, NOSA_IO_READ, pool + first[k] * 4096, bytes, 4096), bytes);
        assert_memory_equal(other, pool + first[k] * 4096, bytes);
    }
    assert_true(io->method->close(io));
    free(other);
    free(pool);
}

/* ---- what the machine refuses: each in a child process ---- */

/* Runs `body` in a child and expects it to return 0; its log goes to `log`. */
static void in_child(int (*body)(void), char *log, size_t log_bytes)
{
    int out[2], status;
    assert_int_equal(pipe(out), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct nosa_log_options options = {.level = NOSA_LOG_DEBUG, .descriptor = out[1]};
        close(out[0]);
        nosa_log_configure(&options);
        _exit(body());
    }
    close(out[1]);
    size_t size = 0;
    for (ssize_t n; size + 1 < log_bytes; size += (size_t)n) {
        n = read(out[0], log + size, log_bytes - 1 - size);
        if (n <= 0)
            break;
    }
    log[size] = '\0';
    close(out[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("child ended with %d; log: %s", status, log);
}

/* The system call io_uring_setup fails with `code` from now on. */
static bool refuse_uring(int code)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int works(struct nosa_io *io)
{
    char *pages = aligned_alloc(4096, 2 * 4096);
    struct iovec vector = {pages, 4096};
    struct nosa_io_op op = {
        .kind = NOSA_IO_WRITE, .n_vectors = 1, .vectors = &vector, .offset = 0, .tag = 1};
    struct nosa_io_completion completion = {.result = -1};
    if (!pages)
        return 20;
    memset(pages, 3, 4096);
    io->method->submit(io, &op, 1);
    io->method->reap(io, &completion, 1, WAIT_NS);
    free(pages);
    return completion.result == 4096 ? 0 : 21;
}

static int open_where_uring_is_refused(int code)
{
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io;
    struct nosa_error error = {0};
    if (!refuse_uring(code))
        return 10;
    if (nosa_io_uring.open(&nosa_io_uring, &options, &io, &error) != NOSA_UNSUPPORTED || io)
        return 11;
    if (!strstr(error.text, strerror(code)))
        return 12;
    if (nosa_io_open_auto(&options, &io, NULL) != NOSA_OK)
        return 13;
    if (io->method != &nosa_io_threads || io->registered ||
        io->method->resize(io, &options, NULL) != NOSA_OK)
        return 14;
    int code_of_work = works(io);
    io->method->close(io);
    return code_of_work;
}

static int open_without_permission(void)
{
    return open_where_uring_is_refused(EPERM);
}

static int open_on_old_kernel(void)
{
    return open_where_uring_is_refused(ENOSYS);
}

static void test_open_auto_falls_back_to_threads(void **state)
{
    (void)state;
    char log[4096];
    in_child(open_without_permission, log, sizeof log);
    assert_non_null(
        strstr(log, "warn kvstore: io_uring is refused here (Operation not permitted)"));
    assert_non_null(strstr(log, "by threads instead"));
    in_child(open_on_old_kernel, log, sizeof log);
    assert_non_null(strstr(log, "Function not implemented"));
}

/* A user's memlock limit, which root would not be held to. */
static int open_with_little_memlock(void)
{
    struct rlimit limit = {64 << 10, 64 << 10};
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io;
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return 10;
    if (geteuid() == 0 &&
        (chown(directory, 65534, 65534) != 0 || setgid(65534) != 0 || setuid(65534) != 0))
        return 11;
    options.pool_bytes = 4 << 20;
    options.pool = aligned_alloc(4096, options.pool_bytes);
    if (!options.pool || nosa_io_open_auto(&options, &io, NULL) != NOSA_OK)
        return 12;
    if (io->registered || io->method->resize(io, &options, NULL) != NOSA_OK)
        return 13;
    if (has_uring && io->method != &nosa_io_uring)
        return 14;
    int code = works(io);
    io->method->close(io);
    free(options.pool);
    return code;
}

static void test_open_auto_with_little_memlock_says_so(void **state)
{
    (void)state;
    char log[4096];
    in_child(open_with_little_memlock, log, sizeof log);
    if (has_uring) {
        assert_non_null(
            strstr(log, "warn kvstore: the host KV pool of 4 MiB cannot be registered"));
        assert_non_null(strstr(log, "memlock limit 64 KiB"));
    }
}

static int open_unwritable(void)
{
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io;
    struct nosa_error error = {0};
    if (chmod(directory, 0555) != 0)
        return 10;
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
        return 11;
    if (nosa_io_open_auto(&options, &io, &error) != NOSA_INVALID_ARGUMENT || io)
        return 12;
    return strstr(error.text, directory) && strstr(error.text, "is not writable") ? 0 : 13;
}

static void test_open_auto_unwritable_directory(void **state)
{
    (void)state;
    char log[4096];
    in_child(open_unwritable, log, sizeof log);
}

/* A file that is larger than the process may write. */
static int resize_past_file_limit(void)
{
    struct rlimit limit = {FILE_BYTES / 2, FILE_BYTES / 2};
    struct nosa_io_options options = options_for(4);
    struct nosa_io *io;
    struct nosa_error error = {0};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || nosa_io_open_auto(&options, &io, &error) != NOSA_OK)
        return 10;
    enum nosa_status status = io->method->resize(io, &options, &error);
    io->method->close(io);
    return status == NOSA_IO_ERROR && strstr(error.text, directory) ? 0 : 11;
}

static void test_resize_past_file_limit(void **state)
{
    (void)state;
    char log[4096];
    in_child(resize_past_file_limit, log, sizeof log);
}

static int run_group(const struct nosa_io_method *of)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_returns_what_was_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_past_the_end_is_short, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_submit_takes_no_more_than_it_can, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reap_waits_no_longer_than_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cancelled_operations_complete, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_resize_keeps_and_zeroes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_refuses_bad_directories, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_makes_the_directory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_resize_refuses_more_than_is_free, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_twice_is_in_use, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_file_goes_on_without_its_directory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_pool_and_other_memory_both_work, set_up, tear_down),
    };
    method = of;
    return cmocka_run_group_tests_name(of->name, tests, NULL, NULL);
}

static int run_refusals(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_open_auto_falls_back_to_threads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_auto_with_little_memlock_says_so, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_open_auto_unwritable_directory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_resize_past_file_limit, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("refusals", tests, NULL, NULL);
}

int main(void)
{
    struct nosa_io *io;
    struct nosa_error error = {0};

    fixture_make_directory(directory);
    struct nosa_io_options options = options_for(4);
    enum nosa_status status = nosa_io_uring.open(&nosa_io_uring, &options, &io, &error);
    has_uring = status == NOSA_OK;
    if (has_uring)
        io->method->close(io);
    fixture_remove_directory(directory);
    int failed = run_group(&nosa_io_threads) + run_refusals();
    if (status == NOSA_UNSUPPORTED)
        printf("skipped the io_uring group: %s\n", error.text);
    else
        failed += run_group(&nosa_io_uring);
    return failed;
}
