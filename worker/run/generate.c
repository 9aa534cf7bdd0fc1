#include "run/generate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/npy.h"
#include "run/report.h"
#include "run/selection_trace.h"

#define POLL_MS  20    /* between looks at whether to stop */
#define FLUSH_MS 60000 /* for the NVMe tier at the end */

struct run {
    const struct nosa_run_options *options;
    struct nosa_engine *engine;
    const struct nosa_engine_info *info;
    const volatile sig_atomic_t *stop;
    struct nosa_session *session;         /* owned */
    struct nosa_detokenizer *detokenizer; /* owned, or NULL */
    struct nosa_npy_writer logits;        /* open with --dump-logits */
    struct nosa_run_trace trace;          /* open with --trace-selection */
    struct nosa_buffer fresh;             /* text of the last token */
    int32_t max_tokens;                   /* that the context has room for */
    struct nosa_generation *out;
};

static struct nosa_sampling model_sampling(const struct nosa_generation_config *generation,
                                           uint64_t seed)
{
    if (!generation->do_sample)
        return (struct nosa_sampling){.seed = seed};
    return (struct nosa_sampling){
        .temperature = (float)generation->temperature,
        .top_p = (float)generation->top_p,
        .top_k = (int32_t)generation->top_k,
        .min_p = (float)generation->min_p,
        .repetition_penalty = (float)generation->repetition_penalty,
        .seed = seed,
    };
}

static enum nosa_status open_run(struct run *run, const struct nosa_tokenizer *tokenizer,
                                 const struct nosa_tokens *prompt, struct nosa_error *error)
{
    const struct nosa_run_options *options = run->options;
    int32_t room = run->info->context_max - (int32_t)prompt->count;
    run->max_tokens = options->max_tokens < room ? options->max_tokens : room;
    struct nosa_session_options session = {
        .tokens = (const uint32_t *)prompt->ids,
        .n_tokens = (int32_t)prompt->count,
        .prompt_length = (int32_t)prompt->count,
        .sampling = options->has_sampling
                        ? options->sampling
                        : model_sampling(run->info->generation, options->sampling.seed),
        .keep_logits = options->dump_logits != NULL,
    };
    NOSA_TRY(
        nosa_run_trace_open(&run->trace, options, run->info, prompt->count, &session.trace, error));
    run->out->sampled = session.sampling.temperature > 0;
    NOSA_TRY(nosa_session_open(run->engine, &session, &run->session, error));
    run->out->cached_prompt_tokens = nosa_session_cached(run->session);
    if (tokenizer)
        NOSA_TRY(nosa_detokenizer_create(tokenizer, prompt->ids, prompt->count, &run->detokenizer,
                                         error));
    if (options->dump_logits)
        NOSA_TRY(
            nosa_npy_open(&run->logits, options->dump_logits, run->info->config->vocab, error));
    size_t tokens = (size_t)run->max_tokens + 1; /* never an empty allocation */
    run->out->tokens = calloc(tokens, sizeof *run->out->tokens);
    run->out->logprobs = calloc(tokens, sizeof *run->out->logprobs);
    if (!run->out->tokens || !run->out->logprobs)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %zu tokens", tokens);
    return NOSA_OK;
}

/* Takes over what became whole characters, and shows it. */
static enum nosa_status deliver_text(struct run *run, struct nosa_error *error)
{
    NOSA_TRY(nosa_buffer_append(&run->out->text, run->fresh.data, run->fresh.size));
    if (!run->options->json && run->fresh.size > 0) {
        bool written = fwrite(run->fresh.data, 1, run->fresh.size, stdout) == run->fresh.size;
        if (fflush(stdout) != 0 || !written)
            return nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write");
    }
    nosa_buffer_reset(&run->fresh);
    return NOSA_OK;
}

/* How far a prompt of several steps is, on a terminal; at its end the line is cleared. */
static void show_prefill(const struct nosa_run_options *options, int32_t computed, int32_t total)
{
    if (options->json || total <= options->engine.prefill_chunk || !isatty(STDERR_FILENO))
        return;
    if (computed < total)
        fprintf(stderr, "\rprompt: %d of %d tokens", computed, total);
    else
        fprintf(stderr, "\r%40s\r", "");
}

/* Computes until the next token is drawn; *sampled is false when the run was stopped before. */
static enum nosa_status next_token(struct run *run, struct nosa_step_item *item, bool *sampled,
                                   struct nosa_error *error)
{
    *sampled = false;
    while (!*sampled && !*run->stop) {
        int32_t left = nosa_session_length(run->session) - nosa_session_computed(run->session);
        *item = (struct nosa_step_item){.session = run->session,
                                        .n_tokens = left < run->options->engine.prefill_chunk
                                                        ? left
                                                        : run->options->engine.prefill_chunk};
        if (run->out->n_tokens == 0)
            show_prefill(run->options, nosa_session_computed(run->session),
                         nosa_session_length(run->session));
        NOSA_TRY(nosa_engine_step(run->engine, item, 1, error));
        *sampled = item->sampled;
    }
    return NOSA_OK;
}

/* A token that ends the text is reported as an id, never as text. */
static enum nosa_status take_token(struct run *run, const struct nosa_sample_result *result,
                                   bool ends, struct nosa_error *error)
{
    struct nosa_generation *out = run->out;
    if (!isfinite(result->logprob))
        return nosa_error_set(error, NOSA_CORRUPT,
                              "%s: its logits after %d generated tokens are not finite numbers",
                              run->options->engine.model_directory, out->n_tokens);
    out->tokens[out->n_tokens] = (uint32_t)result->token;
    out->logprobs[out->n_tokens++] = result->logprob;
    if (run->options->dump_logits)
        NOSA_TRY(nosa_npy_append(&run->logits, nosa_session_logits(run->session), 1, error));
    if (!run->detokenizer || ends)
        return NOSA_OK;
    NOSA_TRY(nosa_detokenizer_push(run->detokenizer, result->token, &run->fresh, error));
    return deliver_text(run, error);
}

/* Waits until what is known of the prompt has been read. */
static enum nosa_status wait_ready(struct run *run, struct nosa_error *error)
{
    if (nosa_session_ready(run->session))
        return NOSA_OK;
    uint64_t start = nosa_monotonic_ns();
    while (!nosa_session_ready(run->session) && !*run->stop)
        NOSA_TRY(nosa_engine_poll(run->engine, POLL_MS, error));
    run->out->cached_prompt_tokens = nosa_session_cached(run->session);
    run->out->stall_s = nosa_seconds_between(start, nosa_monotonic_ns());
    return NOSA_OK;
}

static enum nosa_status generate_tokens(struct run *run, struct nosa_error *error)
{
    struct nosa_generation *out = run->out;
    uint64_t start = nosa_monotonic_ns();
    NOSA_TRY(wait_ready(run, error));
    uint64_t first_token = start;
    out->finish_reason = NOSA_FINISH_LENGTH;
    while (out->n_tokens < run->max_tokens) {
        struct nosa_step_item item;
        bool sampled;
        NOSA_TRY(next_token(run, &item, &sampled, error));
        if (out->n_tokens == 0) {
            out->prefill_s = nosa_seconds_between(start, nosa_monotonic_ns());
            out->prompt_computed = nosa_session_computed(run->session);
            show_prefill(run->options, INT32_MAX, nosa_session_length(run->session));
        }
        if (!sampled) {
            out->finish_reason = NOSA_FINISH_CANCELLED;
            break;
        }
        bool ends = !run->options->ignore_eos &&
                    nosa_model_config_is_eos(run->info->config, item.result.token);
        NOSA_TRY(take_token(run, &item.result, ends, error));
        if (out->n_tokens == 1) {
            first_token = nosa_monotonic_ns();
            out->ttft_s = nosa_seconds_between(start, first_token);
        }
        if (ends) {
            out->finish_reason = NOSA_FINISH_STOP;
            break;
        }
    }
    if (out->n_tokens > 0)
        out->decode_s = nosa_seconds_between(first_token, nosa_monotonic_ns());
    if (!run->detokenizer)
        return NOSA_OK;
    NOSA_TRY(nosa_detokenizer_finish(run->detokenizer, &run->fresh, error));
    return deliver_text(run, error);
}

/* What the NVMe tier has not taken by now is computed again by the next run. */
static void keep_prefix(struct nosa_engine *engine)
{
    struct nosa_error error = {0};
    if (nosa_engine_flush(engine, FLUSH_MS, &error) != NOSA_OK)
        nosa_log(NOSA_LOG_WARN, "run", "%s", error.text);
}

enum nosa_status nosa_run_generate(const struct nosa_run_options *options,
                                   struct nosa_engine *engine,
                                   const struct nosa_tokenizer *tokenizer,
                                   const struct nosa_tokens *prompt,
                                   const volatile sig_atomic_t *stop, struct nosa_generation *out,
                                   struct nosa_error *error)
{
    *out = (struct nosa_generation){0};
    struct run run = {.options = options,
                      .engine = engine,
                      .info = nosa_engine_info(engine),
                      .stop = stop,
                      .out = out};
    enum nosa_status status = open_run(&run, tokenizer, prompt, error);
    if (status == NOSA_OK) {
        nosa_report_start(options, run.info, tokenizer != NULL);
        status = generate_tokens(&run, error);
    }
    enum nosa_status closed = nosa_npy_close(&run.logits, status == NOSA_OK ? error : NULL);
    enum nosa_status traced =
        nosa_run_trace_close(&run.trace, run.session, status == NOSA_OK ? error : NULL);
    closed = closed != NOSA_OK ? closed : traced;
    if (run.session)
        nosa_session_kv(run.session, &out->kv);
    nosa_detokenizer_free(run.detokenizer);
    nosa_session_close(run.session);
    keep_prefix(engine);
    nosa_engine_kv_traffic(engine, &out->traffic);
    out->stall_s += (double)out->traffic.nvme_stall_ns / 1e9;
    nosa_buffer_free(&run.fresh);
    return status != NOSA_OK ? status : closed;
}

void nosa_generation_free(struct nosa_generation *generation)
{
    free(generation->tokens);
    free(generation->logprobs);
    nosa_buffer_free(&generation->text);
    *generation = (struct nosa_generation){0};
}

enum nosa_status nosa_run_score(const struct nosa_run_options *options, struct nosa_engine *engine,
                                const struct nosa_tokens *prompt, const volatile sig_atomic_t *stop,
                                float **scores, struct nosa_error *error)
{
    *scores = NULL;
    struct nosa_session_options session_options = {
        .tokens = (const uint32_t *)prompt->ids,
        .n_tokens = (int32_t)prompt->count,
        .prompt_length = (int32_t)prompt->count,
        .score = true,
    };
    struct nosa_session *session = NULL;
    struct nosa_run_trace trace;
    enum nosa_status status = nosa_run_trace_open(&trace, options, nosa_engine_info(engine),
                                                  prompt->count, &session_options.trace, error);
    if (status == NOSA_OK)
        status = nosa_session_open(engine, &session_options, &session, error);
    if (status == NOSA_OK)
        nosa_report_start(options, nosa_engine_info(engine), true);
    int32_t left = 0;
    while (status == NOSA_OK &&
           (left = nosa_session_length(session) - nosa_session_computed(session)) > 0) {
        struct nosa_step_item item = {.session = session,
                                      .n_tokens = left < options->engine.prefill_chunk
                                                      ? left
                                                      : options->engine.prefill_chunk};
        show_prefill(options, nosa_session_computed(session), nosa_session_length(session));
        status =
            *stop ? nosa_error_set(error, NOSA_CANCELLED, "interrupted with %d tokens left", left)
                  : nosa_engine_step(engine, &item, 1, error);
    }
    show_prefill(options, INT32_MAX, (int32_t)prompt->count);
    enum nosa_status traced =
        nosa_run_trace_close(&trace, session, status == NOSA_OK ? error : NULL);
    status = status != NOSA_OK ? status : traced;
    if (status == NOSA_OK) {
        *scores = malloc(sizeof **scores * prompt->count);
        if (*scores)
            memcpy(*scores, nosa_session_scores(session), sizeof **scores * prompt->count);
        else
            status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %zu scores",
                                    prompt->count);
    }
    nosa_session_close(session);
    return status;
}
