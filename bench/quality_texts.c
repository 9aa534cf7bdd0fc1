#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/utf8.h"
#include "quality.h"

/* Bytes of a text that are read and tokenised at most: enough for any window. */
#define TEXT_BYTES_MAX (8u << 20)

struct path_list {
    char **paths; /* owned */
    int32_t n;
};

static void free_paths(struct path_list *list)
{
    for (int32_t i = 0; i < list->n; i++)
        free(list->paths[i]);
    free(list->paths);
}

static enum nosa_status add_path(struct path_list *list, const char *path, struct nosa_error *error)
{
    char **grown = realloc(list->paths, sizeof *grown * (size_t)(list->n + 1));
    if (grown)
        list->paths = grown;
    char *copy = grown ? strdup(path) : NULL;
    if (!copy)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the names of texts");
    list->paths[list->n++] = copy;
    return NOSA_OK;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_text(const char *name)
{
    size_t length = strlen(name);
    return length > 4 && strcmp(name + length - 4, ".txt") == 0;
}

/* *.txt of a folder, and of its folders when `depth` is above 0. */
static enum nosa_status list_folder(struct path_list *list, const char *folder, int depth,
                                    struct nosa_error *error)
{
    DIR *directory = opendir(folder);
    if (!directory)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: %s", folder, strerror(errno));
    enum nosa_status status = NOSA_OK;
    struct dirent *entry;
    while (status == NOSA_OK && (entry = readdir(directory)) != NULL) {
        char path[PATH_MAX];
        struct stat info;
        if (entry->d_name[0] == '.' ||
            (size_t)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= sizeof path)
            continue;
        if (stat(path, &info) == 0 && S_ISDIR(info.st_mode) && depth > 0)
            status = list_folder(list, path, depth - 1, error);
        else if (is_text(entry->d_name))
            status = add_path(list, path, error);
    }
    closedir(directory);
    return status;
}

/* A text of more than TEXT_BYTES_MAX is cut at a whole character. */
static enum nosa_status read_text(const char *path, char **text, size_t *size,
                                  struct nosa_error *error)
{
    NOSA_TRY(nosa_file_read(path, NOSA_TOKENIZER_TEXT_BYTES_MAX, text, size, error));
    size_t valid = nosa_utf8_valid_prefix(*text, *size);
    enum nosa_status status = NOSA_OK;
    if (*size == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: the text is empty", path);
    else if (valid != *size)
        status =
            nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not UTF-8 at byte %zu", path, valid);
    if (status != NOSA_OK) {
        free(*text);
        *text = NULL;
        return status;
    }
    if (*size > TEXT_BYTES_MAX)
        *size = nosa_utf8_valid_prefix(*text, TEXT_BYTES_MAX);
    return NOSA_OK;
}

static enum nosa_status add_document(struct quality_texts *texts, const char *path,
                                     const struct nosa_tokenizer *tokenizer, int32_t context,
                                     struct nosa_error *error)
{
    char *text;
    size_t size;
    struct quality_document document = {0};
    NOSA_TRY(read_text(path, &text, &size, error));
    enum nosa_status status = nosa_tokenizer_encode(tokenizer, text, size, 0, &document.ids, error);
    free(text);
    bool taken = status == NOSA_OK && document.ids.count >= (size_t)context;
    if (taken) {
        struct quality_document *grown =
            realloc(texts->documents, sizeof *grown * (size_t)(texts->n + 1));
        const char *slash = strrchr(path, '/');
        document.name = strdup(slash ? slash + 1 : path);
        if (grown)
            texts->documents = grown;
        if (!grown || !document.name)
            status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %s", path);
    }
    if (taken && status == NOSA_OK) {
        texts->documents[texts->n++] = document;
        return NOSA_OK;
    }
    texts->too_short += status == NOSA_OK;
    nosa_tokens_free(&document.ids);
    free(document.name);
    return status;
}

enum nosa_status quality_texts_read(struct quality_texts *texts, const char *path,
                                    const struct nosa_tokenizer *tokenizer, int32_t context,
                                    int32_t documents_max, struct nosa_error *error)
{
    struct path_list list = {0};
    struct stat info;
    *texts = (struct quality_texts){0};
    if (stat(path, &info) != 0)
        return nosa_error_set(error, NOSA_NOT_FOUND, "%s: %s", path, strerror(errno));
    enum nosa_status status =
        S_ISDIR(info.st_mode) ? list_folder(&list, path, 1, error) : add_path(&list, path, error);
    if (list.n > 1)
        qsort(list.paths, (size_t)list.n, sizeof *list.paths, compare_paths);
    for (int32_t i = 0; status == NOSA_OK && i < list.n && texts->n < documents_max; i++)
        status = add_document(texts, list.paths[i], tokenizer, context, error);
    if (status == NOSA_OK && list.n == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: holds no .txt file", path);
    else if (status == NOSA_OK && texts->n == 0)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "%s: no text has the %d tokens of a window", path, context);
    free_paths(&list);
    if (status != NOSA_OK)
        quality_texts_free(texts);
    return status;
}

void quality_texts_free(struct quality_texts *texts)
{
    for (int32_t i = 0; i < texts->n; i++) {
        free(texts->documents[i].name);
        nosa_tokens_free(&texts->documents[i].ids);
    }
    free(texts->documents);
    *texts = (struct quality_texts){0};
}

int64_t quality_window(const struct quality_document *document, int32_t context, int32_t windows,
                       int32_t index)
{
    int64_t count = (int64_t)document->ids.count, slots = count / context;
    slots = slots < windows ? slots : windows;
    if (index >= slots)
        return -1;
    return index * (context + (count - slots * context) / slots);
}
