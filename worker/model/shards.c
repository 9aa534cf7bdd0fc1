#include "model/shards_internal.h"

#include "base/file.h"
#include "model/json_internal.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SHARDS_MAX 4096
#define INDEX_NAME "model.safetensors.index.json"

void nosa_shards_close(struct nosa_shards *shards)
{
    free(shards->tensors);
    for (uint32_t i = 0; i < shards->n_files; i++)
        nosa_safetensors_close(shards->files[i]);
    free(shards->files);
    memset(shards, 0, sizeof *shards);
}

static int compare_pointers(const void *left, const void *right)
{
    const struct nosa_tensor *const *a = left;
    const struct nosa_tensor *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

const struct nosa_tensor *nosa_shards_find(const struct nosa_shards *shards, const char *name)
{
    const struct nosa_tensor key = {.name = name};
    const struct nosa_tensor *pointer = &key;
    if (shards->n_tensors == 0)
        return NULL;
    const struct nosa_tensor **found = bsearch(&pointer, shards->tensors, shards->n_tensors,
                                               sizeof(struct nosa_tensor *), compare_pointers);
    return found ? *found : NULL;
}

const struct nosa_safetensors *nosa_shards_file_of(const struct nosa_shards *shards,
                                                   const struct nosa_tensor *tensor)
{
    for (uint32_t i = 0; i < shards->n_files; i++)
        if (nosa_safetensors_owns(shards->files[i], tensor))
            return shards->files[i];
    NOSA_ASSERT(!"a tensor of this checkpoint");
    return NULL;
}

static enum nosa_status allocate(struct nosa_shards *shards, uint64_t files, uint64_t tensors,
                                 struct nosa_error *error)
{
    if (!shards->files)
        shards->files = calloc(files + 1, sizeof(struct nosa_safetensors *));
    shards->tensors = calloc(tensors + 1, sizeof(struct nosa_tensor *));
    if (!shards->files || !shards->tensors)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a table of %llu tensors",
                              (unsigned long long)tensors);
    return NOSA_OK;
}

static enum nosa_status open_single(const char *path, struct nosa_shards *shards,
                                    struct nosa_error *error)
{
    shards->files = calloc(1, sizeof(struct nosa_safetensors *));
    if (!shards->files)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "%s: no memory", path);
    NOSA_TRY(nosa_safetensors_open(path, &shards->files[0], error));
    shards->n_files = 1;
    uint64_t count = nosa_safetensors_count(shards->files[0]);
    NOSA_TRY(allocate(shards, 1, count, error));
    for (uint64_t i = 0; i < count; i++)
        shards->tensors[i] = nosa_safetensors_at(shards->files[0], i);
    shards->n_tensors = count;
    return NOSA_OK;
}

/* A shard is a plain file of the directory: its name may not lead elsewhere. */
static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && !strchr(name, '/') && strlen(name) <= NAME_MAX;
}

/* The open file of that name, or a newly opened one. */
static enum nosa_status shard_of_name(const char *directory, const char *name,
                                      struct nosa_shards *shards, struct nosa_safetensors **file,
                                      struct nosa_error *error)
{
    char path[PATH_MAX];
    NOSA_TRY(nosa_model_path(path, sizeof path, directory, name, error));
    for (uint32_t i = 0; i < shards->n_files; i++) {
        if (strcmp(nosa_safetensors_path(shards->files[i]), path) == 0) {
            *file = shards->files[i];
            return NOSA_OK;
        }
    }
    if (shards->n_files == SHARDS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s/" INDEX_NAME ": weight_map names more than %d files", directory,
                              SHARDS_MAX);
    NOSA_TRY(nosa_safetensors_open(path, file, error));
    shards->files[shards->n_files++] = *file;
    return NOSA_OK;
}

static enum nosa_status map_tensors(const char *directory, const json_t *map,
                                    struct nosa_shards *shards, struct nosa_error *error)
{
    const char *key;
    json_t *value;
    shards->files = calloc(SHARDS_MAX, sizeof(struct nosa_safetensors *));
    NOSA_TRY(allocate(shards, SHARDS_MAX, json_object_size(map), error));
    json_object_foreach((json_t *)map, key, value)
    {
        const char *name = json_string_value(value);
        if (!name || !is_plain_name(name))
            return nosa_error_set(error, NOSA_CORRUPT,
                                  "%s/" INDEX_NAME ": weight_map: %.120s is in \"%.120s\", which "
                                  "is not a plain file name",
                                  directory, key, name ? name : "");
        struct nosa_safetensors *file = NULL;
        NOSA_TRY(shard_of_name(directory, name, shards, &file, error));
        const struct nosa_tensor *tensor = nosa_safetensors_find(file, key);
        if (!tensor)
            return nosa_error_set(error, NOSA_CORRUPT,
                                  "%s: tensor %.160s is not in it, though " INDEX_NAME " says so",
                                  nosa_safetensors_path(file), key);
        shards->tensors[shards->n_tensors++] = tensor;
    }
    if (shards->n_tensors > 0)
        qsort(shards->tensors, shards->n_tensors, sizeof(struct nosa_tensor *), compare_pointers);
    return NOSA_OK;
}

static enum nosa_status open_index(const char *directory, const char *path,
                                   struct nosa_shards *shards, struct nosa_error *error)
{
    char *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    enum nosa_status status = nosa_file_read(path, NOSA_JSON_INDEX_BYTES_MAX, &text, &bytes, error);
    if (status != NOSA_OK)
        return status;
    status = nosa_json_parse(text, bytes, &root, error);
    free(text);
    if (status != NOSA_OK) {
        nosa_error_prefix(error, "%s", path);
        return status;
    }
    const json_t *map = nosa_json_get(root, "weight_map");
    if (!json_is_object(map))
        status = nosa_error_set(error, NOSA_CORRUPT, "%s: weight_map is not an object", path);
    else
        status = map_tensors(directory, map, shards, error);
    json_decref(root);
    return status;
}

/* Finds the only *.safetensors of the directory and writes its path. */
static enum nosa_status find_only(const char *directory, char *path, size_t size,
                                  struct nosa_error *error)
{
    static const char suffix[] = ".safetensors";
    DIR *listing = opendir(directory);
    if (!listing)
        return nosa_error_set(error, errno == ENOMEM ? NOSA_OUT_OF_MEMORY : NOSA_IO_ERROR,
                              "%s: cannot list: %s", directory, strerror(errno));
    enum nosa_status status = NOSA_OK;
    uint32_t found = 0;
    struct dirent *entry;
    while (status == NOSA_OK && (entry = readdir(listing)) != NULL) {
        size_t length = strlen(entry->d_name);
        if (length < sizeof suffix || entry->d_name[0] == '.' ||
            strcmp(entry->d_name + length - (sizeof suffix - 1), suffix) != 0)
            continue;
        if (++found > 1)
            status =
                nosa_error_set(error, NOSA_NOT_FOUND,
                               "%s: several *.safetensors files and no " INDEX_NAME, directory);
        else
            status = nosa_model_path(path, size, directory, entry->d_name, error);
    }
    closedir(listing);
    if (status == NOSA_OK && found == 0)
        status = nosa_error_set(error, NOSA_NOT_FOUND, "%s: no *.safetensors file", directory);
    return status;
}

/* Whether anything of that name is there; what is wrong with it is for the opener to say. */
static bool is_there(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0;
}

static enum nosa_status open_any(const char *directory, struct nosa_shards *shards,
                                 struct nosa_error *error)
{
    char path[PATH_MAX];
    NOSA_TRY(nosa_model_path(path, sizeof path, directory, "model.safetensors", error));
    if (is_there(path))
        return open_single(path, shards, error);
    NOSA_TRY(nosa_model_path(path, sizeof path, directory, INDEX_NAME, error));
    if (is_there(path))
        return open_index(directory, path, shards, error);
    NOSA_TRY(find_only(directory, path, sizeof path, error));
    return open_single(path, shards, error);
}

enum nosa_status nosa_shards_open(const char *directory, struct nosa_shards *shards,
                                  struct nosa_error *error)
{
    memset(shards, 0, sizeof *shards);
    enum nosa_status status = open_any(directory, shards, error);
    if (status != NOSA_OK)
        nosa_shards_close(shards);
    return status;
}
