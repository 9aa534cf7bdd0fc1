#include "service/model_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

#define FILE_BYTES_MAX (256u << 20)

static const char *const names[NOSA_MODEL_FILES_MAX] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json"};

static enum nosa_status hash_files(struct nosa_model_files *files, struct nosa_error *error)
{
    struct nosa_sha256 hash;
    enum nosa_status status = nosa_sha256_init(&hash, error);
    for (size_t i = 0; i < files->count && status == NOSA_OK; i++) {
        const struct nosa_model_file *file = &files->files[i];
        status = nosa_sha256_update(&hash, file->name, strlen(file->name) + 1, error);
        if (status == NOSA_OK)
            status = nosa_sha256_update(&hash, file->data, file->size, error);
    }
    if (status == NOSA_OK)
        status = nosa_sha256_final(&hash, files->hash, error);
    nosa_sha256_free(&hash);
    return status;
}

enum nosa_status nosa_model_files_read(struct nosa_model_files *files, const char *directory,
                                       struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    *files = (struct nosa_model_files){0};
    for (size_t i = 0; i < NOSA_MODEL_FILES_MAX && status == NOSA_OK; i++) {
        char path[4096];
        struct nosa_model_file *file = &files->files[files->count];
        if (snprintf(path, sizeof path, "%s/%s", directory, names[i]) >= (int)sizeof path)
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--model: the path is too long");
        else
            status = nosa_file_read(path, FILE_BYTES_MAX, &file->data, &file->size, error);
        if (status == NOSA_NOT_FOUND) {
            nosa_error_clear(error);
            status = NOSA_OK;
        } else if (status == NOSA_OK) {
            file->name = names[i];
            files->count++;
        }
    }
    if (status == NOSA_OK)
        status = hash_files(files, error);
    if (status != NOSA_OK)
        nosa_model_files_free(files);
    return status;
}

void nosa_model_files_free(struct nosa_model_files *files)
{
    for (size_t i = 0; i < NOSA_MODEL_FILES_MAX; i++)
        free(files->files[i].data);
    *files = (struct nosa_model_files){0};
}
