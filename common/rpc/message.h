/*
 * Protobuf messages from and to bytes, for what comes from strangers. protobuf-c alone accepts
 * invalid UTF-8 and NULs inside strings, and lets a few MB of tiny sub-messages allocate 45 times
 * their size; here a message is walked on the wire first, through its descriptor, and unpacked with
 * an allocator that stops at a bound. Stateless; any thread.
 */
#ifndef NOSA_RPC_MESSAGE_H
#define NOSA_RPC_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/status.h"

/* Sub-messages inside each other at most; our messages nest no deeper than 5. */
#define NOSA_MESSAGE_DEPTH_MAX 16

/*
 * Checks the wire form of a message: whole fields, no groups, known fields of the wire type that
 * their type asks for, and every string field valid UTF-8 without NUL. Unknown fields are skipped.
 * NOSA_INVALID_ARGUMENT names the field by its path, e.g.
 * "chat.messages[2].content: not valid UTF-8 (at byte 17)". Allocates nothing.
 */
enum nosa_status nosa_message_check(const ProtobufCMessageDescriptor *descriptor, const void *bytes,
                                    size_t size, struct nosa_error *error);

/*
 * Checks and unpacks. On success the caller frees *message with nosa_message_free and may cast it
 * to the descriptor's struct. Allocations of the unpacking, temporary ones included, stay within
 * `unpacked_bytes_max`. NOSA_INVALID_ARGUMENT as check, or for bytes that are no message of this
 * type; NOSA_RESOURCE_EXHAUSTED beyond the bound; NOSA_OUT_OF_MEMORY. On error *message is NULL.
 */
enum nosa_status nosa_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                     const void *bytes, size_t size, size_t unpacked_bytes_max,
                                     ProtobufCMessage **message, struct nosa_error *error);

/* Frees a message that nosa_message_unpack made; NULL is allowed. */
void nosa_message_free(ProtobufCMessage *message);

#endif
