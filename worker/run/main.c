/*
 * nosa-run: one prompt through the engine in one process, without a network.
 *
 * Exit codes: 0 done, or ended by SIGTERM; 1 failed while running; 2 something the caller gave is
 * wrong; 130 interrupted by Ctrl-C. What was generated until a signal is printed as always.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/npy.h"
#include "run/generate.h"
#include "run/prompt.h"
#include "run/report.h"
#include "run/selection_trace.h"

static volatile sig_atomic_t stop_requested; /* the signal's number */

static void request_stop(int signal_number)
{
    stop_requested = signal_number;
}

/* The first signal ends the run cleanly, a second one at once. */
static void install_signals(void)
{
    struct sigaction action = {.sa_handler = request_stop, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void show_progress(void *context, uint64_t bytes_done, uint64_t bytes_total)
{
    int *shown = context;
    int percent = bytes_total ? (int)(100.0 * (double)bytes_done / (double)bytes_total) : 100;
    percent = percent > 100 ? 100 : percent;
    if (percent == *shown)
        return;
    *shown = percent;
    fprintf(stderr, "\rloading %3d %%", percent);
}

/* Takes the progress off the terminal, whether loading ended or failed half-way. */
static void clear_progress(int shown)
{
    if (shown >= 0)
        fputs("\r             \r", stderr);
}

/* A prompt given as ids needs no tokenizer: without one there is just no text. */
static enum nosa_status open_tokenizer(const struct nosa_run_options *options,
                                       struct nosa_tokenizer **tokenizer, struct nosa_error *error)
{
    enum nosa_status status =
        nosa_tokenizer_open(options->engine.model_directory, tokenizer, error);
    if (status != NOSA_NOT_FOUND || !options->prompt_tokens)
        return status;
    nosa_error_clear(error);
    return NOSA_OK;
}

/* What the engine would refuse is refused before the weights are loaded. */
static enum nosa_status check_vocabulary(const struct nosa_tokens *prompt, uint32_t vocab,
                                         struct nosa_error *error)
{
    for (size_t i = 0; i < prompt->count; i++)
        if ((uint32_t)prompt->ids[i] >= vocab)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "token %d at position %zu is past the vocabulary of %u",
                                  prompt->ids[i], i, vocab);
    return NOSA_OK;
}

/* Tokens of context that the run needs, within the model's positions and --max-context. */
static enum nosa_status choose_context(const struct nosa_run_options *options,
                                       const struct nosa_model_config *config, size_t prompt,
                                       int32_t *context_max, struct nosa_error *error)
{
    int64_t most = config->max_positions;
    if (options->engine.context_max > most)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--max-context %d exceeds the model's %u positions",
                              options->engine.context_max, config->max_positions);
    if (options->engine.context_max > 0)
        most = options->engine.context_max;
    if ((int64_t)prompt > most)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "the prompt has %zu tokens, more than the context of %lld", prompt,
                              (long long)most);
    int64_t needed = (int64_t)prompt + (options->score_file ? 0 : options->max_tokens);
    *context_max = (int32_t)(options->engine.context_max > 0 || needed > most ? most : needed);
    return NOSA_OK;
}

static enum nosa_status open_engine(const struct nosa_run_options *options, int32_t context_max,
                                    size_t prompt, struct nosa_engine **engine,
                                    struct nosa_error *error)
{
    int shown = -1;
    bool terminal = isatty(STDERR_FILENO) && !options->json;
    struct nosa_engine_options engine_options;
    nosa_engine_flags_options(&options->engine, &engine_options);
    engine_options.context_max = context_max;
    if (engine_options.rows_max > context_max)
        engine_options.rows_max = context_max;
    engine_options.progress = terminal ? show_progress : NULL;
    engine_options.progress_context = &shown;
    engine_options.trace_rows_max = nosa_run_trace_rows(options, prompt, engine_options.rows_max);
    enum nosa_status status = nosa_engine_open(&engine_options, engine, error);
    clear_progress(shown);
    return status;
}

static enum nosa_status generate(const struct nosa_run_report *report, struct nosa_engine *engine,
                                 const struct nosa_tokenizer *tokenizer, struct nosa_error *error)
{
    struct nosa_generation generation;
    enum nosa_status status = nosa_run_generate(report->options, engine, tokenizer, report->prompt,
                                                &stop_requested, &generation, error);
    if (status == NOSA_OK && report->options->json) {
        status = nosa_report_generation_json(report, &generation, error);
    } else if (status == NOSA_OK) {
        bool written = putchar('\n') != EOF;
        if (fflush(stdout) != 0 || !written)
            status = nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write");
        else
            nosa_report_generation_line(report, &generation);
    }
    if (status == NOSA_OK && generation.finish_reason == NOSA_FINISH_CANCELLED)
        status = NOSA_CANCELLED;
    nosa_generation_free(&generation);
    return status;
}

static enum nosa_status score(const struct nosa_run_report *report, struct nosa_engine *engine,
                              struct nosa_error *error)
{
    float *scores;
    NOSA_TRY(
        nosa_run_score(report->options, engine, report->prompt, &stop_requested, &scores, error));
    enum nosa_status status = nosa_report_score(report, scores, error);
    free(scores);
    return status;
}

static enum nosa_status run(const struct nosa_run_options *options, struct nosa_error *error)
{
    uint64_t start = nosa_monotonic_ns();
    struct nosa_model_config config;
    struct nosa_tokenizer *tokenizer = NULL;
    struct nosa_tokens prompt = {0};
    struct nosa_engine *engine = NULL;
    int32_t context_max = 0;
    enum nosa_status status =
        nosa_model_config_load(options->engine.model_directory, &config, error);
    if (status == NOSA_OK)
        status = open_tokenizer(options, &tokenizer, error);
    if (status == NOSA_OK)
        status = nosa_run_read_prompt(options, tokenizer, &prompt, error);
    install_signals(); /* not before: a wait for the prompt just ends with the program */
    if (status == NOSA_OK)
        status = check_vocabulary(&prompt, config.vocab, error);
    if (status == NOSA_OK)
        status = choose_context(options, &config, prompt.count, &context_max, error);
    if (status == NOSA_OK && options->dump_logits)
        status = nosa_npy_check(options->dump_logits, error);
    if (status == NOSA_OK && options->trace_selection)
        status = nosa_npy_check(options->trace_selection, error);
    if (status == NOSA_OK)
        status = open_engine(options, context_max, prompt.count, &engine, error);
    if (status == NOSA_OK) {
        struct nosa_run_report report = {
            .options = options,
            .info = nosa_engine_info(engine),
            .prompt = &prompt,
            .load_s = nosa_seconds_between(start, nosa_monotonic_ns()),
        };
        status = options->score_file ? score(&report, engine, error)
                                     : generate(&report, engine, tokenizer, error);
    }
    nosa_engine_close(engine);
    nosa_tokens_free(&prompt);
    nosa_tokenizer_close(tokenizer);
    return status;
}

int main(int argc, char **argv)
{
    struct nosa_error error = {0};
    struct nosa_run_options options;
    enum nosa_run_action action;
    enum nosa_status status = nosa_run_options_parse(argc, argv, &options, &action, &error);
    if (status == NOSA_OK && action == NOSA_RUN_PRINTED)
        return 0;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a KV file past RLIMIT_FSIZE is a write that fails */
    if (status == NOSA_OK) {
        status = run(&options, &error);
        nosa_run_options_free(&options);
    }
    if (status != NOSA_OK && error.text[0])
        fprintf(stderr, "nosa-run: %s\n", error.text);
    if (status == NOSA_CANCELLED)
        return stop_requested == SIGTERM ? 0 : 130;
    return nosa_status_exit_code(status);
}
