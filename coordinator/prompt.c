/* Prompts to ids, and text to strings. */
#include <stdlib.h>
#include <string.h>

#include "coordinator_internal.h"
#include "tokenizer/chat.h"

/* Names the field, and keeps the code for what the client must change apart from what is ours. */
static enum nosa_status name_field(enum nosa_status status, const char *field,
                                   struct nosa_error *error)
{
    if (status != NOSA_OK)
        nosa_error_prefix(error, "%s", field);
    return status;
}

static enum nosa_status check_tokenizer(const struct nosa_model *model, const char *field,
                                        struct nosa_error *error)
{
    if (model->tokenizer)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "%s: model '%.128s' has no tokenizer and takes token_ids alone", field,
                          model->id);
}

enum nosa_status nosa_prompt_encode_text(const struct nosa_model *model, const char *text,
                                         struct nosa_tokens *tokens, struct nosa_error *error)
{
    NOSA_TRY(check_tokenizer(model, "text", error));
    return name_field(nosa_tokenizer_encode(model->tokenizer, text, strlen(text),
                                            NOSA_ENCODE_ADD_SPECIAL | NOSA_ENCODE_PARSE_SPECIAL,
                                            tokens, error),
                      "text", error);
}

enum nosa_status nosa_prompt_encode_chat(const struct nosa_model *model, const Nosa__V1__Chat *chat,
                                         struct nosa_tokens *tokens, struct nosa_error *error)
{
    const struct nosa_chat_options options = {.add_generation_prompt = true};
    NOSA_TRY(check_tokenizer(model, "chat", error));
    struct nosa_chat_message *messages = calloc(chat->n_messages, sizeof *messages);
    if (!messages)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a chat");
    for (size_t i = 0; i < chat->n_messages; i++)
        messages[i] =
            (struct nosa_chat_message){.role = chat->messages[i]->role,
                                       .content = chat->messages[i]->content,
                                       .content_size = strlen(chat->messages[i]->content)};
    enum nosa_status status =
        nosa_chat_encode(model->tokenizer, messages, chat->n_messages, &options, tokens, error);
    free(messages);
    return name_field(status, "chat", error);
}

const char *nosa_text_string(struct nosa_buffer *text)
{
    static const char replacement[] = "\xEF\xBF\xBD";
    if (text->size == 0)
        return "";
    if (!memchr(text->data, '\0', text->size))
        return text->data;
    struct nosa_buffer whole = {0};
    for (size_t i = 0; i < text->size; i++)
        nosa_buffer_append(&whole, text->data[i] ? &text->data[i] : replacement,
                           text->data[i] ? 1 : 3);
    if (nosa_buffer_failed(&whole)) {
        nosa_buffer_free(&whole);
        return NULL;
    }
    nosa_buffer_free(text);
    *text = whole;
    return text->data;
}
