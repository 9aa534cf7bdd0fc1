/* Cases of the op tests drawn from seeds: shapes beside those of the list, as many as wanted. */
#ifndef NOSA_TESTS_KERNELS_OP_RANDOM_H
#define NOSA_TESTS_KERNELS_OP_RANDOM_H

#include "op_cases.h"

/* The seeds that a test runs: first .. first + count - 1. */
struct op_seeds {
    uint64_t first;
    uint64_t count;
};

/* A case and the memory of its name, which is "random <seed>". */
struct op_random_case {
    struct op_case op_case;
    char name[32];
};

/* Draws any shape that a checkpoint may have and a few ragged sequences; equal for equal seeds. The
 * case borrows its name from `out`. */
void op_random_case(uint64_t seed, struct op_random_case *out);

/* Reads the command line `[--seeds FIRST COUNT]`; without it *seeds stays. False, and a line on
 * stderr, if it is anything else. */
bool op_seeds_parse(int argc, char *const *argv, struct op_seeds *seeds);

#endif
