/* The states of a block: every allowed move, every other move refused, and the order of lists. */
#include "block_pool.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const bool allowed[NOSA_BLOCK_STATES][NOSA_BLOCK_STATES] = {
    [NOSA_BLOCK_FREE] = {[NOSA_BLOCK_FILLING] = true},
    [NOSA_BLOCK_FILLING] =
        {[NOSA_BLOCK_COMPLETE] = true, [NOSA_BLOCK_COPY] = true, [NOSA_BLOCK_FREE] = true},
    [NOSA_BLOCK_COMPLETE] = {[NOSA_BLOCK_CACHED] = true, [NOSA_BLOCK_FREE] = true},
    [NOSA_BLOCK_COPY] = {[NOSA_BLOCK_COMPLETE] = true, [NOSA_BLOCK_FREE] = true},
    [NOSA_BLOCK_CACHED] = {[NOSA_BLOCK_COMPLETE] = true, [NOSA_BLOCK_FREE] = true},
};

static bool in_use(enum nosa_block_state state)
{
    return state != NOSA_BLOCK_FREE && state != NOSA_BLOCK_CACHED;
}

/* Counts a user more or less if the state wants it, then moves. */
static void move(struct nosa_block_pool *pool, int32_t block, enum nosa_block_state to)
{
    bool was_in_use = in_use(nosa_block_pool_state(pool, block));
    if (in_use(to) && !was_in_use)
        nosa_block_pool_retain(pool, block);
    if (!in_use(to) && was_in_use)
        nosa_block_pool_release(pool, block);
    nosa_block_pool_move(pool, block, to);
}

static void bring_to(struct nosa_block_pool *pool, int32_t block, enum nosa_block_state state)
{
    if (state == NOSA_BLOCK_FREE)
        return;
    move(pool, block, NOSA_BLOCK_FILLING);
    if (state == NOSA_BLOCK_FILLING)
        return;
    move(pool, block, state == NOSA_BLOCK_COPY ? NOSA_BLOCK_COPY : NOSA_BLOCK_COMPLETE);
    if (state == NOSA_BLOCK_CACHED)
        move(pool, block, NOSA_BLOCK_CACHED);
}

/* Whether a move aborts the program. */
static bool move_aborts(enum nosa_block_state from, enum nosa_block_state to)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct nosa_block_pool pool;
        signal(SIGABRT, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr) || nosa_block_pool_create(&pool, 1, NULL) != NOSA_OK)
            _exit(2);
        bring_to(&pool, 0, from);
        move(&pool, 0, to);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status))
        return WTERMSIG(status) == SIGABRT;
    assert_int_equal(WEXITSTATUS(status), 0);
    return false;
}

static void test_move_allows_only_the_documented_moves(void **state)
{
    (void)state;
    for (int from = 0; from < NOSA_BLOCK_STATES; from++)
        for (int to = 0; to < NOSA_BLOCK_STATES; to++)
            assert_int_equal(move_aborts((enum nosa_block_state)from, (enum nosa_block_state)to),
                             !allowed[from][to]);
}

static void test_move_keeps_counts_and_the_order_of_last_use(void **state)
{
    (void)state;
    struct nosa_block_pool pool;
    assert_int_equal(nosa_block_pool_create(&pool, 4, NULL), NOSA_OK);
    for (int32_t block = 0; block < 4; block++) {
        assert_int_equal(nosa_block_pool_free(&pool), block);
        bring_to(&pool, block, NOSA_BLOCK_CACHED);
    }
    assert_int_equal(nosa_block_pool_free(&pool), NOSA_BLOCK_NONE);
    assert_int_equal(pool.in_state[NOSA_BLOCK_CACHED], 4);
    move(&pool, 0, NOSA_BLOCK_COMPLETE); /* oldest */
    move(&pool, 2, NOSA_BLOCK_COMPLETE); /* in the middle */
    assert_int_equal(nosa_block_pool_oldest(&pool), 1);
    move(&pool, 3, NOSA_BLOCK_COMPLETE); /* newest */
    move(&pool, 0, NOSA_BLOCK_CACHED);
    move(&pool, 3, NOSA_BLOCK_CACHED);
    static const int32_t order[] = {1, 0, 3};
    for (int32_t i = 0; i < 3; i++) {
        int32_t oldest = nosa_block_pool_oldest(&pool);
        assert_int_equal(oldest, order[i]);
        move(&pool, oldest, NOSA_BLOCK_FREE);
        assert_int_equal(nosa_block_pool_free(&pool), oldest);
    }
    assert_int_equal(nosa_block_pool_oldest(&pool), NOSA_BLOCK_NONE);
    assert_int_equal(pool.in_state[NOSA_BLOCK_FREE], 3);
    assert_int_equal(pool.in_state[NOSA_BLOCK_COMPLETE], 1);
    nosa_block_pool_destroy(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_move_allows_only_the_documented_moves),
        cmocka_unit_test(test_move_keeps_counts_and_the_order_of_last_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
