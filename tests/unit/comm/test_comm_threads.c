/* Collectives between threads: bits against a serial sum, odd sizes, abort, and calls that do not
 * match. Each rank is a thread; ranks are more than cores on small machines. Ranks only record
 * what happened; the main thread asserts. */
#include "comm/comm.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "support/alloc_fail.h"

#define RANKS_MAX 9

struct run;

/* One rank's work; returns a status that the test asserts on. */
typedef enum nosa_status (*rank_function)(struct run *run, struct nosa_comm *comm);

struct run {
    rank_function function;
    int32_t n_ranks;
    size_t n;         /* elements, for functions that want a size */
    int32_t odd_rank; /* the rank that does something else */
    _Atomic int32_t calls;
    float *inputs;   /* [n_ranks][n] */
    float *expected; /* serial results */
    struct nosa_comm *comms[RANKS_MAX];
    enum nosa_status status[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
};

struct rank_start {
    struct run *run;
    int32_t rank;
};

static void *run_rank(void *argument)
{
    struct rank_start *start = argument;
    struct run *run = start->run;
    struct nosa_comm *comm = run->comms[start->rank];
    run->status[start->rank] = run->function(run, comm);
    return NULL;
}

static void create_group(struct run *run, int32_t n_ranks, size_t bytes_max)
{
    run->n_ranks = n_ranks;
    struct nosa_error error = {0};
    assert_int_equal(nosa_comm_threads_create(n_ranks, bytes_max, run->comms, &error), NOSA_OK);
    for (int32_t rank = 0; rank < n_ranks; rank++) {
        assert_int_equal(run->comms[rank]->rank, rank);
        assert_int_equal(run->comms[rank]->n_ranks, n_ranks);
    }
}

static void destroy_group(struct run *run)
{
    for (int32_t rank = 0; rank < run->n_ranks; rank++)
        if (run->comms[rank])
            run->comms[rank]->table->destroy(run->comms[rank]);
}

static void start_ranks(struct run *run, struct rank_start *starts)
{
    for (int32_t rank = 0; rank < run->n_ranks; rank++) {
        starts[rank] = (struct rank_start){run, rank};
        assert_int_equal(pthread_create(&run->threads[rank], NULL, run_rank, &starts[rank]), 0);
    }
}

static void join_ranks(struct run *run)
{
    for (int32_t rank = 0; rank < run->n_ranks; rank++)
        pthread_join(run->threads[rank], NULL);
}

static void run_ranks(struct run *run)
{
    struct rank_start starts[RANKS_MAX];
    start_ranks(run, starts);
    join_ranks(run);
}

static void assert_all(const struct run *run, enum nosa_status status)
{
    for (int32_t rank = 0; rank < run->n_ranks; rank++)
        assert_int_equal(run->status[rank], status);
}

/* Values of many magnitudes and signs, so that the order of a sum shows in its bits. */
static float value_at(uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 12345u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    float mantissa = (float)(int32_t)(x & 0xffff) - 32768.0f;
    static const float scales[] = {1e-6f, 1.0f, 3e4f, 1e-3f};
    return x % 97 == 0 ? -0.0f : mantissa * scales[(x >> 16) & 3];
}

static const size_t sizes[] = {0, 1, 7, 15, 16, 17, 63, 1000, 4099};
static const int32_t rank_counts[] = {1, 2, 3, 4, 8, 9};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void make_inputs(struct run *run, size_t n)
{
    run->n = n;
    run->inputs = calloc((size_t)run->n_ranks * n + 1, sizeof(float));
    run->expected = calloc(n + 1, sizeof(float));
    assert_non_null(run->inputs);
    assert_non_null(run->expected);
    for (size_t i = 0; i < (size_t)run->n_ranks * n; i++)
        run->inputs[i] = value_at((uint32_t)(i + n));
    for (size_t i = 0; i < n; i++) {
        float sum = run->inputs[i];
        for (int32_t rank = 1; rank < run->n_ranks; rank++)
            sum += run->inputs[(size_t)rank * n + i];
        run->expected[i] = sum;
    }
}

static void free_inputs(struct run *run)
{
    free(run->inputs);
    free(run->expected);
}

/* Runs `function` for every number of ranks and every size; each rank says whether it matched. */
static void run_all_shapes(rank_function function)
{
    for (size_t c = 0; c < COUNT(rank_counts); c++) {
        for (size_t s = 0; s <= COUNT(sizes); s++) {
            struct run run = {.function = function};
            size_t n = s < COUNT(sizes) ? sizes[s] : 1000003u / (size_t)rank_counts[c];
            create_group(&run, rank_counts[c], n * sizeof(float));
            make_inputs(&run, n);
            run_ranks(&run);
            assert_all(&run, NOSA_OK);
            free_inputs(&run);
            destroy_group(&run);
        }
    }
}

/* ---- results ------------------------------------------------------------------------------- */

static enum nosa_status reduce_and_compare(struct run *run, struct nosa_comm *comm)
{
    size_t bytes = run->n * sizeof(float);
    float *x = malloc(bytes + 1);
    memcpy(x, run->inputs + (size_t)comm->rank * run->n, bytes);
    enum nosa_status status = comm->table->all_reduce(comm, NULL, x, run->n);
    if (status == NOSA_OK && memcmp(x, run->expected, bytes) != 0)
        status = NOSA_CORRUPT;
    free(x);
    return status;
}

static void test_all_reduce_has_the_bits_of_a_serial_sum_in_rank_order(void **state)
{
    (void)state;
    run_all_shapes(reduce_and_compare);
}

static enum nosa_status gather_and_compare(struct run *run, struct nosa_comm *comm)
{
    size_t n = run->n;
    size_t bytes = n * sizeof(float);
    size_t total = bytes * (size_t)run->n_ranks;
    float *all = calloc(total + 1, 1);
    float *part = malloc(bytes + 1);
    memcpy(part, run->inputs + (size_t)comm->rank * n, bytes);
    enum nosa_status status = comm->table->all_gather(comm, NULL, part, n, all);
    if (status == NOSA_OK && memcmp(all, run->inputs, total) != 0)
        status = NOSA_CORRUPT;
    /* Once more with the part in its place. */
    memset(all, 0, total);
    memcpy(all + (size_t)comm->rank * n, part, bytes);
    if (status == NOSA_OK)
        status = comm->table->all_gather(comm, NULL, all + (size_t)comm->rank * n, n, all);
    if (status == NOSA_OK && memcmp(all, run->inputs, total) != 0)
        status = NOSA_CORRUPT;
    free(part);
    free(all);
    return status;
}

static void test_all_gather_lays_parts_out_by_rank(void **state)
{
    (void)state;
    run_all_shapes(gather_and_compare);
}

static enum nosa_status broadcast_and_compare(struct run *run, struct nosa_comm *comm)
{
    size_t bytes = run->n * sizeof(float);
    bytes -= bytes > 0; /* an odd number of bytes */
    char *data = malloc(bytes + 1);
    enum nosa_status status = NOSA_OK;
    for (int32_t root = 0; root < run->n_ranks && status == NOSA_OK; root++) {
        memcpy(data, run->inputs + (size_t)comm->rank * run->n, bytes);
        status = comm->table->broadcast(comm, NULL, data, bytes, root);
        if (status == NOSA_OK && memcmp(data, run->inputs + (size_t)root * run->n, bytes) != 0)
            status = NOSA_CORRUPT;
    }
    free(data);
    return status;
}

static void test_broadcast_copies_the_bytes_of_every_root(void **state)
{
    (void)state;
    run_all_shapes(broadcast_and_compare);
}

#define ITERATIONS 3000

/* Calls of all kinds in turn, with sizes that change; every result is compared. */
static enum nosa_status many_calls(struct run *run, struct nosa_comm *comm)
{
    float x[64], all[64 * RANKS_MAX];
    for (int32_t i = 0; i < ITERATIONS; i++) {
        size_t n = (size_t)(i % 64) + 1;
        for (size_t j = 0; j < n; j++)
            x[j] = value_at((uint32_t)(i + comm->rank * 1000 + (int32_t)j));
        NOSA_TRY(comm->table->all_gather(comm, NULL, x, n, all));
        NOSA_TRY(comm->table->all_reduce(comm, NULL, x, n));
        for (size_t j = 0; j < n; j++) {
            float sum = all[j];
            for (int32_t rank = 1; rank < run->n_ranks; rank++)
                sum += all[(size_t)rank * n + j];
            if (memcmp(&sum, &x[j], sizeof sum) != 0)
                return NOSA_CORRUPT;
        }
        int32_t root = i % run->n_ranks;
        int32_t word = comm->rank == root ? i : -1;
        NOSA_TRY(comm->table->broadcast(comm, NULL, &word, sizeof word, root));
        if (word != i)
            return NOSA_CORRUPT;
    }
    return NOSA_OK;
}

static void test_collectives_many_in_a_row(void **state)
{
    (void)state;
    static const int32_t counts[] = {2, 4, 9};
    for (size_t c = 0; c < COUNT(counts); c++) {
        struct run run = {.function = many_calls};
        struct timespec start, end;
        create_group(&run, counts[c], 64 * sizeof(float));
        clock_gettime(CLOCK_MONOTONIC, &start);
        run_ranks(&run);
        clock_gettime(CLOCK_MONOTONIC, &end);
        assert_all(&run, NOSA_OK);
        destroy_group(&run);
        double seconds =
            (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
        print_message("%d ranks: %.1f us a collective\n", (int)counts[c],
                      1e6 * seconds / (3.0 * ITERATIONS));
    }
}

/* ---- abort --------------------------------------------------------------------------------- */

/* Takes and frees its memory around every call: whoever read it after the call would be caught. */
static enum nosa_status reduce_until_stopped(struct run *run, struct nosa_comm *comm)
{
    enum nosa_status status = NOSA_OK;
    while (status == NOSA_OK) {
        float *x = malloc(run->n * sizeof(float));
        for (size_t i = 0; i < run->n; i++)
            x[i] = 1.0f;
        status = comm->table->all_reduce(comm, NULL, x, run->n);
        memset(x, 0x7f, run->n * sizeof(float));
        free(x);
        atomic_fetch_add(&run->calls, 1);
    }
    for (int32_t i = 0; i < 3; i++) {
        float y = 0.0f;
        if (comm->table->all_reduce(comm, NULL, &y, 1) != NOSA_CANCELLED ||
            comm->table->broadcast(comm, NULL, &y, 1, 0) != NOSA_CANCELLED)
            return NOSA_CORRUPT;
    }
    return status;
}

static void test_abort_in_the_middle_cancels_every_rank(void **state)
{
    (void)state;
    for (int32_t round = 0; round < 40; round++) {
        struct run run = {.function = reduce_until_stopped, .n = (size_t)1 << (round % 18)};
        struct rank_start starts[RANKS_MAX];
        create_group(&run, 2 + round % 8, run.n * sizeof(float));
        start_ranks(&run, starts);
        while (atomic_load(&run.calls) < 20 + round)
            nanosleep(&(struct timespec){.tv_nsec = 50000 + 7000 * round}, NULL);
        struct nosa_comm *comm = run.comms[round % run.n_ranks];
        comm->table->abort(comm);
        join_ranks(&run);
        assert_all(&run, NOSA_CANCELLED);
        destroy_group(&run);
    }
}

static enum nosa_status reduce_but_one(struct run *run, struct nosa_comm *comm)
{
    float x = 1.0f;
    if (comm->rank == run->odd_rank) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        comm->table->abort(comm);
        return NOSA_CANCELLED;
    }
    return comm->table->all_reduce(comm, NULL, &x, 1);
}

static void test_abort_wakes_ranks_that_sleep_at_a_barrier(void **state)
{
    (void)state;
    struct run run = {.function = reduce_but_one, .odd_rank = 2};
    create_group(&run, 4, sizeof(float));
    run_ranks(&run);
    assert_all(&run, NOSA_CANCELLED);
    destroy_group(&run);
}

static enum nosa_status leave_early(struct run *run, struct nosa_comm *comm)
{
    float x = 1.0f;
    NOSA_TRY(comm->table->all_reduce(comm, NULL, &x, 1));
    if (comm->rank == run->odd_rank) {
        run->comms[comm->rank] = NULL;
        comm->table->destroy(comm);
        return NOSA_CANCELLED;
    }
    return comm->table->all_reduce(comm, NULL, &x, 1);
}

static void test_destroy_of_one_member_cancels_the_others(void **state)
{
    (void)state;
    struct run run = {.function = leave_early, .odd_rank = 1};
    create_group(&run, 3, sizeof(float));
    run_ranks(&run);
    assert_all(&run, NOSA_CANCELLED);
    destroy_group(&run);
}

static void test_abort_of_a_group_of_one(void **state)
{
    (void)state;
    struct run run = {0};
    float x = 3.0f, y = 0.0f;
    create_group(&run, 1, sizeof x);
    struct nosa_comm *comm = run.comms[0];
    assert_int_equal(comm->table->all_reduce(comm, NULL, &x, 1), NOSA_OK);
    assert_int_equal(comm->table->all_gather(comm, NULL, &x, 1, &y), NOSA_OK);
    assert_true(x == 3.0f && y == 3.0f);
    assert_int_equal(comm->table->all_reduce(comm, NULL, &x, 2), NOSA_INVALID_ARGUMENT);
    assert_int_equal(comm->table->broadcast(comm, NULL, &x, 1, 1), NOSA_INVALID_ARGUMENT);
    comm->table->abort(comm);
    assert_int_equal(comm->table->all_reduce(comm, NULL, &x, 1), NOSA_CANCELLED);
    destroy_group(&run);
}

/* ---- calls that do not match --------------------------------------------------------------- */

static enum nosa_status other_size(struct run *run, struct nosa_comm *comm)
{
    /* Each rank has just what it offers: reading more than that would be caught. */
    size_t n = comm->rank == run->odd_rank ? 1 : 1000;
    float *x = calloc(n, sizeof *x);
    enum nosa_status status = comm->table->all_reduce(comm, NULL, x, n);
    free(x);
    return status;
}

static enum nosa_status other_operation(struct run *run, struct nosa_comm *comm)
{
    float x[RANKS_MAX] = {0}, y = 0.0f;
    if (comm->rank == run->odd_rank)
        return comm->table->all_gather(comm, NULL, &y, 1, x);
    return comm->table->all_reduce(comm, NULL, &y, 1);
}

static enum nosa_status other_root(struct run *run, struct nosa_comm *comm)
{
    float x = 0.0f;
    return comm->table->broadcast(comm, NULL, &x, sizeof x, comm->rank == run->odd_rank);
}

static enum nosa_status too_large_on_one(struct run *run, struct nosa_comm *comm)
{
    float x = 0.0f;
    return comm->table->all_reduce(comm, NULL, &x, comm->rank == run->odd_rank ? SIZE_MAX / 2 : 1);
}

static void test_collectives_that_do_not_match_abort_the_group(void **state)
{
    (void)state;
    static const rank_function functions[] = {other_size, other_operation, other_root,
                                              too_large_on_one};
    for (size_t f = 0; f < COUNT(functions); f++) {
        for (int32_t odd_rank = 0; odd_rank < 4; odd_rank++) {
            struct run run = {.function = functions[f], .odd_rank = odd_rank};
            float x = 0.0f;
            create_group(&run, 4, 4096);
            run_ranks(&run);
            assert_all(&run, NOSA_INTERNAL);
            assert_int_equal(run.comms[0]->table->all_reduce(run.comms[0], NULL, &x, 1),
                             NOSA_CANCELLED);
            destroy_group(&run);
        }
    }
}

static enum nosa_status too_large_then_right(struct run *run, struct nosa_comm *comm)
{
    float x[2] = {1.0f, 2.0f};
    for (int32_t i = 0; i < 200; i++) {
        if (comm->table->all_reduce(comm, NULL, x, 3 + (size_t)i) != NOSA_INVALID_ARGUMENT ||
            comm->table->all_reduce(comm, NULL, x, SIZE_MAX / 2) != NOSA_INVALID_ARGUMENT ||
            comm->table->broadcast(comm, NULL, x, 4, run->n_ranks) != NOSA_INVALID_ARGUMENT ||
            comm->table->broadcast(comm, NULL, x, 4, -1) != NOSA_INVALID_ARGUMENT)
            return NOSA_CORRUPT;
        x[0] = 1.0f;
        x[1] = 2.0f;
        NOSA_TRY(comm->table->all_reduce(comm, NULL, x, 2));
        if (x[0] != (float)run->n_ranks || x[1] != 2.0f * (float)run->n_ranks)
            return NOSA_CORRUPT;
    }
    return NOSA_OK;
}

static void test_collectives_beyond_the_bound_are_refused_and_the_group_goes_on(void **state)
{
    (void)state;
    struct run run = {.function = too_large_then_right};
    create_group(&run, 5, 2 * sizeof(float));
    run_ranks(&run);
    assert_all(&run, NOSA_OK);
    destroy_group(&run);
}

static void test_create_without_ranks_or_memory(void **state)
{
    (void)state;
    struct nosa_comm *comms[2];
    struct nosa_error error = {0};
    assert_int_equal(nosa_comm_threads_create(0, 4, comms, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "0 ranks"));
    assert_int_equal(nosa_comm_threads_create(2, SIZE_MAX, comms, NULL), NOSA_OUT_OF_MEMORY);
}

static enum nosa_status create_and_destroy(void *context, struct nosa_error *error)
{
    struct nosa_comm *comms[3];
    (void)context;
    NOSA_TRY(nosa_comm_threads_create(3, 1024, comms, error));
    for (int32_t rank = 0; rank < 3; rank++)
        comms[rank]->table->destroy(comms[rank]);
    return NOSA_OK;
}

static void test_create_with_each_allocation_failing(void **state)
{
    (void)state;
    assert_int_equal(nosa_alloc_fail_sweep(create_and_destroy, NULL), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_reduce_has_the_bits_of_a_serial_sum_in_rank_order),
        cmocka_unit_test(test_all_gather_lays_parts_out_by_rank),
        cmocka_unit_test(test_broadcast_copies_the_bytes_of_every_root),
        cmocka_unit_test(test_collectives_many_in_a_row),
        cmocka_unit_test(test_abort_in_the_middle_cancels_every_rank),
        cmocka_unit_test(test_abort_wakes_ranks_that_sleep_at_a_barrier),
        cmocka_unit_test(test_destroy_of_one_member_cancels_the_others),
        cmocka_unit_test(test_abort_of_a_group_of_one),
        cmocka_unit_test(test_collectives_that_do_not_match_abort_the_group),
        cmocka_unit_test(test_collectives_beyond_the_bound_are_refused_and_the_group_goes_on),
        cmocka_unit_test(test_create_without_ranks_or_memory),
        cmocka_unit_test(test_create_with_each_allocation_failing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
