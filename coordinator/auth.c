#include "auth.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"

struct entry {
    uint8_t digest[NOSA_SHA256_SIZE]; /* of the token, which is not kept */
    const char *name;                 /* inside `data` */
    bool operator_allowed;
};

struct nosa_auth {
    char *data;            /* owned: the file, with its tokens wiped */
    struct entry *entries; /* owned, by digest */
    size_t count;
    size_t capacity;
};

static int compare(const void *a, const void *b)
{
    return memcmp(((const struct entry *)a)->digest, ((const struct entry *)b)->digest,
                  NOSA_SHA256_SIZE);
}

static enum nosa_status add(struct nosa_auth *auth, struct entry entry)
{
    if (auth->count == auth->capacity) {
        size_t capacity = auth->capacity ? 2 * auth->capacity : 16;
        struct entry *entries = realloc(auth->entries, capacity * sizeof *entries);
        if (!entries)
            return NOSA_OUT_OF_MEMORY;
        auth->entries = entries;
        auth->capacity = capacity;
    }
    auth->entries[auth->count++] = entry;
    return NOSA_OK;
}

static enum nosa_status read_line(struct nosa_auth *auth, char *line, size_t number,
                                  struct nosa_error *error)
{
    static const char blanks[] = " \t\r";
    char *rest = NULL;
    char *token = strtok_r(line, blanks, &rest);
    if (!token || token[0] == '#')
        return NOSA_OK;
    char *name = strtok_r(NULL, blanks, &rest);
    char *right = strtok_r(NULL, blanks, &rest);
    if (!name || strtok_r(NULL, blanks, &rest))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "line %zu is not a token and its name",
                              number);
    if (right && strcmp(right, "inference") != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "line %zu: the third word can only be inference", number);
    if (auth->count == NOSA_AUTH_TOKENS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "line %zu: more than %d tokens", number,
                              NOSA_AUTH_TOKENS_MAX);
    struct entry entry = {.name = name, .operator_allowed = !right};
    NOSA_TRY(nosa_sha256(token, strlen(token), entry.digest, error));
    explicit_bzero(token, strlen(token));
    if (add(auth, entry) != NOSA_OK)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the tokens");
    return NOSA_OK;
}

static enum nosa_status read_lines(struct nosa_auth *auth, struct nosa_error *error)
{
    char *rest = auth->data;
    for (size_t number = 1; rest; number++) {
        char *line = strsep(&rest, "\n");
        NOSA_TRY(read_line(auth, line, number, error));
    }
    if (auth->count == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "no token in it");
    qsort(auth->entries, auth->count, sizeof *auth->entries, compare);
    for (size_t i = 1; i < auth->count; i++)
        if (compare(&auth->entries[i - 1], &auth->entries[i]) == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "the tokens of '%.64s' and '%.64s' are the same",
                                  auth->entries[i - 1].name, auth->entries[i].name);
    return NOSA_OK;
}

enum nosa_status nosa_auth_open(struct nosa_auth **out, const char *path, struct nosa_error *error)
{
    size_t size = 0;
    *out = NULL;
    struct nosa_auth *auth = calloc(1, sizeof *auth);
    if (!auth)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the tokens");
    enum nosa_status status =
        nosa_file_read(path, NOSA_AUTH_FILE_BYTES_MAX, &auth->data, &size, error);
    if (status == NOSA_OK) {
        if (memchr(auth->data, '\0', size))
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "has a NUL, so it is no text");
        else
            status = read_lines(auth, error);
        if (status != NOSA_OK)
            nosa_error_prefix(error, "%s", path);
    }
    if (status != NOSA_OK) {
        nosa_auth_free(auth);
        return status;
    }
    *out = auth;
    return NOSA_OK;
}

const char *nosa_auth_find(const struct nosa_auth *auth, const char *token, size_t size,
                           bool *operator_allowed)
{
    struct entry key;
    if (nosa_sha256(token, size, key.digest, NULL) != NOSA_OK)
        return NULL;
    const struct entry *found =
        bsearch(&key, auth->entries, auth->count, sizeof *auth->entries, compare);
    *operator_allowed = found && found->operator_allowed;
    return found ? found->name : NULL;
}

void nosa_auth_free(struct nosa_auth *auth)
{
    if (!auth)
        return;
    free(auth->data);
    free(auth->entries);
    free(auth);
}
