/*
 * Protobuf's wire form, field by field, over bytes that are not trusted. Used by the check of
 * incoming messages and by reflection, which reads descriptors without unpacking them (they nest in
 * themselves, which protobuf-c must not see).
 */
#ifndef NOSA_RPC_WIRE_INTERNAL_H
#define NOSA_RPC_WIRE_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One field. */
struct nosa_wire_field {
    uint32_t number;     /* 1 to 2^29-1 */
    uint32_t type;       /* a ProtobufCWireType: 0, 1, 2 or 5 */
    uint64_t value;      /* of types 0, 1 and 5 */
    const uint8_t *data; /* of type 2, inside the message */
    size_t size;
};

/* Reads at *cursor and moves it on. False: no whole, well-formed field begins there. */
bool nosa_wire_next(const uint8_t **cursor, const uint8_t *end, struct nosa_wire_field *field);

/* The field's number, type 0: at *cursor, moving it on. */
bool nosa_wire_varint(const uint8_t **cursor, const uint8_t *end, uint64_t *value);

#endif
