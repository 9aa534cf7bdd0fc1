/* The files of a model that coordinators fetch: what a tokenizer and a chat format need. Read once;
 * constant afterwards, any thread. */
#ifndef NOSA_SERVICE_MODEL_FILES_H
#define NOSA_SERVICE_MODEL_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"

#define NOSA_MODEL_FILES_MAX 5

struct nosa_model_file {
    const char *name; /* static */
    char *data;       /* owned */
    size_t size;
};

struct nosa_model_files {
    size_t count;
    struct nosa_model_file files[NOSA_MODEL_FILES_MAX];
    uint8_t hash[NOSA_SHA256_SIZE]; /* over each file's name, a zero byte and its bytes, in order */
};

/* Reads those of tokenizer.json, tokenizer_config.json, special_tokens_map.json,
 * chat_template.jinja and generation_config.json that are there. On failure nothing is held; the
 * error names the file. */
enum nosa_status nosa_model_files_read(struct nosa_model_files *files, const char *directory,
                                       struct nosa_error *error);
/* Zero bytes are allowed. */
void nosa_model_files_free(struct nosa_model_files *files);

#endif
