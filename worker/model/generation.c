#include "base/file.h"
#include "model/config.h"
#include "model/json_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void nosa_generation_config_default(struct nosa_generation_config *generation)
{
    memset(generation, 0, sizeof *generation);
    generation->temperature = 1;
    generation->top_p = 1;
    generation->repetition_penalty = 1;
}

static enum nosa_status parse_root(const json_t *root, uint32_t vocab,
                                   struct nosa_generation_config *generation,
                                   struct nosa_error *error)
{
    NOSA_TRY(nosa_json_bool(root, "do_sample", &generation->do_sample, error));
    NOSA_TRY(nosa_json_double(root, "temperature", 0, 100, false, &generation->temperature, error));
    NOSA_TRY(nosa_json_double(root, "top_p", 1e-9, 1, false, &generation->top_p, error));
    NOSA_TRY(
        nosa_json_u32(root, "top_k", 0, NOSA_MODEL_VOCAB_MAX, false, &generation->top_k, error));
    NOSA_TRY(nosa_json_double(root, "min_p", 0, 1, false, &generation->min_p, error));
    NOSA_TRY(nosa_json_double(root, "repetition_penalty", 1e-3, 100, false,
                              &generation->repetition_penalty, error));
    return nosa_json_token_ids(root, "eos_token_id", vocab, generation->eos, NOSA_MODEL_EOS_MAX,
                               &generation->n_eos, error);
}

enum nosa_status nosa_generation_config_parse(const char *json, size_t bytes, uint32_t vocab,
                                              struct nosa_generation_config *generation,
                                              struct nosa_error *error)
{
    json_t *root = NULL;
    nosa_generation_config_default(generation);
    NOSA_TRY(nosa_json_parse(json, bytes, &root, error));
    enum nosa_status status = parse_root(root, vocab, generation, error);
    json_decref(root);
    if (status != NOSA_OK)
        nosa_generation_config_default(generation);
    return status;
}

enum nosa_status nosa_generation_config_load(const char *directory, uint32_t vocab,
                                             struct nosa_generation_config *generation,
                                             struct nosa_error *error)
{
    char path[PATH_MAX];
    char *text = NULL;
    size_t bytes = 0;
    struct nosa_error local = {NOSA_OK, ""};
    nosa_generation_config_default(generation);
    NOSA_TRY(nosa_model_path(path, sizeof path, directory, "generation_config.json", error));
    enum nosa_status status =
        nosa_file_read(path, NOSA_JSON_CONFIG_BYTES_MAX, &text, &bytes, &local);
    if (status == NOSA_NOT_FOUND)
        return NOSA_OK;
    if (status != NOSA_OK)
        return nosa_error_set(error, status, "%s", local.text);
    status = nosa_generation_config_parse(text, bytes, vocab, generation, error);
    free(text);
    if (status != NOSA_OK)
        nosa_error_prefix(error, "%s", path);
    return status;
}
