/*
 * SIGKILL at random moments of a process that writes, forgets and reads without pause: the file
 * opens again, holds everything that was reported as written, and nothing of it is wrong.
 *
 *     test_extent_store_kill [rounds for each I/O method]
 */
#include "extent_store.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "extent_fixture.h"
#include "support/io_sim.h"

#define EXTENTS  15 /* so few that none is evicted ahead of need */
#define NUMBERS  64
#define IN_WORK  6
#define ROUND_US 60000 /* a round is killed within so long */

enum fate { ABSENT = 0, UNSURE = 1, PRESENT = 2 };

/* What the writer has been told, in memory that outlives it. */
struct notes {
    _Atomic(uint32_t) fate[NUMBERS];
    _Atomic(uint64_t) written;
    _Atomic(uint32_t) ready;
};

static struct notes *notes;
static char directory[64];
static int rounds = 25;

static uint32_t count(enum fate fate)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < NUMBERS; i++)
        n += atomic_load(&notes->fate[i]) == fate;
    return n;
}

static uint32_t pick(uint64_t *random, enum fate fate)
{
    uint32_t i = io_sim_below(random, NUMBERS);
    while (atomic_load(&notes->fate[i]) != fate)
        i = (i + 1) % NUMBERS;
    return i;
}

static void take(struct nosa_extent_store *store, uint32_t *in_work)
{
    struct nosa_extent_completion completions[IN_WORK];
    uint32_t n = nosa_extent_store_poll(store, completions, IN_WORK, 10);
    for (uint32_t i = 0; i < n; i++) {
        NOSA_ASSERT(completions[i].result == NOSA_EXTENT_OK);
        if (completions[i].kind == NOSA_EXTENT_WRITE) {
            atomic_store(&notes->fate[completions[i].token], PRESENT);
            atomic_fetch_add(&notes->written, 1);
        }
        --*in_work;
    }
}

/* The child: never returns. No block is ever evicted, so that what is PRESENT must stay. */
static void write_until_killed(const struct nosa_extent_store_options *options, uint64_t seed)
{
    struct nosa_extent_store *store;
    uint64_t random = seed;
    uint32_t in_work = 0;
    char *images = aligned_alloc(4096, NUMBERS * 16384);

    NOSA_ASSERT(images && nosa_extent_store_open(options, &store, NULL) == NOSA_OK);
    atomic_store(&notes->ready, 1);
    for (;;) {
        while (in_work < IN_WORK && count(PRESENT) + count(UNSURE) < EXTENTS) {
            uint32_t number = pick(&random, ABSENT);
            atomic_store(&notes->fate[number], UNSURE);
            fixture_fill(&fixture_geometry, number, images + number * 16384);
            NOSA_ASSERT(fixture_write(store, number, number, images + number * 16384, 1, 0) ==
                        NOSA_OK);
            in_work++;
        }
        take(store, &in_work);
        if (in_work > 0 || count(PRESENT) < EXTENTS)
            continue;
        /* Full, and nothing UNSURE: makes place for a few. */
        for (int i = 0; i < IN_WORK; i++) {
            uint32_t number = pick(&random, PRESENT);
            atomic_store(&notes->fate[number], UNSURE);
            nosa_extent_store_forget(store, fixture_find(store, number));
            atomic_store(&notes->fate[number], ABSENT);
        }
    }
}

static void kill_one(const struct nosa_extent_store_options *options, uint64_t *random)
{
    int status;

    atomic_store(&notes->ready, 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        write_until_killed(options, io_sim_random(random));
    while (atomic_load(&notes->ready) == 0 && waitpid(child, &status, WNOHANG) == 0)
        usleep(200);
    io_sim_random(random);
    usleep(io_sim_below(random, ROUND_US));
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* What is on disk is what the next writer starts from. A block that was forgotten may be back: its
 * header had not been cleared yet. */
static void verify(const struct nosa_extent_store_options *options)
{
    struct nosa_extent_store *store;
    struct nosa_error error = {0};

    if (nosa_extent_store_open(options, &store, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    for (uint32_t i = 0; i < NUMBERS; i++) {
        enum nosa_extent_result result = fixture_get(store, i);
        assert_true(result == NOSA_EXTENT_OK || result == NOSA_EXTENT_CANCELLED);
        if (atomic_load(&notes->fate[i]) == PRESENT)
            assert_int_equal(result, NOSA_EXTENT_OK);
        atomic_store(&notes->fate[i], result == NOSA_EXTENT_OK ? PRESENT : ABSENT);
    }
    assert_int_equal(nosa_extent_store_close(store), 0);
}

static void kill_many(const struct nosa_io_method *method, uint64_t seed)
{
    struct nosa_extent_store_options options = fixture_options(directory, EXTENTS);
    uint64_t random = seed;
    options.method = method;
    for (uint32_t i = 0; i < NUMBERS; i++)
        atomic_store(&notes->fate[i], ABSENT);
    atomic_store(&notes->written, 0);
    for (int i = 0; i < rounds; i++) {
        kill_one(&options, &random);
        verify(&options);
    }
    printf("%llu writes over %d kills\n", (unsigned long long)atomic_load(&notes->written), rounds);
    assert_true(atomic_load(&notes->written) > 0);
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

static void test_kill_threads(void **state)
{
    (void)state;
    kill_many(&nosa_io_threads, 1);
}

static void test_kill_uring(void **state)
{
    (void)state;
    struct nosa_extent_store_options options = fixture_options(directory, EXTENTS);
    struct nosa_extent_store *store;
    options.method = &nosa_io_uring;
    enum nosa_status status = nosa_extent_store_open(&options, &store, NULL);
    nosa_extent_store_close(store);
    if (status == NOSA_UNSUPPORTED)
        skip();
    kill_many(&nosa_io_uring, 2);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kill_threads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_kill_uring, set_up, tear_down),
    };
    const struct nosa_log_options quiet = {.level = NOSA_LOG_ERROR, .descriptor = 2};
    if (argc > 1)
        rounds = atoi(argv[1]);
    nosa_log_configure(&quiet);
    notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (notes == MAP_FAILED)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
