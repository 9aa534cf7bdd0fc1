#include "run/selection_trace.h"

/* From here on every row is traced: where the caller says, else from the first generated token. */
static int32_t step_first(const struct nosa_run_options *options, size_t prompt)
{
    return options->trace_from >= 0 ? options->trace_from : (int32_t)prompt;
}

int32_t nosa_run_trace_rows(const struct nosa_run_options *options, size_t prompt, int32_t rows_max)
{
    if (!options->trace_selection)
        return 0;
    int32_t rows = rows_max / NOSA_BLOCK_TOKENS + 2; /* ends of blocks, and of the prompt */
    return step_first(options, prompt) < (int32_t)prompt || rows > rows_max ? rows_max : rows;
}

enum nosa_status nosa_run_trace_open(struct nosa_run_trace *trace,
                                     const struct nosa_run_options *options,
                                     const struct nosa_engine_info *info, size_t prompt,
                                     const struct nosa_trace_sink **sink, struct nosa_error *error)
{
    *trace = (struct nosa_run_trace){0};
    *sink = NULL;
    if (!options->trace_selection)
        return NOSA_OK;
    struct nosa_trace_info header = nosa_trace_info_of(info->config, info->attention);
    header.prompt_tokens = (int32_t)prompt;
    header.step_first = step_first(options, prompt);
    NOSA_TRY(nosa_trace_writer_open(&trace->writer, options->trace_selection, &header, error));
    trace->sink = (struct nosa_trace_sink){
        .step_first = header.step_first, .row = nosa_trace_writer_row, .context = &trace->writer};
    *sink = &trace->sink;
    return NOSA_OK;
}

enum nosa_status nosa_run_trace_close(struct nosa_run_trace *trace,
                                      const struct nosa_session *session, struct nosa_error *error)
{
    if (session)
        trace->writer.info.cached_tokens = nosa_session_cached(session);
    return nosa_trace_writer_close(&trace->writer, error);
}
