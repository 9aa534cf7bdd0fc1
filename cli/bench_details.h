/* One JSON object of every request of a benchmark, collected while they end. */
#ifndef NOSA_CLI_BENCH_DETAILS_H
#define NOSA_CLI_BENCH_DETAILS_H

#include <jansson.h>

#include "base/status.h"
#include "bench_run.h"

struct nosa_bench_details; /* opaque */

/* NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_bench_details_create(struct nosa_bench_details **details,
                                           struct nosa_error *error);
/* NULL is allowed. */
void nosa_bench_details_free(struct nosa_bench_details *details);

/* The `ended` of nosa_bench_options, with the details as context. */
void nosa_bench_details_add(void *details, const struct nosa_bench_record *record);

/* The array of what was added, borrowed; NULL: there was no memory for some of it. */
json_t *nosa_bench_details_list(const struct nosa_bench_details *details);

#endif
