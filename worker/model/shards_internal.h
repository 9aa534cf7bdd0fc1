/*
 * The safetensors files of a directory as one set of named tensors; called by checkpoint.c.
 * Constant once open; any thread may then read it.
 */
#ifndef NOSA_MODEL_SHARDS_INTERNAL_H
#define NOSA_MODEL_SHARDS_INTERNAL_H

#include "model/safetensors.h"

struct nosa_shards {
    struct nosa_safetensors **files; /* owned [n_files] */
    uint32_t n_files;
    const struct nosa_tensor **tensors; /* owned [n_tensors], sorted by name; of the files */
    uint64_t n_tensors;
};

/* Opens model.safetensors, else the shards that model.safetensors.index.json names, else the
 * directory's only *.safetensors. On failure `shards` is closed. */
enum nosa_status nosa_shards_open(const char *directory, struct nosa_shards *shards,
                                  struct nosa_error *error);

/* Closes all files; a zeroed struct is allowed. */
void nosa_shards_close(struct nosa_shards *shards);

const struct nosa_tensor *nosa_shards_find(const struct nosa_shards *shards, const char *name);

/* The file that holds `tensor`, which must be of this set. */
const struct nosa_safetensors *nosa_shards_file_of(const struct nosa_shards *shards,
                                                   const struct nosa_tensor *tensor);

#endif
