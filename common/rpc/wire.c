#include <string.h>

#include "rpc/wire_internal.h"

#define FIELD_NUMBER_MAX ((UINT64_C(1) << 29) - 1)

bool nosa_wire_varint(const uint8_t **cursor, const uint8_t *end, uint64_t *value)
{
    uint64_t result = 0;
    for (unsigned shift = 0; shift < 70 && *cursor < end; shift += 7) {
        uint8_t byte = *(*cursor)++;
        if (shift == 63 && byte > 1)
            return false;
        result |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *value = result;
            return true;
        }
    }
    return false;
}

/* `size` bytes, little-endian. */
static bool fixed(const uint8_t **cursor, const uint8_t *end, size_t size, uint64_t *value)
{
    if ((size_t)(end - *cursor) < size)
        return false;
    *value = 0;
    for (size_t i = 0; i < size; i++)
        *value |= (uint64_t)(*cursor)[i] << (8 * i);
    *cursor += size;
    return true;
}

bool nosa_wire_next(const uint8_t **cursor, const uint8_t *end, struct nosa_wire_field *field)
{
    uint64_t key;
    memset(field, 0, sizeof *field);
    if (!nosa_wire_varint(cursor, end, &key) || key >> 3 == 0 || key >> 3 > FIELD_NUMBER_MAX)
        return false;
    field->number = (uint32_t)(key >> 3);
    field->type = key & 7;
    switch (field->type) {
    case 0: return nosa_wire_varint(cursor, end, &field->value);
    case 1: return fixed(cursor, end, 8, &field->value);
    case 5: return fixed(cursor, end, 4, &field->value);
    case 2: {
        uint64_t size;
        if (!nosa_wire_varint(cursor, end, &size) || size > (uint64_t)(end - *cursor))
            return false;
        field->data = *cursor;
        field->size = (size_t)size;
        *cursor += size;
        return true;
    }
    default: return false;
    }
}
