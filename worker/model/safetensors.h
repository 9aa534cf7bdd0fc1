/*
 * One safetensors file, mapped read-only.
 *
 *   offset      size        meaning
 *   0           8           H, little-endian length of the header
 *   8           H           JSON object: tensor name -> {dtype, shape, data_offsets}, and
 *                           optionally __metadata__ (string -> string)
 *   8 + H       rest        the tensors' bytes; data_offsets count from here
 *
 * nosa_safetensors_open checks everything before any of it is used: H against the file and a
 * limit, the JSON (duplicate names refused), dtypes, shapes and their products, and that the
 * tensors' ranges lie in the file, match their shapes, neither overlap nor leave a hole, and end
 * exactly where the file does. After that the handle is constant and any thread may read it.
 */
#ifndef NOSA_MODEL_SAFETENSORS_H
#define NOSA_MODEL_SAFETENSORS_H

#include "base/status.h"

#include <stdint.h>

#define NOSA_SAFETENSORS_RANK_MAX         8
#define NOSA_SAFETENSORS_HEADER_BYTES_MAX (100u * 1000 * 1000)

/* Element types. The first three can be loaded; a file may hold the others, unused. */
enum nosa_tensor_dtype {
    NOSA_TENSOR_F32,
    NOSA_TENSOR_F16,
    NOSA_TENSOR_BF16,
    NOSA_TENSOR_OTHER,
};

struct nosa_tensor {
    const char *name; /* borrowed from the file's handle */
    enum nosa_tensor_dtype dtype;
    const char *dtype_name; /* as the file says it, e.g. "I8"; static */
    uint32_t rank;
    uint64_t shape[NOSA_SAFETENSORS_RANK_MAX]; /* [rank] */
    const void *data; /* borrowed from the mapping; NOT aligned: the format promises nothing */
    uint64_t bytes;
};

struct nosa_safetensors;

/* Opens and checks `path`. The file's bytes are mapped, not read, so this costs the header only.
 * Errors name the path: NOSA_NOT_FOUND, NOSA_INVALID_ARGUMENT (a directory), NOSA_IO_ERROR,
 * NOSA_CORRUPT (what the file says cannot be true), NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_safetensors_open(const char *path, struct nosa_safetensors **file,
                                       struct nosa_error *error);

/* Unmaps; its tensors end here. NULL is allowed. */
void nosa_safetensors_close(struct nosa_safetensors *file);

/* Checks a header as nosa_safetensors_open does, on memory that holds a whole file; `bytes` must
 * outlive the handle. The path serves messages only. */
enum nosa_status nosa_safetensors_open_memory(const void *data, uint64_t bytes, const char *path,
                                              struct nosa_safetensors **file,
                                              struct nosa_error *error);

const char *nosa_safetensors_path(const struct nosa_safetensors *file);
uint64_t nosa_safetensors_count(const struct nosa_safetensors *file);

/* Tensor `index` < count, in the order of names (bytewise). */
const struct nosa_tensor *nosa_safetensors_at(const struct nosa_safetensors *file, uint64_t index);

/* The tensor of that name, or NULL. O(log count). */
const struct nosa_tensor *nosa_safetensors_find(const struct nosa_safetensors *file,
                                                const char *name);

/* Whether `tensor` is one of this file's. */
bool nosa_safetensors_owns(const struct nosa_safetensors *file, const struct nosa_tensor *tensor);

/* Whether the file still has the length that was checked. A mapping of a file that was cut short
 * since faults when read, so loaders ask before each tensor. NOSA_CORRUPT names the file. */
enum nosa_status nosa_safetensors_check_length(const struct nosa_safetensors *file,
                                               struct nosa_error *error);

/* Gives back the memory that reading `tensor` (of this file) mapped into the process; the data
 * stay valid and come from the file again when read. */
void nosa_safetensors_release(const struct nosa_safetensors *file,
                              const struct nosa_tensor *tensor);

/* "F32", "F16", "BF16" or "other". */
const char *nosa_tensor_dtype_name(enum nosa_tensor_dtype dtype);

/* Bytes of one element; 0 for NOSA_TENSOR_OTHER. */
uint32_t nosa_tensor_dtype_bytes(enum nosa_tensor_dtype dtype);

#endif
