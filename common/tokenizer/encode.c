/* Text to ids: added tokens, normalizer, pre-tokenizer, merging, post-processor, in this order. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tokenizer/tokenizer_internal.h"

enum nosa_status nosa_tokens_append(struct nosa_tokens *tokens, int32_t id)
{
    if (tokens->count_max > 0 && tokens->count >= tokens->count_max) {
        tokens->full = true;
        return NOSA_RESOURCE_EXHAUSTED;
    }
    if (tokens->count == tokens->capacity) {
        size_t capacity = tokens->capacity < 64 ? 64 : tokens->capacity * 2;
        int32_t *ids = realloc(tokens->ids, capacity * sizeof *ids);
        if (ids == NULL)
            return NOSA_OUT_OF_MEMORY;
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->count++] = id;
    return NOSA_OK;
}

void nosa_tokens_free(struct nosa_tokens *tokens)
{
    free(tokens->ids);
    *tokens = (struct nosa_tokens){0};
}

static void encoding_free(struct nosa_encoding *encoding)
{
    free(encoding->swap_words.items);
    free(encoding->words.items);
    nosa_buffer_free(&encoding->word_text);
    nosa_buffer_free(&encoding->swap);
    nosa_buffer_free(&encoding->normalized);
    nosa_buffer_free(&encoding->repaired);
    nosa_bpe_scratch_free(&encoding->bpe);
    nosa_regex_scratch_free(&encoding->regex);
}

static enum nosa_status encode_words(struct nosa_encoding *encoding, const char *text, size_t size,
                                     bool at_start, struct nosa_tokens *tokens,
                                     struct nosa_error *error)
{
    const struct nosa_tokenizer *tokenizer = encoding->tokenizer;
    NOSA_TRY(
        nosa_pretokenizer_apply(&tokenizer->pretokenizer, encoding, text, size, at_start, error));
    for (size_t i = 0; i < encoding->words.count; i++) {
        struct nosa_word word = encoding->words.items[i];
        NOSA_TRY(nosa_bpe_encode(&tokenizer->bpe, &tokenizer->vocab, &encoding->bpe,
                                 encoding->word_text.data + word.start, word.size, tokens, error));
    }
    return NOSA_OK;
}

static bool touches_content(const struct nosa_encoding *encoding, size_t start, size_t end)
{
    size_t low = 0;
    size_t high = encoding->range_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (encoding->ranges[middle].end <= start)
            low = middle + 1;
        else
            high = middle;
    }
    return low < encoding->range_count && encoding->ranges[low].start < end;
}

/* A stretch of the input between the added tokens that are matched as they stand. */
static enum nosa_status encode_segment(struct nosa_encoding *encoding, const char *text,
                                       struct nosa_range segment, struct nosa_tokens *tokens,
                                       struct nosa_error *error)
{
    const struct nosa_tokenizer *tokenizer = encoding->tokenizer;
    NOSA_TRY(nosa_normalizer_apply(&tokenizer->normalizer, encoding, text + segment.start,
                                   segment.end - segment.start, error));
    const char *normalized = encoding->normalized.data;
    size_t size = encoding->normalized.size;
    struct nosa_range whole = {0, size};
    struct nosa_added_search search = {
        .trie = &tokenizer->normalized_trie,
        .tokens = tokenizer->added,
        .vocab = &tokenizer->vocab,
        .text = normalized,
        .size = size,
        .plain = encoding->plain,
        .chat = encoding->chat,
        .ranges = &whole,
        .range_count =
            encoding->chat && touches_content(encoding, segment.start, segment.end) ? 1 : 0,
    };
    struct nosa_added_match match;
    size_t done = 0;
    while (nosa_added_next(&search, &match)) {
        if (match.start > done)
            NOSA_TRY(encode_words(encoding, normalized + done, match.start - done,
                                  segment.start == 0 && done == 0, tokens, error));
        NOSA_TRY(nosa_tokens_append(tokens, match.id));
        done = match.end;
    }
    if (done < size)
        NOSA_TRY(encode_words(encoding, normalized + done, size - done,
                              segment.start == 0 && done == 0, tokens, error));
    return NOSA_OK;
}

static enum nosa_status encode_text(struct nosa_encoding *encoding, const char *text, size_t size,
                                    struct nosa_tokens *tokens, struct nosa_error *error)
{
    const struct nosa_tokenizer *tokenizer = encoding->tokenizer;
    struct nosa_added_search search = {
        .trie = &tokenizer->raw_trie,
        .tokens = tokenizer->added,
        .vocab = &tokenizer->vocab,
        .text = text,
        .size = size,
        .plain = encoding->plain,
        .chat = encoding->chat,
        .ranges = encoding->ranges,
        .range_count = encoding->range_count,
    };
    struct nosa_added_match match;
    size_t done = 0;
    while (nosa_added_next(&search, &match)) {
        if (match.start > done)
            NOSA_TRY(encode_segment(encoding, text, (struct nosa_range){done, match.start}, tokens,
                                    error));
        NOSA_TRY(nosa_tokens_append(tokens, match.id));
        done = match.end;
    }
    if (done < size)
        NOSA_TRY(encode_segment(encoding, text, (struct nosa_range){done, size}, tokens, error));
    return NOSA_OK;
}

static enum nosa_status append_all(struct nosa_tokens *tokens, const int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        NOSA_TRY(nosa_tokens_append(tokens, ids[i]));
    return NOSA_OK;
}

static enum nosa_status encode_repaired(struct nosa_encoding *encoding, const char *text,
                                        size_t size, struct nosa_tokens *tokens,
                                        struct nosa_error *error)
{
    if (!nosa_utf8_is_valid(text, size)) {
        NOSA_TRY(nosa_unicode_repair(text, size, &encoding->repaired));
        text = encoding->repaired.data;
        size = encoding->repaired.size;
    }
    return encode_text(encoding, text, size, tokens, error);
}

static enum nosa_status check_size(size_t size, struct nosa_error *error)
{
    if (size <= NOSA_TOKENIZER_TEXT_BYTES_MAX)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "a text of %zu bytes is longer than the tokenizer's limit of %u", size,
                          NOSA_TOKENIZER_TEXT_BYTES_MAX);
}

/* Restores the list after an error, and gives a failed allocation its text. */
static enum nosa_status conclude(enum nosa_status status, struct nosa_tokens *tokens,
                                 size_t count_before, struct nosa_error *error)
{
    if (status != NOSA_OK)
        tokens->count = count_before;
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory to encode the text");
    else if (status != NOSA_OK && tokens->full)
        nosa_error_set(error, status, "more than %zu tokens", tokens->count_max);
    return status;
}

enum nosa_status nosa_tokenizer_encode(const struct nosa_tokenizer *tokenizer, const char *text,
                                       size_t size, unsigned flags, struct nosa_tokens *tokens,
                                       struct nosa_error *error)
{
    NOSA_TRY(check_size(size, error));
    size_t count_before = tokens->count;
    bool add_special = (flags & NOSA_ENCODE_ADD_SPECIAL) != 0;
    struct nosa_encoding encoding = {.tokenizer = tokenizer,
                                     .plain = (flags & NOSA_ENCODE_PARSE_SPECIAL) == 0};
    enum nosa_status status = NOSA_OK;
    if (add_special)
        status = append_all(tokens, tokenizer->prefix_ids, tokenizer->prefix_count);
    if (status == NOSA_OK)
        status = encode_repaired(&encoding, text, size, tokens, error);
    if (status == NOSA_OK && add_special)
        status = append_all(tokens, tokenizer->suffix_ids, tokenizer->suffix_count);
    encoding_free(&encoding);
    return conclude(status, tokens, count_before, error);
}

enum nosa_status nosa_tokenizer_encode_chat(const struct nosa_tokenizer *tokenizer,
                                            const char *text, size_t size,
                                            const struct nosa_range *ranges, size_t range_count,
                                            struct nosa_tokens *tokens, struct nosa_error *error)
{
    NOSA_TRY(check_size(size, error));
    size_t count_before = tokens->count;
    struct nosa_encoding encoding = {
        .tokenizer = tokenizer, .chat = true, .ranges = ranges, .range_count = range_count};
    enum nosa_status status = encode_text(&encoding, text, size, tokens, error);
    encoding_free(&encoding);
    return conclude(status, tokens, count_before, error);
}

int32_t nosa_tokenizer_vocab_size(const struct nosa_tokenizer *tokenizer)
{
    return tokenizer->vocab.piece_count;
}

const char *nosa_tokenizer_piece(const struct nosa_tokenizer *tokenizer, int32_t id, size_t *size)
{
    const struct nosa_vocab *vocab = &tokenizer->vocab;
    if (id < 0 || id >= vocab->piece_count || vocab->pieces[id].offset == PIECE_UNUSED)
        return NULL;
    *size = vocab->pieces[id].size;
    return vocab->arena.data + vocab->pieces[id].offset;
}

int32_t nosa_tokenizer_find(const struct nosa_tokenizer *tokenizer, const char *content,
                            size_t size)
{
    return nosa_vocab_find(&tokenizer->vocab, content, size);
}

bool nosa_tokenizer_is_special(const struct nosa_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->vocab.piece_count &&
           (tokenizer->vocab.pieces[id].flags & PIECE_SPECIAL) != 0;
}

int32_t nosa_tokenizer_bos(const struct nosa_tokenizer *tokenizer)
{
    return tokenizer->bos_id;
}

int32_t nosa_tokenizer_eos(const struct nosa_tokenizer *tokenizer)
{
    return tokenizer->eos_id;
}
