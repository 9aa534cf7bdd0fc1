#include "model/safetensors.h"

#include "base/file.h"
#include "model/json_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX_BYTES 8u

struct nosa_safetensors {
    char *path;               /* owned */
    struct nosa_file_map map; /* owned; empty when the bytes belong to someone else */
    const uint8_t *bytes;     /* borrowed: the map's, or the caller's of open_memory */
    uint64_t size;            /* bytes */
    dev_t device;             /* with inode: which file was mapped */
    ino_t inode;
    char *names;                 /* owned: all the names, each with its NUL */
    struct nosa_tensor *tensors; /* owned [count], sorted by name */
    uint64_t count;
};

static const struct dtype_entry {
    const char *name;
    uint32_t bits;
    enum nosa_tensor_dtype dtype;
} dtypes[] = {
    {"F32", 32, NOSA_TENSOR_F32},      {"F16", 16, NOSA_TENSOR_F16},
    {"BF16", 16, NOSA_TENSOR_BF16},    {"F64", 64, NOSA_TENSOR_OTHER},
    {"C64", 64, NOSA_TENSOR_OTHER},    {"I64", 64, NOSA_TENSOR_OTHER},
    {"U64", 64, NOSA_TENSOR_OTHER},    {"I32", 32, NOSA_TENSOR_OTHER},
    {"U32", 32, NOSA_TENSOR_OTHER},    {"I16", 16, NOSA_TENSOR_OTHER},
    {"U16", 16, NOSA_TENSOR_OTHER},    {"I8", 8, NOSA_TENSOR_OTHER},
    {"U8", 8, NOSA_TENSOR_OTHER},      {"BOOL", 8, NOSA_TENSOR_OTHER},
    {"F8_E4M3", 8, NOSA_TENSOR_OTHER}, {"F8_E5M2", 8, NOSA_TENSOR_OTHER},
    {"F8_E8M0", 8, NOSA_TENSOR_OTHER}, {"F6_E2M3", 6, NOSA_TENSOR_OTHER},
    {"F6_E3M2", 6, NOSA_TENSOR_OTHER}, {"F4", 4, NOSA_TENSOR_OTHER},
};

const char *nosa_tensor_dtype_name(enum nosa_tensor_dtype dtype)
{
    switch (dtype) {
    case NOSA_TENSOR_F32: return "F32";
    case NOSA_TENSOR_F16: return "F16";
    case NOSA_TENSOR_BF16: return "BF16";
    case NOSA_TENSOR_OTHER: break;
    }
    return "other";
}

uint32_t nosa_tensor_dtype_bytes(enum nosa_tensor_dtype dtype)
{
    switch (dtype) {
    case NOSA_TENSOR_F32: return 4;
    case NOSA_TENSOR_F16:
    case NOSA_TENSOR_BF16: return 2;
    case NOSA_TENSOR_OTHER: break;
    }
    return 0;
}

static enum nosa_status parse_dtype(const json_t *value, struct nosa_tensor *tensor, uint32_t *bits,
                                    struct nosa_error *error)
{
    const char *name = json_is_string(value) ? json_string_value(value) : NULL;
    if (!name)
        return nosa_error_set(error, NOSA_CORRUPT, "dtype is not a string");
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            tensor->dtype = dtypes[i].dtype;
            tensor->dtype_name = dtypes[i].name;
            *bits = dtypes[i].bits;
            return NOSA_OK;
        }
    }
    return nosa_error_set(error, NOSA_CORRUPT, "unknown dtype %.40s", name);
}

/* Reads the shape and computes the tensor's size from it. */
static enum nosa_status parse_shape(const json_t *value, uint32_t bits, struct nosa_tensor *tensor,
                                    struct nosa_error *error)
{
    if (!json_is_array(value))
        return nosa_error_set(error, NOSA_CORRUPT, "shape is not a list");
    if (json_array_size(value) > NOSA_SAFETENSORS_RANK_MAX)
        return nosa_error_set(error, NOSA_CORRUPT, "shape has %zu dimensions, more than %d",
                              json_array_size(value), NOSA_SAFETENSORS_RANK_MAX);
    tensor->rank = (uint32_t)json_array_size(value);
    uint64_t total_bits = bits;
    bool is_empty = false;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        const json_t *item = json_array_get(value, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0)
            return nosa_error_set(error, NOSA_CORRUPT,
                                  "shape: dimension %u is not a non-negative integer", i);
        tensor->shape[i] = (uint64_t)json_integer_value(item);
        if (tensor->shape[i] == 0)
            is_empty = true;
        else if (__builtin_mul_overflow(total_bits, tensor->shape[i], &total_bits))
            return nosa_error_set(error, NOSA_CORRUPT, "shape: the product overflows");
    }
    if (is_empty)
        total_bits = 0;
    if (total_bits % 8 != 0)
        return nosa_error_set(error, NOSA_CORRUPT, "shape: not a whole number of bytes");
    tensor->bytes = total_bits / 8;
    return NOSA_OK;
}

static enum nosa_status parse_offsets(const json_t *value, const uint8_t *data, uint64_t data_bytes,
                                      struct nosa_tensor *tensor, struct nosa_error *error)
{
    const json_t *first = json_is_array(value) ? json_array_get(value, 0) : NULL;
    const json_t *last = json_is_array(value) ? json_array_get(value, 1) : NULL;
    if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return nosa_error_set(error, NOSA_CORRUPT, "data_offsets is not a list of two integers");
    json_int_t begin = json_integer_value(first);
    json_int_t end = json_integer_value(last);
    if (begin < 0 || end < begin)
        return nosa_error_set(error, NOSA_CORRUPT,
                              "data_offsets [%lld, %lld] are negative or reversed",
                              (long long)begin, (long long)end);
    if ((uint64_t)end > data_bytes)
        return nosa_error_set(error, NOSA_CORRUPT,
                              "data_offsets [%lld, %lld] reach past the %llu bytes of data",
                              (long long)begin, (long long)end, (unsigned long long)data_bytes);
    if ((uint64_t)(end - begin) != tensor->bytes)
        return nosa_error_set(error, NOSA_CORRUPT,
                              "data_offsets [%lld, %lld] do not hold the %llu bytes of its shape",
                              (long long)begin, (long long)end, (unsigned long long)tensor->bytes);
    tensor->data = data + begin;
    return NOSA_OK;
}

static enum nosa_status parse_tensor(const json_t *value, const uint8_t *data, uint64_t data_bytes,
                                     struct nosa_tensor *tensor, struct nosa_error *error)
{
    uint32_t bits = 0;
    if (!json_is_object(value))
        return nosa_error_set(error, NOSA_CORRUPT, "its entry is not an object");
    NOSA_TRY(parse_dtype(nosa_json_get(value, "dtype"), tensor, &bits, error));
    NOSA_TRY(parse_shape(nosa_json_get(value, "shape"), bits, tensor, error));
    return parse_offsets(nosa_json_get(value, "data_offsets"), data, data_bytes, tensor, error);
}

static enum nosa_status check_metadata(const json_t *metadata, struct nosa_error *error)
{
    const char *key;
    json_t *value;
    if (metadata && !json_is_object(metadata))
        return nosa_error_set(error, NOSA_CORRUPT, "__metadata__ is not an object");
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return nosa_error_set(error, NOSA_CORRUPT, "__metadata__: %.80s is not a string", key);
    }
    return NOSA_OK;
}

static int compare_names(const void *left, const void *right)
{
    const struct nosa_tensor *a = left;
    const struct nosa_tensor *b = right;
    return strcmp(a->name, b->name);
}

static int compare_ranges(const void *left, const void *right)
{
    const struct nosa_tensor *a = left;
    const struct nosa_tensor *b = right;
    if (a->data != b->data)
        return a->data < b->data ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

/* Every byte of the data belongs to exactly one tensor. Leaves the tensors sorted by place. */
static enum nosa_status check_coverage(struct nosa_safetensors *file, const uint8_t *data,
                                       uint64_t data_bytes, struct nosa_error *error)
{
    const uint8_t *next = data;
    if (file->count > 0)
        qsort(file->tensors, file->count, sizeof file->tensors[0], compare_ranges);
    for (uint64_t i = 0; i < file->count; i++) {
        const uint8_t *begin = file->tensors[i].data;
        if (begin < next)
            return nosa_error_set(error, NOSA_CORRUPT, "tensor %.160s overlaps tensor %.160s",
                                  file->tensors[i].name, file->tensors[i - 1].name);
        if (begin > next)
            return nosa_error_set(error, NOSA_CORRUPT,
                                  "%llu bytes before tensor %.160s belong to no tensor",
                                  (unsigned long long)(begin - next), file->tensors[i].name);
        next = begin + file->tensors[i].bytes;
    }
    if ((uint64_t)(next - data) != data_bytes)
        return nosa_error_set(error, NOSA_CORRUPT,
                              "the tensors end after %llu of %llu bytes of data",
                              (unsigned long long)(next - data), (unsigned long long)data_bytes);
    return NOSA_OK;
}

/* Allocates the table and the names for what the header lists. */
static enum nosa_status allocate_table(struct nosa_safetensors *file, const json_t *root,
                                       struct nosa_error *error)
{
    const char *key;
    json_t *value;
    size_t names_bytes = 1;
    json_object_foreach((json_t *)root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        if (key[0] == '\0')
            return nosa_error_set(error, NOSA_CORRUPT, "a tensor has an empty name");
        names_bytes += strlen(key) + 1;
        file->count++;
    }
    file->names = malloc(names_bytes);
    file->tensors = calloc(file->count + 1, sizeof file->tensors[0]);
    if (!file->names || !file->tensors)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a table of %llu tensors",
                              (unsigned long long)file->count);
    return NOSA_OK;
}

static enum nosa_status parse_table(struct nosa_safetensors *file, const json_t *root,
                                    const uint8_t *data, uint64_t data_bytes,
                                    struct nosa_error *error)
{
    const char *key;
    json_t *value;
    uint64_t index = 0;
    NOSA_TRY(check_metadata(json_object_get(root, "__metadata__"), error));
    NOSA_TRY(allocate_table(file, root, error));
    char *name = file->names;
    json_object_foreach((json_t *)root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        struct nosa_tensor *tensor = &file->tensors[index++];
        size_t length = strlen(key) + 1;
        memcpy(name, key, length);
        tensor->name = name;
        name += length;
        enum nosa_status status = parse_tensor(value, data, data_bytes, tensor, error);
        if (status != NOSA_OK) {
            nosa_error_prefix(error, "tensor %.160s", key);
            return status;
        }
    }
    NOSA_TRY(check_coverage(file, data, data_bytes, error));
    if (file->count > 0)
        qsort(file->tensors, file->count, sizeof file->tensors[0], compare_names);
    return NOSA_OK;
}

static enum nosa_status parse_file(struct nosa_safetensors *file, struct nosa_error *error)
{
    if (file->size == 0)
        return nosa_error_set(error, NOSA_CORRUPT, "the file is empty");
    if (file->size < PREFIX_BYTES)
        return nosa_error_set(error, NOSA_CORRUPT, "%llu bytes are too short for a header",
                              (unsigned long long)file->size);
    uint64_t header_bytes = 0;
    for (uint32_t i = 0; i < PREFIX_BYTES; i++)
        header_bytes |= (uint64_t)file->bytes[i] << (8 * i);
    if (header_bytes > file->size - PREFIX_BYTES)
        return nosa_error_set(error, NOSA_CORRUPT,
                              "a header of %llu bytes reaches past the end of the file (%llu)",
                              (unsigned long long)header_bytes, (unsigned long long)file->size);
    if (header_bytes > NOSA_SAFETENSORS_HEADER_BYTES_MAX)
        return nosa_error_set(error, NOSA_CORRUPT, "a header of %llu bytes is above the limit, %u",
                              (unsigned long long)header_bytes, NOSA_SAFETENSORS_HEADER_BYTES_MAX);
    const char *header = (const char *)file->bytes + PREFIX_BYTES;
    if (header_bytes == 0 || header[0] != '{')
        return nosa_error_set(error, NOSA_CORRUPT, "the header does not begin with '{'");
    json_t *root = NULL;
    enum nosa_status status = nosa_json_parse(header, header_bytes, &root, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "header");
        return status;
    }
    status = parse_table(file, root, file->bytes + PREFIX_BYTES + header_bytes,
                         file->size - PREFIX_BYTES - header_bytes, error);
    json_decref(root);
    return status;
}

static enum nosa_status create(const char *path, struct nosa_safetensors **file,
                               struct nosa_error *error)
{
    size_t path_bytes = strlen(path) + 1;
    struct nosa_safetensors *made = calloc(1, sizeof *made);
    if (made)
        made->path = malloc(path_bytes);
    if (!made || !made->path) {
        free(made);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory", path);
    }
    memcpy(made->path, path, path_bytes);
    *file = made;
    return NOSA_OK;
}

/* Parses what `made` holds and hands it over, or closes it. */
static enum nosa_status finish(struct nosa_safetensors *made, struct nosa_safetensors **file,
                               struct nosa_error *error)
{
    enum nosa_status status = parse_file(made, error);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "%s", made->path);
        nosa_safetensors_close(made);
        return status;
    }
    *file = made;
    return NOSA_OK;
}

enum nosa_status nosa_safetensors_open(const char *path, struct nosa_safetensors **file,
                                       struct nosa_error *error)
{
    struct nosa_safetensors *made = NULL;
    *file = NULL;
    NOSA_TRY(create(path, &made, error));
    enum nosa_status status = nosa_file_map_open(&made->map, path, error);
    if (status != NOSA_OK) {
        nosa_safetensors_close(made);
        return status;
    }
    made->bytes = made->map.data;
    made->size = made->map.size;
    struct stat info;
    if (stat(path, &info) == 0) {
        made->device = info.st_dev;
        made->inode = info.st_ino;
    }
    return finish(made, file, error);
}

enum nosa_status nosa_safetensors_open_memory(const void *data, uint64_t bytes, const char *path,
                                              struct nosa_safetensors **file,
                                              struct nosa_error *error)
{
    struct nosa_safetensors *made = NULL;
    *file = NULL;
    NOSA_TRY(create(path, &made, error));
    made->bytes = data;
    made->size = bytes;
    return finish(made, file, error);
}

void nosa_safetensors_close(struct nosa_safetensors *file)
{
    if (!file)
        return;
    free(file->tensors);
    free(file->names);
    nosa_file_map_close(&file->map);
    free(file->path);
    free(file);
}

const char *nosa_safetensors_path(const struct nosa_safetensors *file)
{
    return file->path;
}

uint64_t nosa_safetensors_count(const struct nosa_safetensors *file)
{
    return file->count;
}

const struct nosa_tensor *nosa_safetensors_at(const struct nosa_safetensors *file, uint64_t index)
{
    NOSA_ASSERT(index < file->count);
    return &file->tensors[index];
}

const struct nosa_tensor *nosa_safetensors_find(const struct nosa_safetensors *file,
                                                const char *name)
{
    const struct nosa_tensor key = {.name = name};
    if (file->count == 0)
        return NULL;
    return bsearch(&key, file->tensors, file->count, sizeof key, compare_names);
}

bool nosa_safetensors_owns(const struct nosa_safetensors *file, const struct nosa_tensor *tensor)
{
    uintptr_t place = (uintptr_t)tensor;
    return place >= (uintptr_t)file->tensors && place < (uintptr_t)(file->tensors + file->count);
}

enum nosa_status nosa_safetensors_check_length(const struct nosa_safetensors *file,
                                               struct nosa_error *error)
{
    struct stat info;
    if (!file->map.data || stat(file->path, &info) != 0)
        return NOSA_OK; /* not a file, or unlinked: then nobody can cut it by this name */
    if (info.st_dev != file->device || info.st_ino != file->inode)
        return NOSA_OK; /* replaced by another; the mapping still holds the one that was checked */
    if ((uint64_t)info.st_size != file->size)
        return nosa_error_set(error, NOSA_CORRUPT,
                              "%s: changed while it was open: %llu bytes, then %lld", file->path,
                              (unsigned long long)file->size, (long long)info.st_size);
    return NOSA_OK;
}

void nosa_safetensors_release(const struct nosa_safetensors *file, const struct nosa_tensor *tensor)
{
    if (!file->map.data || tensor->bytes == 0)
        return;
    /* Whole pages around the range: a neighbour's bytes on them only come from the file again. */
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)tensor->data & ~(page - 1);
    uintptr_t end = (uintptr_t)tensor->data + tensor->bytes;
    madvise((void *)begin, end - begin, MADV_DONTNEED);
}
