/*
 * Pre-tokenizers: the text becomes words, which merging never crosses. A step either splits the
 * words, which are ranges of one text, or rewrites that text; see tokenizer_internal.h.
 */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

#define WHAT "pre_tokenizer"

/* GPT-2's expression, which ByteLevel with use_regex splits by. */
static const char byte_level_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- loading ---- */

/* A new step; NULL and an error where there are too many. */
static struct nosa_pretokenizer_step *next_step(struct nosa_pretokenizer *pretokenizer,
                                                enum nosa_pretokenizer_kind kind,
                                                struct nosa_error *error)
{
    if (pretokenizer->count == STEPS_MAX) {
        nosa_error_set(error, NOSA_UNSUPPORTED, WHAT ": more than %d steps", STEPS_MAX);
        return NULL;
    }
    struct nosa_pretokenizer_step *step = &pretokenizer->steps[pretokenizer->count++];
    step->kind = kind;
    return step;
}

static enum nosa_status load_byte_level(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                        struct nosa_error *error)
{
    bool prefix_space;
    bool use_regex;
    NOSA_TRY(
        nosa_member_bool(json, WHAT " ByteLevel", "add_prefix_space", true, &prefix_space, error));
    NOSA_TRY(nosa_member_bool(json, WHAT " ByteLevel", "use_regex", true, &use_regex, error));
    if (prefix_space && next_step(pretokenizer, PRETOKENIZER_PREFIX_SPACE, error) == NULL)
        return NOSA_UNSUPPORTED;
    if (use_regex) {
        struct nosa_pretokenizer_step *step = next_step(pretokenizer, PRETOKENIZER_SPLIT, error);
        if (step == NULL)
            return NOSA_UNSUPPORTED;
        step->behavior = SPLIT_ISOLATED;
        NOSA_TRY(nosa_regex_compile(&step->pattern, byte_level_pattern,
                                    sizeof byte_level_pattern - 1, error));
    }
    if (next_step(pretokenizer, PRETOKENIZER_BYTE_LEVEL, error) == NULL)
        return NOSA_UNSUPPORTED;
    return NOSA_OK;
}

static enum nosa_status load_behavior(const json_t *json, const char *what,
                                      enum nosa_split_behavior *behavior, struct nosa_error *error)
{
    static const char *const names[] = {
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *name = json_string_value(json_object_get(json, "behavior"));
    for (size_t i = 0; name != NULL && i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], name) == 0) {
            *behavior = (enum nosa_split_behavior)i;
            return NOSA_OK;
        }
    }
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: \"behavior\" is missing or unknown",
                          what);
}

static enum nosa_status load_split(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                   struct nosa_error *error)
{
    struct nosa_pretokenizer_step *step = next_step(pretokenizer, PRETOKENIZER_SPLIT, error);
    if (step == NULL)
        return NOSA_UNSUPPORTED;
    NOSA_TRY(load_behavior(json, WHAT " Split", &step->behavior, error));
    NOSA_TRY(nosa_member_bool(json, WHAT " Split", "invert", false, &step->invert, error));
    return nosa_member_pattern(json, WHAT " Split", &step->pattern, error);
}

/* The types that split by a class of characters; false for any other type. */
static bool find_class(const char *type, enum nosa_split_class *split_class)
{
    static const char *const types[] = {
        [CLASS_SPACE] = "WhitespaceSplit",
        [CLASS_NUMERIC] = "Digits",
        [CLASS_PUNCTUATION] = "Punctuation",
        [CLASS_WORDS] = "Whitespace",
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i], type) == 0) {
            *split_class = (enum nosa_split_class)i;
            return true;
        }
    }
    return false;
}

static enum nosa_status load_class(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                   enum nosa_split_class split_class, struct nosa_error *error)
{
    struct nosa_pretokenizer_step *step = next_step(pretokenizer, PRETOKENIZER_CLASS, error);
    bool individual;
    if (step == NULL)
        return NOSA_UNSUPPORTED;
    step->split_class = split_class;
    step->behavior = SPLIT_REMOVED;
    switch (split_class) {
    case CLASS_SPACE:
    case CLASS_WORDS: break;
    case CLASS_PUNCTUATION:
        step->behavior = SPLIT_ISOLATED;
        if (json_object_get(json, "behavior") != NULL)
            return load_behavior(json, WHAT " Punctuation", &step->behavior, error);
        break;
    case CLASS_NUMERIC:
        NOSA_TRY(
            nosa_member_bool(json, WHAT " Digits", "individual_digits", false, &individual, error));
        step->behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        break;
    }
    return NOSA_OK;
}

static enum nosa_status load_prepend_scheme(struct nosa_pretokenizer_step *step, const json_t *json,
                                            struct nosa_error *error)
{
    const json_t *scheme = json_object_get(json, "prepend_scheme");
    const char *name = scheme == NULL ? "always" : json_string_value(scheme);
    bool prefix_space;
    NOSA_TRY(
        nosa_member_bool(json, WHAT " Metaspace", "add_prefix_space", true, &prefix_space, error));
    if (name != NULL && strcmp(name, "always") == 0)
        step->prepend = PREPEND_ALWAYS;
    else if (name != NULL && strcmp(name, "first") == 0)
        step->prepend = PREPEND_FIRST;
    else if (name != NULL && strcmp(name, "never") == 0)
        step->prepend = PREPEND_NEVER;
    else
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              WHAT " Metaspace: \"prepend_scheme\" is unknown");
    if (!prefix_space && scheme != NULL && step->prepend != PREPEND_NEVER)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              WHAT " Metaspace: add_prefix_space contradicts prepend_scheme");
    if (!prefix_space)
        step->prepend = PREPEND_NEVER;
    return NOSA_OK;
}

static enum nosa_status load_metaspace(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                       struct nosa_error *error)
{
    struct nosa_pretokenizer_step *step = next_step(pretokenizer, PRETOKENIZER_METASPACE, error);
    if (step == NULL)
        return NOSA_UNSUPPORTED;
    const json_t *replacement = json_object_get(json, "replacement");
    const char *text = json_string_value(replacement);
    size_t size = json_string_length(replacement);
    uint32_t code_point;
    if (text == NULL || size == 0 || nosa_unicode_next(text, size, 0, &code_point) != size)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              WHAT " Metaspace: \"replacement\" is not one character");
    memcpy(step->replacement, text, size);
    step->replacement_size = size;
    NOSA_TRY(
        nosa_member_bool(json, WHAT " Metaspace", "split", true, &step->metaspace_split, error));
    return load_prepend_scheme(step, json, error);
}

static enum nosa_status load_delimiter(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                       struct nosa_error *error)
{
    const json_t *delimiter = json_object_get(json, "delimiter");
    if (!json_is_string(delimiter))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              WHAT " CharDelimiterSplit: \"delimiter\" is not a string");
    struct nosa_pretokenizer_step *step = next_step(pretokenizer, PRETOKENIZER_SPLIT, error);
    if (step == NULL)
        return NOSA_UNSUPPORTED;
    step->behavior = SPLIT_REMOVED;
    return nosa_regex_literal(&step->pattern, json_string_value(delimiter),
                              json_string_length(delimiter), error);
}

static enum nosa_status load_step(void *target, const json_t *json, const char *type,
                                  struct nosa_error *error)
{
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(target, json, error);
    if (strcmp(type, "Split") == 0)
        return load_split(target, json, error);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(target, json, error);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return load_delimiter(target, json, error);
    enum nosa_split_class split_class;
    if (find_class(type, &split_class))
        return load_class(target, json, split_class, error);
    return nosa_error_set(error, NOSA_UNSUPPORTED, WHAT " '%.60s' is not supported", type);
}

enum nosa_status nosa_pretokenizer_load(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                        struct nosa_error *error)
{
    return nosa_member_sequence(json, WHAT, "pretokenizers", load_step, pretokenizer, error);
}

void nosa_pretokenizer_free(struct nosa_pretokenizer *pretokenizer)
{
    for (size_t i = 0; i < pretokenizer->count; i++)
        nosa_regex_free(&pretokenizer->steps[i].pattern);
}

/* ---- splitting ---- */

static enum nosa_status add_word(struct nosa_words *words, size_t start, size_t size)
{
    if (words->count == words->capacity) {
        size_t capacity = words->capacity * 2 + 64;
        struct nosa_word *items = realloc(words->items, capacity * sizeof *items);
        if (items == NULL)
            return NOSA_OUT_OF_MEMORY;
        words->items = items;
        words->capacity = capacity;
    }
    words->items[words->count++] = (struct nosa_word){.start = start, .size = size};
    return NOSA_OK;
}

/* Receives the parts of one word from left to right and joins them as the behaviour says. */
struct splitter {
    struct nosa_words *out;
    enum nosa_split_behavior behavior;
    size_t open_start; /* the part that may still grow */
    size_t open_end;
    bool has_open;
    bool last_matched; /* of the part before */
};

static enum nosa_status flush_part(struct splitter *s)
{
    enum nosa_status status = NOSA_OK;
    if (s->has_open && s->open_end > s->open_start)
        status = add_word(s->out, s->open_start, s->open_end - s->open_start);
    s->has_open = false;
    return status;
}

static enum nosa_status add_part(struct splitter *s, size_t start, size_t end, bool matched)
{
    bool joins = false;
    switch (s->behavior) {
    case SPLIT_REMOVED:
    case SPLIT_ISOLATED: break;
    case SPLIT_CONTIGUOUS: joins = matched == s->last_matched; break;
    case SPLIT_MERGED_WITH_PREVIOUS: joins = matched && !s->last_matched; break;
    case SPLIT_MERGED_WITH_NEXT: joins = s->last_matched && !matched; break;
    }
    s->last_matched = matched;
    if (joins && s->has_open) {
        s->open_end = end;
        return NOSA_OK;
    }
    NOSA_TRY(flush_part(s));
    if (s->behavior == SPLIT_REMOVED && matched)
        return NOSA_OK;
    s->has_open = true;
    s->open_start = start;
    s->open_end = end;
    return NOSA_OK;
}

static enum nosa_status split_by_pattern(const struct nosa_pretokenizer_step *step,
                                         struct nosa_encoding *encoding, struct splitter *splitter,
                                         struct nosa_word word, struct nosa_error *error)
{
    const char *text = encoding->word_text.data + word.start;
    struct nosa_match_iterator it = nosa_regex_matches(&step->pattern, text, word.size);
    struct nosa_range match;
    bool found;
    size_t done = 0;
    NOSA_TRY(nosa_regex_next(&it, &encoding->regex, &match, &found, error));
    while (found) {
        size_t start = word.start + match.start;
        if (match.start > done)
            NOSA_TRY(add_part(splitter, word.start + done, start, step->invert));
        NOSA_TRY(add_part(splitter, start, word.start + match.end, !step->invert));
        done = match.end;
        NOSA_TRY(nosa_regex_next(&it, &encoding->regex, &match, &found, error));
    }
    if (done < word.size)
        NOSA_TRY(add_part(splitter, word.start + done, word.start + word.size, step->invert));
    return flush_part(splitter);
}

/* 0: removed; otherwise characters of one number and side stay together (CLASS_WORDS). */
static int word_class(uint32_t code_point)
{
    if (nosa_unicode_is_word(code_point))
        return 1;
    return nosa_unicode_is_space(code_point) ? 0 : 2;
}

static bool is_in_class(enum nosa_split_class split_class, uint32_t code_point)
{
    switch (split_class) {
    case CLASS_SPACE: return nosa_unicode_is_space(code_point);
    case CLASS_NUMERIC: return nosa_unicode_is_numeric(code_point);
    case CLASS_PUNCTUATION: return nosa_unicode_is_punctuation(code_point);
    case CLASS_WORDS: break;
    }
    return false;
}

/* Runs of word characters and runs of other visible ones; spaces go. */
static enum nosa_status split_words(const char *text, struct splitter *splitter,
                                    struct nosa_word word)
{
    size_t start = 0;
    int run = 0;
    size_t length;
    for (size_t at = 0; at < word.size; at += length) {
        uint32_t code_point;
        length = nosa_unicode_next(text + word.start, word.size, at, &code_point);
        int next = word_class(code_point);
        if (next == run)
            continue;
        if (run != 0)
            NOSA_TRY(add_word(splitter->out, word.start + start, at - start));
        run = next;
        start = at;
    }
    return run == 0 ? NOSA_OK : add_word(splitter->out, word.start + start, word.size - start);
}

/* Each character of the class is a match of its own; runs of others are one part. */
static enum nosa_status split_by_class(const struct nosa_pretokenizer_step *step, const char *text,
                                       struct splitter *splitter, struct nosa_word word)
{
    if (step->split_class == CLASS_WORDS)
        return split_words(text, splitter, word);
    size_t done = 0;
    size_t length;
    for (size_t at = 0; at < word.size; at += length) {
        uint32_t code_point;
        length = nosa_unicode_next(text + word.start, word.size, at, &code_point);
        if (!is_in_class(step->split_class, code_point))
            continue;
        if (at > done)
            NOSA_TRY(add_part(splitter, word.start + done, word.start + at, false));
        NOSA_TRY(add_part(splitter, word.start + at, word.start + at + length, true));
        done = at + length;
    }
    if (done < word.size)
        NOSA_TRY(add_part(splitter, word.start + done, word.start + word.size, false));
    return flush_part(splitter);
}

static enum nosa_status split_step(const struct nosa_pretokenizer_step *step,
                                   struct nosa_encoding *encoding, struct nosa_error *error)
{
    struct nosa_words *in = &encoding->words;
    struct nosa_words *out = &encoding->swap_words;
    out->count = 0;
    for (size_t i = 0; i < in->count; i++) {
        struct splitter splitter = {.out = out, .behavior = step->behavior};
        if (step->kind == PRETOKENIZER_SPLIT)
            NOSA_TRY(split_by_pattern(step, encoding, &splitter, in->items[i], error));
        else
            NOSA_TRY(split_by_class(step, encoding->word_text.data, &splitter, in->items[i]));
    }
    struct nosa_words swap = *in;
    *in = *out;
    *out = swap;
    return NOSA_OK;
}

/* ---- rewriting ---- */

static bool starts_with(const char *text, size_t size, const char *prefix, size_t prefix_size)
{
    return size >= prefix_size && memcmp(text, prefix, prefix_size) == 0;
}

static enum nosa_status prefix_word(const char *word, size_t size, struct nosa_buffer *out)
{
    if (!starts_with(word, size, " ", 1))
        NOSA_TRY(nosa_buffer_append(out, " ", 1));
    return nosa_buffer_append(out, word, size);
}

static enum nosa_status metaspace_word(const struct nosa_pretokenizer_step *step, const char *word,
                                       size_t size, bool first, struct nosa_buffer *out)
{
    bool marked = starts_with(word, size, " ", 1) ||
                  starts_with(word, size, step->replacement, step->replacement_size);
    bool prepend = step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && first);
    if (!marked && prepend)
        NOSA_TRY(nosa_buffer_append(out, step->replacement, step->replacement_size));
    for (size_t i = 0; i < size;) {
        const char *space = memchr(word + i, ' ', size - i);
        size_t end = space == NULL ? size : (size_t)(space - word);
        NOSA_TRY(nosa_buffer_append(out, word + i, end - i));
        if (space != NULL)
            NOSA_TRY(nosa_buffer_append(out, step->replacement, step->replacement_size));
        i = end + 1;
    }
    return NOSA_OK;
}

/* Adds the words of a rewritten word: a Metaspace may split before each mark. */
static enum nosa_status add_rewritten(const struct nosa_pretokenizer_step *step,
                                      struct nosa_words *words, const struct nosa_buffer *text,
                                      size_t start)
{
    size_t size = text->size - start;
    if (step->kind != PRETOKENIZER_METASPACE || !step->metaspace_split)
        return add_word(words, start, size);
    size_t done = start;
    for (size_t at = start; at < text->size;) {
        const char *mark =
            memmem(text->data + at, text->size - at, step->replacement, step->replacement_size);
        if (mark == NULL)
            break;
        size_t next = (size_t)(mark - text->data);
        if (next > done)
            NOSA_TRY(add_word(words, done, next - done));
        done = next;
        at = next + step->replacement_size;
    }
    return done < text->size ? add_word(words, done, text->size - done) : NOSA_OK;
}

static enum nosa_status rewrite_step(const struct nosa_pretokenizer_step *step,
                                     struct nosa_encoding *encoding, bool at_start)
{
    struct nosa_words *in = &encoding->words;
    struct nosa_words *out = &encoding->swap_words;
    struct nosa_buffer *text = &encoding->swap;
    out->count = 0;
    nosa_buffer_reset(text);
    for (size_t i = 0; i < in->count; i++) {
        const char *word = encoding->word_text.data + in->items[i].start;
        size_t size = in->items[i].size;
        size_t start = text->size;
        if (step->kind == PRETOKENIZER_BYTE_LEVEL)
            NOSA_TRY(nosa_bytes_to_alphabet(word, size, text));
        else if (step->kind == PRETOKENIZER_PREFIX_SPACE)
            NOSA_TRY(prefix_word(word, size, text));
        else
            NOSA_TRY(metaspace_word(step, word, size, at_start && in->items[i].start == 0, text));
        NOSA_TRY(add_rewritten(step, out, text, start));
    }
    struct nosa_words swap_words = *in;
    *in = *out;
    *out = swap_words;
    struct nosa_buffer swap = encoding->word_text;
    encoding->word_text = encoding->swap;
    encoding->swap = swap;
    return NOSA_OK;
}

enum nosa_status nosa_pretokenizer_apply(const struct nosa_pretokenizer *pretokenizer,
                                         struct nosa_encoding *encoding, const char *text,
                                         size_t size, bool at_start, struct nosa_error *error)
{
    nosa_buffer_reset(&encoding->word_text);
    encoding->words.count = 0;
    enum nosa_status status = nosa_buffer_append(&encoding->word_text, text, size);
    if (status == NOSA_OK && size > 0)
        status = add_word(&encoding->words, 0, size);
    for (size_t i = 0; i < pretokenizer->count && status == NOSA_OK; i++) {
        const struct nosa_pretokenizer_step *step = &pretokenizer->steps[i];
        if (step->kind == PRETOKENIZER_SPLIT || step->kind == PRETOKENIZER_CLASS)
            status = split_step(step, encoding, error);
        else
            status = rewrite_step(step, encoding, at_start);
    }
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory to split the text");
    return status;
}
