#include "model/json_internal.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The parser reports some failed allocations as syntax errors and survives others with a character
 * of a string lost. Its allocations therefore go through here, where a failure leaves a mark;
 * memory is malloc's either way, so others that use the same library are not disturbed. */
static _Thread_local bool allocation_failed;

static void *json_allocate(size_t bytes)
{
    void *memory = malloc(bytes);
    if (!memory)
        allocation_failed = true;
    return memory;
}

static void json_release(void *memory)
{
    free(memory);
}

static void install_allocator(void)
{
    json_set_alloc_funcs(json_allocate, json_release);
}

enum nosa_status nosa_json_parse(const char *text, size_t bytes, json_t **root,
                                 struct nosa_error *error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_allocator);
    *root = NULL;
    allocation_failed = false;
    json_error_t reason;
    memset(&reason, 0, sizeof reason);
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &reason);
    if (allocation_failed) {
        json_decref(value);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for JSON of %zu bytes", bytes);
    }
    if (!value)
        return nosa_error_set(error, NOSA_CORRUPT, "not valid JSON: line %d: %s", reason.line,
                              reason.text);
    if (!json_is_object(value)) {
        json_decref(value);
        return nosa_error_set(error, NOSA_CORRUPT, "not a JSON object");
    }
    *root = value;
    return NOSA_OK;
}

const json_t *nosa_json_get(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

/* What a message shows of a value. */
static void describe(const json_t *value, char *text, size_t size)
{
    if (!value)
        snprintf(text, size, "missing");
    else if (json_is_integer(value))
        snprintf(text, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, size, "the decimal number %g", json_real_value(value));
    else if (json_is_string(value))
        snprintf(text, size, "the string \"%.40s\"", json_string_value(value));
    else if (json_is_boolean(value))
        snprintf(text, size, "%s", json_is_true(value) ? "true" : "false");
    else
        snprintf(text, size, "%s", json_is_array(value) ? "a list" : "an object");
}

enum nosa_status nosa_json_refuse(const char *name, const char *what, const json_t *value,
                                  struct nosa_error *error)
{
    char found[80];
    describe(value, found, sizeof found);
    if (!value)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s is missing; it must be %s", name,
                              what);
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s must be %s, not %s", name, what, found);
}

enum nosa_status nosa_json_u32(const json_t *object, const char *key, uint32_t low, uint32_t high,
                               bool required, uint32_t *value, struct nosa_error *error)
{
    const json_t *found = nosa_json_get(object, key);
    if (!found && !required)
        return NOSA_OK;
    if (!json_is_integer(found) || json_integer_value(found) < (json_int_t)low ||
        json_integer_value(found) > (json_int_t)high) {
        char what[64];
        snprintf(what, sizeof what, "an integer from %u to %u", low, high);
        return nosa_json_refuse(key, what, found, error);
    }
    *value = (uint32_t)json_integer_value(found);
    return NOSA_OK;
}

enum nosa_status nosa_json_double(const json_t *object, const char *key, double low, double high,
                                  bool required, double *value, struct nosa_error *error)
{
    const json_t *found = nosa_json_get(object, key);
    if (!found && !required)
        return NOSA_OK;
    double number = json_is_number(found) ? json_number_value(found) : NAN;
    if (!(number >= low && number <= high)) {
        char what[64];
        snprintf(what, sizeof what, "a number from %g to %g", low, high);
        return nosa_json_refuse(key, what, found, error);
    }
    *value = number;
    return NOSA_OK;
}

enum nosa_status nosa_json_bool(const json_t *object, const char *key, bool *value,
                                struct nosa_error *error)
{
    const json_t *found = nosa_json_get(object, key);
    if (!found)
        return NOSA_OK;
    if (!json_is_boolean(found))
        return nosa_json_refuse(key, "true or false", found, error);
    *value = json_is_true(found);
    return NOSA_OK;
}

static enum nosa_status add_token_id(const char *key, const json_t *value, uint32_t vocab,
                                     int32_t *ids, uint32_t capacity, uint32_t *count,
                                     struct nosa_error *error)
{
    json_int_t limit = vocab ? (json_int_t)vocab : (json_int_t)INT32_MAX;
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= limit) {
        char what[64];
        snprintf(what, sizeof what, "a token id below %lld", (long long)limit);
        return nosa_json_refuse(key, what, value, error);
    }
    int32_t id = (int32_t)json_integer_value(value);
    for (uint32_t i = 0; i < *count; i++)
        if (ids[i] == id)
            return NOSA_OK;
    if (*count == capacity)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s has more than %u ids", key,
                              capacity);
    ids[(*count)++] = id;
    return NOSA_OK;
}

enum nosa_status nosa_json_token_ids(const json_t *object, const char *key, uint32_t vocab,
                                     int32_t *ids, uint32_t capacity, uint32_t *count,
                                     struct nosa_error *error)
{
    *count = 0;
    const json_t *found = nosa_json_get(object, key);
    if (!found)
        return NOSA_OK;
    if (!json_is_array(found))
        return add_token_id(key, found, vocab, ids, capacity, count, error);
    for (size_t i = 0; i < json_array_size(found); i++)
        NOSA_TRY(add_token_id(key, json_array_get(found, i), vocab, ids, capacity, count, error));
    return NOSA_OK;
}

enum nosa_status nosa_model_path(char *path, size_t size, const char *directory, const char *name,
                                 struct nosa_error *error)
{
    int length = snprintf(path, size, "%s/%s", directory, name);
    if (length < 0 || (size_t)length >= size)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%.200s: the path is too long",
                              directory);
    return NOSA_OK;
}
