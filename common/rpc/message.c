#include "rpc/message.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/utf8.h"
#include "rpc/wire_internal.h"

/* Bytes that every allocation counts beside its own: what malloc keeps. */
#define ALLOCATION_OVERHEAD 16

/* ---- check ---- */

/* A message inside a message, for the path in errors. On the stack of the walk. */
struct frame {
    const struct frame *outer; /* NULL: the whole message */
    const ProtobufCMessageDescriptor *descriptor;
    const uint8_t *begin;                  /* of this message's bytes */
    const ProtobufCFieldDescriptor *field; /* where the walk is */
    const uint8_t *field_end;
    int depth;
};

/* How often the frame's field stands before where the walk is. */
static size_t occurrence(const struct frame *frame)
{
    const uint8_t *cursor = frame->begin;
    struct nosa_wire_field field;
    size_t count = 0;
    while (cursor < frame->field_end && nosa_wire_next(&cursor, frame->field_end, &field))
        count += field.number == frame->field->id;
    return count > 0 ? count - 1 : 0;
}

/* Appends "chat.messages[2].content". */
static void append_path(struct nosa_buffer *text, const struct frame *frame)
{
    if (frame->outer) {
        append_path(text, frame->outer);
        nosa_buffer_append_text(text, ".");
    }
    nosa_buffer_append_text(text, frame->field->name);
    if (frame->field->label == PROTOBUF_C_LABEL_REPEATED)
        nosa_buffer_printf(text, "[%zu]", occurrence(frame));
}

static enum nosa_status refuse(const struct frame *frame, struct nosa_error *error,
                               const char *reason)
{
    struct nosa_buffer path = {0};
    append_path(&path, frame);
    nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: %s",
                   path.data && !path.failed ? path.data : frame->field->name, reason);
    nosa_buffer_free(&path);
    return NOSA_INVALID_ARGUMENT;
}

static uint32_t wire_type_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT: return PROTOBUF_C_WIRE_TYPE_32BIT;
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE: return PROTOBUF_C_WIRE_TYPE_64BIT;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE: return PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED;
    default: return PROTOBUF_C_WIRE_TYPE_VARINT;
    }
}

static enum nosa_status check_string(const struct frame *frame, const struct nosa_wire_field *wire,
                                     struct nosa_error *error)
{
    char reason[64];
    const uint8_t *nul = wire->size ? memchr(wire->data, 0, wire->size) : NULL;
    if (nul) {
        snprintf(reason, sizeof reason, "holds a NUL (at byte %zu)", (size_t)(nul - wire->data));
        return refuse(frame, error, reason);
    }
    size_t valid = nosa_utf8_valid_prefix((const char *)wire->data, wire->size);
    if (valid < wire->size) {
        snprintf(reason, sizeof reason, "not valid UTF-8 (at byte %zu)", valid);
        return refuse(frame, error, reason);
    }
    return NOSA_OK;
}

static enum nosa_status check_message(struct frame *frame, size_t size, struct nosa_error *error);

static enum nosa_status check_field(struct frame *frame, const struct nosa_wire_field *wire,
                                    struct nosa_error *error)
{
    const ProtobufCFieldDescriptor *field = frame->field;
    uint32_t expected = wire_type_of(field->type);
    bool packed = field->label == PROTOBUF_C_LABEL_REPEATED &&
                  wire->type == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED;
    if (wire->type != expected && !packed)
        return refuse(frame, error, "has another type on the wire");
    if (field->type == PROTOBUF_C_TYPE_STRING)
        return check_string(frame, wire, error);
    if (field->type != PROTOBUF_C_TYPE_MESSAGE)
        return NOSA_OK;
    if (frame->depth == NOSA_MESSAGE_DEPTH_MAX)
        return refuse(frame, error, "nested too deeply");
    struct frame inner = {.outer = frame,
                          .descriptor = field->descriptor,
                          .begin = wire->data,
                          .depth = frame->depth + 1};
    return check_message(&inner, wire->size, error);
}

/* Walks the `size` bytes from frame->begin. */
static enum nosa_status check_message(struct frame *frame, size_t size, struct nosa_error *error)
{
    const uint8_t *cursor = frame->begin;
    const uint8_t *end = cursor + size;
    const ProtobufCFieldDescriptor *field = NULL;
    while (cursor < end) {
        struct nosa_wire_field wire;
        if (!nosa_wire_next(&cursor, end, &wire)) {
            if (frame->outer)
                return refuse(frame->outer, error, "not a well-formed message");
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "not a well-formed %s message",
                                  frame->descriptor->short_name);
        }
        if (!field || field->id != wire.number)
            field = protobuf_c_message_descriptor_get_field(frame->descriptor, wire.number);
        if (!field)
            continue;
        frame->field = field;
        frame->field_end = cursor;
        NOSA_TRY(check_field(frame, &wire, error));
    }
    return NOSA_OK;
}

enum nosa_status nosa_message_check(const ProtobufCMessageDescriptor *descriptor, const void *bytes,
                                    size_t size, struct nosa_error *error)
{
    static const uint8_t nothing;
    struct frame whole = {.descriptor = descriptor, .begin = size ? bytes : &nothing, .depth = 1};
    return check_message(&whole, size, error);
}

/* ---- unpack ---- */

struct bounded_allocator {
    ProtobufCAllocator table; /* its allocator_data is this struct */
    size_t bytes_left;
    bool exceeded;
    bool no_memory;
};

/* What is freed on the way still counts: the bound is on the work too. */
static void *bounded_alloc(void *data, size_t size)
{
    struct bounded_allocator *bounded = data;
    size_t bytes;
    if (__builtin_add_overflow(size, ALLOCATION_OVERHEAD, &bytes) || bytes > bounded->bytes_left) {
        bounded->exceeded = true;
        return NULL;
    }
    void *memory = malloc(size ? size : 1);
    if (!memory) {
        bounded->no_memory = true;
        return NULL;
    }
    bounded->bytes_left -= bytes;
    return memory;
}

static void bounded_free(void *data, void *pointer)
{
    (void)data;
    free(pointer);
}

enum nosa_status nosa_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                     const void *bytes, size_t size, size_t unpacked_bytes_max,
                                     ProtobufCMessage **message, struct nosa_error *error)
{
    *message = NULL;
    NOSA_TRY(nosa_message_check(descriptor, bytes, size, error));
    struct bounded_allocator bounded = {
        .table = {bounded_alloc, bounded_free, &bounded},
        .bytes_left = unpacked_bytes_max,
    };
    *message = protobuf_c_message_unpack(descriptor, &bounded.table, size, bytes);
    if (*message)
        return NOSA_OK;
    if (bounded.no_memory)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a %s message of %zu bytes",
                              descriptor->short_name, size);
    if (bounded.exceeded)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "a %s message of %zu bytes takes more than %zu bytes in memory",
                              descriptor->short_name, size, unpacked_bytes_max);
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "not a well-formed %s message",
                          descriptor->short_name);
}

void nosa_message_free(ProtobufCMessage *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}
