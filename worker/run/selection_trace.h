/* The selection trace of a run (--trace-selection): a file that grows with the session's rows. */
#ifndef NOSA_RUN_SELECTION_TRACE_H
#define NOSA_RUN_SELECTION_TRACE_H

#include "engine/trace_file.h"
#include "run/run_options.h"

/* Lives from before the session opens until after it is closed; all zero: no trace. */
struct nosa_run_trace {
    struct nosa_trace_writer writer;
    struct nosa_trace_sink sink;
};

/* Rows of a step of rows_max tokens that the run traces at most; 0 without a trace. */
int32_t nosa_run_trace_rows(const struct nosa_run_options *options, size_t prompt,
                            int32_t rows_max);

/* Creates the file when the run has one; *sink is then what the session gets, else NULL. */
enum nosa_status nosa_run_trace_open(struct nosa_run_trace *trace,
                                     const struct nosa_run_options *options,
                                     const struct nosa_engine_info *info, size_t prompt,
                                     const struct nosa_trace_sink **sink, struct nosa_error *error);
/* Completes it; `session` may be NULL. Errors are set where `error` is clear. */
enum nosa_status nosa_run_trace_close(struct nosa_run_trace *trace,
                                      const struct nosa_session *session, struct nosa_error *error);

#endif
