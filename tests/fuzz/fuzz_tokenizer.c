/*
 * tokenizer.json, tokenizer_config.json and a text, from any bytes. The input is the three, divided
 * by lines that hold a single 0x1E byte. What is accepted must encode and decode within its
 * promises: ids in range, whole UTF-8 out, streaming as long as decoding at once.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"

#define TEXT_MAX 512 /* longer texts only cost time */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct nosa_tokenizer_bytes take_part(const char **at, const char *end)
{
    const char *start = *at;
    const char *divider = memchr(start, 0x1E, (size_t)(end - start));
    const char *stop = divider == NULL ? end : divider;
    *at = divider == NULL ? end : divider + 1;
    return (struct nosa_tokenizer_bytes){start, (size_t)(stop - start)};
}

/* A refusal says why, in one line. */
static void check_error(enum nosa_status status, const struct nosa_error *error)
{
    NOSA_ASSERT(error->status == status && status != NOSA_INTERNAL);
    NOSA_ASSERT(error->text[0] != '\0' && strchr(error->text, '\n') == NULL);
}

/* What was appended since the stream had `before` bytes is whole characters. */
static void check_whole_characters(const struct nosa_buffer *stream, size_t before)
{
    NOSA_ASSERT(stream->size >= before);
    if (stream->size > before)
        NOSA_ASSERT(nosa_utf8_is_valid(stream->data + before, stream->size - before));
}

static void check_text(const struct nosa_tokenizer *tokenizer, const struct nosa_tokens *tokens)
{
    struct nosa_buffer whole = {0};
    struct nosa_buffer stream = {0};
    struct nosa_detokenizer *detokenizer;
    NOSA_ASSERT(nosa_tokenizer_decode(tokenizer, tokens->ids, tokens->count, &whole, NULL) ==
                NOSA_OK);
    NOSA_ASSERT(whole.size == 0 || nosa_utf8_is_valid(whole.data, whole.size));
    NOSA_ASSERT(nosa_detokenizer_create(tokenizer, NULL, 0, &detokenizer, NULL) == NOSA_OK);
    for (size_t i = 0; i < tokens->count; i++) {
        size_t before = stream.size;
        NOSA_ASSERT(nosa_detokenizer_push(detokenizer, tokens->ids[i], &stream, NULL) == NOSA_OK);
        check_whole_characters(&stream, before);
    }
    size_t before = stream.size;
    NOSA_ASSERT(nosa_detokenizer_finish(detokenizer, &stream, NULL) == NOSA_OK);
    check_whole_characters(&stream, before);
    nosa_detokenizer_free(detokenizer);
    nosa_buffer_free(&stream);
    nosa_buffer_free(&whole);
}

static void check_ids(const struct nosa_tokenizer *tokenizer, const struct nosa_tokens *tokens)
{
    size_t size;
    for (size_t i = 0; i < tokens->count; i++)
        NOSA_ASSERT(nosa_tokenizer_piece(tokenizer, tokens->ids[i], &size) != NULL);
}

static void use(const struct nosa_tokenizer *tokenizer, struct nosa_tokenizer_bytes text)
{
    struct nosa_tokens tokens = {0};
    size_t size = text.size < TEXT_MAX ? text.size : TEXT_MAX;
    struct nosa_error error = {0};
    /* One choice of flags an input: its length makes it. */
    enum nosa_status status =
        nosa_tokenizer_encode(tokenizer, text.data, size, (unsigned)text.size % 4, &tokens, &error);
    if (status != NOSA_OK)
        check_error(status, &error);
    struct nosa_chat_message messages[] = {{"system", text.data, size / 2},
                                           {"user", text.data, size}};
    struct nosa_chat_options options = {.add_generation_prompt = true};
    error = (struct nosa_error){0};
    status = nosa_chat_encode(tokenizer, messages + (size & 1), 2 - (size & 1), &options, &tokens,
                              &error);
    if (status != NOSA_OK)
        check_error(status, &error);
    check_ids(tokenizer, &tokens);
    check_text(tokenizer, &tokens);
    nosa_tokens_free(&tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data;
    const char *end = at + size;
    struct nosa_tokenizer_files files = {0};
    struct nosa_tokenizer *tokenizer;
    struct nosa_error error = {0};
    files.tokenizer_json = take_part(&at, end);
    files.config_json = take_part(&at, end);
    enum nosa_status status = nosa_tokenizer_open_memory(&files, &tokenizer, &error);
    if (status != NOSA_OK) {
        NOSA_ASSERT(tokenizer == NULL);
        check_error(status, &error);
        return 0;
    }
    use(tokenizer, take_part(&at, end));
    nosa_tokenizer_close(tokenizer);
    return 0;
}
