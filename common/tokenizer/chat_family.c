/*
 * Which family a chat_template belongs to, by what its text contains. A template counts as a
 * family's only where the phrases that decide its layout are there and nothing is that the family's
 * renderer would leave out; any other is unknown, which is better than a wrong prompt.
 */
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

#define PHRASES_MAX 6

struct family {
    enum nosa_chat_family family;
    const char *name;
    const char *all[PHRASES_MAX + 1];      /* phrases that must be there */
    const char *none[PHRASES_MAX + 1];     /* phrases that must not */
    const char *controls[PHRASES_MAX + 1]; /* control tokens of the layout */
};

static const struct family families[] = {
    {
        .family = NOSA_CHAT_CHATML,
        .name = "ChatML",
        .all = {"<|im_start|>", "<|im_end|>"},
        .none = {"<|im_sep|>", "[INST]", "Knowledge Cutoff", "strftime_now", "<|start_header_id|>"},
        .controls = {"<|im_start|>", "<|im_end|>"},
    },
    {
        .family = NOSA_CHAT_LLAMA3,
        .name = "Llama 3",
        .all = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "trim"},
        .none = {"<|im_start|>", "<|header_start|>"},
        .controls = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                     "<|eom_id|>", "<|python_tag|>"},
    },
    {
        .family = NOSA_CHAT_LLAMA2,
        .name = "Llama 2",
        .all = {"bos_token + '[INST] ' + content.strip() + ' [/INST]'", "<<SYS>>\\n",
                "\\n<</SYS>>\\n\\n", "' '  + content.strip() + ' ' + eos_token"},
        .controls = {"[INST]", "[/INST]"},
    },
    {
        .family = NOSA_CHAT_LLAMA2,
        .name = "Llama 2",
        .all = {"bos_token + '[INST] ' + content.strip() + ' [/INST]'", "<<SYS>>\\n",
                "\\n<</SYS>>\\n\\n", "' ' + content.strip() + ' ' + eos_token"},
        .controls = {"[INST]", "[/INST]"},
    },
    {
        .family = NOSA_CHAT_MISTRAL,
        .name = "Mistral",
        .all = {"{{ bos_token }}", "'[INST] ' + message['content'] + ' [/INST]'",
                "message['content'] + eos_token"},
        .none = {"<<SYS>>", "system_message"},
        .controls = {"[INST]", "[/INST]"},
    },
    {
        .family = NOSA_CHAT_GEMMA,
        .name = "Gemma",
        .all = {"<start_of_turn>", "<end_of_turn>", "model", "bos_token", "trim"},
        .controls = {"<start_of_turn>", "<end_of_turn>"},
    },
    {
        .family = NOSA_CHAT_PHI3,
        .name = "Phi-3",
        .all = {"'<|user|>\\n' + message['content'] + '<|end|>\\n'",
                "'<|assistant|>\\n' + message['content'] + '<|end|>\\n'"},
        .controls = {"<|user|>", "<|assistant|>", "<|system|>", "<|end|>"},
    },
    {
        .family = NOSA_CHAT_ZEPHYR,
        .name = "Zephyr",
        .all = {"'<|user|>\\n' + message['content'] + eos_token",
                "'<|assistant|>\\n'  + message['content'] + eos_token"},
        .controls = {"<|user|>", "<|assistant|>", "<|system|>"},
    },
    {
        .family = NOSA_CHAT_MINICPM,
        .name = "MiniCPM",
        .all = {"'<用户>' + message['content'].strip() + '<AI>'"},
        .none = {"system"},
        .controls = {"<用户>", "<AI>"},
    },
};

#define FAMILY_COUNT (sizeof families / sizeof families[0])

static bool fits(const struct family *family, const char *chat_template)
{
    for (size_t i = 0; family->all[i] != NULL; i++) {
        if (strstr(chat_template, family->all[i]) == NULL)
            return false;
    }
    for (size_t i = 0; family->none[i] != NULL; i++) {
        if (strstr(chat_template, family->none[i]) != NULL)
            return false;
    }
    return true;
}

enum nosa_chat_family nosa_chat_detect(const char *chat_template)
{
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        if (fits(&families[i], chat_template))
            return families[i].family;
    }
    return NOSA_CHAT_UNKNOWN;
}

static const struct family *find_family(enum nosa_chat_family family)
{
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        if (families[i].family == family)
            return &families[i];
    }
    return NULL;
}

const char *const *nosa_chat_controls(enum nosa_chat_family family)
{
    static const char *const none[] = {NULL};
    const struct family *found = find_family(family);
    return found == NULL ? none : found->controls;
}

const char *nosa_chat_family_name(enum nosa_chat_family family)
{
    const struct family *found = find_family(family);
    if (found != NULL)
        return found->name;
    return family == NOSA_CHAT_NONE ? "none" : "unknown";
}

enum nosa_chat_family nosa_chat_family(const struct nosa_tokenizer *tokenizer)
{
    return tokenizer->chat_family;
}
