/*
 * The output of one generation, as its client has it: token ids, the text that they became, and
 * whether it has ended. A function of the ids alone: a worker's batches, a replay on another worker
 * or a resumption through another coordinator give the same text at the same id. This is also all
 * that a replay needs: the ids here are what the next worker continues from. Not shared between
 * threads (the generation's mutex guards it).
 */
#ifndef NOSA_COORDINATOR_OUTPUT_H
#define NOSA_COORDINATOR_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"
#include "stop_matcher.h"
#include "tokenizer/tokenizer.h"

enum nosa_output_end {
    NOSA_OUTPUT_OPEN = 0,
    NOSA_OUTPUT_STOP = 1,   /* a stop string, a stop token or the end of text */
    NOSA_OUTPUT_LENGTH = 2, /* max_tokens */
};

/* Borrowed until the output is freed. */
struct nosa_output_options {
    const struct nosa_tokenizer *tokenizer; /* NULL: no text, and then no stop strings */
    const uint32_t *prompt;                 /* [prompt_count] */
    size_t prompt_count;
    const uint32_t *resume; /* [resume_count]: delivered before */
    size_t resume_count;
    char *const *stops; /* [stop_count] */
    size_t stop_count;
    const uint32_t *stop_ids; /* [stop_id_count] */
    size_t stop_id_count;
    const uint32_t *eos_ids; /* [eos_id_count]; NULL with 0 to go on past them */
    size_t eos_id_count;
    uint32_t max_tokens; /* at least 1; resumed ones count */
};

struct nosa_output {
    struct nosa_output_options options;
    struct nosa_detokenizer *detokenizer; /* owned */
    struct nosa_stop_matcher matcher;
    uint32_t *ids; /* owned, [count] */
    size_t count;
    size_t capacity;
    enum nosa_output_end end;
    struct nosa_buffer text;    /* of the last take, reset by the next */
    struct nosa_buffer scratch; /* of one token */
};

/*
 * Begins an output that already has the resumed ids, whose text was delivered. It may be ended
 * after that. NOSA_INVALID_ARGUMENT: resume_token_ids go on after their own end;
 * NOSA_OUT_OF_MEMORY. On error the output is empty.
 */
enum nosa_status nosa_output_init(struct nosa_output *output,
                                  const struct nosa_output_options *options,
                                  struct nosa_error *error);

void nosa_output_free(struct nosa_output *output);

/*
 * Takes ids whose first one has the index `first_index` in the whole output. Ids that are here
 * already are passed over, those after the end are dropped. *skipped and *taken say which part of
 * `ids` is new, and output->text what it added to the text (whole characters, no part of a stop
 * string). NOSA_CORRUPT: ids are missing before the first; NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_output_take(struct nosa_output *output, uint32_t first_index,
                                  const uint32_t *ids, size_t count, size_t *skipped, size_t *taken,
                                  struct nosa_error *error);

/* Ends an output that the worker ended; output->text is what was held back. Nothing if it has ended
 * already. */
enum nosa_status nosa_output_finish(struct nosa_output *output, enum nosa_output_end end,
                                    struct nosa_error *error);

#endif
