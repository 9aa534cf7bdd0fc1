/* The input of nosa-run: a text, a file or token ids, as token ids. */
#ifndef NOSA_RUN_PROMPT_H
#define NOSA_RUN_PROMPT_H

#include "run/run_options.h"
#include "tokenizer/tokenizer.h"

/* Fills `tokens` with the ids of the prompt or of the text to score. `tokenizer` may be NULL for
 * --prompt-tokens only. Errors name the flag or file: not UTF-8, unreadable, empty, an id that is
 * no number. The caller frees `tokens`, on failure too. */
enum nosa_status nosa_run_read_prompt(const struct nosa_run_options *options,
                                      const struct nosa_tokenizer *tokenizer,
                                      struct nosa_tokens *tokens, struct nosa_error *error);

#endif
