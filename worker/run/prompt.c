#include "run/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/utf8.h"
#include "tokenizer/chat.h"

/* "1,2,3": numbers below 2^31, separated by single commas, spaces allowed around them. */
static enum nosa_status parse_ids(const char *text, struct nosa_tokens *tokens,
                                  struct nosa_error *error)
{
    const char *at = text;
    for (;;) {
        at += strspn(at, " \t\n");
        size_t digits = strspn(at, "0123456789");
        unsigned long long id = digits >= 1 && digits <= 10 ? strtoull(at, NULL, 10) : UINT64_MAX;
        if (id > INT32_MAX)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "--prompt-tokens: '%.20s' at byte %zu is not a token id", at,
                                  (size_t)(at - text));
        if (nosa_tokens_append(tokens, (int32_t)id) != NOSA_OK)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the prompt's tokens");
        at += digits;
        at += strspn(at, " \t\n");
        if (*at == '\0')
            return NOSA_OK;
        if (*at++ != ',')
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "--prompt-tokens: '%.20s' at byte %zu where a comma was expected",
                                  at - 1, (size_t)(at - 1 - text));
    }
}

static enum nosa_status encode_text(const struct nosa_run_options *options,
                                    const struct nosa_tokenizer *tokenizer, const char *source,
                                    const char *text, size_t size, struct nosa_tokens *tokens,
                                    struct nosa_error *error)
{
    if (size == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: the text is empty", source);
    size_t valid = nosa_utf8_valid_prefix(text, size);
    if (valid != size)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not UTF-8 at byte %zu", source,
                              valid);
    enum nosa_status status;
    if (options->chat) {
        const struct nosa_chat_message message = {"user", text, size};
        const struct nosa_chat_options chat = {.add_generation_prompt = true};
        status = nosa_chat_encode(tokenizer, &message, 1, &chat, tokens, error);
    } else {
        status = nosa_tokenizer_encode(tokenizer, text, size,
                                       NOSA_ENCODE_ADD_SPECIAL | NOSA_ENCODE_PARSE_SPECIAL, tokens,
                                       error);
    }
    if (status == NOSA_OK && tokens->count == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: the text has no tokens", source);
    return status;
}

enum nosa_status nosa_run_read_prompt(const struct nosa_run_options *options,
                                      const struct nosa_tokenizer *tokenizer,
                                      struct nosa_tokens *tokens, struct nosa_error *error)
{
    if (options->prompt_tokens)
        return parse_ids(options->prompt_tokens, tokens, error);
    if (options->prompt)
        return encode_text(options, tokenizer, "--prompt", options->prompt, strlen(options->prompt),
                           tokens, error);
    const char *path = options->prompt_file ? options->prompt_file : options->score_file;
    const char *source = strcmp(path, "-") == 0 ? "standard input" : path;
    char *text;
    size_t size;
    NOSA_TRY(nosa_file_read_input(path, NOSA_TOKENIZER_TEXT_BYTES_MAX, &text, &size, error));
    enum nosa_status status = encode_text(options, tokenizer, source, text, size, tokens, error);
    free(text);
    return status;
}
