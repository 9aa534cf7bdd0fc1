/* What nosa-run prints about a run: one JSON object, or a line of timing for people. */
#ifndef NOSA_RUN_REPORT_H
#define NOSA_RUN_REPORT_H

#include "run/generate.h"

struct nosa_run_report {
    const struct nosa_run_options *options;
    const struct nosa_engine_info *info;
    const struct nosa_tokens *prompt;
    double load_s;
};

/* Says on stderr, once nothing that the caller gave can be refused any more, what runs: without
 * --json the device and sizes, and in any case that text is missing when there is no tokenizer. */
void nosa_report_start(const struct nosa_run_options *options, const struct nosa_engine_info *info,
                       bool has_tokenizer);

/* Prints the JSON object of a generation on stdout. */
enum nosa_status nosa_report_generation_json(const struct nosa_run_report *report,
                                             const struct nosa_generation *generation,
                                             struct nosa_error *error);

/* Prints a line about prompt, speed and end on stderr. */
void nosa_report_generation_line(const struct nosa_run_report *report,
                                 const struct nosa_generation *generation);

/* Prints the log-likelihood of a text, scores [prompt->count], as JSON or as a line on stdout. */
enum nosa_status nosa_report_score(const struct nosa_run_report *report, const float *scores,
                                   struct nosa_error *error);

#endif
