/* Typed members of tokenizer.json's objects; see tokenizer_internal.h. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

enum nosa_status nosa_member_parse(struct nosa_tokenizer_bytes bytes, const char *name,
                                   json_t **json, struct nosa_error *error)
{
    json_error_t failure = {.line = 0};
    *json = json_loadb(bytes.data == NULL ? "" : bytes.data, bytes.size, JSON_ALLOW_NUL, &failure);
    if (*json != NULL && json_is_object(*json))
        return NOSA_OK;
    if (*json != NULL) {
        json_decref(*json);
        *json = NULL;
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s is not a JSON object", name);
    }
    /* Where it finds no memory, jansson may leave the text empty instead of giving this code. */
    if (json_error_code(&failure) == json_error_out_of_memory || failure.text[0] == '\0')
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %s", name);
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: line %d: %s", name, failure.line,
                          failure.text);
}

const char *nosa_member_type(const json_t *json, const char *what, struct nosa_error *error)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (type == NULL)
        nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s has no \"type\"", what);
    return type;
}

enum nosa_status nosa_member_bool(const json_t *json, const char *what, const char *key,
                                  bool fallback, bool *value, struct nosa_error *error)
{
    const json_t *member = json_object_get(json, key);
    *value = fallback;
    if (member == NULL || json_is_null(member))
        return NOSA_OK;
    if (!json_is_boolean(member))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: \"%s\" is not true or false", what,
                              key);
    *value = json_is_true(member);
    return NOSA_OK;
}

enum nosa_status nosa_member_copy(const json_t *json, const char *what, const char *key,
                                  char **text, size_t *size, struct nosa_error *error)
{
    const json_t *member = json_object_get(json, key);
    if (!json_is_string(member))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: \"%s\" is not a string", what,
                              key);
    *size = json_string_length(member);
    *text = malloc(*size + 1);
    if (*text == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %s", what);
    memcpy(*text, json_string_value(member), *size);
    (*text)[*size] = '\0';
    return NOSA_OK;
}

enum nosa_status nosa_member_pattern(const json_t *json, const char *what, struct nosa_regex *regex,
                                     struct nosa_error *error)
{
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *expression = json_object_get(pattern, "Regex");
    const json_t *literal = json_object_get(pattern, "String");
    enum nosa_status status;
    if (json_is_string(expression)) {
        status = nosa_regex_compile(regex, json_string_value(expression),
                                    json_string_length(expression), error);
    } else if (json_is_string(literal)) {
        status = nosa_regex_literal(regex, json_string_value(literal), json_string_length(literal),
                                    error);
    } else {
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s: \"pattern\" is neither {\"String\": ...} nor {\"Regex\": ...}",
                              what);
    }
    if (status != NOSA_OK)
        nosa_error_prefix(error, "%s", what);
    return status;
}

static enum nosa_status load_nested(const json_t *json, const char *what, const char *key,
                                    nosa_member_load load, void *target, int depth,
                                    struct nosa_error *error)
{
    if (!json_is_object(json))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s is not an object", what);
    const char *type = nosa_member_type(json, what, error);
    if (type == NULL)
        return NOSA_INVALID_ARGUMENT;
    if (strcmp(type, "Sequence") != 0)
        return load(target, json, type, error);
    const json_t *members = json_object_get(json, key);
    if (!json_is_array(members))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: Sequence has no array \"%s\"",
                              what, key);
    if (depth >= NESTING_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: Sequences nest deeper than %d",
                              what, NESTING_MAX);
    for (size_t i = 0; i < json_array_size(members); i++)
        NOSA_TRY(
            load_nested(json_array_get(members, i), what, key, load, target, depth + 1, error));
    return NOSA_OK;
}

enum nosa_status nosa_member_sequence(const json_t *json, const char *what, const char *key,
                                      nosa_member_load load, void *target, struct nosa_error *error)
{
    if (json == NULL || json_is_null(json))
        return NOSA_OK;
    return load_nested(json, what, key, load, target, 0, error);
}
