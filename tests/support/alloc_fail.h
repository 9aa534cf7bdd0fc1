/*
 * Failing the Nth allocation. A test that links nosa_alloc_fail has malloc, calloc, realloc,
 * reallocarray, aligned_alloc, posix_memalign, strdup, strndup and mmap of our own code wrapped
 * (the linker's --wrap); shared libraries are not, but jansson after
 * nosa_alloc_fail_hook_jansson. Counting is process-wide and safe with threads.
 *
 *     static enum nosa_status load(void *context, struct nosa_error *error) { ... frees all ... }
 *     int allocations = nosa_alloc_fail_sweep(load, &context);
 *     assert_true(allocations > 0);
 */
#ifndef NOSA_TESTS_SUPPORT_ALLOC_FAIL_H
#define NOSA_TESTS_SUPPORT_ALLOC_FAIL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Starts counting from zero and lets allocation number `nth` fail (1 is the next); 0: none fails,
 * only count. Later ones succeed again. */
void nosa_alloc_fail_arm(uint64_t nth);

/* As arm, but every allocation from number `nth` on fails. */
void nosa_alloc_fail_arm_from(uint64_t nth);

/* Stops failing and counting. */
void nosa_alloc_fail_disarm(void);

/* Allocations since arm, those that failed included. */
uint64_t nosa_alloc_fail_count(void);

/* Whether an allocation was made to fail since arm. */
bool nosa_alloc_fail_hit(void);

/* Lets jansson allocate through the wrapped functions. Call once, before any JSON is parsed. */
void nosa_alloc_fail_hook_jansson(void);

/* One attempt: does the whole work, frees all that it made, returns its status. */
typedef enum nosa_status (*nosa_alloc_fail_body)(void *context, struct nosa_error *error);

/*
 * Runs the body with the 1st, 2nd, ... allocation failing, until a run meets no failure, and
 * asserts (cmocka) that each failing run returns NOSA_OUT_OF_MEMORY with a text, or NOSA_OK where
 * the code could do without; and that the last run returns NOSA_OK. Leaks are the sanitizer's to
 * find. Returns how many allocations were made to fail.
 */
int nosa_alloc_fail_sweep(nosa_alloc_fail_body body, void *context);

#endif
