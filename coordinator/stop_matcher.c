#include "stop_matcher.h"

#include <stdlib.h>
#include <string.h>

static void compile(struct nosa_stop_string *string)
{
    uint32_t length = 0;
    string->failure[0] = 0;
    for (uint32_t i = 1; i < string->size; i++) {
        while (length > 0 && string->text[i] != string->text[length])
            length = string->failure[length - 1];
        length += string->text[i] == string->text[length];
        string->failure[i] = length;
    }
}

enum nosa_status nosa_stop_matcher_init(struct nosa_stop_matcher *matcher, char *const *texts,
                                        size_t count, struct nosa_error *error)
{
    *matcher = (struct nosa_stop_matcher){.found = -1};
    if (count == 0)
        return NOSA_OK;
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += strlen(texts[i]);
    matcher->strings = calloc(count, sizeof *matcher->strings);
    matcher->failures = calloc(bytes ? bytes : 1, sizeof *matcher->failures);
    if (!matcher->strings || !matcher->failures) {
        nosa_stop_matcher_free(matcher);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %zu stop strings", count);
    }
    matcher->count = count;
    uint32_t *failure = matcher->failures;
    for (size_t i = 0; i < count; i++) {
        matcher->strings[i] = (struct nosa_stop_string){
            .text = texts[i], .size = (uint32_t)strlen(texts[i]), .failure = failure};
        NOSA_ASSERT(matcher->strings[i].size > 0);
        failure += matcher->strings[i].size;
        compile(&matcher->strings[i]);
    }
    return NOSA_OK;
}

/* Moves every automaton by one byte; returns how much of the text's end must be held back. */
static uint32_t step(struct nosa_stop_matcher *matcher, char byte)
{
    uint32_t held = 0;
    uint32_t longest = 0;
    for (size_t i = 0; i < matcher->count; i++) {
        struct nosa_stop_string *string = &matcher->strings[i];
        uint32_t matched = string->matched;
        while (matched > 0 && string->text[matched] != byte)
            matched = string->failure[matched - 1];
        matched += string->text[matched] == byte;
        string->matched = matched;
        if (matched > held)
            held = matched;
        if (matched == string->size && matched > longest) {
            longest = matched;
            matcher->found = (int)i;
        }
    }
    return held;
}

enum nosa_status nosa_stop_matcher_push(struct nosa_stop_matcher *matcher, const char *text,
                                        size_t size, struct nosa_buffer *out, bool *found)
{
    *found = matcher->count > 0 && matcher->found >= 0;
    if (*found)
        return NOSA_OK;
    if (matcher->count == 0)
        return nosa_buffer_append(out, text, size);
    size_t before = matcher->held.size;
    uint32_t keep = (uint32_t)before;
    NOSA_TRY(nosa_buffer_append(&matcher->held, text, size));
    for (size_t i = 0; i < size && matcher->found < 0; i++) {
        keep = step(matcher, text[i]);
        if (matcher->found >= 0) {
            keep = matcher->strings[matcher->found].size;
            matcher->held.size = before + i + 1;
        }
    }
    size_t given = matcher->held.size - keep;
    NOSA_TRY(nosa_buffer_append(out, matcher->held.data, given));
    if (keep > 0)
        memmove(matcher->held.data, matcher->held.data + given, keep);
    matcher->held.size = keep;
    *found = matcher->found >= 0;
    return NOSA_OK;
}

enum nosa_status nosa_stop_matcher_finish(struct nosa_stop_matcher *matcher,
                                          struct nosa_buffer *out)
{
    enum nosa_status status = NOSA_OK;
    if (matcher->held.size > 0 && !nosa_stop_matcher_found(matcher))
        status = nosa_buffer_append(out, matcher->held.data, matcher->held.size);
    matcher->held.size = 0;
    return status;
}

const char *nosa_stop_matcher_found(const struct nosa_stop_matcher *matcher)
{
    return matcher->count > 0 && matcher->found >= 0 ? matcher->strings[matcher->found].text : NULL;
}

void nosa_stop_matcher_free(struct nosa_stop_matcher *matcher)
{
    free(matcher->strings);
    free(matcher->failures);
    nosa_buffer_free(&matcher->held);
    *matcher = (struct nosa_stop_matcher){.found = -1};
}
