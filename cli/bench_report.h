/* A benchmark's result for people, at most 80 columns wide, and as one JSON object. */
#ifndef NOSA_CLI_BENCH_REPORT_H
#define NOSA_CLI_BENCH_REPORT_H

#include <stdio.h>

#include "bench_details.h"
#include "bench_run.h"

/* Prints tables. */
void nosa_bench_print(const struct nosa_bench_options *options,
                      const struct nosa_bench_result *result, FILE *stream);

/* Prints one object and a newline; `details` may be NULL. NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_bench_print_json(const struct nosa_bench_options *options,
                                       const struct nosa_bench_result *result,
                                       const struct nosa_bench_details *details, FILE *stream,
                                       struct nosa_error *error);

#endif
