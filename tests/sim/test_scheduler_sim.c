/*
 * The scheduler under a virtual worker, from seeds (scheduler_world.h).
 *
 *   test_scheduler_sim                      some thousand seeds
 *   test_scheduler_sim --seeds FIRST COUNT  others
 *   test_scheduler_sim SEED                 one seed with a line per event, as printed by a failure
 *   test_scheduler_sim --table              a mixed load, measured
 */
#include "scheduler_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEEDS 12000

static uint64_t seed_first = 1, seed_count = SEEDS;

static void test_scheduler_keeps_its_word_in_every_world(void **state)
{
    (void)state;
    struct world totals = {0};

    for (uint64_t seed = seed_first; seed < seed_first + seed_count; seed++)
        world_run_seed(seed, seed_count == 1, &totals);
    print_message(
        "%llu seeds, %lld steps: %lld prefill and %lld decode tokens, %lld suspended (%lld hasty), "
        "%lld dropped, %lld outsize steps, %lld parked, %lld refused\n",
        (unsigned long long)seed_count, (long long)totals.steps, (long long)totals.prefill_tokens,
        (long long)totals.decode_tokens, (long long)totals.evicted, (long long)totals.hasty,
        (long long)totals.drops, (long long)totals.outsize_steps, (long long)totals.parked,
        (long long)totals.refused);
    print_message("ended: %llu stop, %llu length, %llu cancelled, %llu deadline, %llu failed, %llu "
                  "moved\n",
                  (unsigned long long)totals.ended[NOSA_SCHEDULER_END_STOP],
                  (unsigned long long)totals.ended[NOSA_SCHEDULER_END_LENGTH],
                  (unsigned long long)totals.ended[NOSA_SCHEDULER_END_CANCELLED],
                  (unsigned long long)totals.ended[NOSA_SCHEDULER_END_DEADLINE],
                  (unsigned long long)totals.ended[NOSA_SCHEDULER_END_FAILED],
                  (unsigned long long)totals.ended[NOSA_SCHEDULER_END_MOVED]);
    if (seed_count < 1000)
        return;
    /* A claim to steps gives way only where nothing else is left to evict. */
    assert_true(totals.hasty * 10 < totals.evicted);
    /* Everything that is to be tested has happened. */
    assert_true(totals.evicted > 0 && totals.drops > 0 && totals.outsize_steps > 0 &&
                totals.parked > 0 && totals.refused > 0);
    for (int end = NOSA_SCHEDULER_END_STOP; end <= NOSA_SCHEDULER_END_MOVED; end++)
        assert_true(totals.ended[end] > 0);
}

/* A seed is a whole world: the same decisions every time. */
static void test_world_replays_exactly(void **state)
{
    (void)state;
    for (uint64_t seed = seed_first; seed < seed_first + seed_count && seed < seed_first + 100;
         seed++) {
        struct world first = {0}, second = {0};
        world_run_seed(seed, false, &first);
        world_run_seed(seed, false, &second);
        assert_memory_equal(&first, &second, sizeof first);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_world_replays_exactly),
        cmocka_unit_test(test_scheduler_keeps_its_word_in_every_world),
    };
    if (argc == 2 && strcmp(argv[1], "--table") == 0) {
        load_print_table();
        return 0;
    }
    if (argc == 2) {
        seed_first = strtoull(argv[1], NULL, 10);
        seed_count = 1;
    } else if (argc == 4 && strcmp(argv[1], "--seeds") == 0) {
        seed_first = strtoull(argv[2], NULL, 10);
        seed_count = strtoull(argv[3], NULL, 10);
    } else if (argc > 1) {
        fprintf(stderr, "usage: %s [SEED | --seeds FIRST COUNT | --table]\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
