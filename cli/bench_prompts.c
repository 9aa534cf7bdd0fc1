#include "bench_prompts.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "bench_plan.h"

#define FILE_BYTES_MAX (UINT64_C(1) << 30)

void nosa_bench_prompts_free(struct nosa_bench_prompts *prompts)
{
    for (size_t i = 0; i < prompts->count; i++)
        free(prompts->list[i].text);
    free(prompts->list);
    *prompts = (struct nosa_bench_prompts){0};
}

static enum nosa_status read_object(const json_t *object, struct nosa_bench_prompt *prompt,
                                    struct nosa_error *error)
{
    const char *text = json_string_value(json_object_get(object, "prompt"));
    const json_t *tokens = json_object_get(object, "output_tokens");
    json_int_t count = json_integer_value(tokens);
    if (!text || !text[0])
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "there is no \"prompt\" with a text");
    if (tokens && (!json_is_integer(tokens) || count < 1 || count > NOSA_BENCH_TOKENS_MAX))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "\"output_tokens\" is no number from 1 to %u", NOSA_BENCH_TOKENS_MAX);
    prompt->output_tokens = tokens ? (uint32_t)count : 0;
    prompt->text = strdup(text);
    return prompt->text ? NOSA_OK
                        : nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the prompts");
}

static enum nosa_status read_line(const char *line, size_t size, struct nosa_bench_prompts *prompts,
                                  struct nosa_error *error)
{
    json_error_t reason;
    if (strspn(line, " \t\r\n") >= size)
        return NOSA_OK;
    if ((prompts->count & (prompts->count + 1)) == 0) { /* grows at 0, 1, 3, 7, ... */
        size_t capacity = 2 * prompts->count + 1;
        void *list = realloc(prompts->list, capacity * sizeof *prompts->list);
        if (!list)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the prompts");
        prompts->list = list;
    }
    json_t *object = json_loadb(line, size, JSON_REJECT_DUPLICATES, &reason);
    if (!object)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "not JSON: %s", reason.text);
    enum nosa_status status = read_object(object, &prompts->list[prompts->count], error);
    prompts->count += status == NOSA_OK;
    json_decref(object);
    return status;
}

enum nosa_status nosa_bench_prompts_read(const char *path, struct nosa_bench_prompts *prompts,
                                         struct nosa_error *error)
{
    char *bytes;
    size_t size, line = 1;
    *prompts = (struct nosa_bench_prompts){0};
    NOSA_TRY(nosa_file_read(path, FILE_BYTES_MAX, &bytes, &size, error));
    enum nosa_status status = NOSA_OK;
    for (const char *at = bytes; at < bytes + size && status == NOSA_OK; line++) {
        const char *end = memchr(at, '\n', (size_t)(bytes + size - at));
        size_t length = end ? (size_t)(end - at) : (size_t)(bytes + size - at);
        status = read_line(at, length, prompts, error);
        if (status != NOSA_OK)
            nosa_error_prefix(error, "%s: line %zu", path, line);
        at += length + 1;
    }
    if (status == NOSA_OK && prompts->count == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: there is no prompt in it", path);
    free(bytes);
    if (status != NOSA_OK)
        nosa_bench_prompts_free(prompts);
    return status;
}
