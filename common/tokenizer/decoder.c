/*
 * Ids to text. A decoder's steps are kept in the form that streaming needs: what happens to each
 * token, then how its bytes join the text. nosa_tokenizer_decode runs the same machine, except that
 * it collects a whole run of byte-fallback tokens before judging it, as the `tokenizers` library
 * does.
 */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tokenizer/tokenizer_internal.h"

#define WHAT           "decoder"
#define REPLACEMENT    "\xEF\xBF\xBD"
#define BYTE_TOKEN_LEN 6 /* of <0xNN> */

/* ---- loading ---- */

struct decoder_load {
    struct nosa_decoder *decoder;
    bool fused;
};

static enum nosa_status refuse_order(const char *type, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_UNSUPPORTED, WHAT " %s in this place is not supported", type);
}

static enum nosa_status load_replace(struct nosa_decoder_step *step, const json_t *json,
                                     struct nosa_error *error)
{
    const json_t *pattern = json_object_get(json_object_get(json, "pattern"), "String");
    if (!json_is_string(pattern) || json_string_length(pattern) == 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              WHAT " Replace: only a {\"String\": ...} pattern is supported");
    step->kind = DECODER_REPLACE;
    NOSA_TRY(nosa_member_copy(json_object_get(json, "pattern"), WHAT " Replace", "String",
                              &step->pattern, &step->pattern_size, error));
    return nosa_member_copy(json, WHAT " Replace", "content", &step->content, &step->content_size,
                            error);
}

static enum nosa_status check_character(const struct nosa_decoder_step *step, const char *what,
                                        struct nosa_error *error)
{
    uint32_t code_point;
    if (step->pattern_size == 0 ||
        nosa_unicode_next(step->pattern, step->pattern_size, 0, &code_point) != step->pattern_size)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s is not one character", what);
    return NOSA_OK;
}

static enum nosa_status load_metaspace(struct nosa_decoder_step *step, const json_t *json,
                                       struct nosa_error *error)
{
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    bool prefix_space;
    step->kind = DECODER_METASPACE;
    NOSA_TRY(
        nosa_member_bool(json, WHAT " Metaspace", "add_prefix_space", true, &prefix_space, error));
    step->first_drops = prefix_space && (scheme == NULL || strcmp(scheme, "never") != 0);
    NOSA_TRY(nosa_member_copy(json, WHAT " Metaspace", "replacement", &step->pattern,
                              &step->pattern_size, error));
    return check_character(step, WHAT " Metaspace: \"replacement\"", error);
}

static enum nosa_status load_strip(struct decoder_load *load, struct nosa_decoder_step *step,
                                   const json_t *json, struct nosa_error *error)
{
    step->kind = load->fused ? DECODER_STRIP_FUSED : DECODER_STRIP;
    NOSA_TRY(nosa_member_copy(json, WHAT " Strip", "content", &step->pattern, &step->pattern_size,
                              error));
    NOSA_TRY(check_character(step, WHAT " Strip: \"content\"", error));
    const json_t *start = json_object_get(json, "start");
    const json_t *stop = json_object_get(json, "stop");
    if (!json_is_integer(start) || !json_is_integer(stop) || json_integer_value(start) < 0 ||
        json_integer_value(start) > UINT32_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              WHAT " Strip: \"start\" or \"stop\" is not a count");
    if (json_integer_value(stop) != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              WHAT " Strip at the end of the text is not supported");
    step->strip_count = (uint32_t)json_integer_value(start);
    return NOSA_OK;
}

static enum nosa_status load_step(void *target, const json_t *json, const char *type,
                                  struct nosa_error *error)
{
    struct decoder_load *load = target;
    struct nosa_decoder *decoder = load->decoder;
    bool joined = load->fused || decoder->byte_level;
    if (strcmp(type, "Fuse") == 0) {
        load->fused = true;
        return NOSA_OK;
    }
    if (strcmp(type, "ByteLevel") == 0 || strcmp(type, "ByteFallback") == 0) {
        if (joined || decoder->byte_fallback)
            return refuse_order(type, error);
        decoder->byte_level = strcmp(type, "ByteLevel") == 0;
        decoder->byte_fallback = !decoder->byte_level;
        load->fused = decoder->byte_level;
        return NOSA_OK;
    }
    bool strips = strcmp(type, "Strip") == 0;
    if (!strips && strcmp(type, "Replace") != 0 && strcmp(type, "Metaspace") != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED, WHAT " '%.60s' is not supported", type);
    bool second_strip =
        decoder->count > 0 && decoder->steps[decoder->count - 1].kind == DECODER_STRIP_FUSED;
    if (strips && load->fused ? second_strip : joined || decoder->byte_fallback)
        return refuse_order(type, error);
    if (decoder->count == STEPS_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED, WHAT ": more than %d steps", STEPS_MAX);
    struct nosa_decoder_step *step = &decoder->steps[decoder->count++];
    if (strips)
        return load_strip(load, step, json, error);
    if (strcmp(type, "Replace") == 0)
        return load_replace(step, json, error);
    return load_metaspace(step, json, error);
}

enum nosa_status nosa_decoder_load(struct nosa_decoder *decoder, const json_t *json,
                                   struct nosa_error *error)
{
    struct decoder_load load = {.decoder = decoder};
    decoder->present = json != NULL && !json_is_null(json);
    return nosa_member_sequence(json, WHAT, "decoders", load_step, &load, error);
}

void nosa_decoder_free(struct nosa_decoder *decoder)
{
    for (size_t i = 0; i < decoder->count; i++) {
        free(decoder->steps[i].pattern);
        free(decoder->steps[i].content);
    }
}

/* ---- running ---- */

struct nosa_detokenizer {
    const struct nosa_tokenizer *tokenizer; /* borrowed */
    bool whole_runs;                        /* collect byte-fallback runs whole */
    bool started;                           /* a token with text came already */
    uint32_t strip_left;                    /* characters that may still be stripped */
    bool stripping;
    struct nosa_buffer pending; /* bytes that are no whole character, or a run, yet */
    struct nosa_buffer piece;   /* the token as the steps leave it */
    struct nosa_buffer swap;
};

static void restart(struct nosa_detokenizer *detokenizer)
{
    const struct nosa_decoder *decoder = &detokenizer->tokenizer->decoder;
    detokenizer->started = false;
    detokenizer->stripping = false;
    nosa_buffer_reset(&detokenizer->pending);
    if (decoder->count > 0 && decoder->steps[decoder->count - 1].kind == DECODER_STRIP_FUSED) {
        detokenizer->stripping = true;
        detokenizer->strip_left = decoder->steps[decoder->count - 1].strip_count;
    }
}

/* Gives out whole characters, less those stripped from the beginning of the text. */
static enum nosa_status give(struct nosa_detokenizer *detokenizer, const char *bytes, size_t size,
                             struct nosa_buffer *text)
{
    if (size == 0)
        return NOSA_OK;
    if (detokenizer->stripping) {
        const struct nosa_decoder *decoder = &detokenizer->tokenizer->decoder;
        const struct nosa_decoder_step *step = &decoder->steps[decoder->count - 1];
        while (detokenizer->strip_left > 0 && size >= step->pattern_size &&
               memcmp(bytes, step->pattern, step->pattern_size) == 0) {
            bytes += step->pattern_size;
            size -= step->pattern_size;
            detokenizer->strip_left--;
        }
        detokenizer->stripping = size == 0 && detokenizer->strip_left > 0;
    }
    return nosa_buffer_append(text, bytes, size);
}

/* Gives out what is whole of the pending bytes and keeps an unfinished character, unless the text
 * or the run `ends`. Bytes of no character become U+FFFD: one for each maximal beginning, or one
 * for each byte of byte-fallback tokens. */
static enum nosa_status drain(struct nosa_detokenizer *detokenizer, bool ends,
                              struct nosa_buffer *text)
{
    struct nosa_buffer *pending = &detokenizer->pending;
    bool each_byte = detokenizer->tokenizer->decoder.byte_fallback;
    if (pending->size == 0)
        return NOSA_OK;
    if (detokenizer->whole_runs && each_byte) {
        if (!ends)
            return NOSA_OK;
        bool valid = nosa_utf8_is_valid(pending->data, pending->size);
        for (size_t i = 0; !valid && i < pending->size; i++)
            NOSA_TRY(give(detokenizer, REPLACEMENT, 3, text));
        if (valid)
            NOSA_TRY(give(detokenizer, pending->data, pending->size, text));
        nosa_buffer_reset(pending);
        return NOSA_OK;
    }
    size_t at = 0;
    while (at < pending->size) {
        const char *bytes = pending->data + at;
        size_t size = pending->size - at;
        size_t valid = nosa_utf8_valid_prefix(bytes, size);
        NOSA_TRY(give(detokenizer, bytes, valid, text));
        at += valid;
        if (valid == size || (!ends && nosa_utf8_incomplete_tail(bytes, size) == size - valid))
            break;
        size_t invalid = each_byte ? 1 : nosa_utf8_invalid_length(bytes + valid, size - valid);
        NOSA_TRY(give(detokenizer, REPLACEMENT, 3, text));
        at += invalid;
    }
    memmove(pending->data, pending->data + at, pending->size - at);
    pending->size -= at;
    return NOSA_OK;
}

static enum nosa_status replace_in_piece(struct nosa_detokenizer *detokenizer, const char *pattern,
                                         size_t pattern_size, const char *content,
                                         size_t content_size)
{
    struct nosa_buffer *piece = &detokenizer->piece;
    struct nosa_buffer *out = &detokenizer->swap;
    nosa_buffer_reset(out);
    for (size_t at = 0; at < piece->size;) {
        const char *hit = memmem(piece->data + at, piece->size - at, pattern, pattern_size);
        size_t end = hit == NULL ? piece->size : (size_t)(hit - piece->data);
        NOSA_TRY(nosa_buffer_append(out, piece->data + at, end - at));
        if (hit != NULL)
            NOSA_TRY(nosa_buffer_append(out, content, content_size));
        at = end + (hit != NULL ? pattern_size : 0);
    }
    struct nosa_buffer swap = *piece;
    *piece = *out;
    *out = swap;
    return NOSA_OK;
}

static void strip_piece(struct nosa_buffer *piece, const struct nosa_decoder_step *step)
{
    size_t start = 0;
    for (uint32_t i = 0; i < step->strip_count && piece->size - start >= step->pattern_size &&
                         memcmp(piece->data + start, step->pattern, step->pattern_size) == 0;
         i++)
        start += step->pattern_size;
    memmove(piece->data, piece->data + start, piece->size - start);
    piece->size -= start;
}

static enum nosa_status apply_steps(struct nosa_detokenizer *detokenizer)
{
    const struct nosa_decoder *decoder = &detokenizer->tokenizer->decoder;
    for (size_t i = 0; i < decoder->count && detokenizer->piece.size > 0; i++) {
        const struct nosa_decoder_step *step = &decoder->steps[i];
        switch (step->kind) {
        case DECODER_REPLACE:
            NOSA_TRY(replace_in_piece(detokenizer, step->pattern, step->pattern_size, step->content,
                                      step->content_size));
            break;
        case DECODER_METASPACE: {
            bool drops = step->first_drops && !detokenizer->started;
            NOSA_TRY(replace_in_piece(detokenizer, step->pattern, step->pattern_size, " ",
                                      drops ? 0 : 1));
            break;
        }
        case DECODER_STRIP: strip_piece(&detokenizer->piece, step); break;
        case DECODER_STRIP_FUSED: break;
        }
    }
    return NOSA_OK;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that <0xNN> names; -1 for any other token. */
static int byte_of(const struct nosa_buffer *piece)
{
    if (piece->size != BYTE_TOKEN_LEN || memcmp(piece->data, "<0x", 3) != 0 ||
        piece->data[5] != '>')
        return -1;
    int high = hex_digit(piece->data[3]);
    int low = hex_digit(piece->data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Appends the bytes that a token of the byte alphabet spells; a token with any other character is
 * its own bytes. */
static enum nosa_status append_alphabet(const struct nosa_buffer *piece, struct nosa_buffer *out)
{
    size_t before = out->size;
    size_t length;
    for (size_t at = 0; at < piece->size; at += length) {
        uint32_t code_point;
        length = nosa_unicode_next(piece->data, piece->size, at, &code_point);
        int value = nosa_char_to_byte(code_point);
        if (value < 0) {
            out->size = before;
            return nosa_buffer_append(out, piece->data, piece->size);
        }
        char byte = (char)value;
        NOSA_TRY(nosa_buffer_append(out, &byte, 1));
    }
    return NOSA_OK;
}

static enum nosa_status push(struct nosa_detokenizer *detokenizer, int32_t id,
                             struct nosa_buffer *text)
{
    const struct nosa_tokenizer *tokenizer = detokenizer->tokenizer;
    const struct nosa_decoder *decoder = &tokenizer->decoder;
    const struct nosa_vocab *vocab = &tokenizer->vocab;
    if (id < 0 || id >= vocab->piece_count || vocab->pieces[id].offset == PIECE_UNUSED ||
        nosa_tokenizer_is_special(tokenizer, id))
        return NOSA_OK;
    const struct nosa_piece *piece = &vocab->pieces[id];
    nosa_buffer_reset(&detokenizer->piece);
    if (!decoder->present && detokenizer->started)
        NOSA_TRY(nosa_buffer_append(&detokenizer->piece, " ", 1));
    NOSA_TRY(nosa_buffer_append(&detokenizer->piece, vocab->arena.data + piece->text_offset,
                                piece->text_size));
    NOSA_TRY(apply_steps(detokenizer));
    detokenizer->started = true;
    if (decoder->byte_level) {
        NOSA_TRY(append_alphabet(&detokenizer->piece, &detokenizer->pending));
        return drain(detokenizer, false, text);
    }
    int byte = decoder->byte_fallback ? byte_of(&detokenizer->piece) : -1;
    if (byte >= 0) {
        char value = (char)byte;
        NOSA_TRY(nosa_buffer_append(&detokenizer->pending, &value, 1));
        return drain(detokenizer, false, text);
    }
    NOSA_TRY(drain(detokenizer, true, text));
    return give(detokenizer, detokenizer->piece.data, detokenizer->piece.size, text);
}

enum nosa_status nosa_detokenizer_push(struct nosa_detokenizer *detokenizer, int32_t id,
                                       struct nosa_buffer *text, struct nosa_error *error)
{
    if (push(detokenizer, id, text) != NOSA_OK)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to decode tokens");
    return NOSA_OK;
}

enum nosa_status nosa_detokenizer_finish(struct nosa_detokenizer *detokenizer,
                                         struct nosa_buffer *text, struct nosa_error *error)
{
    enum nosa_status status = drain(detokenizer, true, text);
    restart(detokenizer);
    if (status != NOSA_OK)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to decode tokens");
    return NOSA_OK;
}

enum nosa_status nosa_detokenizer_create(const struct nosa_tokenizer *tokenizer,
                                         const int32_t *context, size_t context_count,
                                         struct nosa_detokenizer **detokenizer,
                                         struct nosa_error *error)
{
    *detokenizer = NULL;
    struct nosa_detokenizer *created = calloc(1, sizeof *created);
    if (created == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a detokenizer");
    created->tokenizer = tokenizer;
    restart(created);
    struct nosa_buffer delivered = {0};
    enum nosa_status status = NOSA_OK;
    for (size_t i = 0; i < context_count && status == NOSA_OK; i++) {
        status = nosa_detokenizer_push(created, context[i], &delivered, error);
        nosa_buffer_reset(&delivered);
    }
    nosa_buffer_free(&delivered);
    if (status == NOSA_OK)
        *detokenizer = created;
    else
        nosa_detokenizer_free(created);
    return status;
}

void nosa_detokenizer_free(struct nosa_detokenizer *detokenizer)
{
    if (detokenizer == NULL)
        return;
    nosa_buffer_free(&detokenizer->swap);
    nosa_buffer_free(&detokenizer->piece);
    nosa_buffer_free(&detokenizer->pending);
    free(detokenizer);
}

enum nosa_status nosa_tokenizer_decode(const struct nosa_tokenizer *tokenizer, const int32_t *ids,
                                       size_t count, struct nosa_buffer *text,
                                       struct nosa_error *error)
{
    struct nosa_detokenizer *detokenizer;
    NOSA_TRY(nosa_detokenizer_create(tokenizer, NULL, 0, &detokenizer, error));
    detokenizer->whole_runs = true;
    enum nosa_status status = NOSA_OK;
    for (size_t i = 0; i < count && status == NOSA_OK; i++)
        status = nosa_detokenizer_push(detokenizer, ids[i], text, error);
    if (status == NOSA_OK)
        status = nosa_detokenizer_finish(detokenizer, text, error);
    nosa_detokenizer_free(detokenizer);
    return status;
}
