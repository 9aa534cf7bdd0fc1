/*
 * Chat formats: messages to ids, for the families that the checkpoint's chat_template is
 * recognised as. The template itself (a Jinja program) is not run: its family is found by the
 * control tokens and phrases in its text, and the family's layout is rendered here. Stateless over
 * a tokenizer; any thread.
 */
#ifndef NOSA_TOKENIZER_CHAT_H
#define NOSA_TOKENIZER_CHAT_H

#include "tokenizer/tokenizer.h"

enum nosa_chat_family {
    NOSA_CHAT_NONE = 0,    /* the checkpoint has no chat_template */
    NOSA_CHAT_UNKNOWN = 1, /* it has one, of no family known here */
    NOSA_CHAT_CHATML = 2,  /* <|im_start|>role ... <|im_end|>: SmolLM2, Qwen 2 to 3, MiniCPM4 */
    NOSA_CHAT_LLAMA3 = 3,  /* <|start_header_id|>role<|end_header_id|> ... <|eot_id|> */
    NOSA_CHAT_LLAMA2 = 4,  /* [INST] <<SYS>> ... [/INST] */
    NOSA_CHAT_MISTRAL = 5, /* [INST] ... [/INST] without a system message (v0.1, v0.2) */
    NOSA_CHAT_GEMMA = 6,   /* <start_of_turn>user ... <end_of_turn> */
    NOSA_CHAT_PHI3 = 7,    /* <|user|> ... <|end|> */
    NOSA_CHAT_ZEPHYR = 8,  /* <|user|> ... and the eos token */
    NOSA_CHAT_MINICPM = 9, /* <用户> ... <AI> */
};

struct nosa_chat_message {
    const char *role;    /* borrowed: "system", "user" or "assistant" */
    const char *content; /* borrowed */
    size_t content_size; /* bytes */
};

struct nosa_chat_options {
    bool add_generation_prompt; /* end with the beginning of the assistant's answer */
    const char *date;           /* for templates that state today's date ("26 Jul 2024"); NULL: the
                                 * date that the template falls back to */
};

enum nosa_chat_family nosa_chat_family(const struct nosa_tokenizer *tokenizer);

/* The family's name for people, e.g. "ChatML"; never NULL. */
const char *nosa_chat_family_name(enum nosa_chat_family family);

/*
 * Appends the ids of a conversation to `tokens`: those that apply_chat_template gives with the
 * published template of the family, its default system message included where the template holds
 * one. Control tokens come from the layout alone: what a message spells stays text, so a message
 * cannot forge a turn. On error `tokens` has as many ids as before.
 * NOSA_UNSUPPORTED: no template, an unknown one, or a role or order of roles that it refuses;
 * NOSA_INVALID_ARGUMENT: no messages or an unknown role; and the errors of nosa_tokenizer_encode.
 */
enum nosa_status nosa_chat_encode(const struct nosa_tokenizer *tokenizer,
                                  const struct nosa_chat_message *messages, size_t message_count,
                                  const struct nosa_chat_options *options,
                                  struct nosa_tokens *tokens, struct nosa_error *error);

#endif
