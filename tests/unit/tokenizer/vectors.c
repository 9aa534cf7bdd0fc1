#include "vectors.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"

char *vectors_read(const char *name, size_t *size)
{
    char path[512];
    char *data;
    struct nosa_error error = {0};
    snprintf(path, sizeof path, "%s/tokenizer/%s", NOSA_TEST_VECTORS, name);
    if (nosa_file_read(path, 64u << 20, &data, size, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return data;
}

void vectors_lines_read(struct vectors_lines *lines, const char *name)
{
    size_t size;
    lines->data = vectors_read(name, &size);
    lines->count = 0;
    for (size_t i = 0; i < size; i++)
        lines->count += lines->data[i] == '\n';
    assert_true(lines->count > 0);
    lines->items = calloc(lines->count, sizeof *lines->items);
    assert_non_null(lines->items);
    char *at = lines->data;
    for (size_t i = 0; i < lines->count; i++) {
        char *end = strchr(at, '\n');
        assert_non_null(end);
        *end = '\0';
        lines->items[i] = at;
        at = end + 1;
    }
}

void vectors_lines_free(struct vectors_lines *lines)
{
    free(lines->items);
    free(lines->data);
}

static unsigned sextet(char c)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *hit = strchr(alphabet, c);
    assert_true(c != '\0' && hit != NULL);
    return (unsigned)(hit - alphabet);
}

void vectors_bytes(const char *text, size_t length, struct nosa_buffer *out)
{
    nosa_buffer_reset(out);
    if (length == 1 && text[0] == '-')
        return;
    while (length > 0 && text[length - 1] == '=')
        length--;
    uint32_t bits = 0;
    unsigned held = 0;
    for (size_t i = 0; i < length; i++) {
        bits = bits << 6 | sextet(text[i]);
        held += 6;
        if (held >= 8) {
            held -= 8;
            char byte = (char)(bits >> held & 0xFF);
            assert_int_equal(nosa_buffer_append(out, &byte, 1), NOSA_OK);
        }
    }
}

void vectors_ids(const char *text, size_t length, struct nosa_tokens *ids)
{
    struct nosa_buffer bytes = {0};
    vectors_bytes(text, length, &bytes);
    ids->count = 0;
    uint32_t value = 0;
    unsigned shift = 0;
    for (size_t i = 0; i < bytes.size; i++) {
        uint8_t byte = (uint8_t)bytes.data[i];
        value |= (uint32_t)(byte & 0x7F) << shift;
        shift += 7;
        if ((byte & 0x80) == 0) {
            assert_int_equal(nosa_tokens_append(ids, (int32_t)value), NOSA_OK);
            value = 0;
            shift = 0;
        }
    }
    nosa_buffer_free(&bytes);
}

struct nosa_tokenizer *vectors_open(const char *name, const char *config)
{
    char file[64];
    struct nosa_tokenizer_files files = {0};
    struct nosa_tokenizer *tokenizer;
    struct nosa_error error = {0};
    snprintf(file, sizeof file, "%s.json", name);
    char *json = vectors_read(file, &files.tokenizer_json.size);
    files.tokenizer_json.data = json;
    files.config_json.data = config;
    files.config_json.size = config == NULL ? 0 : strlen(config);
    if (nosa_tokenizer_open_memory(&files, &tokenizer, &error) != NOSA_OK)
        fail_msg("%s: %s", name, error.text);
    free(json);
    return tokenizer;
}
