/*
 * The regular expressions of tokenizer.json, written for Oniguruma's Ruby syntax, on PCRE2. What
 * the two read differently is rewritten before compiling:
 *   \s, \S  White_Space; PCRE2's own class also takes U+180E
 *   \w, \W  Alphabetic, M, Nd, Pc, and outside of a class Latin-1's powers and fractions; PCRE2's
 *           own class takes all of N and no marks
 *   \h, \H  a hexadecimal digit; for PCRE2 horizontal space
 *   {n,m}+  a repeated repetition; for PCRE2 possessive
 *   \p{Han} the script; for PCRE2 the script extensions
 *   ^, $    at every line, so PCRE2_MULTILINE is set
 * A class with && or a nested class, or a POSIX class but [:space:] and [:digit:], is refused.
 * Matching is compiled to machine code where the processor allows, on a stack of its own; where
 * that stack is too small, the interpreter matches, whose memory is the heap. Both stop at a match
 * limit, in proportion to the text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

#define GROUPS_MAX       64
#define MATCH_LIMIT_BASE 10000000u
#define HEAP_LIMIT_KIB   (256u << 10)
#define JIT_STACK_MIN    (32u << 10)
#define JIT_STACK_MAX    (1u << 20)
#define SPACE_MEMBERS    "\\t-\\r\\x{85}\\p{Z}"
#define WORD_MEMBERS                                                                               \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"                    \
    "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"
#define LATIN_WORD_MEMBERS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
#define HEX_MEMBERS        "0-9a-fA-F"

/* ---- translation ---- */

struct translation {
    const char *pattern;
    size_t size;
    size_t at;
    struct nosa_buffer out;
    size_t groups[GROUPS_MAX]; /* where each open group starts in `out` */
    size_t depth;
    size_t atom; /* where the last atom starts in `out` */
};

static enum nosa_status refuse(struct translation *t, const char *why, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_UNSUPPORTED,
                          "regular expression '%.200s': %s is not supported", t->pattern, why);
}

/* The members of a class that is spelled differently; NULL for any other escape. */
static const char *class_members(char letter)
{
    switch (letter) {
    case 's':
    case 'S': return SPACE_MEMBERS;
    case 'w':
    case 'W': return WORD_MEMBERS;
    case 'h':
    case 'H': return HEX_MEMBERS;
    default: return NULL;
    }
}

static enum nosa_status translate_escape(struct translation *t, bool in_class,
                                         struct nosa_error *error)
{
    if (t->at + 1 >= t->size)
        return refuse(t, "a backslash at the end", error);
    char letter = t->pattern[t->at + 1];
    const char *members = class_members(letter);
    bool negated = letter == 'S' || letter == 'W' || letter == 'H';
    if (members == NULL) {
        nosa_buffer_append(&t->out, t->pattern + t->at, 2);
    } else if (!in_class) {
        nosa_buffer_append_text(&t->out, negated ? "[^" : "[");
        nosa_buffer_append_text(&t->out, members);
        nosa_buffer_append_text(&t->out, letter == 'w' || letter == 'W' ? LATIN_WORD_MEMBERS : "");
        nosa_buffer_append_text(&t->out, "]");
    } else if (!negated) {
        nosa_buffer_append_text(&t->out, members);
    } else if (letter == 'S') {
        nosa_buffer_append_text(&t->out, "\\S\\x{180E}");
    } else {
        return refuse(t, "\\W or \\H in a class", error);
    }
    t->at += 2;
    return NOSA_OK;
}

static bool is_at(const struct translation *t, const char *text)
{
    size_t length = strlen(text);
    return t->size - t->at >= length && memcmp(t->pattern + t->at, text, length) == 0;
}

/* Whether PCRE2 knows a script of this name. */
static bool is_script(const char *name, size_t size)
{
    char pattern[48];
    int code;
    PCRE2_SIZE offset;
    if (size < 3 || size > 32)
        return false;
    int length = snprintf(pattern, sizeof pattern, "\\p{sc:%.*s}", (int)size, name);
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)pattern, (PCRE2_SIZE)length, PCRE2_UTF, &code, &offset, NULL);
    pcre2_code_free(compiled);
    return compiled != NULL;
}

/* \p{...}, \P{...} or \x{...}. */
static enum nosa_status translate_braces(struct translation *t, struct nosa_error *error)
{
    const char *start = t->pattern + t->at;
    const char *end = memchr(start, '}', t->size - t->at);
    if (end == NULL)
        return refuse(t, "a brace without its end", error);
    size_t length = (size_t)(end + 1 - start);
    nosa_buffer_append(&t->out, start, 3);
    if (start[1] != 'x' && is_script(start + 3, length - 4))
        nosa_buffer_append_text(&t->out, "sc:");
    nosa_buffer_append(&t->out, start + 3, length - 3);
    t->at += length;
    return NOSA_OK;
}

static enum nosa_status translate_class(struct translation *t, struct nosa_error *error)
{
    size_t opening = is_at(t, "[^") ? 2 : 1;
    nosa_buffer_append(&t->out, t->pattern + t->at, opening);
    t->at += opening;
    size_t first = t->at;
    while (t->at < t->size) {
        char c = t->pattern[t->at];
        if (c == ']' && t->at > first)
            break;
        if (is_at(t, "&&"))
            return refuse(t, "&& in a class", error);
        if (is_at(t, "[:")) {
            bool space = is_at(t, "[:space:]");
            if (!space && !is_at(t, "[:digit:]"))
                return refuse(t, "this POSIX class", error);
            nosa_buffer_append_text(&t->out, space ? SPACE_MEMBERS : "\\p{Nd}");
            t->at += strlen("[:space:]");
            continue;
        }
        if (is_at(t, "\\p{") || is_at(t, "\\P{") || is_at(t, "\\x{")) {
            NOSA_TRY(translate_braces(t, error));
            continue;
        }
        if (c == '\\') {
            NOSA_TRY(translate_escape(t, true, error));
            continue;
        }
        if (c == '[')
            return refuse(t, "a class in a class", error);
        nosa_buffer_append(&t->out, &c, 1);
        t->at++;
    }
    if (t->at >= t->size)
        return refuse(t, "a class without its end", error);
    nosa_buffer_append(&t->out, "]", 1);
    t->at++;
    return NOSA_OK;
}

/* Length of "{n}", "{n,}", "{,m}" or "{n,m}" here; 0 for a brace that is a character. */
static size_t repetition_length(const struct translation *t)
{
    size_t i = t->at + 1;
    bool digits = false;
    bool comma = false;
    for (; i < t->size && t->pattern[i] != '}'; i++) {
        if (t->pattern[i] >= '0' && t->pattern[i] <= '9')
            digits = true;
        else if (t->pattern[i] == ',' && !comma)
            comma = true;
        else
            return 0;
    }
    return i < t->size && digits ? i + 1 - t->at : 0;
}

static enum nosa_status translate_repetition(struct translation *t, size_t length)
{
    bool no_minimum = t->pattern[t->at + 1] == ',';
    nosa_buffer_append_text(&t->out, no_minimum ? "{0" : "{");
    nosa_buffer_append(&t->out, t->pattern + t->at + 1, length - 1);
    t->at += length;
    if (t->at >= t->size || t->pattern[t->at] != '+')
        return nosa_buffer_failed(&t->out) ? NOSA_OUT_OF_MEMORY : NOSA_OK;
    static const char opening[] = "(?:";
    if (nosa_buffer_append(&t->out, opening, 3) != NOSA_OK || nosa_buffer_failed(&t->out))
        return NOSA_OUT_OF_MEMORY;
    memmove(t->out.data + t->atom + 3, t->out.data + t->atom, t->out.size - 3 - t->atom);
    memcpy(t->out.data + t->atom, opening, 3);
    return nosa_buffer_append(&t->out, ")", 1);
}

static enum nosa_status translate_one(struct translation *t, struct nosa_error *error)
{
    char c = t->pattern[t->at];
    size_t repetition;
    switch (c) {
    case '\\':
        t->atom = t->out.size;
        if (is_at(t, "\\p{") || is_at(t, "\\P{") || is_at(t, "\\x{"))
            return translate_braces(t, error);
        return translate_escape(t, false, error);
    case '[': t->atom = t->out.size; return translate_class(t, error);
    case '(':
        if (t->depth == GROUPS_MAX)
            return refuse(t, "nesting this deep", error);
        if (is_at(t, "(?m") || is_at(t, "(?-m") || is_at(t, "(?im") || is_at(t, "(*"))
            return refuse(t, "this option", error);
        t->groups[t->depth++] = t->out.size;
        break;
    case ')':
        if (t->depth == 0)
            return refuse(t, "a parenthesis without its beginning", error);
        t->atom = t->groups[--t->depth];
        break;
    case '{':
        repetition = repetition_length(t);
        if (repetition > 0)
            return translate_repetition(t, repetition);
        t->atom = t->out.size;
        break;
    case '*':
    case '+':
    case '?': break;
    default: {
        t->atom = t->out.size;
        uint32_t code_point;
        size_t length = nosa_unicode_next(t->pattern, t->size, t->at, &code_point);
        nosa_buffer_append(&t->out, t->pattern + t->at, length);
        t->at += length;
        return NOSA_OK;
    }
    }
    nosa_buffer_append(&t->out, &c, 1);
    t->at++;
    return NOSA_OK;
}

/* ---- compiling ---- */

enum nosa_status nosa_regex_literal(struct nosa_regex *regex, const char *text, size_t size,
                                    struct nosa_error *error)
{
    if (size == 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "an empty pattern is not supported");
    *regex = (struct nosa_regex){.literal = malloc(size), .literal_size = size};
    if (regex->literal == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a pattern");
    memcpy(regex->literal, text, size);
    return NOSA_OK;
}

static enum nosa_status compile(struct nosa_regex *regex, const char *pattern,
                                const struct nosa_buffer *translated, struct nosa_error *error)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a regular expression");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, GROUPS_MAX);
    int code;
    PCRE2_SIZE offset;
    regex->code = pcre2_compile((PCRE2_SPTR)translated->data, translated->size,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK |
                                    PCRE2_NEVER_BACKSLASH_C,
                                &code, &offset, context);
    pcre2_compile_context_free(context);
    if (regex->code == NULL) {
        PCRE2_UCHAR message[160];
        if (pcre2_get_error_message(code, message, sizeof message) < 0)
            message[0] = '\0';
        return nosa_error_set(error, NOSA_UNSUPPORTED, "regular expression '%.200s': %s", pattern,
                              (const char *)message);
    }
    /* Without machine code for this processor the interpreter matches, to the same result. */
    (void)pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    return NOSA_OK;
}

enum nosa_status nosa_regex_compile(struct nosa_regex *regex, const char *pattern, size_t size,
                                    struct nosa_error *error)
{
    *regex = (struct nosa_regex){0};
    if (size == 0 || size > PATTERN_BYTES_MAX || memchr(pattern, '\0', size) != NULL)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "a regular expression is empty, holds a NUL or is longer than %d "
                              "bytes",
                              PATTERN_BYTES_MAX);
    struct translation translation = {.pattern = pattern, .size = size};
    enum nosa_status status = NOSA_OK;
    while (translation.at < size && status == NOSA_OK)
        status = translate_one(&translation, error);
    if (status == NOSA_OUT_OF_MEMORY || nosa_buffer_failed(&translation.out))
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a regular expression");
    if (status == NOSA_OK)
        status = compile(regex, pattern, &translation.out, error);
    nosa_buffer_free(&translation.out);
    return status;
}

void nosa_regex_free(struct nosa_regex *regex)
{
    pcre2_code_free(regex->code);
    free(regex->literal);
    *regex = (struct nosa_regex){0};
}

/* ---- matching ---- */

static enum nosa_status prepare(struct nosa_regex_scratch *scratch, struct nosa_error *error)
{
    if (scratch->data != NULL)
        return NOSA_OK;
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (scratch->context == NULL || data == NULL) {
        pcre2_match_data_free(data);
        nosa_regex_scratch_free(scratch);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for matching");
    }
    if (scratch->stack != NULL)
        pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    scratch->data = data;
    return NOSA_OK;
}

void nosa_regex_scratch_free(struct nosa_regex_scratch *scratch)
{
    pcre2_match_data_free(scratch->data);
    pcre2_jit_stack_free(scratch->stack);
    pcre2_match_context_free(scratch->context);
    *scratch = (struct nosa_regex_scratch){0};
}

static enum nosa_status search(const struct nosa_match_iterator *it,
                               struct nosa_regex_scratch *scratch, struct nosa_range *match,
                               bool *found, struct nosa_error *error)
{
    NOSA_TRY(prepare(scratch, error));
    size_t limit = MATCH_LIMIT_BASE + 4 * it->size;
    pcre2_set_match_limit(scratch->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
    PCRE2_SPTR text = (PCRE2_SPTR)it->text;
    int result = pcre2_match(it->regex->code, text, it->size, it->at, PCRE2_NO_UTF_CHECK,
                             scratch->data, scratch->context);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result = pcre2_match(it->regex->code, text, it->size, it->at,
                             PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->data, scratch->context);
    *found = result >= 0;
    if (result == PCRE2_ERROR_NOMATCH)
        return NOSA_OK;
    if (result == PCRE2_ERROR_NOMEMORY)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for matching");
    if (result < 0)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "a regular expression of the tokenizer ran past its limits on this "
                              "text (PCRE2 error %d)",
                              result);
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(scratch->data);
    match->start = bounds[0];
    match->end = bounds[1] < bounds[0] ? bounds[0] : bounds[1];
    return NOSA_OK;
}

struct nosa_match_iterator nosa_regex_matches(const struct nosa_regex *regex, const char *text,
                                              size_t size)
{
    return (struct nosa_match_iterator){
        .regex = regex, .text = text, .size = size, .last_end = SIZE_MAX};
}

enum nosa_status nosa_regex_next(struct nosa_match_iterator *it, struct nosa_regex_scratch *scratch,
                                 struct nosa_range *match, bool *found, struct nosa_error *error)
{
    const struct nosa_regex *regex = it->regex;
    for (;;) {
        *found = false;
        if (it->at > it->size)
            return NOSA_OK;
        if (regex->literal != NULL) {
            const char *hit =
                memmem(it->text + it->at, it->size - it->at, regex->literal, regex->literal_size);
            *found = hit != NULL;
            if (hit != NULL) {
                match->start = (size_t)(hit - it->text);
                match->end = match->start + regex->literal_size;
            }
        } else {
            NOSA_TRY(search(it, scratch, match, found, error));
        }
        if (!*found)
            return NOSA_OK;
        if (match->start != match->end || match->end != it->last_end) {
            it->at = match->end;
            it->last_end = match->end;
            return NOSA_OK;
        }
        /* An empty match right behind the last one does not count. */
        uint32_t code_point;
        it->at +=
            it->at < it->size ? nosa_unicode_next(it->text, it->size, it->at, &code_point) : 1;
    }
}
