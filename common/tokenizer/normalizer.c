/* Normalizers: steps that rewrite the text before it is split; see tokenizer_internal.h. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

#define WHAT "normalizer"

static enum nosa_status load_replace(struct nosa_normalizer_step *step, const json_t *json,
                                     struct nosa_error *error)
{
    step->kind = NORMALIZER_REPLACE;
    NOSA_TRY(nosa_member_pattern(json, WHAT " Replace", &step->pattern, error));
    return nosa_member_copy(json, WHAT " Replace", "content", &step->content, &step->content_size,
                            error);
}

static enum nosa_status load_strip(struct nosa_normalizer_step *step, const json_t *json,
                                   struct nosa_error *error)
{
    step->kind = NORMALIZER_STRIP;
    NOSA_TRY(nosa_member_bool(json, WHAT " Strip", "strip_left", true, &step->strip_left, error));
    return nosa_member_bool(json, WHAT " Strip", "strip_right", true, &step->strip_right, error);
}

/* Types that need no members. */
static bool find_plain(const char *type, struct nosa_normalizer_step *step)
{
    static const struct {
        const char *type;
        enum nosa_normalizer_kind kind;
        enum nosa_unicode_form form;
    } plain[] = {
        {"NFC", NORMALIZER_FORM, FORM_NFC},
        {"NFD", NORMALIZER_FORM, FORM_NFD},
        {"NFKC", NORMALIZER_FORM, FORM_NFKC},
        {"NFKD", NORMALIZER_FORM, FORM_NFKD},
        {"Lowercase", NORMALIZER_LOWERCASE, FORM_NFC},
        {"StripAccents", NORMALIZER_STRIP_ACCENTS, FORM_NFC},
        {"ByteLevel", NORMALIZER_BYTE_LEVEL, FORM_NFC},
    };
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (strcmp(plain[i].type, type) == 0) {
            step->kind = plain[i].kind;
            step->form = plain[i].form;
            return true;
        }
    }
    return false;
}

static enum nosa_status load_step(void *target, const json_t *json, const char *type,
                                  struct nosa_error *error)
{
    struct nosa_normalizer *normalizer = target;
    if (normalizer->count == STEPS_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED, WHAT ": more than %d steps", STEPS_MAX);
    /* Counted at once, so that what a failed load has allocated is freed with the rest. */
    struct nosa_normalizer_step *step = &normalizer->steps[normalizer->count++];
    if (find_plain(type, step))
        return NOSA_OK;
    if (strcmp(type, "Prepend") == 0) {
        step->kind = NORMALIZER_PREPEND;
        return nosa_member_copy(json, WHAT " Prepend", "prepend", &step->content,
                                &step->content_size, error);
    }
    if (strcmp(type, "Replace") == 0)
        return load_replace(step, json, error);
    if (strcmp(type, "Strip") == 0)
        return load_strip(step, json, error);
    return nosa_error_set(error, NOSA_UNSUPPORTED, WHAT " '%.60s' is not supported", type);
}

enum nosa_status nosa_normalizer_load(struct nosa_normalizer *normalizer, const json_t *json,
                                      struct nosa_error *error)
{
    return nosa_member_sequence(json, WHAT, "normalizers", load_step, normalizer, error);
}

void nosa_normalizer_free(struct nosa_normalizer *normalizer)
{
    for (size_t i = 0; i < normalizer->count; i++) {
        nosa_regex_free(&normalizer->steps[i].pattern);
        free(normalizer->steps[i].content);
    }
}

static enum nosa_status replace(const struct nosa_normalizer_step *step,
                                struct nosa_encoding *encoding, const struct nosa_buffer *in,
                                struct nosa_buffer *out, struct nosa_error *error)
{
    struct nosa_match_iterator it = nosa_regex_matches(&step->pattern, in->data, in->size);
    struct nosa_range match;
    bool found;
    size_t done = 0;
    NOSA_TRY(nosa_regex_next(&it, &encoding->regex, &match, &found, error));
    while (found) {
        NOSA_TRY(nosa_buffer_append(out, in->data + done, match.start - done));
        NOSA_TRY(nosa_buffer_append(out, step->content, step->content_size));
        if (out->size > NOSA_TOKENIZER_TEXT_BYTES_MAX)
            return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                                  "the normalized text is longer than %u bytes",
                                  NOSA_TOKENIZER_TEXT_BYTES_MAX);
        done = match.end;
        NOSA_TRY(nosa_regex_next(&it, &encoding->regex, &match, &found, error));
    }
    return nosa_buffer_append(out, in->data + done, in->size - done);
}

static enum nosa_status strip(const struct nosa_normalizer_step *step, const struct nosa_buffer *in,
                              struct nosa_buffer *out)
{
    size_t start = 0;
    size_t end = in->size;
    uint32_t code_point;
    while (step->strip_left && start < end) {
        size_t length = nosa_unicode_next(in->data, end, start, &code_point);
        if (!nosa_unicode_is_space(code_point))
            break;
        start += length;
    }
    while (step->strip_right && end > start) {
        size_t length = nosa_unicode_previous(in->data, end, &code_point);
        if (!nosa_unicode_is_space(code_point))
            break;
        end -= length;
    }
    return nosa_buffer_append(out, in->data + start, end - start);
}

static enum nosa_status strip_accents(const struct nosa_buffer *in, struct nosa_buffer *out)
{
    size_t length;
    for (size_t at = 0; at < in->size; at += length) {
        uint32_t code_point;
        length = nosa_unicode_next(in->data, in->size, at, &code_point);
        if (!nosa_unicode_is_mark(code_point))
            NOSA_TRY(nosa_buffer_append(out, in->data + at, length));
    }
    return NOSA_OK;
}

static enum nosa_status apply_step(const struct nosa_normalizer_step *step,
                                   struct nosa_encoding *encoding, const struct nosa_buffer *in,
                                   struct nosa_buffer *out, struct nosa_error *error)
{
    switch (step->kind) {
    case NORMALIZER_FORM: return nosa_unicode_normalize(step->form, in->data, in->size, out);
    case NORMALIZER_LOWERCASE: return nosa_unicode_lower(in->data, in->size, out);
    case NORMALIZER_STRIP: return strip(step, in, out);
    case NORMALIZER_STRIP_ACCENTS: return strip_accents(in, out);
    case NORMALIZER_PREPEND:
        NOSA_TRY(nosa_buffer_append(out, step->content, step->content_size));
        return nosa_buffer_append(out, in->data, in->size);
    case NORMALIZER_REPLACE: return replace(step, encoding, in, out, error);
    case NORMALIZER_BYTE_LEVEL: return nosa_bytes_to_alphabet(in->data, in->size, out);
    }
    return NOSA_INTERNAL;
}

enum nosa_status nosa_normalizer_apply(const struct nosa_normalizer *normalizer,
                                       struct nosa_encoding *encoding, const char *text,
                                       size_t size, struct nosa_error *error)
{
    nosa_buffer_reset(&encoding->normalized);
    enum nosa_status status = nosa_buffer_append(&encoding->normalized, text, size);
    for (size_t i = 0; i < normalizer->count && status == NOSA_OK; i++) {
        if (encoding->normalized.size == 0)
            break;
        nosa_buffer_reset(&encoding->swap);
        status = apply_step(&normalizer->steps[i], encoding, &encoding->normalized, &encoding->swap,
                            error);
        struct nosa_buffer swap = encoding->normalized;
        encoding->normalized = encoding->swap;
        encoding->swap = swap;
    }
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory to normalize the text");
    return status;
}
