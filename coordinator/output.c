#include "output.h"

#include <stdlib.h>

/* Ids of the prompt that the first word and an unfinished character can depend on. */
#define CONTEXT_IDS 64

static bool contains(const uint32_t *ids, size_t count, uint32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static enum nosa_status append(struct nosa_output *output, uint32_t id)
{
    if (output->count == output->capacity) {
        size_t capacity = output->capacity ? 2 * output->capacity : 32;
        uint32_t *ids = realloc(output->ids, capacity * sizeof *ids);
        if (!ids)
            return NOSA_OUT_OF_MEMORY;
        output->ids = ids;
        output->capacity = capacity;
    }
    output->ids[output->count++] = id;
    return NOSA_OK;
}

/* Ends the text: what the detokenizer and the matcher hold back comes out. */
static enum nosa_status flush(struct nosa_output *output, struct nosa_error *error)
{
    bool found;
    nosa_buffer_reset(&output->scratch);
    if (output->detokenizer)
        NOSA_TRY(nosa_detokenizer_finish(output->detokenizer, &output->scratch, error));
    if (output->scratch.size > 0)
        NOSA_TRY(nosa_stop_matcher_push(&output->matcher, output->scratch.data,
                                        output->scratch.size, &output->text, &found));
    return nosa_stop_matcher_finish(&output->matcher, &output->text);
}

static enum nosa_status take_one(struct nosa_output *output, uint32_t id, struct nosa_error *error)
{
    const struct nosa_output_options *options = &output->options;
    NOSA_TRY(append(output, id));
    if (contains(options->stop_ids, options->stop_id_count, id) ||
        contains(options->eos_ids, options->eos_id_count, id)) {
        output->end = NOSA_OUTPUT_STOP;
        return flush(output, error);
    }
    bool found = false;
    if (output->detokenizer) {
        nosa_buffer_reset(&output->scratch);
        NOSA_TRY(nosa_detokenizer_push(output->detokenizer, (int32_t)id, &output->scratch, error));
        if (output->scratch.size > 0)
            NOSA_TRY(nosa_stop_matcher_push(&output->matcher, output->scratch.data,
                                            output->scratch.size, &output->text, &found));
    }
    if (found) {
        output->end = NOSA_OUTPUT_STOP;
        return NOSA_OK;
    }
    if (output->count >= options->max_tokens) {
        output->end = NOSA_OUTPUT_LENGTH;
        return flush(output, error);
    }
    return NOSA_OK;
}

static enum nosa_status open_detokenizer(struct nosa_output *output, struct nosa_error *error)
{
    const struct nosa_output_options *options = &output->options;
    int32_t context[CONTEXT_IDS];
    size_t count = options->prompt_count < CONTEXT_IDS ? options->prompt_count : CONTEXT_IDS;
    if (!options->tokenizer)
        return NOSA_OK;
    for (size_t i = 0; i < count; i++)
        context[i] = (int32_t)options->prompt[options->prompt_count - count + i];
    return nosa_detokenizer_create(options->tokenizer, context, count, &output->detokenizer, error);
}

enum nosa_status nosa_output_init(struct nosa_output *output,
                                  const struct nosa_output_options *options,
                                  struct nosa_error *error)
{
    NOSA_ASSERT(options->max_tokens >= 1);
    NOSA_ASSERT(options->tokenizer || options->stop_count == 0);
    *output = (struct nosa_output){.options = *options};
    enum nosa_status status =
        nosa_stop_matcher_init(&output->matcher, options->stops, options->stop_count, error);
    if (status == NOSA_OK)
        status = open_detokenizer(output, error);
    for (size_t i = 0; i < options->resume_count && status == NOSA_OK; i++) {
        /* More than max_tokens is complete, as exactly as many are. */
        if (output->end == NOSA_OUTPUT_STOP)
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                    "resume_token_ids[%zu]: the output ended before it", i);
        else if (output->end == NOSA_OUTPUT_OPEN)
            status = take_one(output, options->resume[i], error);
        else
            status = append(output, options->resume[i]);
    }
    nosa_buffer_reset(&output->text);
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory for the output");
    if (status != NOSA_OK)
        nosa_output_free(output);
    return status;
}

void nosa_output_free(struct nosa_output *output)
{
    nosa_detokenizer_free(output->detokenizer);
    nosa_stop_matcher_free(&output->matcher);
    free(output->ids);
    nosa_buffer_free(&output->text);
    nosa_buffer_free(&output->scratch);
    *output = (struct nosa_output){0};
}

enum nosa_status nosa_output_take(struct nosa_output *output, uint32_t first_index,
                                  const uint32_t *ids, size_t count, size_t *skipped, size_t *taken,
                                  struct nosa_error *error)
{
    nosa_buffer_reset(&output->text);
    *skipped = 0;
    *taken = 0;
    if (first_index > output->count)
        return nosa_error_set(error, NOSA_CORRUPT, "tokens %zu to %u are missing", output->count,
                              first_index - 1);
    size_t known = output->count - first_index;
    *skipped = known < count ? known : count;
    for (size_t i = *skipped; i < count && output->end == NOSA_OUTPUT_OPEN; i++) {
        enum nosa_status status = take_one(output, ids[i], error);
        if (status != NOSA_OK)
            return nosa_error_set(error, status, "no memory for the output");
        ++*taken;
    }
    return NOSA_OK;
}

enum nosa_status nosa_output_finish(struct nosa_output *output, enum nosa_output_end end,
                                    struct nosa_error *error)
{
    NOSA_ASSERT(end != NOSA_OUTPUT_OPEN);
    nosa_buffer_reset(&output->text);
    if (output->end != NOSA_OUTPUT_OPEN)
        return NOSA_OK;
    output->end = end;
    enum nosa_status status = flush(output, error);
    if (status != NOSA_OK)
        nosa_error_set(error, status, "no memory for the output");
    return status;
}
