/*
 * Renders conversations by family; see chat.h. The whole conversation is rendered as text, as
 * apply_chat_template does, because words form across the border of layout and content; beside it
 * goes the list of the ranges that are content, where no control token is recognised.
 */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tokenizer/tokenizer_internal.h"

struct rendering {
    const struct nosa_tokenizer *tokenizer;
    const struct nosa_chat_message *messages;
    size_t message_count;
    struct nosa_buffer text;
    struct nosa_range *ranges; /* owned: two for each message at most */
    size_t range_count;
};

struct span {
    const char *data;
    size_t size;
};

static bool has(const struct rendering *r, const char *phrase)
{
    return strstr(r->tokenizer->chat_template, phrase) != NULL;
}

/* Append failures stay in the buffer and are looked up once, at the end. */
static void layout(struct rendering *r, const char *text)
{
    nosa_buffer_append_text(&r->text, text);
}

static void layout_token(struct rendering *r, int32_t id)
{
    size_t size;
    const char *content = nosa_tokenizer_piece(r->tokenizer, id, &size);
    if (content != NULL)
        nosa_buffer_append(&r->text, content, size);
}

static void content(struct rendering *r, struct span span)
{
    if (span.size == 0)
        return;
    size_t start = r->text.size;
    nosa_unicode_repair(span.data, span.size, &r->text);
    r->ranges[r->range_count++] = (struct nosa_range){start, r->text.size};
}

static struct span whole(const struct nosa_chat_message *message)
{
    return (struct span){message->content, message->content_size};
}

/* White space as Python's str.strip knows it. */
static bool is_python_space(uint32_t code_point)
{
    return nosa_unicode_is_space(code_point) || (code_point >= 0x1C && code_point <= 0x1F);
}

static struct span strip_end(struct span span)
{
    uint32_t code_point;
    while (span.size > 0) {
        size_t length = nosa_unicode_previous(span.data, span.size, &code_point);
        if (!is_python_space(code_point))
            break;
        span.size -= length;
    }
    return span;
}

static struct span strip(struct span span)
{
    uint32_t code_point;
    while (span.size > 0) {
        size_t length = nosa_unicode_next(span.data, span.size, 0, &code_point);
        if (!is_python_space(code_point))
            break;
        span.data += length;
        span.size -= length;
    }
    return strip_end(span);
}

static bool is_role(const struct nosa_chat_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static enum nosa_status refuse(const struct rendering *r, const char *what,
                               struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_UNSUPPORTED, "the %s chat format has no %s",
                          nosa_chat_family_name(r->tokenizer->chat_family), what);
}

/* User and assistant by turns, from `first` on. */
static enum nosa_status check_turns(const struct rendering *r, size_t first,
                                    struct nosa_error *error)
{
    for (size_t i = first; i < r->message_count; i++) {
        const char *expected = (i - first) % 2 == 0 ? "user" : "assistant";
        if (!is_role(&r->messages[i], expected))
            return refuse(r, "other order of roles than user and assistant by turns", error);
    }
    return NOSA_OK;
}

/* ---- ChatML ---- */

/* The default system message that the template holds as a literal behind <|im_start|>system;
 * empty if there is none. */
static void append_default_system(const struct rendering *r, struct nosa_buffer *out)
{
    static const char opening[] = "<|im_start|>system";
    const char *at = strstr(r->tokenizer->chat_template, opening);
    for (; at != NULL; at = strstr(at + 1, opening)) {
        const char *text = at + sizeof opening - 1;
        if (strncmp(text, "\\n", 2) == 0)
            text += 2;
        else if (*text == '\n')
            text++;
        else
            continue;
        const char *end = strstr(text, "<|im_end|>");
        if (end == NULL || end == text || strcspn(text, "'\"{}") < (size_t)(end - text))
            continue;
        for (; text < end; text++) {
            bool newline = text[0] == '\\' && text[1] == 'n';
            nosa_buffer_append(out, newline ? "\n" : text, 1);
            text += newline ? 1 : 0;
        }
        return;
    }
}

static struct span after_thoughts(struct span span)
{
    static const char closing[] = "</think>";
    for (;;) {
        const char *hit = memmem(span.data, span.size, closing, sizeof closing - 1);
        if (hit == NULL)
            return span;
        const char *rest = hit + sizeof closing - 1;
        span.size -= (size_t)(rest - span.data);
        span.data = rest;
        if (memmem(span.data, span.size, closing, sizeof closing - 1) == NULL)
            break;
    }
    while (span.size > 0 && span.data[0] == '\n') {
        span.data++;
        span.size--;
    }
    return span;
}

static size_t last_user(const struct rendering *r)
{
    size_t last = r->message_count;
    for (size_t i = 0; i < r->message_count; i++) {
        if (is_role(&r->messages[i], "user"))
            last = i;
    }
    return last;
}

static enum nosa_status render_chatml(struct rendering *r, const struct nosa_chat_options *options,
                                      struct nosa_error *error)
{
    bool trims = has(r, "['content'] | trim") || has(r, "content|trim") || has(r, "content | trim");
    bool drops_thoughts = has(r, "</think>") && has(r, "reasoning_content");
    if (has(r, "bos_token"))
        layout_token(r, r->tokenizer->bos_id);
    if (!is_role(&r->messages[0], "system")) {
        struct nosa_buffer system = {0};
        append_default_system(r, &system);
        if (system.size > 0) {
            layout(r, "<|im_start|>system\n");
            layout(r, system.data);
            layout(r, "<|im_end|>\n");
        }
        r->text.failed |= nosa_buffer_failed(&system);
        nosa_buffer_free(&system);
    }
    for (size_t i = 0; i < r->message_count; i++) {
        const struct nosa_chat_message *message = &r->messages[i];
        struct span span = trims ? strip(whole(message)) : whole(message);
        if (drops_thoughts && is_role(message, "assistant")) {
            if (i > last_user(r) || last_user(r) == r->message_count)
                return refuse(r, "assistant message after the last user message here", error);
            span = after_thoughts(span);
        }
        layout(r, "<|im_start|>");
        layout(r, message->role);
        layout(r, "\n");
        content(r, span);
        layout(r, "<|im_end|>\n");
    }
    if (options->add_generation_prompt) {
        layout(r, "<|im_start|>assistant\n");
        if (has(r, "<|im_start|>assistant\\n<think>\\n"))
            layout(r, "<think>\n");
    }
    return NOSA_OK;
}

/* ---- Llama 3 ---- */

static void llama3_header(struct rendering *r, const char *role)
{
    layout(r, "<|start_header_id|>");
    layout(r, role);
    layout(r, "<|end_header_id|>\n\n");
}

static enum nosa_status render_llama3(struct rendering *r, const struct nosa_chat_options *options,
                                      struct nosa_error *error)
{
    (void)error;
    size_t first = 0;
    if (has(r, "bos_token"))
        layout_token(r, r->tokenizer->bos_id);
    /* From 3.1 on there always is a system message, which states two dates. */
    if (has(r, "Cutting Knowledge Date: December 2023")) {
        llama3_header(r, "system");
        layout(r, "Cutting Knowledge Date: December 2023\nToday Date: ");
        layout(r, options->date != NULL ? options->date : "26 Jul 2024");
        layout(r, "\n\n");
        if (is_role(&r->messages[0], "system"))
            content(r, strip(whole(&r->messages[first++])));
        layout(r, "<|eot_id|>");
    }
    for (size_t i = first; i < r->message_count; i++) {
        llama3_header(r, r->messages[i].role);
        content(r, strip(whole(&r->messages[i])));
        layout(r, "<|eot_id|>");
    }
    if (options->add_generation_prompt)
        llama3_header(r, "assistant");
    return NOSA_OK;
}

/* ---- [INST] ---- */

static enum nosa_status render_llama2(struct rendering *r, const struct nosa_chat_options *options,
                                      struct nosa_error *error)
{
    (void)options; /* a user's turn already ends with the beginning of the answer */
    size_t first = is_role(&r->messages[0], "system") ? 1 : 0;
    if (first == r->message_count)
        return refuse(r, "conversation of a system message alone", error);
    NOSA_TRY(check_turns(r, first, error));
    for (size_t i = first; i < r->message_count; i++) {
        const struct nosa_chat_message *message = &r->messages[i];
        if (is_role(message, "assistant")) {
            layout(r, " ");
            content(r, strip(whole(message)));
            layout(r, " ");
            layout_token(r, r->tokenizer->eos_id);
            continue;
        }
        layout_token(r, r->tokenizer->bos_id);
        layout(r, "[INST] ");
        if (i == first && first == 1) {
            layout(r, "<<SYS>>\n");
            content(r, whole(&r->messages[0]));
            /* The template strips the whole turn, so an empty message takes the newlines along. */
            struct span rest = strip_end(whole(message));
            layout(r, rest.size > 0 ? "\n<</SYS>>\n\n" : "\n<</SYS>>");
            content(r, rest);
        } else {
            content(r, strip(whole(message)));
        }
        layout(r, " [/INST]");
    }
    return NOSA_OK;
}

static enum nosa_status render_mistral(struct rendering *r, const struct nosa_chat_options *options,
                                       struct nosa_error *error)
{
    (void)options;
    NOSA_TRY(check_turns(r, 0, error));
    bool space_before = has(r, "' ' + message['content'] + eos_token");
    bool space_after = has(r, "message['content'] + eos_token + ' '");
    layout_token(r, r->tokenizer->bos_id);
    for (size_t i = 0; i < r->message_count; i++) {
        bool user = is_role(&r->messages[i], "user");
        layout(r, user ? "[INST] " : space_before ? " " : "");
        content(r, whole(&r->messages[i]));
        if (user) {
            layout(r, " [/INST]");
        } else {
            layout_token(r, r->tokenizer->eos_id);
            layout(r, space_after ? " " : "");
        }
    }
    return NOSA_OK;
}

/* ---- Gemma ---- */

static enum nosa_status render_gemma(struct rendering *r, const struct nosa_chat_options *options,
                                     struct nosa_error *error)
{
    size_t first = is_role(&r->messages[0], "system") ? 1 : 0;
    if (first == 1 && (!has(r, "first_user_prefix") || r->message_count == 1))
        return refuse(r, "system message of this kind", error);
    NOSA_TRY(check_turns(r, first, error));
    layout_token(r, r->tokenizer->bos_id);
    for (size_t i = first; i < r->message_count; i++) {
        bool user = is_role(&r->messages[i], "user");
        layout(r, user ? "<start_of_turn>user\n" : "<start_of_turn>model\n");
        if (i == first && first == 1) {
            content(r, whole(&r->messages[0]));
            layout(r, "\n\n");
        }
        content(r, strip(whole(&r->messages[i])));
        layout(r, "<end_of_turn>\n");
    }
    if (options->add_generation_prompt)
        layout(r, "<start_of_turn>model\n");
    return NOSA_OK;
}

/* ---- <|user|> ---- */

static enum nosa_status render_bars(struct rendering *r, const struct nosa_chat_options *options,
                                    struct nosa_error *error)
{
    (void)error;
    bool phi = r->tokenizer->chat_family == NOSA_CHAT_PHI3;
    if (has(r, "{{ bos_token }}"))
        layout_token(r, r->tokenizer->bos_id);
    bool skips_empty_system = has(r, "'system' and message['content']");
    for (size_t i = 0; i < r->message_count; i++) {
        const struct nosa_chat_message *message = &r->messages[i];
        if (skips_empty_system && is_role(message, "system") && message->content_size == 0)
            continue;
        layout(r, "<|");
        layout(r, message->role);
        layout(r, "|>\n");
        content(r, whole(message));
        if (phi)
            layout(r, "<|end|>");
        else
            layout_token(r, r->tokenizer->eos_id);
        layout(r, "\n");
    }
    if (options->add_generation_prompt)
        layout(r, "<|assistant|>\n");
    else if (phi && has(r, "{% else %}{{ eos_token }}"))
        layout_token(r, r->tokenizer->eos_id);
    return NOSA_OK;
}

/* ---- MiniCPM ---- */

static enum nosa_status render_minicpm(struct rendering *r, const struct nosa_chat_options *options,
                                       struct nosa_error *error)
{
    (void)options;
    (void)error;
    for (size_t i = 0; i < r->message_count; i++) {
        bool user = is_role(&r->messages[i], "user");
        layout(r, user ? "<用户>" : "");
        content(r, strip(whole(&r->messages[i])));
        layout(r, user ? "<AI>" : "");
    }
    return NOSA_OK;
}

/* ---- */

static enum nosa_status render(struct rendering *r, const struct nosa_chat_options *options,
                               struct nosa_error *error)
{
    switch (r->tokenizer->chat_family) {
    case NOSA_CHAT_CHATML: return render_chatml(r, options, error);
    case NOSA_CHAT_LLAMA3: return render_llama3(r, options, error);
    case NOSA_CHAT_LLAMA2: return render_llama2(r, options, error);
    case NOSA_CHAT_MISTRAL: return render_mistral(r, options, error);
    case NOSA_CHAT_GEMMA: return render_gemma(r, options, error);
    case NOSA_CHAT_PHI3:
    case NOSA_CHAT_ZEPHYR: return render_bars(r, options, error);
    case NOSA_CHAT_MINICPM: return render_minicpm(r, options, error);
    case NOSA_CHAT_NONE:
        return nosa_error_set(error, NOSA_UNSUPPORTED, "the model has no chat_template");
    case NOSA_CHAT_UNKNOWN: break;
    }
    return nosa_error_set(error, NOSA_UNSUPPORTED,
                          "the model's chat_template is of no known chat format (known: ChatML, "
                          "Llama 3, Llama 2, Mistral, Gemma, Phi-3, Zephyr, MiniCPM)");
}

static enum nosa_status check_messages(const struct nosa_chat_message *messages, size_t count,
                                       struct nosa_error *error)
{
    if (count == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "a conversation has no messages");
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (!is_role(&messages[i], "system") && !is_role(&messages[i], "user") &&
            !is_role(&messages[i], "assistant"))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "message %zu has role '%.40s', not system, user or assistant", i,
                                  messages[i].role);
        if (messages[i].content_size > NOSA_TOKENIZER_TEXT_BYTES_MAX - total)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "the messages are longer than the tokenizer's limit of %u bytes",
                                  NOSA_TOKENIZER_TEXT_BYTES_MAX);
        total += messages[i].content_size;
    }
    return NOSA_OK;
}

enum nosa_status nosa_chat_encode(const struct nosa_tokenizer *tokenizer,
                                  const struct nosa_chat_message *messages, size_t message_count,
                                  const struct nosa_chat_options *options,
                                  struct nosa_tokens *tokens, struct nosa_error *error)
{
    NOSA_TRY(check_messages(messages, message_count, error));
    struct rendering r = {
        .tokenizer = tokenizer, .messages = messages, .message_count = message_count};
    r.ranges = calloc(2 * message_count, sizeof *r.ranges);
    enum nosa_status status = NOSA_OUT_OF_MEMORY;
    if (r.ranges != NULL)
        status = render(&r, options, error);
    if (status == NOSA_OK && nosa_buffer_failed(&r.text))
        status = NOSA_OUT_OF_MEMORY;
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory to render the conversation");
    if (status == NOSA_OK)
        status = nosa_tokenizer_encode_chat(tokenizer, r.text.data, r.text.size, r.ranges,
                                            r.range_count, tokens, error);
    nosa_buffer_free(&r.text);
    free(r.ranges);
    return status;
}
