/* Opens a tokenizer from its files; see tokenizer.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/utf8.h"
#include "tokenizer/tokenizer_internal.h"

#define SMALL_FILE_BYTES_MAX (16u << 20) /* of every file but tokenizer.json */
#define PATH_BYTES_MAX       4096

/* ---- added tokens ---- */

static enum nosa_status load_added_token(struct nosa_tokenizer *tokenizer, const json_t *json,
                                         size_t index, struct nosa_error *error)
{
    char what[48];
    snprintf(what, sizeof what, "added_tokens[%zu]", index);
    const json_t *content = json_object_get(json, "content");
    const json_t *id = json_object_get(json, "id");
    if (!json_is_string(content) || !json_is_integer(id))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s has no string \"content\" or no integer \"id\"", what);
    size_t size = json_string_length(content);
    if (size == 0)
        return NOSA_OK;
    if (size > ADDED_BYTES_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "%s is longer than %d bytes", what,
                              ADDED_BYTES_MAX);
    struct nosa_added_token *token = &tokenizer->added[tokenizer->added_count];
    bool special;
    NOSA_TRY(nosa_member_bool(json, what, "special", false, &special, error));
    NOSA_TRY(nosa_member_bool(json, what, "single_word", false, &token->single_word, error));
    NOSA_TRY(nosa_member_bool(json, what, "lstrip", false, &token->lstrip, error));
    NOSA_TRY(nosa_member_bool(json, what, "rstrip", false, &token->rstrip, error));
    NOSA_TRY(nosa_member_bool(json, what, "normalized", !special, &token->normalized, error));
    NOSA_TRY(nosa_vocab_add(&tokenizer->vocab, json_string_value(content), size,
                            json_integer_value(id), PIECE_ADDED | (special ? PIECE_SPECIAL : 0),
                            error));
    token->id = (int32_t)json_integer_value(id);
    tokenizer->added_count++;
    return NOSA_OK;
}

static enum nosa_status load_added(struct nosa_tokenizer *tokenizer, const json_t *root,
                                   struct nosa_error *error)
{
    const json_t *list = json_object_get(root, "added_tokens");
    if (list == NULL || json_is_null(list))
        return NOSA_OK;
    if (!json_is_array(list))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"added_tokens\" is not an array");
    /* Twice as many: a control token may have a second entry for chat text. */
    size_t count = json_array_size(list);
    tokenizer->added = calloc(2 * count + 1, sizeof *tokenizer->added);
    if (tokenizer->added == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the added tokens");
    for (size_t i = 0; i < count; i++)
        NOSA_TRY(load_added_token(tokenizer, json_array_get(list, i), i, error));
    return NOSA_OK;
}

/* An added token that is matched after normalization is matched, and decoded, in its normalized
 * form. A control token of this kind is matched as it stands in chat text. */
static enum nosa_status index_normalized(struct nosa_tokenizer *tokenizer,
                                         struct nosa_encoding *encoding, size_t index,
                                         struct nosa_error *error)
{
    struct nosa_added_token *token = &tokenizer->added[index];
    const struct nosa_piece *piece = &tokenizer->vocab.pieces[token->id];
    const char *content = tokenizer->vocab.arena.data + piece->offset;
    if ((piece->flags & (PIECE_SPECIAL | PIECE_CONTROL)) != 0) {
        size_t twin = tokenizer->added_count++;
        tokenizer->added[twin] = *token;
        tokenizer->added[twin].chat_only = true;
        NOSA_TRY(nosa_trie_add(&tokenizer->raw_trie, content, piece->size, (int32_t)twin));
    }
    NOSA_TRY(nosa_normalizer_apply(&tokenizer->normalizer, encoding, content, piece->size, error));
    const struct nosa_buffer *normalized = &encoding->normalized;
    NOSA_TRY(nosa_trie_add(&tokenizer->normalized_trie, normalized->data, normalized->size,
                           (int32_t)index));
    return nosa_vocab_set_text(&tokenizer->vocab, token->id, normalized->data, normalized->size);
}

/* Fills both tries, once the control tokens and the normalizer are known. */
static enum nosa_status index_added(struct nosa_tokenizer *tokenizer, struct nosa_error *error)
{
    struct nosa_encoding encoding = {.tokenizer = tokenizer};
    enum nosa_status status = NOSA_OK;
    size_t count = tokenizer->added_count;
    for (size_t i = 0; i < count && status == NOSA_OK; i++) {
        if (tokenizer->added[i].normalized) {
            status = index_normalized(tokenizer, &encoding, i, error);
            continue;
        }
        const struct nosa_piece *piece = &tokenizer->vocab.pieces[tokenizer->added[i].id];
        status = nosa_trie_add(&tokenizer->raw_trie, tokenizer->vocab.arena.data + piece->offset,
                               piece->size, (int32_t)i);
    }
    nosa_buffer_free(&encoding.normalized);
    nosa_buffer_free(&encoding.swap);
    nosa_regex_scratch_free(&encoding.regex);
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory for the added tokens");
    return status;
}

/* ---- post-processor ---- */

struct affix {
    int32_t ids[TEMPLATE_IDS_MAX];
    size_t count;
};

static enum nosa_status add_affix_id(const struct nosa_tokenizer *tokenizer, struct affix *affix,
                                     const json_t *id, struct nosa_error *error)
{
    json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    size_t size;
    if (value < 0 || value >= NOSA_TOKENIZER_IDS_MAX ||
        nosa_tokenizer_piece(tokenizer, (int32_t)value, &size) == NULL)
        return nosa_error_set(error, NOSA_CORRUPT, "post_processor: an id is of no token");
    if (affix->count == TEMPLATE_IDS_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "post_processor: more than %d added tokens",
                              TEMPLATE_IDS_MAX);
    affix->ids[affix->count++] = (int32_t)value;
    return NOSA_OK;
}

/* Puts one processor's tokens around those of the processors before it. */
static enum nosa_status wrap(struct nosa_tokenizer *tokenizer, const struct affix *prefix,
                             const struct affix *suffix, struct nosa_error *error)
{
    if (tokenizer->prefix_count + prefix->count > TEMPLATE_IDS_MAX ||
        tokenizer->suffix_count + suffix->count > TEMPLATE_IDS_MAX)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "post_processor: more than %d added tokens",
                              TEMPLATE_IDS_MAX);
    memmove(tokenizer->prefix_ids + prefix->count, tokenizer->prefix_ids,
            tokenizer->prefix_count * sizeof *tokenizer->prefix_ids);
    memcpy(tokenizer->prefix_ids, prefix->ids, prefix->count * sizeof *prefix->ids);
    tokenizer->prefix_count += prefix->count;
    memcpy(tokenizer->suffix_ids + tokenizer->suffix_count, suffix->ids,
           suffix->count * sizeof *suffix->ids);
    tokenizer->suffix_count += suffix->count;
    return NOSA_OK;
}

static enum nosa_status add_template_token(const struct nosa_tokenizer *tokenizer,
                                           const json_t *json, const json_t *special,
                                           struct affix *affix, struct nosa_error *error)
{
    const char *name = json_string_value(json_object_get(special, "id"));
    const json_t *known =
        json_object_get(json_object_get(json, "special_tokens"), name == NULL ? "" : name);
    const json_t *ids = json_object_get(known, "ids");
    if (name == NULL || !json_is_array(ids))
        return nosa_error_set(error, NOSA_CORRUPT,
                              "post_processor: special token '%.60s' has no ids",
                              name == NULL ? "" : name);
    for (size_t i = 0; i < json_array_size(ids); i++)
        NOSA_TRY(add_affix_id(tokenizer, affix, json_array_get(ids, i), error));
    return NOSA_OK;
}

static enum nosa_status load_template(struct nosa_tokenizer *tokenizer, const json_t *json,
                                      struct nosa_error *error)
{
    struct affix sides[2] = {{.count = 0}, {.count = 0}};
    size_t sequences = 0;
    const json_t *single = json_object_get(json, "single");
    if (!json_is_array(single))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "post_processor TemplateProcessing: \"single\" is not an array");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        if (json_object_get(item, "Sequence") != NULL)
            sequences++;
        else if (special == NULL)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "post_processor TemplateProcessing: single[%zu] is unknown", i);
        else
            NOSA_TRY(add_template_token(tokenizer, json, special, &sides[sequences > 0], error));
    }
    if (sequences != 1)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "post_processor TemplateProcessing: \"single\" does not hold the "
                              "text once");
    return wrap(tokenizer, &sides[0], &sides[1], error);
}

/* cls and sep of RobertaProcessing and BertProcessing: ["</s>", 2]. */
static enum nosa_status load_cls_sep(struct nosa_tokenizer *tokenizer, const json_t *json,
                                     struct nosa_error *error)
{
    struct affix prefix = {.count = 0};
    struct affix suffix = {.count = 0};
    NOSA_TRY(
        add_affix_id(tokenizer, &prefix, json_array_get(json_object_get(json, "cls"), 1), error));
    NOSA_TRY(
        add_affix_id(tokenizer, &suffix, json_array_get(json_object_get(json, "sep"), 1), error));
    return wrap(tokenizer, &prefix, &suffix, error);
}

static enum nosa_status load_processor(void *target, const json_t *json, const char *type,
                                       struct nosa_error *error)
{
    if (strcmp(type, "ByteLevel") == 0)
        return NOSA_OK; /* moves offsets only */
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(target, json, error);
    if (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0)
        return load_cls_sep(target, json, error);
    return nosa_error_set(error, NOSA_UNSUPPORTED, "post_processor '%.60s' is not supported", type);
}

/* ---- the other files ---- */

static void find_named_token(const struct nosa_tokenizer *tokenizer, const json_t *root,
                             const char *key, int32_t *id)
{
    const json_t *token = json_object_get(root, key);
    if (json_is_object(token))
        token = json_object_get(token, "content");
    if (*id < 0 && json_is_string(token))
        *id = nosa_tokenizer_find(tokenizer, json_string_value(token), json_string_length(token));
}

static enum nosa_status keep_template(struct nosa_tokenizer *tokenizer, const char *text,
                                      size_t size, struct nosa_error *error)
{
    tokenizer->chat_template = malloc(size + 1);
    if (tokenizer->chat_template == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the chat template");
    memcpy(tokenizer->chat_template, text, size);
    tokenizer->chat_template[size] = '\0';
    return NOSA_OK;
}

/* chat_template is a text, or a list of named ones, of which "default" counts. */
static enum nosa_status load_config_template(struct nosa_tokenizer *tokenizer, const json_t *root,
                                             struct nosa_error *error)
{
    const json_t *json = json_object_get(root, "chat_template");
    if (json_is_array(json)) {
        const json_t *list = json;
        json = NULL;
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *item = json_array_get(list, i);
            const char *name = json_string_value(json_object_get(item, "name"));
            if (name != NULL && strcmp(name, "default") == 0)
                json = json_object_get(item, "template");
        }
    }
    if (!json_is_string(json))
        return NOSA_OK;
    return keep_template(tokenizer, json_string_value(json), json_string_length(json), error);
}

static enum nosa_status load_config(struct nosa_tokenizer *tokenizer,
                                    const struct nosa_tokenizer_files *files,
                                    struct nosa_error *error)
{
    const struct nosa_tokenizer_bytes bytes[2] = {files->config_json, files->special_tokens_map};
    static const char *const names[2] = {"tokenizer_config.json", "special_tokens_map.json"};
    if (files->chat_template.size > 0)
        NOSA_TRY(
            keep_template(tokenizer, files->chat_template.data, files->chat_template.size, error));
    for (int i = 0; i < 2; i++) {
        json_t *root;
        if (bytes[i].size == 0)
            continue;
        NOSA_TRY(nosa_member_parse(bytes[i], names[i], &root, error));
        find_named_token(tokenizer, root, "bos_token", &tokenizer->bos_id);
        find_named_token(tokenizer, root, "eos_token", &tokenizer->eos_id);
        enum nosa_status status = NOSA_OK;
        if (tokenizer->chat_template == NULL && i == 0)
            status = load_config_template(tokenizer, root, error);
        json_decref(root);
        NOSA_TRY(status);
    }
    return NOSA_OK;
}

/* Marks the tokens of the chat format, so that messages cannot spell them. */
static void mark_controls(struct nosa_tokenizer *tokenizer)
{
    if (tokenizer->chat_template == NULL)
        return;
    tokenizer->chat_family = nosa_chat_detect(tokenizer->chat_template);
    const char *const *controls = nosa_chat_controls(tokenizer->chat_family);
    for (; *controls != NULL; controls++) {
        int32_t id = nosa_tokenizer_find(tokenizer, *controls, strlen(*controls));
        if (id >= 0)
            tokenizer->vocab.pieces[id].flags |= PIECE_CONTROL;
    }
    const int32_t ends[2] = {tokenizer->bos_id, tokenizer->eos_id};
    for (int i = 0; i < 2; i++) {
        if (ends[i] >= 0)
            tokenizer->vocab.pieces[ends[i]].flags |= PIECE_CONTROL;
    }
}

static enum nosa_status load_root(struct nosa_tokenizer *tokenizer, const json_t *root,
                                  struct nosa_error *error)
{
    NOSA_TRY(
        nosa_bpe_load(&tokenizer->bpe, &tokenizer->vocab, json_object_get(root, "model"), error));
    NOSA_TRY(load_added(tokenizer, root, error));
    NOSA_TRY(
        nosa_normalizer_load(&tokenizer->normalizer, json_object_get(root, "normalizer"), error));
    NOSA_TRY(nosa_pretokenizer_load(&tokenizer->pretokenizer,
                                    json_object_get(root, "pre_tokenizer"), error));
    NOSA_TRY(nosa_member_sequence(json_object_get(root, "post_processor"), "post_processor",
                                  "processors", load_processor, tokenizer, error));
    return nosa_decoder_load(&tokenizer->decoder, json_object_get(root, "decoder"), error);
}

static enum nosa_status load(struct nosa_tokenizer *tokenizer,
                             const struct nosa_tokenizer_files *files, struct nosa_error *error)
{
    json_t *root;
    if (files->tokenizer_json.size > NOSA_TOKENIZER_FILE_BYTES_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "tokenizer.json is larger than the limit of %u bytes",
                              NOSA_TOKENIZER_FILE_BYTES_MAX);
    NOSA_TRY(nosa_member_parse(files->tokenizer_json, "tokenizer.json", &root, error));
    enum nosa_status status = load_root(tokenizer, root, error);
    json_decref(root);
    if (status == NOSA_OUT_OF_MEMORY)
        nosa_error_set(error, status, "no memory for the tokenizer");
    if (status != NOSA_OK) {
        if (error != NULL)
            nosa_error_prefix(error, "tokenizer.json");
        return status;
    }
    NOSA_TRY(load_config(tokenizer, files, error));
    mark_controls(tokenizer);
    return index_added(tokenizer, error);
}

enum nosa_status nosa_tokenizer_open_memory(const struct nosa_tokenizer_files *files,
                                            struct nosa_tokenizer **tokenizer,
                                            struct nosa_error *error)
{
    *tokenizer = NULL;
    struct nosa_tokenizer *created = calloc(1, sizeof *created);
    if (created == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a tokenizer");
    created->bos_id = -1;
    created->eos_id = -1;
    enum nosa_status status = load(created, files, error);
    if (status == NOSA_OK)
        *tokenizer = created;
    else
        nosa_tokenizer_close(created);
    return status;
}

void nosa_tokenizer_close(struct nosa_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    free(tokenizer->chat_template);
    nosa_decoder_free(&tokenizer->decoder);
    nosa_pretokenizer_free(&tokenizer->pretokenizer);
    nosa_normalizer_free(&tokenizer->normalizer);
    nosa_trie_free(&tokenizer->normalized_trie);
    nosa_trie_free(&tokenizer->raw_trie);
    free(tokenizer->added);
    nosa_bpe_free(&tokenizer->bpe);
    nosa_vocab_free(&tokenizer->vocab);
    free(tokenizer);
}

static enum nosa_status read_file(const char *directory, const char *name, size_t size_max,
                                  bool required, struct nosa_tokenizer_bytes *bytes,
                                  struct nosa_error *error)
{
    char path[PATH_BYTES_MAX];
    int length = snprintf(path, sizeof path, "%s/%s", directory, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "model directory: the path is too long");
    char *data;
    struct nosa_error failure = {0};
    enum nosa_status status = nosa_file_read(path, size_max, &data, &bytes->size, &failure);
    if (status == NOSA_NOT_FOUND && !required)
        return NOSA_OK;
    if (status != NOSA_OK)
        return nosa_error_set(error, status, "%s", failure.text);
    bytes->data = data;
    return NOSA_OK;
}

enum nosa_status nosa_tokenizer_open(const char *model_directory, struct nosa_tokenizer **tokenizer,
                                     struct nosa_error *error)
{
    struct nosa_tokenizer_files files = {0};
    *tokenizer = NULL;
    enum nosa_status status =
        read_file(model_directory, "tokenizer.json", NOSA_TOKENIZER_FILE_BYTES_MAX, true,
                  &files.tokenizer_json, error);
    if (status == NOSA_OK)
        status = read_file(model_directory, "tokenizer_config.json", SMALL_FILE_BYTES_MAX, false,
                           &files.config_json, error);
    if (status == NOSA_OK)
        status = read_file(model_directory, "special_tokens_map.json", SMALL_FILE_BYTES_MAX, false,
                           &files.special_tokens_map, error);
    if (status == NOSA_OK)
        status = read_file(model_directory, "chat_template.jinja", SMALL_FILE_BYTES_MAX, false,
                           &files.chat_template, error);
    if (status == NOSA_OK) {
        status = nosa_tokenizer_open_memory(&files, tokenizer, error);
        if (status != NOSA_OK && error != NULL)
            nosa_error_prefix(error, "%s", model_directory);
    }
    free((void *)files.chat_template.data);
    free((void *)files.special_tokens_map.data);
    free((void *)files.config_json.data);
    free((void *)files.tokenizer_json.data);
    return status;
}
