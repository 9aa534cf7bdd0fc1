/* Looking things up in descriptor sets, for the reflection service. */
#ifndef NOSA_RPC_REFLECTION_INTERNAL_H
#define NOSA_RPC_REFLECTION_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "rpc/reflection.h"

#define NOSA_RPC_FILES_MAX 64 /* over all sets of a server */

/* A FileDescriptorProto inside a set. */
struct nosa_rpc_file {
    const uint8_t *data; /* static */
    size_t size;
};

struct nosa_rpc_file_index {
    struct nosa_rpc_file files[NOSA_RPC_FILES_MAX]; /* each name once */
    size_t count;
};

/* Adds every file of a set that is not there yet. NOSA_CORRUPT: the set does not parse, or a file
 * of it is missing what it imports; NOSA_RESOURCE_EXHAUSTED: too many files. */
enum nosa_status nosa_rpc_file_index_add(struct nosa_rpc_file_index *index,
                                         const struct nosa_rpc_descriptor_set *set,
                                         struct nosa_error *error);

/* Index of the file of this name, or of the one that declares a full name (message, field, enum,
 * value, service, method); -1: none. */
int nosa_rpc_file_index_find_name(const struct nosa_rpc_file_index *index, const char *name);
int nosa_rpc_file_index_find_symbol(const struct nosa_rpc_file_index *index, const char *symbol);

/* Stores the indices of a file and of all that it imports, directly or not, each once, the file
 * first; returns how many. */
size_t nosa_rpc_file_index_closure(const struct nosa_rpc_file_index *index, int file,
                                   int closure[NOSA_RPC_FILES_MAX]);

#endif
