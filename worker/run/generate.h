/* The work of nosa-run: generating from a prompt, or scoring a text, on an open engine. */
#ifndef NOSA_RUN_GENERATE_H
#define NOSA_RUN_GENERATE_H

#include <signal.h>

#include "base/buffer.h"
#include "run/run_options.h"
#include "tokenizer/tokenizer.h"

enum nosa_finish_reason { NOSA_FINISH_STOP, NOSA_FINISH_LENGTH, NOSA_FINISH_CANCELLED };

struct nosa_generation {
    enum nosa_finish_reason finish_reason;
    uint32_t *tokens; /* [n_tokens], owned */
    float *logprobs;  /* [n_tokens], owned */
    int32_t n_tokens;
    int32_t cached_prompt_tokens;
    int32_t prompt_computed; /* less than the prompt when the run was stopped before its end */
    struct nosa_session_kv kv;
    struct nosa_engine_kv_traffic traffic;
    double stall_s;          /* waited for KV that was being read */
    struct nosa_buffer text; /* owned */
    bool sampled;            /* not greedy: the seed mattered */
    double prefill_s;
    double ttft_s;   /* from the first step to the first token, which is shown by then */
    double decode_s; /* of all tokens but the first */
};

/* Generates up to options->max_tokens tokens and, without --json, prints text to stdout as it
 * comes. `stop` is set by a signal handler and ends the run with what there is. `tokenizer` may be
 * NULL: no text then. The caller frees the generation, on failure too. */
enum nosa_status nosa_run_generate(const struct nosa_run_options *options,
                                   struct nosa_engine *engine,
                                   const struct nosa_tokenizer *tokenizer,
                                   const struct nosa_tokens *prompt,
                                   const volatile sig_atomic_t *stop, struct nosa_generation *out,
                                   struct nosa_error *error);
void nosa_generation_free(struct nosa_generation *generation);

/* Log probabilities of all tokens but the first: *scores [prompt->count] is owned by the caller,
 * its first entry is 0. */
enum nosa_status nosa_run_score(const struct nosa_run_options *options, struct nosa_engine *engine,
                                const struct nosa_tokens *prompt, const volatile sig_atomic_t *stop,
                                float **scores, struct nosa_error *error);

#endif
