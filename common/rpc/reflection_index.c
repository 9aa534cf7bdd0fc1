#include "rpc/reflection_internal.h"

#include <string.h>

#include "rpc/wire_internal.h"

/* Field numbers of descriptor.proto. A name is field 1 of everything. */
enum {
    SET_FILE = 1,
    NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    MESSAGE_ONEOF = 8,
    ENUM_VALUE = 2,
    SERVICE_METHOD = 2,
};

/* A part of a set: a file, a message, ... */
struct part {
    const uint8_t *data;
    size_t size;
};

static struct part part_of(const struct nosa_rpc_file *file)
{
    return (struct part){file->data, file->size};
}

/* Steps through the fields `number` of a part: *cursor begins as NULL. False at the end. */
static bool next_field(struct part part, uint32_t number, const uint8_t **cursor,
                       struct part *value)
{
    struct nosa_wire_field field;
    const uint8_t *end = part.data + part.size;
    if (!*cursor)
        *cursor = part.data;
    while (*cursor < end && nosa_wire_next(cursor, end, &field)) {
        if (field.number == number && field.type == 2) {
            *value = (struct part){field.data, field.size};
            return true;
        }
    }
    return false;
}

/* The first field `number`; empty when there is none. */
static struct part first_field(struct part part, uint32_t number)
{
    const uint8_t *cursor = NULL;
    struct part value = {0};
    if (!next_field(part, number, &cursor, &value))
        return (struct part){(const uint8_t *)"", 0};
    return value;
}

static bool equals(struct part part, const char *text, size_t size)
{
    return part.size == size && memcmp(part.data, text, size) == 0;
}

int nosa_rpc_file_index_find_name(const struct nosa_rpc_file_index *index, const char *name)
{
    for (size_t i = 0; i < index->count; i++)
        if (equals(first_field(part_of(&index->files[i]), NAME), name, strlen(name)))
            return (int)i;
    return -1;
}

/* As find_name, for a name that is not ended by NUL. */
static int find_part(const struct nosa_rpc_file_index *index, struct part name)
{
    for (size_t i = 0; i < index->count; i++)
        if (equals(first_field(part_of(&index->files[i]), NAME), (const char *)name.data,
                   name.size))
            return (int)i;
    return -1;
}

/* ---- symbols ---- */

/* Whether a part has, among its fields `number`, one of this name. */
static bool has_named(struct part part, uint32_t number, const char *name, size_t size)
{
    const uint8_t *cursor = NULL;
    struct part inner;
    while (next_field(part, number, &cursor, &inner))
        if (equals(first_field(inner, NAME), name, size))
            return true;
    return false;
}

/* Whether an enum of the part's fields `number` is called so, or has a value of this name: values
 * belong to the scope around their enum. */
static bool has_enum(struct part part, uint32_t number, const char *name, size_t size)
{
    const uint8_t *cursor = NULL;
    struct part inner;
    while (next_field(part, number, &cursor, &inner))
        if (equals(first_field(inner, NAME), name, size) ||
            has_named(inner, ENUM_VALUE, name, size))
            return true;
    return false;
}

/* Whether the messages in the part's fields `number` declare `path`, "Outer.Inner.field". */
static bool message_declares(struct part part, uint32_t number, const char *path, int depth)
{
    size_t head = strcspn(path, ".");
    const char *rest = path[head] ? path + head + 1 : NULL;
    const uint8_t *cursor = NULL;
    struct part message;
    while (depth > 0 && next_field(part, number, &cursor, &message)) {
        if (!equals(first_field(message, NAME), path, head))
            continue;
        if (!rest)
            return true;
        size_t size = strlen(rest);
        return has_named(message, MESSAGE_FIELD, rest, size) ||
               has_named(message, MESSAGE_ONEOF, rest, size) ||
               has_enum(message, MESSAGE_ENUM, rest, size) ||
               message_declares(message, MESSAGE_NESTED, rest, depth - 1);
    }
    return false;
}

static bool service_declares(struct part file, const char *path)
{
    size_t head = strcspn(path, ".");
    const char *rest = path[head] ? path + head + 1 : NULL;
    const uint8_t *cursor = NULL;
    struct part service;
    while (next_field(file, FILE_SERVICE, &cursor, &service))
        if (equals(first_field(service, NAME), path, head))
            return !rest || has_named(service, SERVICE_METHOD, rest, strlen(rest));
    return false;
}

static bool file_declares(struct part file, const char *symbol)
{
    enum { DEPTH_MAX = 16 };
    struct part package = first_field(file, FILE_PACKAGE);
    if (package.size > 0) {
        if (strncmp(symbol, (const char *)package.data, package.size) != 0 ||
            symbol[package.size] != '.')
            return false;
        symbol += package.size + 1;
    }
    return message_declares(file, FILE_MESSAGE, symbol, DEPTH_MAX) ||
           has_enum(file, FILE_ENUM, symbol, strlen(symbol)) || service_declares(file, symbol);
}

int nosa_rpc_file_index_find_symbol(const struct nosa_rpc_file_index *index, const char *symbol)
{
    if (symbol[0] == '.')
        symbol++;
    for (size_t i = 0; i < index->count; i++)
        if (file_declares(part_of(&index->files[i]), symbol))
            return (int)i;
    return -1;
}

/* ---- sets ---- */

size_t nosa_rpc_file_index_closure(const struct nosa_rpc_file_index *index, int file,
                                   int closure[NOSA_RPC_FILES_MAX])
{
    bool listed[NOSA_RPC_FILES_MAX] = {false};
    size_t count = 0;
    closure[count++] = file;
    listed[file] = true;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *cursor = NULL;
        struct part name;
        while (next_field(part_of(&index->files[closure[i]]), FILE_DEPENDENCY, &cursor, &name)) {
            int import = find_part(index, name);
            if (import >= 0 && !listed[import]) {
                closure[count++] = import;
                listed[import] = true;
            }
        }
    }
    return count;
}

static bool well_formed(struct part part)
{
    const uint8_t *cursor = part.data;
    struct nosa_wire_field field;
    while (cursor < part.data + part.size)
        if (!nosa_wire_next(&cursor, part.data + part.size, &field))
            return false;
    return true;
}

static enum nosa_status check_imports(const struct nosa_rpc_file_index *index,
                                      struct nosa_error *error)
{
    for (size_t i = 0; i < index->count; i++) {
        const uint8_t *cursor = NULL;
        struct part name;
        while (next_field(part_of(&index->files[i]), FILE_DEPENDENCY, &cursor, &name))
            if (find_part(index, name) < 0)
                return nosa_error_set(error, NOSA_CORRUPT, "a descriptor set lacks %.*s",
                                      (int)name.size, (const char *)name.data);
    }
    return NOSA_OK;
}

enum nosa_status nosa_rpc_file_index_add(struct nosa_rpc_file_index *index,
                                         const struct nosa_rpc_descriptor_set *set,
                                         struct nosa_error *error)
{
    const uint8_t *cursor = NULL;
    struct part whole = {set->data, set->size};
    struct part file;
    if (!well_formed(whole))
        return nosa_error_set(error, NOSA_CORRUPT, "a descriptor set is malformed");
    while (next_field(whole, SET_FILE, &cursor, &file)) {
        struct part name = first_field(file, NAME);
        if (!well_formed(file) || name.size == 0)
            return nosa_error_set(error, NOSA_CORRUPT, "a file of a descriptor set is malformed");
        if (find_part(index, name) >= 0)
            continue;
        if (index->count == NOSA_RPC_FILES_MAX)
            return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                                  "descriptor sets of more than %d files", NOSA_RPC_FILES_MAX);
        index->files[index->count++] = (struct nosa_rpc_file){file.data, file.size};
    }
    return check_imports(index, error);
}
