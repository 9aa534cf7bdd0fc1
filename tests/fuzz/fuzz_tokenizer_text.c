/*
 * Texts of any bytes for fixed tokenizers of the main families, built in here so that the target
 * needs no files. The first byte chooses family and flags. Byte-level ones must give the text back,
 * repaired to UTF-8.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"

#define FAMILIES 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const settings[FAMILIES] = {
    /* Llama 3 */
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
    "\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
    "\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"
    "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"}",
    /* SmolLM2 */
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
    "\"Digits\",\"individual_digits\":true},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
    "\"use_regex\":true}]},\"decoder\":{\"type\":\"ByteLevel\"}",
    /* Qwen */
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"}",
    /* Llama 2 */
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
    "\"\xE2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":"
    "\"\xE2\x96\x81\"}]},\"pre_tokenizer\":null,\"decoder\":{\"type\":\"Sequence\",\"decoders\":"
    "[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},{\"type\":"
    "\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,"
    "\"stop\":0}]}",
};

static struct nosa_tokenizer *tokenizers[FAMILIES];

/* The character that stands for a byte in byte-level vocabularies. */
static unsigned alphabet(unsigned byte)
{
    unsigned shifted = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        bool own = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        if (b == byte)
            return own ? b : shifted;
        shifted += !own;
    }
    return 0;
}

static void write_vocabulary(struct nosa_buffer *json, bool bytes)
{
    static const char *const rest[] = {"t", "h", "e", "th", "the", "aa", "aaaa"};
    int id = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        if (bytes)
            nosa_buffer_printf(json, "\"<0x%02X>\":%d,", byte, id++);
        else
            nosa_buffer_printf(json, "\"\\u%04x\":%d,", alphabet(byte), id++);
    }
    if (bytes)
        nosa_buffer_printf(json, "\"\xE2\x96\x81\":%d,\"a\":%d,", id, id + 1);
    id += bytes ? 2 : 0;
    for (size_t i = bytes ? 0 : 3; i < 7; i++)
        nosa_buffer_printf(json, "\"%s\":%d%s", rest[i], id++, i < 6 ? "," : "");
}

static void open_all(void)
{
    for (int i = 0; i < FAMILIES; i++) {
        struct nosa_buffer json = {0};
        struct nosa_error error = {0};
        bool bytes = i == 3;
        nosa_buffer_printf(&json,
                           "{%s,\"added_tokens\":[{\"id\":900,\"content\":\"<|im_start|>\","
                           "\"special\":true},{\"id\":901,\"content\":\"<|im_end|>\","
                           "\"special\":true},{\"id\":902,\"content\":\"<th>\",\"lstrip\":"
                           "true,\"rstrip\":true,\"special\":%s}],\"model\":{\"type\":"
                           "\"BPE\",\"byte_fallback\":%s,\"vocab\":{",
                           settings[i], bytes ? "true" : "false", bytes ? "true" : "false");
        write_vocabulary(&json, bytes);
        nosa_buffer_append_text(&json, "},\"merges\":[\"t h\",\"th e\",\"a a\",\"aa aa\"]}}");
        static const char config[] = "{\"chat_template\":\"<|im_start|> <|im_end|>\"}";
        struct nosa_tokenizer_files files = {.tokenizer_json = {json.data, json.size},
                                             .config_json = {config, sizeof config - 1}};
        if (nosa_tokenizer_open_memory(&files, &tokenizers[i], &error) != NOSA_OK) {
            fprintf(stderr, "%s\n", error.text);
            abort();
        }
        nosa_buffer_free(&json);
    }
}

static void check_round_trip(const struct nosa_buffer *text, const char *data, size_t size)
{
    size_t at = 0;
    for (size_t i = 0; i < size;) {
        size_t valid = nosa_utf8_valid_prefix(data + i, size - i);
        NOSA_ASSERT(text->size - at >= valid && memcmp(text->data + at, data + i, valid) == 0);
        i += valid;
        at += valid;
        if (i < size) {
            NOSA_ASSERT(text->size - at >= 3 && memcmp(text->data + at, "\xEF\xBF\xBD", 3) == 0);
            i += nosa_utf8_invalid_length(data + i, size - i);
            at += 3;
        }
    }
    NOSA_ASSERT(at == text->size);
}

/* What was appended since the stream had `before` bytes is whole characters. */
static void check_whole_characters(const struct nosa_buffer *stream, size_t before)
{
    NOSA_ASSERT(stream->size >= before);
    if (stream->size > before)
        NOSA_ASSERT(nosa_utf8_is_valid(stream->data + before, stream->size - before));
}

static void check_stream(const struct nosa_tokenizer *tokenizer, const struct nosa_tokens *tokens,
                         const struct nosa_buffer *text, size_t cut)
{
    struct nosa_buffer stream = {0};
    struct nosa_detokenizer *detokenizer;
    NOSA_ASSERT(nosa_detokenizer_create(tokenizer, NULL, 0, &detokenizer, NULL) == NOSA_OK);
    for (size_t i = 0; i < tokens->count; i++) {
        if (i == cut) {
            nosa_detokenizer_free(detokenizer);
            NOSA_ASSERT(nosa_detokenizer_create(tokenizer, tokens->ids, i, &detokenizer, NULL) ==
                        NOSA_OK);
        }
        size_t before = stream.size;
        NOSA_ASSERT(nosa_detokenizer_push(detokenizer, tokens->ids[i], &stream, NULL) == NOSA_OK);
        check_whole_characters(&stream, before);
    }
    size_t before = stream.size;
    NOSA_ASSERT(nosa_detokenizer_finish(detokenizer, &stream, NULL) == NOSA_OK);
    check_whole_characters(&stream, before);
    NOSA_ASSERT(stream.size == text->size);
    NOSA_ASSERT(stream.size == 0 || memcmp(stream.data, text->data, stream.size) == 0);
    nosa_detokenizer_free(detokenizer);
    nosa_buffer_free(&stream);
}

static void check_chat(const struct nosa_tokenizer *tokenizer, const char *text, size_t size)
{
    struct nosa_chat_message message = {"user", text, size};
    struct nosa_chat_options options = {.add_generation_prompt = true};
    struct nosa_tokens tokens = {0};
    size_t starts = 0;
    size_t ends = 0;
    NOSA_ASSERT(nosa_chat_encode(tokenizer, &message, 1, &options, &tokens, NULL) == NOSA_OK);
    for (size_t i = 0; i < tokens.count; i++) {
        starts += tokens.ids[i] == 900;
        ends += tokens.ids[i] == 901;
    }
    NOSA_ASSERT(starts == 2 && ends == 1);
    nosa_tokens_free(&tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (tokenizers[0] == NULL)
        open_all();
    if (size == 0)
        return 0;
    unsigned choice = data[0];
    const struct nosa_tokenizer *tokenizer = tokenizers[choice % FAMILIES];
    const char *text = (const char *)data + 1;
    unsigned flags = choice / FAMILIES % 4;
    struct nosa_tokens tokens = {0};
    struct nosa_buffer decoded = {0};
    NOSA_ASSERT(nosa_tokenizer_encode(tokenizer, text, size - 1, flags, &tokens, NULL) == NOSA_OK);
    NOSA_ASSERT(nosa_tokenizer_decode(tokenizer, tokens.ids, tokens.count, &decoded, NULL) ==
                NOSA_OK);
    NOSA_ASSERT(decoded.size == 0 || nosa_utf8_is_valid(decoded.data, decoded.size));
    bool has_added = false; /* <th> takes the spaces around it */
    for (size_t i = 0; i < tokens.count; i++)
        has_added |= tokens.ids[i] >= 900;
    if (choice % FAMILIES < 2 && !has_added)
        check_round_trip(&decoded, text, size - 1);
    check_stream(tokenizer, &tokens, &decoded, tokens.count > 0 ? choice % tokens.count : 0);
    check_chat(tokenizer, text, size - 1);
    nosa_buffer_free(&decoded);
    nosa_tokens_free(&tokens);
    return 0;
}
